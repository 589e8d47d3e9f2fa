"""The Bayesian neural network of infinite width: a Gaussian process with the kernel of the network's prior (NNGP).

With rectified units, weights of variance ``w / fan_in`` and biases of variance ``b``, the covariance of a layer's
outputs is, by that of its inputs (arc-cosine kernel of first order),

    K'(x, x') = b + w sqrt(K(x,x) K(x',x')) (sin t + (pi - t) cos t) / (2 pi),   cos t = K(x,x') / sqrt(K(x,x) K(x',x'))

from ``b + w x.x' / d`` on. There is no length scale: similarity is an angle, which stays informative in many
dimensions. ``w``, ``b``, scale and noise maximise the log marginal likelihood, for each of several depths.

Cho, Saul: Kernel Methods for Deep Learning, NeurIPS 2009. Lee et al.: Deep Neural Networks as Gaussian Processes, ICLR
2018. As a surrogate: Li, Rudner, Wilson, ICLR 2024.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import GP, JITTER, condition, log_likelihood, most_probable, standardised

_NOISE_LOCATION = -6.0
_SPREADS = np.array([1.5, 1.5, 2.0, 2.0])


@dataclass(frozen=True)
class InfiniteWidth:
    """The kernel of a network with ``depth`` hidden layers.

    Attributes:
        weight, bias: prior variances. scale: variance of the output layer.
    """

    depth: int
    weight: float
    bias: float
    scale: float

    def __call__(self, a: Floats, b: Floats) -> Floats:
        """Covariances ``[n, m]`` at features of the unit cube."""
        a, b = 2 * a - 1, 2 * b - 1
        cross = self.bias + self.weight * (a @ b.T) / a.shape[1]
        left, right = (self.bias + self.weight * (x * x).mean(1) for x in (a, b))
        for _ in range(self.depth):
            cross = self.bias + self.weight * rectified(left[:, None], right, cross)[0]
            left, right = (self.bias + self.weight * k / 2 for k in (left, right))
        return np.asarray(self.scale * cross)

    def diagonal(self, a: Floats) -> Floats:
        """Variance at each, ``[n]``."""
        found = self.bias + self.weight * ((2 * a - 1) ** 2).mean(1)
        for _ in range(self.depth):
            found = self.bias + self.weight * found / 2
        return np.asarray(self.scale * found)


def rectified(left: Floats, right: Floats, cross: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """E[relu(u) relu(v)] for normal u, v of variances ``left``, ``right`` and covariance ``cross``, and its derivatives
    by left, right and cross.
    """
    product = np.sqrt(left * right)
    cosine = np.clip(cross / product, -1.0, 1.0)
    angle, sine = np.arccos(cosine), np.sqrt(1 - cosine**2)
    turned = (np.pi - angle) / (2 * np.pi)
    value = product * (sine / (2 * np.pi) + turned * cosine)
    shared = sine / (4 * np.pi)
    return value, shared * np.sqrt(right / left), shared * np.sqrt(left / right), turned


def log_posterior(x: Floats, y: Floats, depth: int, theta: Floats) -> tuple[float, Floats]:
    """Log marginal likelihood plus log prior of ``theta [4]``, and its gradient.

    Args:
        x: inputs in [-1, 1], ``[n, d]``. y: standardised values, ``[n]``.
        theta: log weight, log bias, log scale, log noise.
    """
    n = len(y)
    weight, bias, scale, noise = np.exp(theta)
    inner = x @ x.T / x.shape[1]
    cross = bias + weight * inner
    by_weight, by_bias = weight * inner, np.full((n, n), bias)
    for _ in range(depth):
        own = np.diag(cross)
        value, left, right, turned = rectified(own[:, None], own, cross)
        carried = [left * np.diag(d)[:, None] + right * np.diag(d) + turned * d for d in (by_weight, by_bias)]
        cross = bias + weight * value
        by_weight, by_bias = weight * (carried[0] + value), weight * carried[1] + bias
    covariance = scale * cross
    covariance[np.diag_indices(n)] += noise + JITTER
    found, outer = log_likelihood(covariance, y)
    if outer is None:
        return found, np.zeros(4)
    off = (theta - [np.log(2.0), 0.0, 0.0, _NOISE_LOCATION]) / _SPREADS
    found -= 0.5 * off @ off
    gradient = 0.5 * np.array(
        [(outer * (scale * d)).sum() for d in (by_weight, by_bias, cross)] + [noise * np.trace(outer)]
    )
    return float(found), gradient - off / _SPREADS


@dataclass(frozen=True)
class InfiniteWidthGP:
    """A surrogate of the loop. ``depths``: hidden layers among which the marginal likelihood chooses."""

    depths: tuple[int, ...] = (1, 2, 3)

    def __call__(self, space: Space, history: History, rng: np.random.Generator) -> GP:
        """Beliefs from the evaluations that succeeded."""
        good = history.succeeded
        x, values = space.encode(history.points[good]), history.values[good]
        y, _, _ = standardised(values)
        start = np.array([np.log(2.0), 0.0, 0.0, _NOISE_LOCATION])
        bounds = [(-4.0, 6.0), (-9.0, 5.0), (-5.0, 7.0), (np.log(1e-6), np.log(10.0))]
        found = {
            depth: most_probable(partial(log_posterior, 2 * x - 1, y, depth), [start], bounds, maxiter=25)
            for depth in self.depths
        }
        depth = max(found, key=lambda d: found[d][1])
        weight, bias, scale, noise = np.exp(found[depth][0])
        return condition(InfiniteWidth(depth, float(weight), float(bias), float(scale)), x, values, float(noise))
