"""HypE (Bader and Zitzler, Evolutionary Computation 19, 2011): survival by the hypervolume that removal would cost.

Of the front that does not fit as a whole, ``k`` of ``n`` individuals must go. The expected loss that is laid at the
door of ``a``, if those that go with it are drawn at random, is

    I(a) = sum over i of alpha_i / i  vol{x : a and i - 1 others dominate x},  alpha_i = prod_{j < i} (k - j) / (n - j)

It is estimated from samples, and those of least loss go. The paper draws samples from the whole box, of which few lie
where one of many individuals matters. Here each individual has its own, with density falling exponentially from it at
the front's mean spacing; weighted by their density they have the same mean. What a sample costs is the number of
individuals that dominate it, and those are counted for all samples in one sweep.
"""

from dataclasses import dataclass

import numpy as np

from nearpeak.search.populations.dominance import dominator_counts, ranks
from nearpeak.search.populations.evolution import (
    Array,
    Population,
    Random,
    farthest,
    indices,
    like,
    namespace,
    pairs,
    placed,
    survivors,
    uniform,
)


@dataclass(frozen=True)
class HypE:
    """``samples``: of the front from which some must go; each individual has eight at least.

    The loss is that of individuals drawn at random, while those of least loss go, neighbours together. Small fronts
    therefore shrink in several rounds, as far as ``samples`` pays for eight of each individual in each.
    """

    samples: int = 5_000

    def parents(self, population: Population, rng: Random) -> tuple[Array, Array]:
        """Winners of tournaments: the earlier front, then the larger loss."""
        return pairs(population.place, rng)

    def survive(self, parents: Population, children: Population, rng: Random) -> Population:
        """The next population."""
        return survivors(parents, children, self.select, rng)

    def select(
        self, values: Array, count: int, ideal: Array, extremes: Array, rng: Random
    ) -> tuple[Array, Array, Array]:
        """Indices of ``count`` rows of ``values [n, m]``, their places, and the extreme points now."""
        xp = namespace(values)
        rank = ranks(values, count)
        last = xp.sort(rank + 0)
        last = (last if xp is np else last.values)[count - 1]
        sure, contested = indices(rank < last), indices(rank == last)
        front = values[contested]
        extremes = farthest(values[rank == 0], ideal, extremes)
        worst = xp.amax(front, 0)
        extent = xp.where(worst > ideal, worst - ideal, xp.ones_like(worst))
        scaled = (front - ideal) / extent
        goes, order = len(contested) - (count - len(sure)), xp.arange(len(contested), **placed(values))
        rounds = min(8, 1 + self.samples // (8 * len(contested)))
        for left in range(rounds - 1, -1, -1):
            kept = count - len(sure) + goes * left // rounds
            each = max(8, self.samples // len(order))
            loss = expected_loss(scaled[order], xp.ones_like(worst) * 1.1, max(len(order) - kept, 1), each, rng)
            order = order[xp.argsort(-loss, axis=0, stable=True)[:kept]]
        chosen = xp.concatenate([sure, contested[order]])
        ramp = like(np.linspace(0, 1, len(order), endpoint=False), values)
        place = xp.concatenate([rank[sure] + 0 * ramp[:1], last + ramp])
        return chosen, place, extremes


def expected_loss(front: Array, reference: Array, goes: int, samples: int, rng: Random) -> Array:
    """Hypervolume ``[n]`` lost with each row of ``front [n, m]`` if ``goes`` rows go, the others of them at random.

    Args:
        front: rows that do not dominate each other, below ``reference [m]``.
        goes: from 1 to n. samples: of each row.
    """
    xp = namespace(front)
    n, m = front.shape
    # A row's own share of the front is about n^(-1 / (m - 1)) wide.
    width = (xp.amax(front, 0) - xp.amin(front, 0)).clip(1e-9, None) * n ** (-1 / max(m - 1, 1))
    corner = front[:, None]
    reach = 1 - xp.exp(-(reference - corner) / width)
    away = -width * xp.log1p(-uniform(rng, n, samples, m) * reach)
    weight = xp.prod(width * reach * xp.exp(away / width), -1)
    count = dominator_counts(front, (corner + away).reshape(-1, m)).reshape(n, samples)
    others = np.arange(1, n)
    share = np.cumprod(np.concatenate([[1.0], (goes - others).clip(0) / (n - others)])) / np.arange(1, n + 1)
    return xp.mean(weight * like(share, front)[count.clip(1, None) - 1], 1)
