"""Utilities from duels: draws of the skew GP, chances of duels against Laplace's, and few duels to a good plan."""

import time

import numpy as np
import pytest
from scipy.stats import multivariate_normal, truncnorm

from nearpeak.errors import UsageError
from nearpeak.search.strategies.preferences import (
    TOPIC,
    SkewGP,
    features,
    fit,
    laplace,
    made_plans,
    next_duel,
    simulated_duels,
    truncated_normals,
    utility,
)


def _plans(count=200, seed=0):
    return features(np.column_stack(list(made_plans(count, np.random.default_rng(seed)).values())))


def _user(x, seed):
    """Utility of four metrics, three of them better small: diminishing returns, and a limit that must not be passed."""
    rng = np.random.default_rng([seed, 7])
    good = np.column_stack([1 - x[:, :3], x[:, 3]])
    weights, powers = rng.dirichlet(np.ones(4)), rng.uniform(0.5, 2.0, 4)
    metric, limit = rng.integers(4), rng.uniform(0.3, 0.6)
    return good**powers @ weights - 0.5 / (1 + np.exp(20 * (good[:, metric] - limit)))


def _random_duel(plans, better, worse, rng):
    first, second = rng.choice(len(plans), 2, replace=False)
    return int(first), int(second)


def _regret(x, truth, duels, seed, choose):
    better, worse = simulated_duels(x, truth, duels, seed, choose=choose)
    mean, _ = utility(x, better, worse, np.random.default_rng(seed))
    return truth.max() - truth[np.argmax(mean)]


def test_one_gap_is_a_normal_cut_off_at_zero():
    draws = truncated_normals(np.array([[4.0]]), 20_000, np.random.default_rng(0), 1)[:, 0]
    exact = truncnorm(0, np.inf, scale=0.5)
    assert draws.min() >= 0
    assert draws.mean() == pytest.approx(exact.mean(), abs=4 * exact.std() / np.sqrt(20_000))
    assert np.quantile(draws, [0.1, 0.9]) == pytest.approx(exact.ppf([0.1, 0.9]), rel=0.05)


def test_correlated_gaps_are_those_that_rejection_leaves():
    rng = np.random.default_rng(1)
    half = rng.standard_normal((4, 4))
    covariance = half @ half.T + 0.1 * np.eye(4)
    normal = rng.multivariate_normal(np.zeros(4), covariance, 400_000)
    kept = normal[(normal > 0).all(axis=1)]
    draws = truncated_normals(np.linalg.inv(covariance), 4_000, rng, 100)
    error = 5 * kept.std(axis=0) * np.sqrt(1 / len(kept) + 1 / len(draws))
    assert (np.abs(draws.mean(axis=0) - kept.mean(axis=0)) < error).all()
    np.testing.assert_allclose(np.cov(draws.T), np.cov(kept.T), rtol=0.15, atol=0.03 * np.diag(covariance).max())


def test_far_tails_neither_overflow_nor_leave_the_cut():
    covariance = np.array([[1.0, -0.9999], [-0.9999, 1.0]])
    draws = truncated_normals(np.linalg.inv(covariance), 500, np.random.default_rng(0), 100)
    assert np.isfinite(draws).all()
    assert (draws >= 0).all()
    assert draws.mean() < 0.05


def test_chances_of_duels_are_those_of_the_prior_cut_by_rejection():
    """An independent reference: utilities and slips drawn from the prior, those kept that agree with all answers."""
    rng = np.random.default_rng(3)
    x = rng.random((10, 4))
    model = SkewGP(np.full(4, 0.7), 0.1, x[[0, 0, 2]], x[[1, 2, 3]])
    f = multivariate_normal(cov=model.kernel(x, x) + 1e-9 * np.eye(10)).rvs(400_000, random_state=rng)
    slips = 0.1 * rng.standard_normal((6, len(f)))
    agree = np.all([f[:, b] + slips[2 * i] > f[:, w] + slips[2 * i + 1]
                    for i, (b, w) in enumerate(((0, 1), (0, 2), (2, 3)))], axis=0)  # fmt: skip
    f = f[agree]
    a, b = np.array([0, 4, 5, 3, 8]), np.array([3, 1, 6, 7, 9])
    slips = 0.1 * rng.standard_normal((2, len(f), 5))
    reference = (f[:, a] + slips[0] > f[:, b] + slips[1]).mean(axis=0)
    found = model.win_probability(x[a], x[b], model.gaps(2_000, rng))
    assert found == pytest.approx(reference, abs=0.02)
    assert np.abs(found - reference).max() < np.abs(model.laplace_probability(x[a], x[b]) - reference).max()


def test_the_laplace_mode_has_no_slope_and_its_evidence_is_near_the_exact_one():
    covariance = np.array([[1.0, 0.5], [0.5, 1.0]])
    mode = laplace(covariance, 0.5)
    np.testing.assert_allclose(mode.at, covariance @ mode.slope, atol=1e-8)
    exact = np.log(multivariate_normal(cov=covariance + 0.5 * np.eye(2)).cdf([0, 0]))
    assert mode.evidence == pytest.approx(exact, abs=0.1)


def test_fewer_draws_than_counting_wins_needs_give_the_same_chance():
    """The estimate from given gaps varies less than the share of draws of both utilities in which one wins."""
    x, rng = _plans(40), np.random.default_rng(0)
    model = SkewGP(np.ones(4), 0.05, x[[0, 1, 2, 3]], x[[1, 2, 3, 4]])
    pair = x[[0]], x[[20]]
    chances = np.array([model.win_probability(*pair, model.gaps(50, rng, 50))[0] for _ in range(30)])
    counted = np.sqrt(chances.mean() * (1 - chances.mean()) / 50)
    assert chances.std() < 0.7 * counted


def test_hallucinated_duels_find_a_better_plan_than_random_ones():
    x = _plans(120)
    ours, chance = (
        np.mean([_regret(x, _user(x, s), 14, s, choose) for s in range(3)]) for choose in (next_duel, _random_duel)
    )
    assert ours <= 0.5 * chance, (ours, chance)


def test_a_duel_is_chosen_within_a_second_and_by_the_seed_alone():
    x = _plans()
    better, worse = simulated_duels(x, _user(x, 0), 20, 0, choose=_random_duel)
    taken = []
    for _ in range(3):
        started = time.process_time()
        found = next_duel(x, better, worse, np.random.default_rng(5))
        taken.append(time.process_time() - started)
        assert found == next_duel(x, better, worse, np.random.default_rng(5))
    assert np.median(taken) < 1.0
    assert found[0] in set(better) | set(worse)
    assert found[0] != found[1]


def test_contradicting_answers_are_slips():
    x = _plans(30)
    pairs = np.array([[0, 1], [1, 0]] * 6)
    model = fit(x[pairs[:, 0]], x[pairs[:, 1]])
    agreeing = fit(x[np.zeros(12, int)], x[np.ones(12, int)])
    assert model.slip > agreeing.slip
    chance = model.win_probability(x[[0]], x[[1]], model.gaps(1_000, np.random.default_rng(0)))
    assert chance[0] == pytest.approx(0.5, abs=0.05)


def test_bad_duels_are_refused():
    x, rng, none = _plans(10), np.random.default_rng(0), np.empty(0, int)
    with pytest.raises(UsageError, match="two plans"):
        next_duel(x[:1], none, none, rng)
    with pytest.raises(UsageError, match="plan 11"):
        utility(x, np.array([10]), np.array([0]), rng)
    with pytest.raises(UsageError, match="against itself"):
        utility(x, np.array([2]), np.array([2]), rng)
    with pytest.raises(UsageError, match="at least one duel"):
        utility(x, none, none, rng)
    with pytest.raises(UsageError, match="metric 1 of plan 2"):
        features(np.array([[1.0], [np.nan]]))
    with pytest.raises(UsageError, match="one of them"):
        TOPIC.explain(plans="", metrics=(), answers="", weights=(), duels=3, seed=0)


def test_topic_reads_plans_and_answers(tmp_path):
    made = made_plans(30, np.random.default_rng(0))
    rows = zip(*made.values(), strict=True)
    text = "\n".join([",".join(made), *(",".join(f"{v:.6g}" for v in row) for row in rows)])
    (tmp_path / "plans.csv").write_text(text)
    slow, fast = int(np.argmax(made["latency"])) + 1, int(np.argmin(made["latency"])) + 1
    (tmp_path / "answers.csv").write_text(f"better,worse\n{fast},{slow}\n")
    found = TOPIC.explain(
        plans=str(tmp_path / "plans.csv"), metrics=tuple(made), answers=str(tmp_path / "answers.csv"),
        weights=(), duels=0, seed=0,
    )  # fmt: skip
    assert found.figures["duels"] == 1
    assert {found.figures["next_first"]} <= {slow, fast}
    assert made["latency"][found.figures["best_plan"] - 1] < made["latency"][slow - 1]


@pytest.mark.slow
def test_row_17():
    """Ten users of four metrics: errors of chances against 100,000 draws; regret after 20 duels; time of each."""
    x = _plans()
    pairs = np.random.default_rng(9).integers(0, len(x), (2, 100))
    pairs = pairs[:, pairs[0] != pairs[1]]
    errors, regrets, seconds = [], [], []
    for seed in range(10):
        truth = _user(x, seed)
        started = time.process_time()
        better, worse = simulated_duels(x, truth, 20, seed)
        seconds.append((time.process_time() - started) / 20)
        if seed < 3:
            model, (a, b) = fit(x[better], x[worse]), pairs
            reference = model.win_probability(x[a], x[b], model.gaps(100_000, np.random.default_rng(1)))
            ours = model.win_probability(x[a], x[b], model.gaps(1_000, np.random.default_rng(2)))
            errors.append([np.abs(p - reference).mean() for p in (ours, model.laplace_probability(x[a], x[b]))])
        mean, _ = utility(x, better, worse, np.random.default_rng(seed))
        regrets.append([truth.max() - truth[np.argmax(mean)], _regret(x, truth, 20, seed, _random_duel)])
    errors, regrets = np.array(errors), np.array(regrets)
    print(errors, regrets.mean(axis=0), seconds)
    assert (errors[:, 0] < errors[:, 1]).all()
    assert regrets[:, 0].mean() <= 0.5 * regrets[:, 1].mean()
    assert max(seconds) < 1.0
