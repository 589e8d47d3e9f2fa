"""What a user believes about the optimum, inside any acquisition function (ColaBO).

A user often knows roughly where the best configuration lies, or what value it reaches. Both are statements about a
property of the whole function, its least value ``f*`` or the place ``x*`` where it is, and no prior on a single point
says them. So functions are drawn from the posterior, and a draw counts by how well its own optimum agrees:

    f_j ~ p(f | D),    w_j = rho(f_j) / sum_i rho(f_i),    rho(f) = prod_b pi_b(x*(f), f*(f))

Everything else is an expectation over the weighted draws:

    EI(x)  = sum_j w_j max(best - f_j(x), 0)
    MES, KG: the closed forms of ``entropy_search`` and ``knowledge_gradient`` with the weighted mean, deviation and
             covariance of the draws, and least values drawn by their weights

Data overrule a belief by themselves: once no draw has its optimum where the user thought, all are alike to it. Until
then a belief of density ``pi`` holds with probability ``1 - doubt`` only: ``(1 - doubt) pi + doubt``, where 1 is the
density of knowing nothing.

A draw is a sum of random Fourier features, corrected at the data (see ``thompson``); all share their frequencies, so
that all are asked at many points by one matrix product.

Hvarfner, Hutter, Nardi: A General Framework for User-Guided Bayesian Optimization, ICLR 2024 (arXiv 2311.14645).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from scipy.linalg import cho_solve
from scipy.special import chdtri, ndtri
from scipy.stats import qmc

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search.acquisitions.analytic import Acquisition
from nearpeak.search.acquisitions.entropy_search import MaxValueEntropy
from nearpeak.search.acquisitions.knowledge_gradient import KnowledgeGradient, representatives
from nearpeak.search.bayesian import Bayesian, Preparation, opening
from nearpeak.search.candidates import unseen
from nearpeak.search.history import History
from nearpeak.search.loop import Method
from nearpeak.search.parameters import Floats
from nearpeak.search.problems import PROBLEMS
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.space import Space
from nearpeak.search.strategies.thompson import FREEDOM
from nearpeak.search.study import compare
from nearpeak.search.surrogates.gp import GP, Posterior
from nearpeak.search.surrogates.kernels import Stationary
from nearpeak.search.surrogates.refitted import GPSurrogate, RefittedGP
from nearpeak.topic import Explanation, Option, Topic, numbers

_WHOLE_GRID: Final = 4_096
"""Grids up to this size are searched whole for the optimum of each draw; others by so many representatives."""
_REPRESENTATIVES: Final = 1_024
_POOL: Final = 4_096
"""Configurations among which a first sample is drawn."""
_LEAST: Final = 1e-300


class Belief(Protocol):
    """Of the optimum of a function."""

    def density(self, space: Space, places: Floats, values: Floats, everywhere: Floats) -> Floats:
        """How well optima agree, ``[c]``: 1 is what knowing nothing says.

        Args:
            places: features of each draw's minimiser, ``[c, f]``. values: its least value, ``[c]``.
            everywhere: features of configurations that stand for the space, ``[r, f]``.
        """


@dataclass(frozen=True)
class Location:
    """Where the best configuration lies: normal about a configuration, in the unit cube of features.

    Attributes:
        at: parameters by name with their values; those not named can be anything.
        spread: standard deviation, as a share of each parameter's range; two different categories are 1 apart.
        doubt: probability that this is wrong.
    """

    at: Mapping[str, Any]
    spread: float = 0.1
    doubt: float = 0.01

    def __post_init__(self) -> None:
        _check(self.spread, self.doubt)

    def density(self, space: Space, places: Floats, values: Floats, everywhere: Floats) -> Floats:
        """A normal over its mean over the space, mixed with a uniform."""
        centre = np.full(places.shape[1], np.nan)
        for name, value in self.at.items():
            if name not in space.parameters:
                raise UnknownName("parameter", name, space.parameters)
            parameter = space.parameters[name]
            try:
                row = np.atleast_2d(np.asarray(parameter.read(value), dtype=float))
            except (ValueError, TypeError) as error:
                raise UsageError(f"a belief in {name} = {value!r}: it is {error}") from None
            said = parameter.features(row)[0]
            centre[np.flatnonzero(space.groups == list(space.parameters).index(name))[: len(said)]] = said

        def agreement(x: Floats) -> Floats:
            return np.asarray(np.exp(-0.5 * np.nansum(((x - centre) / self.spread) ** 2, axis=1)))

        whole = max(float(agreement(everywhere).mean()), _LEAST)
        return (1 - self.doubt) * agreement(places) / whole + self.doubt


@dataclass(frozen=True)
class Value:
    """What the best configuration reaches: normal about a value.

    Attributes:
        about: the least value, in its units. spread: standard deviation. doubt: probability that this is wrong.
    """

    about: float
    spread: float
    doubt: float = 0.01

    def __post_init__(self) -> None:
        _check(self.spread, self.doubt)

    def density(self, space: Space, places: Floats, values: Floats, everywhere: Floats) -> Floats:
        """A normal of height 1, mixed with what says nothing."""
        return (1 - self.doubt) * np.exp(-0.5 * ((values - self.about) / self.spread) ** 2) + self.doubt


def _check(spread: float, doubt: float) -> None:
    if not spread > 0:
        raise UsageError(f"the spread of a belief is above 0, not {spread:g}")
    if not 0 <= doubt <= 1:
        raise UsageError(f"doubt is a probability, from 0 to 1, not {doubt:g}")


@dataclass(frozen=True)
class Paths:
    """Functions drawn from the posterior of a GP, with weights: a posterior itself.

    Attributes:
        gp: what they are drawn from. frequencies: of the cosines and sines of which the standardised prior draws are
            made, ``[f, F]``. heights: of each, ``[2 F, c]``. correction: what the data add, ``[n, c]``.
            weights: of the draws; they sum to 1, ``[c]``.
    """

    gp: GP
    frequencies: Floats = field(repr=False)
    heights: Floats = field(repr=False)
    correction: Floats = field(repr=False)
    weights: Floats = field(repr=False)

    def __call__(self, x: Floats) -> Floats:
        """Every draw at features ``[m, f]``, ``[c, m]``."""
        drawn = self._prior(x) + self.gp.kernel(x, self.gp.x) @ self.correction
        mean = 0.0 if self.gp.mean is None else self.gp.mean(x)
        return np.asarray(self.gp.centre + self.gp.spread * drawn.T + mean)

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Weighted mean and standard deviation of the draws."""
        drawn = self(x)
        mean = self.weights @ drawn
        variance = self.weights @ (drawn - mean) ** 2
        return mean, np.sqrt(np.maximum(variance, (1e-6 * self.gp.spread) ** 2))

    def sample(self, x: Floats, count: int, rng: np.random.Generator) -> Floats:
        """Draws picked by their weights, ``[count, m]``."""
        return self(x)[rng.choice(len(self.weights), count, p=self.weights)]

    def covariance(self, a: Floats, b: Floats) -> Floats:
        """Weighted covariance of the draws, ``[n, m]``."""
        left, right = self(a), self(b)
        return np.asarray(((left - self.weights @ left) * self.weights[:, None]).T @ (right - self.weights @ right))

    @property
    def observation_variance(self) -> float:
        """Variance of an observation about the function."""
        return self.gp.observation_variance

    def improvement(self, x: Floats, best: float) -> Floats:
        """E[max(best - f, 0)] over the weighted draws, ``[m]``."""
        return np.asarray(self.weights @ np.maximum(best - self(x), 0.0))

    def _prior(self, x: Floats) -> Floats:
        # Single precision halves the time; its error is far below that of the number of draws.
        angles = x.astype(np.float32) @ self.frequencies
        return np.asarray(np.hstack([np.cos(angles), np.sin(angles)]) @ self.heights, dtype=np.float64)


def draw_paths(gp: GP, count: int, rng: np.random.Generator, features: int = 256) -> Paths:
    """Functions drawn from the posterior of a stationary GP, all of the same weight.

    Cosines and sines in pairs have the right variance everywhere, and nearly the right covariance of what is close;
    frequencies spread by a Sobol sequence stand for the kernel with fewer of them. ``features`` is a power of two.

    Raises:
        UsageError: the kernel is not stationary, and has no frequencies to draw.
    """
    kernel = gp.kernel
    if not isinstance(kernel, Stationary):
        raise UsageError(f"paths are drawn from a stationary kernel, not from {type(kernel).__name__}")
    lengths = kernel.lengthscales if kernel.groups is None else kernel.lengthscales[kernel.groups]
    spread = qmc.Sobol(len(lengths) + 1, seed=rng).random(features).clip(1e-12, 1 - 1e-12)
    frequencies = ndtri(spread[:, :-1]).T / lengths[:, None]
    if kernel.shape in FREEDOM:
        freedom = FREEDOM[kernel.shape]
        frequencies *= np.sqrt(freedom / chdtri(freedom, spread[:, -1]))
    heights = np.sqrt(kernel.scale / features) * rng.standard_normal((2 * features, count))
    drawn = Paths(
        gp, frequencies.astype(np.float32), heights.astype(np.float32),
        np.zeros((len(gp.x), count)), np.full(count, 1 / count),
    )  # fmt: skip
    errors = np.sqrt(gp.noise)[:, None] * rng.standard_normal((len(gp.x), count))
    correction = gp.weights[:, None] - cho_solve((gp.factor, True), drawn._prior(gp.x) + errors)
    return Paths(gp, drawn.frequencies, drawn.heights, correction, drawn.weights)


def reweighted(
    drawn: Paths, space: Space, history: History, beliefs: Sequence[Belief], rng: np.random.Generator
) -> Paths:
    """The draws, weighted by how well the optimum of each agrees with the beliefs; those of hardly any are dropped."""
    grid = space.grid
    whole = grid is not None and len(grid.points) <= _WHOLE_GRID
    rows = grid.points if grid is not None and whole else representatives(space, history, rng, _REPRESENTATIVES)
    x = space.encode(rows)
    values = drawn(x)
    lowest = values.argmin(axis=1)
    everywhere = x if whole else space.encode(space.sample(_REPRESENTATIVES, rng))
    weights = np.ones(len(lowest))
    for belief in beliefs:
        weights = weights * belief.density(space, x[lowest], values.min(axis=1), everywhere)
    if not weights.sum() > 0:
        weights = np.ones(len(lowest))
    kept = np.flatnonzero(weights >= 1e-3 * weights.mean())
    return Paths(
        drawn.gp, drawn.frequencies, drawn.heights[:, kept], drawn.correction[:, kept],
        weights[kept] / weights[kept].sum(),
    )  # fmt: skip


@dataclass(frozen=True)
class BelievedGP:
    """A surrogate: draws from a GP, weighted by what the user believes.

    Attributes:
        beliefs: all of which hold; none: plain Monte Carlo. draws: functions. features: pairs of waves of each.
        surrogate: the GP that they are drawn from.
    """

    beliefs: Sequence[Belief] = ()
    draws: int = 512
    features: int = 256
    surrogate: GPSurrogate = field(default_factory=RefittedGP)

    def __call__(self, space: Space, history: History, rng: np.random.Generator) -> Paths:
        """The weighted draws."""
        drawn = draw_paths(self.surrogate(space, history, rng), self.draws, rng, self.features)
        return reweighted(drawn, space, history, self.beliefs, rng) if self.beliefs else drawn


def log_monte_carlo_improvement(posterior: Posterior, x: Floats, best: float) -> Floats:
    """Log of ``Paths.improvement``.

    Raises:
        UsageError: the surrogate has no draws.
    """
    if not isinstance(posterior, Paths):
        raise UsageError(f"Monte Carlo EI needs the draws of BelievedGP, which {type(posterior).__name__} has not")
    return np.asarray(np.log(np.maximum(posterior.improvement(x, best), _LEAST)))


ACQUISITIONS: Final[dict[str, Acquisition | Preparation]] = {
    "ei": log_monte_carlo_improvement,
    "mes": MaxValueEntropy(),
    "kg": KnowledgeGradient(),
}
"""What can be asked of weighted draws."""


@dataclass(frozen=True)
class Believing:
    """Bayesian optimization with beliefs. The first sample is drawn from where the optimum is believed to lie.

    Attributes:
        surrogate: holds the beliefs. acquisition: asked of its draws. initial: evaluations before the first surrogate.
    """

    surrogate: BelievedGP = field(default_factory=BelievedGP)
    acquisition: Acquisition | Preparation = log_monte_carlo_improvement
    initial: int | None = None

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        where = [belief for belief in self.surrogate.beliefs if isinstance(belief, Location)]
        usual = opening(space, history, count, rng, self.initial)
        if usual is None or not where:
            return Bayesian(self.surrogate, self.acquisition, self.initial).propose(space, history, count, rng)
        begun = len(history) + len(history.pending)
        drawn = believed_sample(space, where, begun + count, np.random.default_rng([history.seed, 1]))
        rows = drawn[begun:] if space.grid is None else unseen(space, drawn, history)[:count]
        return rows if len(rows) == count else usual


def believed_sample(space: Space, beliefs: Sequence[Belief], count: int, rng: np.random.Generator) -> Floats:
    """Configurations drawn by the density of beliefs about the place, ``[count, width]``.

    The first of them are the same for any count, and none comes twice: a small space may have fewer.
    """
    size = _POOL if space.grid is None else min(_POOL, len(space.grid.points))
    pool = space.sample(size, rng)
    x = space.encode(pool)
    density = np.ones(len(x))
    for belief in beliefs:
        density = density * belief.density(space, x, np.zeros(len(x)), x)
    # The largest of log density plus Gumbel noise are a sample without replacement.
    order = np.argsort(-(np.log(density + _LEAST) + rng.gumbel(size=len(x))), kind="stable")
    return np.asarray(pool[order[:count]])


def believing(beliefs: Sequence[Belief], acquisition: str = "ei", initial: int | None = None) -> Believing:
    """Bayesian optimization with beliefs, none of which makes it plain Monte Carlo.

    Raises:
        UnknownName: no such acquisition function.
    """
    if acquisition not in ACQUISITIONS:
        raise UnknownName("acquisition function", acquisition, ACQUISITIONS)
    return Believing(BelievedGP(tuple(beliefs)), ACQUISITIONS[acquisition], initial)


def _explain(
    problem: str, at: tuple[float, ...], spread: float, value: float | None, value_spread: float, doubt: float,
    acquisition: str, evaluations: int, seeds: int,
) -> Explanation:  # fmt: skip
    known = {name: p for name, p in PROBLEMS.items() if p.constraints is None}
    if problem not in known:
        raise UnknownName("problem", problem, known)
    asked = known[problem]
    beliefs: list[Belief] = []
    if at:
        if len(at) != asked.dimension or not all(0 <= a <= 1 for a in at):
            raise UsageError(f"--at is a place in the unit cube: {asked.dimension} numbers from 0 to 1, not {at}")
        beliefs.append(Location({f"x{i}": a for i, a in enumerate(at)}, spread, doubt))
    if value is not None:
        beliefs.append(Value(value, value_spread, doubt))
    if not beliefs:
        raise UsageError("what do you believe? give --at, where the optimum lies, or --value, what it reaches")
    methods: dict[str, Method] = {
        "with beliefs": believing(beliefs, acquisition),
        "without": believing((), acquisition),
        "random": RandomSearch(),
    }
    found = compare(methods, [asked], seeds, evaluations)
    with_, without, _ = np.median(found.curves[:, 0], axis=1)
    reached = np.flatnonzero(with_ <= without[-1])
    return Explanation(
        {
            "optimum": asked.optimum,
            "regret_with_beliefs": float(with_[-1]),
            "regret_without": float(without[-1]),
            "evaluations_to_match": int(reached[0]) + 1 if len(reached) else None,
        },
        (found.table(),),
        (
            f"With the beliefs, {int(reached[0]) + 1} evaluations reach the median regret of {evaluations} without."
            if len(reached)
            else f"With the beliefs, {evaluations} evaluations do not reach the median regret of as many without.",
        ),
    )


TOPIC = Topic(
    "beliefs",
    "How many evaluations does it save to know roughly where the optimum lies, and what does a wrong belief cost?",
    "Hvarfner, Hutter and Nardi, A General Framework for User-Guided Bayesian Optimization, ICLR 2024 "
    "(arXiv 2311.14645)",
    (
        Option("problem", str, "A test problem without constraints, on the unit cube.", "branin"),
        Option("at", numbers, "Where the optimum is believed to lie, a number from 0 to 1 for each input.", ()),
        Option("spread", float, "Standard deviation of that, as a share of the range.", 0.1),
        Option("value", float, "The least value that is believed to be reached.", None),
        Option("value_spread", float, "Standard deviation of that, in its units.", 1.0),
        Option("doubt", float, "Probability that a belief is wrong.", 0.01),
        Option("acquisition", str, "ei, mes or kg.", "ei"),
        Option("evaluations", int, "Evaluations of a run.", 20),
        Option("seeds", int, "Runs.", 3),
    ),
    _explain,
    "--problem branin --at 0.55,0.16 --evaluations 14 --seeds 2",
)
