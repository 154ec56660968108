"""What the fields of a config must agree in, before any work is done."""

from collections.abc import Mapping, Sequence
from typing import Any

from iusp_jax.audio import frontend
from iusp_jax.data import datasets, foreign_outputs
from iusp_jax.experiment import fields, onnx_teacher, pretrained, teacher
from iusp_jax.models import tagger
from iusp_jax.objectives import targets, terms
from iusp_jax.runtime import files
from iusp_jax.training import accumulate
from iusp_jax.training.recipe import Recipe


def check(config: Mapping[str, Any]) -> None:
  """Raises ValueError naming the field, its value and what is expected."""
  fields.check(config)
  # A teacher from elsewhere has a front end of its own.
  parts = ('student',) if teacher.source(config) else ('student', 'teacher')
  _check_rates(config, parts)
  for part in parts:
    _check_recipe(config, part)
  onnx_teacher.check(config)
  if teacher.is_foreign(config):
    _check_foreign(config)
  elif config['teacher']['tag_map']:
    _check_tag_map(config)
  _check_pretrained(config['teacher'])
  _check_ensemble(config)
  objective = terms.Objective.from_config(config['objective'])
  check_teacher_layers(config, objective)
  check_augmentations(config, objective)
  if scenes := config['dataset']['builder'].get('train_scenes'):
    _check_batches(config, scenes, bool(objective.terms))
  else:
    teacher.check_scenes(config)


def _check_foreign(config: Mapping[str, Any]) -> None:
  """Raises ValueError for what needs a teacher that can be run."""
  named = teacher.source(config)
  place = f'config.teacher.{named} is {config["teacher"][named]!r}'
  teacher.contents(config)
  teacher.tag_map(config)
  if config['fit'] == 'teacher':
    raise ValueError(
      f"config.fit is 'teacher', and {place}: that teacher is not trained "
      "here; expected 'student'"
    )
  if config['teacher']['store'] == 'off':
    raise ValueError(
      f"config.teacher.store is 'off', and {place}: there is no teacher to run "
      "in every step; expected 'auto', 'float32' or 'float16'"
    )
  if files.is_remote(config['cache_dir']):
    raise ValueError(
      f'config.cache_dir is {config["cache_dir"]!r}, and {place}: what is made '
      'of these is memory-mapped; expected a folder of a file system'
    )
  augment = Recipe.from_config(config['student']).augment
  if field := augment.is_random():
    raise ValueError(
      f'config.student.augment.{field} is {getattr(augment, field)}, and '
      f'{place}: these are of the clips as they are, and an augmented clip is '
      f'another one; expected config.student.augment.{field} = 0'
    )


def _check_tag_map(config: Mapping[str, Any]) -> None:
  """Raises ValueError where no teacher or data set has tags to map."""
  if teacher.source(config) != 'pretrained':
    raise ValueError(
      f'config.teacher.tag_map is {config["teacher"]["tag_map"]!r}, and '
      'config.teacher.outputs, onnx and pretrained are empty: expected one of '
      'them, or no tag_map'
    )
  found = teacher.tag_map(config)
  # The data set's own tags are not known yet.
  pretrained.map_tags(list(found), found)


def _check_ensemble(config: Mapping[str, Any]) -> None:
  """Raises ValueError for several teachers where one is named."""
  size, named = config['teacher']['ensemble_size'], teacher.source(config)
  if size > 1 and named:
    raise ValueError(
      f'config.teacher.ensemble_size is {size}, and config.teacher.{named} is '
      f'{config["teacher"][named]!r}: that is one teacher; expected 1'
    )


def _check_pretrained(own: Mapping[str, Any]) -> None:
  """Raises ValueError for fields that only a pretrained teacher has."""
  for field, unset in (('weights', ''), ('head', 'probe')):
    if own[field] != unset and not own['pretrained']:
      raise ValueError(
        f'config.teacher.{field} is {own[field]!r}, and '
        "config.teacher.pretrained is '': expected the name of a model there, "
        f'or {unset!r} here'
      )


def _check_rates(config: Mapping[str, Any], parts: Sequence[str]) -> None:
  """Raises ValueError for front ends of another rate than the data set has."""
  rate, found = datasets.format_of(config['dataset']).sample_rate, []
  for part in parts:
    place, own = f'config.{part}.frontend', config[part]['frontend']
    if own['sample_rate'] != rate:
      raise ValueError(
        f'{place}.sample_rate is {own["sample_rate"]}: expected {rate}, that '
        f'of {config["dataset"]["name"]}'
      )
    if own['max_hertz'] > rate / 2:
      found.append(f'{place}.max_hertz is {own["max_hertz"]:g}')
  if found:
    flags = ' '.join(f'--{each.split()[0]}={rate // 2}' for each in found)
    raise ValueError(
      f'{" and ".join(found)}: expected at most {rate // 2} Hz, half of the '
      f"data set's sample_rate, {rate}; set {flags}"
    )


def _check_recipe(config: Mapping[str, Any], part: str) -> None:
  try:
    recipe = Recipe.from_config(config[part])
  except frontend.FrontendError as error:
    place = f'config.{part}.frontend.{error.field}'
    raise ValueError(f'{place} {error.problem}') from error
  objective = terms.Objective()
  if part == 'student':
    objective = terms.Objective.from_config(config['objective'])
  num_samples = datasets.format_of(config['dataset']).num_samples
  check_recipe(recipe, objective, num_samples, part)


def check_recipe(
  recipe: Recipe,
  objective: terms.Objective,
  num_samples: int,
  part: str = 'student',
) -> None:
  """Raises ValueError where model, front end, batch and terms do not agree.

  Args:
    recipe: of one model.
    objective: that it is trained on.
    num_samples: of a clip.
    part: of the config that the recipe is from.
  """
  model = tagger.build(recipe.plain(), num_tags=1)
  try:
    model.shapes(num_samples)
  except (ValueError, TypeError, ZeroDivisionError) as error:
    bands, architecture = recipe.frontend.num_mel_bands, recipe.model
    raise ValueError(
      f'config.{part}.frontend.num_mel_bands is {bands}: expected more for '
      f'config.{part}.model, {dict(architecture)} ({error})'
    ) from error
  tagger.check_layers(model, objective.layers)
  if targets.INNER in objective.layers and not tagger.inner_layers(model):
    raise ValueError(
      f'config.{part}.model is {dict(recipe.model)}: expected one with layers '
      f'before the last frame embedding, for {", ".join(objective.terms)}'
    )
  try:
    accumulate.check(recipe.training, objective.compares_clips)
  except ValueError as error:
    raise ValueError(f'config.{part}.training.{error}') from error


def check_teacher_layers(
  config: Mapping[str, Any], objective: terms.Objective
) -> None:
  """Raises ValueError where a target is of what the teacher does not have."""
  if teacher.is_foreign(config):
    check_outputs(teacher.contents(config), objective.terms)
    return
  model = tagger.build(teacher.recipe_of(config), num_tags=1)
  layers = targets.layers(objective.targets)
  tagger.check_layers(model, layers)
  if targets.INNER in layers and not tagger.inner_layers(model):
    size = config['teacher']['ensemble_size']
    names = [
      name
      for name in objective.terms
      if targets.INNER in targets.layers(terms.TERMS[name].targets)
    ]
    raise ValueError(
      f'config.teacher.ensemble_size is {size}, and an ensemble has no inner '
      f'layers, for {", ".join(names)}: expected 1'
    )


def check_augmentations(
  config: Mapping[str, Any], objective: terms.Objective
) -> None:
  """Raises ValueError where augmentations of clips cannot be stored."""
  count = config['teacher']['store_augmentations']
  if not count:
    return
  place = f'config.teacher.store_augmentations is {count}'
  own = Recipe.from_config(config['student']).augment
  if not own.is_random():
    raise ValueError(
      f'{place}, and the fields of config.student.augment are 0: expected '
      'some, such as num_time_masks=2, or 0 augmentations'
    )
  if own.mixup_alpha:
    raise ValueError(
      f'{place}, and config.student.augment.mixup_alpha is {own.mixup_alpha}: '
      'a mix is of two clips; expected no mixup, or 0 augmentations (the '
      'teacher then runs in every step)'
    )
  if config['teacher']['store'] == 'off':
    raise ValueError(
      f"{place}, and config.teacher.store is 'off': expected 'auto', 'float32' "
      "or 'float16', or 0 augmentations"
    )
  comparing = [
    name
    for name in objective.terms
    if any(map(targets.is_pairwise, terms.TERMS[name].targets))
  ]
  if comparing:
    raise ValueError(
      f'{place}, and {", ".join(comparing)} compares clips, whose versions '
      'differ from step to step: leave that term out, or store 0 augmentations '
      '(the teacher then runs in every step)'
    )


def check_outputs(
  contents: foreign_outputs.Contents,
  names: Sequence[str],
  known_tags: Sequence[bool] = (True,),
) -> None:
  """Holds terms against the outputs that there are of a teacher.

  Args:
    contents: of its folder.
    names: of the terms.
    known_tags: for each of the student's tags, whether the teacher has it.

  Raises:
    ValueError: naming what a term lacks, and the terms that can be used.
  """
  lacking = {
    name: found
    for name, term in terms.TERMS.items()
    if (found := _lacking(contents, term, known_tags))
  }
  for name in names:
    if name in lacking:
      usable = ', '.join(n for n in terms.TERMS if n not in lacking) or 'none'
      raise ValueError(
        f'the objective has the term {name!r}, but {lacking[name]}. Terms that '
        f'can be used with it: {usable}'
      )


def _lacking(contents, term: terms.Term, known_tags: Sequence[bool]) -> str:
  """What a teacher's outputs lack for a term, in words; or nothing."""
  path = contents.path
  for name in term.targets:
    kind, layer = targets.split_name(name)
    if layer != targets.FRAMES:
      return f'{path} has no frames of inner layers, of which {name} is made'
    need = targets.NEEDS.get(kind)
    if need is None:
      return f'{name} is made with a model, and {path} has outputs alone'
    if not contents.gives(need):
      return f'{contents.lacks(need)}, of which {name} is made'
    if not need.endswith('logits') or all(known_tags):
      continue
    if not any(known_tags):
      return (
        f"the tags of the teacher in {path} lack some of the data set's: "
        'expected the same names, or which belong together in '
        'config.teacher.tag_map'
      )
    if not term.masks_tags:
      return 'some tags have none of the teacher, which it does not leave out'
  return ''


def check_batches(
  config: Mapping[str, Any], dataset: datasets.Dataset, distils: bool
) -> None:
  """Whether a batch of what will be trained has enough clips.

  Args:
    config: plain.
    dataset: of the student.
    distils: whether there are students that need a teacher.

  Raises:
    ValueError: naming the field, or `config.teacher.train_scenes`.
  """
  _check_batches(config, len(dataset.splits['train']), distils)


def check_labels(config: Mapping[str, Any], dataset: datasets.Dataset) -> None:
  """Whether a run can do without the labels that a data set does not have.

  Args:
    config: plain, of a run.
    dataset: of the student.

  Raises:
    ValueError: naming the splits and the field.
  """
  without = datasets.without_labels(dataset)
  if not without:
    return
  place = f'{dataset.name} has no labels in {" and ".join(without)}'
  named = teacher.source(config)
  if not named:
    raise ValueError(
      f'{place}, and a teacher would be trained on them: expected one that is '
      'named in config.teacher.pretrained, outputs, onnx or checkpoint'
    )
  if named == 'pretrained' and config['teacher']['head'] == 'probe':
    raise ValueError(
      f"{place}, and config.teacher.head is 'probe', which is trained on them: "
      "expected 'zero_shot'"
    )
  for field, legal in (('fit', 'student'), ('train_baseline', False)):
    if config[field] != legal:
      raise ValueError(
        f'{place}, and config.{field} is {config[field]!r}: expected {legal!r}'
      )
  objective = terms.Objective.from_config(config['objective'])
  if not objective.terms:
    raise ValueError(
      f'{place}, and the student has no term of the teacher: expected some, '
      'such as those of configs/kd.py'
    )
  if 'train' not in without:
    return
  if not any(
    'logits' in target
    for name in objective.terms
    for target in terms.TERMS[name].targets
  ):
    raise ValueError(
      f'{place}, and nothing trains the tags of the student, with the terms '
      f'{", ".join(objective.terms)} alone: add config.objective.kd_weight'
    )


def _check_batches(config, num_clips: int, distils: bool) -> None:
  clips = {'student': num_clips} if config['fit'] == 'student' else {}
  if not teacher.source(config):
    teacher.check_scenes(config)
    if config['fit'] == 'teacher' or distils:
      clips['teacher'] = config['teacher']['train_scenes'] or num_clips
  for part, num_clips in clips.items():
    found = config[part]['training']['batch_size']
    if found > num_clips:
      raise ValueError(
        f'config.{part}.training.batch_size is {found}: expected at most '
        f'{num_clips}, the clips that the {part} is trained on'
      )
