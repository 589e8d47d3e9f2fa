"""``nearpeak simulate``: a deployment under traffic, a recorded run replayed, and schedules inside a device."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearpeak.cli.arguments import (
    MOST_DEVICES,
    announce_compilation,
    calibration_option,
    check_new,
    json_option,
    print_json,
    progress,
)
from nearpeak.cli.sweep import sweep_of
from nearpeak.cli.topics import Topics, print_topics
from nearpeak.errors import UsageError

if TYPE_CHECKING:
    from nearpeak.simulate.results import Result
    from nearpeak.topic import Topic
    from nearpeak.workload.traffic import Lengths


def _topics() -> "dict[str, Topic]":
    from nearpeak.simulate import topics

    return topics()


SIZE = click.IntRange(1, MOST_DEVICES)


@click.command(short_help="A deployment under traffic.")
@click.argument("model")
@click.option("--gpu", required=True, help="Device, see `nearpeak hardware`.")
@click.option("--tp", type=SIZE, default=1, show_default=True, help="Tensor parallelism.")
@click.option("--pp", type=SIZE, default=1, show_default=True, help="Pipeline stages.")
@click.option("--dp", type=SIZE, default=1, show_default=True, help="Attention replicas around experts.")
@click.option("--ep", type=SIZE, default=1, show_default=True, help="Expert parallelism.")
@click.option("--replicas", type=SIZE, default=1, show_default=True, help="Instances behind the router.")
@click.option("--prefill-replicas", type=SIZE, help="Instances that only prefill; the others then only decode.")
@click.option("--weights", help="Number format of the weights (default: the checkpoint's).")
@click.option("--kv", help="Number format of the KV cache (default: the checkpoint's).")
@click.option("--engine", default="vllm", show_default=True, help="vllm, sglang, trtllm; vllm@0.12.0 for a version.")
@click.option("--trace", type=click.Path(path_type=Path), help="Arrivals and lengths (CSV or JSON lines).")
@click.option("--time-unit", type=float, default=1.0, show_default=True, help="Seconds in a unit of the trace's times.")
@click.option("--speed-up", type=float, default=1.0, show_default=True, help="Play the trace this many times as fast.")
@click.option("--rate", type=float, help="Requests per second, arriving at random, in place of a trace.")
@click.option("--burstiness", type=float, default=1.0, show_default=True, help="Coefficient of variation of arrivals.")
@click.option("--concurrency", type=SIZE, help="Requests in flight of a closed loop, in place of a rate.")
@click.option("--isl", type=click.FloatRange(1), help="Mean tokens of a prompt.")
@click.option("--osl", type=click.FloatRange(1), help="Mean tokens of an answer.")
@click.option("--spread", type=float, default=0.0, show_default=True, help="Deviation of lengths over their mean.")
@click.option("--requests", type=SIZE, default=10_000, show_default=True, help="Requests to draw.")
@click.option("--policy", "policy_name", help="How steps are composed (default: as the engine does).")
@click.option("--token-budget", type=SIZE, help="Most tokens of a step.")
@click.option("--max-seqs", type=SIZE, default=256, show_default=True, help="Requests that an instance runs at once.")
@click.option("--router", default="least-loaded", show_default=True, help="Which instance a request goes to.")
@click.option("--draft", type=click.IntRange(0, 8), default=0, show_default=True, help="Drafted tokens of a step.")
@click.option("--acceptance", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Of a drafted token.")
@click.option("--ttft", type=float, help="Target of each request in seconds, to the first token.")
@click.option("--tpot", type=float, help="Target of each request in seconds, per later token.")
@click.option("--latency", type=float, help="Target of each request in seconds, in all.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of what is drawn at random.")
@click.option("--out", type=click.Path(path_type=Path), help="Write a line per request here (Parquet or CSV).")
@click.option("--timeline", type=click.Path(path_type=Path), help="Write a trace for Perfetto here (JSON).")
@calibration_option
@json_option
def serving(as_json: bool, out: Path | None, timeline: Path | None, **given: Any) -> None:  # noqa: ANN401 (click's values)
    """Simulate MODEL served on devices under traffic: percentiles, goodput, use, energy.

    \b
    Examples:
      nearpeak simulate Qwen/Qwen3-8B --gpu h100 --rate 8 --isl 1000 --osl 200 --spread 0.7 --ttft 0.5 --tpot 0.02
      nearpeak simulate Qwen/Qwen3-32B --gpu h200 --tp 2 --replicas 2 --trace arrivals.csv --timeline run.json
    """
    from nearpeak.simulate.deploy import knee
    from nearpeak.simulate.serving import serve

    check_new(out, "--out")
    check_new(timeline, "--timeline")
    _, deployment, requests, targets = case(given)
    announce_compilation()
    with progress("simulating") as update:
        result = serve(
            deployment, requests, clients=given["concurrency"] or 0, targets=targets, seed=given["seed"],
            timeline=20_000 if timeline else 0, progress=lambda done: update(done, len(requests.isl)),
        )  # fmt: skip
    written = _write(result, out, timeline)
    record = result.record() | {"policy": deployment.policy.name, "devices": deployment.devices} | written
    if result.saturated:
        record["knee_rate"] = knee(deployment, requests, given["seed"])
    if as_json:
        print_json(record)
    else:
        _print(record)


def case(given: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """The Setup, its Deployment, the requests (a Feed) and the Targets that options stand for."""
    from nearpeak.simulate.deploy import deploy
    from nearpeak.simulate.results import Targets

    requests = requests_of(given)
    setup = setup_of(given, float(requests.isl.mean()), float(requests.osl.mean()))
    deployment = deploy(
        setup, rule=policy_of(given, setup), router=given["router"], most=given["max_seqs"],
        longest=min(setup.model.context, max(32, int((requests.isl + requests.osl).max()))),
    )  # fmt: skip
    targets = Targets(**{name: given[name] for name in ("ttft", "tpot", "latency") if given[name] is not None})
    return setup, deployment, requests, targets


def requests_of(given: dict[str, Any]) -> Any:  # noqa: ANN401 (a Feed; numba stays unloaded until it is needed)
    """The traffic that options stand for; ``trace`` is a path or a Trace."""
    from nearpeak.simulate.serving import feed
    from nearpeak.workload.traffic import AtOnce, Gamma, Trace, Traffic, read_trace

    ways = [name for name in ("trace", "rate", "concurrency") if given[name] is not None]
    if len(ways) != 1:
        raise UsageError(f"{' and '.join(ways) or 'no traffic'} given; give one of --trace, --rate and --concurrency")
    if given["trace"] is not None:
        if not 0 < given["speed_up"] < math.inf:
            raise UsageError(f"--speed-up {given['speed_up']} must be a number above 0")
        trace = given["trace"]
        if not isinstance(trace, Trace):
            trace = read_trace(trace, given["time_unit"])
        marks = {} if trace.marks is None else vars(trace.marks)
        return feed(trace.arrival / given["speed_up"], trace.isl, trace.osl, **marks)
    if given["isl"] is None or given["osl"] is None:
        raise UsageError("drawn requests need --isl and --osl")
    lengths = [lengths_of(name, given[name], given["spread"]) for name in ("isl", "osl")]
    arrivals = AtOnce() if given["rate"] is None else Gamma(given["rate"], given["burstiness"])
    drawn = Traffic(lengths[0], lengths[1], arrivals).sample(given["requests"], given["seed"])
    return feed(drawn.arrival, drawn.isl, drawn.osl)


def lengths_of(name: str, mean: float, spread: float) -> "Lengths":
    """The distribution of lengths of a mean, all alike where they do not spread."""
    from nearpeak.workload.traffic import Constant, LogNormal

    if not math.isfinite(mean):
        raise UsageError(f"--{name} {mean} must be a finite number of tokens")
    return Constant(round(mean)) if spread == 0 else LogNormal(mean, spread)


def setup_of(given: dict[str, Any], isl: float, osl: float) -> Any:  # noqa: ANN401 (a Setup)
    """The Setup that options stand for; ``model`` is a name or an Architecture."""
    from dataclasses import replace

    from nearpeak.formats import code
    from nearpeak.hardware import node_of
    from nearpeak.plan import base_setup
    from nearpeak.setup import Pool
    from nearpeak.workload import Architecture, read

    tp, dp, ep = given["tp"], given["dp"], given["ep"]
    if (tp * dp) % ep:
        raise UsageError(f"ep {ep} does not divide the tp x dp = {tp * dp} devices of a stage")
    model = given["model"]
    if not isinstance(model, Architecture):
        model = read(model)
    setup = base_setup(model, node_of(given["gpu"]), given["engine"], isl, osl)
    pool = Pool(tp=tp, pp=given["pp"], dp=dp, moe_tp=tp * dp // ep, moe_ep=ep, replicas=given["replicas"])
    first = given["prefill_replicas"] and replace(pool, replicas=given["prefill_replicas"])
    setup = replace(setup, decode=pool, prefill=first, draft=given["draft"], acceptance=given["acceptance"])
    if given["weights"] is not None:
        stored = code(given["weights"])
        setup = replace(setup, attention=stored, ffn=stored, experts=stored)
    return setup if given["kv"] is None else replace(setup, kv=code(given["kv"]))


def policy_of(given: dict[str, Any], setup: Any) -> Any:  # noqa: ANN401 (a Policy; a Setup)
    """The policy that options stand for, the engine's own where they name none."""
    from nearpeak.simulate.deploy import own_policy
    from nearpeak.simulate.policies import policy

    name = given["policy_name"] or own_policy(setup).name
    return policy(name, budget=given["token_budget"])


def _write(result: "Result", out: Path | None, timeline: Path | None) -> dict[str, str]:
    import json

    from nearpeak.cost import write_table

    written = {}
    if out is not None:
        if result.requests is None:
            raise UsageError("more than a million requests are not kept one by one; simulate fewer, or without --out")
        write_table(out, result.requests)
        written["out"] = str(out)
    if timeline is not None:
        from nearpeak.simulate.timeline import trace_events

        beside = timeline.with_name(timeline.name + ".part")
        beside.write_text(json.dumps(trace_events(result)), encoding="utf-8")
        beside.replace(timeline)
        written["timeline"] = str(timeline)
    return written


def _print(record: dict[str, Any]) -> None:
    from nearpeak.report import print_record, print_table

    figures = record.pop("percentiles")
    print_record({name.replace("_", " "): value for name, value in _written(record).items()})
    rows = [{"figure": FIGURES[name]} | {f"{of}_time": x for of, x in of_it.items()} for name, of_it in figures.items()]
    print_table(rows)
    if record["saturated"]:
        click.echo(
            f"Saturated: requests come faster than they are served. This deployment serves {record['knee_rate']:.3g} "
            "requests/s of this kind; the times above are those of a growing queue."
        )
    _print_rejected(record["rejected"], record["offered"])


def _print_rejected(rejected: int, offered: int) -> None:
    if rejected:
        click.echo(f"Rejected: {rejected} of {offered} requests, longer than the model's context or the cache.")


FIGURES = {
    "ttft": "time to first token",
    "tpot": "time per later token",
    "latency": "whole request",
    "gap": "time between two tokens",
}


def _written(record: dict[str, Any]) -> dict[str, Any]:
    from nearpeak.report import format as write

    return {name: write.value(name, given) for name, given in record.items()}


@click.command("replay", short_help="A recorded run, simulated from its arrivals and settings.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", help="Config of the model, where the run's name is in no catalogue.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of what is drawn at random.")
@click.option("--timeline", type=click.Path(path_type=Path), help="Write a trace for Perfetto here (JSON).")
@calibration_option
@json_option
def replay_run(folder: Path, model: str | None, seed: int, timeline: Path | None, as_json: bool) -> None:
    """Simulate the recorded run in FOLDER and print it beside what was recorded.

    FOLDER holds vllm/meta.json and vllm/requests.jsonl. Arrivals, token counts, model, hardware and engine settings are
    read; the recorded times are used for the comparison alone.

    \b
    Example:
      nearpeak simulate replay runs/RTX4090_Llama-3.1-8B --json
    """
    from nearpeak.simulate.replay import comparison, read_run, replay

    check_new(timeline, "--timeline")
    run = read_run(folder, model)
    announce_compilation()
    result = replay(run, seed)
    rows = comparison(run, result)
    _write(result, None, timeline)
    if as_json:
        nested: dict[str, dict[str, Any]] = {}
        for row in rows:
            nested.setdefault(row["figure"], {})[row["of"]] = {
                "simulated": row["simulated_time"], "recorded": row["recorded_time"], "ratio": row["ratio"],
            }  # fmt: skip
        engine = {"model": run.setup.model.name, "device": run.setup.node.device.name, "engine": run.setup.engine}
        print_json(engine | {"requests": result.offered, "rejected": result.rejected, "figures": nested})
        return
    from nearpeak.report import print_table

    if rows:
        print_table(rows)
    _print_rejected(result.rejected, result.offered)


@click.group(cls=Topics, found=_topics, default=serving, short_help="Serving under real traffic, event by event.")
@json_option
@click.pass_context
def simulate(ctx: click.Context, as_json: bool) -> None:
    """Simulate a MODEL served under traffic, replay a recorded run, or one of the topics.

    \b
    Examples:
      nearpeak simulate Qwen/Qwen3-8B --gpu h100 --rate 8 --isl 1000 --osl 200 --ttft 0.5
      nearpeak simulate replay runs/RTX4090_Llama-3.1-8B --json
      nearpeak simulate split --help

    `nearpeak simulate serving --help` lists the options of the first.
    """
    if ctx.invoked_subcommand is None:
        print_topics(_topics(), as_json)


simulate.add_command(serving, "serving")
simulate.add_command(replay_run)
simulate.add_command(sweep_of(serving))
