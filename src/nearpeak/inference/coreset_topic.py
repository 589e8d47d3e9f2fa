"""`coreset-gp`: a Gaussian process on a table of many rows, by a weighted coreset (``coreset_gp``) and by a free
Gaussian of as many points (``svgp``): how well each predicts rows that it has not seen, and what it takes.
"""

import numpy as np

from nearpeak.errors import UsageError
from nearpeak.inference.columns import read
from nearpeak.inference.coreset_gp import CORESET
from nearpeak.inference.sparse_gp import SparseGP, fit
from nearpeak.inference.svgp import SVGP
from nearpeak.topic import Explanation, Option, Table, Topic, names


def _explain(
    file: str, target: str, features: tuple[str, ...], log: bool, points: int, steps: int, held_out: float, seed: int
) -> Explanation:
    if not features:
        raise UsageError("features names no column: give those to predict from, e.g. m,n,k")
    if not 0 < held_out < 1:
        raise UsageError(f"held out must be a share between 0 and 1, not {held_out:g}")
    columns = read(file, (target, *features))
    try:
        y, *each = (columns[name].astype(float) for name in (target, *features))
    except ValueError as error:
        raise UsageError(f"target and features must be numbers: {error}") from None
    if log:
        lowest = {name: float(columns[name].min()) for name in (target, *features)}
        if min(lowest.values()) <= 0:
            worst = min(lowest, key=lambda name: lowest[name])
            raise UsageError(f"column {worst} has {lowest[worst]:g}, which has no logarithm: leave --log out")
        y, *each = (np.log(c) for c in (y, *each))
    x = np.column_stack(each)
    order = np.random.default_rng(seed).permutation(len(y))
    test, train = np.split(order, [max(1, round(held_out * len(y)))])
    models = [fit(family, x[train], y[train], points, steps, seed=seed) for family in (CORESET, SVGP)]

    def measured(model: SparseGP) -> dict[str, float | str]:
        mean, deviation = model.predict(x[test])
        total = np.hypot(deviation, model.noise)
        density = -0.5 * ((y[test] - mean) / total) ** 2 - np.log(total * np.sqrt(2 * np.pi))
        return {
            "posterior": model.family.name,
            "rmse": float(np.sqrt(((y[test] - mean) ** 2).mean())),
            "log_density": float(density.mean()),
            "elbo_per_row": model.elbo(x[train], y[train]),
            "variational_numbers": model.numbers,
            "step_time": model.step_time,
        }

    coreset, free = (measured(model) for model in models)
    at = models[0].parameters
    weight, outputs = (at[name].detach().numpy() for name in ("log_weight", "outputs"))
    inputs = at["inputs"].detach().numpy() * models[0].scaling.width + models[0].scaling.center
    heaviest = np.argsort(-weight)[:10]
    unit = "times" if log else "of the target's unit"
    typical = float(np.exp(float(coreset["rmse"]))) if log else float(coreset["rmse"])
    return Explanation(
        {
            "rows": len(train),
            "rmse": coreset["rmse"],
            "noise": models[0].noise,
            "elbo_per_row": coreset["elbo_per_row"],
            "step_time_ratio": float(coreset["step_time"]) / float(free["step_time"]),
        },
        (
            Table(f"{points} points, {steps} steps, {len(test)} rows held out", (coreset, free)),
            Table(
                "Heaviest pseudo-rows of the coreset",
                tuple(
                    {
                        **{n: float(np.exp(v) if log else v) for n, v in zip(features, inputs[i], strict=True)},
                        "weight_rows": float(np.exp(weight[i])),
                        "output_deviations": float(outputs[i]),
                    }
                    for i in heaviest
                ),
            ),
        ),
        (
            f"The coreset's typical error on rows not seen is {typical:.3g} {unit}, from "
            f"{coreset['variational_numbers']} variational numbers; the free Gaussian takes "
            f"{free['variational_numbers']}.",
        ),
    )


TOPIC = Topic(
    "coreset-gp",
    "How well does a Gaussian process that keeps a few weighted pseudo-rows predict a table of many rows?",
    "Ketenci, Perotte, Elhadad and Urteaga, A Coreset-based, Tempered Variational Posterior for Accurate and Scalable "
    "Stochastic Gaussian Process Inference, 2023 (arXiv 2311.01409)",
    (
        Option("file", str, "CSV or Parquet of rows."),
        Option("target", str, "Column to predict."),
        Option("features", names, "Columns to predict from, e.g. m,n,k."),
        Option("log", bool, "Take the logarithm of target and features, as suits times and sizes.", False),
        Option("points", int, "Pseudo-rows of the coreset.", 50),
        Option("steps", int, "Minibatches to train on.", 2000),
        Option("held_out", float, "Share of the rows to test on.", 0.2),
        Option("seed", int, "Seed of the split, the start and the minibatches.", 0),
    ),
    _explain,
    "--file gemm.parquet --target seconds --features m,n,k --log",
)
