"""Serving figures in closed form: conservation, limits, and closed loops."""

from dataclasses import replace

import numpy as np
import pytest

from nearpeak.cost import closed_loop, costs, platform_of, predict, predict_serving_table
from nearpeak.cost.engine import engine, engine_on, engines
from nearpeak.cost.runs import WORKERS, setup_of, slots
from nearpeak.errors import UnknownName, UsageError
from nearpeak.formats import code
from nearpeak.hardware import node_of
from nearpeak.plan import base_setup
from nearpeak.setup import Pool
from nearpeak.workload import read

BASE = base_setup(read("Qwen/Qwen3-32B"), node_of("h200"), "vllm", 4000, 500)
SHARED = replace(BASE, decode=Pool(tp=4, batch=np.array([1, 2, 8, 32, 64])))
SPLIT = replace(BASE, decode=Pool(tp=4, batch=np.array([1, 4, 16, 64])), prefill=Pool(tp=4))


def test_waves_move_waiting_before_the_first_token_and_change_no_latency():
    host = engine("vllm")
    early = predict(platform_of(SHARED), SHARED, replace(host, waves=0.9), closed=True)
    late = predict(platform_of(SHARED), SHARED, replace(host, waves=0.1), closed=True)
    assert (early.ttft[1:] > late.ttft[1:]).all()
    assert (early.tpot[1:] < late.tpot[1:]).all()
    np.testing.assert_allclose(early.latency, late.latency, rtol=1e-12)


def test_a_larger_batch_serves_more_and_makes_each_wait_longer():
    found = predict(platform_of(SHARED), SHARED)
    assert (np.diff(found.request_rate) > 0).all()
    assert (np.diff(found.tpot) > 0).all()
    assert (found.load < 1).all()


def test_a_prefill_pool_that_cannot_feed_its_decoders_is_no_steady_state():
    flooded = replace(SPLIT, decode=Pool(tp=4, batch=512), osl=20)
    found = predict(platform_of(flooded), flooded)
    assert float(found.load) > 1
    assert not found.fits


def test_a_closed_loop_saturates_at_what_its_pools_serve():
    concurrency = np.array([2.0, 16.0, 128.0, 1024.0])
    for setup in (replace(SHARED, decode=Pool(tp=4)), replace(SPLIT, decode=Pool(tp=4))):
        found = closed_loop(setup, concurrency)
        assert (np.diff(found.request_rate) > -5e-4 * found.request_rate[:-1]).all()  # as fine as batches are halved
        assert (found.request_rate <= 1 / found.times.occupied).all()
        assert (np.diff(found.ttft) > 0).all()
        assert found.request_rate[0] < 0.5 * found.request_rate[-1]


def test_costs_follow_from_rate_price_and_power():
    found = predict(platform_of(SHARED), SHARED)
    bill = costs(SHARED, found)
    tokens = found.request_rate * 500
    price = SHARED.node.device.price_per_hour
    np.testing.assert_allclose(bill.dollars, 4 * price / 3600 / tokens)
    np.testing.assert_allclose(bill.energy, bill.power / tokens)
    assert (bill.power < 4 * (SHARED.node.device.tdp + SHARED.node.overhead_power / SHARED.node.count) + 1).all()


def table(**columns):
    row = {"backend": "vllm", "model": "Qwen/Qwen3-8B", "gpu": "h100_sxm", "mode": "agg", "isl": 1024, "osl": 256,
           "tp_size": 1.0, "concurrency": 8}  # fmt: skip
    row |= columns
    size = max(len(v) if isinstance(v, list) else 1 for v in row.values())
    return {k: np.array(v if isinstance(v, list) else [v] * size, dtype=object) for k, v in row.items()}


def test_rows_keep_their_order_and_what_was_measured_is_not_read():
    asked = table(model=["Qwen/Qwen3-8B", "no/such-model", "Qwen/Qwen3-32B"], ttft=9.9, tpot=9.9)
    found = predict_serving_table(asked)
    assert found["model"].tolist() == asked["model"].tolist()
    assert [bool(e) for e in found["error"]] == [False, True, False]
    assert "no/such-model" in found["error"][1]
    assert np.isnan(found["tpot"][1])
    assert (found["tpot"][[0, 2]] < 1).all()
    without = predict_serving_table({k: v for k, v in asked.items() if k not in ("ttft", "tpot")})
    np.testing.assert_array_equal(found["tpot"], without["tpot"])


def test_intervals_hold_the_prediction():
    found = predict_serving_table(table(concurrency=[1, 8, 64]))
    for figure in ("ttft", "tpot"):
        assert (found[f"{figure}_low"] < found[figure]).all()
        assert (found[figure] < found[f"{figure}_high"]).all()


@pytest.mark.parametrize("value", [0, -3, None, float("nan")])
def test_a_row_without_sensible_lengths_says_so(value):
    found = predict_serving_table(table(isl=[value, 1024]))
    assert "positive" in found["error"][0]
    assert not found["error"][1]


@pytest.mark.filterwarnings("error")
def test_a_wrong_cell_fails_its_row_alone():
    rows = 9
    isl: list[object] = [1024] * rows
    isl[4], isl[7] = "many", "512"
    found = predict_serving_table(table(isl=isl, tp_size=[1.0] * 8 + ["two"]))
    assert np.flatnonzero(found["error"] != "").tolist() == [4, 8]
    assert "isl is many" in found["error"][4]
    assert "tp_size is two" in found["error"][8]
    assert found["ttft"][7] == predict_serving_table(table(isl=512))["ttft"][0]


def test_a_table_without_its_columns_is_refused_by_name():
    asked = table()
    del asked["gpu"], asked["isl"]
    with pytest.raises(UsageError, match="gpu, isl"):
        predict_serving_table(asked)


def test_an_unknown_engine_is_named():
    with pytest.raises(UnknownName, match="vlm"):
        predict(platform_of(SHARED), replace(SHARED, engine="vlm"))


def test_devices_that_a_harness_counts_twice_are_counted_once():
    sizes = {"tp_size": [64.0, 8.0, 4.0], "moe_tp_size": [8.0, 1.0, 2.0], "moe_ep_size": [8.0, 8.0, 2.0]}
    asked = table(model="deepseek-ai/DeepSeek-V3", gpu="b200_sxm", **sizes)
    setup = setup_of(asked, np.arange(3), read("deepseek-ai/DeepSeek-V3"), node_of("b200"), "vllm")
    assert setup.decode.tp.tolist() == [8, 8, 4]
    assert setup.decode.moe_tp.tolist() == [1, 1, 2]
    assert setup.decode.moe_ep.tolist() == [8, 8, 2]


@pytest.mark.parametrize(
    ("column", "value"), [("mode", "foo"), ("tp_size", 0.0), ("pp_size", 500.0), ("tp_size", -4.0)]
)
def test_a_row_that_makes_no_sense_says_which_value(column, value):
    found = predict_serving_table(table(**{column: [value, {"mode": "agg"}.get(column, 1.0)]}))
    assert f"{value:g}" in found["error"][0] if column != "mode" else "foo" in found["error"][0]
    assert not found["error"][1]


def test_a_version_has_its_own_constants_and_an_unknown_one_the_engine_s():
    known = next(iter(engines()["vllm"].versions))
    own = engine(f"vllm@{known}")
    assert {n: getattr(own, n) for n in engines()["vllm"].versions[known]} == engines()["vllm"].versions[known]
    assert engine("vllm@0.0.0") == engine("vllm")
    found = predict_serving_table(table(backend_version=[known, "0.0.0", None]))
    assert found["tpot"][0] != found["tpot"][1]
    assert found["tpot"][1] == found["tpot"][2]


def test_a_slower_host_makes_steps_longer_up_to_a_bound():
    def on(points):
        return engine_on("vllm@0.12.0", replace(BASE.node, host=replace(BASE.node.host, single_thread=points)))

    same, half, slowest = on(2900.0), on(1450.0), on(100.0)
    assert same == engine("vllm@0.12.0")
    assert half.step == pytest.approx(2 * same.step)
    assert half.layer == pytest.approx(2 * same.layer)
    assert slowest == half
    assert half.graph == same.graph
    assert engine_on("vllm", replace(BASE.node, host=None)) == engine("vllm")


def test_requests_beyond_memory_wait_and_change_nothing_else():
    room = float(slots(replace(BASE, decode=Pool(tp=4)), engine("vllm")))
    found = closed_loop(replace(BASE, decode=Pool(tp=4)), room * np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(found.tpot, found.tpot[0])
    np.testing.assert_allclose(found.request_rate, found.request_rate[0])
    waits = np.diff(found.ttft)
    assert waits[0] == pytest.approx(waits[1])
    # Little's law, but for the first wave, whose requests do not wait for a whole round.
    service = room / float(found.request_rate[0])
    assert waits[0] == pytest.approx((1 - engine("vllm").waves) * service)


def test_short_prompts_cost_each_other_less_than_a_step_of_their_own():
    short = replace(BASE, isl=128, osl=16, decode=Pool(tp=4, batch=np.array([1, 64])))
    times = predict(platform_of(short), short).times
    assert times.occupied[1] < 0.5 * times.prompt[1]


def test_prompts_longer_than_a_chunk_take_several_steps():
    whole, parts = (replace(BASE, isl=16000, chunk=chunk, decode=Pool(tp=4, batch=8)) for chunk in (16384, 2048))
    one, eight = (predict(platform_of(s), s) for s in (whole, parts))
    assert one.ttft < eight.ttft < 1.5 * one.ttft


def test_a_closed_loop_begins_with_a_wave():
    alone, crowd = closed_loop(replace(BASE, decode=Pool(tp=4)), np.array([1.0, 32.0])).ttft
    prompt = predict(platform_of(SHARED), SHARED).times.occupied[3]
    assert crowd - alone > engine("vllm").waves * 31 * prompt


SPLIT_ROW = {
    "model": "deepseek-ai/DeepSeek-V3", "gpu": "b200_sxm", "backend": "trtllm", "mode": "disagg", "isl": 8192,
    "osl": 1024, "prefill_tp_size": 8.0, "decode_tp_size": 8.0, "prefill_moe_ep_size": 8.0, "decode_moe_ep_size": 8.0,
}  # fmt: skip


def test_unsaid_workers_are_as_many_as_keep_up():
    found = predict_serving_table(table(**SPLIT_ROW, concurrency=[16, 1024]))
    counts = {"prefill_num_workers": np.arange(1.0, 41).tolist(), "decode_num_workers": WORKERS}
    said = predict_serving_table(table(**SPLIT_ROW, **counts, concurrency=1024))
    few = predict_serving_table(table(**SPLIT_ROW, **counts, concurrency=16))
    assert (found["error"] == "").all()
    # One instance serves the prompts of 16 requests; those of 1,024 take several, and no fewer than keep up.
    assert found["tpot"][0] == pytest.approx(few["tpot"][0])
    assert 0.9 * said["tpot"].max() < found["tpot"][1] <= said["tpot"].max()
    assert said["tpot"][0] < 0.9 * said["tpot"].max()


def test_the_cache_goes_with_the_precision_where_a_table_does_not_say_it():
    asked = table(precision=["fp8", "bf16", "fp8", "fp8"], kvcache_quant_mode=[None, None, None, "bf16"])
    model = read("Qwen/Qwen3-8B")

    def formats(gpu, backend):
        return setup_of(asked, np.arange(4), model, node_of(gpu), backend).kv.tolist()

    narrow, wide = code("fp8"), code("bf16")
    assert formats("b200_sxm", "vllm@0.15.1") == [narrow, wide, narrow, wide]
    assert formats("h100_sxm", "trtllm") == [narrow, wide, narrow, wide]
    assert formats("h100_sxm", "vllm") == [wide] * 4


def test_a_batch_of_each_and_requests_in_all_tell_the_number_of_instances():
    rows = table(batch_size=8, concurrency=[8, 64], attention_dp_size=[None, None])
    setup = setup_of(rows, np.arange(2), read("Qwen/Qwen3-8B"), node_of("h100"), "vllm")
    assert setup.decode.replicas.tolist() == [1, 8]
    found = predict_serving_table(rows)
    assert found["tpot"][0] == pytest.approx(found["tpot"][1])
