"""Freeze-thaw on recorded learning curves, and on trainings that really stop and go on."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from spiral_trainings import DATA, going_on, judged, starting

from nearpeak.errors import UsageError
from nearpeak.search.history import History
from nearpeak.search.loop import minimize
from nearpeak.search.parameters import Integer
from nearpeak.search.space import Space
from nearpeak.search.trials.freeze_thaw import TOPIC, FreezeThaw, information, thawed
from nearpeak.search.trials.learning_curves import Curves, Decay, asymptotes, fit, log_evidence
from nearpeak.search.trials.resumed import Resumed
from nearpeak.search.trials.successive_halving import Recorded, SuccessiveHalving, recorded_in, replayed, time_to
from nearpeak.search.trials.trainings import RECIPES, curves

TABLE = Path(__file__).parents[1] / "data" / "digit_trainings.npz"


@lru_cache
def some(seed: int, count: int = 30) -> Recorded:
    """Curves of the table that did not diverge; the clock counts epochs."""
    every = recorded_in(str(TABLE))
    whole = np.flatnonzero(np.isfinite(every.losses).all(axis=1))
    chosen = np.random.default_rng(seed).choice(whole, count, replace=False)
    return Recorded(every.recipes[chosen], every.losses[chosen], np.ones(count))


def epochs(seed: int) -> tuple[float, float]:
    """Until within 1 % of the best asymptote: freeze-thaw, and run-to-end search, the better of two first samples."""
    recorded, target = some(seed), 1.01 * some(seed).least
    thaw = time_to(recorded, thawed(recorded, FreezeThaw(), target, seed), target)
    ends = [
        time_to(recorded, replayed(recorded, SuccessiveHalving(rungs=1, initial=n), 1, seed, target), target)
        for n in (4, 7)
    ]
    return thaw, min(ends)


def model() -> tuple[Decay, Curves]:
    rng = np.random.default_rng(0)
    theta = np.array([-0.5, 0.2, 0.3, 0.1, 0.4, 1.2, -0.3, -3.0])
    return Decay(theta, np.arange(2), 0.0, 1.0), Curves(
        rng.random((4, 2)), rng.standard_normal((6, 4)), np.array([6, 1, 3, 0])
    )


def test_evidence_and_asymptotes_are_those_of_the_joint_normal() -> None:
    decay, seen = model()
    moments, which = np.nonzero(seen.there)
    factor = decay.factor(6)
    time = (factor @ factor.T)[np.ix_(moments, moments)] * (which[:, None] == which)
    prior = decay.asymptotes(seen.features)
    together = time + prior[np.ix_(which, which)]
    losses = seen.losses[moments, which]
    mean = np.full(len(losses), decay.mean)
    assert log_evidence(decay, seen) == pytest.approx(multivariate_normal(mean, together).logpdf(losses), rel=1e-6)
    gain = np.linalg.solve(together, prior[which]).T
    found = asymptotes(decay, seen)
    np.testing.assert_allclose(found.mean, decay.mean + gain @ (losses - mean), atol=1e-6)
    np.testing.assert_allclose(found.covariance, prior - gain @ prior[which], atol=1e-6)


def test_one_more_point_adds_the_precision_that_was_told() -> None:
    decay, seen = model()
    before = asymptotes(decay, seen)
    after = asymptotes(decay, Curves(seen.features, seen.losses, seen.seen + np.array([0, 1, 0, 0])))
    gained = before.gained(1)
    variance = before.covariance[1, 1]
    assert after.covariance[1, 1] == pytest.approx(variance / (1 + gained[1] * variance), rel=1e-6)
    assert gained[0] == 0


def test_observing_what_is_uncertain_and_may_be_least_tells_most() -> None:
    mean, covariance = np.array([0.0, 0.1, 5.0]), np.diag([1.0, 1e-4, 1.0])
    told = information(mean, covariance, np.full(3, 100.0), np.arange(3), 2_000, np.random.default_rng(0))
    assert told[0] > 0.2
    assert told[0] > 10 * max(told[1], told[2])


def forecast_errors(seed: int) -> tuple[float, float]:
    """Mean error of where curves end, from their first quarter: of the model, and of the last value seen."""
    recorded = some(seed)
    length = recorded.losses.shape[1]
    quarter = length // 4
    count = len(recorded.losses)
    seen = Curves(RECIPES.encode(recorded.recipes), recorded.losses.T, np.full(count, quarter))
    believed = asymptotes(fit(seen, RECIPES.groups), seen)
    ends = np.array([believed.forecast(i, length)[0][-1] for i in range(count)])
    truth = recorded.losses[:, -1]
    return float(np.abs(ends - truth).mean()), float(np.abs(recorded.losses[:, quarter - 1] - truth).mean())


def test_asymptotes_from_a_quarter_of_the_curves_are_nearer_than_the_last_values() -> None:
    found = np.array([forecast_errors(seed) for seed in range(3)])
    assert (found[:, 0] < found[:, 1]).all()
    assert found[:, 0].mean() < 0.85 * found[:, 1].mean()


def test_it_needs_far_fewer_epochs_than_running_to_the_end() -> None:
    thaw, end = epochs(1)
    assert thaw <= 0.4 * end


@pytest.mark.slow
def test_at_most_two_fifths_of_the_epochs_over_five_sets_of_curves() -> None:
    found = np.array([epochs(seed) for seed in range(5)])
    assert found[:, 0].mean() <= 0.4 * found[:, 1].mean()


def test_resumed_trainings_match_bit_for_bit(tmp_path: Path) -> None:
    recipes = RECIPES.sample(5, np.random.default_rng(3))
    listed = np.column_stack([np.tile(recipes, (8, 1)), np.repeat(np.arange(1.0, 9.0), 5)])
    space = Space({**RECIPES.parameters, "epochs": Integer(1, 8)}, listed=listed)
    train = Resumed(starting, going_on, judged, tmp_path)
    found = minimize(train, space, 24, method=FreezeThaw(initial=4)).history
    trials = np.unique(found.points[:, :-1], axis=0)
    paused = 0
    for recipe in trials:
        rows = np.flatnonzero((found.points[:, :-1] == recipe).all(axis=1))
        paused += int((np.diff(rows) > 1).sum())
        assert found.points[rows, -1].tolist() == list(range(1, len(rows) + 1))
        np.testing.assert_array_equal(found.values[rows], curves(recipe[None], DATA, len(rows))[0])
    assert len(trials) == 5
    assert paused > 0


def test_the_same_history_gives_the_same_proposals() -> None:
    recorded = some(0)
    space = recorded.space(np.arange(1, 55))
    rows = np.vstack([np.append(r, 1.0) for r in recorded.recipes[:5]])
    history = History.of(rows, recorded.loss(rows))
    a, b = (FreezeThaw().propose(space, history, 2, np.random.default_rng(3)) for _ in range(2))
    assert (a == b).all()


def test_an_empty_basket_is_refused() -> None:
    with pytest.raises(UsageError, match="step"):
        FreezeThaw(step=0)


def test_the_topic_compares_with_running_to_the_end() -> None:
    found = TOPIC.explain(table=str(TABLE), recipes=8, epochs=54, seed=0)
    assert found.figures["trainings"] == 8
    assert 0 < found.figures["epochs_share"] < 1.5
