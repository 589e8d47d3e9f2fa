"""Time of collectives among the devices of one group, over the link that joins them."""

import numpy as np
from numpy.typing import ArrayLike

from nearpeak.cost.calibration import Array
from nearpeak.cost.platform import BF16, Platform, Work, seconds
from nearpeak.errors import UnknownName, UsageError
from nearpeak.hardware import Link

SHARES = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0, "send_recv": 1.0}
"""How often the ``(ranks - 1) / ranks`` of a message that is not a device's own crosses its link."""


def collective(p: Platform, op: str, size: ArrayLike, ranks: ArrayLike, link: Link | None = None) -> Array:
    """Seconds of a collective over ``size`` bytes: the whole vector that is reduced, gathered, scattered or exchanged.

    A ring moves ``(ranks - 1) / ranks`` of it (twice in an all-reduce) over each device's link; small messages are
    bound by latency. The engines' own all-reduce takes small messages where it is faster than NCCL's.

    Args:
        op: all_reduce, all_gather, reduce_scatter, all_to_all or send_recv (whose ``ranks`` is 2).
        link: other than the platform's scale-up link, for groups that span nodes.

    Raises:
        UnknownName: no such collective.
        UsageError: more than one rank, but no link.
    """
    moved, group = np.asarray(size, float), np.asarray(ranks, float)
    if op not in SHARES:
        raise UnknownName("collective", op, SHARES)
    over = link or p.link
    if over is None:
        if np.any(group > 1):
            raise UsageError(f"device {p.device.name!r} has no link to its peers; give one, or run on 1 device")
        return np.zeros(np.broadcast_shapes(moved.shape, group.shape))
    time = seconds(p, collective_work(op, moved, group, over))
    if op == "all_reduce" and "allreduce_custom" in p.calibration.operators and over == p.link:
        time = np.minimum(time, seconds(p, collective_work("allreduce_custom", moved, group, over)))
    return np.asarray(np.where((group > 1) & (moved > 0), time, 0.0))


def collective_work(op: str, size: Array, ranks: Array, link: Link) -> Work:
    """A ring's traffic over the link; hops of latency are the correction's, which depends on ranks."""
    group, moved = np.maximum(ranks, 2.0), np.maximum(size, 1.0)
    part = (group - 1.0) / group
    share = 1.0 if op == "send_recv" else SHARES.get(op, 2.0) * part
    once = np.where(op == "send_recv", 1.0, part) * moved / link.bandwidth
    latency = np.log2(group) * link.latency
    coordinates = (np.log2(moved), np.log2(group))
    return Work(op, np.asarray(BF16), latency, share * moved / link.bandwidth, once, coordinates)
