import itertools

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.search.populations import hypervolume as module
from nearpeak.search.populations.evolution import generator
from nearpeak.search.populations.hype import expected_loss
from nearpeak.search.populations.hypervolume import hypervolume


def by_inclusion_and_exclusion(points, corner):
    total = 0.0
    for size in range(1, len(points) + 1):
        for some in itertools.combinations(points, size):
            total -= (-1) ** size * np.prod(np.clip(corner - np.max(some, axis=0), 0, None))
    return total


@pytest.mark.parametrize("way", ["compiled", "numpy", "tensor"])
@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_volume_is_that_of_inclusion_and_exclusion(way, objectives, monkeypatch):
    if way == "numpy":
        monkeypatch.setattr(module, "compiled", lambda: None)
    make = pytest.importorskip("torch").as_tensor if way == "tensor" else np.asarray
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 9):
        for points in (rng.random((n, objectives)) * 1.2, rng.integers(0, 4, (n, objectives)) / 3):
            corner = np.full(objectives, 1.05)
            found = hypervolume(make(points), corner)
            assert found.value == pytest.approx(by_inclusion_and_exclusion(points, corner), abs=1e-12)
            assert found.error == 0


def test_the_sweep_and_the_slabs_agree_on_many_points():
    rng = np.random.default_rng(1)
    points = np.abs(rng.normal(size=(2000, 3)))
    points = points / np.linalg.norm(points, axis=1, keepdims=True) * rng.uniform(1, 1.2, (2000, 1))
    kept = module.nondominated(points) & (points < 1.1).all(1)
    assert module._swept(points[kept], np.full(3, 1.1)) == pytest.approx(hypervolume(points, [1.1] * 3).value)


def test_samples_estimate_four_objectives_within_their_error():
    points = np.random.default_rng(2).random((8, 4))
    exact = by_inclusion_and_exclusion(points, np.ones(4))
    found = [hypervolume(points, np.ones(4), samples=20_000, seed=seed) for seed in range(20)]
    off = np.array([(f.value - exact) / f.error for f in found])
    assert abs(off.mean()) < 0.9
    assert 0.5 < off.std() < 1.7


def test_points_beyond_the_corner_add_nothing():
    inside = np.array([[0.5, 0.5, 0.5]])
    more = np.concatenate([inside, [[0.1, 0.1, 1.0], [2.0, 0.0, 0.0]]])
    assert hypervolume(more, [1, 1, 1]).value == hypervolume(inside, [1, 1, 1]).value == pytest.approx(0.125)
    assert hypervolume(more[1:], [1, 1, 1]).value == 0


def test_a_corner_of_other_length_is_refused():
    with pytest.raises(UsageError, match="2 finite numbers"):
        hypervolume(np.zeros((3, 2)), [1.0, 1.0, 1.0])


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_the_expected_loss_of_one_is_what_it_alone_dominates(objectives):
    rng = np.random.default_rng(3)
    front = rng.random((6, objectives))
    front /= np.linalg.norm(front, axis=1, keepdims=True)
    corner = np.full(objectives, 1.1)
    found = expected_loss(front, corner, 1, 40_000, generator(0))
    whole = by_inclusion_and_exclusion(front, corner)
    alone = [whole - by_inclusion_and_exclusion(np.delete(front, i, 0), corner) for i in range(6)]
    assert found == pytest.approx(alone, rel=0.06, abs=1e-3)


def test_the_expected_loss_is_the_mean_over_those_that_go():
    rng = np.random.default_rng(4)
    front = rng.random((5, 2))
    front = front[np.argsort(front[:, 0])]
    front[:, 1] = np.sort(front[:, 1])[::-1]
    corner, goes = np.full(2, 1.1), 3
    whole = by_inclusion_and_exclusion(front, corner)
    # Of all sets of three that may go: the mean loss. The losses laid at each door add to it, by HypE's definition.
    lost = [whole - by_inclusion_and_exclusion(np.delete(front, some, 0), corner)
            for some in itertools.combinations(range(5), goes)]  # fmt: skip
    found = expected_loss(front, corner, goes, 60_000, generator(1))
    assert found.sum() * goes / 5 == pytest.approx(np.mean(lost), rel=0.04)
