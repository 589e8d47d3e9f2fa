"""Figures of a run: percentiles of sketches, targets, saturation, the timeline."""

import json

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.simulate.policies import policy
from nearpeak.simulate.results import PERCENTILES, Result, Sketch, Targets
from nearpeak.simulate.serving import Deployment, Instances, feed, serve
from nearpeak.simulate.steps import constant_table
from nearpeak.simulate.timeline import trace_events

STEP, PROMPT, BATCH = 0.01, 0.01, 8


def deployment() -> Deployment:
    return Deployment(constant_table(STEP, BATCH, PROMPT), (Instances(0, 1, BATCH, 4000),), policy("stall-free"))


def knee(osl: int) -> float:
    n = 2000
    return serve(deployment(), feed(np.zeros(n), np.full(n, 16), np.full(n, osl))).request_rate


def run_at(rate: float, osl: int, n: int = 2000, seed: int = 0, cv: float = 1.0, spread: float = 0.0) -> Result:
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.gamma(cv**-2, cv**2 / rate, n))
    answers = np.full(n, osl) if not spread else np.maximum(1, rng.gamma(spread**-2, osl * spread**2, n)).astype(int)
    return serve(deployment(), feed(arrival, np.full(n, 16), answers))


@pytest.mark.parametrize("seed", range(3))
def test_percentiles_of_a_sketch_are_within_a_thousandth(seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(-3, 1.5, 100_000)
    sketch = Sketch()
    for part in np.array_split(values, 7):
        sketch.add(part)
    assert sketch.n == len(values)
    assert sketch.mean == pytest.approx(values.mean())
    for q in (0, 1, *PERCENTILES, 99.9, 100):
        exact = np.percentile(values, q, method="inverted_cdf")
        assert sketch.percentile(q) == pytest.approx(exact, rel=1.001e-3)
    limit = float(np.percentile(values, 90))
    assert sketch.above(limit) == pytest.approx(0.1, abs=1e-3)


def test_a_sketch_of_nothing_has_no_percentile() -> None:
    assert np.isnan(Sketch().percentile(50))
    assert np.isnan(Sketch().mean)
    assert Sketch().above(1.0) == 0


def test_kept_requests_and_sketches_agree_on_every_figure() -> None:
    rng = np.random.default_rng(1)
    n = 3000
    requests = feed(np.cumsum(rng.exponential(0.02, n)), rng.integers(1, 40, n), rng.integers(1, 4, n))
    kept, counted = (serve(deployment(), requests, keep=keep) for keep in (True, False))
    assert counted.requests is None
    for figure in ("ttft", "tpot", "latency"):
        for q in PERCENTILES:
            assert kept.percentile(figure, q) == pytest.approx(counted.percentile(figure, q), rel=2e-3)


def test_goodput_counts_the_requests_that_meet_every_target() -> None:
    requests = feed([0.0, 0.0, 5.0], [16, 16, 16], [3, 30, 1])
    result = serve(deployment(), requests, targets=Targets(latency=0.1))
    assert result.requests is not None
    meets = result.requests["latency"] <= 0.1
    assert meets.tolist() == [True, False, True]
    assert result.met == 2
    assert result.goodput == pytest.approx(2 / result.span)
    both = Targets(latency=0.1, ttft=1e-9)
    assert serve(deployment(), requests, targets=both).met == 0
    with pytest.raises(UsageError, match="ttft"):
        Targets(ttft=float("nan"))


@pytest.mark.parametrize("osl", [1, 2, 40])
@pytest.mark.parametrize("seed", range(2))
def test_saturated_says_on_which_side_of_the_knee_a_rate_lies(osl: int, seed: int) -> None:
    most = knee(osl)
    for share in (0.1, 0.5, 0.8, 0.9):
        assert not run_at(share * most, osl, seed=seed).saturated, share
    for share in (1.3, 1.5, 2.0, 3.0):
        assert run_at(share * most, osl, seed=seed).saturated, share


@pytest.mark.parametrize("seed", range(3))
def test_bursts_and_long_answers_below_the_knee_are_no_saturation(seed: int) -> None:
    most = knee(40)
    assert not run_at(0.5 * most, 40, seed=seed, cv=3.0).saturated
    assert not run_at(0.5 * most, 40, n=200, seed=seed, spread=2.0).saturated


def test_one_request_or_a_closed_loop_saturates_nothing() -> None:
    one = serve(deployment(), feed([0.0], [30_000], [2]))
    assert not one.saturated
    n = 500
    requests = feed(np.zeros(n), np.full(n, 16), np.full(n, 20))
    for clients in (1, 8, 200):
        assert not serve(deployment(), requests, clients=clients).saturated


def test_a_run_of_which_all_is_rejected_has_no_negative_time() -> None:
    result = serve(deployment(), feed([1.0, 2.0], [70_000, 70_000], [5, 5]))
    record = result.record()
    assert (result.completed, result.rejected, result.span, result.saturated) == (0, 2, 0.0, False)
    assert record["request_rate"] == record["power"] == 0.0


def test_the_timeline_is_json_that_tells_every_step_and_request() -> None:
    n = 50
    requests = feed(np.arange(n) * 0.05, np.full(n, 16), np.full(n, 10))
    result = serve(deployment(), requests, timeline=10_000)
    events = json.loads(json.dumps(trace_events(result), allow_nan=False))["traceEvents"]
    steps = [e for e in events if e["ph"] == "X"]
    assert sum(e["args"]["prompt_tokens"] for e in steps) == 16 * n
    assert sum(e["args"]["decoding"] * e["args"]["steps"] for e in steps) == 9 * n
    assert sum(e["dur"] for e in steps) == pytest.approx(float(result.busy[0]) * result.span * 1e6)
    ends = [e["ts"] for e in steps]
    assert ends == sorted(ends)
    spans = [e for e in events if e.get("cat") == "request"]
    assert len({e["id"] for e in spans}) == n
    assert sum(e["ph"] == "b" for e in spans) == sum(e["ph"] == "e" for e in spans) == 2 * n
