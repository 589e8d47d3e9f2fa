"""Which calibration is in use: the one that ships, or the one that ``$NEARPEAK_CALIBRATION`` names.

A calibration is a folder of the files that ``cost/data`` holds: ``calibration.json`` (operators), ``engines.json`` and
so on, and ``about.json``, which says what was measured. Files that a folder lacks are the shipped ones. Named
calibrations lie in ``calibrations/NAME/VERSION`` of the user's folder; ``nearpeak calibrate`` makes them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from nearpeak.errors import UnknownName, UsageError
from nearpeak.home import home

VARIABLE = "NEARPEAK_CALIBRATION"
SHIPPED = "shipped"
"""The name of the calibration that comes with the package."""


def calibrations() -> Path:
    """The folder of named calibrations, which may not exist yet."""
    return home() / "calibrations"


def in_use() -> Path | None:
    """The folder of the calibration that ``$NEARPEAK_CALIBRATION`` names; None for the one that ships.

    Raises:
        UsageError: as ``folder_of``.
    """
    return folder_of(os.environ.get(VARIABLE, ""))


@contextmanager
def using(name: str) -> Iterator[None]:
    """Have a calibration in use until the context ends: ``$NEARPEAK_CALIBRATION`` is ``name`` so long."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def folder_of(name: str) -> Path | None:
    """The folder of a calibration: ``NAME`` (its latest version), ``NAME@VERSION`` or a folder. None: the shipped one.

    Raises:
        UnknownName: no calibration is called so. UsageError: it has no such version, or a folder holds none.
    """
    if name in ("", SHIPPED):
        return None
    plain, _, version = name.partition("@")
    if "/" not in name and os.sep not in name and (versions := versions_of(plain)):
        if version and version not in map(str, versions):
            known = ", ".join(map(str, versions))
            raise UsageError(f"calibration {plain!r} has no version {version!r}; it has {known}")
        return calibrations() / plain / (version or str(versions[-1]))
    given = Path(name).expanduser()
    if (given / "about.json").is_file():
        return given
    if given.exists():
        raise UsageError(f"{name!r} holds no calibration (no about.json); make one with `nearpeak calibrate`")
    named = [p.name for p in calibrations().iterdir() if versions_of(p.name)] if calibrations().is_dir() else []
    raise UnknownName("calibration", name, (SHIPPED, *named), "(make one with `nearpeak calibrate TABLES --name NAME`)")


def versions_of(name: str) -> list[int]:
    """The versions of a named calibration, oldest first; none where there is no such calibration."""
    kept = calibrations() / name
    found = (p for p in kept.iterdir() if p.name.isdecimal()) if name and kept.is_dir() else ()
    return sorted(int(p.name) for p in found if (p / "about.json").is_file())


def data(name: str, folder: Path | None = None) -> bytes:
    """The bytes of a calibration's file; of the shipped one where ``folder`` is None or lacks it.

    Raises:
        FileNotFoundError: the shipped calibration has no such file either.
    """
    own = None if folder is None else folder / name
    if own is not None and own.is_file():
        return own.read_bytes()
    return files("nearpeak.cost").joinpath(f"data/{name}").read_bytes()


def decoded(name: str, folder: Path | None, kind: Any) -> Any:  # noqa: ANN401 - what ``kind`` says
    """A calibration's file as values of a type.

    Raises:
        FileNotFoundError: as ``data``.
        UsageError: it is damaged.
    """
    try:
        return msgspec.json.decode(data(name, folder), type=kind)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{name} of the calibration in {folder} is damaged ({error}); make it again") from None
