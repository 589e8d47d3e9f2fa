"""A random forest as a function: the mean of regression trees grown on bootstrap samples.

Each tree splits a node where the squared error falls most, over all features and all thresholds between two
neighbouring values, down to leaves of a few observations (Breiman, Random Forests, Machine Learning 2001).
"""

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nearpeak.search.parameters import Floats

Index = NDArray[np.intp]


def grow(x: Floats, y: Floats, rng: np.random.Generator, trees: int = 50, leaf: int = 2) -> Callable[[Floats], Floats]:
    """A forest of features ``[n, f]`` and values ``[n]``: a function of features ``[m, f]``, ``[m]``.

    Args:
        leaf: least observations (of the bootstrap sample) in a leaf.
    """
    bags = rng.integers(0, len(y), (trees, len(y)))
    grown = [_grow(np.ascontiguousarray(x[bag]), y[bag], leaf) for bag in bags]

    def predict(at: Floats) -> Floats:
        rows = np.ascontiguousarray(at)
        return np.asarray(np.mean([_descend(rows, *tree) for tree in grown], axis=0))

    return predict


@njit(cache=True)
def _grow(x: Floats, y: Floats, leaf: int) -> tuple[Index, Floats, Index, Floats]:
    """A tree: feature (-1: a leaf), threshold, first of two children, and mean of each node."""
    n, f = x.shape
    feature, threshold = np.full(2 * n, -1, np.int64), np.zeros(2 * n)
    child, mean = np.zeros(2 * n, np.int64), np.zeros(2 * n)
    items = np.arange(n)
    begin, end = np.zeros(2 * n, np.int64), np.zeros(2 * n, np.int64)
    end[0] = n
    count, node = 1, 0
    while node < count:
        rows = items[begin[node] : end[node]].copy()
        size = len(rows)
        total = y[rows].sum()
        mean[node] = total / size
        best = total * total / size + 1e-12 * (y[rows] ** 2).sum()
        for j in range(f):
            order = rows[np.argsort(x[rows, j])]
            left = 0.0
            for i in range(1, size):
                left += y[order[i - 1]]
                if i < leaf or size - i < leaf or x[order[i - 1], j] == x[order[i], j]:
                    continue
                gain = left * left / i + (total - left) ** 2 / (size - i)
                if gain > best:
                    best = gain
                    feature[node], threshold[node] = j, 0.5 * (x[order[i - 1], j] + x[order[i], j])
        if feature[node] >= 0:
            low = x[rows, feature[node]] <= threshold[node]
            middle = begin[node] + low.sum()
            items[begin[node] : middle] = rows[low]
            items[middle : end[node]] = rows[~low]
            child[node] = count
            begin[count], end[count] = begin[node], middle
            begin[count + 1], end[count + 1] = middle, end[node]
            count += 2
        node += 1
    return feature[:count], threshold[:count], child[:count], mean[:count]


@njit(cache=True)
def _descend(x: Floats, feature: Index, threshold: Floats, child: Index, mean: Floats) -> Floats:
    """The mean of the leaf that each row falls into."""
    found = np.empty(len(x))
    for row in range(len(x)):
        node = 0
        while feature[node] >= 0:
            node = child[node] + (x[row, feature[node]] > threshold[node])
        found[row] = mean[node]
    return found
