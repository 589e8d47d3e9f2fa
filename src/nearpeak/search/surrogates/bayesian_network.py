"""A Bayesian neural network whose weights are sampled by Hamiltonian Monte Carlo: no approximation but chance.

Weights are ``theta = exp(a_l) z / sqrt(fan_in)``, ``z`` and the log scale ``a_l`` of each layer standard normal; the
values are normal about the network, the log of their variance normal about -6. Chains of ``(z, a, log noise)`` run
together (``inference.hmc``); each kept draw is a function.

Neal: Bayesian Learning for Neural Networks, Springer 1996. As a surrogate: Li, Rudner, Wilson: A Study of Bayesian
Neural Network Surrogates for Bayesian Optimization, ICLR 2024.
"""

from dataclasses import dataclass, field

import numpy as np

from nearpeak.inference.hmc import explore
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.deep_ensemble import Functions, train
from nearpeak.search.surrogates.gp import standardised
from nearpeak.search.surrogates.networks import Network

_NOISE_LOCATION = -6.0
_NOISE_SPREAD = 1.5


@dataclass(frozen=True)
class WeightPosterior:
    """The log density of a network's weights given data, and its gradient.

    Attributes:
        network: its shape. x: inputs in [-1, 1], ``[n, d]``. y: standardised values, ``[n]``.
    """

    network: Network
    x: Floats = field(repr=False)
    y: Floats = field(repr=False)

    @property
    def size(self) -> int:
        """Whitened weights, a log scale for each layer, the log variance of the noise."""
        return self.network.size + len(self.network.widths)

    def weights(self, q: Floats) -> Floats:
        """The networks' weights ``[M, size]`` of states ``[M, self.size]``."""
        p = self.network.size
        scales = np.exp(np.clip(q[:, p:-1], -8.0, 8.0))[:, self.network.layer]
        return np.asarray(scales * q[:, :p] / np.sqrt(self.network.fan_in))

    def whitened(self, theta: Floats) -> Floats:
        """States whose weights are ``theta [M, network.size]``, at scales 1 and the noise's mode."""
        scales = np.zeros((len(theta), len(self.network.widths) - 1))
        return np.hstack([theta * np.sqrt(self.network.fan_in), scales, np.full((len(theta), 1), _NOISE_LOCATION)])

    def __call__(self, q: Floats) -> tuple[Floats, Floats]:
        """Log density ``[M]`` up to a constant, and gradient ``[M, self.size]``."""
        p = self.network.size
        theta = self.weights(q)
        states = self.network.forward(theta, self.x)
        error = self.y - states[-1][..., 0]
        noise = np.exp(np.clip(q[:, -1], -14.0, 5.0))
        squares = (error**2).sum(1)
        off = (q[:, -1] - _NOISE_LOCATION) / _NOISE_SPREAD
        value = -0.5 * squares / noise - 0.5 * len(self.y) * q[:, -1] - 0.5 * off**2 - 0.5 * (q[:, :-1] ** 2).sum(1)
        by_theta, _ = self.network.backward(theta, states, (error / noise[:, None])[..., None])
        gradient = -q
        pulled = by_theta * theta
        gradient[:, :p] += by_theta * np.exp(q[:, p:-1])[:, self.network.layer] / np.sqrt(self.network.fan_in)
        for layer in range(len(self.network.widths) - 1):
            gradient[:, p + layer] += pulled[:, self.network.layer == layer].sum(1)
        gradient[:, -1] = 0.5 * squares / noise - 0.5 * len(self.y) - off / _NOISE_SPREAD
        return value, gradient


@dataclass(frozen=True)
class BayesianNetwork:
    """A surrogate of the loop.

    Attributes:
        hidden: widths of the hidden layers. chains, draws, warmup: of the sampler; ``chains * draws`` functions are
            kept. most_steps: leapfrog steps of a transition.
    """

    hidden: tuple[int, ...] = (16, 16)
    chains: int = 8
    draws: int = 8
    warmup: int = 40
    most_steps: int = 16

    def __call__(self, space: Space, history: History, rng: np.random.Generator) -> Functions:
        """Beliefs from the evaluations that succeeded; chains start from networks trained on them."""
        good = history.succeeded
        x, (y, centre, spread) = space.encode(history.points[good]), standardised(history.values[good])
        network = Network((x.shape[1], *self.hidden, 1))
        posterior = WeightPosterior(network, 2 * x - 1, y)
        start = posterior.whitened(train(network, posterior.x, y, self.chains, rng, 60))
        seed = int(rng.integers(2**31))
        found = explore(posterior, start, self.draws, self.warmup, seed, most_steps=self.most_steps).draws
        return Functions(network, posterior.weights(found.reshape(-1, posterior.size)), centre, spread)
