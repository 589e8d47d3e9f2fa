"""``nearpeak plan``: the best ways to serve a model under a goal."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearpeak.cli.arguments import calibration_option, check_new, fleets, json_option, print_json, progress
from nearpeak.errors import NearpeakError, UsageError

if TYPE_CHECKING:
    from nearpeak.plan import Explained, Objective, Plans, Point

OBJECTIVES = ("cost", "throughput", "latency", "energy", "carbon")


@click.command(short_help="The best hardware, configuration and techniques for a goal.")
@click.argument("model")
@click.option("--gpus", required=True, metavar="DEVICE:LEAST..MOST", help="Devices to choose from, comma-separated.")
@click.option("--isl", type=float, help="Mean tokens of a prompt.")
@click.option("--osl", type=float, help="Mean tokens of an answer.")
@click.option("--goal", "objective", default="cost", show_default=True, metavar="|".join(OBJECTIVES), help="Objective.")
@click.option("--ttft", type=float, help="At most this many seconds to the first token.")
@click.option("--tpot", type=float, help="At most this many seconds per later token.")
@click.option("--latency", type=float, help="At most this many seconds from request to last token.")
@click.option("--rate", type=float, help="At least this many requests per second.")
@click.option("--budget", type=float, help="At most this many dollars per hour.")
@click.option("--memory", type=float, help="At most this many bytes on a device.")
@click.option("--accuracy", type=float, help="At least this share of the model's quality kept, e.g. 0.98.")
@click.option("--engine", "engines", multiple=True, default=("vllm",), show_default=True, help="vllm, sglang, trtllm.")
@click.option("--technique", "techniques", multiple=True, help="Choose only from these techniques (default: all).")
@click.option("--price", "prices", multiple=True, metavar="DEVICE=DOLLARS", help="Your own price per device and hour.")
@click.option("--slo", "slos", multiple=True, metavar="pQ:FIGURE=SECONDS", help="Limit on a percentile: p99:ttft=0.5.")
@click.option("--trace", type=click.Path(path_type=Path), help="Recorded traffic, CSV or JSON.")
@click.option("--spread", type=float, default=0.7, show_default=True, help="Of drawn lengths.")
@click.option("--burstiness", type=float, default=1.0, show_default=True, help="Of arrivals.")
@click.option("--requests", type=click.IntRange(100), default=5000, show_default=True, help="Requests of a simulation.")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Plans to show.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a self-contained page with the plots here.")
@click.option("--export", "export_to", type=click.Path(path_type=Path), help="Write the best plan's launch files here.")
@calibration_option
@json_option
def plan(
    model: str,
    gpus: str,
    isl: float | None,
    osl: float | None,
    objective: "Objective",
    engines: tuple[str, ...],
    techniques: tuple[str, ...],
    prices: tuple[str, ...],
    slos: tuple[str, ...],
    trace: Path | None,
    spread: float,
    burstiness: float,
    requests: int,
    top: int,
    html: Path | None,
    export_to: Path | None,
    as_json: bool,
    **limits: float | None,
) -> None:
    """Rank every way to serve MODEL on the given devices, and say why the best is best.

    MODEL is the id of a bundled config (see `nearpeak models`), or a folder or file with a config.json. With --slo the
    limits are on percentiles under traffic, a trace or requests at a --rate, and the best plans are simulated.

    \b
    Examples:
      nearpeak plan Qwen/Qwen3-32B --gpus h200:1..8 --isl 4000 --osl 500 --ttft 0.3 --tpot 0.01
      nearpeak plan Qwen/Qwen3-32B --gpus h200:1..8,l40s:1..16 --trace arrivals.csv --slo p99:ttft=1 --slo p99:tpot=0.05
    """
    from nearpeak.plan import Goal, explained, shortlist
    from nearpeak.plan import plan as search
    from nearpeak.techniques import technique
    from nearpeak.workload import read

    check_new(html, "--html")
    if export_to is not None:
        from nearpeak.export import engines as exported

        if unknown := sorted(set(engines) - set(exported())):
            raise UsageError(
                f"no launch files for {', '.join(unknown)}; --export knows {', '.join(sorted(exported()))}"
            )
    if export_to is not None and (export_to.exists() or export_to.is_symlink()):
        raise UsageError(f"'{export_to}' exists; remove it or choose another --export")
    allowed = [technique(name).name for name in techniques] or None
    architecture = read(model)
    if slos or trace is not None:
        if html is not None:
            raise UsageError("--html shows plans on means; for a page with traffic run `nearpeak web`")
        from nearpeak.cli.plan_traffic import plan_traffic

        traffic: dict[str, Any] = {"trace": trace, "isl": isl, "osl": osl, "spread": spread, "burstiness": burstiness}
        found, traffic["requests"] = fleets(gpus, prices), requests
        plan_traffic(architecture, found, slos, traffic, objective, engines, allowed, limits, top, export_to, as_json)
        return
    if isl is None or osl is None:
        raise UsageError("give --isl and --osl, or a --trace with --slo")
    goal = Goal(objective, **limits)
    with progress("pricing") as update:
        plans = search(architecture, fleets(gpus, prices), goal, isl, osl, engines, allowed, update)
    best = [explained(c) for c in shortlist(plans, top)]
    if as_json:
        print_json(_record(plans, best))
    else:
        _print(plans, best)
    if not best:
        raise NearpeakError("no Setup meets the goal")
    if html is not None:
        from nearpeak.report import page, write_page

        write_page(html, page(plans, best, goal))
    if export_to is not None:
        from nearpeak.export import launch_files, write

        write(launch_files(best[0]), export_to)


def _record(plans: "Plans", best: "list[Explained]") -> dict[str, Any]:
    from nearpeak.plan import explained, record

    miss = plans.miss
    return {
        "priced": plans.priced,
        "started": plans.started,
        "search_seconds": plans.seconds,
        "plans": [{"rank": i + 1, **record(p)} for i, p in enumerate(best)],
        "front": [_point(point) for point in plans.front],
        "nearest_miss": None
        if miss is None
        else {"binding": miss.binding, "excess": miss.excess, "plan": record(explained(miss.candidate))},
        "left_out": plans.left_out,
    }


def _point(point: "Point") -> dict[str, Any]:
    setup = point.candidate.setup
    return {
        "tokens_per_second_per_user": point.per_user,
        "tokens_per_second_per_device": point.per_device,
        "meets": point.meets,
        "mode": setup.mode,
        "device": setup.node.device.name,
        "devices": int(setup.devices),
    }


def _print(plans: "Plans", best: "list[Explained]") -> None:
    from nearpeak.report import print_miss, print_plans

    if best:
        print_plans(plans, best)
    elif plans.miss is not None:
        print_miss(plans.miss)
