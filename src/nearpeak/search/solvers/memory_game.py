"""Mapping of tensors to a small fast memory, as a game of one player; and the simulator of its time.

A program is a list of steps (instructions) that read and write tensors in slow memory. Each access is a *buffer*. In
program order, the player makes one move per buffer:

- *leave*: the step reads or writes slow memory.
- *copy*: a copy engine brings the tensor in, from an earlier step on; it lies at an offset that is free from that step
  to the access. A tensor that the step writes goes to both memories.
- *keep*: it stays where the last access left it. A tensor that the step writes goes to fast memory only, and stays
  there until its last access, whose moves are then forced.

Step ``t`` takes ``max(compute, slow bytes / slow bandwidth, fast bytes / fast bandwidth)`` seconds. Copies run behind
the steps in the slow bandwidth that those leave unused, the one that is due first before the others; a step whose copy
is not complete waits for the rest. Buffers are decided in the order in which copies are due, so that a new copy takes
what the others left and changes none of them: a move's time is known at once. (First-due-first is also the best order
for the sum of waiting, which ``memory_exact`` uses.) What copies take of the fast bandwidth is not counted.

After Wang et al., "Optimizing Memory Mapping Using Deep Reinforcement Learning", 2023 (arXiv 2305.07440).
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from nearpeak.search.solvers.memory_trace import COPY, KEEP, LEAVE, Bools, Floats, Ints, Mapping, Trace

ACTIONS = 9
"""Leave; keep; keep high (writes only); then copies that are hidden wholly, half, or not at all, each low and high in
memory. Low: the first free offset from below; high: from above."""


class Program(NamedTuple):
    """A trace as compiled functions read it. ``following``: next buffer of the tensor or -1; ``last``: step of its last
    access; ``floor``: seconds of a step that reads fast memory only.
    """

    step: Ints
    size: Ints
    write: Bools
    output: Bools
    previous: Ints
    following: Ints
    last: Ints
    compute: Floats
    floor: Floats
    capacity: int
    slow: float
    fast: float


class State(NamedTuple):
    """A game in progress.

    Attributes:
        choice: ``[buffers, 3]`` move, step from which fast memory is held for it, offset.
        block: ``[buffers, 4]`` blocks of fast memory: offset, size, first and last step. block_of: ``[buffers]`` or -1.
        load: ``[steps, 4]`` slow bytes, fast bytes, bytes that copies may still move behind the step, its seconds.
        count: buffers decided, blocks. time: ``[1]`` seconds of the program with what is undecided left in slow memory.
    """

    choice: Ints
    block: Ints
    block_of: Ints
    load: Floats
    count: Ints  # type: ignore[assignment]  # a tuple has a method of this name, which nobody calls
    time: Floats


def program_of(trace: Trace) -> Program:
    """What moves need to know of a trace, computed once."""
    previous = trace.previous
    again = np.flatnonzero(previous >= 0)
    following = np.full(len(previous), -1)
    following[previous[again]] = again
    total = np.bincount(trace.step, trace.size, len(trace.compute))
    floor = np.maximum(trace.compute, total / trace.fast)
    return Program(
        trace.step, trace.size, trace.write, trace.output, previous, following, trace.last,
        np.asarray(trace.compute, float), floor, int(trace.capacity), float(trace.slow), float(trace.fast),
    )  # fmt: skip


def begin(program: Program) -> State:
    """The game before its first move: everything is in slow memory."""
    n, steps = len(program.step), len(program.compute)
    load = np.zeros((steps, 4))
    load[:, 0] = np.bincount(program.step, program.size, steps)
    load[:, 3] = np.maximum(program.compute, load[:, 0] / program.slow)
    load[:, 2] = load[:, 3] * program.slow - load[:, 0]
    return State(
        np.tile(np.array([LEAVE, -1, -1]), (n, 1)), np.zeros((n, 4), np.int64), np.full(n, -1), load,
        np.zeros(2, np.int64), np.array([load[:, 3].sum()]),
    )  # fmt: skip


@njit(cache=True)
def copy_into(to: State, state: State) -> None:
    """Make ``to`` equal to ``state``."""
    to.choice[:] = state.choice
    to.block[:] = state.block
    to.block_of[:] = state.block_of
    to.load[:] = state.load
    to.count[:] = state.count
    to.time[:] = state.time


@njit(cache=True)
def free_at(block: Ints, count: int, offset: int, size: int, first: int, last: int) -> bool:
    """Whether no block lies on ``[offset, offset + size)`` in any of the steps."""
    for i in range(count):
        o, s, f, t = block[i]
        if f <= last and t >= first and o < offset + size and offset < o + s:
            return False
    return True


@njit(cache=True)
def ends(block: Ints, count: int, size: int, first: int, last: int, capacity: int) -> tuple[int, int]:
    """Lowest and highest offset that is free in all of the steps, or -1 twice."""
    low, again = 0, True
    while again and low + size <= capacity:
        again = False
        for i in range(count):
            o, s, f, t = block[i]
            if f <= last and t >= first and o < low + size and low < o + s:
                low, again = o + s, True
    if low + size > capacity:
        return -1, -1
    high, again = capacity - size, True
    while again:
        again = False
        for i in range(count):
            o, s, f, t = block[i]
            if f <= last and t >= first and o < high + size and high < o + s:
                high, again = o - size, True
    return low, high


@njit(cache=True)
def latest_start(load: Floats, earliest: int, step: int, wanted: float) -> int:
    """The last step from which on ``wanted`` bytes can be copied behind steps before ``step``; else as many as can."""
    start, moved = step, 0.0
    for t in range(step - 1, earliest - 1, -1):
        if moved >= wanted:
            break
        if load[t, 2] > 0:
            start, moved = t, moved + load[t, 2]
    return start


@njit(cache=True)
def _offer(program: Program, state: State, table: Ints, action: int, first: int, last: int, size: int) -> None:
    low, high = ends(state.block, state.count[1], size, first, last, program.capacity)
    if low >= 0:
        table[action, 0], table[action, 1], table[action, 2] = 1, first, low
        if high != low:
            table[action + 1, 0], table[action + 1, 1], table[action + 1, 2] = 1, first, high


@njit(cache=True)
def options(program: Program, state: State, table: Ints) -> None:
    """Write the legal moves of the next buffer into ``table`` ``[ACTIONS, 3]``: legal, first step, offset."""
    b = state.count[0]
    t, size, before = program.step[b], program.size[b], program.previous[b]
    table[:] = 0
    table[0, 0], table[0, 1], table[0, 2] = 1, -1, -1
    if size > program.capacity:
        return
    if program.write[b]:
        if not program.output[b]:
            _offer(program, state, table, 1, t, program.last[b], size)
        if program.following[b] >= 0:
            _offer(program, state, table, 3, t, t, size)
        return
    earliest = 0
    if before >= 0:
        earliest = program.step[before] + 1
        held = state.block_of[before]
        if held >= 0:
            offset, upto = state.block[held, 0], state.block[held, 3]
            if upto >= t or free_at(state.block, state.count[1], offset, size, upto + 1, t):
                table[1, 0], table[1, 1], table[1, 2] = 1, state.block[held, 2], offset
            if upto >= t:  # it is in no other memory
                table[0, 0] = 0
                return
    whole = latest_start(state.load, earliest, t, float(size))
    half = latest_start(state.load, earliest, t, size / 2)
    _offer(program, state, table, 3, whole, t, size)
    if half != whole:
        _offer(program, state, table, 5, half, t, size)
    if program.following[b] >= 0 and half != t:
        _offer(program, state, table, 7, t, t, size)


@njit(cache=True)
def _to_fast(program: Program, state: State, t: int, size: int, slow_too: bool) -> None:
    load = state.load
    if not slow_too:
        load[t, 0] -= size
    load[t, 1] += size
    seconds = max(program.compute[t], load[t, 0] / program.slow, load[t, 1] / program.fast)
    state.time[0] += seconds - load[t, 3]
    load[t, 3] = seconds
    load[t, 2] = max(seconds * program.slow - load[t, 0], 0.0)


@njit(cache=True)
def move_of(action: int) -> int:
    """Leave, copy or keep."""
    return LEAVE if action == 0 else KEEP if action < 3 else COPY


@njit(cache=True)
def play(program: Program, state: State, move: int, start: int, offset: int) -> float:
    """Make a legal move for the next buffer; returns the seconds that the program gains by it."""
    b = state.count[0]
    state.count[0] += 1
    state.choice[b, 0], state.choice[b, 1], state.choice[b, 2] = move, start, offset
    if move == LEAVE:
        return 0.0
    t, size, was = program.step[b], program.size[b], state.time[0]
    if move == KEEP and not program.write[b]:
        held = state.block_of[program.previous[b]]
        state.block[held, 3] = max(state.block[held, 3], t)
        state.block_of[b] = held
        _to_fast(program, state, t, size, False)
        return float(was - state.time[0])
    held = state.count[1]
    state.count[1] += 1
    state.block_of[b] = held
    until = program.last[b] if move == KEEP else t
    state.block[held, 0], state.block[held, 1], state.block[held, 2], state.block[held, 3] = offset, size, start, until
    if move == COPY and not program.write[b]:
        left = float(size)
        for k in range(start, t):
            moved = min(left, state.load[k, 2])
            state.load[k, 2] -= moved
            left -= moved
        state.time[0] += left / program.slow
    _to_fast(program, state, t, size, move == COPY and program.write[b])
    return float(was - state.time[0])


def mapping_of(state: State) -> Mapping:
    """What was played."""
    return Mapping(*state.choice.T.copy())


@njit(cache=True)
def _seconds(program: Program, move: Ints, start: Ints) -> float:
    n, steps = len(move), len(program.compute)
    left = np.zeros(n)
    slow, fast = np.zeros(steps), np.zeros(steps)
    for b in range(n):
        t, size, through = program.step[b], float(program.size[b]), program.write[b] and move[b] == COPY
        if move[b] != LEAVE:
            fast[t] += size
        if move[b] == LEAVE or through:
            slow[t] += size
        if move[b] == COPY and not program.write[b]:
            left[b] = size
    time, done = 0.0, 0
    for t in range(steps):
        while done < n and program.step[done] <= t:  # what this step needs and is not there yet
            time += left[done] / program.slow
            left[done] = 0.0
            done += 1
        seconds = max(program.compute[t], slow[t] / program.slow, fast[t] / program.fast)
        time += seconds
        spare = seconds * program.slow - slow[t]
        for b in range(done, n):  # first due, first served
            if spare <= 0:
                break
            if left[b] > 0 and start[b] <= t:
                moved = min(spare, left[b])
                left[b] -= moved
                spare -= moved
    return time


def seconds(trace: Trace, mapping: Mapping) -> float:
    """Seconds of the whole program under a mapping: steps, the copies behind them, and waiting for copies."""
    return float(_seconds(program_of(trace), mapping.move, mapping.start))
