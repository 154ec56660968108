"""What the fields of a config must agree in, before any work is done."""

from collections.abc import Mapping
from typing import Any

from iusp_jax.audio import frontend
from iusp_jax.data import datasets
from iusp_jax.experiment import fields, teacher
from iusp_jax.models import tagger
from iusp_jax.objectives import targets, terms
from iusp_jax.runtime import logs
from iusp_jax.training import accumulate
from iusp_jax.training.recipe import Recipe

CLIP_SAMPLES = 160_000  # Of every data set: 10 s at 16 kHz.


def check(config: Mapping[str, Any]) -> None:
  """Raises ValueError naming the field, its value and what is expected."""
  fields.check(config)
  for part in ('student', 'teacher'):
    _check_recipe(config, part)
  _check_pretrained(config['teacher'])
  objective = terms.Objective.from_config(config['objective'])
  check_teacher_layers(config, objective)
  if scenes := config['dataset']['builder'].get('train_scenes'):
    _check_batches(config, scenes, bool(objective.terms))
  else:
    teacher.check_scenes(config)


def _check_pretrained(own: Mapping[str, Any]) -> None:
  """Raises ValueError for fields that only a pretrained teacher has."""
  for field, unset in (('weights', ''), ('head', 'probe')):
    if own[field] != unset and not own['pretrained']:
      raise ValueError(
        f'config.teacher.{field} is {own[field]!r}, and '
        "config.teacher.pretrained is '': expected the name of a model there, "
        f'or {unset!r} here'
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
  check_recipe(recipe, objective, part)


def check_recipe(
  recipe: Recipe, objective: terms.Objective, part: str = 'student'
) -> None:
  """Raises ValueError where model, front end, batch and terms do not agree.

  Args:
    recipe: of one model.
    objective: that it is trained on.
    part: of the config that the recipe is from.
  """
  model = tagger.build(recipe.plain(), num_tags=1)
  try:
    model.shapes(CLIP_SAMPLES)
  except (ValueError, TypeError, ZeroDivisionError) as error:
    bands, architecture = recipe.frontend.num_mel_bands, recipe.model
    raise ValueError(
      f'config.{part}.frontend.num_mel_bands is {bands}: expected more for '
      f'config.{part}.model, {dict(architecture)} ({error})'
    ) from error
  tagger.check_layers(model, objective.layers)
  try:
    accumulate.check(recipe.training, objective.compares_clips)
  except ValueError as error:
    raise ValueError(f'config.{part}.training.{error}') from error


def check_teacher_layers(
  config: Mapping[str, Any], objective: terms.Objective
) -> None:
  """Raises ValueError where a target is of a layer that the teacher lacks."""
  model = tagger.build(teacher.recipe_of(config), num_tags=1)
  tagger.check_layers(model, targets.layers(objective.targets))


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


def log_conflicts(config: Mapping[str, Any]) -> None:
  """Logs a warning where weights were tuned with another teacher.

  To be called for students that are distilled.

  Args:
    config: plain, of a run or a table.
  """
  expected, found = config['tuned_with'], teacher.name(config)
  if found.endswith('/'):  # Its scenes are not known.
    expected = expected.partition('/')[0] + '/'
  if config['tuned_with'] and expected != found:
    logs.log(
      f'warning: the weights for {config["dataset"]["name"]} in '
      'configs/tuned.json were tuned with another teacher than '
      'config.teacher: others may be better, see --mode=tune'
    )
