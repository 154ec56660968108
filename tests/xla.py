"""How tests compile: as fast as can be, which is most of their work."""

from importlib import metadata


def flags(num_devices: int = 1, older_fusion: bool = True) -> str:
  """XLA_FLAGS of a process with so many CPU devices.

  Without LLVM's optimisations compiling takes half of the time, and with the
  older of XLA's two ways to emit fused loops half of that. With that one the
  last bits of a result depend on what else is computed.
  """
  found = [
    f'--xla_force_host_platform_device_count={num_devices}',
    '--xla_backend_optimization_level=0',
  ]
  # XLA ends a process that gives it a flag which it does not know.
  if older_fusion and metadata.version('jaxlib').startswith('0.10.'):
    found.append('--xla_cpu_use_fusion_emitters=false')
  return ' '.join(found)
