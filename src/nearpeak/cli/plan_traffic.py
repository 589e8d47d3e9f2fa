"""``nearpeak plan`` under traffic: limits on percentiles, simulated."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from nearpeak.cli.arguments import announce_compilation, print_json, progress
from nearpeak.errors import NearpeakError, UsageError

if TYPE_CHECKING:
    from nearpeak.plan import Fleet
    from nearpeak.plan.serving import Limit
    from nearpeak.simulate.loop import Feed
    from nearpeak.workload import Architecture


def plan_traffic(
    model: "Architecture",
    fleets: "list[Fleet]",
    slos: tuple[str, ...],
    traffic: dict[str, Any],
    objective: str,
    engines: tuple[str, ...],
    techniques: list[str] | None,
    limits: dict[str, float | None],
    top: int,
    export_to: Path | None,
    as_json: bool,
) -> None:
    """Plan, print, and write the launch files of the best.

    Args:
        traffic: ``trace``, or ``isl``, ``osl``, ``spread``, ``burstiness`` and ``requests``. limits: on means, the
            rate and the accuracy, as `nearpeak plan` takes them.

    Raises:
        UsageError: a limit or an option that has no meaning here, or no traffic.
        NearpeakError: nothing keeps the limits.
    """
    from nearpeak.plan.serving import Objective, plan_serving, serving_record
    from nearpeak.report import print_serving_plans

    aim = next((name for name in get_args(Objective) if name == objective), None)
    if aim is None:
        raise UsageError(
            f"goal {objective!r} has no meaning at a given rate; choose one of {', '.join(get_args(Objective))}"
        )
    if unused := [f"--{name}" for name in ("budget", "memory") if limits[name] is not None]:
        raise UsageError(f"{', '.join(unused)} is for plans on means; leave it out with --slo or --trace")
    means = [f"mean:{name}={limits[name]:g}" for name in ("ttft", "tpot", "latency") if limits[name] is not None]
    goals = [_limit(text) for text in (*slos, *means)]
    draws = _replications(traffic, limits["rate"])
    announce_compilation()
    with progress("simulating") as update:
        plans = plan_serving(
            model, fleets, draws, goals, aim, engines, techniques, limits["accuracy"] or 0.0, top, update
        )
    record = serving_record(plans)
    if as_json:
        print_json(record)
    else:
        print_serving_plans(record)
    if not plans.trials:
        raise NearpeakError("no deployment keeps the limits: relax one, or give more or other devices")
    if export_to is not None:
        from nearpeak.export import launch_files, write
        from nearpeak.plan import explain

        best = plans.trials[0]
        write(launch_files(explain(best.setup, best.techniques)), export_to)


def _limit(text: str) -> "Limit":
    from nearpeak.plan.serving import Limit

    match = re.fullmatch(r"(?:p([0-9.]+)|mean):(ttft|tpot|latency)=(\S+)", text)
    try:
        if match is not None:
            return Limit(match[2], None if match[1] is None else float(match[1]), float(match[3]))
    except ValueError:
        pass
    raise UsageError(f"--slo {text!r} is not pQ:FIGURE=SECONDS with ttft, tpot or latency, e.g. p99:ttft=0.5")


def _replications(traffic: dict[str, Any], rate: float | None) -> "Callable[[int], Feed]":
    from nearpeak.cli.simulate import lengths_of
    from nearpeak.plan.serving import replications_drawn, replications_of
    from nearpeak.workload.traffic import Gamma, Traffic, read_trace

    isl, osl, spread = traffic["isl"], traffic["osl"], traffic["spread"]
    if traffic["trace"] is not None:
        if rate is not None or isl is not None or osl is not None:
            raise UsageError("a trace has its own rate and lengths; leave out --rate, --isl and --osl")
        return replications_of(read_trace(traffic["trace"]))
    if rate is None or isl is None or osl is None:
        raise UsageError("limits on percentiles need traffic: a --trace, or --rate with --isl and --osl")
    lengths = [lengths_of(name, mean, spread) for name, mean in (("isl", isl), ("osl", osl))]
    drawn = Traffic(lengths[0], lengths[1], Gamma(rate, traffic["burstiness"]))
    return replications_drawn(drawn, traffic["requests"])
