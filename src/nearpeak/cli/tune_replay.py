"""``nearpeak tune --replay``: searches of a table of measurements, one a seed."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from nearpeak.cli.arguments import print_json, progress
from nearpeak.errors import UsageError

if TYPE_CHECKING:
    from nearpeak.search.replay import Run, Table

AFTER = (50, 100, 200)
"""Evaluations after which the best is reported, besides the whole budget."""


def replay_command(path: Path, budget: int, seeds: int, method: str, workers: int | None, as_json: bool) -> None:
    """Search the table of a file with seeds 0, 1, ..., and print what each found over the optimum.

    Raises:
        UsageError: the file is no table, there is no such method, or the numbers make no sense.
    """
    from nearpeak.search.methods import method_named
    from nearpeak.search.replay import performance_score, read_table

    if budget < 1 or seeds < 1:
        raise UsageError(f"--budget {budget} --seeds {seeds}: both must be at least 1")
    method_named(method)
    table = read_table(path)
    runs = _runs(path, table, budget, seeds, method, workers)
    found = [_record(table, run) for run in runs]
    marks = list(found[0]["best_over_optimum"])
    middle = {mark: median(one["best_over_optimum"][mark] for one in found) for mark in marks}
    chosen = sum(len(run.values) for run in runs)
    answer: dict[str, Any] = {
        "file": path.name,
        **{key: table.about[key] for key in ("kernel", "device") if table.about.get(key)},
        "configurations": len(table.values),
        "failed": int((table.values != table.values).sum()),
        "optimum_seconds": table.optimum,
        "method": method,
        "budget": min(budget, len(table.values)),
        "seeds": found,
        "median_best_over_optimum": middle,
        "performance_score": performance_score(table, runs),
        "choosing_seconds_per_evaluation": sum(run.choosing for run in runs) / chosen,
    }
    if as_json:
        print_json(answer)
        return
    from nearpeak.report import print_table

    shown = [
        {"seed": one["seed"], **{f"after {m}": f"{v:.3f}" for m, v in one["best_over_optimum"].items()}}
        for one in found
    ]
    print_table([*shown, {"seed": "median", **{f"after {m}": f"{v:.3f}" for m, v in middle.items()}}])
    click.echo(
        f"{path.name}: {len(table.values):,} configurations, best {table.optimum:.4g} s. Best found over it, "
        f"{method}, {seeds} seeds; {1e3 * answer['choosing_seconds_per_evaluation']:.1f} ms to choose one. "
        f"Score against random search (1: the optimum at once): {answer['performance_score']:.3f}."
    )


def _runs(path: Path, table: "Table", budget: int, seeds: int, method: str, workers: int | None) -> "list[Run]":
    from nearpeak.search.replay import replay

    workers = min(workers or os.cpu_count() or 1, seeds)
    with progress("replaying") as update:
        runs = []
        if workers == 1:
            for seed in range(seeds):
                runs.append(replay(table, budget, seed, method))
                update(len(runs), seeds)
            return runs
        # Processes that share the cores must not each start a thread on all of them.
        os.environ.update({name: os.environ.get(name, "1") for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")})
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            for run in pool.map(partial(_run, path, budget, method), range(seeds)):
                runs.append(run)
                update(len(runs), seeds)
        return runs


def _run(path: Path, budget: int, method: str, seed: int) -> "Run":
    from nearpeak.search.replay import replay

    return replay(_table(path), budget, seed, method)


@lru_cache
def _table(path: Path) -> "Table":
    """Read once by each worker, not once for each seed."""
    from nearpeak.search.replay import read_table

    return read_table(path)


def _record(table: "Table", run: "Run") -> dict[str, Any]:
    best = run.best_after(table.optimum)
    marks = sorted({*(m for m in AFTER if m <= len(best)), len(best)})
    return {
        "seed": run.seed,
        "best_over_optimum": {str(m): float(best[m - 1]) for m in marks},
        "evaluation_seconds": {str(m): float(run.costs[:m].sum()) for m in marks},
        "choosing_seconds": run.choosing,
    }
