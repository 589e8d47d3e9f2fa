"""A Gaussian process of a sum: what each parameter does on its own, and what they do together.

    k(x, x') = own / p * sum_j matern(|x_j - x'_j| / l) + joint * matern(|x - x'| / L)

With dozens of parameters and as many evaluations, the length scales of an ordinary kernel are guesses, and its distance
says only in how many parameters two configurations differ. A sum of functions of one parameter each is learnt from few
evaluations, since every evaluation says something of each of them; five hyperparameters serve all parameters.

On listed values a parameter takes few levels, so its part is a product of small factors: ``phi(x) phi(x')'`` with one
column a level, and thousands of configurations are compared by one matrix product.

Duvenaud, Nickisch, Rasmussen: Additive Gaussian Processes, NeurIPS 2011. Kandasamy, Schneider, Poczos: High Dimensional
Bayesian Optimisation and Bandits via Additive Models, ICML 2015.
"""

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import GP, JITTER, condition, log_likelihood, most_probable, standardised
from nearpeak.search.surrogates.kernels import SHAPES, squared_distances, squares_by_group

_MODE: Final = np.array([np.log(0.5), 0.0, np.log(3.0), -1.0, -5.0])
"""Of the prior of log l, log own, log L, log joint and log noise, of standardised values."""
_SPREAD: Final = np.array([0.7, 1.0, 1.0, 1.0, 1.0])
_SHAPE: Final = "matern52"
_SAMPLE: Final = 1_024


@dataclass(frozen=True)
class OwnAndJoint:
    """The kernel.

    Attributes:
        nodes: features of every level of every parameter, ``[u, f]``; 0 in the columns of other parameters.
        owner: parameter of each node, ``[u]``. groups: that of each feature, ``[f]``.
        theta: log l, own, L and joint, ``[4]``.
    """

    nodes: Floats = field(repr=False)
    owner: NDArray[np.intp] = field(repr=False)
    groups: NDArray[np.intp] = field(repr=False)
    theta: Floats

    def __call__(self, a: Floats, b: Floats) -> Floats:
        """Covariances ``[n, m]``."""
        _, own, reach, joint = np.exp(self.theta)
        share = own / (int(self.groups.max()) + 1)
        together = SHAPES[_SHAPE](squared_distances(a, b) / reach**2)[0]
        return np.asarray(share * (self._factors(a) @ self._factors(b).T) + joint * together)

    def diagonal(self, a: Floats) -> Floats:
        """The same everywhere."""
        return np.full(len(a), np.exp(self.theta[1]) + np.exp(self.theta[3]))

    def _factors(self, x: Floats) -> Floats:
        """phi: correlations with the nodes, whitened; exact at levels, ``[n, u]``."""
        return self._to_nodes(x) @ self._whitening

    def _to_nodes(self, x: Floats) -> Floats:
        """Correlations of each parameter of configurations with its own nodes, ``[n, u]``."""
        lengths = (x * x) @ (self.groups[:, None] == self.owner) + (self.nodes * self.nodes).sum(axis=1)
        apart = np.maximum(lengths - 2 * x @ self.nodes.T, 0)
        return SHAPES[_SHAPE](apart * np.exp(-2 * self.theta[0]))[0]

    @cached_property
    def _whitening(self) -> Floats:
        among = np.where(self.owner[:, None] == self.owner, self._to_nodes(self.nodes), 0.0)
        return np.linalg.inv(np.linalg.cholesky(among + JITTER * np.eye(len(among)))).T


def log_posterior(apart: Floats, y: Floats, theta: Floats) -> tuple[float, Floats]:
    """Log marginal likelihood plus log prior of ``theta [5]``, and its gradient.

    Args:
        apart: squared distances in each parameter, ``[p, n, n]``. y: standardised values, ``[n]``.
    """
    length, own, reach, joint, noise = np.exp(theta)
    parts, slopes = SHAPES[_SHAPE](apart / length**2)
    whole = apart.sum(axis=0) / reach**2
    together, slope = SHAPES[_SHAPE](whole)
    alone = own * parts.mean(axis=0)
    covariance = alone + joint * together
    covariance[np.diag_indices(len(y))] += noise + JITTER
    value, outer = log_likelihood(covariance, y)
    if outer is None:
        return value, np.zeros(len(theta))
    by_length = -2 * own * (slopes * apart).mean(axis=0) / length**2
    changes = (by_length, alone, -2 * joint * slope * whole, joint * together)
    off = (theta - _MODE) / _SPREAD
    gradient = 0.5 * np.array([*((outer * change).sum() for change in changes), noise * np.trace(outer)])
    return float(value - 0.5 * off @ off), gradient - off / _SPREAD


def additive_surrogate(space: Space, history: History, rng: np.random.Generator) -> GP:
    """Beliefs from the evaluations that succeeded, with the most probable hyperparameters."""
    good, groups = history.succeeded, space.groups
    x, values = space.encode(history.points[good]), history.values[good]
    apart = squares_by_group(x, groups)
    bounds = list(zip(_MODE - 4 * _SPREAD, _MODE + 4 * _SPREAD, strict=True))
    theta, _ = most_probable(partial(log_posterior, apart, standardised(values)[0]), [_MODE], bounds, maxiter=20)
    # A sample of the space holds every level of every parameter that a search will meet.
    every = np.vstack([x, space.encode(space.sample(_SAMPLE, np.random.default_rng(0)))])
    levels = [np.unique(every[:, groups == j], axis=0) for j in range(groups.max() + 1)]
    owner = np.repeat(np.arange(len(levels)), [len(rows) for rows in levels])
    nodes = np.zeros((len(owner), len(groups)))
    for j, rows in enumerate(levels):
        nodes[np.ix_(owner == j, groups == j)] = rows
    kernel = OwnAndJoint(nodes, owner, groups, theta[:4])
    return condition(kernel, x, values, float(np.exp(theta[4])))
