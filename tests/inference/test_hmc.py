"""Hamiltonian Monte Carlo and its diagnostics against densities whose moments are known."""

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.inference.diagnostics import effective_size, r_hat
from nearpeak.inference.hmc import explore, sample


def gaussian(mean, covariance):
    precision = np.linalg.inv(covariance)

    def density(q):
        slope = -(q - mean) @ precision
        return 0.5 * ((q - mean) * slope).sum(axis=1), slope

    return density


def correlated(d, seed):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((d, d)) + np.eye(d)
    return root @ root.T * np.outer(np.geomspace(0.01, 10, d), np.geomspace(0.01, 10, d))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_moments_of_a_correlated_gaussian_over_three_decades(seed):
    d = 10
    mean, covariance = np.linspace(-5, 5, d), correlated(d, 7)
    start = mean + np.random.default_rng(seed).standard_normal((16, d))
    draws = sample(gaussian(mean, covariance), start, 500, 500, seed)
    assert draws.shape == (16, 500, d)
    assert (r_hat(draws) < 1.03).all()
    size = effective_size(draws, rank=False)
    error = (draws.mean(axis=(0, 1)) - mean) / np.sqrt(np.diag(covariance) / size)
    assert np.abs(error).max() < 4
    flat = draws.reshape(-1, d)
    assert flat.std(axis=0) == pytest.approx(np.sqrt(np.diag(covariance)), rel=0.15)
    assert np.corrcoef(flat.T) == pytest.approx(
        covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance))), abs=0.12
    )


def test_quantiles_of_a_skewed_density():
    """log of a Gamma(3) variable: quantiles from the closed form."""
    from scipy.stats import gamma

    draws = sample(lambda q: ((3 * q - np.exp(q)).sum(axis=1), 3 - np.exp(q)), np.zeros((16, 1)), 1000, 300, 0)
    for share in (0.05, 0.5, 0.95):
        assert (np.exp(draws) < gamma(3).ppf(share)).mean() == pytest.approx(share, abs=0.015)


def test_long_trajectories_are_learned_where_they_pay():
    """A Gaussian of high correlation needs far more leapfrogs than an isotropic one, and gets them."""
    narrow = np.array([[1.0, 0.995], [0.995, 1.0]])
    far = explore(gaussian(np.zeros(2), narrow), np.zeros((16, 2)), 300, 500, 0)
    near = explore(gaussian(np.zeros(2), np.eye(2)), np.zeros((16, 2)), 300, 500, 0)
    assert far.time / far.step > 3 * near.time / near.step
    assert effective_size(far.draws).min() > 500
    assert far.acceptance == pytest.approx(0.85, abs=0.13)
    assert far.divergences == 0


def test_600_dimensions_cost_few_steps_a_draw():
    d = 600
    found = explore(gaussian(np.zeros(d), np.eye(d)), np.random.default_rng(0).standard_normal((8, d)), 200, 200, 0)
    assert found.time / found.step < 16
    assert np.median(effective_size(found.draws)) > 400
    assert r_hat(found.draws).max() < 1.1


def test_one_seed_gives_one_run_and_another_gives_another():
    runs = [sample(gaussian(np.zeros(2), np.eye(2)), np.zeros((4, 2)), 50, 50, seed) for seed in (3, 3, 4)]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


def test_a_wall_of_no_probability_is_respected():
    """An exponential on the positive axis: outside it the density says minus infinity."""

    def density(q):
        return np.where(q[:, 0] > 0, -q[:, 0], -np.inf), -np.ones_like(q)

    draws = sample(density, np.ones((16, 1)), 1500, 300, 0)
    assert (draws > 0).all()
    assert draws.mean() == pytest.approx(1, abs=4 / np.sqrt(effective_size(draws, rank=False)[0]))


def test_starts_that_cannot_be_are_named():
    with pytest.raises(UsageError, match="chain 1 starts"):
        sample(lambda q: (np.where(q[:, 0] > 0, 0.0, -np.inf), 0 * q), np.array([[1.0], [-1.0]]), 10, 20, 0)
    with pytest.raises(UsageError, match=r"\[chains, d\]"):
        sample(gaussian(np.zeros(1), np.eye(1)), np.zeros(3), 10, 20, 0)
    with pytest.raises(UsageError, match="not 10 after 3"):
        sample(gaussian(np.zeros(1), np.eye(1)), np.zeros((3, 1)), 10, 3, 0)


def test_r_hat_tells_chains_that_have_not_met():
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((4, 1000, 3))
    draws[0, :, 1] += 1  # another place
    draws[0, :, 2] *= 3  # another spread: only the folded ranks see it
    found = r_hat(draws)
    assert found[0] < 1.01
    assert found[1] > 1.1
    assert found[2] > 1.05


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_effective_size_of_an_autoregression_is_the_closed_form(rho):
    """An AR(1) chain of n draws is worth n (1 - rho) / (1 + rho)."""
    rng = np.random.default_rng(1)
    m, n = 8, 5000
    noise = rng.standard_normal((m, n)) * np.sqrt(1 - rho**2)
    draws = np.empty((m, n, 1))
    draws[:, 0, 0] = rng.standard_normal(m)
    for t in range(1, n):
        draws[:, t, 0] = rho * draws[:, t - 1, 0] + noise[:, t]
    assert effective_size(draws)[0] == pytest.approx(m * n * (1 - rho) / (1 + rho), rel=0.12)


def test_a_constant_needs_no_draws_and_stuck_chains_are_told():
    constant = np.ones((4, 100, 1))
    stuck = constant * np.arange(4)[:, None, None]
    assert r_hat(constant)[0] == 1
    assert effective_size(constant)[0] == 400
    assert r_hat(stuck)[0] > 10
