"""Bayesian optimization of a space that can be listed: a GP over every configuration, updated as results come.

It is made for tuning programs: values that span decades and fail in places, a best configuration that may be one in
ten thousand, a few hundred evaluations. The surrogate learns ``targets.learnable``; the acquisition is log expected
improvement over all configurations not yet seen, times the chance of success (the same GP's mean of successes) and
that of meeting measured constraints (the same GP given each); while none was met, that chance alone.
Hyperparameters are fitted again when the observations have grown by a fifth, from where they were.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from nearpeak.search.acquisitions.analytic import log_improvement
from nearpeak.search.candidates import WHOLE_GRID, balanced, farthest
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.alignment import with_alignment
from nearpeak.search.surrogates.table_gp import Index, TableGP
from nearpeak.search.surrogates.targets import learnable

_LEAST_CHANCE: Final = 0.02
"""Of success, that a configuration is given at least: a model of failures may be wrong."""


_BEST: Final = 8
_SMALL: Final = 1_000
"""Grids up to this size are searched with a few dozen evaluations, too few to find what is best between corners."""
_REACH: Final = 64
_STEPS: Final = np.linspace(-40.0, 10.0, 501)
_GAINS: Final = log_improvement(_STEPS)
"""Log expected improvement in units of sd at these z: what z it takes to gain as much."""


@dataclass
class TableBayes:
    """A GP over a grid.

    Attributes:
        initial: evaluations before the first model, spread over the space. shape: of the kernel. keep: share of the
            values that keep their differences. iterations: of each fit. whole: largest grid that is modelled whole; of
            a larger one a sample of half as many is, drawn anew with each fit, and the neighbours of the best.
    """

    initial: int = 10
    shape: str = "matern32"
    keep: float = 0.7
    iterations: int = 15
    whole: int = WHOLE_GRID
    _kept: "_Kept | None" = field(default=None, repr=False)

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``; fewer where the grid has no more."""
        grid = space.grid
        assert grid is not None
        seen, pending = grid.find(history.points), grid.find(history.pending)
        left = np.ones(len(grid.points), dtype=bool)
        left[seen] = left[pending] = False
        count = min(count, int(left.sum()))
        if count == 0:
            return np.empty((0, space.width))
        if len(history) < self.initial or history.succeeded.sum() < 2:
            first = self._first(space, history.seed)
            chosen = first[left[first]][:count]
            others = np.setdiff1d(np.flatnonzero(left), chosen)
            chosen = np.append(chosen, rng.choice(others, count - len(chosen), replace=False))
            return np.asarray(grid.points[chosen])
        kept = self._caught_up(space, history, seen)
        if not left[kept.table].any():
            return np.asarray(grid.points[rng.choice(np.flatnonzero(left), count, replace=False)])
        return np.asarray(grid.points[self._modelled(kept, history, pending, left, count)])

    def _first(self, space: Space, seed: int) -> Index:
        """The first sample, of some hundred random configurations: those that are farthest from each other, which are
        corners; where the space is small, those that meet every value about equally often.
        """
        assert space.grid is not None
        rng = np.random.default_rng(seed)
        pool = rng.choice(len(space.grid.points), min(300, len(space.grid.points)), replace=False)
        if len(space.grid.points) <= _SMALL:
            return pool[balanced(space.grid.levels[pool], self.initial, rng)]
        return pool[farthest(space.encode(space.grid.points[pool]), self.initial)]

    def _modelled(self, kept: "_Kept", history: History, pending: Index, left: NDArray[np.bool_], count: int) -> Index:
        """The rows of the grid to evaluate next; what is pending, and each that is chosen, counts with its mean."""
        model, open_ = kept.model, left[kept.table]
        targets = learnable(history, self.keep)
        chance, feasible = _log_chance(model, history), history.feasible
        best = float(targets[feasible].min()) if feasible.any() else None
        chosen: list[int] = []
        with model.supposing():
            for place in kept.places(pending):
                targets = np.append(targets, model.expectation(targets)[place])
                model.add(int(place))
            for more in reversed(range(min(count, int(open_.sum())))):
                mean, sd = model.predict(targets)
                chosen.append(_most_promising(mean, sd, best, chance, np.flatnonzero(open_)))
                if more:
                    open_[chosen[-1]] = False
                    targets = np.append(targets, mean[chosen[-1]])
                    model.add(chosen[-1])
        return kept.table[chosen]

    def _caught_up(self, space: Space, history: History, seen: Index) -> "_Kept":
        """The model of this history: the one kept if it is of its beginning, else a new one taken through it."""
        kept, rows = self._kept, seen.tolist()
        if kept is None or kept.space is not space or kept.seen != rows[: len(kept.seen)]:
            kept = self._kept = _Kept(space, TableGP(self.shape), self.initial)
        for n in range(len(kept.seen) + 1, len(rows) + 1):
            place = kept.places(seen[n - 1 : n])
            if len(place) and n < kept.due:
                kept.model.add(int(place[0]))
            elif n >= self.initial and (past := history.until(n)).succeeded.sum() >= 2:
                kept.hold(self._table(space, past, seen[:n]))
                places = kept.places(seen[:n]).tolist()
                kept.model.fit(kept.features, kept.groups, places, learnable(past, self.keep), self.iterations)
                kept.due = n + max(5, n // 5)
            kept.seen.append(rows[n - 1])
        return kept

    def _table(self, space: Space, history: History, seen: Index) -> Index:
        """The rows of the grid that the model holds, in order."""
        assert space.grid is not None
        size = len(space.grid.points)
        if size <= self.whole:
            return np.arange(size)
        sample = np.random.default_rng([history.seed, len(history)]).choice(size, self.whole // 2, replace=False)
        best = seen[history.ranking[:_BEST]]
        near = [space.grid.neighbours(int(i), _REACH) for i in best]
        return np.unique(np.concatenate([sample, seen, *near]))


def _most_promising(mean: Floats, sd: Floats, best: float | None, chance: Floats, rows: Index) -> int:
    """The one of ``rows`` with the largest log expected improvement plus log chance, ``best`` None: largest chance.

    Expected improvement grows with ``z = (best - mean) / sd`` and with sd. So a row that not even the largest sd would
    lift over the row of largest z is not asked: of ten thousand a few hundred are.
    """
    chance = np.broadcast_to(chance, mean.shape)
    if best is None:
        return int(rows[np.argmax(chance[rows])])
    z = (best - mean[rows]) / sd[rows]
    ahead = int(np.argmax(z))
    reached = log_improvement(z[[ahead]])[0] + np.log(sd[rows[ahead]]) + chance[rows[ahead]]
    needed = int(np.searchsorted(_GAINS, reached - np.log(sd[rows].max()) - chance.max())) - 1
    if needed >= 0:
        asked = z >= _STEPS[needed]
        rows, z = rows[asked], z[asked]
    return int(rows[np.argmax(log_improvement(z) + np.log(sd[rows]) + chance[rows])])


def _log_chance(model: TableGP, history: History) -> Floats:
    """Log probability that each configuration of the table succeeds and meets every measured constraint, ``[N]``; 0.0
    where there is neither failure nor constraint.
    """
    good = history.succeeded
    found = np.asarray(0.0)
    if not good.all():
        found = np.log(model.expectation(good.astype(float)).clip(_LEAST_CHANCE, 1.0))
    for measured in history.constraints.T:
        known = np.isfinite(measured)
        if known.any():
            mean, sd = model.predict(np.where(known, measured, measured[known].max()))
            found = found + log_ndtr(-mean / sd)
    return found


@dataclass
class _Kept:
    """A model of a space, the number of evaluations at which it is fitted next, the rows of the grid that it holds
    with their features and the groups of these, and the rows that it knows.
    """

    space: Space
    model: TableGP
    due: int
    table: Index = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    features: Floats = field(default_factory=lambda: np.empty((0, 0)))
    groups: Index = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    seen: list[int] = field(default_factory=list)

    def hold(self, table: Index) -> None:
        """Model these rows of the grid."""
        if not np.array_equal(table, self.table):
            self.table = table
            self.features, self.groups = with_alignment(self.space, table)

    def places(self, rows: Index) -> Index:
        """Where rows of the grid stand in the table; those that are not in it are left out."""
        if len(self.table) == 0:
            return self.table
        place = np.searchsorted(self.table, rows).clip(max=len(self.table) - 1)
        return np.asarray(place[self.table[place] == rows])
