"""Reading configs: names, files, and what is refused."""

import json

import pytest

from nearpeak.errors import UnknownName, UsageError
from nearpeak.workload import Attention, LatentAttention, bundled, from_config, parameters, read, resolve

LLAMA = {
    "model_type": "llama", "hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2,
    "num_hidden_layers": 3, "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 2048,
}  # fmt: skip


@pytest.mark.parametrize("name", bundled())
def test_every_bundled_config_is_read_with_every_field_placed(name):
    architecture = read(name)
    assert architecture.name == name
    assert architecture.layers > 0
    counted = parameters(architecture)
    assert 0 < counted.active <= counted.language


def test_a_name_is_found_regardless_of_case_and_of_its_maker():
    assert read("qwen/QWEN3-32b") == read("Qwen3-32B") == read("Qwen/Qwen3-32B")


@pytest.mark.parametrize(
    ("name", "model", "suffix"),
    [
        ("nvidia/Qwen3-32B-NVFP4", "Qwen/Qwen3-32B", "-NVFP4"),
        ("nvidia/DeepSeek-R1-NVFP4", "deepseek-ai/DeepSeek-R1", "-NVFP4"),
        ("Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-8B", "-AWQ"),
        ("meta-llama/Llama-3.1-70B", "meta-llama/Meta-Llama-3.1-70B", ""),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-8B", ""),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-ai/DeepSeek-R1", ""),
        ("nvidia/Qwen3-235B-A22B-NVFP4", "nvidia/Qwen3-235B-A22B-NVFP4", ""),
    ],
)
def test_variants_resolve_to_the_bundled_model_of_their_shapes(name, model, suffix):
    assert resolve(name) == (model, suffix)
    assert read(name).blocks == read(model).blocks
    assert read(name).name == name


@pytest.mark.parametrize(
    "name",
    ["Qwen/Qwen3-14B", "someone/Qwen3-32B", "deepseek-ai/DeepSeek-V3.1", "moonshotai/Kimi-K2-Thinking", "", "Qwen3-"],
)
def test_nothing_else_is_guessed(name):
    with pytest.raises(UnknownName, match=r"config\.json"):
        resolve(name)


def test_an_unknown_name_brings_suggestions():
    with pytest.raises(UnknownName, match="Qwen/Qwen3-32B"):
        read("Qwen/Qwen3-33B")


def test_a_folder_and_a_file_are_read_and_named_after_their_place(tmp_path):
    folder = tmp_path / "my-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert read(folder) == read(str(folder / "config.json")) == from_config(LLAMA, "my-llama")


def test_a_quantization_beside_the_config_counts(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    quantization = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": quantization}))
    assert (read(tmp_path).checkpoint.ffn, read(tmp_path).checkpoint.kv) == ("nvfp4", "fp8")


@pytest.mark.parametrize("content", ["{", "\xff", "[1]"])
def test_a_file_that_is_no_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError):
        read(tmp_path)


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no file"):
        read(str(tmp_path / "config.json"))
    with pytest.raises(UsageError, match=r"no config\.json"):
        read(tmp_path)


def test_an_unknown_family_names_itself_its_fields_and_what_is_supported():
    with pytest.raises(UsageError, match=r"'retnet'.*decay_rate.*Supported: .*llama"):
        from_config(LLAMA | {"model_type": "retnet", "decay_rate": 0.5})


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"])
def test_a_missing_field_is_named(key):
    with pytest.raises(UsageError, match=key):
        from_config({k: v for k, v in LLAMA.items() if k != key})


def test_a_field_that_the_family_does_not_know_is_named():
    with pytest.raises(UsageError, match="num_memory_slots"):
        from_config(LLAMA | {"num_memory_slots": 16})


def test_fields_that_change_no_shape_are_no_obstacle():
    plain = from_config(LLAMA)
    assert plain == from_config(
        LLAMA | {"rope_theta": 1e6, "attention_dropout": 0.1, "bos_token_id": 7, "num_memory_slots": None}
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"num_key_value_heads": 3},
        {"num_attention_heads": 7},
        {"hidden_size": -1},
        {"hidden_size": "256"},
        {"hidden_size": 256.5},
        {"num_hidden_layers": True},
        {"tie_word_embeddings": "yes"},
        {"sliding_window": 128},
    ],
)
def test_contradictory_and_malformed_fields_are_refused(fields):
    with pytest.raises(UsageError):
        from_config(LLAMA | fields)


def test_layer_lists_must_be_as_long_as_the_model_is_deep():
    config = LLAMA | {"model_type": "gemma3_text", "head_dim": 32, "sliding_window": 64}
    with pytest.raises(UsageError, match="2 entries for 3 layers"):
        from_config(config | {"layer_types": ["full_attention"] * 2})
    with pytest.raises(UsageError, match="linear_attention"):
        from_config(config | {"layer_types": ["linear_attention"] * 3})


def test_families_keep_what_makes_them_themselves():
    v32 = read("deepseek-ai/DeepSeek-V3.2").blocks[0].mixer
    assert isinstance(v32, LatentAttention)
    assert (v32.indexer.heads, v32.indexer.topk) == (64, 2048)
    shared = [b.mixer.indexer.heads for b in read("zai-org/GLM-5.2").blocks]
    assert 0 in shared
    assert 32 in shared
    gemma = {b.mixer.window: b.mixer for b in read("google/gemma-4-26B-A4B").blocks}
    assert (gemma[0].head_dim, gemma[1024].head_dim, gemma[0].own_values) == (512, 256, False)
    scout = read("meta-llama/Llama-4-Scout-17B-16E-Instruct")
    assert sum(b.count for b in scout.blocks if b.mixer.chunked) == 36
    mimo = {b.mixer.window: b.mixer for b in read("XiaomiMiMo/MiMo-V2-Flash").blocks}
    assert (mimo[0].kv_heads, mimo[128].kv_heads, mimo[0].v_head_dim) == (4, 8, 128)
    nas = read("nvidia/Llama-3_3-Nemotron-Super-49B-v1")
    assert sum(b.count for b in nas.blocks) == 80
    assert sum(b.count for b in nas.blocks if b.mixer is None) == 31
    nano = read("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
    assert [sum(b.count for b in nano.blocks if test(b)) for test in (
        lambda b: isinstance(b.mixer, Attention), lambda b: b.mixer is not None, lambda b: b.ffn is not None
    )] == [6, 29, 23]  # fmt: skip
