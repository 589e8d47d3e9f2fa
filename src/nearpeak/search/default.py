"""The default: which method suits this space and what was seen so far.

- A space that can be listed: ``TableBayes``, a GP over the table.
- Any other: Bayesian optimization, with a smooth kernel where all parameters are floats (squared exponential or
  Matern-5/2, by their evidence) and a rough one (Matern-3/2) where some are not; measured constraints weigh the
  acquisition, and where evaluations come with a variance above 0 it is the noisy expected improvement. Failures count
  as the worst value seen.
- More than ``MANY`` evaluations: an evolutionary method, which chooses at once.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np

from nearpeak.search.acquisitions.analytic import Acquisition, log_expected_improvement
from nearpeak.search.acquisitions.constrained import Constrained
from nearpeak.search.bayesian import Bayesian, Preparation
from nearpeak.search.history import History
from nearpeak.search.loop import Method
from nearpeak.search.parameters import Floats
from nearpeak.search.populations.steady_state import DifferentialEvolution, Genetic
from nearpeak.search.space import Space
from nearpeak.search.surrogates.refitted import RefittedGP
from nearpeak.search.table_bayes import TableBayes

MANY: Final = 1_000
"""Evaluations after which an exact GP costs more than it finds."""


@dataclass
class Default:
    """What ``minimize`` uses unless it is told otherwise."""

    _table: TableBayes = field(default_factory=TableBayes, repr=False)
    _smooth: RefittedGP = field(default_factory=partial(RefittedGP, shapes=("rbf", "matern52")), repr=False)
    _rough: RefittedGP = field(default_factory=partial(RefittedGP, shapes=("matern32",)), repr=False)

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        history = with_unknown_noise(history)
        method = self.chosen(space, history)
        return method.propose(space, failures_as_worst(history) if method is not self._table else history, count, rng)

    def chosen(self, space: Space, history: History) -> Method:
        """The method for the next points."""
        if len(history) >= MANY:
            return DifferentialEvolution() if space.floats else Genetic()
        if space.grid is not None:
            return self._table
        surrogate, gain = self._smooth if space.floats else self._rough, _gain(history)
        return Bayesian(surrogate, Constrained(gain) if history.constraints.shape[1] else gain)


def _gain(history: History) -> Acquisition | Preparation:
    if not np.isfinite(history.variances[history.succeeded]).all() or not history.succeeded.any():
        return log_expected_improvement
    # It brings numba, which the base does without.
    from nearpeak.search.acquisitions.noisy_improvement import NoisyImprovement

    return NoisyImprovement()


def with_unknown_noise(history: History) -> History:
    """The history with unknown variances in place of zeros: a model that must pass through every value takes ripples
    for trends, and one that may miss them by a little does not.
    """
    if history.variances[history.succeeded].any():
        return history
    return replace(history, variances=np.full(len(history), np.nan))


def failures_as_worst(history: History) -> History:
    """The history with the worst value seen, and the largest variance, in place of failures."""
    good = history.succeeded
    if good.all() or not good.any():
        return history
    return replace(
        history,
        values=np.where(good, history.values, history.values[good].max()),
        variances=np.where(good, history.variances, history.variances[good].max()),
    )
