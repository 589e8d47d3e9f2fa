"""Which method is best? Methods by problems by seeds at one budget, and their regrets.

A method is anything with ``propose(space, history, count, rng)``. Runs of one seed share their first sample and their
noise draws. With noise, what counts is the regret of what a person would take home: the true value of the
configuration with the least mean of one and the same GP, whatever the method.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata, wilcoxon

from nearpeak.search.bayesian import gp_surrogate
from nearpeak.search.candidates import maximize
from nearpeak.search.history import History
from nearpeak.search.loop import Method
from nearpeak.search.parameters import Float, Floats
from nearpeak.search.problems import Problem
from nearpeak.search.space import Space
from nearpeak.topic import Table


def cube(dimension: int) -> Space:
    """The unit cube, on which test problems live."""
    return Space({f"x{i}": Float(0.0, 1.0) for i in range(dimension)})


def run(
    method: Method, function: Callable[[Floats], Floats], space: Space, evaluations: int, seed: int, batch: int = 1
) -> History:
    """One run of a method on an exact function of configurations ``[n, width]``; NaN: it failed."""
    history = History.empty(space.width, seed=seed)
    while len(history) < evaluations:
        count = min(batch, evaluations - len(history))
        points = method.propose(space, history, count, np.random.default_rng([seed, len(history)]))
        for point, value in zip(points, function(points), strict=True):
            history = history.told(point, float(value), 0.0)
    return history


def tabled(space: Space, values: Floats) -> Callable[[Floats], Floats]:
    """The function of configurations that a table is: ``values [N]`` of the rows of ``space.grid``."""
    grid = space.grid
    assert grid is not None
    return lambda points: values[grid.find(points)]


def trial(method: Method, problem: Problem, evaluations: int, seed: int, noise: float = 0.0, batch: int = 1) -> History:
    """One run on the unit cube.

    Args:
        noise: standard deviation of an evaluation as a share of the problem's span; the method is told its variance.
        batch: evaluations that start together, none knowing of the others' values.
    """
    space = cube(problem.dimension)
    limits = 0 if problem.constraints is None else problem.constraints(np.zeros((1, problem.dimension))).shape[1]
    history, sd = History.empty(space.width, limits, seed), noise * problem.span
    disturbance = sd * np.random.default_rng([seed, 1]).standard_normal(evaluations)
    for begun in range(0, evaluations, batch):
        count = min(batch, evaluations - begun)
        points = method.propose(space, history, count, np.random.default_rng([seed, 2, begun]))
        values = problem.function(points) + disturbance[begun : begun + count]
        measured = np.empty((count, 0)) if problem.constraints is None else problem.constraints(points)
        for point, value, measures in zip(points, values, measured, strict=True):
            history = history.told(point, float(value), 0.0, sd**2, measures)
    return history


def best_so_far(problem: Problem, history: History) -> Floats:
    """True regret of the best feasible configuration evaluated so far, ``[n]``; infinite before there is one."""
    true = np.where(history.feasible, problem.function(history.points) - problem.optimum, np.inf)
    return np.asarray(np.minimum.accumulate(true))


def recommended(problem: Problem, history: History) -> float:
    """True regret of the configuration with the least mean of a GP of most probable hyperparameters.

    Anywhere; of the feasible evaluated ones where there are constraints, infinite without one.
    """
    space = cube(problem.dimension)
    posterior = gp_surrogate(space, history, np.random.default_rng(0))
    if problem.constraints is None:
        lowest = maximize(space, lambda x: -posterior.predict(x)[0], history, np.random.default_rng(0))
        return float(problem.function(lowest[None])[0] - problem.optimum)
    points = history.points[history.feasible]
    if len(points) == 0:
        return np.inf
    chosen = points[np.argmin(posterior.predict(space.encode(points))[0])]
    return float(problem.function(chosen[None])[0] - problem.optimum)


@dataclass(frozen=True)
class Study:
    """Regrets of a study.

    Attributes:
        methods, problems: their names. curves: regret of the best so far, ``[methods, problems, seeds, evaluations]``.
        final: regret at the end of what would be taken home, ``[methods, problems, seeds]``.
    """

    methods: tuple[str, ...]
    problems: tuple[str, ...]
    curves: Floats
    final: Floats

    @property
    def ranks(self) -> Floats:
        """Mean rank of each method on each problem over seeds, 1 the best, ``[methods, problems]``."""
        return np.asarray(rankdata(self.final, axis=0).mean(axis=2))

    @property
    def winners(self) -> tuple[str, ...]:
        """The method with the least median regret on each problem."""
        return tuple(self.methods[i] for i in np.median(self.final, axis=2).argmin(axis=0))

    def lower(self, method: str, other: str) -> Floats:
        """One-sided Wilcoxon signed-rank p of "method has lower regret than other", by problem, ``[problems]``."""
        a, b = (self.final[self.methods.index(name)] for name in (method, other))
        return np.asarray(
            [1.0 if (x == y).all() else float(wilcoxon(x, y, alternative="less")[1]) for x, y in zip(a, b, strict=True)]
        )

    def table(self) -> Table:
        """Median, lower and upper quartile of the regret and the mean rank, by problem and method."""
        low, middle, high = np.quantile(self.final, [0.25, 0.5, 0.75], axis=2)
        shape = middle.shape
        names = np.broadcast_to(np.asarray(self.methods)[:, None], shape)
        problems = np.broadcast_to(np.asarray(self.problems), shape)
        columns = {"median_regret": middle, "lower_quartile": low, "upper_quartile": high, "mean_rank": self.ranks}
        return Table.of(
            "Regret at the end",
            problem=problems.T.ravel(),
            method=names.T.ravel(),
            **{name: column.T.ravel() for name, column in columns.items()},
        )


def compare(
    methods: Mapping[str, Method],
    problems: Sequence[Problem],
    seeds: int,
    evaluations: int,
    noise: float = 0.0,
    batch: int = 1,
    first_seed: int = 0,
) -> Study:
    """Run every method on every problem with every seed."""
    curves = np.empty((len(methods), len(problems), seeds, evaluations))
    final = np.empty(curves.shape[:3])
    for i, method in enumerate(methods.values()):
        for j, problem in enumerate(problems):
            for k in range(seeds):
                history = trial(method, problem, evaluations, first_seed + k, noise, batch)
                curves[i, j, k] = best_so_far(problem, history)
                final[i, j, k] = recommended(problem, history) if noise else curves[i, j, k, -1]
    return Study(tuple(methods), tuple(p.name for p in problems), curves, final)
