"""Time of one training step: forward, backward and update of one job, or of a million, on one kind of device.

Physics first: ``training_work`` has the device's seconds of one micro-batch, operator by operator. ``assemble`` says
what a training engine makes of them: an eager engine launches each kernel from the host, so a pass takes the longer of
the host's and the device's time; 1F1B fills and drains; gradients are reduced beside the backward pass or after it. An
engine's constants are calibrated on measured iterations (``calibrate.training``) and ship as ``data/training.json``.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.calibration import Array, shipped
from nearpeak.cost.evidence import KINDS
from nearpeak.cost.platform import BF16, Platform, platform
from nearpeak.cost.platform import evidence as operator_evidence
from nearpeak.cost.stored import decoded, in_use
from nearpeak.cost.training_memory import layers_per_stage
from nearpeak.cost.training_work import MicroBatch, micro_batch
from nearpeak.errors import UnknownName
from nearpeak.hardware import Node, node_of
from nearpeak.workload import (
    Attention,
    Experts,
    LatentAttention,
    TrainingJob,
    expert_linears,
    ffn_linears,
    mixer_linears,
)
from nearpeak.workload.training import RECOMPUTE, check, ends_count

Flags = NDArray[np.bool_]

LAUNCHED_BACKWARD = 2.0
"""Kernels that a layer launches backward for each one forward: a product has two gradients, a norm three."""
GROUP = 4
"""Megatron's fused softmax takes only multiples of this many (sequence, head) pairs; others run unfused."""


@dataclass(frozen=True)
class TrainingEngine:
    """Constants of a training engine.

    Attributes:
        device: the device that they were fitted on.
        products: seconds of a matrix product in the engine over those of a serving engine's kernel.
        unaligned: the same again for a product whose width misses ``ALIGNED``.
        moving: seconds of norms, activations, softmax and dropout over those of fused streaming kernels.
        layer: seconds the host takes to launch a layer's kernels forward; backward it takes ``LAUNCHED_BACKWARD`` times
            that. ranks: what it takes more, as a share, for each doubling of the tensor-parallel ranks, which wait for
            the slowest at every collective. unfused: what it takes more, as a share, where softmax is not fused.
        micro_batch: seconds the host spends on a micro-batch: data, embedding, head and loss.
        step: seconds of every step.
        join: exponent of the norm that joins the host's and the device's seconds.
        fitted: the least and most value, in the fit, of each numeric field of a job (flags as 0 and 1), and of hidden,
            layers and devices.
        intervals: by evidence, the factors between which 80 % of measurements lay.
    """

    device: str
    products: float
    unaligned: float
    moving: float
    layer: float
    ranks: float
    unfused: float
    micro_batch: float
    step: float
    join: float
    fitted: dict[str, tuple[float, float]]
    intervals: dict[str, tuple[float, float]]


def training_engines() -> dict[str, TrainingEngine]:
    """All training engines of the calibration in use, by name."""
    return _engines(in_use())


@cache
def _engines(folder: Path | None) -> dict[str, TrainingEngine]:
    found: dict[str, TrainingEngine] = decoded("training.json", folder, dict[str, TrainingEngine])
    return found


def training_engine(name: str) -> TrainingEngine:
    """The constants of a training engine.

    Raises:
        UnknownName: no such engine.
    """
    try:
        return training_engines()[name]
    except KeyError:
        raise UnknownName("training engine", name, training_engines()) from None


@dataclass(frozen=True)
class TrainStep:
    """Seconds of one step by part; arrays that broadcast.

    Attributes:
        forward, backward, recompute: of the slowest stage over all its micro-batches, with the host's launches and
            without collectives.
        tensor_parallel: the collectives in them, of tensor, expert and context parallelism.
        pipeline_sends: transfers between stages. bubble: waiting while the pipeline fills and drains.
        gradients: data-parallel communication that nothing hides. optimizer: the update. other: of every step.
        tokens, devices: of the step. flops: of the model, see ``model_flops``. peak: FLOP/s of a device.
        evidence: names of ``KINDS``. interval: the factors between which 80 % of measurements lay.
    """

    forward: Array
    backward: Array
    recompute: Array
    tensor_parallel: Array
    pipeline_sends: Array
    bubble: Array
    gradients: Array
    optimizer: Array
    other: Array
    tokens: Array
    devices: Array
    flops: Array
    peak: float = np.nan
    evidence: NDArray[np.str_] = field(default_factory=lambda: np.array("datasheet"))
    interval: tuple[Array, Array] = (np.asarray(np.nan), np.asarray(np.nan))

    PARTS = (
        "forward",
        "backward",
        "recompute",
        "tensor_parallel",
        "pipeline_sends",
        "bubble",
        "gradients",
        "optimizer",
        "other",
    )

    @property
    def total(self) -> Array:
        """Seconds of the step."""
        return np.asarray(sum(getattr(self, name) for name in self.PARTS))

    @property
    def low(self) -> Array:
        """Seconds that 90 % of measurements lay above."""
        return self.total * self.interval[0]

    @property
    def high(self) -> Array:
        """Seconds that 90 % of measurements lay below."""
        return self.total * self.interval[1]

    @property
    def tokens_per_second(self) -> Array:
        """Over all devices."""
        return np.asarray(self.tokens / self.total)

    @property
    def mfu(self) -> Array:
        """Model FLOP utilization: the model's arithmetic over what the devices could do (Chowdhery et al. 2022)."""
        return np.asarray(self.flops / self.total / (self.devices * self.peak))


def training_platform(node: Node, engine: str = "megatron") -> Platform:
    """A server's device under a training engine. Kernels' own times: what launching them takes is the engine's."""
    return platform(node.device, node.scale_up, engine).in_graph()


def train_step(
    at: Platform, job: TrainingJob, node: Node | None = None, engine: TrainingEngine | None = None
) -> TrainStep:
    """One step of a job.

    Args:
        at: of ``training_platform``.
        node: the servers that the devices stand in; the standard one if None. Groups that span several go over its
            network.
        engine: constants other than those calibrated.

    Raises:
        UsageError: the job cannot be cut as it says.
        UnknownName: no such training engine.
    """
    check(job)
    constants = engine or training_engine(at.engine)
    kind = evidence(at, constants, job)
    step = assemble(micro_batch(at, job, node or node_of(at.device)), job, constants)
    peak = float(at.rate(np.asarray(job.fmt, np.intp)).max())
    spread = np.array([constants.intervals[name] for name in KINDS])[kind]
    return replace(step, peak=peak, evidence=np.array(KINDS)[kind], interval=(spread[..., 0], spread[..., 1]))


def evidence(at: Platform, engine: TrainingEngine, job: TrainingJob) -> NDArray[np.intp]:
    """What predictions rest on, as an index in ``KINDS`` for each job.

    Measured: on the engine's own device, every number of the job within those of the fit. Transferred: other jobs, and
    other devices whose products were measured or are like measured ones. Datasheet: other devices.
    """
    beyond = "datasheet" if operator_evidence(at, "gemm", BF16) == "datasheet" else "transferred"
    if at.device.name != engine.device:
        return np.full(job.shape, KINDS.index(beyond))
    inside = np.ones((), bool)
    for name, numbers in sizes(job).items():
        low, high = engine.fitted[name]
        inside = inside & (numbers >= low) & (numbers <= high)
    return np.where(inside, KINDS.index("measured"), KINDS.index("transferred"))


def sizes(job: TrainingJob) -> dict[str, Array]:
    """Every number of a job, by name: its fields, and hidden, layers and devices."""
    own = {name: array.astype(float) for name, array in job.arrays().items()}
    whole = {"hidden": job.model.hidden, "layers": job.model.layers, "devices": job.devices}
    return own | {name: np.asarray(value, float) for name, value in whole.items()}


def intervals(log_ratios: Array) -> dict[str, tuple[float, float]]:
    """Factors by evidence from logarithms of measured over predicted on rows left out: their conformal quantiles.

    Beyond the measured device and jobs, what products lose when a device is left out of their fit comes on top.
    """
    count = len(log_ratios)
    ranks = np.clip(np.array([np.floor(0.1 * (count + 1)), np.ceil(0.9 * (count + 1))]), 1, count) / count
    low, high = np.quantile(log_ratios, ranks, method="inverted_cdf")
    gemm = shipped().operators["gemm"]
    found = {"measured": (float(np.exp(low)), float(np.exp(high)))}
    for kind, wider in (("transferred", gemm.transferred), ("datasheet", gemm.datasheet)):
        least, most = np.hypot(min(low, 0.0), np.log(wider[0])), np.hypot(max(high, 0.0), np.log(wider[1]))
        found[kind] = (float(np.exp(-least)), float(np.exp(most)))
    return found


def model_flops(job: TrainingJob) -> Array:
    """FLOP of a step that the model asks for, without recomputation: six for each parameter of a product and token,
    and ``12 heads head_dim sequence`` a token and layer for attention, unmasked (Chowdhery et al. 2022, appendix B).
    """
    model, pairs = job.model, 0.0
    each = float(0 if model.encoder else model.vocab * model.hidden) + sum(x.out * x.inp for x in model.linears)
    for block in model.blocks:
        met = [*block.linears, *(mixer_linears(block.mixer, model.hidden) if block.mixer else ())]
        met += ffn_linears(block.ffn, model.hidden) if block.ffn else ()
        if isinstance(block.ffn, Experts):
            met += block.ffn.topk * expert_linears(block.ffn, model.hidden)
        each += block.count * sum(x.out * x.inp / x.groups for x in met)
        match block.mixer:
            case Attention(heads=heads, head_dim=k, v_head_dim=v):
                pairs += block.count * heads * (k + v)
            case LatentAttention(heads=heads, nope_dim=nope, rope_dim=rope, v_dim=v):
                pairs += block.count * heads * (nope + rope + v)
    return np.asarray(job.tokens * (6.0 * each + 6.0 * pairs * np.asarray(job.sequence, float)))


@dataclass(frozen=True)
class _Stage:
    """Seconds of a micro-batch in one stage, collectives included; ``said``: of collectives, the same three ways."""

    forward: Array
    backward: Array
    recompute: Array
    said: tuple[Array, Array, Array]

    @property
    def total(self) -> Array:
        return self.forward + self.backward + self.recompute


def assemble(work: MicroBatch, job: TrainingJob, engine: TrainingEngine) -> TrainStep:
    """A step from the device's seconds of a micro-batch, the schedule, and the engine's constants.

    The slowest stage of a pipeline passes all micro-batches; the others, on the way of one micro-batch, are waited for.
    Interleaved, a device waits for the first of its virtual stages alone.
    """
    m, pp = job.micro_batches, np.asarray(job.pp, float)
    v, alone = np.asarray(job.virtual_stages, float), np.asarray(job.pp) == 1
    first, last, middle = (_stage(work, job, engine, *ends) for ends in ((True, alone), (alone, True), (False, False)))
    slowest = np.maximum(first.total, np.maximum(last.total, np.where(pp > 2, middle.total, 0.0)))
    path = np.where(alone, last.total, first.total + last.total + np.maximum(pp - 2, 0.0) * middle.total)
    which = [last.total == slowest, first.total == slowest]

    def of_slowest(ends: Array, start: Array, between: Array) -> Array:
        return np.select(which, [ends, start], between)

    forward, backward, recompute = (
        of_slowest(*(getattr(s, name) for s in (last, first, middle))) for name in ("forward", "backward", "recompute")
    )
    said = [of_slowest(last.said[i], first.said[i], middle.said[i]) for i in range(3)]
    sent = np.where(alone, 0.0, 2.0 * work.hop)
    return TrainStep(
        forward=m * (forward - said[0]),
        backward=m * (backward - said[1]),
        recompute=m * (recompute - said[2]),
        tensor_parallel=m * (said[0] + said[1] + said[2]),
        pipeline_sends=m * v * sent,
        bubble=(path - slowest) / v + (pp - 1.0) * sent,
        gradients=_exposed(work, job, forward, backward + recompute),
        optimizer=work.update,
        other=np.asarray(engine.step),
        tokens=job.tokens,
        devices=job.devices,
        flops=model_flops(job),
    )


def _stage(
    work: MicroBatch, job: TrainingJob, engine: TrainingEngine, first: bool | Flags, last: bool | Flags
) -> _Stage:
    """A stage with the embedding (``first``), the head (``last``), both or neither."""
    fewer = ends_count(job) * (np.asarray(first, float) + np.asarray(last, float))
    count = layers_per_stage(job) - fewer
    launched = _host(job, engine)
    odd = engine.products * np.where(work.unaligned, engine.unaligned, 1.0)
    cores, layers, passes = [], [], []
    for i in (0, 1):
        core = engine.products * work.attention[i] + engine.moving * work.scores[i]
        layer = engine.products * (work.products[i] + work.experts[i]) + engine.moving * work.moving[i] + core
        ends = np.where(last, odd * work.head_products[i] + engine.moving * work.head_moving[i], 0.0)
        ends = ends + np.where(first, engine.moving * work.embedding[i], 0.0)
        host = launched[i] * count + np.where(np.asarray(first) | last, engine.micro_batch / 2, 0.0)
        passes.append(_either(host, count * (layer + work.said[i]) + ends, engine.join))
        cores.append(core)
        layers.append(layer + work.said[i])
    full, selective = (np.asarray(job.recompute) == RECOMPUTE.index(name) for name in ("full", "selective"))
    again = np.where(full, _either(launched[0] * count, count * layers[0], engine.join), 0.0)
    # A flash kernel computes its scores again in any case.
    again = again + np.where(selective & ~np.asarray(job.flash), count * cores[0], 0.0)
    said = (count * work.said[0], count * work.said[1], np.where(full, count * work.said[0], 0.0))
    return _Stage(passes[0], passes[1], again, said)


def _either(host: Array, device: Array, exponent: float) -> Array:
    """Seconds of work that the host launches while the device runs it: the longer, and more where they are alike."""
    longer, shorter = np.maximum(host, device), np.minimum(host, device)
    return np.asarray(longer * (1.0 + (shorter / longer) ** exponent) ** (1.0 / exponent))


def _host(job: TrainingJob, engine: TrainingEngine) -> tuple[Array, Array]:
    """Seconds that the host takes to launch one layer forward and backward."""
    tp = np.asarray(job.tp, float)
    slower: Array = 1.0 + engine.ranks * np.log2(tp)
    heads = {b.mixer.heads for b in job.model.blocks if isinstance(b.mixer, Attention)}
    unfused = np.zeros((), bool)
    for count in heads:
        unfused = unfused | ~np.asarray(job.flash) & (np.asarray(job.micro_batch) * count / tp % GROUP != 0)
    slower = slower + np.where(unfused, engine.unfused, 0.0)
    return engine.layer * slower, LAUNCHED_BACKWARD * engine.layer * slower


def _exposed(work: MicroBatch, job: TrainingJob, forward: Array, backward: Array) -> Array:
    """Seconds of data-parallel communication that no computing hides.

    Gradients are reduced beside the last micro-batch's backward pass (ZeRO-2 and 3: every one's, since none is kept
    whole). ZeRO-1 and 2 gather updated parameters once a step, beside the next forward pass; ZeRO-3 gathers them for
    every forward and every backward pass. What has no other layer to hide behind, one layer's share, is always exposed.
    """
    zero, m = np.asarray(job.zero), job.micro_batches
    layers = np.maximum(layers_per_stage(job), 1.0)

    def left(said: Array, beside: Array) -> Array:
        return np.where(job.overlap, np.maximum(said - beside, said / layers), said)

    back = left(work.gradients + np.where(zero == 3, work.gathers, 0.0), backward)
    forth = left(work.gathers, forward)
    return np.asarray(np.where(zero >= 2, m, 1.0) * back + np.where(zero == 3, m, 1.0) * forth)
