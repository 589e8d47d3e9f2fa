"""Watts of a device from what its kernels keep busy, and what a power limit or a lower clock does to both.

The model speaks in shares, so that a device known by its power limit and idle power alone gets an estimate. With
``u_c`` the share of the peak rate that is reached in the product's format and ``u_m`` that of main memory's bandwidth::

    demand = a_c u_c + a_m u_m + a_o
    watts  = idle + (limit - idle) (awake + (ceiling - awake) demand / (1 + demand ** 4) ** (1 / 4))

``a_c`` is the energy of a format's products at the peak rate, ``a_m`` of a byte with all that moves it on chip at full
bandwidth, ``a_o`` of instructions that wait; all over what the limit leaves. They differ by operator, since kernels
move different amounts inside the chip for each byte from outside. Beyond a demand of 1 the device lowers its clock to
stay at the limit. ``nearpeak.calibrate.power`` fits them to a B200 and writes ``data/power.json``.

What a card's sensor says while short kernels are swept is not their own power: it holds seconds of the kernels before.
For tables of operators on the device that was measured, ``sampled`` therefore answers what the sensor would show, from
a forest over the shapes (``data/power_samples.json``); steps and Setups use the physics above.

Clocks. Dynamic power goes as ``f V(f)^2``; ``V`` is flat up to a knee and then rises linearly, as measured on NVIDIA
GPUs of three generations (Guerreiro et al., HPCA 2018, "GPGPU power modeling for multi-domain voltage-frequency
scaling"). Memory keeps its own clock. POLCA (Patel et al., ASPLOS 2024) shows what follows: a lower clock costs prompts
their time and decoding hardly any.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost.forest import Forest
from nearpeak.cost.platform import Evidence, Work, variant_name
from nearpeak.cost.stored import decoded, in_use
from nearpeak.errors import UsageError
from nearpeak.formats import FORMATS
from nearpeak.hardware import Device

Array = NDArray[np.float64]
ANY = "*"
"""Stands for every operator or format."""

IDLE_SHARE = 0.15
"""Idle over TDP where a device's idle power is not catalogued; H100 and A100 SXM idle at 10 to 18 % of their TDP."""

LOWEST_CLOCK = 0.15
"""The lowest clock over boost: A100 SXM runs from 210 to 1410 MHz, H100 SXM from 345 to 1980 (nvidia-smi -q -d
SUPPORTED_CLOCKS)."""
KNEE, FLAT_VOLTAGE = 0.55, 0.7
"""Clock over boost below which voltage stays, and that voltage over the one at boost. Assumed: Guerreiro et al. show
the shape on older cards; no maker publishes the curve of current ones."""
MEMORY_CLOCK = 0.5
"""Clock over boost from which the units keep main memory busy; below it bandwidth falls with the clock. Assumed."""
HALVINGS = 24


class Activity(msgspec.Struct, frozen=True, array_like=True):
    """Demand of an operator at the full rate of its format, at full bandwidth, and as soon as it runs."""

    compute: float
    traffic: float
    running: float


class PowerModel(msgspec.Struct, frozen=True):
    """The fitted constants (see the module), and how far measurements lay from them.

    Attributes:
        source, device: where the measurements came from, and of what.
        awake, ceiling: shares of ``limit - idle`` drawn with kernels running that do nothing, and at the limit.
        activities: by ``operator:format``, either of which may be ``"*"``.
        factors: measured over predicted, 10 % and 90 % quantiles with whole sites left out, by evidence; ``sampled``:
            of what the sensor shows, by operator.
    """

    source: str
    device: str
    awake: float
    ceiling: float
    activities: dict[str, Activity]
    factors: dict[str, tuple[float, float]]
    sampled: dict[str, tuple[float, float]]


def model() -> PowerModel:
    """The constants in use: those that ship, or a calibration's own (see ``stored``)."""
    return _model(in_use())


@cache
def _model(folder: Path | None) -> PowerModel:
    found: PowerModel = decoded("power.json", folder, PowerModel)
    return found


def samples() -> dict[str, Forest]:
    """The forests in use of what the sensor shows, by operator."""
    return _samples(in_use())


@cache
def _samples(folder: Path | None) -> dict[str, Forest]:
    found: dict[str, Forest] = decoded("power_samples.json", folder, dict[str, Forest])
    return found


def idle(device: Device) -> float:
    """Watts of a device that runs nothing: catalogued, else a share of its TDP."""
    return device.idle_power if device.idle_power is not None else IDLE_SHARE * device.tdp


def limit_of(device: Device, limit: ArrayLike | None = None) -> Array:
    """The power limit in watts: the TDP, or a lower (or, by its maker's leave, higher) one that was set.

    Raises:
        UsageError: a limit at or below idle power, or above twice the TDP.
    """
    if limit is None:
        return np.asarray(device.tdp)
    given = np.asarray(limit, float)
    wrong = ~((given > idle(device)) & (given <= 2 * device.tdp))
    if wrong.any():
        raise UsageError(
            f"a power limit of {given[wrong].flat[0]:g} W is not between the {idle(device):g} W that {device.name} "
            f"idles at and twice its TDP of {device.tdp:g} W"
        )
    return given


def activity(op: str, fmt: NDArray[np.intp], constants: PowerModel | None = None) -> tuple[Array, Array, Array]:
    """Demands of an operator in formats (codes): at full rate, at full bandwidth, running. Arrays like ``fmt``.

    What was not measured is taken from the operator in another format, then from all operators together.
    """
    found = _table(op, in_use()) if constants is None else _by_format(op, constants)
    return found[0][fmt], found[1][fmt], found[2][fmt]


@cache
def _table(op: str, folder: Path | None) -> tuple[Array, Array, Array]:
    return _by_format(op, _model(folder))


def _by_format(op: str, constants: PowerModel) -> tuple[Array, Array, Array]:
    known = constants.activities
    rows = []
    for fmt in FORMATS:
        same_rate = [f"{op}:{f.name}" for f in FORMATS if f.rate == fmt.rate]
        names = [f"{op}:{fmt.name}", *same_rate, f"{op}:{ANY}", f"{ANY}:{ANY}"]
        rows.append(next(known[name] for name in names if name in known))
    return (
        np.array([r.compute for r in rows]),
        np.array([r.traffic for r in rows]),
        np.array([r.running for r in rows]),
    )


def evidence(device: Device, op: str, fmt: int, constants: PowerModel | None = None) -> Evidence:
    """What watts of an operator rest on: a measurement of it on the device, of it elsewhere or in another format, or
    of other operators.
    """
    known = constants or model()
    if f"{op}:{FORMATS[fmt].name}" in known.activities:
        return "measured" if device.name == known.device else "transferred"
    return "transferred" if f"{op}:{ANY}" in known.activities else "datasheet"


def demands(work: Work, seconds: Array, constants: PowerModel | None = None) -> tuple[Array, Array]:
    """Demand of work that takes ``seconds``: what follows the chip's clock, and its memory's.

    With a sum above 1 the device throttles.
    """
    compute, traffic, running = activity(work.op, product_of(work.variant), constants)
    return compute * _share(work.compute, seconds) + running, traffic * _share(work.traffic, seconds)


def _share(at_peak: Array, seconds: Array) -> Array:
    return np.asarray(np.minimum(at_peak / seconds, 1.0))


def drawn(device: Device, demanded: Array, limit: ArrayLike | None = None) -> Array:
    """Watts of a device at a demand; 0 where kernels run and do nothing. ``limit``: watts, the TDP if None.

    Raises:
        UsageError: as ``limit_of``.
    """
    m, low = model(), idle(device)
    resting = low + (device.tdp - low) * m.awake
    # A demand is over what the TDP leaves; another limit leaves another room.
    asked = (device.tdp - low) * (m.ceiling - m.awake)
    room = np.maximum(low + (limit_of(device, limit) - low) * m.ceiling - resting, 1e-6 * device.tdp)
    return np.asarray(resting + room * soft(demanded * asked / room))


def soft(demanded: Array) -> Array:
    """What is drawn of a demand: all of a small one, 1 of a large one."""
    squared = demanded * demanded
    return np.asarray(demanded / np.sqrt(np.sqrt(1.0 + squared * squared)))


def watts(device: Device, work: Work, seconds: ArrayLike, limit: ArrayLike | None = None) -> Array:
    """Mean watts of one device while it does ``work`` over and over, each time in ``seconds``.

    Args:
        work: the physics of the operator on the device. seconds: measured or predicted.
        limit: watts at which the device throttles, its TDP if None.

    Raises:
        UsageError: a limit that the device cannot have.
    """
    core, memory = demands(work, np.asarray(seconds, float))
    return drawn(device, core + memory, limit)


def sampled(
    device: Device, op: str, columns: Mapping[str, Array], work: Work, limit: ArrayLike | None = None
) -> Array | None:
    """Watts that the sensor shows when shapes are swept, ``[rows]``; None where none were swept on the device.

    Args:
        columns: the operator's sizes by name, as in tables of measured operators. work: their physics.
    """
    m, forests = model(), samples()
    if device.name != m.device or op not in forests:
        return None
    forest = forests[op]
    shown = np.exp(forest.values(features(forest.columns, forest.variants, columns, work)))
    known = np.isin(variants(work, shown.size), forest.variants)
    return np.where(known, shown * limit_of(device, limit), np.nan)


LEAST = 2.0**-30
"""Stands for 0 among the features, which are logarithms: below the seconds of any operator."""


def features(names: tuple[str, ...], known: tuple[str, ...], columns: Mapping[str, Array], work: Work) -> Array:
    """What a forest looks at, ``[rows, names + 1]``: logarithms (base 2) of columns and of the work's arithmetic and
    traffic, and the place of the variant among those known.
    """
    numbers = dict(columns) | {"compute": work.compute, "traffic": work.traffic}
    logs = [np.log2(np.maximum(numbers[name], LEAST)) for name in names]
    size = np.broadcast_shapes(*(x.shape for x in logs))[0]
    places = {name: float(i) for i, name in enumerate(known)}
    place = np.array([places.get(name, -1.0) for name in variants(work, size)])
    return np.stack(np.broadcast_arrays(*logs, place), axis=-1)


def variants(work: Work, rows: int) -> NDArray[np.str_]:
    """Names of the work's variants, ``[rows]``."""
    code, inverse = np.unique(np.broadcast_to(work.variant, (rows,)), return_inverse=True)
    return np.array([variant_name(int(c)) for c in code])[inverse]


def product_of(variant: NDArray[np.intp]) -> NDArray[np.intp]:
    """The format that a variant (see ``platform.pair``) multiplies in."""
    compute, cached = np.divmod(np.asarray(variant, np.intp), len(FORMATS))
    return np.where(compute == 0, cached, compute - 1)


def shown(
    device: Device, columns: Mapping[str, Array], work: Work, seconds: Array, limit: ArrayLike | None = None
) -> tuple[Array, Array, Array]:
    """Watts that the sensor shows during an operator of a sweep, and their 80 % interval; arrays ``[rows]``.

    From ``sampled`` where shapes of this operator and format were swept on the device, else from ``watts``. Nan where
    the seconds are.

    Raises:
        UsageError: as ``limit_of``.
    """
    found = np.broadcast_to(watts(device, work, seconds, limit), seconds.shape)
    codes, inverse = np.unique(np.broadcast_to(product_of(work.variant), seconds.shape), return_inverse=True)
    spread = np.array([interval(evidence(device, work.op, int(c))) for c in codes])[inverse]
    swept = sampled(device, work.op, columns, work, limit)
    if swept is not None:
        here = ~np.isnan(swept)
        found = np.where(here, swept, found)
        spread = np.where(here[:, None], model().sampled[work.op], spread)
    found = np.where(np.isnan(seconds), np.nan, found)
    return found, found * spread[:, 0], found * spread[:, 1]


def interval(kind: str) -> tuple[float, float]:
    """The factors on predicted watts between which 80 % of measurements lay, for this evidence."""
    return model().factors[kind]


def voltage(clock: ArrayLike) -> Array:
    """Voltage over that at boost, at a clock over boost: flat, then linear."""
    rise = (1.0 - FLAT_VOLTAGE) / (1.0 - KNEE)
    return np.asarray(np.maximum(FLAT_VOLTAGE, 1.0 - rise * (1.0 - np.asarray(clock, float))))


@dataclass(frozen=True)
class Load:
    """Parts of what a device does, uncapped; arrays that broadcast.

    Attributes:
        seconds: of each part. core, memory: demands of each (see the module).
        compute: how much of a part's time follows the clock, between 0 (memory decides) and 1 (arithmetic does).
    """

    seconds: Array
    core: Array
    memory: Array
    compute: Array


@dataclass(frozen=True)
class Capped:
    """A load under a cap. ``clock`` over boost, ``seconds`` and ``watts`` of each part; arrays that broadcast."""

    clock: Array
    seconds: Array
    watts: Array


def capped(device: Device, load: Load, watts_limit: ArrayLike | None = None, clock: ArrayLike | None = None) -> Capped:
    """Time and watts of a load under a power limit, a highest clock, or both.

    The limit holds for each part, as a card's controller acts within milliseconds. The clock of a part is the highest
    at which it keeps the limit; one that kept to the device's own limit by throttling starts from that clock.

    Args:
        watts_limit: watts, broadcast against the load. clock: over boost, between ``LOWEST_CLOCK`` and 1.

    Raises:
        UsageError: a limit above the TDP, one that the device cannot keep at its lowest clock or that is no limit, or a
            clock that it has not.
    """
    m, low, own = model(), idle(device), float(device.tdp)
    highest = np.ones(()) if clock is None else np.asarray(clock, float)
    wrong = ~((highest >= LOWEST_CLOCK) & (highest <= 1.0))
    if wrong.any():
        raise UsageError(
            f"a clock of {highest[wrong].flat[0]:g} of boost is not between {LOWEST_CLOCK:g} and 1 (boost of "
            f"{device.name}: {device.clock / 1e6:.0f} MHz)"
        )
    cap = limit_of(device, watts_limit)
    if (cap > own).any():
        raise UsageError(
            f"a power cap of {cap[cap > own].flat[0]:g} W changes nothing: {device.name} draws at most {own:g} W; "
            "give less"
        )

    def power(at: Array, start: Array) -> Array:
        squared, room = voltage(at) ** 2, m.ceiling - m.awake
        worked = (squared * load.core + load.memory) / _stretch(load.compute, start, at)
        return np.asarray(low + (own - low) * (m.awake * at * squared + room * worked))

    full = low + (own - low) * m.ceiling
    # A device that throttles does not go below the knee, where a lower clock would save no voltage.
    none = np.shape(load.core + load.memory)
    start = _highest(lambda at: power(at, at) <= full * (1 + 1e-9), np.full(none, KNEE), np.ones(none))
    # The soft ceiling draws a little less than the clocks say; what a cap leaves is in proportion.
    uncapped = drawn(device, load.core + load.memory)
    scale = uncapped / power(start, start)
    shape = np.broadcast_shapes(np.shape(cap), np.shape(highest), np.shape(start))
    least = power(np.full(shape, LOWEST_CLOCK), start) * scale
    if (np.broadcast_to(cap, shape) < least * (1 - 1e-9)).any():
        raise UsageError(
            f"{device.name} cannot keep to {float(np.min(cap)):g} W: at its lowest clock this load draws up to "
            f"{float(np.max(least)):.0f} W; set at least that"
        )
    lowest = np.full(shape, LOWEST_CLOCK)
    most = np.broadcast_to(np.minimum(start, highest), shape)
    found = _highest(lambda at: power(at, start) * scale <= cap * (1 + 1e-9), lowest, most)
    return Capped(found, load.seconds * _stretch(load.compute, start, found), power(found, start) * scale)


def _stretch(compute: Array, start: Array, at: Array) -> Array:
    """Time at a clock over that at ``start``: arithmetic follows the clock, memory only where the clock is very low."""
    return np.asarray(compute * np.maximum(start / at, 1.0) + (1 - compute) * np.maximum(MEMORY_CLOCK / at, 1.0))


def _highest(holds: Callable[[Array], NDArray[np.bool_]], low: Array, high: Array) -> Array:
    """The highest clock between two at which a condition holds that lower clocks fulfil sooner: by halving."""
    top = high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        good = holds(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return np.where(holds(top), top, low)


def best_clock(
    device: Device, load: Load, slowdown: ArrayLike = np.inf, clocks: int = 64
) -> tuple[Array, Array, Array]:
    """The clock at which a load of several parts (last axis) takes the least energy, of those that slow it enough.

    Args:
        load: ``[..., parts]``. slowdown: most time over that without a cap, e.g. 1.05; broadcast to ``[...]``.
        clocks: how many are tried, evenly spaced.

    Returns:
        Clock over boost, seconds and joules there, each ``[...]``.

    Raises:
        UsageError: a slowdown below 1.
    """
    allowed = np.asarray(slowdown, float)
    if (allowed < 1).any() or np.isnan(allowed).any():
        raise UsageError(f"a slowdown of {float(np.min(allowed)):g} is below 1; 1.05 allows 5 % more time")
    grid = np.linspace(LOWEST_CLOCK, 1.0, clocks)
    parts = np.broadcast_arrays(load.seconds, load.core, load.memory, load.compute)
    shape = parts[0].shape
    wide = Load(*(a[..., None, :] for a in parts))
    tried = capped(device, wide, clock=grid[:, None])
    time = tried.seconds.sum(-1)
    joules = (tried.seconds * tried.watts).sum(-1)
    slow = time > np.broadcast_to(allowed, shape[:-1])[..., None] * time[..., -1:] * (1 + 1e-12)
    pick = np.argmin(np.where(slow, np.inf, joules), axis=-1)
    there = [np.take_along_axis(figure, pick[..., None], -1)[..., 0] for figure in (time, joules)]
    return grid[pick], there[0], there[1]
