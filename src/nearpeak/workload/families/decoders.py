"""Decoders in Llama's mould: one kind of attention and one gated feed-forward part in every layer.

They differ in biases, norms and windows. Each row of ``STYLES`` says how, as the family's published code has it; the
flags name config fields, with the default that the code takes where a field is absent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from nearpeak.workload.architecture import Architecture, Attention, Block, Dense
from nearpeak.workload.families.latent import mtp_blocks
from nearpeak.workload.families.parts import head_norms, head_shape, layer_windows, merge
from nearpeak.workload.fields import Fields

Flag = bool | tuple[str, bool]
"""Always so, or as a config field says (its name and its default)."""


@dataclass(frozen=True)
class Style:
    """How a family differs from Llama.

    Attributes:
        qkv_bias, out_bias, mlp_bias: biases. gated: SwiGLU or GeGLU, else two matrices.
        norms: vectors of ``hidden`` in a layer's norms (a layer norm with bias has two). final: in the last norm.
        qk_norm: norms on q and k: over each head, over all heads at once, or none.
        window: layers with a sliding window, see ``layer_windows``; None where the family has none.
        tied: whether the head is the embedding where ``tie_word_embeddings`` is absent.
    """

    qkv_bias: Flag = False
    out_bias: Flag = False
    mlp_bias: Flag = False
    gated: bool = True
    norms: int = 2
    final: int = 1
    qk_norm: Literal["", "head", "width"] = ""
    window: int | None = None
    tied: bool = False


_ATTENTION_BIAS = ("attention_bias", False)
_USE_BIAS = ("use_bias", False)

STYLES: Mapping[str, Style] = {
    "llama": Style(qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, mlp_bias=("mlp_bias", False)),
    "mistral": Style(window=1),
    "ministral": Style(window=0),
    "qwen2": Style(qkv_bias=True),
    "qwen3_vl_text": Style(qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, qk_norm="head"),
    "qwen3": Style(qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, qk_norm="head"),
    "gemma": Style(qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, tied=True),
    "gemma2": Style(qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, norms=4, window=2, tied=True),
    "gemma3_text": Style(
        qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, norms=4, qk_norm="head", window=6, tied=True
    ),
    "phi3": Style(window=1),
    "olmo2": Style(qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, qk_norm="width"),
    "olmo3": Style(qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, qk_norm="width", window=4),
    "granite": Style(qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, mlp_bias=("mlp_bias", False)),
    "cohere2": Style(qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, norms=1, window=4, tied=True),
    "starcoder2": Style(
        qkv_bias=("use_bias", True), out_bias=("use_bias", True), mlp_bias=("use_bias", True),
        gated=False, norms=4, final=2, window=1, tied=True,
    ),
    "glm": Style(qkv_bias=("attention_bias", True)),
    "glm4": Style(qkv_bias=("attention_bias", True), norms=4),
    "seed_oss": Style(
        qkv_bias=("attention_bias", True), out_bias=("attention_out_bias", False), mlp_bias=("mlp_bias", False)
    ),
    "smollm3": Style(
        qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, mlp_bias=("mlp_bias", False), window=0, tied=True
    ),
    "ernie4_5": Style(qkv_bias=_USE_BIAS, out_bias=_USE_BIAS, mlp_bias=_USE_BIAS, tied=True),
    "mimo": Style(qkv_bias=("attention_bias", True)),
}  # fmt: skip


def decoder(f: Fields) -> Architecture:
    """A decoder whose family is a row of ``STYLES``."""
    style = STYLES[f.family]
    hidden, layers = f.integer("hidden_size"), f.integer("num_hidden_layers")
    attention = plain_attention(f, hidden, style)
    ffn = Dense(f.integer("intermediate_size"), style.gated, _flag(f, style.mlp_bias))
    blocks = merge(
        [Block(replace(attention, window=w), ffn, norms=style.norms * hidden) for w in windows(f, style, layers)]
    )
    mtp: tuple[Block, ...] = ()
    if f.family == "mimo":  # its MTP layer is a layer of the model behind a matrix that joins two vectors
        mtp = mtp_blocks(f, hidden, blocks[-1])
    if f.family == "smollm3":
        # Layers without rotary embedding have the same matrices and cache.
        f.ignore("no_rope_layers", "no_rope_layer_interval", "no_rope_layer_interval", "max_window_layers")
    return Architecture(
        name=f.name,
        family=f.family,
        hidden=hidden,
        vocab=f.integer("vocab_size"),
        blocks=blocks,
        context=f.integer("max_position_embeddings"),
        tied=f.flag("tie_word_embeddings", style.tied),
        mtp=mtp,
        extra=style.final * hidden,
    )


def plain_attention(f: Fields, hidden: int, style: Style) -> Attention:
    """Grouped-query attention with the biases and norms of a style."""
    heads, kv_heads, dim = head_shape(f, hidden)
    attention = Attention(heads, kv_heads, dim, dim, bias=_flag(f, style.qkv_bias), out_bias=_flag(f, style.out_bias))
    if style.qk_norm == "head":
        return head_norms(attention)
    if style.qk_norm == "width":
        return replace(attention, extra=(heads + kv_heads) * dim)
    return attention


def windows(f: Fields, style: Style, layers: int) -> list[int]:
    """The window of each layer, as the family chooses it."""
    if f.family in ("qwen2", "qwen3", "qwen3_vl_text", "mimo", "smollm3"):
        return qwen_windows(f, layers)
    if style.window is None:
        f.choice("sliding_window", (None,))
        return [0] * layers
    pattern = style.window
    if pattern > 1:
        pattern = f.integer("sliding_window_pattern", "_sliding_window_pattern", default=pattern)
    return layer_windows(f, layers, pattern)


def qwen_windows(f: Fields, layers: int) -> list[int]:
    """Qwen has a window only where ``use_sliding_window``, and then in the layers from ``max_window_layers`` on."""
    window = f.integer("sliding_window", default=0, least=0)
    first = f.integer("max_window_layers", default=layers, least=0)
    kinds = f.per_layer("layer_types", layers, ("full_attention", "sliding_attention"))
    if not f.flag("use_sliding_window", False):
        if kinds is not None and "sliding_attention" in kinds:
            raise f.error("layer_types has sliding_attention, but use_sliding_window is not true")
        return [0] * layers
    if not window:
        raise f.error("use_sliding_window is true, but sliding_window has no value")
    if kinds is not None:
        return [window if kind == "sliding_attention" else 0 for kind in kinds]
    return [window if i >= first else 0 for i in range(layers)]


def _flag(f: Fields, flag: Flag) -> bool:
    return flag if isinstance(flag, bool) else f.flag(*flag)
