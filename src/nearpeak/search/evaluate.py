"""Who evaluates a configuration: this process, processes beside it, or a Ray cluster.

A function that raises, returns NaN, crashes its process or takes too long has failed: that is an outcome, with its
reason, and the search goes on. Only processes and Ray can be stopped from outside, so a time limit needs one of them.
"""

import math
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Final, Protocol

from nearpeak.errors import UsageError
from nearpeak.search.log import Outcome

_LONGEST_WAIT: Final = 3600.0

Function = Callable[[Mapping[str, Any]], "float | Outcome"]
"""Of a configuration: a value to make small, or an ``Outcome``."""


class Workers(Protocol):
    """Those who evaluate."""

    @property
    def count(self) -> int:
        """How many at once."""

    def start(self, ticket: int, configuration: Mapping[str, Any]) -> None:
        """Begin an evaluation."""

    def wait(self) -> tuple[int, Outcome]:
        """The ticket and outcome of an evaluation that has ended, when one has."""

    def stop(self) -> None:
        """End what still runs."""


def outcome_of(f: Function, configuration: Mapping[str, Any]) -> Outcome:
    """Evaluate here and now: the value and the seconds it took; an exception is a failure that says where."""
    begun = time.perf_counter()
    try:
        given = f(configuration)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
        return Outcome(math.nan, time.perf_counter() - begun, why=why)
    taken = time.perf_counter() - begun
    if isinstance(given, Outcome):
        return given if given.cost else replace(given, cost=taken)
    try:
        value = float(given)
    except (TypeError, ValueError, OverflowError):
        return Outcome(math.nan, taken, why=f"it gave {given!r}, which is no number")
    return Outcome(value, taken, why="" if math.isfinite(value) else f"it gave {value}")


@dataclass
class Here:
    """Here and now, one at a time."""

    f: Function
    count: int = 1
    _begun: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)

    def start(self, ticket: int, configuration: Mapping[str, Any]) -> None:
        """Remember it; it is evaluated when waited for."""
        self._begun.append((ticket, configuration))

    def wait(self) -> tuple[int, Outcome]:
        """Evaluate the first that was begun."""
        ticket, configuration = self._begun.pop(0)
        return ticket, outcome_of(self.f, configuration)

    def stop(self) -> None:
        """Nothing runs between calls."""


@dataclass
class Processes:
    """A process an evaluation, several at once, ended when it takes longer than ``time_limit`` seconds."""

    f: Function
    count: int
    time_limit: float | None = None
    _running: dict[int, tuple[Any, Connection, float]] = field(default_factory=dict)

    def start(self, ticket: int, configuration: Mapping[str, Any]) -> None:
        """Begin it in a process of its own."""
        context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_evaluate_into, args=(theirs, self.f, dict(configuration)))
        process.start()
        theirs.close()
        self._running[ticket] = (process, ours, time.perf_counter())

    def wait(self) -> tuple[int, Outcome]:
        """The first that ends or runs out of time."""
        while True:
            now = time.perf_counter()
            left = [self.time_limit - (now - begun) for _, _, begun in self._running.values() if self.time_limit]
            ready = wait(
                [pipe for _, pipe, _ in self._running.values()],
                min(max(min(left), 0.0), _LONGEST_WAIT) if left else None,
            )
            for ticket, (process, pipe, begun) in list(self._running.items()):
                taken = time.perf_counter() - begun
                if pipe in ready:
                    outcome = _received(process, pipe, taken)
                elif self.time_limit and taken >= self.time_limit:
                    outcome = Outcome(math.nan, taken, why=f"it took longer than {self.time_limit:g} s")
                else:
                    continue
                self._end(ticket)
                return ticket, outcome

    def stop(self) -> None:
        """End all that runs."""
        for ticket in list(self._running):
            self._end(ticket)

    def _end(self, ticket: int) -> None:
        process, pipe, _ = self._running.pop(ticket)
        pipe.close()
        for end in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, end)
            process.join(1)
            if not process.is_alive():
                return


def _evaluate_into(pipe: Connection, f: Function, configuration: Mapping[str, Any]) -> None:
    os.setpgrp()  # Ctrl-C is for the search, which then ends this and whatever it started
    pipe.send(outcome_of(f, configuration))


def _received(process: Any, pipe: Connection, taken: float) -> Outcome:  # noqa: ANN401 (a process of any context)
    try:
        found: Outcome = pipe.recv()
        return found
    except EOFError:
        process.join()
        return Outcome(math.nan, taken, why=f"its process ended with exit code {process.exitcode}")


@dataclass
class OnRay:
    """Tasks of a Ray cluster: as many at once as it has CPUs, unless told otherwise."""

    f: Function
    count: int = 0
    time_limit: float | None = None
    address: str | None = None
    _running: dict[Any, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError("a Ray cluster needs the extra: pip install nearpeak[ray]") from None
        if not ray.is_initialized():
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False)
        cores: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self.count = self.count or int(cores.get("CPU", 1))
        self._task = ray.remote(max_retries=0)(outcome_of)

    def start(self, ticket: int, configuration: Mapping[str, Any]) -> None:
        """Submit a task."""
        self._running[self._task.remote(self.f, dict(configuration))] = (ticket, time.perf_counter())

    def wait(self) -> tuple[int, Outcome]:
        """The first task that ends or runs out of time."""
        import ray

        while True:
            ready, _ = ray.wait(list(self._running), timeout=0.2)
            for task, (ticket, begun) in list(self._running.items()):
                taken = time.perf_counter() - begun
                if task in ready:
                    del self._running[task]
                    try:
                        return ticket, ray.get(task)
                    except ray.exceptions.RayError as error:
                        return ticket, Outcome(math.nan, taken, why=f"its worker ended: {type(error).__name__}")
                if self.time_limit and taken >= self.time_limit:
                    del self._running[task]
                    ray.cancel(task, force=True)
                    return ticket, Outcome(math.nan, taken, why=f"it took longer than {self.time_limit:g} s")

    def stop(self) -> None:
        """Cancel all that runs."""
        import ray

        for task in self._running:
            ray.cancel(task, force=True)
        self._running.clear()
