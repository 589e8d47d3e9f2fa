"""A joint model of learning curves: each decays exponentially to an asymptote, and like configurations have like ones.

A curve ``y(t)`` is its asymptote ``f`` and a process with the exponential-decay-mixture kernel, which is what a mixture
of decays ``exp(-lambda t)`` with ``lambda ~ Gamma(alpha, beta)`` gives,

    k(t, t') = s (beta / (t + t' + beta))^alpha + noise [t = t']

and the asymptotes of all configurations are a GP over them (Matern-5/2). Curves are independent given their asymptotes,
so with ``n`` curves of ``T`` points the cost is ``T^3 + n^3`` and not ``(nT)^3``. All curves are seen at the same
moments 1, 2, ... up to where each was stopped, hence one Cholesky factor ``L`` of the kernel at all moments serves all:
its leading blocks are theirs. With ``u = L^-1 1`` and ``z = L^-1 (y - m)``, what a curve of ``k`` points says of its
asymptote is the precision ``sum_{t <= k} u_t^2``, and one more point adds ``u_{k+1}^2``.

Swersky, Snoek, Adams: Freeze-Thaw Bayesian Optimization, arXiv:1406.3896 (2014), sections 3.1 and 3.2.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

from nearpeak.search.parameters import Floats
from nearpeak.search.surrogates.gp import cholesky, standardised
from nearpeak.search.surrogates.kernels import SHAPES, squared_distances

_PRIOR_MEAN = np.array([0.0, 0.0, 0.0, 1.0, -0.5, -5.0])
_PRIOR_SPREAD = np.array([1.0, 1.0, 1.0, 1.5, 1.0, 2.0])
"""Of log scale, mean, log alpha, log beta (in moments), log s and log noise, for standardised losses."""


@dataclass(frozen=True)
class Curves:
    """What was seen of ``n`` curves.

    Attributes:
        features: of the configurations, in the unit cube, ``[n, f]``. losses: ``[T, n]``, anything after the end.
        seen: how many points of each, ``[n]``; 0 for a configuration that is only thought of.
    """

    features: Floats = field(repr=False)
    losses: Floats = field(repr=False)
    seen: NDArray[np.intp]

    @property
    def there(self) -> NDArray[np.bool_]:
        """Which losses were seen, ``[T, n]``."""
        return np.arange(len(self.losses))[:, None] < self.seen

    def joined(self, features: Floats) -> "Curves":
        """With configurations of which nothing was seen yet."""
        more = len(features)
        return Curves(
            np.vstack([self.features, features]),
            np.hstack([self.losses, np.zeros((len(self.losses), more))]),
            np.append(self.seen, np.zeros(more, dtype=np.intp)),
        )


@dataclass(frozen=True)
class Decay:
    """Hyperparameters of the model.

    Attributes:
        theta: log length scales ``[g]``, then log scale of the asymptotes, their mean, log alpha, log beta, log s, log
            noise: all of standardised losses. groups: of the features, ``[f]``. centre, spread: what standardises.
    """

    theta: Floats
    groups: NDArray[np.intp] = field(repr=False)
    centre: float
    spread: float

    def asymptotes(self, features: Floats) -> Floats:
        """Prior covariance of the asymptotes, standardised, ``[n, n]``."""
        g = int(self.groups.max()) + 1
        scaled = features / np.exp(self.theta[:g])[self.groups]
        found: Floats = np.exp(self.theta[g]) * SHAPES["matern52"](squared_distances(scaled, scaled))[0]
        return found

    @property
    def mean(self) -> float:
        """Of the asymptotes, standardised."""
        return float(self.theta[-5])

    def factor(self, moments: int) -> Floats:
        """Lower Cholesky factor of the kernel in time, ``[T, T]``."""
        alpha, beta, size, noise = np.exp(self.theta[-4:])
        t = np.arange(1, moments + 1)
        return cholesky(size * (beta / (t[:, None] + t + beta)) ** alpha + noise * np.eye(moments))


@dataclass(frozen=True)
class Whitened:
    """Curves divided by their kernel in time.

    Attributes:
        factor: ``L [T, T]``. ones: ``u [T]``. z: ``[T, n]``, 0 where nothing was seen. precision, evidence: what each
            curve says of its asymptote: how much ``[n]``, and times (asymptote - mean) ``[n]``.
    """

    factor: Floats = field(repr=False)
    ones: Floats = field(repr=False)
    z: Floats = field(repr=False)
    precision: Floats = field(repr=False)
    evidence: Floats = field(repr=False)


def whitened(decay: Decay, curves: Curves) -> Whitened:
    """One triangular solve for all curves: the leading block of a factor is the factor of the leading block."""
    there = curves.there
    factor = decay.factor(len(curves.losses))
    standard = (curves.losses - decay.centre) / decay.spread - decay.mean
    both = np.column_stack([np.ones(len(factor)), np.where(there, standard, 0.0)])
    solved = solve_triangular(factor, both, lower=True, check_finite=False)
    ones, z = solved[:, 0], np.where(there, solved[:, 1:], 0.0)
    return Whitened(factor, ones, z, (there * ones[:, None] ** 2).sum(axis=0), ones @ z)


def log_evidence(decay: Decay, curves: Curves) -> float:
    """Log density of all losses seen, standardised."""
    at = whitened(decay, curves)
    prior = decay.asymptotes(curves.features)
    root = np.sqrt(at.precision)
    both = cholesky(np.eye(len(root)) + root[:, None] * prior * root)
    pulled = prior @ at.evidence
    half = solve_triangular(both, root * pulled, lower=True, check_finite=False)
    fit = (at.z**2).sum() - (at.evidence @ pulled - half @ half)
    determinants = (curves.there * np.log(np.diag(at.factor))[:, None]).sum() + np.log(np.diag(both)).sum()
    return float(-0.5 * fit - determinants - 0.5 * curves.seen.sum() * np.log(2 * np.pi))


def fit(curves: Curves, groups: NDArray[np.intp], iterations: int = 40) -> Decay:
    """The most probable hyperparameters, by L-BFGS with differences for slopes.

    Args:
        curves: at least one point of at least one. groups: group of each feature, ``[f]``.
    """
    _, centre, spread = standardised(curves.losses[curves.there])
    g = int(groups.max()) + 1
    location = np.concatenate([np.full(g, np.log(0.5) + 0.5 * np.log(g)), _PRIOR_MEAN])
    width = np.concatenate([np.full(g, 1.0), _PRIOR_SPREAD])

    def loss(theta: Floats) -> float:
        off = (theta - location) / width
        return 0.5 * float(off @ off) - log_evidence(Decay(theta, groups, centre, spread), curves)

    bounds = list(zip(location - 4 * width, location + 4 * width, strict=True))
    found = minimize(loss, location, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations})
    return Decay(np.asarray(found.x), groups, centre, spread)


@dataclass(frozen=True)
class Asymptotes:
    """Beliefs about the asymptotes of ``n`` curves, in the units of the losses.

    Attributes:
        mean: ``[n]``. covariance: ``[n, n]``. decay, curves, at: what they come from.
    """

    mean: Floats
    covariance: Floats = field(repr=False)
    decay: Decay = field(repr=False)
    curves: Curves = field(repr=False)
    at: Whitened = field(repr=False)

    @property
    def sd(self) -> Floats:
        """Standard deviations, ``[n]``."""
        return np.asarray(np.sqrt(np.diag(self.covariance).clip(min=1e-300)))

    def gained(self, more: int) -> Floats:
        """Precision about its own asymptote that ``more`` points add to each curve, ``[n]``; units of the losses."""
        total = np.append(0.0, np.cumsum(self.at.ones**2))
        end = np.minimum(self.curves.seen + more, len(total) - 1)
        return np.asarray((total[end] - total[self.curves.seen]) / self.decay.spread**2)

    def forecast(self, curve: int, moments: int) -> tuple[Floats, Floats]:
        """Mean and standard deviation of a curve's next observations up to moment ``moments``, noise included."""
        k, L = int(self.curves.seen[curve]), self.at.factor  # noqa: N806 (the factor of the paper)
        asymptote = (self.mean[curve] - self.decay.centre) / self.decay.spread - self.decay.mean
        known = L[k:moments, :k]
        ones = known @ self.at.ones[:k]
        mean = known @ self.at.z[:k, curve] + (1 - ones) * asymptote
        own = (L[k:moments, k:moments] ** 2).sum(axis=1)
        variance = own + (1 - ones) ** 2 * self.covariance[curve, curve] / self.decay.spread**2
        back = self.decay.centre + self.decay.spread * (mean + self.decay.mean)
        return back, self.decay.spread * np.sqrt(variance)


def asymptotes(decay: Decay, curves: Curves) -> Asymptotes:
    """Beliefs about the asymptotes given the curves: of those of which nothing was seen, too."""
    at = whitened(decay, curves)
    prior = decay.asymptotes(curves.features)
    root = np.sqrt(at.precision)
    known = np.flatnonzero(root > 0)
    factor = cholesky(np.eye(len(known)) + root[known, None] * prior[np.ix_(known, known)] * root[known])
    half = solve_triangular(factor, root[known, None] * prior[known], lower=True, check_finite=False)
    covariance = prior - half.T @ half
    mean = decay.mean + covariance @ at.evidence
    return Asymptotes(decay.centre + decay.spread * mean, decay.spread**2 * covariance, decay, curves, at)
