"""What cannot have been measured: tables that are refused, with the reason, the rows and the way out.

The physical bound is the operator's ``floor``: its arithmetic at the datasheet's peak rate, or its traffic at the
datasheet's bandwidth, whichever takes longer; what a cache can hold comes at the cache's bandwidth. Nothing is faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.calibrate.samples import Sample, Table, sampled
from nearpeak.errors import UsageError

Column = NDArray[Any]
Rows = NDArray[np.intp]

TOLERANCE = 0.9
"""A time is within the bound down to this share of it: clocks boost a little above the datasheet's."""
IMPOSSIBLE = 0.5
"""Below this share of the bound, one row is enough to refuse a table."""
FEW = 0.02
"""Between the two, at most this share of an operator's rows on a device is left out of the fit and told of: published
tables hold some that ran another format than they say (A100 decode attention: 1.7 %). More: the table is refused."""
LOOSE = {"linear_attention": 20.0}
"""Where columns do not tell all of what ran, the bound is divided by this: states may be kept in 16 or 32 bits, and
convolutions were timed on a part of the channels."""
LAUNCH = 1e-5
"""Seconds that launching and finishing a kernel may take beside its work, when units are guessed."""
SLOW = 100.0
"""Half of a table's rows slower than this many times the roofline and a launch: the unit is wrong."""
UNITS = {1e3: "milliseconds", 1e6: "microseconds", 1e9: "nanoseconds", 1 / 60: "minutes"}
"""What a column holds, by how many times too large its numbers are as seconds."""
CONFLICT = 3.0
"""Times of one shape, measured twice in one way, that differ by more conflict: published repeats do by 2.8 at most."""
UNEVEN, RARELY = 1.5, 0.01
"""So do repeats of which more than this share differ by more than this: of published ones it is 0.6 % at most."""
REPEATS = 0.003
"""Share of a table's rows that may repeat others exactly: two of many honest repeats agree to the last digit (0.2 % of
published rows)."""
ENOUGH = 60
"""Rows below which a device, engine and format get no constants of their own."""


@dataclass(frozen=True)
class Checked:
    """A table that passed. ``samples``: its rows by operator. ``notes``: what was left out, and why."""

    samples: dict[str, Sample]
    notes: tuple[str, ...]


def checked(table: Table, op: str, name: str) -> Checked:
    """The rows of an operator's table, or the reason why it is refused.

    Args:
        table: columns by name, ``seconds`` among them. op: a key of ``READINGS``. name: of the table, for messages.

    Raises:
        UsageError: missing columns; a device, format or size that means nothing; times that are no positive numbers,
            are faster than the physical bound, or can only be in another unit; rows twice; too few rows.
    """
    count = len(table["seconds"])
    if count < ENOUGH:
        raise UsageError(
            f"{name} has {count} rows; a fit needs at least {ENOUGH} of one device, engine and format. Measure more "
            "shapes, or join tables of the same operator"
        )
    if "backend" not in table:
        raise UsageError(
            f"{name} has no column 'backend': the engine whose kernels were timed (vllm, sglang, torch, ...)"
        )
    _times(table["seconds"], name)
    _repeats(table, name)
    errors = np.full(count, "", object)
    try:
        samples = sampled(table, op, errors)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    if np.any(errors != ""):
        bad = np.flatnonzero(errors != "")
        raise UsageError(f"{name}: {_listed(bad)}: {errors[bad[0]]}; correct or remove them")
    kept, notes = {}, []
    for part, sample in samples.items():
        _, sizes = np.unique(_groups([sample.gpu, sample.engine, sample.variant]), return_counts=True)
        if sizes.max() < ENOUGH:
            raise UsageError(
                f"{name}: at most {sizes.max()} rows of {part} on one device, under one engine and in one format; a "
                f"fit needs {ENOUGH}. Measure more shapes"
            )
        kept[part], told = _within_bounds(sample, op, f"{name}, {part}" if part != op else name)
        notes += told
    return Checked(kept, tuple(notes))


def _times(seconds: Column, name: str) -> None:
    try:
        values = np.asarray(seconds, float)
    except (TypeError, ValueError):
        raise UsageError(f"{name}: the column seconds holds text; it must be numbers, in seconds") from None
    if (bad := np.flatnonzero(~(np.isfinite(values) & (values > 0)))).size:
        raise UsageError(
            f"{name}: seconds of {_listed(bad)} are {', '.join(f'{values[i]:g}' for i in bad[:3])}; a time is a finite "
            "number above 0. Remove rows of kernels that failed"
        )


def _repeats(table: Table, name: str) -> None:
    """Refuse rows that are there twice, and shapes whose two times conflict."""
    inputs = _groups([column for key, column in table.items() if key != "seconds"])
    seconds = np.asarray(table["seconds"], float)
    order = np.lexsort((seconds, inputs))
    same = inputs[order][1:] == inputs[order][:-1]
    before, after = order[:-1][same], order[1:][same]
    identical = after[seconds[before] == seconds[after]]
    if identical.size > REPEATS * seconds.size:
        raise UsageError(
            f"{name}: {_listed(np.sort(identical))} repeat other rows in every column; a row counts once. Remove the "
            "copies (was a file read twice?)"
        )
    apart = seconds[after] / seconds[before]
    uneven = apart > UNEVEN
    if np.any(apart > CONFLICT) or np.sum(uneven) > RARELY * apart.size:
        i, j = before[np.argmax(apart)], after[np.argmax(apart)]
        raise UsageError(
            f"{name}: rows {i} and {j} are one shape under one engine, version and kernel, with {seconds[i]:g} and "
            f"{seconds[j]:g} seconds ({np.sum(uneven)} such pairs); keep the one that holds, or tell them apart in "
            "kernel_source or backend_version"
        )


def _groups(columns: Sequence[Column]) -> NDArray[np.intp]:
    """A number for each distinct combination of values, ``[rows]``."""
    key = np.zeros(columns[0].size, np.intp)
    for column in columns:
        distinct, inverse = np.unique(column.astype(str) if column.dtype == object else column, return_inverse=True)
        key = np.unique(key * distinct.size + inverse, return_inverse=True)[1]
    return key


def _within_bounds(s: Sample, op: str, name: str) -> tuple[Sample, list[str]]:
    """The rows that physics allows, and what is told of others."""
    keep, notes = np.full(s.rows, True), []
    for gpu in np.unique(s.gpu):
        here = np.flatnonzero(s.gpu == gpu)
        seconds, bound = s.seconds[here], s.floor[here] / LOOSE.get(op, 1.0)
        slow = float(np.median(seconds / (np.maximum(s.compute, s.traffic)[here] + LAUNCH)))
        if slow > SLOW:
            raise UsageError(
                f"{name}: half of the rows on {gpu} take more than {slow:,.0f} times what the roofline and a launch of "
                f"{LAUNCH * 1e6:.0f} us give; {_unit(slow)}"
            )
        fast = here[seconds < TOLERANCE * bound]
        worst = seconds / bound
        if worst.min() < IMPOSSIBLE or fast.size > FEW * here.size:
            row = int(np.argmin(worst))
            raise UsageError(
                f"{name}: {_listed(np.sort(s.row[fast]))} on {gpu} are faster than the device can be: row "
                f"{s.row[here[row]]} takes {seconds[row]:.3g} s, its arithmetic and traffic {bound[row]:.3g} s at the "
                f"datasheet's peaks. {_unit(float(np.median(worst)))}"
            )
        if fast.size:
            keep[fast] = False
            notes.append(
                f"{name}: {_listed(np.sort(s.row[fast]))} on {gpu} left out: faster than the bound by up to "
                f"{1 / worst.min():.2f} times"
            )
    return s if keep.all() else s.where(keep), notes


def _unit(times: float) -> str:
    """A guess at the unit of a column whose numbers are so many times what they should be."""
    if 1 / SLOW < times < SLOW:
        return "Is the format, the device or a size another one than the row says?"
    factor = min(UNITS, key=lambda f: abs(np.log(times / f)))
    return (
        f"The column looks like {UNITS[factor]}: give seconds" if times > 1 else "Give seconds; the unit is too large"
    )


def _listed(rows: Rows, most: int = 5) -> str:
    """``rows 3, 4, 8 and 12 more``, counted from 0 in the order of the file."""
    few = ", ".join(str(r) for r in rows[:most])
    return (
        f"row {few}"
        if rows.size == 1
        else f"rows {few}" + (f" and {rows.size - most} more" if rows.size > most else "")
    )
