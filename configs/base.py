"""Every field of a config, with its unit; the other configs override these.

Arguments follow the file name, separated by commas, in any order:

  --config=configs/iusp.py:clips,seed=3,student=mobilenet_020

  urban_scenes   synthesised street scenes, 23 fine tags (the default)
  clips          scenes mixed from your folder of isolated recordings
  folder         your own multi-label recordings with a labels.csv
  sonyc_ust      DCASE 2019 Task 5, the paper's data; sonyc_ust_v2: its v2
  demo           fewer scenes and a smaller teacher: minutes, not half an hour
  smoke          the whole path in seconds, scores without meaning
  seed=N         of the student: initial values, order, dropout
  student=NAME   one of STUDENTS below

As it stands it is the student without a teacher, whose scores are in
baseline.py; `--config.objective.<term>_ratio=1` adds a term. The scores of the
teacher are in teacher.py.
"""

import difflib
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from iusp_jax.objectives.terms import TERMS, config_fields

Config = Any  # A ConfigDict, whose fields no type checker knows.

DATASETS = {
  'urban_scenes': 'urban_scenes/procedural',
  'clips': 'urban_scenes/clips',
  'folder': 'folder',
  'sonyc_ust': 'sonyc_ust/v1',
  'sonyc_ust_v2': 'sonyc_ust/v2',
}

# The paper's student is one convolution and one LSTM on 20 bands; the number
# is the hidden width. The others are our additions: 3 to 84 thousand
# parameters, 1 to 13 million multiply-accumulates a clip (every run logs its
# own). The MobileNets leave out the three widest stages, which fit no device of
# that kind, have one block a stage and expand by 3; their first convolution
# takes all the strides in time.
_NARROW = {'architecture': 'cnn', 'num_blocks': 4, 'stem_stride': 4}
_MOBILE = {
  'architecture': 'mobilenet',
  'expansion': 3,
  'depth_multiplier': 0.3,
  'num_stages': 4,
  'stem_stride': 8,
}
STUDENTS = {
  'crnn_32': {'architecture': 'crnn', 'width': 16, 'hidden': 32},
  'crnn_64': {'architecture': 'crnn', 'width': 32, 'hidden': 64},
  'cnn_4': {**_NARROW, 'width': 4},
  'cnn_8': {**_NARROW, 'width': 8},
  'mobilenet_010': {**_MOBILE, 'width_multiplier': 0.10},
  'mobilenet_020': {**_MOBILE, 'width_multiplier': 0.20},
}


# The objectives of a table, by name: fields of `config.objective`. Terms that
# go together have the same ratio. Where `--mode=tune` has been run for a data
# set, tuned.json has better ratios, and learning rates of the students.
UNTUNED = 1.0
LEARNING_RATE = 1.2e-2  # Of students; see docs/explanation/protocol.md.
_COMBINED = {
  'iusp_sp': ('iusp', 'sp'),
  'kd_iusp': ('kd', 'iusp'),
  'kd_iusp_centred': ('kd', 'iusp_centred'),
  'frame_kd_iusp_centred': ('frame_kd', 'iusp_centred'),
  'iusp_decay': ('iusp',),
  'iusp_two_step': ('iusp',),
}
_SCHEDULES = {
  'iusp_decay': {'iusp_schedule': 'decay_to_half'},
  'iusp_two_step': {
    'iusp_schedule': 'off_at_half',
    'tagging_schedule': 'on_at_half',
  },
}
OBJECTIVES: dict[str, tuple[str, ...]] = {
  'baseline': (),
  **{name: (name,) for name in TERMS},
  **_COMBINED,
}
TUNED_FILE = pathlib.Path(__file__).with_name('tuned.json')
TUNED = json.loads(TUNED_FILE.read_text())


def fields_of(name: str, dataset_name: str) -> dict[str, Any]:
  """What an objective sets of `config.objective`."""
  ratio = TUNED.get(dataset_name, {}).get('ratios', {}).get(name, UNTUNED)
  found: dict[str, Any] = {}
  for term in OBJECTIVES[name]:
    found |= {f'{term}_ratio': ratio, f'{term}_weight': 0.0}
  return found | _SCHEDULES.get(name, {})


def tuned_training(dataset_name: str, student: str) -> dict[str, Any]:
  """What tuning has found of `config.student.training`."""
  return TUNED.get(dataset_name, {}).get('training', {}).get(student, {})


def is_checkout() -> bool:
  """Whether configs are those of a checkout, and not of an installed wheel."""
  return (TUNED_FILE.parents[1] / 'pyproject.toml').exists()


def distilled(name: str, arg: str) -> Config:
  """Base with the terms of one objective, at the ratios found for it."""
  config, options = get_config(arg), parse(arg)
  config.name = name
  config.objective.update(fields_of(name, options['dataset']))
  return config


def get_config(arg: str = '') -> Config:
  """The base config: a student trained without a teacher."""
  options = parse(arg)
  config: Config = ConfigDict()
  config.name = 'base'  # Of the config, for results.json.
  config.fit = 'student'  # 'student', or 'teacher' to stop after the teacher.
  config.seed = options['seed']  # Of the student.
  config.cache_dir = 'runs/cache'  # Teachers and their outputs, programs.
  config.bootstrap = 1000  # Resamples of the test clips for 95 % intervals.
  config.on_nan = 'stop'  # Or 'roll_back', to pass over up to 3 batches.
  config.profile_steps = 0  # Steps to trace into <workdir>/profile.
  config.compare_with = ''  # Another run's workdir, shown in the plots.
  config.train_baseline = False  # The student without distillation as well.
  # Kept in the workdir, with their labels, for an export of a copy of it.
  config.keep_examples = 0  # Clips of each split; 0: none.
  config.dataset = dataset(options['dataset'])
  config.student = recipe(STUDENTS[options['student']], num_mel_bands=20)
  config.student.training.update(
    tuned_training(options['dataset'], options['student'])
  )
  config.objective = objective()
  config.teacher = teacher(options['dataset'])
  if 'sample_rate' in config.dataset.builder:
    for part in (config.student, config.teacher):
      rate = config.dataset.builder.get_oneway_ref('sample_rate')
      part.frontend.sample_rate = rate
  if options['demo']:
    make_demo(config)
  if options['smoke']:
    make_smoke(config)
  return config


def dataset(name: str) -> Config:
  """Which recordings, which tags."""
  config: Config = ConfigDict()
  config.name = name  # '<builder>/<config>'.
  config.data_dir = 'runs/data'  # Where prepared data sets are kept.
  config.manual_dir = ''  # Your recordings, where the data set needs them.
  config.level = 'coarse'  # Tags to train on: 'coarse', 'fine' or 'both'.
  config.aggregation = 'any'  # Of annotators: 'any', 'majority', 'mean'.
  config.builder = ConfigDict()  # Settings of the builder.
  if name.startswith('urban_scenes'):
    config.builder.train_scenes = 1200  # Scenes.
    config.builder.validate_scenes = 300  # Scenes.
    config.builder.test_scenes = 300  # Scenes.
    config.builder.seed = 0  # Another seed mixes other scenes.
    config.builder.snr_db = (-6.0, 12.0)  # Weakest, strongest source, dB.
    config.builder.sources = (1, 4)  # Fewest, most tagged sources of a scene.
  if name == 'urban_scenes/procedural':
    config.builder.detect_half_db = -2.0  # Where annotators miss half, dB.
    config.builder.confusion = 0.1  # Chance that they name another fine tag.
  if name == 'urban_scenes/clips':
    config.builder.validate_fold = 4  # Fold of the recordings.
    config.builder.test_fold = 5  # Fold of the recordings.
    config.builder.split_by = 'auto'  # Or 'fold', 'hash', 'balanced'.
  if name in ('urban_scenes/clips', 'folder'):
    config.builder.clip_seconds = 10.0  # Longer recordings are cut, s.
    config.builder.sample_rate = 16_000  # That clips are stored at, Hz.
  if name == 'folder':
    config.builder.tags = ()  # Names; so that clips may be without labels.
  if name != 'urban_scenes/procedural':
    config.builder.on_bad_recording = 'stop'  # 'stop' or 'skip'.
  return config


def recipe(model: dict, num_mel_bands: int) -> Config:
  """One model: architecture, front end, training, augmentation."""
  config: Config = ConfigDict()
  config.model = ConfigDict(model)  # Fields of iusp_jax/models/<name>.py.
  config.frontend = ConfigDict()
  config.frontend.sample_rate = 16_000  # That of the data set, Hz.
  config.frontend.window_seconds = 0.025  # s.
  config.frontend.hop_seconds = 0.010  # s.
  config.frontend.num_mel_bands = num_mel_bands  # Bands.
  config.frontend.min_hertz = 125.0  # Hz.
  config.frontend.max_hertz = 7500.0  # Hz.
  config.frontend.log_offset = 0.01  # Added to magnitudes before the log.
  config.training = ConfigDict()
  config.training.batch_size = 32  # Clips, over all devices.
  # A step takes the batch in so many parts, one after the other, to save
  # memory. Losses and gradients are those of the whole batch, but BatchNorm
  # normalises each part by itself and moves its averages once a part. Not
  # with SP, which compares all clips of a batch.
  config.training.accumulate_steps = 1  # Parts.
  config.training.compute_dtype = 'float32'  # Or 'bfloat16', of activations.
  config.training.epochs = 20.0  # Passes over the training split.
  config.training.learning_rate = LEARNING_RATE  # Peak.
  config.training.warmup_epochs = 1.0  # Epochs of linear warm-up.
  config.training.weight_decay = 1e-4  # Of AdamW.
  # Of the running mean of the gradient's length; 0: no clipping, which was no
  # worse for any student that it was measured for.
  config.training.clip_factor = 0.0
  config.training.ema_decay = 0.0  # Of averaged weights, a step; 0: none.
  config.training.eval_every_epochs = 1.0  # Validation and checkpoint.
  config.training.log_every_steps = 10  # Rows of metrics.jsonl.
  config.augment = ConfigDict()
  config.augment.mixup_alpha = 0.0  # Of the beta distribution; 0: no mixup.
  config.augment.time_roll_seconds = 0.0  # Greatest shift either way, s.
  config.augment.num_time_masks = 0  # SpecAugment.
  config.augment.max_time_fraction = 0.1  # Of the clip, a mask.
  config.augment.num_mel_masks = 0  # SpecAugment.
  config.augment.max_mel_fraction = 0.2  # Of the mel axis, a mask.
  return config


def objective() -> Config:
  """What is added to the cross-entropy with the tags.

  For every term of iusp_jax/objectives/terms.py: `<term>_weight`, 0 for none,
  or in its place `<term>_ratio`, at 1 of which the term's gradient is as long
  as that of the tags (measured once a student, data set and teacher);
  `<term>_schedule` of the weight over training, 'constant', 'ramp' (up, over
  the first 13 %), 'decay' (linearly to 0), 'decay_to_half' (to 0 by half of
  it), 'off_at_half' or 'on_at_half'; and its settings. `tagging_schedule` is
  that of the cross-entropy.
  """
  config: Config = ConfigDict(config_fields())
  return config


def teacher(dataset_name: str) -> Config:
  """The teacher: trained once, kept in `cache_dir`, frozen."""
  model = {
    'architecture': 'cnn',
    'width': 24,
    'num_blocks': 4,
    'stem_stride': 2,
  }
  config: Config = recipe(model, num_mel_bands=64)
  config.checkpoint = ''  # A run's workdir to take the teacher from instead.
  config.outputs = ''  # A folder of outputs that were computed elsewhere.
  config.onnx = ''  # Or an ONNX file that is run over the clips, once.
  config.onnx_json = ''  # What teacher.json holds of it, a JSON file.
  config.onnx_wave = ''  # Its input of waveforms; '': the only one.
  config.onnx_rate = 0  # Of that input, Hz; 0: that of the clips.
  config.onnx_logits = ''  # Its output of logits.
  config.onnx_probabilities = ''  # Its output of probabilities.
  config.onnx_frames = ''  # Its output of frame embeddings.
  config.onnx_frame_logits = ''  # Its output of logits a frame.
  config.tag_map = ''  # JSON from the data set's tags to the teacher's.
  config.pretrained = ''  # Or 'mn04_as' and so on, that others trained.
  config.weights = ''  # File of a pretrained teacher; '': downloads it.
  config.head = 'probe'  # Of a pretrained teacher: 'probe' or 'zero_shot'.
  # Outputs are computed once and stored where nothing random changes them:
  config.store = 'auto'  # 'auto', 'off', 'float32' or 'float16' (half size).
  # What is stored where the student's clips are augmented: so many versions of
  # each, for students of all seeds; 0: the teacher runs in every step.
  config.store_augmentations = 0
  config.train_scenes = 0  # To mix for the teacher; 0: the student's.
  config.seed = 0  # Of the teacher alone: students of all seeds share it.
  config.ensemble_size = 1  # Teachers, of seed, seed + 1 and so on, as one.
  config.training.epochs = 8.0
  config.training.learning_rate = 3e-3
  # All students depend on it: no batch may spoil it.
  config.training.clip_factor = 1.0
  config.augment.mixup_alpha = 0.2
  config.augment.num_time_masks = 2
  config.augment.num_mel_masks = 2
  if dataset_name.startswith('urban_scenes'):
    # Scenes cost nothing, and the teacher is trained once and kept.
    config.train_scenes = 4800
    config.training.epochs = 6.0
    config.training.eval_every_epochs = 0.5
  return config


def make_demo(config: Config) -> None:
  """Minutes on two cores: fewer scenes, a smaller teacher."""
  config.train_baseline = True
  _scenes(config, 480, 160, 160)
  config.student.training.epochs = 12.0
  config.teacher.model.width = 16
  config.teacher.training.epochs = 8.0
  config.teacher.training.eval_every_epochs = 1.0
  config.teacher.train_scenes = 0
  if config.dataset.name == DATASETS['urban_scenes']:
    # With fewer scenes, or more slowly, it is no better than the student.
    config.teacher.train_scenes = 1440
    config.teacher.training.epochs = 5.0
    config.teacher.training.eval_every_epochs = 0.5
    config.teacher.training.learning_rate = 1.2e-2


def make_smoke(config: Config) -> None:
  """Seconds on two cores: only shows that every part works."""
  _scenes(config, 48, 24, 24)
  config.teacher.train_scenes = 0
  config.bootstrap = 20
  config.student.training.epochs = 2.0
  config.teacher.model.width = 4
  config.teacher.training.epochs = 2.0
  for part in (config.student, config.teacher):
    part.training.batch_size = 8
    part.training.log_every_steps = 1


def _scenes(config, train, validate, test):
  if 'train_scenes' in config.dataset.builder:
    config.dataset.builder.train_scenes = train
    config.dataset.builder.validate_scenes = validate
    config.dataset.builder.test_scenes = test


def parse(arg: str) -> dict:
  """The arguments after the colon.

  Raises:
    ValueError: for one that is unknown, with the legal ones; for two data
      sets, seeds or students.
  """
  options = {
    'dataset': DATASETS['urban_scenes'],
    'seed': 0,
    'student': 'crnn_64',
    'demo': False,
    'smoke': False,
  }
  legal = [*DATASETS, 'demo', 'smoke', 'seed=N', 'student=NAME']
  given: dict[str, str] = {}
  for token in filter(None, (part.strip() for part in (arg or '').split(','))):
    key, _, value = token.partition('=')
    what = 'data set' if token in DATASETS else key
    if given.setdefault(what, token) != token:
      raise ValueError(
        f'config arguments {given[what]!r} and {token!r}: expected one {what}, '
        'leave one out'
      )
    if token in DATASETS:
      options['dataset'] = DATASETS[token]
    elif token in ('demo', 'smoke'):
      options[token] = True
    elif key == 'seed' and value.isdigit():
      options['seed'] = int(value)
    elif key == 'student' and value in STUDENTS:
      options['student'] = value
    else:
      choices = list(STUDENTS) if key == 'student' else legal
      raise ValueError(
        f'config argument {token!r} is unknown: expected one of '
        f'{", ".join(choices)}{did_you_mean(value or token, choices)}'
      )
  return options


def did_you_mean(name: str, legal) -> str:
  """A hint at the legal name nearest to a wrong one, or nothing."""
  close = difflib.get_close_matches(name, legal, 1)
  return f'; did you mean {close[0]!r}?' if close else ''
