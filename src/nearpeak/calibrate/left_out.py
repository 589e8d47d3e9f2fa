"""Predictions of rows that the fit did not see: by sites, by devices, by models left out in turn."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from nearpeak.calibrate.board import SEEN, Scored, joined
from nearpeak.calibrate.samples import Sample, Table
from nearpeak.calibrate.tables import File
from nearpeak.cost.calibration import Calibration
from nearpeak.cost.tables import predict_operators
from nearpeak.errors import NearpeakError
from nearpeak.hardware import device

Array = NDArray[np.float64]
Column = NDArray[Any]
By = Literal["site", "gpu", "model"]
COVERED = (0.1, 0.9)
"""Quantiles of measured over predicted that an interval spans: 80 % of measurements."""
FEWEST = 30
"""Rows of other folds that quantiles need; with fewer, those of all groups are taken."""
FOLDS = 5


@dataclass(frozen=True)
class LeftOut:
    """What is predicted of rows that had no part in the fit; arrays ``[rows]``, nan and empty without an answer."""

    predicted: Array
    low: Array
    high: Array
    evidence: Column


def by_file(
    files: Sequence[File],
    leave: Sequence[By] | None,
    rows: Callable[[Table], Scored],
    unseen: Callable[[Table, Scored, By], Scored],
) -> tuple[Scored, list[str]]:
    """Score tables one by one; see ``scoring.score``.

    Args:
        rows: scores a table as it is. unseen: scores it again with something left out of the fit, given the first.
    """
    parts: list[Scored] = []
    notes: list[str] = []
    for file in files:
        table = file.table()
        scored = rows(table)
        parts.append(scored)
        seen = scored.fit == SEEN
        kinds: Sequence[By] = (("site",) if seen.any() else ()) if leave is None else leave
        for by in kinds:
            try:
                part = unseen(table, scored, by)
            except NearpeakError as error:
                notes.append(f"{file.name}: {error}")
                continue
            parts.append(part.where(seen) if leave is None else part)
    return joined(parts), notes


def with_intervals(
    predicted: Array,
    measured: Array,
    group: Column,
    fold: NDArray[np.intp],
    kind: Column,
    apart: bool = False,
) -> LeftOut:
    """Left-out predictions with intervals that the row's own fold had no part in.

    Args:
        predicted, measured: ``[rows]``. group: rows that share an interval. fold: rows that were left out together.
        kind: the evidence of each row. apart: each fold errs in its own way, as devices do: an interval then spans
            those of all other folds.
    """
    ratio = np.log(measured / predicted)
    low, high = np.full(ratio.size, np.nan), np.full(ratio.size, np.nan)
    known = np.isfinite(ratio)
    names, index = np.unique(group.astype(str), return_inverse=True)
    for k in np.unique(fold):
        out = (fold == k) & known
        others = ~(fold == k) & known
        for g in range(names.size):
            here = out & (index == g)
            if not here.any():
                continue
            judges = others & (index == g)
            judges = judges if judges.sum() >= FEWEST else others
            if judges.sum() < FEWEST:
                continue
            parts = [judges & (fold == f) for f in np.unique(fold[judges])] if apart else [judges]
            ends = np.array([np.quantile(ratio[part], COVERED) for part in parts])
            low[here], high[here] = ends[:, 0].min(), ends[:, 1].max()
    evidence = np.where(known, kind, "")
    return LeftOut(np.where(known, predicted, np.nan), predicted * np.exp(low), predicted * np.exp(high), evidence)


def sites(op: str, s: Sample, place: Path | None = None) -> LeftOut:
    """Rows of an operator, their sites left out of the fit in five parts.

    ``place``: a file (.npz) that keeps the answer; it is read where it exists.
    """
    if place is None or not place.exists():
        from nearpeak.calibrate.operators import calibrate

        log = calibrate(op, s)[1].site
        if place is not None:
            _keep(place, {"site": log})
    else:
        with np.load(place) as held:
            log = held["site"]
    entry = s.gpu + " " + s.engine + " " + s.variant
    fold = np.unique(s.site, return_inverse=True)[1] % FOLDS
    return with_intervals(s.seconds * np.exp(log), s.seconds, entry, fold, np.full(s.rows, "measured", object))


def devices(op: str, table: Table, calibration: Calibration) -> dict[str, Column]:
    """What ``predict_operators`` says of every row by a calibration without the entries of the row's own device."""
    gpus = table["gpu"].astype(str)
    parts = {str(gpu): np.flatnonzero(gpus == gpu) for gpu in np.unique(gpus)}
    told = {
        gpu: predict_operators({k: c[rows] for k, c in table.items()}, op, without(calibration, gpu))
        for gpu, rows in parts.items()
    }
    order = np.argsort(np.concatenate(list(parts.values())))
    names = ("seconds", "seconds_low", "seconds_high", "evidence", "error")
    return {name: np.concatenate([told[gpu][name] for gpu in parts])[order] for name in names}


def without(calibration: Calibration, gpu: str) -> Calibration:
    """A calibration that has never seen a device."""
    try:
        name = device(gpu).name
    except NearpeakError:
        return calibration
    operators = {
        op: msgspec.structs.replace(o, entries=tuple(e for e in o.entries if e.gpu != name))
        for op, o in calibration.operators.items()
    }
    return msgspec.structs.replace(calibration, operators=operators)


def _keep(place: Path, arrays: Mapping[str, Array]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f".{place.name}.{os.getpid()}.npz")
    np.savez(beside, allow_pickle=False, **arrays)
    os.replace(beside, place)
