"""Acquisition functions against Monte Carlo, quadrature and each other."""

import numpy as np
import pytest
from scipy.linalg import cho_solve
from scipy.stats import norm

from nearpeak.errors import UsageError
from nearpeak.search.acquisitions.analytic import confidence_bound, expected_improvement, log_expected_improvement
from nearpeak.search.acquisitions.constrained import Constrained, log_feasibility
from nearpeak.search.acquisitions.entropy_search import MaxValueEntropy, max_value_information
from nearpeak.search.acquisitions.knowledge_gradient import KnowledgeGradient, lines, log_expected_decrease
from nearpeak.search.acquisitions.noisy_improvement import NoisyImprovement, log_noisy_improvement
from nearpeak.search.history import History
from nearpeak.search.problems import branin
from nearpeak.search.reference import ACQUISITIONS, reference
from nearpeak.search.space import Float, Integer, Ordinal, Space
from nearpeak.search.study import cube
from nearpeak.search.surrogates.gp import GP, condition
from nearpeak.search.surrogates.kernels import Stationary
from nearpeak.search.surrogates.marginalized import Averaged, Mixture
from nearpeak.search.trials.multi_fidelity import MultiFidelity, at_highest, learned_cost, recommended

SPACE = cube(2)


def _gp(noise, n=12, seed=0):
    x = np.random.default_rng(seed).random((n, 2))
    return condition(Stationary("matern52", np.array([0.3, 0.5]), 1.3), x, branin(x), noise)


def _noiseless(n=12):
    """A GP whose covariance matrix has nothing at all added to its diagonal."""
    gp = _gp(0.0, n)
    factor = np.linalg.cholesky(gp.kernel(gp.x, gp.x))
    targets = (branin(gp.x) - gp.centre) / gp.spread
    weights = cho_solve((factor, True), targets)
    return GP(gp.kernel, gp.x, factor, weights, gp.centre, gp.spread, np.zeros(n))


def test_decrease_of_the_least_line_is_the_integral_over_the_normal():
    rng = np.random.default_rng(0)
    levels, slopes = rng.standard_normal((20, 8)), rng.standard_normal((20, 8))
    slopes[:5, 3] = slopes[:5, 4]  # parallel lines
    slopes[5:8] = slopes[5:8, :1]  # all parallel: nothing to gain
    z = np.linspace(-10, 10, 100_001)
    weight = norm.pdf(z) * (z[1] - z[0])
    least = [(a[:, None] + b[:, None] * z).min(axis=0) for a, b in zip(levels, slopes, strict=True)]
    expected = levels.min(axis=1) - np.array(least) @ weight
    np.testing.assert_allclose(np.exp(log_expected_decrease(levels, slopes)), expected, atol=1e-7)


def test_decrease_keeps_its_logarithm_where_it_underflows():
    found = log_expected_decrease(np.array([[0.0, 60.0]]), np.array([[0.0, 1.0]]))
    assert -1825 < found[0] < -1800


def test_noisy_improvement_is_improvement_without_noise():
    gp, x = _noiseless(), np.random.default_rng(1).random((500, 2))
    levels = gp.predict(gp.x)[0]
    noisy = np.exp(log_noisy_improvement(gp, x, gp.x, levels))
    assert np.abs(noisy - expected_improvement(gp, x, levels.min())).max() < 1e-8
    assert expected_improvement(gp, x, levels.min()).max() > 1


def test_noise_changes_what_evaluating_the_best_point_again_is_worth():
    gp = _gp(0.5)
    levels = gp.predict(gp.x)[0]
    best = gp.x[[levels.argmin()]]
    plain = expected_improvement(gp, best, levels.min())
    assert np.exp(log_noisy_improvement(gp, best, gp.x, levels)) != pytest.approx(plain, rel=0.05)


def _refitted_decrease(gp, x, targets, draws):
    """E[min mean before - min mean after], by telling the GP so many possible observations."""
    mean, sd = gp.predict(x)
    z = np.linspace(-7, 7, draws)
    weight = norm.pdf(z) * (z[1] - z[0])
    observed = mean + np.sqrt(sd**2 + gp.observation_variance) * z
    after = [gp.told(x, np.array([y]), gp.observation_variance).predict(targets)[0].min() for y in observed]
    return gp.predict(targets)[0].min() - weight @ np.array(after)


def test_knowledge_gradient_is_what_refitting_to_possible_observations_gains():
    gp, rng = _gp(0.2), np.random.default_rng(2)
    targets, x = rng.random((15, 2)), rng.random((4, 2))
    levels = gp.predict(targets)[0]
    found = np.exp(log_expected_decrease(*lines(gp, x, targets, *gp.predict(x), levels, itself=False)))
    expected = [_refitted_decrease(gp, row[None], targets, 400) for row in x]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)


def test_noisy_improvement_is_what_refitting_to_possible_observations_gains():
    gp, x = _gp(0.2), np.random.default_rng(3).random((4, 2))
    levels = gp.predict(gp.x)[0]
    found = np.exp(log_noisy_improvement(gp, x, gp.x, levels))
    gain = [
        levels.min() - gp.predict(np.vstack([gp.x, row]))[0].min()
        + _refitted_decrease(gp, row[None], np.vstack([gp.x, row]), 400)
        for row in x
    ]  # fmt: skip
    np.testing.assert_allclose(found, gain, rtol=2e-3, atol=1e-3)


def test_max_value_information_is_the_entropy_that_truncation_takes():
    mean, sd, least = np.array([0.3, 2.0]), np.array([1.2, 0.7]), np.array([-0.4])
    for m, s, found in zip(mean, sd, max_value_information(mean, sd, least), strict=True):
        f = np.linspace(least[0], m + 12 * s, 400_001)
        density = norm.pdf(f, m, s) / norm.sf(least[0], m, s)
        entropy = -(density * np.log(np.maximum(density, 1e-300))).sum() * (f[1] - f[0])
        assert found == pytest.approx(norm(m, s).entropy() - entropy, abs=1e-4)


def test_noisy_max_value_information_is_a_bound_below_what_the_observation_tells():
    mean, sd, least = np.array([0.3]), np.array([1.2]), np.array([-0.4])
    told = []
    for noise in (0.1, 1.0, 10.0):
        y = np.linspace(-30, 30, 200_001)
        total = np.sqrt(sd[0] ** 2 + noise)
        share = sd[0] ** 2 / total**2
        inside = norm.sf(least[0], mean[0] + share * (y - mean[0]), np.sqrt(sd[0] ** 2 * noise) / total)
        density = norm.pdf(y, mean[0], total) * inside / norm.sf(least[0], mean[0], sd[0])
        entropy = -(density * np.log(np.maximum(density, 1e-300))).sum() * (y[1] - y[0])
        exact = norm(0, total).entropy() - entropy
        found = max_value_information(mean, sd, least, noise)[0]
        assert 0.5 * exact < found <= exact + 1e-6
        told.append(found)
    assert told[0] > told[1] > told[2]


def test_scores_of_a_mixture_are_means_over_its_components():
    parts = (_gp(0.1), _gp(0.1, seed=4))
    x, mixture = np.random.default_rng(5).random((30, 2)), Mixture(parts, np.zeros((2, 1)))
    history = History.of(parts[0].x, branin(parts[0].x))
    rng = np.random.default_rng(0)
    averaged = Averaged(log_expected_improvement).prepare(SPACE, history, mixture, rng)(mixture, x, 10.0)
    np.testing.assert_allclose(np.exp(averaged), np.mean([expected_improvement(p, x, 10.0) for p in parts], axis=0))
    bound = Averaged(confidence_bound, logarithm=False).prepare(SPACE, history, mixture, rng)(mixture, x, 10.0)
    np.testing.assert_allclose(bound, np.mean([confidence_bound(p, x, 10.0) for p in parts], axis=0))


def test_constrained_score_is_the_gain_times_the_chance_of_feasibility():
    gp, x = _gp(1e-4), np.random.default_rng(6).random((40, 2))
    limit = (gp.x.sum(1) - 0.9)[:, None]
    n = len(gp.x)
    history = History(gp.x, branin(gp.x), np.zeros(n), np.full(n, np.nan), limit, np.empty((0, 2)))
    found = Constrained().prepare(SPACE, history, gp, np.random.default_rng(0))(gp, x, 5.0)
    chance = np.exp(found - log_expected_improvement(gp, x, 5.0))
    assert (chance <= 1 + 1e-12).all()
    assert chance[x.sum(1) < 0.6].min() > 0.9 > 0.1 > chance[x.sum(1) > 1.2].max()
    nowhere = History(gp.x, branin(gp.x), np.zeros(n), np.full(n, np.nan), limit + 5, np.empty((0, 2)))
    lead = Constrained().prepare(SPACE, nowhere, gp, np.random.default_rng(0))(gp, x, 5.0)
    assert np.corrcoef(lead, x.sum(1))[0, 1] < 0  # only the constraint leads: towards where it is least


def test_feasibility_is_the_share_of_draws_that_are_feasible():
    gp, x = _gp(0.3), np.random.default_rng(7).random((5, 2))
    draws = gp.sample(x, 40_000, np.random.default_rng(8))
    np.testing.assert_allclose(np.exp(log_feasibility([gp], x)), (draws <= 0).mean(axis=0), atol=0.01)


def _fidelity_case():
    space = Space({"x": Float(0, 1), "epochs": Integer(1, 8)})
    rows = space.sample(8, np.random.default_rng(1))
    values = (rows[:, 0] - 0.3) ** 2 + 0.02 * (8 - rows[:, 1])
    gp = condition(Stationary("matern52", np.array([0.4, 1.5])), space.encode(rows), values, 1e-4)
    return space, History.of(rows, values), gp


def test_multi_fidelity_score_is_gain_at_the_highest_fidelity_by_cost():
    space, history, gp = _fidelity_case()
    x = space.encode(space.sample(50, np.random.default_rng(2)))
    scores = [
        MultiFidelity("epochs", cost).prepare(space, history, gp, np.random.default_rng(3))(gp, x, 0.0)
        for cost in (np.ones_like, lambda s: s)
    ]
    epochs = 1 + 7 * x[:, 1]
    np.testing.assert_allclose(scores[0] - scores[1], np.log(epochs))
    line = np.linspace(0, 1, 21)
    at_one_price = MultiFidelity("epochs", np.ones_like).prepare(space, history, gp, np.random.default_rng(3))
    real, cheap = (at_one_price(gp, np.column_stack([line, np.full(21, e)]), 0.0).max() for e in (1.0, 0.0))
    assert real > cheap


def test_costs_are_learned_and_recommendations_are_at_the_highest_fidelity():
    space, history, gp = _fidelity_case()
    s = np.array([1.0, 2.0, 4.0, 8.0])
    np.testing.assert_allclose(learned_cost(s, 3 * s**1.5)(np.array([16.0])), [3 * 64.0])
    assert recommended(space, "epochs", history, gp)[1] == 8
    assert (at_highest(space, "epochs", history.points)[:, 1] == 8).all()
    with pytest.raises(UsageError, match="give `cost`"):
        learned_cost(s, np.zeros(4))
    with pytest.raises(UsageError, match="no parameter 'steps'"):
        MultiFidelity("steps").prepare(space, history, gp, np.random.default_rng(0))
    tied = Space({"n": Integer(1, 4), "m": Ordinal((1, 2))}, constraints=("n * m <= 3",))
    with pytest.raises(UsageError, match="highest n"):
        at_highest(tied, "n", tied.sample(2, np.random.default_rng(0)))


class _Forest:
    def predict(self, x):
        return np.zeros(len(x)), np.ones(len(x))

    def sample(self, x, count, rng):
        return rng.standard_normal((count, len(x)))


def test_a_surrogate_without_covariances_is_refused_where_they_are_needed():
    history = History.of(np.random.default_rng(0).random((3, 2)), np.arange(3.0))
    for acquisition in (KnowledgeGradient(), NoisyImprovement()):
        with pytest.raises(UsageError, match="_Forest"):
            acquisition.prepare(SPACE, history, _Forest(), np.random.default_rng(0))
    score = MaxValueEntropy().prepare(SPACE, history, _Forest(), np.random.default_rng(0))
    assert np.isfinite(score(_Forest(), np.zeros((4, 2)), 0.0)).all()


def test_what_cannot_be_combined_is_refused():
    with pytest.raises(UsageError, match="kg, not ei"):
        reference("ei", fidelity="epochs")
    with pytest.raises(UsageError, match="ucb is no gain"):
        reference("ucb", constrained=True)
    with pytest.raises(UsageError, match="unknown acquisition"):
        reference("eii")
    assert set(ACQUISITIONS) == {"ei", "noisy-ei", "kg", "mes", "ucb"}
