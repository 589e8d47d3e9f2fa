"""Time of collectives between nodes, over the ports of a network.

NCCL takes the faster of a ring through all devices and a tree over the nodes, in one of three protocols: LL and LL128
send flags with the data, which is quick to start and spends bandwidth; Simple waits for whole chunks. Its constants are
those of its own tuning tables (NVIDIA, NCCL 2.27, ``src/graph/tuning.cc``), which NVIDIA fitted to its machines.

Hierarchical recursive doubling (NVRAR: Singhania et al., arXiv:2511.09557) sums inside each node first, so that every
device is left with a part; devices of equal place then exchange parts with partners 1, 2, 4, ... nodes away, with flags
in the data; last, nodes gather the parts. Few messages follow one another, so it wins where latency counts; a ring
sends each byte fewer times and wins where bandwidth does.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from nearpeak.cost.calibration import Array
from nearpeak.cost.platform import Platform
from nearpeak.cost.schedules import doubling, ring, tree
from nearpeak.errors import UnknownName, UsageError
from nearpeak.hardware import Link

Way = Literal["nccl", "doubling"]


@dataclass(frozen=True)
class Fabric:
    """The network between nodes as a node sees it.

    Attributes:
        link: one port. ports: of a node; a device uses one, and devices share them where they are fewer.
        share: of a port's bandwidth that messages reach: assumed, until ``nearpeak.calibrate.network`` fits it.
        delay: seconds of every message between nodes beyond what NCCL's tables and the link's latency say.
    """

    link: Link
    ports: float = 1.0
    share: float = 0.85
    delay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse figures that no network has.

        Raises:
            UsageError: ports or share not above 0, a share above 1, or a delay below 0.
        """
        if not (self.ports > 0 and 0 < self.share <= 1 and self.delay >= 0):
            raise UsageError(
                f"network over {self.link.name!r}: ports {self.ports:g} must be above 0, share {self.share:g} above 0 "
                f"and at most 1, delay {self.delay:g} not below 0"
            )


@dataclass(frozen=True)
class Protocol:
    """How NCCL sends. Seconds: to start, of a message inside a node, of one between nodes. Shares of the bandwidth that
    is left for data, in a ring and in a tree. ``posted``: seconds a ring's proxies take to post each step.
    ``tree_pace``: of its bandwidth that a tree reaches, in tenths, at 64 bytes, 128 bytes, ... 512 MiB.
    """

    ring: tuple[float, float, float]
    tree: tuple[float, float, float]
    ring_share: float
    tree_share: float
    posted: float
    tree_pace: tuple[int, ...]


_PACES = (
    (10, 10, 10, 10, 9, 8, 7, 7, 7, 7, 6, 5, 4, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10, 10),
    (10, 10, 10, 10, 10, 9, 8, 8, 8, 7, 6, 6, 6, 6, 6, 6, 8, 9, 9, 9, 9, 10, 10, 10),
    (9, 9, 9, 9, 9, 9, 9, 8, 7, 6, 6, 5, 5, 5, 5, 6, 7, 8, 7, 7, 8, 9, 9, 9),
)
"""Trees fall behind the model at middle sizes; NCCL corrects its own by these tenths."""
LL = Protocol((6.6e-6, 0.6e-6, 2.7e-6), (6.8e-6, 0.6e-6, 5.0e-6), 0.5, 1 / 3.8, 1e-6, _PACES[0])
LL128 = Protocol((14.0e-6, 1.9e-6, 4.0e-6), (14.0e-6, 1.25e-6, 8.5e-6), 0.92, 0.92 * 120 / 128, 1e-6, _PACES[1])
SIMPLE = Protocol((8.4e-6, 3.4e-6, 14.0e-6), (8.4e-6, 4.0e-6, 14.0e-6), 1.0, 0.92, 3e-6, _PACES[2])
LL_PORTS = 0.9
"""LL between nodes carries at most so much of one port, however many there are: 22.5, 45 and 90 GB/s in NCCL's tables
for generations whose ports carry 25, 50 and 100."""
TUNED_LATENCY = 1.03e-6
"""Seconds of the InfiniBand link and switch in the tables' messages between nodes; other links differ by their own."""


def between_nodes(p: Platform, op: str, size: Array, devices: Array, nodes: Array, fabric: Fabric, way: Way) -> Array:
    """Seconds of a collective over ``nodes`` nodes of ``devices`` ranks each.

    With ``doubling``, an all-reduce's part between the nodes: what happens inside them comes on top.

    Raises:
        UnknownName: no such way.
    """
    if way not in get_args(Way):
        raise UnknownName("way of an all-reduce between nodes", way, get_args(Way))
    several = np.maximum(nodes, 2.0)
    if op == "all_reduce":
        return (
            _doubling(p, size, devices, several, fabric)
            if way == "doubling"
            else _nccl(p, size, devices, several, fabric)
        )
    return _fastest_ring(p, op, size, devices, several, fabric)


def _doubling(p: Platform, size: Array, devices: Array, nodes: Array, fabric: Fabric) -> Array:
    """Rounds of whole parts, half of each message flags; the parts are added from and to main memory."""
    part = size / devices
    port = fabric.link.bandwidth * fabric.share * np.minimum(1.0, fabric.ports / devices)
    schedule = doubling(nodes)
    start = np.where(devices > 1, 0.0, LL.ring[0])
    reading_two_writing_one = p.streaming(np.asarray(3.0))
    return start + schedule.seconds(
        part, _message(LL.ring[2], fabric), 1.0 / (LL.ring_share * port), reading_two_writing_one
    )


def _nccl(p: Platform, size: Array, devices: Array, nodes: Array, fabric: Fabric) -> Array:
    """The faster of rings and trees, whatever the protocol."""
    time = _fastest_ring(p, "all_reduce", size, devices, nodes, fabric)
    depth = tree(nodes).hops
    for protocol in _protocols(fabric):
        start, inside, outside = protocol.tree
        latency = start + 2.0 * (devices - 1.0) * inside + depth * _message(outside, fabric)
        pace = (
            np.interp(np.log2(np.maximum(size, 1.0) / 64.0), range(len(protocol.tree_pace)), protocol.tree_pace) / 10.0
        )
        rate = _rate(p, devices, fabric, protocol, protocol.tree_share) * pace
        time = np.minimum(time, latency + tree(nodes).moved * size / rate)
    return np.asarray(time)


def _fastest_ring(p: Platform, op: str, size: Array, devices: Array, nodes: Array, fabric: Fabric) -> Array:
    """A ring through all devices that enters and leaves each node once, so that few of its steps are between nodes.

    An all-to-all and a send take one step between nodes, and only what leaves the node crosses the network.
    """
    whole, outer = ring(op, devices * nodes), ring(op, nodes)
    direct = op in ("all_to_all", "send_recv")
    moved = devices * outer.moved if op == "all_to_all" else outer.moved if op == "send_recv" else whole.moved
    time: Array = np.asarray(np.inf)
    for protocol in _protocols(fabric):
        start, inside, outside = protocol.ring
        stepped = 0.0 if direct else (whole.hops - outer.hops) * max(inside, protocol.posted)
        latency = start + stepped + outer.hops * _message(outside, fabric)
        rate = _rate(p, devices, fabric, protocol, protocol.ring_share)
        time = np.minimum(time, latency + moved * size / rate)
    return np.asarray(time)


def _protocols(fabric: Fabric) -> tuple[Protocol, ...]:
    """NCCL trusts LL128, whose stores of 128 bytes must arrive whole, to adapters that speak InfiniBand's verbs."""
    return (LL, LL128, SIMPLE) if fabric.link.kind in ("infiniband", "ethernet") else (LL, SIMPLE)


def _message(tuned: float, fabric: Fabric) -> float:
    """Seconds of a message between nodes over this network's link."""
    return tuned + fabric.link.latency - TUNED_LATENCY + fabric.delay


def _rate(p: Platform, devices: Array, fabric: Fabric, protocol: Protocol, share: float) -> Array:
    """Bytes/s of data that pass from node to node, all ports in use together, or inside if that is slower."""
    ports = np.minimum(fabric.ports, devices)
    network = ports * fabric.link.bandwidth * fabric.share
    rate = network if p.link is None else np.where(devices > 1, np.minimum(network, p.link.bandwidth), network)
    data = rate * share
    return np.asarray(np.minimum(data, LL_PORTS * fabric.link.bandwidth) if protocol is LL else data)
