"""Hardware: what devices, links, servers and supercomputers are, and the catalogue of those that can be bought.

Here live the frozen values (``types``), the catalogue and its data files (``catalogue``, ``schema``, ``data/``),
networks as graphs (``topology``), derived Lite-GPUs (``lite``), and what this machine is made of (``detect``). How long
anything takes on them does not: that is the ``cost`` room's.
"""

from nearpeak.hardware.catalogue import (
    cluster,
    clusters,
    device,
    devices,
    link,
    links,
    load,
    node,
    node_of,
    systems,
)
from nearpeak.hardware.detect import here
from nearpeak.hardware.lite import lite, lite_node
from nearpeak.hardware.types import Cluster, Device, DragonflyPlus, Link, MemoryLevel, Node, Price, StorageTier

__all__ = [
    "Cluster",
    "Device",
    "DragonflyPlus",
    "Link",
    "MemoryLevel",
    "Node",
    "Price",
    "StorageTier",
    "cluster",
    "clusters",
    "device",
    "devices",
    "here",
    "link",
    "links",
    "lite",
    "lite_node",
    "load",
    "node",
    "node_of",
    "systems",
]
