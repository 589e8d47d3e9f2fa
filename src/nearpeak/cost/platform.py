"""A device under an engine, with the constants that its operators run by.

Constants are looked up from the particular to the general: this device under this engine; this device otherwise; the
mean of all measured devices, each the weightier the more it is like this one. What was found says how far a prediction
can be trusted: *measured*, *transferred* (from another engine or format on this device, or from devices of which one
is of its maker and kind of memory), or *datasheet* (a device like none that was measured).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost.calibration import Array, Calibration, Entry, Kernel, blend, correction, join, kernel, stored
from nearpeak.cost.stored import in_use
from nearpeak.errors import UsageError
from nearpeak.formats import FORMATS, Format, code
from nearpeak.hardware import Device, Link, MemoryLevel
from nearpeak.hardware import device as catalogued

Evidence = Literal["measured", "transferred", "datasheet"]
BF16 = code("bf16")

EVERY_ENGINE = "nccl"
"""What all engines run alike: entries under this name are theirs."""

UNCALIBRATED = (8e-6, 0.55, 0.6)
"""Launch seconds and achieved fractions of peak rate and of bandwidth that kernels are assumed to reach where nothing
like them was measured."""
UNCALIBRATED_FACTORS = (0.5, 3.0)

NEARNESS = 1.5
"""How fast the weight of a measured device falls with its distance from one that was not (see ``_distance``)."""

ON_CPU = (0.0, 0.85, 0.8)
"""The same for a CPU, where no GPU's kernels tell anything: what measured peaks leave. Calling an operator costs what
the engine's constants say."""

HOST_BOUND = 4.0
"""Where an engine's launch takes this many times another engine's for the same products on the same device, it is the
host's: measured kernel by kernel, vLLM's block-scaled fp8 product took 90 to 280 microseconds at every small size. In a
captured graph nothing waits for the host, and the quicker engine's kernel tells more."""

SHARED_CACHES = ("L2", "L3", "Infinity Cache")
"""Names of cache levels that serve a whole device."""

ASSUMED_CACHE = (128 * 2**20, 8.0)
"""Bytes of a cache that the catalogue does not know, and its bandwidth over main memory's: no more than the largest
caches of GPUs, and their best ratios, since it only bounds times from below."""

_FALLBACK = {"fp4": "bf16", "fp8": "bf16", "int8": "bf16", "int4": "bf16", "bf16": "fp16", "fp16": "fp32"}
"""The rate that products run at where a device lacks their own: weights are kept in the narrow format and widened on
the way in, as Marlin kernels do. Half precision without tensor cores runs at fp32's rate."""


@dataclass(frozen=True)
class Work:
    """What an operator has to do, in seconds at the datasheet's peaks; arrays that broadcast.

    Attributes:
        op: the operator's name in the calibration.
        variant: code of the number formats (see ``variant_name``).
        compute: at the device's peak rate, whole tiles and waves included.
        traffic: at its bandwidth.
        floor: what no kernel can beat.
        coordinates: logarithms (base 2) of the sizes that corrections depend on, in the order of the operator's axes.
    """

    op: str
    variant: NDArray[np.intp]
    compute: Array
    traffic: Array
    floor: Array
    coordinates: tuple[Array, ...]


@dataclass(frozen=True)
class Constants:
    """Constants of one operator by variant: arrays ``[variants]``, tables ``[variants * knots]`` flattened."""

    row: NDArray[np.intp]
    launch: Array
    compute: Array
    traffic: Array
    tables: tuple[Array, ...]
    evidence: tuple[Evidence, ...]
    factors: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Platform:
    """A device, the link to its peers, and the engine whose kernels it runs.

    ``engine`` may name one of its kernels: ``sglang/triton``. ``rates`` and ``native`` by format code: peak FLOP/s of
    products in it, and whether the device multiplies it as it is. ``captured``: see ``in_graph``.
    """

    device: Device
    link: Link | None
    engine: str
    calibration: Calibration
    rates: Array
    native: NDArray[np.bool_]
    captured: bool = False
    _constants: dict[tuple[str, tuple[int, ...]], Constants] = field(default_factory=dict, compare=False, repr=False)
    _graph: list["Platform"] = field(default_factory=list, compare=False, repr=False)

    def in_graph(self) -> "Platform":
        """The same platform when its kernels are replayed from a captured graph, which never waits for the host."""
        if not self._graph:
            self._graph.append(replace(self, captured=True, _constants={}, _graph=[]))
        return self._graph[0]

    @property
    def cache(self) -> MemoryLevel | None:
        """The last-level cache that all units share, None where none is catalogued."""
        return next((level for level in self.device.memory[1:] if level.name in SHARED_CACHES), None)

    def rate(self, fmt: NDArray[np.intp]) -> Array:
        """Peak FLOP/s of products in a format.

        Raises:
            UsageError: the device multiplies neither in the format nor in one that its values can be widened to.
        """
        found = np.asarray(self.rates[fmt])
        if np.isnan(found).any():
            lacking = FORMATS[int(np.asarray(fmt)[np.isnan(found)].flat[0])].name
            able = ", ".join(f.name for f, rate in zip(FORMATS, self.rates, strict=True) if not np.isnan(rate))
            raise UsageError(f"device {self.device.name!r} cannot multiply {lacking}; it can {able}")
        return found

    def streaming(self, size: Array) -> Array:
        """Seconds to read or write ``size`` bytes once at the datasheet's bandwidth."""
        return size / self.device.memory_bandwidth

    def fastest(self, size: Array) -> Array:
        """Seconds that moving ``size`` bytes takes at least: what the cache can hold comes at its bandwidth."""
        main = self.device.memory_bandwidth
        cache = self.cache or MemoryLevel("assumed", ASSUMED_CACHE[0], ASSUMED_CACHE[1] * main)
        held = np.minimum(size, cache.capacity)
        return np.asarray(held / max(cache.bandwidth, main) + (size - held) / main)


def platform(
    device: Device, link: Link | None, engine: str = "vllm", calibration: Calibration | None = None
) -> Platform:
    """Resolve a device under an engine. ``link``: to its peers in a node, None for a device alone.

    Under the calibration in use the same device gives the same platform, with the constants that it has found so far.

    Raises:
        UsageError: the datasheet has no rate at which the device multiplies bf16, or anything that bf16 widens to.
    """
    if calibration is None:
        return _in_use(device, link, engine, in_use())
    return _resolved(device, link, engine, calibration)


@lru_cache(maxsize=128)
def _in_use(device: Device, link: Link | None, engine: str, folder: Path | None) -> Platform:
    return _resolved(device, link, engine, stored(folder))


def _resolved(device: Device, link: Link | None, engine: str, calibration: Calibration) -> Platform:
    rates, native = np.full(len(FORMATS), np.nan), np.zeros(len(FORMATS), bool)
    for i, fmt in enumerate(FORMATS):
        key: str | None = fmt.rate
        native[i] = key in device.rates
        while key is not None and key not in device.rates:
            key = _FALLBACK.get(key)
        if key is not None:
            rates[i] = device.rates[key]
    if np.isnan(rates[BF16]):
        raise UsageError(f"device {device.name!r} has no rate for bf16; it has {', '.join(device.rates)}")
    return Platform(device, link, engine, calibration, rates, native)


def real(x: ArrayLike) -> Array:
    """Sizes as float64."""
    return np.asarray(x, float)


def codes(x: ArrayLike) -> NDArray[np.intp]:
    """Format codes as indices."""
    return np.asarray(x, np.intp)


def variant_name(variant: int) -> str:
    """The name of a variant in the calibration: the weight's format, or compute+cache formats for attention."""
    product, cache = _product(variant)
    return product.name if cache is None else f"{product.name}+{cache.name}"


def variant_code(name: str) -> int:
    """The variant of that name: what ``variant_name`` undoes."""
    product, _, cache = name.partition("+")
    return int(pair(np.asarray(code(product)), np.asarray(code(cache)))) if cache else code(product)


def pair(compute: NDArray[np.intp], cache: NDArray[np.intp]) -> NDArray[np.intp]:
    """The variant of attention that multiplies in one format and caches keys and values in another."""
    return (np.asarray(compute) + 1) * len(FORMATS) + cache


def seconds(p: Platform, work: Work) -> Array:
    """Seconds that the work takes: roofline at achieved fractions, launch, correction; never below the floor."""
    variant = np.asarray(work.variant)
    have = constants(p, work.op, distinct(variant))
    row = have.row[variant]
    time = have.launch[row] + join(work.compute / have.compute[row], work.traffic / have.traffic[row])
    if have.tables:
        operator = p.calibration.operators[work.op]
        time = time * np.exp(correction(operator.axes, operator.tables, have.tables, row, work.coordinates))
    return np.asarray(np.maximum(time, work.floor))


def distinct(variant: NDArray[np.intp]) -> tuple[int, ...]:
    """The codes that occur in an array, in order."""
    return tuple(np.flatnonzero(np.bincount(variant.ravel())).tolist())


def constants(p: Platform, op: str, variants: tuple[int, ...]) -> Constants:
    """The constants of the variants that are asked for, found once and kept."""
    key = (op, variants)
    if key not in p._constants:
        p._constants[key] = _resolve(p, op, variants)
    return p._constants[key]


def evidence(p: Platform, op: str, fmt: int = BF16) -> Evidence:
    """What a prediction of this operator and variant rests on."""
    return constants(p, op, (int(fmt),)).evidence[0]


def interval(p: Platform, op: str, fmt: int = BF16) -> tuple[float, float]:
    """The factors on a prediction between which 80 % of measurements lay."""
    return constants(p, op, (int(fmt),)).factors[0]


def _resolve(p: Platform, op: str, variants: tuple[int, ...]) -> Constants:
    operator = p.calibration.operators.get(op)
    row = np.zeros(max(variants) + 1, np.intp)
    row[list(variants)] = np.arange(len(variants))
    if operator is None or not operator.entries or p.device.kind == "cpu":
        assumed = ON_CPU if p.device.kind == "cpu" else UNCALIBRATED
        launch, compute, traffic = (np.full(len(variants), c) for c in assumed)
        kinds: tuple[Evidence, ...] = tuple("datasheet" for _ in variants)
        return Constants(row, launch, compute, traffic, (), kinds, (UNCALIBRATED_FACTORS,) * len(variants))
    found: list[tuple[Kernel, Evidence, tuple[float, float]]] = []
    for variant in variants:
        own = _on(p, operator.entries, p.device.name, _alike(p, variant))
        if own is None:
            kind: Evidence = "transferred" if kin(p.device, {e.gpu for e in operator.entries}) else "datasheet"
            factors = operator.transferred if kind == "transferred" else operator.datasheet
            found.append((_blended(p, operator.entries, variant), kind, factors))
        elif own.variant == variant_name(variant) and own.engine in _engines(p):
            found.append((kernel(own), "measured", own.factors))
        else:
            found.append((kernel(own), "transferred", operator.transferred))
    kernels = [k for k, _, _ in found]
    return Constants(
        row,
        np.array([k.launch for k in kernels]),
        np.array([k.compute for k in kernels]),
        np.array([k.traffic for k in kernels]),
        tuple(np.concatenate(same) for same in zip(*(k.tables for k in kernels), strict=True)),
        tuple(kind for _, kind, _ in found),
        tuple(factors for _, _, factors in found),
    )


def _engines(p: Platform) -> tuple[str, ...]:
    """Names that entries for this engine may have: its kernel's, its own, every engine's."""
    return p.engine, p.engine.partition("/")[0], EVERY_ENGINE


def _on(p: Platform, entries: tuple[Entry, ...], gpu: str, names: Sequence[str]) -> Entry | None:
    """The entry of a measured device that is nearest to what is asked for; None where nothing like it was measured.

    Format before engine: an engine's kernels for other formats say less than another engine's for this one.
    """
    for name in names:
        known = {e.engine: e for e in entries if (e.gpu, e.variant) == (gpu, name)}
        whole = [e for e in known.values() if "/" not in e.engine]
        if p.captured and whole:
            quickest = min(whole, key=lambda e: e.launch)
            known = {e.engine: e for e in known.values() if e.launch <= HOST_BOUND * quickest.launch}
        for engine in _engines(p):
            if engine in known:
                return known[engine]
        if whole := [e for e in whole if e.engine in known]:
            return max(whole, key=lambda e: e.rows)
    return None


def _blended(p: Platform, entries: tuple[Entry, ...], variant: int) -> Kernel:
    """What measured devices say of one that was not: the mean of their entries, the nearer the device the weightier.

    The format itself counts before formats like it; where a device of the same architecture and memory was measured,
    another format at the same pace there says more than this one elsewhere.
    """
    own, *others = _alike(p, variant)
    measured = sorted({e.gpu for e in entries})
    every = sorted({e.variant for e in entries})
    for names in ([own] if _native(p, variant) else [], others, every):
        found = {}
        for gpu in measured:
            wider = [*names, *others[:-1]] if _related(p.device, catalogued(gpu)) and names == [own] else names
            if (entry := _on(p, entries, gpu, wider)) is not None:
                found[gpu] = entry
        if found:
            sources = [catalogued(gpu) for gpu in found]
            weights = [float(np.exp(-NEARNESS * _distance(p.device, d))) for d in sources]
            return blend(list(found.values()), [d.clock for d in sources], weights, p.device.clock)
    raise AssertionError("a calibration without entries is not looked up")


def _product(variant: int) -> tuple[Format, Format | None]:
    """The format that a variant multiplies in, and the one that it caches keys and values in, if any."""
    compute, cache = divmod(int(variant), len(FORMATS))
    return (FORMATS[cache], None) if compute == 0 else (FORMATS[compute - 1], FORMATS[cache])


def _native(p: Platform, variant: int) -> bool:
    return bool(p.native[FORMATS.index(_product(variant)[0])])


def _alike(p: Platform, variant: int) -> list[str]:
    """Names of variants: this one, then those whose products run at the same rate on the device, 16 bits last."""
    own, cache = _product(variant)
    rate = own.rate if _native(p, variant) else FORMATS[BF16].rate
    paces = {f: (f.rate == rate, p.rates[i] == p.rates[FORMATS.index(own)]) for i, f in enumerate(FORMATS)}
    same = [f for f in FORMATS if any(paces[f]) and f not in (own, FORMATS[BF16])]
    products = [own, *sorted(same, key=lambda f: (not paces[f][0], abs(f.bits - own.bits))), FORMATS[BF16]]
    if cache is None:
        return list(dict.fromkeys(f.name for f in products))
    caches = [cache, *(f for f in FORMATS if f.bits == cache.bits), FORMATS[BF16]]
    return list(dict.fromkeys(f"{f.name}+{c.name}" for f in products for c in caches))


def kin(device: Device, measured: set[str]) -> bool:
    """Whether a device of its maker and kind of memory was measured: cards with GDDR run other kernels than HBM's."""
    others = (catalogued(name) for name in measured - {device.name})
    return any(d.vendor == device.vendor and _memory(d) == _memory(device) for d in others)


def _distance(device: Device, other: Device) -> float:
    """How little one device says of another: logarithms of their peaks and bandwidths apart, and unlikeness in kind."""
    peak = np.log(_peak(other) / _peak(device))
    apart = abs(peak) + abs(np.log(other.memory_bandwidth / device.memory_bandwidth))
    return float(apart) + (_memory(other) != _memory(device)) + 2.0 * (not _related(device, other))


def _peak(device: Device) -> float:
    rates = device.rates
    return rates.get("bf16") or rates.get("fp16") or max(rates.values())


def _related(device: Device, other: Device) -> bool:
    return (device.architecture.split()[0], _memory(device)) == (other.architecture.split()[0], _memory(other))


def _memory(device: Device) -> str:
    """The kind of main memory without its generation: HBM2e and HBM3 are alike, GDDR7 is not."""
    return device.memory[0].name[:3].upper()
