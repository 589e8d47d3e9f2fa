"""One forest from a matrix product and its tile to seconds, watts and joules, and the tile that it recommends.

After "Understanding GEMM performance and energy on NVIDIA Ada Lovelace" (arXiv 2411.16954): a random forest with
several outputs in each leaf, over sizes, tile and occupancy. Two things differ. Trees are extremely randomized (Geurts,
Ernst and Wehenkel, Machine Learning 63, 2006): each feature proposes one random threshold and the best of them splits,
which is smoother on some hundred rows. And leaves hold what one operation takes, in logarithms, so that the forest
answers for products larger and smaller than those it saw: it has to learn efficiency, not size.

Error is reported on shapes that had no row in training, beside a roofline of two constants fitted on the same rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.errors import UsageError

Array = NDArray[np.float64]
Objective = Literal["time", "energy"]
TARGETS = ("seconds", "watts", "joules")
TREES = 100
ALIKE = 1e-12
"""Spread of targets, in units of that of all rows, below which a node is not split."""


@dataclass(frozen=True)
class Kernels:
    """Matrix products ``[m, k] x [k, n]`` and how they are run; arrays that broadcast to ``[rows]``.

    Attributes:
        tile_m, tile_n, tile_k: rows, columns and depth of a tile. stages: tiles in flight, 1 without prefetch.
        width: bytes of an element. occupancy: tiles that a unit works on at once. units: that tiles are spread over.
    """

    m: ArrayLike
    n: ArrayLike
    k: ArrayLike
    tile_m: ArrayLike
    tile_n: ArrayLike
    tile_k: ArrayLike
    stages: ArrayLike = 1
    width: ArrayLike = 4
    occupancy: ArrayLike = 1
    units: ArrayLike = 1

    def columns(self) -> dict[str, Array]:
        """The attributes by name, each ``[rows]``.

        Raises:
            UsageError: one below what it can be.
        """
        names = [f.name for f in fields(self)]
        found = dict(
            zip(names, np.broadcast_arrays(*(np.asarray(getattr(self, n), float) for n in names)), strict=True)
        )
        for name, values in found.items():
            wrong = ~(np.isfinite(values) & (values > 0))
            if wrong.any():
                raise UsageError(f"{name} holds {values[wrong].flat[0]:g}; every one must be above 0 and finite")
        return {name: np.atleast_1d(values) for name, values in found.items()}

    def operations(self) -> Array:
        """Multiplications and additions, ``[rows]``."""
        c = self.columns()
        return 2 * c["m"] * c["n"] * c["k"]

    def traffic(self) -> Array:
        """Bytes of both operands and the result, each once, ``[rows]``."""
        c = self.columns()
        return c["width"] * (c["m"] * c["k"] + c["k"] * c["n"] + c["m"] * c["n"])

    def features(self) -> Array:
        """What the forest looks at, ``[rows, features]``, as logarithms (base 2).

        The attributes but the number of units, which is one machine's; tiles for each unit, waves of them, operations
        for each byte of the product, bytes of the three tiles, and the share of the tiles' area that is used.
        """
        c = self.columns()
        down, across = np.ceil(c["m"] / c["tile_m"]), np.ceil(c["n"] / c["tile_n"])
        tiles = down * across
        held = c["width"] * (c["tile_k"] * (c["tile_m"] + c["tile_n"]) * c["stages"] + c["tile_m"] * c["tile_n"])
        used = c["m"] * c["n"] / (tiles * c["tile_m"] * c["tile_n"])
        derived = [
            tiles / c["units"],
            np.ceil(tiles / (c["units"] * c["occupancy"])),
            self.operations() / self.traffic(),
            held,
            used,
        ]
        return np.asarray(np.log2(np.stack([*(c[n] for n in c if n != "units"), *derived], axis=-1)))


@dataclass(frozen=True)
class Forest:
    """Trees with several outputs; nodes of all trees one after the other.

    Attributes:
        feature: that a node splits by, -1 at leaves. threshold: rows at or below it go ``left``, others one further.
        leaf: means of a node's rows, ``[nodes, outputs]``. roots: each tree's first node.
    """

    feature: NDArray[np.intp]
    threshold: Array
    left: NDArray[np.intp]
    leaf: Array
    roots: NDArray[np.intp]

    def values(self, table: Array) -> Array:
        """The mean of all trees, ``[rows, outputs]``, of features ``[rows, features]``."""
        node = np.broadcast_to(self.roots, (len(table), self.roots.size))
        rows = np.arange(len(table))[:, None]
        while (inner := self.feature[node] >= 0).any():
            right = table[rows, self.feature[node]] > self.threshold[node]
            node = np.where(inner, self.left[node] + right, node)
        return np.asarray(self.leaf[node].mean(axis=1))


def grow(table: Array, targets: Array, trees: int = TREES, seed: int = 0) -> Forest:
    """Extremely randomized trees, each on all rows.

    A split is judged by the variance that it takes from all outputs together, each in units of its own spread.

    Args:
        table: features ``[rows, features]``. targets: ``[rows, outputs]``.

    Raises:
        UsageError: no rows, not as many targets as features, numbers that are not finite, or no trees.
    """
    if trees < 1 or len(table) < 1 or len(table) != len(targets):
        raise UsageError(f"{trees} trees of {len(table)} rows with {len(targets)} targets: needs a target for each row")
    if not (np.isfinite(table).all() and np.isfinite(targets).all()):
        raise UsageError("features or targets hold numbers that are not finite; leave such rows out")
    draw = np.random.default_rng(seed)
    spread = targets.std(axis=0)
    scaled = (targets - targets.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    grown = [_tree(table, targets, scaled, draw) for _ in range(trees)]
    roots = np.cumsum([0, *(tree.feature.size for tree in grown)])[:-1]
    grown = [replace(tree, left=root + tree.left) for root, tree in zip(roots, grown, strict=True)]
    return _joined(grown, roots)


def _tree(table: Array, targets: Array, scaled: Array, draw: np.random.Generator) -> Forest:
    """One tree, all nodes of a level at once. Its rows are kept in the order of the level's nodes."""
    rows, starts, nodes = np.arange(len(table)), np.zeros(1, np.intp), 0
    levels = []
    while rows.size:
        count = np.diff(starts, append=rows.size)[:, None]
        node = np.repeat(np.arange(starts.size), count[:, 0])
        x, y = table[rows], scaled[rows]
        low, high = np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)
        # Rounding may carry a threshold up to the highest row, which would leave nothing on its right.
        tried = np.minimum(low + draw.random(low.shape) * (high - low), np.nextafter(high, -np.inf))
        right = x > tried[node]
        many = np.add.reduceat(right, starts, dtype=float)
        sums = np.add.reduceat(right[:, :, None] * y[:, None, :], starts)
        rest = np.add.reduceat(y, starts)[:, None, :] - sums
        varied = high > low
        gain = (sums**2).sum(axis=-1) / np.maximum(many, 1) + (rest**2).sum(axis=-1) / np.maximum(count - many, 1)
        best = np.where(varied, gain, -np.inf).argmax(axis=1)
        apart = np.maximum.reduceat(y, starts) - np.minimum.reduceat(y, starts) > ALIKE
        splits = np.asarray(varied.any(axis=1) & apart.any(axis=1))
        nodes += starts.size
        levels.append(
            Forest(
                np.where(splits, best, -1),
                tried[np.arange(starts.size), best],
                nodes + 2 * (np.cumsum(splits) - 1),
                np.add.reduceat(targets[rows], starts) / count,
                np.zeros(1, np.intp),
            )
        )
        child = 2 * node + right[np.arange(rows.size), best[node]]
        inner = np.flatnonzero(splits[node])
        inner = inner[np.argsort(child[inner], kind="stable")]
        rows, starts = rows[inner], np.unique(child[inner], return_index=True)[1]
    return _joined(levels, np.zeros(1, np.intp))


def _joined(parts: Sequence[Forest], roots: NDArray[np.intp]) -> Forest:
    """The nodes of all parts, one part after the other."""
    return Forest(
        np.concatenate([part.feature for part in parts]),
        np.concatenate([part.threshold for part in parts]),
        np.concatenate([part.left for part in parts]),
        np.concatenate([part.leaf for part in parts]),
        roots,
    )


@dataclass(frozen=True)
class Predicted:
    """Seconds, watts and joules of each product, ``[rows]``."""

    seconds: Array
    watts: Array
    joules: Array


def train(kernels: Kernels, seconds: Array, watts: Array, joules: Array, trees: int = TREES, seed: int = 0) -> Forest:
    """One forest of all three, from measured ``[rows]``. Seconds and joules are learnt for each operation.

    Raises:
        UsageError: a measurement that is not above 0, or not one for each row.
    """
    measured = np.stack([seconds, watts, joules], axis=-1)
    wrong = ~(measured > 0)
    if wrong.any():
        raise UsageError(f"{TARGETS[int(wrong.any(axis=0).argmax())]} must be above 0 in every row")
    operations = kernels.operations()
    table = kernels.features()
    if len(table) != len(measured):
        raise UsageError(f"{len(measured)} measurements of {len(table)} products; needs one for each")
    return grow(table, np.log(measured / _per(operations)), trees, seed)


def predict(forest: Forest, kernels: Kernels) -> Predicted:
    """What a trained forest says of products, ``[rows]``."""
    found = np.exp(forest.values(kernels.features())) * _per(kernels.operations())
    return Predicted(*found.T)


def _per(operations: Array) -> Array:
    """What the targets are divided by, ``[rows, targets]``: watts need no size."""
    return np.stack([operations, np.ones_like(operations), operations], axis=-1)


def recommend(forest: Forest, kernels: Kernels, objective: Objective = "time") -> NDArray[np.intp]:
    """Which candidate to run, ``[shapes]``: the one of least predicted seconds, or joules.

    Args:
        kernels: of ``[shapes, candidates]``: sizes ``[shapes, 1]``, tiles ``[candidates]``.

    Raises:
        UsageError: no such objective.
    """
    if objective not in ("time", "energy"):
        raise UsageError(f"objective {objective!r} is unknown; allowed: time, energy")
    columns = kernels.columns()
    found = predict(forest, Kernels(**{name: values.ravel() for name, values in columns.items()}))
    figure = found.seconds if objective == "time" else found.joules
    return np.asarray(figure.reshape(columns["m"].shape).argmin(axis=-1))


@dataclass(frozen=True)
class Roofline:
    """Seconds are the larger of operations over ``rate`` (per second) and bytes over ``bandwidth`` (bytes/s)."""

    rate: float
    bandwidth: float

    def seconds(self, kernels: Kernels) -> Array:
        """``[rows]``."""
        return np.maximum(kernels.operations() / self.rate, kernels.traffic() / self.bandwidth)


def roofline(kernels: Kernels, seconds: Array, grid: int = 128) -> Roofline:
    """The two constants of least mean absolute percentage error on measured ``[rows]``, searched on a grid.

    Each constant is tried between the lowest and the highest that a row reached.
    """
    rates, bandwidths = (
        np.geomspace((amount / seconds).min(), (amount / seconds).max(), grid)
        for amount in (kernels.operations(), kernels.traffic())
    )
    by_rate = kernels.operations()[:, None] / rates / seconds[:, None]
    by_bandwidth = kernels.traffic()[:, None] / bandwidths / seconds[:, None]
    # One rate after the other: all pairs by all rows at once would be large.
    errors = np.array([np.abs(np.maximum(one[:, None], by_bandwidth) - 1).mean(axis=0) for one in by_rate.T])
    i, j = np.unravel_index(errors.argmin(), errors.shape)
    return Roofline(float(rates[i]), float(bandwidths[j]))


def mape(predicted: Array, measured: Array) -> float:
    """Mean absolute percentage error, in percent."""
    return float(100 * np.abs(predicted / measured - 1).mean())


def r2(predicted: Array, measured: Array) -> float:
    """The share of the variance that is explained."""
    return float(1 - ((predicted - measured) ** 2).sum() / ((measured - measured.mean()) ** 2).sum())


def folds(group: Sequence[object], count: int = 5, seed: int = 0) -> NDArray[np.intp]:
    """A fold for each row, ``[rows]``, in which rows of a group are together.

    Raises:
        UsageError: fewer groups than folds, or fewer than two folds.
    """
    names, index = np.unique(np.asarray(group), return_inverse=True, axis=0)
    if not 2 <= count <= len(names):
        raise UsageError(f"{count} folds of {len(names)} shapes: needs at least 2 folds and a shape for each")
    return np.asarray(np.random.default_rng(seed).permutation(len(names))[index.ravel()] % count)
