"""Load by window: bursty diurnal traces of our own, recorded traces in windows, and tables of load.

A month of a service is drawn as a doubly stochastic process. Requests/s in window ``t`` are

    day(t) week(t) drift(t)  +  bursts(t)

a daily and a weekly profile whose level drifts, and traffic of another kind (agents, jobs) with longer prompts and
shorter answers; counts are negative binomial around them (a Poisson process whose rate is gamma-distributed). Bursts
are one of ``KINDS``:

    flash      crowds that come at random, more of them by day; heavy-tailed (Pareto) sizes, quick rise, slow decay
    regime     hours of calm and of turbulence in turn (a Markov chain); in turbulence the load swings from window to
               window by much more
    scheduled  jobs at the same times of each day, of lognormal size, some of which do not come
    mixed      all three, each at half its size
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UnknownName, UsageError
from nearpeak.topic import require_positive
from nearpeak.workload.traffic import Trace, read_trace

Array = NDArray[np.float64]

DAY: Final = 86400.0
INDICATORS: Final = ("requests", "prompt_tokens", "answer_tokens", "utilization")
KINDS: Final = ("flash", "regime", "scheduled", "mixed")


@dataclass(frozen=True, eq=False)
class Load:
    """What a service met, window by window.

    Attributes:
        window: seconds of a window. start: seconds from a Monday's midnight to the first window.
        indicators: names, ``requests`` first.
        values: ``[windows, indicators]``: requests, prompt tokens and answer tokens a second; the share of a fleet of
            constant size that was busy; or whatever else a table holds, never negative.
    """

    window: float
    start: float
    indicators: tuple[str, ...]
    values: Array

    @property
    def requests(self) -> Array:
        """Requests/s, ``[windows]``."""
        return self.values[:, 0]


def synthetic(kind: str, days: float, mean: float, window: float, seed: int) -> Load:
    """A trace with bursts of a kind of ``KINDS``.

    Args:
        days: length. mean: requests/s over a long time, bursts not counted. window: seconds.

    Raises:
        UnknownName: of the kind.
        UsageError: a number is not above 0, or the windows are longer than an hour.
    """
    if kind not in KINDS:
        raise UnknownName("kind of burst", kind, KINDS)
    require_positive(days=days, mean=mean, window=window)
    if window > 3600:
        raise UsageError(f"a window of {window:g} s; an hour (3600) at most is needed to see bursts")
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)]
    time = np.arange(int(days * DAY / window), dtype=np.float64) * window
    base = _base(time, window, streams[0])
    parts = {"flash": _flash, "regime": _regime, "scheduled": _scheduled}
    size = {name: (0.5 if kind == "mixed" else float(name == kind)) for name in parts}
    burst = np.zeros_like(base)
    for (name, make), rng in zip(parts.items(), streams[1:4], strict=True):
        burst = burst + size[name] * make(time, base, window, rng)
    return _indicators(base, burst, mean, window, streams[4])


def _base(time: Array, window: float, rng: np.random.Generator) -> Array:
    """Chat of people: a peak in the afternoon, a shoulder in the evening, fewer at weekends; mean about 1."""
    hour = time / 3600 % 24
    day = 1 - 0.55 * np.cos(2 * np.pi * (hour - 3) / 24) + 0.18 * np.cos(4 * np.pi * (hour - 9) / 24)
    week = np.where(time // DAY % 7 >= 5, 0.75, 1.1)
    return np.asarray(day * week * np.exp(_wander(time.size, 36 * 3600 / window, 0.12, rng)))


def _wander(n: int, memory: float, deviation: float, rng: np.random.Generator) -> Array:
    """A first-order autoregression that forgets in ``memory`` windows, with a standard deviation. ``[n]``."""
    keep = np.exp(-1 / memory)
    steps = rng.normal(0.0, deviation * np.sqrt(1 - keep**2), n)
    steps[:1] = rng.normal(0.0, deviation)
    found = np.empty(n)
    level = 0.0
    for i, step in enumerate(steps):
        level = keep * level + step
        found[i] = level
    return found


def _flash(time: Array, base: Array, window: float, rng: np.random.Generator) -> Array:
    """Crowds: one a day in the mean, that swing as they last; each rises in an hour or so and decays in two to five."""
    begins = np.flatnonzero(rng.random(time.size) < base * window / DAY)
    size = 0.9 * (1 + rng.pareto(2.5, begins.size))
    rise, decay = rng.uniform(1800, 5400, begins.size), rng.uniform(2 * 3600, 5 * 3600, begins.size)
    age = (time[:, None] - time[begins]).clip(min=0.0) * (time[:, None] >= time[begins])
    shape = (1 - np.exp(-age / rise)) * np.exp(-age / decay)
    swing = np.exp(_wander(time.size, 900 / window, 0.6, rng))
    return np.asarray((shape * size).sum(1) * swing)


def _regime(time: Array, base: Array, window: float, rng: np.random.Generator) -> Array:
    """Turbulence: a third of the time, some twelve hours each."""
    leave = np.array([window / (24 * 3600), window / (12 * 3600)])
    draws, state, turbulent = rng.random(time.size), 0, np.empty(time.size)
    for i, draw in enumerate(draws):
        state = 1 - state if draw < leave[state] else state
        turbulent[i] = state
    swing = np.exp(_wander(time.size, 900 / window, 0.6, rng))
    return np.asarray(base * (0.05 + 0.6 * turbulent * swing))


def _scheduled(time: Array, base: Array, window: float, rng: np.random.Generator) -> Array:
    """Jobs: five a day, nine in ten of which come, each for three quarters of an hour to two hours."""
    hours, lasts = np.sort(rng.uniform(0, 24, 5)), rng.uniform(2700, 7200, 5)
    days = np.arange(int(np.ceil((time[-1] + window) / DAY)))
    size = rng.lognormal(-0.6, 0.6, (days.size, 5)) * (rng.random((days.size, 5)) < 0.9)
    begins = days[:, None] * DAY + hours * 3600
    age = time[:, None, None] - begins
    runs = np.clip((np.minimum(age + window, lasts) - np.maximum(age, 0.0)) / window, 0.0, 1.0)
    return np.asarray((runs * size).sum((1, 2)))


def _indicators(base: Array, burst: Array, mean: float, window: float, rng: np.random.Generator) -> Load:
    """Counts and tokens of both kinds of traffic, and how busy a fleet twice the mean's size is."""
    shape = 1000.0  # of the gamma distribution of rates: 3 % of swing beside the counting noise
    chat, agents = (
        rng.poisson(rng.gamma(shape, part * mean * window / shape)) / window for part in (base, burst + 1e-9)
    )
    spread = 1 + rng.normal(0, 0.03, (base.size, 4)).clip(-0.1, 0.1)
    prompts = (600 * chat + 3000 * agents) * spread[:, 0]
    answers = (300 * chat + 120 * agents) * spread[:, 1]
    work = (prompts / 4000 + answers / 300) / (2 * mean * (600 / 4000 + 1))
    busy = (1 - np.exp(-work * spread[:, 2])).clip(0, 1)
    return Load(window, 0.0, INDICATORS, np.stack([chat + agents, prompts, answers, busy], 1))


def binned(trace: Trace, window: float) -> Load:
    """A recorded trace's requests and tokens a second, by window; a last window that is not full is left out.

    Raises:
        UsageError: the trace is shorter than a window.
    """
    require_positive(window=window)
    count = int(trace.arrival[-1] // window)
    if count < 1:
        raise UsageError(f"trace {trace.name!r} lasts {trace.arrival[-1]:g} s, less than one window of {window:g} s")
    at = (trace.arrival // window).astype(np.int64)
    sums = [np.bincount(at, weights, count + 1)[:count] for weights in (None, trace.isl, trace.osl)]
    return Load(window, 0.0, INDICATORS[:3], np.stack(sums, 1) / window)


def read(path: Path, window: float) -> Load:
    """The load in a file: arrivals, put in windows, or a table that has a column ``requests``.

    Args:
        path: a CSV file with a column ``time`` (seconds, evenly spaced; a Monday's midnight is 0), a column
            ``requests`` (a second) and any other indicators; or a trace as ``workload.traffic`` reads it.
        window: seconds, for arrivals; a table has its own.

    Raises:
        UsageError: no such file, or, with the line's number, an entry that is no number or is negative; times that are
            not evenly spaced.
    """
    if not path.is_file():
        raise UsageError(f"there is no trace {str(path)!r}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        columns = next(reader, [])
        if "requests" not in columns or "time" not in columns:
            return binned(read_trace(path), window)
        rows = [_numbers(path, reader.line_num, columns, row) for row in reader if row]
    names = ("requests", *(c for c in columns if c not in ("requests", "time")))
    if len(rows) < 2:
        raise UsageError(f"table {str(path)!r} has {len(rows)} windows; two at least are needed")
    table = np.array(rows)[:, [columns.index(c) for c in ("time", *names)]]
    steps = np.diff(table[:, 0])
    if not (steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-3)):
        raise UsageError(f"table {str(path)!r}: times must rise evenly, not by {steps.min():g} to {steps.max():g} s")
    return Load(float(steps[0]), float(table[0, 0]), names, table[:, 1:])


def _numbers(path: Path, line: int, columns: list[str], row: list[str]) -> list[float]:
    try:
        found = [float(entry) for entry in row]
    except ValueError:
        found = []
    if len(found) != len(columns) or not np.isfinite(found).all() or min(found) < 0:
        raise UsageError(f"{str(path)!r}, line {line}: {row} are not {len(columns)} finite numbers of at least 0")
    return found
