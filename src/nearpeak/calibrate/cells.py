"""Columns of a table as they are scored: times, names, devices."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.tables import number
from nearpeak.errors import NearpeakError
from nearpeak.hardware import device

Array = NDArray[np.float64]
Column = NDArray[Any]
Table = Mapping[str, Column]


def length(table: Table) -> int:
    """How many rows a table has."""
    return len(next(iter(table.values()), ()))


def blank(count: int, value: object = "") -> Column:
    """A column of texts that are all ``value``."""
    return np.full(count, value, object)


def positive(column: Column) -> Array:
    """Finite numbers above 0; nan for anything else."""
    values = np.array([number(v) for v in column], float) if column.dtype == object else np.asarray(column, float)
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def text(table: Table, name: str, default: str = "") -> Column:
    """A column of names; ``default`` where it or a cell is missing."""
    if name not in table:
        return blank(length(table), default)
    return np.array([default if v is None or v != v else str(v) for v in table[name]], object)


def devices(table: Table, default: str = "") -> Column:
    """The names of devices as the catalogue has them; as they are where it has none."""
    names, index = np.unique(text(table, "gpu", default).astype(str), return_inverse=True)
    return np.array([_canonical(str(name)) for name in names], object)[index]


def _canonical(name: str) -> str:
    try:
        return device(name).name
    except NearpeakError:
        return name
