"""How a search converged: the best value so far against evaluations and against the seconds they took."""

from dataclasses import dataclass

import numpy as np

from nearpeak.search.history import History
from nearpeak.search.parameters import Floats


@dataclass(frozen=True)
class Convergence:
    """The course of one search, ``[n]`` each.

    Attributes:
        best: least value after each evaluation; NaN before the first that succeeded. values: of each evaluation, NaN
            where it failed. seconds: that all evaluations until then took, added up over workers.
    """

    best: Floats
    values: Floats
    seconds: Floats

    def improvements(self) -> list[tuple[int, float, float]]:
        """Evaluation (from 1), seconds and value of each new best."""
        before = np.concatenate([[np.nan], self.best[:-1]])
        at = np.flatnonzero(~np.isnan(self.best) & (self.best != before)).tolist()
        return [(i + 1, float(self.seconds[i]), float(self.best[i])) for i in at]


def convergence(history: History, sign: float = 1.0) -> Convergence:
    """The course of a history; with ``sign`` -1 that of what was maximised."""
    values = np.where(history.feasible, history.values, np.nan)
    return Convergence(sign * np.fmin.accumulate(values), sign * values, np.cumsum(history.costs))
