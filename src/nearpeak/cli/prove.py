"""``nearpeak prove``: predict a run on this machine, measure it, and put both side by side."""

from pathlib import Path

import click

from nearpeak.cli.arguments import json_option, print_json


@click.command(short_help="Measure a model on this machine beside its prediction.")
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.option("--batch", type=int, default=1, show_default=True, help="Sequences at once.")
@click.option("--isl", type=int, default=128, show_default=True, help="Tokens of a prompt.")
@click.option("--osl", type=int, default=32, show_default=True, help="Tokens of an answer.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda.")
@click.option("--dtype", default="auto", show_default=True, help="bf16, fp16, fp32, or as stored.")
@click.option("--threads", type=int, default=1, show_default=True, help="CPU threads.")
@click.option("--random-weights", is_flag=True, help="Measure a folder that holds a config.json alone.")
@click.option("--store", "store_path", type=click.Path(path_type=Path), help="Where measurements are kept.")
@json_option
def prove(
    model_dir: Path, batch: int, isl: int, osl: int, device: str, dtype: str, threads: int, random_weights: bool,
    store_path: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure prefill and decode of the transformers model in MODEL_DIR, and print both beside the prediction.

    The prediction is made first, from the model's shapes and what microbenchmarks say of this machine.
    The measurement is kept; `nearpeak measurements` lists it.

    \b
    Example:
      nearpeak prove ./my-model --batch 4 --isl 256 --osl 64
    """
    from nearpeak.measure import Store, compare, device_here, expected, measured_device, microbenchmarks, planned
    from nearpeak.measure import prove as run_proof

    run = planned(
        model_dir, batch, isl, osl, device=device, dtype=dtype, threads=threads, random_weights=random_weights
    )
    store = Store(store_path) if store_path else Store()
    store.prepare()
    click.echo(f"benchmarking this machine, then {run.folder.name} on {run.device} …", err=True)
    rows = microbenchmarks(run.device, threads=threads)
    here = measured_device(device_here(run.device), rows)
    measurement = run_proof(run, lambda r: expected(r, here, rows), store)
    compared = compare(measurement)
    if as_json:
        print_json(
            {
                "id": measurement.id,
                "what": dict(measurement.what),
                "device": here.title,
                "figures": [
                    {
                        "figure": c.name,
                        "predicted": vars(c.predicted),
                        "measured": vars(c.measured),
                        "measured_over_predicted": c.ratio,
                        "inside": c.inside,
                    }
                    for c in compared
                ],
            }
        )
        return
    from nearpeak.report import comparison_row, print_table

    click.echo(f"{run.folder.name} on {here.title}, batch {batch}, isl {isl}, osl {osl}, {run.dtype}")
    print_table([comparison_row(c) for c in compared])
    click.echo(f"kept as {measurement.id}")
