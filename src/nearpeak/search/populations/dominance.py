"""Which rows of a matrix of objectives dominate which, without comparing all with all where that can be avoided.

A row dominates another if it is nowhere larger and somewhere smaller (we minimise). Rows that none dominates are front
0; those that only front 0 dominates are front 1, and so on.

Three ways lead to the same ranks. NumPy arrays go through compiled sweeps (``sweeps``; needs numba, the extra
``nearpeak[simulate]``). Without it, and on tensors, fronts are peeled one by one: with up to three objectives in
``log n`` merges of the whole array, with more by comparing all rows with all in chunks.
"""

from typing import Any

import numpy as np

from nearpeak.search.populations.evolution import Array, chunk_of, indices, lexsort, namespace, placed, to_numpy


def compiled() -> Any:  # noqa: ANN401 (a module or None)
    """The compiled sweeps, or ``None`` where numba is not installed."""
    try:
        from nearpeak.search.populations import sweeps
    except ImportError:
        return None
    return sweeps


def padded(values: Array, width: int = 3) -> Array:
    """``values [n, m]`` with columns of zeros up to ``width``: they change no comparison."""
    xp = namespace(values)
    missing = [xp.zeros_like(values[:, :1])] * max(width - values.shape[1], 0)
    return xp.concatenate([values, *missing], 1)


def ascending(values: np.ndarray) -> np.ndarray:
    """Indices that sort rows by their first column, then by the second, and so on."""
    order = np.argsort(values[:, 0], kind="stable")
    first = values[order, 0]
    return np.lexsort(values.T[::-1]) if (first[1:] == first[:-1]).any() else order


def ranks(values: Array, enough: int | None = None) -> Array:
    """The front ``[n]`` of each row of ``values [n, m]``, counted from 0. Equal rows are on one front.

    ``enough``: fronts that begin after so many rows may be left unranked; their rows then have rank ``n``.
    """
    n, m = values.shape
    sweeps = compiled() if isinstance(values, np.ndarray) else None
    if sweeps is None:
        return _peeled(values, n if enough is None else enough)
    wide = np.ascontiguousarray(padded(values), dtype=float)
    order = ascending(wide)
    rank = np.empty(n, np.int64)
    rank[order] = sweeps.ranks(wide[order]) if m <= 3 else sweeps.ranks_by_members(wide[order])
    return rank


def nondominated(values: Array) -> Array:
    """Which rows ``[n]`` of ``values [n, m]`` none dominates."""
    return ranks(values, 1) == 0


def _peeled(values: Array, enough: int) -> Array:
    """Front after front, each by one operation on all rows that are left."""
    xp = namespace(values)
    n = len(values)
    rank = xp.full_like(values[:, 0], n, dtype=xp.int64)
    alive, front = indices(rank > 0), 0
    find = _dominated_by_merging if values.shape[1] <= 3 else _dominated_by_comparing
    while n - len(alive) < enough and len(alive):
        beaten = find(values[alive])
        rank[alive[~beaten]] = front
        alive, front = alive[beaten], front + 1
    return rank


def _dominated_by_comparing(values: Array) -> Array:
    """Which rows ``[n]`` another dominates: all against all, as many at a time as fit."""
    xp = namespace(values)
    step = max(1, chunk_of(values) // values.size if xp is np else chunk_of(values) // values.numel())
    parts = []
    for start in range(0, len(values), step):
        own = values[start : start + step, None]
        below, less = xp.all(values <= own, 2), xp.any(values < own, 2)
        parts.append(xp.any(below & less, 1))
    return xp.concatenate(parts)


def _dominated_by_merging(values: Array, block: int = 16) -> Array:
    """Which rows ``[n]`` of up to three objectives another dominates, in ``log n`` merges of the whole array.

    Sorted by the first objective and cut into blocks of ``2 w``, an earlier row can only dominate a later one. Sorted
    by the second within each block, a row of the right half is dominated by one of the left if the least third
    objective that the left half shows so far is not above its own.
    """
    xp = namespace(values)
    wide = padded(values)
    order = lexsort(wide[:, 2], wide[:, 1], wide[:, 0])
    wide = wide[order]
    fresh = xp.ones_like(order, dtype=xp.bool)
    fresh[1:] = xp.any(wide[1:] != wide[:-1], 1)
    unique = wide[fresh]
    size = block
    while size < len(unique):
        size *= 2
    cells = xp.full_like(wide[:1, 0], xp.inf).repeat(size)
    y, z = cells + 0, cells + 0
    y[: len(unique)], z[: len(unique)] = unique[:, 1], unique[:, 2]
    rows, columns = y.reshape(-1, block), z.reshape(-1, block)
    earlier = xp.tril(xp.ones((block, block), dtype=xp.bool, **placed(values)), -1)
    below = (rows[:, None] <= rows[:, :, None]) & (columns[:, None] <= columns[:, :, None])
    beaten = xp.any(below & earlier, 2).reshape(-1)
    at = xp.argsort(rows, axis=1, stable=True)
    at = (at + xp.arange(0, size, block, **placed(values))[:, None]).reshape(-1)
    width = block
    while width < size:
        at = at.reshape(-1, 2 * width)
        own = xp.argsort(y[at], axis=1, stable=True)
        at = xp.take_along_axis(at, own, 1) if xp is np else xp.take_along_dim(at, own, 1)
        left, height = (at // width) % 2 == 0, z[at]
        seen = xp.where(left, height, xp.inf)
        least = np.minimum.accumulate(seen, 1) if xp is np else xp.cummin(seen, 1).values
        beaten[at[~left & (least <= height)]] = True
        width *= 2
    result = xp.empty_like(fresh)
    result[order] = beaten[: len(unique)][xp.cumsum(fresh, 0) - 1]
    return result


def dominator_counts(points: Array, queries: Array) -> Array:
    """How many rows of ``points [n, m]`` are nowhere larger than each row of ``queries [q, m]``: ``[q]``."""
    xp = namespace(points)
    n, m = points.shape
    sweeps = compiled() if xp is np and m <= 3 else None
    if sweeps is None:
        step = max(1, chunk_of(points) // (n * m))
        parts = [
            xp.sum(xp.all(points <= queries[start : start + step, None], 2), 1)
            for start in range(0, len(queries), step)
        ]
        return xp.concatenate(parts)
    both = np.concatenate([padded(points), padded(queries)]).astype(float)
    asks = np.arange(len(both)) >= n
    third = np.empty(len(both), np.int64)
    third[np.lexsort([asks, both[:, 2]])] = np.arange(1, len(both) + 1)
    order = np.lexsort([asks, both[:, 0]])
    count = np.empty(len(both), np.int64)
    count[order] = sweeps.counts_below(both[order], asks[order], third[order])
    return count[n:]


def crowding(values: Array, rank: Array) -> Array:
    """Crowding distance ``[n]`` (Deb et al., NSGA-II, 2002): sum over objectives of the gap between a row's two
    neighbours on its front, as a share of the front's extent; infinite at the ends.
    """
    xp = namespace(values)
    distance = xp.zeros_like(values[:, 0])
    for column in values.T:
        order = lexsort(column, rank)
        sorted_values, sorted_rank = column[order], rank[order]
        ends = xp.ones_like(order, dtype=xp.bool)
        ends[1:-1] = (sorted_rank[1:-1] != sorted_rank[:-2]) | (sorted_rank[1:-1] != sorted_rank[2:])
        first = xp.ones_like(ends)
        first[1:] = sorted_rank[1:] != sorted_rank[:-1]
        start = sorted_values[first]
        stop = sorted_values[xp.concatenate([first[1:], first[:1]])]
        extent = (stop - start)[xp.cumsum(first, 0) - 1]
        gap = xp.full_like(column, xp.inf)
        inner = (sorted_values[2:] - sorted_values[:-2]) / xp.where(extent > 0, extent, 1.0)[1:-1]
        gap[1:-1] = xp.where(ends[1:-1], xp.inf, inner)
        distance[order] += gap
    return distance


def sorted_front(values: Array) -> np.ndarray:
    """Indices of the rows none dominates, in ascending order of the first objective, in main memory."""
    held = to_numpy(values)
    index = np.flatnonzero(to_numpy(nondominated(values)))
    return np.asarray(index[np.argsort(held[index, 0], kind="stable")])
