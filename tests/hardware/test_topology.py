import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.hardware import cluster
from nearpeak.hardware.topology import (
    all_to_all,
    bisection,
    cable_loads,
    cut_bandwidth,
    hops,
    network,
    peak_rate,
    power_parts,
    ring_all_reduce,
    switch_hops,
)

LEONARDO = cluster("leonardo")
NET = network(LEONARDO)
PER_CELL = 180


def test_leonardo_has_its_13824_gpus_and_top500_peak():
    assert LEONARDO.devices == 13_824
    assert peak_rate(LEONARDO, "fp64_tensor") == pytest.approx(306e15, rel=0.05)


def test_leonardo_draws_what_top500_lists():
    parts = power_parts(LEONARDO)
    assert sum(parts.values()) == pytest.approx(7.5e6, rel=0.15)
    assert parts["devices"] > parts["nodes"] > parts["switches"]


def test_switches_have_the_ports_that_they_use():
    uses = np.bincount(NET.edges.ravel(), minlength=len(NET.cell)) * 2  # in halves of a 200 Gb/s port
    uses += np.bincount(NET.ports.ravel(), minlength=len(NET.cell))
    assert uses.max() <= 80  # 40 ports of a QM8700


def test_two_hops_in_a_cell_three_across():
    distance = hops(NET, 0)
    in_cell = NET.node_cell == NET.node_cell[0]
    other_leaf = ~np.isin(NET.ports, NET.ports[0]).any(axis=1)
    assert set(distance[in_cell & other_leaf]) == {2}
    assert set(distance[in_cell & ~other_leaf]) == {0}
    assert set(distance[~in_cell]) == {3}


def test_breadth_first_search_agrees_with_the_matrix_of_walks():
    switches = len(NET.cell)
    adjacent = np.zeros((switches, switches), dtype=np.float32)
    adjacent[NET.edges[:, 0], NET.edges[:, 1]] = adjacent[NET.edges[:, 1], NET.edges[:, 0]] = 1
    reached = np.eye(switches, dtype=np.float32)[5]
    expected = np.where(reached > 0, 0, -1)
    for distance in range(1, 5):
        reached = np.minimum(reached + reached @ adjacent, 1)
        expected[(reached > 0) & (expected < 0)] = distance
    assert (switch_hops(NET, 5) == expected).all()


def test_bisection_counts_the_cables_between_halves_of_the_cells():
    assert bisection(NET) == 10 * 10 * 18 * 25e9  # 20 cells with nodes, 18 cables of 200 Gb/s for each pair


def test_cut_of_one_cell_is_its_global_cables():
    assert cut_bandwidth(NET, NET.cell == 0) == 22 * 18 * 25e9


def test_loads_conserve_bytes_times_hops():
    leaves = np.array([0, 1, 36])
    demand = np.array([[0, 5.0, 7.0], [0, 0, 11.0], [0, 0, 0]])
    _, loads = cable_loads(NET, demand, leaves)
    assert loads.sum() == pytest.approx(2 * 5 + 3 * (7 + 11))
    assert loads.max() < 11  # spread over many paths


def test_all_to_all_over_two_cells_is_slower_than_inside_one():
    inside = all_to_all(NET, range(64), 1e6)
    across = all_to_all(NET, [*range(32), *range(PER_CELL, PER_CELL + 32)], 1e6)
    assert across > 1.5 * inside


def test_all_to_all_over_two_whole_cells_is_bound_by_their_cables():
    half, size = PER_CELL, 1e6
    took = all_to_all(NET, range(2 * half), size)
    assert took == pytest.approx(half * half * size / (18 * 25e9), rel=0.01)


def test_all_to_all_in_a_cell_is_bound_by_ports_or_uplinks():
    took = all_to_all(NET, range(PER_CELL), 1e6)
    ports = (PER_CELL - 1) * 1e6 / (4 * 12.5e9)
    assert ports < took < 1.3 * ports  # 20 ports down, 18 up: pruned 1.11 to 1


def test_ring_placed_cell_by_cell_beats_one_that_alternates():
    near = [*range(32), *range(PER_CELL, PER_CELL + 32)]
    far = [n for pair in zip(range(32), range(PER_CELL, PER_CELL + 32), strict=True) for n in pair]
    assert ring_all_reduce(NET, near, 1e9) < ring_all_reduce(NET, far, 1e9)


def test_small_all_reduce_pays_latency_for_each_step():
    one = ring_all_reduce(NET, range(8), 8.0)
    assert one > 14 * LEONARDO.node.network.latency


@pytest.mark.parametrize("placement", [[0], [0, 0], [0, 99999], [-1, 2]])
def test_impossible_placements_are_refused(placement):
    with pytest.raises(UsageError, match="different nodes"):
        all_to_all(NET, placement, 1.0)


def test_a_rate_the_device_lacks_is_refused():
    with pytest.raises(UsageError, match="no rate 'fp8'"):
        peak_rate(LEONARDO, "fp8")


def test_storage_is_catalogued():
    fast, large = LEONARDO.storage
    assert fast.bandwidth > large.bandwidth
    assert large.capacity == 106e15
