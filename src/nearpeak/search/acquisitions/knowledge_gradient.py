"""The knowledge gradient: how much lower will the least posterior mean be after one more evaluation.

With the posterior mean ``mu`` at points ``a_1, ..., a_k`` and a noisy evaluation at ``x``, the mean after it is a line
in one standard normal number: ``mu_i + s_i(x) Z`` with ``s_i(x) = cov(a_i, x) / sqrt(var(x) + noise)``. The gain

    KG(x) = min_i mu_i - E[min_i (mu_i + s_i(x) Z)]

is exact: the least line is a concave polygon, and with its corners ``c_j`` and the change of slope ``r_j`` at each

    KG(x) = sum_j r_j h(-|c_j|),    h(z) = z Phi(z) + phi(z)

It is kept as a logarithm. The points stand for the whole space: the places where joint draws of the posterior have
their least value, those of the least mean, and x itself.

Frazier, Powell, Dayanik: The Knowledge-Gradient Policy for Correlated Normal Beliefs, INFORMS J. Computing 2009
(algorithm 1). Frazier: A Tutorial on Bayesian Optimization, arXiv:1807.02811 (2018), section 4.2.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numba import njit
from scipy.special import logsumexp

from nearpeak.errors import UsageError
from nearpeak.search.acquisitions.analytic import Acquisition, log_improvement
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import Posterior


@runtime_checkable
class Correlated(Protocol):
    """A posterior that says how one evaluation changes the belief elsewhere."""

    @property
    def observation_variance(self) -> float:
        """Variance of one more observation about the function."""

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation, ``[m]`` each."""

    def sample(self, x: Floats, count: int, rng: np.random.Generator) -> Floats:
        """Joint draws, ``[count, m]``."""

    def covariance(self, a: Floats, b: Floats) -> Floats:
        """Posterior covariance of the function, ``[n, m]``."""


def log_expected_decrease(levels: Floats, slopes: Floats) -> Floats:
    """log(min_i a_i - E[min_i (a_i + b_i Z)]) of lines ``a, b [m, k]``, ``[m]``; -inf where all slopes are equal."""
    rise, corner = _corners(np.ascontiguousarray(-levels), np.ascontiguousarray(slopes))
    terms = np.full(rise.shape, -np.inf)
    used = rise > 0
    terms[used] = np.log(rise[used]) + log_improvement(-np.abs(corner[used]))
    return np.asarray(logsumexp(terms, axis=1))


@njit(cache=True)
def _corners(levels: Floats, slopes: Floats) -> tuple[Floats, Floats]:
    """Corners of the largest of the lines ``a + b z`` in each row: the rise of the slope and where, ``[m, k]`` each."""
    m, k = levels.shape
    rise, corner = np.zeros((m, k)), np.zeros((m, k))
    kept, start = np.empty(k, np.int64), np.empty(k)
    for row in range(m):
        a, b = levels[row], slopes[row]
        order = np.argsort(b)
        top = -1
        for line in order:
            from_here = -np.inf
            while top >= 0:
                last = kept[top]
                if b[line] == b[last]:
                    # Of parallel lines the upper one counts.
                    crossing = -np.inf if a[line] > a[last] else np.inf
                else:
                    crossing = (a[last] - a[line]) / (b[line] - b[last])
                if crossing > start[top]:
                    from_here = crossing
                    break
                top -= 1
            if from_here == np.inf:
                continue
            top += 1
            kept[top], start[top] = line, from_here
        for j in range(1, top + 1):
            rise[row, j] = b[kept[j]] - b[kept[j - 1]]
            corner[row, j] = start[j]
    return rise, corner


def lines(
    posterior: Correlated, x: Floats, targets: Floats, mean: Floats, sd: Floats, levels: Floats, itself: bool = True
) -> tuple[Floats, Floats]:
    """Posterior means after an evaluation at each ``x``: lines ``level + slope Z``, ``[m, k]`` each (k + 1 with x).

    Args:
        mean, sd: beliefs at x, ``[m]`` each. levels: means at the targets, ``[k]``.
    """
    after = np.sqrt(sd**2 + posterior.observation_variance)
    before = np.broadcast_to(levels, (len(x), len(targets)))
    slopes = posterior.covariance(x, targets) / after[:, None]
    if not itself:
        return before, slopes
    return np.column_stack([before, mean]), np.column_stack([slopes, sd**2 / after])


def representatives(space: Space, history: History, rng: np.random.Generator, count: int = 256) -> Floats:
    """Configurations that stand for the space: those seen, draws, small changes of the best seen, ``[n, width]``."""
    drawn = space.sample(count, rng)
    if history.best is None:
        return drawn
    order = history.ranking
    near = history.points[np.repeat(order[:4], count // 16)]
    changed = [space.moved(near, rng, reach) for reach in (0.02, 0.1)]
    return np.vstack([history.points[order[:count]], drawn, *changed])


def correlated(posterior: Posterior, asker: str) -> Correlated:
    """The posterior, if it can say how beliefs are correlated.

    Raises:
        UsageError: it cannot.
    """
    if not isinstance(posterior, Correlated):
        raise UsageError(
            f"{asker} needs the covariance of beliefs, which {type(posterior).__name__} does not give: "
            "use a GP, or expected improvement"
        )
    return posterior


@dataclass(frozen=True)
class KnowledgeGradient:
    """log KG, the answer being any configuration.

    Attributes:
        draws: of the posterior, each of which gives the place of its least value. means: places of the least mean.
    """

    draws: int = 48
    means: int = 16

    def prepare(self, space: Space, history: History, posterior: Posterior, rng: np.random.Generator) -> Acquisition:
        """Choose the points that stand for the space."""
        known = correlated(posterior, "the knowledge gradient")
        targets = self.targets(space.encode(representatives(space, history, rng)), known, rng)
        levels = known.predict(targets)[0]

        def score(posterior: Posterior, x: Floats, best: float) -> Floats:
            return log_expected_decrease(*lines(known, x, targets, *known.predict(x), levels))

        return score

    def targets(self, features: Floats, posterior: Correlated, rng: np.random.Generator) -> Floats:
        """Those of the features where the minimum may well be, ``[k, f]``."""
        lowest = np.argsort(posterior.predict(features)[0], kind="stable")[: self.means]
        drawn = posterior.sample(features, self.draws, rng).argmin(axis=1)
        return np.asarray(features[np.unique(np.concatenate([lowest, drawn]))])
