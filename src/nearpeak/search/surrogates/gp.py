"""Exact Gaussian processes: the posterior, and the hyperparameters that are most probable given the data (MAP).

Observations are standardised inside; everything that comes out is in their units. The log posterior of the
hyperparameters has log-normal priors: length scales about ``exp(sqrt 2) * sqrt(d)`` (Hvarfner, Hellsten, Nardi:
Vanilla Bayesian Optimization Performs Great in High Dimensions, ICML 2024), which keeps a space of many parameters
from looking like noise, and noise about exp(-4).

Rasmussen, Williams: Gaussian Processes for Machine Learning, MIT Press 2006, chapters 2 and 5.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize

from nearpeak.search.parameters import Floats
from nearpeak.search.surrogates.kernels import SHAPES, Kernel, Stationary, squares_by_group

Mean = Callable[[Floats], Floats]
"""A prior mean: of features ``[m, f]``, in the units of the observations, ``[m]``."""

JITTER: Final = 1e-8
WIDE: Final = (np.sqrt(2.0), np.sqrt(3.0))
"""Location and spread of the prior of log length scales, less log(d)/2: the published one."""
WIDE_MODE: Final = (WIDE[0] - WIDE[1] ** 2, WIDE[1])
"""The same as a density over length scales and not over their logarithms: its mode is what ``fit`` seeks."""
_NOISE_LOCATION: Final = -4.0
_NOISE_SPREAD: Final = 1.0
_NOISE_FLOOR: Final = 1e-6


class Posterior(Protocol):
    """What every surrogate gives: beliefs about the function at points."""

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the function (without noise) at features ``[m, f]``, ``[m]`` each."""

    def sample(self, x: Floats, count: int, rng: np.random.Generator) -> Floats:
        """Joint draws of the function at features ``[m, f]``, ``[count, m]``."""


@dataclass(frozen=True)
class GP:
    """A Gaussian process given observations.

    Attributes:
        kernel: of the standardised function. x: features seen, ``[n, f]``. factor: lower Cholesky factor of the
            covariance of the standardised observations, ``[n, n]``. weights: that covariance's inverse times them,
            ``[n]``. centre, spread: what standardised them. noise: variance of an observation, standardised, ``[n]``.
        mean: prior mean that was taken off before, or None. evidence: log marginal likelihood of the standardised
            observations.
    """

    kernel: Kernel
    x: Floats = field(repr=False)
    factor: Floats = field(repr=False)
    weights: Floats = field(repr=False)
    centre: float
    spread: float
    noise: Floats = field(repr=False)
    mean: Mean | None = field(default=None, repr=False)
    evidence: float = 0.0

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation at features ``[m, f]``."""
        cross = self.kernel(self.x, x)
        half = solve_triangular(self.factor, cross, lower=True, check_finite=False)
        variance = np.maximum(self.kernel.diagonal(x) - (half * half).sum(axis=0), 1e-12)
        return self._unscaled(x, self.weights @ cross), self.spread * np.sqrt(variance)

    def expectation(self, x: Floats) -> Floats:
        """Mean alone at features ``[m, f]``: without the triangular solve that standard deviations take."""
        return self._unscaled(x, self.weights @ self.kernel(self.x, x))

    def covariance(self, a: Floats, b: Floats) -> Floats:
        """Posterior covariance of the function between two sets of features, ``[n, m]``."""
        left = solve_triangular(self.factor, self.kernel(self.x, a), lower=True, check_finite=False)
        right = solve_triangular(self.factor, self.kernel(self.x, b), lower=True, check_finite=False)
        return np.asarray(self.spread**2 * (self.kernel(a, b) - left.T @ right))

    def sample(self, x: Floats, count: int, rng: np.random.Generator) -> Floats:
        """Joint draws at features ``[m, f]``, ``[count, m]``; m of a few thousand at most."""
        mean, _ = self.predict(x)
        factor = cholesky(self.covariance(x, x) / self.spread**2)
        return mean + self.spread * rng.standard_normal((count, len(x))) @ factor.T

    @property
    def observation_variance(self) -> float:
        """Variance of one more observation about the function, in the units of the values squared."""
        return float(np.mean(self.noise)) * self.spread**2

    def told(self, x: Floats, y: Floats, noise: float | None = None) -> "GP":
        """With observations added (features ``[k, f]``, values ``[k]``), hyperparameters and standardisation kept."""
        added = np.full(len(x), float(np.mean(self.noise)) if noise is None else noise / self.spread**2)
        targets = (y - (0.0 if self.mean is None else self.mean(x)) - self.centre) / self.spread
        before = self.factor @ (self.factor.T @ self.weights)
        cross = solve_triangular(self.factor, self.kernel(self.x, x), lower=True, check_finite=False)
        corner = cholesky(self.kernel(x, x) + np.diag(added) - cross.T @ cross)
        n, k = len(self.x), len(x)
        factor = np.zeros((n + k, n + k))
        factor[:n, :n], factor[n:, :n], factor[n:, n:] = self.factor, cross.T, corner
        weights = cho_solve((factor, True), np.concatenate([before, targets]), check_finite=False)
        noises = np.concatenate([self.noise, added])
        return GP(self.kernel, np.vstack([self.x, x]), factor, weights, self.centre, self.spread, noises, self.mean)

    def _unscaled(self, x: Floats, standardised: Floats) -> Floats:
        prior = 0.0 if self.mean is None else self.mean(x)
        return np.asarray(self.centre + self.spread * standardised + prior)


def condition(kernel: Kernel, x: Floats, y: Floats, noise: Floats | float, mean: Mean | None = None) -> GP:
    """A GP with a given kernel (of the standardised function) given values ``y [n]`` at features ``x [n, f]``.

    Args:
        noise: variance of the standardised observations, one or ``[n]``. mean: a prior mean in the units of y.
    """
    targets, centre, spread = _targets(x, y, mean)
    noises = np.broadcast_to(np.asarray(noise, dtype=float), len(y)).copy()
    factor = cholesky(kernel(x, x) + np.diag(noises))
    weights = cho_solve((factor, True), targets, check_finite=False)
    evidence = -0.5 * targets @ weights - np.log(np.diag(factor)).sum() - 0.5 * len(y) * np.log(2 * np.pi)
    return GP(kernel, x, factor, weights, centre, spread, noises, mean, float(evidence))


@dataclass(frozen=True)
class Hyperparameters:
    """Where the log posterior of a stationary GP's hyperparameters is asked.

    ``theta`` is ``[log lengthscales (g), log scale, log noise]``; with ``noise`` given, it has no noise of its own.

    Attributes:
        x: features, ``[n, f]``. y: standardised observations, ``[n]``. shape: of the kernel.
        groups: group of each feature, ``[f]``. noise: known variances of y, ``[n]``, or None to learn one.
    """

    x: Floats
    y: Floats
    shape: str
    groups: NDArray[np.intp]
    noise: Floats | None = None
    lengths: tuple[float, float] = WIDE

    @property
    def size(self) -> int:
        """Length of theta."""
        return int(self.groups.max()) + 2 + (self.noise is None)

    @property
    def start(self) -> Floats:
        """Where a fit starts: the mode of the density over length scales, but none below 0.3."""
        d = int(self.groups.max()) + 1
        length = np.full(d, self.lengths[0] + 0.5 * np.log(d) - self.lengths[1] ** 2)
        return np.concatenate(
            [length.clip(min=np.log(0.3)), [0.0], [] if self.noise is not None else [_NOISE_LOCATION]]
        )

    @property
    def bounds(self) -> list[tuple[float, float]]:
        """Where theta stays: lengths 0.005 to 1,000; scale 1e-2 to 1e3; noise 1e-6 to 10."""
        lengths = [(np.log(0.005), np.log(1e3))] * (int(self.groups.max()) + 1)
        noise = [] if self.noise is not None else [(np.log(_NOISE_FLOOR), np.log(10.0))]
        return [*lengths, (np.log(1e-2), np.log(1e3)), *noise]

    def split(self, theta: Floats) -> tuple[Stationary, Floats]:
        """The kernel and noise of a theta."""
        d = int(self.groups.max()) + 1
        kernel = Stationary(self.shape, np.exp(theta[:d]), float(np.exp(theta[d])), self.groups)
        noise = np.full(len(self.y), np.exp(theta[d + 1])) if self.noise is None else self.noise
        return kernel, noise

    def log_posterior(self, theta: Floats) -> tuple[float, Floats]:
        """Log marginal likelihood plus log prior (up to a constant), and its gradient ``[len(theta)]``."""
        d, n = int(self.groups.max()) + 1, len(self.y)
        lengths, scale = np.exp(theta[:d]), np.exp(theta[d])
        precision = lengths**-2
        correlation, slope = SHAPES[self.shape]((precision @ self.squares.reshape(d, -1)).reshape(n, n))
        noise = np.exp(theta[d + 1]) if self.noise is None else self.noise
        covariance = scale * correlation
        covariance[np.diag_indices(n)] += noise + JITTER
        value, outer = log_likelihood(covariance, self.y)
        if outer is None:
            return value, np.zeros(len(theta))
        pull = outer * (scale * slope)
        gradient = np.empty(len(theta))
        gradient[:d] = -precision * (self.squares.reshape(d, -1) @ pull.ravel())
        gradient[d] = 0.5 * scale * (outer * correlation).sum()
        if self.noise is None:
            gradient[d + 1] = 0.5 * noise * np.trace(outer)
        prior, by_theta = self.log_prior(theta)
        return float(value + prior), gradient + by_theta

    def log_prior(self, theta: Floats) -> tuple[Floats, Floats]:
        """Of one theta or rows of them, up to a constant, and its gradient."""
        d = int(self.groups.max()) + 1
        location = np.concatenate([np.full(d, self.lengths[0] + 0.5 * np.log(d)), [0.0], [_NOISE_LOCATION]])
        spread = np.concatenate([np.full(d, self.lengths[1]), [1.0], [_NOISE_SPREAD]])
        off = (theta - location[: self.size]) / spread[: self.size]
        return np.asarray(-0.5 * (off * off).sum(axis=-1)), -off / spread[: self.size]

    @cached_property
    def squares(self) -> Floats:
        """Squared distances in each group, ``[g, n, n]``."""
        return squares_by_group(self.x, self.groups)


def log_likelihood(covariance: Floats, y: Floats) -> tuple[float, Floats | None]:
    """Log N(y | 0, covariance) of ``y [n]``, and twice its gradient by the covariance, ``[n, n]``:
    ``a a' - covariance^-1`` with ``a = covariance^-1 y``. -1e25 and None where the matrix is not positive definite.
    """
    factor, failed = dpotrf(covariance, lower=1)
    if failed:
        return -1e25, None
    inverse, _ = dpotri(factor, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights = inverse @ y
    value = -0.5 * y @ weights - np.log(np.diag(factor)).sum() - 0.5 * len(y) * np.log(2 * np.pi)
    return float(value), np.outer(weights, weights) - inverse


def most_probable(
    log_posterior: Callable[[Floats], tuple[float, Floats]],
    starts: Iterable[Floats],
    bounds: Sequence[tuple[float | None, float | None]],
    **options: int,
) -> tuple[Floats, float]:
    """The hyperparameters of largest log posterior and its value, by L-BFGS from each start.

    Args:
        log_posterior: gives value and gradient. starts: each is moved into ``bounds``. options: of scipy's L-BFGS-B.
    """

    def loss(theta: Floats) -> tuple[float, Floats]:
        value, gradient = log_posterior(theta)
        return -value, -gradient

    found = [minimize(loss, s, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for s in starts]
    best = min(found, key=lambda r: float(r.fun))
    return best.x, -float(best.fun)


def fit(
    x: Floats,
    y: Floats,
    *,
    shape: str = "matern52",
    groups: NDArray[np.intp] | None = None,
    noise: Floats | float | None = None,
    mean: Mean | None = None,
    start: Floats | None = None,
    restarts: int = 1,
    rng: np.random.Generator | None = None,
    iterations: int = 50,
) -> GP:
    """A GP whose hyperparameters have the largest posterior (MAP), by L-BFGS on exact gradients.

    Args:
        x: features in the unit cube, ``[n, f]``. y: values, ``[n]``, all finite. shape: of ``kernels.SHAPES``.
        groups: group of each feature. noise: variance of each value in the units of y squared, if it is known;
            ``0.0`` for exact values. mean: prior mean. start: theta to start from (``theta_of`` of an earlier GP).
        restarts: starts in all; those beyond the first are drawn from the prior with ``rng``.
    """
    targets, _, spread = _targets(x, y, mean)
    every = np.arange(x.shape[1]) if groups is None else groups
    known = None if noise is None else np.broadcast_to(np.asarray(noise) / spread**2, len(y)).clip(min=_NOISE_FLOOR)
    problem = Hyperparameters(x, targets, shape, every, known, WIDE_MODE)
    starts = [problem.start if start is None else start[: problem.size]]
    if restarts > 1:
        generator = rng if rng is not None else np.random.default_rng(0)
        starts += list(problem.start + generator.standard_normal((restarts - 1, problem.size)))
    theta, _ = most_probable(problem.log_posterior, starts, problem.bounds, maxiter=iterations, maxcor=20)
    kernel, noises = problem.split(theta)
    return condition(kernel, x, y, noises, mean)


def theta_of(gp: GP) -> Floats:
    """The hyperparameters of a fitted stationary GP, as ``Hyperparameters`` writes them."""
    assert isinstance(gp.kernel, Stationary)
    return np.concatenate([np.log(gp.kernel.lengthscales), [np.log(gp.kernel.scale)], [np.log(np.mean(gp.noise))]])


def standardised(y: Floats) -> tuple[Floats, float, float]:
    """Values less their mean, over their standard deviation (1 where all are the same); the mean; the deviation."""
    centre, spread = float(np.mean(y)), float(np.std(y))
    spread = spread if spread > 1e-12 * max(abs(centre), 1e-300) else 1.0
    return (y - centre) / spread, centre, spread


def _targets(x: Floats, y: Floats, mean: Mean | None) -> tuple[Floats, float, float]:
    """What the process of mean 0 explains: standardised values, or scaled residuals about the prior mean that is given.

    Residuals keep their own mean: a constant prior mean would be undone otherwise.
    """
    if mean is None:
        return standardised(y)
    residuals = y - mean(x)
    _, _, spread = standardised(residuals)
    return residuals / spread, 0.0, spread


def cholesky(covariance: Floats) -> Floats:
    """Lower Cholesky factor; the diagonal is raised by as little as makes it one.

    Raises:
        FloatingPointError: no small raise does: the matrix is no covariance.
    """
    raised = JITTER * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    for _ in range(7):
        factor, failed = dpotrf(covariance + raised * np.eye(len(covariance)), lower=1, clean=1)
        if not failed:
            return np.asarray(factor)
        raised *= 10
    raise FloatingPointError("a covariance matrix is not positive definite")
