"""``nearpeak calibrate``: fit the model to measurements, under a name of one's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearpeak.cli.arguments import json_option, print_json, progress
from nearpeak.errors import NearpeakError, UsageError

if TYPE_CHECKING:
    from nearpeak.calibrate.refit import Change, Refit


def can_fit() -> bool:
    """Whether scipy and lightgbm are here, which fits need and predictions do not."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("scipy", "lightgbm"))


def need_fits() -> None:
    """Raises NearpeakError where nothing can be fitted."""
    if not can_fit():
        raise NearpeakError("fitting needs scipy and lightgbm; pip install nearpeak[calibrate]")


@click.command(short_help="Fit the model to measurements, under a name of your own.")
@click.argument("tables", nargs=-1, type=click.Path(path_type=Path))
@click.option("--name", default="mine", show_default=True, help="Name of the calibration; each run makes a version.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write it to instead; must not exist.")
@click.option(
    "--replaces", metavar="NAME|FOLDER", help="What it starts from (default: the name's last version, or what ships)."
)
@click.option("--only", help="Fit only these, comma-separated: gemm, moe, serving, ...")
@click.option("--here", is_flag=True, help="Time matrix products on this machine's GPU (a minute) and fit to them too.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@json_option
def calibrate(
    tables: tuple[Path, ...], name: str, out: Path | None, replaces: str | None, only: str | None, here: bool,
    jobs: int, as_json: bool,
) -> None:  # fmt: skip
    """Fit the model to TABLES: files of measurements (CSV or Parquet), or folders of them.

    Tables are told by their columns: those of operators (`nearpeak predict operators`) with their seconds, of served
    runs with ttft and tpot, of training iterations. What they measured replaces what was there; the rest stays.
    Interrupted, it goes on where it stopped. `--calibration NAME` of predict, plan and accuracy uses the result.

    \b
    Examples:
      nearpeak calibrate my-measurements/ --name my-lab
      nearpeak predict operators shapes.csv --op gemm --calibration my-lab
    """
    need_fits()

    from nearpeak.calibrate.refit import refit
    from nearpeak.calibrate.store import place, save
    from nearpeak.calibrate.tables import find
    from nearpeak.cost.stored import versions_of

    target, version = place(name, out)
    measured = [*tables]
    if here:
        measure_here()
        measured.append(_from_store(target.with_name(f".{target.name}.partial")))
    if not measured:
        raise UsageError("nothing to fit to: give tables of measurements or folders of them, or --here")
    files, skipped = find(measured)
    base = replaces if replaces is not None else name if out is None and versions_of(name) else ""
    work = target.with_name(f".{target.name}.partial")
    with progress("fitting") as update:
        found = refit(files, name, version, base, only.split(",") if only else (), work, jobs, update)
    save(target, found.files, found.about)
    _forget(work)
    if as_json:
        print_json(_record(found, target, skipped))
    else:
        _print(found, target, skipped)


def measure_here() -> None:
    """Time square products of many sizes on this machine's GPU, and keep the measurements.

    Raises:
        NearpeakError: torch is missing, or sees no GPU.
    """
    import numpy as np

    from nearpeak.measure import Effort, Measurement, Store, fingerprint, rate, record
    from nearpeak.measure.microbench import gemm
    from nearpeak.measure.runtime import chosen_device

    at = chosen_device("auto")
    if not at.startswith("cuda"):
        raise NearpeakError("torch finds no GPU here to fit to; `nearpeak prove` measures a CPU before it predicts")
    store, platform = Store(), fingerprint()
    store.prepare()
    sizes = np.unique(np.round(np.geomspace(64, 12288, 80) / 8).astype(int) * 8).tolist()
    with progress("timing products") as update:
        for done, size in enumerate(sizes):
            update(done, len(sizes))
            sample = gemm(at, "bf16", size, Effort(warmup=1, settle=0.1, repeats=5, most=100, width=0.03, budget=0.4))
            what = {"benchmark": "gemm", "dtype": "bf16", "size": size, "device": at, "threads": 1}
            figures = {"rate": rate(2.0 * size**3, sample)}
            store.add(record(Measurement(what=what, figures=figures, fingerprint=platform)))


def _from_store(folder: Path) -> Path:
    """Products measured on this machine's GPU, as a table in ``folder``.

    Raises:
        UnknownName: the catalogue does not know the device.
    """
    import numpy as np

    from nearpeak.cost import write_table
    from nearpeak.hardware import device
    from nearpeak.measure import Store

    kept = [m for m in Store().list(benchmark="gemm") if m.fingerprint.gpus]
    sizes = np.array([float(str(m.what["size"])) for m in kept])
    columns = {
        "gpu": np.array([device(m.fingerprint.gpus[0].name).name for m in kept], object),
        "backend": np.full(len(kept), "torch", object),
        "gemm_dtype": np.array([str(m.what["dtype"]) for m in kept], object),
        **dict.fromkeys(("m", "n", "k"), sizes),
        "measurement": np.array([m.id for m in kept], object),
        "seconds": 2 * sizes**3 / np.array([m.figures["rate"].value for m in kept]),
    }
    (folder / "gemm").mkdir(parents=True, exist_ok=True)
    write_table(folder / "gemm" / "here.parquet", columns)
    return folder / "gemm" / "here.parquet"


def _forget(work: Path) -> None:
    """Remove what an interrupted run would have gone on from."""
    import shutil

    shutil.rmtree(work, ignore_errors=True)


def _record(found: "Refit", target: Path, skipped: list[str]) -> dict[str, Any]:
    import msgspec

    return {
        "calibration": found.about.title,
        "folder": str(target),
        "replaces": found.about.replaces,
        "changes": [msgspec.structs.asdict(c) for c in found.changes],
        "notes": [*found.notes],
        "skipped": skipped,
    }


def _print(found: "Refit", target: Path, skipped: list[str]) -> None:
    from nearpeak.report import print_table

    print_table([_row(c) for c in found.changes])
    click.echo(
        "before: median error on these rows of what is replaced, * where it was fitted on them; after: of the new"
    )
    click.echo("one, each row's site left out of the fit")
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    if skipped:
        click.echo(f"no tables of measurements: {', '.join(skipped)}", err=True)
    counts = {kind: sum(c.change == kind for c in found.changes) for kind in ("added", "changed", "same", "removed")}
    told = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
    click.echo(f"{found.about.title} replaces {found.about.replaces}: {told or 'nothing'}; kept in {target}")


def _row(change: "Change") -> dict[str, Any]:
    def percent(value: float | None) -> str | None:
        return None if value is None else f"{value:.1f} %"

    before = percent(change.before)
    return {
        "operator": change.op,
        "device": change.gpu,
        "engine": change.engine,
        "format": change.format,
        "change": change.change,
        "rows": f"{change.rows:,}",
        "before": before if before is None or not change.before_seen else f"{before} *",
        "after": percent(change.after),
    }
