"""Replicas at the knee, served by events: the knee is where the closed form has it, and replicas beat one engine."""

from dataclasses import replace

import numpy as np
import pytest

from nearpeak.bounds.knee import advise, pace, replicas_rate
from nearpeak.cost import ledger
from nearpeak.errors import UsageError
from nearpeak.fleet import topics
from nearpeak.fleet.replicas import beside_each_other, shared_table, unshared_time
from nearpeak.fleet.steady_state import closed_loop, lengths
from nearpeak.hardware import node_of
from nearpeak.setup import Pool, Setup
from nearpeak.simulate.steps import step_table
from nearpeak.workload import Architecture, Attention, Block, Dense

OPT = Architecture(
    "facebook/opt-1.3b", "opt", hidden=2048, vocab=50272, context=2048, tied=True, tables=2050 * 2048, extra=2 * 2048,
    blocks=(
        Block(Attention(32, 32, 64, 64, bias=True, out_bias=True), Dense(8192, gated=False, bias=True), 24, 4 * 2048),
    ),
)  # fmt: skip
SETUP = Setup(OPT, node_of("h100_sxm"), "vllm", 161, 338, Pool())
TRAFFIC = lengths(SETUP, 0.5)


def tokens(batch, replicas=1, overlap=True, seed=0, rounds=24, setup=SETUP):
    return closed_loop(beside_each_other(setup, batch, replicas, overlap), TRAFFIC, rounds=rounds, seed=seed).token_rate


@pytest.mark.parametrize("seed", range(3))
def test_two_replicas_at_the_cap_beat_one_at_the_largest_batch_for_equal_memory(seed):
    found = advise(SETUP)
    assert found.replicas >= 2
    held = ledger(SETUP, Pool(batch=1))
    bytes_of = {n: n * float(held.weights + held.activations + b * held.kv)
                for n, b in ((1, found.largest), (2, found.cap))}  # fmt: skip
    assert bytes_of[2] <= bytes_of[1]
    single, both = tokens(found.largest, seed=seed), tokens(found.cap, 2, seed=seed)
    assert both > 1.1 * single
    # Published: a third more for this model, with four replicas of fewer requests.
    assert both < 1.6 * single
    # Taking turns, two replicas hide their hosts alone: nothing to gain here, nothing lost.
    assert 0.95 < tokens(found.cap, 2, overlap=False, seed=seed) / single < 1.05


@pytest.mark.parametrize("seed", range(3))
def test_past_the_knee_twice_the_batch_adds_under_a_tenth_and_dram_is_the_limit(seed):
    found = advise(SETUP)
    past = found.largest // 2
    assert past < 1.1 * found.cap  # memory ends where the cap is doubled
    assert tokens(2 * past, seed=seed) / tokens(past, seed=seed) < 1.10
    assert tokens(found.cap, seed=seed) / tokens(found.cap // 2, seed=seed) > 1.25
    at = pace(SETUP, np.array([past, 2 * past]))
    assert (at.dram > 2 * at.arithmetic).all()


def test_with_more_memory_every_doubling_past_the_knee_adds_less_than_the_last():
    device = SETUP.node.device
    roomy = replace(SETUP, node=replace(SETUP.node, device=_with_memory(device, 4)))
    cap = advise(roomy).cap
    rates = [tokens(cap * k, rounds=8, setup=roomy) for k in (1, 2, 4)]
    gains = np.divide(rates[1:], rates[:-1])
    assert gains[0] < 1.13
    assert gains[1] < 1.10
    assert gains[1] < gains[0]


def _with_memory(device, times):
    first, *rest = device.memory
    return replace(device, memory=(replace(first, capacity=first.capacity * times), *rest))


@pytest.mark.parametrize("batch", [1, 32, 256])
def test_one_engine_makes_what_the_closed_form_says(batch):
    found = closed_loop(beside_each_other(SETUP, batch), lengths(SETUP, 0.2), rounds=30)
    assert found.token_rate == pytest.approx(float(338 / pace(SETUP, batch).alone), rel=0.04)


@pytest.mark.parametrize("overlap", [True, False])
def test_replicas_make_no_more_than_the_closed_form_and_not_much_less(overlap):
    cap = advise(SETUP).cap
    found = closed_loop(beside_each_other(SETUP, cap, 2, overlap), lengths(SETUP, 0.2), rounds=30).token_rate
    most = 338 * float(replicas_rate(pace(SETUP, cap), 2, overlap))
    assert 0.8 * most < found < 1.03 * most


def test_a_shared_step_is_never_faster_than_alone_and_never_slower_than_taking_turns():
    alone = step_table(SETUP, Pool(), 64, 2048)
    for n in (1, 2, 4):
        at_once, in_turns = (shared_table(SETUP, alone, n, overlap) for overlap in (True, False))
        for name in ("decode", "rows", "attend", "prefill"):
            first, second, third = (getattr(t, name)[0][1:] for t in (alone, at_once, in_turns))
            assert (second >= first).all()
            assert (third >= second * (1 - 1e-9)).all()
        if n == 1:
            np.testing.assert_allclose(at_once.decode, alone.decode)
        # Together they make at least as many steps as one.
        assert (at_once.decode <= n * alone.decode * (1 + 1e-9)).all()
    # The device moves what two read, whoever waits: with many requests no step is faster than that.
    bound = unshared_time(SETUP, 64.0, 64.0, alone.knots[:16])
    assert (shared_table(SETUP, alone, 8, True).decode[0, 64, :16] >= 8 * bound * (1 - 1e-9)).all()


def test_what_does_not_fit_is_refused():
    found = advise(SETUP)
    with pytest.raises(UsageError, match=r"3 engines .* take fewer"):
        beside_each_other(SETUP, found.cap, 3)


def test_a_person_gets_the_comparison():
    topic = topics()["replicas"]
    given = {o.name: o.default for o in topic.options} | {
        "model": "Qwen/Qwen3-0.6B", "gpu": "h200", "isl": 200.0, "osl": 300.0, "gain": 0.2,
    }  # fmt: skip
    found = topic.explain(**given)
    rows = {row["way"]: row for row in found.tables[0].rows}
    assert rows["one at the largest batch"]["over_single"] == 1.0
    assert max(row["pool_memory"] for row in rows.values()) == rows["one at the largest batch"]["pool_memory"]
    assert found.figures["replicas"] >= 2
    assert found.figures["replicas_tokens_per_second"] > found.figures["single_at_largest_tokens_per_second"]
    assert topic.explain(**given).figures == found.figures
