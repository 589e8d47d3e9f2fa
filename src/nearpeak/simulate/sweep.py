"""Sweeps: one function over many tasks, on all cores of this machine or on a Ray cluster, that can be killed.

A task is a plain dict of JSON values; the function makes a dict of figures of it. What has been found is appended to a
log beside the output, a line at a time, so that a sweep that was killed goes on with what is left. When all tasks are
done, DuckDB sorts the log into a table: a row for each task, in the order of the tasks, the same whatever carried
them out.

On this machine each worker is a process of its own, so that it is known which task a dead one had. On a cluster Ray
(Moritz et al. 2018, "Ray: A Distributed Framework for Emerging AI Applications") places the tasks and redoes those of
dead workers; nearpeak must be installed on its machines, and what the function needs must travel with it.
"""

import hashlib
import json
import logging
import math
import os
import pickle
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from nearpeak import __version__
from nearpeak.cost import stored
from nearpeak.cost.files import WRITERS
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.simulate.sweep_log import opened, write_sorted

Task = dict[str, Any]
Found = Generator[tuple[int, str], None, None]
"""Places of tasks and their rows as JSON, as they get done."""
REDONE = 2
"""Times that the task of a worker that died is tried again."""
DIED = f"the process that carried it out died {REDONE + 1} times: out of memory, or killed"
AHEAD = 2
"""Tasks handed to a cluster for each of its cores: enough to keep it busy, and few results under way."""


def run(
    tasks: Sequence[Task],
    function: Callable[[Task], dict[str, Any]],
    out: Path,
    workers: int | None = None,
    ray: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Carry out every task and write a table of them.

    The row of a task has its values, what the function made of it (of one name, the function's), and ``error``: why
    there is nothing, else null. The function's exceptions are errors of their tasks, and so is a worker's death when
    two more tries end the same way. Infinities and nan are null.

    Args:
        function: importable by its module and name, with what it holds; called in other processes.
        out: the table to be, .parquet or .csv. The log is ``log_of(out)`` until the table is there.
        workers: processes on this machine; None: one for each core that this process may use.
        ray: address of a Ray cluster, ``auto`` for the one that runs here; in place of ``workers``.
        progress: told (done, in all) at once, with what was found in the log, and after each task.

    Raises:
        UsageError: there are no tasks, two are the same, a task is not JSON, or the log is of another sweep.
        NearpeakError: the function cannot be sent to another process, a machine of the cluster has another version or
            calibration, there is no cluster or no Ray.
    """
    if out.suffix.lower() not in WRITERS:
        raise UsageError(f"{str(out)!r} ends in neither of {', '.join(WRITERS)}; rename it")
    if workers is not None and (workers < 1 or ray is not None):
        raise UsageError(f"{workers} workers; give at least 1, and none for a Ray cluster, whose cores are all used")
    work = _Work(function, _identity(stored.in_use()), stored.in_use())
    keys = _keys(tasks, work)
    with opened(log_of(out), work.header(keys), keys) as (log, done):
        left = [at for at, key in enumerate(keys) if key not in done]
        count = len(keys) - len(left)
        if progress is not None:
            progress(count, len(keys))
        found = _on_cores(tasks, left, work, workers or _cores()) if ray is None else _on_ray(tasks, left, work, ray)
        with closing(found):
            for at, result in found:
                log.write(f'{{"task": {at}, "key": "{keys[at]}", "result": {result}}}\n'.encode())
                log.flush()
                count += 1
                if progress is not None:
                    progress(count, len(keys))
        write_sorted(log_of(out), out)
    log_of(out).unlink()


def log_of(out: Path) -> Path:
    """Where the results of a sweep are kept until its table is written."""
    return out.with_name(out.name + ".log")


# What is asked for, and whether two askings are the same ----------------------------------------------------------


@cache
def _identity(calibration: Path | None) -> str:
    """Of what figures depend on beside the task: the version of nearpeak and a calibration, as a hash."""
    named = hashlib.sha256(__version__.encode())
    for name in sorted(file.name for file in files("nearpeak.cost").joinpath("data").iterdir()):
        named.update(name.encode() + stored.data(name, calibration))
    return named.hexdigest()[:16]


@dataclass(frozen=True)
class _Work:
    """What a worker is given once: the function, and under what it counts."""

    function: Callable[[Task], dict[str, Any]]
    identity: str
    calibration: Path | None

    def header(self, keys: Sequence[str]) -> dict[str, str]:
        """First line of a log: the sweep that it belongs to."""
        called = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        tasks = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
        return {
            "nearpeak": __version__, "calibration": self.identity, "tasks": f"{len(keys)}, {tasks}",
            "function": f"{called.__module__}.{called.__qualname__}",
        }  # fmt: skip

    def __call__(self, task: Task) -> str:
        """The row of a task as JSON."""
        name = stored.SHIPPED if self.calibration is None else str(self.calibration)
        with stored.using(name):
            if _identity(stored.in_use()) != self.identity:
                raise NearpeakError(
                    f"a worker has another nearpeak than {__version__} or another calibration; install the same on "
                    "every machine of the cluster"
                )
            try:
                return _row(task | self.function(task) | {"error": None})
            except NearpeakError as error:
                return _row(task | {"error": str(error)})
            except (Exception, SystemExit) as error:
                return _row(task | {"error": f"{type(error).__name__}: {error}"})


def _row(values: dict[str, Any]) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite, allow_nan=False)


def _keys(tasks: Sequence[Task], work: _Work) -> list[str]:
    """A hash of each task and of the calibration."""
    keys: dict[str, int] = {}
    for at, task in enumerate(tasks):
        try:
            text = json.dumps(task, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(f"task {at} is not JSON: {error}") from None
        key = hashlib.sha256(f"{work.identity} {text}".encode()).hexdigest()[:24]
        if keys.setdefault(key, at) != at:
            raise UsageError(f"tasks {keys[key]} and {at} are the same: {text}")
    if not keys:
        raise UsageError("there are no tasks")
    return list(keys)


# Who carries it out -----------------------------------------------------------------------------------------------


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_cores(tasks: Sequence[Task], left: Sequence[int], work: _Work, workers: int) -> Found:
    """Carried out by processes of this machine, each of which has one task at a time."""
    import multiprocessing

    try:
        sent = pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise NearpeakError(f"the function of a sweep cannot be sent to another process: {error}") from None
    spawn = multiprocessing.get_context("spawn")
    running: dict[Future[str], tuple[ProcessPoolExecutor, int, int]] = {}

    def process() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, spawn, _begin, (sent,))

    def start(on: ProcessPoolExecutor, at: int, tries: int) -> None:
        try:
            future = on.submit(_carry_out, tasks[at])
        except BrokenProcessPool:  # it died while it had nothing to do
            on = process()
            future = on.submit(_carry_out, tasks[at])
        running[future] = on, at, tries

    following = iter(left)
    try:
        for at in islice(following, workers):
            start(process(), at, 0)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                on, at, tries = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    on.shutdown()
                    on = process()
                    if tries < REDONE:
                        start(on, at, tries + 1)
                        continue
                    result = _row(tasks[at] | {"error": DIED})
                yield at, result
                if (another := next(following, None)) is None:
                    on.shutdown(wait=False)
                else:
                    start(on, another, 0)
    finally:
        for on, *_ in running.values():
            on.shutdown(wait=False, cancel_futures=True)


_sent: bytes = b""


def _begin(sent: bytes) -> None:
    """The start of a worker: it ends with the process that asked for it, however that ends."""
    import signal
    import threading

    global _sent
    _sent = sent
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@cache
def _received() -> _Work:
    try:
        work: _Work = pickle.loads(_sent)
    except Exception as error:
        raise _not_loaded(error) from None
    return work


def _not_loaded(error: Exception) -> NearpeakError:
    why = str(error).partition("\n")[0]
    return NearpeakError(f"a worker cannot load the function of the sweep, which it must be able to import: {why}")


def _carry_out(task: Task) -> str:
    return _received()(task)


def _on_ray(tasks: Sequence[Task], left: Sequence[int], work: _Work, address: str) -> Found:
    """Carried out by a cluster. Ray places the tasks and redoes those of dead workers."""
    try:
        import ray
        from ray import exceptions
    except ImportError:
        raise NearpeakError("Ray is not installed; `pip install nearpeak[ray]`, or leave the cluster out") from None
    cluster: Any = ray  # which is typed in part
    joined = not cluster.is_initialized()
    if joined:
        try:
            _reach(address)
            cluster.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise NearpeakError(
                f"no Ray cluster at {address!r}: {error}; start one with `ray start --head`, or give its address"
            ) from None
    died = (exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.OutOfMemoryError)
    remote = cluster.remote(max_retries=REDONE)(_carry_out_remotely)
    running: dict[Any, int] = {}
    held, following = cluster.put(work), iter(left)
    try:
        while True:
            most = AHEAD * max(1, int(cluster.cluster_resources().get("CPU", 1)))
            for at in islice(following, most - len(running)):
                running[remote.remote(held, tasks[at])] = at
            if not running:
                return
            for reference in cluster.wait(list(running), num_returns=1)[0]:
                at = running.pop(reference)
                try:
                    result = cluster.get(reference)
                except exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, NearpeakError) else _not_loaded(error.cause) from None
                except died:
                    result = _row(tasks[at] | {"error": DIED})
                yield at, result
    finally:
        for reference in running:
            cluster.cancel(reference, force=True)
        if joined:
            cluster.shutdown()


def _reach(address: str) -> None:
    """Fail where nothing listens at an address: Ray itself would try for minutes."""
    import socket

    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host, int(port)), timeout=10).close()


def _carry_out_remotely(work: _Work, task: Task) -> str:
    return work(task)
