"""Batches by local penalization: each point of a batch pushes the next ones out of a ball around it.

If the function changes by at most L over a unit of distance and its least value is M, the minimiser is no nearer to
``x_j`` than ``(f(x_j) - M) / L``. Under the posterior ``N(mu_j, sigma_j^2)`` of ``f(x_j)`` the probability that ``x``
is outside of that ball is

    phi(x; x_j) = Phi((L |x - x_j| + M - mu_j) / sigma_j)

and the acquisition of the next point is ``EI(x) prod_j phi(x; x_j)`` over those chosen and those pending. L is the
largest slope of the posterior mean, M the least value seen. Distances are in the unit cube of features.

Gonzalez, Dai, Hennig, Lawrence: Batch Bayesian Optimization via Local Penalization, AISTATS 2016.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import log_ndtr

from nearpeak.search.acquisitions.analytic import Acquisition, log_expected_improvement
from nearpeak.search.bayesian import Surrogate, gp_surrogate, incumbent, opening
from nearpeak.search.candidates import maximize
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import Posterior
from nearpeak.search.surrogates.kernels import squared_distances

_SAMPLES: Final = 500
_NEAREST: Final = 64
_ROUNDS: Final = 3
_STEP: Final = 1e-4


@dataclass(frozen=True)
class LocalPenalization:
    """The method.

    Attributes:
        acquisition: in logarithms: of ``(posterior, x [m, f], best)``. initial: evaluations before the first surrogate.
    """

    surrogate: Surrogate = gp_surrogate
    acquisition: Acquisition = log_expected_improvement
    initial: int | None = None

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        first = opening(space, history, count, rng, self.initial)
        if first is not None:
            return first
        posterior = self.surrogate(space, history, rng)
        best = incumbent(space, history, posterior)
        features = space.encode(history.points[history.succeeded])
        slope = steepest(posterior, np.zeros(features.shape[1]), np.ones(features.shape[1]), features, rng)
        least = float(history.values[history.succeeded].min())
        for _ in range(count):
            busy = space.encode(history.pending)

            def score(x: Floats, busy: Floats = busy) -> Floats:
                plain = self.acquisition(posterior, x, best)
                return plain + penalty(posterior, x, busy, slope, least) if len(busy) else plain

            history = history.waiting_for(maximize(space, score, history, rng)[None])
        return history.pending[-count:]


def penalty(posterior: Posterior, x: Floats, busy: Floats, slope: float, least: float) -> Floats:
    """``sum_j log phi(x; x_j)`` at features ``[m, f]`` for busy points ``[p, f]``, ``[m]``."""
    mean, sd = posterior.predict(busy)
    away = np.sqrt(squared_distances(x, busy))
    return np.asarray(log_ndtr((slope * away + least - mean) / sd).sum(axis=1))


def steepest(posterior: Posterior, low: Floats, high: Floats, seen: Floats, rng: np.random.Generator) -> float:
    """The largest slope of the posterior mean in the box from ``low`` to ``high`` ``[f]``, per unit of features.

    Of a sample and of the points seen ``[n, f]``; then around the steepest found, in a shrinking box.
    """
    inside = seen[((seen >= low) & (seen <= high)).all(axis=1)]
    points = np.vstack([rng.uniform(low, high, (_SAMPLES, len(low))), inside])
    slopes = _slopes(posterior, points)
    at, best = points[int(np.argmax(slopes))], float(slopes.max())
    for i in range(_ROUNDS):
        points = np.clip(at + 0.1 * 0.5**i * (high - low) * rng.uniform(-1, 1, (_NEAREST, len(low))), low, high)
        slopes = _slopes(posterior, points)
        if slopes.max() > best:
            at, best = points[int(np.argmax(slopes))], float(slopes.max())
    return best


def _slopes(posterior: Posterior, x: Floats) -> Floats:
    """Norm of the mean's gradient at features ``[m, f]`` by central differences, ``[m]``: any surrogate has one."""
    m, f = x.shape
    steps = _STEP * np.eye(f)
    moved = np.vstack([(x[:, None] + steps).reshape(-1, f), (x[:, None] - steps).reshape(-1, f)])
    mean = posterior.predict(moved)[0].reshape(2, m, f)
    return np.asarray(np.linalg.norm(mean[0] - mean[1], axis=1) / (2 * _STEP))
