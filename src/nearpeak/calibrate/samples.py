"""Measured operators, each beside the physics that ``nearpeak`` sees in it: what a calibration is fitted to."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.calibrate.cells import positive
from nearpeak.cost.calibration import Calibration
from nearpeak.cost.files import read_table
from nearpeak.cost.platform import variant_name
from nearpeak.cost.tables import READINGS, groups, platform_named
from nearpeak.errors import NearpeakError, UsageError

Array = NDArray[np.float64]
Column = NDArray[Any]
Table = Mapping[str, Column]

SITES = {
    "gemm": ("n", "k"),
    "attention_prefill": ("num_heads", "num_key_value_heads", "head_dim", "window_size"),
    "attention_decode": ("num_heads", "num_key_value_heads", "head_dim", "window_size"),
    "moe": ("hidden_size", "inter_size", "topk", "num_experts"),
    "mla_prefill": ("num_heads",),
    "mla_decode": ("num_heads",),
    "mla_bmm": ("num_heads",),
    "linear_attention": ("num_v_heads", "num_k_heads", "nheads"),
    "collective": ("message_size",),
    "allreduce_custom": ("message_size",),
}
"""Columns whose values make one site of a table: what is left out together."""


@dataclass(frozen=True)
class Sample:
    """Measurements of one operator and the physics of each; arrays ``[rows]``. ``row``: where it is in its table."""

    gpu: Column
    engine: Column
    kernel: Column
    variant: Column
    site: NDArray[np.int64]
    compute: Array
    traffic: Array
    floor: Array
    coordinates: tuple[Array, ...]
    seconds: Array
    row: NDArray[np.intp]

    def where(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> "Sample":
        """Some of the rows."""
        plain = {n: getattr(self, n)[rows] for n in self.__dataclass_fields__ if n != "coordinates"}
        return Sample(**plain, coordinates=tuple(c[rows] for c in self.coordinates))

    @property
    def rows(self) -> int:
        """How many."""
        return int(self.seconds.size)


def samples(folder: Path, table: str) -> dict[str, Sample]:
    """Measurements in the Parquet files of ``folder/table`` by the operator that they are of.

    Raises:
        UsageError: a row cannot be read; the message says why.
    """
    parts: dict[str, list[Sample]] = {}
    for file in sorted((folder / table).glob("*.parquet")):
        columns = read_table(file)
        errors = np.full(len(columns["seconds"]), "", object)
        for op, sample in sampled(columns, table, errors).items():
            parts.setdefault(op, []).append(sample)
        if np.any(errors != ""):
            raise UsageError(f"{file.name}: {np.sum(errors != '')} rows not read: {errors[errors != ''][0]}")
    return {op: concatenated(found) for op, found in parts.items()}


def sampled(columns: Table, table: str, errors: Column) -> dict[str, Sample]:
    """Measurements of one table by the operator that they are of.

    Args:
        columns: with ``seconds`` among them. table: a key of ``SITES``.
        errors: texts ``[rows]``; why a row cannot be read is written there.

    Raises:
        UsageError: columns are missing.
    """
    measured = positive(columns["seconds"])
    sites = site_numbers(columns, SITES[table])
    parts: dict[str, list[Sample]] = {}
    for group in groups(columns, table, errors):
        try:
            blank = platform_named(group.gpu, "", Calibration("", {}))
            work = READINGS[table].work(blank, group.kinds, group.numbers)
        except NearpeakError as error:
            errors[group.rows] = str(error)
            continue
        size = (group.rows.size,)
        variants, inverse = np.unique(np.broadcast_to(work.variant, size), return_inverse=True)
        engine, kernel = (np.full(size, group.kinds[n], object) for n in ("backend", "kernel_source"))
        compute, traffic, floor = (np.broadcast_to(a, size) for a in (work.compute, work.traffic, work.floor))
        sample = Sample(
            gpu=np.full(size, blank.device.name, object),
            engine=engine,
            kernel=kernel,
            variant=np.array([variant_name(v) for v in variants], object)[inverse],
            site=sites[group.rows],
            compute=compute,
            traffic=traffic,
            floor=floor,
            coordinates=tuple(np.broadcast_to(c, size) for c in work.coordinates),
            seconds=measured[group.rows],
            row=group.rows,
        )
        parts.setdefault(work.op, []).append(sample)
    return {op: concatenated(found) for op, found in parts.items()}


def concatenated(parts: Sequence[Sample]) -> Sample:
    """Samples of one operator in one."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {
        n: np.concatenate([getattr(p, n) for p in parts]) for n in Sample.__dataclass_fields__ if n != "coordinates"
    }
    axes = range(len(parts[0].coordinates))
    coordinates = tuple(np.concatenate([p.coordinates[a] for p in parts]) for a in axes)
    return replace(parts[0], **joined, coordinates=coordinates)


def site_numbers(columns: Table, names: Sequence[str]) -> NDArray[np.int64]:
    """A number for each site, the same wherever its columns have these values, whatever the rest of the table."""
    present = [np.asarray(columns[n]) for n in names if n in columns]
    key = np.zeros(len(next(iter(columns.values()))), np.int64)
    for column in present:
        distinct, inverse = np.unique(column.astype(str) if column.dtype == object else column, return_inverse=True)
        key = np.unique(key * distinct.size + inverse, return_inverse=True)[1]
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    texts = (" ".join(_spelled(column[i]) for column in present) for i in first)
    return np.array([zlib.crc32(text.encode()) for text in texts], np.int64)[inverse]


def _spelled(value: Any) -> str:  # noqa: ANN401  (a cell)
    """A cell as text, whole numbers alike whether their column holds integers or floats."""
    try:
        return f"{float(value):.17g}"
    except (TypeError, ValueError):
        return str(value)
