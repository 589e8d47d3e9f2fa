"""A user's utility of plans, learned from duels: which of two does he like better.

The utility ``f`` has a Gaussian process prior; a user prefers b to w where ``f(b) + e > f(w) + e'`` with normal slips
``e, e'`` of standard deviation s. With the gaps ``v_i = f(b_i) - f(w_i) + e_i - e'_i``, all that answers say is
``v > 0``, and the posterior is a skew Gaussian process:

    v ~ N(0, S) cut off to v > 0,    S = A K A' + 2 s^2 I,    f | v is a Gaussian process

Gibbs sampling draws the gaps, one normal that is cut off at 0 at a time; everything else is in closed form given them,
so that the chance that the user prefers x to x' is estimated with little variance:

    P(x > x') = E_v[ Phi( E[f(x) - f(x') | v] / sqrt(var(f(x) - f(x') | v) + 2 s^2) ) ]

Laplace's approximation takes a normal at the mode of ``f`` for the posterior instead. It ignores the skewness and
misjudges duels; its evidence is good enough to choose length scales and slips by, and that is all it does here.

The next duel believes one hallucinated outcome: one draw of the gaps makes a Gaussian process of the posterior. The
champion is the plan already shown with the largest mean of it; its challenger the plan that is expected to improve on
it most, ``E[max(f(x) - f(champion), 0) | v]``. Each step needs one draw, not a chain's worth of them.

Takeno, Nomura, Karasuyama: Towards Practical Preferential Bayesian Optimization with Skew Gaussian Processes, ICML
2023 (arXiv 2302.01513). Benavoli, Azzimonti, Piga: Preferential Bayesian Optimisation with Skew Gaussian Processes,
GECCO 2021. Laplace: Chu, Ghahramani: Preference Learning with Gaussian Processes, ICML 2005; Rasmussen, Williams:
Gaussian Processes for Machine Learning, MIT Press 2006, algorithm 3.1.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.special import log_ndtr, ndtr, ndtri_exp

from nearpeak.errors import UsageError
from nearpeak.search.acquisitions.analytic import log_improvement
from nearpeak.search.parameters import Floats
from nearpeak.search.surrogates.gp import JITTER, WIDE, cholesky
from nearpeak.search.surrogates.kernels import Stationary
from nearpeak.topic import Explanation, Option, Table, Topic, names, numbers

Indices = NDArray[np.intp]

SWEEPS: Final = 200
"""Gibbs sweeps before a draw: chains start at independent normals and are not kept."""
_SLIP_LOCATION: Final = float(np.log(0.05))
_SLIP_SPREAD: Final = 1.0
_SLIPS: Final = (float(np.log(0.005)), float(np.log(2.0)))
_NEWTON: Final = 50

Chooser = Callable[[Floats, Indices, Indices, np.random.Generator], tuple[int, int]]
"""Of plans, the rows preferred so far, the others, and a generator: the rows of the next duel."""


@dataclass(frozen=True)
class SkewGP:
    """The posterior of a utility given duels.

    Attributes:
        lengthscales: of the squared exponential kernel of the utility, whose scale is 1, ``[f]``.
        slip: standard deviation of a user's error in judging one plan, in units of utility.
        better, worse: features of the plan preferred in each duel and of the other, ``[n, f]`` each.
    """

    lengthscales: Floats
    slip: float
    better: Floats = field(repr=False)
    worse: Floats = field(repr=False)

    @property
    def kernel(self) -> Stationary:
        """Of the utility."""
        return Stationary("rbf", self.lengthscales)

    @cached_property
    def factor(self) -> Floats:
        """Lower Cholesky factor of the covariance of the gaps, ``[n, n]``."""
        return cholesky(self.differences + 2 * self.slip**2 * np.eye(len(self.better)))

    @cached_property
    def differences(self) -> Floats:
        """Prior covariance of the differences of utility in the duels, ``[n, n]``."""
        return self.cross(self.better) - self.cross(self.worse)

    def cross(self, x: Floats) -> Floats:
        """Prior covariance of the utility at features ``[m, f]`` with the difference in each duel, ``[m, n]``."""
        return np.asarray(self.kernel(x, self.better) - self.kernel(x, self.worse))

    def gaps(self, count: int, rng: np.random.Generator, sweeps: int = SWEEPS) -> Floats:
        """Draws of the gaps, each the end of a Gibbs chain of its own, ``[count, n]``."""
        precision = cho_solve((self.factor, True), np.eye(len(self.factor)))
        return truncated_normals(precision, count, rng, sweeps)

    def mean(self, x: Floats, gaps: Floats) -> Floats:
        """Mean utility at features ``[m, f]`` given each draw of the gaps ``[c, n]``, ``[c, m]``."""
        return np.asarray((self.cross(x) @ cho_solve((self.factor, True), gaps.T)).T)

    def variance_of_difference(self, a: Floats, b: Floats) -> Floats:
        """Variance of f(a) - f(b) given the gaps, features ``[m, f]`` each (or ``[1, f]``), ``[m]``."""
        half = solve_triangular(self.factor, (self.cross(a) - self.cross(b)).T, lower=True)
        return np.asarray(np.maximum(self._prior_of_difference(a, b) - (half * half).sum(axis=0), 1e-12))

    def win_probability(self, a: Floats, b: Floats, gaps: Floats) -> Floats:
        """Chance that the user prefers features ``a [m, f]`` to ``b``, ``[m]``, from draws ``[c, n]``."""
        mean = self.mean(a, gaps) - self.mean(b, gaps)
        return np.asarray(ndtr(mean / np.sqrt(self.variance_of_difference(a, b) + 2 * self.slip**2)).mean(axis=0))

    def improvement(self, x: Floats, champion: Floats, gaps: Floats) -> Floats:
        """Log E[max(f(x) - f(champion), 0)] given one draw of the gaps ``[n]``; features ``[m, f]`` and ``[f]``."""
        mean = self.mean(np.vstack([champion, x]), gaps[None])[0]
        sd = np.sqrt(self.variance_of_difference(x, champion[None]))
        return log_improvement((mean[1:] - mean[0]) / sd) + np.log(sd)

    def laplace_probability(self, a: Floats, b: Floats) -> Floats:
        """What Laplace's approximation takes for ``win_probability``, ``[m]``."""
        mode = laplace(self.differences, self.slip)
        cross = self.cross(a) - self.cross(b)
        root = np.sqrt(mode.curvature)
        half = solve_triangular(mode.factor, root[:, None] * cross.T, lower=True)
        variance = np.maximum(self._prior_of_difference(a, b) - (half * half).sum(axis=0), 0.0)
        return np.asarray(ndtr(cross @ mode.slope / np.sqrt(variance + 2 * self.slip**2)))

    def _prior_of_difference(self, a: Floats, b: Floats) -> Floats:
        apart = ((a - b) / self.lengthscales) ** 2
        return np.asarray(-2 * np.expm1(-0.5 * apart.sum(axis=1)))


def truncated_normals(precision: Floats, count: int, rng: np.random.Generator, sweeps: int) -> Floats:
    """Draws of ``N(0, precision^-1)`` cut off to positive values, ``[count, n]``, by Gibbs sampling.

    All chains move together, one coordinate at a time. A normal cut off at 0 is drawn by inversion of its survival
    function in logarithms, which is exact however far 0 is in its tail.
    """
    n = len(precision)
    deviation = 1 / np.sqrt(np.diag(precision))
    draws = np.abs(rng.standard_normal((n, count))) * deviation[:, None]
    for _ in range(sweeps):
        tails = np.log1p(-rng.random((n, count)))
        for i in range(n):
            mean = draws[i] - precision[i] @ draws * deviation[i] ** 2
            upper = -ndtri_exp(tails[i] + log_ndtr(mean / deviation[i]))
            draws[i] = np.maximum(mean + deviation[i] * upper, 0.0)
    return np.ascontiguousarray(draws.T)


@dataclass(frozen=True)
class Mode:
    """Laplace's approximation of the differences of utility in the duels.

    Attributes:
        at: their mode, ``[n]``. slope, curvature: of the log likelihood there, the second with its sign changed,
            ``[n]`` each. factor: lower Cholesky factor of ``I + W^1/2 K W^1/2``. evidence: log marginal likelihood.
    """

    at: Floats
    slope: Floats
    curvature: Floats
    factor: Floats
    evidence: float


def laplace(covariance: Floats, slip: float) -> Mode:
    """The mode of ``N(g; 0, covariance) prod_i Phi(g_i / (sqrt(2) slip))`` by Newton's method."""
    n, width = len(covariance), np.sqrt(2) * slip
    at = np.zeros(n)
    for _ in range(_NEWTON):
        slope, curvature = _probit(at / width, width)
        root = np.sqrt(curvature)
        factor = np.linalg.cholesky(np.eye(n) + root[:, None] * covariance * root)
        right = curvature * at + slope
        weights = right - root * cho_solve((factor, True), root * (covariance @ right))
        before, at = at, covariance @ weights
        if np.abs(at - before).max() <= 1e-9 * width:
            break
    slope, curvature = _probit(at / width, width)
    root = np.sqrt(curvature)
    factor = np.linalg.cholesky(np.eye(n) + root[:, None] * covariance * root)
    evidence = -0.5 * at @ slope + log_ndtr(at / width).sum() - np.log(np.diag(factor)).sum()
    return Mode(at, slope, curvature, np.asarray(factor, dtype=np.float64), float(evidence))


def _probit(z: Floats, width: float) -> tuple[Floats, Floats]:
    ratio = np.exp(-0.5 * z * z - 0.5 * np.log(2 * np.pi) - log_ndtr(z))
    return ratio / width, np.maximum(ratio * (z + ratio), 1e-12) / width**2


def fit(better: Floats, worse: Floats) -> SkewGP:
    """The posterior given duels ``[n, f]`` each; length scales and slips have the largest Laplace evidence and prior.

    Features are in the unit cube. The kernel is squared exponential of scale 1: utility has no unit. The prior of
    length scales is that of ``gp``; slips are about a twentieth of the scale.

    Raises:
        UsageError: there is no duel.
    """
    if len(better) == 0:
        raise UsageError("a utility is learned from at least one duel")
    d = better.shape[1]
    location = np.append(np.full(d, WIDE[0] + 0.5 * np.log(d)), _SLIP_LOCATION)
    spread = np.append(np.full(d, WIDE[1]), _SLIP_SPREAD)
    start = np.append(np.zeros(d), _SLIP_LOCATION)

    def model(theta: Floats) -> SkewGP:
        return SkewGP(np.exp(theta[:d]), float(np.exp(theta[d])), better, worse)

    def loss(theta: Floats) -> float:
        asked = model(theta)
        covariance = asked.differences + JITTER * np.eye(len(better))
        return -laplace(covariance, asked.slip).evidence + 0.5 * float((((theta - location) / spread) ** 2).sum())

    bounds = [*[(np.log(0.05), np.log(1e2))] * d, _SLIPS]
    found = minimize(loss, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 25, "ftol": 1e-4})
    return model(found.x)


def next_duel(plans: Floats, better: Indices, worse: Indices, rng: np.random.Generator) -> tuple[int, int]:
    """The two plans to show next: the champion and its challenger; at first one at random and the farthest from it.

    Args:
        plans: features in the unit cube, ``[m, f]``. better, worse: rows of the plan preferred in each duel so far and
            of the other, ``[n]`` each.

    Raises:
        UsageError: there are fewer than two plans, or a duel names none of them.
    """
    _check(plans, better, worse)
    if len(better) == 0:
        first = int(rng.integers(len(plans)))
        return first, int(np.argmax(((plans - plans[first]) ** 2).sum(axis=1)))
    model = fit(plans[better], plans[worse])
    gaps = model.gaps(1, rng)[0]
    shown = np.unique(np.concatenate([better, worse]))
    champion = int(shown[np.argmax(model.mean(plans[shown], gaps[None])[0])])
    worth = model.improvement(plans, plans[champion], gaps)
    worth[champion] = -np.inf
    return champion, int(np.argmax(worth))


def utility(
    plans: Floats, better: Indices, worse: Indices, rng: np.random.Generator, draws: int = 256
) -> tuple[Floats, Floats]:
    """Posterior mean utility of each plan, and the chance that the user prefers it to the plan with the largest one.

    Arguments as of ``next_duel``; ``[m]`` each.
    """
    _check(plans, better, worse)
    model = fit(plans[better], plans[worse])
    gaps = model.gaps(draws, rng)
    mean = model.mean(plans, gaps.mean(axis=0)[None])[0]
    return mean, model.win_probability(plans, plans[[int(np.argmax(mean))]], gaps)


def _check(plans: Floats, better: Indices, worse: Indices) -> None:
    if len(plans) < 2:
        raise UsageError(f"a duel needs two plans; there are {len(plans)}")
    for row in (*better.tolist(), *worse.tolist()):
        if not 0 <= row < len(plans):
            raise UsageError(f"a duel names plan {row + 1}; plans are 1 to {len(plans)}")
    if (same := np.flatnonzero(better == worse)).size:
        raise UsageError(f"duel {same[0] + 1} sets plan {better[same[0]] + 1} against itself")


def features(metrics: Floats) -> Floats:
    """Metrics ``[m, f]`` in the unit cube: from their least to their largest value, in logarithms where a metric is
    positive and spans more than a factor of ten.

    Raises:
        UsageError: a metric is not finite.
    """
    if not np.isfinite(metrics).all():
        row, column = np.argwhere(~np.isfinite(metrics))[0]
        raise UsageError(f"metric {column + 1} of plan {row + 1} is {metrics[row, column]}: plans need finite metrics")
    low, high = metrics.min(axis=0), metrics.max(axis=0)
    wide = (low > 0) & (high > 10 * low)
    scaled = np.where(wide, np.log(np.where(wide, metrics, 1.0)), metrics)
    low, high = scaled.min(axis=0), scaled.max(axis=0)
    return np.asarray((scaled - low) / np.where(high > low, high - low, 1.0))


def simulated_duels(
    plans: Floats, truth: Floats, duels: int, seed: int, slip: float = 0.0, choose: Chooser = next_duel
) -> tuple[Indices, Indices]:
    """Duels answered by a user whose utility of each plan is ``truth [m]``: rows preferred and the others, ``[duels]``.

    Args:
        plans: features, ``[m, f]``. slip: standard deviation of the user's error in judging one plan.
    """
    rng, answers = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    better, worse = np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)
    for _ in range(duels):
        pair = np.array(choose(plans, better, worse, rng))
        judged = truth[pair] + slip * answers.standard_normal(2)
        better, worse = np.append(better, pair[np.argmax(judged)]), np.append(worse, pair[np.argmin(judged)])
    return better, worse


def made_plans(count: int, rng: np.random.Generator) -> dict[str, Floats]:
    """Plans of a made-up service: metrics by name, ``[count]`` each.

    Latency is in seconds, cost in dollars per million tokens, energy in joules per token, quality a share. More devices
    answer sooner and cost more; fewer bits are faster and cheaper and lose quality.
    """
    devices, batch = 2.0 ** rng.integers(0, 5, count), 2.0 ** rng.uniform(0, 8, count)
    bits = rng.choice([4.0, 8.0, 16.0], count)
    spread = np.exp(0.1 * rng.standard_normal((3, count)))
    step = (bits / 16 / devices + 0.01 * batch + 0.02 * np.log2(devices)) * spread[0]
    return {
        "latency": step,
        "cost": 10 * devices * step / batch * spread[1],
        "energy": 300 * (0.3 + 0.01 * batch) * devices * step / batch * spread[2],
        "quality": 0.8 - 0.1 * (bits == 4) - 0.01 * (bits == 8) + 0.01 * rng.standard_normal(count),
    }


def _explain(
    plans: str, metrics: tuple[str, ...], answers: str, weights: tuple[float, ...], duels: int, seed: int
) -> Explanation:
    from nearpeak.inference.columns import read

    if bool(answers) == bool(weights):
        raise UsageError(
            "duels are answered by a file (--answers) or by a simulated user (--weights): give one of them"
        )
    if answers and not plans:
        raise UsageError("--answers are about the plans of a file: give --plans and --metrics")
    if plans and not metrics:
        raise UsageError("--plans needs --metrics: the names of its columns that a user looks at")
    shown = read(plans, metrics) if plans else made_plans(200, np.random.default_rng(seed))
    if wrong := [name for name, column in shown.items() if column.dtype.kind not in "iuf"]:
        raise UsageError(f"column {wrong[0]} of {plans} holds no numbers: a metric is a number")
    x = features(np.column_stack([column.astype(float) for column in shown.values()]))
    figures: dict[str, float] = {}
    if weights:
        if len(weights) != x.shape[1]:
            raise UsageError(f"{len(weights)} weights for {x.shape[1]} metrics ({', '.join(shown)}): give one each")
        truth = x @ np.asarray(weights)
        better, worse = simulated_duels(x, truth, duels, seed)
    else:
        given = read(answers, ("better", "worse"))
        better, worse = ((np.rint(given[name].astype(float)) - 1).astype(np.intp) for name in ("better", "worse"))
    _check(x, better, worse)
    rng = np.random.default_rng([seed, len(better)])
    mean, chance = utility(x, better, worse, rng)
    first, second = next_duel(x, better, worse, rng)
    top = np.argsort(-mean, kind="stable")[:8]
    best = int(top[0])
    says = [
        f"After {len(better)} duels plan {best + 1} has the largest utility. Ask next: {first + 1} or {second + 1}?"
    ]
    if weights:
        figures["regret_share"] = float((truth.max() - truth[best]) / np.ptp(truth))
        says.append("The regret is what the simulated user loses with this plan, as a share of the range of utility.")
    return Explanation(
        {"best_plan": best + 1, "duels": len(better), "next_first": first + 1, "next_second": second + 1, **figures},
        (
            Table.of(
                "Plans by utility; the chance that the user prefers each to the first",
                plan=top + 1,
                utility=mean[top],
                preferred_share=chance[top],
                **{name: column[top] for name, column in shown.items()},
            ),
        ),
        tuple(says),
    )


TOPIC = Topic(
    "duel",
    "Which plan does a user like best, learned from which of two plans he prefers?",
    "Takeno et al., Towards Practical Preferential Bayesian Optimization with Skew Gaussian Processes, ICML 2023 "
    "(arXiv 2302.01513)",
    (
        Option("plans", str, "A CSV or Parquet file with a row for each plan; none: 200 made-up plans.", ""),
        Option("metrics", names, "Columns that the user looks at, between commas.", ()),
        Option("answers", str, "A CSV file with the columns better and worse: row numbers of plans, from 1.", ""),
        Option("weights", numbers, "Utility of each metric over its range, of a simulated user who answers.", ()),
        Option("duels", int, "Duels that a simulated user answers.", 20),
        Option("seed", int, "Of all draws.", 0),
    ),
    _explain,
    "--weights=-3,-2,-1,2 --duels 12",
)
