"""The additive Gaussian process: its kernel is the sum that it says, and it learns sums from few evaluations."""

import numpy as np
import pytest

from nearpeak.search.bayesian import gp_surrogate
from nearpeak.search.history import History
from nearpeak.search.parameters import Categorical, Ordinal
from nearpeak.search.space import Space
from nearpeak.search.strategies.games import BitWidths
from nearpeak.search.surrogates.additive import OwnAndJoint, additive_surrogate, log_posterior
from nearpeak.search.surrogates.gp import standardised
from nearpeak.search.surrogates.kernels import SHAPES, squares_by_group

MIXED = Space({**{f"bits{i}": Ordinal((2, 3, 4, 8)) for i in range(5)}, "kind": Categorical(("a", "b", "c"))})


def test_gradient_of_the_log_posterior() -> None:
    rng = np.random.default_rng(0)
    x = MIXED.encode(MIXED.sample(30, rng))
    y, _, _ = standardised(rng.standard_normal(30))
    theta = np.array([-0.5, 0.3, 1.0, -0.7, -4.0])
    apart = squares_by_group(x, MIXED.groups)
    _, gradient = log_posterior(apart, y, theta)
    for i, step in enumerate(1e-5 * np.eye(5)):
        up, down = (log_posterior(apart, y, theta + s)[0] for s in (step, -step))
        assert gradient[i] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-4)


def test_the_kernel_is_the_sum_of_own_effects_and_a_joint_one() -> None:
    rng = np.random.default_rng(1)
    points = MIXED.sample(40, rng)
    x = MIXED.encode(points)
    kernel = additive_surrogate(MIXED, History.of(points[:20], rng.standard_normal(20)), rng).kernel
    assert isinstance(kernel, OwnAndJoint)
    length, own, reach, joint = np.exp(kernel.theta)
    apart, matern = squares_by_group(x, MIXED.groups), SHAPES["matern52"]
    expected = own * matern(apart / length**2)[0].mean(axis=0) + joint * matern(apart.sum(axis=0) / reach**2)[0]
    assert kernel(x, x) == pytest.approx(expected, abs=1e-6)  # half of these were never evaluated
    assert kernel.diagonal(x) == pytest.approx(np.diag(expected))


def test_bit_widths_of_24_layers_are_learnt_from_60_evaluations_better_than_by_an_ordinary_kernel() -> None:
    errors = []
    for seed in range(3):
        problem, rng = BitWidths.drawn(24, seed), np.random.default_rng(seed)
        points = problem.space.sample(360, rng)
        history, held = History.of(points[:60], problem(points[:60])), points[60:]
        x, true = problem.space.encode(held), problem(held)
        found = [s(problem.space, history, rng).predict(x) for s in (additive_surrogate, gp_surrogate)]
        errors.append([np.sqrt(np.mean((mean - true) ** 2)) for mean, _ in found])
        mean, sd = found[0]
        assert 0.6 < (np.abs(mean - true) < 1.645 * sd).mean() < 0.99
    ours, ordinary = np.mean(errors, axis=0)
    assert ours < 0.95 * ordinary
