"""Columns of a CSV or Parquet file as arrays; DuckDB reads both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError

_READERS = {".csv": "read_csv_auto", ".parquet": "read_parquet"}


def read(path: str, wanted: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """The columns ``wanted``, and those of ``optional`` that the file has; a missing number is NaN.

    Raises:
        UsageError: no such file, another kind of file, one that cannot be read or has no rows, or a column is missing.
    """
    import duckdb

    file = Path(path)
    if file.suffix not in _READERS:
        raise UsageError(f"{path!r} is not a table: give a file that ends in {' or '.join(_READERS)}")
    if not file.is_file():
        raise UsageError(f"there is no file {path!r}")
    try:
        with duckdb.connect() as connection:
            table = connection.execute(f"SELECT * FROM {_READERS[file.suffix]}(?)", [str(file)]).fetchnumpy()
    except duckdb.Error as error:
        raise UsageError(f"{path!r} cannot be read: {str(error).splitlines()[0]}") from None
    missing = [name for name in wanted if name not in table]
    if missing:
        raise UsageError(f"{path!r} has no column {', '.join(missing)}; it has {', '.join(table)}")
    found = {name: _plain(table[name]) for name in (*wanted, *(o for o in optional if o in table))}
    if not len(next(iter(found.values()))):
        raise UsageError(f"{path!r} has no rows")
    return found


def _plain(column: NDArray[Any]) -> NDArray[Any]:
    if column.dtype.kind in "iuf" and np.ma.isMaskedArray(column):
        return np.asarray(np.ma.filled(column.astype(float), np.nan))
    return np.asarray(np.ma.filled(column, None) if np.ma.isMaskedArray(column) else column)
