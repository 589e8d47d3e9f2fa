"""``nearpeak simulate sweep``: a simulation for each combination of settings, on all cores or on a Ray cluster."""

import copy
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearpeak.cli.arguments import calibration_option, check_new, json_option, print_json, progress
from nearpeak.errors import NearpeakError, UnknownName, UsageError

if TYPE_CHECKING:
    from nearpeak.workload import Architecture
    from nearpeak.workload.traffic import Trace

OF_ONE_RUN = ("out", "timeline", "as_json")
"""Options of a single simulation that a sweep does not take from it."""
TARGETS = ("ttft", "tpot", "latency")
FIGURES = (
    "devices", "p99_ttft", "p99_tpot", "within_targets_share", "tokens_per_second", "joules_per_token",
    "dollars_per_million_tokens",
)  # fmt: skip
"""Columns that are printed beside the settings that differ."""
SHOWN = 10


def sweep_of(serving: click.Command) -> click.Command:
    """The command that takes the options of ``serving``, and of each several values."""
    listed = []
    for option in serving.params:
        if isinstance(option, click.Option) and option.expose_value and option.name not in OF_ONE_RUN:
            several = copy.copy(option)
            several.type = click.types.FuncParamType(_several(option.type))
            several.metavar = f"{option.type.name.partition(' ')[0].upper()},..."
            listed.append(several)
    command = click.command("sweep", short_help="Every combination of several values of each setting.")(_sweep)
    command.params[1:1] = listed
    return command


def _several(one: Any) -> Callable[[Any], tuple[Any, ...]]:  # noqa: ANN401 (click's types)
    """What reads values of a type with commas between."""

    def read(given: object) -> tuple[Any, ...]:
        parts = [part.strip() for part in str(given).split(",")]
        found = tuple(one.convert(part, None, None) for part in parts)
        if "" in parts or len(set(found)) < len(found):
            raise click.BadParameter(f"{given!r} has an empty value, or one twice")
        return found

    return read


@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The table (Parquet or CSV), a row each.")
@click.option("--workers", type=click.IntRange(1), help="Processes on this machine (default: one for each core).")
@click.option("--ray", metavar="auto|ADDRESS", help="Run on this Ray cluster (`auto`: the one that runs here).")
@click.option(
    "--share", type=click.FloatRange(0, 1), default=0.99, show_default=True,
    help="Of the requests, that must meet the targets for a row to be among the best.",
)  # fmt: skip
@calibration_option
@json_option
def _sweep(
    model: str, out: Path, workers: int | None, ray: str | None, share: float, as_json: bool, **listed: tuple[Any, ...]
) -> None:
    """Simulate MODEL served in every combination of the listed settings, and keep a row of figures of each.

    Options are those of `nearpeak simulate`; each takes several values with commas between. A sweep that was killed
    goes on where it was when the same command is given again. Rows are the same whatever the number of workers.

    \b
    Example:
      nearpeak simulate sweep Qwen/Qwen3-8B --gpu h100,l40s --tp 1,2 --rate 2,4,8 --isl 1000 --osl 200 \\
        --ttft 0.5 --tpot 0.03 --out sweep.parquet
      nearpeak simulate sweep Qwen/Qwen3-32B --gpu h200 --replicas 1,2,4 --trace arrivals.csv --speed-up 0.5,1,2 \\
        --ray auto --out sweep.parquet
    """
    from nearpeak.simulate.sweep import log_of, run

    check_new(out, "--out")
    if ray is not None and workers is not None:
        raise UsageError(f"--workers {workers} and --ray {ray} given; a cluster uses all of its cores")
    tasks, simulation = _asked(model, listed)
    found = -1
    with progress("simulating") as update:

        def tell(done: int, total: int) -> None:
            nonlocal found
            if found < 0:
                found = done
                if found:
                    click.echo(f"{found} of {total} simulations are in {str(log_of(out))!r} already.", err=True)
            update(done, total)

        run(tasks, simulation, out, workers, ray, tell)
    _report(out, found, share, [name for name, values in listed.items() if len(values or ()) > 1], as_json)


@dataclass(frozen=True)
class Simulation:
    """What carries out a task. It holds the model and the traces, whose files other machines may not have."""

    model: "Architecture"
    traces: "dict[tuple[str, float], Trace]"

    def given(self, task: dict[str, Any]) -> dict[str, Any]:
        """The options of ``nearpeak simulate`` that a task stands for."""
        trace = self.traces.get((task["trace"], task["time_unit"]))
        return {**task, "model": self.model, "trace": trace} | {name: task[f"target_{name}"] for name in TARGETS}

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """Settings that a task left to the simulator, and all figures."""
        from nearpeak.cli.simulate import case
        from nearpeak.simulate.serving import serve

        given = self.given(task)
        setup, deployment, requests, targets = case(given)
        result = serve(deployment, requests, clients=given["concurrency"] or 0, targets=targets, seed=given["seed"])
        record = result.record()
        times = {f"{of}_{name}": x for name, all_of in record.pop("percentiles").items() for of, x in all_of.items()}
        price = setup.node.device.price_per_hour
        spent = None if price is None or not result.tokens else price / 3600 * result.devices * result.span
        return {
            "policy_name": deployment.policy.name, "devices": result.devices, **record,
            "dollars_per_million_tokens": None if spent is None else spent / result.tokens * 1e6, **times,
        }  # fmt: skip


def _asked(model: str, listed: dict[str, tuple[Any, ...]]) -> tuple[list[dict[str, Any]], Simulation]:
    """Every combination as a task, and what carries it out.

    Raises:
        UsageError: the traffic is not given, or not once; a name is in no catalogue; a trace cannot be read.
    """
    from nearpeak.cli.simulate import policy_of, requests_of, setup_of
    from nearpeak.workload import read
    from nearpeak.workload.traffic import read_trace

    values: dict[str, tuple[Any, ...]] = {
        name: tuple(str(v) if isinstance(v, Path) else v for v in some or (None,)) for name, some in listed.items()
    }
    files = [path for path in values["trace"] if path is not None]
    traces = {(path, unit): read_trace(path, unit) for path in files for unit in values["time_unit"]}
    simulation = Simulation(read(model), traces)
    digests = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] for path in files}
    about = {"model": model, "model_digest": hashlib.sha256(repr(simulation.model).encode()).hexdigest()[:16]}
    names = [f"target_{name}" if name in TARGETS else name for name in values]
    tasks = [about | dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    for task in tasks:
        task["trace_digest"] = digests.get(task["trace"])
    first = simulation.given(tasks[0])
    requests = requests_of(first)
    for name, some in values.items():
        for value in some:
            one = first if name == "trace" else first | {name: value}
            try:
                policy_of(one, setup_of(one, float(requests.isl.mean()), float(requests.osl.mean())))
            except UnknownName:
                raise
            except UsageError:  # in this combination; it is an error of its row
                continue
    return tasks, simulation


def _report(out: Path, found: int, share: float, varied: list[str], as_json: bool) -> None:
    """Print the rows that meet the targets, the cheapest first."""
    import numpy as np

    from nearpeak.cost import read_table

    table = read_table(out)
    failed = np.array([error is not None for error in table["error"]])
    if failed.all():
        raise NearpeakError(f"all {len(failed)} simulations failed; the first: {table['error'][0]}")
    within = table["within_targets_share"].astype(float)
    saturated = np.array([bool(one) for one in table["saturated"]])
    meets = ~failed & ~saturated & (within >= share)
    order = np.lexsort((table["joules_per_token"], table["dollars_per_million_tokens"].astype(float)))
    if not meets.any():  # those that come nearest
        order = np.argsort(np.where(failed, np.inf, -within), kind="stable")
    chosen = order[meets[order]] if meets.any() else order[~failed[order]]
    columns = [f"target_{name}" if name in TARGETS else name for name in varied] + list(FIGURES)
    best = [{name: _plain(table[name][at]) for name in columns} for at in chosen[:SHOWN].tolist()]
    counts = {
        "simulations": len(failed), "resumed": found, "failed": int(failed.sum()), "saturated": int(saturated.sum()),
        "meet_targets": int(meets.sum()),
    }  # fmt: skip
    if as_json:
        print_json({**counts, "best" if meets.any() else "nearest": best, "out": str(out)})
        return
    from nearpeak.report import print_table

    click.echo(
        f"{len(failed)} simulations: {meets.sum()} meet the targets, {saturated.sum()} are saturated, "
        f"{failed.sum()} failed. All are in '{out}'."
    )
    if failed.any():
        click.echo(f"The first that failed: {table['error'][int(np.argmax(failed))]}")
    click.echo("The cheapest that meet the targets:" if meets.any() else "Nothing meets the targets; the nearest:")
    print_table(best)


def _plain(value: Any) -> Any:  # noqa: ANN401 (what a table holds)
    """A value of a table as Python's own, None where it is empty."""
    own = value.item() if hasattr(value, "item") else value
    return None if isinstance(own, float) and own != own else own
