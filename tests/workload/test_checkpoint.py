"""Number formats of checkpoints."""

import pytest

from nearpeak.errors import UsageError
from nearpeak.formats import code
from nearpeak.workload import Checkpoint, bundled, from_config, read

MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 4, "intermediate_size": 96, "vocab_size": 50, "max_position_embeddings": 64,
    "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


def formats(quantization, **fields):
    return from_config(MIXTRAL | fields | {"quantization_config": quantization}).checkpoint


def group(kind, bits, activations=None, **weights):
    inputs = activations and {"num_bits": activations, "type": kind}
    return {"targets": ["Linear"], "weights": {"type": kind, "num_bits": bits} | weights, "input_activations": inputs}


@pytest.mark.parametrize("name", bundled())
def test_bundled_checkpoints_are_stored_in_known_formats(name):
    stored = read(name).checkpoint
    for part in (stored.attention, stored.ffn, stored.experts, stored.head, stored.kv):
        code(part)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("deepseek-ai/DeepSeek-V3", Checkpoint("fp8_block", "fp8_block", "fp8_block", method="fp8")),
        ("openai/gpt-oss-120b", Checkpoint(experts="mxfp4", method="mxfp4")),
        ("moonshotai/Kimi-K2.5", Checkpoint(experts="int4_wo_32", method="compressed-tensors")),
        ("moonshotai/Kimi-K3", Checkpoint(experts="mxfp4", method="compressed-tensors")),
        ("deepseek-ai/DeepSeek-V4-Pro", Checkpoint("fp8_block", "fp8_block", "mxfp4_mxfp8", method="fp8")),
        ("nvidia/DeepSeek-V4-Pro-NVFP4", Checkpoint("fp8_block", "fp8_block", "nvfp4", method="fp8")),
        ("Qwen/Qwen3-32B-FP8-Static-PerTensor", Checkpoint("fp8", "fp8", "fp8", kv="fp8", method="fp8")),
        ("nvidia/Qwen3-32B-NVFP4", Checkpoint("nvfp4", "nvfp4", "nvfp4", kv="fp8", method="NVFP4")),
        ("nvidia/DeepSeek-R1-NVFP4", Checkpoint("bf16", "nvfp4", "nvfp4", kv="fp8", method="NVFP4")),
        ("Qwen/Qwen3-32B-FP8", Checkpoint("fp8_block", "fp8_block", "fp8_block", method="fp8")),
        ("Qwen/Qwen3-32B", Checkpoint()),
    ],
)
def test_models_are_stored_as_their_configs_or_ids_say(name, stored):
    assert read(name).checkpoint == stored


@pytest.mark.parametrize(
    ("groups", "stored"),
    [
        (group("float", 8, 8, strategy="channel"), "fp8"),
        (group("float", 8, 8, strategy="block"), "fp8_block"),
        (group("float", 4, 4, group_size=16), "nvfp4"),
        (group("float", 4, 8, group_size=32), "mxfp4_mxfp8"),
        (group("int", 8, 8), "int8"),
        (group("int", 8), "int8_wo"),
        (group("int", 4, group_size=128), "int4_wo"),
    ],
)
def test_compressed_tensors_groups_name_formats(groups, stored):
    found = formats({"quant_method": "compressed-tensors", "config_groups": {"group_0": groups}, "ignore": ["lm_head"]})
    assert (found.attention, found.experts, found.head) == (stored, stored, "bf16")


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        (["re:.*self_attn.*"], "attention"),
        (["*.self_attn.*"], "attention"),
        ([f"model.layers.{i}.self_attn.o_proj" for i in range(4)], "attention"),
        (["re:.*experts.*"], "experts"),
        ([f"model.layers.{i}.block_sparse_moe.experts" for i in range(4)], "experts"),
    ],
)
def test_what_is_ignored_stays_as_it_was(ignore, left):
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"g": group("int", 4)}, "ignore": ignore}
    found = formats(quantization)
    stored = {part: getattr(found, part) for part in ("attention", "experts", "head")}
    assert stored.pop(left) == "bf16"
    assert set(stored.values()) == {"int4_wo"}


def test_what_is_ignored_in_one_layer_of_four_is_not_the_part():
    quantization = {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.self_attn.o_proj"]}
    assert formats(quantization).attention == "fp8"


@pytest.mark.parametrize(
    ("quantization", "stored"),
    [
        ({"quant_method": "awq", "bits": 4}, "int4_wo"),
        ({"quant_method": "gptq", "bits": 8}, "int8_wo"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}, "fp8"),
    ],
)
def test_methods_name_formats(quantization, stored):
    assert formats(quantization).ffn == stored


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 3},
        {"quant_method": "modelopt", "quant_algo": "W2A2"},
        {"quant_method": "compressed-tensors", "config_groups": {"g": group("int", 2)}},
        {"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 4, "type": "int"}},
        {"quant_method": "fp8", "modules_to_not_convert": "(left out: 9 entries)"},
    ],
)
def test_what_nearpeak_does_not_know_is_refused(quantization):
    with pytest.raises(UsageError):
        formats(quantization)


def test_the_storage_type_is_the_format_of_what_is_not_quantized():
    assert from_config(MIXTRAL | {"torch_dtype": "float32"}).checkpoint.attention == "fp32"
    with pytest.raises(UsageError, match="float64"):
        from_config(MIXTRAL | {"torch_dtype": "float64"})
