"""Parameter counts against the models that transformers builds on the meta device: an independent implementation."""

import json
from importlib import resources

import pytest

from nearpeak.workload import bundled, from_config, parameters, read

torch = pytest.importorskip("torch", reason="the models are built with torch")
transformers = pytest.importorskip("transformers", reason="transformers holds the independent implementations")

ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "modernbert")
TINY = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 5, "vocab_size": 96,
    "intermediate_size": 112, "max_position_embeddings": 128, "num_experts_per_tok": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 32, "head_dim": 24},
    "qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 16},
    "gemma3_text": {"head_dim": 32, "sliding_window": 16},
    "phi3": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 16},
    "granite": {"attention_bias": True},
    "cohere": {"use_qk_norm": True},
    "cohere2": {"sliding_window": 16},
    "starcoder2": {},
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "seed_oss": {"head_dim": 16, "attention_out_bias": True},
    "smollm3": {},
    "ernie4_5": {"head_dim": 16, "use_bias": True},
    "stablelm": {"use_qkv_bias": True, "use_parallel_residual": True},
    "phi": {},
    "gpt_neox": {"num_key_value_heads": None},
    "mixtral": {"num_local_experts": 6},
    "qwen2_moe": {"num_experts": 6, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40,
                  "mlp_only_layers": [0]},
    "qwen3_moe": {"num_experts": 6, "moe_intermediate_size": 24, "decoder_sparse_step": 2, "head_dim": 24},
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "glm4_moe": {"head_dim": 16, "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                 "first_k_dense_replace": 2, "use_qk_norm": True, "n_shared_experts": 2},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 6, "sliding_window": 16},
    "deepseek_v2": {"q_lora_rank": None, "kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
                    "v_head_dim": 20, "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                    "n_shared_experts": 2, "first_k_dense_replace": 1, "num_key_value_heads": 4,
                    "topk_method": "greedy"},
    "deepseek_v3": {"q_lora_rank": 40, "kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
                    "v_head_dim": 20, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                    "first_k_dense_replace": 2, "num_key_value_heads": 4, "n_group": 2, "topk_group": 1,
                    "n_shared_experts": 1},
    "qwen3_next": {"head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
                   "linear_value_head_dim": 24, "num_experts": 6, "moe_intermediate_size": 24,
                   "shared_expert_intermediate_size": 40, "linear_conv_kernel_dim": 3},
    "gemma4_text": {"head_dim": 16, "global_head_dim": 32, "num_kv_shared_layers": 2, "use_double_wide_mlp": True,
                    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96, "sliding_window": 16,
                    "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"]},
    "falcon": {"num_key_value_heads": None, "new_decoder_architecture": True, "num_kv_heads": 2,
               "intermediate_size": None},
    "opt": {"ffn_dim": 112, "word_embed_proj_dim": 64, "intermediate_size": None, "num_key_value_heads": None},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 5, "n_positions": 128, "num_key_value_heads": None,
             "hidden_size": None, "num_attention_heads": None, "num_hidden_layers": None, "intermediate_size": None,
             "max_position_embeddings": None},
    "bloom": {"hidden_size": 64, "n_head": 4, "n_layer": 5, "num_key_value_heads": None, "num_attention_heads": None,
              "num_hidden_layers": None, "intermediate_size": None, "max_position_embeddings": None},
    "bert": {"num_key_value_heads": None},
    "roberta": {"num_key_value_heads": None},
    "xlm-roberta": {"num_key_value_heads": None},
    "modernbert": {"num_key_value_heads": None},
    "distilbert": {"dim": 64, "n_heads": 4, "n_layers": 5, "hidden_dim": 112, "num_key_value_heads": None,
                   "hidden_size": None, "num_attention_heads": None, "num_hidden_layers": None,
                   "intermediate_size": None},
}  # fmt: skip


def built(config):
    """Parameters and stored buffers (correction biases, scales) of the model that transformers builds."""
    family = config["model_type"]
    if family not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    loaded = transformers.CONFIG_MAPPING[family].from_dict(config)
    kind = transformers.AutoModelForCausalLM
    if family in ENCODERS:
        kind = transformers.AutoModel
    elif "vision_config" in config or family == "step3p7":
        kind = transformers.AutoModelForImageTextToText
    with torch.device("meta"):
        model = kind.from_config(loaded)
    tensors = {id(t): t.numel() for t in model.state_dict(keep_vars=True).values() if t.is_floating_point()}
    return sum(tensors.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_model_of_each_family_has_as_many_parameters(family):
    tiny = (
        TINY if any("expert" in k for k in FAMILIES[family]) else {k: v for k, v in TINY.items() if "expert" not in k}
    )
    config = {k: v for k, v in (tiny | FAMILIES[family]).items() if v is not None} | {"model_type": family}
    if FAMILIES[family].get("q_lora_rank", 1) is None:
        config["q_lora_rank"] = None
    assert parameters(from_config(config)).total == built(config)


def _bundled_configs():
    """One id for each distinct bundled config."""
    seen = {}
    for name in bundled():
        file = resources.files("nearpeak.workload") / "configs" / (name.replace("/", "--") + ".json")
        config = json.loads(file.read_text())
        for part in (config, config.get("text_config", {})):
            part.pop("quantization_config", None)
            part.pop("auto_map", None)
        seen.setdefault(json.dumps(config, sort_keys=True), name)
    return {name: json.loads(config) for config, name in seen.items()}


CONFIGS = _bundled_configs()


@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if c["model_type"] != "step3p7"])
def test_a_bundled_model_has_as_many_parameters(name):
    assert parameters(read(name)).total == built(CONFIGS[name])


def test_step_3_7_has_as_many_parameters_as_its_language_model_in_transformers():
    # transformers keeps Step's language model behind a tower that the bundled config does not describe
    family = transformers.CONFIG_MAPPING
    if "step3p7" not in family:
        pytest.skip(f"transformers {transformers.__version__} has no step3p7")
    text = {k: v for k, v in CONFIGS["stepfun-ai/Step-3.7-Flash"].items() if k not in ("architectures", "model_type")}
    loaded = family["step3p7"].from_dict({"model_type": "step3p7", "text_config": text | {"model_type": "step3p5"}})
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(loaded)
    tensors = {
        id(t): t.numel()
        for n, t in model.state_dict(keep_vars=True).items()
        if t.is_floating_point() and "vision" not in n and "projector" not in n
    }
    assert parameters(read("stepfun-ai/Step-3.7-Flash")).language == sum(tensors.values())
