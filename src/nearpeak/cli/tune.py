"""``nearpeak tune``: the fastest configuration of a command or a function, in the fewest runs."""

import importlib
import logging
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearpeak.cli.arguments import check_new, json_option, print_json, progress
from nearpeak.errors import UsageError

if TYPE_CHECKING:
    from nearpeak.search.loop import Search
    from nearpeak.search.measurement import Evidence, Repeats, Target
    from nearpeak.search.space_file import SpaceFile
    from nearpeak.search.tune import Tuned

BUDGET = 100
"""Evaluations, where neither they nor seconds are given."""


@click.command(short_help="The fastest configuration of any command or function, in the fewest runs.")
@click.argument("space", type=click.Path(path_type=Path), required=False)
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="NAME=VALUES", help="tile=16,32,64 or n=1..8.")
@click.option("--constraint", "constraints", multiple=True, help="For -p: what must hold, e.g. 'tile % unroll == 0'.")
@click.option("--default", "default", metavar="'NAME=VALUE ...'", help="For -p: today's configuration.")
@click.option("--command", help="What is run; {tile} is the value of tile, {scratch} a folder of its own.")
@click.option("--build", help="Run once before each configuration.")
@click.option("--value", help="A regular expression, json:PATH, or time (default): the seconds of the command.")
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="A variable of command and build.")
@click.option(
    "--function", metavar="MODULE:FUNCTION", help="A Python function of the parameters, in place of --command."
)
@click.option("--replay", type=click.Path(path_type=Path), metavar="FILE", help="Search a table of measurements.")
@click.option("--maximize", is_flag=True, help="The value is to be large.")
@click.option("--budget", type=click.IntRange(1), help=f"Evaluations (default: {BUDGET}, or no limit with --seconds).")
@click.option("--seconds", type=float, help="End the search after so long.")
@click.option("--method", default="default", show_default=True, help="How to choose what to try next.")
@click.option("--repeats", metavar="LEAST..MOST", help="Of each (default: 3..10 of a command, 1 of a function).")
@click.option(
    "--precision", type=float, default=0.01, show_default=True, help="Repeat until the median's error is this."
)
@click.option(
    "--rounds", type=click.IntRange(0), default=11, show_default=True, help="Of the best against the default."
)
@click.option("--time-limit", type=float, help="Seconds after which a run has failed.")
@click.option("--workers", type=click.IntRange(1), help="Evaluations at once (default: 1, on Ray all its CPUs).")
@click.option(
    "--ray", "ray_address", metavar="ADDRESS", help="A Ray cluster: its address, auto, or local to start one."
)
@click.option("--log", type=click.Path(path_type=Path), help="Write what was tried here; go on from it if it is there.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with the convergence here.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of what is drawn at random.")
@click.option("--seeds", type=click.IntRange(1), default=30, show_default=True, help="With --replay: searches.")
@json_option
def tune(space: Path | None, as_json: bool, **given: Any) -> None:  # noqa: ANN401 (click's values)
    """Tune a command line, a Python function or a table of measurements over the space of the file SPACE (TOML, JSON).

    \b
    Examples:
      nearpeak tune gemm.toml --budget 30 --log gemm.jsonl
      nearpeak tune -p level=1..9 --default level=6 --command 'zstd -{level} -c big.tar | wc -c' --value '\\d+'
      nearpeak tune space.toml --function training:loss --workers 8 --time-limit 600
      nearpeak tune --replay kernel.parquet --budget 200 --seeds 30
    """
    _check(space, given)
    if given["replay"] is not None:
        from nearpeak.cli.tune_replay import replay_command

        return replay_command(
            given["replay"], given["budget"] or BUDGET, given["seeds"], given["method"], given["workers"], as_json
        )
    file = _space(space, given)
    maximize = given["maximize"] or bool(file.run.get("maximize"))
    target, repeats, is_time = _target(file, given, -1.0 if maximize else 1.0)
    tuned, taken = _tune(target, repeats, file, given, is_time, maximize)
    record = _record(tuned, taken, maximize)
    record |= _commands(target, tuned.best)
    if given["html"] is not None:
        _write_page(given["html"], tuned, is_time, maximize)
        record["html"] = str(given["html"])
    if as_json:
        print_json(record)
    else:
        _print(record, tuned, is_time, maximize)


def _commands(target: "Target", best: Mapping[str, Any]) -> dict[str, str]:
    """What builds and runs the best configuration."""
    from nearpeak.search.commands import CommandTarget

    if not isinstance(target, CommandTarget):
        return {}
    templates = {"build": target.build, "command": target.command}
    return {name: target.filled(template, best) for name, template in templates.items() if template}


def _check(space: Path | None, given: dict[str, Any]) -> None:
    ways = [
        name for name, there in (("SPACE", space), ("-p", given["parameters"]), ("--replay", given["replay"])) if there
    ]
    if len(ways) != 1:
        raise UsageError(
            f"{' and '.join(ways) or 'no space'} given; give one of SPACE, -p NAME=VALUES and --replay FILE"
        )
    if given["replay"] is None:
        if not given["parameters"] and (given["constraints"] or given["default"]):
            raise UsageError("--constraint and --default are for -p; a file has constraints and [default]")
        if given["command"] and given["function"]:
            raise UsageError("--command and --function given; give one of them")
    for name in ("seconds", "time_limit"):
        if given[name] is not None and not 0 < given[name] < math.inf:
            raise UsageError(f"--{name.replace('_', '-')} {given[name]} must be a number above 0")
    check_new(given["html"], "--html")


def _space(path: Path | None, given: dict[str, Any]) -> "SpaceFile":
    from nearpeak.search.space_file import inline_space, read_space

    if path is not None:
        return read_space(path)
    return inline_space(given["parameters"], given["constraints"], given["default"])


def _target(file: "SpaceFile", given: dict[str, Any], sign: float) -> "tuple[Target, Repeats, bool]":
    """What is tuned, how often it is run, and whether the value is a time."""
    from nearpeak.search.commands import CommandTarget, Value
    from nearpeak.search.tune import FunctionTarget

    run = dict(file.run)
    if given["command"]:
        run.pop("function", None)
    if given["function"]:
        run.pop("command", None)
    run |= {name: given[name] for name in ("command", "build", "value", "function") if given[name]}
    if bool(run.get("command")) == bool(run.get("function")):
        raise UsageError("give what to tune: --command 'prog --tile {tile}', --function MODULE:FUNCTION, or [run]")
    if "function" in run:
        return FunctionTarget(_function(run["function"], file.folder), sign), _repeats(given, 0, "1"), False
    value = Value(run.get("value", "time"))
    environment = dict(run.get("environment", {}))
    for item in given["environment"]:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise UsageError(f"--env {item!r} is not NAME=VALUE")
        environment[name] = text
    own = given["command"] or given["build"]
    target = CommandTarget(
        run["command"], frozenset(file.space.parameters), run.get("build"), value, environment, given["time_limit"],
        None if own else file.folder, sign,
    )  # fmt: skip
    return target, _repeats(given, 1, "3..10"), value.is_time


def _repeats(given: dict[str, Any], warmups: int, default: str) -> "Repeats":
    from nearpeak.search.measurement import Repeats

    text = given["repeats"] or default
    match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
    if match is None:
        raise UsageError(f"--repeats {text!r} is not COUNT or LEAST..MOST, e.g. 3..10")
    return Repeats(int(match[1]), int(match[2] or match[1]), given["precision"], warmups)


def _function(name: str, folder: Path | None) -> Callable[..., Any]:
    """The function of ``module:function``, looked up where nearpeak runs and beside the file that names it.

    Raises:
        UsageError: there is none.
    """
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise UsageError(f"function {name!r} is not MODULE:FUNCTION")
    sys.path[:0] = [str(place) for place in (Path.cwd(), folder and folder.resolve()) if place]
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise UsageError(f"function {name!r}: no module {error.name!r} here or where Python looks") from None
    except AttributeError:
        raise UsageError(f"function {name!r}: {module} has no {attribute!r}") from None
    if not callable(found):
        raise UsageError(f"function {name!r} cannot be called: it is {found!r}")
    function: Callable[..., Any] = found
    return function


def _tune(
    target: "Target", repeats: "Repeats", file: "SpaceFile", given: dict[str, Any], is_time: bool, maximize: bool
) -> "tuple[Tuned, float]":
    from nearpeak.search.commands import CommandTarget, ending_on_sigterm
    from nearpeak.search.tune import tune as run

    on_ray = given["ray_address"] is not None
    if on_ray:
        _connect(given["ray_address"])
    budget = given["budget"] or (sys.maxsize if given["seconds"] else BUDGET)
    begun = time.perf_counter()
    latest: list[Search] = []
    with ending_on_sigterm(), progress("tuning") as update:

        def watch(search: "Search") -> None:
            latest[:] = [search]
            if given["budget"] or not given["seconds"]:
                update(len(search.history), budget)
            else:
                update(int(time.perf_counter() - begun), int(given["seconds"]))

        try:
            tuned = run(
                target, file.space, budget, default=file.default, repeats=repeats, rounds=given["rounds"],
                method=given["method"], seed=given["seed"], log=given["log"],
                workers=given["workers"] or (0 if on_ray else 1), ray=on_ray, seconds=given["seconds"] or math.inf,
                time_limit=None if isinstance(target, CommandTarget) else given["time_limit"], watch=watch,
            )  # fmt: skip
        except KeyboardInterrupt:
            _say_how_to_go_on(latest, given["log"], is_time, maximize)
            raise
    return tuned, time.perf_counter() - begun


def _connect(address: str) -> None:
    try:
        import ray
    except ImportError:
        raise UsageError("--ray needs the extra: pip install nearpeak[ray]") from None
    paths = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), *sys.path[:2])))
    try:
        ray.init(
            address=None if address == "local" else address, include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR, runtime_env={"env_vars": {"PYTHONPATH": paths}}, ignore_reinit_error=True,
        )  # fmt: skip
    except (ConnectionError, ValueError) as error:
        raise UsageError(f"--ray {address}: {error}") from None


def _say_how_to_go_on(latest: "list[Search]", log: Path | None, is_time: bool, maximize: bool) -> None:
    search = latest[0] if latest else None
    if search is not None and search.best is not None:
        best = search.history.best
        assert best is not None
        value = float(search.history.values[best]) * (-1 if maximize else 1)
        click.echo(
            f"stopped after {len(search.history)} evaluations; the best so far gives {_say(is_time)(value)}: "
            f"{_written(search.best)}",
            err=True,
        )
    way = f"the log {log} is kept: run the same command again to go on" if log else "give --log FILE to go on later"
    click.echo(way, err=True)


def _record(tuned: "Tuned", taken: float, maximize: bool) -> dict[str, Any]:
    from nearpeak.search.convergence import convergence

    sign = -1.0 if maximize else 1.0
    history, evidence = tuned.found.history, tuned.evidence
    course = convergence(history, sign)
    failed = Counter(tuned.found.reasons.values())
    return {
        "best": dict(tuned.best),
        "value": sign * tuned.value,
        "default": None if tuned.default is None else dict(tuned.default),
        "evidence": None if evidence is None else _evidence(evidence, sign),
        "evaluations": len(history),
        "failed": int((~history.succeeded).sum()),
        "reasons": dict(failed.most_common(5)),
        "stopped": tuned.found.stopped,
        "seconds": taken,
        "choosing_seconds": tuned.found.choosing,
        "convergence": [
            {"evaluation": number, "seconds": seconds, "value": value}
            for number, seconds, value in course.improvements()
        ],
    }


def _evidence(evidence: "Evidence", sign: float) -> dict[str, Any]:
    return {
        "best": sign * evidence.best,
        "default": sign * evidence.default,
        "gain": evidence.gain,
        "is": "times better" if evidence.ratio else "difference",
        "low": evidence.low,
        "high": evidence.high,
        "level": evidence.level,
        "rounds": evidence.rounds,
        "sure": evidence.sure,
    }


def _say(is_time: bool) -> Callable[[float], str]:
    from nearpeak.report import format as write

    return write.seconds if is_time else write.digits


def _written(configuration: Any) -> str:  # noqa: ANN401 (a mapping)
    return ", ".join(f"{name} {value}" for name, value in configuration.items())


def _print(record: dict[str, Any], tuned: "Tuned", is_time: bool, maximize: bool) -> None:
    from nearpeak.report import format as write
    from nearpeak.report.convergence import sketch
    from nearpeak.search.convergence import convergence

    say = _say(is_time)
    click.echo(sketch(convergence(tuned.found.history, -1.0 if maximize else 1.0), say))
    failed = f", {record['failed']} failed" if record["failed"] else ""
    click.echo(
        f"\n{record['evaluations']} evaluations{failed}; stopped by {record['stopped']}; "
        f"{write.seconds(record['seconds'])} in all, {write.seconds(record['choosing_seconds'])} of it choosing."
    )
    for why, count in record["reasons"].items():
        click.echo(f"  failed {count} x: {why}")
    click.echo(f"best     {_written(record['best'])}")
    click.echo(f"value    {say(record['value'])}")
    click.echo(f"default  {_against(tuned, record['evidence'], say)}")
    for name in ("build", "command", "html"):
        if name in record:
            click.echo(f"{name:7}  {record[name]}")


def _against(tuned: "Tuned", evidence: dict[str, Any] | None, say: Callable[[float], str]) -> str:
    from nearpeak.report import format as write

    if tuned.default is None:
        return "none given, so there is nothing to compare with: [default] in the file, or --default with -p"
    if evidence is None:
        return "it is the best itself" if dict(tuned.default) == dict(tuned.best) else "it fails"
    ratio = evidence["is"] == "times better"
    show: Callable[[float], str] = "{:.3f}".format if ratio else write.digits
    gain = f"{show(evidence['gain'])} times better" if ratio else f"better by {show(evidence['gain'])}"
    said = f"{say(evidence['default'])}: the best is {gain}"
    if math.isnan(evidence["low"]):
        return f"{said} ({'measured once' if evidence['rounds'] == 1 else 'too few rounds for an interval'})"
    if evidence["low"] == evidence["high"]:
        return f"{said}, without noise"
    span = f"{show(evidence['low'])} to {show(evidence['high'])}"
    beyond = "" if evidence["sure"] else "; not beyond the noise"
    return f"{said}, {span} with {100 * evidence['level']:.1f} % in {evidence['rounds']} rounds{beyond}"


def _write_page(path: Path, tuned: "Tuned", is_time: bool, maximize: bool) -> None:
    from nearpeak.report.convergence import convergence_page
    from nearpeak.report.html import write_page
    from nearpeak.search.convergence import convergence

    course = convergence(tuned.found.history, -1.0 if maximize else 1.0)
    says = f"{len(course.values)} evaluations. Best: {_written(tuned.best)}."
    write_page(path, convergence_page("Tuning", says, {"search": course}, "seconds" if is_time else "value"))
