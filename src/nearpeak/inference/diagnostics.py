"""Whether chains have met and how many independent draws they are worth (Vehtari, Gelman, Simpson, Carpenter and
Buerkner, Rank-normalization, folding, and localization, Bayesian Analysis 2021).

With ``m`` half chains of ``n`` draws, ``W`` the mean of their variances and ``B / n`` the variance of their means,

    R-hat = sqrt(((n - 1) / n W + B / n) / W)        ESS = m n / (1 + 2 sum_t rho_t)

where ``rho_t`` is the autocorrelation that chains share; its sum stops where a pair of neighbours turns negative
(Geyer's initial monotone sequence). R-hat is that of the ranks' normal scores, the larger of the draws' own and of
their distances from the median, so that heavy tails and unequal spreads show too.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

from nearpeak.errors import UsageError

Array = NDArray[np.float64]


def _split(draws: Array) -> Array:
    """Each chain's two halves as chains: ``[2 chains, draws // 2, d]``."""
    if draws.ndim != 3 or draws.shape[1] < 4:
        raise UsageError(f"draws must be [chains, draws >= 4, d], not {draws.shape}")
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def _normal_scores(draws: Array) -> Array:
    ranks = rankdata(draws.reshape(-1, draws.shape[2]), axis=0)
    return np.asarray(ndtri((ranks - 0.375) / (len(ranks) + 0.25)).reshape(draws.shape))


def _r_hat(chains: Array) -> Array:
    n = chains.shape[1]
    within = chains.var(axis=1, ddof=1).mean(axis=0)
    between = chains.mean(axis=1).var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sqrt((n - 1) / n + between / within)
    # A constant has nothing to converge; chains that each sit at a value of their own have not met.
    return np.where(within > 0, ratio, np.where(between > 0, np.inf, 1.0))


def r_hat(draws: Array) -> Array:
    """Rank-normalised split R-hat ``[d]`` of draws ``[chains, draws, d]``: 1 where chains agree, at most 1.01.

    Raises:
        UsageError: ``draws`` has another shape, or fewer than 4 draws a chain.
    """
    chains = _split(np.asarray(draws, float))
    folded = np.abs(chains - np.median(chains, axis=(0, 1)))
    return np.maximum(_r_hat(_normal_scores(chains)), _r_hat(_normal_scores(folded)))


def effective_size(draws: Array, rank: bool = True) -> Array:
    """Effective sample size ``[d]`` of draws ``[chains, draws, d]``, for their bulk (``rank``) or their mean.

    Raises:
        UsageError: ``draws`` has another shape, or fewer than 4 draws a chain.
    """
    chains = _split(np.asarray(draws, float))
    if rank:
        chains = _normal_scores(chains)
    m, n, _ = chains.shape
    centered = chains - chains.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(centered, 2 * n, axis=1)
    covariance = np.fft.irfft(spectrum * spectrum.conj(), axis=1)[:, :n] / n
    within = covariance[:, 0].mean(axis=0) * n / (n - 1)
    total = (n - 1) / n * within + (chains.mean(axis=1).var(axis=0, ddof=1) if m > 1 else 0)
    known = total > 0
    rho = 1 - (within - covariance.mean(axis=0)) / np.where(known, total, 1.0)
    rho[0] = 1.0
    pairs = rho[: n // 2 * 2].reshape(n // 2, 2, -1).sum(axis=1)
    pairs = np.where(np.logical_and.accumulate(pairs > 0, axis=0), np.minimum.accumulate(pairs, axis=0), 0.0)
    # Antithetic chains may be worth more than their draws, but no estimate from so few is trusted beyond this factor.
    time = np.maximum(2 * pairs.sum(axis=0) - 1, 1 / np.log10(m * n))
    return np.where(known, m * n / time, float(m * n))
