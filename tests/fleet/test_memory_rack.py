"""A rack with a shared remote pool: paging against an independent recursion, closed forms and the paper's claims."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nearpeak.case import setup
from nearpeak.cost import decode, platform_of
from nearpeak.errors import UsageError
from nearpeak.fleet import memory_rack, remote_paging
from nearpeak.fleet.memory_rack import collectives, pooled, ring_all_reduce, sized, smallest
from nearpeak.fleet.remote_paging import Graph, Rack, closed_form, crossover, graph, kept_share, local_memory, simulate
from nearpeak.hardware import link

GPT3 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 12288,
    "n_layer": 96,
    "n_head": 96,
    "n_positions": 2048,
    "n_ctx": 2048,
    "vocab_size": 50257,
}
LOCAL = 0.07 * 141e9
"""7 % of an H200's memory."""


@pytest.fixture(scope="module")
def gpt3(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt3") / "config.json"
    path.write_text(json.dumps(GPT3))

    def case(devices=8, batch=8):
        own = setup(str(path), "h200", devices, 1000.0, 500.0)
        return replace(own, decode=replace(own.decode, batch=np.asarray(float(batch))))

    return case


def random_graph(rng, count, busy=0.0):
    seconds = rng.uniform(1e-5, 1e-4, count)
    size = rng.uniform(1e6, 1e8, count) * (rng.random(count) < 0.8)
    nothing = np.zeros(count)
    return Graph(seconds, size, np.minimum(busy * size / 1e12, seconds), nothing, nothing, nothing, 0.0, 1e12)


@pytest.mark.parametrize("model", ["Qwen/Qwen3-235B-A22B", "meta-llama/Meta-Llama-3.1-70B"])
def test_graph_is_the_decode_step_that_cost_prices(model):
    own = setup(model, "h200", 8, 1000.0, 500.0)
    own = replace(own, decode=replace(own.decode, batch=np.asarray(16.0)))
    step = decode(platform_of(own).in_graph(), own, own.decode, np.asarray(16.0), np.asarray(1250.0))
    of = graph(own)
    assert of.conventional_step == pytest.approx(float(step.total), rel=1e-9)
    assert of.conventional.sum() == pytest.approx(float(step.communication), rel=1e-9)
    # The step reads all weights but the embedding, and the cache.
    assert of.size.sum() > 0.97 * 2 * (235e9 if "235B" in model else 70e9) / 8


@pytest.mark.parametrize("lookahead", [0, 1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_events_agree_with_the_recursion_of_a_bounded_pipeline(seed, lookahead):
    """Where pages do not slow kernels, ends follow from the ends before: a max-plus recursion without events."""
    rng = np.random.default_rng(seed)
    of, steps = random_graph(rng, 30), 5
    said = rng.uniform(0, 2e-5, 30)
    rate, latency = rng.uniform(2e11, 9e11), 1e-6
    got = remote_paging._simulate(of.seconds, of.busy, said, of.size, lookahead, rate, latency, of.bandwidth, steps)
    ends, arrived, expected = [], 0.0, []
    for i in range(30 * steps):
        room = ends[i - lookahead - 1] if i > lookahead else 0.0
        if of.size[i % 30] > 0:
            arrived = max(arrived, room) + latency + of.size[i % 30] / rate
        # An operator without tensors waits for those of the operators before it alone, which have ended.
        before = ends[-1] if ends else 0.0
        start = max(before, arrived) if of.size[i % 30] > 0 else before
        ends.append(start + of.seconds[i % 30] + said[i % 30])
        if i % 30 == 29:
            expected.append(ends[-1])
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_a_step_is_never_below_its_pages_or_its_kernels_and_local_traffic_is_kept(seed):
    rng = np.random.default_rng(seed)
    of, nothing = random_graph(rng, 40, busy=1.0), np.zeros(40)
    for bandwidth in (1e11, 3e11, 6e11, 2e12):
        step = simulate(of, nothing, Rack(bandwidth, lookahead=3), 0.2)
        paged = 0.8 * of.size.sum()
        assert step >= paged / bandwidth * (1 - 1e-9)
        assert step >= of.seconds.sum() * (1 - 1e-9)
        # Local memory is read for the kernels and written for the pages, and gives no more than its bandwidth.
        assert step >= of.busy.sum() + paged / of.bandwidth - 1e-9


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_gpt3_with_7_percent_local_memory_keeps_its_step_from_the_crossover_on(gpt3, batch):
    own = gpt3(batch=batch)
    target = graph(own).conventional_step
    of = graph(own, 2.0)
    rack = Rack(1e12)
    kept = kept_share(of, rack.lookahead, LOCAL)
    paged = float(of.size.sum()) * (1 - kept)

    def slowdown(bandwidth):
        at = replace(rack, bandwidth=bandwidth)
        return simulate(of, collectives(of, at, 8, own.node.device.clock), at, kept) / target - 1

    needed = crossover(of, collectives(of, rack, 8, own.node.device.clock), paged, target)
    assert 0 < needed < own.node.device.memory_bandwidth
    assert slowdown(1.05 * needed) < 0.05 < slowdown(0.95 * needed)
    assert all(slowdown(f * needed) < 0.05 for f in (1.05, 1.5, 2.0, 3.0))
    # Where the simulated step equals the conventional one lies within 5 % of the closed form.
    low, high = 0.5 * needed, 2 * needed
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if slowdown(middle) > 0 else (low, middle)
    assert high == pytest.approx(needed, rel=0.05)


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("bandwidth", [1e12, 2.4e12, 4.8e12])
def test_lookahead_beats_on_demand_paging_in_the_same_memory(gpt3, batch, bandwidth):
    own = gpt3(batch=batch)
    of = graph(own, 2.0)
    said = collectives(of, Rack(bandwidth), 8, own.node.device.clock)
    on_demand, *ahead = (
        simulate(of, said, Rack(bandwidth, lookahead=n), kept_share(of, n, LOCAL)) for n in (0, 1, 2, 4)
    )
    assert all(step < 0.95 * on_demand for step in ahead)


@pytest.mark.parametrize(("bandwidth", "within"), [(1e12, 0.01), (2e12, 0.01), (3e12, 0.05), (6e12, 0.08)])
def test_the_closed_form_is_a_tight_bound_of_the_events(gpt3, bandwidth, within):
    """Where pages are what a step waits for it is exact; where both take equally long, the window makes some wait."""
    own = gpt3()
    of, rack = graph(own, 2.0), Rack(bandwidth)
    said, kept = collectives(of, rack, 8, own.node.device.clock), kept_share(of, 2, LOCAL)
    predicted = float(closed_form(of, said, float(of.size.sum()) * (1 - kept), bandwidth))
    assert predicted * (1 - 1e-9) <= simulate(of, said, rack, kept) <= predicted * (1 + within)


def test_local_memory_no_faster_than_before_cannot_take_pages_in_beside_the_kernels(gpt3):
    own = gpt3()
    of = graph(own)
    said = collectives(of, Rack(1e12), 8, own.node.device.clock)
    assert crossover(of, said, float(of.size.sum()), of.conventional_step) == np.inf
    assert simulate(of, said, Rack(1e14), 0.0) > 1.05 * of.conventional_step


def test_pooled_all_reduce_beats_a_ring_of_eight_16_fold_at_small_messages():
    sizes = np.array([256.0, 4096.0, 65536.0, 262144.0])
    ratio = ring_all_reduce(link("nvlink4"), sizes, 8) / pooled(Rack(4.8e12), sizes, sizes)
    assert (ratio >= 16).all()
    assert (np.diff(ratio) < 0).all()
    large = ring_all_reduce(link("nvlink4"), 1e9, 8) / pooled(Rack(4.8e12), 1e9, 1e9)
    assert large == pytest.approx(7 / 8 * 4.8e12 / 450e9, rel=0.01)
    # A ring's messages grow with its ranks, the pool's do not.
    assert ring_all_reduce(link("nvlink4"), 1.0, 4) / ring_all_reduce(link("nvlink4"), 1.0, 8) == pytest.approx(6 / 14)


def test_the_smallest_local_memory_keeps_the_step_and_less_does_not(gpt3):
    own = gpt3(devices=4, batch=64)
    target = 1.05 * graph(gpt3(batch=64)).conventional_step
    rack = Rack(4.8e12)
    found = sized(own, rack, target)
    assert found.local is not None
    assert found.step <= target
    of = graph(own, rack.local_speed)
    said = collectives(of, rack, 4, own.node.device.clock)
    kept = kept_share(of, rack.lookahead, found.local)
    assert local_memory(of, rack.lookahead, kept) == pytest.approx(found.local)
    assert simulate(of, said, rack, kept - 0.01) > target
    assert found.full < target < found.thrifty
    assert smallest(of, said, rack, 0.5 * found.full) is None


def test_what_does_not_fit_or_makes_no_sense_is_refused(gpt3):
    of = graph(gpt3())
    with pytest.raises(UsageError, match="does not hold"):
        kept_share(of, 2, 1e8)
    assert kept_share(of, 2, 1e12) == 1.0
    with pytest.raises(UsageError, match="lookahead"):
        Rack(1e12, lookahead=-1)
    with pytest.raises(UsageError, match="bandwidth must be finite and above 0"):
        Rack(0.0)
    with pytest.raises(UsageError, match="pp 1"):
        graph(replace(gpt3(), decode=replace(gpt3().decode, pp=2)))


def test_topic_says_what_a_rack_needs(gpt3, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GPT3))
    topic = memory_rack.TOPIC
    given = {o.name: o.default for o in topic.options} | {"model": str(path), "gpu": "h200"}
    found = topic.explain(**given)
    assert found.figures["rack_step_time"] < found.figures["on_demand_step_time"]
    assert found.figures["smallest_gpus"] == 8
    assert found.figures["smallest_local_memory"] < 0.07 * 141e9
    with pytest.raises(UsageError, match="slack"):
        topic.explain(**given | {"slack": -0.1})
