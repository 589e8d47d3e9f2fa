"""Tables of served runs, scored: time per output token, time to first token, latency of a request."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.calibrate.board import LABELS, NEW, SEEN, Scored, joined
from nearpeak.calibrate.cells import blank, devices, length, positive, text
from nearpeak.calibrate.left_out import By, by_file, with_intervals
from nearpeak.calibrate.roofline import at_the_roofline
from nearpeak.calibrate.samples import Table, site_numbers
from nearpeak.calibrate.store import About, about
from nearpeak.calibrate.tables import File
from nearpeak.cost import predict_serving_table
from nearpeak.cost.stored import in_use
from nearpeak.errors import NearpeakError

Array = NDArray[np.float64]
SIZES = ("batch_size", "num_workers", "tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
RUN = (
    "model", "gpu", "backend", "backend_version", "mode", "precision", "gemm_quant_mode", "moe_quant_mode",
    "isl", "osl", "concurrency", *(f"{pool}{size}" for pool in ("", "prefill_", "decode_") for size in SIZES),
)  # fmt: skip
"""Columns that make a run the same as another."""
CELL = ("model", "gpu", "isl", "osl")
"""Columns of runs that are ranked together."""
FIGURES = ("tpot", "ttft", "latency")


def serving(files: Sequence[File], leave: Sequence[By] | None) -> tuple[Scored, list[str]]:
    """Three rows for each run of a table; see ``scoring.score``. A site is a configuration."""
    return by_file(files, leave, _rows, _left_out)


def _rows(table: Table) -> Scored:
    with TemporaryDirectory() as folder, at_the_roofline(Path(folder)):
        ideal = _answers(table)
    return _runs(table, _answers(table), ideal, about(in_use()))


def _left_out(table: Table, scored: Scored, by: By) -> Scored:
    ideal = dict(zip(FIGURES, scored.ideal.reshape(len(FIGURES), length(table)), strict=True))
    label = "configuration left out" if by == "site" else LABELS[by]
    return _runs(table, _unseen(table, scored, by), ideal, about(in_use()), label)


def _unseen(table: Table, scored: Scored, by: By) -> Mapping[str, Any]:
    """Columns like an answer's, of runs whose configuration, model or device was left out of the fit.

    Runs that the calibration in use has no answer for take no part.
    """
    from nearpeak.calibrate.engines import left_out

    count = length(table)
    usable = np.flatnonzero((scored.error.reshape(len(FIGURES), count) == "").all(axis=0))
    if not usable.size:
        raise NearpeakError("no run has an answer, so that none can be left out")
    part = {name: column[usable] for name, column in table.items()}
    found = left_out(part, "configuration" if by == "site" else by)
    alike = found["backend"] + " " + found["served"] + " " + found["evidence"]
    fold = np.unique(found["group"].astype(str), return_inverse=True)[1]
    columns: dict[str, Any] = {"error": blank(count, "no answer with it in the fit"), "evidence": blank(count)}
    columns["error"][usable], columns["evidence"][usable] = "", found["evidence"]
    for figure in FIGURES:
        out = with_intervals(found[figure], found[f"measured_{figure}"], alike, fold, found["evidence"])
        for name, values in ((figure, out.predicted), (f"{figure}_low", out.low), (f"{figure}_high", out.high)):
            columns[name] = np.full(count, np.nan)
            columns[name][usable] = values
    return columns


def _answers(table: Table) -> Mapping[str, Any]:
    try:
        return predict_serving_table(table)
    except NearpeakError as error:
        return {"error": blank(length(table), str(error))}


def _runs(table: Table, told: Mapping[str, Any], ideal: Mapping[str, Any], known: About, label: str = "") -> Scored:
    """Rows of each figure. ``label``: what was left out; without one, rows are new or in the calibration's own fit."""
    count = length(table)
    gpu, mode = devices(table), text(table, "mode", "agg")
    keys, cell = site_numbers(table, RUN), site_numbers(table, CELL)
    fit = blank(count, label or NEW)
    if not label:
        fit[known.seen("serving", "", gpu, keys)] = SEEN
    osl = np.asarray(table["osl"], float) if "osl" in table else np.full(count, np.nan)
    parts = []
    for figure in FIGURES:
        measured, predicted, roof = (_figure(source, figure, osl) for source in (table, told, ideal))
        low, high = (
            np.asarray(told.get(f"{figure}_{side}", np.full(count, np.nan)), float) for side in ("low", "high")
        )
        error = np.asarray(told.get("error", blank(count)), object)
        error = np.where((error == "") & ~np.isfinite(measured), f"{figure} is no time above 0", error)
        operator = np.array([f"{figure}, {m}" for m in mode], object)
        evidence = np.asarray(told.get("evidence", blank(count)), object)
        row = (gpu, operator, text(table, "backend"), evidence, fit, measured)
        parts.append(Scored(*row, predicted, low, high, roof, cell, error))
    return joined(parts)


def _figure(source: Mapping[str, Any], figure: str, osl: Array) -> Array:
    """A figure's column; the latency of a request follows from the other two."""
    if figure in source:
        return positive(source[figure])
    if figure != "latency" or "ttft" not in source:
        return np.full(osl.size, np.nan)
    return np.asarray(positive(source["ttft"]) + (osl - 1) * positive(source["tpot"]))
