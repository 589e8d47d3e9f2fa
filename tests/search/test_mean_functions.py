"""Prior means: each fits what it should, none is undone, and from five parameters on the worst value pays."""

import numpy as np
import pytest
from scipy.stats import wilcoxon

from nearpeak.errors import UnknownName
from nearpeak.search.bayesian import Bayesian
from nearpeak.search.history import History
from nearpeak.search.problems import PROBLEMS
from nearpeak.search.study import cube, trial
from nearpeak.search.surrogates.gp import fit
from nearpeak.search.surrogates.means import MEANS, TOPIC, MeanGP, ablation, default_mean

RNG = np.random.default_rng
FUNCTIONS = ("ackley-5", "rosenbrock-5", "styblinski-tang-7", "michalewicz-10")


def _fitted(name, function, n=60, d=2):
    x, at = RNG(0).random((n, d)), RNG(1).random((200, d))
    y = function(x)
    return MEANS[name](x, y, RNG(2))(at), function(at), y


@pytest.mark.parametrize(
    ("name", "statistic"), [("mean", np.mean), ("min", np.min), ("median", np.median), ("max", np.max)]
)
def test_constants_are_statistics_of_the_observations(name, statistic):
    found, _, y = _fitted(name, lambda x: x[:, 0] ** 2)
    np.testing.assert_array_equal(found, statistic(y))


def test_linear_and_quadratic_recover_what_they_can_write():
    for name, function in (
        ("linear", lambda x: 2 + 3 * x[:, 0] - x[:, 1]),
        ("quadratic", lambda x: 1 + x[:, 0] * x[:, 1] - 4 * x[:, 1] ** 2),
    ):
        found, truth, _ = _fitted(name, function)
        np.testing.assert_allclose(found, truth, atol=1e-8)


def _error(name, function, **sizes):
    found, truth, _ = _fitted(name, function, **sizes)
    return np.sqrt(((found - truth) ** 2).mean()) / truth.std()


def test_the_forest_follows_steps_and_the_network_bumps():
    def step(x):
        return np.where(x[:, 0] > 0.5, 3.0, 0.0) + (x[:, 1] > 0.7)

    def bump(x):
        return np.exp(-((x - 0.6) ** 2).sum(1) / 0.1)

    assert _error("random-forest", step, n=100) < min(0.35, _error("rbf-network", step, n=100))
    assert _error("rbf-network", bump) < min(0.3, _error("random-forest", bump), _error("linear", bump))


def test_few_observations_make_every_mean():
    for name, rule in MEANS.items():
        for n in (2, 3):
            found = rule(RNG(0).random((n, 4)), np.arange(float(n)), RNG(1))(RNG(2).random((5, 4)))
            assert found.shape == (5,), name
            assert np.isfinite(found).all(), name


@pytest.mark.parametrize("name", sorted(MEANS))
def test_far_from_the_data_the_posterior_is_the_prior_mean_and_at_it_the_data(name):
    x = 0.02 * RNG(0).random((12, 2))
    y = np.sin(200 * x[:, 0]) + 5
    rule = MEANS[name](x, y, RNG(1))
    gp = fit(x, y, noise=0.0, mean=rule)
    far = np.array([[1.0, 1.0]]) * 300
    np.testing.assert_allclose(gp.predict(far)[0], rule(far), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gp.predict(x)[0], y, atol=0.05)


def test_telling_a_gp_with_a_mean_is_fitting_it_anew():
    x, y = RNG(0).random((10, 2)), RNG(0).random(10)
    rule = MEANS["max"](x, y, RNG(1))
    gp = fit(x[:8], y[:8], noise=0.01, mean=rule)
    told = gp.told(x[8:], y[8:])
    at = RNG(3).random((4, 2))
    cross = gp.kernel(at, x)
    exact = np.linalg.solve(gp.kernel(x, x) + np.diag(told.noise), (y - rule(x)) / gp.spread)
    np.testing.assert_allclose(told.predict(at)[0], rule(at) + gp.spread * cross @ exact, rtol=1e-4, atol=1e-5)


def test_the_worst_value_makes_unseen_regions_look_worse():
    x = 0.3 * RNG(0).random((15, 1))
    y = np.sin(40 * x[:, 0])
    far = np.ones((1, 1))
    worst, average = (MeanGP(name)(cube(1), History.of(x, y), RNG(0)).predict(far)[0][0] for name in ("max", "mean"))
    assert worst > average


def test_the_default_is_the_worst_value_from_five_parameters_on():
    assert [default_mean(d) for d in (1, 4, 5, 10)] == ["mean", "mean", "max", "max"]
    with pytest.raises(UnknownName, match="modus"):
        MeanGP("modus")


def test_the_ablation_ranks_means_on_a_problem():
    study = ablation(["ackley-5"], seeds=1, evaluations=16, means=("mean", "max"))
    assert study.ranks.sum() == pytest.approx(3.0)
    assert study.final.shape == (2, 1, 1)


@pytest.mark.slow
def test_the_worst_value_has_lower_regret_than_the_mean_on_three_of_four_functions():
    problems = [PROBLEMS[name] for name in FUNCTIONS]
    final = np.array(
        [
            [[trial(Bayesian(MeanGP(m)), p, 100, s).values.min() - p.optimum for s in range(21)] for p in problems]
            for m in ("max", "mean")
        ]
    )
    medians = np.median(final, axis=2)
    p_values = [float(wilcoxon(worst, mean, alternative="less")[1]) for worst, mean in zip(*final, strict=True)]
    assert (medians[0] < medians[1]).sum() >= 3, (medians, p_values)


def test_the_topic_names_the_winner_and_the_default():
    found = TOPIC.explain(problem="ackley-5", means=("mean", "max"), evaluations=14, seeds=1)
    assert found.figures["default"] == "max"
    assert found.figures["winner"] in ("mean", "max")
