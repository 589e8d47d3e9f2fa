from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.search.solvers import coreset_configurations as coreset

TABLE = Path(__file__).parents[1] / "data" / "gcc_flag_sets.npz"
"""Written by tools/compile_flag_sets.py."""


@pytest.fixture(scope="module")
def gcc() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bytes [programs, flag sets] (-Os, -Oz, then random ones), features, and the family of each program."""
    with np.load(TABLE) as held:
        families = np.array([name.rsplit("-", 1)[0] for name in held["task"]])
        assert held["configuration"][:2].tolist() == ["-Os", "-Oz"]
        return held["costs"].astype(float), held["features"], families


def rewards(rng: np.random.Generator, tasks: int, configurations: int) -> np.ndarray:
    """Heavy-tailed: some configurations are very good on few tasks, which is what makes greedy err."""
    return np.maximum(rng.standard_t(3, (tasks, configurations)), 0)


def test_greedy_covers_63_percent_of_the_exact_optimum_on_20_instances() -> None:
    rng = np.random.default_rng(0)
    shares = []
    subsets = np.array(list(combinations(range(14), 4)))
    for k in range(20):
        reward = rewards(rng, 15, 14)
        best = reward[:, subsets].max(axis=2).sum(axis=0).max()
        if k < 4:
            assert coreset.covered(reward, coreset.optimal_cover(reward, 4)) == pytest.approx(best)
        shares.append(coreset.covered(reward, coreset.cover(reward, 4)) / best)
    assert min(shares) >= 1 - 1 / np.e
    assert max(shares) <= 1 + 1e-12


def test_greedy_reaches_its_bound_and_not_much_more_where_it_is_led_astray() -> None:
    # Two configurations cover all tasks; a third one covers slightly more than half of each.
    reward = np.zeros((4, 3))
    reward[:2, 0], reward[2:, 1], reward[:, 2] = 1.0, 1.0, 0.52
    greedy, best = (coreset.covered(reward, f(reward, 2)) for f in (coreset.cover, coreset.optimal_cover))
    assert best == pytest.approx(4.0)
    assert 0.63 * best < greedy < 0.8 * best


def test_value_is_submodular() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        reward = rng.normal(size=(10, 12))
        order = rng.permutation(12)
        small, large, new = order[:3], order[:6], order[7]
        gain = [coreset.covered(reward, [*s, new]) - coreset.covered(reward, s) for s in (small, large)]
        assert gain[0] >= gain[1] - 1e-12 >= -1e-12


def test_ten_compilations_make_held_out_families_smaller_than_os_and_than_ten_random_flag_sets(gcc) -> None:
    # One compilation at -O0 for the features and nine tries.
    costs, features, families = gcc
    assert costs.shape == (60, 500)
    found = coreset.hold_out(costs, features, families, size=20, tries=9, random=10)
    advised, random = costs[:, 0] * (1 - found.advised), costs[:, 0] * (1 - found.random)
    assert advised.mean() < random.mean() < costs[:, 0].mean()
    assert advised.mean() < costs[:, 1].mean()  # -Oz
    assert found.advised.mean() > 1.3 * found.random.mean()
    assert found.advised.mean() > 0.75 * found.every.mean()
    # Over programs, not by a few of them.
    difference = found.advised - found.random
    assert difference.mean() > 3 * difference.std() / np.sqrt(len(difference))


def test_features_pick_what_a_fixed_list_cannot() -> None:
    costs, shapes = coreset.tiles(150, 0)
    found = coreset.hold_out(costs, shapes, np.arange(150), size=16, tries=3, random=3)
    assert found.advised.mean() > 1.1 * found.leading.mean()
    assert found.advised.mean() > 2 * found.random.mean()
    blind = coreset.hold_out(costs, np.zeros_like(shapes), np.arange(150), size=16, tries=3, random=3)
    assert found.advised.mean() > 1.1 * blind.advised.mean()


def test_normalised_values_are_one_at_the_best_and_bounded() -> None:
    values = coreset.normalised_values(np.array([[0.1, 0.2, -0.9], [-0.1, -0.3, -0.2]]))
    assert values[0] == pytest.approx([0.5, 1.0, -1.0])
    assert values[1] == pytest.approx([0.0, -0.2, -0.1])


def test_same_seed_same_advice() -> None:
    costs, shapes = coreset.tiles(40, 1)
    reward = coreset.savings(costs)
    one, two = (coreset.learn(reward, shapes, 8, seed=3) for _ in range(2))
    assert (one.advise(shapes, 4) == two.advise(shapes, 4)).all()
    best, cost = coreset.best_of(one, shapes[0], lambda c: float(costs[0, c]), 4)
    assert cost == costs[0, one.advise(shapes[:1], 4)[0]].min() == costs[0, best]


def test_failed_configurations_cost_and_a_failed_default_is_refused() -> None:
    costs = np.array([[1.0, np.nan, 0.5], [2.0, 1.0, 3.0]])
    assert coreset.savings(costs)[0].tolist() == [0.0, -1.0, 0.5]
    with pytest.raises(UsageError, match="the default, configuration 1, failed on task 0"):
        coreset.savings(costs, 1)
    with pytest.raises(UsageError, match="above 0"):
        coreset.savings([[1.0, 0.0]])
    with pytest.raises(UsageError, match="1 to as many members"):
        coreset.cover(np.zeros((2, 3)), 4)


def test_topic_explains_a_table(tmp_path) -> None:
    costs, shapes = coreset.tiles(30, 0)
    path = tmp_path / "t.npz"
    np.savez(path, costs=costs, features=shapes, task=[f"s-{i}" if i < 15 else f"t-{i}" for i in range(30)])
    told = coreset.TOPIC.explain(table=str(path), size=8, tries=3, seed=0)
    assert 0 < told.figures["advised_saving_share"] <= told.figures["best_saving_share"]
    with pytest.raises(UsageError, match="no file"):
        coreset.TOPIC.explain(table="nowhere.npz", size=8, tries=3, seed=0)
