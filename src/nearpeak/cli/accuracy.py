"""``nearpeak accuracy``: predictions beside measurements."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearpeak.cli.arguments import calibration_option, json_option, print_json, progress
from nearpeak.errors import UsageError

if TYPE_CHECKING:
    from nearpeak.calibrate.board import Line


@click.command(short_help="How far predictions are from measurements.")
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--by", default="gpu,operator,engine,evidence", show_default=True, help="Groups, comma-separated.")
@click.option(
    "--leave-out",
    "leave",
    multiple=True,
    type=click.Choice(["site", "gpu", "model", "none"]),
    help="Fit again without each row's site (matrix, heads, configuration), device or model. Repeatable.",
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@calibration_option
@json_option
def accuracy(tables: tuple[Path, ...], by: str, leave: tuple[str, ...], jobs: int, as_json: bool) -> None:
    """Score the model on TABLES of measurements: files (CSV or Parquet), or folders of them.

    Tables are told by their columns: those of operators, served runs, training iterations, power. Rows that the
    calibration was fitted on are scored again with their sites left out of the fit: errors in sample say little.

    \b
    Examples:
      nearpeak accuracy gemm.parquet --by gpu,engine
      nearpeak accuracy measurements/operators --leave-out site --leave-out gpu --jobs 2
    """
    from nearpeak.calibrate.board import GROUPINGS, errors, lines
    from nearpeak.calibrate.scoring import score
    from nearpeak.calibrate.tables import find
    from nearpeak.cli.calibrate import can_fit, need_fits

    groups = [g for g in by.split(",") if g]
    if unknown := [g for g in groups if g not in GROUPINGS]:
        raise UsageError(f"--by {', '.join(unknown)}: group by any of {', '.join(GROUPINGS)}")
    if "none" in leave and len(leave) > 1:
        raise UsageError("--leave-out none goes with no other --leave-out")
    files, skipped = find(tables)
    wanted: Any = tuple(x for x in leave if x != "none") if leave or not can_fit() else None
    if wanted:
        need_fits()
    with progress("scoring") as update:
        scored, notes = score(files, wanted, jobs, update)
    found, reasons = lines(scored, groups), errors(scored)
    if as_json:
        board = [{**vars(x), **x.group} for x in found]
        for row in board:
            row.pop("group")
        print_json({"board": board, "errors": reasons, "notes": notes, "skipped": skipped})
        return
    from nearpeak.report import print_table

    print_table([_row(x) for x in found])
    click.echo(
        "median, mean: absolute percentage errors; in 80 %: percent of measurements in the 80 % interval; roofline:"
    )
    click.echo("median error of two constants fitted on these rows")
    for reason, count in reasons.items():
        click.echo(f"{count:,} row{'' if count == 1 else 's'} without an answer: {reason}")
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if skipped:
        click.echo(f"no tables of measurements: {', '.join(skipped)}", err=True)


def _row(line: "Line") -> dict[str, Any]:
    def number(value: float, places: int = 1) -> str | None:
        return None if value != value else f"{value:.{places}f}"

    return {
        **{name: value or None for name, value in line.group.items()},
        "fit": line.fit,
        "answered": f"{line.answered:,}" + ("" if line.answered == line.rows else f" of {line.rows:,}"),
        "median %": number(line.median),
        "mean %": number(line.mean),
        "bias %": number(line.bias),
        "rank": number(line.rank, 3),
        "in 80 %": number(line.coverage),
        "roofline %": number(line.roofline),
    }
