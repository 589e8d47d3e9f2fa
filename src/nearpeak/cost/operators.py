"""Time of one operator on one device, seconds, arrays that broadcast: one call prices millions of shapes.

Each operator is a ``*_work`` function, the physics: how many seconds its arithmetic and its traffic would take at the
datasheet's peaks, whole tiles and waves counted. ``platform.seconds`` then joins the two at the fractions that real
kernels reach. Attention is in ``attention``, communication in ``collectives``; all are named here.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost.attention import (
    attention_decode,
    attention_prefill,
    linear_attention,
    mla_decode,
    mla_prefill,
)
from nearpeak.cost.calibration import Array
from nearpeak.cost.collectives import collective
from nearpeak.cost.platform import BF16, Platform, Work, codes, evidence, interval, real, seconds
from nearpeak.formats import ACTIVATION_BYTES, BYTES

__all__ = [
    "attention_decode",
    "attention_prefill",
    "collective",
    "elementwise",
    "evidence",
    "gemm",
    "interval",
    "linear_attention",
    "mla_bmm",
    "mla_decode",
    "mla_prefill",
    "moe",
    "sampling",
]

OUTPUT_BYTES = 2.0
"""Products leave in 16 bits, whatever they were multiplied in."""

TILES = ((256.0, 128.0, 1.0), (128.0, 128.0, 0.95), (128.0, 64.0, 0.85), (64.0, 64.0, 0.7))
"""Output tiles (rows, columns) that one unit works on, and their speed relative to the largest: smaller tiles read
their operands more often. Libraries pick the one that fills the device's waves best."""


def gemm(p: Platform, m: ArrayLike, n: ArrayLike, k: ArrayLike, fmt: ArrayLike = BF16) -> Array:
    """Seconds of ``[m, k] @ [k, n]``, weights ``[k, n]`` and activations in format ``fmt`` (a code of ``formats``)."""
    return seconds(p, gemm_work(p, real(m), real(n), real(k), codes(fmt)))


def gemm_work(p: Platform, m: Array, n: Array, k: Array, fmt: NDArray[np.intp]) -> Work:
    """The physics of ``gemm``: the best tiling's waves over all units, against each operand moved once."""
    rate = p.rate(fmt)
    size = n * k * BYTES[fmt] + m * k * _activation_bytes(p, fmt) + m * n * OUTPUT_BYTES
    padded = _worked(p, m, n)
    compute, traffic = 2.0 * padded * k / rate, p.streaming(size)
    floor = np.maximum(2.0 * m * n * k / rate, p.fastest(size))
    return Work("gemm", fmt, compute, traffic, floor, (np.log2(m), np.log2(n), np.log2(k)))


def _worked(p: Platform, m: Array, n: Array) -> Array:
    """Output elements that a product works through: whole tiles on accelerators; a CPU's blocks are a few rows high."""
    return m * n if p.device.kind == "cpu" else tiled_area(m, n, float(p.device.units))


def tiled_area(m: Array, n: Array, units: float) -> Array:
    """Output elements that the units work through, padding included: full waves of whole tiles, best tiling.

    The last wave of a product too small for one wave is cut along ``k`` instead (split-k), so it costs its share.
    """
    best: Array = np.asarray(np.inf)
    for rows, columns, speed in TILES:
        tiles = np.ceil(m / rows) * np.ceil(n / columns)
        waves = np.where(tiles > units, np.ceil(tiles / units), tiles / units)
        best = np.minimum(best, waves * (units * rows * columns / speed))
    return best


def moe(
    p: Platform,
    tokens: ArrayLike,
    hidden: ArrayLike,
    inter: ArrayLike,
    topk: ArrayLike,
    experts: ArrayLike,
    moe_tp: ArrayLike = 1,
    moe_ep: ArrayLike = 1,
    fmt: ArrayLike = BF16,
    gated: ArrayLike = True,
    skew: ArrayLike = 1.2,
) -> Array:
    """Seconds of a block of routed experts on the busiest device of its group: both products and what is between them.

    Args:
        tokens: of the whole group. topk: experts of a token, of ``experts`` in all.
        hidden, inter: widths of a token and of one expert.
        moe_tp, moe_ep: ways that an expert is cut, and that the experts are dealt out.
        gated: experts have a gate beside their up projection.
        skew: exponent of the power law that loads of experts follow; 0 for equal loads.
    """
    routing = (real(topk), real(experts), real(moe_tp), real(moe_ep))
    work = moe_work(p, real(tokens), real(hidden), real(inter), *routing, codes(fmt), np.asarray(gated), real(skew))
    return seconds(p, work)


QUANTILES = (np.arange(6) + 0.5) / 6
"""Where the loads of all experts but the most loaded are sampled."""
ROWS = 64.0
"""Rows of a tile of the grouped product: an expert's tokens are padded to whole tiles."""


def moe_work(
    p: Platform,
    tokens: Array,
    hidden: Array,
    inter: Array,
    topk: Array,
    experts: Array,
    moe_tp: Array,
    moe_ep: Array,
    fmt: NDArray[np.intp],
    gated: NDArray[np.bool_],
    skew: Array,
) -> Work:
    """The physics of ``moe``: weights of the experts that any token meets, rows of the busiest device."""
    local, width, matrices = experts / moe_ep, inter / moe_tp, np.where(gated, 3.0, 2.0)
    rows, met, padded = expert_loads(tokens, topk, experts, moe_ep, skew)
    rate = p.rate(fmt)
    weights = met * matrices * hidden * width * BYTES[fmt]
    activations = rows * (2 * hidden + matrices * width) * OUTPUT_BYTES
    flops = 2.0 * matrices * hidden * width
    compute, traffic = padded * flops / rate, p.streaming(weights + activations)
    # A power law is sampled, not known: only what a single token surely costs bounds the time from below.
    floor = np.asarray(p.fastest(np.maximum(1.0, topk / moe_ep) * matrices * hidden * width * BYTES[fmt])) * 0.5
    sizes = (np.log2(rows / local), np.log2(local), np.log2(moe_ep), np.log2(width))
    coordinates = (*sizes, skew, np.log2(traffic * p.device.clock))
    return Work("moe", fmt, compute, traffic, floor, coordinates)


def expert_loads(tokens: Array, topk: Array, experts: Array, moe_ep: Array, skew: Array) -> tuple[Array, Array, Array]:
    """Of the busiest of ``moe_ep`` devices: rows in all, experts met by any, rows padded to tiles.

    Loads follow a bounded power law, density ``x ** -skew`` between 1 and 0.8 ``tokens``, scaled to ``tokens * topk``
    in all; ``skew`` 0 means equal loads. The busiest device holds the most loaded expert, and ordinary ones beside it.
    """
    local, mean, flat = experts / moe_ep, tokens * topk / experts, np.asarray(skew) == 0
    top, power = np.maximum(0.8 * tokens, 1.0 + 1e-9), 1.0 - np.where(flat, 1.5, np.where(skew == 1, 1.0001, skew))

    grown, inverse = top**power - 1.0, 1.0 / power

    def relative(u: Array) -> Array:
        return np.asarray((1.0 + u * grown) ** inverse)

    largest = relative(1.0 - 0.5 / experts)
    others = [relative(u * (1.0 - 1.0 / experts)) for u in QUANTILES]
    average = (sum(others) / len(others)) * (1.0 - 1.0 / experts) + largest / experts
    even = np.maximum(1.0, mean * local)
    equal = even / np.maximum(1.0, np.minimum(local, even))
    most = np.clip(np.where(flat, equal, mean * largest / average), 1.0, tokens)
    rows, met, padded = most, np.ones(()), np.ceil(most / ROWS) * ROWS
    beside = np.where(flat, np.maximum(0.0, np.minimum(local, even) - 1.0), local - 1.0)
    for x in others:
        load = np.where(flat, most, mean * x / average)
        share, hit = beside / len(others), np.where(flat, 1.0, 1.0 - np.exp(-load))
        rows = rows + share * load
        met = met + share * hit
        padded = padded + share * np.maximum(load, np.ceil(load / ROWS) * ROWS * hit)
    return rows, met, padded


def mla_bmm(
    p: Platform,
    tokens: ArrayLike,
    heads: ArrayLike,
    nope_dim: ArrayLike = 128,
    v_dim: ArrayLike = 128,
    kv_rank: ArrayLike = 512,
    fmt: ArrayLike = BF16,
) -> Array:
    """Seconds of both absorbed projections of latent attention: queries into the latent space, outputs out of it."""
    t, h, nope, v, rank = real(tokens), real(heads), real(nope_dim), real(v_dim), real(kv_rank)
    code = codes(fmt)
    into = seconds(p, mla_bmm_work(p, "mla_bmm_pre", t, h, nope, rank, code))
    return np.asarray(into + seconds(p, mla_bmm_work(p, "mla_bmm_post", t, h, rank, v, code)))


def mla_bmm_work(
    p: Platform, op: str, tokens: Array, heads: Array, inp: Array, out: Array, fmt: NDArray[np.intp]
) -> Work:
    """``heads`` products ``[tokens, inp] @ [inp, out]`` at once."""
    rate = p.rate(fmt)
    size = heads * (inp * out * BYTES[fmt] + tokens * inp * _activation_bytes(p, fmt) + tokens * out * OUTPUT_BYTES)
    padded = _worked(p, tokens, out * heads)
    floor = np.maximum(2.0 * tokens * heads * inp * out / rate, p.fastest(size))
    return Work(op, fmt, 2.0 * padded * inp / rate, p.streaming(size), floor, (np.log2(tokens), np.log2(heads)))


LAUNCH = 2e-6
"""Seconds that a small kernel takes in a captured graph, whatever it does."""
STREAMED = 0.8
"""Share of the datasheet's bandwidth that streaming kernels reach (BabelSTREAM on A100 and H100: 0.87 to 0.93; fused
norms and activations a little less)."""


def elementwise(p: Platform, size: ArrayLike) -> Array:
    """Seconds of kernels that read and write ``size`` bytes in all: norms, activations, residuals, embeddings.

    What fits the last-level cache is there from the kernel before and moves at its bandwidth; the rest streams from
    main memory. A device whose cache the catalogue does not know streams everything.
    """
    moved = real(size)
    traffic = p.streaming(moved) if p.cache is None else p.fastest(moved)
    return np.asarray(np.where(moved > 0, LAUNCH + traffic / STREAMED, 0.0))


def sampling(p: Platform, batch: ArrayLike, vocab: ArrayLike) -> Array:
    """Seconds to draw a token from each row of fp32 logits ``[batch, vocab]``: softmax, and a top-p or argmax pass."""
    return np.asarray(3 * elementwise(p, 4.0 * real(batch) * real(vocab)))


def _activation_bytes(p: Platform, fmt: NDArray[np.intp]) -> Array:
    """Bytes of an activation: 16 bits where the device widens the weights instead of multiplying in their format."""
    return np.asarray(np.where(p.native[fmt], ACTIVATION_BYTES[fmt], OUTPUT_BYTES))
