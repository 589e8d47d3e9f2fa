"""The best mapping of tensors to fast memory of a small trace, by an integer program; and greedy mappings of any trace.

The program of ``memory_game`` with binaries ``k_b`` (keep) and ``c_bs`` (copy, held from step ``s`` on), and bytes
``y_bt >= 0`` of a copy that move behind step ``t``:

    minimise   sum_t d_t + sum_b w_b / slow
    d_t >= compute_t;   slow d_t >= slow bytes_t + sum_b y_bt;   fast d_t >= fast bytes_t
    sum_t y_bt + w_b = size_b sum_s c_bs;    y_bt <= size_b sum_{s <= t} c_bs
    bytes held in step t <= capacity

The waiting ``w`` of the simulator's queue, first due first, is the least there is (Glover, "Maximum matching in a
convex bipartite graph", Naval Research Logistics Quarterly 1967), so that the two agree. That blocks also have offsets
at which none overlap is another integer program; where it has no solution, the blocks that do not fit together are
ruled out by a cut and the first is solved again (logic-based Benders decomposition, Hooker & Ottosson 2003).

The greedy mappings place one tensor or access after the other by a fixed priority, as XLA's memory-space assignment
does: the highest bandwidth saved per byte and step held, the largest, the most used, or program order.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import NearpeakError
from nearpeak.search.solvers.memory_game import (
    ACTIONS,
    Program,
    begin,
    copy_into,
    ends,
    mapping_of,
    move_of,
    options,
    play,
    program_of,
    seconds,
)
from nearpeak.search.solvers.memory_trace import COPY, KEEP, LEAVE, Floats, Ints, Mapping, Trace

Block = tuple[int, int, int]
"""Size, first and last step."""


class NoOptimum(NearpeakError):
    """The integer program was not solved in the time it had."""


def offsets(held: Sequence[Block], capacity: int) -> NDArray[np.int64] | None:
    """An offset for each block such that none overlap, or ``None`` if there is none. Exact."""
    from scipy.optimize import LinearConstraint, milp

    n = len(held)
    size = np.array([s for s, _, _ in held])
    pairs = [(i, j) for i in range(n) for j in range(i) if held[i][1] <= held[j][2] and held[j][1] <= held[i][2]]
    if not pairs:
        return np.zeros(n, np.int64)
    unit = int(np.gcd.reduce(size))
    size, top = size // unit, capacity // unit
    if (size > top).any():
        return None
    rows, low = np.zeros((2 * len(pairs), n + len(pairs))), np.zeros(2 * len(pairs))
    for k, (i, j) in enumerate(pairs):
        # The binary is 0 where i ends below j, 1 where j ends below i.
        rows[2 * k, [i, j, n + k]], low[2 * k] = (-1, 1, top), size[i]
        rows[2 * k + 1, [i, j, n + k]], low[2 * k + 1] = (1, -1, -top), size[j] - top
    found = milp(
        np.zeros(n + len(pairs)), integrality=np.ones(n + len(pairs)),
        bounds=(0, np.concatenate([top - size, np.ones(len(pairs))])), constraints=LinearConstraint(rows, low, np.inf),
    )  # fmt: skip
    return None if found.x is None else np.rint(found.x[:n]).astype(np.int64) * unit


class _Model:
    """Rows of the integer program, written one by one."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.program = trace, program_of(trace)
        self.cost: list[float] = []
        self.upper: list[float] = []
        self.whole: list[bool] = []
        self.rows: list[tuple[dict[int, float], float, float]] = []

    def variable(self, cost: float = 0.0, upper: float = 1.0, whole: bool = True) -> int:
        self.cost.append(cost)
        self.upper.append(upper)
        self.whole.append(whole)
        return len(self.cost) - 1

    def row(self, terms: dict[int, float], low: float = -np.inf, high: float = np.inf) -> None:
        self.rows.append((terms, low, high))

    def solve(self, limit: float) -> Floats:
        from scipy.optimize import LinearConstraint, milp
        from scipy.sparse import csr_array

        at = [(r, c, v) for r, (terms, _, _) in enumerate(self.rows) for c, v in terms.items()]
        r, c, v = (np.array(x) for x in zip(*at, strict=True))
        matrix = csr_array((v, (r, c)), shape=(len(self.rows), len(self.cost)))
        found = milp(
            np.array(self.cost), integrality=np.array(self.whole), bounds=(0, np.array(self.upper)),
            constraints=LinearConstraint(matrix, [row[1] for row in self.rows], [row[2] for row in self.rows]),
            options={"time_limit": limit, "mip_rel_gap": 1e-7},
        )  # fmt: skip
        if found.status != 0:
            raise NoOptimum(f"no optimum within {limit:g} s ({found.message}): give more time or a smaller trace")
        return np.asarray(found.x)


def _formulate(model: _Model) -> tuple[list[int], list[dict[int, int]]]:
    """The variables and rows above; returns ``k_b`` (-1: not possible) and ``c_bs`` by step ``s``."""
    trace, p = model.trace, model.program
    n, steps = len(p.step), len(p.compute)
    unit, scale = float(trace.size.max()), float(trace.size.max()) / trace.slow  # bytes and seconds near 1
    ratio = trace.slow / trace.fast
    keep = [-1] * n
    copy: list[dict[int, int]] = [{} for _ in range(n)]
    slow: list[dict[int, float]] = [{} for _ in range(steps)]
    fast: list[dict[int, float]] = [{} for _ in range(steps)]
    held: list[dict[int, float]] = [{} for _ in range(steps)]
    base = np.bincount(p.step, p.size / unit, steps)
    for b in range(n):
        t, size, before = int(p.step[b]), p.size[b] / unit, int(p.previous[b])
        if p.size[b] > p.capacity:
            continue
        if not (p.output[b] if p.write[b] else before < 0):
            keep[b] = model.variable()
        first = t if p.write[b] else int(p.step[before]) + 1 if before >= 0 else 0
        if not p.write[b] or p.following[b] >= 0:
            copy[b] = {s: model.variable() for s in range(first, t + 1)}
        mine = ([keep[b]] if keep[b] >= 0 else []) + list(copy[b].values())
        model.row(dict.fromkeys(mine, 1.0), high=1.0)
        for v in mine:
            fast[t][v] = size
            if not (p.write[b] and v != keep[b]):
                slow[t][v] = -size
        if p.write[b] and keep[b] >= 0:
            for s in range(t, int(p.last[b]) + 1):
                held[s][keep[b]] = size
        elif keep[b] >= 0:
            there = ([keep[before]] if keep[before] >= 0 else []) + list(copy[before].values())
            model.row({keep[b]: 1.0} | dict.fromkeys(there, -1.0), high=0.0)
            for s in range(int(p.step[before]) + 1, t + 1):
                held[s][keep[b]] = size
        for s, v in copy[b].items():
            for k in range(s, t + 1):
                held[k][v] = size
        if not p.write[b] and copy[b]:
            moved = {s: model.variable(0.0, size, False) for s in range(first, t)}
            wait = model.variable(1.0, size, False)
            model.row(dict.fromkeys([*moved.values(), wait], 1.0) | dict.fromkeys(copy[b].values(), -size), 0.0, 0.0)
            for s, y in moved.items():
                slow[s][y] = 1.0
                model.row({y: 1.0} | {v: -size for k, v in copy[b].items() if k <= s}, high=0.0)
    _force(model, keep, held)
    for t in range(steps):
        d = model.variable(1.0, np.inf, False)
        model.row({d: 1.0}, low=float(p.compute[t]) / scale)
        model.row({d: 1.0} | {v: -x for v, x in slow[t].items()}, low=float(base[t]))
        model.row({d: 1.0} | {v: -x * ratio for v, x in fast[t].items()}, low=0.0)
        if held[t]:
            model.row(held[t], high=p.capacity / unit)
    return keep, copy


def _force(model: _Model, keep: list[int], held: list[dict[int, float]]) -> None:
    """What was written to fast memory only is kept at every later access, in the block that it has already."""
    p = model.program
    for b in np.flatnonzero(p.write):
        life, after = keep[b], int(p.following[b])
        while life >= 0 and after >= 0:
            model.row({keep[after]: 1.0, life: -1.0}, low=0.0)
            # Its bytes are counted by ``life``: take back what the kept access counts. A block that was not written
            # for life is counted by the access, so that the difference is held by a variable of its own.
            extra = model.variable(0.0, 1.0, False)
            model.row({extra: 1.0, keep[after]: -1.0, life: 1.0}, low=0.0)
            for step in held:
                if keep[after] in step:
                    step[extra] = step.pop(keep[after])
            after = int(p.following[after])


def _blocks(
    program: Program, keep: list[int], copy: list[dict[int, int]], x: Floats
) -> tuple[list[Block], list[list[int]], Ints]:
    """Blocks that a solution holds, the variables that make each, and the block of each buffer."""
    held: list[Block] = []
    why: list[list[int]] = []
    of = np.full(len(program.step), -1)
    for b in range(len(program.step)):
        t, size = int(program.step[b]), int(program.size[b])
        start = next((s for s, v in copy[b].items() if x[v] > 0.5), -1)
        if keep[b] >= 0 and x[keep[b]] > 0.5 and not program.write[b]:
            i = of[b] = of[program.previous[b]]
            held[i] = (size, held[i][1], max(held[i][2], t))
            why[i].append(keep[b])
        elif start >= 0 or (keep[b] >= 0 and x[keep[b]] > 0.5):
            of[b] = len(held)
            held.append((size, start, t) if start >= 0 else (size, t, int(program.last[b])))
            why.append([copy[b][start] if start >= 0 else keep[b]])
    return held, why, of


def _not_together(held: list[Block], capacity: int) -> list[int]:
    """A smallest set (none of it can be left out) of blocks that do not fit together."""
    chosen = list(range(len(held)))
    for i in range(len(held)):
        without = [j for j in chosen if j != i]
        if offsets([held[j] for j in without], capacity) is None:
            chosen = without
    return chosen


def solve(trace: Trace, limit: float = 60.0) -> Mapping:
    """The mapping of least time, offsets and starts of copies included. For some tens of buffers.

    Raises:
        NoOptimum: not solved within ``limit`` seconds per integer program.
    """
    model = _Model(trace)
    keep, copy = _formulate(model)
    while True:
        x = model.solve(limit)
        held, why, of = _blocks(model.program, keep, copy, x)
        places = offsets(held, trace.capacity) if held else np.zeros(0, np.int64)
        if places is not None:
            break
        cut = [v for i in _not_together(held, trace.capacity) for v in why[i]]
        model.row(dict.fromkeys(cut, 1.0), high=len(cut) - 1.0)
    move, start, offset = np.full((3, len(of)), -1)
    for b, i in enumerate(of):
        kept = keep[b] >= 0 and x[keep[b]] > 0.5
        move[b] = KEEP if kept else LEAVE if i < 0 else COPY
        if i >= 0:
            start[b], offset[b] = held[i][1], places[i]
    return Mapping(move, start, offset)


def greedy_in_order(trace: Trace) -> Mapping:
    """Each buffer in program order takes the move that gains the most at once; of equals, what is held the shortest."""
    program = program_of(trace)
    state, table = begin(program), np.zeros((ACTIONS, 3), np.int64)
    trial = begin(program)
    for _ in range(len(program.step)):
        options(program, state, table)
        best, chosen = -np.inf, 0
        for action in np.flatnonzero(table[:, 0]).tolist():
            copy_into(trial, state)
            gain = play(program, trial, move_of(action), table[action, 1], table[action, 2])
            if gain > best + 1e-15:
                best, chosen = gain, action
        play(program, state, move_of(chosen), table[chosen, 1], table[chosen, 2])
    return mapping_of(state)


def _whole_life(program: Program, buffers: list[int], mapping: Mapping, start: int) -> Mapping:
    """The mapping with a tensor's accesses in fast memory from ``start`` on, without an offset yet."""
    move, first, offset = mapping.move.copy(), mapping.start.copy(), mapping.offset.copy()
    head = buffers[0]
    move[buffers] = KEEP
    if not program.write[head] or program.output[head]:
        move[head] = COPY
    first[buffers] = start
    return Mapping(move, first, offset)


def greedy_by_priority(trace: Trace, priority: Floats) -> Mapping:
    """Tensors by falling priority: each gets fast memory over its whole life, or over the longest part of it that has a
    free offset, if that makes the program faster; a copy starts as late as it is hidden, or is not hidden.

    Args:
        priority: ``[tensors]``.
    """
    program = program_of(trace)
    n = len(program.step)
    now = Mapping(np.full(n, LEAVE), np.full(n, -1), np.full(n, -1))
    best = seconds(trace, now)
    held = np.zeros((n, 4), np.int64)
    count = 0
    for tensor in np.argsort(-priority, kind="stable"):
        mine = np.flatnonzero(trace.tensor == tensor).tolist()
        while mine:
            taken = 0
            for length in range(len(mine), 0, -1):
                part = mine[:length]
                head, t = part[0], int(program.step[part[0]])
                only = program.write[head] and not program.output[head] and program.following[part[-1]] < 0
                if program.write[head] and not only and length == 1:
                    continue
                before = int(program.previous[head])
                starts = [t] if program.write[head] else range(t, (program.step[before] if before >= 0 else -1), -1)
                found = None
                for start in starts:
                    low, _ = ends(
                        held, count, int(program.size[head]), start, int(program.step[part[-1]]), program.capacity
                    )
                    if low < 0:
                        break
                    tried = _whole_life(program, part, now, start)
                    if program.write[head] and not only:
                        tried.move[head] = COPY
                    took = seconds(trace, tried)
                    if took < best * (1 - 1e-12):
                        best, found = took, (tried, start, low)
                    elif found is not None:
                        break
                if found is not None:
                    now, start, low = found
                    now.offset[part] = low
                    held[count] = low, program.size[head], start, program.step[part[-1]]
                    count, taken = count + 1, length
                    break
            mine = mine[max(taken, 1) :]
    return now


def greedy(trace: Trace) -> dict[str, Mapping]:
    """Greedy mappings by name of their order."""
    tensors = int(trace.tensor.max()) + 1
    uses = np.bincount(trace.tensor, minlength=tensors).astype(float)
    size, first, last = np.zeros(tensors), np.full(tensors, np.inf), np.zeros(tensors)
    size[trace.tensor] = trace.size
    np.minimum.at(first, trace.tensor, trace.step)
    np.maximum.at(last, trace.tensor, trace.step)
    life = last - np.where(uses > 0, first, 0.0) + 1
    orders = {"density": uses / life, "size": size, "use": uses * size, "start": -first}
    return {"program order": greedy_in_order(trace)} | {
        name: greedy_by_priority(trace, priority) for name, priority in orders.items()
    }
