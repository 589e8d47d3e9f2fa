"""Networks as surrogates: gradients, limits, beliefs, and the tournament between them."""

from collections.abc import Callable

import numpy as np
import pytest

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search.history import History
from nearpeak.search.study import cube
from nearpeak.search.surrogates import bayesian_network, deep_kernel, infinite_width
from nearpeak.search.surrogates.bayesian_network import BayesianNetwork, WeightPosterior
from nearpeak.search.surrogates.deep_ensemble import DeepEnsemble
from nearpeak.search.surrogates.deep_kernel import DeepKernelGP
from nearpeak.search.surrogates.infinite_width import InfiniteWidth, InfiniteWidthGP
from nearpeak.search.surrogates.networks import Network
from nearpeak.search.surrogates.tournament import ARENA, SURROGATES, TOPIC, on_problem, rbf_surrogate, tournament

FEW = {
    "deep-ensemble": DeepEnsemble(4, (16,), 250),
    "bayesian-network": BayesianNetwork((8,), 8, 8, 40, 16),
    "deep-kernel": DeepKernelGP(hidden=(16,)),
    "infinite-width": InfiniteWidthGP(),
}


def slope_error(function: Callable[[np.ndarray], tuple[float, np.ndarray]], at: np.ndarray) -> float:
    """Largest difference of a gradient from central differences, over the largest slope."""
    _, gradient = function(at)
    numeric = np.array([(function(at + 1e-5 * e)[0] - function(at - 1e-5 * e)[0]) / 2e-5 for e in np.eye(len(at))])
    return float(np.abs(gradient - numeric).max() / np.abs(numeric).max())


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (25, 3))
    y = np.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2]
    return x, (y - y.mean()) / y.std()


def test_gradients_are_those_of_the_values(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = data
    rng = np.random.default_rng(1)
    posterior = WeightPosterior(Network((3, 5, 4, 1)), x, y)
    q = 0.5 * rng.standard_normal(posterior.size)
    assert slope_error(lambda t: tuple(v[0] for v in posterior(t[None])), q) < 1e-6  # type: ignore[return-value]
    network = Network((3, 6, 2))
    theta = np.append(network.draw(1, rng)[0], [-0.3, 0.1, -3.0])
    assert slope_error(lambda t: deep_kernel.log_posterior(network, x, y, "matern52", t), theta) < 1e-6
    for depth in (1, 3):
        theta = np.array([0.5, 0.2, -0.1, -3.0])
        assert slope_error(lambda t, depth=depth: infinite_width.log_posterior(x, y, depth, t), theta) < 1e-6


def test_the_kernel_is_the_covariance_of_wide_networks() -> None:
    rng, width = np.random.default_rng(0), 200
    x = rng.random((4, 3))
    kernel = InfiniteWidth(2, weight=1.6, bias=0.3, scale=1.0)
    outputs = []
    for _ in range(300):
        state = (2 * x - 1) @ rng.standard_normal((3, width)) * np.sqrt(1.6 / 3) + np.sqrt(0.3) * rng.standard_normal(
            width
        )
        for _ in range(2):
            weights = rng.standard_normal((width, width)) * np.sqrt(1.6 / width)
            state = np.maximum(state, 0) @ weights + np.sqrt(0.3) * rng.standard_normal(width)
        outputs.append(state[:, :40])
    found = np.concatenate(outputs, axis=1)
    assert found @ found.T / found.shape[1] == pytest.approx(kernel(x, x), rel=0.08)
    assert kernel.diagonal(x) == pytest.approx(np.diag(kernel(x, x)))


def test_sampled_weights_are_those_of_the_exact_posterior() -> None:
    """With scales and noise fixed a network without hidden layers is linear regression, whose posterior is known."""
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 1, (12, 2))
    y = x @ [1.0, -0.5] + 0.2 + 0.3 * rng.standard_normal(12)
    posterior = WeightPosterior(Network((2, 1)), x, y)
    noise = np.log(0.09)

    def density(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, gradient = posterior(np.hstack([z, np.zeros((len(z), 1)), np.full((len(z), 1), noise)]))
        return value, gradient[:, : z.shape[1]]

    drawn = bayesian_network.explore(density, rng.standard_normal((16, 3)), 200, 100, 0).draws.reshape(-1, 3)
    design = np.hstack([x / np.sqrt(2), np.ones((12, 1))])
    precision = design.T @ design / 0.09 + np.eye(3)
    exact = np.linalg.solve(precision, design.T @ y / 0.09)
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    assert np.abs(drawn.mean(0) - exact).max() < 0.15 * sd.max()
    assert drawn.std(0) == pytest.approx(sd, rel=0.15)


@pytest.mark.parametrize("name", FEW)
def test_beliefs_fit_what_was_seen_and_doubt_what_was_not(name: str) -> None:
    rng = np.random.default_rng(2)
    space = cube(2)
    x = 0.5 * rng.random((25, 2))
    y = 3.0 + 10 * (np.sin(4 * x[:, 0]) + x[:, 1] ** 2)
    history = History.of(x, y)
    posterior = FEW[name](space, history, np.random.default_rng(0))
    mean, sd = posterior.predict(x)
    assert np.sqrt(np.mean((mean - y) ** 2)) < 0.25 * y.std()
    far = posterior.predict(np.array([[1.0, 1.0], [0.9, 0.95]]))[1]
    assert (far > 1.5 * np.median(sd)).all()
    drawn = posterior.sample(x[:5], 4_000, np.random.default_rng(1))
    assert drawn.shape == (4_000, 5)
    assert drawn.mean(0) == pytest.approx(mean[:5], abs=0.1 * y.std())
    again = FEW[name](space, history, np.random.default_rng(0)).predict(x)
    assert (again[0] == mean).all()
    assert (again[1] == sd).all()


def test_infinite_width_predicts_many_inputs_better_than_squared_exponential() -> None:
    own = ARENA["network-50"]
    space = cube(50)
    errors = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x, q = rng.random((40, 50)), rng.random((200, 50))
        history = History.of(x, own.function(x))
        errors.append(
            [
                np.sqrt(np.mean((s(space, history, rng).predict(q)[0] - own.function(q)) ** 2))
                for s in (InfiniteWidthGP(), rbf_surrogate)
            ]
        )
    wide, squared = np.mean(errors, axis=0)
    assert wide < 0.95 * squared


def test_tournament_ranks_by_regret_on_a_table() -> None:
    few = {"infinite-width": InfiniteWidthGP(), "gp-rbf": rbf_surrogate}
    study = on_problem(ARENA["network-50"], 300, 18, 3, few)
    assert study.methods == ("infinite-width", "gp-rbf", "random")
    assert study.curves.shape == (3, 1, 3, 18)
    assert (study.curves >= 0).all()
    assert (np.diff(study.curves) <= 0).all()
    assert (study.curves[0, :, :, :10] == study.curves[1, :, :, :10]).all()
    assert study.final[0].mean() < study.final[2].mean()


def test_tournament_goes_on_where_evaluations_failed() -> None:
    space = cube(2)
    points = space.sample(60, np.random.default_rng(0))
    values = np.where(points[:, 0] > 0.5, np.nan, points.sum(1))
    study = tournament(space, points, values, 15, 1, {"gp-rbf": rbf_surrogate}, initial=6)
    assert np.isfinite(study.final).all()


def test_tournament_refuses_a_table_too_small() -> None:
    with pytest.raises(UsageError, match="20 evaluations"):
        tournament(cube(2), np.zeros((5, 2)), np.zeros(5), 20, 1)
    with pytest.raises(UnknownName, match="steps-4"):
        TOPIC.explain(problem="step-4", surrogates=("gp",), sample=100, evaluations=12, seeds=1)


def test_topic_names_a_winner() -> None:
    found = TOPIC.explain(problem="steps-4", surrogates=("gp", "infinite-width"), sample=150, evaluations=13, seeds=1)
    assert found.figures["winner"] in {"gp", "infinite-width", "random"}
    assert len(found.tables[0].rows) == 3


@pytest.mark.slow
def test_surrogates_win_on_different_problems() -> None:
    """The row's check: two winners at least, NNGP below RBF in 50 dimensions, all five below random search."""
    studies = {name: on_problem(problem, 1_000, 50, 10) for name, problem in ARENA.items()}
    winners = {s.methods[int(np.argmin(s.final[:, 0].mean(axis=1)))] for s in studies.values()}
    assert len(winners) >= 2
    mean = {name: dict(zip(s.methods, s.final[:, 0].mean(axis=1), strict=True)) for name, s in studies.items()}
    assert mean["network-50"]["infinite-width"] < mean["network-50"]["gp-rbf"]
    for found in mean.values():
        assert all(found[name] < found["random"] for name in SURROGATES if name != "gp-rbf")
