"""Several objectives at once: the configurations of which none is better in all of them.

``minimize_many`` evolves a population with one of three methods, each whole-population code on NumPy arrays or torch
tensors (Liang et al., IEEE Transactions on Evolutionary Computation, 2025):

- ``nsga3``: fronts, and niches along reference directions. The default: it needs no care.
- ``moead``: one scalar subproblem a direction. The cheapest generation, and the fastest to converge where the front
  meets every direction.
- ``hype``: the individuals that the dominated volume needs most. The best spread on fronts of odd shapes.

The objectives are a function of all configurations of a generation at once, ``[n, d] -> [n, m]``, and are minimised.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from nearpeak.errors import NearpeakError, UnknownName, UsageError
from nearpeak.search.populations.dominance import crowding, sorted_front
from nearpeak.search.populations.evolution import (
    Array,
    Genes,
    Population,
    Random,
    generator,
    ideal_of,
    like,
    namespace,
    offspring,
    reference_directions,
    repeated,
    to_numpy,
    uniform,
)
from nearpeak.search.populations.hype import HypE
from nearpeak.search.populations.hypervolume import hypervolume
from nearpeak.search.populations.moead import MOEAD
from nearpeak.search.populations.nsga3 import NSGA3
from nearpeak.topic import Explanation, Option, Table, Topic, names

Objectives = Callable[[Array], Array]
METHODS = ("hype", "moead", "nsga3")
KINDS = ("float", "integer", "categorical")


class Method(Protocol):
    """Who becomes a parent, and who survives."""

    def parents(self, population: Population, rng: Random) -> tuple[Array, Array]:
        """Indices of pairs."""
        ...

    def survive(self, parents: Population, children: Population, rng: Random) -> Population:
        """The next population."""
        ...


@dataclass(frozen=True)
class Front:
    """Configurations none of which another dominates, in ascending order of the first objective.

    Attributes:
        points: ``[k, d]`` as the objectives saw them. values: ``[k, m]``. evaluations: that were made.
    """

    points: np.ndarray
    values: np.ndarray
    evaluations: int


def genes_of(bounds: ArrayLike, kinds: Sequence[str] | None = None) -> Genes:
    """Columns between ``bounds [d, 2]``, of the ``kinds`` ``float`` (if none is given), ``integer``, ``categorical``.

    Integers and categories are whole numbers from the lower to the upper bound, both included.

    Raises:
        UsageError: bounds are no pairs, not finite, in the wrong order, or not whole where they must be.
        UnknownName: a kind is none of the three.
    """
    pairs = np.asarray(bounds, float)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
        raise UsageError(f"bounds must be a pair of numbers for each column, not an array of shape {pairs.shape}")
    every = ["float"] * len(pairs) if kinds is None else list(kinds)
    for kind in every:
        if kind not in KINDS:
            raise UnknownName("kind of column", kind, KINDS)
    if len(every) != len(pairs):
        raise UsageError(f"{len(pairs)} pairs of bounds need as many kinds, not {len(every)}")
    low, high = pairs.T.copy()
    whole = np.array([kind != "float" for kind in every])
    bad = ~(np.isfinite(pairs).all(1) & (low <= high)) | (whole & (pairs != np.rint(pairs)).any(1))
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise UsageError(
            f"column {at} ({every[at]}) has the bounds {low[at]:g} and {high[at]:g}: give finite ones, the lower "
            "first, and whole numbers where the column is discrete"
        )
    return Genes(low, high, np.where(whole, high - low + 1, 0.0), np.array([kind == "categorical" for kind in every]))


def method_of(name: str, objectives: int, population: int, device: str | None = None) -> tuple[Method, int]:
    """The method called ``name``, and the population that it takes: ``moead`` takes one individual a direction.

    Raises:
        UnknownName: there is no such method.
    """
    if name not in METHODS:
        raise UnknownName("evolutionary method", name, METHODS)
    if name == "hype":
        return HypE(), population
    directions = reference_directions(objectives, population)
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    placed = directions if device is None else like(directions, uniform(generator(0, device), 1))
    return (NSGA3(placed), population) if name == "nsga3" else (MOEAD(placed), len(directions))


def evolve(
    f: Objectives,
    bounds: ArrayLike,
    population: int = 200,
    method: str = "nsga3",
    seed: int = 0,
    kinds: Sequence[str] | None = None,
    constraints: Objectives | None = None,
    device: str | None = None,
) -> Iterator[tuple[Population, Genes]]:
    """The population of each generation, the random first one included, without end; arguments of ``minimize_many``."""
    genes, rng = genes_of(bounds, kinds), generator(seed, device)
    if population < 4:
        raise UsageError(f"the population must be 4 or more, not {population}")
    if device is not None:
        where = uniform(rng, 1)
        genes = Genes(*(like(g, where) for g in (genes.low, genes.high, genes.levels, genes.categorical)))

    def assess(points: Array) -> tuple[Array, Array]:
        xp, seen = namespace(points), genes.decode(points)
        values = f(seen)
        if len(values.shape) != 2 or len(values) != len(points):
            raise UsageError(
                f"the objectives of {len(points)} configurations must be an array of as many rows, one column an "
                f"objective, not of shape {tuple(values.shape)}"
            )
        failed = ~xp.all(xp.isfinite(values), 1)
        over = 0.0 if constraints is None else xp.sum(constraints(seen).clip(0.0, None), 1)
        return xp.where(failed[:, None], xp.inf, values), xp.where(failed, xp.inf, over + xp.zeros_like(points[:, 0]))

    points = genes.snap(uniform(rng, population, len(genes.low)))
    values, violation = assess(points)
    objectives = int(values.shape[1])
    rule, count = method_of(method, objectives, population, device)
    points, values, violation = points[:count], values[:count], violation[:count]
    ideal = ideal_of(values, violation, namespace(values).full_like(values[0], np.inf))
    current = Population(points, values, violation, violation, ideal, values[:0])
    while True:
        yield current, genes
        first, second = rule.parents(current, rng)
        points = offspring(current.points, first, second, count, rng, genes)
        values, violation = assess(points)
        children = Population(points, values, violation, violation, current.ideal, current.extremes)
        current = rule.survive(current, children, rng)


def minimize_many(
    f: Objectives,
    bounds: ArrayLike,
    population: int = 200,
    generations: int = 100,
    method: str = "nsga3",
    seed: int = 0,
    kinds: Sequence[str] | None = None,
    constraints: Objectives | None = None,
    device: str | None = None,
) -> Front:
    """The front of ``f`` after so many generations.

    Args:
        f: the objectives ``[n, m]`` of configurations ``[n, d]``, both arrays, or both tensors on ``device``. A row
            with a value that is not finite has failed.
        bounds: ``[d, 2]``. kinds: of each column, ``float``, ``integer`` or ``categorical`` (``genes_of``).
        population: 4 or more; ``moead`` takes the largest lattice of directions that is not larger.
        generations: 0 or more. method: ``nsga3``, ``moead`` or ``hype``.
        seed: same seed, same front. device: of torch; without one NumPy computes.
        constraints: ``[n, c]`` of configurations; a configuration is feasible where none is above 0.

    Raises:
        UsageError: an argument makes no sense. UnknownName: of a method or kind.
        NearpeakError: no configuration that was met is feasible and did not fail.
    """
    if generations < 0:
        raise UsageError(f"generations must be 0 or more, not {generations}")
    course = evolve(f, bounds, population, method, seed, kinds, constraints, device)
    for _ in range(generations + 1):
        last, genes = next(course)
    return front_of(last, genes, len(last.points) * (generations + 1))


def front_of(population: Population, genes: Genes, evaluations: int) -> Front:
    """The feasible individuals none of which another dominates.

    Raises:
        NearpeakError: none is feasible.
    """
    feasible = population.violation <= 0
    if not bool(feasible.any()):
        least = float(namespace(feasible).amin(population.violation, 0))
        raise NearpeakError(
            f"all evaluations of {len(feasible)} individuals failed"
            if math.isinf(least)
            else f"no configuration is feasible; the nearest violates its constraints by {least:g} in sum: relax them, "
            "or give more generations"
        )
    values, points = population.values[feasible], genes.decode(population.points[feasible])
    index = sorted_front(values)
    index = index[~repeated(to_numpy(points)[index])]
    return Front(to_numpy(points)[index], to_numpy(values)[index], evaluations)


def dtlz2(x: Array, objectives: int = 3) -> Array:
    """DTLZ2 (Deb et al., 2002) of ``[n, d]`` in the unit cube; the front is the unit sphere's part above 0."""
    xp = namespace(x)
    angle, rest = x[:, : objectives - 1] * (math.pi / 2), x[:, objectives - 1 :] - 0.5
    radius = 1 + xp.sum(rest * rest, 1)
    cosine, sine, product, columns = xp.cos(angle), xp.sin(angle), radius, []
    for j in range(objectives - 1):
        columns.append(product * sine[:, j])
        product = product * cosine[:, j]
    return xp.stack([product, *columns[::-1]], 1)


def dtlz1(x: Array, objectives: int = 3) -> Array:
    """DTLZ1 of ``[n, d]``: the front is the plane that cuts all axes at a half, behind ``11^(d - m + 1)`` others."""
    xp = namespace(x)
    rest = x[:, objectives - 1 :] - 0.5
    ripples = xp.sum(rest * rest - xp.cos(20 * math.pi * rest), 1) + rest.shape[1]
    product, columns = 0.5 * (1 + 100 * ripples), []
    for j in range(objectives - 1):
        columns.append(product * (1 - x[:, j]))
        product = product * x[:, j]
    return xp.stack([product, *columns[::-1]], 1)


def zdt1(x: Array, objectives: int = 2) -> Array:
    """ZDT1 (Zitzler et al., 2000) of ``[n, d]``, always two objectives; the front is ``f2 = 1 - sqrt(f1)``."""
    xp = namespace(x)
    g = 1 + 9 * xp.mean(x[:, 1:], 1)
    return xp.stack([x[:, 0], g - xp.sqrt(g * x[:, 0])], 1)


def best_volume(problem: str, objectives: int, reference: float) -> float:
    """The volume that the whole front of a problem dominates below ``reference`` in each objective (1 or more)."""
    if problem == "dtlz2":
        ball = math.pi ** (objectives / 2) / math.gamma(objectives / 2 + 1) / 2**objectives
        return float(reference**objectives - ball)
    if problem == "dtlz1":
        return float(reference**objectives - 0.5**objectives / math.factorial(objectives))
    return float(reference**2 - 1 / 3)


PROBLEMS: dict[str, Callable[[Array, int], Array]] = {"dtlz1": dtlz1, "dtlz2": dtlz2, "zdt1": zdt1}


def _explain(
    problem: str, methods: tuple[str, ...], objectives: int, columns: int, population: int, generations: int, seed: int
) -> Explanation:
    if problem not in PROBLEMS:
        raise UnknownName("problem", problem, PROBLEMS)
    if objectives < 2 or columns < objectives:
        raise UsageError(f"give 2 objectives or more, and as many columns, not {objectives} and {columns}")
    many = 2 if problem == "zdt1" else objectives
    best = best_volume(problem, many, 1.1)
    rows: list[dict[str, Any]] = []
    fronts = []
    for method in methods:
        start = time.perf_counter()
        found = minimize_many(
            lambda x: PROBLEMS[problem](x, many), [(0, 1)] * columns, population, generations, method, seed
        )
        took = time.perf_counter() - start
        volume = hypervolume(found.values, np.full(many, 1.1))
        fronts.append(found)
        rows.append({
            "method": method,
            "front": len(found.values),
            "hypervolume": volume.value,
            "standard_error": volume.error,
            "of_the_whole_front_share": volume.value / best,
            "generation_time": took / max(generations, 1),
        })  # fmt: skip
    order = sorted(range(len(rows)), key=lambda i: -rows[i]["hypervolume"])
    first = rows[order[0]]
    shown = fronts[order[0]].values
    apart = crowding(shown, np.zeros(len(shown), np.int64))
    spread = np.sort(np.argsort(-apart, kind="stable")[:12])
    return Explanation(
        {"best_method": first["method"], "hypervolume": first["hypervolume"], "of_the_whole": best},
        (
            Table("Volume dominated below 1.1 in each objective", tuple(rows)),
            Table.of(
                f"The loneliest of the front that {first['method']} found",
                **{f"f{j + 1}": shown[spread, j] for j in range(many)},
            ),
        ),
        (
            f"{first['method']} dominates {100 * first['of_the_whole_front_share']:.2f} % of what the "
            f"whole front of {problem} does, after {fronts[order[0]].evaluations} evaluations.",
        ),
    )


TOPIC = Topic(
    "pareto",
    "Which configurations are better in no objective without being worse in another, and how fast are they found?",
    "Liang et al., Bridging Evolutionary Multiobjective Optimization and GPU Acceleration via Tensorization, IEEE "
    "Transactions on Evolutionary Computation, 2025 (arXiv 2503.20286)",
    (
        Option("problem", str, "Test problem: dtlz1, dtlz2 or zdt1 (two objectives).", "dtlz2"),
        Option("methods", names, "Methods to compare: nsga3, moead, hype.", ("nsga3", "moead", "hype")),
        Option("objectives", int, "Objectives.", 3),
        Option("columns", int, "Columns of a configuration.", 12),
        Option("population", int, "Individuals of a generation.", 1000),
        Option("generations", int, "Generations.", 100),
        Option("seed", int, "Of all random numbers.", 0),
    ),
    _explain,
    "--problem dtlz2 --population 300 --generations 60",
)
