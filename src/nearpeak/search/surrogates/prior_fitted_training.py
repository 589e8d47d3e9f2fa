"""Pretraining of the prior-fitted network: ``python -m nearpeak.search.surrogates.prior_fitted_training``.

A data set has one to eight inputs, a kernel (squared exponential, Matern-3/2 or -5/2, sometimes the sum of a smooth
and a rough one) with a length scale for each input, of which some do not matter, and a little noise on the context.
Half of the contexts are clustered about a place, as those of a search are. The loss is the negative log density of the
noise-free function at further points. Torch is imported when training begins; the weights that it writes need none.

Muller et al.: Transformers Can Do Bayesian Inference, ICLR 2022. Yu, Picard, Ahmed: arXiv:2406.02883 (2024).
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from nearpeak.search.parameters import Floats
from nearpeak.search.surrogates.gp import fit
from nearpeak.search.surrogates.kernels import SHAPES
from nearpeak.search.surrogates.prior_fitted import (
    DECODER,
    ENCODER,
    HEADS,
    INPUTS,
    WEIGHTS,
    Context,
    Single,
    Weights,
    decode,
    encode,
    reduced,
    shapes,
)

_SHAPES: Final = ("rbf", "matern52", "matern32")


@dataclass(frozen=True)
class Draw:
    """Data sets from the prior.

    Attributes:
        x: context ``[b, n, INPUTS]`` in [-1, 1], zero beyond each one's inputs. y: ``[b, n]``.
        q: queries ``[b, m, INPUTS]``. f: the function there, ``[b, m]``. inputs: of each, ``[b]``.
        covariance: of context and queries, ``[b, n + m, n + m]``. noise: variances, ``[b]``.
    """

    x: Floats
    y: Floats
    q: Floats
    f: Floats
    inputs: Any
    covariance: Floats
    noise: Floats


def draw(batch: int, n: int, m: int, rng: np.random.Generator) -> Draw:
    """Data sets of one size."""
    inputs = rng.integers(1, INPUTS + 1, batch)
    real = rng.permuted(np.arange(INPUTS) < inputs[:, None], axis=1)
    points = rng.random((batch, n + m, INPUTS))
    centre, reach = rng.random((batch, 1, INPUTS)), np.exp(rng.uniform(np.log(0.03), np.log(0.3), (batch, 1, 1)))
    clustered = rng.random((batch, n + m, 1)) < rng.random((batch, 1, 1)) * (rng.random((batch, 1, 1)) < 0.5)
    around = centre + reach * rng.standard_normal(points.shape)
    around = 1 - np.abs(1 - np.abs(around))
    points = np.where(clustered, np.clip(around, 0, 1), points)
    # Inputs that a set lacks, and idle ones, have no say; one at least has.
    base = np.exp(rng.normal(-0.5, 0.7, (batch, 1))) * np.sqrt(inputs)[:, None]
    lengths = base * np.exp(rng.normal(0, 0.7, (batch, INPUTS)))
    some = np.argmax(rng.random((batch, INPUTS)) * real, axis=1)[:, None]
    idle = (rng.random((batch, INPUTS)) < rng.choice([0.0, 0.2, 0.5], (batch, 1))) & (np.arange(INPUTS) != some)
    lengths = np.where(idle | ~real, 1e3, lengths)
    covariance = _covariance(points, lengths, int(rng.integers(0, len(_SHAPES))))
    mixed = (rng.random(batch) < 0.3) * rng.uniform(0, 0.4, batch)
    if mixed.any():
        rougher = lengths * rng.uniform(0.15, 0.6, (batch, 1))
        other = _covariance(points, rougher, int(rng.integers(0, len(_SHAPES))))
        covariance = (1 - mixed)[:, None, None] * covariance + mixed[:, None, None] * other
    factor = np.linalg.cholesky(covariance + 1e-7 * np.eye(n + m))
    f = (factor @ rng.standard_normal((batch, n + m, 1)))[..., 0]
    noise = np.where(rng.random(batch) < 0.6, 1e-6, np.exp(rng.uniform(np.log(1e-6), np.log(0.03), batch)))
    y = f[:, :n] + np.sqrt(noise)[:, None] * rng.standard_normal((batch, n))
    wide = np.where(real[:, None], 2 * points - 1, 0.0)
    return Draw(wide[:, :n], y, wide[:, n:], f[:, n:], inputs, covariance, noise)


def _covariance(points: Floats, lengths: Floats, kind: int) -> Floats:
    z = points / lengths[:, None]
    squares = (z * z).sum(-1)
    r2 = np.maximum(squares[:, :, None] + squares[:, None] - 2 * z @ z.swapaxes(1, 2), 0)
    return SHAPES[_SHAPES[kind]](r2)[0]


def initial(rng: np.random.Generator) -> dict[str, Floats]:
    """Weights before training: residual branches small, heads of different reach."""
    found = {}
    layers = ENCODER + DECODER
    for name, shape in shapes().items():
        if name.endswith(("bias", "sink")):
            found[name] = np.zeros(shape)
        elif name == "relevance.start":
            found[name] = np.tile(np.linspace(-0.7, 1.6, HEADS), layers)
        else:
            small = 1 / np.sqrt(2 * layers) if name.endswith((".o", ".down")) else 0.3 if name.endswith("out") else 1.0
            found[name] = small * rng.standard_normal(shape) / np.sqrt(shape[0])
    return found


def train(
    steps: int, seed: int = 0, batch: int = 24, longest: int = 160, queries: int = 64, rate: float = 3e-3,
    keep: Callable[[int, float, dict[str, Floats]], None] | None = None, device: str = "cpu",
) -> dict[str, Floats]:  # fmt: skip
    """Weights after so many steps: Muon on the layers' matrices, Adam on the rest, the rate falling as a cosine.

    What is kept is the moving average of the weights.

    Args:
        batch: data sets of a step. longest: points of a context. queries: of each data set.
        keep: is given the step, the mean loss of late and the weights every 100 steps.
    """
    import torch

    rng = np.random.default_rng(seed)
    weights = {
        name: torch.tensor(value, dtype=torch.float32, device=device, requires_grad=True)
        for name, value in initial(rng).items()
    }
    by_shape: dict[tuple[int, ...], list[Any]] = {}
    for name, weight in weights.items():
        if name[0].isdigit() and weight.ndim == 2:
            by_shape.setdefault(tuple(weight.shape), []).append(weight)
    momenta = [torch.zeros(len(group), *shape, device=device) for shape, group in by_shape.items()]
    others = [w for name, w in weights.items() if not (name[0].isdigit() and w.ndim == 2)]
    adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=1e-3)
    averaged = {name: value.detach().clone() for name, value in weights.items()}
    losses: list[float] = []
    for step in range(1, steps + 1):
        share = step / steps
        now = rate * min(1.0, step / 50) * (0.5 * (1 + np.cos(np.pi * share)) + 0.005)
        n = int(np.exp(rng.uniform(np.log(3), np.log(longest + 1))))
        loss = _loss(weights, draw(batch, n, queries, rng), device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        with torch.no_grad():
            for momentum, group in zip(momenta, by_shape.values(), strict=True):
                momentum.lerp_(torch.stack([w.grad for w in group]), 0.05)
                for weight, direction in zip(group, _orthogonal(momentum), strict=True):
                    weight.mul_(1 - 0.01 * now).sub_(0.2 * now * max(weight.shape) ** 0.5 * direction)
                    weight.grad = None
        adam.param_groups[0]["lr"] = now
        adam.step()
        adam.zero_grad()
        decay = min(0.99, step / (10 + step))
        with torch.no_grad():
            for name, value in weights.items():
                averaged[name].lerp_(value, 1 - decay)
        losses.append(float(loss.detach()))
        if keep is not None and (step % 100 == 0 or step == steps):
            keep(step, float(np.mean(losses[-100:])), {n: v.cpu().numpy().astype(float) for n, v in averaged.items()})
    return {name: value.cpu().numpy().astype(float) for name, value in averaged.items()}


def _orthogonal(matrices: Any) -> Any:  # noqa: ANN401
    """Nearly the nearest orthogonal matrix of each, ``[k, a, b]``, by five Newton-Schulz steps (Jordan et al., Muon,
    2024): every direction of a gradient counts alike.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-9)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def _loss(weights: Any, drawn: Draw, device: str) -> Any:  # noqa: ANN401
    """Mean negative log density of the queries, in the units of the reduced outputs (at most 8 a query)."""
    import torch

    told = reduced(drawn.x, drawn.y)
    target = (drawn.f - told.trend(drawn.q)) / told.spread[:, None]

    def tensor(a: Floats | Single) -> Any:  # noqa: ANN401
        return torch.tensor(a, dtype=torch.float32, device=device)

    x, q = tensor(told.x), tensor(drawn.q)
    encoded = encode(weights, x, tensor(told.r), tensor(told.statistics), tensor(told.told), torch)
    out = decode(weights, encoded, q, torch)
    mean, log_sd = out[..., 0], out[..., 1].clip(-7.0, 4.0)
    z = (tensor(target) - mean) * torch.exp(-log_sd)
    each = 0.5 * z * z + log_sd + 0.5 * float(np.log(2 * np.pi))
    return torch.where(each > 8, 8 + torch.log(each.clip(8, None) / 8), each).mean()


@dataclass(frozen=True)
class HeldOut:
    """Negative log density of the function at queries, nats a query, in units of the context's standard deviation.

    Attributes:
        points: of the context, ``[k]``. network: by the network, ``[k]``. exact: by the Gaussian process that drew the
            data. fitted: by one whose hyperparameters are fitted (``gp.fit``). guess: by the mean and standard
            deviation of the context alone.
    """

    points: Any
    network: Floats
    exact: Floats
    fitted: Floats
    guess: Floats


def held_out(weights: Weights, points: Sequence[int], sets: int = 64, queries: int = 64, seed: int = 1_000) -> HeldOut:
    """How near the network comes to exact inference on data sets that it was not trained on."""
    network, exact, fitted, guess = [], [], [], []
    for n in points:
        drawn = draw(sets, n, queries, np.random.default_rng([seed, n]))
        unit = np.log(drawn.y.std(1))[:, None]
        network.append((_density(drawn.f, *_by_network(weights, drawn)) - unit).mean())
        exact.append((_density(drawn.f, *_by_prior(drawn)) - unit).mean())
        fitted.append((_density(drawn.f, *_by_fit(drawn)) - unit).mean())
        guess.append((_density(drawn.f, drawn.y.mean(1)[:, None], drawn.y.std(1)[:, None]) - unit).mean())
    return HeldOut(np.asarray(points), np.array(network), np.array(exact), np.array(fitted), np.array(guess))


def _density(f: Floats, mean: Floats, sd: Floats) -> Floats:
    """Minus the log of the normal density."""
    return np.asarray(0.5 * ((f - mean) / sd) ** 2 + np.log(sd) + 0.5 * np.log(2 * np.pi))


def _by_network(weights: Weights, drawn: Draw) -> tuple[Floats, Floats]:
    return Context.read(drawn.x, drawn.y, weights).at(drawn.q)


def _by_prior(drawn: Draw) -> tuple[Floats, Floats]:
    n = drawn.y.shape[1]
    seen = drawn.covariance[:, :n, :n] + (drawn.noise[:, None, None] + 1e-7) * np.eye(n)
    cross = drawn.covariance[:, :n, n:]
    solved = np.linalg.solve(seen, cross)
    variance = np.diagonal(drawn.covariance[:, n:, n:], axis1=1, axis2=2) - (cross * solved).sum(1)
    return (drawn.y[:, None] @ solved)[:, 0], np.sqrt(np.maximum(variance, 1e-8))


def _by_fit(drawn: Draw) -> tuple[Floats, Floats]:
    means, sds = np.empty_like(drawn.f), np.empty_like(drawn.f)
    for i in range(len(drawn.y)):
        real = np.abs(drawn.x[i]).max(0) > 0
        means[i], sds[i] = fit(drawn.x[i][:, real] / 2 + 0.5, drawn.y[i]).predict(drawn.q[i][:, real] / 2 + 0.5)
    return means, np.maximum(sds, 1e-4)


def main() -> None:
    """Train, show what was reached, write the weights that the package ships."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=3_000, help="data sets are 24 times as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of torch: cpu or cuda")
    parser.add_argument("--output", type=Path, default=Path(str(WEIGHTS)))
    asked = parser.parse_args()
    asked.output.parent.mkdir(parents=True, exist_ok=True)

    def keep(step: int, loss: float, weights: dict[str, Floats]) -> None:
        print(f"step {step} of {asked.steps}: loss {loss:.3f}, {time.process_time():.0f} s of CPU", flush=True)
        arrays: dict[str, Any] = {name: value.astype(np.float16) for name, value in weights.items()}
        np.savez_compressed(asked.output, **arrays)

    weights = train(asked.steps, asked.seed, keep=keep, device=asked.device)
    shown = held_out({name: value.astype(np.float32) for name, value in weights.items()}, (5, 10, 20, 50, 100))
    for row in zip(shown.points, shown.network, shown.exact, shown.fitted, shown.guess, strict=True):
        print("{} points: network {:.3f}, exact {:.3f}, fitted {:.3f}, without inputs {:.3f}".format(*row))


if __name__ == "__main__":
    main()
