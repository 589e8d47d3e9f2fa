"""Deep kernel learning: a Gaussian process on features that a network makes of the inputs, both fitted together.

The kernel is ``scale * shape(||h(x) - h(x')||^2 + ||x - x'||^2 / (d l^2))``, h a small network. Its weights, with a
normal prior, maximise the log marginal likelihood together with the length scale ``l``, as length scales do in an
ordinary Gaussian process. The second term keeps points apart that h maps together: without it a few dozen observations
are fitted exactly by features that collapse, and the standard deviation vanishes between them. The gradient goes from
the covariance matrix to the features and back through the network; L-BFGS does the rest.

Wilson, Hu, Salakhutdinov, Xing: Deep Kernel Learning, AISTATS 2016. van Amersfoort et al.: On Feature Collapse and Deep
Kernel Learning for Single Forward Pass Uncertainty, arXiv:2102.11409 (2021).
"""

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import GP, JITTER, condition, log_likelihood, most_probable, standardised
from nearpeak.search.surrogates.kernels import SHAPES, squared_distances
from nearpeak.search.surrogates.networks import Network

_MODE = np.array([np.log(0.5), 0.0, -4.0])
"""Of the prior of log length, log scale and log noise; their standard deviation is 1."""


@dataclass(frozen=True)
class DeepKernel:
    """``scale * shape(||h(x) - h(x')||^2 + ||x - x'||^2 / (d l^2))``.

    Attributes:
        network: h. theta: its weights, ``[1, size]``. length: l. scale: variance. shape: of ``kernels.SHAPES``.
    """

    network: Network
    theta: Floats = field(repr=False)
    length: float
    scale: float
    shape: str

    def __call__(self, a: Floats, b: Floats) -> Floats:
        """Covariances ``[n, m]``."""
        a, b = 2 * a - 1, 2 * b - 1
        apart = squared_distances(a, b) / (a.shape[1] * self.length**2)
        learned = squared_distances(self.network(self.theta, a)[0], self.network(self.theta, b)[0])
        return self.scale * SHAPES[self.shape](learned + apart)[0]

    def diagonal(self, a: Floats) -> Floats:
        """``scale`` everywhere."""
        return np.full(len(a), self.scale)


def log_posterior(network: Network, x: Floats, y: Floats, shape: str, theta: Floats) -> tuple[float, Floats]:
    """Log marginal likelihood plus log prior of ``theta [size + 3]``, and its gradient.

    Args:
        x: inputs in [-1, 1], ``[n, d]``. y: standardised values, ``[n]``.
        theta: weights of the network, log length, log scale, log noise.
    """
    n, weights = len(y), theta[None, :-3]
    states = network.forward(weights, x)
    h = states[-1][0]
    length, scale, noise = np.exp(theta[-3:])
    apart = squared_distances(x, x) / (x.shape[1] * length**2)
    correlation, slope = SHAPES[shape](squared_distances(h, h) + apart)
    covariance = scale * correlation
    covariance[np.diag_indices(n)] += noise + JITTER
    value, outer = log_likelihood(covariance, y)
    if outer is None:
        return value, np.zeros(len(theta))
    off = theta[-3:] - _MODE
    decay = network.fan_in
    value += -0.5 * off @ off - 0.5 * (decay * theta[:-3]) @ theta[:-3]
    pull = outer * (scale * slope)
    # d value / d h_i = sum_j (pull_ij / 2) * d r2_ij / d h_i, twice: once as row, once as column.
    by_h = 2 * (pull.sum(1)[:, None] * h - pull @ h)
    by_weights, _ = network.backward(weights, states, by_h[None])
    by_log = [-(pull * apart).sum(), 0.5 * scale * (outer * correlation).sum(), 0.5 * noise * np.trace(outer)]
    gradient = np.concatenate([by_weights[0] - decay * theta[:-3], by_log - off])
    return float(value), gradient


@dataclass(frozen=True)
class DeepKernelGP:
    """A surrogate of the loop.

    Attributes:
        hidden: widths of the network's hidden layers. features: its outputs. shape: of the kernel on them.
        starts: networks that are fitted; the one of largest posterior is kept. iterations: of L-BFGS.
    """

    hidden: tuple[int, ...] = (32,)
    features: int = 4
    shape: str = "matern52"
    starts: int = 1
    iterations: int = 40

    def __call__(self, space: Space, history: History, rng: np.random.Generator) -> GP:
        """Beliefs from the evaluations that succeeded."""
        good = history.succeeded
        x, values = space.encode(history.points[good]), history.values[good]
        y, _, _ = standardised(values)
        network = Network((x.shape[1], *self.hidden, self.features))
        starts = np.hstack([0.5 * network.draw(self.starts, rng), np.tile(_MODE, (self.starts, 1))])
        bounds = [(None, None)] * network.size + [
            (np.log(1e-2), np.log(1e2)),
            (np.log(1e-2), np.log(1e3)),
            (-14.0, 2.0),
        ]
        posterior = partial(log_posterior, network, 2 * x - 1, y, self.shape)
        theta, _ = most_probable(posterior, starts, bounds, maxiter=self.iterations)
        length, scale, noise = (float(v) for v in np.exp(theta[-3:]))
        return condition(DeepKernel(network, theta[None, :-3], length, scale, self.shape), x, values, noise)
