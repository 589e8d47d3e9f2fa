"""Data mixtures by multi-fidelity search, on recorded trainings of three sizes of language model."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.search.acquisitions.analytic import log_expected_improvement
from nearpeak.search.history import History
from nearpeak.search.parameters import Float, Floats
from nearpeak.search.space import Space
from nearpeak.search.trials.mixture_replay import TOPIC, Proxies, flops_to, mixing_law, recorded_in
from nearpeak.search.trials.mixtures import (
    MixtureKernel,
    MixtureSearch,
    compressed,
    lattice,
    mixture_space,
    training_flops,
)

TABLE = Path(__file__).parents[1] / "data" / "mixture_trainings.npz"
TRIES = 20


class SingleImprovement(MixtureSearch):
    """The same model of the target size alone, with expected improvement: the usual Bayesian optimization."""

    def _best(
        self, space: Space, sizes: Floats, mixtures: Floats, history: History, rng: np.random.Generator
    ) -> Floats | None:
        rows = np.column_stack([mixtures, np.zeros(len(mixtures))])
        left = rows[(((rows[:, None] - history.points) ** 2).sum(axis=2) > 1e-9).all(axis=1)]
        lowest = float(compressed(history.values, history.points[:, -1]).min())
        gp = self.posterior(space, history)
        return np.asarray(left[int(np.argmax(log_expected_improvement(gp, space.encode(left), lowest)))])


@lru_cache
def proxies() -> Proxies:
    return recorded_in(str(TABLE))


def shares(seed: int) -> tuple[float, float, float]:
    """FLOPs until as good as the best of 20 random mixtures at the target size, over what those took.

    Of all sizes, and of the target size alone by information and by expected improvement. Each seed has a target of its
    own: how much each domain counts.
    """
    table = proxies()
    target = np.random.default_rng([seed, 9]).dirichlet(np.full(3, 2.0))
    drawn = np.random.default_rng([seed, 5]).permutation(len(table.mixtures))[:TRIES]
    reached = float((table.losses[drawn, -1] @ target).min())
    methods = (MixtureSearch(), table), (MixtureSearch(initial=4), table.of_size(-1))
    found = [flops_to(at, method, target, reached, seed)[0] for method, at in methods]
    found.append(flops_to(table.of_size(-1), SingleImprovement(initial=4), target, reached, seed)[0])
    several, single, improvement = np.array(found) / (TRIES * table.flops[-1])
    return float(several), float(single), float(improvement)


def test_a_lattice_holds_every_mixture_once() -> None:
    found = lattice(3, 10)
    assert found.shape == (66, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert len(np.unique(found.round(9), axis=0)) == 66


def test_the_kernel_is_one_and_sees_small_weights() -> None:
    kernel = MixtureKernel(np.full(3, 0.5), 2.0, 1.0, 0.5)
    rows = np.column_stack([np.tile(lattice(3, 5), (3, 1)), np.repeat([0, 0.5, 1], 21)])
    covariance = kernel(rows, rows)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9
    np.testing.assert_allclose(np.diag(covariance), kernel.diagonal(rows))
    a = np.array([[0.0, 0.5, 0.5, 1], [0.02, 0.49, 0.49, 1], [0.3, 0.35, 0.35, 1], [0.32, 0.34, 0.34, 1]])
    near = kernel(a, a)
    assert near[0, 1] < near[2, 3]


def test_great_losses_are_compressed_in_order_and_small_ones_stay() -> None:
    losses, level = np.array([1.0, 1.01, 1.1, 9.0, 2.0, 2.01]), np.array([0, 0, 0, 0, 1, 1])
    found = compressed(losses, level)
    assert (np.argsort(found[:4]) == np.arange(4)).all()
    assert found[0] == 1.0
    assert found[4] == 2.0
    assert found[3] < 1.2


def test_cost_is_six_flops_a_weight_and_token() -> None:
    assert training_flops(1e6, 2e7) == pytest.approx(1.2e14)
    np.testing.assert_allclose(proxies().flops, 6 * proxies().weights * 200 * 80)


def test_proxies_save_most_of_the_flops_over_five_seeds() -> None:
    found = np.array([shares(seed) for seed in range(5)])
    assert found[:, 0].mean() <= 0.4
    assert found[:, 0].mean() < found[:, 1].mean()
    assert found[:, 0].mean() < found[:, 2].mean()


@pytest.mark.slow
def test_the_same_over_twenty_seeds() -> None:
    found = np.array([shares(seed) for seed in range(20)])
    assert found[:, 0].mean() <= 0.4
    assert found[:, 0].mean() < found[:, 1:].mean(axis=0).min()


def test_small_sizes_are_trained_more_often_and_the_recommendation_is_good() -> None:
    table, target = proxies(), np.full(3, 1 / 3)
    every = table.losses[:, -1] @ target
    cost, trained = flops_to(table, MixtureSearch(), target, float(np.sort(every)[2]), 0)
    assert np.isfinite(cost)
    assert trained[0] > trained[1] >= trained[2]
    method, history = MixtureSearch(), History.empty(4)
    for _ in range(16):
        rows = method.propose(table.space, history, 1, np.random.default_rng([0, len(history)]))
        history = history.told(rows[0], float(table.loss(rows, target)[0]), float(table.flops[int(rows[0, -1])]))
    advised = method.recommended(table.space, history, np.random.default_rng(0))
    value = every[((table.mixtures - advised) ** 2).sum(axis=1).argmin()]
    assert value <= np.sort(every)[9]


def test_many_domains_are_drawn_and_stay_on_the_simplex() -> None:
    space, rng = mixture_space(12, (1e6, 1e7)), np.random.default_rng(0)
    method, history = MixtureSearch(initial=6), History.empty(13)
    for k in range(10):
        rows = method.propose(space, history, 1, np.random.default_rng(k))
        assert rows[0, :-1].sum() == pytest.approx(1)
        assert (rows[0, :-1] >= 0).all()
        history = history.told(rows[0], float(rows[0, 0] + 0.1 * rng.random()), 10.0 ** rows[0, -1])
    assert len(method.propose(space, history, 3, rng)) == 3


def test_the_same_history_gives_the_same_proposals() -> None:
    law = mixing_law(3, 10)
    rows = np.column_stack([law.mixtures[::6], np.zeros(11)])
    history = History.of(rows, law.loss(rows, np.full(3, 1 / 3)))
    methods = (MixtureSearch(cost=lambda s: s, initial=3) for _ in range(2))
    a, b = (m.propose(law.space, history, 3, np.random.default_rng(1)) for m in methods)
    assert (a == b).all()
    assert len(np.unique(a, axis=0)) == 3


def test_wrong_input_is_named() -> None:
    with pytest.raises(UsageError, match="rise"):
        mixture_space(3, (1e7, 1e6))
    with pytest.raises(UsageError, match="mixture_space"):
        MixtureSearch().propose(Space({"x": Float(0, 1)}), History.empty(1), 1, np.random.default_rng(0))
    with pytest.raises(UsageError, match="target"):
        TOPIC.explain(table="", domains=3, target=(1.0, 2.0), tries=5, rate=1e14, seed=0)
    with pytest.raises(UsageError, match="mixtures"):
        recorded_in("nowhere.npz")


def test_the_topic_counts_flops() -> None:
    found = TOPIC.explain(table=str(TABLE), domains=3, target=(), tries=20, rate=4e14, seed=0)
    assert 0 < found.figures["flops_share_of_random"] < 1
