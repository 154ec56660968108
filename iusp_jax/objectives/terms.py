"""The terms of the distillation objective: how tables and plots show them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Term:
  """One term of the objective.

  Attributes:
    title: in tables and plots.
    colour: in plots; no two terms share one.
    marker: in plots, for readers without colours.
    compares_similarities: whether plots about similarities show it.
  """

  title: str
  colour: str
  marker: str
  compares_similarities: bool = False


# In the order of a table. Okabe and Ito's colours.
TERMS: dict[str, Term] = {
  'kd': Term('KD', '#E69F00', 's'),
  'sp': Term('SP', '#0072B2', 'D', True),
  'iusp': Term('IUSP', '#D55E00', '^', True),
  'iusp_centred': Term('centred IUSP', '#009E73', 'P', True),
}
