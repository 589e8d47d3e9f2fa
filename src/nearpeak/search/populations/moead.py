"""MOEA/D (Zhang and Li, IEEE Transactions on Evolutionary Computation 11, 2007), all subproblems at once.

Each reference direction ``w`` is a subproblem with one individual, which minimises the penalty-based boundary
intersection: how far it got along the direction, and five times how far it is off it,

    g(f) = d1 + 5 d2,    d1 = f . w,    d2 = |f - d1 w|

with ``f`` shifted to the ideal point and divided by the objectives' extent, ``w`` of unit length. Parents come from the
nearest subproblems. The paper makes one child after another and hands it to its neighbours; here every subproblem makes
its child at once and then takes the best of its neighbours' children, if that is better than what it has (after Liang
et al., IEEE Transactions on Evolutionary Computation, 2025).
"""

from dataclasses import dataclass, field

from scipy.spatial import cKDTree

from nearpeak.search.populations.evolution import (
    Array,
    Population,
    Random,
    farthest,
    ideal_of,
    integers,
    like,
    namespace,
    placed,
    to_numpy,
)

PENALTY = 5.0
"""Of being off the direction; the paper's."""


@dataclass(frozen=True)
class MOEAD:
    """Subproblems of ``directions [n, m]`` of unit length, each with its nearest ``neighbours`` (itself included)."""

    directions: Array
    neighbours: int = 20
    near: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        held = to_numpy(self.directions)
        near = cKDTree(held).query(held, min(self.neighbours, len(held)))[1].reshape(len(held), -1)
        object.__setattr__(self, "near", like(near, self.directions))

    def parents(self, population: Population, rng: Random) -> tuple[Array, Array]:
        """Two different neighbours of each subproblem."""
        xp = namespace(self.near)
        n, t = self.near.shape
        first = integers(rng, t, n)
        second = (first + 1 + integers(rng, max(t - 1, 1), n)) % t
        rows = xp.arange(n, **placed(first))
        return self.near[rows, first], self.near[rows, second]

    def survive(self, parents: Population, children: Population, rng: Random) -> Population:
        """Each subproblem's individual, or the best of its neighbours' children where that is better."""
        xp = namespace(parents.values)
        ideal = ideal_of(children.values, children.violation, parents.ideal)
        feasible = parents.values[parents.violation <= 0]
        extremes = farthest(feasible, ideal, parents.extremes) if len(feasible) else parents.extremes
        extent = xp.amax(extremes, 0) - ideal if len(extremes) else xp.ones_like(ideal)
        extent = xp.where(extent > 0, extent, xp.ones_like(extent))
        own, made = (
            xp.where((p.violation <= 0)[:, None], (p.values - ideal) / extent, 0.0) for p in (parents, children)
        )
        rows = xp.arange(len(made), **placed(self.near))
        now = scalar(own, parents.violation, rows[:, None], self.directions)[:, 0]
        tried = scalar(made, children.violation, self.near, self.directions)
        best = xp.argmin(tried, 1)
        source, better = self.near[rows, best], tried[rows, best] < now
        points, values = (
            xp.where(better[:, None], new[source], old)
            for new, old in ((children.points, parents.points), (children.values, parents.values))
        )
        violation = xp.where(better, children.violation[source], parents.violation)
        return Population(points, values, violation, violation, ideal, extremes)


def scalar(scaled: Array, violation: Array, near: Array, directions: Array) -> Array:
    """Penalty-based boundary intersection ``[n, t]`` of the rows ``near [n, t]`` of ``scaled [k, m]`` along each of the
    ``directions [n, m]``; infeasible rows come behind all others, by ``violation [k]``.
    """
    xp = namespace(scaled)
    along = sum(scaled[:, j][near] * directions[:, j : j + 1] for j in range(scaled.shape[1]))
    off = xp.sqrt((xp.sum(scaled * scaled, 1)[near] - along * along).clip(0.0, None))
    return xp.where(violation[near] > 0, 1e30 * (1 + violation[near]), along + PENALTY * off)
