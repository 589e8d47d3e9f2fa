"""Tables of training iterations, scored."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.calibrate.board import NEW, SEEN, Scored
from nearpeak.calibrate.cells import blank, devices, length, positive
from nearpeak.calibrate.left_out import By, by_file, with_intervals
from nearpeak.calibrate.samples import Table, site_numbers
from nearpeak.calibrate.store import about
from nearpeak.calibrate.tables import ITERATION, File
from nearpeak.cost.stored import in_use
from nearpeak.cost.training_tables import predict_training_table
from nearpeak.errors import NearpeakError

Array = NDArray[np.float64]
RUN = (
    "# GPUs", "global batch", "micro batch", "hidden size", "attention heads", "# layers", "sequence length",
    "tensor parallelism", "data parallelism", "pipeline parallelism",
)  # fmt: skip
"""Columns that make an iteration the same as another."""
DEVICE, ENGINE = "a100_sxm", "megatron"
"""What the published table ran on; it does not say."""
GROUPING: dict[By, str] = {"site": "layout", "model": "model"}
"""What is left out together: a layout over devices, or a model."""


def training(files: Sequence[File], leave: Sequence[By] | None) -> tuple[Scored, list[str]]:
    """Rows of tables of iterations; see ``scoring.score``."""
    return by_file(files, leave, _rows, _left_out)


def _rows(table: Table) -> Scored:
    count = length(table)
    gpu, nothing = devices(table, DEVICE), np.full(count, np.nan)
    told: dict[str, Any] = {"error": blank(count)}
    try:
        told = predict_training_table(table)
    except NearpeakError as error:
        told = {"error": blank(count, str(error))}
    ideal = _roofline(table)
    keys, fit = site_numbers(table, RUN), blank(count, NEW)
    fit[about(in_use()).seen("training", "", gpu, keys)] = SEEN
    seconds, low, high = (np.asarray(told.get(f"seconds{side}", nothing), float) for side in ("", "_low", "_high"))
    evidence = np.asarray(told.get("evidence", blank(count)), object)
    names = (gpu, blank(count, "training iteration"), blank(count, ENGINE), evidence, fit)
    measured, cells = positive(table[ITERATION]) / 1e3, np.zeros(count, np.int64)
    reason = np.asarray(told["error"], object)
    reason = np.where((reason == "") & ~np.isfinite(measured), f"{ITERATION} is no time above 0", reason)
    return Scored(*names, measured, seconds, low, high, ideal, cells, reason)


def _roofline(table: Table) -> Array:
    """The roofline of the fit, nan where nothing can be fitted here or the rows cannot have run."""
    try:
        from nearpeak.calibrate.training import roofline

        return roofline(table)
    except (ImportError, NearpeakError):
        return np.full(length(table), np.nan)


def _left_out(table: Table, scored: Scored, by: By) -> Scored:
    from nearpeak.calibrate.training import GROUPINGS, left_out

    if by not in GROUPING:
        raise NearpeakError(f"iterations were measured on one device; leave out by {' or '.join(GROUPING)}")
    unseen = left_out(table, GROUPING[by])
    kind, folds = blank(unseen.size, "measured"), site_numbers(table, GROUPINGS[GROUPING[by]])
    out = with_intervals(unseen, scored.measured, blank(unseen.size), folds, kind)
    new = {"predicted": out.predicted, "low": out.low, "high": out.high, "evidence": out.evidence}
    return Scored(**{**vars(scored), **new, "fit": blank(unseen.size, f"{GROUPING[by]} left out")})
