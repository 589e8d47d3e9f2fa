"""Steps and memory of served models, against closed forms and physics."""

from dataclasses import replace

import numpy as np
import pytest

from nearpeak.cost import decode, ledger, mixed, platform_of, predict, prefill, step_interval
from nearpeak.cost.memory import kv_bytes, largest_batch, weight_bytes
from nearpeak.cost.operators import gemm
from nearpeak.cost.step import depth
from nearpeak.cost.tables import platform_named
from nearpeak.errors import UsageError
from nearpeak.formats import code
from nearpeak.hardware import node_of
from nearpeak.plan import base_setup
from nearpeak.setup import Pool
from nearpeak.workload import parameters, read

DENSE = base_setup(read("meta-llama/Meta-Llama-3.1-8B"), node_of("h100"), "vllm", 1000, 200)
SPARSE = base_setup(read("Qwen/Qwen3-235B-A22B"), node_of("h200"), "vllm", 1000, 200)


def test_decoding_one_request_takes_at_least_one_reading_of_the_weights():
    step = decode(platform_of(DENSE), DENSE, DENSE.decode, np.asarray(1.0), np.asarray(1000.0))
    count = parameters(DENSE.model)
    reading = 2 * (count.total - count.embedding) / DENSE.node.device.memory_bandwidth
    assert reading < float(step.total) < 2 * reading


def test_prefill_takes_at_least_its_arithmetic():
    isl = 4096.0
    step = prefill(platform_of(DENSE), DENSE, DENSE.decode, np.asarray(1.0), np.asarray(isl))
    flops = 2 * (parameters(DENSE.model).active - DENSE.model.vocab * DENSE.model.hidden) * isl
    assert float(step.total) > flops / DENSE.node.device.rates["bf16"]


def test_a_step_of_arrays_is_the_steps_of_their_elements():
    platform = platform_of(SPARSE)
    pool = Pool(tp=np.array([4, 8, 2]), dp=np.array([1, 1, 4]), moe_tp=np.array([4, 1, 1]), moe_ep=np.array([1, 8, 8]))
    batch, context = np.array([1.0, 16.0, 128.0]), np.array([500.0, 1000.0, 8000.0])
    together = decode(platform, SPARSE, pool, batch, context).total
    alone = [
        float(decode(platform, SPARSE, Pool(**{n: int(a[i]) if a.ndim else int(a) for n, a in pool.arrays().items()}),
                     batch[i], context[i]).total)
        for i in range(3)
    ]  # fmt: skip
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize("setup", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_more_requests_and_longer_contexts_never_take_less(setup):
    platform, pool = platform_of(setup), replace(setup.decode, tp=4, moe_tp=4)
    batch = np.array([[1.0], [8.0], [64.0], [512.0]])
    context = np.array([128.0, 1024.0, 8192.0, 32768.0])
    total = decode(platform, setup, pool, batch, context).total
    assert (np.diff(total, axis=0) > 0).all()
    assert (np.diff(total, axis=1) >= 0).all()


def test_one_device_says_nothing():
    step = decode(platform_of(DENSE), DENSE, DENSE.decode, np.asarray(8.0), np.asarray(1000.0))
    assert float(step.communication) == 0


def test_weights_on_one_device_are_the_checkpoint():
    count = parameters(DENSE.model)
    assert weight_bytes(DENSE, DENSE.decode) == pytest.approx(2 * count.total, rel=1e-3)
    four = replace(DENSE, attention=code("int4_wo"), ffn=code("int4_wo"))
    linears = count.attention + count.ffn
    expected = linears * 4.125 / 8 + 2 * (count.total - linears)
    assert weight_bytes(four, four.decode) == pytest.approx(expected, rel=1e-3)


def test_experts_spread_over_devices_and_the_rest_is_cut_by_tp():
    count = parameters(SPARSE.model)
    whole = weight_bytes(SPARSE, Pool())
    spread = weight_bytes(SPARSE, Pool(tp=8, moe_ep=8))
    assert whole == pytest.approx(2 * count.total, rel=1e-3)
    assert spread > 2 * count.experts / 8
    assert spread < whole / 7


def test_the_cache_of_a_token_follows_the_published_shape():
    # Llama 3.1 8B: 32 layers of 8 heads of 128 for keys and as many for values, in 16 bits.
    assert kv_bytes(DENSE, Pool(), np.asarray(1.0)) == 32 * 2 * 8 * 128 * 2
    # Beyond 8 devices the heads are repeated, not cut.
    assert kv_bytes(DENSE, Pool(tp=16), np.asarray(1.0)) == 32 * 2 * 1 * 128 * 2
    # DeepSeek-V3: one latent vector of 512 + 64 per layer, on every device.
    v3 = base_setup(read("deepseek-ai/DeepSeek-V3"), node_of("h200"), "vllm", 1000, 200)
    assert kv_bytes(replace(v3, kv=code("bf16")), Pool(tp=8), np.asarray(1.0)) == 61 * 576 * 2


def test_the_largest_batch_fits_and_one_more_does_not():
    most = int(largest_batch(DENSE, DENSE.decode))
    fits = ledger(DENSE, replace(DENSE.decode, batch=np.array([most - 1, most + 1]))).fits
    assert fits.tolist() == [True, False]


def test_a_captured_graph_does_not_wait_for_a_slow_host():
    # Measured kernel by kernel, vLLM's block-scaled fp8 product waits 80 microseconds for the host on an H100.
    platform = platform_named("h100_sxm", "vllm")
    size = np.asarray(1.0), np.asarray(4096.0), np.asarray(2048.0), np.asarray(code("fp8_block"))
    eager, captured = gemm(platform, *size), gemm(platform.in_graph(), *size)
    assert eager > 50e-6
    assert captured < 20e-6
    # A product that is not bound by the host is the same in both.
    plain = (*size[:3], np.asarray(code("bf16")))
    assert gemm(platform, *plain) == gemm(platform.in_graph(), *plain)


def one_step(setup, prompts, chunk, prefix=0.0, batch=0.0, context=1000.0):
    sizes = (np.asarray(float(x)) for x in (prompts, chunk, prefix, batch, context))
    return mixed(platform_of(setup), setup, setup.decode, *sizes)


@pytest.mark.parametrize("setup", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_decoding_beside_a_prompt_costs_less_than_apart(setup):
    setup = replace(setup, decode=replace(setup.decode, tp=4, moe_tp=4))
    alone = prefill(platform_of(setup), setup, setup.decode, np.asarray(1.0), np.asarray(512.0))
    apart = decode(platform_of(setup), setup, setup.decode, np.asarray(16.0), np.asarray(1000.0))
    together = one_step(setup, 1, 512, batch=16)
    assert float(one_step(setup, 1, 512).total) == pytest.approx(float(alone.total))
    assert float(together.total) > float(alone.total)
    # The weights are read once, so the step costs less by a good part of a decode step.
    assert float(together.total) < float(alone.total + 0.6 * apart.total)
    assert float(together.attention) == pytest.approx(float(alone.attention + apart.attention))


@pytest.mark.parametrize("name", ["meta-llama/Meta-Llama-3.1-8B", "deepseek-ai/DeepSeek-V3", "Qwen/Qwen3.5-397B-A17B"])
def test_the_attention_of_chunks_is_that_of_their_prompt(name):
    setup = base_setup(read(name), node_of("h200"), "vllm", 1000, 200)
    setup = replace(setup, decode=replace(setup.decode, tp=8, moe_tp=8))
    whole = float(one_step(setup, 1, 16384).attention)
    chunks = sum(float(one_step(setup, 1, 4096, prefix).attention) for prefix in (0, 4096, 8192, 12288))
    assert chunks == pytest.approx(whole, rel=0.1)
    # As serving prices them: four times the chunk in the middle.
    assert 4 * float(one_step(setup, 1, 4096, 6144).attention) == pytest.approx(whole, rel=0.1)


def test_short_prompts_share_a_step():
    one, eight = (float(one_step(DENSE, prompts, 128).total) for prompts in (1, 8))
    assert eight < 4 * one
    one, eight = (float(one_step(DENSE, prompts, 4096).total) for prompts in (1, 8))
    assert eight == pytest.approx(8 * one, rel=0.1)


V3 = base_setup(read("deepseek-ai/DeepSeek-V3"), node_of("h200"), "vllm", 1000, 200)
V3 = replace(V3, decode=Pool(tp=8, moe_ep=8, batch=8))


def test_emitted_tokens_are_those_up_to_the_first_rejected():
    draws = np.random.default_rng(0).random((200_000, 3)) < 0.7
    simulated = 1 + np.cumprod(draws, axis=1).sum(axis=1).mean()
    setup = replace(V3, draft=np.array([0, 1, 3, 3, 3]), acceptance=np.array([0.7, 0.7, 0.7, 0.0, 1.0]))
    np.testing.assert_allclose(setup.emitted, [1, 1.7, simulated, 1, 4], rtol=5e-3)


def test_drafts_are_checked_in_one_pass_and_cost_a_layer_each():
    draft = np.array([0, 1, 2])
    setup = replace(V3, draft=draft)
    platform = platform_of(setup)
    steps = decode(platform, setup, setup.decode, np.asarray(8.0), np.asarray(1000.0))
    more = decode(platform, V3, V3.decode, 8.0 * (1 + draft), np.asarray(1000.0))
    # Each drafted token takes a pass through one layer of 61 and the head, beside the rows it adds to the other layers.
    drafting = (steps.experts - more.experts)[1:] / draft[1:]
    np.testing.assert_allclose(drafting[0], drafting[1])
    assert float(drafting[0]) == pytest.approx(float(more.experts[0]) / 58, rel=1e-6)
    assert steps.total[0] == more.total[0]


def test_the_cache_is_read_once_for_all_drafted_tokens():
    model = base_setup(read("Qwen/Qwen3.5-397B-A17B"), node_of("h200"), "vllm", 16000, 200)
    setup = replace(model, draft=2, decode=Pool(tp=8, moe_ep=8))
    drafted = decode(platform_of(setup), setup, setup.decode, np.asarray(8.0), np.asarray(16000.0))
    requests = decode(platform_of(model), model, setup.decode, np.asarray(24.0), np.asarray(16000.0))
    assert drafted.attention < 0.7 * requests.attention


def test_speculation_pays_by_what_is_accepted():
    setup = replace(V3, draft=2, acceptance=np.array([0.0, 0.6, 0.9]))
    without, found = predict(platform_of(V3), V3), predict(platform_of(setup), setup)
    # With one request there are no others' prompts: tpot is a step over the tokens it emits.
    alone = predict(platform_of(setup), replace(setup, decode=replace(V3.decode, batch=1)))
    np.testing.assert_allclose(alone.tpot, alone.times.token / setup.emitted)
    assert found.tpot[0] > without.tpot > found.tpot[1] > found.tpot[2]


def test_only_models_with_a_draft_layer_draft():
    with pytest.raises(UsageError, match="no multi-token-prediction layer"):
        predict(platform_of(DENSE), replace(DENSE, draft=1, acceptance=0.5))


def test_depth_counts_layers_by_the_kernels_that_they_launch():
    assert depth(DENSE.model) == 32
    assert depth(V3.model) > 1.5 * V3.model.layers


def test_a_step_s_interval_is_wider_where_less_is_known():
    widths = []
    for gpu in ("h100", "h200", "mi300x"):
        setup = replace(DENSE, node=node_of(gpu))
        platform = platform_of(setup)
        step = decode(platform, setup, setup.decode, np.array([1.0, 64.0]), np.asarray(1000.0))
        low, high = step_interval(platform, setup, step, decoding=True)
        assert low.shape == (2,)
        assert (low < 1).all()
        assert (high > 1).all()
        widths.append(float(np.log(high / low).mean()))
    assert widths[0] < widths[1] <= widths[2]
