"""What tokens take on their way between attention and experts, on other devices of the node or on other nodes.

Each of ``S`` sending devices has its part of the tokens; a token goes to the devices that hold its ``topk`` experts.
Routed evenly, it meets ``n (1 - (1 - 1/n) ** topk)`` of ``n`` devices, or of ``n`` nodes. Between nodes there are two
ways, and the quicker is taken (Zhang et al., "Janus", arXiv 2512.13525, section on adaptive two-phase communication):

    direct      every sender sends every receiving device its tokens: many small messages, and a token that meets
                several devices of a node crosses the network once for each
    two-phase   the devices of a node gather their tokens over its own links, then nodes send to nodes, a token once to
                each node, all ports at once; the receiving node hands it round over its links

The way back is the mirror of the way there, and is priced the same.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost import Platform
from nearpeak.cost.collectives import collective
from nearpeak.cost.fabric import LL128, Fabric
from nearpeak.cost.step import ACTIVATION
from nearpeak.errors import UsageError
from nearpeak.hardware import Link, Node

Array = NDArray[np.float64]
WAYS = ("in the node", "direct", "two-phase")


@dataclass(frozen=True, eq=False)
class Transfer:
    """One way of one layer's tokens; arrays that broadcast. ``seconds``; ``way``: index in ``WAYS``."""

    seconds: Array
    way: NDArray[np.int64]


def reached(devices: ArrayLike, topk: ArrayLike) -> Array:
    """Of so many devices (or nodes), how many a token of ``topk`` evenly dealt experts meets in the mean."""
    n = np.asarray(devices, float)
    return np.asarray(n * (1 - (1 - 1 / n) ** np.asarray(topk, float)))


def transfer(
    platform: Platform,
    node: Node,
    tokens: ArrayLike,
    width: float,
    topk: int,
    senders: ArrayLike,
    receivers: ArrayLike,
    same: bool = False,
) -> Transfer:
    """Seconds from the attention devices to the experts' for one layer.

    Args:
        tokens: of all senders together. width: values of a token.
        senders, receivers: devices that hold attention, and that hold experts.
        same: both are the same devices, as in a monolith; else they are different ones.

    Raises:
        UsageError: the devices do not fit one node, and the node has no network.
    """
    t, s, r = (np.asarray(a, float) for a in (tokens, senders, receivers))
    size = width * ACTIVATION
    # The busiest port: of a sender, or of a receiver where those are fewer.
    part = t * reached(r, topk) / np.minimum(s, r) * size
    together = np.where(same, r, s + r)
    near = together <= node.count
    inside = collective(platform, "all_to_all", part, np.minimum(together, node.count))
    if node.network is None:
        if not near.all():
            raise UsageError(
                f"{int(together.max())} devices exceed the {node.count} of {node.title}, which no network joins"
            )
        return Transfer(np.where(together > 1, inside, 0.0), np.zeros(near.shape, np.int64))
    crowd = max(1.0, node.count / max(1, node.nics))  # devices to a port
    from_nodes, to_nodes = np.ceil(s / node.count), np.ceil(r / node.count)
    from_each, to_each = np.minimum(s, node.count), np.minimum(r, node.count)
    # What is for the own node need not cross the network.
    far = (to_nodes - 1) / to_nodes if same else np.ones(())
    direct = _sent(platform, node.network, part * far * crowd, np.maximum(s, r))
    copies = t * reached(to_nodes, topk)
    port = np.maximum(copies / (from_nodes * from_each), copies / (to_nodes * to_each)) * size * far * crowd
    handed = collective(platform, "all_gather", copies / to_nodes * size, to_each)
    gathered = collective(platform, "all_gather", t / from_nodes * size, from_each)
    phased = gathered + _sent(platform, node.network, port, np.maximum(from_nodes, to_nodes)) + handed
    way = np.where(near, 0, np.where(direct <= phased, 1, 2))
    seconds = np.where(near, inside, np.minimum(direct, phased))
    return Transfer(np.where(together > 1, seconds, 0.0), way)


def _sent(platform: Platform, link: Link, size: Array, messages: Array) -> Array:
    """Seconds of ``size`` bytes over a port, in messages that its proxy posts one after another."""
    return np.asarray(collective(platform, "send_recv", size, 2, Fabric(link)) + (messages - 1) * LL128.posted)
