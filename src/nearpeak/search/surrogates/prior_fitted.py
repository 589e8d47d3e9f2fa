"""A prior-fitted transformer: Bayesian inference learned once, then done in one forward pass.

A prior-data fitted network sees whole data sets ``(x_i, y_i)`` as its context and was trained (by
``prior_fitted_training``) to give the density of ``y`` at further points, over very many data sets drawn from a prior:
here Gaussian processes of one to eight inputs with every kind of length scale. What minimises that loss is the
posterior predictive, hyperparameters marginalised (Muller et al., Transformers Can Do Bayesian Inference, ICLR 2022).
Yu, Picard, Ahmed (arXiv:2406.02883, Fast and Accurate Bayesian Optimization with Pre-trained Transformers for
Constrained Engineering Problems, 2024) optimise under constraints with it: objective and constraints are outputs over
one context, no model is refitted, and the candidate of largest expected improvement times probability of feasibility
is evaluated.

The network is small, so it is helped where a formula is exact. Each output is reduced by a ridge regression (constant,
linear or quadratic, whichever leaves the least leave-one-out error) and scaled by that error. Each attention head adds
``-||s * (x - x')||^2 / 2`` to its scores, the scales ``s`` (one an input) being read by a small network from the
output's variogram: which input matters is told to all layers at once. A sink in each softmax leaves a point far from
all others with little evidence, so that its standard deviation grows.

``forward`` is written once for numpy and torch: what is trained is what runs. The weights are in
``data/prior_fitted.npz``; numpy alone reads and runs them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space

Single = NDArray[np.float32]
Weights = Mapping[str, Any]

INPUTS: Final = 8
"""Features that the network was trained for, at most."""
LONGEST: Final = 256
"""Points of a context, at most."""
WIDTH: Final = 64
HEADS: Final = 4
ENCODER: Final = 3
DECODER: Final = 1
HIDDEN: Final = 128
GLOBALS: Final = 6
STATISTICS: Final = 3
_PAIRS: Final = 4_000
_RIDGES: Final = (1e-3, 1e-1, 10.0)


def shapes() -> dict[str, tuple[int, ...]]:
    """Shape of each weight."""
    found: dict[str, tuple[int, ...]] = {
        "relevance.in": (STATISTICS + GLOBALS, 32),
        "relevance.bias": (32,),
        "relevance.out": (32, (ENCODER + DECODER) * HEADS),
        "relevance.start": ((ENCODER + DECODER) * HEADS,),
        "globals": (GLOBALS, WIDTH),
        "context": (INPUTS + 2, WIDTH),
        "query": (INPUTS, WIDTH),
        "out": (WIDTH, 2),
        "out.bias": (2,),
    }
    for layer in range(ENCODER + DECODER):
        found |= {
            f"{layer}.q": (WIDTH, WIDTH),
            f"{layer}.k": (WIDTH, WIDTH),
            f"{layer}.v": (WIDTH, WIDTH),
            f"{layer}.o": (WIDTH, WIDTH),
            f"{layer}.sink": (HEADS, 1, 1),
            f"{layer}.up": (WIDTH, HIDDEN),
            f"{layer}.up.bias": (HIDDEN,),
            f"{layer}.down": (HIDDEN, WIDTH),
        }
    return found


WEIGHTS: Final = files("nearpeak.search") / "data" / "prior_fitted.npz"


@cache
def shipped() -> Weights:
    """The weights that come with the package.

    Raises:
        UsageError: the file is not there.
    """
    try:
        with WEIGHTS.open("rb") as file, np.load(file) as arrays:
            return {name: arrays[name].astype(np.float32) for name in arrays}
    except FileNotFoundError:
        raise UsageError(
            f"{WEIGHTS} is missing: python -m nearpeak.search.surrogates.prior_fitted_training makes it in some minutes"
        ) from None


# The network. xp is numpy or torch; shapes: b outputs, n points of context, m queries, H heads.


def encode(w: Weights, x: Any, r: Any, statistics: Any, told: Any, xp: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """The context as the decoder reads it.

    Args:
        x: ``[b or 1, n, INPUTS]`` in [-1, 1], zero where there is no input. r: reduced outputs, ``[b, n]``.
        statistics: ``[b, INPUTS, STATISTICS]``. told: ``[b, GLOBALS]``.

    Returns:
        what the globals add to a query, then for each layer of the decoder scales, keys and values.
    """
    spread = told[:, None, :] + 0 * statistics[:, :, :1]
    hidden = xp.tanh(xp.concatenate([statistics, spread], -1) @ w["relevance.in"] + w["relevance.bias"])
    scales = xp.exp(xp.clip(hidden @ w["relevance.out"] + w["relevance.start"], -4.0, 4.0)).swapaxes(1, 2)[:, :, None]
    added = (told @ w["globals"])[:, None, :]
    own = r[..., None]
    state = xp.concatenate([x + 0 * own, own, xp.clip(own * own, 0.0, 9.0)], -1) @ w["context"] + added
    memory = []
    for layer in range(ENCODER + DECODER):
        scale = scales[:, layer * HEADS : (layer + 1) * HEADS]
        read = (scale, *_remembered(w, layer, _normalised(state), x, scale, xp))
        if layer < ENCODER:
            state = _block(w, layer, state, x, read, xp)
        else:
            memory.append(read)
    return (added, *memory)


def decode(w: Weights, encoded: tuple[Any, ...], q: Any, xp: Any) -> Any:  # noqa: ANN401
    """Mean and log standard deviation of the reduced outputs at queries ``[b or 1, m, INPUTS]``, ``[b, m, 2]``."""
    added, *memory = encoded
    found = q @ w["query"] + added
    for layer, read in enumerate(memory, ENCODER):
        found = _block(w, layer, found, q, read, xp)
    return _normalised(found) @ w["out"] + w["out.bias"]


def _remembered(w: Weights, layer: int, state: Any, seen: Any, scale: Any, xp: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """Keys and values of normalised states at places ``seen``: distances are part of the product with a query."""
    k, v = _heads(state @ w[f"{layer}.k"]), _heads(state @ w[f"{layer}.v"])
    b = seen[:, None] * scale
    far = -0.5 * (b * b).sum(-1)[..., None]
    return xp.concatenate([k, b, 0 * far + 1, far], -1).swapaxes(-1, -2), xp.concatenate([v, 0 * v[..., :1] + 1], -1)


def _block(w: Weights, layer: int, state: Any, at: Any, read: tuple[Any, Any, Any], xp: Any) -> Any:  # noqa: ANN401
    """Attention of ``state`` at places ``at`` to what is remembered, then a layer of two matrices."""
    scale, keys, values = read
    q = _heads(_normalised(state) @ w[f"{layer}.q"]) / (WIDTH / HEADS) ** 0.5
    a = at[:, None] * scale
    far = -0.5 * (a * a).sum(-1)[..., None]
    weight = xp.exp(xp.clip(xp.concatenate([q, a, far, 0 * far + 1], -1) @ keys, -40.0, 30.0))
    total = weight @ values
    mixed = total[..., :-1] / (total[..., -1:] + xp.exp(w[f"{layer}.sink"]))
    state = state + mixed.swapaxes(1, 2).reshape(*state.shape) @ w[f"{layer}.o"]
    hidden = xp.clip(_normalised(state) @ w[f"{layer}.up"] + w[f"{layer}.up.bias"], 0.0, None)
    return state + hidden @ w[f"{layer}.down"]


def _heads(z: Any) -> Any:  # noqa: ANN401
    return z.reshape(z.shape[0], z.shape[1], HEADS, WIDTH // HEADS).swapaxes(1, 2)


def _normalised(z: Any) -> Any:  # noqa: ANN401
    return z / ((z * z).mean(-1)[..., None] + 1e-6) ** 0.5


# What the network is told of a data set.


@dataclass(frozen=True)
class Reduced:
    """Data sets as the network reads them.

    Attributes:
        x: ``[b or 1, n, INPUTS]`` in [-1, 1]. r: outputs less their trend, in units of ``spread``, ``[b, n]``.
        statistics: of each input's variogram, ``[b, INPUTS, STATISTICS]``. told: of the whole, ``[b, GLOBALS]``.
        coefficients: of the trend, ``[b, p]``. spread: ``[b]``.
    """

    x: Single
    r: Single
    statistics: Single
    told: Single
    coefficients: Floats
    spread: Floats

    def trend(self, q: Floats) -> Floats:
        """The trend at ``[b or 1, m, INPUTS]``, ``[b, m]``."""
        return np.asarray((_quadratic(q) @ self.coefficients[..., None])[..., 0])


def widened(x: Floats) -> Floats:
    """Features ``[..., f]`` of the unit cube to ``[..., INPUTS]`` in [-1, 1].

    Raises:
        UsageError: more features than the network was trained for.
    """
    f = x.shape[-1]
    if f > INPUTS:
        raise UsageError(f"the prior-fitted network reads up to {INPUTS} features, not {f}; take a surrogate of 'gp'")
    return np.concatenate([2 * x - 1, np.zeros((*x.shape[:-1], INPUTS - f))], -1)


def reduced(x: Floats, y: Floats) -> Reduced:
    """Data sets ``x [b or 1, n, INPUTS]`` (widened), ``y [b, n]`` without what a regression explains."""
    n = y.shape[1]
    centre, spread = y.mean(1, keepdims=True), np.maximum(y.std(1, keepdims=True), 1e-12)
    spread = np.where(y.std(1, keepdims=True) > 1e-9 * np.abs(centre), spread, 1.0)
    z = (y - centre) / spread
    basis = _quadratic(x)
    active = np.broadcast_to((np.abs(x).max(1) > 0).sum(1), len(y))
    best = np.full(len(y), np.inf)
    coefficients, residual, degree = np.zeros((len(y), basis.shape[-1])), z.copy(), np.zeros(len(y))
    # A trend is allowed where there are points to contradict it.
    for used, ridge in [(0, 1.0), *((d, r) for d in (1, 2) for r in _RIDGES)]:
        p = (1, 1 + INPUTS, basis.shape[-1])[used]
        part = basis[..., :p]
        penalty = ridge * np.eye(p)
        penalty[0, 0] = 1e-6
        solved = np.linalg.solve(part.swapaxes(1, 2) @ part + penalty, part.swapaxes(1, 2))
        beta = (solved @ z[..., None])[..., 0]
        left = z - (part @ beta[..., None])[..., 0]
        leverage = np.clip((part * solved.swapaxes(1, 2)).sum(-1), 0.0, 1 - 0.5 / n)
        error = np.mean((left / (1 - leverage)) ** 2, axis=1)
        better = (error < 0.9 * best) & (n >= used * active + 3)
        best = np.where(better, error, best)
        degree[better] = used
        residual[better] = left[better]
        coefficients[better] = 0.0
        coefficients[np.ix_(better, range(p))] = beta[better]
    unit = np.sqrt(np.maximum(best, 1e-12))
    r = residual / unit[:, None]
    coefficients = coefficients * spread
    coefficients[:, 0] += centre[:, 0]
    told = np.stack(
        [
            np.full(len(y), np.log(n) - 3.5), active / 4 - 1, -0.3 * np.log(unit), degree - 1,
            np.log(np.maximum(r.std(1), 1e-3)), np.log(n / (1.0 + active)) - 2,
        ], axis=1,
    )  # fmt: skip
    x32, r32 = x.astype(np.float32), r.astype(np.float32)
    return Reduced(x32, r32, _variogram(x32, r32), told.astype(np.float32), coefficients, unit * spread[:, 0])


def _quadratic(x: Floats) -> Floats:
    """1, x, products and squares (less their mean over the cube), ``[..., 1 + d + d (d + 1) / 2]``."""
    i, j = np.triu_indices(INPUTS)
    return np.concatenate([np.ones((*x.shape[:-1], 1)), x, x[..., i] * x[..., j]], -1)


def _variogram(x: Single, r: Single) -> Single:
    """How squared differences of r grow with those of each input: by regression over all pairs and over near ones,
    and by plain correlation, ``[b, INPUTS, STATISTICS]``.
    """
    b, n, d = len(r), *x.shape[1:]
    i, k = np.triu_indices(n, 1)
    i, k = (a[:: 1 + len(i) // _PAIRS] for a in (i, k))
    apart = 0.25 * (x[:, i] - x[:, k]) ** 2
    risen = np.minimum((r[:, i] - r[:, k]) ** 2, 16.0)
    if n < 3:
        return np.zeros((b, d, STATISTICS), np.float32)
    active = np.maximum((np.abs(x).max(1) > 0).sum(1), 1)
    near = np.exp(-apart.sum(-1) / (0.12 * active[:, None]))
    found = []
    columns = np.concatenate([np.ones_like(apart[..., :1]), apart], -1)
    for weight in (np.ones_like(near), near):
        weighted = (columns * weight[..., None]).swapaxes(1, 2)
        gram = weighted @ columns / n**2 + 1e-3 * np.eye(d + 1, dtype=np.float32)
        slopes = np.linalg.solve(gram, weighted @ risen[..., None] / n**2)[:, 1:, 0]
        found.append(np.arcsinh(np.sign(slopes) * np.sqrt(np.abs(slopes))))
    a, c = apart - apart.mean(1, keepdims=True), risen - risen.mean(1, keepdims=True)
    power = np.sqrt((a * a).mean(1) * (c * c).mean(1)[:, None])
    found.append(4 * (a * c[..., None]).mean(1) / np.maximum(power, 1e-6))
    return np.stack(found, -1).astype(np.float32)


@dataclass(frozen=True)
class Context:
    """Observations of one or several outputs, read by the network once.

    Attributes:
        weights: of the network. data: what it read. encoded: what its encoder made of it.
    """

    weights: Weights = field(repr=False)
    data: Reduced = field(repr=False)
    encoded: tuple[Any, ...] = field(repr=False)

    @classmethod
    def read(cls, x: Floats, y: Floats, weights: Weights | None = None) -> "Context":
        """The context of outputs ``y [b, n]`` at ``x [b or 1, n, INPUTS]`` (widened)."""
        used = shipped() if weights is None else weights
        data = reduced(x, y)
        return cls(used, data, encode(used, data.x, data.r, data.statistics, data.told, np))

    def at(self, q: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of each output at queries ``[b or 1, m, INPUTS]`` (widened), ``[b, m]`` each."""
        out = decode(self.weights, self.encoded, q.astype(np.float32), np)
        spread = self.data.spread[:, None]
        mean = self.data.trend(q) + spread * out[..., 0].astype(float)
        return mean, spread * np.exp(np.clip(out[..., 1].astype(float), -7.0, 4.0))


@dataclass(frozen=True)
class PriorFitted:
    """Beliefs about one function, read in context.

    Attributes:
        x: features seen, widened, ``[n, INPUTS]``. y: values, ``[n]``. weights: of the network.
    """

    x: Floats = field(repr=False)
    y: Floats = field(repr=False)
    weights: Weights = field(repr=False)

    @cached_property
    def _context(self) -> Context:
        return Context.read(self.x[None], self.y[None], self.weights)

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation at features ``[m, f]``, ``[m]`` each."""
        mean, sd = self._context.at(widened(x)[None])
        return mean[0], sd[0]

    def sample(self, x: Floats, count: int, rng: np.random.Generator) -> Floats:
        """Joint draws at features ``[m, f]``, ``[count, m]``, one point after the other: each drawn value joins the
        context of the next, so that it takes m passes; for tens of points.
        """
        seen, drawn = np.tile(self.x, (count, 1, 1)), np.tile(self.y, (count, 1))
        for point in widened(x):
            at = np.broadcast_to(point, (count, 1, INPUTS))
            mean, sd = Context.read(seen, drawn, self.weights).at(at)
            drawn = np.hstack([drawn, mean + sd * rng.standard_normal(mean.shape)])
            seen = np.concatenate([seen, at], axis=1)
        return drawn[:, len(self.y) :]


def prior_fitted_surrogate(space: Space, history: History, rng: np.random.Generator) -> PriorFitted:
    """The network's beliefs from the evaluations that succeeded: a surrogate of the loop without a fit."""
    good = np.flatnonzero(history.succeeded)
    kept = good[worth_keeping(history.values[good])]
    return PriorFitted(widened(space.encode(history.points[kept])), history.values[kept], shipped())


def worth_keeping(values: Floats) -> NDArray[np.intp]:
    """At most ``LONGEST`` rows: the better half of them by value, the rest the latest."""
    if len(values) <= LONGEST:
        return np.arange(len(values))
    best = np.argsort(values, kind="stable")[: LONGEST // 2]
    late = np.setdiff1d(np.arange(len(values)), best)[-(LONGEST - len(best)) :]
    return np.sort(np.concatenate([best, late]))
