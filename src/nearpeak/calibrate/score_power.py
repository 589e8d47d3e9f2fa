"""Tables of watts during operators, scored."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.calibrate.board import LABELS, NEW, SEEN, Scored
from nearpeak.calibrate.cells import blank, devices, length, positive, text
from nearpeak.calibrate.left_out import FOLDS, By, by_file, with_intervals
from nearpeak.calibrate.samples import SITES, Table, sampled, site_numbers
from nearpeak.calibrate.store import about
from nearpeak.calibrate.tables import File
from nearpeak.cost.stored import in_use
from nearpeak.cost.tables import operator_tables, predict_operators
from nearpeak.errors import NearpeakError

Array = NDArray[np.float64]
RUN = ("table", *dict.fromkeys(name for names in SITES.values() for name in names))
"""Columns that make a site the same as another."""


def power(files: Sequence[File], leave: Sequence[By] | None) -> tuple[Scored, list[str]]:
    """Watts of every row of tables of power; see ``scoring.score``."""
    return by_file(files, leave, _rows, _left_out)


def _rows(table: Table) -> Scored:
    """The watts of every row as they are predicted, beside how busy a roofline says the device is."""
    count = length(table)
    nothing = np.full(count, np.nan)
    told: Mapping[str, Any] = {"error": blank(count), "evidence": blank(count)}
    operator, busy = blank(count, "watts"), nothing.copy()
    gpu, fit, keys = devices(table), blank(count, NEW), site_numbers(table, RUN)
    try:
        told = predict_operators(table, "power")
        for name, rows in operator_tables(table, "power", count):
            operator[rows] = f"watts of {name}"
            part = {key: column[rows] for key, column in table.items()}
            for sample in sampled(part, name, blank(rows.size)).values():
                ideal = np.maximum(sample.compute, sample.traffic)
                busy[rows[sample.row]] = ideal / np.asarray(told["seconds"], float)[rows[sample.row]]
    except NearpeakError as error:
        told = {"error": blank(count, str(error)), "evidence": blank(count)}
    fit[about(in_use()).seen("power", "", gpu, keys)] = SEEN
    measured = positive(table["watts"])
    reason = np.where((told["error"] == "") & ~np.isfinite(measured), "watts are no number above 0", told["error"])
    watts, low, high = (np.asarray(told.get(f"watts{side}", nothing), float) for side in ("", "_low", "_high"))
    names = (gpu, operator, text(table, "backend"), told["evidence"], fit)
    return Scored(*names, measured, watts, low, high, busy, np.zeros(count, np.int64), reason)


def _left_out(table: Table, scored: Scored, by: By) -> Scored:
    from nearpeak.calibrate.power import left_out

    if by != "site":
        raise NearpeakError(f"watts were measured on one device, under one engine: leave out sites, not {by}")
    unseen = left_out(table, by)
    kind, folds = blank(unseen.size, "measured"), site_numbers(table, RUN) % FOLDS
    out = with_intervals(unseen, scored.measured, scored.operator, folds, kind)
    new = {"predicted": out.predicted, "low": out.low, "high": out.high, "evidence": out.evidence}
    return Scored(**{**vars(scored), **new, "fit": blank(unseen.size, LABELS[by])})
