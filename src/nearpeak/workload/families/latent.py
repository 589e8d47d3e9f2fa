"""Models with multi-head latent attention: DeepSeek-V2, V3, V3.2, Kimi-K2, GLM-5; and DeepSeek-V4's compressed one."""

from dataclasses import replace

from nearpeak.workload.architecture import (
    Architecture,
    Block,
    CompressedAttention,
    Indexer,
    LatentAttention,
    Linear,
)
from nearpeak.workload.families.parts import (
    deepseek_experts,
    dense_first,
    indexer_vectors,
    latent_indexer,
    merge,
    silu_dense,
)
from nearpeak.workload.fields import Fields


def latent_attention(f: Fields) -> LatentAttention:
    """The attention itself; its vectors are the norms of the two latents."""
    heads = f.integer("num_attention_heads")
    f.choice("num_key_value_heads", (heads,), heads)  # each head has its own key: the latent is what is shared
    q_rank = f.integer("q_lora_rank", default=0)
    kv_rank = f.integer("kv_lora_rank")
    attention = LatentAttention(
        heads=heads,
        q_rank=q_rank,
        kv_rank=kv_rank,
        nope_dim=f.integer("qk_nope_head_dim"),
        rope_dim=f.integer("qk_rope_head_dim"),
        v_dim=f.integer("v_head_dim"),
        bias=f.flag("attention_bias", False),
        extra=q_rank + kv_rank,
    )
    width = attention.nope_dim + attention.rope_dim
    f.choice("qk_head_dim", (width,), width)
    # Some configs repeat one of the widths as ``head_dim`` for code that knows no latent attention.
    f.ignore("head_dim")
    return attention


def mtp_blocks(f: Fields, hidden: int, layer: Block, key: str = "num_nextn_predict_layers") -> tuple[Block, ...]:
    """Multi-token-prediction blocks (DeepSeek-V3 report, section 2.2): a layer of the model behind a matrix that joins
    the last hidden state with the embedding of the next token, a norm for each of the two, and a last norm.
    Embedding and head are those of the model.
    """
    count = f.integer(key, default=0, least=0)
    if not count:
        return ()
    join = Linear("mtp_join", hidden, 2 * hidden, "replicate")
    return (replace(layer, count=count, norms=layer.norms + 3 * hidden, linears=(*layer.linears, join)),)


def deepseek(f: Fields) -> Architecture:
    """DeepSeek-V2 to V3.2, Kimi-K2, GLM-5."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    attention, experts, dense = latent_attention(f), deepseek_experts(f), silu_dense(f)
    sparse = f.has("index_topk")
    indexers = latent_indexer(f, layers) if sparse else [None] * layers
    blocks = [
        Block(
            replace(attention, indexer=indexer, extra=attention.extra + indexer_vectors(indexer)),
            experts if routed else dense,
            norms=2 * hidden,
        )
        for indexer, routed in zip(indexers, dense_first(f, layers), strict=True)
    ]
    f.per_layer("layer_types", layers, ("deepseek_sparse_attention", "indexed_attention"))
    # A multi-token-prediction layer always has its own indexer; it may reuse its choice from one round to the next.
    f.ignore("index_share_for_mtp_iteration", "indexer_rope_interleave")
    last = replace(blocks[-1], mixer=blocks[0].mixer)
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=merge(blocks),
        context=f.integer("max_position_embeddings"),
        tied=f.flag("tie_word_embeddings", False),
        mtp=mtp_blocks(f, hidden, last),
        extra=hidden,
    )


def deepseek_v4(f: Fields) -> Architecture:
    """DeepSeek-V4: compressed attention, hash routing in the first layers, manifold-constrained hyper-connections.

    The published report's sections 2.1 (hash routing), 2.2 (hyper-connections) and 2.3 (attention). A hash layer looks
    its experts up by token id; the table holds indices, not parameters, and is not counted.
    """
    if f.family == "deepseek_ref":
        f.choice("architectures", (["DeepseekV4ForCausalLM"],))
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    f.choice("num_key_value_heads", (1,), 1)
    f.ignore("qk_rope_head_dim")  # part of head_dim
    experts = deepseek_experts(f)
    mtp_layers = f.integer("num_nextn_predict_layers", default=0, least=0)
    ratios = _compress_ratios(f, layers, mtp_layers)
    hashed = f.integer("num_hash_layers", default=(f.get("mlp_layer_types") or []).count("hash_moe"), least=0)
    _hashed_layers(f, layers, hashed)
    f.ignore("expert_dtype")  # read with the checkpoint's formats
    blocks = [
        Block(
            _compressed_attention(f, ratio),
            replace(experts, extra=0) if i < hashed else experts,
            norms=2 * hidden + 2 * _mix_vectors(f),
            linears=_mixes(f, hidden),
        )
        for i, ratio in enumerate(ratios)
    ]
    streams = f.integer("hc_mult")
    head = Linear("mix_head", streams, streams * hidden, "replicate")
    mtp = tuple(
        replace(
            block, norms=block.norms + 3 * hidden + streams + 1,
            linears=(*block.linears, Linear("mtp_join", hidden, 2 * hidden, "replicate"), head),
        )
        for block in merge(blocks[layers:])
    )  # fmt: skip
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=merge(blocks[:layers]),
        context=f.integer("max_position_embeddings"),
        tied=f.flag("tie_word_embeddings", False),
        mtp=mtp,
        linears=(head,),
        extra=hidden + streams + 1,
    )


def _hashed_layers(f: Fields, layers: int, hashed: int) -> None:
    """Checks that ``mlp_layer_types``, the newer way to say which layers hash, says so of the first ``hashed``."""
    kinds = f.per_layer("mlp_layer_types", layers, ("hash_moe", "moe"))
    if kinds is not None and kinds != ["hash_moe"] * hashed + ["moe"] * (layers - hashed):
        raise f.error("mlp_layer_types must name hash_moe layers first")


def _compressed_attention(f: Fields, ratio: int) -> CompressedAttention:
    heads, dim, q_rank = f.integer("num_attention_heads"), f.integer("head_dim"), f.integer("q_lora_rank")
    groups = f.integer("o_groups")
    if heads % groups:
        raise f.error(f"{heads} heads cannot be dealt to {groups} output groups")
    # Where entries are compressed least, an indexer chooses among them; the heavily compressed are all seen.
    indexer = Indexer(f.integer("index_n_heads"), f.integer("index_head_dim"), f.integer("index_topk"))
    chosen = indexer if ratio == _SPARSE_RATIO else None
    norms = q_rank + dim + (dim if ratio else 0) + (chosen.head_dim if chosen else 0)
    return CompressedAttention(
        heads=heads,
        head_dim=dim,
        q_rank=q_rank,
        window=f.integer("sliding_window"),
        ratio=ratio,
        out_groups=groups,
        out_rank=f.integer("o_lora_rank"),
        indexer=chosen,
        extra=heads + norms,  # a sink for each head
    )


_SPARSE_RATIO, _HEAVY_RATIO = 4, 128
_RATIOS = {
    "sliding_attention": 0,
    "compressed_sparse_attention": _SPARSE_RATIO,
    "heavily_compressed_attention": _HEAVY_RATIO,
}


def _compress_ratios(f: Fields, layers: int, mtp_layers: int) -> list[int]:
    """Tokens in one compressed entry, layer by layer and then for the multi-token-prediction layers; 0 for none."""
    kinds = f.per_layer("layer_types", layers, tuple(_RATIOS))
    rates = {kind: ratio for kind, ratio in _RATIOS.items() if ratio}
    f.choice("compress_rates", (rates,), rates)
    if kinds is not None:
        return [_RATIOS[kind] for kind in kinds] + [0] * mtp_layers
    ratios = f.per_layer("compress_ratios", layers + mtp_layers, tuple(_RATIOS.values()))
    if ratios is None:
        raise f.error("needs compress_ratios or layer_types")
    return ratios


def _mixes(f: Fields, hidden: int) -> tuple[Linear, ...]:
    """Hyper-connections around mixer and feed-forward part: from all streams to the weights that mix them."""
    streams = f.integer("hc_mult")
    shape = ((2 + streams) * streams, streams * hidden)
    return (Linear("mix_mixer", *shape, "replicate"), Linear("mix_ffn", *shape, "replicate"))


def _mix_vectors(f: Fields) -> int:
    """Biases and the three scales of one hyper-connection."""
    streams = f.integer("hc_mult")
    return (2 + streams) * streams + 3
