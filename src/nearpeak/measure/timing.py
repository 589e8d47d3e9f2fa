"""Timing a function honestly: warm-up apart, repeats until the median is known well enough, an interval of the median.

Timings are skewed and have outliers, so the median stands for them, not the mean, and its interval comes from order
statistics, which assume nothing of the distribution: of ``n`` independent timings, each is above the true median with
probability 1/2, so dropping the ``k`` smallest and the ``k`` largest leaves a range that misses the median with
probability ``2 P(Binomial(n, 1/2) <= k)`` (David and Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1).

Neighbouring timings are often alike (a clock that ramps, a neighbour on a shared machine), and then they say less
than as many independent ones. ``Sample.interval`` widens the range by the inflation ``sqrt((1 + r) / (1 - r))`` of the
median's standard error, with ``r`` the lag-1 autocorrelation of the signs about the median (never below 0). By
simulation, a 95 % interval of 20 timings that follow an AR(1) process of coefficient 0.6 holds the median 91 % of the
time (75 % without the widening), and of 0.8 still only 83 % (57 %): strongly drifting timings want longer runs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Literal

from nearpeak.errors import NearpeakError, UsageError

Stop = Literal["precise", "budget", "most"]


@dataclass(frozen=True)
class Effort:
    """How hard to measure.

    Attributes:
        warmup: calls made first, kept apart and reported as cold.
        settle: seconds that warming up takes at least, since a clock ramps however short the calls are.
        repeats: calls before precision is looked at (the budget may end earlier, but never before the first).
        most: calls after which it stops in any case.
        width: stop once the 95 % interval of the median is narrower than this fraction of the median.
        budget: seconds, warm-up included. The call under way when they are over is finished.
    """

    warmup: int = 2
    settle: float = 0.0
    repeats: int = 11
    most: int = 1000
    width: float = 0.05
    budget: float = 10.0

    def __post_init__(self) -> None:
        if self.warmup < 0 or not 1 <= self.repeats <= self.most:
            raise UsageError(
                f"warmup {self.warmup}, repeats {self.repeats}, most {self.most}: "
                "needs warmup >= 0 and 1 <= repeats <= most"
            )
        if not (self.width > 0 and 0 <= self.settle < self.budget):
            raise UsageError(
                f"width {self.width}, settle {self.settle} and budget {self.budget} seconds: "
                "needs width > 0 and 0 <= settle < budget"
            )


@dataclass(frozen=True)
class Interval:
    """A range for the median, seconds. ``coverage``: the probability with which it holds it, below ``level`` where
    the repeats were too few for ``level`` (95 % takes at least 6).
    """

    low: float
    high: float
    level: float
    coverage: float


@dataclass(frozen=True)
class Sample:
    """Repeated timings of one thing, seconds, in the order in which they were taken.

    Attributes:
        seconds: the timings that count. cold: the warm-up's, which do not.
        stopped: why there are no more: precise enough, budget spent, or as many as allowed.
    """

    seconds: tuple[float, ...]
    cold: tuple[float, ...] = ()
    stopped: Stop = "most"

    def __post_init__(self) -> None:
        if not self.seconds:
            raise UsageError("a sample needs at least one timing")
        if not all(0 < s < math.inf for s in self.seconds):
            raise NearpeakError(
                f"a timing of {min(self.seconds)} seconds: faster than the clock's tick; time many calls in a loop"
            )

    @property
    def median(self) -> float:
        """Seconds."""
        return self.quantile(0.5)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        return (self.quantile(0.75) - self.quantile(0.25)) / self.median

    @property
    def autocorrelation(self) -> float:
        """Lag-1 autocorrelation of the signs about the median; 0 for fewer than 3 timings or where all are equal."""
        median = self.median
        signs = [(s > median) - (s < median) for s in self.seconds]
        energy = sum(s * s for s in signs)
        if len(signs) < 3 or energy == 0:
            return 0.0
        return sum(a * b for a, b in pairwise(signs)) / energy

    def quantile(self, q: float) -> float:
        """Sample quantile, interpolated linearly between order statistics, seconds."""
        ordered = sorted(self.seconds)
        place = q * (len(ordered) - 1)
        low = math.floor(place)
        high = math.ceil(place)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    def interval(self, level: float = 0.95) -> Interval:
        """The interval of the median that holds it with probability ``level`` (see the module's head).

        Order statistics are discrete, so the probability reached is ``level`` or more; where even the range of all
        timings does not reach it, that range is returned and ``coverage`` says what it is worth.

        Raises:
            UsageError: ``level`` is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise UsageError(f"level {level} must lie between 0 and 1, such as 0.95")
        n = len(self.seconds)
        dropped = 0
        while 2 * (dropped + 1) < n and _coverage(n, dropped + 1) >= level:
            dropped += 1
        r = min(max(self.autocorrelation, 0.0), 0.95)
        inflation = math.sqrt((1 + r) / (1 - r))
        dropped = max(math.floor(n / 2 - (n / 2 - dropped) * inflation), 0)
        as_if_independent = math.ceil(n / 2 - (n / 2 - dropped) / inflation)
        ordered = sorted(self.seconds)
        return Interval(ordered[dropped], ordered[n - 1 - dropped], level, _coverage(n, as_if_independent))

    @property
    def precision(self) -> float:
        """Width of the 95 % interval over the median; infinite where the timings are too few for 95 %."""
        interval = self.interval(0.95)
        return (interval.high - interval.low) / self.median if interval.coverage >= 0.95 else math.inf


def measure(
    f: Callable[[], object], effort: Effort | None = None, synchronize: Callable[[], None] | None = None
) -> Sample:
    """Time ``f()`` by the wall clock.

    Args:
        f: what is timed. Much longer than a microsecond: loop inside it where the work is shorter.
        effort: how hard to measure.
        synchronize: waits until the device has finished; called before and after ``f``, since a GPU works after the
            call that asked it has returned. The wait counts: it is what a user waits for.

    Raises:
        NearpeakError: ``f`` is faster than the clock's tick.
    """
    wait = synchronize or (lambda: None)

    def run() -> tuple[float]:
        wait()
        start = perf_counter()
        f()
        wait()
        return (perf_counter() - start,)

    return collect(run, effort or Effort())[0]


def collect(run: Callable[[], Sequence[float]], effort: Effort) -> tuple[Sample, ...]:
    """Repeat ``run``, which returns the seconds of each of its parts, until every part's median is known well enough.

    Parts may be the phases of one run, or contenders: a ``run`` that times each in turn interleaves them, so that what
    disturbs the machine disturbs all of them alike.

    Precision is looked at after ``effort.repeats`` runs and then each time they are half as many again: looking after
    every run would stop at a chance lull, and the interval would hold the median less often than it says.
    """
    start = perf_counter()
    cold: list[Sequence[float]] = []
    while len(cold) < effort.warmup or perf_counter() < start + effort.settle:
        cold.append(run())
    warm: list[Sequence[float]] = []
    look = effort.repeats
    stopped: Stop = "most"
    while len(warm) < effort.most:
        warm.append(run())
        if len(warm) >= look:
            if all(Sample(part).precision <= effort.width for part in zip(*warm, strict=True)):
                stopped = "precise"
                break
            look = math.ceil(1.5 * look)
        if perf_counter() >= start + effort.budget:
            stopped = "budget"
            break
    colds = list(zip(*cold, strict=True)) or [()] * len(warm[0])
    parts = zip(zip(*warm, strict=True), colds, strict=True)
    return tuple(Sample(part, tuple(cold_part), stopped) for part, cold_part in parts)


def _coverage(n: int, dropped: int) -> float:
    """How likely a range of ``n`` independent timings without the ``dropped`` at each end holds the median."""
    misses = sum(math.comb(n, k) for k in range(dropped + 1))
    return max(1 - misses / (1 << (n - 1)), 0.0)
