from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.search.solvers import memory_agent as agent
from nearpeak.search.solvers import memory_exact as exact
from nearpeak.search.solvers import memory_game as game
from nearpeak.search.solvers import memory_learning as learning
from nearpeak.search.solvers import memory_trace
from nearpeak.search.solvers.memory_trace import COPY, KEEP, LEAVE, IllegalMapping, Mapping, Trace

SMALL = 40


@pytest.fixture(scope="module")
def network() -> agent.Network:
    return learning.learn(0)


def random_game(trace: Trace, rng: np.random.Generator) -> tuple[Mapping, float]:
    program = game.program_of(trace)
    state, table = game.begin(program), np.zeros((game.ACTIONS, 3), np.int64)
    for _ in trace.step:
        game.options(program, state, table)
        a = int(rng.choice(np.flatnonzero(table[:, 0])))
        game.play(program, state, game.move_of(a), table[a, 1], table[a, 2])
    return game.mapping_of(state), float(state.time[0])


def tiny(**changed) -> Trace:
    """Step 0 computes; 1 reads a; 2 reads b, writes c; 3 reads a and c. Slow memory takes one second for a byte."""
    columns = dict(
        compute=np.array([4.0, 0, 0, 0]), step=[1, 2, 2, 3, 3], tensor=[0, 1, 2, 0, 2], size=[4, 3, 2, 4, 2],
        write=[False, False, True, False, False], output=[False] * 5,
    )  # fmt: skip
    arrays = {k: np.asarray(v) for k, v in (columns | changed).items() if k not in ("capacity", "slow", "fast")}
    return Trace(**arrays, capacity=changed.get("capacity", 8), slow=1.0, fast=1e9)


def test_time_by_hand() -> None:
    trace = tiny()
    leave = Mapping(np.zeros(5, int), np.full(5, -1), np.full(5, -1))
    assert game.seconds(trace, leave) == pytest.approx(4 + 4 + 5 + 6)
    # a is copied behind step 0 and kept, c is written to fast memory and kept; b is read from slow memory.
    best = Mapping(np.array([COPY, LEAVE, KEEP, KEEP, KEEP]), np.array([0, -1, 2, 0, 2]), np.array([0, -1, 4, 0, 4]))
    memory_trace.check(trace, best)
    assert game.seconds(trace, best) == pytest.approx(4 + 3)
    # Half of the copy is hidden behind step 0 if that computes for two seconds: step 1 waits for the rest.
    assert game.seconds(tiny(compute=np.array([2.0, 0, 0, 0])), best) == pytest.approx(2 + 2 + 3)


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ([(KEEP, 0, 0), (0, -1, -1), (0, -1, -1), (0, -1, -1), (0, -1, -1)], "not in fast memory"),
        ([(COPY, 0, 0), (0, -1, -1), (0, -1, -1), (COPY, 1, 0), (0, -1, -1)], "copied from step 1 on: allowed 2"),
        ([(0, -1, -1), (0, -1, -1), (KEEP, 2, 0), (0, -1, -1), (0, -1, -1)], "from slow memory, where it never was"),
        ([(COPY, 0, 5), (0, -1, -1), (0, -1, -1), (0, -1, -1), (0, -1, -1)], "ends at byte 9 of 8"),
        ([(COPY, 0, 0), (COPY, 1, 3), (0, -1, -1), (0, -1, -1), (0, -1, -1)], "overlap"),
        ([(COPY, 0, 0), (0, -1, -1), (0, -1, -1), (KEEP, 0, 1), (0, -1, -1)], "not in fast memory at that offset"),
    ],
)
def test_illegal_mappings_are_refused(mapping, says) -> None:
    with pytest.raises(IllegalMapping, match=says):
        memory_trace.check(tiny(), Mapping(*np.array(mapping).T))


def test_an_output_must_reach_slow_memory() -> None:
    trace = tiny(output=[False, False, True, False, True])
    keep = Mapping(np.array([0, 0, KEEP, 0, KEEP]), np.array([-1, -1, 2, -1, 2]), np.array([-1, -1, 0, -1, 0]))
    with pytest.raises(IllegalMapping, match="output"):
        memory_trace.check(trace, keep)


def test_whatever_is_played_is_legal_and_its_running_time_is_the_simulators() -> None:
    rng = np.random.default_rng(0)
    for seed in range(60):
        trace = memory_trace.random_trace(int(rng.integers(5, 90)), seed, rng.uniform(0.5, 5))
        mapping, time = random_game(trace, rng)
        memory_trace.check(trace, mapping)
        assert time == pytest.approx(game.seconds(trace, mapping), rel=1e-12)


def test_integer_program_agrees_with_exhaustive_search() -> None:
    # All moves, all starts of copies and all offsets of tiny programs.
    for capacity, first in ((4, 2.0), (5, 2.0), (5, 6.0)):
        trace = tiny(capacity=capacity, compute=np.array([first, 1.0, 0, 0]))
        choices = []
        for b in range(5):
            own: list[tuple[int, int, int]] = [(LEAVE, -1, -1)]
            own += [(COPY, s, o) for s in range(trace.step[b] + 1) for o in range(capacity)]
            own += [(KEEP, int(trace.step[b]), o) for o in range(capacity)]
            choices.append([c for c in own if legal_alone(trace, b, c)])
        best = np.inf
        for moves in product(*choices):
            mapping = Mapping(*np.array(moves).T)
            time = game.seconds(trace, mapping)
            if time < best - 1e-12:
                try:
                    memory_trace.check(trace, mapping)
                except IllegalMapping:
                    continue
                best = time
        found = exact.solve(trace)
        memory_trace.check(trace, found)
        assert game.seconds(trace, found) == pytest.approx(best)


def legal_alone(trace: Trace, b: int, choice: tuple[int, int, int]) -> bool:
    """Cheap necessary conditions, to keep the product small."""
    move, start, offset = choice
    before = trace.previous[b]
    if move == LEAVE:
        return True
    if offset + trace.size[b] > trace.capacity:
        return False
    if move == COPY:
        return bool(trace.step[b] == start if trace.write[b] else before < 0 or start > trace.step[before])
    return bool(trace.write[b] or before >= 0)


def test_offsets_are_found_exactly_when_there_are_some() -> None:
    # Bytes held never exceed 4, yet the blocks do not fit: 2 and 2 leave no gap of 2 between them in the middle.
    assert exact.offsets([(2, 0, 1), (2, 0, 3), (2, 2, 5)], 4) is not None
    held = [(1, 0, 2), (2, 0, 0), (1, 0, 4), (2, 3, 3), (2, 1, 1)]
    places = exact.offsets(held, 4)
    assert places is not None
    for i, j in product(range(5), repeat=2):
        if i != j and held[i][1] <= held[j][2] and held[j][1] <= held[i][2]:
            assert places[i] + held[i][0] <= places[j] or places[j] + held[j][0] <= places[i]
    assert exact.offsets([(3, 0, 1), (2, 1, 2)], 4) is None


def compare(network: agent.Network, traces: range) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of the agent and of the best greedy mapping over the optimum."""
    agents, greedies = [], []
    for seed in traces:
        trace = memory_trace.random_trace(SMALL, seed)
        best = exact.solve(trace)
        memory_trace.check(trace, best)
        played, claimed = learning.solve(trace, network, seed)
        memory_trace.check(trace, played)
        assert claimed == pytest.approx(game.seconds(trace, played))
        optimum = game.seconds(trace, best)
        others = exact.greedy(trace)
        for mapping in others.values():
            memory_trace.check(trace, mapping)
        agents.append(game.seconds(trace, played) / optimum)
        greedies.append(min(game.seconds(trace, m) for m in others.values()) / optimum)
    return np.array(agents), np.array(greedies)


def test_agent_is_near_the_optimum_and_below_greedy_on_some_traces(network) -> None:
    ours, greedy = compare(network, range(1000, 1008))
    assert (ours >= 1 - 1e-6).all()
    assert ours.mean() < 1.05
    assert ours.mean() < greedy.mean()


@pytest.mark.slow
def test_agent_on_thirty_traces(network) -> None:
    ours, greedy = compare(network, range(1000, 1030))
    assert (ours >= 1 - 1e-6).all()
    assert ours.mean() < 1.05
    assert (ours < greedy - 1e-9).mean() >= 0.5


@pytest.mark.slow
def test_agent_on_traces_of_500_buffers(network) -> None:
    for seed in range(3):
        trace = memory_trace.random_trace(500, seed)
        played, time = learning.solve(trace, network, seed, games=4)
        memory_trace.check(trace, played)
        assert time <= min(game.seconds(trace, m) for m in exact.greedy(trace).values())


def test_search_and_learning_both_help(network) -> None:
    traces = [memory_trace.random_trace(SMALL, seed) for seed in range(2000, 2012)]

    def mean(net: agent.Network, simulations: int) -> float:
        base = [game.begin(game.program_of(t)).time[0] for t in traces]
        return float(
            np.mean([learning.solve(t, net, 0, simulations, 1)[1] / b for t, b in zip(traces, base, strict=True)])
        )

    plain = agent.untrained(0)
    assert mean(network, 0) < mean(plain, 0)
    assert mean(network, 32) < mean(network, 0)


def test_same_seed_same_mapping(network) -> None:
    trace = memory_trace.random_trace(40, 5)
    one, two = (learning.solve(trace, network, 7, 16, 3) for _ in range(2))
    assert one[1] == two[1]
    assert (one[0].move == two[0].move).all()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"step": [1, 2, 2, 3, 9]}, "steps must not fall"),
        ({"size": [4, 3, 0, 4, 2]}, "above 0"),
        ({"tensor": [0, 1, 1, 0, 1]}, "twice in one step"),
        ({"write": [False, False, True, False, True]}, "writes tensor 2 again"),
    ],
)
def test_bad_traces_are_refused(changed, says) -> None:
    with pytest.raises(UsageError, match=says):
        tiny(**changed)
    with pytest.raises(UsageError, match="3 buffers or more"):
        memory_trace.random_trace(2, 0)


def test_traces_are_frozen_values() -> None:
    trace = memory_trace.random_trace(12, 0)
    assert (replace(trace, capacity=trace.capacity * 2).step == trace.step).all()
