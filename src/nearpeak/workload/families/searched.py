"""Models whose layers differ one by one: those a search has shaped (Nemotron-NAS), and Gemma 3n's and 4's."""

from collections.abc import Mapping
from dataclasses import replace

from nearpeak.workload.architecture import Architecture, Attention, Block, Dense, Experts, Linear
from nearpeak.workload.families.parts import head_norms, layer_windows, merge
from nearpeak.workload.families.routed import topk_of
from nearpeak.workload.fields import Fields


def nemotron_nas(f: Fields) -> Architecture:
    """Llama-Nemotron (DeciLM, arXiv:2411.19146): each layer's attention and feed-forward part may be narrower, a single
    matrix, or left out.
    """
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads, bias = f.integer("num_attention_heads"), f.flag("attention_bias", False)
    f.choice("intermediate_size", (None,))  # block_configs say it layer by layer
    f.choice("num_key_value_heads", (None,))
    blocks = []
    for i in range(len(f.per_layer("block_configs", layers) or ())):
        block = Fields(f.config["block_configs"][i], f.family, f.name, f"block_configs[{i}].")
        attention, attention_linear = _nas_attention(block.inner("attention"), hidden, heads, bias)
        dense, ffn_linear = _nas_dense(block.inner("ffn"), hidden, f.flag("mlp_bias", False))
        linears = attention_linear + ffn_linear
        parts = (attention is not None) + (dense is not None) + len(linears)
        block.finish()
        blocks.append(Block(attention, dense, norms=parts * hidden, linears=linears))
    if not blocks:
        raise f.error("needs block_configs, one for each layer")
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=merge(blocks),
        context=f.integer("max_position_embeddings"),
        tied=f.flag("tie_word_embeddings", False),
        extra=hidden,
    )


def _nas_attention(f: Fields, hidden: int, heads: int, bias: bool) -> tuple[Attention | None, tuple[Linear, ...]]:
    f.choice("sparsify", (None,))
    f.choice("num_sink_tokens", (None,))
    f.ignore("unshifted_sink", "use_prefill_window_in_sink_attention")  # of sinks, and there are none
    if f.flag("no_op", False):
        return None, ()
    if f.flag("replace_with_linear", False):
        return None, (Linear("attention_linear", hidden, hidden, "replicate"),)
    group = f.integer("n_heads_in_group")
    if heads % group or hidden % heads:
        raise f.error(f"{heads} heads of {hidden} values cannot be put in groups of {group}")
    dim, window = hidden // heads, f.integer("window_length", default=0, least=0)
    return Attention(heads, heads // group, dim, dim, window=window, bias=bias, out_bias=bias), ()


def _nas_dense(f: Fields, hidden: int, bias: bool) -> tuple[Dense | None, tuple[Linear, ...]]:
    f.choice("sparsify", (None,))
    if f.flag("no_op", False):
        return None, ()
    if f.flag("replace_with_linear", False):
        return None, (Linear("ffn_linear", hidden, hidden, "replicate"),)
    mult = f.get("ffn_mult")
    if not isinstance(mult, int | float) or mult <= 0:
        raise f.error(f"ffn_mult = {mult!r}; a number above 0 is needed")
    # Two thirds of ffn_mult, because a gated part has three matrices, rounded up to a multiple of 256 as Llama's is.
    return Dense(-(-int(2 * mult * hidden / 3) // 256) * 256, True, bias), ()


def gemma4(f: Fields) -> Architecture:
    """Gemma 4: global layers with wider heads whose values are their keys, per-layer embeddings, last layers that
    attend earlier ones' keys and values, and (26B-A4B) experts beside a dense part.
    """
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    windows = layer_windows(f, layers, 6)
    shared = f.integer("num_kv_shared_layers", default=0, least=0)
    experts = _gemma_experts(f)
    wide = f.flag("use_double_wide_mlp", False)
    inter = f.integer("intermediate_size")
    embedded = f.integer("hidden_size_per_layer_input", default=256, least=0)
    linears = (
        (
            Linear("per_layer_gate", embedded, hidden, "replicate"),
            Linear("per_layer_out", hidden, embedded, "replicate"),
        )
        if embedded
        else ()
    )
    norms = (4 + (3 if experts else 0) + (1 if embedded else 0)) * hidden + 1  # and a scale for the whole layer
    blocks = []
    for i, window in enumerate(windows):
        borrows = i >= layers - shared
        dense = Dense(2 * inter if wide and borrows else inter)
        ffn = replace(experts, dense=dense) if experts else dense
        blocks.append(Block(_gemma_attention(f, window, borrows, _overrides(f, i)), ffn, norms=norms, linears=linears))
    f.ignore("use_bidirectional_attention")  # a mask
    f.ignore("expert_intermediate_size")
    all_embedded = layers * embedded
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=merge(blocks),
        context=f.integer("max_position_embeddings"),
        tied=f.flag("tie_word_embeddings", True),
        tables=f.integer("vocab_size_per_layer_input", default=262144) * all_embedded,
        linears=(Linear("per_layer_model", all_embedded, hidden, "replicate"),) if embedded else (),
        extra=hidden + embedded,
    )


def _overrides(f: Fields, layer: int) -> Mapping[str, int]:
    """What ``per_layer_config``, the newer way to give global layers their heads, says of a layer."""
    named = f.get("per_layer_config") or {}
    found: Mapping[str, int] = next((v for k, v in named.items() if int(k) == layer), {})
    if strange := found.keys() - {"head_dim", "num_key_value_heads"}:
        raise f.error(
            f"per_layer_config has {', '.join(sorted(strange))}; only head_dim and num_key_value_heads is known"
        )
    return found


def _gemma_attention(f: Fields, window: int, borrows: bool, overrides: Mapping[str, int]) -> Attention:
    heads, kv_heads = f.integer("num_attention_heads"), f.integer("num_key_value_heads")
    dim, bias = f.integer("head_dim"), f.flag("attention_bias", False)
    keys_are_values = f.flag("attention_k_eq_v", False)
    f.ignore("num_global_key_value_heads")  # of global layers whose values are their keys
    if not window:
        dim = f.integer("global_head_dim", default=dim)
        kv_heads = f.integer("num_global_key_value_heads", default=kv_heads) if keys_are_values else kv_heads
    dim, kv_heads = overrides.get("head_dim", dim), overrides.get("num_key_value_heads", kv_heads)
    if heads % kv_heads:
        raise f.error(f"{heads} attention heads cannot share {kv_heads} key-value heads equally")
    attention = Attention(
        heads,
        kv_heads,
        dim,
        dim,
        window=window,
        bias=bias,
        out_bias=bias,
        own_kv=not borrows,
        own_values=bool(window) or not keys_are_values,
    )
    return replace(attention, extra=dim) if borrows else head_norms(attention)


def _gemma_experts(f: Fields) -> Experts | None:
    if not f.flag("enable_moe_block", False):
        f.ignore("num_experts", "top_k_experts", "moe_intermediate_size")
        return None
    count = f.integer("num_experts")
    # The router scales its input value by value, and each expert's output.
    return Experts(
        count,
        topk_of(f, count, "top_k_experts"),
        f.integer("moe_intermediate_size"),
        extra=f.integer("hidden_size") + count,
    )
