import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearpeak.cost import decode, platform_of
from nearpeak.errors import UnknownName, UsageError
from nearpeak.hardware import device, devices, lite, lite_node, node
from nearpeak.hardware.lite import (
    OPTICAL_ENERGY,
    blast_radius,
    die_yield,
    dies_per_wafer,
    silicon_cost,
    silicon_saving,
)
from nearpeak.plan import base_setup
from nearpeak.workload import read

H100 = device("h100_sxm")
HGX = node("hgx_h100")
DENSITIES = [0.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0]


@pytest.mark.parametrize(
    ("defects", "clustering", "expected"),
    [(0.0, 3.0, 1.0), (1.0, 1.0, 0.5), (1.0, 2.0, 4 / 9), (3.0, 3.0, 0.125), (0.814, 3.0, 0.4864), (6.0, 2.0, 1 / 16)],
)
def test_negative_binomial_yield_is_the_closed_form(defects, clustering, expected):
    assert die_yield(1e-4, defects / 1e-4, clustering=clustering) == pytest.approx(expected, rel=1e-3)


def test_murphy_and_poisson_at_one_defect():
    assert die_yield(1.0, 1.0, "poisson") == pytest.approx(math.exp(-1))
    assert die_yield(1.0, 1.0, "murphy") == pytest.approx((1 - math.exp(-1)) ** 2)


@given(st.floats(1e-6, 1e-3), st.floats(0.1, 1e4))
def test_yields_are_ordered_and_meet_where_defects_do_not_cluster(area, density):
    poisson, murphy = die_yield(area, density, "poisson"), die_yield(area, density, "murphy")
    clustered = die_yield(area, density)
    assert 0 < poisson <= murphy <= 1
    assert poisson <= clustered <= 1
    assert die_yield(area, density, clustering=1e7) == pytest.approx(poisson, rel=1e-3)


def test_dies_on_a_wafer_of_an_h100():
    assert dies_per_wafer(814e-6) == pytest.approx(63.5, abs=0.5)


def test_lite_silicon_gets_cheaper_with_defects_and_never_dearer():
    savings = [silicon_saving(H100.die_area, 4, density) for density in DENSITIES]
    assert savings == sorted(savings, reverse=True)
    assert all(later < earlier for earlier, later in pairwise(savings))
    assert savings[0] < 1  # even without defects: less of the wafer's rim is lost


def test_the_papers_h100_quarter_halves_silicon_cost():
    assert silicon_saving(H100.die_area, 4) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("model", ["negative_binomial", "poisson", "murphy"])
def test_k_dies_cost_the_saving_times_the_one(model):
    small, large = silicon_cost(2e-4, 1000.0, model), silicon_cost(8e-4, 1000.0, model)
    assert silicon_saving(8e-4, 4, 1000.0, model) == pytest.approx(4 * small / large)


@pytest.mark.parametrize("name", sorted(n for n, d in devices().items() if d.die_area and d.units >= 8))
@pytest.mark.parametrize("k", [2, 4, 8])
def test_k_parts_make_the_whole(name, k):
    whole, part = device(name), lite(name, k)
    assert {r: k * v for r, v in part.rates.items()} == pytest.approx(dict(whole.rates))
    assert k * part.memory_capacity == pytest.approx(whole.memory_capacity)
    assert k * part.memory_bandwidth == pytest.approx(whole.memory_bandwidth)
    assert k * part.tdp == pytest.approx(whole.tdp)
    assert k * part.die_area == pytest.approx(whole.die_area)
    assert part.price_per_hour is None or k * part.price_per_hour < whole.price_per_hour


def test_the_papers_shoreline_doubles_bandwidth_at_four_parts():
    plain, memory = lite(H100, 4), lite(H100, 4, shoreline="memory")
    assert memory.memory_bandwidth == pytest.approx(2 * plain.memory_bandwidth)
    assert lite_node(HGX, 4).scale_up.bandwidth == pytest.approx(112.5e9)
    assert lite_node(HGX, 4, shoreline="network").scale_up.bandwidth == pytest.approx(225e9)
    assert lite_node(HGX, 4, shoreline="network").device.memory_bandwidth == pytest.approx(838e9, rel=0.01)


def test_lite_server_has_equal_flops_and_a_quarter_of_the_blast_radius():
    small = lite_node(HGX, 4)
    assert small.count == 32
    assert small.count * small.device.rates["bf16"] == pytest.approx(HGX.count * H100.rates["bf16"])
    assert blast_radius(small) / blast_radius(HGX) == pytest.approx(1 / 4)


def test_lite_server_pays_for_its_optics_in_watts_and_seconds():
    small = lite_node(HGX, 4)
    assert small.scale_up.latency > HGX.scale_up.latency
    assert small.scale_up.kind == "optical"
    optics = 32 * 112.5e9 * 8 * OPTICAL_ENERGY
    assert small.overhead_power - HGX.overhead_power == pytest.approx(optics)


def test_link_cost_shows_in_a_tensor_parallel_decode_step():
    def decoding(server, tp):
        setup = base_setup(read("meta-llama/Meta-Llama-3.1-8B"), server, "vllm", 1000, 200)
        return decode(platform_of(setup), setup, replace(setup.decode, tp=tp), np.asarray(64.0), np.asarray(1000.0))

    whole, part = decoding(HGX, 2), decoding(lite_node(HGX, 4), 8)
    wide, both = (decoding(lite_node(HGX, 4, shoreline=s), 8) for s in ("network", "both"))
    assert part.communication > wide.communication > whole.communication
    assert part.total > whole.total  # equal FLOP/s and bandwidth: the link is what it pays for
    assert both.total < wide.total  # memory on the longer edge pays it back


def test_mistakes_are_refused():
    with pytest.raises(UsageError, match="from 2 to 132"):
        lite(H100, 1)
    with pytest.raises(UsageError, match="die area"):
        lite("m2_ultra", 4)
    with pytest.raises(UnknownName, match="unknown link"):
        lite(H100, 4, link="string")
    with pytest.raises(UsageError, match="shoreline"):
        lite(H100, 4, shoreline="all")
    with pytest.raises(UsageError, match="carries"):
        lite_node(HGX, 2, link="infiniband_ndr")
    with pytest.raises(UsageError, match="yield model"):
        die_yield(1e-4, 1.0, "linear")
    with pytest.raises(UsageError, match="positive"):
        die_yield(-1e-4, 1.0)
    with pytest.raises(UsageError, match="wafer"):
        dies_per_wafer(0.1)
