"""What real kernels lose to the roofline: a few constants per operator, device, engine and variant, as data.

Each operator's time is ``launch + join(compute / c, traffic / t)`` (the constants of an ``Entry``), times the
exponential of a *correction*: a sum of tables, piecewise multilinear in the logarithms of the operator's sizes. An
entry names the device and engine that it was fitted on; ``blend`` makes one for a device that was never measured out of
those of devices that were. The fit is made by ``nearpeak.calibrate`` and ships as ``data/calibration.json``.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.stored import data, in_use
from nearpeak.errors import NearpeakError

Array = NDArray[np.float64]


class Axis(msgspec.Struct, frozen=True):
    """``count`` equally spaced knots of coordinate number ``of``, from ``first`` in steps of ``step``, in octaves."""

    name: str
    of: int
    first: float
    step: float
    count: int


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """Fitted constants of one (device, engine, variant). In the file: an array of the attributes in this order.

    Attributes:
        gpu, engine, variant: what it was fitted on.
        launch: seconds that no size changes. compute, traffic: achieved fractions of peak rate and of bandwidth.
        tables: corrections, one flat table for each of the operator's ``tables``: signed bytes (in base64), times
            ``scale`` the natural logarithm of the factor on the time.
        factors: measured over predicted, the 10 % and 90 % quantiles where the whole site was left out of the fit.
        rows: measurements behind it.
    """

    gpu: str
    engine: str
    variant: str
    launch: float
    compute: float
    traffic: float
    tables: tuple[bytes, ...]
    scale: float
    factors: tuple[float, float]
    rows: int


class OperatorCalibration(msgspec.Struct, frozen=True):
    """All entries of one operator.

    Attributes:
        axes: of the corrections' coordinates. tables: which axes each table spans.
        transferred, datasheet: factors like an entry's, for a device left out of the fit: where a device of its kind
            was measured, and where none was (see ``platform``).
        entries: the fits.
    """

    axes: tuple[Axis, ...]
    tables: tuple[tuple[int, ...], ...]
    transferred: tuple[float, float]
    datasheet: tuple[float, float]
    entries: tuple[Entry, ...]


class Calibration(msgspec.Struct, frozen=True):
    """Every operator's calibration, and where the measurements came from."""

    source: str
    operators: dict[str, OperatorCalibration]


def decode(text: bytes) -> Calibration:
    """Read and check a calibration.

    Raises:
        NearpeakError: the text is not a calibration; the message says where.
    """
    try:
        calibration = msgspec.json.decode(text, type=Calibration)
    except msgspec.MsgspecError as error:
        raise NearpeakError(f"not a calibration: {error}; make one with `nearpeak calibrate`") from None
    for name, operator in calibration.operators.items():
        sizes = [int(np.prod([operator.axes[a].count for a in table])) for table in operator.tables]
        for entry in operator.entries:
            if [len(t) for t in entry.tables] != sizes:
                where = f"{name} on {entry.gpu} under {entry.engine}, {entry.variant}"
                raise NearpeakError(f"calibration of {where}: tables of {sizes} values expected")
            if min(entry.compute, entry.traffic, entry.scale, *entry.factors) <= 0 or entry.launch < 0:
                raise NearpeakError(f"calibration of {name} on {entry.gpu}: constants must be positive")
    return calibration


def shipped() -> Calibration:
    """The calibration that comes with the package."""
    return stored(None)


def current() -> Calibration:
    """The calibration in use (see ``stored``)."""
    return stored(in_use())


@cache
def stored(folder: Path | None) -> Calibration:
    """The calibration in a folder; None for the one that ships."""
    return decode(data("calibration.json", folder))


def corrections(entry: Entry) -> tuple[Array, ...]:
    """An entry's tables as natural logarithms, flat."""
    return tuple(np.frombuffer(table, np.int8).astype(float) * entry.scale for table in entry.tables)


class Kernel(NamedTuple):
    """An entry ready to evaluate: constants as in ``Entry``, tables as natural logarithms, flat."""

    launch: float
    compute: float
    traffic: float
    tables: tuple[Array, ...]


def kernel(entry: Entry) -> Kernel:
    """An entry as it is."""
    return Kernel(entry.launch, entry.compute, entry.traffic, corrections(entry))


def blend(entries: Sequence[Entry], clocks: Sequence[float], weights: Sequence[float], clock: float) -> Kernel:
    """Of entries fitted on devices with ``clocks``, one for a device with ``clock``: their weighted means.

    Launches take cycles, not seconds: small products take 6,000 to 7,500 cycles on all GPUs measured, whose clocks
    differ by a factor of 1.8. Constants are averaged as logarithms, and so are the corrections.
    """
    share = np.asarray(weights) / np.sum(weights)
    cycles = [max(e.launch, SHORTEST) * c for e, c in zip(entries, clocks, strict=True)]
    launch, compute, traffic = (
        float(np.exp(share @ np.log(c))) for c in (cycles, [e.compute for e in entries], [e.traffic for e in entries])
    )
    tables = zip(*map(corrections, entries), strict=True)
    return Kernel(launch / clock, compute, traffic, tuple(np.asarray(share @ np.stack(same)) for same in tables))


SHORTEST = 1e-7
"""Seconds that any launch takes; a fit may find none."""


def join(compute: Array, traffic: Array) -> Array:
    """Two overlapping times in one: the longer, and up to 19 % more where they are equal (a 4-norm)."""
    compute, traffic = compute * compute, traffic * traffic
    return np.asarray(np.sqrt(np.sqrt(compute * compute + traffic * traffic)))


def knots(axis: Axis, coordinates: tuple[Array, ...]) -> tuple[NDArray[np.intp], Array]:
    """The knot below each point, and how far the point is on the way to the next, 0 to 1.

    Points beyond the outermost knots are moved to them: there the correction stays as it was.
    """
    position = np.clip((coordinates[axis.of] - axis.first) / axis.step, 0.0, axis.count - 1.0)
    knot = np.minimum(position.astype(np.intp), axis.count - 2)
    return knot, position - knot


def correction(
    axes: tuple[Axis, ...],
    tables: tuple[tuple[int, ...], ...],
    values: Sequence[Array],
    row: NDArray[np.intp],
    coordinates: tuple[Array, ...],
) -> Array:
    """Natural logarithm of the factor on the time: the sum of all tables, each multilinear between its knots.

    Args:
        values: of each table, for all rows of constants one after another, flat. row: which of them each point has.
    """
    near = {a: knots(axes[a], coordinates) for spans in tables for a in spans}
    total: Array = np.zeros(())
    for spans, table in zip(tables, values, strict=True):
        index = row
        for a in spans:
            index = index * axes[a].count + near[a][0]
        total = total + _between(axes, spans, near, table, index)
    return total


def _between(
    axes: tuple[Axis, ...],
    spans: tuple[int, ...],
    near: Mapping[int, tuple[NDArray[np.intp], Array]],
    table: Array,
    index: NDArray[np.intp],
) -> Array:
    """Values of a table along the axes in ``spans``; ``index``: of the lowest knot around each point."""
    if not spans:
        return np.asarray(table[index])
    axis, *rest = spans
    stride = prod(axes[a].count for a in rest)
    low = _between(axes, tuple(rest), near, table, index)
    high = _between(axes, tuple(rest), near, table, index + stride)
    return np.asarray(low + near[axis][1] * (high - low))
