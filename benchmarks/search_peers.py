"""Other libraries' searches, replayed on measured kernel-tuning spaces: the peers' half of `make benchmark-search`.

Run: PEERS/bin/python benchmarks/search_peers.py SPACE.parquet ... --cache DIR [--strategy NAME ...] [--seeds 30], in
an environment of its own (requirements/peers.txt). A space's file holds every configuration of a kernel on a GPU: a
column of whole numbers per parameter, `seconds` (NaN: the configuration failed) and `evaluation_seconds` (what
compiling and timing it cost); its metadata name the ordered values of each parameter.

The rules are the same for every strategy. Its space is exactly the file's rows; only what it evaluates is revealed to
it; it stops after `budget` evaluations of different rows. A request for a row that it has seen is answered again and
costs nothing, as from Kernel Tuner's cache, but 100 such requests per evaluation end the run. A run that ends early
keeps its best to the end of the budget. Strategies have their libraries' defaults, but for what `peer` says.

One file per strategy and space, `DIR/STRATEGY-SPACE.parquet`, one row per seed:

    strategy, space, seed
    evaluations, requests   how many different rows were evaluated, and how many requests were made
    rows                    the rows evaluated, in order
    best                    [budget] the best so far over the optimum of the space (infinite before a success)
    evaluation_seconds      [budget] cumulated `evaluation_seconds`
    at_50, at_100, at_200   `best` after so many evaluations
    choosing_seconds        processor seconds of the whole run: the replay itself is a look-up

Seeds that are there are not run again. Prints a JSON line for each strategy and space.
"""

import argparse
import json
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module
from inspect import Parameter, Signature
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import qmc

Array = NDArray[np.float64]
Configuration = tuple[int, ...]

MARKS = (50, 100, 200)
PATIENCE = 100
"""Requests per evaluation of the budget after which a run ends: some strategies turn in circles forever."""


class Spent(Exception):
    """The budget, or the patience, is at its end."""


@dataclass(frozen=True)
class Table:
    """A measured space: values of each parameter, and n configurations with their outcome."""

    name: str
    values: dict[str, list[int]]
    configurations: list[Configuration]
    seconds: Array
    evaluation_seconds: Array

    @classmethod
    def read(cls, path: Path) -> "Table":
        """The space of a Parquet file."""
        table = pq.read_table(path)
        values = json.loads(table.schema.metadata[b"parameters"])
        configurations = list(zip(*(table[name].to_pylist() for name in values), strict=True))
        outcome = (table[name].to_numpy() for name in ("seconds", "evaluation_seconds"))
        return cls(path.stem, values, configurations, *outcome)

    @cached_property
    def row(self) -> dict[Configuration, int]:
        """The row of each configuration."""
        return {configuration: row for row, configuration in enumerate(self.configurations)}

    @cached_property
    def indices(self) -> NDArray[np.int64]:
        """[n, parameters]: the position of each value among the values of its parameter."""
        columns = np.array(self.configurations).T
        return np.stack([np.searchsorted(v, c) for v, c in zip(self.values.values(), columns, strict=True)], axis=1)

    @cached_property
    def unit(self) -> Array:
        """[n, parameters]: the rows in the unit cube, logarithmic where values are multiplied from one to the next."""
        columns = []
        for values, column in zip(self.values.values(), np.array(self.configurations, dtype=float).T, strict=True):
            ladder = np.array(values, dtype=float)
            if len(ladder) > 2 and ladder.min() > 0 and np.allclose(ladder[1:] / ladder[:-1], ladder[1] / ladder[0]):
                ladder, column = np.log2(ladder), np.log2(column)
            columns.append((column - ladder.min()) / max(np.ptp(ladder), 1.0))
        return np.stack(columns, axis=1)


@dataclass
class Replay:
    """A run over a table: what was asked, in order."""

    table: Table
    budget: int
    rows: list[int] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    requests: int = 0

    def __call__(self, row: int) -> float:
        """The row's seconds, NaN where it failed; raises Spent where it is one evaluation, or request, too many."""
        self.requests += 1
        if self.requests > PATIENCE * self.budget or (row not in self.seen and self.done):
            raise Spent
        if row not in self.seen:
            self.seen.add(row)
            self.rows.append(row)
        return float(self.table.seconds[row])

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return len(self.rows) >= self.budget

    def unseen(self) -> NDArray[np.int64]:
        """The rows that were not evaluated."""
        mask = np.ones(len(self.table.seconds), dtype=bool)
        mask[self.rows] = False
        return np.flatnonzero(mask)

    def result(self) -> dict[str, Any]:
        """The columns that the run itself decides."""
        rows = np.array(self.rows)
        pad = (0, self.budget - len(rows))
        seconds = np.nan_to_num(self.table.seconds[rows], nan=np.inf)
        best = np.pad(np.minimum.accumulate(seconds) / np.nanmin(self.table.seconds), pad, mode="edge")
        cost = np.pad(np.cumsum(self.table.evaluation_seconds[rows]), pad, mode="edge")
        return {
            "evaluations": len(rows),
            "requests": self.requests,
            "rows": rows.tolist(),
            "best": best.tolist(),
            "evaluation_seconds": cost.tolist(),
            **{f"at_{mark}": float(best[min(mark, self.budget) - 1]) for mark in MARKS},
        }


def random_search(replay: Replay, seed: int) -> None:
    """Rows drawn without replacement."""
    for row in np.random.default_rng(seed).permutation(len(replay.table.seconds)):
        replay(int(row))


LATIN_HYPERCUBE = qmc.LatinHypercube


def kernel_tuner(replay: Replay, seed: int, strategy: str, options: dict[str, bool | str]) -> None:
    """A strategy of Kernel Tuner on its own search space of the table's rows, with a runner that looks results up.

    Times go in milliseconds, as in its own caches: some of its acceptance rules are not free of the unit.
    """
    from kernel_tuner import util
    from kernel_tuner.interface import Options, strategy_map
    from kernel_tuner.runners.runner import Runner
    from kernel_tuner.searchspace import Searchspace
    from kernel_tuner.strategies import bayes_opt, pyatf_strategies

    table = replay.table
    # Latin hypercubes are the only draws that do not come from the global generators.
    bayes_opt.LatinHypercube = qmc.LatinHypercube = partial(LATIN_HYPERCUBE, rng=np.random.default_rng(seed))
    # pyATF builds its space anew from the restrictions; here they are the prefixes of the table's rows.
    pyatf_strategies.Searchspace = partial(AtfSpace, table)

    def outcome(configuration: Configuration) -> dict[str, Any]:
        seconds = replay(table.row[configuration])
        result: dict[str, Any] = dict(zip(table.values, configuration, strict=True))
        if np.isfinite(seconds):
            result["time"] = 1e3 * seconds
        elif strategy == "bayes_opt":
            result["time"] = 1e20  # its own mark of a failure; the largest float, which an error gives, passes as good
        else:
            result["__error__"] = util.RuntimeFailedConfig()
        return result

    class Lookup(Runner):  # type: ignore[misc]
        class dev:  # noqa: N801
            max_threads = 1024

        def get_device_info(self) -> object:
            return self.dev

        def get_environment(self, tuning_options: object) -> dict[str, Any]:
            return {}

        def run(self, parameter_space: Iterable[Any], tuning_options: Options) -> list[dict[str, Any] | None]:
            results: list[dict[str, Any] | None] = []
            for element in parameter_space:
                if tuning_options.budget.is_done():
                    results.append(None)
                    continue
                evaluated = len(replay.rows)
                try:
                    results.append(outcome(tuple(int(value) for value in element)))
                except Spent:
                    raise util.StopCriterionReached("patience") from None
                tuning_options.budget.add_evaluations(len(replay.rows) - evaluated)
            return results

    rows = {str(i): dict(zip(table.values, c, strict=True)) for i, c in enumerate(table.configurations)}
    space = Searchspace(None, None, None, from_cache={"tune_params": table.values, "cache": rows})
    tuning = Options(
        tune_params=table.values,
        restrictions=[],
        restrictions_unmodified=[],
        objective=["time"],
        objective_higher_is_better=[False],
        strategy_options=Options(max_fevals=replay.budget, **options),
        max_fevals=replay.budget,
        budget=util.TuningBudget(None, replay.budget),
        metrics=None,
        verbose=False,
        cache={},
    )
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (its generator)
    strategy_map[strategy].tune(space, Lookup(), tuning)


class AtfSpace:
    """What Kernel Tuner asks to state the space to pyATF: a constraint on each parameter, given those before it."""

    def __init__(self, table: Table, *_: object, **__: object) -> None:
        self.table = table

    def get_tune_params_pyatf(self) -> list[Any]:
        """The tuning parameters, as pyATF has them."""
        from pyatf import TP, Set

        names = list(self.table.values)

        def constraint(depth: int) -> Callable[..., bool]:
            before = names[:depth]
            prefixes = {configuration[:depth] for configuration in self.table.configurations}

            def holds(**configuration: int) -> bool:
                return tuple(configuration[name] for name in before) in prefixes

            holds.__signature__ = Signature([Parameter(name, Parameter.KEYWORD_ONLY) for name in before])  # type: ignore[attr-defined]
            return holds

        return [TP(name, Set(*values), constraint(i + 1)) for i, (name, values) in enumerate(self.table.values.items())]


def tpe(replay: Replay, seed: int) -> None:
    """Optuna's multivariate TPE over the positions of values, with the constraints known.

    Of the candidates that it draws, only those that are rows of the table and were not evaluated count; it is asked
    anew while there is none, and so is its random start. A failed evaluation is told as a pruned trial, which TPE
    ranks last.
    """
    import optuna
    from optuna.distributions import IntDistribution
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = replay.table
    space = {name: IntDistribution(0, len(values) - 1) for name, values in table.values.items()}
    row_of = np.full([len(values) for values in table.values.values()], -1)
    row_of[tuple(table.indices.T)] = np.arange(len(table.seconds))

    class OpenRows(optuna.samplers.TPESampler):  # type: ignore[misc]
        def _compute_acquisition_func(self, samples: dict[str, Any], *estimators: object) -> Array:
            rows = row_of[tuple(samples[name].astype(int) for name in space)]
            score: Array = super()._compute_acquisition_func(samples, *estimators)
            return np.where((rows < 0) | np.isin(rows, replay.rows), -np.inf, score)

    sampler = OpenRows(multivariate=True, constant_liar=False, seed=seed)
    study = optuna.create_study(sampler=sampler)
    for _ in range(PATIENCE * replay.budget):
        trial = study.ask(space)
        row = int(row_of[tuple(trial.params[name] for name in space)])
        if row < 0 or row in replay.seen:
            study.tell(trial, state=TrialState.FAIL)
            continue
        seconds = replay(row)
        failed = np.isnan(seconds)
        study.tell(trial, None if failed else seconds, TrialState.PRUNED if failed else None)
        if replay.done:
            break


AFRESH = 25
"""Every so many steps the Gaussian process is fitted from BoTorch's start, not from where the last fit ended."""


def gaussian_process(replay: Replay, seed: int) -> None:
    """BoTorch: SingleTaskGP refitted at each step, and log expected improvement over every row that is open.

    The model sees the unit cube and the logarithm of seconds; a failure counts as the slowest success. It starts from
    2 (parameters + 1) random rows. Each fit runs to convergence; it starts from the one before, which finds much the
    same optimum in a tenth of the time, and every 25 steps from BoTorch's own start.
    """
    import torch
    from botorch.acquisition.analytic import _log_ei_helper  # its formula; the class holds n^2 numbers per row
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from gpytorch.mlls import ExactMarginalLogLikelihood

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    table = replay.table
    unit = torch.from_numpy(table.unit)
    order = np.random.default_rng(seed).permutation(len(unit)).tolist()
    fitted: Any = None
    while not replay.done:
        seconds = table.seconds[replay.rows]
        if len(seconds) < 2 * (unit.shape[1] + 1) or np.isnan(seconds).all():
            replay(order[len(seconds)])
            continue
        speed = torch.from_numpy(-np.log(np.where(np.isnan(seconds), np.nanmax(seconds), seconds)))
        model = SingleTaskGP(unit[replay.rows], speed[:, None])
        if fitted is not None and len(seconds) % AFRESH:
            for part in ("mean_module", "covar_module", "likelihood"):
                getattr(model, part).load_state_dict(getattr(fitted, part).state_dict())
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        fitted = model
        unseen = replay.unseen()
        scores = []
        with torch.no_grad():
            for block in torch.split(unit[unseen], 256):
                posterior = model.posterior(block)
                deviation = posterior.variance.sqrt()
                scores.append(_log_ei_helper((posterior.mean - speed.max()) / deviation) + deviation.log())
        replay(int(unseen[int(torch.cat(scores).argmax())]))


def peer(strategy: str, **options: bool | str) -> Callable[[Replay, int], None]:
    """A strategy of Kernel Tuner, with the options that are not at its defaults."""
    return partial(kernel_tuner, strategy=strategy, options=options)


STRATEGIES: dict[str, Callable[[Replay, int], None]] = {
    "random": random_search,
    "kt_genetic_algorithm": peer("genetic_algorithm"),
    "kt_hybrid_vndx": peer("hybrid_vndx"),
    "kt_adaptive_tabu_greywolf": peer("adaptive_tabu_greywolf"),
    "kt_simulated_annealing": peer("simulated_annealing"),
    "kt_bayes_opt": peer("bayes_opt"),
    "optuna_tpe": tpe,
    "kt_diff_evo": peer("diff_evo"),
    "kt_pso": peer("pso", constraint_aware=True),
    "kt_firefly_algorithm": peer("firefly_algorithm", constraint_aware=True),
    "kt_greedy_ils": peer("greedy_ils"),
    "kt_greedy_mls": peer("greedy_mls"),
    "kt_ordered_greedy_mls": peer("ordered_greedy_mls"),
    "kt_mls": peer("mls"),
    "kt_basinhopping": peer("basinhopping"),
    "kt_dual_annealing": peer("dual_annealing"),
    "kt_pyatf_auc_bandit": peer("pyatf_strategies", searchtechnique="auc_bandit"),
    "kt_pyatf_differential_evolution": peer("pyatf_strategies", searchtechnique="differential_evolution"),
    "kt_random_sample": peer("random_sample"),
    "botorch_gp": gaussian_process,
}
"""In the order in which they run."""


LIBRARIES = {
    "kt": ("kernel_tuner.interface", "kernel_tuner.strategies.bayes_opt", "scipy.optimize", "pyatf"),
    "optuna": ("optuna",),
    "botorch": ("botorch.acquisition.analytic", "botorch.fit", "botorch.models"),
}
"""What the strategies of a library import, loaded before the clock starts."""


def run(table: Table, strategy: str, seed: int, budget: int) -> dict[str, Any]:
    """One run: a row of the cache."""
    for module in LIBRARIES.get(strategy.split("_")[0], ()):
        import_module(module)
    replay = Replay(table, budget)
    began = time.process_time()
    with warnings.catch_warnings(), redirect_stdout(StringIO()), suppress(Spent):
        warnings.simplefilter("ignore")
        STRATEGIES[strategy](replay, seed)
    choosing = time.process_time() - began
    return {"strategy": strategy, "space": table.name, "seed": seed, **replay.result(), "choosing_seconds": choosing}


def fill(path: Path, table: Table, strategy: str, seeds: int, budget: int) -> list[dict[str, Any]]:
    """The runs of a strategy on a space: those of the file, and those that it lacks, which it then holds."""
    runs: list[dict[str, Any]] = pq.read_table(path).to_pylist() if path.exists() else []
    for seed in sorted(set(range(seeds)) - {run["seed"] for run in runs}):
        runs.append(run(table, strategy, seed, budget))
        whole = path.with_suffix(".part")
        pq.write_table(pa.Table.from_pylist(runs), whole)
        whole.replace(path)
    return runs


def main() -> None:
    """Run what the cache lacks."""
    parser = argparse.ArgumentParser(description="Other libraries' searches on measured kernel-tuning spaces.")
    parser.add_argument("spaces", nargs="+", type=lambda path: Path(path).resolve())
    parser.add_argument("--cache", required=True, type=lambda path: Path(path).resolve())
    parser.add_argument("--strategy", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=30, help="seeds 0 to SEEDS - 1")
    parser.add_argument("--budget", type=int, default=200)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    tables = [Table.read(path) for path in options.spaces]
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # pyATF leaves a folder where it stands
        for strategy in options.strategy:
            for table in tables:
                path = options.cache / f"{strategy}-{table.name}.parquet"
                runs = fill(path, table, strategy, options.seeds, options.budget)
                columns = {name: [run[name] for run in runs] for name in runs[0]}
                line = {name: round(float(np.median(columns[name])), 3) for name in (f"at_{mark}" for mark in MARKS)}
                line |= {name: float(np.median(columns[name])) for name in ("evaluations", "requests")}
                line["choosing_seconds"] = round(float(np.median(columns["choosing_seconds"])), 2)
                print(json.dumps({"strategy": strategy, "space": table.name, "seeds": len(runs), **line}), flush=True)


if __name__ == "__main__":
    main()
