"""Time of the kernels that mix tokens: softmax attention, latent attention, and recurrences over a state."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost.calibration import Array
from nearpeak.cost.platform import BF16, Platform, Work, codes, pair, real, seconds
from nearpeak.formats import BYTES

QUERY_BYTES = 2.0
"""Queries and outputs are kept in 16 bits."""
QUERY_TILE = 128.0
"""Queries that one unit of FlashAttention works on at a time (Dao 2023)."""


def attention_prefill(
    p: Platform,
    batch: ArrayLike,
    isl: ArrayLike,
    heads: ArrayLike,
    kv_heads: ArrayLike,
    head_dim: ArrayLike,
    window: ArrayLike = 0,
    kv: ArrayLike = BF16,
    compute: ArrayLike = BF16,
    v_head_dim: ArrayLike | None = None,
    prefix: ArrayLike = 0,
) -> Array:
    """Seconds of causal attention of ``batch`` sequences of ``isl`` new tokens after ``prefix`` cached ones.

    Args:
        window: tokens that a query sees, itself included; 0 for all before it.
        kv, compute: format codes of the cache and of the products. v_head_dim: where values are narrower than keys.
    """
    q, k, v = real(heads), real(kv_heads), real(head_dim if v_head_dim is None else v_head_dim)
    mask, formats = (real(window), v, real(prefix)), (codes(kv), codes(compute))
    return seconds(p, attention_prefill_work(p, real(batch), real(isl), q, k, real(head_dim), *mask, *formats))


def attention_prefill_work(
    p: Platform,
    batch: Array,
    isl: Array,
    heads: Array,
    kv_heads: Array,
    head_dim: Array,
    window: Array,
    v_head_dim: Array,
    prefix: Array,
    kv: NDArray[np.intp],
    compute: NDArray[np.intp],
) -> Work:
    """Pairs of queries and keys under the causal mask, in whole tiles; queries, cache and outputs moved once."""
    rate, width = p.rate(compute), head_dim + v_head_dim
    padded = np.ceil(isl / QUERY_TILE) * QUERY_TILE
    blocks = batch * heads * padded / QUERY_TILE
    idle = np.maximum(1.0, p.device.units / blocks)
    flops = 2.0 * batch * heads * width
    arithmetic = flops * causal_pairs(padded, prefix, window) * idle / rate
    seen = isl + np.where(window > 0, np.minimum(prefix, window), prefix)
    size = batch * (isl * heads * width * QUERY_BYTES + seen * kv_heads * width * BYTES[kv])
    floor = np.maximum(flops * causal_pairs(isl, prefix, window) / rate, p.fastest(size))
    span = np.where(window > 0, np.minimum(window, isl + prefix), isl + prefix)
    coordinates = (
        np.log2(isl),
        np.log2(batch * heads),
        np.log2(heads / kv_heads),
        np.log2(head_dim),
        window_coordinate(window, span / (isl + prefix)),
    )
    return Work("attention_prefill", pair(compute, kv), arithmetic, p.streaming(size), floor, coordinates)


def window_coordinate(window: Array, share: Array) -> Array:
    """0 without a window; with one -1, and down to -2 the smaller the share of the context that it leaves.

    Kernels with a window are other kernels, even where the context is shorter than the window.
    """
    return np.asarray(np.where(window > 0, -1.0 + 0.1 * np.log2(share), 0.0))


def causal_pairs(isl: Array, prefix: Array, window: Array) -> Array:
    """Pairs (query, key) of one sequence and head: query ``i`` of ``isl`` sees ``min(prefix + i, window)`` keys."""
    everything = isl * prefix + isl * (isl + 1.0) / 2.0
    growing = np.clip(window - prefix, 0.0, isl)
    windowed = growing * prefix + growing * (growing + 1.0) / 2.0 + (isl - growing) * window
    return np.asarray(np.where(window > 0, windowed, everything))


def attention_decode(
    p: Platform,
    batch: ArrayLike,
    context: ArrayLike,
    heads: ArrayLike,
    kv_heads: ArrayLike,
    head_dim: ArrayLike,
    window: ArrayLike = 0,
    kv: ArrayLike = BF16,
    v_head_dim: ArrayLike | None = None,
) -> Array:
    """Seconds of attention of one new token in each of ``batch`` sequences over ``context`` tokens, itself included."""
    q, k, v = real(heads), real(kv_heads), real(head_dim if v_head_dim is None else v_head_dim)
    sizes = (real(batch), real(context), q, k, real(head_dim), real(window), v)
    return seconds(p, attention_decode_work(p, *sizes, codes(kv)))


def attention_decode_work(
    p: Platform,
    batch: Array,
    context: Array,
    heads: Array,
    kv_heads: Array,
    head_dim: Array,
    window: Array,
    v_head_dim: Array,
    kv: NDArray[np.intp],
) -> Work:
    """The cache that the token sees is read once; the few products are hidden behind it but for wide groups."""
    span = np.where(window > 0, np.minimum(context, window), context)
    width = head_dim + v_head_dim
    flops = 2.0 * batch * heads * span * width
    size = batch * width * (span * kv_heads * BYTES[kv] + heads * QUERY_BYTES)
    arithmetic = flops / p.rate(np.asarray(BF16))
    floor = np.maximum(arithmetic, p.fastest(size))
    coordinates = (
        np.log2(span),
        np.log2(batch * kv_heads),
        np.log2(heads / kv_heads),
        np.log2(head_dim),
        window_coordinate(window, span / context),
    )
    return Work("attention_decode", pair(np.asarray(BF16), kv), arithmetic, p.streaming(size), floor, coordinates)


def mla_prefill(
    p: Platform,
    batch: ArrayLike,
    isl: ArrayLike,
    heads: ArrayLike,
    kv_rank: ArrayLike = 512,
    rope_dim: ArrayLike = 64,
    nope_dim: ArrayLike = 128,
    v_dim: ArrayLike = 128,
    kv: ArrayLike = BF16,
) -> Array:
    """Seconds of the kernel of latent attention over whole prompts: as many key heads as query heads, unfolded."""
    sizes = (real(batch), real(isl), real(heads), real(kv_rank), real(rope_dim), real(nope_dim), real(v_dim))
    return seconds(p, mla_prefill_work(p, *sizes, codes(kv)))


def mla_prefill_work(
    p: Platform,
    batch: Array,
    isl: Array,
    heads: Array,
    kv_rank: Array,
    rope_dim: Array,
    nope_dim: Array,
    v_dim: Array,
    kv: NDArray[np.intp],
    op: str = "mla_prefill",
) -> Work:
    """As ``attention_prefill`` with keys of ``nope_dim + rope_dim`` and values of ``v_dim`` in 16 bits."""
    none, wide = np.zeros(()), np.asarray(BF16)
    work = attention_prefill_work(p, batch, isl, heads, heads, nope_dim + rope_dim, none, v_dim, none, wide, wide)
    cached = p.streaming(batch * isl * (kv_rank + rope_dim) * BYTES[kv])
    return Work(op, kv, work.compute, work.traffic + cached, work.floor, (np.log2(isl), np.log2(batch), np.log2(heads)))


def mla_decode(
    p: Platform,
    batch: ArrayLike,
    context: ArrayLike,
    heads: ArrayLike,
    kv_rank: ArrayLike = 512,
    rope_dim: ArrayLike = 64,
    kv: ArrayLike = BF16,
) -> Array:
    """Seconds of the kernel of latent attention for one new token a sequence: all heads read one latent cache."""
    sizes = (real(batch), real(context), real(heads), real(kv_rank), real(rope_dim))
    return seconds(p, mla_decode_work(p, *sizes, codes(kv)))


def mla_decode_work(
    p: Platform,
    batch: Array,
    context: Array,
    heads: Array,
    kv_rank: Array,
    rope_dim: Array,
    kv: NDArray[np.intp],
    op: str = "mla_decode",
) -> Work:
    """Each head multiplies with the whole latent vector twice: the one attention kernel that arithmetic can bound."""
    flops = 2.0 * batch * heads * context * (2.0 * kv_rank + rope_dim)
    size = batch * (context * (kv_rank + rope_dim) * BYTES[kv] + heads * (2.0 * kv_rank + rope_dim) * QUERY_BYTES)
    arithmetic = flops / p.rate(np.asarray(BF16))
    floor = np.maximum(flops / p.rate(kv), p.fastest(size))
    return Work(op, kv, arithmetic, p.streaming(size), floor, (np.log2(context), np.log2(batch), np.log2(heads)))


MODULE = {"hidden": 7168.0, "q_rank": 1536.0, "kv_rank": 512.0, "rope": 64.0, "nope": 128.0, "v": 128.0}
"""Widths of DeepSeek-V3's attention, the one whose whole modules were measured (DeepSeek-AI 2024, table 1)."""


def mla_module_work(
    p: Platform,
    op: str,
    batch: Array,
    tokens: Array,
    heads: Array,
    gemm: NDArray[np.intp],
    kv: NDArray[np.intp],
) -> Work:
    """DeepSeek-V3's attention module with its projections: ``tokens`` of prompt, or of context when decoding."""
    w, decoding = MODULE, op == "mla_decode_module"
    rank, rope = np.asarray(w["kv_rank"]), np.asarray(w["rope"])
    if decoding:
        kernel, rows = mla_decode_work(p, batch, tokens, heads, rank, rope, kv), batch
    else:
        nope, v = np.asarray(w["nope"]), np.asarray(w["v"])
        kernel, rows = mla_prefill_work(p, batch, tokens, heads, rank, rope, nope, v, kv), batch * tokens
    weights = (
        w["hidden"] * (w["q_rank"] + w["kv_rank"] + w["rope"])
        + heads * w["q_rank"] * (w["nope"] + w["rope"])
        + heads * w["kv_rank"] * (w["nope"] + w["v"])
        + heads * w["v"] * w["hidden"]
    )
    padded = np.ceil(rows / 64.0) * 64.0
    compute = kernel.compute + 2.0 * padded * weights / p.rate(gemm)
    traffic = kernel.traffic + p.streaming(weights * BYTES[gemm])
    return Work(op, pair(gemm, kv), compute, traffic, kernel.floor, kernel.coordinates)


CHUNK = 64.0
"""Tokens that chunked recurrences multiply at a time (Yang et al. 2024)."""
STATE_BYTES = 4.0
"""Recurrent states are kept in fp32 between tokens."""


def linear_attention(
    p: Platform,
    kind: str,
    phase: str,
    batch: ArrayLike,
    tokens: ArrayLike,
    k_heads: ArrayLike,
    k_dim: ArrayLike,
    v_heads: ArrayLike,
    v_dim: ArrayLike,
) -> Array:
    """Seconds of a recurrence over a state ``[v_heads, k_dim, v_dim]``, its short convolution included.

    Args:
        kind: ``gdn`` (gated delta net), ``kda`` or ``mamba2``. phase: ``context`` (prompts) or ``generation``.
        batch: sequences. tokens: of all sequences together.
    """
    sizes = (real(batch), real(tokens), real(k_heads), real(k_dim), real(v_heads), real(v_dim))
    scan = seconds(p, linear_attention_work(p, f"recurrence_{phase}", *sizes))
    return np.asarray(scan + seconds(p, linear_attention_work(p, f"convolution_{phase}", *sizes)))


def linear_attention_work(
    p: Platform, op: str, batch: Array, tokens: Array, k_heads: Array, k_dim: Array, v_heads: Array, v_dim: Array
) -> Work:
    """One kernel: ``recurrence_*`` (states in and out, a few products a token) or ``convolution_*`` (of width 4)."""
    channels = 2.0 * k_heads * k_dim + v_heads * v_dim
    if op.startswith("convolution"):
        size, flops, width = 2.0 * tokens * channels * QUERY_BYTES, 8.0 * tokens * channels, channels / 128.0
    else:
        states = 2.0 * batch * v_heads * k_dim * v_dim * STATE_BYTES
        size = states + tokens * (channels + v_heads * v_dim) * QUERY_BYTES
        flops, width = 2.0 * tokens * v_heads * (3.0 * k_dim * v_dim + CHUNK * (k_dim + v_dim)), v_heads
    arithmetic = flops / p.rate(np.asarray(BF16))
    floor = p.fastest(size)
    coordinates = (np.log2(tokens / batch), np.log2(batch), np.log2(width))
    return Work(op, np.asarray(BF16), arithmetic, p.streaming(size), floor, coordinates)
