import math

import numpy as np
import pytest

from nearpeak.bounds.footprint import TOPIC, YEAR, bill, consumed, lives, training, training_flops
from nearpeak.errors import UsageError
from nearpeak.hardware import device, devices, node_of

GPT4 = training_flops(222e9, 13e12)
"""The unconfirmed public description of GPT-4: 2 of 16 experts of 111 B parameters, 13 T tokens (SemiAnalysis, 2023).
It is within the paper's scenarios, 2.89e24 to 3.43e25."""


@pytest.mark.parametrize(("less", "more"), [((0.2, 1), (0.6, 1)), ((0.2, 1), (0.2, 3))])
def test_three_times_the_mfu_or_the_lifespan_saves_two_thirds_of_the_devices(less, more):
    before, after = (lives(GPT4, 312e12, mfu, years * YEAR) for mfu, years in (less, more))
    assert 1 - after / before == pytest.approx(2 / 3)


def test_one_count_of_flop_brackets_the_published_range():
    peak = device("a100_sxm_40gb").rates["bf16"]
    grid = lives(GPT4, peak, np.array([0.2, 0.35, 0.5])[:, None], np.array([1, 2, 3]) * YEAR)
    assert math.ceil(grid.min()) == 1174
    assert math.ceil(grid.max()) == 8800
    assert grid[1, 1] == pytest.approx(2515, rel=0.001)  # the paper's base case
    wide = lives(GPT4, peak, np.array([0.2, 0.6])[:, None], np.array([1, 3]) * YEAR)
    assert wide.min() < 1174 < 8799 < wide.max()


@pytest.mark.parametrize("name", sorted(n for n, d in devices().items() if d.kind in ("gpu", "accelerator", "tpu")))
def test_elements_sum_to_the_mass_of_the_device(name):
    found = bill(device(name))
    assert all(mass >= 0 for mass in found.elements.values())
    assert sum(found.elements.values()) == pytest.approx(found.mass)
    assert 0.1 < found.mass < 10
    assert found.estimated == ("estimated" in found.source)


def test_the_a100_weighs_what_it_does_and_is_what_the_analysis_found():
    found = bill(device("a100_sxm_40gb"))
    assert not found.estimated
    assert found.mass == pytest.approx(1.56)
    assert found.mass == pytest.approx(3750 / 2515, rel=0.05)  # kg of all devices in the paper's base case
    assert found.heavy_share == pytest.approx(0.9, abs=0.03)
    seen = [e for e in found.elements if e not in ("C", "H", "O")]  # what optical emission does not see
    assert set(seen[:5]) == {"Cu", "Fe", "Sn", "Si", "Ni"}


def test_a_footprint_adds_up():
    node = node_of("h100_sxm")
    run = training(node, GPT4, np.array([0.3, 0.6]), 3 * YEAR)
    assert sum(run.elements.values()) == pytest.approx(run.mass)
    assert run.device_seconds == pytest.approx(run.devices * 3 * YEAR)
    watts = run.energy / run.device_seconds
    share = node.overhead_power / node.count
    assert np.all((watts > 0.4 * node.device.tdp + share) & (watts <= node.device.tdp + share))
    assert run.energy[1] < run.energy[0]  # twice the MFU, half the time, not twice the watts
    dirty = training(node, GPT4, 0.3, 3 * YEAR, grid_carbon=2 * 0.445 / 3.6e6)
    made = run.devices[0] * node.device.embodied_carbon
    assert float(dirty.carbon) - made == pytest.approx(2 * (run.carbon[0] - made))
    assert run.dollars == pytest.approx(run.device_seconds / 3600 * node.device.price_per_hour)


def test_a_longer_life_saves_devices_but_no_energy_and_so_moves_another_objective():
    node = node_of("a100_sxm")
    short, long = consumed(node, 1e9, 500.0, 1 * YEAR), consumed(node, 1e9, 500.0, 4 * YEAR)
    assert long.mass == pytest.approx(short.mass / 4)
    assert long.energy == pytest.approx(short.energy)
    assert long.carbon < short.carbon


def test_the_objective_moves_the_pareto_front():
    names = [
        n for n, d in devices().items() if d.kind == "gpu" and "bf16" in d.rates and d.embodied_carbon and d.prices
    ]
    runs = [training(node_of(n), 1e24, 0.4, 3 * YEAR) for n in names]
    costs = np.array([[float(r.dollars), float(r.energy), float(r.mass)] for r in runs])

    def front(points):
        worse = (points[:, None] >= points).all(axis=2) & (points[:, None] > points).any(axis=2)
        return {n for n, dominated in zip(names, worse.any(axis=1), strict=True) if not dominated}

    assert len(names) >= 10
    assert front(costs[:, :2]) < front(costs)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="at most 1, not 40"):
        lives(1e24, 312e12, 40, YEAR)
    with pytest.raises(UsageError, match="lifespan"):
        lives(1e24, 312e12, 0.4, 0)
    with pytest.raises(UsageError, match="a cpu"):
        bill(device("xeon_8480"))


def test_the_topic_shows_the_case():
    found = TOPIC.explain(
        model="meta-llama/Meta-Llama-3.1-8B", gpu="a100_sxm", tokens=15e12, mfu=0.4, years=3.0, mfus=(0.2, 0.6)
    )
    expected = 6 * 7.5e9 * 15e12 / (312e12 * 0.4 * 3 * YEAR)
    assert found.figures["devices"] == pytest.approx(expected, rel=0.05)
    low, high = found.tables[0].rows
    assert high["3 years"] / low["3 years"] == pytest.approx(1 / 3)
