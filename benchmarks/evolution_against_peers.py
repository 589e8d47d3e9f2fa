r"""Hypervolume per second of the search over several objectives, ours beside the peers that are installed.

Usage: OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/evolution_against_peers.py \
    [--population 1000,10000] [--limit 60] [--only nsga3,pymoo]

The problem is DTLZ2 with 3 objectives and 12 columns. All start from random individuals; the clock is processor time of
one thread and counts all that a method does, its preparation included, but not the measuring of the hypervolume (below
1.1 in each objective, as a share of that of the whole front). A run ends with the generation in which it passes the
limit. Peers and ours take turns. For each run the table shows its generations (of pymoo's
MOEA/D: 500 individuals), seconds a generation, the share that it
reached and share per second; ``same kind`` and ``best of ours`` say how many times sooner our method of the same kind,
and the soonest of ours, reach the share that the peer had when it ended. That is the ratio of hypervolume per second at
equal hypervolume.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

from nearpeak.search.populations.hypervolume import hypervolume
from nearpeak.search.populations.multiobjective import best_volume, dtlz2, evolve

COLUMNS, OBJECTIVES, CORNER = 12, 3, [1.1] * 3
WHOLE = best_volume("dtlz2", OBJECTIVES, 1.1)
Run = Iterator[tuple[int, float, np.ndarray]]
"""Generations, processor seconds so far, and the objectives of the population."""


def parts_for(population: int) -> int:
    """Of the largest lattice with no more directions than the population."""
    return int((np.sqrt(8 * population + 1) - 3) / 2)


def timed(steps: Iterator[np.ndarray]) -> Run:
    """A run of steps, the first of which is the preparation with the first individuals."""
    spent = 0.0
    for generation in range(1 << 30):
        start = time.process_time()
        values = next(steps)
        spent += time.process_time() - start
        yield generation, spent, values


def ours(method: str, population: int, seed: int) -> Run:
    course = evolve(dtlz2, [(0, 1)] * COLUMNS, population, method, seed)
    return timed(p.values for p, _ in course)


def pymoo(method: str, population: int, seed: int) -> Run:
    def steps() -> Iterator[np.ndarray]:
        from pymoo.algorithms.moo.moead import MOEAD
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.algorithms.moo.nsga3 import NSGA3
        from pymoo.problems import get_problem
        from pymoo.util.ref_dirs import get_reference_directions

        made: Any
        if method == "nsga2":
            made = NSGA2(pop_size=population)
        else:
            directions = get_reference_directions("das-dennis", OBJECTIVES, n_partitions=parts_for(population))
            made = NSGA3(directions, pop_size=population) if method == "nsga3" else MOEAD(directions)
        made.setup(get_problem("dtlz2", n_var=COLUMNS, n_obj=OBJECTIVES), termination=("n_gen", 1 << 30), seed=seed)
        made.next()
        while True:
            yield made.pop.get("F")
            # Its MOEA/D advances by one individual; reading the whole population after each would be charged to it.
            for _ in range(500 if method == "moead" else 1):
                made.next()

    return timed(steps())


def evox(method: str, population: int, seed: int) -> Run:
    def steps() -> Iterator[np.ndarray]:
        import torch
        from evox import algorithms
        from evox.core import Problem
        from evox.workflows import StdWorkflow

        class Dtlz2(Problem):  # type: ignore[misc]
            def evaluate(self, x: Any) -> Any:  # noqa: ANN401 (tensors)
                return dtlz2(x)

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        kind = getattr(algorithms, {"nsga3": "NSGA3", "hype": "HypE", "nsga2": "NSGA2", "rvea": "RVEA"}[method])
        made = kind(pop_size=population, n_objs=OBJECTIVES, lb=torch.zeros(COLUMNS), ub=torch.ones(COLUMNS))
        flow = StdWorkflow(made, Dtlz2())
        flow.init_step()
        while True:
            yield flow.algorithm.fit.double().numpy()
            flow.step()

    return timed(steps())


def pygmo(method: str, population: int, seed: int) -> Run:
    """Whole runs of 1, 4, 16, ... generations: pygmo prepares anew whenever it is called."""
    import pygmo as pg

    parts = parts_for(population)
    count = (parts + 1) * (parts + 2) // 2 if method == "moead" else population // 4 * 4
    problem = pg.problem(pg.dtlz(2, dim=COLUMNS, fdim=OBJECTIVES))
    first = pg.population(problem, count, seed=seed)
    yield 0, 0.0, first.get_f()
    for generations in (4**k for k in range(10)):
        options: dict[str, dict[str, Any]] = {
            "moead": {"weight_generation": "grid", "decomposition": "bi"},
            "nsga3": {"divisions": parts},
            "nsga2": {},
        }
        start = time.process_time()
        made = pg.algorithm(getattr(pg, method)(gen=generations, seed=seed, **options[method])).evolve(first)
        yield generations, time.process_time() - start, made.get_f()


def deap(method: str, population: int, seed: int) -> Run:
    """NSGA-III of DEAP, with its sort that is near ``n log n``."""

    def steps() -> Iterator[np.ndarray]:
        import random

        from deap import algorithms, base, creator, tools

        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (DEAP draws from it)
        if not hasattr(creator, "Least"):
            creator.create("Least", base.Fitness, weights=(-1.0,) * OBJECTIVES)
            creator.create("Individual", list, fitness=creator.Least)
        box = base.Toolbox()
        box.register("mate", tools.cxSimulatedBinaryBounded, low=0.0, up=1.0, eta=30.0)
        box.register("mutate", tools.mutPolynomialBounded, low=0.0, up=1.0, eta=20.0, indpb=1 / COLUMNS)
        survive = tools.selNSGA3WithMemory(tools.uniform_reference_points(OBJECTIVES, parts_for(population)), nd="log")

        def assess(individuals: list[Any]) -> None:
            for one, values in zip(individuals, dtlz2(np.array(individuals)).tolist(), strict=True):
                one.fitness.values = values

        now = [creator.Individual(row) for row in np.random.default_rng(seed).random((population, COLUMNS)).tolist()]
        assess(now)
        while True:
            yield np.array([one.fitness.values for one in now])
            children = algorithms.varAnd(now, box, 1.0, 1.0)
            assess(children)
            now = survive(now + children, population)

    return timed(steps())


PEERS: dict[str, tuple[Callable[[str, int, int], Run], tuple[str, ...]]] = {
    "pymoo": (pymoo, ("nsga3", "moead", "nsga2")),
    "evox": (evox, ("nsga3", "hype", "nsga2", "rvea")),
    "pygmo": (pygmo, ("nsga3", "moead", "nsga2")),
    "deap": (deap, ("nsga3",)),
}
OURS = ("nsga3", "moead", "hype")


def course(run: Run, limit: float, stop: float = 0.999) -> np.ndarray:
    """Generations, seconds and share of the whole hypervolume ``[g, 3]`` until time or hypervolume end the run."""
    rows = []
    for generation, seconds, values in run:
        share = hypervolume(np.asarray(values, float), CORNER).value / WHOLE
        rows.append((generation, seconds, share))
        if seconds > limit or share > stop:
            break
    return np.array(rows)


def reached(rows: np.ndarray, share: float) -> float:
    """Seconds until a course has the share; infinite where it never has."""
    there = rows[:, 2] >= share
    return float(rows[np.argmax(there), 1]) if there.any() else np.inf


def show(name: str, rows: np.ndarray, beside: str = "") -> None:
    generations, seconds, share = rows[-1]
    each = (seconds - rows[0, 1]) / max(generations, 1)
    print(f"{name:>14} {generations:6.0f} {each:10.4f} {seconds:9.2f} {share:8.4f} {share / seconds:10.4f} {beside}",
          flush=True)  # fmt: skip


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--population", default="1000,10000", help="populations, with commas between them")
    asked.add_argument("--limit", type=float, default=60.0, help="processor seconds of a run, after which it ends")
    asked.add_argument("--only", default="", help="names of contenders (nsga3, pymoo, pymoo-nsga3, ...), with commas")
    given = asked.parse_args()
    only = set(filter(None, given.only.split(",")))
    absent = [name for name in PEERS if find_spec(name) is None]
    if absent:
        print(f"not installed here, so not compared: {', '.join(absent)}")
    for method in OURS:  # compile
        course(ours(method, 100, 0), 0.05)
    for population in map(int, given.population.split(",")):
        print(f"\npopulation {population}\n{'':>14} {'gens':>6} {'s/gen':>10} {'seconds':>9} {'share':>8} "
              f"{'share/s':>10}  times sooner: same kind, best of ours", flush=True)  # fmt: skip
        mine: dict[str, list[np.ndarray]] = {method: [] for method in OURS}

        def again(population: int = population, mine: dict[str, list[np.ndarray]] = mine) -> None:
            for method in OURS:
                mine[method].append(course(ours(method, population, len(mine[method])), given.limit / 4))

        again()
        for method in OURS:
            show(method, mine[method][0])
        for name, (make, methods) in PEERS.items():
            for method in methods:
                if name in absent or (only and not {name, f"{name}-{method}"} & only):
                    continue
                try:
                    rows = course(make(method, population, 1), given.limit)
                except (MemoryError, RuntimeError, ValueError) as failure:
                    print(f"{name}-{method}: {type(failure).__name__}: {str(failure)[:120]}", flush=True)
                    continue
                again()
                soon = {m: statistics.median(reached(r, rows[-1, 2]) for r in mine[m]) for m in OURS}
                kind = f"{rows[-1, 1] / soon[method]:8.1f}" if method in soon else f"{'':>8}"
                show(f"{name}-{method}", rows, f"{kind} {rows[-1, 1] / min(soon.values()):8.1f}")


if __name__ == "__main__":
    main()
