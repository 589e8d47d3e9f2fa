"""Files of measurements: which tables a path holds, told by their columns, and their rows.

A table of operators has ``seconds`` and the columns that ``nearpeak predict operators`` reads; a serving table has
``ttft`` and ``tpot``; a power table has ``watts``; a training table has Megatron's columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.files import READERS, read_columns, read_table
from nearpeak.cost.tables import READINGS
from nearpeak.errors import UsageError

Column = NDArray[Any]
Table = Mapping[str, Column]
Kind = Literal["operators", "power", "serving", "training"]
ITERATION = "iteration time (ms)"

MARKS = {
    "gemm": ("gemm_dtype",),
    "attention": ("num_key_value_heads", "kv_cache_dtype"),
    "moe": ("moe_dtype",),
    "mla": ("mla_dtype",),
    "mla_bmm": ("bmm_dtype",),
    "linear_attention": ("phase",),
    "collective": ("nccl_dtype",),
    "allreduce_custom": ("allreduce_dtype",),
}
"""Columns that a row of an operator fills and rows of others do not. ``attention`` and ``mla`` are in two phases."""
PHASES = ("prefill", "decode")
EXPECTED = (
    f"a table of an operator has seconds, gpu, backend and its sizes ({', '.join(READINGS)}), a serving table ttft and "
    f"tpot, a power table watts, a training table {ITERATION!r}"
)


@dataclass(frozen=True)
class File:
    """A file of measurements. ``op``: of operators, a name in ``READINGS``; else empty."""

    path: Path
    kind: Kind
    op: str = ""

    @property
    def name(self) -> str:
        """The file and the folder that it is in, which say what it holds."""
        return f"{self.path.parent.name}/{self.path.name}" if self.path.parent.name else self.path.name

    def table(self) -> dict[str, Column]:
        """Its rows; of a file of several operators, those of ``op``.

        Raises:
            UsageError: it has none.
        """
        columns = read_table(self.path)
        if not len(next(iter(columns.values()))):
            raise UsageError(f"{self.name} has no rows; give measurements")
        if self.kind != "operators":
            return columns
        rows = _rows_of(columns, self.op)
        return columns if rows is None else {name: column[rows] for name, column in columns.items()}


def find(paths: Sequence[Path]) -> tuple[list[File], list[str]]:
    """The tables of measurements in files and folders, and the names of other files in the folders.

    Raises:
        UsageError: a path does not exist, a file that was named is no table of measurements, a table lacks what was
            measured, or there is none at all.
    """
    found: list[File] = []
    skipped: list[str] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"no file or folder {str(path)!r}; give tables of measurements (.parquet or .csv)")
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in READERS) if path.is_dir() else [path]
        for file in inside:
            held = recognized(file)
            found += held
            if not held and not path.is_dir():
                raise UsageError(f"{path.name} is no table of measurements: {EXPECTED}")
            if not held:
                skipped.append(f"{file.parent.name}/{file.name}")
    if not found:
        raise UsageError(f"no tables of measurements in {', '.join(map(str, paths))}: {EXPECTED}")
    return list(dict.fromkeys(found)), skipped


def recognized(path: Path) -> list[File]:
    """What a file holds; nothing where it is no table of measurements.

    Raises:
        UsageError: a table of an operator lacks the column of seconds.
    """
    columns = set(read_columns(path))
    if {"ttft", "tpot"} <= columns:
        return [File(path, "serving")]
    if ITERATION in columns:
        return [File(path, "training")]
    if "watts" in columns:
        return [File(path, "power")]
    ops = _operators(path, columns)
    if ops and "seconds" not in columns:
        raise UsageError(f"{path.name} has no column 'seconds': what was measured; it has {', '.join(sorted(columns))}")
    return [File(path, "operators", op) for op in ops]


def _operators(path: Path, columns: set[str]) -> list[str]:
    """Operators of a file: by the columns that mark them, by its folder or name, or by the columns that most share."""
    told = [name for name in (path.parent.name, path.stem) if name in READINGS]
    if told:
        return told[:1]
    ops: list[str] = []
    for mark, needed in MARKS.items():
        if set(needed) <= columns:
            ops += [f"{mark}_{phase}" for phase in PHASES] if mark in ("attention", "mla") else [mark]
    if ops:
        held = read_table(path)
        full = [op for op in ops if (rows := _rows_of(held, op)) is None or rows.size]
        return full
    shares = {op: np.mean([c in columns for c in (*r.sizes, *r.named)]) for op, r in READINGS.items()}
    best = max(shares, key=lambda op: float(shares[op]))
    return [best] if shares[best] > 0.5 else []


def _rows_of(columns: Table, op: str) -> NDArray[np.intp] | None:
    """Rows of an operator in a table of several; None where they are all."""
    mark = op.rpartition("_")[0] if op.rpartition("_")[2] in PHASES else op
    marked = [_filled(columns[name]) for name in MARKS.get(mark, ()) if name in columns]
    keep = np.all(marked, axis=0) if marked else np.full(len(next(iter(columns.values()))), True)
    if mark == "attention" and "mla_dtype" in columns:
        keep = keep & ~_filled(columns["mla_dtype"])
    if mark != op:
        keep = keep & (decoding(columns) == (op.rpartition("_")[2] == "decode"))
    return None if keep.all() else np.flatnonzero(keep)


def decoding(columns: Table) -> NDArray[np.bool_]:
    """Which rows are of the decode phase, by what ``table`` or ``op_name`` calls them, or else by their step."""
    said = next((columns[c] for c in ("table", "op_name") if c in columns), None)
    if said is not None:
        distinct, inverse = np.unique(said.astype(str), return_inverse=True)
        return np.array(["generation" in v or "decode" in v for v in distinct], bool)[inverse]
    count = len(next(iter(columns.values())))
    return np.asarray(columns["step"], float) > 0 if "step" in columns else np.full(count, False)


def _filled(column: Column) -> NDArray[np.bool_]:
    """Cells that are not empty."""
    if column.dtype == object:
        return np.array([v is not None and v != "" and v == v for v in column], bool)
    return ~np.isnan(column) if column.dtype.kind == "f" else np.full(column.shape, True)


def by_operator(files: Sequence[File]) -> dict[str, list[File]]:
    """Files of operators by operator, in the order of ``READINGS``."""
    found: dict[str, list[File]] = {}
    for op in READINGS:
        mine = [f for f in files if f.kind == "operators" and f.op == op]
        if mine:
            found[op] = mine
    return found
