"""Tune anything that can be run: search, then race the best few, then compare the winner with the default.

What is tuned is a ``Target``: a Python function (``FunctionTarget``) or a command line (``commands.CommandTarget``).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from nearpeak.errors import UsageError
from nearpeak.search.history import History, matches
from nearpeak.search.loop import Found, Method, Search, Stop, minimize
from nearpeak.search.measurement import Evidence, Measured, Repeats, Run, RunFailed, Target, compared, versus
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space

FINALISTS: Final = 4
"""How many of the best of a search are run again."""
ROUNDS: Final = 11
"""In which they are; eleven give the median of the gains a 98.8 % interval between the 2nd and the 10th."""


@dataclass(frozen=True)
class FunctionTarget:
    """A function that takes the parameters by name; an inactive one is not given. ``sign`` is -1 to maximise."""

    f: Callable[..., Any]
    sign: float = 1.0

    @contextmanager
    def prepared(self, configuration: Mapping[str, Any]) -> Iterator[Run]:
        """Nothing to build."""
        yield lambda: self._once(configuration)

    def _once(self, configuration: Mapping[str, Any]) -> float:
        given = self.f(**configuration)
        try:
            value = float(given)
        except (TypeError, ValueError):
            raise RunFailed(f"it gave {given!r}, which is no number") from None
        if not math.isfinite(value):
            raise RunFailed(f"it gave {value}")
        return self.sign * value


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        best: the best configuration. value: what it gave, the median of its last rounds. default: what it is compared
            with. evidence: how; None where there is no default, it is the best itself, or it failed. raced: whether the
            best were run again, so that ``best`` may be another than that of ``found``. found: the search.
    """

    best: Mapping[str, Any]
    value: float
    default: Mapping[str, Any] | None
    evidence: Evidence | None
    raced: bool
    found: Found


def tune(
    target: Target,
    space: Space,
    budget: int,
    *,
    default: Mapping[str, Any] | None = None,
    repeats: Repeats | None = None,
    rounds: int = ROUNDS,
    method: Method | str = "default",
    seed: int = 0,
    log: Path | str | None = None,
    workers: int = 1,
    time_limit: float | None = None,
    ray: bool = False,
    seconds: float = math.inf,
    watch: Callable[[Search], None] | None = None,
) -> Tuned:
    """The best configuration of a target in at most ``budget`` evaluations, with its evidence against the default.

    Args:
        default: evaluated first, and what the best is compared with. repeats: of each evaluation. rounds: of the race
            and of the comparison; 0, or repeats of at most one, for none: then values are those of the search.
        seconds: of wall time, after which the search ends. The others are those of ``minimize``.

    Raises:
        UsageError, AllFailed: as ``minimize``. RunFailed: the best of the search all fail when run again.
    """
    if rounds < 0:
        raise UsageError(f"rounds are 0 or more, not {rounds}")
    repeats = repeats or Repeats()
    measured = Measured(target, repeats)

    def watched(search: Search) -> None:
        if search.history.best is not None:
            measured.incumbent = float(search.history.values[search.history.best])
        if watch is not None:
            watch(search)

    found = minimize(
        measured, space, budget, method=method, seed=seed, log=log, workers=workers, time_limit=time_limit, ray=ray,
        stop=Stop(budget, seconds), first=() if default is None else (default,), watch=watched,
    )  # fmt: skip
    if rounds == 0 or repeats.most == 1:
        return Tuned(found.best, found.value, default, _seen(found, space, default), False, found)
    rng = np.random.default_rng([seed, len(found.history)])
    finalists = [space.describe(point) for point in _best(found.history, FINALISTS)]
    best, value, evidence = versus(target, finalists, default, rounds, rng)
    return Tuned(best, value, default, evidence, True, found)


def _best(history: History, count: int) -> Floats:
    """The best points of a history, each once, ``[count, width]`` or fewer."""
    order = history.ranking
    order = order[: int(history.feasible.sum())]
    chosen: list[int] = []
    for i in order.tolist():
        if not matches(history.points[chosen], history.points[i]).any():
            chosen.append(i)
        if len(chosen) == count:
            break
    return history.points[chosen]


def _seen(found: Found, space: Space, default: Mapping[str, Any] | None) -> Evidence | None:
    """The best against the default by what the search measured."""
    if default is None or found.best == default:
        return None
    rows = np.flatnonzero(matches(found.history.points, space.rows([default])[0]) & found.history.succeeded)
    if len(rows) == 0:
        return None
    return compared(np.asarray([found.value]), found.history.values[rows[:1]])
