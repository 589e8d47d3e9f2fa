"""The log of a search: one JSON line an event, so that a search killed at any moment goes on where it was.

The first line says of which space, method and seed the log is. Then come ``asked`` lines (the points handed out) and
``told`` lines (what came back). A last line that was cut short by a kill is dropped.
"""

import json
import os
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

    def __post_init__(self) -> None:
        for name in ("value", "cost", "variance"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "constraints", tuple(float(c) for c in self.constraints))


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
        first = {"log": _VERSION, **header}
        found = _whole_lines(path, json.dumps(first)) if path.exists() else []
        if found:
            _check(path, found[0], first)
            self.events = found[1:]
        self._file: IO[str] = path.open("a", encoding="utf-8")
        if not found:
            self.write(first)

    def write(self, event: dict[str, Any]) -> None:
        """Add an event; it is on disk when this returns."""
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _whole_lines(path: Path, header: str) -> list[dict[str, Any]]:
    """The events of a file; what stands after its last newline was being written at a kill, and goes."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end == 0 and not header.encode().startswith(data):
        raise UsageError(f"{path} is no log of a search, and is not overwritten: give another file")
    events = []
    for number, line in enumerate(data[:end].splitlines(), 1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise UsageError(f"{path} is no log of a search: line {number} is no event")
        events.append(event)
    with path.open("r+b") as file:
        file.truncate(end)
    return events


def _check(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UsageError(
                f"{path} is the log of another search: its {key} is {found.get(key)!r}, not {value!r}. Give another "
                "file, or search as the log says"
            )
