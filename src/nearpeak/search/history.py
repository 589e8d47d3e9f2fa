"""What a search has seen: every evaluation that ended, and those that still run."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from nearpeak.search.parameters import Floats


@dataclass(frozen=True)
class History:
    """Evaluations in the order in which they ended; smaller values are better.

    Attributes:
        points: configurations, ``[n, width]``. values: what was measured, ``[n]``; NaN: the evaluation failed.
        costs: what each took, seconds, ``[n]``. variances: of each value about the truth, ``[n]``; NaN: not known.
        constraints: measured quantities that must be at most 0, ``[n, c]``; NaN where they were not.
        pending: configurations that are being evaluated now, ``[p, width]``.
        seed: of the search: for what a method draws once and keeps, as its first sample.
    """

    points: Floats
    values: Floats
    costs: Floats
    variances: Floats
    constraints: Floats
    pending: Floats = field(default_factory=lambda: np.empty((0, 0)))
    seed: int = 0

    @classmethod
    def empty(cls, width: int, constraints: int = 0, seed: int = 0) -> "History":
        """Nothing seen yet."""
        none = np.empty(0)
        return cls(np.empty((0, width)), none, none, none, np.empty((0, constraints)), np.empty((0, width)), seed)

    @classmethod
    def of(cls, points: Floats, values: Floats, pending: Floats | None = None, seed: int = 0) -> "History":
        """Points and values alone: no costs, no constraints."""
        n, width = points.shape
        waiting = np.empty((0, width)) if pending is None else pending
        return cls(points, values, np.zeros(n), np.full(n, np.nan), np.empty((n, 0)), waiting, seed)

    def __len__(self) -> int:
        return len(self.values)

    def told(
        self, point: Floats, value: float, cost: float, variance: float = np.nan, constraints: Floats | None = None
    ) -> "History":
        """With one evaluation more. It is no longer pending."""
        same = matches(self.pending, point)
        keep = np.ones(len(self.pending), dtype=bool)
        keep[np.flatnonzero(same)[:1]] = False
        limits = np.full(self.constraints.shape[1], np.nan) if constraints is None else constraints
        return History(
            np.vstack([self.points, point[None]]),
            np.append(self.values, value),
            np.append(self.costs, cost),
            np.append(self.variances, variance),
            np.vstack([self.constraints, limits[None]]),
            self.pending[keep],
            self.seed,
        )

    def waiting_for(self, points: Floats) -> "History":
        """With points handed out to be evaluated."""
        return replace(self, pending=np.vstack([self.pending, points]))

    def until(self, count: int) -> "History":
        """The first evaluations, with nothing pending."""
        c = slice(count)
        none = self.pending[:0]
        return History(
            self.points[c], self.values[c], self.costs[c], self.variances[c], self.constraints[c], none, self.seed
        )

    @property
    def succeeded(self) -> NDArray[np.bool_]:
        """Evaluations that gave a value, ``[n]``."""
        return np.isfinite(self.values)

    @property
    def feasible(self) -> NDArray[np.bool_]:
        """Evaluations that gave a value and met every measured constraint, ``[n]``."""
        return self.succeeded & (self.constraints <= 0).all(axis=1)

    @property
    def best(self) -> int | None:
        """The evaluation with the least value among the feasible; None where there is none."""
        if not self.feasible.any():
            return None
        return int(np.argmin(self.losses))

    @property
    def losses(self) -> Floats:
        """Values, ``[n]``; infinite where an evaluation failed or broke a constraint."""
        return np.where(self.feasible, self.values, np.inf)

    @property
    def ranking(self) -> NDArray[np.intp]:
        """Evaluations from the best to the worst, ``[n]``; the earlier first among equals."""
        return np.argsort(self.losses, kind="stable")


def matches(rows: Floats, point: Floats) -> NDArray[np.bool_]:
    """Which rows ``[n, width]`` are this point ``[width]``; inactive columns are alike."""
    if rows.size == 0:
        return np.zeros(len(rows), dtype=bool)
    return np.asarray(((rows == point) | (np.isnan(rows) & np.isnan(point))).all(axis=1))
