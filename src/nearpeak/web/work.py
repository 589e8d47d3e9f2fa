"""What answers a form, in a process of its own: closed forms first, then the traffic, simulated.

Events go out as they come about: ``progress``, ``part`` (one block of the page, plain JSON values), ``error``. Files
that a person may take away (launch scripts, a timeline) go beside them.
"""

import io
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.export import launch_files
from nearpeak.plan import Explained, Plans, base_setup, explain, explained, plan, record, shortlist, variants
from nearpeak.plan.serving import RATES, ServingPlans, Trial, deployed, plan_serving
from nearpeak.report import charts as plots
from nearpeak.report import format as write
from nearpeak.report import tables, words
from nearpeak.setup import Pool, Setup
from nearpeak.simulate.deploy import knee
from nearpeak.simulate.results import Result, Targets
from nearpeak.simulate.serving import Deployment, serve
from nearpeak.simulate.timeline import trace_events
from nearpeak.techniques import technique
from nearpeak.web import charts
from nearpeak.web.form import Asked, Form, FormError, decode, understood

TOP = 8
"""Plans that are shown."""
TIMELINE = 20_000
"""Engine steps of a run that its timeline holds."""
LARGEST = 1_000_000
"""No size of a pool is more."""


class Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan that the page has shown and asks to simulate: what tells it from others."""

    device: str
    techniques: list[str]
    decode: dict[str, int]
    prefill: dict[str, int] | None = None


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the page asks for: plans, or one of them simulated."""

    form: Form
    plan: Chosen | None = None


Send = Callable[[str, Any], None]
Keep = Callable[[str, bytes], None]


@dataclass(frozen=True)
class Out:
    """Where results go. ``send(kind, value)``: an event. ``keep(name, content)``: a file."""

    send: Send
    keep: Keep

    def said(self, text: str) -> Callable[[int, int], None]:
        """Say what is being done; returns what is told of done and of all."""
        self.send("progress", {"text": text, "done": 0, "total": 0})
        return lambda done, total: self.send("progress", {"text": text, "done": done, "total": total})


def work(raw: Any, out: Out) -> None:  # noqa: ANN401 (plain JSON values)
    """Answer a job. Whatever a person can act on goes out as an error, by field."""
    try:
        job: Job = decode(raw, Job)
        asked = understood(job.form)
        if job.plan is not None:
            setup = chosen(asked, job.plan)
            _run(asked, setup, out)
            return
        _closed(asked, out)
        if asked.simulate:
            _served(asked, out)
    except FormError as error:
        out.send("error", {"errors": error.errors})
    except NearpeakError as error:
        out.send("error", {"errors": {"": str(error)}})


def _closed(asked: Asked, out: Out) -> None:
    """Every Setup priced at full load, and ranked by what it costs at the rate that is asked for."""
    told = out.said("pricing every configuration")
    goal = asked.goal
    plans = plan(asked.model, asked.fleets, goal, asked.isl, asked.osl, (asked.engine,), progress=told)
    if asked.objective == "cost":
        ranked = sorted(plans.candidates, key=lambda one: (_hourly(one.setup), one.score))
        plans = replace(plans, candidates=tuple(ranked))
    best = [explained(candidate) for candidate in shortlist(plans, TOP)]
    out.send("part", {"part": "closed", **_searched(plans)} | _miss(plans, best))
    if best:
        shown = [_shown(one, f"closed-{rank}", out) for rank, one in enumerate(best, 1)]
        out.send("part", {"part": "plans", "of": "closed", "plans": shown})
        out.send("part", {"part": "pareto", "figure": plots.pareto(plans, best)})


def _searched(plans: Plans) -> dict[str, Any]:
    said = (
        f"{write.number(plans.priced)} configurations priced in {write.seconds(plans.seconds)}; "
        f"{write.number(plans.started)} start, {write.number(plans.met)} meet the goals in the mean. "
        "Whether percentiles hold, only a simulation says."
    )
    return {"text": said + "".join(f" Left out: {reason}." for reason in plans.left_out.values())}


def _miss(plans: Plans, best: Sequence[Explained]) -> dict[str, Any]:
    if best or plans.miss is None:
        return {}
    return {"miss": tables.miss_text(plans.miss).plain}


def _shown(one: Explained, name: str, out: Out, trial: Trial | None = None) -> dict[str, Any]:
    """A plan as the page shows it: its row, its plots and its launch files."""
    setup, figures = one.setup, one.figures
    found = record(one)
    try:
        files = launch_files(one)
        out.keep(f"{name}.zip", zipped(files, name))
        launch: dict[str, Any] = {"files": files, "zip": f"{name}.zip"}
    except NearpeakError as error:
        launch = {"error": str(error)}
    row: dict[str, Any] = {
        "devices": words.devices(setup), "layout": words.layouts(setup), "formats": words.formats(setup),
        "batch": words.batches(setup), "hourly": write.dollars(_hourly(setup)), "bound": one.bottleneck,
        "evidence": str(figures["tpot"].evidence),
    }  # fmt: skip
    if trial is None:
        for figure in ("ttft", "tpot", "latency"):
            row[figure] = write.seconds(figures[figure].value)
            row[f"{figure}_span"] = write.interval(figures[figure].low, figures[figure].high, write.seconds)
        row["dollars"] = write.dollars(figures["dollars_per_million_tokens"].value)
        row["joules"] = write.si(1e6 * figures["joules_per_token"].value, "J")
        row["carbon"] = write.si(1e3 * figures["kg_co2e_per_million_tokens"].value, "g")
        row["output"] = write.rate(figures["tokens_per_second_per_device"].value, "tokens/s")
    else:
        bill = trial.per_million()
        row["goals"] = goals_row(trial)
        row |= {
            "dollars": write.dollars(bill["dollars"]), "joules": write.si(bill["joules"], "J"),
            "carbon": write.si(bill["grams_co2"], "g"), "verdict": trial.verdict,
            "output": write.rate(trial.tokens / float(setup.devices), "tokens/s"),
        }  # fmt: skip
    keys = {name: found[name] for name in ("device", "techniques", "decode", "prefill")}
    return {
        "row": row,
        "key": keys | {"techniques": list(one.techniques)},
        "memory": plots.memory_chart(one),
        "steps": plots.step_chart(one),
        "roofline": plots.roof_chart(one),
        "levers": [tables.lever_text(one, n) for n in range(len(one.levers))],
        "techniques": list(one.techniques),
        "quality": write.share(one.quality),
        "launch": launch,
    }


def _hourly(setup: Setup) -> float:
    """Dollars per hour of all devices, nan where no price is known."""
    price = setup.node.device.price_per_hour
    return (math.nan if price is None else price) * float(setup.devices)


def goals_row(trial: Trial) -> list[dict[str, Any]]:
    """Each goal's figure in a trial, beside what it may be."""
    rows = []
    for limit, mean, half in zip(trial.limits, trial.means.tolist(), trial.halves.tolist(), strict=True):
        spread = f" ± {write.seconds(half)}" if math.isfinite(half) else ""
        rows.append(
            {"goal": charts.named(limit), "value": write.seconds(mean) + spread, "holds": mean <= limit.seconds}
        )
    return rows


def _served(asked: Asked, out: Out) -> None:
    """Deployments simulated under the traffic, the cheapest first, until the best is certain."""
    told = out.said("simulating the traffic (the first time, the simulator is compiled: a minute or two)")
    counted = False

    def progress(done: int, left: int) -> None:
        nonlocal told, counted
        if not counted:
            told, counted = out.said("simulating deployments under the traffic"), True
        told(done, left)

    found = plan_serving(
        asked.model, asked.fleets, asked.replication, asked.limits, asked.objective, (asked.engine,),
        accuracy=asked.accuracy, top=TOP, progress=progress,
    )  # fmt: skip
    out.send("part", {"part": "served", **_simulated(asked, found)})
    if not found.trials:
        return
    shown = []
    for rank, trial in enumerate(found.trials, 1):
        quality = math.prod(technique(name).quality.low for name in trial.techniques)
        one = explain(trial.setup, trial.techniques, quality)
        shown.append(_shown(one, f"served-{rank}", out, trial))
    out.send("part", {"part": "plans", "of": "served", "plans": shown})
    _run(asked, found.trials[0].setup, out, found)


def _simulated(asked: Asked, found: ServingPlans) -> dict[str, Any]:
    said = (
        f"{write.number(found.simulated)} deployments met {write.number(found.requests)} simulated requests "
        f"in {write.seconds(found.seconds)}."
    )
    if found.confirmed is not None:
        verdict = {"holds": "confirmed", "breaks": "not confirmed", "open": "left open"}[found.confirmed.verdict]
        said += f" The best is {verdict} under other seeds."
    said += "".join(f" Left out: {reason}." for reason in found.left_out.values())
    if found.trials or found.nearest is None:
        return {"text": said} if found.trials else {"text": said, "miss": "Nothing meets the goals at any size."}
    near = found.nearest
    goals = ", ".join(f"{row['goal']} {row['value']}" for row in goals_row(near))
    miss = (
        f"Nothing holds the goals at {asked.rate:.3g} requests/s. The nearest is {words.devices(near.setup)}, "
        f"{', '.join(words.layouts(near.setup))}: {goals}. Relax a goal, or give more or other devices."
    )
    return {"text": said, "miss": miss}


def chosen(asked: Asked, key: Chosen) -> Setup:
    """The Setup of a plan that was shown.

    Raises:
        UsageError: the form no longer has its device, its techniques do not apply, or a size is none.
    """
    nodes = {fleet.node.device.name: fleet.node for fleet in asked.fleets}
    if key.device not in nodes:
        raise UsageError(f"{key.device!r} is not among the devices of the form; plan again")
    base = base_setup(asked.model, nodes[key.device], asked.engine, asked.isl, asked.osl)
    for variant in variants(base):
        if {one.name for one in variant.techniques} == set(key.techniques):
            break
    else:
        raise UsageError(f"techniques {', '.join(key.techniques)} do not apply together; plan again")
    if (variant.setup.prefill is None) != (key.prefill is None):
        raise UsageError("a plan with pools for prefill is one with disaggregation, and no other; plan again")
    prefill = None if key.prefill is None else _pool(key.prefill)
    return replace(variant.setup, decode=_pool(key.decode), prefill=prefill)


def _pool(sizes: Mapping[str, int]) -> Pool:
    known = Pool().arrays().keys()
    if sizes.keys() != known or not all(1 <= size <= LARGEST for size in sizes.values()):
        raise UsageError(f"a pool of {dict(sizes)} is none; it has {', '.join(known)}, each of 1 or more")
    return Pool(**sizes)


def _run(asked: Asked, setup: Setup, out: Out, found: ServingPlans | None = None) -> None:
    """One deployment under the traffic: percentiles, timeline, and what it does at other rates."""
    told = out.said("simulating the plan")
    requests = asked.replication(0)
    deployment = deployed(setup, min(asked.model.context, int((requests.isl + requests.osl).max())))
    strictest = sorted(asked.limits, key=lambda limit: limit.of or 0.0)  # the last of a figure counts
    targets = Targets(**{limit.figure: limit.seconds for limit in strictest})
    total = len(requests.isl)
    result = serve(deployment, requests, targets=targets, timeline=TIMELINE, progress=lambda n: told(n, total))
    rows = found.sensitivity if found is not None else _other_rates(asked, deployment)
    most = found.knee if found is not None else knee(deployment, requests)
    out.keep("timeline.json", msgspec.json.encode(plain(trace_events(result))))
    out.send(
        "part",
        {
            "part": "run",
            "devices": words.devices(setup),
            "layout": words.layouts(setup),
            "percentiles": _percentiles(result),
            "facts": _facts(result, most),
            "saturated": result.saturated,
            "rejected": result.rejected,
            "spread": charts.spread(result, asked.limits),
            "sensitivity": charts.sensitivity(rows, asked.limits, asked.rate, most),
            "timeline": charts.timeline(result),
        },
    )


def _other_rates(asked: Asked, deployment: Deployment) -> list[dict[str, Any]]:
    requests = asked.replication(0)
    rows = []
    for factor in RATES:
        result = serve(deployment, requests._replace(arrival=requests.arrival / factor))
        rows.append({"rate": asked.rate * factor} | {str(limit): limit.value(result) for limit in asked.limits})
    return rows


def _percentiles(result: Result) -> list[dict[str, str]]:
    return [
        {"figure": charts.NAMES.get(name, "time between two tokens")}
        | {of: write.seconds(value) for of, value in values.items()}
        for name, values in result.percentiles().items()
    ]


def _facts(result: Result, most: float) -> dict[str, str]:
    return {
        "requests": write.number(result.offered),
        "within the limits": write.share(result.met / max(result.offered, 1)),
        "served": write.rate(result.request_rate, "requests/s"),
        "at most (knee)": write.rate(most, "requests/s"),
        "answers": write.rate(result.token_rate, "tokens/s"),
        "devices busy": write.share(float(np.mean(result.busy))),
        "power": write.si(result.joules / result.span if result.span > 0 else None, "W"),
        "preemptions": write.number(result.preemptions),
        "rejected": write.number(result.rejected),
    }


def zipped(files: Mapping[str, str], folder: str) -> bytes:
    """Launch files in a folder of a ZIP archive; scripts can be executed."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            entry = zipfile.ZipInfo(f"{folder}/{name}", (1980, 1, 1, 0, 0, 0))
            entry.external_attr = (0o100755 if name.endswith(".sh") else 0o100644) << 16
            archive.writestr(entry, text)
    return held.getvalue()


def plain(value: Any) -> Any:  # noqa: ANN401 (values of many types)
    """Values that JSON has: what is not known (nan, infinite) becomes null."""
    match value:
        case dict():
            return {str(key): plain(one) for key, one in value.items()}
        case list() | tuple():
            return [plain(one) for one in value]
        case np.ndarray():
            return plain(value.tolist())
        case np.generic():
            return plain(value.item())
        case float() if not math.isfinite(value):
            return None
    return value
