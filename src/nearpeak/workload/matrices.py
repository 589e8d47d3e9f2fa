"""Which matrices each part of a block has, fused as serving engines fuse them: from an architecture to operators."""

from functools import singledispatch

from nearpeak.workload.architecture import (
    Attention,
    CompressedAttention,
    Dense,
    Experts,
    FeedForward,
    Indexer,
    LatentAttention,
    Linear,
    LinearAttention,
    Mixer,
)


@singledispatch
def mixer_linears(mixer: Mixer, hidden: int) -> tuple[Linear, ...]:
    """The matrices of a token mixer at model width ``hidden``."""
    raise TypeError(type(mixer).__name__)


@mixer_linears.register
def _attention(mixer: Attention, hidden: int) -> tuple[Linear, ...]:
    values = mixer.v_head_dim if mixer.own_values else 0
    kv = mixer.kv_heads * (mixer.head_dim + values) if mixer.own_kv else 0
    gate = (Linear("gate", mixer.gate, hidden, "column"),) if mixer.gate else ()
    return (
        Linear("qkv", mixer.heads * mixer.head_dim + kv, hidden, "column", mixer.bias),
        *gate,
        Linear("o", hidden, mixer.heads * mixer.v_head_dim, "row", mixer.out_bias),
        *_indexer(mixer.indexer, hidden, hidden),
    )


@mixer_linears.register
def _latent(mixer: LatentAttention, hidden: int) -> tuple[Linear, ...]:
    q = mixer.heads * (mixer.nope_dim + mixer.rope_dim)
    latent = mixer.kv_rank + mixer.rope_dim
    down = (Linear("q", q, hidden, "column"), Linear("kv_a", latent, hidden, "replicate", mixer.bias))
    if mixer.q_rank:
        down = (
            Linear("q_a_kv_a", mixer.q_rank + latent, hidden, "replicate", mixer.bias),
            Linear("q_b", q, mixer.q_rank, "column"),
        )
    gate = (Linear("gate", mixer.gate, hidden, "column"),) if mixer.gate else ()
    return (
        *down,
        Linear("kv_b", mixer.heads * (mixer.nope_dim + mixer.v_dim), mixer.kv_rank, "column"),
        *gate,
        Linear("o", hidden, mixer.heads * mixer.v_dim, "row", mixer.bias),
        *_indexer(mixer.indexer, hidden, mixer.q_rank or hidden),
    )


@mixer_linears.register
def _compressed(mixer: CompressedAttention, hidden: int) -> tuple[Linear, ...]:
    q = mixer.heads * mixer.head_dim
    grouped = mixer.out_groups * mixer.out_rank
    # Entries that overlap (those an indexer chooses from) are made of two halves, each with its own projection.
    halves = 2 if mixer.indexer else 1
    compressor = (Linear("compress", 2 * halves * mixer.head_dim, hidden, "replicate"),) if mixer.ratio else ()
    return (
        Linear("q_a_kv", mixer.q_rank + mixer.head_dim, hidden, "replicate"),
        Linear("q_b", q, mixer.q_rank, "column"),
        *compressor,
        *_compressed_indexer(mixer, hidden),
        Linear("o_a", grouped, q, "column", groups=mixer.out_groups),
        Linear("o_b", hidden, grouped, "row"),
    )


def _compressed_indexer(mixer: CompressedAttention, hidden: int) -> tuple[Linear, ...]:
    """The indexer of DeepSeek-V4 scores compressed keys, which it makes itself as the attention makes its own."""
    if mixer.indexer is None:
        return ()
    heads, dim = mixer.indexer.heads, mixer.indexer.head_dim
    return (
        Linear("index_compress", 4 * dim, hidden, "replicate"),
        Linear("index_q", heads * dim, mixer.q_rank, "replicate"),
        Linear("index_weights", heads, hidden, "replicate"),
    )


def _indexer(indexer: Indexer | None, hidden: int, q_inp: int) -> tuple[Linear, ...]:
    """Queries of the scorer, one key a token, and (for single tokens) a weight for each of its heads."""
    if indexer is None or not indexer.heads:
        return ()
    weights = (Linear("index_weights", indexer.heads, hidden, "replicate"),) if indexer.block == 1 else ()
    return (
        Linear("index_q", indexer.heads * indexer.head_dim, q_inp, "replicate"),
        Linear("index_k", indexer.head_dim, hidden, "replicate"),
        *weights,
    )


@mixer_linears.register
def _linear(mixer: LinearAttention, hidden: int) -> tuple[Linear, ...]:
    values = mixer.v_heads * mixer.v_dim
    out = Linear("out", hidden, values, "row", mixer.bias)
    if mixer.kind == "mamba2":  # z; x, B and C; a time step for each head
        return (Linear("in", values + mixer.conv_channels + mixer.v_heads, hidden, "column", mixer.bias), out)
    if mixer.kind == "gdn":
        return (
            Linear("qkvz", mixer.conv_channels + values, hidden, "column"),
            Linear("ba", 2 * mixer.v_heads, hidden, "column"),
            out,
        )
    decay = mixer.k_heads * mixer.k_dim
    gate = (
        (Linear("g", values, hidden, "column"),)
        if mixer.full_gate
        else (Linear("g_a", mixer.gate_rank, hidden, "replicate"), Linear("g_b", values, mixer.gate_rank, "column"))
    )
    return (
        Linear("qkv", mixer.conv_channels, hidden, "column"),
        Linear("f_a", mixer.gate_rank, hidden, "replicate"),
        Linear("f_b", decay, mixer.gate_rank, "column"),
        Linear("b", mixer.v_heads, hidden, "column"),
        *gate,
        out,
    )


def ffn_linears(ffn: FeedForward, hidden: int) -> tuple[Linear, ...]:
    """The matrices of a feed-forward part that every token meets: all of ``Dense``; of ``Experts`` the router, the
    shared experts, the dense part beside them and the way to and from the latent width. See ``expert_linears``.
    """
    if isinstance(ffn, Dense):
        return _mlp("", ffn.inter, ffn.gated, ffn.bias, hidden)
    latent = (
        (Linear("latent_in", ffn.hidden, hidden, "replicate"), Linear("latent_out", hidden, ffn.hidden, "replicate"))
        if ffn.hidden
        else ()
    )
    shared = _mlp("shared_", ffn.shared_inter, ffn.gated, ffn.shared_bias, hidden) if ffn.shared_inter else ()
    gate = (Linear("shared_gate", 1, hidden, "replicate"),) if ffn.shared_gate else ()
    dense = _mlp("dense_", ffn.dense.inter, ffn.dense.gated, ffn.dense.bias, hidden) if ffn.dense else ()
    return (Linear("router", ffn.count, hidden, "replicate", ffn.router_bias), *latent, *shared, *gate, *dense)


def expert_linears(ffn: Experts, hidden: int) -> tuple[Linear, ...]:
    """The matrices of one routed expert."""
    return _mlp("expert_", ffn.inter, ffn.gated, ffn.bias, ffn.hidden or hidden)


def _mlp(prefix: str, inter: int, gated: bool, bias: bool, hidden: int) -> tuple[Linear, ...]:
    name, width = ("gate_up", 2 * inter) if gated else ("up", inter)
    return (
        Linear(prefix + name, width, hidden, "column", bias),
        Linear(prefix + "down", hidden, inter, "row", bias),
    )
