from dataclasses import dataclass
from time import process_time

import numpy as np
import pytest
from scipy.stats import qmc

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search.acquisitions.analytic import confidence_bound
from nearpeak.search.bayesian import Bayesian
from nearpeak.search.history import History
from nearpeak.search.problems import PROBLEMS
from nearpeak.search.space import Integer, Space
from nearpeak.search.strategies.few_switches import TOPIC, FewSwitches, Repeats, allowance, mini_gp, unique_gp
from nearpeak.search.strategies.gp_bandit import TableProblem, gp_ucb
from nearpeak.search.study import cube
from nearpeak.search.surrogates.gp import GP, condition
from nearpeak.search.surrogates.kernels import Stationary

KERNEL = Stationary("matern52", np.array([0.3, 0.5, 0.4]), 1.3)
NOISE = 0.1


def repeated(n, unique, seed=0):
    rng = np.random.default_rng(seed)
    points = rng.random((unique, 3))
    x = points[rng.integers(0, unique, n)]
    return x, np.sin(5 * x).sum(axis=1) + 0.3 * rng.standard_normal(n)


def full_posterior(x, y, at):
    """The textbook's formulas on all evaluations, without jitter: mean, deviation, log evidence."""
    centre, spread = y.mean(), y.std()
    covariance = KERNEL(x, x) + NOISE * np.eye(len(x))
    cross, targets = KERNEL(x, at), (y - centre) / spread
    mean = cross.T @ np.linalg.solve(covariance, targets)
    variance = KERNEL.diagonal(at) - (cross * np.linalg.solve(covariance, cross)).sum(axis=0)
    _, logdet = np.linalg.slogdet(covariance)
    evidence = -0.5 * (targets @ np.linalg.solve(covariance, targets) + logdet + len(y) * np.log(2 * np.pi))
    return centre + spread * mean, spread * np.sqrt(variance), evidence


def test_the_posterior_of_unique_points_is_the_full_one():
    x, y = repeated(600, 40)
    at = np.random.default_rng(1).random((50, 3))
    gp = unique_gp(KERNEL, x, y, NOISE)
    mean, sd, evidence = full_posterior(x, y, at)
    assert len(gp.x) == 40
    assert gp.predict(at)[0] == pytest.approx(mean, abs=1e-8)
    assert gp.predict(at)[1] == pytest.approx(sd, abs=1e-8)
    assert gp.evidence == pytest.approx(evidence, abs=1e-6)


def speedup(n, unique, times):
    x, y = repeated(n, unique)
    ratios = []
    for _ in range(times):
        started = process_time()
        condition(KERNEL, x, y, NOISE)
        between = process_time()
        unique_gp(KERNEL, x, y, NOISE)
        ratios.append((between - started) / max(process_time() - between, 1e-9))
    return np.median(ratios)


def test_unique_points_save_time():
    assert speedup(1000, 50, 3) > 10


@pytest.mark.slow
def test_row_46_posterior():
    """2,000 evaluations on 100 unique points: to 1e-8, and at least 50 times as fast."""
    x, y = repeated(2000, 100)
    at = np.random.default_rng(1).random((200, 3))
    gp = unique_gp(KERNEL, x, y, NOISE)
    mean, sd, _ = full_posterior(x, y, at)
    assert np.abs(gp.predict(at)[0] - mean).max() < 1e-8
    assert np.abs(gp.predict(at)[1] - sd).max() < 1e-8
    assert speedup(2000, 100, 5) >= 50


def test_repeats_know_their_noise():
    x, y = repeated(3000, 30)
    repeats = Repeats.of(x, y)
    assert repeats.counts.sum() == 3000
    assert repeats.noise == pytest.approx(0.09, rel=0.1)
    assert np.array_equal(repeats.x[0], x[0])
    assert Repeats.of(x[:5] + np.arange(5)[:, None], y[:5]).noise is None


def test_no_variance_falls_by_more_than_the_stretch_while_it_stays():
    """The paper's Lemma: within an allowance, variances anywhere fall by C^2 at most."""
    rng = np.random.default_rng(0)
    at, seen = rng.random((200, 3)), rng.random((3, 3))
    counts = np.ones(3, dtype=int)
    stays = []
    for _ in range(25):
        x = np.repeat(seen, counts, axis=0)
        before = condition(KERNEL, x, np.arange(len(x), dtype=float), NOISE)
        chosen = at[rng.integers(len(at))]
        sd = before.predict(chosen[None])[1][0] / before.spread
        stays.append(allowance(sd**2, NOISE, 2.0))
        later = np.vstack([x, np.repeat(chosen[None], stays[-1], axis=0)])
        after = condition(KERNEL, later, np.arange(len(later), dtype=float), NOISE)
        if stays[-1] > 1:
            ratio = (before.predict(at)[1] / before.spread) ** 2 / (after.predict(at)[1] / after.spread) ** 2
            assert ratio.max() <= 4.0 + 1e-6
        seen, counts = np.vstack([seen, chosen]), np.append(counts, stays[-1])
    assert stays[0] == 1
    assert max(stays) > 1


def test_on_a_table_regret_keeps_up_with_fewer_unique_candidates():
    candidates = qmc.Sobol(3, seed=0).random(512)
    ours, theirs = [], []
    for seed in range(4):
        table = TableProblem.of(PROBLEMS["hartmann-3"].function, candidates, 0.2, seed)
        given = table.pilot.kernel, candidates
        theirs.append(gp_ucb(*given, table.evaluator(seed), 400, table.noise))
        ours.append(mini_gp(*given, table.evaluator(seed), 400, table.noise))
        assert ours[-1].batches.sum() == 400
    a, b = (np.mean([run.regret(table.truth)[-1] for run in runs]) for runs in (ours, theirs))
    assert a < 1.5 * b
    assert np.mean([r.switches for r in ours]) < 0.6 * np.mean([r.switches for r in theirs])


def test_switches_are_charged():
    candidates = qmc.Sobol(2, seed=0).random(128)
    table = TableProblem.of(PROBLEMS["branin"].function, candidates, 0.3, 0)
    run = mini_gp(table.pilot.kernel, candidates, table.evaluator(0), 200, table.noise, acquisition="ei")
    assert run.charged(2.0, 30.0) == 400.0 + 30.0 * run.switches
    assert run.switches < len(run.batches)


@dataclass(frozen=True)
class Known:
    """A surrogate with given hyperparameters, in units of the values that the pilot standardised."""

    pilot: GP
    variance: float

    def with_noise(self, space, history):
        x, y = history.points, history.values
        scale = (self.pilot.spread / y.std()) ** 2
        kernel = Stationary("matern52", self.pilot.kernel.lengthscales, self.pilot.kernel.scale * scale)
        return unique_gp(kernel, x, y, self.variance / y.var()), self.variance

    def __call__(self, space, history, rng):
        return self.with_noise(space, history)[0]


def continuous(stay, rounds, seed, stretch=1.5):
    """Regret and switches on noisy Hartmann-3 on the continuous cube with a known kernel."""
    at, space = PROBLEMS["hartmann-3"], cube(3)
    table = TableProblem.of(at.function, qmc.Sobol(3, seed=seed).random(512), 0.2, seed)
    surrogate = Known(table.pilot, table.deviation**2)
    method = FewSwitches("ucb", stretch, surrogate) if stay else Bayesian(surrogate, confidence_bound)
    history, rng = History.empty(3, seed=seed), np.random.default_rng([seed, 9])
    for t in range(rounds):
        row = method.propose(space, history, 1, np.random.default_rng([seed, t]))
        history = history.told(row[0], float(at.function(row)[0] + table.deviation * rng.standard_normal()), 0.0)
    regret = float((at.function(history.points) - at.optimum).sum())
    return regret, int((history.points[1:] != history.points[:-1]).any(axis=1).sum())


@pytest.mark.slow
def test_row_46_regret():
    """On a noisy 3-D function: regret within 10 % of GP-UCB's, with at most 10 % of its switches."""
    ours, theirs = ([continuous(stay, 600, seed) for seed in range(5)] for stay in (True, False))
    assert np.mean([r for r, _ in ours]) <= 1.1 * np.mean([r for r, _ in theirs])
    assert np.mean([s for _, s in ours]) <= 0.1 * np.mean([s for _, s in theirs])


def test_in_the_loop_it_stays_for_its_allowance():
    regret, switches = continuous(True, 80, 0)
    assert switches < 60
    assert np.isfinite(regret)


def test_a_fresh_method_proposes_the_same_and_a_grid_may_be_seen_again():
    space = Space({"a": Integer(0, 7)})
    rng = np.random.default_rng(0)
    points = np.repeat(space.grid.points, 6, axis=0)
    values = (points[:, 0] - 3) ** 2 + rng.standard_normal(len(points))
    history, used = History.of(points, values, seed=1), FewSwitches()
    used.propose(space, History.of(points[:30], values[:30]), 1, np.random.default_rng(0))
    rows = [m.propose(space, history, 5, np.random.default_rng(2)) for m in (used, FewSwitches(), FewSwitches("ei"))]
    assert np.array_equal(rows[0], rows[1])
    assert rows[0].shape == (5, 1)


def test_bad_options_are_refused():
    with pytest.raises(UsageError, match="stretch"):
        FewSwitches(stretch=1.0)
    with pytest.raises(UnknownName):
        FewSwitches("pi")
    with pytest.raises(UsageError, match="noise"):
        mini_gp(KERNEL, np.zeros((3, 3)), lambda i: np.zeros(len(i)), 5, 0.0)


def test_topic_explains():
    found = TOPIC.explain(
        problem="branin", evaluations=60, noise=0.3, stretch=2.0, evaluation=1.0, switch=30.0, seeds=1
    )
    switches = {row["method"]: row["switches"] for row in found.tables[0].rows}
    assert switches["mini-gp-ucb"] <= switches["gp-ucb"]
