"""Traffic: when requests arrive, and how long their prompts and answers are.

A traffic is a frozen value; ``sample(n, seed)`` draws ``n`` requests from it, the same ones for the same seed. Times
are seconds from the first moment, lengths are tokens.
"""

from __future__ import annotations  # numpy.random is loaded by the first draw, not by the import

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError


@dataclass(frozen=True)
class Marks:
    """What traces may say of their requests besides, arrays ``[n]``.

    ``rank``: class of priority, 0 first. ``prefix``: the group (a conversation, a system prompt) whose requests have
    their first ``shared`` tokens in common, -1 for none.
    """

    rank: NDArray[np.int64]
    prefix: NDArray[np.int64]
    shared: NDArray[np.int64]

    def at(self, index: slice | NDArray[np.intp]) -> Marks:
        """Those of some requests."""
        return Marks(self.rank[index], self.prefix[index], self.shared[index])


@dataclass(frozen=True)
class Requests:
    """Drawn requests in the order in which they arrive, arrays ``[n]``: seconds, tokens, tokens."""

    arrival: NDArray[np.float64]
    isl: NDArray[np.int64]
    osl: NDArray[np.int64]
    marks: Marks | None = None


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} = {value!r}; a number above 0 is needed")


class Lengths(Protocol):
    """A distribution of lengths in tokens, never below 1."""

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """``n`` lengths."""

    @property
    def mean(self) -> float:
        """Mean length in tokens, before rounding."""


class Arrivals(Protocol):
    """A process of arrivals."""

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Times of the first ``n`` arrivals, ascending."""

    @property
    def rate(self) -> float:
        """Requests a second."""


@dataclass(frozen=True)
class Constant:
    """All of one length."""

    tokens: int

    def __post_init__(self) -> None:
        if isinstance(self.tokens, bool) or int(self.tokens) != self.tokens or self.tokens < 1:
            raise UsageError(f"a length of {self.tokens!r} tokens; a whole number of at least 1 is needed")

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """``n`` times the one length."""
        return np.full(n, self.tokens, dtype=np.int64)

    @property
    def mean(self) -> float:
        """The length."""
        return float(self.tokens)


@dataclass(frozen=True)
class Uniform:
    """Every length from ``low`` to ``high``, both included, equally often."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise UsageError(f"lengths from {self.low!r} to {self.high!r}; 1 <= low <= high is needed")

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """``n`` lengths."""
        return rng.integers(self.low, self.high, size=n, endpoint=True)

    @property
    def mean(self) -> float:
        """Half way."""
        return (self.low + self.high) / 2


@dataclass(frozen=True)
class LogNormal:
    """Lognormal with a mean of ``mean`` tokens and a standard deviation of ``spread * mean``; draws are rounded, and
    those below 1 become 1.
    """

    mean: float
    spread: float

    def __post_init__(self) -> None:
        _positive("mean", self.mean)
        _positive("spread", self.spread)
        if self.mean < 1:
            raise UsageError(f"a mean of {self.mean!r} tokens; at least 1 is needed")

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """``n`` lengths."""
        variance = math.log1p(self.spread**2)
        drawn = rng.lognormal(math.log(self.mean) - variance / 2, math.sqrt(variance), size=n)
        return np.maximum(1, np.rint(drawn)).astype(np.int64)


@dataclass(frozen=True)
class Empirical:
    """Lengths as they were seen, each equally often."""

    seen: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.seen or min(self.seen) < 1:
            raise UsageError("an empirical distribution needs lengths, each of at least 1 token")

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """``n`` of them, with replacement."""
        return rng.choice(np.array(self.seen, dtype=np.int64), size=n)

    @property
    def mean(self) -> float:
        """Their mean."""
        return sum(self.seen) / len(self.seen)


@dataclass(frozen=True)
class AtOnce:
    """All requests are there from the start: what a closed loop or an offline batch draws from."""

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """``n`` zeros."""
        return np.zeros(n)

    @property
    def rate(self) -> float:
        """Infinite."""
        return math.inf


@dataclass(frozen=True)
class Gamma:
    """Gamma-distributed times between arrivals.

    ``cv``: their coefficient of variation. 1 is a Poisson process, less is steadier, more is burstier, 0 is a clock.
    """

    rate: float
    cv: float = 1.0

    def __post_init__(self) -> None:
        _positive("rate", self.rate)
        if not (math.isfinite(self.cv) and self.cv >= 0):
            raise UsageError(f"cv = {self.cv!r}; a number of at least 0 is needed")

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Times of the first ``n`` arrivals."""
        if self.cv == 0:
            return np.arange(1, n + 1) / self.rate
        shape = self.cv**-2
        return np.cumsum(rng.gamma(shape, 1 / (self.rate * shape), size=n))


def poisson(rate: float) -> Gamma:
    """A Poisson process: exponential times between arrivals."""
    return Gamma(rate)


@dataclass(frozen=True)
class Traffic:
    """Requests whose lengths and arrivals are drawn independently.

    ``concurrency``: most requests in flight; a new one starts when one ends (a closed loop). None: no limit.
    """

    isl: Lengths
    osl: Lengths
    arrivals: Arrivals = AtOnce()
    concurrency: int | None = None

    def __post_init__(self) -> None:
        if self.concurrency is not None and (int(self.concurrency) != self.concurrency or self.concurrency < 1):
            raise UsageError(f"concurrency = {self.concurrency!r}; a whole number of at least 1 is needed")

    def sample(self, n: int, seed: int) -> Requests:
        """``n`` requests. Lengths and arrivals come from streams of their own, so that one may change by itself."""
        if n < 1:
            raise UsageError(f"a sample of {n!r} requests; at least 1 is needed")
        streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
        return Requests(self.arrivals.draw(n, streams[0]), self.isl.draw(n, streams[1]), self.osl.draw(n, streams[2]))

    @property
    def mean_isl(self) -> float:
        """Mean tokens of a prompt."""
        return self.isl.mean

    @property
    def mean_osl(self) -> float:
        """Mean tokens of an answer."""
        return self.osl.mean


def fixed(isl: int, osl: int, rate: float | None = None, concurrency: int | None = None) -> Traffic:
    """Prompts and answers of one length each, either arriving as a Poisson process or in a closed loop.

    Raises:
        UsageError: both or neither of ``rate`` and ``concurrency`` given.
    """
    if (rate is None) == (concurrency is None):
        raise UsageError("fixed traffic needs either rate (requests a second) or concurrency (requests in flight)")
    arrivals = AtOnce() if rate is None else poisson(rate)
    return Traffic(Constant(isl), Constant(osl), arrivals, concurrency)


@dataclass(frozen=True, eq=False)
class Trace:
    """Recorded requests, arrays ``[requests]`` in the order in which they arrived, the first at 0 s."""

    name: str
    arrival: NDArray[np.float64]
    isl: NDArray[np.int64]
    osl: NDArray[np.int64]
    marks: Marks | None = None

    def sample(self, n: int, seed: int) -> Requests:
        """``n`` requests that followed one another in the trace, from where the seed says.

        Raises:
            UsageError: more than the trace has.
        """
        if not 1 <= n <= len(self.arrival):
            raise UsageError(f"a sample of {n!r} requests of trace {self.name!r}, which has {len(self.arrival)}")
        start = int(np.random.default_rng(seed).integers(len(self.arrival) - n + 1))
        part = slice(start, start + n)
        marks = self.marks and self.marks.at(part)
        return Requests(self.arrival[part] - self.arrival[start], self.isl[part], self.osl[part], marks)

    def resampled(self, seed: int, stretch: int = 200) -> Requests:
        """As many requests as the trace has, in stretches of it drawn with replacement (a moving-block bootstrap).

        Within a stretch of ``stretch`` requests bursts and lengths stay as they were recorded.
        """
        n = len(self.arrival)
        stretch = min(stretch, n)
        starts = np.random.default_rng(seed).integers(n - stretch + 1, size=-(-n // stretch))
        index = (starts[:, None] + np.arange(stretch)).ravel()[:n]
        gaps = np.diff(self.arrival, prepend=self.arrival[0])
        return Requests(np.cumsum(gaps[index]), self.isl[index], self.osl[index], self.marks and self.marks.at(index))

    @property
    def mean_isl(self) -> float:
        """Mean tokens of a prompt."""
        return float(self.isl.mean())

    @property
    def mean_osl(self) -> float:
        """Mean tokens of an answer."""
        return float(self.osl.mean())

    @property
    def rate(self) -> float:
        """Requests a second over the whole trace; infinite where all arrived at once."""
        span = float(self.arrival[-1])
        return (len(self.arrival) - 1) / span if span > 0 else math.inf


_COLUMNS = {
    "arrival": ("arrived_at", "arrival_time", "arrival", "timestamp", "TIMESTAMP"),
    "isl": ("num_prefill_tokens", "isl", "input_toks", "input_length", "input_tokens", "ContextTokens"),
    "osl": ("num_decode_tokens", "osl", "output_toks", "output_length", "output_tokens", "GeneratedTokens"),
}
"""Columns by the names that published traces use (Splitwise and Azure, Mooncake, vLLM); times in seconds."""
_MARKS = {
    "rank": (("priority", "rank"), 0),
    "prefix": (("prefix", "prefix_id", "session", "conversation"), -1),
    "shared": (("shared", "shared_tokens", "prefix_tokens"), 0),
}
"""Columns that a trace may have besides, and what holds where a cell is empty."""
Row = tuple[float, tuple[int, ...]]
"""A request: its arrival; its prompt, its answer, and where the trace has them its marks."""


def read_trace(path: str | Path, time_unit: float = 1.0) -> Trace:
    """A trace from a CSV file with a header, or from a file of JSON objects, one a line (``.jsonl``).

    Args:
        path: the file; its columns are named as in ``_COLUMNS``.
        time_unit: seconds in a unit of its arrival times (0.001 where they are milliseconds).

    Raises:
        UsageError: no such file, a column missing, no request; or, with the line's number, an entry that is no
            number, a time that is negative or not finite, a prompt or an answer without a token.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no trace {str(path)!r}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        found = parse_trace(file, str(path), time_unit, path.suffix == ".jsonl")
    return replace(found, name=path.stem)


def parse_trace(lines: Iterable[str], name: str, time_unit: float = 1.0, objects: bool = False) -> Trace:
    """A trace from lines of CSV with a header, or of JSON objects; ``name`` is what errors call it.

    Raises:
        UsageError: see ``read_trace``.
    """
    _positive("time_unit", time_unit)
    rows = list((_jsonl_rows if objects else _csv_rows)(name, lines))
    if not rows:
        raise UsageError(f"trace {name!r} has no request")
    arrival = np.array([row[0] for row in rows]) * time_unit
    order = np.argsort(arrival, kind="stable")
    isl, osl, *marks = np.array([row[1] for row in rows], dtype=np.int64)[order].T.copy()
    return Trace(name, arrival[order] - arrival.min(), isl, osl, Marks(*marks) if marks else None)


def _csv_rows(name: str, lines: Iterable[str]) -> Iterator[Row]:
    reader = csv.DictReader(lines)
    try:
        columns = _columns(name, reader.fieldnames or ())
        for row in reader:
            yield _row(name, reader.line_num, row, columns)
    except csv.Error as error:
        raise UsageError(f"{name!r}, line {reader.line_num}: no CSV: {error}") from None


def _jsonl_rows(name: str, lines: Iterable[str]) -> Iterator[Row]:
    columns: Sequence[str] = ()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{name!r}, line {number}: no JSON: {error}") from None
        if not isinstance(row, dict):
            raise UsageError(f"{name!r}, line {number}: an object is needed, not {type(row).__name__}")
        columns = columns or _columns(name, tuple(row))
        yield _row(name, number, row, columns)


def _columns(trace: str, present: Sequence[str]) -> list[str]:
    found = []
    for meaning, names in _COLUMNS.items():
        name = next((n for n in names if n in present), None)
        if name is None:
            raise UsageError(
                f"trace {trace!r} has no column for {meaning}: one of {', '.join(names)} is needed, "
                f"it has {', '.join(map(str, present)) or 'none'}"
            )
        found.append(name)
    return found


def _row(trace: str, number: int, row: dict[str, Any], columns: Sequence[str]) -> Row:
    where = f"{trace!r}, line {number}"
    values = []
    for column in columns:
        try:
            values.append(float(row[column]))
        except (KeyError, TypeError, ValueError):
            raise UsageError(f"{where}: {column} = {row.get(column)!r} is no number") from None
    arrival, isl, osl = values
    if not (math.isfinite(arrival) and arrival >= 0):
        raise UsageError(f"{where}: {columns[0]} = {row[columns[0]]!r}; a time of at least 0 is needed")
    for column, tokens in zip(columns[1:], (isl, osl), strict=True):
        if not math.isfinite(tokens) or tokens < 1 or tokens != int(tokens):
            raise UsageError(f"{where}: {column} = {row[column]!r}; a whole number of at least 1 token is needed")
    return arrival, (int(isl), int(osl), *_marks(where, row))


def _marks(where: str, row: dict[str, Any]) -> list[int]:
    """The marks of a row; none at all where its trace has no such column."""
    marks, any_there = [], False
    for names, absent in _MARKS.values():
        name = next((n for n in names if n in row), None)
        any_there = any_there or name is not None
        given = None if name is None else row[name]
        if given is None or given == "":
            marks.append(absent)
            continue
        try:
            marks.append(int(given))
        except (TypeError, ValueError):
            raise UsageError(f"{where}: {name} = {given!r}; a whole number is needed") from None
    return marks if any_there else []
