import numpy as np
import pytest
from scipy.stats import wilcoxon

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search.bayesian import Bayesian
from nearpeak.search.history import History
from nearpeak.search.problems import PROBLEMS
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.space import Integer, Space
from nearpeak.search.strategies.asynchronous import TOPIC, Aegis, half_normal, problem_named, simulate_workers
from nearpeak.search.strategies.greedy import exploring, greediest, undominated
from nearpeak.search.strategies.thompson import Thompson, draw_path
from nearpeak.search.study import cube
from nearpeak.search.surrogates.gp import condition
from nearpeak.search.surrogates.kernels import Stationary
from nearpeak.search.surrogates.refitted import RefittedGP

SIX = ("branin", "goldstein-price", "six-hump-camel", "hartmann-6", "rosenbrock-5", "styblinski-tang-7")
MEAN = 60.0


def searched(method, name, workers, evaluations, seed, synchronous=False):
    at = PROBLEMS[name]
    until = evaluations * MEAN / workers
    run = simulate_workers(
        method, at.function, cube(at.dimension), workers, half_normal(MEAN), 4 * evaluations, seed,
        until=until, synchronous=synchronous, charged=True,
    )  # fmt: skip
    return float(run.best_by(until)) - at.optimum, run


def test_a_worker_does_one_thing_at_a_time_and_none_waits():
    run = simulate_workers(RandomSearch(), PROBLEMS["branin"].function, cube(2), 5, half_normal(2.0), 100, 0)
    assert len(run.values) == 100
    for worker in range(5):
        mine = run.worker == worker
        assert run.begun[mine][1:] == pytest.approx(run.ended[mine][:-1])
    assert run.utilisation == pytest.approx(1.0)
    assert run.idle == pytest.approx(np.zeros(5), abs=1e-9)


def test_workers_that_wait_for_each_other_are_idle():
    seconds = iter([1.0, 2.0, 3.0, 4.0] * 10)
    run = simulate_workers(
        RandomSearch(), PROBLEMS["branin"].function, cube(2), 4, lambda p, r: next(seconds), 40, 0,
        until=40.0, synchronous=True,
    )  # fmt: skip
    assert run.begun.reshape(-1, 4) == pytest.approx(np.repeat(4.0 * np.arange(10)[:, None], 4, axis=1))
    assert run.idle == pytest.approx([0.75, 0.5, 0.25, 0.0])


def test_the_method_sees_what_runs_and_only_what_has_ended():
    class Spy:
        def propose(self, space, history, count, rng):
            assert len(history.pending) + count == 3
            seen.append(len(history))
            return space.sample(count, rng)

    seen = []
    run = simulate_workers(Spy(), PROBLEMS["branin"].function, cube(2), 3, half_normal(1.0), 30, 0)
    assert seen == [0, *range(1, 28)]
    ended = [(run.ended[: i + 3] <= run.begun[i + 3]).sum() for i in range(27)]
    assert ended == list(range(1, 28))


def test_the_clock_stops_and_the_seed_repeats():
    def go(seed):
        return simulate_workers(
            RandomSearch(), PROBLEMS["branin"].function, cube(2), 4, half_normal(1.0), 1000, seed, until=20.0
        )

    a, b, c = go(0), go(0), go(1)
    assert (a.begun <= 20.0).all()
    assert 40 < len(a.values) < 140
    assert np.array_equal(a.values, b.values)
    assert not np.array_equal(a.points[:10], c.points[:10])
    best = a.best_by([0.0, 5.0, 20.0])
    assert best[0] == np.inf
    assert best[1] >= best[2]


def test_failed_evaluations_do_not_stop_it():
    def f(rows):
        return np.where(rows[:, 0] < 0.5, np.nan, rows[:, 0])

    run = simulate_workers(Aegis(), f, cube(2), 3, half_normal(1.0), 30, 0)
    assert np.isnan(run.values).any()
    assert float(run.best_by(run.ended.max())) < 0.6


def test_bad_pools_are_refused():
    for workers, budget, seconds in ((0, 5, 1.0), (2, 0, 1.0), (2, 5, 0.0)):
        with pytest.raises(UsageError):
            simulate_workers(
                RandomSearch(), PROBLEMS["branin"].function, cube(2), workers, lambda p, r, s=seconds: s, budget, 0
            )
    with pytest.raises(UsageError, match="epsilon"):
        Aegis(epsilon=0.7)
    with pytest.raises(UnknownName, match="branin"):
        problem_named("brannin")


def test_half_normal_durations_have_their_mean():
    rng, seconds = np.random.default_rng(0), half_normal(3.0)
    assert np.mean([seconds(np.zeros(1), rng) for _ in range(20_000)]) == pytest.approx(3.0, rel=0.03)


@pytest.mark.parametrize("shape", ["rbf", "matern32", "matern52"])
def test_paths_have_the_posterior_mean_and_deviation(shape):
    rng = np.random.default_rng(0)
    x = rng.random((12, 2))
    gp = condition(Stationary(shape, np.array([0.3, 0.6]), 1.5), x, np.sin(6 * x[:, 0]) + x[:, 1], 0.01)
    at = np.vstack([x[:3], rng.random((5, 2))])
    drawn = np.array([draw_path(gp, rng, 256)(at) for _ in range(1500)])
    mean, sd = gp.predict(at)
    assert drawn.mean(axis=0) == pytest.approx(mean, abs=5 * sd.max() / np.sqrt(1500))
    assert drawn.std(axis=0) == pytest.approx(sd, rel=0.15)
    apart = np.corrcoef(drawn.T) - np.corrcoef(gp.sample(at, 4000, rng).T)
    assert np.abs(apart).max() < 0.12


def test_undominated_is_what_comparing_all_pairs_finds():
    rng = np.random.default_rng(0)
    for n in (1, 2, 50, 300):
        mean, sd = rng.integers(0, 30, n) / 10, rng.integers(1, 30, n) / 10
        worse = (mean[None] <= mean[:, None]) & (sd[None] >= sd[:, None])
        strict = worse & ((mean[None] < mean[:, None]) | (sd[None] > sd[:, None]))
        expected = {(a, b) for a, b, bad in zip(mean, sd, strict.any(axis=1), strict=True) if not bad}
        assert {(mean[i], sd[i]) for i in undominated(mean, sd)} == expected


def test_exploring_picks_from_the_whole_front_of_a_grid():
    space = Space({"a": Integer(0, 99)})
    x = np.array([[10.0], [60.0]])
    history = History.of(x, np.array([0.0, 1.0]))
    gp = condition(Stationary("matern52", np.array([0.1])), space.encode(x), history.values, 1e-6)
    picks = {float(exploring(space, gp, history, np.random.default_rng(s))[0]) for s in range(60)}
    left = np.delete(np.arange(100.0), [10, 60])[:, None]
    front = left[undominated(*gp.predict(space.encode(left))), 0]
    assert picks <= set(front)
    assert len(picks) > min(5, len(front) - 1)


def test_without_epsilon_the_least_mean_is_taken_and_not_twice():
    at, space = PROBLEMS["branin"], cube(2)
    x = np.random.default_rng(0).random((30, 2))
    history = History.of(x, at.function(x))
    method = Aegis(epsilon=0.0)
    posterior = method.surrogate(space, history, np.random.default_rng(0))
    least = greediest(space, posterior, history, np.random.default_rng(5))
    rows = method.propose(space, history, 4, np.random.default_rng(1))
    assert posterior.expectation(rows[:1])[0] == pytest.approx(posterior.expectation(least[None])[0], abs=0.05)
    gaps = np.abs(rows[:, None] - rows[None]).max(axis=2)[np.triu_indices(4, 1)]
    assert gaps.min() > 1e-3


def test_a_fresh_aegis_proposes_the_same():
    at, space = PROBLEMS["branin"], cube(2)
    x = np.random.default_rng(0).random((30, 2))
    history, used = History.of(x, at.function(x), x[:2] + 0.01, seed=4), Aegis()
    used.propose(space, History.of(x[:25], at.function(x[:25])), 1, np.random.default_rng(0))
    assert np.array_equal(*(m.propose(space, history, 3, np.random.default_rng(1)) for m in (used, Aegis())))


def test_aegis_on_workers_beats_random_and_batches_that_wait():
    ours = [searched(Aegis(), "branin", 8, 32, seed) for seed in range(3)]
    waiting = [searched(Thompson(), "branin", 8, 32, seed, synchronous=True) for seed in range(3)]
    chance = [searched(RandomSearch(), "branin", 8, 32, seed) for seed in range(3)]
    assert np.median([r for r, _ in ours]) < min(np.median([r for r, _ in waiting]), np.median([r for r, _ in chance]))
    assert max(run.idle.max() for _, run in ours) < 0.01
    assert min(run.idle.mean() for _, run in waiting) > 0.2


def test_topic_explains():
    found = TOPIC.explain(problem="branin", workers=4, seconds=60.0, evaluations=16, seeds=1)
    assert found.tables[0].rows[0]["method"] == "AEGiS"


@pytest.mark.slow
def test_row_83():
    """4, 8 and 16 workers, half-normal job times, 6 functions, 20 seeds; 1 worker against EI."""
    for workers in (4, 8, 16):
        ahead = 0
        for name in SIX:
            ours, waiting, chance = (
                [searched(m, name, workers, 60, seed, waits) for seed in range(20)]
                for m, waits in ((Aegis(), False), (Thompson(), True), (RandomSearch(), False))
            )
            assert max(run.idle.max() for _, run in ours) < 0.01
            others = min(np.median([r for r, _ in waiting]), np.median([r for r, _ in chance]))
            ahead += np.median([r for r, _ in ours]) < others
        assert ahead >= 4, workers
    for name in SIX:
        ours, ei = (
            np.array([searched(m, name, 1, 60, seed)[0] for seed in range(20)])
            for m in (Aegis(), Bayesian(RefittedGP()))
        )
        assert wilcoxon(ours, ei, alternative="greater").pvalue > 0.05 / len(SIX), name
