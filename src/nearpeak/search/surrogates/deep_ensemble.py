"""A deep ensemble: networks that were trained on the same data from different starts; where they differ, none knows.

Every member minimises ``sum (y - f)^2 / (2 noise) + ||theta||^2 / (2 prior)`` by Adam over all data, its weights drawn
anew. Mean and standard deviation are those of the members' outputs; a draw of the function is a member, moved along
the ensemble's mean by a random mixture.

Lakshminarayanan, Pritzel, Blundell: Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles,
NeurIPS 2017. As a surrogate: Li, Rudner, Wilson: A Study of Bayesian Neural Network Surrogates for Bayesian
Optimization, ICLR 2024.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import standardised
from nearpeak.search.surrogates.networks import Network

NOISE: Final = 1e-3
"""Variance of a standardised observation about the network."""
_FLOOR: Final = 1e-3
_BLOCK: Final = 1_024


@dataclass(frozen=True)
class Functions:
    """Beliefs that are a finite set of equally likely functions, networks all.

    Attributes:
        network: their shape. theta: weights, ``[M, size]``. centre, spread: of the values they were fitted to.
    """

    network: Network
    theta: Floats = field(repr=False)
    centre: float
    spread: float

    def outputs(self, x: Floats) -> Floats:
        """Every function at features ``[m, f]`` of the unit cube, ``[M, m]``."""
        parts = [self.network(self.theta, 2 * x[i : i + _BLOCK] - 1)[..., 0] for i in range(0, max(len(x), 1), _BLOCK)]
        return np.asarray(self.centre + self.spread * np.concatenate(parts, axis=1))

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation over the functions at features ``[m, f]``, ``[m]`` each."""
        found = self.outputs(x)
        return found.mean(0), np.sqrt(found.var(0, ddof=1) + (_FLOOR * self.spread) ** 2)

    def sample(self, x: Floats, count: int, rng: np.random.Generator) -> Floats:
        """Functions drawn with the set's mean and covariance, ``[count, m]``: random mixtures of its members."""
        found = self.outputs(x)
        mixture = rng.standard_normal((count, len(found))) / np.sqrt(len(found) - 1)
        return np.asarray(found.mean(0) + mixture @ (found - found.mean(0)))


def train(
    network: Network, x: Floats, y: Floats, members: int, rng: np.random.Generator, steps: int = 300, rate: float = 0.03
) -> Floats:
    """Weights of the members, ``[members, size]``, for inputs ``x [n, d]`` in [-1, 1] and standardised ``y [n]``."""
    theta = 1.5 * network.draw(members, rng)
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    decay = network.fan_in / 4.0
    for step in range(1, steps + 1):
        states = network.forward(theta, x)
        slope = (states[-1] - y[:, None]) / NOISE
        gradient = network.backward(theta, states, slope)[0] + decay * theta
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        falling = rate * 0.5 * (1 + np.cos(np.pi * (step - 1) / steps))
        theta = theta - falling * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-12)
    return theta


@dataclass(frozen=True)
class DeepEnsemble:
    """A surrogate of the loop.

    Attributes:
        members: networks. hidden: widths of their hidden layers. steps: of Adam.
    """

    members: int = 6
    hidden: tuple[int, ...] = (32, 32)
    steps: int = 250

    def __call__(self, space: Space, history: History, rng: np.random.Generator) -> Functions:
        """Beliefs from the evaluations that succeeded."""
        good = history.succeeded
        x, (y, centre, spread) = space.encode(history.points[good]), standardised(history.values[good])
        network = Network((x.shape[1], *self.hidden, 1))
        return Functions(network, train(network, 2 * x - 1, y, self.members, rng, self.steps), centre, spread)
