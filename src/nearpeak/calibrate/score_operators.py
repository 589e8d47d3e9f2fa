"""Tables of operators, scored."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nearpeak.calibrate import left_out
from nearpeak.calibrate.board import LABELS, NEW, SEEN, Scored, joined
from nearpeak.calibrate.cells import blank, devices, length, positive, text
from nearpeak.calibrate.left_out import By
from nearpeak.calibrate.samples import Sample, Table, concatenated, sampled
from nearpeak.calibrate.store import About, about, code_digest, digest
from nearpeak.calibrate.tables import File
from nearpeak.cost.calibration import current
from nearpeak.cost.stored import in_use
from nearpeak.cost.tables import predict_operators
from nearpeak.errors import NearpeakError
from nearpeak.home import home

FEWEST = 60
"""Rows below which nothing is fitted, and so nothing left out."""


def operators(files: Sequence[File], leave: Sequence[By] | None) -> tuple[Scored, list[str]]:
    """Rows of one operator's tables; see ``scoring.score``."""
    op, known = files[0].op, about(in_use())
    parts: list[Scored] = []
    unseen: list[Scored] = []
    notes: list[str] = []
    samples: dict[str, list[Sample]] = {}
    flags: dict[str, list[Any]] = {}
    for file in files:
        table = file.table()
        scored, found = _rows(table, op, known)
        parts.append(scored)
        if leave is not None and "gpu" in leave:
            unseen.append(_device_left_out(table, op, scored))
        for name, sample in found.items():
            samples.setdefault(name, []).append(sample)
            flags.setdefault(name, []).append(scored.fit[sample.row] == SEEN)
    if unseen:
        parts.append(_judged(joined(unseen)))
    for name, held in samples.items():
        sample, seen = concatenated(held), np.concatenate(flags[name])
        if not (seen.any() if leave is None else "site" in leave):
            continue
        if sample.rows < FEWEST:
            notes.append(f"{name}: {sample.rows} rows are too few to leave some out; {FEWEST} are needed")
            continue
        part = _sites_left_out(name, sample, files)
        parts.append(part.where(seen) if leave is None else part)
    return joined(parts), notes


def _device_left_out(table: Table, op: str, scored: Scored) -> Scored:
    """The same rows, each by a calibration that has never seen its device."""
    count = length(table)
    words = {"error": scored.error, "evidence": blank(count), "fit": blank(count, LABELS["gpu"])}
    figures = dict.fromkeys(("predicted", "low", "high"), np.full(count, np.nan))
    if (scored.error == "").any():
        told = left_out.devices(op, table, current())
        words |= {"evidence": told["evidence"], "error": np.where(scored.error == "", told["error"], scored.error)}
        figures = {"predicted": told["seconds"], "low": told["seconds_low"], "high": told["seconds_high"]}
    return Scored(**{**vars(scored), **figures, **words})


def _judged(s: Scored) -> Scored:
    """With intervals that are set on other devices where there are several; else as the calibration has them."""
    fold = np.unique(s.gpu.astype(str), return_inverse=True)[1]
    out = left_out.with_intervals(s.predicted, s.measured, s.operator + " " + s.evidence, fold, s.evidence, apart=True)
    sides = {n: np.where(np.isfinite(getattr(out, n)), getattr(out, n), getattr(s, n)) for n in ("low", "high")}
    return Scored(**{**vars(s), **sides})


def _rows(table: Table, op: str, known: About) -> tuple[Scored, dict[str, Sample]]:
    """Every row of a table as the calibration in use predicts it, and the rows that can be read, beside the physics."""
    count = length(table)
    nothing = np.full(count, np.nan)
    gpu, engine = devices(table), text(table, "backend")
    told: Mapping[str, Any] = {"error": blank(count), "evidence": blank(count)}
    measured, ideal = positive(table["seconds"]), nothing.copy()
    operator, fit = blank(count, op), blank(count, NEW)
    samples: dict[str, Sample] = {}
    try:
        told = predict_operators(table, op)
        samples = sampled(table, op, blank(count))
    except NearpeakError as error:
        told = {"error": blank(count, str(error)), "evidence": blank(count)}
    for name, whole in samples.items():
        samples[name] = sample = whole.where(np.isfinite(measured[whole.row]))
        operator[whole.row] = name
        ideal[sample.row] = np.maximum(sample.compute, sample.traffic)
        fit[sample.row[known.seen("operators", op, sample.gpu, sample.site)]] = SEEN
    reason = np.where((told["error"] == "") & ~np.isfinite(measured), "seconds is no time above 0", told["error"])
    seconds, low, high = (np.asarray(told.get(f"seconds{side}", nothing), float) for side in ("", "_low", "_high"))
    rows = (gpu, operator, engine, told["evidence"], fit, measured, seconds, low, high, ideal)
    return Scored(*rows, np.zeros(count, np.int64), reason), samples


def _sites_left_out(op: str, s: Sample, files: Sequence[File]) -> Scored:
    key = digest(*(f.path.read_bytes() for f in files), code_digest().encode())
    out = left_out.sites(op, s, home() / "cache" / "left_out" / f"{op}-{key}.npz")
    reason = np.where(np.isfinite(out.predicted), "", "nothing to predict it by with its site left out")
    ideal, cells = np.maximum(s.compute, s.traffic), np.zeros(s.rows, np.int64)
    return Scored(
        s.gpu, blank(s.rows, op), s.engine, out.evidence, blank(s.rows, LABELS["site"]), s.seconds,
        out.predicted, out.low, out.high, ideal, cells, reason.astype(object),
    )  # fmt: skip
