"""Schedules of operators that run at once on parts of one device, and the search for the best.

Zhu et al. 2025, "NanoFlow: Towards Optimal Large Language Model Serving Throughput" (OSDI 2025, arXiv 2408.12757),
section 4.1. Operators are bound by arithmetic, by memory, or by the network. One of each kind may run at a time, each
on a share of the device's units; the shares of what runs sum to 1 at most. How fast an operator is on its share, and
beside which others, an interference table says. The search has two stages: the order of each kind's operators as if all
ran undisturbed, then everyone's share with interference.
"""

from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nearpeak.errors import UsageError

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Edges = NDArray[np.bool_]

KINDS = ("compute", "memory", "network")
EPSILON = 1e-9


@dataclass(frozen=True, eq=False)
class Interference:
    """Speed of operators over that with the whole device to themselves.

    Attributes:
        shares: of units that an operator may have, ascending, ``[s]``; the last is 1.
        speed: ``[kind, share, others]``; ``others``: sum of ``2 ** kind`` over the other kinds that run beside.
    """

    shares: Array
    speed: Array

    def __post_init__(self) -> None:
        if self.speed.shape != (len(KINDS), self.shares.size, 8):
            raise UsageError(f"a table of speeds has shape {self.speed.shape}; it must be (3, {self.shares.size}, 8)")
        rising = (
            self.shares.size > 0 and (np.diff(self.shares) > 0).all() and 0 < self.shares[0] <= self.shares[-1] == 1
        )
        if not (rising and (self.speed > 0).all() and (self.speed <= 1 + EPSILON).all()):
            raise UsageError("shares must rise to 1, and speeds lie above 0 and not above 1")


def saturating(shares: Array, reach: tuple[float, float, float] = (1.0, 0.5, 0.2)) -> Interference:
    """Speed by units alone: an operator is the faster the more it has, up to the share ``reach`` of its kind.

    The default is an assumption for GPUs: products use every unit, half of the units draw the whole memory bandwidth,
    and a fifth of them (some 20 thread blocks of an A100) drives its links.
    """
    speed = np.minimum(1.0, np.asarray(shares)[None] / np.asarray(reach)[:, None])
    return Interference(np.asarray(shares, float), np.repeat(speed[:, :, None], 8, axis=2))


@dataclass(frozen=True, eq=False)
class Graph:
    """Operators of a layer, ``[n]``, and what waits for what.

    Attributes:
        names: of operators. kind: index into ``KINDS``. work: seconds with the whole device.
        after: ``after[i, j]``: ``i`` waits for ``j``. carried: the same for ``j`` of the layer before.

    Raises:
        UsageError: operators wait for one another in a circle.
    """

    names: tuple[str, ...]
    kind: Index
    work: Array
    after: Edges
    carried: Edges = field(default_factory=lambda: np.zeros((0, 0), np.bool_))

    def __post_init__(self) -> None:
        left = np.ones(self.work.size, np.bool_)
        while left.any():
            if not (free := left & ~(self.after & left).any(axis=1)).any():
                raise UsageError(f"operators wait for one another in a circle: {', '.join(np.array(self.names)[left])}")
            left &= ~free

    @property
    def between(self) -> Edges:
        """``carried``, or none."""
        return self.carried if self.carried.size else np.zeros_like(self.after)


@njit(cache=True)
def run(
    kind: Index, work: Array, after: Edges, carried: Edges, order: Index, level: Index, shares: Array, speed: Array,
    layers: int, start: Array, end: Array,
) -> float:  # fmt: skip
    """Seconds of ``layers`` layers, and when each operator starts and ends, into ``[layers, n]``.

    Args:
        order: of operators, those that wait behind those they wait for; each kind's run in it, and the first of them
            gets free units first. level: index of each one's share.
    """
    n = order.size
    queue, count = np.empty((3, n), np.int64), np.zeros(3, np.int64)
    rank = np.empty(n, np.int64)
    for i in range(n):
        o = order[i]
        rank[o] = i
        queue[kind[o], count[kind[o]]] = o
        count[kind[o]] += 1
    at, running, left = np.zeros(3, np.int64), np.full(3, -1), np.zeros(3)
    end[:] = np.inf
    now, used, over = 0.0, 0.0, 0
    while over < layers * n:
        while True:
            best, place = -1, layers * n
            for k in range(3):
                if running[k] >= 0 or at[k] >= layers * count[k]:
                    continue
                layer, o = at[k] // count[k], queue[k, at[k] % count[k]]
                if used + shares[level[o]] > 1.0 + EPSILON or layer * n + rank[o] >= place:
                    continue
                ready = True
                for j in range(n):
                    if (after[o, j] and end[layer, j] > now) or (
                        layer > 0 and carried[o, j] and end[layer - 1, j] > now
                    ):
                        ready = False
                        break
                if ready:
                    best, place = k, layer * n + rank[o]
            if best < 0:
                break
            layer, o = at[best] // count[best], queue[best, at[best] % count[best]]
            running[best], left[best], start[layer, o] = o, work[o], now
            used += shares[level[o]]
        mask = 0
        for k in range(3):
            if running[k] >= 0:
                mask += 1 << k
        took = np.inf
        for k in range(3):
            if running[k] >= 0:
                took = min(took, left[k] / speed[k, level[running[k]], mask - (1 << k)])
        if took == np.inf:
            return np.inf
        now += took
        for k in range(3):
            o = running[k]
            if o >= 0:
                left[k] -= took * speed[k, level[o], mask - (1 << k)]
                if left[k] <= EPSILON * work[o]:
                    end[at[k] // count[k], o] = now
                    used -= shares[level[o]]
                    running[k] = -1
                    at[k] += 1
                    over += 1
    return now


@njit(cache=True)
def shared_out(
    kind: Index, work: Array, after: Edges, carried: Edges, order: Index, level: Index, shares: Array, speed: Array,
    layers: int,
) -> float:  # fmt: skip
    """Improve ``level`` in place, one operator at a time and then two of unlike kinds, until nothing is gained."""
    n, s = order.size, shares.size
    start, end = np.empty((layers, n)), np.empty((layers, n))
    best = run(kind, work, after, carried, order, level, shares, speed, layers, start, end)
    gained = True
    while gained:
        gained = False
        for i in range(n):
            kept = level[i]
            for a in range(s):
                level[i] = a
                took = run(kind, work, after, carried, order, level, shares, speed, layers, start, end)
                if took < best * (1 - EPSILON):
                    best, kept, gained = took, a, True
            level[i] = kept
        if gained:
            continue
        for i in range(n):
            for j in range(i + 1, n):
                if kind[i] == kind[j]:
                    continue
                one, two = level[i], level[j]
                for a in range(s):
                    for b in range(s):
                        level[i], level[j] = a, b
                        took = run(kind, work, after, carried, order, level, shares, speed, layers, start, end)
                        if took < best * (1 - EPSILON):
                            best, one, two, gained = took, a, b, True
                level[i], level[j] = one, two
    return best


@njit(cache=True)
def all_shares(
    kind: Index, work: Array, after: Edges, carried: Edges, order: Index, shares: Array, speed: Array, layers: int,
    kept: Index,
) -> float:  # fmt: skip
    """The least seconds over all shares of all operators, tried one by one; the shares into ``kept``."""
    n, s = order.size, shares.size
    start, end = np.empty((layers, n)), np.empty((layers, n))
    level, best = np.zeros(n, np.int64), np.inf
    for code in range(s**n):
        rest = code
        for i in range(n):
            level[i] = rest % s
            rest //= s
        took = run(kind, work, after, carried, order, level, shares, speed, layers, start, end)
        if took < best:
            best = took
            kept[:] = level
    return best


def orders(graph: Graph, most: int) -> list[Index] | None:
    """Every order of the operators that differs in some kind's own order, one of each; None where over ``most``."""
    n = graph.work.size
    found: dict[tuple[tuple[int, ...], ...], Index] = {}
    seen: set[tuple[frozenset[int], tuple[tuple[int, ...], ...]]] = set()
    stack: list[tuple[int, ...]] = [()]
    while stack:
        made = stack.pop()
        by_kind = tuple(tuple(o for o in made if graph.kind[o] == k) for k in range(3))
        if (key := (frozenset(made), by_kind)) in seen:
            continue
        seen.add(key)
        if len(seen) > 40 * most:
            return None
        if len(made) == n:
            found[by_kind] = np.array(made)
            if len(found) > most:
                return None
            continue
        placed = np.zeros(n, np.bool_)
        placed[list(made)] = True
        stack += [(*made, o) for o in range(n) if not placed[o] and not (graph.after[o] & ~placed).any()]
    return list(found.values())


@dataclass(frozen=True, eq=False)
class Schedule:
    """A pipeline of a layer's operators.

    Attributes:
        graph: its operators. order: in which they begin. shares: of the units that each has, ``[n]``.
        seconds: of a layer. start, end: of operators, ``[layers, n]``.
    """

    graph: Graph
    order: Index
    shares: Array
    seconds: float
    start: Array
    end: Array


def timed(graph: Graph, table: Interference, order: Index, level: Index, layers: int) -> Schedule:
    """The schedule of an order and shares. A layer's seconds are those of a later one where several follow."""
    start, end = (np.empty((layers, graph.work.size)) for _ in range(2))
    args = graph.kind, graph.work, graph.after, graph.between, order, level, table.shares, table.speed
    whole = run(*args, layers, start, end)
    done, half = end.max(axis=1), layers // 2
    seconds = whole if layers == 1 else float(done[-1] - done[half - 1]) / (layers - half)
    return Schedule(graph, order, table.shares[level], seconds, start, end)


def undisturbed(graph: Graph, tried: list[Index], layers: int) -> Array:
    """Stage 1: seconds of orders where all operators run at full speed beside any other."""
    n = graph.work.size
    start, end, level = np.empty((layers, n)), np.empty((layers, n)), np.zeros(n, np.int64)
    none, full = np.zeros(1), np.ones((3, 1, 8))
    args = graph.kind, graph.work, graph.after, graph.between
    return np.array([run(*args, order, level, none, full, layers, start, end) for order in tried])


def neighbours(graph: Graph, rng: np.random.Generator, restarts: int, steps: int, layers: int) -> list[Index]:
    """Good orders of large graphs: from random ones, moves of one operator as long as they gain undisturbed."""
    n, found = graph.work.size, []
    for _ in range(restarts):
        weight, order = rng.random(n), []
        left = set(range(n))
        while left:
            ready = [o for o in left if not any(graph.after[o, j] for j in left)]
            order.append(min(ready, key=lambda o: weight[o]))
            left.remove(order[-1])
        now = np.array(order)
        best = undisturbed(graph, [now], layers)[0]
        for _ in range(steps):
            i, j = sorted(rng.choice(n, 2, replace=False))
            other = now.copy()
            other[i : j + 1] = np.roll(now[i : j + 1], 1 if rng.random() < 0.5 else -1)
            place = np.argsort(other)
            if (graph.after & (place[:, None] < place[None])).any():
                continue
            took = undisturbed(graph, [other], layers)[0]
            if took <= best:
                now, best = other, took
        found.append(now)
    return found


def search(
    graph: Graph, table: Interference, layers: int = 1, keep: int = 12, most: int = 3000, kicks: int = 20, seed: int = 0
) -> Schedule:
    """The two stages: orders as if undisturbed, of which the best get their shares.

    Args:
        layers: that follow one another in the trial. most: orders that are all tried; larger graphs are searched.
        keep: orders whose shares are searched to the end, ``kicks`` times anew from three random shares.
    """
    rng = np.random.default_rng(seed)
    tried = orders(graph, most)
    if tried is None:
        tried = neighbours(graph, rng, restarts=keep, steps=40 * graph.work.size, layers=layers)
    took = undisturbed(graph, tried, layers)
    args = graph.kind, graph.work, graph.after, graph.between
    grid = np.stack(np.meshgrid(*[np.arange(table.shares.size)] * 3, indexing="ij"), -1).reshape(-1, 3)
    start, end = (np.empty((layers, graph.work.size)) for _ in range(2))
    begun = []
    for i in np.argsort(took, kind="stable")[: 8 * keep]:
        by_kind = np.array(
            [run(*args, tried[i], g[graph.kind], table.shares, table.speed, layers, start, end) for g in grid]
        )
        begun.append((by_kind.min(), int(i), np.argsort(by_kind, kind="stable")[:4]))
    refined: list[tuple[float, int, Index]] = []
    for _, i, firsts in sorted(begun, key=lambda b: b[0])[: 2 * keep]:
        # Interference only slows: an order that is slower undisturbed than the best with it cannot win.
        if not refined or took[i] < min(r[0] for r in refined):
            levels = [grid[g][graph.kind].copy() for g in firsts]
            each = [shared_out(*args, tried[i], level, table.shares, table.speed, layers) for level in levels]
            refined.append((min(each), i, levels[int(np.argmin(each))]))
    refined.sort(key=lambda r: r[0])
    best, which, chosen = refined[0]
    for seconds, i, level in refined[:keep]:
        for _ in range(kicks):
            other = level.copy()
            three = rng.choice(level.size, min(3, level.size), replace=False)
            other[three] = rng.integers(table.shares.size, size=three.size)
            found = shared_out(*args, tried[i], other, table.shares, table.speed, layers)
            if found < seconds:
                seconds, level = found, other
        if seconds < best:
            best, which, chosen = seconds, i, level
    return timed(graph, table, tried[which], chosen, layers)


def exhaustive(graph: Graph, table: Interference) -> float:
    """The least seconds over every order of each kind and every share of every operator."""
    kept = np.zeros(graph.work.size, np.int64)
    args = graph.kind, graph.work, graph.after, graph.between
    return min(all_shares(*args, order, table.shares, table.speed, 1, kept) for order in orders(graph, 10**9) or [])


def bound(graph: Graph, table: Interference) -> float:
    """Seconds that no schedule of a layer is below, whatever waits for what.

    The kinds' work, by a linear program over what may run at once: ``min sum t`` where the times ``t`` of all sets of
    kinds and shares that fit the device do each kind's work at the speeds of the table.
    """
    from scipy.optimize import linprog

    work = np.bincount(graph.kind, graph.work, 3)
    at = np.arange(table.shares.size + 1)  # 0: the kind rests
    grid = np.stack(np.meshgrid(at, at, at, indexing="ij"), -1).reshape(-1, 3)
    used = np.concatenate([[0.0], table.shares])[grid]
    grid = grid[(used.sum(axis=1) <= 1 + EPSILON) & (grid.sum(axis=1) > 0)]
    on = grid > 0
    others = (on * (1 << np.arange(3))).sum(axis=1, keepdims=True) - (1 << np.arange(3))
    done = np.where(on, table.speed[np.arange(3)[None], np.maximum(grid - 1, 0), np.where(on, others, 0)], 0.0)
    found = linprog(np.ones(len(grid)), A_ub=-done.T, b_ub=-work, method="highs")
    return float(found.fun)


def critical_path(graph: Graph) -> float:
    """Seconds of the longest chain of operators at full speed."""
    end = np.zeros(graph.work.size)
    for _ in range(graph.work.size):
        end = graph.work + np.max(np.where(graph.after, end[None], 0.0), axis=1, initial=0.0)
    return float(end.max())
