"""What a catalogue file may say, and how it becomes values in SI units. Every mistake names file, entry and key.

Numbers are SI (bytes/s, FLOP/s, Hz, W, m², s); capacities are strings with a binary or decimal unit ("80 GiB"),
because memory is sold in them. Every figure has a source: ``sources.default``, or an entry under the figure's name.
"""

import itertools
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from nearpeak.errors import UsageError
from nearpeak.hardware.catalogue import Catalogue, squeezed
from nearpeak.hardware.types import (
    Cluster,
    Device,
    DeviceKind,
    DragonflyPlus,
    Link,
    LinkKind,
    MemoryLevel,
    Node,
    Price,
    StorageTier,
)

E = TypeVar("E", bound="_Entry")
V = TypeVar("V")

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Date = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]
Rate = Literal[
    "fp64", "fp64_tensor", "fp32", "fp32_tensor", "tf32", "bf16", "fp16", "fp8", "fp6", "int8", "fp4", "int4"
]

DECIMAL = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}
BINARY = {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}
UNITS = DECIMAL | BINARY


class _Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    title: Text


class LevelEntry(msgspec.Struct, forbid_unknown_fields=True):
    """One memory level."""

    name: Text
    capacity: str
    bandwidth: Positive


class PriceEntry(msgspec.Struct, forbid_unknown_fields=True):
    """One list price."""

    per_hour: Positive
    date: Date
    source: Text


class DeviceEntry(_Entry, kw_only=True):
    """``[device.NAME]``."""

    vendor: Text
    kind: DeviceKind
    architecture: Text
    year: Annotated[int, msgspec.Meta(ge=2000)]
    rates: dict[Rate, Positive]
    memory: Annotated[list[LevelEntry], msgspec.Meta(min_length=1)]
    units: Count
    clock: Positive
    tdp: Positive
    sources: dict[str, Text]
    sparse_rates: dict[Rate, Positive] = {}
    aliases: list[Text] = []
    idle_power: Positive | None = None
    base_clock: Positive | None = None
    scale_up: str | None = None
    host_link: str | None = None
    single_thread: Positive | None = None
    die_area: Positive | None = None
    embodied_carbon: Positive | None = None
    prices: list[PriceEntry] = []


class LinkEntry(_Entry, kw_only=True):
    """``[link.NAME]``."""

    kind: LinkKind
    bandwidth: Positive
    latency: Positive
    source: Text


class SystemEntry(_Entry, kw_only=True):
    """``[system.NAME]``: ``device``, ``scale_up``, ``network`` and ``host`` are names in the catalogue."""

    device: str
    count: Count
    scale_up: str
    source: Text
    aliases: list[Text] = []
    network: str | None = None
    nics: Annotated[int, msgspec.Meta(ge=0)] = 0
    host: str | None = None
    hosts: Annotated[int, msgspec.Meta(ge=0)] = 0
    host_memory: str | None = None
    overhead_power: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class DragonflyPlusEntry(msgspec.Struct, forbid_unknown_fields=True):
    """``[cluster.NAME.dragonfly_plus]``: ``link`` is the name of the link between switches."""

    cells: Count
    leaves: Count
    spines: Count
    nodes_per_cell: Count
    rails: Count
    link: str
    switch_latency: Positive
    switch_power: Positive
    source: Text


class ClusterEntry(_Entry, kw_only=True):
    """``[cluster.NAME]``: ``node`` is a system's name."""

    node: str
    count: Count
    source: Text
    dragonfly_plus: DragonflyPlusEntry | None = None
    storage: list[LevelEntry] = []
    pue: Annotated[float, msgspec.Meta(ge=1)] | None = None


class _EntryError(Exception):
    """What is wrong with one entry, before the file and the entry are named."""


Tables = dict[str, dict[str, tuple[Path, Any]]]


def read(layers: Iterable[Iterable[Path]]) -> Catalogue:
    """The catalogue in these files. An entry of a later layer replaces that of the same name in an earlier one.

    Raises:
        UsageError: a file cannot be read, is no TOML, says something that the schema does not allow, or describes
            something that another file of its layer describes.
    """
    tables: Tables = {"device": {}, "link": {}, "system": {}, "cluster": {}}
    for layer in layers:
        for section, entries in _tables(layer).items():
            tables[section] |= entries
    links = _built("link", tables, LinkEntry, _link)
    devices = _built("device", tables, DeviceEntry, lambda n, e: _device(n, e, links))
    systems = _built("system", tables, SystemEntry, lambda n, e: _node(n, e, devices, links))
    clusters = _built("cluster", tables, ClusterEntry, lambda n, e: _cluster(n, e, systems, links))
    spellings = {
        "device": _spellings("device", {n: d.aliases for n, d in devices.items()}),
        "system": _spellings("system", {n: s.aliases for n, s in systems.items()}),
        "link": _spellings("link", dict.fromkeys(links, ())),
        "cluster": _spellings("cluster", dict.fromkeys(clusters, ())),
    }
    return Catalogue(devices, links, systems, clusters, spellings)


def _tables(layer: Iterable[Path]) -> Tables:
    tables: Tables = {"device": {}, "link": {}, "system": {}, "cluster": {}}
    for path in layer:
        for section, entries in _parsed(path).items():
            if section not in tables or not isinstance(entries, dict):
                allowed = ", ".join(f"[{s}.NAME]" for s in tables)
                raise UsageError(f"{path}: top-level key {section!r}; allowed: {allowed}")
            for name, entry in entries.items():
                if name in tables[section]:
                    raise UsageError(f"{path}: {section} {name!r} is also described in {tables[section][name][0]}")
                tables[section][name] = (path, entry)
    return tables


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from error


def _built(section: str, tables: Tables, schema: type[E], build: Callable[[str, E], V]) -> dict[str, V]:
    built = {}
    for name, (path, entry) in tables[section].items():
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise UsageError(f"{path}: {section} {name!r}: names are lower-case letters, digits and underscores")
        try:
            built[name] = build(name, msgspec.convert(entry, schema))
        except (_EntryError, msgspec.ValidationError) as error:
            raise UsageError(f"{path}: {section} {name!r}: {_key_first(str(error))}") from None
    return built


def _key_first(message: str) -> str:
    """``Expected ... - at `$.a.b` `` as ``key a.b: expected ...``."""
    what, _, where = message.partition(" - at `$.")
    return f"key {where.rstrip('`')}: {what[0].lower()}{what[1:]}" if where else what


def capacity(text: str) -> float:
    """Bytes of a capacity such as "80 GiB" or "256 MB"."""
    number, _, unit = text.partition(" ")
    try:
        value = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        units = ", ".join(UNITS)
        raise _EntryError(f"capacity {text!r}: write a number and one of {units}, such as '80 GiB'") from None
    if value <= 0:
        raise _EntryError(f"capacity {text!r} is not positive")
    return value


def _link(name: str, entry: LinkEntry) -> Link:
    return Link(name, **msgspec.structs.asdict(entry))


def _device(name: str, entry: DeviceEntry, links: Mapping[str, Link]) -> Device:
    facts = msgspec.structs.asdict(entry)
    for key in ("scale_up", "host_link"):
        if facts[key] is not None:
            _look_up(key, facts[key], links)
    if not entry.rates:
        raise _EntryError("key rates: empty; give at least one peak rate")
    for rate, sparse in entry.sparse_rates.items():
        if sparse < entry.rates.get(rate, float("inf")):
            raise _EntryError(f"key sparse_rates.{rate}: below the dense rate, or no dense rate is given")
    if "default" not in entry.sources:
        raise _EntryError("key sources.default: missing; say where the figures were read")
    for figure in entry.sources:
        top, _, part = figure.partition(".")
        if figure != "default" and (facts.get(top) in (None, {}, []) or (part and part not in facts[top])):
            raise _EntryError(f"key sources.{figure}: a source for a figure that is not given")
    memory = tuple(MemoryLevel(m.name, capacity(m.capacity), m.bandwidth) for m in entry.memory)
    for outer, inner in itertools.pairwise(memory):
        if inner.bandwidth <= outer.bandwidth or inner.capacity >= memory[0].capacity:
            order = f"{inner.name!r} must be faster than {outer.name!r} and smaller than {memory[0].name!r}"
            raise _EntryError(f"key memory: {order}")
    facts |= {
        "memory": memory,
        "aliases": tuple(entry.aliases),
        "prices": tuple(Price(p.per_hour, p.date, p.source) for p in entry.prices),
    }
    return Device(name, **facts)


def _look_up(key: str, name: str, known: Mapping[str, V]) -> V:
    if name not in known:
        raise _EntryError(f"key {key}: {name!r} is not in the catalogue; known: {', '.join(sorted(known))}")
    return known[name]


def _node(name: str, entry: SystemEntry, devices: Mapping[str, Device], links: Mapping[str, Link]) -> Node:
    return Node(
        name=name,
        title=entry.title,
        device=_look_up("device", entry.device, devices),
        count=entry.count,
        scale_up=_look_up("scale_up", entry.scale_up, links),
        network=None if entry.network is None else _look_up("network", entry.network, links),
        nics=entry.nics,
        host=None if entry.host is None else _look_up("host", entry.host, devices),
        hosts=entry.hosts,
        host_memory=0.0 if entry.host_memory is None else capacity(entry.host_memory),
        overhead_power=entry.overhead_power,
        source=entry.source,
        aliases=tuple(entry.aliases),
    )


def _cluster(name: str, entry: ClusterEntry, systems: Mapping[str, Node], links: Mapping[str, Link]) -> Cluster:
    node = _look_up("node", entry.node, systems)
    network = None
    if entry.dragonfly_plus is not None:
        facts = msgspec.structs.asdict(entry.dragonfly_plus)
        network = DragonflyPlus(**facts | {"link": _look_up("dragonfly_plus.link", facts["link"], links)})
        room = network.cells * network.nodes_per_cell
        if entry.count > room:
            raise _EntryError(f"key count: {entry.count} nodes, but the network's cells take {room}")
        if node.network is None or node.nics % network.rails or network.leaves % network.rails:
            raise _EntryError("key dragonfly_plus.rails: must divide the node's network ports and a cell's leaves")
    storage = tuple(StorageTier(s.name, capacity(s.capacity), s.bandwidth) for s in entry.storage)
    return Cluster(name, entry.title, node, entry.count, entry.source, network, storage, entry.pue)


def _spellings(kind: str, named: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Squeezed spelling -> canonical name, for names with their aliases."""
    spellings: dict[str, str] = {}
    for name, aliases in named.items():
        for spelling in {squeezed(s) for s in (name, *aliases)}:
            if spelling in spellings:
                raise UsageError(f"{kind}s {spellings[spelling]!r} and {name!r} share the alias {spelling!r}")
            spellings[spelling] = name
    return spellings
