from dataclasses import replace

import pytest

from nearpeak.plan import explain
from nearpeak.report import roofline
from nearpeak.setup import Pool
from nearpeak.workload import parameters
from plans_by_hand import DENSE, GPU, MIXTURE, explained, setup


def points(plan):
    return {(p.phase, p.part): p for p in roofline(plan).points}


def test_decoding_products_do_two_flops_a_parameter_and_token():
    plan = explained(setup(decode=Pool(tp=2, batch=32)))
    found = points(plan)["decode", "matrices"]
    count = parameters(DENSE)
    met = count.attention + count.ffn + count.head
    assert found.flops == pytest.approx(2 * 32 * met / 2)
    # 16-bit weights read once; activations add a little.
    assert 1 <= found.bytes / (2 * met / 2) < 1.05
    assert found.seconds == plan.decode["matrices"]
    assert found.achieved == pytest.approx(found.flops / plan.decode["matrices"])


def test_decoding_attention_reads_the_cache_and_works_once_a_query_head_on_it():
    # 32 query heads share 8 heads of keys and values: 4 queries, 2 FLOPs, for each 2-byte element.
    found = points(explained())["decode", "attention"]
    assert found.intensity == pytest.approx(4, rel=0.01)
    assert points(explained(setup(kv="fp8")))["decode", "attention"].intensity == pytest.approx(8, rel=0.01)


def test_pipeline_stages_decode_a_share_of_the_batch_each():
    whole = points(explained(setup(decode=Pool(tp=2, batch=32))))["decode", "matrices"]
    staged = points(explained(setup(decode=Pool(tp=2, pp=4, batch=32))))["decode", "matrices"]
    assert staged.flops == pytest.approx(whole.flops / 4)


def test_a_full_batch_reads_every_expert_and_spreading_shares_them():
    plan = explained(setup(MIXTURE, Pool(tp=1, dp=4, moe_ep=4, batch=512)))
    plan = replace(plan, decode=plan.decode | {"experts": 0.002})
    found = points(plan)["decode", "experts"]
    count = parameters(MIXTURE)
    assert found.bytes == pytest.approx(2 * count.experts / 4, rel=0.2)
    assert found.flops == pytest.approx(2 * 512 * 4 * count.experts * (8 / 128) / 4)


def test_parts_without_time_or_work_are_not_shown():
    assert {part for _, part in points(explained())} == {"matrices", "attention"}


def test_roofs_are_those_of_the_formats_in_use():
    assert roofline(explained()).peaks == {"bf16": 1e15}
    assert roofline(explained(setup(ffn="fp8"))).peaks == {"bf16": 1e15, "fp8": 2e15}
    assert roofline(explained()).bandwidth == GPU.memory_bandwidth


@pytest.mark.parametrize("model", ["Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3"])
@pytest.mark.parametrize("batch", [1, 16, 128])
def test_predicted_steps_lie_under_the_roof(model, batch):
    from nearpeak.hardware import node_of
    from nearpeak.plan import base_setup
    from nearpeak.workload import read

    base = base_setup(read(model), node_of("h100_sxm"), "vllm", 2000, 500)
    sparse = model != "Qwen/Qwen3-8B"
    found = roofline(explain(replace(base, decode=Pool(tp=8, moe_ep=8 if sparse else 1, batch=batch))))
    assert len(found.points) == (6 if sparse else 4)
    for point in found.points:
        roof = min(point.intensity * found.bandwidth, max(found.peaks.values()))
        assert point.achieved < 1.1 * roof, point
