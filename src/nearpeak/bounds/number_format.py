"""Which number format serves a token cheapest, for one request at a time and for many.

Fewer bits of weight shorten what a step reads, which is all that counts for one request. Fewer bits of activations too
raise the rate of products, which counts when many requests are served together. Which format wins where follows from
the calibrated cost model; no rule names a winner (Kurtic et al., ACL 2025, arXiv 2411.02355).

Fewer bits do not pay where a device lacks the path for them. Products of 16-bit activations with 4-bit weights need a
kernel that unpacks on the way to the tensor cores, and those kernels (Marlin: Frantar et al. 2024; Machete) are written
for the tensor cores that multiply bf16. A device without those widens the weights in a pass of its own before every
product: it reads them packed, writes them wide and reads them wide again, more bytes than if they had been wide in the
first place. The same happens to 16-bit weights on a processor that multiplies 32 bits alone. Kernels that unpack in
vector registers (GGUF: llama.cpp) avoid it everywhere, at some instructions a weight (arXiv 2510.21970 measured
both: 4-bit GPTQ slower than FP16 on a T4, GGUF faster on a CPU).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost import largest_batch, platform_of, predict
from nearpeak.cost.engine import engine_on
from nearpeak.cost.operators import STREAMED, elementwise
from nearpeak.cost.platform import Platform
from nearpeak.errors import UnknownName, UsageError
from nearpeak.formats import code, named
from nearpeak.hardware import Device
from nearpeak.setup import Setup
from nearpeak.techniques import Quality, technique
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, names, require_positive
from nearpeak.workload import Architecture, Experts, expert_linears, ffn_linears, mixer_linears

Array = NDArray[np.float64]
UNPACK = 4.0
"""Vector instructions that make a number of a packed weight: shift, mask, convert, multiply-add with scale and zero."""


@dataclass(frozen=True)
class Scheme:
    """A way to store weights and to multiply with them.

    Attributes:
        name: as the command line writes it. format: of ``nearpeak.formats``.
        unpacked: where a kernel widens packed weights: on the way to tensor cores, in vector registers, or never.
        technique: of the registry whose quality it has, if any.
    """

    name: str
    format: str
    unpacked: Literal["tensor cores", "registers", "never"]
    technique: str | None = None


SCHEMES = {
    s.name: s
    for s in (
        Scheme("bf16", "bf16", "never"),
        Scheme("w8a8-fp", "fp8", "never", "fp8-weights"),
        Scheme("w8a8-int", "int8", "never", "int8-w8a8"),
        Scheme("w4a16-int", "int4_wo", "tensor cores", "rtn-int4"),
        Scheme("gguf-q4", "int4_wo_32", "registers"),
    )
}


def lacking(device: Device, scheme: Scheme) -> str | None:
    """Why a device cannot run a scheme, or None: activations in fewer bits need units that multiply them."""
    rate = named(scheme.format).rate
    if scheme.format != "bf16" and scheme.unpacked == "never" and rate not in device.rates:
        return f"{device.title} does not multiply {rate}"
    return None


def widened(device: Device, scheme: Scheme) -> str | None:
    """The format that a pass of its own widens the weights to before each product; None where kernels need no such."""
    wide = "bf16" if {"bf16", "fp16"} & device.rates.keys() else "fp32"
    if scheme.unpacked == "tensor cores":
        return None if "bf16" in device.rates else wide
    return wide if scheme.format == "bf16" and wide == "fp32" else None


def linear_time(
    device: Device, rows: ArrayLike, out: ArrayLike, inp: ArrayLike, scheme: Scheme, share: float = STREAMED
) -> Array:
    """Seconds of ``[rows, inp] @ [inp, out]`` with stored weights: a roofline, and the widening that the device needs.

    Args:
        share: of the datasheet's bandwidth that streaming kernels reach.

    Raises:
        UsageError: a size is not above 0, or the device has no rate for the scheme.
    """
    require_positive(rows=rows, out=out, inp=inp)
    if (why := lacking(device, scheme)) is not None:
        raise UsageError(f"{scheme.name}: {why}")
    m, n, k = (np.asarray(x, float) for x in (rows, out, inp))
    weights, bandwidth = n * k, device.memory_bandwidth * share
    to = widened(device, scheme)
    multiplied = named(to or scheme.format)
    moved = weights * multiplied.bytes + m * (n + k) * multiplied.activation_bits / 8
    product = np.maximum(moved / bandwidth, 2 * m * weights / _rate(device, multiplied.rate))
    if to is not None:
        return np.asarray(product + weights * (named(scheme.format).bytes + multiplied.bytes) / bandwidth)
    return np.asarray(product + np.maximum(0.0, unpacking_time(device, scheme, weights) - moved / bandwidth))


def unpacking_time(device: Device, scheme: Scheme, weights: ArrayLike) -> Array:
    """Seconds that vector units take to unpack so many weights, where they do it while the weights arrive."""
    if scheme.unpacked != "registers":
        return np.zeros(np.shape(weights))
    lanes = _rate(device, "fp32") / 2  # a multiply-add counts as two
    return np.asarray(np.asarray(weights, float) * UNPACK / lanes)


def _rate(device: Device, key: str) -> float:
    """The rate of products in a format, or in the next wider one that the device multiplies."""
    for name in (key, "bf16", "fp16", "fp32"):
        if name in device.rates:
            return device.rates[name]
    raise UsageError(f"device {device.name!r} has no rate for {key}; it has {', '.join(device.rates)}")


def stored_weights(model: Architecture) -> float:
    """Parameters of the matrices that a format applies to: those of the layers, but for routers."""
    total = 0.0
    for block in model.blocks:
        linears = list(block.linears)
        if block.mixer is not None:
            linears += mixer_linears(block.mixer, model.hidden)
        if block.ffn is not None:
            linears += [x for x in ffn_linears(block.ffn, model.hidden) if x.name != "router"]
        each = sum(x.parameters for x in linears)
        if isinstance(block.ffn, Experts):
            each += block.ffn.count * sum(x.parameters for x in expert_linears(block.ffn, model.hidden))
        total += block.count * each
    return total


def dequantization_time(at: Platform, model: Architecture, scheme: Scheme, devices: float = 1.0) -> float:
    """Seconds that a step of the engine spends beyond products, to make weights that the device can multiply.

    ``devices``: that hold the weights together. 0 where kernels unpack for nothing.
    """
    weights = stored_weights(model) / devices
    packed, to = named(scheme.format).bytes, widened(at.device, scheme)
    if to is not None:
        return float(elementwise(at, weights * (packed + named(to).bytes)))
    arriving = at.streaming(np.asarray(weights * packed)) / STREAMED
    return float(np.maximum(0.0, unpacking_time(at.device, scheme, weights) - arriving))


@dataclass(frozen=True)
class Served:
    """A scheme under a closed loop of ``batch`` requests; arrays ``[batch]``.

    Attributes:
        scheme: which. largest: requests that memory holds.
        latency: seconds of a request. token: device-seconds of an output token. rate: requests/s.
        dequantization: seconds of a step.
    """

    scheme: Scheme
    largest: int
    batch: Array
    latency: Array
    token: Array
    rate: Array
    dequantization: float


def serve(setup: Setup, scheme: Scheme, batch: ArrayLike) -> Served:
    """A scheme's figures by requests in flight. Those that memory does not hold wait; without room for one, for ever.

    Raises:
        UsageError: the device lacks what the scheme needs.
    """
    device = setup.node.device
    if (why := lacking(device, scheme)) is not None:
        raise UsageError(f"{scheme.name}: {why}")
    to = widened(device, scheme)
    stored, multiplied = _in(setup, scheme.format), _in(setup, to or scheme.format)
    users, devices = np.asarray(batch, float), float(np.asarray(setup.decode.devices))
    host = engine_on(setup.engine, setup.node)
    extra = dequantization_time(platform_of(setup), setup.model, scheme, devices)
    largest = int(max(0.0, float(largest_batch(stored, setup.decode))))
    loop = replace(multiplied, decode=replace(setup.decode, batch=np.clip(users, 1, max(1, largest))))
    # Whatever a step does besides, it does once: the same place in the sum as the host's time for a step.
    found = predict(platform_of(loop), loop, replace(host, step=host.step + extra))
    latency = users / found.request_rate if largest else np.full(users.shape, np.inf)
    return Served(scheme, largest, users, latency, devices * latency / (users * setup.osl), users / latency, extra)


def _in(setup: Setup, fmt: str) -> Setup:
    stored = code(fmt)
    return replace(setup, attention=stored, ffn=stored, experts=stored)


@dataclass(frozen=True)
class Change:
    """Where the cheapest scheme changes: requests in flight, and the request rate that both then serve, 1/s."""

    batch: float
    request_rate: float
    before: str
    after: str


def changes(served: Sequence[Served]) -> tuple[Change, ...]:
    """Where, with more requests in flight, another scheme becomes the cheapest.

    At equal requests in flight the cheaper scheme is the one of lower latency. Where two tie, they serve the same rate;
    below that rate the first has the lower latency, above it the second. Between the batches given, the ratio of two
    latencies is interpolated in the logarithm of the batch.
    """
    batch, latency = served[0].batch, np.array([s.latency for s in served])
    first = latency.argmin(0)
    found = []
    for i in np.flatnonzero(np.diff(first)):
        if not np.isfinite(latency[:, i + 1]).any():
            break
        before, after = first[i], first[i + 1]
        lead = np.log(latency[after, i : i + 2]) - np.log(latency[before, i : i + 2])
        part = lead[0] / (lead[0] - lead[1]) if np.isfinite(lead).all() else 1.0
        at = float(batch[i] * (batch[i + 1] / batch[i]) ** part)
        seconds = float(np.exp(np.interp(np.log(at), np.log(batch), np.log(latency[after]))))
        found.append(Change(at, at / seconds, served[before].scheme.name, served[after].scheme.name))
    return tuple(found)


def schemes(names: Sequence[str]) -> list[Scheme]:
    """Schemes by name.

    Raises:
        UnknownName: there is none of a name.
    """
    for name in names:
        if name not in SCHEMES:
            raise UnknownName("scheme", name, SCHEMES)
    return [SCHEMES[name] for name in names]


def quality(scheme: Scheme) -> Quality | None:
    """What remains of the model's quality, where the registry of techniques knows it."""
    if scheme.format == "bf16":
        return Quality(1.0, 1.0, "the model itself")
    return None if scheme.technique is None else technique(scheme.technique).quality


def _explain(
    model: str, gpu: str, devices: int, isl: float, osl: float, engine: str, accuracy: float, formats: tuple[str, ...]
) -> Explanation:
    from nearpeak.case import setup

    require_positive(isl=isl, osl=osl)
    own = setup(model, gpu, devices, isl, osl, engine)
    device = own.node.device
    left_out, able = [], []
    for scheme in schemes(formats):
        kept = quality(scheme)
        if (why := lacking(device, scheme)) is not None:
            left_out.append(f"{scheme.name} is left out: {why}.")
        elif accuracy > 0 and (kept is None or kept.low < accuracy):
            least = "an unknown share" if kept is None else f"perhaps {kept.low:g}"
            left_out.append(f"{scheme.name} is left out: {least} of the quality remains, the floor is {accuracy:g}.")
        else:
            able.append(scheme)
    if not able:
        raise UsageError(" ".join(left_out) + " Allow other --formats or a lower --accuracy.")
    room = max(serve(own, scheme, 1.0).largest for scheme in able)
    if room < 1:
        raise UsageError(f"{own.model.name} fits {devices} x {device.title} in none of {', '.join(formats)}")
    batch = np.unique(np.rint(np.geomspace(1, room, 1024)))
    served = [s for scheme in able if (s := serve(own, scheme, batch)).largest >= 1]
    single = min(served, key=lambda s: s.latency[0])
    full = min(served, key=lambda s: s.token.min())
    turns = changes(served)
    dollars = None if device.price_per_hour is None else device.price_per_hour / 3600 * 1e6

    def price(seconds: float) -> float | None:
        return None if dollars is None else float(seconds) * dollars

    rows: list[dict[str, Any]] = []
    for s in served:
        kept = quality(s.scheme)
        rows.append(
            {
                "format": s.scheme.name,
                "widened_to": widened(device, s.scheme) or "",
                "unpacking_time": s.dequantization,
                "largest_batch": s.largest,
                "single_latency": float(s.latency[0]),
                "single_dollars_per_million_tokens": price(s.token[0]),
                "most_request_rate": float(s.rate.max()),
                "full_dollars_per_million_tokens": price(s.token.min()),
                "quality": "" if kept is None else f"{kept.low:g} to {kept.high:g}",
            }
        )
    told = [f"One request at a time: {single.scheme.name}. At the highest rate: {full.scheme.name}."]
    told += [
        f"From {c.request_rate:.3g} requests/s on ({c.batch:.3g} in flight) {c.after} is cheaper than {c.before}."
        for c in turns
    ]
    return Explanation(
        {"synchronous": single.scheme.name, "saturated": full.scheme.name},
        (
            Table(f"{own.model.name} on {devices} x {device.title}, {engine}", tuple(rows)),
            Table("Where the winner changes", tuple(map(vars, turns))),
        ),
        (*told, *left_out),
    )


TOPIC = Topic(
    "number-format",
    "Which number format serves a token cheapest on this device, and at which request rate does that change?",
    "Kurtic et al., 'Give Me BF16 or Give Me Death'?, ACL 2025 (arXiv 2411.02355); Performance Trade-offs of "
    "Optimizing Small Language Models for E-Commerce, 2025 (arXiv 2510.21970)",
    (
        MODEL,
        GPU,
        Option("devices", int, "Devices that share the model by tensor parallelism.", 1),
        Option("isl", float, "Tokens of a prompt.", 512.0),
        Option("osl", float, "Tokens of an answer.", 256.0),
        Option("engine", str, "Engine whose kernels and host time count.", "vllm"),
        Option("accuracy", float, "Least share of the model's quality that must remain; 0 for any.", 0.0),
        Option("formats", names, f"Between commas, of {', '.join(SCHEMES)}.", tuple(SCHEMES)),
    ),
    _explain,
    "--model meta-llama/Meta-Llama-3.1-8B --gpu h100",
)
