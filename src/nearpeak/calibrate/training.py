"""Fit the constants of a training engine on measured iterations, and score it on configurations left out.

Few constants, one set for all rows: they minimize the absolute log errors of the iteration times. ``left_out`` fits
without one value of a grouping at a time (a model, a layout, a number of devices) and predicts the rows of that value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from nearpeak.calibrate.cells import positive
from nearpeak.calibrate.tables import ITERATION
from nearpeak.cost.training import (
    TrainingEngine,
    assemble,
    intervals,
    model_flops,
    sizes,
    training_platform,
)
from nearpeak.cost.training_tables import jobs
from nearpeak.cost.training_work import MicroBatch, micro_batch
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.hardware import node_of
from nearpeak.workload import TrainingJob

Array = NDArray[np.float64]
Table = Mapping[str, NDArray[Any]]

CONSTANTS = {
    "products": (1.0, 0.7, 2.0),
    "unaligned": (3.0, 1.0, 8.0),
    "moving": (1.3, 0.5, 4.0),
    "layer": (1e-3, 0.0, 1e-2),
    "ranks": (0.1, 0.0, 1.0),
    "unfused": (0.2, 0.0, 2.0),
    "micro_batch": (2e-3, 0.0, 5e-2),
    "step": (1e-3, 0.0, 5e-2),
    "join": (2.0, 1.0, 8.0),
}
"""Each constant's start, least and most value."""
LAYOUT = ("tensor parallelism", "data parallelism", "pipeline parallelism")
GROUPINGS: dict[str, tuple[str, ...]] = {
    "model": ("hidden size", "# layers"),
    "layout": LAYOUT,
    "devices": ("# GPUs",),
    "width": ("hidden size",),
}
"""What is left out together, by name."""
FEWEST = 50
"""Rows below which a fit of this many constants says nothing."""


@dataclass(frozen=True)
class Runs:
    """Rows of one model: which they are, their job, and the device's seconds before the engine's constants."""

    at: NDArray[np.intp]
    job: TrainingJob
    work: MicroBatch
    flops: Array


def runs(table: Table, gpu: str = "a100_sxm", engine: str = "megatron") -> list[Runs]:
    """The rows of a table by model.

    Raises:
        UsageError: a column is missing, a row cannot be cut as it says, or no time is below what the peak allows.
    """
    if ITERATION not in table:
        raise UsageError(f"the table has no column {ITERATION!r}; a fit needs what was measured")
    measured = measured_seconds(table)
    errors: NDArray[Any] = np.full(measured.size, "", dtype=object)
    node = node_of(gpu)
    at = training_platform(node, engine)
    found = [Runs(rows, job, micro_batch(at, job, node), model_flops(job)) for rows, job in jobs(table, errors)]
    if wrong := [str(e) for e in errors if e]:
        raise UsageError(f"{len(wrong)} rows cannot have run; the first: {wrong[0]}")
    for group in found:
        fastest = group.flops / (group.job.devices * at.device.rates["bf16"])
        below = ~(measured[group.at] >= fastest)
        if below.any():
            row = group.at[np.flatnonzero(below)[0]]
            raise UsageError(
                f"row {row}: {measured[row]:g} s is no time or less than the device's peak allows; are times in ms?"
            )
    return found


def measured_seconds(table: Table) -> Array:
    """Seconds of every iteration of a table, nan where it has none."""
    return positive(table[ITERATION]) / 1e3


def fit(groups: Sequence[Runs], measured: Array, device: str = "a100_sxm") -> TrainingEngine:
    """The constants that fit some rows best, without intervals. ``measured``: seconds of all rows of the table.

    Raises:
        NearpeakError: too few rows, or the fit does not converge.
    """
    if sum(g.at.size for g in groups) < FEWEST:
        raise NearpeakError(f"{sum(g.at.size for g in groups)} rows are too few to fit on; give at least {FEWEST}")
    start, low, high = (np.array([c[i] for c in CONSTANTS.values()]) for i in range(3))

    def error(x: Array) -> Array:
        engine = _engine(x * start, device)
        return np.concatenate([np.log(assemble(g.work, g.job, engine).total / measured[g.at]) for g in groups])

    found = least_squares(error, np.ones(start.size), bounds=(low / start, high / start), loss="soft_l1", f_scale=0.03)
    if not found.success:
        raise NearpeakError(f"the fit of training constants did not converge: {found.message}")
    # Three digits: the rest is noise.
    return _engine(np.array([float(f"{c:.3g}") for c in found.x * start]), device)


def _engine(constants: Array, device: str) -> TrainingEngine:
    return TrainingEngine(
        device=device, **dict(zip(CONSTANTS, constants.tolist(), strict=True)), fitted={}, intervals={}
    )


def fit_training(table: Table, gpu: str = "a100_sxm", engine: str = "megatron") -> TrainingEngine:
    """The constants of an engine from a table of its iterations, with intervals from models left out in turn.

    Raises:
        UsageError: a column is missing, or rows cannot be right.
        NearpeakError: too few rows, or the fit does not converge.
    """
    groups, measured = runs(table, gpu, engine), measured_seconds(table)
    device = node_of(gpu).device.name
    unseen = np.log(measured / left_out(table, "model", gpu, engine))
    numbers = [sizes(group.job) for group in groups]
    fitted = {
        name: (min(float(n[name].min()) for n in numbers), max(float(n[name].max()) for n in numbers))
        for name in numbers[0]
    }
    return replace(fit(groups, measured, device), fitted=fitted, intervals=intervals(unseen))


def left_out(table: Table, by: str = "model", gpu: str = "a100_sxm", engine: str = "megatron") -> Array:
    """Seconds ``[rows]``, each predicted by constants fitted without the rows that share its value of a grouping.

    Args:
        by: a name in ``GROUPINGS``.

    Raises:
        UsageError: no such grouping, or as in ``runs``.
    """
    if by not in GROUPINGS:
        raise UsageError(f"no grouping {by!r}; leave out by {', '.join(GROUPINGS)}")
    groups, measured = runs(table, gpu, engine), measured_seconds(table)
    keys = np.stack([np.asarray(table[name]) for name in GROUPINGS[by]], axis=1)
    _, value = np.unique(keys, axis=0, return_inverse=True)
    predicted = np.full(measured.size, np.nan)
    for one in range(int(value.max()) + 1):
        out = value == one
        engine_without = fit([g for g in (_some(g, ~out[g.at]) for g in groups) if g.at.size], measured)
        for group in (_some(g, out[g.at]) for g in groups):
            if group.at.size:
                predicted[group.at] = assemble(group.work, group.job, engine_without).total
    return predicted


def _some(group: Runs, rows: NDArray[np.bool_]) -> Runs:
    """The rows of a group where ``rows`` is true."""

    def pick(value: Any) -> Any:  # noqa: ANN401 (a field of MicroBatch)
        if isinstance(value, tuple):
            return tuple(pick(x) for x in value)
        return np.broadcast_to(value, rows.shape)[rows]

    job = TrainingJob(
        model=group.job.model, optimizer=group.job.optimizer, **{n: pick(a) for n, a in group.job.arrays().items()}
    )
    work = MicroBatch(**{name: pick(getattr(group.work, name)) for name in group.work.__dataclass_fields__})
    return Runs(group.at[rows], job, work, pick(group.flops))


def roofline(table: Table, by: str | None = None, gpu: str = "a100_sxm", engine: str = "megatron") -> Array:
    """The baseline: model FLOP over the devices' peak, over a share of it, plus seconds for each micro-batch.

    Two constants, fitted as ``left_out`` fits (``by`` None: in sample).
    """
    groups, measured = runs(table, gpu, engine), measured_seconds(table)
    peak = node_of(gpu).device.rates["bf16"]
    ideal, slots = np.zeros(measured.size), np.zeros(measured.size)
    for g in groups:
        fill = (g.job.micro_batches + np.asarray(g.job.pp) - 1) / g.job.micro_batches
        ideal[g.at], slots[g.at] = (
            g.flops / (g.job.devices * peak) * fill,
            g.job.micro_batches + np.asarray(g.job.pp) - 1,
        )
    value = np.zeros(measured.size, int)
    if by is not None:
        keys = np.stack([np.asarray(table[name]) for name in GROUPINGS[by]], axis=1)
        _, value = np.unique(keys, axis=0, return_inverse=True)
    predicted = np.full(measured.size, np.nan)
    for one in range(int(value.max()) + 1):
        out = value == one
        kept = ~out if by is not None else out
        found = least_squares(
            lambda x, k=kept: np.log((x[0] * ideal + x[1] * slots)[k] / measured[k]), (2.0, 0.01), bounds=(1e-9, np.inf)
        )
        predicted[out] = (found.x[0] * ideal + found.x[1] * slots)[out]
    return predicted
