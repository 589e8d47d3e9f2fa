"""NSGA-III (Deb and Jain, IEEE Transactions on Evolutionary Computation 18, 2014), as operations on whole populations.

Fronts survive one after the other; of the front that does not fit as a whole, those that fill the emptiest niches. A
niche is a reference direction; an individual belongs to the one that it is nearest to, once the objectives are shifted
to the ideal point and divided by the intercepts of the plane through the extreme points.

The paper fills niches one individual at a time: always one of the least counted, by its closest candidate while it
counts none, else by a random one. The same choice without a loop (after Liang et al., IEEE Transactions on Evolutionary
Computation, 2025): a candidate's place among those of its niche, added to the niche's count, is the count at which its
turn comes. Those whose turn comes first survive, in random order where it comes at once.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from nearpeak.search.populations.dominance import ranks
from nearpeak.search.populations.evolution import (
    Array,
    Population,
    Random,
    chunk_of,
    farthest,
    indices,
    lexsort,
    like,
    namespace,
    positions,
    shuffled_pairs,
    survivors,
    to_numpy,
    uniform,
)


@dataclass(frozen=True)
class NSGA3:
    """Survival of the individuals nearest to the reference ``directions [r, m]``, which are of unit length."""

    directions: Array
    tree: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        near = isinstance(self.directions, np.ndarray) and self.directions.shape[1] <= 5
        object.__setattr__(self, "tree", cKDTree(self.directions) if near else None)

    def parents(self, population: Population, rng: Random) -> tuple[Array, Array]:
        """Random pairs: every survivor is as good as another."""
        return shuffled_pairs(population.points, rng)

    def survive(self, parents: Population, children: Population, rng: Random) -> Population:
        """The next population."""
        return survivors(parents, children, self.select, rng)

    def select(
        self, values: Array, count: int, ideal: Array, extremes: Array, rng: Random
    ) -> tuple[Array, Array, Array]:
        """Indices of ``count`` rows of ``values [n, m]``, their ranks, and the extreme points now."""
        rank = ranks(values, count)
        last = namespace(values).sort(rank + 0)
        last = (last if isinstance(last, np.ndarray) else last.values)[count - 1]
        extremes = farthest(values[rank == 0], ideal, extremes)
        sure, contested = indices(rank < last), indices(rank == last)
        scale = intercepts(extremes, ideal, values[rank <= last])
        niche, distance = self.associate((values - ideal) / scale, namespace(values).concatenate([sure, contested]))
        crowd = namespace(values).bincount(niche[: len(sure)], minlength=len(self.directions))
        filled = fill(niche[len(sure) :], distance[len(sure) :], crowd, count - len(sure), rng)
        chosen = namespace(values).concatenate([sure, contested[filled]])
        return chosen, rank[chosen], extremes

    def associate(self, scaled: Array, index: Array) -> tuple[Array, Array]:
        """The nearest direction ``[k]`` of the rows ``index`` of ``scaled [n, m]``, and the distance from its line."""
        xp = namespace(scaled)
        rows = scaled[index]
        length = xp.sqrt(xp.sum(rows * rows, 1))
        unit = rows / length.clip(1e-300 if xp is np else 1e-30, None)[:, None]
        if self.tree is not None:
            apart, niche = self.tree.query(unit)
            # Of unit vectors at distance c the angle has the cosine 1 - c^2 / 2.
            return niche, length * apart * np.sqrt(1 - (apart / 2) ** 2)
        step = max(1, chunk_of(scaled) // len(self.directions))
        best = [xp.argmax(unit[start : start + step] @ self.directions.T, 1) for start in range(0, len(unit), step)]
        niche = xp.concatenate(best)
        along = xp.sum(unit * self.directions[niche], 1)
        return niche, length * xp.sqrt((1 - along * along).clip(0.0, None))


def fill(niche: Array, distance: Array, crowd: Array, count: int, rng: Random) -> Array:
    """Indices of ``count`` candidates of niches ``niche [k]`` that already count ``crowd [r]``."""
    xp = namespace(niche)
    turn = uniform(rng, len(niche))
    closest = (positions(niche, distance, len(crowd)) == 0) & (crowd[niche] == 0)
    turn = xp.where(closest, -1.0, turn)
    turn = positions(niche, turn, len(crowd)) + crowd[niche]
    return lexsort(uniform(rng, len(niche)), turn)[:count]


def intercepts(extremes: Array, ideal: Array, values: Array) -> Array:
    """Where the plane through the ``extremes [m, m]`` cuts the axes, from the ideal point on: ``[m]``.

    Where there is no such plane, or it cuts an axis beyond all of ``values [n, m]``, their largest value instead.
    """
    worst = to_numpy(namespace(values).amax(values, 0) - ideal)
    worst = np.where(worst > 0, worst, 1.0)
    corner = to_numpy(extremes - ideal)
    try:
        cut = 1 / np.linalg.solve(corner, np.ones(len(corner)))
    except np.linalg.LinAlgError:
        cut = worst
    good = np.isfinite(cut) & (cut > 1e-6 * worst)
    return like(np.minimum(cut, worst) if good.all() else worst, values)
