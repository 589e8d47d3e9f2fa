"""``nearpeak predict``: figures of one Setup, or of every row of a table."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearpeak.cli.arguments import MOST_DEVICES, calibration_option, check_new, json_option, print_json
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
      nearpeak predict step Qwen/Qwen3-8B --gpu h100 --devices 8 --sequence 4096 --global-batch 64 --zero 3
    """


@predict.command("model", short_help="One Setup in full.")
@click.argument("model")
@click.option("--gpu", required=True, help="Device, see `nearpeak hardware`.")
@click.option("--isl", type=click.FloatRange(1), required=True, help="Mean tokens of a prompt.")
@click.option("--osl", type=click.FloatRange(1), required=True, help="Mean tokens of an answer.")
@click.option(
    "--batch",
    type=click.IntRange(1, MOST_DEVICES),
    default=1,
    show_default=True,
    help="Requests in flight per replica.",
)
@click.option("--tp", type=click.IntRange(1, MOST_DEVICES), default=1, show_default=True, help="Tensor parallelism.")
@click.option("--pp", type=click.IntRange(1, MOST_DEVICES), default=1, show_default=True, help="Pipeline stages.")
@click.option(
    "--dp",
    type=click.IntRange(1, MOST_DEVICES),
    default=1,
    show_default=True,
    help="Attention replicas around experts.",
)
@click.option("--ep", type=click.IntRange(1, MOST_DEVICES), default=1, show_default=True, help="Expert parallelism.")
@click.option("--weights", help="Number format of the weights (default: the checkpoint's).")
@click.option("--kv", help="Number format of the KV cache (default: the checkpoint's).")
@click.option("--engine", default="vllm", show_default=True, help="vllm, sglang, trtllm.")
@click.option("--power-cap", type=float, metavar="WATTS", help="Show what a power limit of every device changes.")
@click.option("--clock", type=float, metavar="SHARE", help="Show what a highest clock, over boost (0.6), changes.")
@calibration_option
@json_option
def predict_model(
    model: str, gpu: str, isl: float, osl: float, batch: int, tp: int, pp: int, dp: int, ep: int,
    weights: str | None, kv: str | None, engine: str, power_cap: float | None, clock: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Predict one Setup: latency, throughput, memory, cost, and where the time goes.

    \b
    Example:
      nearpeak predict model Qwen/Qwen3-8B --gpu h100 --batch 32 --isl 1000 --osl 200
    """
    from dataclasses import replace

    from nearpeak.cost import cap_effects
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
    effects = {} if power_cap is None and clock is None else cap_effects(setup, power_cap, clock)
    explained = explain(setup)
    if as_json:
        cap = {name: {"free": float(effect.free), "capped": float(effect.capped)} for name, effect in effects.items()}
        print_json(record(explained) | ({"cap": cap} if cap else {}))
        return
    from nearpeak.report import print_prediction

    print_prediction(explained)
    if effects:
        click.echo(f"{'under the cap':20s} {'without':>12s} {'with':>12s} {'change':>8s}")
    for name, effect in effects.items():
        free, capped = float(effect.free), float(effect.capped)
        click.echo(f"{name.replace('_', ' '):20s} {free:12.4g} {capped:12.4g} {capped / free - 1:+8.1%}")


@predict.command("serving", short_help="Every row of a table of serving runs.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write the rows with their predictions here.")
@calibration_option
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
@calibration_option
@json_option
def predict_operators_command(file: Path, op: str, out: Path | None, as_json: bool) -> None:
    """Predict the seconds of every row of FILE (CSV or Parquet).

    \b
    Example:
      nearpeak predict operators gemm.parquet --op gemm --out predicted.parquet
    """
    from nearpeak.cost import predict_operators

    _batch(file, out, as_json, ("seconds",), lambda table: predict_operators(table, op))


@predict.command("training", short_help="Every row of a table of training iterations.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--gpu", default="a100", show_default=True, help="Device where the table has no column gpu.")
@click.option("--engine", default="megatron", show_default=True, help="Training engine.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the rows with their predictions here.")
@calibration_option
@json_option
def predict_training(file: Path, gpu: str, engine: str, out: Path | None, as_json: bool) -> None:
    """Predict the seconds of every row of FILE (CSV or Parquet, columns as in a table of Megatron iterations).

    \b
    Example:
      nearpeak predict training runs.csv --gpu a100 --out predicted.csv
    """
    from nearpeak.cost import predict_training_table

    _batch(file, out, as_json, ("seconds",), lambda table: predict_training_table(table, gpu, engine))


@predict.command("step", short_help="One training step of a model in full.")
@click.argument("model")
@click.option("--gpu", required=True, help="Device, see `nearpeak hardware`.")
@click.option("--devices", type=click.IntRange(1), help="Devices in all; what tp, pp and cp leave is dp.")
@click.option("--sequence", type=click.IntRange(1), default=4096, show_default=True, help="Tokens of a sequence.")
@click.option("--global-batch", type=click.IntRange(1), required=True, help="Sequences of a step, over all devices.")
@click.option("--micro-batch", type=click.IntRange(1), default=1, show_default=True, help="Sequences at a time.")
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Tensor parallelism.")
@click.option("--pp", type=click.IntRange(1), default=1, show_default=True, help="Pipeline stages.")
@click.option("--cp", type=click.IntRange(1), default=1, show_default=True, help="Context parallelism.")
@click.option("--ep", type=click.IntRange(1), default=1, show_default=True, help="Expert parallelism.")
@click.option("--virtual-stages", type=click.IntRange(1), default=1, show_default=True, help="Stages of one device.")
@click.option("--zero", default="0", show_default=True, help="What replicas share out: 0, 1, 2, 3 or fsdp.")
@click.option("--recompute", default="none", show_default=True, help="none, selective or full.")
@click.option("--sequence-parallel", is_flag=True, help="Cut norms and residuals by tp as well.")
@click.option("--weights", default="bf16", show_default=True, help="Number format of the products.")
@click.option("--engine", default="megatron", show_default=True, help="Training engine.")
@calibration_option
@json_option
def predict_step(
    model: str, gpu: str, devices: int | None, sequence: int, global_batch: int, micro_batch: int, tp: int, pp: int,
    cp: int, ep: int, virtual_stages: int, zero: str, recompute: str, sequence_parallel: bool, weights: str,
    engine: str, as_json: bool,
) -> None:  # fmt: skip
    """Predict one training step: time and memory by part, whether it fits, and what would make it.

    \b
    Example:
      nearpeak predict step Qwen/Qwen3-8B --gpu a100 --devices 8 --tp 2 --global-batch 64 --zero 1
    """
    from nearpeak.cost import train_step, training_ledger, training_platform, ways_to_fit
    from nearpeak.formats import code
    from nearpeak.hardware import node_of
    from nearpeak.workload import TrainingJob, read
    from nearpeak.workload.training import recompute_code, zero_stage

    replica = tp * pp * cp
    if (devices or replica) % replica:
        raise UsageError(
            f"{devices} devices are no multiple of tp {tp} x pp {pp} x cp {cp} = {replica}; "
            f"give {max(1, (devices or replica) // replica) * replica}, or cut the model otherwise"
        )
    node = node_of(gpu)
    job = TrainingJob(
        model=read(model), sequence=sequence, global_batch=global_batch, micro_batch=micro_batch,
        tp=tp, dp=(devices or replica) // replica, pp=pp, cp=cp, ep=ep, virtual_stages=virtual_stages,
        zero=zero_stage(zero), recompute=recompute_code(recompute), sequence_parallel=sequence_parallel,
        fmt=code(weights),
    )  # fmt: skip
    step, ledger = train_step(training_platform(node, engine), job, node), training_ledger(job)
    record: dict[str, Any] = {
        "model": job.model.name,
        "gpu": node.device.name,
        "devices": int(step.devices),
        "seconds": float(step.total),
        "seconds_low": float(step.low),
        "seconds_high": float(step.high),
        "evidence": str(step.evidence),
        "tokens_per_second": float(step.tokens_per_second),
        "mfu": float(step.mfu),
        "seconds_by_part": {name: float(getattr(step, name)) for name in step.PARTS},
        "memory_by_part": {name: float(held) for name, held in ledger.parts().items()},
        "memory": float(ledger.used),
        "capacity": node.device.memory_capacity,
        "fits": bool(ledger.fits(node.device)),
        "ways_to_fit": [{"change": change, "memory": used} for change, used in ways_to_fit(job, node.device)],
    }
    if as_json:
        print_json(record)
    else:
        _print_step(record)


def _print_step(record: dict[str, Any]) -> None:
    from nearpeak.report import format as write
    from nearpeak.report import print_record, print_table

    whole, used = record["seconds"], record["memory"]
    span = write.interval(record["seconds_low"], record["seconds_high"], write.seconds)
    verdict = "fits" if record["fits"] else "does not fit"
    print_record(
        {
            "model": record["model"],
            "devices": f"{record['devices']} x {record['gpu']}",
            "step": f"{write.seconds(whole)}  (80 %: {span}, {record['evidence']})",
            "throughput": write.rate(record["tokens_per_second"], "tokens/s"),
            "model FLOP utilization": write.share(record["mfu"]),
            "memory of a device": f"{write.size(used)} of {write.size(record['capacity'])}: {verdict}",
        }
    )
    for figure, of_all in (("seconds", whole), ("memory", used)):
        parts = sorted(((n, x) for n, x in record[f"{figure}_by_part"].items() if x > 0), key=lambda item: -item[1])
        print_table([{"part": name.replace("_", " "), figure: x, "share": x / of_all} for name, x in parts])
    if record["ways_to_fit"]:
        print_table([{"would fit with": way["change"], "memory": way["memory"]} for way in record["ways_to_fit"]])
    elif not record["fits"]:
        click.echo("ZeRO 3, full recomputation and micro batch 1 together would not make it fit: use more devices.")


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
        click.echo(f"  {count} row{'' if count == 1 else 's'}: {reason}")
