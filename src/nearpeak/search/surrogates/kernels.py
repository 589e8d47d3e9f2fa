"""Covariance functions on the unit cube.

A kernel is called with two sets of features, ``kernel(a [n, f], b [m, f]) -> [n, m]``, and ``kernel.diagonal(a)`` is
its variance at each, ``[n]``. The stationary ones have a length scale for each group of features (a group is one
parameter of the space: ``Space.groups``), so that the irrelevant ones can be found out.

Rasmussen, Williams: Gaussian Processes for Machine Learning, MIT Press 2006, chapter 4.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from nearpeak.search.parameters import Floats

Distances = NDArray[Any]
"""Squared scaled distances, in single or double precision."""


class Kernel(Protocol):
    """A covariance function."""

    def __call__(self, a: Floats, b: Floats) -> Floats:
        """Covariances ``[n, m]`` of two sets of features."""

    def diagonal(self, a: Floats) -> Floats:
        """Variance at each, ``[n]``."""


def _rbf(r2: Distances) -> tuple[Distances, Distances]:
    value = np.exp(-0.5 * r2)
    return value, -0.5 * value


def _matern12(r2: Distances) -> tuple[Distances, Distances]:
    r = np.sqrt(r2 + 1e-12)
    value = np.exp(-r)
    return value, -0.5 * value / r


def _matern32(r2: Distances) -> tuple[Distances, Distances]:
    r = np.sqrt(3 * r2)
    decay = np.exp(-r)
    return (1 + r) * decay, -1.5 * decay


def _matern52(r2: Distances) -> tuple[Distances, Distances]:
    r = np.sqrt(5 * r2)
    decay = np.exp(-r)
    return (1 + r + r * r / 3) * decay, -5 / 6 * (1 + r) * decay


SHAPES: Final[dict[str, Callable[[Distances], tuple[Distances, Distances]]]] = {
    "rbf": _rbf,
    "matern12": _matern12,
    "matern32": _matern32,
    "matern52": _matern52,
}
"""Of the squared scaled distance: the correlation, and its derivative by it."""


@dataclass(frozen=True)
class Stationary:
    """``scale * shape(sum_g d_g^2 / l_g^2)``, d_g the distance in the features of group g.

    Attributes:
        shape: a name of ``SHAPES``. lengthscales: one a group, ``[g]``. scale: the variance.
        groups: the group of each feature, ``[f]``; None: each is its own.
    """

    shape: str
    lengthscales: Floats
    scale: float = 1.0
    groups: NDArray[np.intp] | None = field(default=None, repr=False)

    def __call__(self, a: Floats, b: Floats) -> Floats:
        """Covariances ``[n, m]``."""
        lengths = self.lengthscales if self.groups is None else self.lengthscales[self.groups]
        return self.scale * SHAPES[self.shape](squared_distances(a / lengths, b / lengths))[0]

    def diagonal(self, a: Floats) -> Floats:
        """``scale`` everywhere."""
        return np.full(len(a), self.scale)


def squared_distances(a: Floats, b: Floats) -> Floats:
    """Squared Euclidean distances ``[n, m]``, by one matrix product."""
    found = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
    return np.asarray(np.maximum(found, 0, out=found))


def squares_by_group(x: Floats, groups: NDArray[np.intp]) -> Floats:
    """Squared distances of features ``x [n, f]`` to each other in each of the ``groups [f]``, ``[g, n, n]``."""
    found = np.zeros((int(groups.max()) + 1, len(x), len(x)))
    for j, g in enumerate(groups):
        found[g] += (x[:, None, j] - x[None, :, j]) ** 2
    return found
