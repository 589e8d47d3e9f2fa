"""Few candidates, each evaluated many times: an exact GP at the cost of its unique points, and few switches.

Evaluations of one point with noise variance ``lambda`` say as much as their mean with variance ``lambda / n``. So the
posterior given ``n`` evaluations of ``u`` unique points is, exactly, that of the u means: it costs ``u^3``, not
``n^3``.

mini-GP-UCB and mini-GP-EI choose a candidate as GP-UCB and GP-EI do, then stay on it for

    B = max(1, floor((C^2 - 1) lambda / sigma^2(x)))

evaluations. Meanwhile no posterior variance falls by more than the factor ``C^2``, so the acquisition function that
chose x is still about right; and where the variance is already small it may stay for long. Switches, each of which
may cost as a new compilation or a new sample in the oven does, then grow with the information that there is to gain,
not with evaluations.

Calandriello, Carratino, Lazaric, Valko, Rosasco: Scaling Gaussian Process Optimization by Evaluating a Few Unique
Candidates Multiple Times, ICML 2022 (arXiv 2201.12909).
"""

from dataclasses import dataclass, field
from time import process_time
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve
from scipy.linalg.lapack import dpotrf
from scipy.stats import qmc

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search.acquisitions.analytic import Acquisition, confidence_bound, log_expected_improvement
from nearpeak.search.bayesian import opening
from nearpeak.search.candidates import maximize
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.strategies.asynchronous import UNCONSTRAINED, problem_named
from nearpeak.search.strategies.gp_bandit import BanditRun, Evaluate, TableProblem, check, gp_ucb
from nearpeak.search.surrogates.gp import GP, cholesky, fit, standardised
from nearpeak.search.surrogates.kernels import Kernel
from nearpeak.topic import Explanation, Option, Table, Topic, require_positive

ACQUISITIONS: Final[dict[str, Acquisition]] = {"ucb": confidence_bound, "ei": log_expected_improvement}
_ENOUGH_REPEATS: Final = 10
"""Repeats from which the noise is taken from them, and not from the likelihood."""


@dataclass(frozen=True)
class Repeats:
    """Evaluations gathered by point.

    Attributes:
        x: unique features in the order in which they came first, ``[u, f]``. means: of their values, ``[u]``.
        counts: evaluations of each, ``[u]``. within: sum of squared deviations from the means.
    """

    x: Floats
    means: Floats
    counts: NDArray[np.intp]
    within: float

    @classmethod
    def of(cls, x: Floats, y: Floats) -> "Repeats":
        """Of features ``[n, f]`` and values ``[n]``."""
        _, first, inverse, counts = np.unique(x, axis=0, return_index=True, return_inverse=True, return_counts=True)
        order = np.argsort(first)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        group = place[inverse.reshape(-1)]
        means = np.bincount(group, y) / counts[order]
        return cls(x[first[order]], means, counts[order], float(((y - means[group]) ** 2).sum()))

    @property
    def noise(self) -> float | None:
        """Variance of an evaluation from the repeats; None where they are too few."""
        repeats = int(self.counts.sum()) - len(self.counts)
        return self.within / repeats if repeats >= _ENOUGH_REPEATS and self.within > 0 else None


def unique_gp(kernel: Kernel, x: Floats, y: Floats, noise: float) -> GP:
    """``gp.condition(kernel, x, y, noise)`` by way of the unique points: the same posterior for ``u^3`` operations.

    Args:
        kernel: of the standardised function. x: features, ``[n, f]``. y: values, ``[n]``. noise: variance of an
            evaluation, standardised.
    """
    _, centre, spread = standardised(y)
    return repeats_gp(kernel, Repeats.of(x, y), noise, centre, spread)


def repeats_gp(kernel: Kernel, repeats: Repeats, noise: float, centre: float, spread: float) -> GP:
    """The posterior given repeated evaluations; ``noise`` of one of them, standardised by ``centre`` and ``spread``."""
    noises = noise / repeats.counts
    covariance = kernel(repeats.x, repeats.x) + np.diag(noises)
    factor, failed = dpotrf(covariance, lower=1, clean=1)
    # Jitter would make it another model, so there is none where the matrix has a factor without.
    factor = cholesky(covariance) if failed else factor
    means = (repeats.means - centre) / spread
    weights = cho_solve((factor, True), means, check_finite=False)
    counts = repeats.counts
    evidence = (
        -0.5 * means @ weights
        - np.log(np.diag(factor)).sum()
        - 0.5 * counts.sum() * np.log(2 * np.pi)
        - 0.5 * ((counts - 1) * np.log(noise) + np.log(counts)).sum()
        - 0.5 * repeats.within / spread**2 / noise
    )
    return GP(kernel, repeats.x, factor, weights, centre, spread, noises, None, float(evidence))


def allowance(variance: float, noise: float, stretch: float) -> int:
    """Evaluations of a candidate before another may be chosen; ``stretch`` is C."""
    return max(1, int((stretch**2 - 1) * noise / variance))


@dataclass(frozen=True)
class RepeatsGP:
    """An exact ARD Matern-5/2 GP on unique points; the noise comes from the repeats once there are enough."""

    _learnt: dict[bytes, tuple[GP, float]] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, space: Space, history: History, rng: np.random.Generator) -> GP:
        """The surrogate given every evaluation that succeeded."""
        return self.with_noise(space, history)[0]

    def with_noise(self, space: Space, history: History) -> tuple[GP, float]:
        """The surrogate, and the variance of one evaluation."""
        good = history.succeeded
        x, y = space.encode(history.points[good]), history.values[good]
        key = x.tobytes() + y.tobytes()
        if key not in self._learnt:
            repeats = Repeats.of(x, y)
            _, centre, spread = standardised(repeats.means)
            known = repeats.noise
            noises = None if known is None else known / repeats.counts
            learnt = fit(repeats.x, repeats.means, groups=space.groups, noise=noises)
            noise = float(np.mean(learnt.noise)) * spread**2 if known is None else known
            noise = max(noise, 1e-6 * spread**2)
            found = repeats_gp(learnt.kernel, repeats, noise / spread**2, centre, spread)
            self._learnt.clear()
            self._learnt[key] = found, noise
        return self._learnt[key]


@dataclass(frozen=True)
class FewSwitches:
    """mini-GP-UCB and mini-GP-EI as a method of the loop.

    Attributes:
        acquisition: ``ucb`` or ``ei``. stretch: C, above 1: how far variances may fall before the next choice.
        initial: evaluations before the first surrogate.

    Raises:
        UnknownName: no such acquisition. UsageError: ``stretch`` is not above 1.
    """

    repeats: ClassVar[bool] = True
    """It asks for configurations that it knows."""

    acquisition: str = "ucb"
    stretch: float = 2.0
    surrogate: RepeatsGP = field(default_factory=RepeatsGP)
    initial: int | None = None

    def __post_init__(self) -> None:
        if self.acquisition not in ACQUISITIONS:
            raise UnknownName("acquisition", self.acquisition, ACQUISITIONS)
        _check_stretch(self.stretch)

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``: the last one again, as long as its allowance lasts."""
        first = opening(space, history, count, rng, self.initial)
        if first is not None:
            return first
        for _ in range(count):
            begun = np.vstack([history.points, history.pending])
            stayed = _trailing(begun)
            before = _first(history, max(len(history) - stayed, 0))
            if before.succeeded.sum() >= 2 and _last_succeeded(history):
                posterior, noise = self.surrogate.with_noise(space, before)
                sd = float(posterior.predict(space.encode(begun[-1:]))[1][0])
                if stayed < allowance(sd**2, noise, self.stretch):
                    history = history.waiting_for(begun[-1:])
                    continue
            history = history.waiting_for(self._switched(space, history, rng)[None])
        return history.pending[-count:]

    def _switched(self, space: Space, history: History, rng: np.random.Generator) -> Floats:
        posterior, _ = self.surrogate.with_noise(space, history)
        best = float(posterior.expectation(posterior.x).min())
        # An evaluation is noisy, so a configuration that was seen may be worth another one.
        again = history if space.grid is None else History.empty(space.width)
        return maximize(space, lambda x: ACQUISITIONS[self.acquisition](posterior, x, best), again, rng)


def _trailing(rows: Floats) -> int:
    """How many rows at the end equal the last."""
    same = ((rows == rows[-1]) | (np.isnan(rows) & np.isnan(rows[-1]))).all(axis=1)
    return len(rows) if same.all() else int(np.argmin(same[::-1]))


def _first(history: History, count: int) -> History:
    return History.of(history.points[:count], history.values[:count], seed=history.seed)


def _last_succeeded(history: History) -> bool:
    return bool(len(history.pending) or history.succeeded[-1])


def _check_stretch(stretch: float) -> None:
    if not stretch > 1:
        raise UsageError(f"stretch (C) must be above 1, not {stretch:g}: variances may fall by C^2 between switches")


def mini_gp(
    kernel: Kernel,
    candidates: Floats,
    evaluate: Evaluate,
    rounds: int,
    noise: float,
    beta: float = 3.0,
    acquisition: str = "ucb",
    stretch: float = 2.0,
) -> BanditRun:
    """mini-GP-UCB or mini-GP-EI over a table of candidates ``[m, f]``; arguments as ``gp_bandit.gp_ucb``'s.

    Raises:
        UsageError: fewer than one round, a noise that is not positive, or a ``stretch`` of 1 or less.
        UnknownName: no such acquisition.
    """
    check(rounds, noise)
    _check_stretch(stretch)
    if acquisition not in ACQUISITIONS:
        raise UnknownName("acquisition", acquisition, ACQUISITIONS)
    sums, counts = np.zeros(len(candidates)), np.zeros(len(candidates), dtype=np.intp)
    chosen, values, seconds = np.empty(rounds, dtype=np.intp), np.empty(rounds), np.empty(rounds)
    done, batches, started = 0, [], process_time()
    i, variance = 0, float(kernel.diagonal(candidates[:1])[0])
    while done < rounds:
        end = min(done + allowance(variance, noise, stretch), rounds)
        chosen[done:end], seconds[done:end] = i, process_time() - started
        values[done:end] = evaluate(chosen[done:end])
        sums[i] += values[done:end].sum()
        counts[i] += end - done
        batches.append(end - done)
        done = end
        seen = np.flatnonzero(counts)
        posterior = repeats_gp(
            kernel, Repeats(candidates[seen], sums[seen] / counts[seen], counts[seen], 0.0), noise, 0.0, 1.0
        )
        best = float(posterior.expectation(posterior.x).min())
        if acquisition == "ucb":
            score = confidence_bound(posterior, candidates, best, beta**2)
        else:
            score = log_expected_improvement(posterior, candidates, best)
        i = int(np.argmax(score))
        variance = float(posterior.predict(candidates[i : i + 1])[1][0] ** 2)
    return BanditRun(chosen, values, seconds, np.array(batches))


def _explain(
    problem: str, evaluations: int, noise: float, stretch: float, evaluation: float, switch: float, seeds: int
) -> Explanation:
    at = problem_named(problem)
    require_positive(evaluations=evaluations, noise=noise, evaluation=evaluation, seeds=seeds)
    rows: list[dict[str, float | str]] = []
    candidates = qmc.Sobol(at.dimension, seed=0).random(2048)
    tables = [TableProblem.of(at.function, candidates, noise, seed) for seed in range(seeds)]
    for name in ("gp-ucb", "mini-gp-ucb", "mini-gp-ei"):
        runs = []
        for seed, table in enumerate(tables):
            given = table.pilot.kernel, candidates, table.evaluator(seed), evaluations, table.noise
            kind = name.rpartition("-")[2]
            runs.append(gp_ucb(*given) if name == "gp-ucb" else mini_gp(*given, acquisition=kind, stretch=stretch))
        rows.append(
            {
                "method": name,
                "regret": float(np.mean([r.regret(t.truth)[-1] for r, t in zip(runs, tables, strict=True)])),
                "switches": float(np.mean([r.switches for r in runs])),
                "unique_candidates": float(np.mean([len(np.unique(r.chosen)) for r in runs])),
                "total_time": float(np.mean([r.charged(evaluation, switch) for r in runs])),
                "choosing_time": float(np.mean([r.seconds[-1] for r in runs])),
            }
        )
    saved = float(rows[0]["total_time"]) / float(rows[1]["total_time"])
    return Explanation(
        {"evaluations": evaluations},
        (Table(f"{evaluations} noisy evaluations of {problem}, mean over {seeds} seeds", tuple(rows)),),
        (f"With {switch:g} s a switch and {evaluation:g} s an evaluation, staying is {saved:.3g} times as fast.",),
    )


TOPIC = Topic(
    "few-switches",
    "What does it cost to stay on few candidates, where a new one is dear and evaluations are noisy?",
    "Calandriello et al., Scaling Gaussian Process Optimization by Evaluating a Few Unique Candidates Multiple Times, "
    "ICML 2022 (arXiv 2201.12909)",
    (
        Option("problem", str, f"A test function: {', '.join(UNCONSTRAINED)}."),
        Option("evaluations", int, "Evaluations in all.", 500),
        Option("noise", float, "Standard deviation of the noise, as a share of the function's.", 0.5),
        Option("stretch", float, "C: posterior variances may fall by C^2 before the next switch is allowed.", 2.0),
        Option("evaluation", float, "Seconds of an evaluation.", 1.0),
        Option("switch", float, "Seconds that another candidate costs before it can be evaluated.", 30.0),
        Option("seeds", int, "Runs of each method.", 3),
    ),
    _explain,
    "--problem branin --evaluations 300 --seeds 2",
)
