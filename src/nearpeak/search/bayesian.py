"""The reference loop of Bayesian optimization: a surrogate of what was seen, an acquisition function, its maximum.

Surrogate and acquisition are functions, so that all of them can be compared in one loop: ``Bayesian(surrogate,
acquisition)``. A batch is made one point at a time; points that are being evaluated count with the surrogate's mean as
their value (the kriging believer of Ginsbourger, Le Riche, Carraro, 2010).

Frazier: A Tutorial on Bayesian Optimization, arXiv:1807.02811 (2018).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from nearpeak.search.acquisitions.analytic import Acquisition, log_expected_improvement
from nearpeak.search.candidates import initial_design, maximize, unseen
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import GP, Posterior, fit

Surrogate = Callable[[Space, History, np.random.Generator], Posterior]
"""Beliefs about the function, from the evaluations that succeeded; features are ``space.encode``'s."""


@runtime_checkable
class Preparation(Protocol):
    """An acquisition function that needs more than the posterior: draws, a discretization, models of constraints."""

    def prepare(self, space: Space, history: History, posterior: Posterior, rng: np.random.Generator) -> Acquisition:
        """The function for this step, once for all the points that it is asked for."""


def prepared(
    acquisition: Acquisition | Preparation,
    space: Space,
    history: History,
    posterior: Posterior,
    rng: np.random.Generator,
) -> Acquisition:
    """An acquisition function ready for one step of the loop."""
    if isinstance(acquisition, Preparation):
        return acquisition.prepare(space, history, posterior, rng)
    return acquisition


def gp_surrogate(space: Space, history: History, rng: np.random.Generator) -> GP:
    """An exact ARD Matern-5/2 GP with the most probable hyperparameters."""
    good = history.succeeded
    x, y = space.encode(history.points[good]), history.values[good]
    variances = history.variances[good]
    return fit(x, y, groups=space.groups, noise=variances if np.isfinite(variances).all() else None)


@dataclass(frozen=True)
class Bayesian:
    """Bayesian optimization with one surrogate and one acquisition function.

    Attributes:
        surrogate: of ``(space, history, rng)``. acquisition: of ``(posterior, x [m, f], best)``, or what prepares one.
        initial: evaluations before the first surrogate; None: twice the parameters and two.
    """

    surrogate: Surrogate = gp_surrogate
    acquisition: Acquisition | Preparation = log_expected_improvement
    initial: int | None = None

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        first = opening(space, history, count, rng, self.initial)
        if first is not None:
            return first
        chosen = np.empty((0, space.width))
        for _ in range(count):
            known = believed(space, history, self.surrogate, rng) if len(history.pending) else history
            posterior = self.surrogate(space, known, rng)
            best = incumbent(space, known, posterior)
            acquisition = prepared(self.acquisition, space, known, posterior, rng)

            def score(
                x: Floats,
                posterior: Posterior = posterior,
                best: float = best,
                acquisition: Acquisition = acquisition,
            ) -> Floats:
                return acquisition(posterior, x, best)

            point = maximize(space, score, history, rng)
            chosen = np.vstack([chosen, point[None]])
            history = history.waiting_for(point[None])
        return chosen


def opening(
    space: Space, history: History, count: int, rng: np.random.Generator, initial: int | None = None
) -> Floats | None:
    """The next rows of the first sample, ``[count, width]``; None once enough was seen for a surrogate."""
    first = initial or 2 * len(space.parameters) + 2
    begun = len(history) + len(history.pending)
    if begun >= first and history.succeeded.sum() >= 2:
        return None
    design = unseen(space, initial_design(space, max(first, count), np.random.default_rng(history.seed)), history)
    start = begun if space.grid is None else 0
    rows = design[start : start + count]
    return np.vstack([rows, space.sample(count - len(rows), rng)]) if len(rows) < count else rows


def incumbent(space: Space, history: History, posterior: Posterior) -> float:
    """The least posterior mean among the feasible points seen: what noise does not flatter."""
    good = history.feasible if history.feasible.any() else history.succeeded
    return float(posterior.predict(space.encode(history.points[good]))[0].min())


def believed(space: Space, history: History, surrogate: Surrogate, rng: np.random.Generator) -> History:
    """The history with each pending point told at the surrogate's mean."""
    guess = surrogate(space, history, rng).predict(space.encode(history.pending))[0]
    variance = float(history.variances[history.succeeded].mean())
    for point, value in zip(history.pending.copy(), guess, strict=True):
        history = history.told(point, float(value), 0.0, variance)
    return history
