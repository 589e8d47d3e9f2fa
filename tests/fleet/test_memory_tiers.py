"""Tensors of an offloaded fine-tune over DRAM and CXL cards: exact programs, brute force, and the paper's orderings."""

import itertools

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.fleet import memory_tiers
from nearpeak.fleet.memory_tiers import aware, choices, exact, interleaved
from nearpeak.fleet.offload_tiers import KINDS, OPTIMIZER, Offload, Tier, card, dram, fits, offload, phase_seconds
from nearpeak.hardware import link, node_of
from nearpeak.workload import TrainingJob, from_config, read

QWEN_7B = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
"""Qwen2.5-7B, which the paper fine-tunes."""
GIB = 2.0**30


def case(gpu="h100", sequence=32768, parts=2, devices=1, micro=1):
    job = TrainingJob(
        from_config(QWEN_7B, "Qwen2.5-7B"), sequence, micro * devices, micro, dp=devices, zero=2, recompute=2
    )
    return offload(job, node_of(gpu), parts)


def memories(cards, gpu="h100", local=128 * GIB):
    return [
        dram(node_of(gpu), local),
        *(card(f"card_{i}", 512 * GIB, link("cxl2_x16")) for i in range(cards)),
    ]


def seconds(of, tiers, shares):
    return float(phase_seconds(of, tiers, shares).sum())


def all_dram(of, gpu="h100"):
    return seconds(of, [dram(node_of(gpu), 2e12)], np.ones((of.size.size, 1)))


@pytest.mark.parametrize("gpu", ["h100", "a100"])
@pytest.mark.parametrize("cards", [1, 2])
@pytest.mark.parametrize("sequence", [8192, 32768, 65536])
def test_aware_placement_beats_interleaving_stays_near_dram_and_near_the_best(gpu, cards, sequence):
    of, tiers = case(gpu, sequence), memories(cards, gpu)
    assert len(of.names) == 12
    placed = aware(of, tiers)
    assert fits(of, tiers, placed)
    assert of.size.sum() > tiers[0].capacity  # local DRAM alone would not do
    step, best = seconds(of, tiers, placed), seconds(of, tiers, exact(of, tiers))
    assert best * (1 - 1e-6) <= step <= 1.02 * best
    assert step < 0.99 * seconds(of, tiers, interleaved(of, tiers))
    assert step <= 1.05 * all_dram(of, gpu)


@pytest.mark.parametrize("cards", [1, 2])
def test_what_the_cpu_works_on_stays_off_the_cards(cards):
    of, tiers = case(), memories(cards)
    worked = [i for i, name in enumerate(of.names) if name.rsplit("_", 1)[0] in KINDS[:3]]
    np.testing.assert_array_equal(aware(of, tiers)[worked, 0], 1.0)
    assert (interleaved(of, tiers)[worked, 0] < 0.7).all()


def test_an_optimizer_on_a_card_alone_takes_several_times_as_long():
    """The paper measures about four times on its card; here it is the ratio of the two bandwidths."""
    of = case()
    tiers = [dram(node_of("h100"), 2e12), card("card", 2e12, link("cxl2_x16"))]
    here, there = (phase_seconds(of, tiers, np.tile(np.eye(2)[t], (12, 1)))[OPTIMIZER] for t in (0, 1))
    assert there / here == pytest.approx(tiers[0].bandwidth / tiers[1].bandwidth, rel=1e-6)
    assert there / here > 4


def test_two_cards_halve_what_copies_of_many_gpus_wait_for_on_one():
    of = case(sequence=4096, devices=8)
    waits = []
    for cards in (1, 2):
        tiers = memories(cards)
        shares = np.zeros((12, len(tiers)))
        shares[:, 1:] = 1 / cards
        waits.append(phase_seconds(of, tiers, shares)[0])
    assert waits[0] > of.floor[0]
    assert waits[1] == pytest.approx(max(waits[0] / 2, of.floor[0]), rel=1e-6)


def test_a_second_card_takes_the_contention_of_eight_gpus_away():
    of = case(sequence=8192, devices=8)
    one, two = (seconds(of, tiers, aware(of, tiers)) for tiers in (memories(1, local=125e9), memories(2, local=125e9)))
    assert one > 1.1 * all_dram(of)
    assert two < 1.05 * all_dram(of)


@pytest.mark.parametrize("seed", range(6))
def test_the_integer_program_finds_what_brute_force_finds(seed):
    """Six groups, every placement tried; sizes, floors, curves and capacities at random, so that each limit binds."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(1e9, 2e10, 6)
    of = Offload(
        names=KINDS, size=size, traffic=size * rng.uniform(0, 3, (3, 6)) * (rng.random((3, 6)) < 0.7),
        floor=rng.uniform(0, 0.5, 3), parts=1, gpus=int(rng.integers(1, 4)), in_flight=rng.uniform(5e3, 5e4),
    )  # fmt: skip
    tiers = [
        Tier("dram", 0.6 * size.sum(), 2e11, 1e-7),
        Tier("one", 0.5 * size.sum(), 4e10, 2.5e-7, (1.0, 0.8, 0.6)),
        Tier("two", 0.5 * size.sum(), 3e10, 3e-7, (1.0, 0.9, 0.5)),
    ]
    options = choices(tiers)
    every = options[np.array(list(itertools.product(range(len(options)), repeat=6)))]
    good = every[fits(of, tiers, every)]
    assert 0 < len(good) < len(every)
    best = phase_seconds(of, tiers, good).sum(-1).min()
    assert seconds(of, tiers, exact(of, tiers)) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("cards", [1, 2])
def test_interleaving_deals_out_all_bytes_and_passes_over_full_tiers(cards):
    of, tiers = case(), memories(cards, local=32 * GIB)
    shares = interleaved(of, tiers)
    np.testing.assert_allclose(shares.sum(1), 1.0)
    assert fits(of, tiers, shares)
    np.testing.assert_allclose(shares[0], 1 / (cards + 1))
    assert shares[-1, 0] == 0


def test_phases_broadcast_over_placements():
    of, tiers = case(), memories(2)
    both = np.stack([aware(of, tiers), interleaved(of, tiers)])
    together = phase_seconds(of, tiers, both)
    assert together.shape == (2, 3)
    np.testing.assert_allclose(together[1], phase_seconds(of, tiers, both[1]))
    assert list(fits(of, tiers, both)) == [True, True]


def test_what_does_not_fit_or_makes_no_sense_is_refused():
    of = case()
    for placed in (aware, exact, interleaved):
        with pytest.raises(UsageError, match="do not fit"):
            placed(of, [dram(node_of("h100"), 1e11)])
    small = [dram(node_of("h100"), 140e9), *(card(str(i), 3e9, link("cxl2_x16")) for i in range(12))]
    whole = [dram(node_of("h100"), 139e9), card("card", 21e9, link("cxl2_x16"))]
    one = case(parts=1)
    assert one.size.sum() < sum(tier.capacity for tier in whole)
    for placed in (aware, exact):
        with pytest.raises(UsageError, match="nowhere whole"):
            placed(one, whole)
        assert fits(of, small, placed(of, small))
    with pytest.raises(UsageError, match="bandwidth must be finite"):
        Tier("bad", 1.0, 0.0, 1.0)
    with pytest.raises(UsageError, match="dp alone"):
        offload(TrainingJob(read("XiaomiMiMo/MiMo-7B-Base"), 4096, 1, recompute=0), node_of("h100"))


@pytest.mark.parametrize("cards", [1, 2])
def test_topic_compares_placements(cards):
    topic = memory_tiers.TOPIC
    given = {o.name: o.default for o in topic.options}
    given |= {"model": "XiaomiMiMo/MiMo-7B-Base", "gpu": "h100", "cards": cards}
    found = topic.explain(**given)
    assert found.figures["aware_over_exact_ratio"] <= 1.02
    assert found.figures["interleaved_over_aware_ratio"] > 1.05
    with pytest.raises(UsageError, match="cards"):
        topic.explain(**given | {"cards": 0})
