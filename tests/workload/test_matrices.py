"""Matrices, caches and counts against closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearpeak.workload import (
    Attention,
    CompressedAttention,
    Dense,
    Experts,
    Indexer,
    LatentAttention,
    LinearAttention,
    attended_tokens,
    bundled,
    cache_elements,
    expert_linears,
    ffn_linears,
    from_config,
    kv_elements,
    kv_elements_per_device,
    mixer_linears,
    parameters,
    read,
    sequence_elements,
    state_elements,
    tensors,
)


@st.composite
def llama_configs(draw):
    kv_heads = draw(st.sampled_from([1, 2, 4, 8]))
    heads = kv_heads * draw(st.integers(1, 8))
    head_dim = draw(st.sampled_from([16, 64, 96, 128]))
    return {
        "model_type": "llama",
        "hidden_size": draw(st.integers(1, 64)) * heads,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "num_hidden_layers": draw(st.integers(1, 100)),
        "intermediate_size": draw(st.integers(1, 30000)),
        "vocab_size": draw(st.integers(1, 200000)),
        "max_position_embeddings": 4096,
        "tie_word_embeddings": draw(st.booleans()),
    }


@given(llama_configs())
def test_a_llama_has_the_parameters_of_the_closed_form(config):
    h, f, v, n = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers"))
    d, a, k = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]
    counted = parameters(from_config(config))
    head = 0 if config["tie_word_embeddings"] else v * h
    assert counted.total == v * h + head + n * (2 * h * d * (a + k) + 3 * h * f + 2 * h) + h
    assert counted.active_with_embedding == counted.total
    assert sequence_elements(from_config(config), 1000) == 1000 * n * 2 * k * d


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 16))
def test_experts_are_met_topk_of_count(count, topk, layers):
    topk = min(topk, count)
    config = {
        "model_type": "mixtral", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": layers, "intermediate_size": 96, "vocab_size": 50, "max_position_embeddings": 64,
        "num_local_experts": count, "num_experts_per_tok": topk,
    }  # fmt: skip
    counted = parameters(from_config(config))
    one = 3 * 64 * 96
    assert counted.experts == layers * count * one
    assert counted.total - counted.active_with_embedding == layers * (count - topk) * one


@pytest.mark.parametrize("name", bundled())
def test_the_tensors_add_up_to_the_parts(name):
    counted = parameters(read(name))
    total = sum(t.size * t.count for t in tensors(read(name)))
    assert total == counted.total + counted.mtp
    assert all(0 <= t.active <= t.count for t in tensors(read(name)))


def test_latent_attention_is_fused_as_engines_fuse_it():
    mixer = LatentAttention(128, 1536, 512, 128, 64, 128)
    shapes = {m.name: (m.out, m.inp, m.shard) for m in mixer_linears(mixer, 7168)}
    assert shapes == {
        "q_a_kv_a": (1536 + 576, 7168, "replicate"),
        "q_b": (128 * 192, 1536, "column"),
        "kv_b": (128 * 256, 512, "column"),
        "o": (7168, 128 * 128, "row"),
    }


def test_a_mixture_has_router_shared_and_latent_matrices_beside_its_experts():
    ffn = Experts(512, 22, 2688, gated=False, shared_inter=5376, hidden=1024)
    assert [m.name for m in ffn_linears(ffn, 4096)] == [
        "router", "latent_in", "latent_out", "shared_up", "shared_down"
    ]  # fmt: skip
    assert [(m.out, m.inp) for m in expert_linears(ffn, 4096)] == [(2688, 1024), (1024, 2688)]
    both = Experts(8, 2, 64, dense=Dense(128))
    assert [m.name for m in ffn_linears(both, 32)] == ["router", "dense_gate_up", "dense_down"]


def test_key_value_heads_are_dealt_out_and_repeated_beyond_their_number():
    mixer = Attention(64, 4, 192, 128)
    assert kv_elements(mixer) == 4 * 320
    np.testing.assert_array_equal(kv_elements_per_device(mixer, [1, 2, 4, 8]), [1280, 640, 320, 320])


def test_the_latent_lies_on_every_device():
    mixer = LatentAttention(128, 1536, 512, 128, 64, 128, indexer=Indexer(64, 128, 2048))
    np.testing.assert_array_equal(kv_elements_per_device(mixer, [1, 8]), [704, 704])


def test_a_window_caps_what_is_kept_and_an_indexer_what_is_seen():
    np.testing.assert_array_equal(
        cache_elements(Attention(8, 2, 64, 64, window=128), [64, 4096]), [64 * 256, 128 * 256]
    )
    sparse = LatentAttention(128, 0, 512, 128, 64, 128, indexer=Indexer(64, 128, 2048))
    np.testing.assert_array_equal(attended_tokens(sparse, [100, 10_000]), [100, 2048])


def test_a_chunk_is_half_full_on_average():
    mixer = Attention(8, 2, 64, 64, window=8, chunked=True)
    slow = np.mean([position % 8 + 1 for position in range(8000)])
    assert attended_tokens(mixer, 8000) == pytest.approx(slow)


def test_compressed_attention_keeps_the_window_and_one_entry_for_each_ratio():
    mixer = CompressedAttention(64, 512, 1024, 128, 4, 8, 1024, Indexer(64, 128, 512))
    assert cache_elements(mixer, 100_000) == 128 * 512 + 25_000 * (512 + 128)
    assert attended_tokens(mixer, 100_000) == 128 + 512
    heavy = CompressedAttention(64, 512, 1024, 128, 128, 8, 1024)
    assert attended_tokens(heavy, 100_000) == 128 + 781


def test_a_recurrent_layer_keeps_a_state_and_nothing_that_grows():
    mixer = LinearAttention("gdn", 16, 128, 32, 128, 4)
    assert kv_elements(mixer) == 0
    assert state_elements(mixer) == 32 * 128 * 128 + 3 * (2 * 16 * 128 + 32 * 128)
    assert cache_elements(mixer, 10) == cache_elements(mixer, 1_000_000) == state_elements(mixer)
    assert cache_elements(mixer, 10, 4) == state_elements(mixer) / 4


def test_a_layer_that_borrows_keys_and_values_keeps_none():
    assert kv_elements(Attention(8, 2, 64, 64, own_kv=False)) == 0
    assert kv_elements_per_device(Attention(8, 2, 64, 64, own_kv=False), 2) == 0


def test_deepseek_v3_caches_576_elements_a_token_and_layer():
    # arXiv:2412.19437 with 61 layers: 35,136 elements, 70,272 bytes in bf16
    assert sequence_elements(read("deepseek-ai/DeepSeek-V3"), 1) == 61 * 576
