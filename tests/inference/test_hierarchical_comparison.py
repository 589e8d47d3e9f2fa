"""Row 69: hierarchical comparison of algorithms over problems, against known truths and a quadrature reference."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from nearpeak.errors import UnknownName, UsageError
from nearpeak.inference.comparison import compare_algorithms, interactions
from nearpeak.inference.comparison_topic import TOPIC
from nearpeak.inference.fallback import fallback_chain
from nearpeak.inference.hmc import explore
from nearpeak.inference.mixed import _alike, _Target, cells

SPEEDUP = 1.10
SEEDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


def timings(seed, workloads=200, runs=3, speedup=SPEEDUP, interaction=0.05, noise=0.1):
    """Times of an old and a new implementation on workloads from microseconds to seconds."""
    rng = np.random.default_rng(seed)
    work, algorithm = (a.ravel() for a in np.meshgrid(range(workloads), range(2), range(runs), indexing="ij")[:2])
    log = rng.normal(-8, 2, workloads)[work] - np.log(speedup) * algorithm
    log += interaction * rng.standard_normal((workloads, 2))[work, algorithm] + noise * rng.standard_normal(len(work))
    return work, np.array(["old", "new"])[algorithm], np.exp(log)


def t_width(algorithm, work, seconds):
    """Width of a 90 % t-interval on raw means, as a share of the mean."""
    means = [np.bincount(work[algorithm == a], seconds[algorithm == a]) / 3 for a in ("new", "old")]
    t = stats.ttest_ind(*means).confidence_interval(0.9)
    return (t.high - t.low) / means[1].mean()


class Many(_Target):
    """The target of many balanced data sets at once: each has some of the rows, and all share one walk's adaptation."""

    def __init__(self, many, chains):
        super().__init__(many[0])
        alike = [_alike(data) for data in many]
        mean, scatter = (np.repeat([getattr(a, n) for a in alike], chains, axis=0) for n in ("mean", "scatter"))
        self.alike = replace(alike[0], mean=mean, scatter=scatter)
        self.squares = np.repeat([data.squares.sum(axis=0) for data in many], chains, axis=0)


def intervals(seeds, speedup, interaction, chains=4, draws=300):
    """90 % intervals of the ratio and their width against a t-interval's, ``[seeds]`` each, from one walk."""
    sets = [timings(seed, speedup=speedup, interaction=interaction) for seed in seeds]
    many = [cells(work, (a == "new").astype(int), np.log(seconds), "gaussian") for work, a, seconds in sets]
    target = Many(many, chains)
    start = np.concatenate([_Target(data).start(chains, np.random.default_rng(i)) for i, data in enumerate(many)])
    found = explore(target, start, draws, 250, 0)
    contrast = np.array([-1.0, 1.0]) @ target.basis
    drawn = (found.draws[:, :, :2] @ contrast).reshape(len(many), -1)
    low, high = np.exp(np.quantile(drawn, [0.05, 0.95], axis=1))
    width = np.array([t_width(a, work, seconds) for work, a, seconds in sets])
    return low, high, (high - low) / width


def test_90_percent_intervals_cover_a_true_speedup_in_85_to_95_of_100_repeats():
    low, high, narrower = intervals(range(100), SPEEDUP, 0.05)
    assert 85 <= ((low <= 1 / SPEEDUP) & (high >= 1 / SPEEDUP)).sum() <= 95
    assert (narrower < 0.5).all()


def test_a_thing_against_itself_is_flagged_in_at_most_12_of_100_repeats():
    low, high, _ = intervals(range(500, 600), 1.0, 0.0)
    assert ((low > 1) | (high < 1)).sum() <= 12


def compared(seeds, speedup, interaction):
    """The same through the public function, one data set at a time."""
    for seed in seeds:
        work, algorithm, seconds = timings(seed, speedup=speedup, interaction=interaction)
        found = compare_algorithms(work, algorithm, seconds, "lognormal", seed=seed)
        (effect,) = found.effects()
        yield effect, (effect.high - effect.low) / t_width(algorithm, work, seconds)


def test_the_public_function_gives_the_intervals_of_the_vectorized_walk():
    low, high, narrower = intervals(range(2), SPEEDUP, 0.05)
    for i, (effect, share) in enumerate(compared(range(2), SPEEDUP, 0.05)):
        assert (effect.low, effect.high) == pytest.approx((low[i], high[i]), rel=2e-3)
        assert share == pytest.approx(narrower[i], rel=0.15)


@pytest.mark.slow
def test_the_public_function_covers_in_85_to_95_of_100_repeats_and_flags_itself_in_at_most_12():
    effects = [effect for effect, _ in compared(range(100), SPEEDUP, 0.05)]
    assert 85 <= sum(e.low <= 1 / SPEEDUP <= e.high for e in effects) <= 95
    assert sum(e.sure(1.0) for e, _ in compared(range(500, 600), 1.0, 0.0)) <= 12


@pytest.mark.parametrize("family", ["gaussian", "negative-binomial", "bernoulli"])
def test_the_gradient_is_that_of_the_density(family):
    rng = np.random.default_rng(0)
    problem, algorithm = (a.ravel() for a in np.meshgrid(range(9), range(3), range(2), indexing="ij")[:2])
    kept = rng.random(len(problem)) < 0.8  # cells with 2, 1 and no runs
    problem, algorithm = problem[kept], algorithm[kept]
    eta = rng.normal(size=9)[problem] + 0.3 * algorithm
    value = {
        "gaussian": eta + rng.normal(size=len(eta)),
        "negative-binomial": rng.poisson(np.exp(eta + 2) * rng.gamma(5, 0.2, len(eta))).astype(float),
        "bernoulli": (rng.random(len(eta)) < 1 / (1 + np.exp(-eta))).astype(float),
    }[family]
    target = _Target(cells(problem, algorithm, value, family))
    rows = target.start(2, rng)
    gradient = target(rows)[1]
    for k, unit in enumerate(1e-5 * np.eye(target.width)):
        slope = (target(rows + unit)[0] - target(rows - unit)[0]) / 2e-5
        assert gradient[:, k] == pytest.approx(slope, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("family", ["bernoulli", "negative-binomial"])
def test_the_walk_in_whitened_effects_is_the_posterior_of_the_plain_model(family):
    """The log density, seen as one of (alpha, deviations, u, v), is prior times likelihood: differences between points
    agree once the volume of the map from z is counted, which for given parameters is constant."""
    from nearpeak.inference.mixed import _effects, _shrink

    rng = np.random.default_rng(1)
    problem, algorithm = (a.ravel() for a in np.meshgrid(range(4), range(2), range(3), indexing="ij")[:2])
    value = rng.integers(0, 2 if family == "bernoulli" else 30, len(problem)).astype(float)
    data = cells(problem, algorithm, value, family)
    target = _Target(data)
    rows = target.start(6, rng)
    rows[:, : target.fixed] = rows[0, : target.fixed]  # same parameters, other effects
    alpha, between, within, extra, z = target.parts(rows)
    u, eta = _effects(_shrink(data.center, data.weight[None], alpha, between, within), alpha, within, z)
    if family == "bernoulli":
        likelihood = stats.bernoulli.logpmf(value, 1 / (1 + np.exp(-eta[:, problem, algorithm])))
    else:
        shape = np.exp(extra)
        likelihood = stats.nbinom.logpmf(value, shape, shape / (shape + np.exp(eta[:, problem, algorithm])))
    v = eta - alpha[:, None] - u[:, :, None]
    plain = likelihood.sum(axis=1) + stats.norm.logpdf(u, scale=np.sqrt(between)[:, None]).sum(axis=1)
    plain += stats.norm.logpdf(v, scale=np.sqrt(within)[:, None, None]).sum(axis=(1, 2))
    walked = target(rows)[0]
    assert np.ptp(plain) > 1
    assert plain - plain[0] == pytest.approx(walked - walked[0], abs=1e-8)


def test_gaussian_evidence_is_the_density_of_all_runs():
    """Against the covariance matrix of all runs written out, for two settings of the parameters."""
    rng = np.random.default_rng(2)
    problem = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 3])
    algorithm = np.array([0, 0, 1, 1, 0, 1, 0, 1, 1, 1])
    value = rng.normal(size=10)
    target = _Target(cells(problem, algorithm, value, "gaussian"))
    rows = target.start(2, rng)
    alpha, between, within, extra, _ = target.parts(rows)
    direct = []
    for c in range(2):
        covariance = np.diag(np.exp(extra[c])[algorithm]) + between[c] * (problem[:, None] == problem)
        covariance += within[c] * ((problem[:, None] == problem) & (algorithm[:, None] == algorithm))
        direct.append(stats.multivariate_normal.logpdf(value, alpha[c][algorithm], covariance))
    found = target(rows)[0]
    prior = []
    for c in range(2):
        a = rows[c, :2].copy()
        a[0] -= target.anchor
        deviations = stats.t(3).logpdf(np.exp(rows[c, 2:] / 2) / np.r_[target.data.spread, [target.data.fine] * 3])
        prior.append((-0.5 * (a / target.prior_scale) ** 2).sum() + deviations.sum() + rows[c, 2:].sum() / 2)
    assert found[1] - found[0] == pytest.approx(direct[1] - direct[0] + prior[1] - prior[0], abs=1e-4)


def counts(seed, ratio=0.8, problems=60, runs=3, shape=8):
    rng = np.random.default_rng(seed)
    problem, algorithm = (a.ravel() for a in np.meshgrid(range(problems), range(2), range(runs), indexing="ij")[:2])
    mean = np.exp(rng.normal(5, 1, problems)[problem] + np.log(ratio) * algorithm)
    return problem, np.array(["a", "b"])[algorithm], rng.poisson(mean * rng.gamma(shape, 1 / shape, len(mean)))


@pytest.mark.parametrize("seed", SEEDS)
def test_negative_binomial_calls_find_the_ratio_and_the_shape(seed):
    problem, algorithm, calls = counts(seed)
    found = compare_algorithms(problem, algorithm, calls, "negative-binomial", level=0.99, seed=seed)
    (effect,) = found.effects()
    totals = [np.bincount(problem[algorithm == a], calls[algorithm == a]) for a in "ab"]
    assert effect.effect == pytest.approx(np.exp(np.log(totals[1] / totals[0]).mean()), rel=0.03)  # equally many runs
    assert effect.low < 0.8 < effect.high
    assert effect.better > 0.95
    assert np.median(found.posterior.extra) == pytest.approx(8, rel=0.35)
    assert found.posterior.r_hat < 1.06
    assert found.posterior.divergences == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_success_odds_are_found_and_more_is_better(seed):
    rng = np.random.default_rng(seed)
    problem, algorithm = (a.ravel() for a in np.meshgrid(range(50), range(2), range(4), indexing="ij")[:2])
    odds = rng.normal(0, 1.5, 50)[problem] + np.log(3) * algorithm
    success = rng.random(len(odds)) < 1 / (1 + np.exp(-odds))
    found = compare_algorithms(problem, algorithm, success, "bernoulli", level=0.99, seed=seed)
    (effect,) = found.effects()
    assert effect.low < 3 < effect.high
    assert effect.better > 0.99
    assert effect.best > 0.99
    assert found.posterior.r_hat < 1.06


@pytest.mark.slow
def test_an_algorithm_that_always_succeeds_and_one_that_never_does_are_told_apart():
    problem = np.repeat(np.arange(10), 4)
    algorithm = np.tile(["no", "no", "yes", "yes"], 10)
    (effect,) = compare_algorithms(problem, algorithm, algorithm == "yes", "bernoulli").effects()
    assert effect.low > 20


def scores(seed, algorithms=4, problems=8, runs=15):
    """Scores where algorithm 2 is better by 0.5, but on problem 0 worse by 3; one algorithm is noisy."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(range(problems), range(algorithms), range(runs), indexing="ij")
    problem, algorithm = (g.ravel() for g in grid[:2])
    value = rng.normal(0, 2, problems)[problem] - 0.5 * (algorithm == 2)
    value += 3.5 * ((algorithm == 2) & (problem == 0)) + np.where(algorithm == 3, 1.0, 0.2) * rng.normal(
        size=len(problem)
    )
    return problem, np.array(["a", "b", "c", "d"])[algorithm], value


def test_an_exception_is_found_and_the_chain_follows_it():
    found = compare_algorithms(*scores(0))
    odd = found.exceptions()
    assert odd[0][:2] == ("0", "c")
    assert odd[0][2].low > 2
    middle, low, high, better = found.by_problem("c")
    assert middle[1:] == pytest.approx(-0.5 * np.ones(7), abs=0.25)
    assert (low < middle).all()
    assert (middle < high).all()
    assert better[0] < 0.01 < 0.99 < better[1]
    chain = fallback_chain(found)
    assert chain.order[0, -1] == 2  # on problem 0 the last that one would try
    assert (chain.order[1:, 0] == 2).all()


def test_the_interaction_widens_what_is_said_of_a_typical_problem():
    """Eight problems of which one contradicts the others are less than one where all agree, however many the runs."""
    problem, algorithm, value = scores(1)
    agreeing = value - 3.5 * ((algorithm == "c") & (problem == 0))
    widths = []
    for v in (value, agreeing):
        effect = next(e for e in compare_algorithms(problem, algorithm, v).effects() if e.name == "c")
        widths.append(effect.high - effect.low)
    assert widths[0] > 3 * widths[1]


def test_probabilities_of_being_best_sum_to_one_and_name_the_best():
    problem, algorithm, value = scores(2)
    found = compare_algorithms(problem, algorithm, value - 1.0 * (algorithm == "b"), baseline="d")
    assert found.best.sum() == pytest.approx(1)
    rows = found.table().rows
    assert rows[0]["algorithm"] == "b"
    assert sum(row["best_probability"] for row in rows) == pytest.approx(1)
    assert {row["algorithm"] for row in rows} == {"a", "b", "c", "d"}
    assert next(row for row in rows if row["algorithm"] == "d")["difference"] == 0


def test_an_algorithm_that_always_ends_at_the_same_value_does_no_harm():
    problem, algorithm, value = scores(3)
    value = np.where(algorithm == "a", -9.0, value)
    found = compare_algorithms(problem, algorithm, value)
    assert found.best[found.algorithms.index("a")] > 0.99
    assert found.posterior.r_hat < 1.06


@pytest.mark.slow
def test_shuffled_and_unequal_runs_say_the_same_as_far_as_they_can():
    problem, algorithm, value = scores(4)
    kept = np.random.default_rng(0).permutation(len(value))[:300]
    whole = {e.name: e for e in compare_algorithms(problem, algorithm, value, baseline="a").effects()}
    part = {e.name: e for e in compare_algorithms(problem[kept], algorithm[kept], value[kept], baseline="a").effects()}
    for name, effect in part.items():
        assert whole[name].effect == pytest.approx(effect.effect, abs=0.3)


def test_one_seed_one_answer():
    few = scores(5, algorithms=2, problems=3, runs=2)
    first, again = (compare_algorithms(*few, seed=9).posterior.alpha for _ in range(2))
    assert (first == again).all()


def test_factors_and_their_interaction():
    """Removal costs 40 % more under cg and nothing under lbfgs: a ratio of ratios of 1 / 1.4."""
    rng = np.random.default_rng(0)
    grid = np.meshgrid(range(60), range(2), range(2), range(2), indexing="ij")
    problem, rotation, removal = (g.ravel() for g in grid[:3])
    log = (
        rng.normal(3, 1, 60)[problem] + 0.1 * rng.normal(size=len(problem)) + np.log(1.4) * (removal * (rotation == 0))
    )
    label = [f"{('cg', 'lbfgs')[a]} / {('keep', 'remove')[b]}" for a, b in zip(rotation, removal, strict=True)]
    found = compare_algorithms(problem, label, np.exp(log), "lognormal")
    first, second = zip(*(a.split(" / ") for a in found.algorithms), strict=True)
    effects = {e.name: e for e in interactions(found, first, second)}
    assert effects["lbfgs x remove"].effect == pytest.approx(1 / 1.4, rel=0.06)
    assert effects["remove against keep"].effect == pytest.approx(np.sqrt(1.4), rel=0.04)
    assert effects["lbfgs x remove"].sure(1.0)


def failing(seed, problems=30):
    """A fast algorithm that fails on odd problems, and a slow one that never does."""
    rng = np.random.default_rng(seed)
    problem, algorithm = (a.ravel() for a in np.meshgrid(range(problems), range(2), range(6), indexing="ij")[:2])
    seconds = np.exp(rng.normal(0, 1, problems)[problem] + np.log(3) * algorithm + 0.1 * rng.normal(size=len(problem)))
    success = (algorithm == 1) | (problem % 2 == 0) | (rng.random(len(problem)) < 0.15)
    return problem, np.array(["fast", "slow"])[algorithm], seconds, success


@pytest.mark.slow
def test_a_chain_starts_with_what_succeeds_for_the_least():
    problem, algorithm, seconds, success = failing(0, 16)
    cost = compare_algorithms(problem, algorithm, seconds, "lognormal")
    chain = fallback_chain(cost, compare_algorithms(problem, algorithm, success, "bernoulli"))
    first = np.array([cost.algorithms[j] for j in chain.order[:, 0]])
    hard = np.array([int(p) % 2 for p in cost.problems])
    assert (first[hard == 0] == "fast").all()
    assert (first[hard == 1] == "slow").mean() > 0.8
    assert (chain.success > 0.9).all()
    # The other order costs more on the hard problems: fast first fails most of the time.
    alone = np.exp(cost.posterior.eta).mean(axis=0)
    assert (chain.cost <= alone.sum(axis=1)).all()


def test_the_topic_reads_a_file_and_says_who_wins(tmp_path):
    problem, algorithm, seconds, success = failing(1, 10)
    path = tmp_path / "runs.csv"
    with path.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["problem", "algorithm", "seed", "value", "success"])
        writer.writerows(
            (p, a, i % 6, s if ok else "", int(ok))
            for i, (p, a, s, ok) in enumerate(zip(problem, algorithm, seconds, success, strict=True))
        )
    said = TOPIC.explain(str(path), "value", "lognormal", None, (), 0.9, 0)
    assert said.figures["problems"] == 10
    assert any(line.startswith("fast wins: against slow") for line in said.says)
    assert any("slow wins: against fast, the next, odds of success" in line for line in said.says)
    assert [t.title for t in said.tables][-1] == "Which to try on each problem, in order"
    with pytest.raises(UsageError, match="no column seconds"):
        TOPIC.explain(str(path), "seconds", "lognormal", None, (), 0.9, 0)
    with pytest.raises(UsageError, match="there is no file"):
        TOPIC.explain(str(tmp_path / "none.csv"), "value", "lognormal", None, (), 0.9, 0)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"value": [1.0, np.nan, 1, 1]}, UsageError, "value nan of row 1"),
        ({"value": [1.0, -1, 1, 1], "family": "lognormal"}, UsageError, "finite and above 0"),
        ({"value": [1.0, 1.5, 1, 1], "family": "negative-binomial"}, UsageError, "counts 0, 1, 2"),
        ({"value": [1.0, 2, 1, 1], "family": "bernoulli"}, UsageError, "0 or 1"),
        ({"value": [1.0, 1, 1, 1]}, UsageError, "the same value"),
        ({"value": [1.0, 1, 1]}, UsageError, "equally long"),
        ({"algorithm": ["a"] * 4}, UsageError, "2 algorithms and 2 problems"),
        ({"problem": ["p"] * 4}, UsageError, "2 algorithms and 2 problems"),
        ({"family": "poisson"}, UnknownName, "unknown family"),
        ({"baseline": "z"}, UnknownName, "unknown baseline"),
        ({"level": 90}, UsageError, "level must be between 0 and 1"),
    ],
)
def test_what_cannot_be_compared_is_named(change, error, match):
    given = {"problem": list("ppqq"), "algorithm": list("abab"), "value": [1.0, 2.0, 3.0, 4.0], **change}
    with pytest.raises(error, match=match):
        compare_algorithms(**given)
