"""Utilization of a convolutional network: achieved over peak FLOP/s, per layer and weighted by time, before any timing.

A convolution is a matrix product of ``batch x height x width`` rows, ``out / groups`` columns and
``inp / groups x kernel²`` products, one a group (Chellapilla et al. 2006); kernels gather its rows as they go, so that
memory sees each tensor once. Columns fill whole tiles of a GPU or whole vectors of a CPU: few channels, and groups of
few, leave them empty. A depthwise convolution has no columns to share a row with; it runs on the vector units, along
channels. After "A Study on the Intersection of GPU Utilization and CNN Inference" (arXiv 2212.07936, 2022), which asks
whether utilization can steer architecture search: of candidates with equal FLOP, the better utilized one is faster.
"""

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost import Platform, platform
from nearpeak.cost.operators import elementwise, gemm_work
from nearpeak.cost.platform import seconds
from nearpeak.errors import UnknownName, UsageError
from nearpeak.formats import BYTES, code
from nearpeak.hardware import Device, device, here
from nearpeak.topic import Explanation, Option, Table, Topic, require_positive

Array = NDArray[np.float64]

FMA = 4.0
"""Operations a clock of one lane of a CPU core: two units, each a product and a sum."""


@dataclass(frozen=True, eq=False)
class Layers:
    """Convolutions and what follows them: arrays that broadcast to ``[..., layers]``, so that one value may hold the
    layers of thousands of candidates.

    Attributes:
        batch: images. inp, out: channels. height, width: of the output. kernel: side. stride: of the input.
        groups: that channels are parted into; ``inp`` for a depthwise convolution.
        passes: elementwise kernels over the output that follow (a norm, an activation, a sum).
        count: how often the layer is there; 0 for none, where candidates differ in depth.
    """

    inp: ArrayLike
    out: ArrayLike
    height: ArrayLike
    width: ArrayLike
    kernel: ArrayLike
    batch: ArrayLike = 1
    stride: ArrayLike = 1
    groups: ArrayLike = 1
    passes: ArrayLike = 2
    count: ArrayLike = 1

    def __post_init__(self) -> None:
        named = {n: v for n, v in vars(self).items() if n not in ("passes", "count")}
        require_positive(**named)
        for name in ("passes", "count"):
            if np.any(np.asarray(getattr(self, name), float) < 0):
                raise UsageError(f"{name} must be 0 or more, not {getattr(self, name)!r}")
        inp, out, groups = (np.asarray(x) for x in (self.inp, self.out, self.groups))
        if np.any(inp % groups) or np.any(out % groups):
            raise UsageError("groups must divide the channels in and out of each layer")

    @property
    def flops(self) -> Array:
        """FLOP of one such layer: two for each product."""
        a = self.arrays()
        return 2.0 * self.rows * a["out"] * a["inp"] / a["groups"] * a["kernel"] ** 2

    @property
    def rows(self) -> Array:
        """Output pixels."""
        a = self.arrays()
        return a["batch"] * a["height"] * a["width"]

    @property
    def output(self) -> Array:
        """Elements of the output."""
        return self.rows * self.arrays()["out"]

    def arrays(self) -> dict[str, Array]:
        """The fields by name, broadcast."""
        wide = np.broadcast_arrays(*(np.asarray(v, float) for v in vars(self).values()))
        return dict(zip(vars(self), wide, strict=True))


@dataclass(frozen=True, eq=False)
class Utilization:
    """Of each layer ``[..., layers]``: ``seconds`` in all its ``count`` places, and ``share`` of the peak that it
    reaches. ``whole`` ``[...]``: the share of the network, its layers weighted by time; ``total`` its seconds.
    """

    seconds: Array
    share: Array
    whole: Array
    total: Array


def lanes(on: Device, fmt: int) -> float:
    """Elements of a CPU's vector in a format, from its peak rate; 1 for anything else, whose tiles ``cost`` counts."""
    if on.kind != "cpu":
        return 1.0
    rate = on.rates.get("fp32", 0.0) * 4.0 / BYTES[fmt]
    return float(max(1.0, 2.0 ** np.round(np.log2(rate / (on.units * (on.base_clock or on.clock) * FMA)))))


def layer_seconds(at: Platform, layers: Layers, fmt: int, call: ArrayLike = 0.0) -> Array:
    """Seconds of one of each layer, ``[..., layers]``: the convolution, then its elementwise passes.

    Args:
        fmt: code of the format of tensors and products. call: seconds that the framework takes to call an operator,
            beyond what the calibration of the device counts.
    """
    a = layers.arrays()
    columns, products = a["out"] / a["groups"], a["inp"] / a["groups"] * a["kernel"] ** 2
    wide = lanes(at.device, fmt)
    padded = np.ceil(columns / wide) * wide
    code_of = np.asarray(fmt, np.intp)
    product = gemm_work(at, layers.rows, padded, products, code_of)
    depthwise = (a["inp"] == a["groups"]) & (a["out"] == a["groups"])
    # Along channels: whole vectors of them, at the rate of the vector units.
    channels = np.ceil(a["out"] / wide) * wide
    vector = min(at.device.rates.get("fp32", np.inf), float(at.rate(code_of)))
    along = 2.0 * layers.rows * channels * a["kernel"] ** 2 / vector
    compute = np.where(depthwise, along, product.compute * a["groups"])

    size = BYTES[fmt]
    weights = a["out"] * products * size
    moved = (layers.rows * a["stride"] ** 2 * a["inp"] + layers.output) * size + weights
    # What the layer before has written is still in the shared cache where it fits.
    traffic = at.fastest(moved)
    floor = np.maximum(layers.flops / np.maximum(vector, float(at.rate(code_of))), traffic)
    convolved = seconds(at, replace(product, compute=compute, traffic=traffic, floor=floor))
    # So is what an elementwise kernel reads and writes in place; on a GPU ``cost`` knows more of such kernels.
    touched = 2.0 * layers.output * size
    one_pass = at.fastest(touched) if at.device.kind == "cpu" else elementwise(at, touched)
    return np.asarray(convolved + np.asarray(call) + a["passes"] * (one_pass + np.asarray(call)))


def utilization(at: Platform, layers: Layers, fmt: int, call: ArrayLike = 0.0) -> Utilization:
    """Predicted utilization of networks, each the last axis of ``layers``. Arguments as of ``layer_seconds``.

    Raises:
        UsageError: the device does not multiply in the format; a network has no layer.
    """
    count = layers.arrays()["count"]
    taken = layer_seconds(at, layers, fmt, call) * count
    return of_seconds(at, layers, fmt, taken)


def of_seconds(at: Platform, layers: Layers, fmt: int, taken: ArrayLike) -> Utilization:
    """The same of measured seconds ``[..., layers]``, each of all ``count`` places of a layer."""
    count = layers.arrays()["count"]
    times = np.broadcast_to(np.asarray(taken, float), count.shape)
    if np.any(count.sum(axis=-1) == 0) or np.any(times[count > 0] <= 0):
        raise UsageError("a network without a layer, or a layer that takes no time")
    work = layers.flops * count
    peak = float(at.rate(np.asarray(fmt, np.intp)))
    share = np.divide(work, times * peak, out=np.zeros_like(times), where=count > 0)
    total = times.sum(axis=-1)
    return Utilization(times, share, work.sum(axis=-1) / (total * peak), total)


def one_core(on: Device) -> Device:
    """A CPU as one thread has it: the rates of one of its cores, all of its memory."""
    return replace(on, units=1, rates={name: rate / on.units for name, rate in on.rates.items()})


def shortlist(predicted: ArrayLike, share: float = 0.5) -> NDArray[np.intp]:
    """Which candidates of equal FLOP to time at all: the better utilized ``share`` of them, best first.

    Args:
        predicted: utilization, ``[candidates]``.

    Raises:
        UsageError: ``share`` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UsageError(f"share = {share!r}; a number above 0 and at most 1 is needed")
    order = np.argsort(-np.asarray(predicted, float), kind="stable")
    return order[: max(1, round(share * len(order)))]


@cache
def _networks() -> dict[str, Any]:
    return tomllib.loads(files("nearpeak.bounds").joinpath("data/cnns.toml").read_text(encoding="utf-8"))


def network(name: str, batch: ArrayLike = 1) -> Layers:
    """The convolutions of a published network at 224 x 224.

    Raises:
        UnknownName: no such network.
    """
    known = _networks()
    if name not in known:
        raise UnknownName("network", name, known)
    inp, out, side, kernel, stride, groups, count = np.array(known[name]["layers"], float).T
    return Layers(inp, out, side, side, kernel, batch, stride, groups, 2, count)


BATCHES = (1.0, 4.0, 16.0, 64.0)


def _explain(net: str, gpu: str, batch: float) -> Explanation:
    on = here()[-1] if gpu == "here" else device(gpu)
    at = platform(on, None)
    fmt = code("fp32" if on.kind == "cpu" else "bf16")
    layers = network(net, batch)
    found = utilization(at, layers, fmt)
    grown = utilization(at, replace(layers, batch=np.asarray(BATCHES)[:, None]), fmt)
    a = layers.arrays()
    costly = np.argsort(-found.seconds)[:8]
    depthwise = a["groups"] > 1
    narrow = float(found.seconds[depthwise].sum() / found.total)
    says = [
        f"{net} reaches {100 * float(found.whole):.0f} % of {on.title}'s peak at batch {batch:g}.",
        f"Half of the time is in {int((np.cumsum(np.sort(found.seconds)[::-1]) < found.total / 2).sum()) + 1} of "
        f"{len(found.seconds)} kinds of layers.",
    ]
    if narrow > 0:
        flops = float((layers.flops * a["count"])[depthwise].sum() / (layers.flops * a["count"]).sum())
        says.append(
            f"Grouped layers take {100 * narrow:.0f} % of the time for {100 * flops:.0f} % of the FLOP: fewer or wider "
            "groups cost little time."
        )
    best = float(grown.whole.max())
    says.append(
        f"Batch {BATCHES[int(grown.whole.argmax())]:g} reaches {100 * best:.0f} %."
        if best > 1.1 * float(found.whole)
        else "A larger batch would not help; channels in multiples of what a tile or vector holds would."
    )
    return Explanation(
        figures={
            "utilization_share": float(found.whole),
            "network_time": float(found.total),
            "network_flop": float((layers.flops * a["count"]).sum()),
            "grouped_layers_time_share": narrow,
        },
        tables=(
            Table.of(
                "Layers that take most time",
                channels=[f"{i:.0f} to {o:.0f}" for i, o in zip(a["inp"][costly], a["out"][costly], strict=True)],
                kernel=a["kernel"][costly],
                side=a["height"][costly],
                groups=a["groups"][costly],
                layers=a["count"][costly],
                time=found.seconds[costly],
                utilization_share=found.share[costly],
            ),
            Table.of("By batch", batch=BATCHES, time=grown.total, utilization_share=grown.whole),
        ),
        says=tuple(says),
    )


TOPIC = Topic(
    name="utilization",
    title="What share of the peak does a convolutional network reach, and which layers lose it?",
    paper="A Study on the Intersection of GPU Utilization and CNN Inference. arXiv 2212.07936, 2022.",
    options=(
        Option("net", str, "resnet50, mobilenet_v2 or vgg16.", "resnet50"),
        Option("gpu", str, "A device of the catalogue, or here for this machine's CPU.", "a100_sxm"),
        Option("batch", float, "Images at once.", 1.0),
    ),
    explain=_explain,
    example="--net mobilenet_v2 --gpu a100_sxm --batch 32",
)
