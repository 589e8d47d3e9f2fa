"""The joint distribution of a coming window's load indicators: attention over several time scales, and a flow.

After HARMONY (Luo et al., arXiv 2408.01000). The history of an indicator at one time scale is one token (its recent
block means, as in inverted transformers). Attention runs over the indicators of a scale, from the coarsest scale to
the finest; each scale's queries, keys and values are its own tokens plus what the coarser scale gave (the paper's
cascade, whose levels are here time scales). What comes out, with the time of day and week, conditions an
autoregressive flow: indicator ``i`` of the window, given those before it, is

    y_i = m_i + s_i q_i(u_i),    u_i ~ N(0, 1),    m, s, q from (context, y_1 .. y_(i-1))

a Gaussian projection whose shape a monotonic rational-quadratic spline ``q`` bends (Durkan et al., Neural Spline
Flows, NeurIPS 2019), linear outside of [-4, 4]. The likelihood is exact and is what training maximizes. Indicators
enter as logarithms, relative to their mean over the history seen, so that a level that drifts is no news.

This module needs torch: ``pip install nearpeak[torch]``.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.fleet.load_traces import DAY, Load

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F  # noqa: N812 (torch's own name for it)
except ModuleNotFoundError as error:
    raise NearpeakError("forecasts of load need torch: pip install nearpeak[torch]") from error

Array = NDArray[np.float64]
Index = NDArray[np.intp]
DAYS = 3
"""Days before a window whose same time of day a forecast sees."""
BOX = 4.0
"""Where the spline ends, in standard deviations."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a forecaster.

    Attributes:
        scales: windows in a block of each time scale, coarsest first. length: blocks of each that are seen.
        width, heads: of the attention. bins: of the splines. dropout: share of a context that training hides.
        lead: windows from the last one seen to the one forecast; 1 is the next.
    """

    scales: tuple[int, ...] = (36, 6, 1)
    length: int = 12  # 3 days of 4 windows, too
    width: int = 24
    heads: int = 4
    bins: int = 8
    dropout: float = 0.5
    lead: int = 1


def spline(x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """A monotonic rational-quadratic spline on [-BOX, BOX], the identity outside.

    Args:
        x: ``[...]``. parameters: ``[..., 3 bins - 1]``, unconstrained; zeros make the identity.

    Returns:
        the value and the logarithm of the derivative, ``[...]``.
    """
    bins = (parameters.shape[-1] + 1) // 3
    floor = 1e-2
    knots = []
    for raw in (parameters[..., :bins], parameters[..., bins : 2 * bins]):
        share = floor + (1 - floor * bins) * raw.softmax(-1)
        knots.append(BOX * (2 * F.pad(share.cumsum(-1), (1, 0)) - 1))
    slopes = floor + F.softplus(parameters[..., 2 * bins :] + math.log(math.expm1(1 - floor)))
    slopes = F.pad(slopes, (1, 1), value=1.0)
    inside = x.abs() < BOX
    at = torch.where(inside, x, torch.zeros_like(x))
    searched = knots[1] if inverse else knots[0]
    index = torch.searchsorted(searched[..., 1:-1].contiguous(), at.unsqueeze(-1))

    def of(values: Tensor, shift: int = 0) -> Tensor:
        return values.gather(-1, index + shift).squeeze(-1)

    left, low = of(knots[0]), of(knots[1])
    wide, high = of(knots[0], 1) - left, of(knots[1], 1) - low
    steep, d0, d1 = high / wide, of(slopes), of(slopes, 1)
    bend = d0 + d1 - 2 * steep
    if inverse:
        rise = at - low
        a = high * (steep - d0) + rise * bend
        b = high * d0 - rise * bend
        c = -steep * rise
        t = 2 * c / (-b - (b * b - 4 * a * c).clamp_min(0).sqrt())
    else:
        t = (at - left) / wide
    below = steep + bend * t * (1 - t)
    value = left + t * wide if inverse else low + high * (steep * t * t + d0 * t * (1 - t)) / below
    slope = steep**2 * (d1 * t * t + 2 * steep * t * (1 - t) + d0 * (1 - t) ** 2) / below**2
    log = -slope.log() if inverse else slope.log()
    return torch.where(inside, value, x), torch.where(inside, log, torch.zeros_like(log))


class Attention(nn.Module):
    """Self-attention over a handful of tokens, written out: fused kernels are made for long sequences."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.project, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[batch, tokens, width]`` to the same shape."""
        q, k, v = self.project(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        found: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return found


class Encoder(nn.Module):
    """Context of a forecast: attention over indicators, scale by scale."""

    def __init__(self, indicators: int, shape: Shape) -> None:
        super().__init__()
        w, levels = shape.width, ("days", *shape.scales)
        self.embed = nn.ModuleList([nn.Linear(shape.length, w) for _ in levels])
        self.who = nn.Parameter(0.02 * torch.randn(indicators + 1, w))
        self.clock = nn.Linear(CLOCK, w)
        self.attend = nn.ModuleList([Attention(w, shape.heads) for _ in levels])
        self.mix = nn.ModuleList([nn.Sequential(nn.Linear(w, 2 * w), nn.GELU(), nn.Linear(2 * w, w)) for _ in levels])
        self.norms = nn.ModuleList([nn.LayerNorm(w) for _ in range(2 * len(levels))])
        self.out = nn.Sequential(nn.Linear((indicators + 1) * w, 2 * w), nn.GELU(), nn.Dropout(shape.dropout))

    def forward(self, history: Tensor, clock: Tensor) -> Tensor:
        """History ``[batch, scales, indicators, length]`` and clock ``[batch, CLOCK]`` to ``[batch, 2 width]``."""
        when = self.clock(clock).unsqueeze(1)
        found = torch.zeros_like(self.who)
        for k, (embed, attend, mix) in enumerate(zip(self.embed, self.attend, self.mix, strict=True)):
            tokens = torch.cat([embed(history[:, k]), when], 1) + self.who + found
            seen = self.norms[2 * k](tokens)
            tokens = tokens + attend(seen)
            found = tokens + mix(self.norms[2 * k + 1](tokens))
        out: Tensor = self.out(found.flatten(1))
        return out


class Forecaster(nn.Module):
    """Encoder and flow of ``indicators``; see the module.

    Attributes:
        spread: standard deviations of what is forecast, by which it is scaled. floor: added before logarithms, in the
            indicators' units. Both ``[indicators]``.
    """

    spread: Tensor
    floor: Tensor

    def __init__(self, indicators: int, shape: Shape) -> None:
        super().__init__()
        self.indicators, self.shape = indicators, shape
        self.encoder = Encoder(indicators, shape)
        w = shape.width
        self.heads = nn.ModuleList()
        for i in range(indicators):
            last = nn.Linear(w, 2 + 3 * shape.bins - 1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.heads.append(nn.Sequential(nn.Linear(2 * w + i, w), nn.GELU(), last))
        self.register_buffer("spread", torch.ones(indicators))
        self.register_buffer("floor", torch.ones(indicators, dtype=torch.float64))

    def _pieces(self, i: int, context: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.heads[i](torch.cat([context, before], -1))
        return found[..., 0], found[..., 1], found[..., 2:]

    def log_likelihood(self, history: Tensor, clock: Tensor, target: Tensor) -> Tensor:
        """Nats of windows ``[batch, indicators]``, standardized by ``spread``; ``[batch]``."""
        context = self.encoder(history, clock)
        y = target / self.spread
        pieces = (self._pieces(i, context, y[:, :i]) for i in range(self.indicators))
        m, log_s, bend = (torch.stack(part, 1) for part in zip(*pieces, strict=True))
        u, log = spline((y - m) * torch.exp(-log_s), bend, inverse=True)
        total: Tensor = (log - log_s - 0.5 * u * u - 0.5 * math.log(2 * math.pi)).sum(1)
        return total

    def sample(
        self, history: Tensor, clock: Tensor, samples: int, generator: torch.Generator, first: int | None = None
    ) -> Tensor:
        """Draws of the coming window's first indicators, all if None; ``[batch, samples, first]``.

        The flow is autoregressive, so that fewer indicators cost less and have the same distribution.
        """
        context = self.encoder(history, clock).unsqueeze(1)
        y = context.new_zeros(len(context), 1, 0)
        for i in range(self.indicators if first is None else first):
            m, log_s, bend = self._pieces(i, context.expand(-1, y.shape[1], -1), y)
            u = torch.randn(len(context), samples, generator=generator)
            value, _ = spline(u, bend.expand(-1, samples, -1), inverse=False)
            drawn = (m + torch.exp(log_s) * value).unsqueeze(-1)
            y = torch.cat([y.expand(-1, samples, -1), drawn], -1)
        found: Tensor = y * self.spread[: y.shape[-1]]
        return found


HARMONICS = 6
CLOCK = 2 * (HARMONICS + 2)
"""Numbers that tell the time: harmonics of the day, and two of the week."""


def clock(load: Load, at: Index) -> Array:
    """Time of the windows ``at`` as harmonics ``[windows, CLOCK]``."""
    time = load.start + (at + 0.5) * load.window
    angles = [2 * np.pi * n * time / DAY for n in range(1, HARMONICS + 1)]
    angles += [2 * np.pi * n * time / (7 * DAY) for n in (1, 2)]
    return np.stack([f(a) for a in angles for f in (np.sin, np.cos)], 1)


def history(load: Load, at: Index, shape: Shape, floor: Array) -> tuple[Array, Array]:
    """What forecasts of the windows ``at`` see.

    Args:
        floor: added to the indicators, so that an empty window has a logarithm. ``[indicators]``

    Returns:
        logarithms of block means ``[windows, scales + 1, indicators, length]`` less the level, and that level
        ``[windows, indicators]``, the logarithms of the last block. First stand the days before, four
        windows of each around the forecast's time of day.

    Raises:
        UsageError: a window lies too early to have a history, or too far beyond the trace.
    """
    first, last = first_window(load, shape), len(load.values) - 1 + shape.lead
    if at.size and not first <= at.min() <= at.max() <= last:
        raise UsageError(f"no forecast of windows {at.min()} to {at.max()}: those with a history are {first} to {last}")
    summed = np.concatenate([np.zeros((1, load.values.shape[1])), np.cumsum(load.values, 0)])
    day, each = round(DAY / load.window), shape.length // DAYS
    lags = (day * np.arange(DAYS, 0, -1)[:, None] + np.arange(1, -each + 1, -1)).ravel()
    parts = [np.log(load.values[np.minimum(at[:, None] - lags, at[:, None] - shape.lead)] + floor)]
    for scale in shape.scales:
        ends = (at - shape.lead + 1)[:, None] - scale * np.arange(shape.length)[::-1]
        parts.append(np.log(np.maximum(summed[ends] - summed[ends - scale], 0.0) / scale + floor))
    found = np.stack(parts, 1).swapaxes(2, 3)
    level = found[:, -1, :, -1]
    return found - level[:, None, :, None], level


def first_window(load: Load, shape: Shape) -> int:
    """The first window of a trace that can be forecast."""
    day = round(DAY / load.window)
    return max(max(shape.scales) * shape.length + shape.lead - 1, DAYS * day + 1)


def fit(load: Load, until: int, seed: int, shape: Shape = Shape(), epochs: int = 25) -> Forecaster:
    """A forecaster of the windows before ``until``, by maximum likelihood; no later window is looked at.

    The last sixth of them is not learnt but chooses the epoch whose weights are kept.

    Raises:
        UsageError: ``until`` leaves less than a day to learn from.
    """
    first = first_window(load, shape)
    at = np.arange(first, until)
    split = len(at) - len(at) // 6
    if len(at) < round(DAY / load.window):
        raise UsageError(f"{until} windows to learn from: {first} are history, and a day more is needed")
    values = load.values[:until]
    floor = 1e-3 * values.mean(0) + 1e-12
    seen, level = history(load, at, shape, floor)
    target = np.log(values[at] + floor) - level
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(seed)
        model = Forecaster(values.shape[1], shape)
        model.floor.copy_(torch.as_tensor(floor))
        model.spread.copy_(torch.as_tensor(target[:split].std(0) + 1e-6))
        data = tuple(torch.as_tensor(x, dtype=torch.float32) for x in (seen, clock(load, at), target))
        _maximize(model, data, split, epochs)
    return model.eval()


def _maximize(model: Forecaster, data: tuple[Tensor, ...], split: int, epochs: int) -> None:
    """Train on the first ``split`` windows; keep the weights of the epoch that is likeliest on the others."""
    batch, best = 256, math.inf
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.05, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * math.ceil(split / batch))
    for _ in range(epochs):
        model.train()
        for rows in torch.split(torch.randperm(split), batch):
            loss = -model.log_likelihood(*(x[rows] for x in data)).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
        model.eval()
        with torch.no_grad():
            left = -model.log_likelihood(*(x[split:] for x in data)).mean().item()
        if left < best:
            best, kept = left, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(kept)


def forecast(model: Forecaster, load: Load, at: Index, samples: int, seed: int, first: int | None = None) -> Array:
    """Draws of the windows ``at`` from what is known ``lead`` windows before each. ``[windows, samples, indicators]``.

    Args:
        first: how many indicators are drawn, all if None.

    Raises:
        UsageError: the trace has other indicators than the forecaster, or a window no history.
    """
    if load.values.shape[1] != model.indicators:
        raise UsageError(f"the forecaster knows {model.indicators} indicators, the trace has {load.values.shape[1]}")
    floor = model.floor.numpy()
    seen, level = history(load, at, model.shape, floor)
    inputs = [torch.as_tensor(x, dtype=torch.float32) for x in (seen, clock(load, at))]
    generator = torch.Generator().manual_seed(seed)
    with _one_thread(), torch.no_grad():
        parts = zip(*(torch.split(x, 64) for x in inputs), strict=True)
        drawn: Array = (
            torch.cat([model.sample(past, time, samples, generator, first) for past, time in parts]).double().numpy()
        )
    return np.asarray(np.maximum(np.exp(drawn + level[:, None, :first]) - floor[:first], 0.0))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small tensors are slower on more threads, and sums differ with their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def save(model: Forecaster, path: str | Path) -> None:
    """Write a forecaster: its sizes and its tensors."""
    about = {"indicators": model.indicators, "shape": asdict(model.shape), "state": model.state_dict()}
    torch.save(about, path)


def read(path: str | Path) -> Forecaster:
    """A forecaster that ``save`` wrote.

    Raises:
        UsageError: there is no such file, or it holds something else.
    """
    if not Path(path).is_file():
        raise UsageError(f"there is no forecaster {str(path)!r}")
    try:
        about: dict[str, Any] = torch.load(path, weights_only=True)
        model = Forecaster(about["indicators"], Shape(**about["shape"]))
        model.load_state_dict(about["state"])
    except Exception as error:
        raise UsageError(f"{str(path)!r} is no forecaster that nearpeak wrote: {error}") from None
    return model.eval()
