"""nearpeak's default search beside other libraries' on measured kernel-tuning spaces: `make benchmark-search`.

Run: benchmarks/search.py SPACE.parquet ... --cache DIR [--seeds 30] [--method NAME ...]. Runs of the peers are read
from DIR, where benchmarks/search_peers.py left them; what is missing there is missing in the tables. Every strategy
sees exactly the rows of a space, pays for each different row once and stops after 200.

For each space and strategy, over seeds: the median of the best found over the optimum after 50, 100 and 200
evaluations, its 95 % bootstrap interval after 100, the same median after the seconds that random search takes for 100
evaluations, and the performance score against random search (1: the optimum at once; 0: no better than random).
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from nearpeak.inference.comparison import compare_algorithms
from nearpeak.search.replay import random_expectation, read_table, replay

Array = NDArray[np.float64]
MARKS = (50, 100, 200)
BUDGET = 200
OURS = "nearpeak default"


def ours(path: Path, method: str, seeds: int) -> dict[str, Array]:
    """Curves of best over optimum ``[seeds, budget]``, of cumulated evaluation seconds, and seconds choosing."""
    table = read_table(path)
    runs = [replay(table, BUDGET, seed, method) for seed in range(seeds)]
    return {
        "best": np.stack([_padded(run.best_after(table.optimum)) for run in runs]),
        "seconds": np.stack([_padded(np.cumsum(run.costs)) for run in runs]),
        "choosing": np.array([run.choosing for run in runs]),
    }


def peers(cache: Path, space: str, seeds: int) -> dict[str, dict[str, Array]]:
    """The same of each peer that has runs of this space."""
    found = {}
    for file in sorted(cache.glob(f"*-{space}.parquet")):
        query = "SELECT best, evaluation_seconds, choosing_seconds FROM read_parquet(?) WHERE seed < ? ORDER BY seed"
        rows = duckdb.execute(query, [str(file), seeds]).fetchall()
        best, seconds, choosing = zip(*rows, strict=True)
        found[file.name.removesuffix(f"-{space}.parquet")] = {
            "best": np.array(best),
            "seconds": np.array(seconds),
            "choosing": np.array(choosing),
        }
    return found


def _padded(curve: Array) -> Array:
    """A curve of a space smaller than the budget keeps its last value."""
    return np.pad(curve, (0, BUDGET - len(curve)), mode="edge")


def score(best: Array, values: Array) -> float:
    """(F_random - F) / (F_random - optimum), averaged over the evaluations; failures at first count as the worst."""
    optimum = float(np.nanmin(values))
    expected = random_expectation(values, BUDGET) / optimum
    found = np.minimum(best, np.nanmax(values) / optimum).mean(axis=0)
    room = expected - 1 > 1e-9
    return float(np.mean((expected - found)[room] / (expected - 1)[room]))


def interval(best: Array, mark: int) -> tuple[float, float]:
    """95 % bootstrap interval of the median over seeds."""
    draws = np.random.default_rng(0).integers(0, len(best), (2_000, len(best)))
    low, high = np.quantile(np.median(best[:, mark - 1][draws], axis=1), [0.025, 0.975])
    return float(low), float(high)


def at_time(run: dict[str, Array], seconds: float) -> float:
    """Median of the best once so many evaluation seconds were spent."""
    spent = (run["seconds"] <= seconds).sum(axis=1)
    best = np.where(spent > 0, run["best"][np.arange(len(spent)), np.maximum(spent - 1, 0)], np.inf)
    return float(np.median(best))


def rows_of(space: str, runs: dict[str, dict[str, Array]], values: Array) -> list[dict[str, Any]]:
    """One row a strategy, the best score first."""
    pace = float(np.median(runs["random"]["seconds"][:, MARKS[1] - 1])) if "random" in runs else np.nan
    rows = []
    for name, run in runs.items():
        low, high = interval(run["best"], MARKS[1])
        rows.append(
            {
                "space": space,
                "strategy": name,
                "seeds": len(run["best"]),
                **{f"at_{m}": float(np.median(run["best"][:, m - 1])) for m in MARKS},
                "low_100": low,
                "high_100": high,
                "at_seconds": at_time(run, pace),
                "score": score(run["best"], values),
                "choosing": float(np.median(run["choosing"])) / BUDGET,
            }
        )
    return sorted(rows, key=lambda row: -row["score"])


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """A table of one space, or of the means over spaces."""
    print(f"\n{rows[0]['space']}")
    print(f"{'':30s} seeds   50 / 100 / 200        95 % after 100   same seconds   score   ms a choice")
    for r in rows:
        marks = " / ".join(f"{r[f'at_{m}']:.3f}" for m in MARKS)
        print(
            f"{r['strategy']:30s} {r['seeds']:5d}   {marks}   {r['low_100']:.3f} to {r['high_100']:.3f}"
            f"   {r['at_seconds']:12.3f}   {r['score']:5.3f}   {1e3 * r['choosing']:8.1f}"
        )


def means(rows: Sequence[dict[str, Any]], spaces: int) -> list[dict[str, Any]]:
    """Means over the spaces, of the strategies that ran on all of them."""
    found = []
    for name in dict.fromkeys(r["strategy"] for r in rows):
        own = [r for r in rows if r["strategy"] == name]
        if len(own) == spaces:
            numbers = [key for key in own[0] if key not in ("space", "strategy", "seeds")]
            mean = {key: float(np.mean([r[key] for r in own])) for key in numbers}
            found.append(
                {"space": f"mean of {spaces} spaces", "strategy": name, "seeds": min(r["seeds"] for r in own), **mean}
            )
    return sorted(found, key=lambda row: -row["score"])


def who_wins(curves: dict[str, dict[str, dict[str, Array]]]) -> None:
    """The hierarchical comparison of the logarithm of the mean excess over the budget, problem by problem."""
    problem, algorithm, value = [], [], []
    complete = set.intersection(*(set(runs) for runs in curves.values()))
    for space, runs in curves.items():
        for name in sorted(complete):
            excess = np.minimum(runs[name]["best"], 10.0).mean(axis=1) - 1
            problem += [space] * len(excess)
            algorithm += [name] * len(excess)
            value += np.maximum(excess, 1e-6).tolist()
    found = compare_algorithms(problem, algorithm, value, family="lognormal", baseline=OURS)
    table = found.table()
    print(f"\nwho wins: mean excess over the optimum along the budget, as a ratio. {table.title}")
    for row in table.rows:
        print(
            f"{row['algorithm']:30s} {row['ratio']:6.2f} ({row['low']:.2f} to {row['high']:.2f})"
            f"   better with probability {row['better_probability']:.3f}, best {row['best_probability']:.3f}"
        )


def main() -> None:
    """Print the tables, and write them as JSON into the cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="+", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--method", action="append", default=[])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    rows, curves = [], {}
    methods = ["default", *given.method]
    with ProcessPoolExecutor(given.workers, multiprocessing.get_context("spawn")) as pool:
        done = {m: pool.map(partial(ours, method=m, seeds=given.seeds), given.spaces) for m in methods}
        for path, *found in zip(given.spaces, *done.values(), strict=True):
            runs = peers(given.cache, path.stem, given.seeds)
            runs |= {f"nearpeak {m}": run for m, run in zip(methods, found, strict=True)}
            rows += rows_of(path.stem, runs, read_table(path).values)
            curves[path.stem] = runs
            print_rows([r for r in rows if r["space"] == path.stem])
    print_rows(means(rows, len(given.spaces)))
    who_wins(curves)
    given.cache.mkdir(parents=True, exist_ok=True)
    (given.cache / "search.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
