"""Measured operators, each beside the physics that ``nearpeak`` sees in it: what a calibration is fitted to."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.calibration import Calibration
from nearpeak.cost.files import read_table
from nearpeak.cost.platform import variant_name
from nearpeak.cost.tables import READINGS, groups, platform_named

Array = NDArray[np.float64]
Column = NDArray[Any]

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
    """Measurements of one operator and the physics of each; arrays ``[rows]``."""

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

    def where(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> "Sample":
        """Some of the rows."""
        plain = {n: getattr(self, n)[rows] for n in self.__dataclass_fields__ if n != "coordinates"}
        return Sample(**plain, coordinates=tuple(c[rows] for c in self.coordinates))

    @property
    def rows(self) -> int:
        """How many."""
        return int(self.seconds.size)


def samples(folder: Path, table: str) -> dict[str, Sample]:
    """Measurements of one table by the operator that they are of."""
    parts: dict[str, list[Sample]] = {}
    for file in sorted((folder / table).glob("*.parquet")):
        columns = read_table(file)
        measured = np.asarray(columns["seconds"], float)
        sites = _sites(columns, SITES[table])
        errors = np.full(measured.size, "", object)
        for group in groups(columns, table, errors):
            blank = platform_named(group.gpu, "", Calibration("", {}))
            work = READINGS[table].work(blank, group.kinds, group.numbers)
            size = (group.rows.size,)
            names = np.array([variant_name(v) for v in np.broadcast_to(work.variant, size)], object)
            engine, kernel = (np.full(size, group.kinds[n], object) for n in ("backend", "kernel_source"))
            compute, traffic, floor = (np.broadcast_to(a, size) for a in (work.compute, work.traffic, work.floor))
            sample = Sample(
                gpu=np.full(size, group.gpu, object),
                engine=engine,
                kernel=kernel,
                variant=names,
                site=sites[group.rows],
                compute=compute,
                traffic=traffic,
                floor=floor,
                coordinates=tuple(np.broadcast_to(c, size) for c in work.coordinates),
                seconds=measured[group.rows],
            )
            parts.setdefault(work.op, []).append(sample)
        if np.any(errors != ""):
            print(f"{file.name}: {np.sum(errors != '')} rows not read, e.g. {errors[errors != ''][0]}")
    return {op: _concatenated(found) for op, found in parts.items()}


def _concatenated(parts: list[Sample]) -> Sample:
    plain = {
        n: np.concatenate([getattr(p, n) for p in parts]) for n in Sample.__dataclass_fields__ if n != "coordinates"
    }
    axes = range(len(parts[0].coordinates))
    return Sample(**plain, coordinates=tuple(np.concatenate([p.coordinates[a] for p in parts]) for a in axes))


def _sites(columns: dict[str, Column], names: tuple[str, ...]) -> NDArray[np.int64]:
    """A number for each site that does not depend on the rest of the table."""
    present = [columns[n] for n in names if n in columns]
    keys = [" ".join(str(v) for v in row) for row in zip(*present, strict=True)]
    return np.array([zlib.crc32(k.encode()) for k in keys], np.int64)
