"""Programs whose tensors are to be mapped to a fast memory, mappings of them, and whether those are legal.

The rules are those of ``memory_game``.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import NearpeakError, UsageError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

LEAVE, COPY, KEEP = 0, 1, 2
MOVES = ("leave", "copy", "keep")


class IllegalMapping(NearpeakError):
    """A mapping breaks a rule of the game; says which buffer."""


@dataclass(frozen=True)
class Trace:
    """A program to map. Buffers are in program order; a tensor occurs once in a step, and is written at most once,
    first.

    Attributes:
        compute: ``[steps]`` seconds of arithmetic of a step.
        step, tensor, size: ``[buffers]`` step of the access, number of the tensor, its bytes (whole numbers).
        write: ``[buffers]`` whether the step writes the tensor.
        output: ``[buffers]`` whether the tensor is read after the program, so that it must reach slow memory.
        capacity: bytes of fast memory. slow, fast: bandwidths in bytes/s.

    Raises:
        UsageError: the buffers break the rules above, or a figure is out of range.
    """

    compute: Floats
    step: Ints
    tensor: Ints
    size: Ints
    write: Bools
    output: Bools
    capacity: int
    slow: float
    fast: float

    def __post_init__(self) -> None:
        n = len(self.step)
        if n == 0 or any(len(c) != n for c in (self.tensor, self.size, self.write, self.output)):
            raise UsageError(f"a trace needs at least one buffer and columns of one length; step has {n}")
        if (np.diff(self.step) < 0).any() or self.step[0] < 0 or self.step[-1] >= len(self.compute):
            raise UsageError(f"steps must not fall and must lie in 0 .. {len(self.compute) - 1}")
        if (self.size <= 0).any() or (self.compute < 0).any() or min(self.capacity, self.slow, self.fast) <= 0:
            raise UsageError("sizes, capacity and bandwidths must be above 0, and compute times not below")
        if len(np.unique(np.stack([self.step, self.tensor]), axis=1).T) != n:
            raise UsageError("a tensor occurs twice in one step: write such an access once")
        again = np.flatnonzero(self.write & (self.previous >= 0))
        if again.size:
            raise UsageError(f"buffer {again[0]} writes tensor {self.tensor[again[0]]} again: give it a new number")

    @property
    def previous(self) -> Ints:
        """``[buffers]`` the buffer of the tensor's access before, or -1."""
        found = np.full(len(self.step), -1)
        seen: dict[int, int] = {}
        for b, t in enumerate(self.tensor.tolist()):
            found[b] = seen.get(t, -1)
            seen[t] = b
        return found

    @property
    def last(self) -> Ints:
        """``[buffers]`` step of the tensor's last access."""
        of_tensor = np.zeros(int(self.tensor.max()) + 1, np.int64)
        np.maximum.at(of_tensor, self.tensor, self.step)
        return of_tensor[self.tensor]


@dataclass(frozen=True)
class Mapping:
    """A finished game: ``[buffers]`` each. start, offset: where a block of fast memory begins, -1 for *leave*."""

    move: Ints
    start: Ints
    offset: Ints


def blocks(trace: Trace, mapping: Mapping) -> Ints:
    """Blocks ``[blocks, 4]`` of fast memory that a mapping holds: offset, bytes, first and last step."""
    previous, last = trace.previous, trace.last
    found: list[list[int]] = []
    of: dict[int, int] = {}
    for b, (move, start, offset) in enumerate(
        zip(*(c.tolist() for c in (mapping.move, mapping.start, mapping.offset)), strict=True)
    ):
        if move == KEEP and not trace.write[b]:
            of[b] = of[int(previous[b])]
            found[of[b]][3] = max(found[of[b]][3], int(trace.step[b]))
        elif move != LEAVE:
            of[b] = len(found)
            found.append([offset, int(trace.size[b]), start, int(last[b]) if move == KEEP else int(trace.step[b])])
    return np.array(found, np.int64).reshape(-1, 4)


def check(trace: Trace, mapping: Mapping) -> None:
    """Make sure that a mapping keeps the rules; reads nothing of how it was found.

    Raises:
        IllegalMapping: a kept tensor was not there, a tensor is read where it is not, a copy starts too early, a block
            leaves the memory, or two blocks overlap.
    """
    previous = trace.previous
    only_fast: set[int] = set()
    for b, (move, start) in enumerate(zip(mapping.move.tolist(), mapping.start.tolist(), strict=True)):
        before, tensor = int(previous[b]), int(trace.tensor[b])
        if trace.write[b]:
            if move == KEEP and trace.output[b]:
                raise IllegalMapping(f"buffer {b} keeps an output of the program out of slow memory")
            if move == KEEP:
                only_fast.add(tensor)
        elif tensor in only_fast and move != KEEP:
            raise IllegalMapping(f"buffer {b} reads tensor {tensor} from slow memory, where it never was")
        elif move == KEEP and (
            before < 0 or mapping.move[before] == LEAVE or mapping.offset[before] != mapping.offset[b]
        ):
            raise IllegalMapping(f"buffer {b} keeps tensor {tensor}, which is not in fast memory at that offset")
        if move == COPY:
            earliest = trace.step[b] if trace.write[b] else trace.step[before] + 1 if before >= 0 else 0
            if not earliest <= start <= trace.step[b]:
                raise IllegalMapping(
                    f"buffer {b} is copied from step {start} on: allowed {earliest} .. {int(trace.step[b])}"
                )
    held = blocks(trace, mapping)
    low, size, first, last = held.T
    if held.size and ((low < 0) | (low + size > trace.capacity)).any():
        raise IllegalMapping(f"a block ends at byte {(low + size).max()} of {trace.capacity}, or begins below 0")
    space = (low[:, None] < (low + size)[None]) & (low[None] < (low + size)[:, None])
    both = np.triu(space & (first[:, None] <= last[None]) & (first[None] <= last[:, None]), 1)
    if both.any():
        i, j = np.argwhere(both)[0]
        raise IllegalMapping(
            f"blocks overlap: {held[i].tolist()} and {held[j].tolist()} (offset, size, first and last step)"
        )


def random_trace(buffers: int, seed: int, pressure: float = 3.0, unit: int = 2**20) -> Trace:
    """A random program in the manner of a neural network: layers that read weights and activations and write one.

    Args:
        buffers: accesses, at least 3. pressure: bytes of all tensors over bytes of fast memory, about, for every 20
            buffers. unit: bytes of which sizes are multiples.

    Raises:
        UsageError: fewer than 3 buffers.
    """
    if buffers < 3:
        raise UsageError(f"a random trace needs 3 buffers or more, not {buffers}")
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, int, bool]] = []
    size: list[int] = []
    made: list[int] = []
    weights: list[int] = []
    step = 0

    def fresh() -> int:
        size.append(unit * int(np.rint(2 ** rng.uniform(0, 4))))
        return len(size) - 1

    while len(rows) < buffers - 2:
        reads: set[int] = set()
        if not weights or rng.random() < 0.5:
            weights.append(fresh())
            reads.add(weights[-1])
        else:
            reads.add(weights[-1 - int(min(rng.geometric(0.35), len(weights))) + 1])
        if made:
            reads.add(made[-1])
            if len(made) > 1 and rng.random() < 0.5:
                reads.add(made[-1 - int(min(rng.geometric(0.3), len(made) - 1))])
        rows += [(step, r, False) for r in sorted(reads)]
        made.append(fresh())
        rows.append((step, made[-1], True))
        step += 1
    at, tensor, write = (np.array(column) for column in zip(*rows[:buffers], strict=True))
    steps, bytes_of = int(at[-1]) + 1, np.array(size)
    read = {t for _, t, w in rows[:buffers] if not w}
    slow, fast = 1e12, 1e13
    # Some steps are bound by arithmetic and hide copies; most are bound by slow memory.
    share = rng.choice([0.3, 1.0, 2.0], steps) * rng.uniform(0.5, 1, steps)
    compute = share * np.bincount(at, bytes_of[tensor], steps) / slow
    capacity = max(int(bytes_of[: int(tensor.max()) + 1].mean() * 10 / pressure), int(bytes_of.max()))
    return Trace(
        compute, at.astype(np.int64), tensor.astype(np.int64), bytes_of[tensor].astype(np.int64), write.astype(bool),
        np.array([t not in read for t in tensor.tolist()]), capacity // unit * unit, slow, fast,
    )  # fmt: skip
