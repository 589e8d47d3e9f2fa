"""Models with a vision tower around a language model: what the tower adds to the parameters.

Text does not run the tower, so it is counted, not built of parts. Each function counts one kind of tower with the
projector that leads into the language model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from nearpeak.workload.architecture import Architecture
from nearpeak.workload.fields import Fields

Reader = Callable[[Fields], Architecture]


@dataclass(frozen=True)
class Tower:
    """Which language models a family puts behind its tower, and how the tower's parameters are counted.

    ``count`` takes the tower's fields and the width of the language model. ``tied``: whether the head is the embedding
    where the config does not say.
    """

    text: tuple[str, ...]
    count: Callable[[Fields, Fields, int], int]
    tied: bool = False


def multimodal(f: Fields, towers: Mapping[str, Tower], texts: Mapping[str, Reader]) -> Architecture:
    """The language model under ``text_config``, with the parameters of the tower under ``vision_config``."""
    tower = towers[f.family]
    inner = f.inner("text_config")
    inner.family = inner.choice("model_type", tower.text, tower.text[0])
    model = texts[inner.family](inner)
    inner.ignore("quantization_config")
    outer_tied, inner_tied = f.get("tie_word_embeddings"), inner.get("tie_word_embeddings")
    if outer_tied is not None and inner_tied is not None and outer_tied != inner_tied:
        raise f.error(f"tie_word_embeddings is {outer_tied} outside text_config and {inner_tied} inside")
    tied = f.flag("tie_word_embeddings", tower.tied if inner_tied is None else inner_tied)
    size = tower.count(f, f.inner("vision_config"), model.hidden) if f.has("vision_config") else 0
    if f.has("audio_config"):
        raise f.error("has an audio tower, which nearpeak cannot count; give the config under text_config by itself")
    f.ignore("language_model_only", "vision_soft_tokens_per_image")
    return replace(model, family=f.family, tied=tied, tower=size)


def _mlp(hidden: int, inter: int, out: int = 0, bias: bool = True) -> int:
    out = out or hidden
    return hidden * inter + inter * out + (inter + out if bias else 0)


def _attention(hidden: int, bias: bool = True) -> int:
    return 4 * hidden * (hidden + int(bias))


def qwen3_vl(_: Fields, v: Fields, text: int) -> int:
    """Qwen3-VL and Qwen3.5: blocks with biases, learned positions, a merger, and one more for each depth it taps."""
    hidden, inter, depth = v.integer("hidden_size"), v.integer("intermediate_size"), v.integer("depth")
    patch = v.integer("patch_size") ** 2 * v.integer("temporal_patch_size") * v.integer("in_channels", default=3)
    merged = hidden * v.integer("spatial_merge_size") ** 2
    v.ignore("num_heads", "model_type")
    out = v.integer("out_hidden_size")
    if out != text:
        raise v.error(f"out_hidden_size = {out}, but the language model is {text} wide")
    merger = _mlp(merged, merged, out)
    taps = len(v.integers("deepstack_visual_indexes"))
    block = _attention(hidden) + _mlp(hidden, inter) + 4 * hidden
    positions = v.integer("num_position_embeddings") * hidden
    return (patch + 1) * hidden + positions + depth * block + merger + 2 * hidden + taps * (merger + 2 * merged)


def kimi(f: Fields, v: Fields, text: int) -> int:
    """MoonViT of Kimi K2.5, and of K3, which has neither biases nor layer norms and wider heads."""
    hidden, inter, depth = (v.integer(f"vt_{k}") for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    merge = v.get("merge_kernel_size")
    v.choice("merge_kernel_size", ([2, 2],), [2, 2])
    v.choice("text_hidden_size", (text,), text)
    v.choice("mm_hidden_size", (hidden,), hidden)
    v.choice("merge_type", ("sd2_tpool",), "sd2_tpool")
    v.choice("pos_emb_type", ("divided_fixed",), "divided_fixed")
    projector = v.choice("mm_projector_type", ("patchmerger", "patchmergerv2"))
    # Positions in time are fixed, those in the image learned.
    positions = v.integer("init_pos_emb_height") * v.integer("init_pos_emb_width") * hidden
    patch = 3 * v.integer("patch_size") ** 2 * hidden
    v.ignore("vt_num_attention_heads", "init_pos_emb_time", "video_attn_type", "model_type", "activation_func")
    v.ignore("pos_emb_interpolation_mode", "projector_hidden_act", "mlp_type")
    f.ignore("use_unified_vision_chunk", "video_placeholder")
    merged = hidden * merge[0] * merge[1]
    if projector == "patchmerger":
        block = _attention(hidden) + _mlp(hidden, inter) + 4 * hidden
        joined = 2 * hidden + _mlp(merged, merged, text)
        return patch + hidden + positions + depth * block + 2 * hidden + joined
    for key in ("attn_bias", "linear_bias", "patch_embed_proj_bias"):
        v.choice(key, (False,), False)
    v.choice("norm_type", ("rmsnorm",))
    block = 4 * hidden * v.integer("qkv_hidden_size") + _mlp(hidden, inter, bias=False) + 2 * hidden
    return patch + positions + depth * block + hidden + _mlp(merged, merged, text, bias=False) + text


def gemma4(_: Fields, v: Fields, text: int) -> int:
    """Gemma 4's encoder: gated blocks without biases, four norms each, and a table of positions for each axis."""
    hidden, inter, depth = (v.integer(k) for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, kv_heads, dim = (v.integer(k) for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    v.choice("attention_bias", (False,), False)
    v.choice("use_clipped_linears", (False,), False)
    v.choice("global_head_dim", (dim,), dim)
    v.ignore("pooling_kernel_size", "default_output_length", "image_seq_length", "video_seq_length", "model_type")
    v.ignore("max_position_embeddings")
    block = 2 * hidden * dim * (heads + kv_heads) + 2 * dim + 3 * hidden * inter + 4 * hidden
    patch = 3 * v.integer("patch_size") ** 2 * hidden
    standard = 2 * hidden if v.flag("standardize", False) else 0
    return patch + 2 * v.integer("position_embedding_size") * hidden + depth * block + standard + hidden * text


def minimax_m3(f: Fields, v: Fields, text: int) -> int:
    """CLIP-like blocks without a table of positions; each patch is projected, then four of them are merged."""
    hidden, inter, depth = (v.integer(k) for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    squeeze = v.inner("img_token_compression_config")
    squeeze.choice("image_token_compression_method", ("patch_merge",))
    f.choice("img_token_compression_config", (None, dict(squeeze.config)))
    patch = v.integer("patch_size") ** 2 * v.integer("num_channels", default=3) * squeeze.integer("temporal_patch_size")
    v.choice("position_embedding_type", ("rope",))
    v.choice("projection_dim", (text,), text)
    v.ignore("num_attention_heads", "model_type", "vocab_size", "vision_segment_max_frames")
    width = f.integer("projector_hidden_size")
    f.choice("multimodal_projector_bias", (True,), True)
    f.ignore("image_grid_pinpoints", "image_seq_length", "num_reward_heads", "process_image_mode")
    f.ignore("projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy")
    block = _attention(hidden) + _mlp(hidden, inter) + 4 * hidden
    merged = text * squeeze.integer("spatial_merge_size") ** 2
    return patch * hidden + 2 * hidden + depth * block + _mlp(hidden, width, text) + _mlp(merged, width, text)


def llama4(_: Fields, v: Fields, text: int) -> int:
    """Llama-4's encoder, with a class token, learned positions, and a pixel shuffle before the projector."""
    hidden, inter, depth = (v.integer(k) for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    patch = v.integer("patch_size")
    positions = ((v.integer("image_size") // patch) ** 2 + 1) * hidden
    first, last = v.integer("projector_input_dim"), v.integer("projector_output_dim")
    v.ignore("num_attention_heads", "pixel_shuffle_ratio", "model_type", "multi_modal_projector_bias")
    v.ignore("vision_feature_layer", "vision_feature_select_strategy")
    block = _attention(hidden) + _mlp(hidden, inter) + 4 * hidden
    embed = v.integer("num_channels", default=3) * patch**2 * hidden + hidden + positions
    projector = inter * first + last * last + v.integer("vision_output_dim") * text
    return embed + 4 * hidden + depth * block + projector


def siglip(f: Fields, v: Fields, text: int) -> int:
    """Gemma 3: a SigLIP encoder, one norm and one matrix into the language model."""
    hidden, inter, depth = (v.integer(k) for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    patch = v.integer("patch_size")
    positions = (v.integer("image_size") // patch) ** 2 * hidden
    v.ignore("num_attention_heads", "model_type", "vision_use_head", "num_image_tokens", "projection_dim")
    f.ignore("mm_tokens_per_image")
    block = _attention(hidden) + _mlp(hidden, inter) + 4 * hidden
    embed = (v.integer("num_channels", default=3) * patch**2 + 1) * hidden + positions
    return embed + depth * block + 2 * hidden + hidden + hidden * text


TOWERS: Mapping[str, Tower] = {
    "qwen3_vl": Tower(("qwen3_vl_text",), qwen3_vl),
    "qwen3_vl_moe": Tower(("qwen3_vl_moe_text",), qwen3_vl),
    "qwen3_5": Tower(("qwen3_5_text",), qwen3_vl),
    "qwen3_5_moe": Tower(("qwen3_5_moe_text",), qwen3_vl),
    "kimi_k25": Tower(("kimi_k2", "deepseek_v3"), kimi),
    "kimi_k3": Tower(("kimi_linear",), kimi),
    "gemma3": Tower(("gemma3_text",), siglip, tied=True),
    "gemma4": Tower(("gemma4_text",), gemma4, tied=True),
    "llama4": Tower(("llama4_text",), llama4),
    "minimax_m3_vl": Tower(("minimax_m3_text", "minimax_m3_vl_text"), minimax_m3),
}
