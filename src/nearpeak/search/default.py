"""The default: which method suits this space and what was seen so far.

- A space that can be listed: ``TableBayes``, a GP over the table.
- Any other: Bayesian optimization, with a smooth kernel (Matern-5/2) where all parameters are floats and a rough one
  (Matern-3/2) where some are not; measured constraints weigh the acquisition, and where evaluations come with their
  variance it is the noisy expected improvement. Failures count as the worst value seen.
- More than ``MANY`` evaluations, or evaluations that take less time than choosing by a model does: an evolutionary
  method, which chooses at once.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from nearpeak.search.acquisition import Acquisition, log_expected_improvement
from nearpeak.search.bayesian import Bayesian, Preparation
from nearpeak.search.constrained import Constrained
from nearpeak.search.gp import GP, fit
from nearpeak.search.history import History
from nearpeak.search.loop import Method
from nearpeak.search.noisy_improvement import NoisyImprovement
from nearpeak.search.parameters import Float, Floats
from nearpeak.search.populations import DifferentialEvolution, Genetic
from nearpeak.search.space import Space
from nearpeak.search.table_bayes import TableBayes

MANY: Final = 1_000
"""Evaluations after which an exact GP costs more than it finds."""
CHEAP: Final = 1e-3
"""Seconds that an evaluation takes where no model is worth its time."""
_SETTLED: Final = 20
"""Evaluations after which their cost is known."""


@dataclass
class Default:
    """What ``minimize`` uses unless it is told otherwise."""

    _table: TableBayes = field(default_factory=TableBayes, repr=False)

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        return self.chosen(space, history).propose(space, history, count, rng)

    def chosen(self, space: Space, history: History) -> Method:
        """The method for the next points."""
        floats = all(isinstance(p, Float) for p in space.parameters.values())
        if len(history) >= MANY or _cheap(history):
            return DifferentialEvolution() if floats else Genetic()
        if space.grid is not None:
            return self._table
        return Bayesian(_smooth if floats else _rough, _acquisition(history))


def _cheap(history: History) -> bool:
    known = history.costs[:_SETTLED]
    return len(known) == _SETTLED and 0 < float(np.median(known)) < CHEAP


def _acquisition(history: History) -> Acquisition | Preparation:
    noisy = np.isfinite(history.variances[history.succeeded]).all()
    plain = NoisyImprovement() if noisy else log_expected_improvement
    return Constrained(plain) if history.constraints.shape[1] else plain


def _surrogate(space: Space, history: History, shape: str) -> GP:
    good = history.succeeded
    values = np.where(good, history.values, history.values[good].max())
    variances = history.variances[good]
    noise = np.where(good, history.variances, variances.max()) if np.isfinite(variances).all() else None
    return fit(space.encode(history.points), values, shape=shape, groups=space.groups, noise=noise)


def _smooth(space: Space, history: History, rng: np.random.Generator) -> GP:
    return _surrogate(space, history, "matern52")


def _rough(space: Space, history: History, rng: np.random.Generator) -> GP:
    return _surrogate(space, history, "matern32")
