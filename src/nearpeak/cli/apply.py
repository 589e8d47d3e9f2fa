"""``nearpeak apply``: carry a technique out on a checkpoint."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from nearpeak.cli.arguments import json_option, print_json, progress
from nearpeak.errors import UsageError


@click.command(short_help="Carry a technique out on a checkpoint.")
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.option("--technique", default="rtn", show_default=True, help="How codes are chosen: rtn (nearest rounding).")
@click.option("--bits", type=int, default=4, show_default=True, help="Bits per weight: 8, 4, or 2.")
@click.option("--group", type=int, default=128, show_default=True, help="Weights per scale, or -1 for a whole channel.")
@click.option("--ignore", multiple=True, help="A module to keep as it is, or re:EXPRESSION. Repeatable.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Take technique and bits from plan --json.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write; must not exist.")
@click.option("--estimate", "only_estimate", is_flag=True, help="Say what it takes, and write nothing.")
@json_option
def apply(
    model_dir: Path, technique: str, bits: int, group: int, ignore: tuple[str, ...], plan_file: Path | None,
    out: Path, only_estimate: bool, as_json: bool,
) -> None:  # fmt: skip
    """Quantize the checkpoint in MODEL_DIR into one that vLLM and transformers load (compressed-tensors).

    Works shard by shard; run again after an interruption, it goes on where it stopped.

    \b
    Example:
      nearpeak apply ./my-model --technique rtn --bits 4 --group 128 --out ./my-model-int4
    """
    from nearpeak.compress import apply as carry_out
    from nearpeak.compress import estimate

    if plan_file is not None:
        _refuse_beside_a_plan("technique", "bits", "group")
        technique, bits, group = _from_plan(plan_file)
    predicted = estimate(model_dir, out, technique=technique, bits=bits, group=group, ignore=ignore)
    if only_estimate:
        if as_json:
            print_json(asdict(predicted))
        else:
            click.echo(_takes(predicted))
        return
    click.echo(_takes(predicted), err=True)
    with progress("quantizing") as update:
        report = carry_out(
            model_dir, out, technique=technique, bits=bits, group=group, ignore=ignore,
            progress=lambda p: update(p.done, p.total),
        )  # fmt: skip
    if as_json:
        print_json({**asdict(report), "out": str(report.out)})
        return
    errors = [layer.error for layer in report.layers]
    click.echo(f"{report.out}: {len(report.layers)} layers in {bits} bits, {len(report.kept)} matrices kept")
    click.echo(f"  relative weight error: mean {sum(errors) / len(errors):.4f}, worst {max(errors):.4f}")
    peak = "unknown" if report.peak_memory is None else f"{report.peak_memory / 1e6:.0f} MB"
    click.echo(
        f"  written {report.written / 1e6:.1f} MB (predicted {predicted.written / 1e6:.1f}), peak memory {peak} "
        f"(predicted {predicted.peak_memory / 1e6:.0f} MB), {report.seconds:.1f} s"
    )


def _takes(predicted: Any) -> str:  # noqa: ANN401 - an Estimate, whose module needs torch
    memory = f"{predicted.peak_memory / 1e6:.0f} MB of memory"
    return f"will write {predicted.written / 1e6:.1f} MB ({predicted.free_disk / 1e9:.1f} GB are free), with {memory}"


def _refuse_beside_a_plan(*options: str) -> None:
    """Raises UsageError where an option that a plan decides was given too."""
    context = click.get_current_context()
    for name in options:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(f"--plan decides the {name}; leave --{name} out, or leave --plan out")


def _from_plan(path: Path) -> tuple[str, int, int]:
    """Technique, bits and group of the best plan in a file written by ``nearpeak plan --json``."""
    from nearpeak.techniques import technique

    try:
        names = json.loads(path.read_text())["plans"][0]["techniques"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"{path} holds no plan ({error}); write one with `nearpeak plan ... --json > {path}`"
        ) from None
    commands = [technique(name).command for name in names]
    words = next((c.split() for c in commands if c), None)
    if words is None:
        raise UsageError(
            f"the plan's techniques ({', '.join(names) or 'none'}) need no new checkpoint, or none that we can make"
        )
    options = dict(zip(words[::2], words[1::2], strict=True))
    return options["--technique"], int(options["--bits"]), int(options["--group"])
