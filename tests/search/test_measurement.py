"""How a configuration is measured: repeats that adapt to noise, losers dropped, winners told from the lucky."""

import math
import time
from contextlib import contextmanager

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.search import Integer, Space
from nearpeak.search.measurement import (
    ONCE,
    Measured,
    Repeats,
    RunFailed,
    compared,
    lower_bound,
    median_interval,
    race,
    standard_error,
    versus,
)
from nearpeak.search.tune import FunctionTarget, tune


class Noisy:
    """Configurations ``{"x": true value}`` with relative noise, a slow first run, and a machine that may slow down."""

    def __init__(self, noise=0.0, seed=0, first=1.0, drift=lambda run: 1.0):
        self.rng, self.noise, self.first, self.drift = np.random.default_rng(seed), noise, first, drift
        self.runs = 0

    @contextmanager
    def prepared(self, configuration):
        fresh = [self.first]

        def run():
            self.runs += 1
            factor = fresh.pop() if fresh else 1.0
            return configuration["x"] * factor * self.drift(self.runs) * math.exp(self.noise * self.rng.normal())

        yield run


DISTRIBUTIONS = {
    "normal": lambda rng, shape: rng.normal(10, 1, shape),
    "lognormal": lambda rng, shape: np.exp(rng.normal(0, 0.5, shape)),
    "one in ten is slow": lambda rng, shape: rng.normal(10, 1, shape) + 20 * (rng.random(shape) < 0.1),
}


@pytest.mark.parametrize("kind", ["normal", "lognormal"])
@pytest.mark.parametrize("n", [5, 7, 10])
def test_the_standard_error_is_that_of_the_median(kind, n):
    draws = DISTRIBUTIONS[kind](np.random.default_rng(n), (400, n))
    said = np.median([standard_error(row) for row in draws])
    assert said == pytest.approx(np.median(draws, axis=1).std(), rel=0.3)


def test_slow_repeats_widen_the_error_of_the_median_far_less_than_that_of_the_mean():
    draws = DISTRIBUTIONS["one in ten is slow"](np.random.default_rng(0), (400, 10))
    said = np.median([standard_error(row) for row in draws])
    assert said < 0.5 * np.mean(draws, axis=1).std()


def test_a_single_value_has_no_standard_error_and_equal_ones_have_none_to_speak_of():
    assert math.isnan(standard_error([3.0]))
    assert standard_error([3.0, 3.0, 3.0]) == 0


def test_repeats_follow_the_noise():
    counts = []
    for noise in (0.001, 0.03, 0.3):
        target = Noisy(noise)
        for _ in range(30):
            Measured(target, Repeats(3, 20, 0.01))({"x": 1.0})
        counts.append(target.runs / 30 - 1)
    assert counts[0] == 3
    assert counts[0] < counts[1] < counts[2]
    assert counts[2] > 15


def test_the_variance_that_is_told_is_that_of_the_value():
    outcomes = [Measured(Noisy(0.05, seed), Repeats(8, 8))({"x": 1.0}) for seed in range(300)]
    true = np.var([o.value for o in outcomes])
    assert 0.6 * true < np.mean([o.variance for o in outcomes]) < 1.6 * true


def test_the_slow_first_run_does_not_count():
    outcome = Measured(Noisy(0.001, first=5.0), Repeats())({"x": 2.0})
    assert outcome.value == pytest.approx(2.0, rel=0.01)
    assert outcome.cost > 0


def test_a_clear_loser_is_run_twice_and_an_equal_one_in_full():
    loser, equal = Noisy(0.005, 1), Noisy(0.005, 1)
    counts = {"loser": 0, "equal": 0}
    for _ in range(40):
        for name, target, x in (("loser", loser, 1.3), ("equal", equal, 1.0)):
            before = target.runs
            Measured(target, Repeats(10, 10), incumbent=1.0)({"x": x})
            counts[name] += target.runs - before - 1
    assert counts["loser"] <= 40 * 2.5
    assert counts["equal"] >= 40 * 8


def test_a_better_one_is_hardly_ever_dropped_early():
    dropped = 0
    for seed in range(300):
        target = Noisy(0.05, seed)
        Measured(target, Repeats(10, 10), incumbent=1.0)({"x": 0.97})
        dropped += target.runs < 11
    assert dropped / 300 < 0.1


def test_the_lower_bound_holds_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(1.0, 0.1, (1000, 4))
    assert np.mean([lower_bound(row) <= 1.0 for row in draws]) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_the_interval_of_the_median_holds_it_as_often_as_it_says(kind):
    true = np.median(DISTRIBUTIONS[kind](np.random.default_rng(9), 200_000))
    draws = DISTRIBUTIONS[kind](np.random.default_rng(1), (1000, 11))
    found = np.asarray([median_interval(row) for row in draws])
    assert np.mean((found[:, 0] <= true) & (true <= found[:, 1])) == pytest.approx(found[0, 2], abs=0.015)
    assert 0.95 <= found[0, 2] < 0.99


def test_too_few_values_have_no_interval():
    assert math.isnan(median_interval(np.arange(5.0))[0])


CLOSE = (1.03, 1.02, 1.0, 1.04)


def raced(seed, drift=lambda run: 1.0):
    target = Noisy(0.025, seed, drift=drift)
    runs = []
    for x in CLOSE:
        with target.prepared({"x": x}) as run:
            runs.append(run)
    return race(runs, 15, np.random.default_rng(seed))[0]


def test_the_race_finds_the_best_where_a_single_sample_often_does_not():
    rng = np.random.default_rng(0)
    single = np.mean([np.argmin(np.asarray(CLOSE) * np.exp(0.025 * rng.normal(size=4))) == 2 for _ in range(200)])
    right = np.mean([raced(seed) == 2 for seed in range(100)])
    assert right > 0.8 > single + 0.1


def test_a_machine_that_slows_down_spoils_no_race():
    right = np.mean([raced(seed, drift=lambda run: 2.0 if 13 < run < 41 else 1.0) == 2 for seed in range(100)])
    assert right > 0.75


def test_those_that_fall_behind_drop_out():
    counts = [0, 0, 0]

    def runner(i, x, rng=np.random.default_rng(0)):  # noqa: B008 (one generator for all)
        def run():
            counts[i] += 1
            return x * (1 + 0.01 * rng.normal())

        return run

    winner, values = race([runner(0, 1.0), runner(1, 1.5), runner(2, 1.005)], 15, np.random.default_rng(0))
    assert winner in (0, 2)
    assert counts[1] <= 4
    assert np.isnan(values[-1, 1])


def test_what_fails_in_the_race_drops_out_and_only_if_all_fail_is_it_an_error():
    def fails():
        raise RunFailed("no more memory")

    assert race([fails, lambda: 2.0], 3, np.random.default_rng(0))[0] == 1
    with pytest.raises(RunFailed, match="no more memory"):
        race([fails, fails], 3, np.random.default_rng(0))


def test_equal_configurations_are_hardly_ever_called_better():
    sure = 0
    for seed in range(150):
        _, _, evidence = versus(Noisy(0.05, seed), [{"x": 1.0, "i": i} for i in range(4)], {"x": 1.0, "i": 9}, 11,
                                np.random.default_rng(seed))  # fmt: skip
        sure += evidence is not None and evidence.sure
    assert sure / 150 < 0.03


def test_the_evidence_holds_the_true_gain_in_spite_of_noise_and_drift():
    held, sure, rounds = 0, 0, 150
    for seed in range(rounds):
        target = Noisy(0.05, seed, drift=lambda run: 1.0 + run / 40)
        _, _, evidence = versus(target, [{"x": 1.0}], {"x": 1.25}, 11, np.random.default_rng(seed))
        held += evidence.low <= 1.25 <= evidence.high
        sure += evidence.sure
    assert held / rounds > 0.95
    assert sure / rounds > 0.95


def test_without_noise_three_rounds_are_enough_and_the_gain_is_exact():
    target = Noisy()
    best, value, evidence = versus(target, [{"x": 2.0}], {"x": 3.0}, 11, np.random.default_rng(0))
    assert (best, value, evidence.gain, evidence.low, evidence.high) == ({"x": 2.0}, 2.0, 1.5, 1.5, 1.5)
    assert target.runs <= 2 + 2 * 3 + 2 * 3


def test_gains_of_values_of_any_sign():
    best, default = np.full(7, 1.0), np.full(7, 3.0)
    assert compared(best, default).gain == 3
    assert compared(-default, -best).gain == 3  # 3 instead of 1, maximised
    mixed = compared(-best, default)
    assert (mixed.gain, mixed.ratio, mixed.sure) == (4, False, True)


def test_a_default_that_fails_or_wins_has_no_evidence():
    class Fails(Noisy):
        @contextmanager
        def prepared(self, configuration):
            if configuration["x"] > 2:
                raise RunFailed("too large")
            with super().prepared(configuration) as run:
                yield run

    rng = np.random.default_rng(0)
    assert versus(Fails(), [{"x": 1.0}], {"x": 3.0}, 11, rng) == ({"x": 1.0}, 1.0, None)
    assert versus(Fails(), [{"x": 1.5}], {"x": 1.0}, 11, rng) == ({"x": 1.0}, 1.0, None)
    with pytest.raises(RunFailed, match="too large"):
        versus(Fails(), [{"x": 4.0}], {"x": 3.0}, 11, rng)


SPACE = Space({"a": Integer(0, 30), "b": Integer(0, 9)})


def noisy_bowl(noise, seed):
    rng = np.random.default_rng(seed)

    def f(a, b):
        return (1.0 + 0.01 * (a - 20) ** 2 + 0.05 * b) * math.exp(noise * rng.normal())

    return f


def test_tuning_a_noisy_function_ends_near_the_best_with_evidence():
    ends, gains = [], []
    for seed in range(5):
        tuned = tune(FunctionTarget(noisy_bowl(0.02, seed)), SPACE, 40, default={"a": 0, "b": 5}, seed=seed)
        ends.append(noisy_bowl(0, 0)(**tuned.best))
        gains.append(tuned.evidence.gain)
        assert tuned.raced
        assert tuned.evidence.sure
    assert np.median(ends) < 1.06
    assert np.median(gains) > 4


def test_a_function_without_noise_is_called_once_a_configuration():
    calls = []

    def f(a, b):
        calls.append((a, b))
        return float((a - 20) ** 2 + b)

    tuned = tune(FunctionTarget(f), SPACE, 30, default={"a": 0, "b": 0}, repeats=ONCE)
    assert len(calls) == 30 == len(set(calls))
    assert calls[0] == (0, 0)
    assert tuned.evidence.rounds == 1
    assert not tuned.raced


def test_failures_of_any_repeat_say_why():
    def f(a, b):
        if a == 3:
            return math.nan
        if a == 4:
            return "four"
        if a == 5:
            raise MemoryError("no room")
        return 1.0 + a

    space = Space({"a": Integer(0, 5), "b": Integer(0, 0)})
    tuned = tune(FunctionTarget(f), space, 6, repeats=ONCE)
    assert tuned.best == {"a": 0, "b": 0}
    why = " ".join(tuned.found.reasons.values())
    assert len(tuned.found.reasons) == 3
    for part in ("gave nan", "'four', which is no number", "no room"):
        assert part in why


def test_a_slow_function_is_ended_by_the_time_limit():
    def f(a, b):
        time.sleep(60 if a == 1 else 0)
        return a + 1.0

    tuned = tune(FunctionTarget(f), Space({"a": Integer(0, 1), "b": Integer(0, 0)}), 2, repeats=ONCE, time_limit=1.0)
    assert tuned.best["a"] == 0
    assert list(tuned.found.reasons.values()) == ["it took longer than 1 s"]


@pytest.mark.parametrize("wrong", [(0, 3), (4, 3), (1, 1, -0.1), (1, 1, 0.1, -1), (1, 1, math.nan)])
def test_repeats_that_make_no_sense(wrong):
    with pytest.raises(UsageError, match="repeats"):
        Repeats(*wrong)
