r"""The default search beside BoTorch's own loop on test functions: plain, noisy and constrained.

Usage: OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PEERS/bin/python benchmarks/functions_against_botorch.py RUNS.jsonl \
    [--seeds 5] [--problem branin ...]

PEERS is an environment of requirements/peers.txt in which nearpeak is installed too. BoTorch's loop is that of its
tutorials: a ``SingleTaskGP`` with standardised outcomes, fitted at every evaluation; log expected improvement, with
noise ``qLogNoisyExpectedImprovement``, with constraints ``LogConstrainedExpectedImprovement``; ``optimize_acqf``. Both
begin with ``2 d + 2`` scrambled Sobol points, have as many evaluations, and see noise of the same size; nearpeak is
told its variance, BoTorch learns it. Runs that RUNS.jsonl holds are not made again.

What counts is the true regret: without noise of the best evaluation, with noise of the evaluated configuration that one
and the same GP believes in most. The table shows medians over seeds; below it stands the hierarchical comparison
(``nearpeak.inference.comparison``) of log regrets over all problems: who is ahead, by what factor, with an interval.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from nearpeak.inference.comparison import compare_algorithms
from nearpeak.search.default import Default
from nearpeak.search.history import History
from nearpeak.search.problems import PROBLEMS, Problem
from nearpeak.search.study import best_so_far, recommended, trial

SETTINGS = (
    ("branin", 40, 0.0), ("branin", 40, 0.05), ("branin-disk", 40, 0.0), ("hartmann-6", 60, 0.0),
    ("hartmann-6", 60, 0.1), ("hartmann-6-norm", 60, 0.0), ("ackley-10", 60, 0.0), ("ackley-10-flank", 60, 0.0),
)  # fmt: skip
"""Problem, evaluations, and the standard deviation of the noise as a share of the problem's span."""
LEAST = 1e-6
"""Regrets below this are alike: beyond it a search polishes digits."""


def botorch(problem: Problem, evaluations: int, noise: float, seed: int) -> History:
    """One run of BoTorch's loop."""
    import torch
    from botorch.acquisition import LogExpectedImprovement, qLogNoisyExpectedImprovement
    from botorch.acquisition.analytic import LogConstrainedExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.models.transforms import Standardize
    from botorch.optim import optimize_acqf
    from gpytorch.mlls import ExactMarginalLogLikelihood, SumMarginalLogLikelihood

    torch.set_default_dtype(torch.double)
    torch.manual_seed(seed)
    d, rng = problem.dimension, np.random.default_rng([seed, 1])

    def measured(points: Any) -> tuple[Any, Any]:  # noqa: ANN401 (torch is here and not in the base)
        values = problem.function(points.numpy()) + noise * problem.span * rng.standard_normal(len(points))
        limits = np.empty((len(points), 0)) if problem.constraints is None else problem.constraints(points.numpy())
        return torch.from_numpy(values), torch.from_numpy(limits)

    def model(values: Any) -> Any:  # noqa: ANN401
        return SingleTaskGP(x, values[:, None], outcome_transform=Standardize(1))

    sobol = torch.quasirandom.SobolEngine(d, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    x = sobol.draw(2 * d + 2).double()
    y, limits = measured(x)
    bounds = torch.stack([torch.zeros(d), torch.ones(d)]).double()
    while len(x) < evaluations:
        if limits.shape[1]:
            models = ModelListGP(model(-y), *(model(c) for c in limits.T))
            fit_gpytorch_mll(SumMarginalLogLikelihood(models.likelihood, models))
            met = (limits <= 0).all(dim=1)
            best = (-y[met]).max() if met.any() else (-y).min()
            within = {i + 1: (None, 0.0) for i in range(limits.shape[1])}
            acquisition = LogConstrainedExpectedImprovement(models, best, 0, within)
        else:
            gp = model(-y)
            fit_gpytorch_mll(ExactMarginalLogLikelihood(gp.likelihood, gp))
            acquisition = (
                qLogNoisyExpectedImprovement(gp, x, prune_baseline=True)
                if noise
                else LogExpectedImprovement(gp, (-y).max())
            )
        point, _ = optimize_acqf(acquisition, bounds, q=1, num_restarts=4, raw_samples=128, options={"maxiter": 60})
        value, limit = measured(point)
        x, y, limits = torch.cat([x, point]), torch.cat([y, value]), torch.cat([limits, limit])
    variances = np.full(len(x), (noise * problem.span) ** 2)
    return History(x.numpy(), y.numpy(), np.zeros(len(x)), variances, limits.numpy(), x.numpy()[:0], seed)


def nearpeak(problem: Problem, evaluations: int, noise: float, seed: int) -> History:
    """One run of the default."""
    return trial(Default(), problem, evaluations, seed, noise)


def main() -> None:
    """Make the runs that are missing and print what all say."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--problem", action="append")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.runs.read_text().splitlines()] if options.runs.exists() else []
    done = {(row["method"], row["problem"], row["noise"], row["seed"]) for row in rows}
    settings = [setting for setting in SETTINGS if not options.problem or setting[0] in options.problem]
    for seed in range(options.seeds):
        for name, evaluations, noise in settings:
            for method in (nearpeak, botorch):
                if (method.__name__, name, noise, seed) in done:
                    continue
                started, problem = time.process_time(), PROBLEMS[name]
                history = method(problem, evaluations, noise, seed)
                seconds = time.process_time() - started
                regret = recommended(problem, history) if noise else float(best_so_far(problem, history)[-1])
                row = {"method": method.__name__, "problem": name, "noise": noise, "seed": seed}
                rows.append(row | {"regret": regret, "seconds_each": seconds / evaluations})
                with options.runs.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(f"{'problem':18}{'noise':>6}{'evaluations':>12}{'nearpeak':>12}{'BoTorch':>12}{'s each':>8}{'s each':>8}")
    for name, evaluations, noise in settings:
        chosen = {
            m: [row for row in rows if (row["method"], row["problem"], row["noise"]) == (m, name, noise)]
            for m in ("nearpeak", "botorch")
        }
        middle = [np.median([row["regret"] for row in found]) for found in chosen.values()]
        each = [np.mean([row["seconds_each"] for row in found]) for found in chosen.values()]
        print(f"{name:18}{noise:6}{evaluations:12}{middle[0]:12.4g}{middle[1]:12.4g}{each[0]:8.3f}{each[1]:8.3f}")
    # A run of a constrained problem that met no constraint counts as the worst that any run found.
    regrets = np.array([row["regret"] for row in rows])
    regrets = np.where(np.isfinite(regrets), regrets, regrets[np.isfinite(regrets)].max())
    problems, methods = [f"{row['problem']} {row['noise']}" for row in rows], [row["method"] for row in rows]
    comparison = compare_algorithms(problems, methods, np.maximum(regrets, LEAST), "lognormal", baseline="botorch")
    for effect in comparison.effects():
        print(f"{effect.name}: regret times {effect.effect:.2f} ({effect.low:.2f} to {effect.high:.2f}, 90 %), better "
              f"with probability {effect.better:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
