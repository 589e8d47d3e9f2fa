"""Serving figures in closed form: conservation, limits, and closed loops."""

from dataclasses import replace

import numpy as np
import pytest

from nearpeak.cost import closed_loop, costs, platform_of, predict, predict_serving_table
from nearpeak.cost.engine import engine
from nearpeak.cost.runs import setup_of
from nearpeak.errors import UnknownName, UsageError
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
        assert (np.diff(found.request_rate) > -1e-9 * found.request_rate[:-1]).all()
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
