"""Readers of model families: ``FAMILIES`` maps a config's ``model_type`` to the function that reads it."""

from collections.abc import Callable, Mapping

from nearpeak.workload.architecture import Architecture
from nearpeak.workload.families import classic, decoders, encoders, hybrid, latent, routed, searched, towers
from nearpeak.workload.fields import Fields

Reader = Callable[[Fields], Architecture]

_TEXT: Mapping[str, Reader] = {
    **dict.fromkeys(decoders.STYLES, decoders.decoder),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "glm_moe_dsa"), latent.deepseek),
    **dict.fromkeys(("deepseek_v4", "deepseek_ref"), latent.deepseek_v4),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), encoders.bert),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text"), routed.qwen_moe),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), hybrid.qwen_hybrid),
    **dict.fromkeys(("minimax_m3", "minimax_m3_text", "minimax_m3_vl_text"), routed.minimax_m3),
    **dict.fromkeys(("step3p5", "step3p7"), routed.step3),
    "bloom": classic.bloom,
    "cohere": classic.cohere,
    "distilbert": encoders.distilbert,
    "falcon": classic.falcon,
    "gemma4_text": searched.gemma4,
    "glm4_moe": routed.glm4_moe,
    "gpt2": classic.gpt2,
    "gpt_neox": classic.gpt_neox,
    "gpt_oss": routed.gpt_oss,
    "granitemoe": routed.granite_moe,
    "kimi_linear": hybrid.kimi_linear,
    "llama4_text": routed.llama4,
    "mimo_v2_flash": routed.mimo_v2,
    "minimax_m2": routed.minimax_m2,
    "mixtral": routed.mixtral,
    "modernbert": encoders.modernbert,
    "nemotron-nas": searched.nemotron_nas,
    "nemotron_h": hybrid.nemotron_h,
    "olmoe": routed.olmoe,
    "opt": classic.opt,
    "phi": classic.phi,
    "stablelm": classic.stablelm,
}


def _multimodal(fields: Fields) -> Architecture:
    return towers.multimodal(fields, towers.TOWERS, _TEXT)


FAMILIES: Mapping[str, Reader] = {**_TEXT, **dict.fromkeys(towers.TOWERS, _multimodal)}
