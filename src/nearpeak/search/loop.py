"""The loop of a search: ask a method what to try, tell it what came of it, keep the log, stop in time."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.search.evaluate import Function, Here, OnRay, Processes, Workers
from nearpeak.search.history import History, matches
from nearpeak.search.log import Log, Outcome, fingerprint
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space


class Method(Protocol):
    """A way to choose what to try next."""

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """At most ``count`` points to evaluate next, ``[count, width]``; fewer where the space has no more."""


class Search:
    """A search of a space, by asking and telling.

    >>> search = Search(space, seed=1)
    >>> configuration = search.ask()
    >>> search.tell(configuration, run(**configuration))

    Args:
        space: of the configurations. method: how to choose, or a name of ``methods.METHODS``. seed: of all that is
            random. constraints: how many measured quantities must be at most 0. log: a file that is written as the
            search goes and resumed from where it is there; points that were handed out and never told are handed out
            again first.

    Raises:
        UsageError: the space is empty, or the log is of another search.
    """

    def __init__(
        self,
        space: Space,
        method: Method | str = "default",
        *,
        seed: int = 0,
        constraints: int = 0,
        log: Path | str | None = None,
    ) -> None:
        from nearpeak.search.methods import method_named

        name = method if isinstance(method, str) else type(method).__name__
        self.space = space
        self.method = method_named(method) if isinstance(method, str) else method
        self.seed = seed
        self.history = History.empty(space.width, constraints, seed)
        self.reasons: dict[int, str] = {}
        self._asked = 0
        self._again: list[Floats] = []
        self._log: Log | None = None
        _ = space.grid  # an empty space is refused here
        if log is not None:
            self._log = Log(Path(log), {"space": fingerprint(space), "method": name, "seed": seed})
            for event in self._log.events:
                self._replay(event)
            self._again = list(self.history.pending)

    def ask_points(self, count: int = 1) -> Floats:
        """The next points to evaluate as rows, ``[count, width]``; fewer where the space has no more."""
        if count < 1:
            raise UsageError(f"ask for at least one configuration, not {count}")
        again, self._again = self._again[:count], self._again[count:]
        rows = np.asarray(again).reshape(-1, self.space.width)
        missing = min(count - len(rows), self._left())
        if missing == 0:
            return rows
        rng = np.random.default_rng([self.seed, self._asked])
        fresh = self.method.propose(self.space, self.history, missing, rng)
        self._asked += 1
        self.history = self.history.waiting_for(fresh)
        if self._log is not None and len(fresh):
            self._log.write({"asked": fresh.tolist()})
        return np.vstack([rows, fresh])

    def queue(self, points: Floats) -> None:
        """Hand these out before the method is asked, unless they were handed out before, ``[n, width]``."""
        for point in points:
            if matches(np.vstack([self.history.points, self.history.pending]), point).any():
                continue
            self.history = self.history.waiting_for(point[None])
            self._again.append(point)
            if self._log is not None:
                self._log.write({"queued": [point.tolist()]})

    def ask(self) -> dict[str, Any]:
        """The next configuration to evaluate.

        Raises:
            UsageError: every configuration of the space has been handed out.
        """
        points = self.ask_points(1)
        if len(points) == 0:
            raise UsageError(f"all {len(self.history)} configurations of the space were evaluated")
        return self.space.describe(points[0])

    def tell(self, configuration: Mapping[str, Any], value: float | Outcome | None) -> None:
        """What an evaluation gave: a value, an ``Outcome``, or None or NaN where it failed."""
        outcome = value if isinstance(value, Outcome) else Outcome(math.nan if value is None else float(value))
        self.tell_point(self.space.rows([configuration])[0], outcome)

    def tell_point(self, point: Floats, outcome: Outcome) -> None:
        """The same for a row ``[width]``.

        Raises:
            UsageError: there are other constraints than the search was told of.
        """
        self._check(outcome)
        if self._log is not None:
            event = {"told": point.tolist(), "value": outcome.value, "cost": outcome.cost, "variance": outcome.variance}
            self._log.write({**event, "constraints": list(outcome.constraints), "why": outcome.why})
        self._told(point, outcome)

    def _left(self) -> int:
        """How many configurations of a grid were not handed out; for methods that repeat some, no matter."""
        if self.space.grid is None or getattr(self.method, "repeats", False):
            return sys.maxsize
        known = np.vstack([self.history.points, self.history.pending])
        return len(self.space.grid.points) - len(np.unique(self.space.grid.find(known)))

    @property
    def best(self) -> dict[str, Any] | None:
        """The configuration with the least value so far; None while all have failed."""
        return None if self.history.best is None else self.space.describe(self.history.points[self.history.best])

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()

    def _check(self, outcome: Outcome) -> None:
        wanted, given = self.history.constraints.shape[1], len(outcome.constraints)
        if given != wanted and (given or math.isfinite(outcome.value)):
            raise UsageError(f"{given} measured constraints, not {wanted}: Search(..., constraints={given})")

    def _told(self, point: Floats, outcome: Outcome) -> None:
        if outcome.why:
            self.reasons[len(self.history)] = outcome.why
        value = outcome.value if math.isfinite(outcome.value) else math.nan
        limits = outcome.constraints or (math.nan,) * self.history.constraints.shape[1]
        self.history = self.history.told(point, value, outcome.cost, outcome.variance, np.asarray(limits, dtype=float))
        self._again = [p for p in self._again if not matches(p[None], point)[0]]

    def _replay(self, event: Mapping[str, Any]) -> None:
        if "queued" in event:
            self.history = self.history.waiting_for(np.asarray(event["queued"], dtype=float))
        elif "asked" in event:
            self._asked += 1
            self.history = self.history.waiting_for(np.asarray(event["asked"], dtype=float))
        elif "told" in event:
            outcome = Outcome(
                event["value"], event["cost"], event["variance"], tuple(event["constraints"]), event["why"]
            )
            self._told(np.asarray(event["told"], dtype=float), outcome)


@dataclass(frozen=True)
class Stop:
    """When a search ends, whichever comes first.

    Attributes:
        evaluations: after so many, though never more than the budget. seconds: of wall time. target: at a value this
            small. patience: after so many evaluations without a better one.
    """

    evaluations: int = sys.maxsize
    seconds: float = math.inf
    target: float = -math.inf
    patience: int | None = None

    def reached(self, history: History, begun: float) -> str:
        """Why to stop now; empty while there is no reason."""
        if len(history) >= self.evaluations:
            return f"{self.evaluations} evaluations"
        if time.perf_counter() - begun >= self.seconds:
            return f"{self.seconds:g} s"
        best = -1 if history.best is None else history.best
        if best >= 0 and history.values[best] <= self.target:
            return f"a value of {self.target:g} or less"
        if self.patience is not None and len(history) - 1 - best >= self.patience:
            return f"no better one in {self.patience} evaluations"
        return ""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        best: the best configuration. value: of it. history: all that was seen. reasons: why evaluations failed, by
            their number. stopped: why the search ended. choosing: seconds spent choosing.
    """

    best: dict[str, Any]
    value: float
    history: History
    reasons: Mapping[int, str]
    stopped: str
    choosing: float


class AllFailed(NearpeakError):
    """No evaluation of a search gave a value."""


def minimize(
    f: Function,
    space: Space,
    budget: int,
    *,
    method: Method | str = "default",
    seed: int = 0,
    constraints: int = 0,
    log: Path | str | None = None,
    workers: int = 1,
    time_limit: float | None = None,
    ray: bool = False,
    stop: Stop | None = None,
    first: Sequence[Mapping[str, Any]] = (),
    watch: Callable[[Search], None] | None = None,
) -> Found:
    """The configuration of a space for which a function is smallest, in at most ``budget`` evaluations.

    Args:
        f: of a configuration (a mapping of names to values): a number, or an ``Outcome`` with its variance and measured
            constraints. It may raise or return NaN: that evaluation has failed, and the search learns from it.
        method: a name of ``methods.METHODS``; "default" picks one. log: resumed from if it is there.
        workers: evaluations at once, in processes; with ``ray``, on a Ray cluster (0: as many as it has CPUs).
        time_limit: seconds after which an evaluation has failed. stop: other ends than the budget.
        first: configurations to try before the method is asked, such as today's default. watch: called after each.

    Raises:
        UsageError: the space is empty, the log is another search's, or the numbers make no sense.
        AllFailed: no evaluation gave a value; it says why the last ones failed.
    """
    if budget < 1 or workers < (0 if ray else 1):
        raise UsageError(f"a search needs a budget and workers of at least 1, not {budget} and {workers}")
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"a time limit is above 0 s, not {time_limit}")
    search = Search(space, method, seed=seed, constraints=constraints, log=log)
    team: Workers
    if ray:
        team = OnRay(f, workers, time_limit)
    elif workers > 1 or time_limit is not None:
        team = Processes(f, workers, time_limit)
    else:
        team = Here(f)
    try:
        stop = stop or Stop()
        stop = replace(stop, evaluations=min(stop.evaluations, budget))
        stopped, choosing = _run(search, team, stop, space.rows(first), watch)
    finally:
        team.stop()
        search.close()
    history = search.history
    if history.best is None:
        raise AllFailed(_all_failed(search))
    value = float(history.values[history.best])
    return Found(space.describe(history.points[history.best]), value, history, search.reasons, stopped, choosing)


def _run(
    search: Search, team: Workers, stop: Stop, first: Floats, watch: Callable[[Search], None] | None
) -> tuple[str, float]:
    begun, choosing = time.perf_counter(), 0.0
    running: dict[int, Floats] = {}
    search.queue(first)
    ticket, stopped = 0, ""
    while True:
        stopped = stopped or stop.reached(search.history, begun)
        free = min(team.count - len(running), stop.evaluations - len(search.history) - len(running))
        if not stopped and free > 0:
            asked = time.perf_counter()
            points = search.ask_points(free)
            choosing += time.perf_counter() - asked
            if len(points) == 0 and not running:
                stopped = "every configuration of the space"
            for point in points:
                team.start(ticket, search.space.describe(point))
                running[ticket] = point
                ticket += 1
        if not running:
            return stopped, choosing
        done, outcome = team.wait()
        search.tell_point(running.pop(done), outcome)
        if watch is not None:
            watch(search)


def _all_failed(search: Search) -> str:
    if search.history.succeeded.any():
        over = np.where(search.history.succeeded, np.maximum(search.history.constraints, 0).sum(axis=1), np.inf)
        nearest = search.space.describe(search.history.points[np.argmin(over)])
        return f"none of {len(over)} evaluations met the measured constraints; the nearest is {nearest}"
    last = search.reasons.get(len(search.history) - 1, "no reason was given")
    tried = search.space.describe(search.history.points[-1]) if len(search.history) else {}
    return f"all {len(search.history)} evaluations failed; the last, of {tried}: {last}"
