import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.fleet.decentralized import GPUS, TOPIC, Served, Volunteers, requests, simulate, volunteers
from nearpeak.fleet.decentralized_loop import shortest_way
from nearpeak.fleet.layer_allocation import (
    Allocation,
    Nodes,
    allocate,
    fewest_stages,
    fill,
    pour,
    replicate,
    round_trip,
    worth,
)
from nearpeak.workload import read

MODEL = "Qwen/Qwen3-32B"


def pool_of(seed: int, nodes: int = 20, gpus: tuple[str, ...] = GPUS) -> Volunteers:
    return volunteers(read(MODEL), np.random.default_rng(seed).choice(gpus, nodes).tolist(), 3, seed)


def nodes_of(seed: int, count: int, layers: int, regions: int = 1) -> Nodes:
    random = np.random.default_rng(seed)
    link = random.uniform(0.01, 0.1, (count, count))
    link = (link + link.T) / 2
    np.fill_diagonal(link, 0.0)
    capacity, layer = random.integers(0, layers + 1, count), random.uniform(0.001, 0.01, count)
    return Nodes(capacity, layer, link, random.integers(0, regions, count), layers)


# Phase 1: which nodes, and which layers.


def labelings(count: int, made: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """All ways to put nodes in no group (-1) or in groups, which are numbered in the order of their first nodes."""
    if len(made) == count:
        yield made
        return
    for label in range(-1, max(made, default=-1) + 2):
        yield from labelings(count, (*made, label))


def brute_force(nodes: Nodes) -> tuple[float, dict[int, int]]:
    """The most worth, and the fewest stages of each number of replicas, over all ways to put nodes in groups."""
    count = nodes.capacity.size
    apart = float(nodes.link.sum() / max(1, count * (count - 1)))
    compute = nodes.layers * float(nodes.layer.mean())
    fewest: dict[int, int] = {}
    for labels in labelings(count):
        groups = [[i for i in range(count) if labels[i] == g] for g in set(labels) - {-1}]
        if groups and all(nodes.capacity[group].sum() >= nodes.layers for group in groups):
            k, stages = len(groups), sum(map(len, groups))
            fewest[k] = min(fewest.get(k, stages), stages)
    return max((worth(k, s, compute, apart) for k, s in fewest.items()), default=0.0), fewest


@pytest.mark.parametrize("count", [3, 4, 5, 6])
@pytest.mark.parametrize("seed", range(10))
def test_replicas_of_up_to_six_nodes_are_those_of_brute_force(seed: int, count: int) -> None:
    nodes = nodes_of(seed, count, 10)
    value, fewest = brute_force(nodes)
    groups = replicate(nodes, range(count))
    apart = float(nodes.link.sum() / (count * (count - 1)))
    mine = worth(len(groups), sum(map(len, groups)), 10 * float(nodes.layer.mean()), apart) if groups else 0.0
    assert mine == pytest.approx(value, rel=1e-12)
    for k in range(1, count + 1):
        found = fewest_stages(nodes.capacity.tolist(), 10, k)
        assert (None if found is None else sum(map(len, found))) == fewest.get(k)
        for group in found or ():
            assert nodes.capacity[list(group)].sum() >= 10
        taken = [i for group in found or () for i in group]
        assert len(taken) == len(set(taken))


def test_interleaved_replicas_are_found() -> None:
    assert sorted(map(len, fewest_stages([40, 40, 20, 20, 10, 10], 70, 2) or ())) == [3, 3]


@pytest.mark.parametrize("seed", range(20))
def test_layers_are_poured_as_brute_force_would(seed: int) -> None:
    random = np.random.default_rng(seed)
    count, layers = int(random.integers(2, 5)), 12
    capacity = random.integers(1, 13, count)
    capacity[0] += max(0, layers - capacity.sum())
    layer = random.uniform(1, 5, count)
    given = pour(capacity, layer, layers)
    ways = (w for w in itertools.product(*(range(c + 1) for c in capacity)) if sum(w) == layers)
    assert given.sum() == layers
    assert (given <= capacity).all()
    assert (given * layer).max() == pytest.approx(min((np.array(w) * layer).max() for w in ways))


@pytest.mark.parametrize("seed", range(8))
def test_an_allocation_covers_every_layer_within_memory(seed: int) -> None:
    pool = pool_of(seed)
    nodes = pool.nodes
    for held in (allocate(nodes), fill(nodes, range(20))):
        assert (held.last - held.first <= nodes.capacity).all()
        assert (pool.room(held) >= 0).all()
        for pipeline in held.pipelines:
            ends = [0, *(int(held.last[i]) for i in pipeline)]
            assert [int(held.first[i]) for i in pipeline] == ends[:-1]
            assert ends[-1] == pool.layers
    # Within a region the way round is the shortest there is, and every node is put to use.
    held = allocate(nodes)
    assert (held.last > held.first).all()
    assert len(held.pipelines) >= len(fill(nodes, range(20)).pipelines)
    for pipeline in held.pipelines:
        assert round_trip(nodes.link, pipeline)[0] == pipeline[0]


def test_what_does_not_hold_the_model_is_refused() -> None:
    small = replace(nodes_of(0, 4, 40), capacity=np.array([5, 5, 5, 5]))
    for how in (allocate, lambda n: fill(n, range(4))):
        with pytest.raises(UsageError, match="20 layers"):
            how(small)
    with pytest.raises(UsageError, match="do not fit"):
        pour(np.array([1, 2]), np.ones(2), 4)


# Phase 2: the way of a request.


@pytest.mark.parametrize("seed", range(10))
def test_the_way_is_the_shortest_of_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    count, layers = 5, 6
    first = random.integers(0, 4, count)
    last = np.minimum(first + random.integers(1, 5, count), layers)
    first[0], last[0], first[1], last[1] = 0, 4, 2, 6
    layer, enter = random.uniform(0.1, 1, (2, count))
    link = random.uniform(0.1, 2, (count, count))
    np.fill_diagonal(link, 0.0)
    usable, way = random.random(count) < 0.9, np.zeros(layers, np.int64)
    usable[:2] = True
    found = shortest_way(layer, enter, link, first, last, usable, layers, way)

    def seconds(nodes: tuple[int, ...]) -> float:
        hops = sum(link[a, b] for a, b in itertools.pairwise(nodes)) + link[nodes[-1], nodes[0]]
        waits = enter[nodes[0]] + sum(enter[b] for a, b in itertools.pairwise(nodes) if a != b)
        return float(layer[list(nodes)].sum() + hops + waits)

    able = [[i for i in range(count) if usable[i] and first[i] <= k < last[i]] for k in range(layers)]
    best = min(map(seconds, itertools.product(*able)))
    assert found == pytest.approx(best)
    assert seconds(tuple(way.tolist())) == pytest.approx(best)
    assert shortest_way(layer, enter, link, first, last, np.zeros(count, bool), layers, way) == np.inf


def test_a_request_alone_takes_its_prompt_and_its_trips() -> None:
    pool = pool_of(0)
    held = allocate(pool.nodes)
    one = simulate(pool, held, np.zeros(1), np.array([400]), np.array([50]), stitch=False)
    seconds = []
    for pipeline in held.pipelines:
        way, count = np.array(pipeline), (held.last - held.first)[list(pipeline)]
        after = np.roll(way, -1)
        token = (count * (pool.fixed + pool.each)[way]).sum() + (
            pool.link[way, after] + pool.width / pool.pace[way, after]
        ).sum()
        hops = (pool.link[way, after] + 400 * pool.width / pool.pace[way, after])[:-1].sum()
        prompt = (count * (pool.fixed + 400 * pool.prompt)[way]).sum() + hops
        seconds.append(prompt + 49 * token)
    assert one.latency[0] == pytest.approx(seconds[0], rel=1e-9)
    stitched = simulate(pool, held, np.zeros(1), np.array([400]), np.array([50]))
    assert 49 * (one.latency[0] - one.ttft[0]) >= 49 * (stitched.latency[0] - stitched.ttft[0]) * (1 - 1e-9)


def sound(run: Served, osl: np.ndarray) -> None:
    assert run.lost == 0
    assert (run.tokens == osl).all()
    assert run.least_room >= 0
    assert (run.ttft > 0).all()
    assert (run.latency >= run.ttft).all()


def compared(seed: int, count: int) -> dict[str, tuple[float, float]]:
    """By how much the two phases are better than fillings of the same nodes: p50 latency, and output tokens/s."""
    pool, traffic = pool_of(seed), requests(count, 10.0, 500.0, 128.0, seed)
    assert pool.link[pool.link > 0].min() >= 0.01
    assert pool.link.max() <= 0.1 + 1e-12
    mine = simulate(pool, allocate(pool.nodes), *traffic)
    sound(mine, traffic[2])
    orders = {"as they come": range(20), "largest first": np.argsort(-pool.nodes.capacity, kind="stable").tolist()}
    found = {}
    for name, order in orders.items():
        other = simulate(pool, fill(pool.nodes, order), *traffic, stitch=False, again=False)
        sound(other, traffic[2])
        found[name] = (float(np.median(other.latency) / np.median(mine.latency)), mine.throughput / other.throughput)
    return found


def test_two_phases_are_1_2_times_better_than_greedy_layer_filling() -> None:
    found = [compared(seed, 300) for seed in range(4)]
    greedy = np.array([f["as they come"] for f in found])
    assert (greedy >= 1.2).all()
    sorted_first = np.array([f["largest first"] for f in found])
    assert (sorted_first > 1.0).all()
    assert (np.exp(np.log(sorted_first).mean(axis=0)) >= 1.2).all()


@pytest.mark.slow
def test_two_phases_are_1_2_times_better_on_ten_mixes_of_nodes() -> None:
    found = [compared(seed, 300) for seed in range(10)]
    assert (np.array([f["as they come"] for f in found]) >= 1.2).all()
    sorted_first = np.array([f["largest first"] for f in found])
    assert (sorted_first > 1.0).all()
    assert (np.exp(np.log(sorted_first).mean(axis=0)) >= 1.2).all()


def test_losing_a_node_loses_no_request() -> None:
    pool, traffic = pool_of(0), requests(150, 10.0, 500.0, 128.0, 0)
    held = allocate(pool.nodes)
    calm = simulate(pool, held, *traffic)
    met = np.zeros(20, bool)
    for node in range(20):
        run = simulate(pool, held, *traffic, leaves=[(10.0, node)])
        sound(run, traffic[2])
        # Who was on the node starts again, and nothing that ended before is any different.
        assert run.ways.max() <= 2
        early = traffic[0] + calm.latency < 10.0
        assert (run.latency[early] == calm.latency[early]).all()
        assert (run.ways[early] == 1).all()
        met[node] = (run.ways > 1).any()
    assert met.sum() >= 5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stitch", [True, False])
def test_losing_three_nodes_loses_no_request(seed: int, stitch: bool) -> None:
    pool, traffic = pool_of(seed), requests(200, 10.0, 500.0, 128.0, seed)
    held = allocate(pool.nodes)
    gone = [pipeline[0] for pipeline in held.pipelines[:3]]
    run = simulate(pool, held, *traffic, stitch=stitch, leaves=list(zip((6.0, 9.0, 20.0), gone, strict=True)))
    sound(run, traffic[2])
    assert run.ways.max() >= 2


def test_where_no_other_node_holds_a_layer_the_nodes_that_stay_are_allocated_anew() -> None:
    pool = pool_of(1, 5, ("rtx_a6000",))
    full = fill(pool.nodes, range(5))
    first, last = full.first.copy(), full.last.copy()
    first[3:], last[3:] = 0, pool.nodes.capacity[3:]
    held = Allocation(first, last, full.pipelines)
    traffic = requests(60, 2.0, 300.0, 60.0, 0)
    run = simulate(pool, held, *traffic, leaves=[(5.0, full.pipelines[0][1])])
    sound(run, traffic[2])
    calm = simulate(pool, held, *traffic)
    # They load layers over their own lines meanwhile.
    assert run.latency.max() > calm.latency.max() + 1.0
    with pytest.raises(UsageError, match="add nodes"):
        simulate(pool, held, *traffic, leaves=[(5.0, 1), (6.0, 2), (7.0, 3), (8.0, 4)])


def test_the_same_seed_gives_the_same_result() -> None:
    runs = [simulate(pool_of(3), allocate(pool_of(3).nodes), *requests(50, 5.0, 300.0, 50.0, 3)) for _ in range(2)]
    assert (runs[0].latency == runs[1].latency).all()


def test_a_request_beyond_all_caches_is_refused() -> None:
    pool = pool_of(0)
    with pytest.raises(UsageError, match="fits no way"):
        simulate(pool, allocate(pool.nodes), np.zeros(1), np.array([10**7]), np.array([1]))


def test_the_topic_answers() -> None:
    found = TOPIC.explain(MODEL, GPUS, 20, 3, 10.0, 100, 500.0, 64.0, 1, 0)
    ways = {row["way"]: row for row in found.tables[0].rows}
    assert all(row["ended"] == 100 for row in ways.values())
    assert ways["two phases, 1 leave"]["ways_of_a_request"] >= 1
    assert found.figures["replicas"] >= 3
    with pytest.raises(UsageError, match="cannot leave"):
        TOPIC.explain(MODEL, GPUS, 20, 3, 10.0, 100, 500.0, 64.0, 20, 0)
