"""Measured interference: how fast a product and a stream are on one core each, beside each other, on this machine.

Two processes, each pinned to a core, run pieces of work: a product of square matrices (bound by arithmetic) or a pass
over arrays beyond any cache (bound by memory). The whole device is both cores at the same piece of work; a share of one
half is one core. Rates are taken in short windows, one kind of window after another and then all anew, so that what
else the machine does falls on all alike; a rate is the median over the rounds. Seconds are those that a process has its
core: what others take of a busy machine is not counted; on an idle one they are those of a clock on the wall.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter, process_time
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.simulate.nano_schedule import Interference, run

Array = NDArray[np.float64]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LEAD = 0.01
"""Seconds between an order and its begin, so that both processes have it."""
PATIENCE = 120.0
"""Seconds after which a process that does not answer is given up."""
ALONE, BESIDE_MEMORY, BESIDE_COMPUTE = 0, 2, 1
"""Who else runs, as ``Interference`` counts it."""


@dataclass(frozen=True)
class Sizes:
    """Of a piece of work: rows of the square matrices that are multiplied, bytes that a pass reads."""

    rows: int = 384
    size: int = 2**26


def _piece(kind: str, sizes: Sizes) -> Callable[[], Any]:
    if kind == "compute":
        a = np.full((sizes.rows, sizes.rows), 0.5, np.float32)
        out = np.empty_like(a)
        return lambda: np.matmul(a, a, out=out)
    source = np.full(sizes.size // 4, 0.5, np.float32)
    target = np.zeros_like(source)
    # In blocks, so that a window's end is met closely.
    blocks = [slice(i, i + 2**18) for i in range(0, source.size, 2**18)]
    at = [0]

    def stream() -> None:
        block = blocks[at[0] % len(blocks)]
        at[0] += 1
        np.add(source[block], 1.0, out=target[block])

    return stream


def _work(core: int, orders: Connection) -> None:
    """A pinned process: runs pieces for a time, or so many of them, as it is told; until told None."""
    os.sched_setaffinity(0, {core})
    pieces: dict[tuple[str, Sizes], Callable[[], Any]] = {}
    while (order := orders.recv()) is not None:
        kind, sizes, begin, seconds, count = order
        if (kind, sizes) not in pieces:
            pieces[kind, sizes] = _piece(kind, sizes)
            pieces[kind, sizes]()
        piece = pieces[kind, sizes]
        while perf_counter() < begin:
            pass
        started, done = process_time(), 0
        while done < count if count else perf_counter() < begin + seconds:
            piece()
            done += 1
        orders.send((max(process_time() - started, 1e-9), done))


class Cores:
    """Two pinned processes, to be used in a ``with``.

    Raises:
        UsageError: fewer than two cores may be used, or the system pins no process.
    """

    def __init__(self, cores: tuple[int, int] | None = None) -> None:
        if not hasattr(os, "sched_setaffinity"):
            raise UsageError("this system pins no process to a core; measure interference on Linux")
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise UsageError(f"only core {allowed[0]} may be used; interference takes two")
        self.cores = cores or (allowed[0], allowed[1])

    def __enter__(self) -> "Cores":
        context = multiprocessing.get_context("spawn")
        before = {name: os.environ.get(name) for name in THREADS}
        os.environ.update(dict.fromkeys(THREADS, "1"))
        try:
            pairs = [context.Pipe() for _ in self.cores]
            self.processes = [
                context.Process(target=_work, args=(core, far), daemon=True)
                for core, (_, far) in zip(self.cores, pairs, strict=True)
            ]
            self.ends = [near for near, _ in pairs]
            for process in self.processes:
                process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in self.ends:
            end.send(None)
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.terminate()

    def together(
        self, orders: Sequence[tuple[str, Sizes] | None], seconds: float = 0.0, counts: Sequence[int] = (0, 0)
    ) -> list[tuple[float, int]]:
        """What each core did: its seconds, and pieces; for ``seconds``, or ``counts`` of them each."""
        begin = perf_counter() + LEAD
        used = [(end, order, n) for end, order, n in zip(self.ends, orders, counts, strict=True) if order is not None]
        for end, (kind, sizes), n in used:
            end.send((kind, sizes, begin, seconds, n))
        found = []
        for end, _, _ in used:
            if not end.poll(PATIENCE):
                raise NearpeakError(f"a measuring process did not answer in {PATIENCE:g} s")
            found.append(end.recv())
        return found

    def rate(self, mine: tuple[str, Sizes], other: tuple[str, Sizes] | None, seconds: float) -> float:
        """Pieces/s of ``mine`` on the first core, with ``other`` on the second; of both where they are the same."""
        found = self.together((mine, other), seconds)
        each = [done / took for took, done in found]
        return sum(each) if mine == other else each[0]

    def seconds(self, kind: str, sizes: Sizes, count: int) -> float:
        """Seconds of ``count`` pieces on both cores at once, dealt out so that both end together."""
        half = -(-count // 2)
        return count / sum(done / took for took, done in self.together([(kind, sizes)] * 2, counts=(half, half)))

    def overlapped(self, sizes: Sizes, counts: tuple[int, int]) -> float:
        """Seconds of ``counts`` pieces of a product on one core and of a stream on the other, begun together."""
        found = self.together((("compute", sizes), ("memory", sizes)), counts=counts)
        return max(took for took, _ in found)


def windows(cores: Cores, sizes: Sizes, seconds: float) -> Array:
    """One round of rates, ``[2 kinds, 3]``: on both cores, on one alone, on one beside the other kind."""
    found = np.empty((2, 3))
    names = (("compute", sizes), ("memory", sizes))
    for k, (mine, other) in enumerate((names, names[::-1])):
        found[k] = [cores.rate(mine, beside, seconds) for beside in (mine, None, other)]
    return found


def table(rounds: Array) -> Interference:
    """The table of rounds of ``windows``, ``[rounds, 2, 3]``. Nothing is measured of a network: it keeps its share."""
    whole, alone, beside = np.moveaxis(np.median(rounds, axis=0), 1, 0)
    shares = np.array([0.5, 1.0])
    speed = np.repeat(np.repeat(shares[None, :, None], 3, axis=0), 8, axis=2)
    speed[:2, 1] = 1.0
    speed[:2, 0] = np.minimum(alone / whole, 1.0)[:, None]
    for kind, other in ((0, 2), (1, 1)):
        for mask in range(8):
            if mask & other:
                speed[kind, 0, mask] = min(beside[kind] / whole[kind], 1.0)
    return Interference(shares, speed)


def measure(rounds: int = 9, seconds: float = 0.05, sizes: Sizes | None = None) -> Interference:
    """The table of this machine's two first cores.

    Args:
        rounds: of six windows of ``seconds`` each. sizes: of pieces; ``Sizes()`` if None.

    Raises:
        UsageError: as ``Cores``.
    """
    with Cores() as cores:
        return table(np.array([windows(cores, sizes or Sizes(), seconds) for _ in range(rounds + 1)])[1:])


def predicted_gain(found: Interference, compute: float, memory: float) -> float:
    """Serial over overlapped seconds of a product and a stream that take these seconds on the whole device."""
    none, start = np.zeros((2, 2), np.bool_), np.empty((1, 2))
    pair, half = np.arange(2), np.zeros(2, np.int64)
    args = pair, np.array([compute, memory]), none, none, pair, half, found.shares, found.speed
    return (compute + memory) / float(run(*args, 1, start, start.copy()))
