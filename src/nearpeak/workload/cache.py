"""What a layer keeps of the context: keys and values that grow with it, or a state that does not.

Counts are elements, not bytes: the format of the cache belongs to the Setup.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.workload.architecture import (
    Architecture,
    Attention,
    CompressedAttention,
    LatentAttention,
    LinearAttention,
    Mixer,
)


def kv_elements(mixer: Mixer) -> int:
    """Elements that one token adds to a layer's cache; 0 for a recurrent mixer and for one that borrows its cache.

    Of ``CompressedAttention`` this is a token in the window; what its compressed entries add, one for ``ratio``
    tokens, is in ``cache_elements``.
    """
    match mixer:
        case Attention():
            own = mixer.kv_heads * (mixer.head_dim + mixer.v_head_dim) if mixer.own_kv else 0
            return own + _index_elements(mixer)
        case LatentAttention():
            return mixer.kv_rank + mixer.rope_dim + _index_elements(mixer)
        case CompressedAttention():
            return mixer.head_dim
        case LinearAttention():
            return 0


def _index_elements(mixer: Attention | LatentAttention | CompressedAttention) -> int:
    """Elements of an indexer's key, one for a token (DeepSeek-V3.2: one vector for all its heads)."""
    return mixer.indexer.head_dim if mixer.indexer and mixer.indexer.heads else 0


def kv_elements_per_device(mixer: Mixer, tp: ArrayLike) -> NDArray[np.int64]:
    """Elements that one token adds to a layer's cache on each of ``tp`` devices, shaped like ``tp``.

    Heads of keys and values are dealt out, and repeated where there are fewer of them than devices. The one vector of
    latent attention, and an indexer's keys, lie on every device.
    """
    tp = np.asarray(tp, dtype=np.int64)
    if not isinstance(mixer, Attention):
        return np.full(tp.shape, kv_elements(mixer), dtype=np.int64)
    heads = -(-mixer.kv_heads // tp) if mixer.own_kv else np.zeros_like(tp)
    return np.asarray(heads * (mixer.head_dim + mixer.v_head_dim) + _index_elements(mixer), dtype=np.int64)


def cached_tokens(mixer: Mixer, context: ArrayLike) -> NDArray[np.float64]:
    """Tokens of a context of ``context`` that a layer keeps: no more than its window. 0 for a recurrent mixer."""
    context = np.asarray(context, dtype=np.float64)
    if isinstance(mixer, LinearAttention):
        return np.zeros_like(context)
    window = 0 if isinstance(mixer, LatentAttention) else mixer.window
    return np.minimum(context, window) if window else context


def cache_elements(mixer: Mixer, context: ArrayLike, tp: ArrayLike = 1) -> NDArray[np.float64]:
    """Elements that a layer keeps on each device for one sequence of ``context`` tokens, state included.

    ``context`` and ``tp`` broadcast.
    """
    context = np.asarray(context, dtype=np.float64)
    growing = cached_tokens(mixer, context) * kv_elements_per_device(mixer, tp)
    if isinstance(mixer, CompressedAttention) and mixer.ratio:
        growing = growing + np.floor(context / mixer.ratio) * (mixer.head_dim + _index_elements(mixer))
    return np.asarray(growing + state_elements(mixer) / np.asarray(tp), dtype=np.float64)


def attended_tokens(mixer: Mixer, context: ArrayLike) -> NDArray[np.float64]:
    """Cache entries that the softmax of one new token sees, of a context of ``context`` tokens: the window, the
    indexer's choice, or all. In chunked attention, the mean over where in its chunk the token stands.
    """
    context = np.asarray(context, dtype=np.float64)
    seen = cached_tokens(mixer, context)
    match mixer:
        case CompressedAttention():
            compressed = np.floor(context / mixer.ratio) if mixer.ratio else np.zeros_like(context)
            return seen + (np.minimum(compressed, mixer.indexer.topk) if mixer.indexer else compressed)
        case Attention(chunked=True):
            return np.where(context > mixer.window, (mixer.window + 1) / 2, seen)
        case Attention() | LatentAttention():
            return np.minimum(seen, mixer.indexer.topk) if mixer.indexer else seen
        case LinearAttention():
            return np.zeros_like(context)


def head_width(mixer: Attention | LatentAttention | CompressedAttention, decoding: bool) -> int:
    """Elements of a head's product with a key, and of its sum over values; latent attention decodes absorbed."""
    match mixer:
        case Attention():
            return mixer.head_dim + mixer.v_head_dim
        case LatentAttention():
            unfolded = mixer.nope_dim + mixer.rope_dim + mixer.v_dim
            return 2 * mixer.kv_rank + mixer.rope_dim if decoding else unfolded
        case CompressedAttention():
            return 2 * mixer.head_dim


def state_elements(mixer: Mixer) -> int:
    """Elements of a recurrent state per sequence and layer: the matrix of each head and the convolution's inputs."""
    if not isinstance(mixer, LinearAttention):
        return 0
    return mixer.v_heads * mixer.k_dim * mixer.v_dim + mixer.conv_channels * (mixer.conv - 1)


def sequence_elements(architecture: Architecture, context: ArrayLike, tp: ArrayLike = 1) -> NDArray[np.float64]:
    """Elements that all layers keep on each device for one sequence of ``context`` tokens."""
    kept = [b.count * cache_elements(b.mixer, context, tp) for b in architecture.blocks if b.mixer is not None]
    return np.sum(kept, axis=0) if kept else np.zeros(np.broadcast_shapes(np.shape(context), np.shape(tp)))
