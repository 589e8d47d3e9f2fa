"""What a training step's micro-batch asks of one device: seconds of its operators forward and backward, no host.

A layer is the operators that it is in serving, with their two products backward (``dgrad``, ``wgrad``), the traffic of
norms, activations and dropout, and the collectives of its layout. ``training`` makes a step of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.calibration import Array
from nearpeak.cost.collectives import collective
from nearpeak.cost.fabric import Fabric
from nearpeak.cost.mixers import Batch, kernel
from nearpeak.cost.operators import STREAMED, attention_prefill, elementwise, gemm, moe
from nearpeak.cost.platform import BF16, Platform
from nearpeak.cost.training_memory import MASK, stage_parameters, vocabulary
from nearpeak.errors import UsageError
from nearpeak.hardware import Node
from nearpeak.workload import (
    Attention,
    Block,
    Dense,
    Experts,
    Linear,
    Mixer,
    TrainingJob,
    ffn_linears,
    mixer_linears,
)
from nearpeak.workload.training import BF16_BYTES

Flags = NDArray[np.bool_]
Pair = tuple[Array, Array]
"""Seconds forward and backward."""

FLASH_BACKWARD = 2.5
"""Backward over forward of attention in one kernel: five products in place of two, one of them the scores computed
again (Dao 2023)."""
NORM = (2.0, 3.0)
"""Residual-width vectors that a norm moves forward and backward: reads one, writes one; reads two, writes one."""
RESIDUAL = (3.0, 2.0)
"""The same for adding a sub-layer's result to the residual (and dropping some of it): reads two, writes one; reads
one, writes one."""
ACTIVATION = (1.0, 2.0)
"""How often an activation function moves its input and its output: reads and writes; reads its input and the
output's gradient, writes the input's (its input counts twice, its output once)."""
SCORES = (2.0, 3.0)
"""How often softmax over written scores moves them: reads, writes; reads two, writes one. Dropout: one of each and a
mask, both ways."""
LOGITS = (38.0, 14.0)
"""Bytes that cross-entropy moves for each logit forward and backward, in fp32: cast (6), maximum (4), subtract (8),
exponential (8), sum (4), divide (8); scale (8), cast (6) (Megatron-LM's vocabulary-parallel cross-entropy)."""
ALIGNED = 8
"""A 16-bit matrix whose rows are no multiple of this misses the fast loads of tensor cores (NVIDIA, Matrix
multiplication guide)."""


@dataclass(frozen=True)
class MicroBatch:
    """Device seconds of one micro-batch, by what they are spent on; arrays that broadcast. No host in them.

    Pairs are (forward, backward) of one mean layer; ``head`` and ``embedding`` those of the two ends of the model.

    Attributes:
        products: matrix products. experts: routed expert blocks. attention: the kernels that mix tokens.
        scores: traffic of softmax and dropout where scores are written. moving: that of norms, activations, residuals.
        said: collectives of tensor, expert and context parallelism, not hidden.
        head_products, head_moving, embedding: the ends. unaligned: whether the head's width is.
        hop: sending a micro-batch's activations to the next stage, once.
        gradients: reducing the gradients of a device once. gathers: collecting its parameters once.
        update: an update of the device's parameters: its traffic, or its arithmetic.
    """

    products: Pair
    experts: Pair
    attention: Pair
    scores: Pair
    moving: Pair
    said: Pair
    head_products: Pair
    head_moving: Pair
    embedding: Pair
    unaligned: Flags
    hop: Array
    gradients: Array
    gathers: Array
    update: Array


class Groups:
    """Collectives of a job's groups: over the node's links, or over its network where a group spans nodes."""

    def __init__(self, at: Platform, node: Node, job: TrainingJob) -> None:
        self.at, self.node, self.fabric = at, node, None
        if node.network is not None and node.nics:
            # Groups share a node's ports: each device has one, or its part of one.
            port = replace(node.network, bandwidth=node.network.bandwidth * min(1.0, node.nics / node.count))
            self.fabric = Fabric(port, ports=node.count)
        if self.fabric is None and np.any(job.devices > node.count):
            raise UsageError(
                f"{int(np.max(job.devices))} devices, but nodes of {node.count} {node.device.name} have no network; "
                f"give at most {node.count}"
            )
        self.tp, self.cp, self.dp, self.pp = (np.asarray(x, float) for x in (job.tp, job.cp, job.dp, job.pp))

    def tensor(self, what: str, size: Array) -> Array:
        """Among tensor ranks, which are nearest to each other."""
        return self._said(what, size, self.tp, np.ones(()))

    def context(self, size: Array) -> Array:
        """One step of a ring of context ranks: each sends to the next."""
        return np.where(self.cp > 1, self._said("send_recv", size, np.minimum(self.cp, 2.0), self.tp * self.cp / 2), 0)

    def replicas(self, what: str, size: Array, ranks: Array | None = None) -> Array:
        """Among data and context ranks."""
        return self._said(what, size, self.dp * self.cp if ranks is None else ranks, self.tp)

    def stages(self, size: Array) -> Array:
        """From a stage to the next: the farthest ranks of all."""
        apart = self.tp * self.cp * self.dp
        return np.where(self.pp > 1, self._said("send_recv", size, np.minimum(self.pp, 2.0), apart), 0.0)

    def _said(self, what: str, size: Array, ranks: Array, stride: Array) -> Array:
        """Seconds among ``ranks`` devices, each ``stride`` from the next."""
        spans = (ranks > 1) & (ranks * stride > self.node.count)
        inside = collective(self.at, what, size, ranks)
        if self.fabric is None or not np.any(spans):
            return inside
        together = np.clip(self.node.count / stride, 1.0, np.maximum(ranks, 1.0))
        return np.where(spans, collective(self.at, what, size, ranks, self.fabric, together), inside)


def micro_batch(at: Platform, job: TrainingJob, node: Node) -> MicroBatch:
    """The device's seconds of one micro-batch, before what an engine makes of them.

    Raises:
        UsageError: more devices than a node holds, where nodes have no network.
    """
    a = {name: array.astype(float) for name, array in job.arrays().items()}
    model, tp = job.model, a["tp"]
    groups, fmt = Groups(at, node, job), np.asarray(job.fmt, np.intp)
    rows = a["micro_batch"] * a["sequence"] / a["cp"]
    uncut = np.where(job.sequence_parallel, rows / tp, rows)
    width = model.hidden * BF16_BYTES
    masks = np.where(job.dropout, MASK, 0.0) * model.hidden

    totals: dict[str, Pair] = {n: (np.zeros(()), np.zeros(())) for n in _LAYER}
    for block in model.blocks:
        for name, pair in _layer(at, groups, job, block, a, rows, uncut, fmt).items():
            totals[name] = (totals[name][0] + block.count * pair[0], totals[name][1] + block.count * pair[1])
    layer = {name: (f / model.layers, b / model.layers) for name, (f, b) in totals.items()}

    columns = vocabulary(job)
    head, head_moving = _products(at, model.linears, rows, tp, fmt), (np.zeros(()), np.zeros(()))
    if not model.encoder:
        head = _plus(head, _product(at, rows, columns, np.asarray(float(model.hidden))))
        moved = [elementwise(at, LOGITS[i] * rows * columns + NORM[i] * uncut * width) for i in (0, 1)]
        head_moving = (moved[0], moved[1])
    gradients, gathers, update = _replicas(at, groups, job, a)
    return MicroBatch(
        **layer,
        head_products=head,
        head_moving=head_moving,
        embedding=(elementwise(at, 2.0 * rows * width + uncut * masks), elementwise(at, 3.0 * rows * width)),
        unaligned=np.asarray(columns % ALIGNED != 0),
        hop=groups.stages(rows * width / tp),
        gradients=gradients,
        gathers=gathers,
        update=update,
    )


def _replicas(at: Platform, groups: Groups, job: TrainingJob, a: dict[str, Array]) -> tuple[Array, Array, Array]:
    """Of the stage with most parameters: reducing gradients once, gathering parameters once, and the update."""
    first, last = stage_parameters(job, True), stage_parameters(job, False)
    dense, experts = np.maximum(first[0], last[0]), np.maximum(first[1], last[1])
    replicas, ways, shared = a["dp"] * a["cp"], a["ep"], a["zero"] >= 1

    def said(what: str, each: Array) -> Array:
        own = groups.replicas(what, experts * each, replicas / ways) if np.any(experts > 0) else 0.0
        return np.asarray(groups.replicas(what, dense * each) + own)

    reduced, scattered = said("all_reduce", a["gradient_bytes"]), said("reduce_scatter", a["gradient_bytes"])
    gathered = said("all_gather", a["parameter_bytes"])
    updated = np.where(shared, (dense + experts * ways) / replicas, dense + experts)
    moved = updated * (2.0 * job.optimizer.states + a["gradient_bytes"] + a["parameter_bytes"])
    vector = at.device.rates.get("fp32", at.device.rates["bf16"])
    update = np.maximum(at.streaming(moved) / STREAMED, updated * job.optimizer.flops / vector)
    return np.where(shared, scattered, reduced), np.where(shared, gathered, 0.0), update


_LAYER = ("products", "experts", "attention", "scores", "moving", "said")


def _layer(
    at: Platform,
    groups: Groups,
    job: TrainingJob,
    block: Block,
    a: dict[str, Array],
    rows: Array,
    uncut: Array,
    fmt: NDArray[np.intp],
) -> dict[str, Pair]:
    """Seconds of one layer by part, see ``MicroBatch``."""
    hidden, tp = job.model.hidden, a["tp"]
    met = list(block.linears)
    found: dict[str, Pair] = {n: (np.zeros(()), np.zeros(())) for n in _LAYER}
    if block.mixer is not None:
        met += mixer_linears(block.mixer, hidden)
        found["attention"], found["scores"], ring = _mixing(at, groups, job, block.mixer, a, rows)
        found["said"] = (ring, ring * 2.0)  # backward, gradients of keys and values travel with them
    if block.ffn is not None:
        met += ffn_linears(block.ffn, hidden)
    if isinstance(block.ffn, Dense):
        wide = (2.0 if block.ffn.gated else 1.0) * block.ffn.inter
        inner = rows * BF16_BYTES / tp
        found["moving"] = (
            elementwise(at, inner * (ACTIVATION[0] * wide + block.ffn.inter)),
            elementwise(at, inner * (ACTIVATION[1] * wide + block.ffn.inter)),
        )
    elif isinstance(block.ffn, Experts):
        ffn, ways = block.ffn, a["ep"]
        width = ffn.hidden or hidden
        once = moe(at, rows * ways, width, ffn.inter, ffn.topk, ffn.count, tp, ways, fmt, ffn.gated)
        found["experts"] = (once, 2.0 * once)
        sent = groups.replicas("all_to_all", rows * ffn.topk * width * BF16_BYTES, ways)
        found["said"] = _plus(found["said"], (2.0 * sent, 2.0 * sent))
    found["products"] = _products(at, met, rows, tp, fmt)
    sublayers = float((block.mixer is not None) + (block.ffn is not None))
    found["moving"] = _plus(found["moving"], _around(at, job, uncut, sublayers))
    met_again = sublayers * _meeting(groups, job, rows * hidden * BF16_BYTES)
    found["said"] = _plus(found["said"], (met_again, met_again))
    return found


def _around(at: Platform, job: TrainingJob, uncut: Array, sublayers: float) -> Pair:
    """Norms and residuals around a layer's parts, with what dropout writes and reads."""
    width = job.model.hidden * BF16_BYTES
    masks = np.where(job.dropout, MASK, 0.0) * job.model.hidden
    forward, backward = (
        sublayers * (elementwise(at, NORM[i] * uncut * width) + elementwise(at, uncut * (RESIDUAL[i] * width + masks)))
        for i in (0, 1)
    )
    return forward, backward


def _meeting(groups: Groups, job: TrainingJob, message: Array) -> Array:
    """Where the parts of a cut sub-layer meet, once forward and once backward: an all-reduce; with cut sequences an
    all-gather before it and a reduce-scatter after.
    """
    reduced = groups.tensor("all_reduce", message)
    if not np.any(job.sequence_parallel):
        return reduced
    both = groups.tensor("all_gather", message) + groups.tensor("reduce_scatter", message)
    return np.where(job.sequence_parallel, both, reduced)


def _mixing(
    at: Platform, groups: Groups, job: TrainingJob, mixer: Mixer, a: dict[str, Array], rows: Array
) -> tuple[Pair, Pair, Array]:
    """The kernels that mix tokens, traffic of written scores, and what a ring of context ranks leaves exposed."""
    micro, sequence, tp, cp = a["micro_batch"], a["sequence"], a["tp"], a["cp"]
    nothing = np.zeros(())
    if not isinstance(mixer, Attention):
        one = np.ones(())
        code = np.asarray(BF16)
        batch = Batch(False, micro, sequence, micro * sequence, tp, one, tp, one, code, code, code, code)
        once = kernel(mixer, at, batch) / cp
        return (once, FLASH_BACKWARD * once), (nothing, nothing), nothing
    heads, kv = mixer.heads / tp, mixer.kv_heads / tp
    own = sequence / cp
    # Each rank has a piece from the front and one from the back, so that all see equally many keys.
    flash = attention_prefill(
        at,
        micro,
        own,
        heads,
        kv,
        mixer.head_dim,
        mixer.window,
        v_head_dim=mixer.v_head_dim,
        prefix=(sequence - own) / 2,
    )
    pairs = micro * heads * own
    scored, mixed = (
        _product(at, pairs, sequence, np.asarray(float(mixer.head_dim))),
        _product(at, pairs, np.asarray(float(mixer.v_head_dim)), sequence),
    )
    dropped = np.where(job.dropout, 2 * BF16_BYTES + MASK, 0.0)
    written = tuple(elementwise(at, pairs * sequence * (n * BF16_BYTES + dropped)) for n in SCORES)
    attention = (
        np.where(job.flash, flash, scored[0] + mixed[0]),
        np.where(job.flash, FLASH_BACKWARD * flash, scored[1] + mixed[1]),
    )
    scores = (np.where(job.flash, 0.0, written[0]), np.where(job.flash, 0.0, written[1]))
    if not np.any(cp > 1):
        return attention, scores, nothing
    hop = groups.context(rows * kv * (mixer.head_dim + mixer.v_head_dim) * BF16_BYTES)
    return attention, scores, np.asarray((cp - 1) * np.maximum(0.0, hop - attention[0] / cp))


def _plus(one: Pair, other: Pair) -> Pair:
    return one[0] + other[0], one[1] + other[1]


def _product(at: Platform, rows: Array, out: Array, inp: Array, fmt: NDArray[np.intp] | int = BF16) -> Pair:
    """Seconds of ``[rows, inp] @ [inp, out]``, and of its two gradients: to the input, and to the weights."""
    return gemm(at, rows, out, inp, fmt), gemm(at, rows, inp, out, fmt) + gemm(at, inp, out, rows, fmt)


def _products(at: Platform, linears: Sequence[Linear], rows: Array, tp: Array, fmt: NDArray[np.intp]) -> Pair:
    found = (np.zeros(()), np.zeros(()))
    for linear in linears:
        out, inp = np.asarray(float(linear.out)), np.asarray(float(linear.inp))
        out = out / tp if linear.shard == "column" else out
        inp = inp / tp if linear.shard == "row" else inp
        found = _plus(found, _product(at, rows, out, inp / linear.groups, fmt))
    return found
