"""Which number format serves a token cheapest under simulated traffic, under a floor on measured accuracy.

``bounds.number_format`` answers in closed form; here requests are served by events: one at a time (synchronous), and in
continuous batches of ever more requests. A device's price is the same for every format, so that the cheapest format at
so many requests in flight is the one that makes the most tokens of them. Which one that is follows from the calibrated
step times alone; no rule names a winner (Kurtic et al., ACL 2025, arXiv 2411.02355).

Where, with more requests in flight, another format becomes the cheapest, both serve the same rate: that is the request
rate at which the winner changes. Requests that arrive at random around this rate confirm it: their latencies are
simulated below and above it.

The floor is on what was measured: published evaluations of each format (``nearpeak techniques``), or the divergence of
a person's own model in each format (``format_divergence``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.bounds.number_format import (
    SCHEMES,
    Change,
    Scheme,
    Served,
    changes,
    dequantization_time,
    lacking,
    quality,
    schemes,
    widened,
)
from nearpeak.cost import largest_batch, platform_of
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.fleet.steady_state import closed_loop, lengths
from nearpeak.formats import code
from nearpeak.setup import Setup
from nearpeak.simulate.deploy import deploy, room_blocks
from nearpeak.simulate.serving import Deployment, feed, serve
from nearpeak.topic import MODEL, Explanation, Option, Table, Topic, names, require_positive
from nearpeak.workload.traffic import Traffic, poisson

if TYPE_CHECKING:
    from nearpeak.fleet.format_divergence import Divergence

Array = NDArray[np.float64]
AROUND = (0.7, 1.3)
"""Of a rate at which the winner changes: where it is confirmed."""
TIE = 1e-3
"""Of a cost: schemes closer than this are called equal."""
CANDIDATES = ("w8a8-fp", "w8a8-int", "w4a16-int")


def in_format(setup: Setup, name: str) -> Setup:
    """A Setup with the matrices of its layers in a number format."""
    stored = code(name)
    return replace(setup, attention=stored, ffn=stored, experts=stored)


def deployed(setup: Setup, scheme: Scheme, most: int, longest: int | None = None) -> Deployment:
    """What serves a Setup in a scheme: its steps, with the widening that the device needs, and the cache that is left.

    Raises:
        UsageError: the device lacks what the scheme needs, or the model does not fit it.
    """
    device = setup.node.device
    if (why := lacking(device, scheme)) is not None:
        raise UsageError(f"{scheme.name}: {why}")
    stored = in_format(setup, scheme.format)
    blocks = room_blocks(stored, stored.decode)
    to = widened(device, scheme)
    extra = _widening(setup, scheme)
    # A device that widens weights first multiplies in the wide format, and holds the narrow one.
    made = deploy(stored if to is None else in_format(setup, to), most=most, longest=longest)
    beside = made.table.kinds.copy()
    beside["step"] += extra
    return replace(
        made,
        table=made.table._replace(decode=made.table.decode + extra, kinds=beside),
        instances=tuple(replace(one, blocks=blocks) for one in made.instances),
    )


def _widening(setup: Setup, scheme: Scheme) -> float:
    """Seconds that each step takes to make weights that the device can multiply."""
    devices = float(np.asarray(setup.decode.devices))
    return dequantization_time(platform_of(setup), setup.model, scheme, devices)


def simulated(setup: Setup, scheme: Scheme, batch: NDArray[np.int64], traffic: Traffic, seed: int = 0) -> Served:
    """A scheme's figures by requests in flight, served by events.

    Args:
        setup: whose mean lengths ``traffic`` has. batch: requests in flight, ascending, of which one run each is made.
    """
    own = deployed(setup, scheme, int(batch[-1]))
    runs = [closed_loop(own, traffic, int(clients), seed=seed) for clients in batch]
    rate, tokens = (np.array([getattr(run, name) for run in runs]) for name in ("request_rate", "token_rate"))
    devices, extra = float(np.asarray(setup.decode.devices)), _widening(setup, scheme)
    largest = int(own.instances[0].blocks * own.block / float(np.asarray(setup.isl) + np.asarray(setup.osl)))
    # The latency of as many tokens as an answer has in the mean: runs need not have completed the same requests.
    latency = batch * traffic.mean_osl / tokens
    return Served(scheme, largest, batch.astype(float), latency, devices / tokens, rate, extra)


@dataclass(frozen=True)
class Confirmed:
    """Mean latencies in seconds of requests that arrive at random at a rate (requests/s), in two schemes."""

    request_rate: float
    before: float
    after: float


def confirmed(
    setup: Setup, change: Change, traffic: Traffic, most: int, n: int = 4000, seed: int = 0
) -> list[Confirmed]:
    """Latencies below and above a rate at which the winner changes (``AROUND``), under random arrivals."""
    pair = [deployed(setup, SCHEMES[name], most) for name in (change.before, change.after)]
    found = []
    for share in AROUND:
        rate = share * change.request_rate
        asked = replace(traffic, arrivals=poisson(rate)).sample(n, seed)
        requests = feed(asked.arrival, asked.isl, asked.osl)
        found.append(Confirmed(rate, *(serve(one, requests, seed=seed).sketches["latency"].mean for one in pair)))
    return found


@dataclass(frozen=True)
class Admitted:
    """Schemes that may be used on a device, and why others may not, in sentences."""

    schemes: list[Scheme]
    left_out: list[str]


def admitted(
    setup: Setup, candidates: Sequence[Scheme], accuracy: float = 0.0, measured: "dict[str, Divergence] | None" = None,
    divergence: float = np.inf,
) -> Admitted:  # fmt: skip
    """Leave out what a device lacks, what is below the floor, and what does not fit.

    Args:
        accuracy: least share of the original's accuracy, at the low end of what was published; 0 for any.
        measured: divergences of a person's own model by scheme; ``divergence``: the largest that their interval may
            reach, nats a token.
    """
    able, left_out = [], []
    for scheme in candidates:
        kept = quality(scheme)
        own = None if measured is None else measured.get(scheme.name)
        if (why := lacking(setup.node.device, scheme)) is not None:
            left_out.append(f"{scheme.name} is left out: {why}.")
        elif accuracy > 0 and (kept is None or kept.low < accuracy):
            least = "an unknown share" if kept is None else f"perhaps {kept.low:g}"
            left_out.append(f"{scheme.name} is left out: {least} of the accuracy remains, the floor is {accuracy:g}.")
        elif np.isfinite(divergence) and (own is None or own.high > divergence):
            most = "was not measured" if own is None else f"is perhaps {own.high:.3g} nats a token"
            left_out.append(f"{scheme.name} is left out: its divergence {most}, at most {divergence:g} is allowed.")
        elif float(largest_batch(in_format(setup, scheme.format), setup.decode)) < 1:
            left_out.append(f"{scheme.name} is left out: the model does not fit.")
        else:
            able.append(scheme)
    return Admitted(able, left_out)


def _explain(
    model: str, gpus: tuple[str, ...], devices: int, isl: float, osl: float, spread: float, engine: str, most: int,
    accuracy: float, formats: tuple[str, ...], checkpoint: str | None, text: str | None, divergence: float | None,
    seed: int,
) -> Explanation:  # fmt: skip
    from nearpeak.case import setup

    require_positive(isl=isl, osl=osl, most=most)
    candidates, measured = schemes(formats), _measured(checkpoint, text, formats, divergence, seed)
    limit = np.inf if divergence is None else divergence
    batch = np.unique(np.rint(np.geomspace(1, most, 2 * most.bit_length() - 1))).astype(np.int64)
    winners: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    said: list[str] = []
    for gpu in gpus:
        own = setup(model, gpu, devices, isl, osl, engine)
        title, traffic = own.node.device.title, lengths(own, spread)
        allowed = admitted(own, candidates, accuracy, measured, limit)
        said += [f"{title}: {why}" for why in allowed.left_out]
        if not allowed.schemes:
            raise UsageError(" ".join(said) + " Allow other --formats or a lower floor.")
        served = [simulated(own, scheme, batch, traffic, seed) for scheme in allowed.schemes]
        first, full = (_as_cheap(served, [cost(s) for s in served]) for cost in (_synchronous, _saturated))
        winners.append({"gpu": gpu, "synchronous": first, "saturated": full})
        rows += _cost_rows(gpu, own.node.device.price_per_hour, served)
        said.append(f"{title}: {first} for one request at a time, {full} at the highest rate.")
        for change in changes(served):
            said.append(
                f"{title}: from {change.request_rate:.3g} requests/s on ({change.batch:.3g} in flight) {change.after} "
                f"is cheaper than {change.before}."
            )
            turns += _turn_rows(gpu, change, confirmed(own, change, traffic, most, seed=seed))
    tables = [Table("Cheapest", tuple(winners)), Table("Simulated cost", tuple(rows))]
    if turns:
        tables.append(Table("Mean latency of random arrivals around each change", tuple(turns)))
    if measured is not None:
        tables.append(Table("KL divergence to the model itself", tuple(one.record() for one in measured.values())))
    return Explanation({}, tuple(tables), tuple(said))


def _cost_rows(gpu: str, price: float | None, served: Sequence[Served]) -> list[dict[str, Any]]:
    dollars = np.nan if price is None else price / 3600 * 1e6
    return [
        {
            "gpu": gpu,
            "format": s.scheme.name,
            "synchronous_dollars_per_million_tokens": _synchronous(s) * dollars,
            "saturated_dollars_per_million_tokens": _saturated(s) * dollars,
            "single_latency": float(s.latency[0]),
            "most_request_rate": float(s.rate.max()),
        }
        for s in served
    ]


def _turn_rows(gpu: str, change: Change, found: Sequence[Confirmed]) -> list[dict[str, Any]]:
    return [
        {
            "gpu": gpu,
            "change_request_rate": change.request_rate,
            "request_rate": at.request_rate,
            "before": change.before,
            "after": change.after,
            "before_latency": at.before,
            "after_latency": at.after,
        }
        for at in found
    ]


def _synchronous(served: Served) -> float:
    """Device-seconds of a token, one request at a time."""
    return float(served.token[0])


def _saturated(served: Served) -> float:
    """Device-seconds of a token, with as many requests in flight as pay."""
    return float(served.token.min())


def _as_cheap(served: Sequence[Served], cost: Sequence[float]) -> str:
    """The cheapest scheme, and those that tie with it."""
    return " = ".join(s.scheme.name for s, own in zip(served, cost, strict=True) if own <= min(cost) * (1 + TIE))


def _measured(
    checkpoint: str | None, text: str | None, formats: Sequence[str], divergence: float | None, seed: int
) -> "dict[str, Divergence] | None":
    """Divergences of a person's own model, if one is given."""
    if checkpoint is None:
        if divergence is not None:
            raise UsageError("a limit on the divergence needs --checkpoint, the model that it is measured on")
        return None
    if text is None:
        raise UsageError("a checkpoint needs --text, the file that its divergence is measured on")
    try:
        from nearpeak.fleet.format_divergence import of_checkpoint
    except ModuleNotFoundError as error:
        raise NearpeakError("measuring a model needs torch: pip install nearpeak[torch]") from error
    return of_checkpoint(Path(checkpoint), Path(text), formats, seed)


TOPIC = Topic(
    "number-format",
    "Which number format serves a token cheapest under simulated traffic, and at which request rate does that change?",
    "Kurtic et al., 'Give Me BF16 or Give Me Death'?, ACL 2025 (arXiv 2411.02355)",
    (
        MODEL,
        Option("gpus", names, "Devices, between commas.", ("a6000", "h100")),
        Option("devices", int, "Devices that share the model by tensor parallelism.", 1),
        Option("isl", float, "Mean tokens of a prompt.", 512.0),
        Option("osl", float, "Mean tokens of an answer.", 256.0),
        Option("spread", float, "Deviation of lengths over their mean.", 0.5),
        Option("engine", str, "Engine whose kernels and host time count.", "vllm"),
        Option("most", int, "Most requests in flight.", 512),
        Option("accuracy", float, "Least share of the published accuracy that must remain; 0 for any.", 0.0),
        Option("formats", names, f"Between commas, of {', '.join(SCHEMES)}.", CANDIDATES),
        Option("checkpoint", str, "Folder of a model whose divergence in each format is measured.", None),
        Option("text", str, "File that it is measured on.", None),
        Option("divergence", float, "Largest KL divergence of that model, nats a token.", None),
        Option("seed", int, "Of what is drawn at random.", 0),
    ),
    _explain,
    "--model meta-llama/Meta-Llama-3.1-8B --gpus a6000,h100",
)
