"""Models that mix recurrent layers with attention: Qwen3-Next and Qwen3.5, Kimi Linear and K3, Nemotron-H."""

from dataclasses import replace

from nearpeak.workload.architecture import (
    Architecture,
    Attention,
    Block,
    Dense,
    Experts,
    FeedForward,
    Linear,
    LinearAttention,
)
from nearpeak.workload.families.latent import latent_attention, mtp_blocks
from nearpeak.workload.families.parts import dense_first, head_norms, head_shape, merge
from nearpeak.workload.families.routed import qwen_routed, topk_of
from nearpeak.workload.fields import Fields


def qwen_hybrid(f: Fields) -> Architecture:
    """Qwen3-Next and Qwen3.5: gated delta nets with gated attention in between; dense or with experts."""
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    delta, attention = _delta_net(f), _gated_attention(f, hidden)
    every = f.integer("full_attention_interval", default=4)
    kinds = f.per_layer("layer_types", layers, ("linear_attention", "full_attention"))
    if kinds is None:
        kinds = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    ffns = _qwen_ffns(f, layers)
    blocks = [
        Block(attention if kind == "full_attention" else delta, ffn, norms=2 * hidden)
        for kind, ffn in zip(kinds, ffns, strict=True)
    ]
    f.choice("mtp_use_dedicated_embeddings", (False,), False)
    f.ignore("output_gate_type")  # the gate's activation
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=merge(blocks),
        context=f.integer("max_position_embeddings"),
        tied=f.flag("tie_word_embeddings", False),
        mtp=mtp_blocks(f, hidden, replace(blocks[-1], mixer=attention), "mtp_num_hidden_layers"),
        extra=hidden,
    )


def _gated_attention(f: Fields, hidden: int) -> Attention:
    heads, kv_heads, dim = head_shape(f, hidden)
    bias = f.flag("attention_bias", False)
    gate = heads * dim if f.flag("attn_output_gate", True) else 0
    return head_norms(Attention(heads, kv_heads, dim, dim, gate=gate, bias=bias, out_bias=bias))


def _delta_net(f: Fields) -> LinearAttention:
    v_heads, v_dim = f.integer("linear_num_value_heads"), f.integer("linear_value_head_dim")
    k_heads = f.integer("linear_num_key_heads")
    if v_heads % k_heads:
        raise f.error(f"{v_heads} value heads cannot share {k_heads} key heads equally")
    return LinearAttention(
        kind="gdn",
        k_heads=k_heads,
        k_dim=f.integer("linear_key_head_dim"),
        v_heads=v_heads,
        v_dim=v_dim,
        conv=f.integer("linear_conv_kernel_dim"),
        extra=2 * v_heads + v_dim,  # a decay and a time step for each head, the norm before the output
    )


def _qwen_ffns(f: Fields, layers: int) -> list[FeedForward]:
    if not f.has("num_experts"):
        f.integers("mlp_only_layers")
        return [Dense(f.integer("intermediate_size"))] * layers
    count, shared = f.integer("num_experts"), f.integer("shared_expert_intermediate_size", default=0, least=0)
    experts = Experts(
        count, topk_of(f, count), f.integer("moe_intermediate_size"), shared_inter=shared, shared_gate=shared > 0
    )
    routed = qwen_routed(f, layers)
    f.ignore("intermediate_size")  # of layers without experts, and there may be none
    return [experts if has else Dense(f.integer("intermediate_size")) for has in routed]


def kimi_linear(f: Fields) -> Architecture:
    """Kimi Linear (arXiv:2510.26692) and the language model of Kimi K3 (arXiv:2607.24653): Kimi delta attention with
    latent attention in between. K3 adds output gates, experts in a latent width, and attention residuals: before each
    part, a norm and one vector weigh the outputs of earlier blocks of layers.
    """
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    inner = f.inner("linear_attn_config")
    delta = _kimi_delta(inner)
    full = set(inner.integers("full_attn_layers"))
    if sorted(full | set(inner.integers("kda_layers"))) != list(range(1, layers + 1)):
        raise f.error(f"full_attn_layers and kda_layers do not name each of {layers} layers once")
    attention = latent_attention(f)
    if f.flag("mla_use_output_gate", False):
        attention = replace(attention, gate=attention.heads * attention.v_dim)
    f.ignore("mla_use_nope")  # no rotary embedding; the matrices are the same
    experts, dense = _kimi_experts(f), Dense(f.integer("intermediate_size"))
    residuals = 2 * hidden if f.has("attn_res_block_size") else 0
    f.choice("num_nextn_predict_layers", (0,), 0)
    blocks = [
        Block(attention if i + 1 in full else delta, experts if routed else dense, norms=2 * (hidden + residuals))
        for i, routed in enumerate(dense_first(f, layers))
    ]
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=merge(blocks),
        context=f.integer("max_position_embeddings", "model_max_length"),
        tied=f.flag("tie_word_embeddings", False),
        extra=hidden + residuals,
    )


def _kimi_delta(f: Fields) -> LinearAttention:
    heads, dim = f.integer("num_heads"), f.integer("head_dim")
    return LinearAttention(
        kind="kda",
        k_heads=heads,
        k_dim=dim,
        v_heads=heads,
        v_dim=dim,
        conv=f.integer("short_conv_kernel_size"),
        gate_rank=dim,
        full_gate=f.flag("use_full_rank_gate", False),
        extra=heads + heads * dim + dim,  # decays, their biases for each channel, the norm before the output
    )


def _kimi_experts(f: Fields) -> Experts:
    count, inter = f.integer("num_experts", "n_routed_experts"), f.integer("moe_intermediate_size")
    latent = f.integer("routed_expert_hidden_size", default=0, least=0)
    norm = latent if latent and f.flag("latent_moe_use_norm", False) else 0
    f.choice("topk_method", ("noaux_tc",), "noaux_tc")
    return Experts(
        count=count,
        topk=topk_of(f, count, "num_experts_per_token", "num_experts_per_tok"),
        inter=inter,
        shared_inter=inter * f.integer("num_shared_experts", "n_shared_experts", default=0, least=0),
        hidden=latent,
        extra=count + norm,
    )


_NEMOTRON_LETTERS = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
_NEMOTRON_KINDS = (*_NEMOTRON_LETTERS.values(), "linear_attention", "full_attention")


def nemotron_h(f: Fields) -> Architecture:
    """Nemotron-H and Nemotron 3: each layer is one part, a Mamba-2 mixer, attention, an MLP or experts."""
    hidden = f.integer("hidden_size")
    kinds = _nemotron_kinds(f, "layers_block_type", "hybrid_override_pattern")
    if f.integer("num_hidden_layers", default=len(kinds)) != len(kinds):
        raise f.error(f"num_hidden_layers = {f.get('num_hidden_layers')}, but the pattern has {len(kinds)} layers")
    parts = {kind: _nemotron_block(f, kind, hidden) for kind in dict.fromkeys(kinds)}
    mtp: list[Block] = []
    if f.integer("num_nextn_predict_layers", default=0, least=0):
        mtp = [
            _nemotron_block(f, kind, hidden)
            for kind in _nemotron_kinds(f, "mtp_layers_block_type", "mtp_hybrid_override_pattern")
        ]
        join = Linear("mtp_join", hidden, 2 * hidden, "replicate")
        mtp[0] = replace(mtp[0], norms=mtp[0].norms + 2 * hidden, linears=(join,))
        mtp[-1] = replace(mtp[-1], norms=mtp[-1].norms + hidden)
    f.ignore("mtp_layers_block_type", "mtp_hybrid_override_pattern")
    f.ignore("expand", "time_step_rank")  # both follow from heads and their width
    f.ignore("moe_shared_expert_overlap", "num_logits_to_keep", "intermediate_size")  # when, not what
    f.choice("sliding_window", (None,))
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=merge([parts[kind] for kind in kinds]),
        context=f.integer("max_position_embeddings"),
        tied=f.flag("tie_word_embeddings", False),
        mtp=tuple(mtp),
        extra=hidden,
    )


def _nemotron_kinds(f: Fields, listed: str, pattern: str) -> list[str]:
    """Layers as a list of names or as a string of letters."""
    value = f.get(listed) or f.get(pattern)
    f.ignore(listed, pattern)
    if isinstance(value, str) and set(value) <= _NEMOTRON_LETTERS.keys():
        return [_NEMOTRON_LETTERS[letter] for letter in value]
    if isinstance(value, list) and set(value) <= set(_NEMOTRON_KINDS):
        newer = {"linear_attention": "mamba", "full_attention": "attention"}
        return [newer.get(str(kind), str(kind)) for kind in value]
    raise f.error(f"needs {listed} (of {', '.join(_NEMOTRON_KINDS)}) or {pattern} (of the letters ME*-), not {value!r}")


def _nemotron_block(f: Fields, kind: str, hidden: int) -> Block:
    match kind:
        case "mamba":
            return Block(_mamba2(f), None, norms=hidden)
        case "attention":
            heads, kv_heads = f.integer("num_attention_heads"), f.integer("num_key_value_heads")
            dim = f.integer("head_dim", "attention_head_dim")
            bias = f.flag("attention_bias", False)
            return Block(Attention(heads, kv_heads, dim, dim, bias=bias, out_bias=bias), None, norms=hidden)
        case "mlp":
            return Block(None, Dense(f.integer("intermediate_size"), False, f.flag("mlp_bias", False)), norms=hidden)
        case _:
            return Block(None, _nemotron_experts(f), norms=hidden)


def _mamba2(f: Fields) -> LinearAttention:
    heads, dim = f.integer("mamba_num_heads"), f.integer("mamba_head_dim")
    groups = f.integer("n_groups")
    if heads % groups:
        raise f.error(f"{heads} Mamba heads cannot share {groups} groups equally")
    return LinearAttention(
        kind="mamba2",
        k_heads=groups,
        k_dim=f.integer("ssm_state_size"),
        v_heads=heads,
        v_dim=dim,
        conv=f.integer("conv_kernel"),
        bias=f.flag("use_bias", False) or f.flag("mamba_proj_bias", False),
        conv_bias=f.flag("use_conv_bias", True),
        extra=3 * heads + heads * dim,  # decay, skip and time step of each head; the norm before the output
    )


def _nemotron_experts(f: Fields) -> Experts:
    count = f.integer("n_routed_experts")
    f.choice("mlp_bias", (False,), False)
    f.ignore("n_shared_experts")  # their widths together are moe_shared_expert_intermediate_size
    return Experts(
        count=count,
        topk=topk_of(f, count),
        inter=f.integer("moe_intermediate_size"),
        gated=False,
        shared_inter=f.integer("moe_shared_expert_intermediate_size", default=0, least=0),
        hidden=f.integer("moe_latent_size", default=0),
        extra=count,
    )
