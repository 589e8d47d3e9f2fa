"""Capacity from a distribution of load: the decision, its Bayesian correction, and the scalers it is compared with."""

import numpy as np
import pytest

from nearpeak.errors import UnknownName, UsageError
from nearpeak.fleet import topics
from nearpeak.fleet.capacity import corrected, decide, follow, posterior, reactive, tuned, within
from nearpeak.fleet.load_traces import INDICATORS, KINDS, Load, binned, read, synthetic
from nearpeak.workload.traffic import Trace


def test_decision_minimizes_expected_cost():
    rng = np.random.default_rng(0)
    draws = rng.lognormal(2.0, rng.uniform(0.05, 0.6, 12)[:, None], (12, 400))
    penalties = np.array([0.5, 3.0, 20.0, 300.0])
    found = decide(draws, penalties, 80)
    for p, row in zip(penalties, found, strict=True):
        for d, c in zip(draws, row, strict=True):
            cost = [np.maximum(k - d, 0).mean() + p * (d > k).mean() for k in range(81)]
            assert cost[c] == pytest.approx(min(cost), abs=1e-9)


def test_a_dearer_breach_never_means_fewer_devices():
    draws = np.random.default_rng(1).gamma(4.0, 5.0, (50, 500))
    found = decide(draws, np.geomspace(0.1, 1e5, 30), 300)
    assert (np.diff(found, axis=0) >= 0).all()
    assert (found[-1] >= np.floor(draws.max(1))).all()


def test_at_equal_breaches_the_decision_takes_fewer_devices_than_any_quantile():
    rng = np.random.default_rng(2)
    spread = np.where(np.arange(400) % 4 == 0, 0.5, 0.04)[:, None]
    draws = 100 * np.exp(spread * rng.standard_normal((400, 2000)))
    found = decide(draws, 600.0, 5000)[0]
    risk = (draws > found[:, None]).mean(1)
    quantile = np.ceil(np.quantile(draws, 1 - risk.mean(), axis=1))
    assert found.sum() < 0.98 * quantile.sum()
    assert risk[spread[:, 0] > 0.1].mean() > 2 * risk[spread[:, 0] < 0.1].mean()


def test_draws_that_are_no_load_are_refused():
    with pytest.raises(UsageError, match="not negative"):
        decide(np.array([[1.0, -2.0]]), 1.0, 5)
    with pytest.raises(UsageError, match="penalties"):
        decide(np.ones((1, 2)), 0.0, 5)


def test_posterior_is_the_conjugate_one_where_nothing_is_forgotten():
    z = np.random.default_rng(3).normal(0.7, 1.8, 200)
    found = posterior(z, memory=1e12, prior=10.0)
    n, k, a, b = z.size, 10.0, 5.0, 5.0
    mean = z.sum() / (k + n)
    beta = b + 0.5 * ((z - z.mean()) ** 2).sum() + k * n * z.mean() ** 2 / (2 * (k + n))
    assert found.mean[-1] == pytest.approx(mean, rel=1e-6)
    assert found.count[-1] == pytest.approx(k + n, rel=1e-6)
    assert found.alpha[-1] == pytest.approx(a + n / 2, rel=1e-6)
    assert found.beta[-1] == pytest.approx(beta, rel=1e-6)
    assert (found.mean[0], found.count[0], found.alpha[0], found.beta[0]) == (0.0, 10.0, 5.0, 5.0)


@pytest.mark.parametrize("seed", range(4))
def test_correction_repairs_a_biased_overconfident_forecast_that_changes(seed):
    rng = np.random.default_rng(seed)
    windows = 3000
    # Twice too narrow and 5 % too low; from the middle on three times too narrow and 5 % too high.
    late = np.arange(windows) >= windows // 2
    truth = np.exp(3 + np.where(late, -0.05, 0.05) + np.where(late, 0.15, 0.1) * rng.standard_normal(windows))
    draws = np.exp(3 + 0.05 * rng.standard_normal((windows, 500)))
    after = corrected(draws, truth, 1, seed)

    def coverage(x):
        low, high = np.quantile(x, (0.05, 0.95), axis=1)
        return (low <= truth) & (truth <= high)

    settled = np.r_[600:1500, 2100:3000]
    assert coverage(draws)[settled].mean() < 0.7
    assert 0.87 < coverage(after)[600:1500].mean() < 0.93
    assert 0.87 < coverage(after)[2100:].mean() < 0.93


@pytest.mark.parametrize("lead", [1, 3])
def test_nothing_decided_knows_what_comes_later(lead):
    rng = np.random.default_rng(4)
    draws, demand = rng.lognormal(2, 0.2, (60 + lead, 50)), rng.lognormal(2, 0.2, 60)
    other = demand.copy()
    other[40:] *= 5
    a, b = (corrected(draws, x, lead, 0) for x in (demand, other))
    first = 40 + lead  # the first window that may know window 40
    assert (a[:first] == b[:first]).all()
    assert (a[first:] != b[first:]).any()
    policies = decide(draws, np.geomspace(1, 1000, 20), 60)
    p, q = (follow(policies, x, 0.3, lead, 10) for x in (demand, other))
    assert (p[: first - 10] == q[: first - 10]).all()
    held, after = (reactive(x, lead, [1, 4], [0.1, 0.5]) for x in (demand, other))
    known = held.shape[1] - 60 + first
    assert (held[:, :known] == after[:, :known]).all()
    assert (held[:, known] != after[:, known]).all()


def test_reactive_scaler_holds_the_largest_load_seen_and_its_headroom():
    demand = np.array([10.0, 30.0, 20.0, 10.0, 5.0, 40.0])
    found = reactive(demand, 1, [1, 3], [0.0, 0.5])
    assert found.tolist() == [[20, 10, 5], [30, 15, 8], [30, 30, 20], [45, 45, 30]]


def test_tuning_takes_the_fewest_hours_that_keep_the_promise():
    demand = np.arange(1.0, 101.0)
    policies = np.stack([np.full(100, c) for c in (100.0, 99.0, 98.0, 150.0)])
    assert tuned(policies, demand, 0.01) == 1
    with pytest.raises(UsageError, match="headroom"):
        tuned(policies[2:3], demand, 0.01)


def test_promise_is_kept_with_confidence_only_after_enough_windows():
    clean = np.zeros(400, bool)
    assert not within(clean, 0.01)[10]
    assert within(clean, 0.01)[-1]
    assert not within(np.arange(400) % 50 == 0, 0.01)[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_traces_are_bursty_diurnal_and_repeat_by_seed(kind):
    a, b, c = (synthetic(kind, 30, 400.0, 600.0, seed) for seed in (0, 0, 1))
    assert a.values.shape == (4320, 4)
    assert a.indicators == INDICATORS
    assert (a.values == b.values).all()
    assert (a.values != c.values).any()
    assert (a.values >= 0).all()
    assert a.values[:, 3].max() <= 1
    hourly = a.requests.reshape(30, 24, 6).mean((0, 2))
    assert hourly.max() > 2 * hourly.min()
    steps = np.diff(np.log(a.requests))
    kurtosis = ((steps - steps.mean()) ** 4).mean() / steps.var() ** 2
    assert kurtosis > 5  # a normal distribution has 3


def test_recorded_arrivals_in_windows_keep_every_request_and_token():
    arrival = np.array([0.0, 1.0, 59.0, 60.0, 130.0, 180.0])
    trace = Trace("a", arrival, np.array([10, 20, 30, 40, 50, 60]), np.array([1, 2, 3, 4, 5, 6]))
    found = binned(trace, 60.0)
    assert (found.values * 60).round(9).tolist() == [[3, 60, 6], [1, 40, 4], [1, 50, 5]]
    with pytest.raises(UsageError, match="less than one window"):
        binned(trace, 600.0)


def test_tables_of_load_are_read_and_bad_ones_refused(tmp_path):
    path = tmp_path / "load.csv"
    path.write_text("time,requests,busy\n0,1,0.5\n300,2,0.6\n600,3,0.7\n")
    found = read(path, 60.0)
    assert (found.window, found.indicators, found.values.tolist()) == (
        300.0, ("requests", "busy"), [[1, 0.5], [2, 0.6], [3, 0.7]],
    )  # fmt: skip
    for text, match in (
        ("time,requests\n0,1\n300,-2\n", "line 3"),
        ("time,requests\n0,1\n300,\n", "line 3"),
        ("time,requests\n0,1\n300,nan\n", "line 3"),
        ("time,requests\n0,1\n300,2\n900,2\n", "evenly"),
        ("time,requests\n0,1\n", "1 windows"),
        ("time,load\n0,1\n", "no column"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=match):
            read(path, 60.0)
    with pytest.raises(UsageError, match="no trace"):
        read(tmp_path / "none.csv", 60.0)
    with pytest.raises(UnknownName, match="mixed"):
        synthetic("mixd", 30, 400.0, 600.0, 0)


def explain(**given):
    topic = topics()["capacity"]
    return topic.explain(**{o.name: given.get(o.name, o.default) for o in topic.options})


def test_bad_questions_are_refused_before_anything_is_trained():
    for given, match in (
        ({}, "--rate"),
        ({"rate": -1.0}, "rate"),
        ({"rate": 10.0, "sla": 1.5}, "sla"),
        ({"rate": 10.0, "price": 0.0}, "price"),
        ({"rate": 10.0, "trace": "none.csv"}, "no trace"),
        ({"rate": 10.0, "start_time": -1.0}, "start time"),
    ):
        with pytest.raises(UsageError, match=match):
            explain(**given)


def test_load_is_what_its_fields_say():
    load = Load(60.0, 0.0, ("requests",), np.array([[1.0], [2.0]]))
    assert load.requests.tolist() == [1.0, 2.0]
