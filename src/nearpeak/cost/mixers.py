"""Time of the token mixers' own kernels (not of their matrices) in a prefill or decode pass, on one device."""

from dataclasses import dataclass, field, replace
from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.attention import (
    attention_decode,
    attention_prefill,
    linear_attention,
    mla_decode,
    mla_prefill,
)
from nearpeak.cost.fabric import Fabric
from nearpeak.cost.operators import elementwise, gemm, mla_bmm
from nearpeak.cost.platform import Platform
from nearpeak.formats import code
from nearpeak.workload import (
    Attention,
    CompressedAttention,
    Indexer,
    LatentAttention,
    LinearAttention,
    Mixer,
    attended_tokens,
)

Array = NDArray[np.float64]
BF16 = np.asarray(code("bf16"))
FP8 = np.asarray(code("fp8"))


@dataclass(frozen=True)
class Batch:
    """What one device meets in a pass. ``decoding``: the next tokens of each sequence; else prompts, or chunks of them.

    Attributes (arrays that broadcast):
        sequences: of one attention replica. context: tokens attended to by a decoding token, or new prompt tokens.
        rows: tokens of one attention replica. prefix: of a chunk's prompt, tokens that are in the cache already.
        tp, dp, moe_tp, moe_ep: the layout of one pipeline stage. attention, ffn, experts, kv: format codes.
        network, node_devices: what joins nodes, and the devices inside one.
    """

    decoding: bool
    sequences: Array
    context: Array
    rows: Array
    tp: Array
    dp: Array
    moe_tp: Array
    moe_ep: Array
    attention: NDArray[np.intp]
    ffn: NDArray[np.intp]
    experts: NDArray[np.intp]
    kv: NDArray[np.intp]
    prefix: Array = field(default_factory=lambda: np.zeros(()))
    network: Fabric | None = None
    node_devices: int = 1

    @property
    def drafted(self) -> Array:
        """Tokens of each sequence in a decode pass: one, and those that a draft proposes."""
        return self.rows / self.sequences


def chunk_kernel(mixer: Mixer, platform: Platform, at: Batch) -> Array:
    """Seconds of a mixer's kernel, also for a chunk in the middle of its prompt.

    Causal attention of a chunk after a prefix is that of both together less that of the prefix alone; where nothing
    grows with the context (recurrences, windows), it is that of the chunk alone.
    """
    alone = kernel(mixer, platform, at)
    if at.decoding or not np.any(at.prefix > 0):
        return alone
    cached = np.maximum(at.prefix, 1.0)
    before = kernel(mixer, platform, replace(at, context=cached, rows=at.sequences * cached))
    reached = cached + at.context
    until = kernel(mixer, platform, replace(at, context=reached, rows=at.sequences * reached))
    return np.where(at.prefix > 0, np.maximum(until - before, alone), alone)


@singledispatch
def kernel(mixer: Mixer, platform: Platform, at: Batch) -> Array:
    """Seconds of a mixer's kernel on one device."""
    raise TypeError(type(mixer).__name__)


@kernel.register
def _attention(mixer: Attention, platform: Platform, at: Batch) -> Array:
    heads, kv_heads = _cut(mixer.heads, at.tp), _cut(mixer.kv_heads, at.tp)
    span, window = _span(mixer, at)
    scan = _scan(mixer.indexer, platform, at)
    if at.decoding:
        # Drafted tokens of a sequence read its cache together, as more heads of the same group would.
        group = heads * at.drafted
        return scan + attention_decode(
            platform, at.sequences, span, group, kv_heads, mixer.head_dim, window, at.kv, mixer.v_head_dim
        )
    return scan + attention_prefill(
        platform, at.sequences, span, heads, kv_heads, mixer.head_dim, window, at.kv, BF16, mixer.v_head_dim
    )


@kernel.register
def _latent(mixer: LatentAttention, platform: Platform, at: Batch) -> Array:
    heads = _cut(mixer.heads, at.tp)
    span, window = _span(mixer, at)
    scan = _scan(mixer.indexer, platform, at)
    if at.decoding:
        absorbed = mla_bmm(platform, at.rows, heads, mixer.nope_dim, mixer.v_dim, mixer.kv_rank)
        group = heads * at.drafted
        return scan + absorbed + mla_decode(platform, at.sequences, span, group, mixer.kv_rank, mixer.rope_dim, at.kv)
    dims = mixer.kv_rank, mixer.rope_dim, mixer.nope_dim, mixer.v_dim
    whole = mla_prefill(platform, at.sequences, at.context, heads, *dims, at.kv)
    if mixer.indexer is None:
        return scan + whole
    # Over the chosen tokens alone attention runs absorbed: one key, whose first part is the value, for all heads.
    width = mixer.kv_rank + mixer.rope_dim
    chosen = attention_prefill(
        platform, at.sequences, at.context, heads, 1.0, width, window, at.kv, BF16, mixer.kv_rank
    )
    return scan + np.where(at.context > mixer.indexer.topk, chosen, whole)


@kernel.register
def _compressed(mixer: CompressedAttention, platform: Platform, at: Batch) -> Array:
    """One vector is key and value of all heads: a latent attention without a rotary part of its own."""
    heads = _cut(mixer.heads, at.tp)
    seen = attended_tokens(mixer, at.context if at.decoding else at.context / 2)
    ratio = mixer.ratio or 1
    scan = _scan(mixer.indexer, platform, at) / ratio
    if at.decoding:
        return scan + mla_decode(platform, at.sequences, seen, heads * at.drafted, mixer.head_dim, 0.0, at.kv)
    return scan + attention_prefill(
        platform, at.sequences, at.context, heads, 1.0, mixer.head_dim, seen, at.kv, BF16, mixer.head_dim
    )


@kernel.register
def _recurrent(mixer: LinearAttention, platform: Platform, at: Batch) -> Array:
    phase = "generation" if at.decoding else "context"
    heads, k_heads = _cut(mixer.v_heads, at.tp), _cut(mixer.k_heads, at.tp)
    return linear_attention(
        platform, mixer.kind, phase, at.sequences, at.rows, k_heads, mixer.k_dim, heads, mixer.v_dim
    )


def _cut(heads: int, tp: Array) -> Array:
    """Heads of one device: dealt out, and repeated where there are fewer of them than devices."""
    return np.maximum(1.0, heads / tp)


def _span(mixer: Attention | LatentAttention, at: Batch) -> tuple[Array, Array | int]:
    """Context and window that the kernel runs over, where an indexer or a chunk keeps less than the window."""
    window = mixer.window if isinstance(mixer, Attention) else 0
    chunked = isinstance(mixer, Attention) and mixer.chunked
    if mixer.indexer is None and not chunked:
        return at.context, window
    if at.decoding:
        return attended_tokens(mixer, at.context), 0
    return at.context, attended_tokens(mixer, at.context)


def _scan(indexer: Indexer | None, platform: Platform, at: Batch) -> Array:
    """Seconds of an indexer's scores: each query against the small fp8 key of every token before it."""
    if indexer is None or not indexer.heads:
        return np.zeros(())
    if at.decoding:
        return elementwise(platform, at.rows * at.context * indexer.head_dim)
    return gemm(platform, at.rows, np.maximum(1.0, at.context / 2), indexer.heads * indexer.head_dim, FP8)
