"""The catalogue: devices, links, servers and supercomputers by name, read from TOML files and checked as they are read.

The files under ``data/`` come with the package; ``load`` puts a user's own on top of them. All have one form, tables
``[device.NAME]``, ``[link.NAME]``, ``[system.NAME]`` and ``[cluster.NAME]``, described in ``schema.py``. Nothing is
read before the first name is asked for.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

from nearpeak.errors import UnknownName, UsageError
from nearpeak.hardware.types import Cluster, Device, Link, Node

T = TypeVar("T")

DATA = Path(__file__).parent / "data"
"""Where the package's own files are."""

WAY_OUT = "(your own hardware: describe it in a TOML file and read it with nearpeak.hardware.load)"


@dataclass(frozen=True)
class Catalogue:
    """Everything known, by canonical name.

    ``spellings``: for each kind ("device", "link", "system", "cluster"), any squeezed spelling -> canonical name.
    """

    devices: Mapping[str, Device]
    links: Mapping[str, Link]
    systems: Mapping[str, Node]
    clusters: Mapping[str, Cluster]
    spellings: Mapping[str, Mapping[str, str]]


_layers: list[list[Path]] = [sorted(DATA.rglob("*.toml"))]


@cache
def _catalogue() -> Catalogue:
    from nearpeak.hardware.schema import read  # msgspec and the TOML parser: only when a name is asked for

    return read(_layers)


def load(paths: Iterable[str | Path]) -> None:
    """Put a user's own TOML files on top of the catalogue, for this process. A name read again replaces the old one.

    Raises:
        UsageError: a file is missing or wrong; the message names the file, the entry and the key. Nothing is changed.
    """
    from nearpeak.hardware.schema import read

    new = [Path(p) for p in paths]
    read([*_layers, new])
    _layers.append(new)
    _catalogue.cache_clear()


def squeezed(name: str) -> str:
    """A name without case, spaces and punctuation: ``RTX 4090``, ``rtx-4090`` and ``RTX4090`` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _named(kind: str, name: str, known: Mapping[str, T]) -> T:
    try:
        return known[_catalogue().spellings[kind][squeezed(name)]]
    except KeyError:
        raise UnknownName(kind, name, known, WAY_OUT) from None


def device(name: str) -> Device:
    """A device by name or alias, product names as ``nvidia-smi`` prints them included.

    Raises:
        UnknownName: no device is called so.
    """
    return _named("device", name, _catalogue().devices)


def link(name: str) -> Link:
    """A link by name.

    Raises:
        UnknownName: no link is called so.
    """
    return _named("link", name, _catalogue().links)


def node(name: str) -> Node:
    """A catalogued server by name or alias, e.g. ``hgx_h100``.

    Raises:
        UnknownName: no system is called so.
    """
    return _named("system", name, _catalogue().systems)


def cluster(name: str) -> Cluster:
    """A catalogued supercomputer by name, e.g. ``leonardo``.

    Raises:
        UnknownName: no cluster is called so.
    """
    return _named("cluster", name, _catalogue().clusters)


def devices() -> dict[str, Device]:
    """All devices by canonical name."""
    return dict(_catalogue().devices)


def links() -> dict[str, Link]:
    """All links by name."""
    return dict(_catalogue().links)


def systems() -> dict[str, Node]:
    """All catalogued servers by name."""
    return dict(_catalogue().systems)


def clusters() -> dict[str, Cluster]:
    """All catalogued supercomputers by name."""
    return dict(_catalogue().clusters)


SERVER_DEVICES = 8
"""Devices in a server that the catalogue does not describe: what fits a dual-socket PCIe chassis."""


def node_of(device_name: str | Device, count: int | None = None) -> Node:
    """The standard server of a device: the first catalogued one that holds it, otherwise an assumed PCIe server.

    The assumed server holds 8 accelerators (or 1 CPU or Apple chip) joined by their scale-up link or else their host
    link, two Xeon 8480+ hosts, 1 TiB, and a 100 Gb/s Ethernet port for every two accelerators; its ``source`` says so.

    Args:
        device_name: name or alias, or a ``Device`` that is in no catalogue.
        count: devices in the server; None for as many as it is sold with. Ports and overhead power follow in
            proportion, as in an instance that rents part of a server.

    Raises:
        UnknownName: no device is called so.
        UsageError: ``count`` is below 1.
    """
    found = device_name if isinstance(device_name, Device) else device(device_name)
    if count is not None and count < 1:
        raise UsageError(f"a node of {found.name} with {count} devices; give at least 1")
    server = next((n for n in _catalogue().systems.values() if n.device == found), None) or _assumed_server(found)
    if count is None or count == server.count:
        return server
    share = count / server.count
    return replace(
        server,
        name=f"{server.name}_x{count}",
        title=f"{server.title}, with {count} devices",
        count=count,
        nics=math.ceil(server.nics * share),
        overhead_power=server.overhead_power * share,
    )


def _assumed_server(found: Device) -> Node:
    joined = found.scale_up or found.host_link
    if joined is None:
        raise UsageError(f"device {found.name!r} has neither scale_up nor host_link; give one to have a server assumed")
    if found.kind in ("cpu", "apu"):
        return Node(
            name=f"{found.name}_host",
            title=f"a machine with one {found.title}",
            device=found,
            count=1,
            scale_up=link(joined),
            network=link("ethernet_25"),
            nics=1,
            host_memory=found.memory_capacity,
            overhead_power=0.3 * found.tdp,
            source="assumed: one chip, one 25 Gb/s port, board and fans at 30% of the chip's power",
        )
    host = device("xeon_8480")
    return Node(
        name=f"{found.name}_server",
        title=f"a PCIe server of {SERVER_DEVICES} {found.title}",
        device=found,
        count=SERVER_DEVICES,
        scale_up=link(joined),
        network=link("ethernet_100"),
        nics=SERVER_DEVICES // 2,
        host=host,
        hosts=2,
        host_memory=2.0**40,
        overhead_power=2 * host.tdp + 400.0,
        source="assumed: 8 devices, 2 x Xeon 8480+, 1 TiB, 4 x 100 Gb/s Ethernet, 400 W of fans, disks and ports",
    )
