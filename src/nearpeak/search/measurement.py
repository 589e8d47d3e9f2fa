"""How one configuration is measured, and how the best are told from the default: repeats that adapt to the noise.

A configuration is run until the standard error of its median is small enough, or until it is clearly no winner: the
95 % t-bound below its mean lies above the best value so far. The first run after a build is slow and not counted. The
variance of a median is that of the exact bootstrap (Maritz and Jarrett, A note on estimating the variance of the sample
median, JASA 1978): the median of n values resampled is the i-th smallest with probability w_i, so

    var = sum_i w_i x_(i)^2 - (sum_i w_i x_(i))^2,   w_i = I_{i/n}(m, m) - I_{(i-1)/n}(m, m),   m = (n + 1) / 2

with I the incomplete beta function. One slow repeat among many hardly counts.

The winner of a search was lucky as well as good. So the best few and the default are run again, in rounds in which each
runs once in random order (a machine that slows down slows all alike); those that fall behind drop out. The one that is
left is then compared with the default in fresh rounds: the ratio of each round, its median, and the distribution-free
interval of that median.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from scipy.special import bdtr, betainc, stdtrit

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.search.log import Outcome
from nearpeak.search.parameters import Floats

LEVEL: Final = 0.95
"""Of every interval here."""

_NOISELESS: Final = 2
"""After three rounds that gave the same to the last bit, there is no noise."""

Run = Callable[[], float]
"""One repeat: it gives the value, which is to be small."""


class RunFailed(NearpeakError):
    """A repeat gave no value; the text says why."""


class Target(Protocol):
    """What is tuned."""

    def prepared(self, configuration: Mapping[str, Any]) -> AbstractContextManager[Run]:
        """A configuration, built and ready to run any number of times.

        Raises:
            RunFailed: it cannot be built.
        """


@dataclass(frozen=True)
class Repeats:
    """How often a configuration is run.

    Attributes:
        least, most: repeats that count. precision: the standard error of the median over the median at which it is
            known well enough. warmups: runs before, which do not count.

    Raises:
        UsageError: the numbers make no sense.
    """

    least: int = 3
    most: int = 10
    precision: float = 0.01
    warmups: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most or self.warmups < 0 or not self.precision >= 0:
            raise UsageError(
                f"repeats go from at least 1 up, not {self.least} to {self.most}, with a precision and warm-up runs of "
                f"0 or more, not {self.precision} and {self.warmups}"
            )

    def enough(self, values: Sequence[float], incumbent: float) -> bool:
        """Whether these values say enough, where the best of another configuration is ``incumbent``."""
        if len(values) >= self.most:
            return True
        if len(values) >= 2 and lower_bound(values) > incumbent:
            return True
        return len(values) >= self.least and standard_error(values) <= self.precision * abs(float(np.median(values)))


ONCE: Final = Repeats(1, 1, warmups=0)
"""For values without noise."""


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the median of independent values (Maritz and Jarrett); NaN for a single one."""
    n = len(values)
    if n < 2:
        return math.nan
    weights = np.diff(betainc((n + 1) / 2, (n + 1) / 2, np.arange(n + 1) / n))
    centred = np.sort(values) - np.median(values)
    return math.sqrt(max(0.0, float(weights @ centred**2 - (weights @ centred) ** 2)))


def lower_bound(values: Sequence[float], level: float = LEVEL) -> float:
    """The bound that a mean lies above with this confidence, by Student's t; two values or more."""
    n = len(values)
    spread = float(np.std(values, ddof=1)) / math.sqrt(n)
    return float(np.mean(values)) - float(stdtrit(n - 1, level)) * spread


@dataclass
class Measured:
    """A function of configurations for ``minimize``: it runs a target as often as needed.

    Attributes:
        target: what is run. repeats: how often. incumbent: the best value so far; whoever leads the search keeps it up
            to date, so that losers are dropped early.
    """

    target: Target
    repeats: Repeats
    incumbent: float = math.inf

    def __call__(self, configuration: Mapping[str, Any]) -> Outcome:
        """The median of its repeats, with the variance of that median, and the seconds it all took."""
        begun = time.perf_counter()
        values: list[float] = []
        try:
            with self.target.prepared(configuration) as run:
                for _ in range(self.repeats.warmups):
                    run()
                while not self.repeats.enough(values, self.incumbent):
                    values.append(run())
        except RunFailed as error:
            return Outcome(math.nan, time.perf_counter() - begun, why=str(error))
        return Outcome(float(np.median(values)), time.perf_counter() - begun, standard_error(values) ** 2)


def race(runs: Sequence[Run], rounds: int, rng: np.random.Generator) -> tuple[int, Floats]:
    """Which of several is best, in interleaved rounds.

    Runs are compared round by round, as ratios where all values have one sign. From the third round on, one drops out
    when the mean of its differences from the leader is above 0 by the 99 % t-bound; one that fails drops out at once.

    Returns:
        The number of the best, and what was measured, ``[rounds, runs]``; NaN where one had dropped out.

    Raises:
        RunFailed: all failed.
    """
    values = np.full((rounds, len(runs)), np.nan)
    left = np.ones(len(runs), dtype=bool)
    leader, why = 0, ""
    for r in range(rounds):
        for j in rng.permutation(np.flatnonzero(left)):
            try:
                values[r, j] = runs[j]()
            except RunFailed as error:
                left[j], why = False, str(error)
        if not left.any():
            raise RunFailed(why)
        entered = np.flatnonzero(left)
        seen = _scaled(values[: r + 1, entered])
        ahead = int(np.argmin(np.median(seen - seen.mean(axis=1, keepdims=True), axis=0)))
        leader = int(entered[ahead])
        if r >= 2:
            left[entered] = [lower_bound(behind, 0.99) <= 0 for behind in (seen - seen[:, [ahead]]).T]
        if left.sum() == 1:
            break
    return leader, values


def _scaled(values: Floats) -> Floats:
    """Values whose differences are comparable between rounds: logarithms where all have one sign, else themselves."""
    if (values > 0).all():
        return np.asarray(np.log(values))
    return np.asarray(-np.log(-values)) if (values < 0).all() else values


@dataclass(frozen=True)
class Evidence:
    """How the best compares with the default in rounds of their own.

    Attributes:
        best, default: medians of the values that are minimised. gain: the median over rounds of default / best, above
            1 where the best is better; for values that are negative (something is maximised) of best / default; for
            values of both signs of default - best, above 0 where the best is better. ratio: whether it is a ratio.
        low, high: the interval of the gain; NaN where the rounds are too few for one, both the gain where there is no
            noise. level: its coverage. rounds: how many.
    """

    best: float
    default: float
    gain: float
    ratio: bool
    low: float
    high: float
    level: float
    rounds: int

    @property
    def sure(self) -> bool:
        """Whether the best is better than the default beyond the noise."""
        return self.low > (1.0 if self.ratio else 0.0)


def compared(best: Floats, default: Floats) -> Evidence:
    """The evidence of rounds ``[n]`` in which both were run."""
    both = np.concatenate([best, default])
    ratio = bool((both > 0).all() or (both < 0).all())
    gains = np.sort((default / best if both[0] > 0 else best / default) if ratio else default - best)
    low, high, level = median_interval(gains)
    if len(gains) > 1 and gains[0] == gains[-1]:
        low, high, level = gains[0], gains[0], 1.0
    medians = float(np.median(best)), float(np.median(default))
    return Evidence(*medians, float(np.median(gains)), ratio, low, high, level, len(gains))


def median_interval(values: Floats) -> tuple[float, float, float]:
    """The narrowest pair of order statistics that holds the median with at least 95 %, and its exact coverage.

    It assumes nothing of the distribution: P(x_(c) <= median <= x_(n-c+1)) = 1 - 2 P(Bin(n, 1/2) <= c - 1). Fewer than
    six values have no such interval: NaN and 0.
    """
    n = len(values)
    ordered = np.sort(values)
    coverage = 1 - 2 * bdtr(np.arange(n // 2), n, 0.5)
    if n < 2 or coverage[0] < LEVEL:
        return math.nan, math.nan, 0.0
    c = int(np.flatnonzero(coverage >= LEVEL)[-1])
    return float(ordered[c]), float(ordered[n - 1 - c]), float(coverage[c])


def versus(
    target: Target,
    finalists: Sequence[Mapping[str, Any]],
    default: Mapping[str, Any] | None,
    rounds: int,
    rng: np.random.Generator,
) -> tuple[Mapping[str, Any], float, Evidence | None]:
    """The best of the finalists and the default, its value, and the evidence against the default.

    The evidence is None where there is no default, it is the best itself, or it fails. The value is the median of the
    rounds in which the best was compared, or of the race where there was nothing to compare it with.

    Raises:
        RunFailed: all fail.
    """
    entered = [*finalists, *([default] if default is not None and default not in finalists else [])]
    with ExitStack() as stack:
        ready, runs, why = [], [], ""
        for configuration in entered:
            try:
                run = stack.enter_context(target.prepared(configuration))
                run()
            except RunFailed as error:
                why = str(error)
                continue
            ready.append(configuration)
            runs.append(run)
        if not runs:
            raise RunFailed(why)
        winner, seen = race(runs, rounds, rng)
        best = ready[winner]
        if default is None or best == default or default not in ready:
            return best, float(np.nanmedian(seen[:, winner])), None
        both = [runs[winner], runs[ready.index(default)]]
        fresh = np.full((rounds, 2), np.nan)
        for r in range(rounds):
            for j in rng.permutation(2):
                try:
                    fresh[r, j] = both[j]()
                except RunFailed:
                    return best, float(np.nanmedian(seen[:, winner])), None
            if r == _NOISELESS and (np.ptp(fresh[: r + 1], axis=0) == 0).all():
                break
    evidence = compared(*fresh[: r + 1].T)
    return best, evidence.best, evidence
