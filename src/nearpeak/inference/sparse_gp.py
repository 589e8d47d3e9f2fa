"""Gaussian process regression on many rows by a posterior at few inputs, trained on minibatches.

A variational family says what ``f`` is at ``M`` inputs ``Z``: ``q(u)`` of ``u = f(Z)``. Elsewhere ``f`` is the prior
given ``u``. With ``u`` integrated out of ``q(f) = int p(f | u) q(u) du``, whose moments at row ``i`` are ``m_i`` and
``v_i``, the evidence is at least (Hensman, Fusi and Lawrence, Gaussian Processes for Big Data, UAI 2013)

    sum_i [log N(y_i | m_i, noise) - v_i / (2 noise)] - KL(q(u) || p(u))

whose sum a minibatch estimates without bias. Here live that bound, its training by Adam, its measures, and the Matern
5/2 kernel with a length for each column; ``coreset_gp`` and ``svgp`` hold one family each: the same kernel, start,
steps and bound, so that they differ in ``q(u)`` alone. Needs torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.vq import kmeans2, vq

from nearpeak.errors import UsageError
from nearpeak.topic import require_positive

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float64]
Parameters = dict[str, "Tensor"]


@dataclass(frozen=True)
class Family:
    """A variational family.

    Attributes:
        name: for tables. variational: names of the parameters that describe ``q(u)``, without its inputs.
        start: kernel parameters with ``inputs [M, d]``, and a first guess of ``M`` pseudo-outputs and of how many rows
            each stands for, to all parameters.
        posterior: parameters and rows ``[b, d]`` to mean and variance of ``f`` ``[b]`` and the divergence of ``q(u)``.
    """

    name: str
    variational: tuple[str, ...]
    start: Callable[[Parameters, "Tensor", "Tensor"], Parameters]
    posterior: Callable[[Parameters, "Tensor"], tuple["Tensor", "Tensor", "Tensor"]]


def matern(at: Parameters, x: "Tensor", z: "Tensor") -> "Tensor":
    """Matern 5/2 covariance ``[n, m]`` of rows ``x [n, d]`` and ``z [m, d]``."""
    a, b = x / at["log_length"].exp(), z / at["log_length"].exp()
    square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    # The root's slope at 0 is infinite; rounding may put squares of equal rows below it.
    r = (5 * square.clamp_min(1e-12)).sqrt()
    covariance: Tensor = at["log_signal"].exp() * (1 + r + r**2 / 3) * (-r).exp()
    return covariance


def bound(family: Family, at: Parameters, x: "Tensor", y: "Tensor", rows: int) -> "Tensor":
    """Estimate of the evidence's lower bound over ``rows`` rows from the minibatch ``x [b, d]``, ``y [b]``."""
    mean, variance, divergence = family.posterior(at, x)
    noise = at["log_noise"].exp()
    each = -0.5 * (np.log(2 * np.pi) + at["log_noise"] + ((y - mean) ** 2 + variance) / noise)
    total: Tensor = each.mean() * rows - divergence
    return total


@dataclass(frozen=True)
class Scaling:
    """Columns and target about their mean in units of their deviation, as the model sees them."""

    center: Array
    width: Array
    middle: float
    unit: float


@dataclass(frozen=True)
class SparseGP:
    """A trained model.

    Attributes:
        family: of its posterior. parameters: tensors by name. scaling: of its data.
        steps: that it was trained for. step_time: median seconds of one.
    """

    family: Family
    parameters: Parameters
    scaling: Scaling
    steps: int
    step_time: float

    @property
    def noise(self) -> float:
        """Standard deviation of an observation about ``f``, in the target's units."""
        return float(self.parameters["log_noise"].detach().exp().sqrt()) * self.scaling.unit

    @property
    def numbers(self) -> int:
        """Numbers that describe the variational posterior beside its inputs, of which each family has ``M d``."""
        return sum(self.parameters[name].numel() for name in self.family.variational)

    def predict(self, x: ArrayLike, chunk: int = 4096) -> tuple[Array, Array]:
        """Mean and standard deviation of ``f`` ``[m]`` at rows ``x [m, d]``, in the target's units.

        Raises:
            UsageError: ``x`` has another number of columns than the model was trained on, or is not finite.
        """
        import torch

        rows = _matrix(x)
        if rows.shape[1] != len(self.scaling.center):
            raise UsageError(f"x has {rows.shape[1]} columns, the model {len(self.scaling.center)}")
        scaled = torch.from_numpy((rows - self.scaling.center) / self.scaling.width)
        with torch.no_grad():
            parts = [self.family.posterior(self.parameters, part)[:2] for part in torch.split(scaled, chunk)]
        mean, variance = (torch.cat(p).numpy() for p in zip(*parts, strict=True))
        return mean * self.scaling.unit + self.scaling.middle, np.sqrt(np.maximum(variance, 0)) * self.scaling.unit

    def elbo(self, x: ArrayLike, y: ArrayLike) -> float:
        """The bound on the log evidence of rows ``x [n, d]``, ``y [n]``, exactly, in nats per row of scaled targets."""
        import torch

        rows = (_matrix(x) - self.scaling.center) / self.scaling.width
        target = (np.asarray(y, float) - self.scaling.middle) / self.scaling.unit
        total, n = 0.0, len(target)
        with torch.no_grad():
            chunks = (torch.split(torch.from_numpy(a), 4096) for a in (rows, target))
            for part, t in zip(*chunks, strict=True):
                _, _, divergence = self.family.posterior(self.parameters, part)
                # Each chunk's bound has the whole divergence in it; it counts once.
                total += float(bound(self.family, self.parameters, part, t, len(t)) + divergence)
            return (total - float(divergence)) / n


def _matrix(x: ArrayLike) -> Array:
    rows = np.asarray(x, float)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise UsageError(f"x must be a finite matrix [rows, columns]; it has shape {rows.shape}")
    return rows


def training(
    family: Family, x: ArrayLike, y: ArrayLike, points: int, steps: int, batch: int, rate: float, seed: int
) -> Iterator[SparseGP]:
    """Train step by step; yields the model, whose parameters go on changing, after each.

    Both families start from one guess: inputs at the centres of k-means, pseudo-outputs at the clusters' mean targets,
    each of which stands for its cluster's rows. Adam's rate falls to 0 along a half cosine.

    Args:
        x: rows ``[n, d]``. y: targets ``[n]``. points: ``M``. batch: rows of a minibatch. rate: Adam's first one.

    Raises:
        UsageError: shapes do not fit, a value is not finite, a column or the target does not vary, there are fewer
            rows than points, or torch is missing.
    """
    try:
        import torch
    except ImportError:
        raise UsageError("sparse Gaussian processes need torch: pip install nearpeak[torch]") from None

    rows, target = _matrix(x), np.asarray(y, float)
    if target.shape != rows.shape[:1] or not np.isfinite(target).all():
        raise UsageError(f"y must be {len(rows)} finite targets, one for each row of x; it has shape {target.shape}")
    require_positive(points=points, steps=steps, batch=batch, rate=rate)
    if len(rows) < points:
        raise UsageError(f"{points} points take {points} rows or more, not {len(rows)}")
    scaling = Scaling(rows.mean(axis=0), rows.std(axis=0), float(target.mean()), float(target.std()))
    if scaling.unit == 0 or (scaling.width == 0).any():
        constant = "y" if scaling.unit == 0 else f"column {int(np.argmin(scaling.width))} of x"
        raise UsageError(f"{constant} does not vary: leave it out")
    rng = np.random.default_rng(seed)
    scaled, aim = (rows - scaling.center) / scaling.width, (target - scaling.middle) / scaling.unit
    sample = scaled[rng.permutation(len(scaled))[: 100 * points]]
    centers, _ = kmeans2(sample, points, minit="++", rng=rng)
    nearest, _ = vq(scaled, centers)
    held = np.bincount(nearest, minlength=points)
    outputs = np.bincount(nearest, aim, points) / np.maximum(held, 1)
    kernel = {
        "log_length": torch.zeros(scaled.shape[1], dtype=torch.float64),
        "log_signal": torch.zeros((), dtype=torch.float64),
        "log_noise": torch.full((), np.log(0.1), dtype=torch.float64),
        "inputs": torch.from_numpy(centers.copy()),
    }
    stand = torch.from_numpy(np.maximum(held, 1).astype(float))
    at = family.start(kernel, torch.from_numpy(outputs), stand)
    for tensor in at.values():
        tensor.requires_grad_()
    adam = torch.optim.Adam(at.values(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    all_x, all_y = torch.from_numpy(scaled), torch.from_numpy(aim)
    order, used, times = torch.from_numpy(rng.permutation(len(aim))), 0, []
    for step in range(1, steps + 1):
        started = perf_counter()
        if used + batch > len(aim) and used:
            order, used = torch.from_numpy(rng.permutation(len(aim))), 0
        chosen = order[used : used + batch]
        used += batch
        adam.zero_grad()
        loss = -bound(family, at, all_x[chosen], all_y[chosen], len(aim)) / len(aim)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
        times.append(perf_counter() - started)
        yield SparseGP(family, at, scaling, step, float(np.median(times[-200:])))


def fit(
    family: Family,
    x: ArrayLike,
    y: ArrayLike,
    points: int = 50,
    steps: int = 2000,
    batch: int = 256,
    rate: float = 0.03,
    seed: int = 0,
) -> SparseGP:
    """The last model of ``training``, with the same arguments and errors."""
    for model in training(family, x, y, points, steps, batch, rate, seed):
        final = model
    return final
