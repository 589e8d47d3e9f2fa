"""Small fully connected networks, many at once: forward and backward passes over arrays of weights.

A network of widths ``(d, h, ..., o)`` has tanh between its layers and none at its end. ``M`` networks are the rows of
one array ``theta [M, size]``, so that an ensemble is trained, and chains of weights are sampled, in a few products of
matrices. At a hundred observations this is faster than a framework.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nearpeak.search.parameters import Floats


@dataclass(frozen=True)
class Network:
    """Widths of the layers, inputs first, outputs last."""

    widths: tuple[int, ...]

    @cached_property
    def size(self) -> int:
        """Weights and biases of one network."""
        return sum((a + 1) * b for a, b in zip(self.widths, self.widths[1:], strict=False))

    @cached_property
    def fan_in(self) -> Floats:
        """Inputs that meet each weight (1 for biases), ``[size]``: what a weight's prior variance is divided by."""
        pairs = zip(self.widths, self.widths[1:], strict=False)
        return np.concatenate([np.concatenate([np.full(a * b, float(a)), np.ones(b)]) for a, b in pairs])

    @cached_property
    def layer(self) -> Floats:
        """Number of each weight's layer, ``[size]``."""
        pairs = enumerate(zip(self.widths, self.widths[1:], strict=False))
        return np.concatenate([np.full((a + 1) * b, i) for i, (a, b) in pairs])

    def draw(self, count: int, rng: np.random.Generator) -> Floats:
        """Weights of variance ``1 / fan_in``, ``[count, size]``."""
        return rng.standard_normal((count, self.size)) / np.sqrt(self.fan_in)

    def _layers(self, theta: Floats) -> list[tuple[Floats, Floats]]:
        found, start = [], 0
        for a, b in zip(self.widths, self.widths[1:], strict=False):
            weights = theta[:, start : start + a * b].reshape(len(theta), a, b)
            found.append((weights, theta[:, None, start + a * b : start + (a + 1) * b]))
            start += (a + 1) * b
        return found

    def forward(self, theta: Floats, x: Floats) -> list[Floats]:
        """Values at each layer, the outputs ``[M, n, o]`` last, at inputs ``[n, d]`` shared by all networks."""
        states: list[Floats] = [x[None]]
        layers = self._layers(theta)
        for i, (weights, biases) in enumerate(layers):
            state = states[-1] @ weights + biases
            states.append(state if i == len(layers) - 1 else np.tanh(state))
        return states

    def backward(self, theta: Floats, states: list[Floats], slope: Floats) -> tuple[Floats, Floats]:
        """Gradients by the weights ``[M, size]`` and by the inputs ``[M, n, d]`` of what has ``slope [M, n, o]``."""
        found: list[Floats] = []
        layers = self._layers(theta)
        for i in reversed(range(len(layers))):
            weights, _ = layers[i]
            by_weights = states[i].swapaxes(1, 2) @ slope
            found = [by_weights.reshape(len(theta), -1), slope.sum(1), *found]
            slope = slope @ weights.swapaxes(1, 2)
            if i:
                slope = slope * (1 - states[i] ** 2)
        return np.concatenate(found, axis=1), slope

    def __call__(self, theta: Floats, x: Floats) -> Floats:
        """Outputs ``[M, n, o]``."""
        return self.forward(theta, x)[-1]
