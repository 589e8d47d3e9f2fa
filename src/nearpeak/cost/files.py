"""Tables in files: CSV and Parquet, read and written by DuckDB. The extension decides which."""

import glob
import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import NearpeakError, UsageError

Column = NDArray[Any]
READERS = {
    # Cells stay numbers or the text that was written: no dates, no booleans, and every row decides, not a sample.
    ".csv": "read_csv(?, header=true, sample_size=-1, auto_type_candidates=['BIGINT', 'DOUBLE', 'VARCHAR'])",
    ".parquet": "read_parquet(?)",
}
WRITERS = {".csv": "format csv, header", ".parquet": "format parquet, compression zstd"}


def read_table(path: str | Path) -> dict[str, Column]:
    """Columns by name, rows in the file's order.

    Text comes as object arrays, None where empty; whole numbers as integers, or as float64 with NaN where some are
    empty; other numbers as float64, NaN where empty.

    Raises:
        UsageError: no such file, or its extension is neither .csv nor .parquet.
        NearpeakError: the file cannot be read as what its extension says.
    """
    return {name: _plain(column) for name, column in _fetched(path, "select * from {}").items()}


def _fetched(path: str | Path, query: str) -> dict[str, Any]:
    import duckdb

    source = Path(path)
    reader = _by_extension(source, READERS)
    if not source.is_file():
        raise UsageError(f"no file {str(source)!r}; give a .csv or .parquet file, one row for each thing to predict")
    with duckdb.connect() as connection:
        try:
            found = connection.execute(query.format(reader), [glob.escape(str(source))]).fetchnumpy()
        except duckdb.Error as error:
            raise NearpeakError(f"{str(source)!r} cannot be read as {source.suffix[1:]}: {_reason(error)}") from None
    return {str(name): column for name, column in found.items()}


def read_columns(path: str | Path) -> tuple[str, ...]:
    """The names of a table's columns. Raises as ``read_table`` does."""
    return tuple(_fetched(path, "select * from {} limit 0"))


def write_table(path: str | Path, columns: Mapping[str, Column]) -> None:
    """Write columns of equal length. The file appears whole or not at all.

    Raises:
        UsageError: the extension is neither .csv nor .parquet, or two columns differ in case alone, which DuckDB
            cannot tell apart.
        NearpeakError: the file cannot be written.
    """
    import duckdb

    target = Path(path)
    options = _by_extension(target, WRITERS)
    names = sorted(columns, key=str.lower)
    if same := [f"{a} and {b}" for a, b in pairwise(names) if a.lower() == b.lower()]:
        raise UsageError(f"columns {', '.join(same)} differ in case alone; rename one of them")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with duckdb.connect() as connection:
        connection.register("predictions", dict(columns))
        quoted = str(partial).replace("'", "''")
        try:
            connection.execute(f"copy (select * from predictions) to '{quoted}' ({options})")
            os.replace(partial, target)
        except (duckdb.Error, OSError) as error:
            raise NearpeakError(f"cannot write {str(target)!r}: {_reason(error)}") from None
        finally:
            with suppress(OSError):  # where nothing could be written there is nothing to remove
                partial.unlink()


def _reason(error: Exception) -> str:
    """What DuckDB says is wrong, without its advice about its own options."""
    return " ".join(str(error).partition("\n\n")[0].split())


def _by_extension(path: Path, known: Mapping[str, str]) -> str:
    try:
        return known[path.suffix.lower()]
    except KeyError:
        raise UsageError(f"{str(path)!r} ends in neither of {', '.join(known)}; rename it or choose one") from None


def _plain(column: Any) -> Column:  # noqa: ANN401  (NumPy's masked arrays are not typed)
    """A column without its mask: None for empty text, NaN for empty numbers."""
    mask = np.ma.getmaskarray(column)
    values: Column = np.array(np.ma.getdata(column))
    if not mask.any():
        return values
    if values.dtype.kind in "iuf":
        values = values.astype(float)
        values[mask] = np.nan
        return values
    values = values.astype(object)
    values[mask] = None
    return values
