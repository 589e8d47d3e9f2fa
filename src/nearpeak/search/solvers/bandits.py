"""Multi-armed bandits: which arm to pull next, given what each has paid so far; rewards are between 0 and 1.

A policy is a function of the pulls ``n [arms]`` and the sums of rewards ``s [arms]`` and draws from a generator:

- epsilon-greedy: a random arm with probability epsilon, else the largest mean s/n (Sutton and Barto, 2.2).
- softmax: with probability proportional to exp(mean / temperature) (Luce, 1959).
- UCB1: the largest mean + sqrt(alpha ln N / n), every arm once first (Auer, Cesa-Bianchi and Fischer,
  Machine Learning 47, 2002).
- Thompson: the largest of draws from Beta(1 + s, 1 + n - s) (Agrawal and Goyal, COLT 2012; a reward between 0 and 1
  counts as that share of a success).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Policy = Callable[[Array, Array, np.random.Generator], int]


def means(pulls: Array, rewards: Array) -> Array:
    """Mean reward of each arm; 0 of one that was never pulled."""
    return np.asarray(rewards / np.maximum(pulls, 1))


def epsilon_greedy(pulls: Array, rewards: Array, rng: np.random.Generator, epsilon: float = 0.15) -> int:
    """A random arm with probability ``epsilon``, else one of largest mean; equals are drawn from."""
    if rng.random() < epsilon:
        return int(rng.integers(pulls.size))
    return _largest(means(pulls, rewards), rng)


def softmax(pulls: Array, rewards: Array, rng: np.random.Generator, temperature: float = 0.2) -> int:
    """An arm with probability proportional to exp(mean / ``temperature``)."""
    scaled = means(pulls, rewards) / temperature
    weights = np.exp(scaled - scaled.max())
    return int(rng.choice(pulls.size, p=weights / weights.sum()))


def ucb1(pulls: Array, rewards: Array, rng: np.random.Generator, alpha: float = 2.0) -> int:
    """The arm of largest upper confidence bound; one that was never pulled comes first."""
    squared = np.full(pulls.size, np.inf)
    np.divide(alpha * np.log(max(pulls.sum(), 1)), pulls, where=pulls > 0, out=squared)
    return _largest(means(pulls, rewards) + np.sqrt(squared), rng)


def thompson(pulls: Array, rewards: Array, rng: np.random.Generator) -> int:
    """The arm whose mean is largest in a draw from the posterior."""
    return int(np.argmax(rng.beta(1 + rewards, 1 + pulls - rewards)))


def _largest(score: Array, rng: np.random.Generator) -> int:
    return int(rng.choice(np.flatnonzero(score == score.max())))
