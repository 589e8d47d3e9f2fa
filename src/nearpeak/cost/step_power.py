"""Watts of the steps of a Setup, from the operators inside: what each part of a step keeps busy, weighted by its time.

A part's arithmetic and traffic follow in closed form from the model and the layout, its time from the prediction; the
two together are the utilization that ``power`` speaks of. Everything broadcasts over the arrays of a Setup.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost import memory, power
from nearpeak.cost.engine import engine_on
from nearpeak.cost.evidence import platform_of
from nearpeak.cost.platform import BF16, Platform
from nearpeak.cost.power import Load
from nearpeak.cost.serving import Kernels, Prediction, predict
from nearpeak.cost.step import ACTIVATION, NORM_TRAFFIC, Step, unevenness
from nearpeak.formats import BYTES
from nearpeak.setup import Pool, Setup
from nearpeak.workload import (
    Dense,
    Experts,
    Linear,
    LinearAttention,
    attended_tokens,
    ffn_linears,
    head_width,
    mixer_linears,
)

Array = NDArray[np.float64]
TILE, TILE_SPEED = 64.0, 0.7
"""Rows that a product works through at least, and the speed of its smallest tile over the largest's (``operators``)."""
PARTS = tuple(f.name for f in fields(Step))


@dataclass(frozen=True)
class Pass:
    """What one pass works on in each attention replica. ``decoding``: next tokens, after ``context`` tokens each;
    otherwise whole prompts of ``context`` tokens, in ``chunks`` steps. ``beside``: what decodes in each of these steps.
    """

    decoding: bool
    sequences: Array
    context: Array
    chunks: Array
    beside: "Pass | None" = None

    @property
    def new(self) -> Array:
        """Tokens of the pass itself."""
        return self.sequences if self.decoding else self.sequences * self.context

    @property
    def rows(self) -> Array:
        """Tokens that go through the matrices."""
        return self.new if self.beside is None else self.new + self.chunks * self.beside.new

    @property
    def sampled(self) -> Array:
        """Tokens that the head is needed for."""
        return self.sequences if self.beside is None else self.sequences + self.chunks * self.beside.sequences


def decode_pass(setup: Setup) -> Pass:
    """What a decode step of a Setup works on."""
    sequences = np.maximum(1.0, np.asarray(setup.decode.batch, float) / setup.decode.pp)
    context = np.asarray(setup.isl, float) + np.asarray(setup.osl, float) / 2
    return Pass(True, sequences, context, np.ones(()))


def prefill_pass(setup: Setup) -> Pass:
    """What the steps of one prompt of a Setup work on; the other requests decode on where the engine mixes the two."""
    isl = np.asarray(setup.isl, float)
    alone = Pass(False, np.ones(()), isl, np.ceil(isl / setup.chunk))
    if setup.prefill is not None or not engine_on(setup.engine, setup.node).mixes:
        return alone
    others = np.maximum(np.asarray(setup.decode.batch, float) - 1, 0.0)
    return replace(alone, beside=Pass(True, others, isl + np.asarray(setup.osl, float) / 2, np.ones(())))


def loads(p: Platform, setup: Setup, pool: Pool, step: Step, at: Pass) -> dict[str, Load]:
    """What each part of a step asks of a device. Parts that take no time are left out.

    Args:
        step: the seconds of ``at`` by part.
    """
    attention = "attention_decode" if at.decoding else "attention_prefill"
    bf16 = np.asarray(BF16)
    found = {
        "matrices": ("gemm", np.asarray(setup.ffn, np.intp), _matrices(p, setup, pool, at)),
        "attention": (attention, bf16, _mixing(p, setup, pool, at)),
        "experts": ("moe", np.asarray(setup.experts, np.intp), _experts(p, setup, pool, at)),
        "communication": ("collective", bf16, (np.zeros(()), np.zeros(()))),
        "other": ("elementwise", bf16, (np.zeros(()), _elementwise(p, setup, pool, at))),
    }
    return {
        name: _load(op, fmt, *peaks, getattr(step, name))
        for name, (op, fmt, peaks) in found.items()
        if np.any(getattr(step, name))
    }


def _load(op: str, fmt: NDArray[np.intp], compute: Array, traffic: Array, seconds: Array) -> Load:
    with np.errstate(divide="ignore", invalid="ignore"):  # a part may take no time in some Setups
        c, m = (np.where(seconds > 0, np.minimum(x / seconds, 1.0), 0.0) for x in (compute, traffic))
    a_compute, a_traffic, running = power.activity(op, fmt)
    c2, m2 = c * c, m * m
    return Load(seconds, a_compute * c + running, a_traffic * m, c2 * c2 / np.maximum(c2 * c2 + m2 * m2, 1e-30))


def mean_watts(setup: Setup, parts: dict[str, Load], whole: Array) -> Array:
    """Mean watts of a device over ``whole`` seconds, of which the parts take some; it waits in the rest."""
    device = setup.node.device
    waiting = power.drawn(device, np.zeros(()))
    above: Array = np.zeros(())
    for load in parts.values():
        above = above + (power.drawn(device, load.core + load.memory) - waiting) * load.seconds
    return np.asarray(waiting + above / whole)


def watts(setup: Setup, predicted: Prediction) -> tuple[Array, Array]:
    """Mean watts of a device in a decode step and in a prompt's prefill, hosts' waits included."""
    p, times = platform_of(setup), predicted.times
    first = setup.prefill or setup.decode
    decode = loads(p, setup, setup.decode, times.decode, decode_pass(setup))
    prefill = loads(p, setup, first, times.prefill, prefill_pass(setup))
    return (
        mean_watts(setup, decode, times.token),
        mean_watts(setup, prefill, np.maximum(times.prompt, times.prefill.total)),
    )


def _matrices(p: Platform, setup: Setup, pool: Pool, at: Pass) -> tuple[Array, Array]:
    """Seconds at peak of the dense products' arithmetic and traffic."""
    model = setup.model
    attention = sum(b.count * _size(mixer_linears(b.mixer, model.hidden)) for b in model.blocks if b.mixer is not None)
    rest = sum(b.count * _size(b.linears) for b in model.blocks)
    rest += sum(b.count * _size(ffn_linears(b.ffn, model.hidden)) for b in model.blocks if b.ffn is not None)
    head = float(model.vocab * model.hidden)
    once, tp = at.rows / at.chunks, np.asarray(pool.tp, float)
    padded = np.maximum(once, TILE / TILE_SPEED) * at.chunks
    sampled = np.maximum(at.sampled, TILE / TILE_SPEED)
    compute, traffic = np.zeros(()), np.zeros(())
    for size, fmt, rows, times in (
        (attention, setup.attention, padded, at.chunks),
        (rest, setup.ffn, padded, at.chunks),
        (head, BF16, sampled, np.ones(())),
    ):
        code = np.asarray(fmt, np.intp)
        compute = compute + 2.0 * rows * size / p.rate(code)
        traffic = traffic + times * size * BYTES[code] / p.device.memory_bandwidth
    return compute / tp, traffic / tp


def _size(linears: Sequence[Linear]) -> float:
    return float(sum(linear.parameters for linear in linears))


def _mixing(p: Platform, setup: Setup, pool: Pool, at: Pass) -> tuple[Array, Array]:
    """Seconds at peak of the mixers' kernels: pairs of queries and keys, and the cache read (or written) once."""
    model, tp = setup.model, np.asarray(pool.tp, float)
    pairs: Array = np.zeros(())
    for block in model.blocks:
        mixer = block.mixer
        if mixer is None or isinstance(mixer, LinearAttention):
            continue
        seen = attended_tokens(mixer, at.context if at.decoding else at.context / 2)
        pairs = pairs + block.count * mixer.heads * head_width(mixer, at.decoding) * seen
    compute = 2.0 * at.new * pairs / tp / p.rate(np.asarray(BF16))
    stages = np.asarray(pool.pp, float) / unevenness(setup, pool)
    traffic = memory.kv_bytes(setup, pool, at.context) * stages * at.sequences / p.device.memory_bandwidth
    if at.beside is None:
        return compute, np.asarray(traffic)
    beside = _mixing(p, setup, pool, at.beside)
    return compute + at.chunks * beside[0], np.asarray(traffic + at.chunks * beside[1])


def _experts(p: Platform, setup: Setup, pool: Pool, at: Pass) -> tuple[Array, Array]:
    """Seconds at peak of the routed experts of a device: rows in whole tiles, and the experts that any token meets."""
    code, cut = np.asarray(setup.experts, np.intp), np.asarray(pool.moe_tp, float)
    groups = np.asarray(pool.moe_ep, float)
    tokens = at.rows * pool.dp / at.chunks
    compute, traffic = np.zeros(()), np.zeros(())
    for block in setup.model.blocks:
        if not isinstance(block.ffn, Experts):
            continue
        e = block.ffn
        size = block.count * (3.0 if e.gated else 2.0) * (e.hidden or setup.model.hidden) * e.inter / cut
        met = e.count / groups * -np.expm1(-tokens * e.topk / e.count)
        rows = np.maximum(tokens * e.topk / groups, met * TILE)
        compute = compute + 2.0 * rows * size / p.rate(code)
        traffic = traffic + met * size * BYTES[code] / p.device.memory_bandwidth
    return compute * at.chunks, traffic * at.chunks


def _elementwise(p: Platform, setup: Setup, pool: Pool, at: Pass) -> Array:
    """Seconds at peak of what norms and activations move."""
    model = setup.model
    wide: Array = np.zeros(())
    for block in model.blocks:
        wide = wide + block.count * 2.0 * NORM_TRAFFIC * model.hidden
        if isinstance(block.ffn, Dense):
            wide = wide + block.count * block.ffn.inter / pool.tp * (3 if block.ffn.gated else 2)
    return np.asarray(at.rows * wide * ACTIVATION / p.device.memory_bandwidth)


@dataclass(frozen=True)
class UnderCap:
    """A Setup under a cap. ``watts``: mean of a device in a decode step and in a prompt's prefill; ``clock``: the
    lowest over boost of any part of either.
    """

    prediction: Prediction
    watts: tuple[Array, Array]
    clock: tuple[Array, Array]


def under_cap(setup: Setup, watts_limit: ArrayLike | None = None, clock: ArrayLike | None = None) -> UnderCap:
    """What a power limit of every device, or a highest clock, makes of a Setup.

    Args:
        watts_limit: watts of a device. clock: over boost.

    Raises:
        UsageError: as ``power.capped``.
    """
    p, first = platform_of(setup), setup.prefill or setup.decode
    free = predict(p, setup)
    decode = _Slowed(setup, loads(p, setup, setup.decode, free.times.decode, decode_pass(setup)), watts_limit, clock)
    prefill = _Slowed(setup, loads(p, setup, first, free.times.prefill, prefill_pass(setup)), watts_limit, clock)

    def slowed(kernels: Kernels) -> Kernels:
        chunk = prefill.step(kernels.chunk)
        full = kernels.full * (chunk.total / kernels.chunk.total)
        return replace(kernels, decode=decode.step(kernels.decode), chunk=chunk, full=full)

    found = predict(p, setup, slowed=slowed)
    times = found.times
    return UnderCap(
        found,
        (decode.watts(times.token), prefill.watts(np.maximum(times.prompt, times.prefill.total))),
        (decode.clock, prefill.clock),
    )


class _Slowed:
    """The parts of a step under a cap."""

    def __init__(
        self, setup: Setup, parts: dict[str, Load], watts_limit: ArrayLike | None, clock: ArrayLike | None
    ) -> None:
        device = setup.node.device
        self.parts = parts
        self.capped = {name: power.capped(device, load, watts_limit, clock) for name, load in parts.items()}
        self.waiting = power.drawn(device, np.zeros(()))
        if watts_limit is not None:
            self.waiting = np.minimum(self.waiting, np.asarray(watts_limit, float))

    @property
    def clock(self) -> Array:
        """The lowest of all parts."""
        clocks = np.broadcast_arrays(*(c.clock for c in self.capped.values()))
        return np.asarray(np.min(np.stack(clocks), axis=0))

    def step(self, free: Step) -> Step:
        """A step's seconds under the cap."""
        with np.errstate(invalid="ignore"):  # a part may take no time in some Setups
            longer = {n: np.nan_to_num(c.seconds / self.parts[n].seconds, nan=1.0) for n, c in self.capped.items()}
        return replace(free, **{name: getattr(free, name) * factor for name, factor in longer.items()})

    def watts(self, whole: Array) -> Array:
        """Mean watts over ``whole`` seconds."""
        above: Array = np.zeros(())
        for part in self.capped.values():
            above = above + (part.watts - self.waiting) * part.seconds
        return np.asarray(self.waiting + above / whole)


def thriftiest_clock(setup: Setup, predicted: Prediction, slowdown: ArrayLike = np.inf) -> tuple[Array, Array]:
    """Clocks over boost at which a decode step, and a prompt's prefill, take the least energy.

    Args:
        slowdown: most seconds over those at full clock, e.g. 1.05.

    Raises:
        UsageError: as ``power.best_clock``.
    """
    p, first, device = platform_of(setup), setup.prefill or setup.decode, setup.node.device
    found = []
    for pool, step, at in (
        (setup.decode, predicted.times.decode, decode_pass(setup)),
        (first, predicted.times.prefill, prefill_pass(setup)),
    ):
        parts = loads(p, setup, pool, step, at).values()
        names = ("seconds", "core", "memory", "compute")
        arrays = [np.broadcast_arrays(*(getattr(load, n) for load in parts for n in names))][0]
        stacked = np.stack(arrays, axis=-1).reshape(*arrays[0].shape, len(parts), len(names))
        found.append(power.best_clock(device, Load(*np.moveaxis(stacked, -1, 0)), slowdown)[0])
    return found[0], found[1]
