"""Calibrations kept by name and version: a folder of data files, and what they were fitted on.

A version is written beside its place and then renamed, so that it is there whole or not at all, and never changes.
"""

import os
import re
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.stored import SHIPPED, calibrations, decoded, versions_of
from nearpeak.errors import UsageError

Keys = NDArray[np.int64]
ABOUT = "about.json"


class Source(msgspec.Struct, frozen=True):
    """Measurements behind a calibration: one kind and operator on one device.

    Attributes:
        kind: operators, serving, training or power. op: the operator's table; empty otherwise. gpu: the device.
        rows: how many. digest: of the files that they came from.
        keys: sorted numbers, 32 bits each, of the sites (or runs) among them: what tells measured from new.
    """

    kind: str
    op: str
    gpu: str
    rows: int
    digest: str
    keys: bytes


class About(msgspec.Struct, frozen=True):
    """What a calibration is: its name, version, the nearpeak that made it, what it replaces, and its measurements."""

    name: str
    version: int
    nearpeak: str
    replaces: str
    sources: tuple[Source, ...]

    @property
    def title(self) -> str:
        """``NAME@VERSION``."""
        return f"{self.name}@{self.version}"

    def seen(self, kind: str, op: str, gpus: NDArray[Any], keys: Keys) -> NDArray[np.bool_]:
        """Which rows are in the measurements behind the calibration, by their devices and their sites or runs."""
        found = np.full(keys.shape, False)
        for source in self.sources:
            if (source.kind, source.op) == (kind, op):
                here = gpus == source.gpu
                found[here] |= np.isin(keys[here].astype(np.uint32), np.frombuffer(source.keys, np.uint32))
        return found


def packed(keys: Keys) -> bytes:
    """Distinct numbers, sorted, as ``Source.keys`` holds them."""
    return np.unique(keys.astype(np.uint32)).tobytes()


def about(folder: Path | None) -> About:
    """What is known of the calibration in a folder; None: of the one that ships.

    Raises:
        UsageError: it is damaged.
    """
    try:
        found: About = decoded(ABOUT, folder, About)
    except FileNotFoundError:
        return About(SHIPPED, 1, "", "", ())
    return found


def place(name: str, out: Path | None) -> tuple[Path, int]:
    """Where the next version of a calibration goes, and its number: 1 for a folder of the caller's own.

    Raises:
        UsageError: a name with other characters than letters, digits, ``.``, ``_`` and ``-``, the shipped one's name,
            or a folder that exists.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name == SHIPPED:
        raise UsageError(f"{name!r} is no name for a calibration; use letters, digits, '.', '_', '-', not {SHIPPED!r}")
    if out is not None:
        if out.exists() or out.is_symlink():
            raise UsageError(f"'{out}' exists; remove it or choose another --out")
        return out, 1
    version = max(versions_of(name), default=0) + 1
    return calibrations() / name / str(version), version


def save(folder: Path, files: Mapping[str, bytes], described: About) -> None:
    """Write a calibration into a new folder, whole or not at all.

    Raises:
        UsageError: the folder exists.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    beside.mkdir()
    try:
        for name, text in {**files, ABOUT: msgspec.json.encode(described)}.items():
            (beside / name).write_bytes(text)
        if folder.exists():
            raise UsageError(f"'{folder}' exists; nothing was written over it")
        os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def digest(*parts: bytes) -> str:
    """Sixteen hexadecimal digits that equal bytes share."""
    found = sha256()
    for part in parts:
        found.update(sha256(part).digest())
    return found.hexdigest()[:16]


def code_digest() -> str:
    """Of the code that fits and predicts: what was kept under another one is fitted again."""
    root = Path(__file__).parents[1]
    rooms = ("calibrate", "cost", "hardware", "workload")
    return digest(*(p.read_bytes() for room in rooms for p in sorted((root / room).rglob("*.py"))))


def kept(path: Path, type_: Any) -> Any:  # noqa: ANN401 - what was encoded there
    """What an interrupted or earlier run left at ``path``; None where there is nothing, or nothing whole."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=type_)
    except (OSError, msgspec.MsgspecError):
        return None


def keep(path: Path, value: Any) -> None:  # noqa: ANN401 - anything msgspec encodes
    """Leave a value for ``kept``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    beside.write_bytes(msgspec.json.encode(value))
    os.replace(beside, path)
