"""Acquisition functions in closed form: how much is an evaluation worth? Smaller values are better, larger scores too.

Each takes ``(posterior, x [m, f], best)`` and gives scores ``[m]``; ``best`` is the least value so far, as noisy
surrogates see it. Those without closed form are modules of their own.

Jones, Schonlau, Welch: Efficient Global Optimization of Expensive Black-Box Functions, J. Global Optimization 1998
(EI). Ament et al.: Unexpected Improvements to Expected Improvement for Bayesian Optimization, NeurIPS 2023 (its
logarithm, which has a slope where EI underflows). Srinivas et al.: Gaussian Process Optimization in the Bandit
Setting, ICML 2010 (UCB).
"""

from collections.abc import Callable

import numpy as np
from scipy.special import erfcx, log_ndtr, ndtr

from nearpeak.search.parameters import Floats
from nearpeak.search.surrogates.gp import Posterior

Acquisition = Callable[[Posterior, Floats, float], Floats]

_LOG_2PI = float(np.log(2 * np.pi))


def expected_improvement(posterior: Posterior, x: Floats, best: float) -> Floats:
    """E[max(best - f, 0)] at features ``[m, f]``, in the units of the values."""
    mean, sd = posterior.predict(x)
    z = (best - mean) / sd
    return np.asarray(sd * (z * ndtr(z) + np.exp(-0.5 * z * z - 0.5 * _LOG_2PI)))


def log_expected_improvement(posterior: Posterior, x: Floats, best: float) -> Floats:
    """Log E[max(best - f, 0)], accurate where the improvement is far out of reach."""
    mean, sd = posterior.predict(x)
    return log_improvement((best - mean) / sd) + np.log(sd)


def probability_of_improvement(posterior: Posterior, x: Floats, best: float) -> Floats:
    """Log P(f < best)."""
    mean, sd = posterior.predict(x)
    return np.asarray(log_ndtr((best - mean) / sd))


def confidence_bound(posterior: Posterior, x: Floats, best: float, beta: float = 4.0) -> Floats:
    """How low the function may be: ``-(mean - sqrt(beta) sd)``."""
    mean, sd = posterior.predict(x)
    return np.asarray(np.sqrt(beta) * sd - mean)


def posterior_mean(posterior: Posterior, x: Floats, best: float) -> Floats:
    """Greedy: minus the mean."""
    return -posterior.predict(x)[0]


def log_improvement(z: Floats) -> Floats:
    """log(z Phi(z) + phi(z)) for any z, ``[m]``.

    Below -1 it is ``log phi(z) + log(1 - sqrt(pi/2) |z| erfcx(|z|/sqrt 2))``; below -1e3 the bracket is ``1/z^2``.
    """
    z = np.asarray(z, dtype=float)
    found, near = np.empty_like(z), z > -1
    upper, lower = z[near], z[~near]
    found[near] = np.log(upper * ndtr(upper) + np.exp(-0.5 * upper * upper - 0.5 * _LOG_2PI))
    ratio = np.sqrt(np.pi / 2) * -lower * erfcx(-lower / np.sqrt(2))
    with np.errstate(divide="ignore"):
        bracket = np.where(lower > -1e3, np.log1p(-np.minimum(ratio, 1.0)), -2 * np.log(-lower))
    found[~near] = -0.5 * lower * lower - 0.5 * _LOG_2PI + bracket
    return found
