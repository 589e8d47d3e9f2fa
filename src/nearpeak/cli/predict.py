"""``nearpeak predict``: figures of one Setup, or of every row of a table."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearpeak.cli.arguments import check_new, json_option, print_json
from nearpeak.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Table = dict[str, NDArray[Any]]


@click.group(short_help="Time, memory, energy and money of a Setup, or of a table of them.")
def predict() -> None:
    """Predict the figures of a Setup, or of every row of a table.

    \b
    Examples:
      nearpeak predict model Qwen/Qwen3-8B --gpu h100 --tp 2 --batch 32 --isl 1000 --osl 200
      nearpeak predict serving runs.parquet --out predicted.parquet
      nearpeak predict operators gemm.csv --op gemm --out predicted.csv
    """


@predict.command("model", short_help="One Setup in full.")
@click.argument("model")
@click.option("--gpu", required=True, help="Device, see `nearpeak hardware`.")
@click.option("--isl", type=click.FloatRange(1), required=True, help="Mean tokens of a prompt.")
@click.option("--osl", type=click.FloatRange(1), required=True, help="Mean tokens of an answer.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Requests in flight per replica.")
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Tensor parallelism.")
@click.option("--pp", type=click.IntRange(1), default=1, show_default=True, help="Pipeline stages.")
@click.option("--dp", type=click.IntRange(1), default=1, show_default=True, help="Attention replicas around experts.")
@click.option("--ep", type=click.IntRange(1), default=1, show_default=True, help="Expert parallelism.")
@click.option("--weights", help="Number format of the weights (default: the checkpoint's).")
@click.option("--kv", help="Number format of the KV cache (default: the checkpoint's).")
@click.option("--engine", default="vllm", show_default=True, help="vllm, sglang, trtllm.")
@json_option
def predict_model(
    model: str, gpu: str, isl: float, osl: float, batch: int, tp: int, pp: int, dp: int, ep: int,
    weights: str | None, kv: str | None, engine: str, as_json: bool,
) -> None:  # fmt: skip
    """Predict one Setup: latency, throughput, memory, cost, and where the time goes.

    \b
    Example:
      nearpeak predict model Qwen/Qwen3-8B --gpu h100 --batch 32 --isl 1000 --osl 200
    """
    from dataclasses import replace

    from nearpeak.formats import code
    from nearpeak.hardware import node_of
    from nearpeak.plan import base_setup, check_lengths, explain, record
    from nearpeak.setup import Pool
    from nearpeak.workload import read

    if (tp * dp) % ep:
        raise UsageError(f"ep {ep} does not divide the tp x dp = {tp * dp} devices of a stage")
    architecture = read(model)
    check_lengths(architecture, isl, osl)
    setup = base_setup(architecture, node_of(gpu), engine, isl, osl)
    setup = replace(setup, decode=Pool(tp=tp, pp=pp, dp=dp, moe_tp=tp * dp // ep, moe_ep=ep, batch=batch))
    if weights is not None:
        setup = replace(setup, attention=code(weights), ffn=code(weights), experts=code(weights))
    if kv is not None:
        setup = replace(setup, kv=code(kv))
    explained = explain(setup)
    if as_json:
        print_json(record(explained))
        return
    from nearpeak.report import print_prediction

    print_prediction(explained)


@predict.command("serving", short_help="Every row of a table of serving runs.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write the rows with their predictions here.")
@json_option
def predict_serving(file: Path, out: Path | None, as_json: bool) -> None:
    """Predict ttft and tpot of every row of FILE (CSV or Parquet, columns as in a closed-loop serving table).

    \b
    Example:
      nearpeak predict serving runs.parquet --out predicted.parquet
    """
    from nearpeak.cost import predict_serving_table

    _batch(file, out, as_json, ("ttft", "tpot"), predict_serving_table)


@predict.command("operators", short_help="Every row of a table of one operator.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--op", required=True, help="gemm, attention, moe, collective, ...")
@click.option("--out", type=click.Path(path_type=Path), help="Write the rows with their predictions here.")
@json_option
def predict_operators_command(file: Path, op: str, out: Path | None, as_json: bool) -> None:
    """Predict the seconds of every row of FILE (CSV or Parquet).

    \b
    Example:
      nearpeak predict operators gemm.parquet --op gemm --out predicted.parquet
    """
    from nearpeak.cost import predict_operators

    _batch(file, out, as_json, ("seconds",), lambda table: predict_operators(table, op))


def _batch(
    file: Path, out: Path | None, as_json: bool, figures: tuple[str, ...], predict_table: "Callable[[Table], Table]"
) -> None:
    import numpy as np

    from nearpeak.cost import read_table, write_table

    check_new(out, "--out")
    read = read_table(file)
    table = {name: column for name, column in read.items() if name.lower() not in ("ttft", "tpot", "seconds")}
    predicted = predict_table(table)
    rows = len(next(iter(predicted.values())))
    errors = [str(e) for e in predicted["error"] if e]
    if out is not None:
        write_table(out, predicted)
    summary: dict[str, Any] = {"rows": rows, "answered": rows - len(errors), "out": None if out is None else str(out)}
    for figure in figures:
        values = predicted[figure][np.isfinite(predicted[figure])]
        summary[f"median_{figure}"] = float(np.median(values)) if len(values) else None
    kinds, counts = np.unique(np.array([str(e) for e in predicted["evidence"] if e]), return_counts=True)
    summary["evidence"] = {str(k): int(c) for k, c in zip(kinds, counts, strict=True)}
    reasons, times = np.unique(np.array(errors, dtype=str), return_counts=True)
    summary["errors"] = {str(r): int(c) for r, c in zip(reasons, times, strict=True)}
    if as_json:
        print_json(summary)
        return
    answered = f"{summary['answered']} of {rows} rows answered"
    click.echo(answered + (f", written to {out}" if out else "; give --out FILE to keep the predictions"))
    for reason, count in summary["errors"].items():
        click.echo(f"  {count} rows: {reason}")
