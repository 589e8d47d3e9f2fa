"""The pool of lent cards: its event loop, its heuristics, its topic."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearpeak.errors import NearpeakError
from nearpeak.fleet import community as pool
from nearpeak.fleet import community_loop as loop
from nearpeak.fleet.community_pool import Community, Trace, draw

SMALL = Community(size=8, tasks=40)


def played(trace: Trace, choose) -> loop.State:
    """A run in which ``choose(pairs)`` gives the row; everything that must hold at each step is checked."""
    state, pairs = loop.begin(trace), loop.sheet(trace)
    now = -np.inf
    while count := loop.offer(trace, state, pairs):
        assert state.clock[0] >= now
        now = state.clock[0]
        on = state.at[state.at >= 0]
        assert np.unique(on).size == on.size, "a task is on one card at most"
        assert (state.up[state.at >= 0] == 1).all(), "a card that is away holds nothing"
        waiting = state.queue[: state.cursor[loop.QUEUED]]
        assert (state.status[waiting] == loop.WAITING).all()
        assert (state.status == loop.WAITING).sum() == waiting.size
        assert (state.status == loop.RUNNING).sum() == on.size
        assert (state.status != loop.UNSEEN).sum() == state.cursor[loop.NEXT]
        loop.take(trace, state, pairs, choose(pairs[:count]))
    return state


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 80), st.floats(0.2, 4), st.floats(0.2, 8),
    st.integers(1, 4), st.booleans(),
)  # fmt: skip
def test_each_task_ends_exactly_once(seed, size, tasks, load, churn, attempts, declines):
    trace = draw(replace(SMALL, size=size, tasks=tasks, load=load, churn=churn, attempts=attempts), seed)
    rng = np.random.default_rng(seed)
    state = played(trace, lambda pairs: int(rng.integers(-1 if declines else 0, len(pairs))))
    assert np.isin(state.status, (loop.DONE, loop.FAILED, loop.EXPIRED)).all()
    assert state.cursor[loop.QUEUED] == 0
    assert (state.at < 0).all()
    assert np.isfinite(state.ended).all()
    assert (state.ended >= trace.arrival).all()
    assert (state.ended[state.status == loop.DONE] <= trace.deadline[state.status == loop.DONE]).all()
    assert ((state.lost == attempts) == (state.status == loop.FAILED)).all()
    assert (state.fetching <= state.held + 1e-6).all()
    assert (state.wasted <= state.held + 1e-6).all()
    found = pool.outcome(trace, state)
    assert found.done + found.failed + found.expired == tasks


def test_a_scheduler_that_always_declines_lets_everything_expire():
    trace = draw(SMALL, 0)
    assert pool.outcome(trace, played(trace, lambda pairs: -1)).expired == 40


def by_hand(**changes) -> Trace:
    """Two cards that never leave; two tasks whose times are whole numbers."""
    plain = Trace(
        arrival=np.array([0.0, 1.0]), deadline=np.array([100.0, 100.0]), priority=np.array([0, 1]),
        work=np.array([10.0, 20.0]), memory=np.array([1.0, 1.0]), data=np.array([6.0, 4.0]), home=np.array([0, 1]),
        rate=np.array([1.0, 2.0]), capacity=np.array([2.0, 2.0]), line=np.array([3.0, 3.0]), region=np.array([0, 1]),
        path=np.array([[4.0, 1.0], [1.0, 2.0]]), toggle=np.array([-5.0, -5.0]), toggled=np.array([0, 1]),
        attempts=np.array([1]),
    )  # fmt: skip
    return plain._replace(**changes)


def test_times_are_those_counted_by_hand():
    # Task 0 is fetched at 3 bytes/s (its card's line) and computes 10 s; task 1 at 2 bytes/s (its path), 10 s.
    state = played(by_hand(), lambda pairs: loop_row(pairs, card=int(pairs[0, loop.TASK])))
    assert state.ended.tolist() == [12.0, 13.0]
    assert state.fetching.tolist() == [2.0, 2.0]
    found = pool.outcome(by_hand(), state)
    assert found.bandwidth_penalty == pytest.approx(4 / 24)
    assert found.latency == 12.0


def loop_row(pairs, card: int) -> int:
    return int(np.flatnonzero(pairs[:, loop.CARD] == card)[0])


def test_a_card_that_leaves_loses_its_task_and_high_priority_goes_first():
    away = by_hand(toggle=np.array([-5.0, -5.0, 11.0, 11.5]), toggled=np.array([0, 1, 0, 0]))
    state = played(away, lambda pairs: loop_row(pairs, card=int(pairs[0, loop.TASK])))
    assert state.status.tolist() == [loop.FAILED, loop.DONE]
    assert state.wasted.tolist() == [11.0, 0.0]
    again = away._replace(attempts=np.array([2]))
    state = played(again, lambda pairs: loop_row(pairs, int(pairs[:, loop.CARD].min())))
    assert state.ended[0] == 11.5 + 12
    # Both wait when the only card returns: the one of high priority is offered first.
    late = by_hand(toggle=np.array([5.0]), toggled=np.array([1]))
    first = []
    played(late, lambda pairs: first.append(int(pairs[0, loop.TASK])) or 0)
    assert first == [1, 0]


def test_memory_and_deadlines_bound_what_is_offered():
    assert pool.run(by_hand(capacity=np.array([0.5, 0.5])), "fastest").expired == 2
    tight = by_hand(deadline=np.array([11.0, 100.0]))  # card 1: 6 s of transfer and 5 of compute, card 0: 12 s
    cards = []
    played(tight, lambda pairs: cards.append(pairs[:, loop.CARD].tolist()) or 0)
    assert cards[0] == [1.0]


def test_heuristics_take_what_their_names_say():
    pairs = np.ones((4, len(loop.COLUMNS)))
    pairs[:, loop.TASK] = [5, 5, 5, 9]
    pairs[:, loop.CARD] = [0, 3, 6, 0]
    pairs[:, loop.COMPUTE] = [10, 20, 30, 1]
    pairs[:, loop.TRANSFER] = [40, 5, 0, 1]
    pairs[:, loop.SLACK] = 100 - pairs[:, loop.COMPUTE] - pairs[:, loop.TRANSFER]
    pairs[:, loop.STAY] = 1e9
    pairs[:, loop.TASK_BEST] = [25, 25, 25, 2]
    taken = {name: rule(pairs, 3, 0.5) for name, rule in pool.RULES.items()}
    assert taken == {
        "fastest": 0, "earliest": 1, "nearest": 2, "round-robin": 2, "random": 1, "shortest": 3, "informed": 2,
    }  # fmt: skip
    pairs[2, loop.STAY] = 0.1
    assert pool.informed(pairs, 3, 0.5) == 1, "a card that will not stay is worth nothing"


def test_the_same_seed_gives_the_same_trace_and_outcome():
    first, second = draw(SMALL, 7), draw(SMALL, 7)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert pool.run(first, "random", 1) == pool.run(second, "random", 1)
    assert not np.array_equal(first.arrival, draw(SMALL, 8).arrival)


def test_drawn_pools_are_what_was_asked_for():
    trace = draw(Community(size=2000, tasks=2000, home=("rtx_4090",), rack=("h100_pcie",), load=0.5), 0)
    assert np.unique(trace.rate).tolist() == pytest.approx([0.4 * 165.2e12, 0.4 * 756e12], rel=0.01)
    assert trace.priority.mean() == pytest.approx(0.2, abs=0.03)
    assert np.median(trace.data) == pytest.approx(8e9, rel=0.1)
    assert (np.diff(trace.arrival) >= 0).all()
    assert (np.diff(trace.toggle) >= 0).all()
    assert trace.path.max() == pytest.approx(125e6)
    assert trace.path.min() == pytest.approx(8e6)


def mean(found: list[pool.Outcome], name: str) -> float:
    return float(np.mean([getattr(o, name) for o in found]))


def test_more_churn_loses_more_and_knowing_more_helps():
    drawn = {churn: pool.unseen(Community(churn=churn), 20) for churn in (1.0, 2.0)}
    found = {churn: pool.compare(of, learned=False) for churn, of in drawn.items()}
    for rule in pool.RULES:
        if rule != "informed":  # which declines what would be lost
            assert mean(found[2.0][rule], "lost_share") > 1.3 * mean(found[1.0][rule], "lost_share")
        assert mean(found[2.0][rule], "completion") < mean(found[1.0][rule], "completion")
    for of in found.values():
        assert mean(of["nearest"], "bandwidth_penalty") < mean(of["fastest"], "bandwidth_penalty")
        assert mean(of["informed"], "completion") > max(mean(of[r], "completion") for r in pool.PLAIN) + 0.02


def test_nothing_is_lost_on_cards_that_stay():
    drawn = pool.unseen(Community(stay=1e12, rack_stay=1e12, load=0.3, tight=3, loose=5), 3)
    for trace in drawn:
        found = pool.run(trace, "informed")
        assert found.failed == 0
        assert found.lost_share == 0
        assert found.completion > 0.99


def test_a_thousand_tasks_take_milliseconds_of_the_loop():
    # Steps, not seconds: each task costs a bounded number of offers.
    trace, steps = draw(replace(SMALL, tasks=1000), 0), []
    played(trace, lambda pairs: steps.append(len(pairs)) or 0)
    assert len(steps) <= 2 * 1000
    assert max(steps) <= loop.OFFERED


def test_bootstrap_interval_covers_the_mean():
    rng = np.random.default_rng(0)
    covered = [
        low <= 1.0 <= high
        for low, high in (pool.mean_interval(1 + rng.standard_normal(20), s, 1000) for s in range(200))
    ]
    assert 0.86 < np.mean(covered) < 0.99
    low, high = pool.mean_interval(np.full(20, 3.0))
    assert low == high == 3.0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Community(size=0), "size"),
        (lambda: Community(rack_share=1.5), "rack_share 1.5"),
        (lambda: Community(tight=3, loose=2), "loose 2"),
        (lambda: Community(home=()), "home"),
        (lambda: draw(Community(home=("no-such-card",), rack_share=0), 0), "no-such-card"),
        (lambda: draw(Community(home=("p40",), rack_share=0), 0), "p40"),
        (lambda: pool.unseen(SMALL, 0), "0 traces"),
        (lambda: pool.run(draw(SMALL, 0), "best"), "best"),
    ],
)
def test_wrong_input_is_named(wrong, said):
    with pytest.raises(NearpeakError, match=said):
        wrong()


def test_the_topic_answers_without_torch(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    asked = {option.name: option.default for option in pool.TOPIC.options} | {"traces": 2, "size": 8, "tasks": 30}
    answer = pool.TOPIC.explain(**asked)
    assert "nearpeak[torch]" in answer.says[0]
    assert [row["scheduler"] for row in answer.tables[0].rows] == list(pool.RULES)
