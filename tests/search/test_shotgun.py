import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.search.history import History
from nearpeak.search.problems import PROBLEMS
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.space import Float, Integer, Ordinal, Space
from nearpeak.search.strategies.asynchronous import simulate_workers
from nearpeak.search.strategies.local_penalization import LocalPenalization, penalty, steepest
from nearpeak.search.strategies.shotgun import TOPIC, Shotgun, radius, scattered
from nearpeak.search.study import cube
from nearpeak.search.surrogates.gp import condition
from nearpeak.search.surrogates.kernels import Stationary
from nearpeak.search.surrogates.refitted import RefittedGP, learning_count

SIX = ("branin", "goldstein-price", "six-hump-camel", "hartmann-6", "rosenbrock-5", "styblinski-tang-7")


def regret(method, name, evaluations, seed):
    at = PROBLEMS[name]
    run = simulate_workers(
        method, at.function, cube(at.dimension), 10, lambda p, r: 1.0, evaluations, seed, synchronous=True
    )
    assert len(run.values) == evaluations
    return run.values.min() - at.optimum, run.chosen.max()


@pytest.fixture(scope="module")
def slope():
    """A GP of a plane: its mean has the gradient (3, 4) about everywhere."""
    x = np.random.default_rng(0).random((60, 2))
    return condition(Stationary("rbf", np.array([2.0, 2.0]), 100.0), x, x @ [3.0, 4.0], 1e-6)


def test_steepest_slope_of_a_plane(slope):
    rng = np.random.default_rng(0)
    assert steepest(slope, np.full(2, 0.2), np.full(2, 0.8), slope.x, rng) == pytest.approx(5.0, rel=0.02)


def test_radius_is_gap_and_uncertainty_over_slope(slope):
    aim = np.array([0.5, 0.5])
    mean, sd = (float(v[0]) for v in slope.predict(aim[None]))
    for gamma in (0.0, 1.0, 50.0):
        got = radius(slope, aim, 3.0, gamma, np.random.default_rng(0))
        assert got == pytest.approx((abs(mean - 3.0) + gamma * sd) / 5.0, rel=0.05)


def test_radius_on_flat_ground_is_half_the_diagonal():
    x = np.random.default_rng(0).random((5, 2))
    flat = condition(Stationary("rbf", np.ones(2)), x, np.ones(5), 1e-6)
    assert radius(flat, np.array([0.5, 0.5]), 1.0, 1.0, np.random.default_rng(0)) == pytest.approx(np.sqrt(2) / 2)


def test_scatter_is_normal_about_its_centre_and_cut_off_at_the_sides():
    rng, space = np.random.default_rng(1), cube(2)
    rows = scattered(space, np.array([0.5, 0.98]), 0.05, 4000, History.empty(2), rng)
    assert rows[:, 0].mean() == pytest.approx(0.5, abs=0.005)
    assert rows[:, 0].std() == pytest.approx(0.05, rel=0.05)
    assert (rows >= 0).all()
    assert (rows <= 1).all()
    assert (rows[:, 1] < 0.98).mean() > 0.55  # what would be outside is drawn again inside
    assert len(scattered(space, np.array([0.5, 0.5]), 0.05, 0, History.empty(2), rng)) == 0


def test_scatter_meets_constraints_and_takes_each_grid_configuration_once():
    rng = np.random.default_rng(2)
    floats = Space({"a": Float(0, 1), "b": Float(0, 1)}, constraints=("a + b <= 1",))
    rows = scattered(floats, np.array([0.5, 0.5]), 0.2, 50, History.empty(2), rng)
    assert rows.shape == (50, 2)
    assert floats.holds(rows).all()
    grid = Space({"a": Integer(0, 9), "b": Ordinal((1, 2, 4, 8))})
    rows = scattered(grid, grid.grid.points[0], 0.3, 9, History.of(grid.grid.points[:1], np.zeros(1)), rng)
    assert len(np.unique(rows, axis=0)) == 9
    assert not (rows == grid.grid.points[0]).all(axis=1).any()


def test_penalty_is_the_probability_of_being_outside_the_balls(slope):
    rng = np.random.default_rng(3)
    x, busy, least, steep = rng.random((4, 2)), rng.random((2, 2)), 0.3, 6.0
    vague = condition(Stationary("rbf", np.array([0.3, 0.3])), slope.x[:5], slope.x[:5] @ [3.0, 4.0], 0.1)
    mean, sd = vague.predict(busy)
    draws = mean + sd * rng.standard_normal((200_000, 2))
    away = np.linalg.norm(x[:, None] - busy, axis=2)
    outside = [(away[i] >= (draws - least) / steep).mean(axis=0).prod() for i in range(4)]
    assert np.exp(penalty(vague, x, busy, steep, least)) == pytest.approx(outside, abs=0.01)


def test_hyperparameters_are_learnt_at_counts_that_grow():
    counts = [learning_count(n, 0.1, 256) for n in range(2, 400)]
    assert counts[:4] == [2, 3, 4, 5]
    assert (np.diff(counts) >= 0).all()
    assert len(set(counts)) < 50
    assert max(counts) <= 256
    assert [learning_count(n, 0.0, 9) for n in range(2, 12)] == [2, 3, 4, 5, 6, 7, 8, 9, 9, 9]


def test_a_fresh_shotgun_proposes_the_same():
    at, space = PROBLEMS["branin"], cube(2)
    x = np.random.default_rng(0).random((30, 2))
    history, used = History.of(x, at.function(x), seed=4), Shotgun()
    used.propose(space, History.of(x[:20], at.function(x[:20])), 10, np.random.default_rng(0))
    again = [m.propose(space, history, 10, np.random.default_rng(1)) for m in (used, Shotgun())]
    assert np.array_equal(*again)


def test_shotgun_beats_random_batches():
    for name in ("branin", "hartmann-6"):
        ours, chance = (
            np.median([regret(m, name, 80, seed)[0] for seed in range(3)]) for m in (Shotgun(), RandomSearch())
        )
        assert ours < chance / 2


def test_local_penalization_beats_random_batches():
    ours, chance = (
        np.median([regret(m, "branin", 40, seed)[0] for seed in range(2)])
        for m in (LocalPenalization(RefittedGP()), RandomSearch())
    )
    assert ours < chance


def test_a_mixed_space_is_searched():
    space = Space({"a": Integer(1, 40), "b": Ordinal((1, 2, 4, 8)), "c": Float(0, 1)})

    def f(rows):
        return (rows[:, 0] - 30) ** 2 / 100 + (rows[:, 1] - 2) ** 2 + rows[:, 2]

    run = simulate_workers(Shotgun(), f, space, 5, lambda p, r: 1.0, 50, 0, synchronous=True)
    assert run.values.min() < 0.3


def test_bad_epsilon_is_refused():
    with pytest.raises(UsageError, match="probability"):
        Shotgun(epsilon=1.5)


def test_topic_explains():
    found = TOPIC.explain(problem="branin", batch=10, evaluations=20, seeds=1)
    assert {row["method"] for row in found.tables[0].rows} == {"epsilon-shotgun", "local penalization", "random"}


@pytest.mark.slow
def test_row_50():
    """q = 10, 6 functions, 15 seeds, 200 evaluations."""
    not_worse, seconds = 0, 0.0
    for name in SIX:
        runs = [
            [regret(m, name, 200, seed) for seed in range(15)]
            for m in (Shotgun(), LocalPenalization(RefittedGP()), RandomSearch())
        ]
        shotgun, penalized, chance = (np.median([r for r, _ in run]) for run in runs)
        seconds = max(seconds, float(np.median([s for _, s in runs[0]])))
        assert shotgun < chance, name
        not_worse += shotgun <= penalized
    assert not_worse >= 3
    assert seconds < 0.5
