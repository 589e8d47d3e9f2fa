"""Prior means of a Gaussian process: what it believes where it has seen nothing.

Far from the data the posterior mean returns to the prior mean. If that is the mean of the observations, EI finds much
of a large space promising that nobody has seen; if it is the worst observation, what was not seen must earn its visit
by being close to what is good. Each rule makes a mean of the observations, anew at every step:

- constants: ``mean``, ``min``, ``median``, ``max`` of the observations (smaller is better: ``max`` is the worst);
- ``linear``, ``quadratic``: least squares, of smallest norm where observations are fewer than coefficients;
- ``random-forest``: bagged regression trees (``forest``);
- ``rbf-network``: Gaussian bumps about k-means centres, their number by the leave-one-out error of the ridge fit.

De Ath, Fieldsend, Everson: What do you Mean? The Role of the Mean Function in Bayesian Optimisation, GECCO 2020
companion (arXiv:2004.08349): from 5 dimensions on the worst observed value is consistently best.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.cluster.vq import kmeans2

from nearpeak.errors import UnknownName
from nearpeak.search.acquisitions.analytic import log_expected_improvement
from nearpeak.search.bayesian import Bayesian
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.problems import PROBLEMS
from nearpeak.search.space import Space
from nearpeak.search.study import Study, compare
from nearpeak.search.surrogates.forest_mean import grow
from nearpeak.search.surrogates.gp import GP, Mean, fit
from nearpeak.search.surrogates.kernels import squared_distances
from nearpeak.topic import Explanation, Option, Topic, names

Rule = Callable[[Floats, Floats, np.random.Generator], Mean]
"""Makes a prior mean of features ``[n, f]``, values ``[n]`` and a generator."""

MANY: Final = 5
"""Parameters from which on the worst observed value is the default."""
_RIDGE: Final = 1e-3


def constant(statistic: Callable[[Floats], float]) -> Rule:
    """One value everywhere: a statistic of the observations."""

    def rule(x: Floats, y: Floats, rng: np.random.Generator) -> Mean:
        value = float(statistic(y))
        return lambda at: np.full(len(at), value)

    return rule


def polynomial(features: Callable[[Floats], Floats]) -> Rule:
    """Least squares on polynomial features."""

    def rule(x: Floats, y: Floats, rng: np.random.Generator) -> Mean:
        weights = np.linalg.lstsq(features(x), y, rcond=1e-8)[0]
        return lambda at: np.asarray(features(at) @ weights)

    return rule


def linear_features(x: Floats) -> Floats:
    """1 and each feature about the middle of the cube, ``[n, 1 + f]``."""
    return np.column_stack([np.ones(len(x)), x - 0.5])


def quadratic_features(x: Floats) -> Floats:
    """The linear ones, squares and products of two, ``[n, 1 + f + f (f + 1) / 2]``."""
    first, second = np.triu_indices(x.shape[1])
    return np.hstack([linear_features(x), (x[:, first] - 0.5) * (x[:, second] - 0.5)])


def random_forest(x: Floats, y: Floats, rng: np.random.Generator) -> Mean:
    """The mean of bagged regression trees."""
    return grow(x, y, rng)


def rbf_network(x: Floats, y: Floats, rng: np.random.Generator) -> Mean:
    """A constant and Gaussian bumps, as wide as their centres lie apart; how many, the leave-one-out error says."""
    best, chosen = np.inf, constant(np.mean)(x, y, rng)
    for count in np.unique(np.linspace(2, max(len(y) // 2, 2), 5).astype(int)):
        if count >= len(y):
            break
        centres = np.unique(kmeans2(x, int(count), minit="++", seed=rng)[0], axis=0)
        apart = np.sqrt(squared_distances(centres, centres)[np.triu_indices(len(centres), 1)])
        width = float(apart.mean()) if apart.size and apart.mean() > 0 else 1.0
        design = _bumps(x, centres, width)
        gram = design.T @ design + _RIDGE * np.eye(design.shape[1])
        solved = np.linalg.solve(gram, design.T)
        weights, leverage = solved @ y, np.einsum("nk,kn->n", design, solved)
        error = float((((y - design @ weights) / np.maximum(1 - leverage, 1e-6)) ** 2).mean())
        if error < best:
            best, chosen = error, _network(centres, width, weights)
    return chosen


def _network(centres: Floats, width: float, weights: Floats) -> Mean:
    return lambda at: np.asarray(_bumps(at, centres, width) @ weights)


def _bumps(x: Floats, centres: Floats, width: float) -> Floats:
    return np.column_stack([np.ones(len(x)), np.exp(-0.5 * squared_distances(x, centres) / width**2)])


MEANS: Final[dict[str, Rule]] = {
    "mean": constant(np.mean),
    "min": constant(np.min),
    "median": constant(np.median),
    "max": constant(np.max),
    "linear": polynomial(linear_features),
    "quadratic": polynomial(quadratic_features),
    "random-forest": random_forest,
    "rbf-network": rbf_network,
}


def default_mean(parameters: int) -> str:
    """The worst observed value from 5 parameters on, else the mean of the observations."""
    return "max" if parameters >= MANY else "mean"


@dataclass(frozen=True)
class MeanGP:
    """A surrogate: an ARD GP of most probable hyperparameters about a prior mean made anew at each step.

    Attributes:
        mean: of ``MEANS``; None: ``default_mean`` of the number of parameters. shape: of the kernel.

    Raises:
        UnknownName: ``mean`` is none of ``MEANS``.
    """

    mean: str | None = None
    shape: str = "matern52"

    def __post_init__(self) -> None:
        if self.mean is not None and self.mean not in MEANS:
            raise UnknownName("mean function", self.mean, MEANS)

    def __call__(self, space: Space, history: History, rng: np.random.Generator) -> GP:
        """The GP given the evaluations that succeeded."""
        good = history.succeeded
        x, y, variances = space.encode(history.points[good]), history.values[good], history.variances[good]
        rule = MEANS[self.mean or default_mean(len(space.parameters))]
        noise = variances if np.isfinite(variances).all() else None
        return fit(x, y, shape=self.shape, groups=space.groups, noise=noise, mean=rule(x, y, rng))


def ablation(
    problems: Sequence[str], seeds: int, evaluations: int, means: Sequence[str] = tuple(MEANS), noise: float = 0.0
) -> Study:
    """EI with each of the means on test problems."""
    methods = {name: Bayesian(MeanGP(name), log_expected_improvement) for name in means}
    return compare(methods, [PROBLEMS[p] for p in problems], seeds, evaluations, noise)


def _explain(problem: str, means: tuple[str, ...], evaluations: int, seeds: int) -> Explanation:
    if problem not in PROBLEMS:
        raise UnknownName("problem", problem, PROBLEMS)
    found = ablation([problem], seeds, evaluations, means or tuple(MEANS))
    dimension = PROBLEMS[problem].dimension
    return Explanation(
        {"dimension": dimension, "default": default_mean(dimension), "winner": found.winners[0]},
        (found.table(),),
        (
            f"On {problem} ({dimension} parameters) the mean {found.winners[0]} has the least median regret after "
            f"{evaluations} evaluations, of {seeds} seeds.",
            f"The default in {dimension} dimensions is {default_mean(dimension)}: the worst observed value from "
            f"{MANY} on.",
        ),
    )


TOPIC = Topic(
    "means",
    "What should a Gaussian process believe where it has seen nothing?",
    "De Ath, Fieldsend, Everson, What do you Mean? The Role of the Mean Function in Bayesian Optimisation, GECCO 2020 "
    "(arXiv 2004.08349)",
    (
        Option("problem", str, "A test problem.", "ackley-5"),
        Option("means", names, "Mean functions between commas; none: all.", ()),
        Option("evaluations", int, "Evaluations of a run.", 30),
        Option("seeds", int, "Runs.", 3),
    ),
    _explain,
    "--problem ackley-5 --means mean,max --evaluations 30 --seeds 3",
)
