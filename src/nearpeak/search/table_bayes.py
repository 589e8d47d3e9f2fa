"""Bayesian optimization of a space that can be listed: a GP over every configuration, updated as results come.

It is made for tuning programs: values that span decades and fail in places, a best configuration that may be one in
ten thousand, a few hundred evaluations. The surrogate learns ``targets.learnable``; the acquisition is log expected
improvement over all configurations not yet seen, times the chance of success (the same GP's mean of successes).
Hyperparameters are fitted again when the observations have grown by a fifth, from where they were.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nearpeak.search.acquisition import log_improvement
from nearpeak.search.alignment import with_alignment
from nearpeak.search.candidates import farthest
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.table_gp import TableGP
from nearpeak.search.targets import learnable


_LEAST_CHANCE: Final = 0.02
"""Of success, that a configuration is given at least: a model of failures may be wrong."""


@dataclass
class TableBayes:
    """A GP over a grid.

    Attributes:
        initial: evaluations before the first model, spread over the space. shape: of the kernel. keep: share of the
            values that keep their differences. iterations: of each fit.
    """

    initial: int = 10
    shape: str = "matern32"
    keep: float = 0.7
    iterations: int = 15
    _kept: "_Kept | None" = field(default=None, repr=False)

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``; fewer where the grid has no more."""
        grid = space.grid
        assert grid is not None
        left = np.ones(len(grid.points), dtype=bool)
        seen = grid.find(history.points) if len(history) else np.empty(0, dtype=np.intp)
        pending = grid.find(history.pending) if len(history.pending) else np.empty(0, dtype=np.intp)
        left[seen] = left[pending] = False
        count = min(count, int(left.sum()))
        if count == 0:
            return grid.points[:0]
        begun = len(history) + len(history.pending)
        first = self._first(space, history.seed) if begun < self.initial else seen[:0]
        waiting = first[left[first]][:count]
        if len(waiting) or history.succeeded.sum() < 2:
            if len(waiting) < count:
                others = np.setdiff1d(np.flatnonzero(left), waiting)
                waiting = np.append(waiting, rng.choice(others, count - len(waiting), replace=False))
            return grid.points[waiting]
        return grid.points[self._modelled(space, history, seen, pending, left, count)]

    def _first(self, space: Space, seed: int) -> NDArray[np.intp]:
        """The first sample: of some hundred random configurations those that are farthest from each other."""
        assert space.grid is not None
        rng = np.random.default_rng(seed)
        pool = rng.choice(len(space.grid.points), min(300, len(space.grid.points)), replace=False)
        return pool[farthest(space.encode(space.grid.points[pool]), self.initial)]

    def _modelled(
        self,
        space: Space,
        history: History,
        seen: NDArray[np.intp],
        pending: NDArray[np.intp],
        left: NDArray[np.bool_],
        count: int,
    ) -> NDArray[np.intp]:
        model = self._caught_up(space, history, seen)
        targets = learnable(history, self.keep)
        best = float(targets.min())
        good = history.feasible
        success = 0.0 if good.all() else np.log(model.predict(good.astype(float))[0].clip(_LEAST_CHANCE, 1.0))
        chosen: list[int] = []
        with model.supposing():
            for index in pending:
                targets = np.append(targets, model.predict(targets)[0][index])
                model.add(int(index))
            while True:
                mean, sd = model.predict(targets)
                score = np.where(left, log_improvement((best - mean) / sd) + np.log(sd) + success, -np.inf)
                chosen.append(int(np.argmax(score)))
                if len(chosen) == count:
                    return np.asarray(chosen)
                left[chosen[-1]] = False
                targets = np.append(targets, mean[chosen[-1]])
                model.add(chosen[-1])

    def _caught_up(self, space: Space, history: History, seen: NDArray[np.intp]) -> TableGP:
        """The model of this history: the one kept if it is of its beginning, else a new one taken through it."""
        kept = self._kept
        if kept is None or kept.space is not space or kept.model.seen != seen[: len(kept.model.seen)].tolist():
            features, groups = with_alignment(space)
            model = TableGP(features, self.shape, groups)
            kept = self._kept = _Kept(space, model, self.initial)
        model, rows = kept.model, seen.tolist()
        while kept.due <= len(rows):
            past = history.until(kept.due)
            if past.succeeded.sum() >= 2:
                model.fit(rows[: kept.due], learnable(past, self.keep), self.iterations)
            kept.due += max(5, kept.due // 5)
        if not model.seen:
            model.fit(rows, learnable(history, self.keep), self.iterations)
        for index in rows[len(model.seen) :]:
            model.add(index)
        return model


@dataclass
class _Kept:
    """A model, the space that it is of, and the number of evaluations at which it is fitted next."""

    space: Space
    model: TableGP
    due: int
