"""A Gaussian process over a table of configurations, kept up to date in time linear in the table.

The posterior of all N configurations is carried as ``V = L^-1 K(seen, table)`` [n, N]: one more observation is one more
row, O(n N) work; only new hyperparameters cost O(n^2 N). Means are ``y' L^-T V``, so that values can be standardised,
clipped and imputed anew at every step for O(n N).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dtrtri

from nearpeak.search.parameters import Floats
from nearpeak.search.surrogates.gp import JITTER, Hyperparameters, cholesky, most_probable, standardised
from nearpeak.search.surrogates.kernels import SHAPES, Stationary

Index = NDArray[np.intp]

LENGTHS: Final = (0.7, 1.0)
"""Prior of the log length scales: tighter than ``gp.WIDE``, since a search of a table begins with ten observations."""


class TableGP:
    """A GP over the rows of a table of features, which learns their values one by one.

    Args:
        shape: of ``kernels.SHAPES``.
    """

    def __init__(self, shape: str) -> None:
        self.shape = shape
        self.seen: list[int] = []
        self.theta: Floats | None = None
        self._factor = np.zeros((0, 0))
        self._rows = np.empty((0, 0), dtype=np.float32)
        self._kernel: Stationary | None = None
        self._noise = 0.0
        self._variance = np.empty(0)
        self._scaled = self._norms = np.empty(0, dtype=np.float32)

    def fit(self, features: Floats, groups: Index, seen: list[int], y: Floats, iterations: int) -> None:
        """A table ``[N, f]``, of whose rows ``seen`` are known with values ``y [n]``, and the hyperparameters of the
        largest posterior, sought from the last ones on. ``groups [f]`` are the groups of the features.
        """
        x = features[seen]
        problem = Hyperparameters(x, standardised(y)[0], self.shape, groups, lengths=LENGTHS)
        start = problem.start if self.theta is None else self.theta
        self.theta, _ = most_probable(problem.log_posterior, [start], problem.bounds, maxiter=iterations)
        self._kernel, noise = problem.split(self.theta)
        self._noise, n = float(noise[0]) + JITTER, len(seen)
        self._rows = np.empty((max(256, 2 * n), len(features)), dtype=np.float32)
        self._factor = np.zeros((len(self._rows), len(self._rows)))
        self._factor[:n, :n] = cholesky(self._kernel(x, x) + self._noise * np.eye(n))
        inverse, _ = dtrtri(self._factor[:n, :n], lower=1)
        self._scaled = (features / self._kernel.lengthscales[groups]).astype(np.float32)
        self._norms = np.einsum("ij,ij->i", self._scaled, self._scaled)
        self._rows[:n] = inverse.astype(np.float32) @ self._covariances(seen)
        self._variance = self._kernel.scale - np.einsum("ij,ij->j", self._rows[:n], self._rows[:n])
        self.seen = list(seen)

    def add(self, index: int) -> None:
        """One more row of the table is known."""
        assert self._kernel is not None
        n = len(self.seen)
        self._make_room(n + 1)
        cross = self._covariances([index])[0]
        left = self._rows[:n, index].astype(float)
        corner = np.sqrt(max(self._kernel.scale + self._noise - left @ left, JITTER))
        self._factor[n, :n], self._factor[n, n] = left, corner
        self._rows[n] = (cross - left.astype(np.float32) @ self._rows[:n]) / corner
        self._variance = self._variance - self._rows[n] ** 2
        self.seen.append(index)

    def _covariances(self, rows: list[int]) -> NDArray[np.float32]:
        """Covariances of some rows of the table with all, ``[k, N]``, in single precision."""
        assert self._kernel is not None
        apart = self._scaled[rows] @ self._scaled.T
        apart *= -2
        apart += self._norms
        apart += self._norms[rows, None]
        np.maximum(apart, 0, out=apart)
        return np.asarray(SHAPES[self.shape](apart)[0] * np.float32(self._kernel.scale))

    def _make_room(self, rows: int) -> None:
        if rows > len(self._rows):
            more = max(rows, 2 * len(self._rows)) - len(self._rows)
            self._factor = np.pad(self._factor, (0, more))
            self._rows = np.vstack([self._rows, np.empty((more, self._rows.shape[1]), dtype=np.float32)])

    @contextmanager
    def supposing(self) -> Iterator[None]:
        """Rows added inside are forgotten at the end."""
        known, variance = len(self.seen), self._variance
        try:
            yield
        finally:
            del self.seen[known:]
            self._variance = variance

    def expectation(self, y: Floats) -> Floats:
        """Mean of the function at every row of the table, given values ``y [n]`` of the seen."""
        n = len(self.seen)
        targets, centre, spread = standardised(y)
        weights = solve_triangular(self._factor[:n, :n], targets, lower=True, check_finite=False)
        mean = weights.astype(np.float32) @ self._rows[:n]
        return np.asarray(centre + spread * mean.astype(float))

    def predict(self, y: Floats) -> tuple[Floats, Floats]:
        """The same and the standard deviation."""
        _, _, spread = standardised(y)
        return self.expectation(y), spread * np.sqrt(np.maximum(self._variance, 1e-10))
