"""Training iterations priced from a table, one row each: what ``nearpeak predict training`` does.

Columns are named as in the tables of Megatron-LM iterations: a GPT model by its sizes, a layout and a batch. How those
runs were made is in ``gpt`` and ``DEFAULTS``; a table may say otherwise in columns named as fields of ``TrainingJob``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.calibration import Array
from nearpeak.cost.tables import number
from nearpeak.cost.training import TrainStep, train_step, training_platform
from nearpeak.cost.training_memory import training_ledger
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.hardware import node_of
from nearpeak.workload import Architecture, Attention, Block, Dense, TrainingJob
from nearpeak.workload.training import faults

Table = Mapping[str, NDArray[Any]]

MODEL = ("hidden size", "attention heads", "# layers", "sequence length")
"""Columns that make a GPT model."""
FIELDS = {
    "sequence length": "sequence",
    "global batch": "global_batch",
    "micro batch": "micro_batch",
    "tensor parallelism": "tp",
    "data parallelism": "dp",
    "pipeline parallelism": "pp",
}
"""Columns that the table must have, and the field of the job that each is."""
OPTIONAL = ("cp", "virtual_stages", "zero", "recompute", "sequence_parallel", "flash", "dropout", "overlap")
DEVICES = "# GPUs"
ANSWERS = ("iteration time (ms)", "seconds")
"""Columns that would give the answer away: never read."""
VOCABULARY = 50257
"""GPT-2's. The table does not say; 50,257, 50,304 and 51,200 fit it alike, within 0.1 points in sample."""
DEFAULTS = {"flash": False, "dropout": True, "overlap": True}
"""How Megatron-DeepSpeed ran: scores were written to memory, gradients met after the backward pass in 16 bits, and
nothing was computed again. Inferred: with recomputation the products alone would run above the device's peak."""


def gpt(hidden: int, heads: int, layers: int, positions: int, vocab: int = VOCABULARY) -> Architecture:
    """A GPT-2 of given sizes, its table tied to the head (Radford et al. 2019; Shoeybi et al. 2019).

    Raises:
        UsageError: the width does not divide into heads.
    """
    if hidden % heads:
        raise UsageError(f"hidden size {hidden} is no multiple of {heads} attention heads")
    dim = hidden // heads
    return Architecture(
        name=f"gpt-{layers}x{hidden}",
        family="gpt2",
        hidden=hidden,
        vocab=vocab,
        blocks=(
            Block(
                Attention(heads, heads, dim, dim, bias=True, out_bias=True),
                Dense(4 * hidden, gated=False, bias=True),
                layers,
                norms=4 * hidden,
            ),
        ),
        context=positions,
        tied=True,
        tables=positions * hidden,
        extra=2 * hidden,
    )


def jobs(table: Table, errors: NDArray[Any]) -> Iterator[tuple[NDArray[np.intp], TrainingJob]]:
    """The rows of each model of a table, as one job of arrays. A row that cannot run has its reason in ``errors``.

    Raises:
        UsageError: a column is missing.
    """
    needed = (*MODEL, *FIELDS)
    if missing := [name for name in dict.fromkeys(needed) if name not in table]:
        raise UsageError(
            f"a table of training iterations needs the columns {', '.join(missing)}; it has {', '.join(table)}"
        )
    given = [name for name in (*OPTIONAL, DEVICES) if name in table]
    columns = {n: np.array([number(v) for v in table[n]], float) for n in (*dict.fromkeys(needed), *given)}
    for name, column in columns.items():
        least = 0 if name in OPTIONAL else 1
        for row in np.flatnonzero(
            ~((column >= least) & (column == np.floor(column)) & (column < 1e15)) & (errors == "")
        ):
            errors[row] = f"{name} is {table[name][row]!s}; it must be a whole number of {least} or more"
    usable = np.flatnonzero(errors == "")
    sizes = np.stack([columns[name] for name in MODEL], axis=1)[usable]
    for shape in np.unique(sizes, axis=0):
        at = usable[(sizes == shape).all(axis=1)]
        try:
            model = gpt(*(int(x) for x in shape))
        except UsageError as error:
            errors[at] = str(error)
            continue
        job = _job(model, columns, at)
        for wrong, reason in faults(job):
            for row in np.flatnonzero(np.broadcast_to(wrong, at.shape)):
                errors[at[row]] = errors[at[row]] or reason(job.at((int(row),)))
        if DEVICES in columns:
            for row in np.flatnonzero(columns[DEVICES][at] != job.devices):
                said, cut = int(columns[DEVICES][at[row]]), int(job.devices[row])
                errors[at[row]] = (
                    errors[at[row]] or f"{DEVICES} is {said}, but tp x dp x pp x cp is {cut}; give equal numbers"
                )
        at = at[errors[at] == ""]
        if at.size:
            yield at, _job(model, columns, at)


def _job(model: Architecture, columns: Mapping[str, Array], at: NDArray[np.intp]) -> TrainingJob:
    numbers: dict[str, Any] = {field: columns[name][at].astype(np.int64) for name, field in FIELDS.items()}
    for name in OPTIONAL:
        if name in columns:
            kind = bool if name in DEFAULTS or name == "sequence_parallel" else np.int64
            numbers[name] = columns[name][at].astype(kind)
    return TrainingJob(model=model, **(DEFAULTS | numbers))


def predict_training_table(table: Table, gpu: str = "a100_sxm", engine: str = "megatron") -> dict[str, NDArray[Any]]:
    """Predict the seconds of every row of a table of training iterations.

    Args:
        table: columns by name, each ``[rows]``; ``ANSWERS`` are not read. A column ``gpu`` goes before the argument.

    Returns:
        The table's columns, then ``seconds``, ``seconds_low``, ``seconds_high`` (nan where there is no answer),
        ``memory`` (bytes of the fullest device), ``fits``, ``mfu``, ``evidence``, and ``error``: why a row has no
        answer, else empty.

    Raises:
        UsageError: a column is missing.
    """
    rows = len(next(iter(table.values())))
    errors: NDArray[Any] = np.full(rows, "", dtype=object)
    out = {name: column for name, column in table.items() if name not in ANSWERS}
    figures = {n: np.full(rows, np.nan) for n in ("seconds", "seconds_low", "seconds_high", "memory", "mfu")}
    fits, kinds = np.full(rows, False), np.full(rows, "", dtype=object)
    gpus = table["gpu"].astype(str) if "gpu" in table else np.full(rows, gpu)
    for at, job in jobs(table, errors):
        for name in np.unique(gpus[at]):
            mine = at[gpus[at] == name]
            one = _rows(job, gpus[at] == name)
            try:
                node = node_of(str(name))
                step = train_step(training_platform(node, engine), one, node)
            except NearpeakError as error:
                errors[mine] = str(error)
                continue
            ledger = training_ledger(one)
            _fill(figures, mine, step)
            figures["memory"][mine], fits[mine], kinds[mine] = ledger.used, ledger.fits(node.device), step.evidence
    return out | figures | {"fits": fits, "evidence": kinds, "error": errors}


def _rows(job: TrainingJob, mine: NDArray[np.bool_]) -> TrainingJob:
    picked: dict[str, Any] = {n: np.broadcast_to(a, mine.shape)[mine] for n, a in job.arrays().items()}
    return TrainingJob(model=job.model, optimizer=job.optimizer, **picked)


def _fill(figures: dict[str, Array], at: NDArray[np.intp], step: TrainStep) -> None:
    figures["seconds"][at], figures["mfu"][at] = step.total, step.mfu
    figures["seconds_low"][at], figures["seconds_high"][at] = step.low, step.high
