"""The log of a sweep: a line for each task that is done, safe from kills, from which the table is made."""

import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from nearpeak.cost.files import WRITERS
from nearpeak.errors import NearpeakError, UsageError


@contextmanager
def opened(path: Path, header: dict[str, str], keys: Sequence[str]) -> Iterator[tuple[IO[bytes], set[str]]]:
    """The log, open at its end and ours alone, and the keys of the tasks that are done.

    Raises:
        UsageError: another process has it open, it is of another sweep or of none, or a line is damaged.
    """
    ours = json.dumps(header).encode()
    with path.open("a+b") as log:
        _lock(path, log)
        log.seek(0)
        done: set[str] = set()
        whole = 0  # bytes of whole lines: the last may have been cut off
        for number, line in enumerate(log):
            cut_off = not line.endswith(b"\n")
            if number == 0 and not (cut_off and ours.startswith(line)):
                _check_header(path, line, header)
            if cut_off:
                break
            if number > 0:
                done.add(_key(path, number, line, keys))
            whole += len(line)
        log.truncate(whole)
        if whole == 0:
            log.write(ours + b"\n")
            log.flush()
        yield log, done


def _lock(path: Path, log: IO[bytes]) -> None:
    if sys.platform == "win32":  # where files have other locks
        return
    import fcntl

    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UsageError(f"another process is at this sweep: it holds {str(path)!r}") from None


def _check_header(path: Path, line: bytes, header: dict[str, str]) -> None:
    try:
        theirs = json.loads(line)
        differs = [f"its {name} is {theirs[name]}, not {ours}" for name, ours in header.items() if theirs[name] != ours]
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"{str(path)!r} is not the log of a sweep; remove it or choose another output") from None
    if differs:
        raise UsageError(
            f"{str(path)!r} is the log of another sweep ({'; '.join(differs)}); finish that one, remove the log, or "
            "choose another output"
        )


def _key(path: Path, number: int, line: bytes, keys: Sequence[str]) -> str:
    with suppress(ValueError, TypeError, KeyError, IndexError):
        entry = json.loads(line)
        if keys[entry["task"]] == entry["key"] and isinstance(entry["result"], dict):
            return str(entry["key"])
    raise UsageError(f"line {number + 1} of {str(path)!r} is damaged; remove that line, and its task is done again")


def write_sorted(log: Path, out: Path) -> None:
    """Sort a log into a table, which appears whole or not at all.

    Raises:
        NearpeakError: the table cannot be written.
    """
    import duckdb

    fields = ", ".join(f"{_quoted(name)} {kind}" for name, kind in _columns(log).items())
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    rows = (
        f"read_json({_text(glob.escape(str(log)))}, format = 'newline_delimited', maximum_object_size = 1 << 28, "
        f"columns = {{task: 'BIGINT', result: {_text(f'STRUCT({fields})')}}})"
    )
    query = f"select unnest(result) from (select * from {rows} where task is not null order by task)"
    try:
        with duckdb.connect() as connection:
            connection.execute(f"copy ({query}) to {_text(str(partial))} ({WRITERS[out.suffix.lower()]})")
        os.replace(partial, out)
    except (duckdb.Error, OSError) as error:
        raise NearpeakError(f"cannot write {str(out)!r} ({error}); the results are in {str(log)!r}") from None
    finally:
        with suppress(OSError):
            partial.unlink()


def _columns(log: Path) -> dict[str, str]:
    """DuckDB's types of the columns, in the order in which the first tasks name them, whoever was done first."""
    first: dict[str, tuple[int, int]] = {}
    seen: dict[str, set[type]] = {}
    with log.open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            entry = json.loads(line)
            for place, (name, value) in enumerate(entry["result"].items()):
                first[name] = min(first.get(name, (entry["task"], place)), (entry["task"], place))
                if value is not None:
                    seen.setdefault(name, set()).add(type(value))
    order = sorted(first, key=lambda name: (name == "error", first[name]))
    return {name: KINDS.get(frozenset(seen.get(name, ())), "VARCHAR") for name in order}


KINDS = {
    frozenset({bool}): "BOOLEAN",
    frozenset({int}): "BIGINT",
    frozenset({float}): "DOUBLE",
    frozenset({int, float}): "DOUBLE",
}
"""DuckDB's types by those of a column's values; of others text."""


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(given: str) -> str:
    return "'" + given.replace("'", "''") + "'"
