"""Many small networks trained at once: real learning curves to replay, and a training that can stop and go on.

Multilayer perceptrons ``inputs -> width -> width -> classes`` with ReLU, dropout and softmax, by stochastic gradient
descent with momentum and weight decay. Networks of different recipes are one batch of matrices, ``[n, in, out]``:
narrow ones are padded with zeros, which stay zero. A batch of examples is shared by all networks; one that wants larger
batches adds up gradients and steps less often. Everything random is drawn from ``(seed, epoch)``, so that the weights,
their velocity and the epoch are all that a training must keep to go on as if it had never stopped, to the bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError
from nearpeak.search.parameters import Floats, Ordinal
from nearpeak.search.space import Space

Singles = NDArray[np.float32]
Classes = NDArray[np.intp]

RECIPES = Space(
    {
        "rate": Ordinal(tuple(np.round(np.geomspace(1e-3, 1, 13), 6).tolist())),
        "momentum": Ordinal((0.0, 0.5, 0.8, 0.9, 0.95)),
        "decay": Ordinal(tuple(np.geomspace(1e-6, 1e-2, 9).tolist())),
        "batch": Ordinal((16, 32, 64, 128)),
        "width": Ordinal((4, 6, 8, 12, 16, 24, 32, 48)),
        "dropout": Ordinal((0.0, 0.1, 0.2, 0.3, 0.4, 0.5)),
    }
)
"""How a network is trained: learning rate, momentum, weight decay, examples of a step, hidden units, dropout."""


@dataclass(frozen=True)
class Data:
    """Examples to learn from and to judge by.

    Attributes:
        inputs, held: ``[m, d]`` and ``[v, d]``. classes, held_classes: from 0, ``[m]`` and ``[v]``.
    """

    inputs: Singles = field(repr=False)
    classes: Classes = field(repr=False)
    held: Singles = field(repr=False)
    held_classes: Classes = field(repr=False)


@dataclass(frozen=True)
class Networks:
    """Networks in the middle of their training; ``n`` of them.

    Attributes:
        recipes: rows of ``RECIPES``, ``[n, 6]``. epoch: how many have passed. seed: of all that is random.
        weights: of each layer, the last row being the bias, ``[n, in + 1, out]``. velocity: of the weights.
    """

    recipes: Floats
    epoch: int
    seed: int
    weights: tuple[Singles, ...] = field(repr=False)
    velocity: tuple[Singles, ...] = field(repr=False)


def begin(recipes: Floats, data: Data, seed: int = 0) -> Networks:
    """Fresh networks: weights are normal with variance 2 over the units before."""
    widths = RECIPES.values(recipes)["width"].astype(int)
    d, classes, most, rng = (
        data.inputs.shape[1],
        int(data.classes.max()) + 1,
        int(widths.max()),
        np.random.default_rng(seed),
    )
    there = np.arange(most) < widths[:, None]
    sizes = ((d, most), (most, most), (most, classes))
    before = (np.full(len(widths), d), widths, widths)
    weights = []
    for (rows, columns), count in zip(sizes, before, strict=True):
        layer = np.zeros((len(widths), rows + 1, columns), dtype=np.float32)
        layer[:, :-1] = rng.standard_normal((48 + d, max(48, classes)))[:rows, :columns]
        layer *= np.sqrt(2 / count)[:, None, None]
        if rows == most:
            layer[:, :-1] *= there[:, :, None]
        if columns == most:
            layer *= there[:, None, :]
        weights.append(layer)
    return Networks(recipes, 0, seed, tuple(weights), tuple(np.zeros_like(w) for w in weights))


def advance(networks: Networks, data: Data) -> Networks:
    """One epoch of training."""
    values = RECIPES.values(networks.recipes)
    batches = values["batch"].astype(int)
    few = int(batches.min())
    every = batches // few
    rate, momentum, decay, dropout = (
        values[name].astype(np.float32)[:, None, None] for name in ("rate", "momentum", "decay", "dropout")
    )
    weights, velocity = [w.copy() for w in networks.weights], [v.copy() for v in networks.velocity]
    gathered = [np.zeros_like(w) for w in weights]
    rng = np.random.default_rng([networks.seed, networks.epoch])
    order = rng.permutation(len(data.inputs))
    whole = int(batches.max())
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(len(order) // whole * whole // few):
            rows = order[step * few : (step + 1) * few]
            draws = rng.random((2, few, weights[1].shape[2]), dtype=np.float32)
            kept = [(u >= dropout) / (1 - dropout) for u in draws]
            due = np.flatnonzero((step + 1) % every == 0)
            for g, slope in zip(gathered, _slopes(weights, data.inputs[rows], data.classes[rows], kept), strict=True):
                g += slope
            share = every[due, None, None].astype(np.float32)
            for w, v, g in zip(weights, velocity, gathered, strict=True):
                v[due] = momentum[due] * v[due] - rate[due] * (g[due] / share + decay[due] * w[due])
                w[due] += v[due]
                g[due] = 0
    return Networks(networks.recipes, networks.epoch + 1, networks.seed, tuple(weights), tuple(velocity))


def loss(networks: Networks, data: Data) -> Floats:
    """Mean cross-entropy on the held examples, nats, ``[n]``; NaN where a training has diverged."""
    with np.errstate(over="ignore", invalid="ignore"):
        logits = _forward(networks.weights, data.held)[-1]
        logits = logits - logits.max(axis=-1, keepdims=True)
        right = np.take_along_axis(logits, data.held_classes[None, :, None], axis=-1)[..., 0]
        found = (np.log(np.exp(logits).sum(axis=-1)) - right).mean(axis=-1, dtype=float)
    return np.where(np.isfinite(found), found, np.nan)


def curves(recipes: Floats, data: Data, epochs: int, seed: int = 0) -> Floats:
    """Losses after each epoch, ``[n, epochs]``."""
    return np.column_stack(list(_losses(begin(recipes, data, seed), data, epochs)))


def spirals(examples: int, arms: int = 3, noise: float = 0.2, seed: int = 0) -> Data:
    """Points on the arms of a spiral in the plane: half to learn from, half held.

    Raises:
        UsageError: there are fewer than 256 examples.
    """
    if examples < 256:
        raise UsageError(f"a training needs at least 256 examples, not {examples}")
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, arms, examples)
    out = np.sqrt(rng.random(examples))
    angle = 2 * np.pi * (classes / arms + out) + noise * rng.standard_normal(examples)
    points = (2 * out * np.stack([np.cos(angle), np.sin(angle)])).T.astype(np.float32)
    half = examples // 2
    return Data(points[:half], classes[:half], points[half:], classes[half:])


def _losses(networks: Networks, data: Data, epochs: int) -> Iterator[Floats]:
    for _ in range(epochs):
        networks = advance(networks, data)
        yield loss(networks, data)


def _forward(
    weights: "tuple[Singles, ...] | list[Singles]", inputs: Singles, kept: list[Singles] | None = None
) -> list[Singles]:
    """Activations of every layer, the inputs first and the logits last."""
    found = [inputs]
    for i, w in enumerate(weights):
        found.append(found[-1] @ w[:, :-1] + w[:, -1:])
        if i < len(weights) - 1:
            np.maximum(found[-1], 0, out=found[-1])
            if kept is not None:
                found[-1] *= kept[i]
    return found


def _slopes(weights: list[Singles], inputs: Singles, classes: Classes, kept: list[Singles]) -> list[Singles]:
    """Gradient of the mean cross-entropy by the weights of each layer."""
    layers = _forward(weights, inputs, kept)
    logits = layers[-1] - layers[-1].max(axis=-1, keepdims=True)
    back = np.exp(logits)
    back /= back.sum(axis=-1, keepdims=True)
    back[:, np.arange(len(classes)), classes] -= 1
    back /= len(classes)
    found: list[Singles] = []
    for i in range(len(weights) - 1, -1, -1):
        before = layers[i]
        slope = np.empty_like(weights[i])
        np.matmul(before.T if before.ndim == 2 else before.transpose(0, 2, 1), back, out=slope[:, :-1])
        slope[:, -1] = back.sum(axis=1)
        found.append(slope)
        if i:
            back = (back @ weights[i][:, :-1].transpose(0, 2, 1)) * (before > 0) * kept[i - 1]
    return found[::-1]
