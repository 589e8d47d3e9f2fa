"""Prefill and decode on one device at once, each on its share of the units, set ahead for every step.

Shi et al. 2025, "Proactive Intra-GPU Disaggregation of Prefill and Decode in LLM Serving" (Nexus, arXiv 2507.06608).
A decode step reads memory and is soon as fast as it gets; a prefill multiplies and wants all units. In chunked prefill
both share steps, so that every token waits for a chunk. Here each phase has steps and units of its own. Before each
step a search over a cost model (``split_model``) gives the phase that comes first all units beyond those at which the
other keeps its slack: decode while the cache has room, else decode first, so that memory frees up. Only changes above a
threshold (hysteresis) are carried out. Prompts are served by tokens left less ``age`` tokens for each second waited,
answers as they come.

What the steps ask for comes from ``cost`` (``split_tables``); requests run kernel by kernel (``split_engine``).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UnknownName, UsageError
from nearpeak.simulate.split_tables import Parts, parts
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, require_positive
from nearpeak.workload.traffic import Requests

Array = NDArray[np.float64]
GRAIN = 0.02
"""Share of the units by which the search goes: two or three of a large device's multiprocessors."""
REACH = 0.5
"""Share of the units from which on they draw nearly the whole bandwidth: an assumption. Caches of H100 and A100 feed
three times main memory's bandwidth to all units, so that a third could do; half is on the safe side."""


@dataclass(frozen=True)
class Control:
    """Who sets the prefill's share of the units, and how; ``CONTROLS`` names them.

    Attributes:
        kind: ``static``; ``proactive``: the search; ``blind``: the search without contention; ``reactive``: a step
            towards the phase that missed its goal in the last window.
        share: of prefill to begin with. hysteresis: least change that is carried out.
        decode_slack, prefill_slack: most that decode (prefill, where decode comes first) may take over what it takes
            with the device to itself. decode_first_at: share of the cache in use from which decode comes first.
        window: seconds between two steps of the reactive controller. step: units that it moves, as a share.
        tolerance: part of the tokens that may be late. tbt, ttft: seconds after which a token, or a first one, is late.
    """

    kind: str = "proactive"
    share: float = 0.5
    hysteresis: float = 0.04
    decode_slack: float = 1.75
    prefill_slack: float = 1.3
    decode_first_at: float = 0.7
    window: float = 1.0
    step: float = 0.1
    tolerance: float = 0.05
    tbt: float = np.inf
    ttft: float = np.inf


CONTROLS = ("static", "proactive", "blind", "reactive")
ORDERS = ("fcfs", "shortest")


@dataclass(frozen=True, eq=False)
class Served:
    """What requests saw.

    Attributes:
        requests: those that were served. rejected: those that could never be, their cache being beyond the device's.
        ttft, end: seconds from arrival to the first token, and time of the last, ``[requests]``. gaps: seconds between
            tokens; those of request ``i`` from ``first[i]`` to ``first[i + 1]``.
        changed, share: times at which the prefill's share of the units changed, and what it became; None where both
            phases share their steps.
    """

    requests: Requests
    rejected: int
    ttft: Array
    end: Array
    gaps: Array
    first: NDArray[np.int64]
    changed: Array | None = None
    share: Array | None = None

    @property
    def throughput(self) -> float:
        """Tokens/s, of prompts and answers, from the first arrival to the last token."""
        tokens = int(self.requests.isl.sum() + self.requests.osl.sum())
        return tokens / float(self.end.max() - self.requests.arrival[0])

    def late_tokens(self, tbt: float, since: float = 0.0) -> float:
        """Share of the tokens after first ones, of requests that arrived from ``since`` on, that took over ``tbt``."""
        own = np.repeat(self.requests.arrival >= since, np.diff(self.first))
        return float((self.gaps[own] > tbt).mean()) if own.any() else 0.0

    def missed(self, ttft: float, tbt: float, since: float = 0.0) -> float:
        """Share of the requests from ``since`` on whose first token took over ``ttft``, or a twentieth of the others
        over ``tbt``.
        """
        late = np.concatenate([[0], np.cumsum(self.gaps > tbt)])[self.first]
        slow = np.diff(late) > 0.05 * np.diff(self.first)
        counted = self.requests.arrival >= since
        return float(((self.ttft > ttft) | slow)[counted].mean()) if counted.any() else 0.0


def _prepared(at: Parts, requests: Requests) -> tuple[Requests, int, NDArray[np.int64]]:
    """The requests that fit, how many do not, and where each one's gaps begin."""
    whole = requests.isl + requests.osl
    fits = whole <= min(at.capacity, at.longest)
    if not fits.any():
        raise UsageError(f"no request fits: the shortest has {whole.min()} tokens, the cache holds {at.capacity}")
    kept = Requests(requests.arrival[fits], requests.isl[fits], requests.osl[fits])
    return kept, int((~fits).sum()), np.concatenate([[0], np.cumsum(kept.osl - 1)])


def serve_chunked(
    at: Parts, requests: Requests, budget: int, batch: int, order: str = "fcfs", age: float = 0.0
) -> Served:
    """Requests in mixed steps of at most ``budget`` tokens and ``batch`` requests."""
    from nearpeak.simulate.split_engine import run_chunked

    kept, rejected, first = _prepared(at, requests)
    found = run_chunked(
        kept.arrival, kept.isl, kept.osl, first, at.dense, at.attend, at.read, at.host,
        at.capacity, batch, budget, ORDERS.index(order), age,
    )  # fmt: skip
    return Served(kept, rejected, *found, first)


def serve_split(
    at: Parts, requests: Requests, control: Control, budget: int, batch: int, order: str = "shortest",
    age: float = 50.0, reach: float = REACH,
) -> Served:  # fmt: skip
    """Requests with prefill and decode at once, the shares of units set by ``control``.

    Args:
        budget: most tokens of a prefill step. batch: most requests. order: of prompts. age: tokens by which a prompt
            counts as shorter for each second that it has waited. reach: share of units that draws the whole bandwidth.

    Raises:
        UnknownName: of the control or the order. UsageError: no request fits the cache.
    """
    from nearpeak.simulate.split_engine import run_split

    for kind, name, known in (("control", control.kind, CONTROLS), ("order", order, ORDERS)):
        if name not in known:
            raise UnknownName(kind, name, known)
    kept, rejected, first = _prepared(at, requests)
    thresholds = np.array([control.window, control.step, control.tolerance, control.tbt, control.ttft])
    ttft, end, gaps, changed, share = run_split(
        kept.arrival, kept.isl, kept.osl, first, at.dense, at.attend, at.read, at.host,
        at.capacity, batch, budget, ORDERS.index(order), age,
        at.layers, reach, CONTROLS.index(control.kind), control.share, GRAIN, control.hysteresis,
        np.array([control.decode_slack, control.prefill_slack]), control.decode_first_at, thresholds,
    )  # fmt: skip
    return Served(kept, rejected, ttft, end, gaps, first, changed, share)


def settings(share: float, units: int) -> dict[str, int]:
    """What sets a share: percentages of threads for NVIDIA MPS, or multiprocessors of two green contexts.

    Keys: ``prefill_CUDA_MPS_ACTIVE_THREAD_PERCENTAGE``, ``decode_CUDA_MPS_ACTIVE_THREAD_PERCENTAGE``, ``prefill_units``
    and ``decode_units`` (even numbers where the device has one, as green contexts ask before Hopper).
    """
    percent, own = round(100 * share), min(max(2 * round(units * share / 2), 2), units - 2)
    name = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
    return {
        f"prefill_{name}": percent,
        f"decode_{name}": 100 - percent,
        "prefill_units": own,
        "decode_units": units - own,
    }


def _row(name: str, found: Served, ttft: float, tbt: float) -> dict[str, Any]:
    first, later = (np.quantile(x, (0.5, 0.95)) if x.size else np.zeros(2) for x in (found.ttft, found.gaps))
    return {
        "serving": name,
        "tokens_per_second": found.throughput,
        "p50_ttft_time": float(first[0]),
        "p95_ttft_time": float(first[1]),
        "p50_tbt_time": float(later[0]),
        "p95_tbt_time": float(later[1]),
        "missed_share": found.missed(ttft, tbt),
        "changes": 0 if found.changed is None else len(found.changed) - 1,
    }


def _explain(
    model: str, gpu: str, devices: int, isl: float, osl: float, rate: float, cv: float, requests: int,
    trace: str | None, ttft: float, tbt: float, decode_slack: float, prefill_slack: float, hysteresis: float,
    budget: int, batch: int, reach: float, seed: int, engine: str,
) -> Explanation:  # fmt: skip
    from nearpeak.case import setup
    from nearpeak.workload.traffic import Gamma, LogNormal, Traffic, read_trace

    require_positive(ttft=ttft, tbt=tbt, decode_slack=decode_slack, prefill_slack=prefill_slack, reach=reach)
    require_positive(budget=budget, batch=batch)
    if trace is None:
        drawn = Traffic(LogNormal(isl, 1.0), LogNormal(osl, 0.7), Gamma(rate, cv)).sample(requests, seed)
    else:
        read = read_trace(trace)
        drawn = read.sample(min(requests, len(read.arrival)), seed)
    own = setup(model, gpu, devices, float(drawn.isl.mean()), float(drawn.osl.mean()), engine)
    longest = min(int((drawn.isl + drawn.osl).max()), own.model.context or int((drawn.isl + drawn.osl).max()))
    at = parts(own, longest, max(budget, 512), batch)
    control = Control(
        decode_slack=decode_slack, prefill_slack=prefill_slack, hysteresis=hysteresis, tbt=tbt, ttft=ttft
    )  # fmt: skip
    split = {
        kind: serve_split(at, drawn, replace(control, kind=kind), budget, batch, reach=reach)
        for kind in ("proactive", "blind", "reactive")
    }
    chunked = {
        f"chunked prefill, {budget} tokens, shortest first": serve_chunked(at, drawn, budget, batch, "shortest", 50.0),
        **{f"chunked prefill, {size} tokens": serve_chunked(at, drawn, size, batch) for size in (512, budget)},
    }
    names = {
        "proactive": "split, searched",
        "blind": "split, searched without contention",
        "reactive": "split, reactive",
    }
    rows = [_row(names[kind], found, ttft, tbt) for kind, found in split.items()]
    rows += [_row(name, found, ttft, tbt) for name, found in chunked.items()]
    mine, mixed_steps = rows[0], rows[-1]
    own_split = split["proactive"]
    assert own_split.changed is not None
    assert own_split.share is not None
    shown = np.unique(np.linspace(0, len(own_split.changed) - 1, 12).astype(int))
    over_time = [
        {"from_time": float(own_split.changed[i])} | settings(float(own_split.share[i]), at.units) for i in shown
    ]
    compared = {
        key: mixed_steps[f"p95_{key}_time"] / mine[f"p95_{key}_time"] if mine[f"p95_{key}_time"] > 0 else 1.0
        for key in ("ttft", "tbt")
    }
    figures = {
        "requests": len(own_split.ttft),
        "rejected": own_split.rejected,
        "ttft_ratio": compared["ttft"],
        "tbt_ratio": compared["tbt"],
        "throughput_ratio": mine["tokens_per_second"] / mixed_steps["tokens_per_second"],
        "changes": len(own_split.changed) - 1,
    }
    return Explanation(
        figures,
        (
            Table("What requests see", tuple(rows)),
            Table("Shares of the units over time (at most 12 of the changes)", tuple(over_time)),
        ),
        (
            f"Against chunked prefill with {budget} tokens a step, the split has {compared['ttft']:.3g} times shorter "
            f"first tokens and {compared['tbt']:.3g} times shorter later ones, both at the 95th percentile.",
            "Contention counts: what runs beside takes bandwidth, kernel by kernel. The split changes no token.",
        ),
    )  # fmt: skip


TOPIC = Topic(
    "split",
    "What does one device gain when prefill and decode run at once, each on a share of its units?",
    "Shi et al., Nexus: Proactive Intra-GPU Disaggregation of Prefill and Decode in LLM Serving, 2025 "
    "(arXiv 2507.06608)",
    (
        MODEL,
        GPU,
        Option("devices", int, "Devices that share the model by tensor parallelism; all are split alike.", 1),
        Option("isl", float, "Mean tokens of a prompt (lognormal, as spread as its mean).", 2000.0),
        Option("osl", float, "Mean tokens of an answer.", 200.0),
        Option("rate", float, "Requests a second.", 4.0),
        Option(
            "cv", float, "Coefficient of variation of the times between arrivals; above 1 they come in bursts.", 3.0
        ),
        Option("requests", int, "How many requests to simulate.", 1000),
        Option("trace", str, "A trace of arrivals and lengths (CSV or JSON lines) instead.", None),
        Option("ttft", float, "Goal for the first token, seconds.", 1.0),
        Option("tbt", float, "Goal for the time between tokens, seconds.", 0.05),
        Option("decode_slack", float, "Most that decode may take, over what it takes alone.", Control.decode_slack),
        Option("prefill_slack", float, "The same of prefill, where decode comes first.", Control.prefill_slack),
        Option("hysteresis", float, "Least change of the share that is carried out.", Control.hysteresis),
        Option("budget", int, "Most tokens of a prefill step.", 2048),
        Option("batch", int, "Most requests in flight.", 256),
        Option("reach", float, "Share of the units that draws nearly the whole bandwidth.", REACH),
        Option("seed", int, "Of the drawn requests.", 0),
        Option("engine", str, "Serving engine whose host time counts.", "vllm@0.18.0"),
    ),
    _explain,
    "--model Qwen/Qwen3-8B --gpu h100_sxm --rate 9",
)
