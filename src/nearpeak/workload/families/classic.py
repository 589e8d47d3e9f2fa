"""Decoders with names and turns of their own: GPT-2, OPT, GPT-NeoX, BLOOM, Falcon, Phi, Command R, StableLM."""

from dataclasses import replace

from nearpeak.workload.architecture import Architecture, Attention, Block, Dense
from nearpeak.workload.families.parts import head_shape
from nearpeak.workload.fields import Fields


def _split(f: Fields, hidden: int, heads: int) -> int:
    """Width of a head.

    Raises:
        UsageError: ``hidden`` does not divide into heads.
    """
    if hidden % heads:
        raise f.error(f"a width of {hidden} is not a multiple of {heads} heads")
    return hidden // heads


def gpt2(f: Fields) -> Architecture:
    """GPT-2."""
    hidden, layers, heads = f.integer("n_embd"), f.integer("n_layer"), f.integer("n_head")
    dim, positions = _split(f, hidden, heads), f.integer("n_positions")
    f.choice("n_ctx", (positions,), positions)
    f.choice("add_cross_attention", (False,), False)
    attention = Attention(heads, heads, dim, dim, bias=True, out_bias=True)
    dense = Dense(f.integer("n_inner", default=4 * hidden), False, bias=True)
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=(Block(attention, dense, layers, norms=4 * hidden),),
        context=positions,
        tied=f.flag("tie_word_embeddings", True),
        tables=positions * hidden,
        extra=2 * hidden,
    )


def opt(f: Fields) -> Architecture:
    """OPT; the 350M model, whose embedding is narrower than the model, is refused."""
    hidden, layers, heads = f.integer("hidden_size"), f.integer("num_hidden_layers"), f.integer("num_attention_heads")
    dim, positions = _split(f, hidden, heads), f.integer("max_position_embeddings")
    f.choice("word_embed_proj_dim", (hidden,), hidden)
    f.choice("enable_bias", (True,), True)
    f.choice("layer_norm_elementwise_affine", (True,), True)
    last = f.flag("do_layer_norm_before", True) and not f.flag("_remove_final_layer_norm", False)
    attention = Attention(heads, heads, dim, dim, bias=True, out_bias=True)
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=(Block(attention, Dense(f.integer("ffn_dim"), False, bias=True), layers, norms=4 * hidden),),
        context=positions,
        tied=f.flag("tie_word_embeddings", True),
        tables=(positions + 2) * hidden,  # the first two rows stand for padding
        extra=2 * hidden if last else 0,
    )


def gpt_neox(f: Fields) -> Architecture:
    """GPT-NeoX and Pythia."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    bias = f.flag("attention_bias", True)
    f.ignore("use_parallel_residual")  # the order of additions
    attention = Attention(heads, kv_heads, dim, dim, bias=bias, out_bias=bias)
    dense = Dense(f.integer("intermediate_size"), False, bias=True)
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=(Block(attention, dense, layers, norms=4 * hidden),),
        context=f.integer("max_position_embeddings"),
        tied=f.flag("tie_word_embeddings", False),
        extra=2 * hidden,
    )


def bloom(f: Fields) -> Architecture:
    """BLOOM: ALiBi in place of positions, a norm after the embedding."""
    hidden, layers = f.integer("hidden_size", "n_embed"), f.integer("n_layer", "num_hidden_layers")
    heads = f.integer("n_head", "num_attention_heads")
    dim = _split(f, hidden, heads)
    f.ignore("apply_residual_connection_post_layernorm", "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi")
    f.ignore("attention_softmax_in_fp32", "skip_bias_add", "skip_bias_add_qkv", "n_inner")
    attention = Attention(heads, heads, dim, dim, bias=True, out_bias=True)
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=(Block(attention, Dense(4 * hidden, False, bias=True), layers, norms=4 * hidden),),
        context=f.integer("seq_length", default=2048),  # what it was trained with; ALiBi sets no limit
        tied=f.flag("tie_word_embeddings", True),
        extra=4 * hidden,
    )


def falcon(f: Fields) -> Architecture:
    """Falcon: one key-value head (7B), or groups and two norms side by side (40B, 180B)."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers", "n_layer")
    heads = f.integer("num_attention_heads", "n_head")
    dim, bias = _split(f, hidden, heads), f.flag("bias", False)
    new, parallel = f.flag("new_decoder_architecture", False), f.flag("parallel_attn", True)
    kv_heads = heads
    if new:
        kv_heads = f.integer("num_kv_heads", "n_head_kv", default=heads)
    elif f.flag("multi_query", True):
        kv_heads = 1
    f.ignore("num_kv_heads", "n_head_kv", "multi_query", "alibi")
    # The groups' two norms are one in Falcon2-11B, which says so.
    norms = f.integer("num_ln_in_parallel_attn", default=2 if new else 1) if new or parallel else 2
    attention = Attention(heads, kv_heads, dim, dim, bias=bias, out_bias=bias)
    dense = Dense(f.integer("ffn_hidden_size", default=4 * hidden), False, bias=bias)
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=(Block(attention, dense, layers, norms=2 * norms * hidden),),
        context=f.integer("max_position_embeddings", default=2048),
        tied=f.flag("tie_word_embeddings", True),
        extra=2 * hidden,
    )


def phi(f: Fields) -> Architecture:
    """Phi-1 to Phi-2: attention and feed-forward part side by side behind one norm; a head with a bias."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    f.choice("qk_layernorm", (False,), False)
    attention = Attention(heads, kv_heads, dim, dim, bias=True, out_bias=True)
    dense = Dense(f.integer("intermediate_size"), False, bias=True)
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=(Block(attention, dense, layers, norms=2 * hidden),),
        context=f.integer("max_position_embeddings"),
        tied=f.flag("tie_word_embeddings", False),
        head_bias=True,
        extra=2 * hidden,
    )


def cohere(f: Fields) -> Architecture:
    """Command R: attention and feed-forward part side by side behind one norm without bias."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    bias = f.flag("attention_bias", False)
    attention = Attention(heads, kv_heads, dim, dim, bias=bias, out_bias=bias)
    if f.flag("use_qk_norm", False):  # here each head has a norm of its own
        attention = replace(attention, extra=(heads + kv_heads) * dim)
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=(Block(attention, Dense(f.integer("intermediate_size")), layers, norms=hidden),),
        context=f.integer("max_position_embeddings"),
        tied=f.flag("tie_word_embeddings", True),
        extra=hidden,
    )


def stablelm(f: Fields) -> Architecture:
    """StableLM 2."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    attention = Attention(heads, kv_heads, dim, dim, bias=f.flag("use_qkv_bias", False))
    if f.flag("qk_layernorm", False):  # a norm for each head, without bias
        attention = replace(attention, extra=(heads + kv_heads) * dim)
    norms = 2 if f.flag("use_parallel_residual", False) else 4
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=(Block(attention, Dense(f.integer("intermediate_size")), layers, norms=norms * hidden),),
        context=f.integer("max_position_embeddings"),
        tied=f.flag("tie_word_embeddings", False),
        extra=2 * hidden,
    )
