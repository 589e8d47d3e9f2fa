"""Nano-batches: the search against everything there is, its bounds, the operators' prices, and two real cores."""

import json
import os

import numpy as np
import pytest

from nearpeak.case import setup
from nearpeak.cost import mixed, platform_of
from nearpeak.errors import UsageError
from nearpeak.simulate.interference import Cores, Sizes, predicted_gain, table, windows
from nearpeak.simulate.nano_batch import LAYERS, SHARES, TOPIC, cut, layer, optimal_rate, pipeline, read_interference
from nearpeak.simulate.nano_schedule import (
    Graph,
    Interference,
    bound,
    critical_path,
    exhaustive,
    orders,
    run,
    saturating,
    search,
    timed,
)

LLAMA2_70B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80, "vocab_size": 32000,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
THREE, FOUR = saturating(np.array([0.3, 0.6, 1.0])), saturating(np.array([0.25, 0.5, 0.75, 1.0]))


def some_graph(seed, n=8):
    rng = np.random.default_rng(seed)
    kind = np.concatenate([[0, 1, 2], rng.choice(3, n - 3, p=[0.5, 0.3, 0.2])])
    rng.shuffle(kind)
    after = np.tril(rng.random((n, n)) < 0.25, -1)
    return Graph(tuple(map(str, range(n))), kind, rng.uniform(0.3, 2, n), after)


def disturbed(seed):
    """A table in which speed beside others is below that alone."""
    rng = np.random.default_rng(seed)
    plain = saturating(np.array([0.3, 0.6, 1.0]))
    slower = np.ones((3, 3, 8))
    for mask in range(1, 8):
        slower[:, :, mask] = rng.uniform(0.75, 1.0, (3, 1))
    return Interference(plain.shares, plain.speed * slower)


def check_against_everything(graph, given):
    found = search(graph, given)
    best = exhaustive(graph, given)
    assert best * (1 - 1e-9) <= found.seconds <= 1.02 * best
    assert found.seconds >= max(bound(graph, given), critical_path(graph)) * (1 - 1e-9)
    assert found.seconds <= graph.work.sum() * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_two_stages_come_within_two_percent_of_everything(seed):
    """Row 209, with speeds by units alone and with interference of a random table."""
    check_against_everything(some_graph(seed), THREE if seed % 2 else disturbed(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_two_stages_come_within_two_percent_of_everything_on_finer_shares(seed):
    check_against_everything(some_graph(seed), FOUR)


@pytest.mark.parametrize("seed", range(20))
def test_schedules_obey(seed):
    """What waits waits; one of a kind at a time; no more units than there are; never below the bounds."""
    graph = some_graph(100 + seed, 12)
    found = search(graph, FOUR, keep=2, kicks=0, most=50, seed=seed)
    start, end = found.start[0], found.end[0]
    for i, j in np.argwhere(graph.after):
        assert start[i] >= end[j] - 1e-9
    for t in np.unique(start):
        on = (start <= t + 1e-12) & (end > t + 1e-9)
        assert found.shares[on].sum() <= 1 + 1e-9
        assert np.bincount(graph.kind[on], minlength=3).max() == 1
    assert found.seconds >= max(bound(graph, FOUR), critical_path(graph)) * (1 - 1e-9)


def test_a_pair_by_hand():
    """A product of 2 s on 0.6 of the units beside a stream of 1 s on 0.4 (which reads at 0.8): then still at 0.6."""
    graph = Graph(("gemm", "read"), np.array([0, 1]), np.array([2.0, 1.0]), np.zeros((2, 2), bool))
    given = saturating(np.array([0.4, 0.6, 1.0]))
    found = timed(graph, given, np.array([0, 1]), np.array([1, 0]), 1)
    assert found.end[0] == pytest.approx([2 / 0.6, 1 / 0.8])
    # All of both kinds' work at once: the product on 0.6 while the stream runs at 0.8, then alone on all units.
    assert bound(graph, given) == pytest.approx(1.25 + 2 - 0.6 * 1.25)
    assert orders(graph, 10) is not None
    assert len(orders(graph, 10)) == 1


def test_interference_slows_and_is_checked():
    graph = some_graph(3)
    slow = Interference(FOUR.shares, FOUR.speed * np.where(np.arange(8) > 0, 0.7, 1.0))
    assert search(graph, slow).seconds > search(graph, FOUR).seconds
    with pytest.raises(UsageError, match="circle: b, c"):
        Graph(("a", "b", "c"), np.zeros(3, int), np.ones(3), np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0]], bool))
    with pytest.raises(UsageError, match="shape"):
        Interference(np.array([1.0]), np.ones((2, 1, 8)))
    with pytest.raises(UsageError, match="rise to 1"):
        Interference(np.array([0.5, 0.9]), np.ones((3, 2, 8)))


def test_operators_of_a_layer_add_up_to_the_step_of_the_cost_model():
    own = setup("meta-llama/Meta-Llama-3.1-70B", "a100_sxm_80gb", 8, 512, 512)
    operators = layer(own, 2048.0)
    assert [op.kind for op in operators] == [0, 1, 0, 0, 2, 0, 0, 2]
    mine = float(cut(operators, (1,) * 8, 0.5).work.sum())
    step = mixed(platform_of(own), own, own.decode, *map(np.asarray, (2.0, 512.0, 0.0, 1024.0, 768.0)))
    rest = mixed(platform_of(own), own, own.decode, *map(np.asarray, (2.0, 512.0, 0.0, 1024.0, 768.0))).other
    assert 80 * mine == pytest.approx(float(step.total), rel=0.08)
    assert float(rest) > 0


def test_parts_wait_for_those_they_share_requests_with():
    own = setup("meta-llama/Meta-Llama-3.1-8B", "h100_sxm", 1, 512, 512)
    operators = layer(own, 1024.0)
    graph = cut(operators, (4, 2, 1, 2, 2, 1), 0.5)
    at = {name: i for i, name in enumerate(graph.names)}
    waits = {graph.names[j] for j in np.flatnonzero(graph.after[at["decode attention 1/2"]])}
    assert waits == {"qkv 1/4", "qkv 2/4"}
    assert {graph.names[j] for j in np.flatnonzero(graph.between[at["qkv 1/4"]])} == {"down 1/1"}
    # Cut operators take longer in all: matrices are read once a part.
    whole = cut(operators, (1,) * 6, 0.5)
    assert graph.work[graph.kind == 0].sum() > whole.work[whole.kind == 0].sum()


def test_published_setting(tmp_path):
    """LLaMA-2-70B on eight A100: the model's gain and share of what arithmetic allows, beside NanoFlow's claims.

    Published (Zhu et al. 2025): 59 to 72 % of optimal, 68.5 % for LLaMA-2-70B; 1.91 times serving engines of the time,
    which lose more than a lack of overlap. Nothing is tuned: the ratio is shown and only kept from drifting.
    """
    (tmp_path / "config.json").write_text(json.dumps(LLAMA2_70B))
    own = setup(str(tmp_path), "a100_sxm_80gb", 8, 512, 512)
    found = pipeline(own, 2048.0, saturating(np.array(SHARES)))
    share = 2048 / (80 * found.schedule.seconds) / optimal_rate(own)
    print(f"gain {found.gain:.3f} (published 1.91 over engines), of optimal {share:.3f} (published 0.685): "
          f"ratios {found.gain / 1.91:.2f}, {share / 0.685:.2f}")  # fmt: skip
    assert 1.05 < found.gain <= found.serial / found.least
    assert 0.4 < share < 0.72
    assert found.schedule.start.shape[0] == LAYERS
    assert len({n for n in found.parts}) >= 1
    assert max(found.parts) > 1


def test_alone_on_one_device_nothing_is_lost():
    own = setup("meta-llama/Meta-Llama-3.1-8B", "h100_sxm", 1, 1000, 50)
    assert pipeline(own, 512.0, saturating(np.array([0.4, 0.6, 1.0]))).gain >= 1 - 1e-9


def test_topic_answers(tmp_path):
    stored = tmp_path / "table.json"
    given = saturating(np.array([0.4, 0.6, 1.0]))
    stored.write_text(json.dumps({"shares": given.shares.tolist(), "speed": given.speed.tolist()}))
    options = {o.name: o.default for o in TOPIC.options}
    mine = {"model": "mistralai/Mixtral-8x7B-v0.1", "gpu": "h100_sxm", "devices": 2, "interference": str(stored)}
    found = TOPIC.explain(**options | mine)
    assert found.figures["gain_ratio"] >= 1
    assert found.figures["overlapped_of_optimal_share"] < 1
    assert found.tables[0].rows[0]["start_time"] == 0
    with pytest.raises(UsageError, match="no interference table"):
        read_interference(str(tmp_path / "none.json"))


CASES = ((Sizes(256, 2**25), 2400, 4800), (Sizes(512, 2**27), 300, 4800), (Sizes(640, 3 * 2**25), 170, 4800))
"""Sizes beside those that the table is measured on, and pieces that take a core about as long of either kind."""


def gains(rounds, cases, scale):
    """Measured and predicted gains, ``[cases]`` each; table and cases are measured in the same rounds."""
    rates, seen = [], [[] for _ in cases]
    with Cores() as cores:
        for r in range(rounds + 1):
            rate = windows(cores, Sizes(), 0.1)
            times = []
            for sizes, products, passes in cases:
                counts = int(products * scale), int(passes * scale)
                one = cores.seconds("compute", sizes, counts[0]), cores.seconds("memory", sizes, counts[1])
                times.append((*one, cores.overlapped(sizes, counts)))
            if r:  # the first round warms up
                rates.append(rate)
                for case, time in zip(seen, times, strict=True):
                    case.append(time)
    found = table(np.array(rates))
    middle = np.median(np.array(seen), axis=1)
    measured = (middle[:, 0] + middle[:, 1]) / middle[:, 2]
    return measured, np.array([predicted_gain(found, *m[:2]) for m in middle])


two_cores = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="takes two cores that can be pinned",
)


@two_cores
def test_two_cores_gain_about_what_the_table_predicts():
    measured, predicted = gains(3, CASES[:1], 0.1)
    assert predicted == pytest.approx(measured, rel=0.4)


@two_cores
@pytest.mark.slow
def test_two_cores_gain_what_the_table_predicts():
    """Row 209: within 15 %, for sizes that the table was not measured on."""
    measured, predicted = gains(11, CASES, 0.2)
    print(measured, predicted, predicted / measured)
    assert predicted == pytest.approx(measured, rel=0.15)


def test_a_prediction_by_hand():
    """Both at 0.6 beside each other, the product at 0.5 alone: 1 s and 0.5 s of work."""
    speed = np.full((3, 2, 8), 1.0)
    speed[:, 0] = 0.5
    speed[0, 0, 2] = speed[1, 0, 1] = 0.6
    found = predicted_gain(Interference(np.array([0.5, 1.0]), speed), 1.0, 0.5)
    assert found == pytest.approx(1.5 / (0.5 / 0.6 + (1 - 0.5) / 0.5))
    none, start = np.zeros((2, 2), bool), np.empty((1, 2))
    serial = run(np.arange(2), np.array([1.0, 0.5]), none, none, np.arange(2), np.ones(2, np.int64),
                 np.array([0.5, 1.0]), speed, 1, start, start.copy())  # fmt: skip
    assert serial == pytest.approx(1.5)
