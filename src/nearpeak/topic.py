"""What `nearpeak explain`, `simulate` and `fleet` ask and answer: a topic with its options, and figures, tables and
sentences in return.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from nearpeak.errors import UsageError

REQUIRED: Final = object()
"""The default of an option that has none."""


@dataclass(frozen=True)
class Option:
    """One thing that a topic asks.

    Attributes:
        name: keyword of the topic's ``explain``, in snake case; the command line writes ``--kv-bits`` for ``kv_bits``.
        type: makes a value of the text that a person writes: ``str``, ``int``, ``float``, ``numbers``, ``names``;
            ``bool`` is a flag.
        help: one sentence, with the unit.
        default: the value where none is given, as ``type`` would make it; ``None`` for "not known".
    """

    name: str
    type: Callable[[str], Any]
    help: str
    default: Any = REQUIRED


@dataclass(frozen=True)
class Table:
    """Rows under a title: one mapping of column to plain value a row, SI units."""

    title: str
    rows: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, title: str, **columns: ArrayLike) -> "Table":
        """A table of columns that broadcast against each other to one dimension."""
        wide = np.broadcast_arrays(*(np.atleast_1d(np.asarray(c)) for c in columns.values()))
        lines = zip(*(c.tolist() for c in wide), strict=True)
        return cls(title, tuple(dict(zip(columns, line, strict=True)) for line in lines))


@dataclass(frozen=True)
class Explanation:
    """What a topic answers: figures by name in SI units, tables, and what they say in whole sentences.

    Values are plain Python ones. ``report`` writes them by their names: a name that ends in ``_time`` or ``_latency``
    is written as a duration, ``_memory`` as bytes, ``_share`` in percent (``report.format.BY_FIGURE``).
    """

    figures: Mapping[str, Any] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    says: tuple[str, ...] = ()


@dataclass(frozen=True)
class Topic:
    """Something that `nearpeak explain` explains.

    Attributes:
        name: as the command line writes it, in kebab case. title: the question that it answers, in one line.
        paper: authors, title, where and when.
        options: what it asks. explain: takes each option by name.
        example: arguments of a call that shows the topic, as one writes them after ``nearpeak explain NAME``.
    """

    name: str
    title: str
    paper: str
    options: tuple[Option, ...]
    explain: Callable[..., Explanation]
    example: str


def numbers(text: str) -> tuple[float, ...]:
    """Numbers between commas: ``4000,50000``.

    Raises:
        UsageError: something between two commas is no number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} are not numbers with commas between them, e.g. 4000,50000") from None


def names(text: str) -> tuple[str, ...]:
    """Names between commas: ``bf16,w4a16-int``."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def require_positive(**values: ArrayLike) -> None:
    """Refuse values that are zero, negative, infinite or no number.

    Raises:
        UsageError: a value is not finite and above zero; it names the argument and the value.
    """
    for name, given in values.items():
        array = np.asarray(given, dtype=float)
        good = np.isfinite(array) & (array > 0)
        if not good.all():
            worst = array[~good].flat[0]
            raise UsageError(f"{name.replace('_', ' ')} must be finite and above 0, not {worst:g}")


MODEL = Option("model", str, "A bundled model's id, a folder, or a config.json.")
GPU = Option("gpu", str, "A device of the catalogue (nearpeak hardware lists them).")


def topics_of(room: str, modules: tuple[str, ...]) -> dict[str, Topic]:
    """The topics that modules of a room hold as ``TOPIC``, by name in alphabetical order. They are imported now."""
    from importlib import import_module

    found: list[Topic] = [import_module(f"{room}.{m}").TOPIC for m in modules]
    return {topic.name: topic for topic in sorted(found, key=lambda t: t.name)}
