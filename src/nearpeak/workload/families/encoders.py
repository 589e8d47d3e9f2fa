"""Encoders: BERT and its kin, and ModernBERT. No cache, no head over the vocabulary."""

from dataclasses import replace

from nearpeak.workload.architecture import Architecture, Attention, Block, Dense
from nearpeak.workload.families.parts import head_shape, merge
from nearpeak.workload.fields import Fields


def bert(f: Fields) -> Architecture:
    """BERT, RoBERTa, XLM-RoBERTa and CamemBERT with their pooler and without other heads."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    f.choice("position_embedding_type", ("absolute",), "absolute")
    attention = Attention(heads, kv_heads, dim, dim, bias=True, out_bias=True)
    block = Block(attention, Dense(f.integer("intermediate_size"), False, bias=True), layers, norms=4 * hidden)
    positions = f.integer("max_position_embeddings")
    types = f.integer("type_vocab_size", default=2, least=0)
    f.ignore("tie_word_embeddings")  # of heads, and there are none
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=(block,),
        # RoBERTa numbers positions from the padding token's index on.
        context=positions - 2 if f.family in ("roberta", "xlm-roberta", "camembert") else positions,
        encoder=True,
        tables=(positions + types) * hidden,
        extra=2 * hidden + hidden * hidden + hidden,
    )


def distilbert(f: Fields) -> Architecture:
    """DistilBERT: BERT without token types and pooler, under other field names."""
    hidden, layers, heads = f.integer("dim"), f.integer("n_layers"), f.integer("n_heads")
    if hidden % heads:
        raise f.error(f"dim {hidden} is not a multiple of {heads} heads")
    attention = Attention(heads, heads, hidden // heads, hidden // heads, bias=True, out_bias=True)
    block = Block(attention, Dense(f.integer("hidden_dim"), False, bias=True), layers, norms=4 * hidden)
    positions = f.integer("max_position_embeddings")
    f.ignore("tie_weights_", "tie_word_embeddings")
    f.ignore("sinusoidal_pos_embds")  # how the table of positions begins
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=(block,),
        context=positions,
        encoder=True,
        tables=positions * hidden,
        extra=2 * hidden,
    )


def modernbert(f: Fields) -> Architecture:
    """ModernBERT (arXiv:2412.13663): gated parts, every third layer global, the others see a window around a token."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, kv_heads, dim = head_shape(f, hidden)
    bias, norm_bias = f.flag("attention_bias", False), f.flag("norm_bias", False)
    every, window = f.integer("global_attn_every_n_layers", default=3), f.integer("local_attention", default=128)
    kinds = f.per_layer("layer_types", layers, ("full_attention", "sliding_attention"))
    if kinds is None:
        kinds = ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    full = Attention(heads, kv_heads, dim, dim, bias=bias, out_bias=bias)
    dense = Dense(f.integer("intermediate_size"), bias=f.flag("mlp_bias", False))
    norm = hidden * (2 if norm_bias else 1)
    # The first layer has no norm before its attention: the embedding's stands there.
    blocks = [
        Block(replace(full, window=window if kind == "sliding_attention" else 0), dense, norms=norm * (2 if i else 1))
        for i, kind in enumerate(kinds)
    ]
    f.ignore("decoder_bias", "sparse_prediction", "sparse_pred_ignore_index", "tie_word_embeddings")  # of heads
    f.ignore("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad", "position_embedding_type")
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=merge(blocks),
        context=f.integer("max_position_embeddings"),
        encoder=True,
        extra=2 * norm,
    )
