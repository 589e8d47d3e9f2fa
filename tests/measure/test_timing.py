import math
import random

import numpy as np
import pytest

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.measure import Effort, Sample, collect, measure, timing

NO_BUDGET = 1e9


def skewed(seed: int, phi: float = 0.0):
    """Log-normal timings around a median of 1, each like the last by ``phi``."""
    rng = random.Random(seed)
    x = rng.gauss(0, 1)
    while True:
        yield math.exp(0.1 * x)
        x = phi * x + math.sqrt(1 - phi**2) * rng.gauss(0, 1)


def coverage(samples, level: float) -> float:
    intervals = [s.interval(level) for s in samples]
    return float(np.mean([i.low <= 1 <= i.high for i in intervals]))


def drawn(n: int, seed: int, phi: float = 0.0) -> Sample:
    source = skewed(seed, phi)
    return Sample(tuple(next(source) for _ in range(n)))


@pytest.mark.parametrize("n", [1, 2, 3, 10, 101])
@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_quantiles_are_numpys(n, q):
    sample = drawn(n, n)
    assert sample.quantile(q) == pytest.approx(np.quantile(sample.seconds, q), rel=1e-12)


def test_spread_is_the_interquartile_range_over_the_median():
    assert Sample((1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("n", "dropped", "exact"),
    # exact coverage of order-statistic intervals of the median: 1 - 2 P(Binomial(n, 1/2) <= dropped)
    [(6, 0, 1 - 2 / 2**6), (8, 0, 1 - 2 / 2**8), (9, 1, 1 - 2 * 10 / 2**9), (10, 1, 1 - 2 * 11 / 2**10),
     (15, 3, 1 - 2 * (1 + 15 + 105 + 455) / 2**15)],
)  # fmt: skip
def test_the_95_percent_interval_is_the_exact_one_of_the_order_statistics(n, dropped, exact):
    fast_and_slow_in_turn = sorted(range(n), key=lambda i: i % ((n + 1) // 2))
    sample = Sample(tuple(1.0 + i for i in fast_and_slow_in_turn))
    assert sample.autocorrelation <= 0
    interval = sample.interval(0.95)
    assert (interval.low, interval.high) == (1.0 + dropped, float(n - dropped))
    assert interval.coverage == pytest.approx(exact, abs=1e-15)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_too_few_timings_say_what_their_range_is_worth(n):
    interval = Sample(tuple(1.0 + i for i in range(n))).interval(0.95)
    assert (interval.low, interval.high) == (1.0, float(n))
    assert interval.coverage <= 1 - 2 / 2**n < interval.level
    assert Sample(tuple(1.0 + i for i in range(n))).precision == math.inf


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("n", [7, 20, 60])
def test_intervals_of_independent_timings_hold_the_median_as_often_as_they_say(n, level):
    held = coverage((drawn(n, seed) for seed in range(1000)), level)
    assert held >= level - 0.02  # three standard errors of 1000 draws are 0.02 (95 %) and 0.04 (80 %)


def test_intervals_of_alike_neighbours_are_widened_toward_their_level(monkeypatch):
    samples = [drawn(30, seed, phi=0.6) for seed in range(600)]
    widened = coverage(samples, 0.95)
    monkeypatch.setattr(Sample, "autocorrelation", 0.0)
    assert coverage(samples, 0.95) < 0.85
    assert widened > 0.89


def test_stopping_when_precise_does_not_spoil_the_interval():
    def until_precise(seed: int) -> Sample:
        source = skewed(seed)
        return collect(lambda: (next(source),), Effort(warmup=0, repeats=7, width=0.08, budget=NO_BUDGET))[0]

    samples = [until_precise(seed) for seed in range(600)]
    assert {s.stopped for s in samples} == {"precise"}
    assert len({len(s.seconds) for s in samples}) > 1
    assert coverage(samples, 0.95) >= 0.93


def test_autocorrelation_is_that_of_the_signs():
    assert Sample((1.0, 2.0) * 50).autocorrelation == pytest.approx(-0.99)
    assert Sample((1.0,) * 50 + (2.0,) * 50).autocorrelation == pytest.approx(0.98 - 0.01)
    assert Sample((1.0,) * 9).autocorrelation == 0.0


def test_cold_runs_are_kept_apart():
    source = iter([9.0, 8.0, 1.0, 1.0, 1.0])
    (sample,) = collect(lambda: (next(source),), Effort(warmup=2, repeats=3, most=3, budget=NO_BUDGET))
    assert sample.cold == (9.0, 8.0)
    assert sample.seconds == (1.0, 1.0, 1.0)
    assert sample.stopped == "most"


def test_every_part_of_a_run_must_be_precise():
    steady, shaky = 1.0, skewed(3)
    first, second = collect(lambda: (steady, next(shaky)), Effort(warmup=1, width=0.05, budget=NO_BUDGET))
    assert len(first.seconds) == len(second.seconds) > Effort().repeats
    assert first.stopped == second.stopped == "precise"
    assert second.precision <= 0.05


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when told to."""
    now = [0.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    return sleep


def test_the_budget_ends_the_repeats_but_never_before_the_first(clock):
    assert len(measure(lambda: clock(3.0), Effort(warmup=1, budget=10.0)).seconds) == 3
    late = measure(lambda: clock(30.0), Effort(warmup=1, budget=10.0))
    assert late.seconds == (30.0,)
    assert late.stopped == "budget"


def test_warming_up_lasts_as_long_as_asked(clock):
    sample = measure(lambda: clock(0.25), Effort(warmup=1, settle=1.0, budget=NO_BUDGET))
    assert sample.cold == (0.25,) * 4


def test_waiting_for_the_device_counts(clock):
    waits = []

    def synchronize() -> None:
        waits.append(1)
        clock(2.0)

    sample = measure(lambda: clock(1.0), Effort(warmup=0, repeats=7, most=7, budget=NO_BUDGET), synchronize)
    assert sample.seconds == (3.0,) * 7
    assert len(waits) == 14


def test_what_is_faster_than_the_clocks_tick_is_refused(clock):
    with pytest.raises(NearpeakError, match="loop"):
        measure(lambda: None, Effort(warmup=0))


@pytest.mark.parametrize(
    "wrong",
    [{"warmup": -1}, {"repeats": 0}, {"repeats": 5, "most": 4}, {"width": 0.0}, {"budget": 0.0}, {"budget": math.nan},
     {"settle": 11.0}],
)  # fmt: skip
def test_a_senseless_effort_is_refused(wrong):
    with pytest.raises(UsageError):
        Effort(**wrong)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_senseless_level_is_refused(level):
    with pytest.raises(UsageError, match="between 0 and 1"):
        Sample((1.0, 2.0)).interval(level)


def test_an_empty_sample_is_refused():
    with pytest.raises(UsageError):
        Sample(())
