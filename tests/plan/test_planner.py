"""The planner against brute force over the same space, and what it says when a goal cannot be met."""

from dataclasses import replace

import numpy as np
import pytest

from nearpeak.cost import costs, platform_of, predict
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.hardware import lite_node, node_of
from nearpeak.plan import Fleet, Goal, base_setup, explain, explained, layouts, plan, record, variants
from nearpeak.plan.planner import _blocks, _undominated
from nearpeak.plan.space import batches, picked, replicated, whole_blocks
from nearpeak.workload import read

MODEL = read("Qwen/Qwen3-32B")
MIXTURE = read("Qwen/Qwen3-235B-A22B")
FOUR = [Fleet(node_of("h200"), 1, 4)]


@pytest.fixture(scope="module")
def plans():
    return plan(MODEL, FOUR, Goal("cost", ttft=1.0, tpot=0.02), 2000, 200)


def test_every_plan_keeps_the_goal_when_priced_alone(plans):
    for candidate in plans.candidates[:40]:
        figures = explained(candidate).figures
        assert figures["ttft"].value <= 1.0
        assert figures["tpot"].value <= 0.02
        assert figures["dollars_per_million_tokens"].value == pytest.approx(candidate.score * 1e6, rel=1e-9)
        assert int(candidate.setup.devices) <= 4


def test_plans_are_ranked_and_of_both_structures(plans):
    scores = [c.score for c in plans.candidates]
    assert scores == sorted(scores)
    assert {c.setup.prefill is None for c in plans.candidates} == {True, False}


def test_the_best_aggregated_plan_is_that_of_a_loop_over_every_setup():
    goal = Goal("cost", ttft=1.0, tpot=0.02)
    only = ["fp8-weights"]
    found = plan(MODEL, FOUR, goal, 2000, 200, techniques=only)
    best = np.inf
    for variant in variants(base_setup(MODEL, FOUR[0].node, "vllm", 2000, 200), only):
        pool = replicated(layouts(MODEL, FOUR[0].node, "vllm", 4), 4)
        for row in range(len(pool.devices)):
            one = replace(pool, **{n: a[row] if a.ndim else a for n, a in pool.arrays().items()})
            for batch in batches(600):
                setup = replace(variant.setup, decode=replace(one, batch=int(batch)))
                predicted = predict(platform_of(setup), setup)
                if predicted.fits and predicted.ttft <= 1.0 and predicted.tpot <= 0.02:
                    best = min(best, float(costs(setup, predicted).dollars))
        assert np.isfinite(best)
    assert found.candidates[0].score == pytest.approx(best, rel=1e-12)


def test_the_count_of_priced_setups_is_that_of_distinct_ones():
    fleet = Fleet(node_of("h200"), 2, 3)
    found = plan(MODEL, [fleet], Goal(), 2000, 200)
    base = base_setup(MODEL, fleet.node, "vllm", 2000, 200)
    rows = []
    for _, block in _blocks(base, fleet, Goal(), None):
        fields = [*block.arrays().values(), *(a for pool in block.pools for a in pool.arrays().values())]
        split = np.asarray(block.prefill is not None)
        table = np.stack([np.broadcast_to(a, block.shape).ravel() for a in (*fields, *[split] * (24 - len(fields)))], 1)
        devices = np.broadcast_to(block.devices, block.shape).ravel()
        rows.append(table[(devices >= 2) & (devices <= 3)].astype(float))
    every = np.concatenate(rows)
    assert found.priced == len(every) == len(np.unique(every, axis=0))


def test_the_front_is_not_dominated(plans):
    speed = np.array([p.per_user for p in plans.front])
    made = np.array([p.per_device for p in plans.front])
    assert (np.diff(speed) > 0).all()
    assert (np.diff(made) < 0).all()
    assert any(p.meets for p in plans.front)


def test_undominated_points_are_those_of_the_definition():
    points = np.random.default_rng(0).random((300, 2)).round(2)
    kept = {tuple(points[i]) for i in _undominated(*points.T)}
    beaten = [((points >= p).all(1) & (points > p).any(1)).any() for p in points]
    assert kept == {tuple(p) for p, b in zip(points, beaten, strict=True) if not b}


def test_an_unreachable_goal_gets_the_nearest_miss_and_the_limit_that_binds():
    found = plan(MODEL, FOUR, Goal("cost", ttft=1.0, tpot=1e-5), 2000, 200)
    assert not found.candidates
    assert found.miss.binding == "tpot"
    priced = explained(found.miss.candidate)
    assert priced.figures["tpot"].value / 1e-5 == pytest.approx(found.miss.excess["tpot"])


def test_every_objective_is_no_worse_at_its_own_figure_than_the_other_plans():
    figures = {
        "cost": ("dollars_per_million_tokens", 1), "energy": ("joules_per_token", 1), "latency": ("latency", 1),
        "carbon": ("kg_co2e_per_million_tokens", 1), "throughput": ("tokens_per_second_per_device", -1),
    }  # fmt: skip
    best = {o: explained(plan(MODEL, FOUR, Goal(o), 1000, 100).candidates[0]) for o in figures}
    for objective, (figure, sign) in figures.items():
        mine = sign * best[objective].figures[figure].value
        others = {o: sign * b.figures[figure].value for o, b in best.items()}
        assert mine <= min(others.values()) + abs(mine) * 1e-9, others


def test_a_quality_floor_shuts_techniques_out():
    strict = plan(MODEL, FOUR, Goal(accuracy=1.0), 1000, 100)
    assert all(t.quality.low == 1 for c in strict.candidates for t in c.variant.techniques)
    loose = plan(MODEL, FOUR, Goal(accuracy=0.9), 1000, 100)
    assert loose.candidates[0].score < strict.candidates[0].score


def test_limits_hold():
    rate = plan(MODEL, [Fleet(node_of("h200"), 1, 8)], Goal(rate=10.0), 1000, 100).candidates[0]
    assert explained(rate).figures["request_rate"].value >= 10.0
    cheap = plan(MODEL, [Fleet(node_of("h200"), 1, 8)], Goal("latency", budget=8.0), 1000, 100).candidates[0]
    assert int(cheap.setup.devices) * FOUR[0].node.device.price_per_hour <= 8.0
    small = plan(MODEL, FOUR, Goal(memory=60e9), 1000, 100).candidates[0]
    assert all(sum(v for k, v in m.items() if k != "capacity") <= 60e9 for m in explained(small).memory.values())


def test_mixtures_of_experts_are_spread_as_the_engine_can():
    pool = layouts(MIXTURE, node_of("h200"), "vllm", 8)
    group = pool.tp * pool.dp
    assert ((pool.moe_ep == 1) | (pool.moe_ep == group)).all()
    assert (pool.moe_tp * pool.moe_ep == group).all()
    assert (pool.dp > 1).any()
    rows = np.array([pool.tp, pool.pp, pool.dp, pool.moe_tp, pool.moe_ep]).T
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize(("isl", "osl", "word"), [(0, 10, "isl"), (10, -1, "osl"), (40000, 2000, "40960")])
def test_lengths_that_make_no_sense_are_named(isl, osl, word):
    with pytest.raises(UsageError, match=word):
        plan(MODEL, FOUR, Goal(), isl, osl)


def test_a_model_too_large_for_every_layout_says_what_would_help():
    with pytest.raises(NearpeakError, match="more devices"):
        plan(read("deepseek-ai/DeepSeek-V3"), [Fleet(node_of("h200"), 1, 1)], Goal(), 1000, 100)


@pytest.mark.parametrize("limits", [{"ttft": 0.0}, {"tpot": -1.0}, {"rate": float("nan")}, {"accuracy": 1.5}])
def test_limits_that_are_none_are_refused(limits):
    with pytest.raises(UsageError, match=next(iter(limits))):
        Goal(**limits)


def test_an_unknown_objective_names_the_known():
    with pytest.raises(UsageError, match="throughput"):
        Goal("speed")


def test_levers_name_the_resource_that_a_plan_waits_for():
    setup = base_setup(read("Qwen/Qwen3-8B"), node_of("h200"), "vllm", 100, 100)
    alone = explain(setup)
    assert alone.bottleneck == "matrices"
    assert alone.levers[0].name == "twice the memory bandwidth"
    assert alone.levers[0].tpot < 0.8
    assert all(lever.tpot <= 1.001 for lever in alone.levers)


def test_a_plan_is_plain_json(plans):
    import json

    text = json.dumps(record(explained(plans.candidates[0])), allow_nan=False)
    assert json.loads(text)["figures"]["ttft"]["evidence"] in ("measured", "transferred", "datasheet")


def test_a_setup_too_large_for_its_devices_is_told_before_it_starts():
    large = explain(base_setup(MODEL, node_of("l4"), "vllm", 1000, 100))
    assert not large.starts
    assert "needs" in large.verdict
    assert explain(base_setup(MODEL, node_of("h200"), "vllm", 1000, 100)).starts


def test_lite_gpus_of_equal_arithmetic_pay_for_their_links():
    whole, parts = node_of("h100"), lite_node(node_of("h100"), 4)
    rate = whole.count * whole.device.rates["bf16"]
    assert parts.count * parts.device.rates["bf16"] == pytest.approx(rate)
    small = read("meta-llama/Meta-Llama-3.1-8B")
    one = explain(base_setup(small, whole, "vllm", 1000, 100))
    four = base_setup(small, parts, "vllm", 1000, 100)
    four = explain(replace(four, decode=replace(four.decode, tp=4)))
    assert one.decode["communication"] == 0
    assert four.decode["communication"] > 0
    found = plan(small, [Fleet(whole, 8, 8), Fleet(parts, 32, 32)], Goal(tpot=0.02), 1000, 100)
    assert {c.setup.node.device.name for c in found.candidates} == {whole.device.name, parts.device.name}


def test_devices_that_cannot_be_considered_are_named():
    goal = Goal("cost", budget=100.0)
    unpriced = replace(node_of("h100"), device=replace(node_of("h100").device, prices=()))
    found = plan(MODEL, [Fleet(unpriced, 1, 2), *FOUR], goal, 1000, 100)
    assert found.candidates
    assert "--price" in found.left_out["h100_sxm"]
    with pytest.raises(NearpeakError, match="h100_sxm"):
        plan(MODEL, [Fleet(unpriced, 1, 2)], goal, 1000, 100)
    found = plan(MODEL, [Fleet(node_of("u280"), 1, 1), *FOUR], Goal(), 1000, 100)
    assert "u280" in next(iter(found.left_out))


def test_a_device_is_named_once():
    with pytest.raises(UsageError, match="h200_sxm is named twice"):
        plan(MODEL, FOUR * 2, Goal(), 1000, 100)


def test_techniques_are_chosen_from_those_that_exist():
    with pytest.raises(UsageError, match="magic"):
        plan(MODEL, FOUR, Goal(), 1000, 100, techniques=["magic"])
    once = plan(MODEL, FOUR, Goal(), 1000, 100, techniques=iter(["fp8-weights"]))
    assert {t.name for c in once.candidates for t in c.variant.techniques} == {"fp8-weights"}


def test_no_cut_parts_values_that_share_a_scale():
    # Experts of 1536 columns in blocks of 128: cut in 8 they would be 192 wide.
    model = read("Qwen/Qwen3-235B-A22B-FP8")
    found = plan(model, [Fleet(node_of("h200"), 8, 8)], Goal("latency"), 1000, 100)
    assert found.candidates
    assert all(1536 // int(p.moe_tp) % 128 == 0 for c in found.candidates for p in c.setup.pools)
    setup = base_setup(model, node_of("h200"), "vllm", 1000, 100)
    pool = replace(setup.decode, tp=8, moe_tp=np.array([8, 4, 1]), moe_ep=np.array([1, 2, 8]))
    assert whole_blocks(replace(setup, decode=pool)).tolist() == [False, True, True]


def test_disaggregated_mixtures_are_the_best_of_a_loop_over_every_setup():
    goal, fleet = Goal("cost", ttft=0.5, tpot=0.02), Fleet(node_of("h200"), 1, 3)
    model = read("Qwen/Qwen3-30B-A3B")
    found = plan(model, [fleet], goal, 1000, 100, techniques=["disaggregation"])
    best = np.inf
    *_, split = variants(base_setup(model, fleet.node, "vllm", 1000, 100), ["disaggregation"])
    rows = replicated(layouts(model, fleet.node, "vllm", 3), 3)
    pools = [picked(rows, np.array(i)) for i in range(len(rows.devices))]
    for first in pools:
        for second in pools:
            if int(first.devices + second.devices) > 3:
                continue
            setup = replace(split.setup, prefill=first, decode=replace(second, batch=batches(4096)))
            predicted = predict(platform_of(setup), setup)
            good = predicted.fits & (predicted.ttft <= 0.5) & (predicted.tpot <= 0.02)
            if good.any():
                best = min(best, float(costs(setup, predicted).dollars[good].min()))
    assert found.candidates[0].setup.mode == "disagg" or found.candidates[0].score <= best
    assert min(c.score for c in found.candidates if c.setup.mode == "disagg") == pytest.approx(best, rel=1e-12)


def test_a_search_of_hours_is_refused_before_it_begins():
    with pytest.raises(UsageError, match="fewer devices"):
        plan(MODEL, [Fleet(node_of("h200"), 1, 1_000_000)], Goal(), 1000, 100)


def test_answers_of_one_token_are_planned_as_prefill_alone():
    found = plan(MODEL, FOUR, Goal(), 2000, 1)
    best = found.candidates[0].setup
    assert best.mode == "agg"
    predicted = predict(platform_of(best), best)
    assert float(predicted.request_rate) <= int(best.decode.replicas) / float(predicted.times.occupied) * (1 + 1e-9)
