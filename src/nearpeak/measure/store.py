"""The measurement store: every measurement ever made here, in one DuckDB file that SQL can read too.

Table ``measurements`` has a row for each run, ``figures`` one for each figure of it, the prediction beside it.
A measurement is written in one transaction: after a crash or a kill it is there whole or not at all. A new store is
made elsewhere and then put in place at once, since DuckDB's own first write can be seen, or be cut, halfway.

DuckDB lets one process at a time write to a file. The store opens it only for as long as it reads or writes, and
where another process holds it, tries again until ``patience`` seconds are over.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.home import home
from nearpeak.measure.fingerprint import Fingerprint
from nearpeak.measure.measurement import Figure, Measurement, Prediction
from nearpeak.measure.timing import Sample

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SCHEMA = 1
"""Version of the tables below. A store of another version is refused, never guessed at."""

_TABLES = f"""
CREATE TABLE measurements (id VARCHAR PRIMARY KEY, created VARCHAR NOT NULL, what JSON NOT NULL,
    platform VARCHAR NOT NULL, fingerprint JSON NOT NULL, samples JSON NOT NULL);
CREATE TABLE figures (measurement VARCHAR NOT NULL, name VARCHAR NOT NULL, value DOUBLE NOT NULL, low DOUBLE NOT NULL,
    high DOUBLE NOT NULL, coverage DOUBLE NOT NULL, predicted DOUBLE, predicted_low DOUBLE, predicted_high DOUBLE,
    evidence VARCHAR, PRIMARY KEY (measurement, name));
CREATE TABLE nearpeak_store AS SELECT {SCHEMA} AS version;
"""


def default_path() -> Path:
    """Where measurements live unless said otherwise: ``$NEARPEAK_HOME``, or else the user's data directory."""
    return home() / "measurements.duckdb"


@dataclass(frozen=True)
class Store:
    """The store in the file ``path``; it is made on the first ``add``. ``patience``: seconds to wait for other users.

    Every method raises ``NearpeakError`` where the file is held by another process for longer than that, is no store,
    is damaged, or was written by another version of nearpeak.
    """

    path: Path = field(default_factory=default_path)
    patience: float = 10.0

    def prepare(self) -> None:
        """Make the store if there is none, and see that it can be written: before work that would be lost."""
        if not self.path.exists():
            self._make()
        with self._connected(write=True):
            pass

    def add(self, measurement: Measurement) -> None:
        """Write a measurement that ``record`` has dated, whole or not at all.

        Raises:
            UsageError: it has no id, or the store has it already.
        """
        if not measurement.id:
            raise UsageError("the measurement has no id; pass it through nearpeak.measure.record first")
        if not self.path.exists():
            self._make()
        with self._connected(write=True) as connection:
            connection.begin()
            if connection.execute("SELECT 1 FROM measurements WHERE id = ?", [measurement.id]).fetchone():
                raise UsageError(f"measurement {measurement.id} is in {self.path} already")
            connection.execute("INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?)", _run_row(measurement))
            connection.executemany(f"INSERT INTO figures VALUES ({'?, ' * 9}?)", _figure_rows(measurement))
            connection.commit()

    def get(self, id: str) -> Measurement:
        """One measurement by its id, or by the beginning of it.

        Raises:
            UsageError: no measurement's id, or more than one, begins so.
        """
        with self._connected() as connection:
            found = _read(connection, "starts_with(id, ?)", [id]) if connection else ()
        if len(found) == 1 and id:
            return found[0]
        if found:
            raise UsageError(f"{len(found)} measurements begin with {id!r}: {', '.join(m.id for m in found[:5])}; "
                             "write more of it")  # fmt: skip
        raise UsageError(f"no measurement {id!r} in {self.path}; `nearpeak measurements` lists those there are")

    def list(self, **what: str | int | float | bool) -> tuple[Measurement, ...]:
        """Measurements in the order in which they were made; with ``what``, those whose inputs have these values.

        ``list(model="tiny", batch=4)`` has the runs of that model at that batch. Empty where there is no store yet.
        """
        with self._connected() as connection:
            found = _read(connection, "true", []) if connection else ()
        return tuple(m for m in found if all(m.what.get(k) == v for k, v in what.items()))

    @contextmanager
    def _connected(self, write: bool = False) -> "Iterator[DuckDBPyConnection | Any]":
        """A connection to the file; None where it is to be read and does not exist."""
        import duckdb

        if not write and not self.path.exists():
            yield None
            return
        connection = self._open(write)
        try:
            foreign = _foreign(connection)
            if foreign:
                raise NearpeakError(f"{self.path} {foreign}")
            yield connection
        except (duckdb.Error, msgspec.MsgspecError) as e:
            raise self._damaged(e) from e
        finally:
            connection.close()

    def _make(self) -> None:
        """Make an empty store, unless another process is the first to."""
        from tempfile import TemporaryDirectory

        import duckdb

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".new-store-", dir=self.path.parent) as folder:
                made = Path(folder, "store.duckdb")
                with duckdb.connect(str(made)) as connection:
                    connection.execute(_TABLES)
                with suppress(FileExistsError):
                    os.link(made, self.path)
        except (OSError, duckdb.Error) as e:
            raise NearpeakError(
                f"cannot make {self.path}: {e}; set NEARPEAK_HOME to a folder that you may write, on a file "
                "system with hard links"
            ) from e

    def _open(self, write: bool) -> "DuckDBPyConnection":
        import duckdb

        end = time.monotonic() + self.patience
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=not write)
            except duckdb.Error as e:
                busy = "Could not set lock" in str(e) or "different configuration" in str(e)
                if not busy:
                    raise self._damaged(e) from e
                if time.monotonic() >= end:
                    raise NearpeakError(f"{self.path} is in use by another process (waited {self.patience:g} s): "
                                        "wait until it is done, or use another NEARPEAK_HOME") from e  # fmt: skip
            time.sleep(0.02)

    def _damaged(self, e: Exception) -> NearpeakError:
        return NearpeakError(
            f"cannot use {self.path}: {str(e).splitlines()[0]}\nIf it is damaged, move it aside (for example to "
            f"{self.path.name}.broken, and {self.path.name}.wal with it); the next measurement starts a new one."
        )


def _foreign(connection: "DuckDBPyConnection") -> str | None:
    """Why an open database is no store that this version reads, to follow the file's name; None where it is one."""
    tables = [row[0] for row in connection.execute("SELECT table_name FROM information_schema.tables").fetchall()]
    if "nearpeak_store" not in tables:
        shown = ", ".join(sorted(tables)[:5]) or "none"
        return f"is a database, but no measurement store (its tables: {shown}); choose another file, or move it aside"
    versions = [row[0] for row in connection.execute("SELECT version FROM nearpeak_store").fetchall()]
    if versions != [SCHEMA]:
        return (
            f"is a store of version {versions}, and this nearpeak reads version {SCHEMA}; use the nearpeak that wrote "
            "it, or another file"
        )
    return None


def _json(value: Any) -> str:  # noqa: ANN401 - whatever msgspec encodes
    return msgspec.json.encode(value).decode()


def _run_row(m: Measurement) -> list[str]:
    return [m.id, m.created, _json(m.what), m.fingerprint.hash, _json(m.fingerprint), _json(m.samples)]


def _figure_rows(m: Measurement) -> list[list[Any]]:
    def predicted(name: str) -> list[Any]:
        p = m.predictions.get(name)
        return [p.value, p.low, p.high, p.evidence] if p else [None] * 4

    return [[m.id, name, f.value, f.low, f.high, f.coverage, *predicted(name)] for name, f in m.figures.items()]


def _read(connection: "DuckDBPyConnection", where: str, values: list[str]) -> tuple[Measurement, ...]:
    runs = connection.execute(
        f"SELECT id, created, what, fingerprint, samples FROM measurements WHERE {where} ORDER BY created, id", values
    ).fetchall()
    figures: dict[str, dict[str, Figure]] = {run[0]: {} for run in runs}
    predictions: dict[str, dict[str, Prediction]] = {run[0]: {} for run in runs}
    for id, name, value, low, high, coverage, *predicted in connection.execute(
        "SELECT * FROM figures ORDER BY rowid"
    ).fetchall():
        if id in figures:
            figures[id][name] = Figure(value, low, high, coverage)
            if predicted[0] is not None:
                predictions[id][name] = Prediction(*predicted)
    return tuple(
        Measurement(
            what=msgspec.json.decode(what),
            figures=figures[id],
            fingerprint=msgspec.json.decode(fingerprint, type=Fingerprint),
            predictions=predictions[id],
            samples=msgspec.json.decode(samples, type=dict[str, Sample]),
            created=created,
            id=id,
        )
        for id, created, what, fingerprint, samples in runs
    )
