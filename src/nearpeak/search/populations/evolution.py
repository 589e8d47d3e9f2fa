"""What evolutionary methods over several objectives share: variation, reference directions, sorts.

All of it works on whole populations, and on NumPy arrays and torch tensors alike: the same function runs where its
arguments live. A population is a matrix ``[n, d]`` in the unit cube, a row an individual.

Simulated binary crossover (Deb and Agrawal, Complex Systems 9, 1995) places two children about the middle of their
parents ``a`` and ``b``, with ``u`` uniform:

    (a + b) / 2 +- beta (a - b) / 2,    beta = (2 u)^(1 / (eta + 1)) or its inverse, with equal chance

Polynomial mutation (Deb and Goyal, 1996) moves one gene in ``d`` by a share of its way to the bound. Reference
directions are the lattice of Das and Dennis (SIAM Journal on Optimization 8, 1998).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np

Array = Any
"""A NumPy array or a torch tensor."""
Random = Any
"""A NumPy or torch generator; it lives where the arrays do."""

Select = Callable[[Array, int, Array, Array, Random], tuple[Array, Array, Array]]
"""Values ``[n, m]``, a count, the ideal point, the extremes and a generator -> the indices that survive, their places
in tournaments, the extremes now."""

CHUNK = 1 << 22
"""Elements of the largest array that a comparison of all with all makes at once on a CPU."""


def namespace(array: Array) -> Any:  # noqa: ANN401 (a module: numpy or torch)
    """The module whose functions take ``array``. Those used here have the same names in both."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def chunk_of(array: Array) -> int:
    """Elements that a comparison of all with all may hold at once where ``array`` lives."""
    return CHUNK if isinstance(array, np.ndarray) or array.device.type == "cpu" else CHUNK << 6


def generator(seed: int, device: str | None = None) -> Random:
    """A source of random numbers: NumPy's, or torch's on ``device``."""
    if device is None:
        return np.random.default_rng(seed)
    import torch

    return torch.Generator(device=device).manual_seed(seed)


def uniform(rng: Random, *shape: int) -> Array:
    """Numbers in [0, 1) of ``shape``, float64."""
    if isinstance(rng, np.random.Generator):
        return rng.random(shape)
    import torch

    return torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64)


def integers(rng: Random, high: int, *shape: int) -> Array:
    """Whole numbers below ``high``, as indices."""
    if isinstance(rng, np.random.Generator):
        return rng.integers(high, size=shape)
    import torch

    return torch.randint(high, shape, generator=rng, device=rng.device)


def like(array: np.ndarray, other: Array) -> Array:
    """``array`` where ``other`` lives."""
    return array if isinstance(other, np.ndarray) else namespace(other).as_tensor(array, device=other.device)


def to_numpy(array: Array) -> np.ndarray:
    """``array`` in main memory."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.cpu().numpy())


def placed(array: Array) -> dict[str, Any]:
    """What makes a new array live where ``array`` does."""
    return {} if isinstance(array, np.ndarray) else {"device": array.device}


def indices(mask: Array) -> Array:
    """Where a mask ``[n]`` is true."""
    return np.flatnonzero(mask) if isinstance(mask, np.ndarray) else mask.nonzero()[:, 0]


def lexsort(*keys: Array) -> Array:
    """Indices that sort by the last key, then by the one before, and so on (``numpy.lexsort``); stable."""
    xp = namespace(keys[0])
    if xp is np:
        return np.lexsort(keys)
    order = xp.argsort(keys[0], axis=0, stable=True)
    for key in keys[1:]:
        order = order[xp.argsort(key[order], axis=0, stable=True)]
    return order


def positions(groups: Array, key: Array, count: int) -> Array:
    """The place ``[n]`` of each element among those of its group, by ``key`` ascending; ``count``: of groups."""
    xp = namespace(groups)
    order = lexsort(key, groups)
    size = xp.bincount(groups, minlength=count)
    first = xp.cumsum(size, 0) - size
    place = xp.empty_like(order)
    place[order] = xp.arange(len(order), **placed(groups)) - first[groups[order]]
    return place


def repeated(points: Array) -> Array:
    """Which rows ``[n]`` of ``points [n, d]`` equal an earlier one, told by a hash of the row."""
    xp = namespace(points)
    spread = like(np.random.default_rng(0).random(points.shape[1]), points)
    key = xp.einsum("ij,j->i", points, spread)
    order = xp.argsort(key, axis=0, stable=True)
    same = xp.zeros_like(key, dtype=xp.bool)
    same[order[1:]] = key[order[1:]] == key[order[:-1]]
    return same


@dataclass(frozen=True)
class Genes:
    """What the columns of the unit cube stand for.

    Attributes:
        low, high: bounds ``[d]`` of the decoded values. levels: ``[d]`` of values of a discrete column, 0 where it is
            continuous. categorical: ``[d]``, whether the order of a discrete column's values means nothing.
    """

    low: Array
    high: Array
    levels: Array
    categorical: Array

    @property
    def discrete(self) -> bool:
        """Whether any column is."""
        return bool((self.levels > 0).any())

    def snap(self, points: Array) -> Array:
        """``points`` moved to the middle of their level; columns without levels as they are."""
        if not self.discrete:
            return points
        xp = namespace(points)
        some = xp.clip(self.levels, 1, None)
        return xp.where(self.levels > 0, (xp.floor(points * some).clip(None, some - 1) + 0.5) / some, points)

    def decode(self, points: Array) -> Array:
        """Values ``[n, d]`` that the objectives see; of discrete columns whole numbers from ``low`` to ``high``."""
        spread = points * (self.high - self.low)
        if self.discrete:
            xp = namespace(points)
            spread = xp.where(self.levels > 0, xp.floor(points * self.levels), spread)
        return self.low + spread


def crossover(first: Array, second: Array, rng: Random, eta: float = 30.0, genes: Genes | None = None) -> Array:
    """Two children ``[2 n, d]`` of each pair ``first[i]``, ``second[i]``, as rows ``i`` and ``n + i``.

    Half of the genes cross, each for itself; the others are inherited. Of categorical columns one parent's value is
    taken as it is. ``eta``: the larger, the nearer to the parents.
    """
    xp = namespace(first)
    n, d = first.shape
    u, coin = uniform(rng, n, d), uniform(rng, n, d)
    spread = (2 * xp.minimum(u, 1 - u)) ** (1 / (eta + 1))
    beta = xp.where(u <= 0.5, spread, 1 / spread.clip(1e-12, None))
    if genes is not None and genes.discrete:
        beta = xp.where(genes.categorical, xp.ones_like(beta), beta)
    # A coin below a half: the gene does not cross; in the last quarter the children change places.
    beta = xp.where(coin < 0.5, xp.ones_like(beta), xp.where(coin < 0.75, beta, -beta))
    middle, half = (first + second) / 2, (first - second) / 2 * beta
    return xp.concatenate([middle + half, middle - half]).clip(0.0, 1.0)


def mutation(points: Array, rng: Random, eta: float = 20.0, genes: Genes | None = None) -> Array:
    """``points`` with one gene in ``d`` moved. Whole numbers move by one at least, categories anywhere."""
    xp = namespace(points)
    n, d = points.shape
    row, column = xp.nonzero(uniform(rng, n, d) < 1 / d, **({} if xp is np else {"as_tuple": True}))
    x, u = points[row, column], uniform(rng, len(row))
    left = u < 0.5
    v, away = xp.where(left, u, 1 - u), xp.where(left, 1 - x, x) ** (eta + 1)
    step = 1 - (2 * v + (1 - 2 * v) * away) ** (1 / (eta + 1))
    moved = (x + xp.where(left, -step, step)).clip(0.0, 1.0)
    if genes is not None and genes.discrete:
        levels = xp.clip(genes.levels[column], 1, None)
        now, then = xp.floor(x * levels).clip(None, levels - 1), xp.floor(moved * levels).clip(None, levels - 1)
        stays = (now == then) & (genes.levels[column] > 1)
        down = (left & (now > 0)) | (now == levels - 1)
        moved = xp.where(stays, (now + xp.where(down, -1.0, 1.0) + 0.5) / levels, moved)
        moved = xp.where(genes.categorical[column], uniform(rng, len(row)), moved)
    result = points.copy() if xp is np else points.clone()
    result[row, column] = moved
    return result


def offspring(points: Array, first: Array, second: Array, count: int, rng: Random, genes: Genes) -> Array:
    """``count`` children of the parents ``points[first]`` and ``points[second]`` (indices), crossed and mutated.

    The first ``len(first)`` are the pairs' first children; their second ones follow.
    """
    return genes.snap(mutation(crossover(points[first], points[second], rng, genes=genes)[:count], rng, genes=genes))


def pairs(better: Array, rng: Random) -> tuple[Array, Array]:
    """Parents ``[ceil(n / 2)]`` twice, each the winner of a tournament of two; the smaller of ``better [n]`` wins."""
    xp = namespace(better)
    n = len(better)
    a, b = integers(rng, n, 2 * ((n + 1) // 2)), integers(rng, n, 2 * ((n + 1) // 2))
    won = xp.where(better[a] <= better[b], a, b)
    return won[: len(won) // 2], won[len(won) // 2 :]


def shuffled_pairs(like_rows: Array, rng: Random) -> tuple[Array, Array]:
    """The rows of a population in random pairs, each row once (one of them twice where their number is odd)."""
    xp = namespace(like_rows)
    order = xp.argsort(uniform(rng, len(like_rows)), 0)
    half = (len(order) + 1) // 2
    return order[:half], order[-half:]


@dataclass(frozen=True)
class Population:
    """Individuals and what a method remembers of earlier ones.

    Attributes:
        points: ``[n, d]`` in the unit cube. values: ``[n, m]``, infinite where an evaluation failed. violation: ``[n]``
            by how much constraints are violated; 0 where they hold, infinite where an evaluation failed.
        place: ``[n]``, smaller wins a tournament. ideal: ``[m]``, the least value of each objective so far.
        extremes: ``[k, m]``, values of the individuals that reach farthest along each axis.
    """

    points: Array
    values: Array
    violation: Array
    place: Array
    ideal: Array
    extremes: Array


def survivors(parents: Population, children: Population, select: Select, rng: Random) -> Population:
    """As many of both as there are parents: by ``select`` where enough are feasible, else by violation."""
    xp = namespace(parents.values)
    points, values, violation = (
        xp.concatenate([getattr(parents, name), getattr(children, name)]) for name in ("points", "values", "violation")
    )
    count = len(parents.points)
    # A copy of an individual that is there already is worth as much as a failure.
    violation = xp.where(repeated(points), xp.inf, violation)
    index = indices(violation <= 0)
    if len(index) <= count:
        kept = xp.argsort(violation, axis=0, stable=True)[:count]
        ideal = ideal_of(values, violation, parents.ideal)
        return Population(points[kept], values[kept], violation[kept], violation[kept], ideal, parents.extremes)
    own = values[index]
    ideal = xp.minimum(parents.ideal, xp.amin(own, 0))
    chosen, place, extremes = select(own, count, ideal, parents.extremes, rng)
    kept = index[chosen]
    return Population(points[kept], values[kept], violation[kept], place, ideal, extremes)


def ideal_of(values: Array, violation: Array, ideal: Array) -> Array:
    """The least of ``ideal [m]`` and the feasible ``values [n, m]``."""
    xp = namespace(values)
    return xp.minimum(ideal, xp.amin(xp.where((violation <= 0)[:, None], values, xp.inf), 0))


def farthest(values: Array, ideal: Array, extremes: Array) -> Array:
    """Of ``values [n, m]`` and the ``extremes`` so far, those nearest to each axis by achievement: ``[m, m]``.

    The achievement along axis ``j`` is ``max_i (f_i - ideal_i) / w_i`` with ``w`` the unit vector and 1e-6 elsewhere.
    """
    xp = namespace(values)
    every = xp.concatenate([extremes, values])
    above = every - ideal
    columns = range(values.shape[1])
    weights = like(np.eye(values.shape[1]) * (1 - 1e6) + 1e6, values)
    return xp.stack([every[xp.argmin(xp.amax(above * weights[j], 1))] for j in columns])


def lattice(objectives: int, parts: int) -> np.ndarray:
    """All ``[C(parts + m - 1, m - 1), m]`` vectors of multiples of ``1 / parts`` that add to 1."""
    bars = np.array(list(combinations(range(parts + objectives - 1), objectives - 1)), dtype=np.int64)
    bars = bars.reshape(-1, objectives - 1)
    ends = np.column_stack([np.full(len(bars), -1), bars, np.full(len(bars), parts + objectives - 1)])
    return np.asarray((np.diff(ends, axis=1) - 1) / parts)


def reference_directions(objectives: int, count: int) -> np.ndarray:
    """At most ``count`` directions ``[r, m]`` spread over the simplex; the unit vectors are among them.

    The largest lattice that fits, and then smaller ones drawn halfway to the centre as long as they fit: with many
    objectives the first lattice has no point inside.
    """
    layers: list[np.ndarray] = []
    shrink, left = 1.0, max(count, objectives)
    while left >= objectives:
        parts = 1
        while objectives > 1 and comb(parts + objectives, objectives - 1) <= left:
            parts += 1
        layer = lattice(objectives, parts)
        if len(layer) > left or (layers and left < len(layers[-1]) / 4):
            break
        layers.append(shrink * layer + (1 - shrink) / objectives)
        left, shrink = left - len(layer), shrink / 2
        if parts >= objectives:  # the lattice has points inside
            break
    return np.concatenate(layers)
