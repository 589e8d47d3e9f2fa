"""Memory of several tiers under an offloaded fine-tune: what a step moves in each, and how long it takes.

ZeRO-Offload (Ren et al. 2021) keeps the weights, gradients and checkpointed activations of a GPU's fine-tune in host
memory and runs the optimizer on the CPU. A step is a forward pass, a backward pass and the optimizer; each goes through
the layers part by part, and a part takes as long as the longest of what runs in it. With ``b_t`` bytes in tier ``t``::

    forward, backward   max(GPU, PCI Express each way, b_t / B_t(streams))
    optimizer           max(arithmetic, b_t / B_t(1), sum over t of b_t l_t / (cores * lines * 64))

``B_t`` is the tier's bandwidth under its contention curve: the more copies in flight, the less it gives in all. The
last term is Little's law: cores keep so many cache lines in flight, and each takes the latency ``l_t`` of its tier.
``memory_tiers`` places the tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost.copies import copy
from nearpeak.cost.operators import STREAMED
from nearpeak.cost.training import train_step, training_platform
from nearpeak.errors import UsageError
from nearpeak.hardware import Link, Node
from nearpeak.topic import require_positive
from nearpeak.workload import TrainingJob, parameters
from nearpeak.workload.training import BF16_BYTES, RECOMPUTE

Array = NDArray[np.float64]

DRAM_LATENCY = 100e-9
"""Seconds of a load from local DRAM of a current server, as Li et al. (Pond, ASPLOS 2023) measured: 80 to 120 ns."""
LINES = 16
"""Cache lines that a core keeps in flight: the fill buffers of a recent x86 core's first cache."""
LINE = 64
FP32_BYTES = 4.0
CONTENTION = (1.0, 0.93, 0.87, 0.82, 0.78, 0.75, 0.73, 0.72)
"""Share of a card's bandwidth that 1, 2, ... copies in flight get together. Assumed: give a measured curve."""
PHASES = ("forward", "backward", "optimizer")
OPTIMIZER = PHASES.index("optimizer")
KINDS = ("master", "fp32_gradients", "states", "weights", "gradients", "activations")
"""Kinds of tensors: fp32 weights, gradients and both moments of the CPU's Adam; 16-bit weights, gradients and
checkpointed activations that the GPU copies."""


@dataclass(frozen=True)
class Tier:
    """A memory. ``capacity``: bytes. ``bandwidth``: bytes/s, reads and writes together. ``latency``: seconds of a load.

    ``contention``: share of the bandwidth that 1, 2, ... streams get together; the last holds for more.
    """

    name: str
    capacity: float
    bandwidth: float
    latency: float
    contention: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        require_positive(
            capacity=self.capacity, bandwidth=self.bandwidth, latency=self.latency, contention=self.contention
        )

    def delivered(self, streams: ArrayLike) -> Array:
        """Bytes/s that so many streams get together."""
        return np.asarray(
            self.bandwidth * np.interp(np.asarray(streams, float), np.arange(len(self.contention)) + 1, self.contention)
        )


def dram(node: Node, capacity: float) -> Tier:
    """The local memory of a server's CPU sockets.

    Raises:
        UsageError: the catalogue knows no host of the server.
    """
    if node.host is None:
        raise UsageError(f"the catalogue knows no host of {node.title}; take another device")
    return Tier("dram", capacity, node.host.memory_bandwidth * max(1, node.hosts) * STREAMED, DRAM_LATENCY)


def card(name: str, capacity: float, wire: Link, contention: tuple[float, ...] = CONTENTION) -> Tier:
    """A card of memory behind a CXL link: its bandwidth is the link's, its latency DRAM's and the way both ways."""
    return Tier(name, capacity, wire.bandwidth, DRAM_LATENCY + 2 * wire.latency, contention)


@dataclass(frozen=True)
class Offload:
    """What a step does with each group of tensors: of each part of the layers one group of each of ``KINDS``.

    Attributes:
        names: of the groups, the first part's first. size: bytes kept of each, ``[groups]``.
        traffic: bytes that a phase moves of each, ``[3, groups]``.
        floor: seconds of each phase whatever the placement, ``[3]``. parts: of the layers.
        gpus: that share the host; each copies on its own. in_flight: bytes that all cores ask for at once.
    """

    names: tuple[str, ...]
    size: Array
    traffic: Array
    floor: Array
    parts: int
    gpus: int
    in_flight: float


def offload(job: TrainingJob, node: Node, parts: int = 2) -> Offload:
    """The step of a fine-tune whose layers, cut into ``parts``, make that many groups of each kind of tensor.

    Weights are copied to the GPU for the forward and again for the backward pass, a layer's input to the host and back,
    gradients to the host. The CPU widens gradients, updates and rounds the weights. Copies run beside the GPU's
    computing, the optimizer after both.

    Raises:
        UsageError: the job is cut other than by data parallelism, recomputes no layers, or the server has no host.
    """
    if np.any(np.asarray(job.devices) != np.asarray(job.dp)) or int(job.recompute) != RECOMPUTE.index("full"):
        raise UsageError("an offloaded fine-tune is cut by dp alone and recomputes whole layers (recompute full)")
    if parts < 1 or node.host is None:
        raise UsageError(f"parts must be 1 or more, not {parts}, and {node.title} needs a host in the catalogue")
    at = training_platform(node)
    step = train_step(at, job, node)
    count, gpus = float(parameters(job.model).total), int(job.dp)
    layers, passes = job.model.layers, float(job.micro_batches)
    inputs = float(job.tokens) * job.model.hidden * layers * BF16_BYTES
    fp32, bf16 = FP32_BYTES * count, BF16_BYTES * count
    moments = job.optimizer.states * count - fp32
    held = np.array([fp32, fp32, moments, bf16, bf16, inputs / passes])
    moved = np.zeros((3, len(KINDS)))
    moved[:, KINDS.index("weights")] = (bf16 * gpus * passes, bf16 * gpus * passes, bf16)
    moved[:, KINDS.index("activations")] = (inputs, inputs, 0)
    moved[:, KINDS.index("gradients")] = (0, bf16 * passes, bf16)
    moved[2, :3] = 2 * held[:3]  # each is read and written: the fp32 gradients by what widens them

    def copied(size: float) -> float:
        return float(layers * copy(at, size / layers / gpus))

    weights, acts, grads = (moved[:, KINDS.index(k)] for k in ("weights", "activations", "gradients"))
    arithmetic = count * job.optimizer.flops / (node.host.rates["fp32"] * max(1, node.hosts))
    floor = np.array(
        [
            max(float(step.forward), copied(weights[0]), copied(acts[0])),
            max(float(step.backward + step.recompute), copied(weights[1] + acts[1]), copied(grads[1])),
            arithmetic,
        ]
    )
    return Offload(
        tuple(f"{kind}_{part + 1}" for part in range(parts) for kind in KINDS),
        np.tile(held / parts, parts), np.tile(moved / parts, parts), floor, parts, gpus,
        float(LINES * LINE * node.host.units * max(1, node.hosts)),
    )  # fmt: skip


def phase_seconds(of: Offload, tiers: Sequence[Tier], shares: ArrayLike) -> Array:
    """Seconds of each phase, ``[..., 3]``, for placements ``shares`` ``[..., groups, tiers]`` of each group's bytes."""
    placed = np.asarray(shares, float)
    placed = placed.reshape(*placed.shape[:-2], of.parts, len(KINDS), len(tiers))
    moved = of.traffic.reshape(3, of.parts, len(KINDS))
    seconds = []
    for phase, traffic in enumerate(moved):
        size = np.einsum("pk,...pkt->...pt", traffic, placed)
        streams: Array = np.ones(size.shape)
        if phase != OPTIMIZER:
            streams = of.gpus * ((traffic[..., None] > 0) & (placed > 0)).sum(-2)
        given = np.stack([tier.delivered(streams[..., t]) for t, tier in enumerate(tiers)], axis=-1)
        longest = np.maximum((size / given).max(-1), of.floor[phase] / of.parts)
        if phase == OPTIMIZER:
            longest = np.maximum(longest, size @ np.array([tier.latency for tier in tiers]) / of.in_flight)
        seconds.append(longest.sum(-1))
    return np.stack(seconds, axis=-1)


def fits(of: Offload, tiers: Sequence[Tier], shares: ArrayLike) -> NDArray[np.bool_]:
    """Whether placements ``[..., groups, tiers]`` stay within every tier's capacity."""
    held = np.einsum("g,...gt->...t", of.size, np.asarray(shares, float))
    return np.asarray((held <= np.array([tier.capacity for tier in tiers]) * (1 + 1e-9)).all(-1))
