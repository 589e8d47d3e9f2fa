"""A GP on few inducing points, and BBKB: GP optimization in near-linear time, with batches that grow.

The Nystrom approximation embeds features by the kernel with m inducing points S, ``z(x) = K_SS^(-1/2) k(S, x)``. With
``A = Z' Z + lambda I`` over the evaluations seen,

    mean(x) = z' A^-1 Z' y,    sigma^2(x) = k(x, x) - z' z + lambda z' A^-1 z

(the deterministic training conditional: far from S the variance is the prior's). It costs ``n m^2``.

BBKB (Batch Budgeted Kernel Bandits) chooses where ``mean - beta sigma`` is least. As in GP-BUCB, variances are updated
within a batch and means at its end. The batch ends when

    1 + sum_s sigma^2(x_s) / lambda > C

over its points, with variances of its beginning: until then no variance has fallen by more than the factor C, so
nothing in the sketch is out of date. Only then is S drawn again: each evaluated point with probability
``min(1, q n sigma^2(x) / lambda)``, its ridge leverage score over its n evaluations. Variances fall, so batches grow,
and expensive steps are as rare as the information gain is large.

Calandriello, Carratino, Lazaric, Valko, Rosasco: Near-linear Time Gaussian Process Optimization with Adaptive Batching
and Resparsification, ICML 2020 (arXiv 2002.09954).
"""

from dataclasses import dataclass, field
from time import process_time
from typing import Final

import numpy as np
from scipy.linalg import cho_factor, cho_solve, eigh
from scipy.stats import qmc

from nearpeak.errors import UsageError
from nearpeak.search.bayesian import opening
from nearpeak.search.candidates import WHOLE_GRID
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.strategies.asynchronous import UNCONSTRAINED, problem_named
from nearpeak.search.strategies.gp_bandit import BanditRun, Evaluate, Indices, TableProblem, check, gp_ucb
from nearpeak.search.surrogates.gp import GP, cholesky
from nearpeak.search.surrogates.kernels import Kernel
from nearpeak.search.surrogates.refitted import RefittedGP
from nearpeak.topic import Explanation, Option, Table, Topic, require_positive

_FLOOR: Final = 1e-10
_POOL: Final = 2_048
_NEAR: Final = 512


@dataclass(frozen=True)
class NystromGP:
    """A posterior on inducing points.

    Attributes:
        kernel: of the standardised function. inducing: features, ``[m, f]``. root: ``K_SS^(-1/2)``, ``[m, r]``.
        inverse: ``A^-1``, ``[r, r]``. weights: ``A^-1 Z' y``, ``[r]``. noise: lambda. centre, spread: what
            standardised the values.
    """

    kernel: Kernel
    inducing: Floats = field(repr=False)
    root: Floats = field(repr=False)
    inverse: Floats = field(repr=False)
    weights: Floats = field(repr=False)
    noise: float
    centre: float = 0.0
    spread: float = 1.0

    def embed(self, x: Floats) -> Floats:
        """``z`` at features ``[n, f]``, ``[n, r]``."""
        return np.asarray(self.kernel(x, self.inducing) @ self.root)

    def variance(self, x: Floats, embedded: Floats | None = None) -> Floats:
        """Posterior variance of the standardised function, ``[n]``."""
        z = self.embed(x) if embedded is None else embedded
        inside = np.einsum("nr,nr->n", z @ self.inverse, z)
        missing = np.maximum(self.kernel.diagonal(x) - (z * z).sum(axis=1), 0.0)
        return np.asarray(np.maximum(missing + self.noise * inside, 1e-12))

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation at features ``[n, f]``."""
        z = self.embed(x)
        return self.centre + self.spread * (z @ self.weights), self.spread * np.sqrt(self.variance(x, z))

    def sample(self, x: Floats, count: int, rng: np.random.Generator) -> Floats:
        """Joint draws at features ``[n, f]``, ``[count, n]``."""
        z = self.embed(x)
        covariance = self.kernel(x, x) - z @ z.T + self.noise * z @ self.inverse @ z.T
        draws = rng.standard_normal((count, len(x))) @ cholesky(covariance).T
        return np.asarray(self.centre + self.spread * (z @ self.weights + draws))


def nystrom(
    kernel: Kernel,
    inducing: Floats,
    x: Floats,
    y: Floats,
    noise: float,
    centre: float = 0.0,
    spread: float = 1.0,
    counts: Floats | None = None,
) -> NystromGP:
    """The posterior given values ``y [n]`` at features ``x [n, f]``, on inducing points ``[m, f]``.

    Args:
        noise: variance of an observation, standardised. counts: evaluations of which each value is the mean, ``[n]``.
    """
    values, vectors = eigh(kernel(inducing, inducing))
    kept = values > _FLOOR * values[-1]
    root = vectors[:, kept] / np.sqrt(values[kept])
    z = kernel(x, inducing) @ root
    weighed = z if counts is None else z * counts[:, None]
    factor = cho_factor(weighed.T @ z + noise * np.eye(z.shape[1]), lower=True)
    inverse = cho_solve(factor, np.eye(z.shape[1]))
    weights = cho_solve(factor, weighed.T @ ((y - centre) / spread))
    return NystromGP(kernel, inducing, root, inverse, weights, noise, centre, spread)


def select(
    sketch: NystromGP, candidates: Floats, most: int, ratio: float = np.inf, beta: float = 3.0
) -> tuple[Indices, Floats]:
    """A batch: candidates by growing bound, variances updated after each, until the ratio or ``most`` ends it.

    Args:
        candidates: features, ``[m, f]``. ratio: C.

    Returns:
        Candidates chosen, ``[q]``, and their standardised variances at the beginning of the batch, ``[q]``.
    """
    z = sketch.embed(candidates)
    missing = np.maximum(sketch.kernel.diagonal(candidates) - (z * z).sum(axis=1), 0.0)
    mean, before = z @ sketch.weights, sketch.variance(candidates, z)
    inverse = sketch.inverse.copy()
    # Variances only fall, so an old bound is too low at worst: it is renewed when it would be chosen.
    bound = mean - beta * np.sqrt(before)
    chosen: list[int] = []
    accumulated = 1.0
    while len(chosen) < most and accumulated <= ratio:
        i = int(np.argmin(bound))
        chosen.append(i)
        accumulated += before[i] / sketch.noise
        step = inverse @ z[i]
        inverse -= np.outer(step, step) / (1 + z[i] @ step)
        bound[i] = mean[i] - beta * np.sqrt(missing[i] + sketch.noise * z[i] @ inverse @ z[i])
        old = np.flatnonzero(bound < bound[i])
        inside = np.einsum("nr,nr->n", z[old] @ inverse, z[old])
        bound[old] = mean[old] - beta * np.sqrt(np.maximum(missing[old] + sketch.noise * inside, 1e-12))
    picks = np.array(chosen, dtype=np.intp)
    return picks, before[picks]


def dictionary(
    variance: Floats, counts: Floats, noise: float, oversampling: float, rng: np.random.Generator
) -> Indices:
    """Which of the points evaluated become inducing points, by leverage score; at least one.

    Args:
        variance: standardised posterior variance at each, ``[n]``. counts: evaluations of each, ``[n]``.
    """
    chance = oversampling * counts * variance / noise
    taken = np.flatnonzero(rng.random(len(chance)) < chance)
    return taken if len(taken) else np.array([int(np.argmax(chance))])


def bbkb(
    kernel: Kernel,
    candidates: Floats,
    evaluate: Evaluate,
    rounds: int,
    noise: float,
    seed: int,
    beta: float = 3.0,
    ratio: float = 2.0,
    oversampling: float = 4.0,
) -> BanditRun:
    """BBKB over a table of candidates ``[m, f]``; arguments as ``gp_bandit.gp_ucb``'s.

    Args:
        ratio: C. oversampling: q; more inducing points, a better approximation.

    Raises:
        UsageError: fewer than one round, a noise that is not positive, or a ``ratio`` below 1.
    """
    check(rounds, noise)
    _check_ratio(ratio)
    rng = np.random.default_rng([seed, 5])
    sums, counts = np.zeros(len(candidates)), np.zeros(len(candidates))
    chosen, values, seconds = np.empty(rounds, dtype=np.intp), np.empty(rounds), np.empty(rounds)
    started = process_time()
    picks = np.array([rng.integers(len(candidates))])
    inducing, done, batches, sizes = picks, 0, [], []
    while True:
        end = done + len(picks)
        chosen[done:end], seconds[done:end] = picks, process_time() - started
        values[done:end] = evaluate(picks)
        np.add.at(sums, picks, values[done:end])
        np.add.at(counts, picks, 1.0)
        batches.append(end - done)
        sizes.append(len(inducing))
        done = end
        if done == rounds:
            return BanditRun(chosen, values, seconds, np.array(batches), np.array(sizes))
        seen = np.flatnonzero(counts)
        data = candidates[seen], sums[seen] / counts[seen], noise, 0.0, 1.0, counts[seen]
        old = nystrom(kernel, candidates[inducing], *data)
        inducing = seen[dictionary(old.variance(candidates[seen]), counts[seen], noise, oversampling, rng)]
        sketch = nystrom(kernel, candidates[inducing], *data)
        picks, _ = select(sketch, candidates, rounds - done, ratio, beta)


@dataclass(frozen=True)
class BudgetedBatches:
    """BBKB as a method of the loop: for many cheap evaluations on many workers.

    Hyperparameters are learnt exactly from the first few hundred evaluations. The batches of the rule are found again
    from the history alone. ``propose`` gives as many points as are asked; ``batch`` as many as the rule allows.

    Attributes:
        ratio: C. beta: standard deviations that the bound is below the mean. oversampling: q.
        initial: evaluations before the first surrogate.

    Raises:
        UsageError: ``ratio`` is below 1.
    """

    ratio: float = 2.0
    beta: float = 3.0
    oversampling: float = 4.0
    surrogate: RefittedGP = field(default_factory=RefittedGP)
    initial: int | None = None
    _known: dict[bytes, Indices] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        return self._chosen(space, history, count, np.inf, rng)

    def batch(self, space: Space, history: History, most: int, rng: np.random.Generator) -> Floats:
        """A batch that ends by the rule, of ``most`` points at most, ``[q, width]``. Nothing is pending before it."""
        return self._chosen(space, history, most, self.ratio, rng)

    def _chosen(self, space: Space, history: History, most: int, ratio: float, rng: np.random.Generator) -> Floats:
        first = opening(space, history, most, rng, self.initial)
        if first is not None:
            return first
        good = history.succeeded
        x = space.encode(history.points[good])
        sketch, begun = self.sketch(space, x, history.values[good], history.seed)
        sketch = _told(sketch, np.vstack([x[begun:], space.encode(history.pending)]))
        if space.grid is not None and len(space.grid.points) <= WHOLE_GRID:
            pool = space.grid.points
        else:
            best = history.points[good][np.argsort(history.values[good], kind="stable")[:8]]
            near = space.moved(best[rng.integers(0, len(best), _NEAR)], rng, 0.05)
            pool = np.vstack([space.sample(_POOL, rng), near])
        picks, _ = select(sketch, space.encode(pool), most, ratio, self.beta)
        return pool[picks]

    def sketch(self, space: Space, x: Floats, y: Floats, seed: int) -> tuple[NystromGP, int]:
        """The sketch of the batch that is open now, of features ``[n, f]`` and values ``[n]``, and where it began."""
        begun = min(self.initial or 2 * len(space.parameters) + 2, len(y))
        inducing: Indices = np.arange(begun)
        for key in self._known:
            known = np.frombuffer(key).reshape(-1, x.shape[1] + 1)
            if len(known) <= len(y) and np.array_equal(known, np.column_stack([x, y])[: len(known)]):
                begun, inducing = len(known), self._known[key]
        while True:
            learnt = self.surrogate.learnt(space, x[:begun], y[:begun])
            noise = max(float(np.mean(learnt.noise)), 1e-6)
            sketch = self._fitted(learnt, noise, x[inducing], x[:begun], y[:begun])
            grown = 1 + np.cumsum(sketch.variance(x[begun:])) / noise
            if len(grown) == 0 or grown[-1] <= self.ratio:
                self._known.clear()
                self._known[np.column_stack([x, y])[:begun].tobytes()] = inducing
                return sketch, begun
            begun += int(np.argmax(grown > self.ratio)) + 1
            sketch = self._fitted(learnt, noise, x[inducing], x[:begun], y[:begun])
            rng = np.random.default_rng([seed, begun])
            every = np.ones(begun)
            inducing = dictionary(sketch.variance(x[:begun]), every, noise, self.oversampling, rng)

    @staticmethod
    def _fitted(learnt: GP, noise: float, inducing: Floats, x: Floats, y: Floats) -> NystromGP:
        return nystrom(learnt.kernel, np.unique(inducing, axis=0), x, y, noise, learnt.centre, learnt.spread)


def _told(sketch: NystromGP, x: Floats) -> NystromGP:
    """With variances as if features ``[k, f]`` were evaluated; the mean stays."""
    if len(x) == 0:
        return sketch
    z = sketch.embed(x)
    turned = sketch.inverse @ z.T
    inverse = sketch.inverse - turned @ np.linalg.solve(np.eye(len(x)) + z @ turned, turned.T)
    return NystromGP(
        sketch.kernel, sketch.inducing, sketch.root, inverse, sketch.weights, sketch.noise, sketch.centre, sketch.spread
    )


def _check_ratio(ratio: float) -> None:
    if not ratio >= 1:
        raise UsageError(
            f"ratio (C) must be at least 1, not {ratio:g}: a batch ends when variances may have fallen by it"
        )


def _explain(problem: str, candidates: int, evaluations: int, noise: float, ratio: float, seed: int) -> Explanation:
    at = problem_named(problem)
    require_positive(candidates=candidates, evaluations=evaluations, noise=noise)
    table = TableProblem.of(at.function, qmc.Sobol(at.dimension, seed=seed).random(candidates), noise, seed)
    given = table.pilot.kernel, table.candidates, table.evaluator(seed), evaluations, table.noise
    runs = {
        "bbkb": bbkb(*given, seed=seed, ratio=ratio),
        "gp-bucb, batches of 10": gp_ucb(*given, batch=10),
        "gp-ucb": gp_ucb(*given),
    }
    sparse = runs["bbkb"]
    points = np.unique(np.geomspace(1, len(sparse.batches), 6).astype(int)) - 1
    return Explanation(
        {
            "batches": len(sparse.batches),
            "mean_batch": float(sparse.batches.mean()),
            "largest_batch": int(sparse.batches.max()),
            "inducing_points": int(sparse.dictionaries[-1]),
            "speedup": float(runs["gp-ucb"].seconds[-1] / sparse.seconds[-1]),
        },
        (
            Table.of(
                f"{evaluations} noisy evaluations of {candidates} candidates of {problem}",
                method=list(runs),
                regret=[float(r.regret(table.truth)[-1]) for r in runs.values()],
                choosing_time=[float(r.seconds[-1]) for r in runs.values()],
                batches=[len(r.batches) for r in runs.values()],
            ),
            Table.of(
                "Batches of bbkb", batch=points + 1, size=sparse.batches[points],
                inducing_points=sparse.dictionaries[points],
            ),
        ),
        (
            f"Batches of bbkb grow from {sparse.batches[0]} to {sparse.batches.max()} evaluations; one on "
            f"{sparse.dictionaries[-1]} inducing points stands for all {evaluations}.",
        ),
    )  # fmt: skip


TOPIC = Topic(
    "sparse",
    "How does GP optimization stay fast over thousands of evaluations?",
    "Calandriello et al., Near-linear Time Gaussian Process Optimization with Adaptive Batching and Resparsification, "
    "ICML 2020 (arXiv 2002.09954)",
    (
        Option("problem", str, f"A test function: {', '.join(UNCONSTRAINED)}."),
        Option("candidates", int, "Configurations in the table.", 4096),
        Option("evaluations", int, "Evaluations in all.", 1000),
        Option("noise", float, "Standard deviation of the noise, as a share of the function's.", 0.3),
        Option("ratio", float, "C: a batch ends when variances may have fallen by this factor.", 2.0),
        Option("seed", int, "Seed of table, noise and sampling.", 0),
    ),
    _explain,
    "--problem branin --candidates 2048 --evaluations 500",
)
