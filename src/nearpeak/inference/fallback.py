"""What to try on each problem, and what next if that fails: a chain from a comparison of costs and one of successes.

With cost ``c_j`` and chance of success ``p_j`` of each algorithm, the expected cost until one succeeds is least in
ascending order of ``c_j / p_j``: two neighbours stand right where ``c_1 + (1 - p_1) c_2 <= c_2 + (1 - p_2) c_1``. Both
are posterior means on the problem itself, so that a problem with few runs leans on what is typical.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from nearpeak.errors import UsageError
from nearpeak.inference.comparison import Comparison

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Chain:
    """What to try on each problem, in order.

    Attributes:
        order: indices of algorithms ``[problems, algorithms]``, the first to try first.
        first_best: probability that the first choice costs least per success ``[problems]``.
        cost: expected cost of the chain until an algorithm succeeds, or all failed ``[problems]``; in the units of the
            cost, for Gaussian scores the expected score of the first choice. success: probability that one of the
            chain's algorithms succeeds ``[problems]``. Runs of different algorithms fail independently given a draw.
    """

    order: NDArray[np.intp]
    first_best: Array
    cost: Array
    success: Array


def fallback_chain(cost: Comparison, success: Comparison | None = None) -> Chain:
    """Which algorithm to try on each problem, and which next if it fails.

    Args:
        cost: a comparison of times or counts; without ``success`` of any family, and then the order is that of values.
        success: one of family ``bernoulli`` over the same algorithms, and problems that include those of ``cost``.

    Raises:
        UsageError: the two comparisons do not fit together.
    """
    eta = cost.posterior.eta
    if success is None:
        merit = cost.sign * eta
        mean = merit.mean(axis=0)
        order = np.argsort(mean, axis=1)
        best = (np.argmin(merit, axis=2) == order[:, 0]).mean(axis=0)
        expected = cost.scaled(eta).mean(axis=0)
        first = np.take_along_axis(expected, order[:, :1], axis=1)[:, 0]
        return Chain(order, best, first, np.ones(len(order)))
    if success.family != "bernoulli" or cost.family in ("gaussian", "bernoulli"):
        raise UsageError(
            f"a chain takes a lognormal or negative-binomial cost and a bernoulli success, not {cost.family} and "
            f"{success.family}"
        )
    lost = [*set(cost.algorithms).symmetric_difference(success.algorithms), *set(cost.problems) - set(success.problems)]
    if lost:
        raise UsageError(
            f"cost and success must name the same algorithms and problems; one lacks {', '.join(lost[:5])}"
        )
    across = np.ix_(
        np.arange(len(success.posterior.alpha)),
        np.array([success.problems.index(p) for p in cost.problems]),
        np.array([success.algorithms.index(a) for a in cost.algorithms]),
    )
    draws = min(len(eta), len(success.posterior.alpha))
    price, chance = np.exp(eta[:draws]), expit(success.posterior.eta[across][:draws])
    mean_price, mean_chance = price.mean(axis=0), chance.mean(axis=0)
    order = np.argsort(mean_price / mean_chance, axis=1)
    best = (np.argmin(price / chance, axis=2) == order[:, 0]).mean(axis=0)
    price, chance = (np.take_along_axis(a, order[None], axis=2) for a in (price, chance))
    reached = np.cumprod(1 - chance, axis=2)
    tried = np.concatenate([np.ones_like(reached[:, :, :1]), reached[:, :, :-1]], axis=2)
    return Chain(order, best, (tried * price).sum(axis=2).mean(axis=0), 1 - reached[:, :, -1].mean(axis=0))
