"""Networks of supercomputers as graphs: hops, bisection, and what a collective costs with nodes placed where they are.

Switches are vertices, cables are edges, and a node's ports end at leaf switches. Traffic takes all shortest paths
between two leaves in equal parts (minimal routing), so a collective takes as long as its fullest cable. Adaptive
routing over longer paths can do better where few cells talk; it is not modelled: these times are upper bounds there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError
from nearpeak.hardware.types import Cluster

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Network:
    """A switch graph with nodes on it.

    Attributes:
        edges: ``[cables, 2]`` switch indices. Cables are full duplex.
        bandwidth: bytes/s of a cable, each direction.
        cell: ``[switches]`` the cell a switch stands in.
        ports: ``[nodes, ports]`` the leaf switch at the end of each port of a node.
        port_bandwidth: bytes/s of a port, each direction.
        adapter_latency: seconds from memory to memory over one switch, less ``switch_latency``.
        switch_latency: seconds through a switch.
    """

    edges: Ints
    bandwidth: float
    cell: Ints
    ports: Ints
    port_bandwidth: float
    adapter_latency: float
    switch_latency: float

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return len(self.ports)

    @property
    def node_cell(self) -> Ints:
        """``[nodes]`` the cell of each node."""
        return np.asarray(self.cell[self.ports[:, 0]])


@cache
def network(cluster: Cluster) -> Network:
    """The network of a cluster, nodes filling one cell after another.

    Raises:
        UsageError: the cluster's topology is not known.
    """
    plan, port = cluster.topology, cluster.node.network
    if plan is None or port is None:
        raise UsageError(f"the network of cluster {cluster.name!r} is not known; describe it as dragonfly_plus")
    per_cell = plan.leaves + plan.spines
    first = per_cell * np.arange(plan.cells)
    leaf, spine = np.meshgrid(np.arange(plan.leaves), plan.leaves + np.arange(plan.spines), indexing="ij")
    inside = np.stack([leaf.ravel(), spine.ravel()], axis=1)
    here, there = np.triu_indices(plan.cells, k=1)
    across = np.stack([first[here], first[there]], axis=1)[:, None, :] + plan.leaves + np.arange(plan.spines)[:, None]

    node = np.arange(cluster.count)
    rail = np.arange(cluster.node.nics) * plan.rails // cluster.node.nics
    group = node % plan.nodes_per_cell % (plan.leaves // plan.rails)
    return Network(
        edges=np.concatenate([(first[:, None, None] + inside).reshape(-1, 2), across.reshape(-1, 2)]),
        bandwidth=plan.link.bandwidth,
        cell=np.repeat(np.arange(plan.cells), per_cell),
        ports=(first[node // plan.nodes_per_cell] + plan.rails * group)[:, None] + rail,
        port_bandwidth=port.bandwidth,
        adapter_latency=port.latency - plan.switch_latency,
        switch_latency=plan.switch_latency,
    )


@cache
def _directed(net: Network) -> tuple[Ints, Ints]:
    """Tails and heads of both directions of every cable, each ``[2 * cables]``."""
    directed = np.concatenate([net.edges, net.edges[:, ::-1]])
    return directed[:, 0].copy(), directed[:, 1].copy()


@cache
def switch_hops(net: Network, switch: int) -> Ints:
    """``[switches]`` cables on the shortest path from a switch to each other one, by breadth-first search; -1: none."""
    tails, heads = _directed(net)
    hops = np.full(len(net.cell), -1, dtype=np.int64)
    reached, distance = np.array([switch]), 0
    while len(reached):
        hops[reached] = distance
        reached = heads[(hops[tails] == distance) & (hops[heads] < 0)]
        distance += 1
    hops.flags.writeable = False  # cached: shared by all callers
    return hops


def hops(net: Network, node: int) -> Ints:
    """``[nodes]`` the fewest switch-to-switch cables between this node and each other: 0 where they share a leaf."""
    leaves = np.unique(net.ports[node])
    distances = np.stack([switch_hops(net, int(leaf)) for leaf in leaves])
    return np.asarray(distances[:, net.ports].min(axis=(0, 2)))


def cut_bandwidth(net: Network, side: NDArray[np.bool_]) -> float:
    """Bytes/s each way over the cables between the switches where ``side [switches]`` is true and the others."""
    return float(np.count_nonzero(side[net.edges[:, 0]] != side[net.edges[:, 1]]) * net.bandwidth)


def bisection(net: Network) -> float:
    """Bytes/s each way between the first half of the cells that hold nodes and the second, all other cells on neither.

    Cells of a Dragonfly+ are alike and all joined, so any split of the cells into two halves gives the same. Paths over
    cells without nodes are not counted: minimal routing takes none.
    """
    cells = np.unique(net.node_cell)
    half = len(cells) // 2
    ends = net.cell[net.edges]
    one, other = np.isin(ends, cells[:half]), np.isin(ends, cells[half:])
    between = (one[:, 0] & other[:, 1]) | (one[:, 1] & other[:, 0])
    return float(np.count_nonzero(between) * net.bandwidth)


def cable_loads(net: Network, demand: Floats, leaves: Ints) -> tuple[Ints, Floats]:
    """Bytes over each direction of each cable when leaves send to one another over all shortest paths in equal parts.

    Brandes' accumulation (2001), with the bytes for a vertex in place of 1.

    Args:
        net: the network.
        demand: ``[n, n]`` bytes from each of ``leaves`` to each.
        leaves: ``[n]`` switch indices.

    Returns:
        ``[2 * cables, 2]`` directed cables, and ``[2 * cables]`` bytes over each.
    """
    tails, heads = _directed(net)
    switches = len(net.cell)
    loads = np.zeros(len(tails))
    for row, source in enumerate(leaves):
        distance = switch_hops(net, int(source))
        forward = distance[heads] == distance[tails] + 1
        by_distance = [np.flatnonzero(forward & (distance[tails] == d)) for d in range(int(distance.max()))]
        paths = np.zeros(switches)
        paths[source] = 1.0
        for cables in by_distance:
            paths += np.bincount(heads[cables], paths[tails[cables]], minlength=switches)
        bound = np.zeros(switches)
        bound[leaves] = demand[row]
        for cables in reversed(by_distance):
            carried = paths[tails[cables]] / paths[heads[cables]] * bound[heads[cables]]
            loads[cables] += carried
            bound += np.bincount(tails[cables], carried, minlength=switches)
    return np.stack([tails, heads], axis=1), loads


def _transfer(net: Network, senders: Ints, receivers: Ints, size: float) -> float:
    """Seconds until every pair ``senders[i] -> receivers[i]`` has moved ``size`` bytes, all at once."""
    nodes, ends = np.unique(np.stack([senders, receivers]), return_inverse=True)
    leaves, place = np.unique(net.ports[nodes], return_inverse=True)
    ports = net.ports.shape[1]
    share = np.zeros((len(nodes), len(leaves)))  # the part of a node's traffic at each leaf
    np.add.at(share, (np.arange(len(nodes))[:, None], place.reshape(-1, ports)), 1 / ports)
    between = np.zeros((len(nodes), len(nodes)))
    np.add.at(between, tuple(ends.reshape(2, -1)), size)
    demand = share.T @ between @ share
    _, loads = cable_loads(net, demand, leaves)
    port = max(between.sum(axis=0).max(), between.sum(axis=1).max()) / ports
    apart = np.stack([switch_hops(net, int(leaf)) for leaf in leaves])[:, leaves]
    farthest = int(apart[demand > 0].max())
    latency = net.adapter_latency + (farthest + 1) * net.switch_latency
    return float(latency + max(port / net.port_bandwidth, loads.max() / net.bandwidth))


def all_to_all(net: Network, placement: Sequence[int], size: float) -> float:
    """Seconds of an all-to-all in which each node of ``placement`` sends ``size`` bytes to each other one.

    Raises:
        UsageError: a node is named twice, is not in the network, or is alone.
    """
    nodes = _checked(net, placement)
    senders, receivers = (np.ravel(side) for side in np.meshgrid(nodes, nodes, indexing="ij"))
    apart = senders != receivers
    return _transfer(net, senders[apart], receivers[apart], size)


def ring_all_reduce(net: Network, placement: Sequence[int], size: float) -> float:
    """Seconds of a ring all-reduce of ``size`` bytes, each node passing to the next of ``placement``: 2 (n - 1) steps.

    Raises:
        UsageError: a node is named twice, is not in the network, or is alone.
    """
    nodes = _checked(net, placement)
    return 2 * (len(nodes) - 1) * _transfer(net, nodes, np.roll(nodes, -1), size / len(nodes))


def _checked(net: Network, placement: Sequence[int]) -> Ints:
    nodes = np.asarray(placement, dtype=np.int64)
    if len(np.unique(nodes)) != len(nodes) or len(nodes) < 2 or nodes.min() < 0 or nodes.max() >= net.nodes:
        raise UsageError(f"placement {list(placement)[:8]}: give two or more different nodes, each below {net.nodes}")
    return nodes


def peak_rate(cluster: Cluster, rate: str) -> float:
    """FLOP/s of all accelerators of a cluster at a rate key, e.g. ``fp64_tensor``.

    Raises:
        UsageError: the device has no such rate.
    """
    rates = cluster.node.device.rates
    if rate not in rates:
        raise UsageError(f"device {cluster.node.device.name!r} has no rate {rate!r}; it has {', '.join(rates)}")
    return cluster.devices * rates[rate]


def power_parts(cluster: Cluster) -> dict[str, float]:
    """Watts of a machine under full load by what draws them: accelerators, the rest of the nodes, switches."""
    node = cluster.node
    parts = {"devices": cluster.devices * node.device.tdp, "nodes": cluster.count * node.overhead_power}
    if cluster.topology is not None:
        parts["switches"] = cluster.topology.switches * cluster.topology.switch_power
    return parts
