"""Pages: links, names of files, commands, and what is generated from code."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags as absl_flags
from absl.testing.flagsaver import flagsaver
from commands import ROOT, command, environment

from iusp_jax import command_line
from iusp_jax.experiment import fields, identity
from iusp_jax.objectives import targets, terms

PAGES = sorted([ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')])
NOTEBOOKS = sorted((ROOT / 'docs').rglob('*.ipynb'))
CODE = [ROOT / 'run.py'] + [
  path
  for folder in ('iusp_jax', 'tfds_dcase', 'configs', 'benchmarks')
  for path in sorted((ROOT / folder).rglob('*.py'))
]
OBJECTIVE_PAGE = ROOT / 'docs/howto/add_an_objective.md'


def text_of(path):
  """What a page says; of a notebook, in its cells of text."""
  if path.suffix != '.ipynb':
    return path.read_text()
  cells = json.loads(path.read_text())['cells']
  texts = [''.join(c['source']) for c in cells if c['cell_type'] == 'markdown']
  return '\n\n'.join(texts)


def without_code(text):
  text = re.sub(r'^```.*?^```', '', text, flags=re.DOTALL | re.MULTILINE)
  return re.sub(r'`[^`]*`', '', text)


def anchors(text):
  """The names of a page's headings, as GitHub makes them."""
  headings = re.findall(r'^#+ (.*)', text, re.MULTILINE)
  return {
    re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    for heading in headings
  }


def name(path):
  return str(path.relative_to(ROOT))


@pytest.mark.parametrize('page', PAGES + NOTEBOOKS, ids=name)
def test_links_lead_somewhere(page):
  wrong = []
  for link in re.findall(r'\]\(([^)]*)\)', without_code(text_of(page))):
    if re.match(r'https?://', link):
      continue
    path, _, anchor = link.partition('#')
    target = (page.parent / path).resolve() if path else page
    exists = target.exists()
    if not exists or (anchor and anchor not in anchors(text_of(target))):
      wrong.append(link)
  assert not wrong


def test_wrong_links_are_found(tmp_path):
  page = tmp_path / 'page.md'
  page.write_text('# A title, with `code`\n[a](#a-title-with-code) [b](c.md)')
  assert anchors(page.read_text()) == {'a-title-with-code'}
  with pytest.raises(AssertionError, match=r'c\.md'):
    test_links_lead_somewhere(page)


def test_every_page_is_listed():
  """The index leads to each."""
  index = (ROOT / 'docs/README.md').read_text()
  links = re.findall(r'\]\(([^)#]*)\)', index)
  linked = {(ROOT / 'docs' / link).resolve() for link in links}
  pages = {*PAGES, *NOTEBOOKS} - {ROOT / 'README.md', ROOT / 'docs/README.md'}
  assert pages <= linked


@pytest.mark.parametrize('page', PAGES + NOTEBOOKS, ids=name)
def test_files_that_a_page_names_are_there(page):
  folders = 'tests|iusp_jax|configs|benchmarks|tfds_dcase|docs'
  named = re.findall(rf'`((?:{folders})/[\w/.-]*)`', text_of(page))
  assert not [path for path in named if not (ROOT / path).exists()]


def test_pages_that_code_names_are_there():
  named = {
    found
    for path in CODE
    for found in re.findall(r'docs/[\w/-]+\.\w+', path.read_text())
  }
  assert named
  assert not [path for path in named if not (ROOT / path).is_file()]


# What follows from the code --------------------------------------------------


def test_generated_pages_are_those_of_the_code():
  """Where this fails: python docs/reference/generate.py."""
  path = ROOT / 'docs/reference/generate.py'
  spec = importlib.util.spec_from_file_location('generate', path)
  assert spec is not None
  assert spec.loader is not None
  generate = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(generate)
  for page, content in generate.pages().items():
    assert (path.parent / page).read_text() == content


def test_layers_of_the_architecture_are_those_of_the_contract():
  page = (ROOT / 'docs/explanation/architecture.md').read_text()
  rows = re.findall(r'^\| (\d) \|.*?`iusp_jax/(\w+)', page, re.MULTILINE)
  place = {package: int(number) for number, package in rows}
  text = (ROOT / 'pyproject.toml').read_text()
  contracts = tomllib.loads(text)['tool']['importlinter']['contracts']
  (layers,) = [c['layers'] for c in contracts if c['id'] == 'layers']
  numbers = []
  for layer in layers:
    packages = re.findall(r'\w+', layer)
    found = {place.pop(name) for name in packages if name != 'similarity'}
    assert len(found) <= 1  # The module similarity names others' functions.
    numbers += found
  assert numbers == sorted(numbers, reverse=True)
  assert not place


# Commands --------------------------------------------------------------------


def commands_of(path):
  """The commands of run.py in the blocks of a page, as lists of words."""
  blocks = re.findall(
    r'^```\w*\n(.*?)^```', path.read_text(), re.DOTALL | re.MULTILINE
  )
  lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
  found = [line for line in lines if line.strip().startswith('python run.py')]
  found += re.findall(r'`(python run\.py [^`]*)`', path.read_text())
  return [
    shlex.split(line.replace('STUDENT', 'crnn_32'), comments=True)
    for line in found
    if '…' not in line
  ]


def blocks_of_objective_page():
  blocks = re.findall(
    r'^```\n(.*?)^```', OBJECTIVE_PAGE.read_text(), re.S | re.M
  )
  functions = [block for block in blocks if block.startswith('def ')]
  entries = [block for block in blocks if block.startswith("  '")]
  return functions, entries


@pytest.fixture
def objectives_of_the_page(monkeypatch):
  """The terms and targets that the page adds, by name."""
  functions, entries = blocks_of_objective_page()
  names = dict(vars(terms))
  for block in functions:
    exec(block, names)
  found = {}
  for block in entries:
    found |= eval('{' + block + '}', names)
  for key, value in found.items():
    known = terms.TERMS if isinstance(value, terms.Term) else targets.PER_CLIP
    monkeypatch.setitem(known, key, value)
  # Made of TERMS when it is imported.
  ranges = {f'objective.{k}': v for k, v in fields._objective().items()}
  ranges |= fields.RANGES
  monkeypatch.setattr(fields, 'RANGES', ranges)
  return found


def test_objectives_of_the_page_can_be_computed(objectives_of_the_page):
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  def frame_mask(num_frames):
    return jnp.ones((2, num_frames))

  outputs = targets.Outputs(
    logits_BC=draw(2, 3),
    frame_logits_BTC=draw(2, 8, 3),
    frames={'frames': draw(2, 8, 5), 'block_4': draw(2, 8, 4)},
    inner=(),
    frame_mask=frame_mask,
  )
  names = ['logits', 'loudness', 'frame_gram@block_4']
  teacher = targets.compute(names, outputs, lambda x: x, {})
  inputs = terms.Inputs(
    logits_BC=draw(2, 3),
    frame_logits_BTC=draw(2, 4, 3),
    frames={'frames': draw(2, 4, 6), 'block_1': draw(2, 4, 7)},
    inner=('block_1',),
    tags_BC=jnp.ones((2, 3)),
    mask_BC=jnp.ones((2, 3)),
    targets=teacher,
    frame_mask=frame_mask,
    clip_seconds=10.0,
    settings={'temperature': 2.0},
    params=None,
    axis_name='data',
  )
  found = {
    key: term
    for key, term in objectives_of_the_page.items()
    if isinstance(term, terms.Term)
  }
  assert set(found) == {'iusp_inner', 'inner_kd'}
  for term in found.values():
    if term.init:
      inputs = inputs._replace(params=term.init(jax.random.key(0), inputs))
    value_B = term.per_clip(inputs)
    assert value_B.shape == (2,)
    assert np.all(np.asarray(value_B) > 0)


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_commands_are_understood(page, objectives_of_the_page, monkeypatch):
  """Flags exist, configs and fields exist, values are legal."""
  monkeypatch.chdir(ROOT)
  for words in commands_of(page):
    with flagsaver():
      argv = words[1:]
      monkeypatch.setattr(sys, 'argv', argv)
      rest = command_line.parse(argv)
      mode = command_line.MODE.value
      if mode in ('train', 'table', 'tune'):
        assert rest == ['run.py'], words
        fields.check(identity.plain(command_line.config()))
      elif mode == 'report':
        named = [path for path in rest[1:] if path.startswith('docs/')]
        assert all((ROOT / path).is_file() for path in named)
  absl_flags.FLAGS.mark_as_parsed()


def test_the_pages_have_commands():
  assert sum(len(commands_of(page)) for page in PAGES) > 30


@pytest.mark.slow
def test_objectives_of_the_page_are_a_run_and_a_row_of_a_table(smoke, tmp_path):
  """As the page says, in a copy of the code: nothing else is edited."""
  for part in ('iusp_jax', 'tfds_dcase', 'configs'):
    shutil.copytree(ROOT / part, tmp_path / part)
  shutil.copy(ROOT / 'run.py', tmp_path)
  functions, entries = blocks_of_objective_page()
  of_targets = [block for block in entries if 'Term(' not in block]
  of_terms = [block for block in entries if 'Term(' in block]

  def insert(path, before, added):
    text = (tmp_path / path).read_text()
    assert text.count(before) == 1
    text = text.replace(before, '\n'.join(added) + before)
    (tmp_path / path).write_text(text)

  path = 'iusp_jax/objectives/terms.py'
  insert(path, '\n\n# In the order of a table.', functions)
  insert(path, '}\n\n# Factors of a term', of_terms)
  insert('iusp_jax/objectives/targets.py', '}\nPAIRWISE', of_targets)

  def finish(config, *flags):
    words = command(smoke[0], *flags, config=f'configs/{config}.py:smoke')
    done = subprocess.run(
      words,
      cwd=tmp_path,
      env=environment(),
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

  weights = [
    f'--config.objective.{n}_weight=1' for n in ('iusp_inner', 'inner_kd')
  ]
  finish('base', f'--workdir={tmp_path}/run', *weights)
  record = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert record['weights'] == {'iusp_inner': 1.0, 'inner_kd': 1.0}
  finish(
    'table',
    '--mode=table',
    "--config.table.objectives=('baseline','inner_kd')",
    f'--workdir={tmp_path}/table',
  )
  page = (tmp_path / 'table' / 'table.md').read_text()
  assert 'KD of an inner layer' in page
