"""The reference loop: every acquisition function against random search, in batches, with constraints, by fidelity."""

import numpy as np
import pytest

from nearpeak.search.bayesian import Bayesian, incumbent
from nearpeak.search.history import History
from nearpeak.search.problems import PROBLEMS, branin
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.reference import ACQUISITIONS, TOPIC, reference
from nearpeak.search.space import Float, Space
from nearpeak.search.study import best_so_far, compare, cube, trial
from nearpeak.search.surrogates.gp import fit
from nearpeak.search.trials.multi_fidelity import MultiFidelity, recommended

BRANIN, HARTMANN = PROBLEMS["branin"], PROBLEMS["hartmann-6"]


def _methods(*names):
    return {"random": RandomSearch()} | {name: reference(name) for name in names or ACQUISITIONS}


def test_every_acquisition_beats_random_search_on_branin():
    study = compare(_methods(), [BRANIN], seeds=2, evaluations=18)
    medians = dict(zip(study.methods, np.median(study.final[:, 0], axis=1), strict=True))
    random = medians.pop("random")
    assert all(median < random for median in medians.values()), (random, medians)


@pytest.mark.slow
def test_every_acquisition_beats_random_search_on_noisy_branin_and_hartmann_at_40_trials():
    study = compare(_methods(), [BRANIN, HARTMANN], seeds=20, evaluations=40, noise=0.05)
    medians = np.median(study.final, axis=2)
    assert (medians[1:] < medians[0]).all(), study.table()


@pytest.mark.slow
def test_noisy_improvement_beats_improvement_where_noise_is_three_tenths_of_the_range():
    study = compare(_methods("ei", "noisy-ei"), [BRANIN, HARTMANN], seeds=40, evaluations=40, noise=0.3)
    relative = study.final / np.median(study.final[0], axis=1)[:, None]
    assert relative[2].mean() < relative[1].mean(), study.table()


def test_without_noise_noisy_improvement_proposes_what_improvement_does():
    x = np.random.default_rng(0).random((14, 2))
    history, space = History.of(x, branin(x)), cube(2)

    def rough(space, history, rng):
        return fit(space.encode(history.points), history.values, shape="matern12", noise=0.0)

    plain, noisy = (
        Bayesian(rough, ACQUISITIONS[name]).propose(space, history, 1, np.random.default_rng(1))
        for name in ("ei", "noisy-ei")
    )
    np.testing.assert_allclose(plain, noisy, atol=0.02)


def test_a_batch_has_different_points_and_knows_of_pending_ones():
    x = np.random.default_rng(0).random((10, 2))
    history, space = History.of(x, branin(x)), cube(2)
    for name in ("ei", "kg", "mes"):
        rows = reference(name).propose(space, history, 2, np.random.default_rng(2))
        again = reference(name).propose(space, history, 2, np.random.default_rng(2))
        np.testing.assert_array_equal(rows, again)
        apart = np.sqrt(((rows[:, None] - rows) ** 2).sum(-1))[np.triu_indices(2, 1)]
        assert apart.min() > 1e-3, name


def test_constraints_are_met_and_random_search_is_beaten_under_them():
    problem = PROBLEMS["branin-disk"]
    for name in ("ei", "noisy-ei"):
        history = trial(reference(name, constrained=True), problem, 24, seed=1)
        assert history.feasible[6:].mean() > 0.6
        assert best_so_far(problem, history)[-1] < best_so_far(problem, trial(RandomSearch(), problem, 24, 1))[-1]


def _fidelity_search(method, space, budget, seed):
    """Branin with an error that a cheap evaluation has; costs are its fidelity."""
    history, spent = History.empty(space.width, seed=seed), 0.0
    while spent < budget:
        row = method.propose(space, history, 1, np.random.default_rng([seed, len(history)]))
        fidelity = row[0, 2]
        error = 20 * (1 - fidelity) * np.sin(4 * row[0, 0] + 2)
        history = history.told(row[0], float(branin(row[:, :2])[0] + error), float(fidelity))
        spent += fidelity
    return history


def test_cheap_fidelities_are_used_and_lower_regret_at_one_cost():
    space = Space({"a": Float(0, 1), "b": Float(0, 1), "s": Float(0.1, 1)})
    method = reference("kg", fidelity="s")
    drawn = [branin(np.random.default_rng(k).random((12, 2))).min() for k in range(101)]
    fidelities = []
    for seed in range(3):
        history = _fidelity_search(method, space, 12.0, seed)
        fidelities.append(history.points[8:, 2].mean())
        gp = fit(space.encode(history.points), history.values, groups=space.groups)
        chosen = recommended(space, "s", history, gp)
        assert branin(chosen[None, :2])[0] < np.median(drawn)
    assert np.median(fidelities) < 0.5  # mostly cheap
    assert isinstance(method.acquisition, MultiFidelity)


def test_incumbents_are_feasible_where_something_is():
    x = np.array([[0.1, 0.1], [0.9, 0.9], [0.5, 0.2]])
    limits, none = np.array([[1.0], [-1.0], [-1.0]]), np.full(3, np.nan)
    history = History(x, np.array([0.0, 5.0, 7.0]), np.zeros(3), none, limits, np.empty((0, 2)))
    posterior = fit(x, history.values, noise=0.0)
    assert incumbent(cube(2), history, posterior) == pytest.approx(5.0, abs=0.1)


def test_the_topic_ranks_acquisitions():
    found = TOPIC.explain(problem="branin", acquisitions=("ei",), noise=0.0, evaluations=12, seeds=2, batch=2)
    assert {row["method"] for row in found.tables[0].rows} == {"random", "ei"}
    assert found.figures["winner"] in ("random", "ei")
