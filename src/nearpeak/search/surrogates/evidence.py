"""The log posterior of many hyperparameters of one Gaussian process at once, and its gradient.

The same as ``gp.Hyperparameters.log_posterior``, compiled: with a few dozen observations a call is a few ten
microseconds a theta, where calls of numpy take hundreds. The gradient by theta is ``tr((w w' - K^-1) dK) / 2`` with
``w = K^-1 y`` (Rasmussen, Williams 2006, equation 5.9).
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numba import njit

from nearpeak.search.parameters import Floats
from nearpeak.search.surrogates.gp import JITTER, Hyperparameters

Density = Callable[[Floats], tuple[Floats, Floats]]
"""Rows ``[c, size]`` to log densities ``[c]``, up to a constant, and gradients ``[c, size]``."""
_SHAPES: Final = {"rbf": 0, "matern12": 1, "matern32": 2, "matern52": 3}


def log_density(problem: Hyperparameters, prior: bool = True) -> Density:
    """``problem.log_posterior`` of rows of thetas, or without the prior the log marginal likelihood; -inf where the
    covariance has no Cholesky factor.
    """
    squares = np.ascontiguousarray(problem.squares)
    noise = np.empty(0) if problem.noise is None else np.asarray(problem.noise, dtype=float)
    shape = _SHAPES[problem.shape]

    def density(thetas: Floats) -> tuple[Floats, Floats]:
        values, gradients = _log_evidence(np.ascontiguousarray(thetas), squares, problem.y, noise, shape)
        if not prior:
            return values, gradients
        belief, slope = problem.log_prior(thetas)
        return values + belief, gradients + slope

    return density


@njit(cache=True)
def _log_evidence(thetas: Floats, squares: Floats, y: Floats, known: Floats, shape: int) -> tuple[Floats, Floats]:
    """Log marginal likelihood of each theta and its gradient: ``[c]``, ``[c, size]``; -inf where there is no factor."""
    count, size = thetas.shape
    d, n = squares.shape[0], len(y)
    values, gradients = np.full(count, -np.inf), np.zeros((count, size))
    correlation, slope = np.empty((n, n)), np.empty((n, n))
    factor, inverse = np.zeros((n, n)), np.zeros((n, n))
    weights = np.empty(n)
    for c in range(count):
        theta = thetas[c]
        if np.abs(theta).max() > 50:
            continue
        precision, scale = np.exp(-2 * theta[:d]), np.exp(theta[d])
        noise = 0.0 if len(known) else np.exp(theta[d + 1])
        good = True
        for i in range(n):
            for j in range(i + 1):
                r2 = 0.0
                for g in range(d):
                    r2 += precision[g] * squares[g, i, j]
                if shape == 0:
                    value = np.exp(-0.5 * r2)
                    step = -0.5 * value
                elif shape == 1:
                    r = np.sqrt(r2 + 1e-12)
                    value = np.exp(-r)
                    step = -0.5 * value / r
                elif shape == 2:
                    r = np.sqrt(3 * r2)
                    decay = np.exp(-r)
                    value, step = (1 + r) * decay, -1.5 * decay
                else:
                    r = np.sqrt(5 * r2)
                    decay = np.exp(-r)
                    value, step = (1 + r + r * r / 3) * decay, -5 / 6 * (1 + r) * decay
                correlation[i, j], slope[i, j] = value, step
            for j in range(i + 1):
                total = scale * correlation[i, j]
                if i == j:
                    total += JITTER + (known[i] if len(known) else noise)
                for k in range(j):
                    total -= factor[i, k] * factor[j, k]
                if i > j:
                    factor[i, j] = total / factor[j, j]
                elif total <= 0:
                    good = False
                else:
                    factor[i, i] = np.sqrt(total)
            if not good:
                break
        if not good:
            continue
        # inverse holds the transposed inverse of the factor in rows: row j is column j of it.
        for j in range(n):
            inverse[j, j] = 1 / factor[j, j]
            for i in range(j + 1, n):
                total = 0.0
                for k in range(j, i):
                    total -= factor[i, k] * inverse[j, k]
                inverse[j, i] = total / factor[i, i]
        value = -0.5 * n * np.log(2 * np.pi)
        for i in range(n):
            value -= np.log(factor[i, i])
        for i in range(n):
            total = 0.0
            for j in range(i + 1):
                total += inverse[j, i] * y[j]
            weights[i] = total
            value -= 0.5 * total * total
        for i in range(n - 1, -1, -1):
            total = weights[i]
            for k in range(i + 1, n):
                total -= factor[k, i] * weights[k]
            weights[i] = total / factor[i, i]
        values[c] = value
        for i in range(n):
            for j in range(i + 1):
                entry = 0.0
                for k in range(i, n):
                    entry += inverse[i, k] * inverse[j, k]
                outer = weights[i] * weights[j] - entry
                twice = 1.0 if i == j else 2.0
                pull = twice * outer * scale * slope[i, j]
                for g in range(d):
                    gradients[c, g] -= pull * squares[g, i, j] * precision[g]
                gradients[c, d] += 0.5 * twice * outer * scale * correlation[i, j]
                if i == j and not len(known):
                    gradients[c, d + 1] += 0.5 * noise * outer
    return values, gradients
