"""Who wins, by how much, how sure: repeated runs of several algorithms on many problems, compared by a hierarchical
model (Goswami, Bayesian hierarchical models for quantitative estimates for performance metrics applied to saddle search
algorithms, AIP Advances 2025, arXiv 2505.13621). ``mixed`` holds the model and its sampler.

A mean over problems hides that some problems are a thousand times harder than others. Here each problem has an effect
of its own that all algorithms share, and each pair of problem and algorithm another; what is left is the effect of the
algorithm on a typical problem, with an interval that knows how many problems were seen and how they differ:

| family | value | effect |
| --- | --- | --- |
| ``gaussian`` | a score, such as the log of a regret | difference |
| ``lognormal`` | a positive time or cost | ratio of typical values |
| ``negative-binomial`` | a count of calls or iterations | ratio of expected counts |
| ``bernoulli`` | success, 0 or 1 | odds ratio |

Smaller is better, except that more successes are. ``fallback`` says from it what to try on each problem, and what next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from nearpeak.errors import UnknownName, UsageError
from nearpeak.inference.mixed import Posterior, cells, posterior
from nearpeak.topic import Table

Array = NDArray[np.float64]
FAMILIES = ("gaussian", "lognormal", "negative-binomial", "bernoulli")


@dataclass(frozen=True)
class Effect:
    """How one thing compares with another: a ratio, or for Gaussian values a difference.

    Attributes:
        name: what is compared. effect: the posterior's median; below 1 (a difference: below 0) the first is smaller.
        low, high: the interval of the comparison's level. better: probability that the first is better.
        best: probability that it is best of all; NaN where it is no algorithm.
        elsewhere: expected share of further problems of this kind on which it is better; NaN likewise.
    """

    name: str
    effect: float
    low: float
    high: float
    better: float
    best: float = float("nan")
    elsewhere: float = float("nan")

    def sure(self, neutral: float) -> bool:
        """Whether the interval excludes no effect, which is 1 for ratios and 0 for differences."""
        return not self.low <= neutral <= self.high


@dataclass(frozen=True)
class Comparison:
    """A posterior of algorithms over problems.

    Attributes:
        family: one of ``FAMILIES``. algorithms, problems: in the order of the posterior's axes.
        baseline: algorithm that effects are against. level: probability inside every interval.
        posterior: draws of ``alpha``, ``eta``, ``between`` and ``within``, on the scale of logs and log odds.
    """

    family: str
    algorithms: tuple[str, ...]
    problems: tuple[str, ...]
    baseline: str
    level: float
    posterior: Posterior

    @property
    def neutral(self) -> float:
        """The effect that is none: 0 for differences, 1 for ratios."""
        return 0.0 if self.family == "gaussian" else 1.0

    @property
    def sign(self) -> float:
        """1 where smaller is better, -1 where larger is."""
        return -1.0 if self.family == "bernoulli" else 1.0

    def _index(self, algorithm: str) -> int:
        if algorithm not in self.algorithms:
            raise UnknownName("algorithm", algorithm, self.algorithms)
        return self.algorithms.index(algorithm)

    def scaled(self, draws: Array) -> Array:
        """Draws of ``alpha`` or ``eta``, or of their differences, in the units of the values, or as ratios."""
        return draws if self.family == "gaussian" else np.exp(draws)

    def contrast(self, name: str, weights: Mapping[str, float]) -> Effect:
        """The effect of a weighted sum of algorithms on a typical problem; weights of a comparison sum to 0.

        Raises:
            UnknownName: a weight is for no algorithm of the comparison.
        """
        draws = sum(weight * self.posterior.alpha[:, self._index(a)] for a, weight in weights.items())
        return self._effect(name, np.asarray(draws))

    def _effect(self, name: str, draws: Array, **more: float) -> Effect:
        tail = (1 - self.level) / 2
        low, middle, high = self.scaled(np.quantile(draws, [tail, 0.5, 1 - tail]))
        return Effect(name, float(middle), float(low), float(high), float((self.sign * draws < 0).mean()), **more)

    @cached_property
    def best(self) -> Array:
        """Probability that each algorithm is best on a typical problem ``[algorithms]``."""
        winner = np.argmin(self.sign * self.posterior.alpha, axis=1)
        return np.bincount(winner, minlength=len(self.algorithms)) / len(winner)

    def against(self, algorithm: str) -> tuple[Effect, ...]:
        """Every other algorithm against this one, the best first.

        Raises:
            UnknownName: it is no algorithm of the comparison.
        """
        base, found = self._index(algorithm), []
        for j, name in enumerate(self.algorithms):
            if j != base:
                draws = self.posterior.alpha[:, j] - self.posterior.alpha[:, base]
                share = ndtr(-self.sign * draws / (np.sqrt(2) * self.posterior.within)).mean()
                found.append(self._effect(name, draws, best=float(self.best[j]), elsewhere=float(share)))
        return tuple(sorted(found, key=lambda e: self.sign * e.effect))

    def effects(self) -> tuple[Effect, ...]:
        """Every other algorithm against the baseline, the best first."""
        return self.against(self.baseline)

    def by_problem(self, algorithm: str) -> tuple[Array, Array, Array, Array]:
        """Median effect of an algorithm against the baseline on each problem seen, its interval, and how probably it
        is better there: four arrays ``[problems]``.

        Raises:
            UnknownName: it is no algorithm of the comparison.
        """
        eta, tail = self.posterior.eta, (1 - self.level) / 2
        draws = eta[:, :, self._index(algorithm)] - eta[:, :, self._index(self.baseline)]
        low, middle, high = self.scaled(np.quantile(draws, [tail, 0.5, 1 - tail], axis=0))
        return middle, low, high, (self.sign * draws < 0).mean(axis=0)

    def exceptions(self) -> tuple[tuple[str, str, Effect], ...]:
        """Interactions that are sure: (problem, algorithm, effect against the baseline there) where that effect's
        interval excludes the typical effect's median; the most unusual first.
        """
        found = []
        for typical in self.effects():
            middle, low, high, better = self.by_problem(typical.name)
            for i in np.flatnonzero((low > typical.effect) | (high < typical.effect)):
                effect = Effect(typical.name, *(float(a[i]) for a in (middle, low, high, better)))
                away = middle[i] - typical.effect if self.family == "gaussian" else np.log(middle[i] / typical.effect)
                found.append((abs(float(away)), self.problems[i], typical.name, effect))
        return tuple((p, a, e) for _, p, a, e in sorted(found, key=lambda f: -f[0]))

    def table(self) -> Table:
        """Effects against the baseline, the best first; the baseline has its probability of being best."""
        none, own = self.neutral, float(self.best[self._index(self.baseline)])
        itself = Effect(self.baseline, none, none, none, 0.5, own, 0.5)
        rows = sorted((itself, *self.effects()), key=lambda e: self.sign * e.effect)
        kind = {"gaussian": "difference", "bernoulli": "odds_ratio"}.get(self.family, "ratio")
        return Table(
            f"Against {self.baseline}, {100 * self.level:g} % intervals",
            tuple(
                {
                    "algorithm": e.name, kind: e.effect, "low": e.low, "high": e.high, "better_probability": e.better,
                    "best_probability": e.best, "better_problems_share": e.elsewhere,
                }
                for e in rows
            ),
        )  # fmt: skip


def _codes(labels: ArrayLike) -> tuple[tuple[str, ...], NDArray[np.intp]]:
    """Labels in the order in which they come first, and the index of each row's."""
    given = np.asarray(labels).astype(str)
    found, first, inverse = np.unique(given, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return tuple(found[order].tolist()), place[inverse.reshape(-1)]


def _checked(value: Array, family: str) -> Array:
    if family not in FAMILIES:
        raise UnknownName("family", family, FAMILIES)
    needs = {
        "gaussian": ("finite", np.isfinite(value)),
        "lognormal": ("finite and above 0", np.isfinite(value) & (value > 0)),
        "negative-binomial": ("counts 0, 1, 2, ...", np.isfinite(value) & (value >= 0) & (value == np.round(value))),
        "bernoulli": ("0 or 1", np.isin(value, (0.0, 1.0))),
    }
    what, good = needs[family]
    if not good.all():
        at = int(np.argmin(good))
        raise UsageError(f"value {value[at]:g} of row {at} does not suit family {family}: its values are {what}")
    return np.log(value) if family == "lognormal" else value


def compare_algorithms(
    problem: ArrayLike,
    algorithm: ArrayLike,
    value: ArrayLike,
    family: str = "gaussian",
    baseline: str | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> Comparison:
    """Compare algorithms over problems by a hierarchical model of all runs.

    Args:
        problem, algorithm: labels of each run ``[n]``. Not every pair needs runs, and not equally many.
        value: of each run ``[n]``; smaller is better, but for successes. family: one of ``FAMILIES``.
        baseline: algorithm that effects are against; the first one of the rows where none is given.
        level: probability inside the intervals.

    Raises:
        UsageError: columns differ in length, there are fewer than 2 algorithms or problems, values do not suit the
            family or do not vary, or the level is not between 0 and 1.
        UnknownName: no such family or baseline.
    """
    values = np.asarray(value, float).reshape(-1)
    problems, at = _codes(problem)
    algorithms, tried = _codes(algorithm)
    if not len(values) == len(at) == len(tried):
        raise UsageError(
            f"problem, algorithm and value must be equally long, not {len(at)}, {len(tried)}, {len(values)}"
        )
    if not 0 < level < 1:
        raise UsageError(f"level must be between 0 and 1, not {level:g}")
    if len(algorithms) < 2 or len(problems) < 2:
        raise UsageError(
            f"a comparison over problems takes 2 algorithms and 2 problems or more, not {len(algorithms)} "
            f"({', '.join(algorithms[:3])}) and {len(problems)} ({', '.join(problems[:3])})"
        )
    reference = algorithms[0] if baseline is None else baseline
    if reference not in algorithms:
        raise UnknownName("baseline", reference, algorithms)
    values = _checked(values, family)
    if np.ptp(values) == 0 and family != "bernoulli":
        raise UsageError(f"all {len(values)} runs have the same value: there is nothing to compare")
    data = cells(at, tried, values, "gaussian" if family == "lognormal" else family)
    return Comparison(family, algorithms, problems, reference, level, posterior(data, seed))


def interactions(comparison: Comparison, first: Sequence[str], second: Sequence[str]) -> tuple[Effect, ...]:
    """Main effects and interactions of two factors whose combinations are the algorithms.

    A factor's main effect is that of a level against its first level, averaged over the other factor. An interaction is
    how the effect of one changes with the other: a ratio of ratios, for Gaussian scores a difference of differences.

    Args:
        first, second: level of each factor by algorithm, in the order of ``comparison.algorithms``.

    Raises:
        UsageError: a combination of levels was not run.
    """
    levels = [tuple(dict.fromkeys(f)) for f in (first, second)]
    at = {
        pair: name for *pair_, name in zip(first, second, comparison.algorithms, strict=True) for pair in [tuple(pair_)]
    }
    missing = [f"{a} with {b}" for a in levels[0] for b in levels[1] if (a, b) not in at]
    if missing:
        raise UsageError(f"interactions take every combination of levels; not run: {', '.join(missing[:3])}")
    (a0, *others_a), (b0, *others_b) = levels
    found = []
    for a in others_a:
        share = 1 / len(levels[1])
        found.append(comparison.contrast(
            f"{a} against {a0}", {at[x, b]: sign * share for x, sign in ((a, 1), (a0, -1)) for b in levels[1]}
        ))  # fmt: skip
    for b in others_b:
        share = 1 / len(levels[0])
        found.append(comparison.contrast(
            f"{b} against {b0}", {at[a, x]: sign * share for x, sign in ((b, 1), (b0, -1)) for a in levels[0]}
        ))  # fmt: skip
    for a in others_a:
        for b in others_b:
            weights = {at[a, b]: 1.0, at[a, b0]: -1.0, at[a0, b]: -1.0, at[a0, b0]: 1.0}
            found.append(comparison.contrast(f"{a} x {b}", weights))
    return tuple(found)
