"""Plans under traffic: the cheapest that holds, what cannot be planned, and resampled traces."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from nearpeak.cli import nearpeak
from nearpeak.cli.arguments import fleets
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.plan import base_setup
from nearpeak.plan.serving import (
    BUDGET,
    FIRST,
    MOST_REPLICATIONS,
    Limit,
    Trial,
    _layouts,
    _Race,
    deployed,
    plan_serving,
    replications_drawn,
    replications_of,
    serving_record,
)
from nearpeak.report import print_serving_plans
from nearpeak.simulate.loop import Feed
from nearpeak.simulate.serving import feed, serve
from nearpeak.workload import read
from nearpeak.workload.traffic import Gamma, LogNormal, Trace, Traffic

MODEL = "Qwen/Qwen3-0.6B"
TECHNIQUES = ["fp8-kv"]
LIMITS = (Limit("ttft", 99, 1.0), Limit("tpot", 99, 0.03))


def traffic(rate: float, n: int = 800) -> Callable[[int], Feed]:
    return replications_drawn(Traffic(LogNormal(600, 0.5), LogNormal(120, 0.5), Gamma(rate, 1.0)), n)


def trace(n: int, every: float = 0.1) -> Trace:
    rng = np.random.default_rng(0)
    arrival = np.cumsum(rng.exponential(every, n))
    return Trace("made", arrival - arrival[0], rng.integers(50, 500, n), rng.integers(5, 100, n))


@pytest.mark.parametrize("rate", [20.0, 60.0])
def test_the_first_plan_is_the_cheapest_that_holds_of_all_replicas(rate: float) -> None:
    model, some, draws = read(MODEL), fleets("l4:1..4,a10g:1..4", ()), traffic(rate)
    plans = plan_serving(model, some, draws, LIMITS, techniques=TECHNIQUES, top=1)
    best = plans.trials[0]
    assert best.verdict == "holds"
    assert plans.confirmed is not None
    assert plans.confirmed.verdict == "holds"
    # Everything that is cheaper, simulated from one replica on: no bound from below, no first look, no early end.
    feeds = [draws(seed) for seed in range(MOST_REPLICATIONS)]
    longest = max(int((one.isl + one.osl).max()) for one in feeds)
    isl, osl = float(feeds[0].isl.mean()), float(feeds[0].osl.mean())
    tried = 0
    for fleet in some:
        base = replace(base_setup(model, fleet.node, "vllm", isl, osl), chunk=BUDGET)
        for layout in _layouts(base, fleet, LIMITS, rate, TECHNIQUES, 0.0)[0]:
            for replicas in range(1, fleet.most + 1):
                setup = layout.at(replicas - layout.replicas)
                hourly = float(setup.devices) * layout.price
                if hourly >= best.hourly or float(setup.devices) > fleet.most:
                    continue
                results = tuple(serve(deployed(setup, longest), one) for one in feeds[:FIRST])
                tried += 1
                assert Trial(setup, layout.techniques, hourly, LIMITS, results).verdict != "holds"
    assert tried > 0 or rate < 60


def test_every_goal_is_ranked_and_bounded_in_one_unit() -> None:
    """A deployment never scores below what its devices cost at the least."""
    model, some, draws = read(MODEL), fleets("l4:1..2,a10g:1..2", ()), traffic(20.0)
    for objective in ("cost", "energy", "carbon"):
        plans = plan_serving(model, some, draws, LIMITS, objective, techniques=TECHNIQUES, top=2)
        race = _Race(draws, LIMITS, 4000)
        fleet = some[0]
        base = replace(base_setup(model, fleet.node, "vllm", 600.0, 120.0), chunk=BUDGET)
        layout = _layouts(base, fleet, LIMITS, 20.0, TECHNIQUES, 0.0)[0][0]
        scores = [race.score(trial, objective) for trial in plans.trials]
        assert scores == sorted(scores)
        for trial, score in zip(plans.trials, scores, strict=True):
            same = replace(layout, setup=trial.setup, replicas=int(np.asarray(trial.setup.decode.replicas)), first=1,
                           price=trial.hourly / float(trial.setup.devices))  # fmt: skip
            least = race.promise(same, objective, 0)
            assert 0.02 * score < least <= score * (1 + 1e-9), objective


def test_where_nothing_holds_the_nearest_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    limits = (Limit("ttft", 99, 0.06), Limit("tpot", 99, 0.03))
    plans = plan_serving(read(MODEL), fleets("l4:1..1", ()), traffic(20.0), limits, techniques=TECHNIQUES)
    assert not plans.trials
    assert plans.nearest is not None
    print_serving_plans(serving_record(replace(plans, left_out={"x1": "no price"})))
    said = capsys.readouterr().out
    assert "No deployment keeps the limits" in said
    assert "x1 was left out: no price" in said


def test_a_memory_that_is_too_small_is_not_given_more_replicas() -> None:
    draws = replications_drawn(Traffic(LogNormal(600, 0.5), LogNormal(120, 0.5), Gamma(5, 1.0)), 300)
    one = draws(0)
    long = one._replace(isl=np.where(np.arange(300) == 7, 39_000, one.isl))
    tight = replace(fleets("l4:1..64", ())[0])
    memory = tight.node.device.memory[0]
    device = replace(tight.node.device, memory=(replace(memory, capacity=4e9), *tight.node.device.memory[1:]))
    tight = replace(tight, node=replace(tight.node, device=device))
    plans = plan_serving(read(MODEL), [tight], lambda _: long, LIMITS, techniques=TECHNIQUES, top=1)
    assert plans.simulated < 64
    json.dumps(serving_record(plans), default=str)


def test_traffic_that_has_no_rate_or_fits_no_context_is_refused() -> None:
    model, some = read(MODEL), fleets("l4:1..2", ())
    at_once = feed(np.zeros(10), np.full(10, 100), np.full(10, 10))
    with pytest.raises(UsageError, match="at once"):
        plan_serving(model, some, lambda _: at_once, LIMITS)
    long = feed(np.arange(10.0), np.append(np.full(9, 100), 50_000), np.full(10, 10))
    with pytest.raises(UsageError, match="50010 tokens"):
        plan_serving(model, some, lambda _: long, LIMITS)


@pytest.mark.parametrize("n", [30, 150, 2000])
def test_resampled_traces_differ_and_keep_rate_and_lengths(n: int) -> None:
    made = trace(n)
    of = replications_of(made)
    assert (of(0).arrival == made.arrival).all()
    drawn = [of(seed) for seed in range(1, 9)]
    for one, other in itertools.pairwise(drawn):
        assert (one.isl != other.isl).any()
    for one in drawn:
        assert len(one.isl) == n
        assert (np.diff(one.arrival) >= 0).all()
        assert set(one.isl.tolist()) <= set(made.isl.tolist())
    assert np.mean([one.isl.mean() for one in drawn]) == pytest.approx(made.isl.mean(), rel=0.15)
    assert np.mean([one.arrival[-1] for one in drawn]) == pytest.approx(made.arrival[-1], rel=0.2)
    assert (replications_of(made)(3).isl == drawn[2].isl).all()


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["--slo", "p99:ttft"], "p99:ttft"),
        (["--slo", "p0:ttft=1"], "p0"),
        (["--slo", "p100:ttft=1"], "p100"),
        (["--slo", "p9.9.9:ttft=1"], "p9.9.9"),
        (["--slo", "p99:ttft=-1"], "-1"),
        (["--slo", "p99:ttft=nan"], "nan"),
        (["--slo", "p99:ttft=1"], "traffic"),
        (["--slo", "p99:ttft=1", "--rate", "2"], "traffic"),
        (["--slo", "p99:ttft=1", "--rate", "2", "--isl", "9", "--osl", "9", "--goal", "latency"], "goal"),
        (["--slo", "p99:ttft=1", "--rate", "2", "--isl", "9", "--osl", "9", "--budget", "3"], "budget"),
        (["--slo", "p99:ttft=1", "--rate", "0", "--isl", "9", "--osl", "9"], "rate"),
        (["--slo", "p99:ttft=1", "--trace", "TRACE", "--rate", "2"], "its own rate"),
        (["--trace", "TRACE"], "no goals"),
        (["--slo", "p99:ttft=1", "--trace", "TRACE"], "at once"),
    ],
)
def test_bad_goals_and_traffic_are_named(tmp_path: Path, given: list[str], word: str) -> None:
    (tmp_path / "one.csv").write_text("arrival,isl,osl\n0,100,5\n")
    given = [str(tmp_path / "one.csv") if part == "TRACE" else part for part in given]
    with pytest.raises(NearpeakError, match=word):
        CliRunner().invoke(
            nearpeak, ["plan", MODEL, "--gpus", "l4:1..2", *given], catch_exceptions=False, standalone_mode=False
        )
