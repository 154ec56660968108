"""Which run a process belongs to, found out from its environment."""

import pytest
from hosts_world import ROOT
from jax._src.clusters import cloud_tpu_cluster, cluster

from iusp_jax.runtime import hosts, peers

# Variables of a cluster that this test itself may run in.
FOREIGN = (
  'JAX_COORDINATOR_PORT',
  'KUBERNETES_SERVICE_HOST',
  'MEGASCALE_COORDINATOR_ADDRESS',
  'MEGASCALE_NUM_SLICES',
  'MEGASCALE_SLICE_ID',
  'OMPI_MCA_orte_hnp_uri',
  'SLURM_JOB_ID',
  'TPU_PROCESS_ADDRESSES',
  'TPU_SKIP_MDS_QUERY',
  'TPU_WORKER_HOSTNAMES',
)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
  for name in FOREIGN:
    monkeypatch.delenv(name, raising=False)


def test_no_cluster_is_reported():
  with pytest.raises(ValueError, match='--multihost finds no TPU pod'):
    hosts.detect(10)


@pytest.mark.parametrize(
  ('uri', 'host'),
  [
    ('1531576320.0;tcp://10.96.0.1,10.148.0.1:34911', '10.96.0.1'),
    ('1531576320.0;tcp6://[fe80::b9b,2620:10d::2]:43370', 'fe80::b9b'),
  ],
)
def test_open_mpi_run_is_recognised(uri, host, monkeypatch):
  run = {
    'OMPI_MCA_orte_hnp_uri': uri,
    'OMPI_COMM_WORLD_SIZE': '6',
    'OMPI_COMM_WORLD_RANK': '5',
    'OMPI_COMM_WORLD_LOCAL_RANK': '1',
  }
  for name, value in run.items():
    monkeypatch.setenv(name, value)
  coordinator, num_processes, process_id, devices = hosts.detect(10)
  # The port is made of the job's number, 1531576320 / 4096 = 373920.
  assert coordinator == f'{host}:{61440 + 373920 % 4096}'
  assert peers.split_address(coordinator)[0] == host
  assert (num_processes, process_id, devices) == (6, 5, [1])
  hosts.check(coordinator, num_processes, process_id, 10)


@pytest.fixture
def tpu(monkeypatch):
  """A TPU VM whose metadata server answers from a dict of the test."""
  metadata = {}

  def answer(key):
    return (metadata[key], 200) if key in metadata else ('', 404)

  monkeypatch.setattr(cloud_tpu_cluster, 'get_metadata', answer)
  for module in (cloud_tpu_cluster, cluster):
    monkeypatch.setattr(module, 'running_in_cloud_tpu_vm', True)
  return metadata


@pytest.mark.parametrize(
  'workers', ['127.0.0.1,127.0.0.2,127.0.0.3', 'a:0:127.0.0.1,b:1:x,c:2:y']
)
def test_tpu_pod_is_recognised(workers, tpu):
  tpu['agent-worker-number'] = '2'
  tpu['worker-network-endpoints'] = workers
  # No device numbers: a host of a pod has all of its chips.
  assert hosts.detect(10) == ('127.0.0.1:8482', 3, 2, None)


def test_slices_of_tpu_pods_are_one_run(tpu):
  tpu['agent-worker-number'] = '1'
  tpu['worker-network-endpoints'] = '127.0.0.3,127.0.0.4'
  tpu['tpu-env'] = (
    "MEGASCALE_COORDINATOR_ADDRESS: '127.0.0.1:8080'\n"
    "MEGASCALE_NUM_SLICES: '4'\nMEGASCALE_SLICE_ID: '3'\n"
  )
  assert hosts.detect(10) == ('127.0.0.1:8482', 8, 7, None)


def test_tpu_pod_of_kubernetes_is_recognised(tpu, monkeypatch):
  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', '127.0.0.1,127.0.0.2')
  monkeypatch.setenv('TPU_WORKER_ID', '1')
  assert hosts.detect(10) == ('127.0.0.1:8482', 2, 1, None)


def test_one_module_alone_uses_what_jax_keeps_to_itself():
  sources = [*ROOT.glob('iusp_jax/**/*.py'), ROOT / 'run.py']
  using = [path.name for path in sources if 'jax._src' in path.read_text()]
  assert using == ['jax_internals.py']
