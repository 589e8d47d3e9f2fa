"""Decoders with grouped-query attention and a mixture of experts."""

from dataclasses import replace

from nearpeak.workload.architecture import Architecture, Attention, Block, Dense, Experts, Indexer
from nearpeak.workload.families.decoders import qwen_windows
from nearpeak.workload.families.latent import mtp_blocks
from nearpeak.workload.families.parts import (
    deepseek_experts,
    dense_first,
    head_norms,
    head_shape,
    layer_windows,
    merge,
)
from nearpeak.workload.fields import Fields


def _model(f: Fields, blocks: list[Block], tied: bool = False, mtp: tuple[Block, ...] = ()) -> Architecture:
    hidden = f.integer("hidden_size")
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=merge(blocks),
        context=f.integer("max_position_embeddings"),
        tied=f.flag("tie_word_embeddings", tied),
        mtp=mtp,
        extra=hidden,
    )


def topk_of(f: Fields, count: int, *keys: str) -> int:
    """How many experts a token meets.

    Raises:
        UsageError: more than there are.
    """
    topk = f.integer(*(keys or ("num_experts_per_tok",)))
    if topk > count:
        raise f.error(f"{topk} experts for each token, but there are only {count}")
    return topk


def mixtral(f: Fields) -> Architecture:
    """Mixtral: every layer has experts."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    count = f.integer("num_local_experts")
    experts = Experts(count, topk_of(f, count), f.integer("intermediate_size"))
    return _model(
        f,
        [
            Block(Attention(heads, kv_heads, dim, dim, window=window), experts, norms=2 * hidden)
            for window in layer_windows(f, layers, 1)
        ],
    )


def qwen_moe(f: Fields) -> Architecture:
    """Qwen2-MoE, which has biases on q, k and v and a gated shared expert; Qwen3-MoE, which has neither but norms on
    q and k.
    """
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    qwen2 = f.family == "qwen2_moe"
    f.choice("use_qk_norm", (not qwen2,), not qwen2)
    bias = f.flag("qkv_bias", True) if qwen2 else f.flag("attention_bias", False)
    attention = Attention(heads, kv_heads, dim, dim, bias=bias, out_bias=bias and not qwen2)
    attention = attention if qwen2 else head_norms(attention)
    count = f.integer("num_experts", "num_local_experts")
    shared = f.integer("shared_expert_intermediate_size") if qwen2 else 0
    experts = Experts(
        count, topk_of(f, count), f.integer("moe_intermediate_size"), shared_inter=shared, shared_gate=shared > 0
    )
    routed = qwen_routed(f, layers)
    dense = Dense(f.integer("intermediate_size")) if not all(routed) else None
    f.ignore("intermediate_size")  # of layers without experts, and there may be none
    return _model(
        f,
        [
            Block(replace(attention, window=window), experts if has else dense, norms=2 * hidden)
            for window, has in zip(qwen_windows(f, layers), routed, strict=True)
        ],
    )


def qwen_routed(f: Fields, layers: int) -> list[bool]:
    """Which layers have experts: every ``decoder_sparse_step``-th, but for those in ``mlp_only_layers``."""
    step, without = f.integer("decoder_sparse_step", default=1), set(f.integers("mlp_only_layers"))
    return [i not in without and (i + 1) % step == 0 for i in range(layers)]


def gpt_oss(f: Fields) -> Architecture:
    """gpt-oss: biases everywhere, a learned sink for each head, every other layer slides."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    bias = f.flag("attention_bias", True)
    attention = Attention(heads, kv_heads, dim, dim, bias=bias, out_bias=bias, extra=heads)
    count = f.integer("num_local_experts")
    experts = Experts(
        count,
        topk_of(f, count, "num_experts_per_tok", "experts_per_token"),
        f.integer("intermediate_size"),
        bias=True,
        router_bias=True,
    )
    return _model(
        f,
        [Block(replace(attention, window=window), experts, norms=2 * hidden) for window in layer_windows(f, layers, 2)],
    )


def minimax_m2(f: Fields) -> Architecture:
    """MiniMax-M2: norms over all heads of q and k at once; experts in every layer."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    f.choice("use_qk_norm", (True,), True)
    f.choice("qk_norm_type", ("per_layer",), "per_layer")
    f.per_layer("attn_type_list", layers, (1,))  # 1: softmax attention; 0 was MiniMax-Text-01's linear one
    f.choice("shared_intermediate_size", (0,), 0)
    attention = Attention(heads, kv_heads, dim, dim, extra=(heads + kv_heads) * dim)
    count = f.integer("num_local_experts")
    correction = count if f.flag("use_routing_bias", True) else 0
    experts = Experts(count, topk_of(f, count), f.integer("intermediate_size"), extra=correction)
    layer = Block(attention, experts, norms=2 * hidden)
    mtp: tuple[Block, ...] = ()
    if f.flag("use_mtp", False):
        f.choice("mtp_transformer_layers", (1,), 1)
        mtp = mtp_blocks(f, hidden, layer, "num_mtp_modules")
    f.ignore("mtp_transformer_layers", "num_mtp_modules")
    return _model(f, [replace(layer, count=layers)], mtp=mtp)


def minimax_m3(f: Fields) -> Architecture:
    """MiniMax-M3: sparse attention that chooses blocks of the context; dense layers first, then experts."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    f.choice("use_qk_norm", (True,), True)
    f.choice("qk_norm_type", ("per_head",), "per_head")
    f.choice("attention_output_gate", (False,), False)
    f.ignore("use_gemma_norm")  # the weight is stored less one
    full = head_norms(Attention(heads, kv_heads, dim, dim))
    sparse_layers, indexer = _block_sparse(f, layers)
    sparse = replace(full, indexer=indexer, extra=full.extra + 2 * indexer.head_dim)
    routed = f.per_layer("moe_layer_freq", layers, (0, 1))
    if routed is None:
        raise f.error("needs moe_layer_freq, a 0 or 1 for each layer")
    if f.has("first_k_dense_replace") and routed != [int(i >= f.get("first_k_dense_replace")) for i in range(layers)]:
        raise f.error("moe_layer_freq contradicts first_k_dense_replace")
    count, inter = f.integer("num_local_experts"), f.integer("moe_intermediate_size", "intermediate_size")
    experts = Experts(
        count,
        topk_of(f, count),
        inter,
        shared_inter=f.integer("shared_intermediate_size") * f.integer("n_shared_experts", default=1, least=0),
        extra=count if f.flag("use_routing_bias", True) else 0,
    )
    dense = Dense(f.integer("dense_intermediate_size"))
    blocks = [
        Block(sparse if s else full, experts if r else dense, norms=2 * hidden)
        for s, r in zip(sparse_layers, routed, strict=True)
    ]
    # ``num_nextn_predict_layers`` is what a checkpoint holds; ``num_mtp_modules`` may count those trained.
    key = "num_nextn_predict_layers" if f.has("num_nextn_predict_layers") else "num_mtp_modules"
    f.ignore("num_mtp_modules")
    return _model(f, blocks, mtp=mtp_blocks(f, hidden, replace(blocks[-1], mixer=full), key))


def _block_sparse(f: Fields, layers: int) -> tuple[list[int], Indexer]:
    """Which layers attend sparsely, and their indexer. Its first and last blocks are among those it keeps."""
    s = f.inner("sparse_attention_config")
    s.choice("use_sparse_attention", (True,), True)
    s.choice("sparse_score_type", ("max",), "max")
    s.ignore("sparse_init_block", "sparse_local_block", "sparse_disable_index_value")
    block = s.integer("sparse_block_size")
    indexer = Indexer(
        heads=s.integer("sparse_num_index_heads"),
        head_dim=s.integer("sparse_index_dim"),
        topk=s.integer("sparse_topk_blocks") * block,
        block=block,
    )
    return s.per_layer("sparse_attention_freq", layers, (0, 1)) or [1] * layers, indexer


def mimo_v2(f: Fields) -> Architecture:
    """MiMo-V2: global and sliding layers with heads of their own, values narrower than keys, sinks where asked."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    window = f.integer("sliding_window", "sliding_window_size")
    f.choice("attention_chunk_size", (window,), window)
    slides = f.per_layer("hybrid_layer_pattern", layers, (0, 1))
    routed = f.per_layer("moe_layer_freq", layers, (0, 1))
    if slides is None or routed is None:
        raise f.error("needs hybrid_layer_pattern and moe_layer_freq, a 0 or 1 for each layer")
    attentions = (_mimo_attention(f, hidden, "", 0), _mimo_attention(f, hidden, "swa_", window))
    experts, dense = deepseek_experts(f), Dense(f.integer("intermediate_size"))
    return _model(
        f,
        [
            Block(attentions[slide], experts if has else dense, norms=2 * hidden)
            for slide, has in zip(slides, routed, strict=True)
        ],
    )


def _mimo_attention(f: Fields, hidden: int, prefix: str, window: int) -> Attention:
    heads, kv_heads, dim = head_shape(f, hidden, prefix)
    key = "add_swa_attention_sink_bias" if window else "add_full_attention_sink_bias"
    return Attention(
        heads,
        kv_heads,
        dim,
        f.integer(f"{prefix}v_head_dim"),
        window=window,
        bias=f.flag("attention_bias", False),
        extra=heads if f.flag(key, bool(window)) else 0,
    )


def step3(f: Fields) -> Architecture:
    """Step-3.5 and 3.7: gated heads, sliding layers that may have more of them; dense layers first, then experts."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    # The published code gates each head, and knows no head without a gate.
    per_head = f.choice("gating", (True, "per-head", "elementwise"), True) != "elementwise"
    f.choice("use_head_wise_attn_gate", (True,), True)
    bias = f.flag("attention_bias", False)

    def attention(of: int, window: int) -> Attention:
        gate = of if per_head else of * dim
        return head_norms(Attention(of, kv_heads, dim, dim, window, gate=gate, bias=bias, out_bias=bias))

    sliding_heads = f.integer("num_sliding_attention_heads", default=heads)
    first = f.integer("first_k_dense_replace", default=3, least=0)
    count, inter = f.integer("num_experts", "n_routed_experts"), f.integer("moe_intermediate_size")
    experts = Experts(
        count,
        topk_of(f, count),
        inter,
        shared_inter=f.integer("share_expert_dim"),
        extra=count if f.flag("use_moe_router_bias", True) else 0,
    )
    f.choice("n_shared_experts", (1,), 1)
    dense = Dense(f.integer("intermediate_size"))
    blocks = [
        Block(attention(sliding_heads if w else heads, w), experts if i >= first else dense, norms=2 * hidden)
        for i, w in enumerate(layer_windows(f, layers))
    ]
    # Prediction layers slide and are dense (Step-3.5-Flash report, arXiv:2602.10604).
    drafter = Block(attention(sliding_heads, f.integer("sliding_window")), dense, norms=2 * hidden)
    return _model(f, blocks, mtp=mtp_blocks(f, hidden, drafter))


def llama4(f: Fields) -> Architecture:
    """Llama-4: three of four layers see only their own chunk of the context; every layer or every other has experts,
    of which each token meets one and a shared one.
    """
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    bias = f.flag("attention_bias", False)
    f.ignore("use_qk_norm")  # it has no weight
    full = Attention(heads, kv_heads, dim, dim, bias=bias, out_bias=bias)
    chunked = replace(full, window=f.integer("attention_chunk_size"), chunked=True)
    every = f.integer("no_rope_layer_interval", default=4)
    rotary = f.per_layer("no_rope_layers", layers, (0, 1)) or [int((i + 1) % every != 0) for i in range(layers)]
    f.per_layer("layer_types", layers, ("chunked_attention", "full_attention"))
    step = f.integer("interleave_moe_layer_step", default=1)
    routed = set(f.integers("moe_layers") or range(step - 1, layers, step))
    count, inter = f.integer("num_local_experts"), f.integer("intermediate_size")
    experts = Experts(count, topk_of(f, count), inter, shared_inter=inter)
    dense = Dense(f.integer("intermediate_size_mlp"))
    f.ignore("for_llm_compressor")
    return _model(
        f,
        [
            Block(chunked if rotary[i] else full, experts if i in routed else dense, norms=2 * hidden)
            for i in range(layers)
        ],
    )


def glm4_moe(f: Fields) -> Architecture:
    """GLM-4.5 and 4.6."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    attention = Attention(heads, kv_heads, dim, dim, bias=f.flag("attention_bias", False))
    attention = head_norms(attention) if f.flag("use_qk_norm", False) else attention
    experts, dense = deepseek_experts(f), Dense(f.integer("intermediate_size"))
    blocks = [Block(attention, experts if r else dense, norms=2 * hidden) for r in dense_first(f, layers)]
    return _model(f, blocks, mtp=mtp_blocks(f, hidden, blocks[-1]))


def olmoe(f: Fields) -> Architecture:
    """OLMoE: norms over all heads of q and k at once; experts in every layer."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    f.choice("clip_qkv", (None,))
    bias = f.flag("attention_bias", False)
    attention = Attention(heads, kv_heads, dim, dim, bias=bias, out_bias=bias, extra=(heads + kv_heads) * dim)
    count = f.integer("num_experts", "num_local_experts")
    experts = Experts(count, topk_of(f, count), f.integer("intermediate_size"))
    return _model(f, [Block(attention, experts, layers, norms=2 * hidden)])


def granite_moe(f: Fields) -> Architecture:
    """Granite-MoE 3.0 and 3.1."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    bias = f.flag("attention_bias", False)
    count = f.integer("num_local_experts")
    experts = Experts(count, topk_of(f, count), f.integer("intermediate_size"))
    attention = Attention(heads, kv_heads, dim, dim, bias=bias, out_bias=bias)
    return _model(f, [Block(attention, experts, layers, norms=2 * hidden)])
