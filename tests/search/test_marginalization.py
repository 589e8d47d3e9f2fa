"""Hyperparameters drawn in four ways: against quadrature, against each other, and for what they are good."""

import numpy as np
import pytest

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search.acquisitions.analytic import confidence_bound, log_expected_improvement
from nearpeak.search.bayesian import Bayesian
from nearpeak.search.history import History
from nearpeak.search.problems import PROBLEMS, michalewicz_in
from nearpeak.search.study import cube, trial
from nearpeak.search.surrogates.evidence import log_density
from nearpeak.search.surrogates.gp import Hyperparameters, standardised
from nearpeak.search.surrogates.marginalized import (
    TOPIC,
    WAYS,
    Averaged,
    Marginal,
    default_marginalization,
    default_method,
    draw_thetas,
    laplace_factor,
    marginalize,
    variational,
)

PAPER = [
    *(PROBLEMS[n] for n in ("branin", "goldstein-price", "six-hump-camel", "levy-4", "rosenbrock-5", "hartmann-6")),
    michalewicz_in(5),
    PROBLEMS["ackley-5"],
]  # fmt: skip


def _problem(n=8, noise=1e-2, shape="matern52"):
    x = np.random.default_rng(3).random((n, 1))
    y = standardised(np.sin(5 * x[:, 0]) + x[:, 0])[0]
    return Hyperparameters(x, y, shape, np.zeros(1, dtype=np.intp), None if noise is None else np.full(n, noise))


@pytest.mark.parametrize("shape", ["rbf", "matern12", "matern32", "matern52"])
@pytest.mark.parametrize("noise", [None, 1e-3])
def test_density_of_many_thetas_is_the_log_posterior_of_each(shape, noise):
    rng = np.random.default_rng(0)
    x, y = rng.random((13, 3)), rng.standard_normal(13)
    known = None if noise is None else np.full(13, noise)
    problem = Hyperparameters(x, y, shape, np.array([0, 1, 1]), known)
    thetas = problem.start + 0.4 * rng.standard_normal((5, problem.size))
    values, gradients = log_density(problem)(thetas)
    for theta, value, gradient in zip(thetas, values, gradients, strict=True):
        expected, slope = problem.log_posterior(theta)
        assert value == pytest.approx(expected, abs=1e-8)
        np.testing.assert_allclose(gradient, slope, atol=1e-7)


def _quadrature(problem):
    """Mean and standard deviation of a two-dimensional posterior."""
    lengths, scales = np.meshgrid(np.linspace(-4, 6, 201), np.linspace(-4, 6, 201), indexing="ij")
    thetas = np.column_stack([lengths.ravel(), scales.ravel()])
    values = log_density(problem)(thetas)[0]
    weights = np.exp(values - values.max())
    weights /= weights.sum()
    mean = weights @ thetas
    return mean, np.sqrt(weights @ (thetas - mean) ** 2)


def test_draws_have_the_moments_that_quadrature_gives():
    problem = _problem()
    mean, sd = _quadrature(problem)
    thetas = draw_thetas(problem, "mcmc", 400, np.random.default_rng(0))
    assert np.abs(thetas.mean(axis=0) - mean).max() < 0.35 * sd.max()
    np.testing.assert_allclose(thetas.std(axis=0), sd, rtol=0.35)
    for way in ("variational", "laplace"):
        rough = draw_thetas(problem, way, 400, np.random.default_rng(0))
        assert np.abs(rough.mean(axis=0) - mean).max() < sd.max()
        np.testing.assert_allclose(rough.std(axis=0), sd, rtol=0.6)


def _normal(mean, covariance):
    precision = np.linalg.inv(covariance)

    def density(q):
        pulled = (q - mean) @ precision
        return -0.5 * ((q - mean) * pulled).sum(1), -pulled

    return density


def test_laplace_and_variational_are_exact_for_a_normal():
    mean, covariance = np.array([0.3, -1.0, 2.0]), np.array([[0.5, 0.3, 0.0], [0.3, 0.6, -0.1], [0.0, -0.1, 0.2]])
    density = _normal(mean, covariance)
    factor = laplace_factor(density, mean)
    np.testing.assert_allclose(factor @ factor.T, covariance, rtol=1e-5, atol=1e-8)
    start = np.linalg.cholesky(covariance + 0.3 * np.eye(3))
    centre, fitted = variational(density, mean + 0.4, start, np.random.default_rng(0))
    np.testing.assert_allclose(centre, mean, atol=1e-3)
    np.testing.assert_allclose(fitted @ fitted.T, covariance, atol=5e-3)
    _, flat = variational(density, mean, start, np.random.default_rng(0), diagonal=True)
    # The mean-field normal of least divergence has the precisions of the diagonal.
    np.testing.assert_allclose(flat @ flat.T, np.diag(1 / np.diag(np.linalg.inv(covariance))), atol=5e-3)


def test_one_theta_has_the_largest_likelihood_the_other_the_largest_posterior():
    rng = np.random.default_rng(0)
    x = rng.random((15, 3))
    y = standardised(np.sin(5 * x[:, 0]) + x[:, 1])[0]
    problem = Hyperparameters(x, y, "matern52", np.arange(3))
    likeliest, most_probable = (draw_thetas(problem, way, 4, rng) for way in ("ml2", "map"))
    assert len(likeliest) == len(most_probable) == 1
    for prior, better, other in ((False, likeliest, most_probable), (True, most_probable, likeliest)):
        values, _ = log_density(problem, prior)(np.vstack([better, other]))
        assert values[0] > values[1] + 1e-3
    # The third input does nothing: without a prior its length scale runs to the bound.
    assert likeliest[0, 2] > most_probable[0, 2] + 1


def _held_out(way, problem, n, seed, draws=16):
    rng = np.random.default_rng(seed)
    x, held = rng.random((n, problem.dimension)), rng.random((300, problem.dimension))
    found = marginalize(x, problem.function(x), way, np.random.default_rng(seed), noise=0.0, draws=draws)
    return float(-found.log_density(held, problem.function(held)).mean())


@pytest.mark.parametrize(("name", "n"), [("branin", 10), ("hartmann-6", 16)])
def test_full_bayes_predicts_held_out_values_better_with_few_points(name, n):
    lost = np.array([[_held_out(way, PROBLEMS[name], n, seed) for way in ("ml2", "mcmc")] for seed in range(8)])
    assert np.median(lost[:, 1]) < np.median(lost[:, 0])
    assert (lost[:, 1] < lost[:, 0]).sum() >= 5


def test_a_mixture_is_wider_than_its_parts_agree():
    rng = np.random.default_rng(1)
    x = rng.random((6, 2))
    found = marginalize(x, PROBLEMS["branin"].function(x), "mcmc", rng, draws=6)
    at = rng.random((10, 2))
    mean, sd = found.predict(at)
    parts = np.array([c.predict(at) for c in found.components])
    np.testing.assert_allclose(mean, parts[:, 0].mean(axis=0))
    assert (sd**2 > (parts[:, 1] ** 2).mean(axis=0) - 1e-9).all()
    draws = found.sample(at, 6_000, rng)
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.1 * sd.max())
    np.testing.assert_allclose(draws.std(axis=0), sd, rtol=0.15)


def test_the_default_follows_the_declared_noise():
    assert default_marginalization(0.0) == "mcmc"
    assert default_marginalization(0.3) == "map"
    assert default_marginalization(None) == "mcmc"
    with pytest.raises(UsageError, match="-1"):
        default_marginalization(-1.0)
    with pytest.raises(UnknownName, match="mcm"):
        marginalize(np.zeros((2, 1)), np.zeros(2), "mcm", np.random.default_rng(0))
    x = np.random.default_rng(0).random((8, 2))
    y = PROBLEMS["branin"].function(x)
    for noise, draws in ((0.0, 16), (0.3 * y.std(), 1)):
        history = History.empty(2)
        for point, value in zip(x, y, strict=True):
            history = history.told(point, float(value), 0.0, noise**2)
        assert len(Marginal()(cube(2), history, np.random.default_rng(0)).components) == draws


def test_the_default_method_searches():
    history = trial(default_method(), PROBLEMS["six-hump-camel"], 12, seed=0)
    random = PROBLEMS["six-hump-camel"].function(np.random.default_rng(0).random((12, 2)))
    assert history.values.min() < random.min()


def _method(way, acquisition):
    return Bayesian(Marginal(way, draws=8), Averaged(acquisition, acquisition is log_expected_improvement))


@pytest.mark.slow
@pytest.mark.xfail(reason="seen: on one of eight (Ackley-5) and a tie on Hartmann-6 after 24 evaluations")
def test_full_bayes_is_no_worse_than_ml2_on_five_of_eight_functions_without_noise():
    good = 0
    for problem in PAPER:
        count = 2 * problem.dimension + 2 + 24
        regrets = {
            way: [trial(_method(way, log_expected_improvement), problem, count, s).values.min() for s in range(15)]
            for way in ("ml2", "mcmc")
        }
        medians = {way: np.median(np.log(np.array(r) - problem.optimum + 1e-12)) for way, r in regrets.items()}
        good += medians["mcmc"] <= medians["ml2"]
    assert good >= 5


def _stride(way, problem, seed):
    first = 2 * problem.dimension + 2
    points = trial(_method(way, confidence_bound), problem, first + 10, seed).points[first:]
    return np.linalg.norm(np.diff(points, axis=0), axis=1).mean()


@pytest.mark.slow
def test_full_bayes_strides_farther_under_a_confidence_bound():
    strides = {way: np.mean([_stride(way, p, s) for p in PAPER for s in range(5)]) for way in ("ml2", "mcmc")}
    assert strides["mcmc"] > strides["ml2"]


def test_the_topic_compares_the_ways():
    found = TOPIC.explain(problem="branin", observations=10, noise=0.0, seed=0)
    assert [row["way"] for row in found.tables[0].rows] == list(WAYS)
    assert found.figures["default"] == "mcmc"
