"""Time of collectives among the devices of one group: over a node's links, and over the network between nodes.

Inside a node two stacks are at work. NCCL runs rings; the engines' own all-reduce reads its peers' memory in one shot
where the message is small and in two where it is not, and leaves large messages, and more than two devices on a bus, to
NCCL. Physics gives both their latency and their traffic; corrections depend on how the two compare and on the ranks, so
that they carry over to a link of another speed. Between nodes see ``fabric``.
"""

import numpy as np
from numpy.typing import ArrayLike

from nearpeak.cost.calibration import Array
from nearpeak.cost.fabric import Fabric, Way, between_nodes
from nearpeak.cost.platform import BF16, Platform, Work, seconds
from nearpeak.cost.schedules import one_shot, ring, two_shot
from nearpeak.errors import UnknownName, UsageError
from nearpeak.hardware import Link

SHARES = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0, "send_recv": 1.0}
"""How often the ``(ranks - 1) / ranks`` of a message that is not a device's own crosses its link."""

LAUNCH, CUSTOM_LAUNCH, HOP = 11.3e3, 5.6e3, 1.5e3
"""Cycles of a device that NCCL and the engines' all-reduce take to start and finish, and one message between them:
8, 4 and 1 microseconds of an A100. Loops that poll flags run at the device's clock; links themselves are quicker."""
BUS_HOP = 5 / 3
"""A message over PCI Express takes so many times NVLink's (NCCL's tuning tables: 1.0 against 0.6 microseconds)."""
BRIDGED = 31.5e9
"""Bytes/s at which PCI Express peers beyond a pair reach one another, across host bridges, whatever their slots allow:
rings of four A100 (PCIe 4) and of four or eight RTX PRO 6000 (PCIe 5) both sustain 23 to 26 GB/s."""
SENT = 0.8
"""Share of a link's bandwidth that a lone send reaches: 0.75 to 0.9 from 8 MB on, of A100s over NVLink."""
CUSTOM_LIMIT = 8 * 2**20
"""Bytes that the engines' own all-reduce takes at most (vLLM's limit; SGLang takes up to twice that)."""


def collective(
    p: Platform,
    op: str,
    size: ArrayLike,
    ranks: ArrayLike,
    link: Link | Fabric | None = None,
    devices: ArrayLike = 1,
    way: Way = "nccl",
) -> Array:
    """Seconds of a collective over ``size`` bytes: the whole vector that is reduced, gathered, scattered or exchanged.

    Args:
        op: all_reduce, all_gather, reduce_scatter, all_to_all or send_recv (whose ``ranks`` is 2).
        link: between nodes, for groups that span several: their network, a link or a ``Fabric`` of several ports. None:
            all ranks are in one node.
        devices: ranks in each of ``ranks / devices`` nodes; read only with ``link``, and not by send_recv.
        way: how an all-reduce crosses nodes: ``nccl`` (the faster of its rings and trees), or ``doubling``
            (hierarchical recursive doubling). Inside a node the stack's own choice is always made.

    Raises:
        UnknownName: no such collective, or way.
        UsageError: more than one rank, but no link.
    """
    moved, group = np.asarray(size, float), np.asarray(ranks, float)
    if op not in SHARES:
        raise UnknownName("collective", op, SHARES)
    if link is None:
        return _in_node(p, op, moved, group)
    fabric = link if isinstance(link, Fabric) else Fabric(link)
    local = np.ones(()) if op == "send_recv" else np.minimum(np.asarray(devices, float), group)
    nodes = np.ceil(group / local)
    time = between_nodes(p, op, moved, local, nodes, fabric, way)
    if np.any(local > 1):
        # Doubling comes between the two halves of the sum inside; rings and trees pass through the node as they go.
        inside = _in_node(p, op, moved, local)
        whole = time + inside if way == "doubling" and op == "all_reduce" else np.maximum(time, inside)
        time = np.where(nodes > 1, whole, inside)
    return np.asarray(np.where((group > 1) & (moved > 0), time, 0.0))


def _in_node(p: Platform, op: str, size: Array, ranks: Array) -> Array:
    """Over the platform's own link: the faster of NCCL and, where there is one, the engine's all-reduce."""
    if p.link is None:
        if np.any(ranks > 1):
            raise UsageError(f"device {p.device.name!r} has no link to its peers; give one, or run on 1 device")
        return np.zeros(np.broadcast_shapes(size.shape, ranks.shape))
    work = collective_work(p, op, size, ranks, p.link)
    time = work.compute + work.traffic / SENT if op == "send_recv" else seconds(p, work)
    if op == "all_reduce" and "allreduce_custom" in p.calibration.operators:
        custom = seconds(p, collective_work(p, "allreduce_custom", size, ranks, p.link))
        time = np.where(size <= CUSTOM_LIMIT, np.minimum(time, custom), time)
    return np.asarray(np.where((ranks > 1) & (size > 0), time, 0.0))


def collective_work(p: Platform, op: str, size: Array, ranks: Array, link: Link) -> Work:
    """Latency of the schedule that runs (as ``compute``) and its traffic. ``op``: a collective or allreduce_custom.

    Corrections depend on the logarithm of traffic over latency, and of the ranks.
    """
    group, message = np.maximum(ranks, 2.0), np.maximum(size, 1.0)
    bus = link.kind == "pcie"
    cycle = 1.0 / p.device.clock
    hop = HOP * (BUS_HOP if bus else 1.0) * cycle
    beta = 1.0 / np.where(bus & (group > 2), min(link.bandwidth, BRIDGED), link.bandwidth)
    name = "all_reduce" if op == "allreduce_custom" else op
    rings = ring(name, group)
    latency, traffic = LAUNCH * cycle + rings.hops * hop, rings.moved * message * beta
    if op == "allreduce_custom":
        launch, wire = CUSTOM_LAUNCH * cycle, message * beta
        once, twice = one_shot(group), two_shot(group)
        single = once.hops * hop + once.moved * wire < twice.hops * hop + twice.moved * wire
        own = (message <= CUSTOM_LIMIT) & ((group <= 2) | (not bus))
        latency = np.where(own, launch + hop * np.where(single, once.hops, twice.hops), latency)
        traffic = np.where(own, wire * np.where(single, once.moved, twice.moved), traffic)
    least = np.where(op == "send_recv", 1.0, (group - 1.0) / group) * message / link.bandwidth
    coordinates = (np.log2(traffic / latency), np.log2(group))
    return Work(op, np.asarray(BF16), np.asarray(latency), np.asarray(traffic), least, coordinates)
