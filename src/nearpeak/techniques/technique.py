"""What a technique is, and the registry of all of them.

A technique lives in one small module of this room: what it does to a Setup, when it applies, and the paper. It does
not know the planner, and the planner knows none of them: it asks the registry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from nearpeak.errors import UnknownName
from nearpeak.setup import Setup

Slot = Literal["weights", "kv", "pools"]
"""What a technique changes. Two techniques of one slot exclude each other."""


@dataclass(frozen=True)
class Quality:
    """Share of the original model's task quality that remains: an interval, and where it was read."""

    low: float
    high: float
    source: str


LOSSLESS = Quality(1.0, 1.0, "changes no arithmetic")


@dataclass(frozen=True)
class Technique:
    """Something that changes a Setup for the better.

    Attributes:
        name: as written on the command line. title: in words.
        slot: what it changes.
        paper: where it comes from. row: its number in the catalogue of published systems, where it has one.
        needs: why it cannot be used on a Setup, or None where it can.
        effect: the Setup with the technique; the cost model does the rest.
        quality: what remains of the model's quality.
        command: how ``nearpeak apply`` carries it out, where we can; the arguments after the model.
    """

    name: str
    title: str
    slot: Slot
    paper: str
    needs: Callable[[Setup], str | None]
    effect: Callable[[Setup], Setup]
    quality: Quality = LOSSLESS
    row: int | None = None
    command: str | None = None


_REGISTRY: dict[str, Technique] = {}


def register(technique: Technique) -> Technique:
    """Add a technique to the registry.

    Raises:
        ValueError: the name is taken.
    """
    if technique.name in _REGISTRY:
        raise ValueError(f"two techniques are named {technique.name!r}")
    _REGISTRY[technique.name] = technique
    return technique


def techniques() -> Mapping[str, Technique]:
    """All registered techniques by name."""
    return _REGISTRY


def technique(name: str) -> Technique:
    """The technique of this name.

    Raises:
        UnknownName: none is called so.
    """
    try:
        return _REGISTRY[name]
    except KeyError:
        raise UnknownName("technique", name, _REGISTRY) from None
