"""The log of a search: one JSON line an event, so that a search killed at any moment goes on where it was.

The first line says of which space, method and seed the log is. Then come ``asked`` lines (the points handed out) and
``told`` lines (what came back). A last line that was cut short by a kill is dropped.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Final

from nearpeak.errors import UsageError
from nearpeak.search.space import Space

_VERSION: Final = 1


@dataclass(frozen=True)
class Outcome:
    """What one evaluation gave.

    Attributes:
        value: what is minimised; NaN where it failed. cost: seconds it took. variance: of the value about the truth;
            NaN: not known. constraints: measured quantities that must be at most 0. why: why it failed, if it did.
    """

    value: float
    cost: float = 0.0
    variance: float = float("nan")
    constraints: tuple[float, ...] = ()
    why: str = ""


def fingerprint(space: Space) -> str:
    """A short text that two spaces share only if they are the same."""
    listed = b"" if space.listed is None else space.listed.tobytes()
    said = repr((dict(space.parameters), tuple(space.constraints), dict(space.conditions)))
    return sha256(said.encode() + listed).hexdigest()[:16]


class Log:
    """A file of events, open to be added to.

    Raises:
        UsageError: the file is no log, or one of another space, method or seed; it says which.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            lines = list(_lines(path))
            if lines:
                _check(path, lines[0], {"log": _VERSION, **header})
                self.events = lines[1:]
            _cut_after(path, len(lines))
        self._file: IO[str] = path.open("a", encoding="utf-8")
        if path.stat().st_size == 0:
            self.write({"log": _VERSION, **header})

    def write(self, event: dict[str, Any]) -> None:
        """Add an event; it is on disk when this returns."""
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            event = json.loads(line)
        except ValueError:
            if path.read_bytes().endswith(line):
                return  # the line that was being written when the search was killed
            raise UsageError(f"{path} is no log of a search: line {number} is no JSON") from None
        if not isinstance(event, dict):
            raise UsageError(f"{path} is no log of a search: line {number} is no event")
        yield event


def _cut_after(path: Path, lines: int) -> None:
    """Drop what stands after so many lines: the rest of an event that was never written whole."""
    whole = path.read_bytes().split(b"\n")[:lines]
    end = sum(len(line) + 1 for line in whole)
    with path.open("r+b") as file:
        file.truncate(end)


def _check(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UsageError(
                f"{path} is the log of another search: its {key} is {found.get(key)!r}, not {value!r}. Give another "
                "file, or search as the log says"
            )
