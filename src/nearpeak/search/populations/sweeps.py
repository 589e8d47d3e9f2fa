"""Compiled sweeps over points in two or three objectives: near ``n log n`` steps where comparing all takes ``n^2``.

A sweep meets the points in the order of their first objective. Of those met it keeps, for each front, the *staircase*
of the two others: ``y`` ascending, ``z`` descending, and nothing that another point is below of in both. A point is
dominated by a front if the stair before it is not above it, and a point dominated by a front is dominated by all
earlier ones: its front is found by bisection, on stairs that are searched by bisection (after Jensen, IEEE Transactions
on Evolutionary Computation 7, 2003, and Beume et al., 13, 2009, for the volume).

All functions here take points ``[n, 3]`` in ascending order of the first, then the second, then the third objective.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@njit(cache=True)
def stairs_before(ys: Array, start: int, size: int, y: float) -> int:
    """How many of the stairs ``ys[start : start + size]`` have at most ``y``."""
    low, high = start, start + size
    while low < high:
        middle = (low + high) // 2
        if ys[middle] <= y:
            low = middle + 1
        else:
            high = middle
    return low - start


@njit(cache=True)
def add_stair(ys: Array, zs: Array, start: int, size: int, y: float, z: float) -> int:
    """Put the point ``(y, z)``, which no stair is below of, among the stairs; their new number."""
    at = stairs_before(ys, start, size, y)
    if at > 0 and ys[start + at - 1] == y:
        at -= 1
    end = at
    while end < size and zs[start + end] >= z:
        end += 1
    if end == at:
        for i in range(start + size, start + at, -1):
            ys[i], zs[i] = ys[i - 1], zs[i - 1]
    elif end > at + 1:
        for i in range(end, size):
            ys[start + at + 1 + i - end], zs[start + at + 1 + i - end] = ys[start + i], zs[start + i]
    ys[start + at], zs[start + at] = y, z
    return size + 1 - (end - at)


@njit(cache=True)
def ranks(points: Array) -> Index:
    """The front ``[n]`` of each point, counted from 0."""
    n = len(points)
    rank = np.zeros(n, np.int64)
    # Stairs of all fronts lie in one pool; a front that outgrows its place moves to the end of the pool.
    start, size, room = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    pool = np.empty((2, 4 * n + 64))
    fronts, used = 0, 0
    for i in range(n):
        x, y, z = points[i]
        if i > 0 and points[i - 1, 0] == x and points[i - 1, 1] == y and points[i - 1, 2] == z:
            rank[i] = rank[i - 1]
            continue
        low, high = 0, fronts
        while low < high:
            k = (low + high) // 2
            at = stairs_before(pool[0], start[k], size[k], y)
            if at > 0 and pool[1, start[k] + at - 1] <= z:
                low = k + 1
            else:
                high = k
        if low == fronts:
            fronts += 1
        if size[low] == room[low]:
            wider = max(4, 2 * room[low])
            if used + wider > pool.shape[1]:
                larger = np.empty((2, 2 * pool.shape[1] + wider))
                larger[:, :used] = pool[:, :used]
                pool = larger
            pool[:, used : used + size[low]] = pool[:, start[low] : start[low] + size[low]]
            start[low], room[low] = used, wider
            used += wider
        size[low] = add_stair(pool[0], pool[1], start[low], size[low], y, z)
        rank[i] = low
    return rank


@njit(cache=True)
def ranks_by_members(points: Array) -> Index:
    """The front ``[n]`` of each of ``points [n, m]``, sorted, comparing with members, the latest first."""
    n, m = points.shape
    rank, before, latest = np.zeros(n, np.int64), np.full(n, -1), np.full(n, -1)
    fronts = 0
    for i in range(n):
        low, high = 0, fronts
        while low < high:
            k = (low + high) // 2
            at, dominated = latest[k], False
            while at >= 0 and not dominated:
                below, less = True, False
                for j in range(m):
                    if points[at, j] > points[i, j]:
                        below = False
                        break
                    less |= points[at, j] < points[i, j]
                dominated, at = below and less, before[at]
            if dominated:
                low = k + 1
            else:
                high = k
        fronts += low == fronts
        rank[i], before[i], latest[low] = low, latest[low], i
    return rank


@njit(cache=True)
def volume(points: Array, reference: Array) -> float:
    """Volume that is dominated by ``points``, all of them below ``reference [3]``."""
    n = len(points)
    ys, zs = np.empty(n + 1), np.empty(n + 1)
    size, area, total = 0, 0.0, 0.0
    for i in range(n):
        y, z = points[i, 1], points[i, 2]
        at = stairs_before(ys, 0, size, y)
        if at == 0 or zs[at - 1] > z:
            # What the point adds: columns from y on, as far as the stairs there are above z.
            left, top = y, reference[2] if at == 0 else zs[at - 1]
            for k in range(at, size + 1):
                right = ys[k] if k < size else reference[1]
                area += (right - left) * (top - z)
                if k == size or zs[k] <= z:
                    break
                left, top = right, zs[k]
            size = add_stair(ys, zs, 0, size, y, z)
        total += area * ((points[i + 1, 0] if i + 1 < n else reference[0]) - points[i, 0])
    return total


@njit(cache=True)
def counts_below(points: Array, is_query: NDArray[np.bool_], third: Index) -> Index:
    """How many points ``[n]`` are below or at each query in all three objectives; 0 for what is no query.

    ``points`` are points and queries together, sorted by the first objective, points before queries where equal.
    ``third``: place of each in the order of the third objective, 1 and up. Halves are joined from the bottom up; where
    two meet, queries of the right half count points of the left one in a Fenwick tree over the third objective.
    """
    n = len(points)
    order, merged, count = np.arange(n), np.empty(n, np.int64), np.zeros(n, np.int64)
    tree = np.zeros(n + 1, np.int64)
    block = 32
    for low in range(0, n, block):
        high = min(low + block, n)
        for i in range(low, high):
            if is_query[i]:
                for j in range(low, i):
                    if not is_query[j] and points[j, 1] <= points[i, 1] and third[j] < third[i]:
                        count[i] += 1
        order[low:high] = low + np.argsort(points[low:high, 1], kind="mergesort")
    width = block
    while width < n:
        for low in range(0, n - width, 2 * width):
            middle, high = low + width, min(low + 2 * width, n)
            i, j = low, middle
            for k in range(low, high):
                if j == high or (i < middle and points[order[i], 1] <= points[order[j], 1]):
                    e = order[i]
                    i += 1
                    at = third[e] if not is_query[e] else n + 1
                    while at <= n:
                        tree[at] += 1
                        at += at & -at
                else:
                    e = order[j]
                    j += 1
                    at = third[e] if is_query[e] else 0
                    while at > 0:
                        count[e] += tree[at]
                        at -= at & -at
                merged[k] = e
            for k in range(low, middle):
                at = third[order[k]] if not is_query[order[k]] else n + 1
                while at <= n:
                    tree[at] = 0
                    at += at & -at
            order[low:high] = merged[low:high]
        width *= 2
    return count
