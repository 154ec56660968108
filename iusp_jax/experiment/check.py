"""Facts about a config across its fields, before any work is done."""

from collections.abc import Mapping
from typing import Any

from iusp_jax.data import datasets
from iusp_jax.experiment import setup, teacher
from iusp_jax.models import tagger
from iusp_jax.objectives import targets, terms
from iusp_jax.training import accumulate, finite
from iusp_jax.training.recipe import Recipe


def check(config: Mapping[str, Any]) -> None:
  """Raises ValueError naming the field, its value and what is expected."""
  _check_choice('fit', config['fit'], ('student', 'teacher'))
  _check_choice('on_nan', config['on_nan'], finite.ON_NAN)
  _check_choice('teacher.store', config['teacher']['store'], setup.STORES)
  terms.check(config['objective'])
  if config['bootstrap'] < 0:
    raise ValueError(
      f'config.bootstrap is {config["bootstrap"]}: expected >= 0 resamples'
    )
  for part in ('student', 'teacher'):
    _check_recipe(config, part)


def _check_choice(field: str, value: Any, legal) -> None:
  if value not in legal:
    raise ValueError(
      f'config.{field} is {value!r}: expected one of {tuple(legal)}'
    )


def _check_recipe(config: Mapping[str, Any], part: str) -> None:
  found = config[part]['frontend']['sample_rate']
  if found != 16_000:
    raise ValueError(
      f'config.{part}.frontend.sample_rate is {found}: expected 16000, the '
      'rate that every data set is stored at'
    )
  tagger.build(config[part], num_tags=1)  # Raises for a wrong field.
  for field in ('epochs', 'learning_rate', 'eval_every_epochs'):
    value = config[part]['training'][field]
    if not value > 0:
      raise ValueError(
        f'config.{part}.training.{field} is {value}: expected > 0'
      )
  recipe = Recipe.from_config(config[part])
  objective = terms.Objective()
  if part == 'student':
    objective = terms.Objective.from_config(config['objective'])
    check_layers(recipe, objective)
  check_parts(part, recipe, objective)


def check_parts(part: str, recipe: Recipe, objective: terms.Objective) -> None:
  """Raises ValueError where a batch cannot be taken in `accumulate_steps`."""
  try:
    accumulate.check(recipe.training, objective.compares_clips)
  except ValueError as error:
    raise ValueError(f'config.{part}.training.{error}') from error


def check_layers(recipe: Recipe, objective: terms.Objective) -> None:
  """Raises ValueError where a term looks at a layer that a model lacks."""
  model = tagger.build(recipe.plain(), num_tags=1)
  tagger.check_layers(model, objective.layers)


def check_teacher_layers(
  model: tagger.Tagger, objective: terms.Objective
) -> None:
  """Raises ValueError where a target is of a layer that the teacher lacks."""
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
  num_clips = len(dataset.splits['train'])
  clips = {'student': num_clips} if config['fit'] == 'student' else {}
  if not config['teacher']['checkpoint']:
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
