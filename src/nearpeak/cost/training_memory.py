"""What a training job keeps on one device, and whether it fits: Korthikanti et al. 2022, Rajbhandari et al. 2020."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.calibration import Array
from nearpeak.cost.memory import CONTEXT
from nearpeak.hardware import Device
from nearpeak.workload import Attention, Dense, Experts, Linear, TrainingJob, expert_linears, ffn_linears, mixer_linears
from nearpeak.workload.training import BF16_BYTES, RECOMPUTE, ends_count, faults

FP32_BYTES = 4.0
MASK = 1.0
"""Bytes of one element of a dropout mask."""
VOCABULARY_BLOCK = 128
"""Rows of an embedding table on one device are padded to a multiple of this where the table is cut (Megatron-LM)."""


@dataclass(frozen=True)
class TrainingLedger:
    """Bytes on the fullest device of a job, arrays that broadcast.

    ``activations``: of all micro-batches in flight; ``logits``: of one, in the products' format and in fp32;
    ``buffers``: parameters that a ZeRO-3 rank gathers while it needs them; ``reserved``: context and communicators.
    """

    parameters: Array
    gradients: Array
    optimizer: Array
    activations: Array
    logits: Array
    buffers: Array
    reserved: Array

    def parts(self) -> dict[str, Array]:
        """Bytes by part."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def used(self) -> Array:
        """Bytes in all."""
        return np.asarray(sum(self.parts().values()))

    def fits(self, device: Device) -> NDArray[np.bool_]:
        """Whether the job runs in a device's memory."""
        return np.asarray(self.used <= device.memory_capacity)


def training_ledger(job: TrainingJob) -> TrainingLedger:
    """The ledger of the fullest device: of the first stage, which holds most micro-batches, or of the last, which
    holds the logits.
    """
    first, last = _ledger(job, True), _ledger(job, False)
    fuller = first.used >= last.used
    return TrainingLedger(
        *(np.where(fuller, getattr(first, f.name), getattr(last, f.name)) for f in fields(TrainingLedger))
    )


def ways_to_fit(job: TrainingJob, device: Device) -> list[tuple[str, float]]:
    """Changes that make one job fit a device's memory, and the bytes then used: single ones first, then all together.

    Empty where it fits, or where none of them is enough. Layouts are not changed but for ``tp`` and ``pp`` doubled.
    """
    if training_ledger(job).fits(device):
        return []
    single: dict[str, dict[str, Any]] = {
        f"zero {stage}": {"zero": stage} for stage in (1, 2, 3) if stage > job.zero and job.dp * job.cp > 1
    }
    if job.tp > 1 and not job.sequence_parallel:
        single["sequence parallelism"] = {"sequence_parallel": True}
    for policy in RECOMPUTE[int(job.recompute) + 1 :]:
        single[f"{policy} recomputation"] = {"recompute": RECOMPUTE.index(policy)}
    if job.micro_batch > 1:
        single["micro batch 1"] = {"micro_batch": 1}
    for name in ("tp", "pp"):
        twice = replace(job, **{name: 2 * getattr(job, name)})
        if not any(np.any(wrong) for wrong, _ in faults(twice)):
            single[f"{name} {getattr(twice, name)} on {int(twice.devices)} devices"] = {name: getattr(twice, name)}
    together = {k: v for change in single.values() for k, v in change.items() if k not in ("tp", "pp")}
    found = [(name, float(training_ledger(replace(job, **change)).used)) for name, change in single.items()]
    fitting = sorted((x for x in found if x[1] <= device.memory_capacity), key=lambda x: -x[1])
    if fitting or not together:
        return fitting
    words = [name for name, change in single.items() if change.items() <= together.items()]
    least = float(training_ledger(replace(job, **together)).used)
    return [(" with ".join(words), least)] if least <= device.memory_capacity else []


def _ledger(job: TrainingJob, first: bool) -> TrainingLedger:
    a = {name: array.astype(float) for name, array in job.arrays().items()}
    dense, experts = stage_parameters(job, first)
    zero, replicas = a["zero"], a["dp"] * a["cp"]

    def held(each: Array | float, from_stage: int) -> Array:
        """Bytes of something kept for each parameter, shared out among replicas from a ZeRO stage on."""
        shared = zero >= from_stage
        parts = dense / np.where(shared, replicas, 1.0) + experts / np.where(shared, replicas / a["ep"], 1.0)
        return np.asarray(parts * each)

    largest = layer_parameters(job)
    rows = a["micro_batch"] * a["sequence"] / a["cp"]
    columns = np.where((a["pp"] == 1) | (not first), vocabulary(job), 0.0) * (not job.model.encoder)
    return TrainingLedger(
        parameters=held(a["parameter_bytes"], 3),
        gradients=held(a["gradient_bytes"], 2),
        optimizer=held(job.optimizer.states, 1),
        activations=activation_bytes(job, first),
        logits=np.asarray(rows * columns * (BF16_BYTES + FP32_BYTES)),
        # The layer that computes and the one that is fetched meanwhile; their gradients before they are scattered.
        buffers=np.where(zero == 3, 2.0 * largest * (a["parameter_bytes"] + a["gradient_bytes"]), 0.0),
        reserved=np.asarray(CONTEXT),
    )


def vocabulary(job: TrainingJob) -> Array:
    """Columns of the head on one device: of a table that is cut, whole blocks; of one that is not, what there are."""
    tp = np.asarray(job.tp, float)
    block = VOCABULARY_BLOCK * tp
    return np.asarray(np.where(tp > 1, np.ceil(job.model.vocab / block) * block, job.model.vocab) / tp)


def layers_per_stage(job: TrainingJob) -> Array:
    """Layers that a device of a middle stage holds; one at an end holds one less where embedding or head count."""
    ends = np.where(ends_count(job), 2.0, 0.0)
    return np.asarray((job.model.layers + ends) / np.asarray(job.pp, float))


def stage_parameters(job: TrainingJob, first: bool) -> tuple[Array, Array]:
    """Parameters on a device of the first or the last stage: those that all replicas hold, and routed experts."""
    model, tp = job.model, np.asarray(job.tp, float)
    dense, experts = layers_parameters(job)
    share = (layers_per_stage(job) - ends_count(job)) / model.layers
    whole = np.asarray(job.pp) == 1
    table = vocabulary(job) * model.hidden + model.tables
    head = 0.0 if model.encoder else vocabulary(job) * model.hidden
    # A tied table is kept at both ends of a pipeline, and once where there is none.
    ends = np.where(whole, table + (0.0 if model.tied else head), table if first else head)
    rest = model.extra + cut(model.linears, tp)
    return np.asarray(dense * np.where(whole, 1.0, share) + ends + rest), np.asarray(
        experts * np.where(whole, 1.0, share)
    )


def layers_parameters(job: TrainingJob) -> tuple[Array, Array]:
    """Parameters of all layers on one tensor rank: those that all replicas hold, and its part of the routed experts."""
    model, tp = job.model, np.asarray(job.tp, float)
    dense: Array = np.zeros(())
    experts: Array = np.zeros(())
    for block in model.blocks:
        held = cut(block.linears, tp) + block.norms
        if block.mixer is not None:
            held = held + cut(mixer_linears(block.mixer, model.hidden), tp) + block.mixer.extra
        if block.ffn is not None:
            held = held + cut(ffn_linears(block.ffn, model.hidden), tp)
        if isinstance(block.ffn, Experts):
            one = sum(linear.parameters for linear in expert_linears(block.ffn, model.hidden))
            experts = experts + block.count * block.ffn.count * one / (tp * job.ep)
            held = held + block.ffn.extra
        dense = dense + block.count * held
    return dense, experts


def layer_parameters(job: TrainingJob) -> Array:
    """Mean parameters of a layer on one tensor rank."""
    dense, experts = layers_parameters(job)
    return np.asarray((dense + experts) / job.model.layers)


def cut(linears: Sequence[Linear], tp: Array) -> Array:
    """Parameters of some matrices on one of ``tp`` devices."""
    whole = sum(x.parameters for x in linears if x.shard == "replicate")
    return np.asarray(whole + sum(x.parameters for x in linears if x.shard != "replicate") / tp)


def activation_bytes(job: TrainingJob, first: bool = True) -> Array:
    """Bytes kept for the backward pass of all micro-batches in flight on a device of the first or the last stage.

    Stage ``i`` of ``pp`` has ``min(pp - i, micro-batches)`` in flight. Interleaved, a device warms up with
    ``2 (pp - i - 1) + (virtual_stages - 1) pp`` parts of a stage: ``pp + (pp - 1) / virtual_stages`` in flight on the
    first (Narayanan et al. 2021; Korthikanti et al. 2022, section 4.2.3). With full recomputation one layer at a time
    is there whole, beside every layer's input.
    """
    a = {name: array.astype(float) for name, array in job.arrays().items()}
    pp, v = a["pp"], a["virtual_stages"]
    after = pp - 1 if first else np.zeros(())
    flight = np.minimum(np.where(v > 1, (2 * after + (v - 1) * pp + 1) / v, after + 1), job.micro_batches)
    kept, whole = layer_activations(job)
    held = flight * (layers_per_stage(job) - np.where(pp > 1, ends_count(job), 0.0)) * kept
    full = a["recompute"] == RECOMPUTE.index("full")
    return np.asarray(held + np.where(full, whole, 0.0))


def layer_activations(job: TrainingJob) -> tuple[Array, Array]:
    """Bytes that a layer keeps of one micro-batch on one device: under the job's policy, and without recomputation.

    The rule counts, in 16 bits, what each product and kernel needs again: the input of a sub-layer once, the outputs
    of its column-cut matrices, the inputs of its row-cut ones, the inputs of norms, dropout masks, and scores where
    they are written. For a GPT layer it is Korthikanti's ``s b h (34 + 5 a s / h)``, with ``tp`` it is
    ``s b h (10 + 24 / t + 5 a s / (h t))``, and all of it by ``t`` with sequence parallelism.
    """
    a = {name: array.astype(float) for name, array in job.arrays().items()}
    model, tp = job.model, a["tp"]
    rows = a["micro_batch"] * a["sequence"] / a["cp"]
    uncut, split, scores = 0.0, 0.0, 0.0  # bytes of a token: repeated by tensor ranks, cut by them, and of scores
    masks = np.where(job.dropout, MASK, 0.0) * model.hidden
    total_uncut: Array = np.zeros(())
    for block in model.blocks:
        sublayers = (block.mixer is not None) + (block.ffn is not None)
        # Of each sub-layer: the input of its norm, the norm's output that its products read, and its dropout's mask.
        total_uncut = total_uncut + block.count * sublayers * (2 * BF16_BYTES * model.hidden + masks)
        for linears in (
            mixer_linears(block.mixer, model.hidden) if block.mixer is not None else (),
            ffn_linears(block.ffn, model.hidden) if isinstance(block.ffn, Dense | Experts) else (),
            block.linears,
        ):
            split += block.count * sum(_inner(x) for x in linears if x.shard != "replicate")
            uncut += block.count * sum(_inner(x) for x in linears if x.shard == "replicate")
        if isinstance(block.ffn, Experts):
            inner = sum(_inner(x) for x in expert_linears(block.ffn, model.hidden))
            split += block.count * block.ffn.topk * (inner + BF16_BYTES * (block.ffn.hidden or model.hidden))
        if isinstance(block.mixer, Attention):
            scores += block.count * block.mixer.heads
    sequence_cut = np.where(job.sequence_parallel, tp, 1.0)
    plain = rows * ((total_uncut + uncut) / sequence_cut + split / tp) / model.layers
    # Softmax's output, and with dropout its mask and its result, of every pair of tokens.
    each = BF16_BYTES + np.where(job.dropout, MASK + BF16_BYTES, 0.0)
    pairs = np.where(job.flash, 0.0, rows * a["sequence"] * scores * each / tp) / model.layers
    inputs = rows * BF16_BYTES * model.hidden / sequence_cut
    kept = np.select([a["recompute"] == 0, a["recompute"] == 1], [plain + pairs, plain], inputs)
    return np.asarray(kept), np.asarray(plain + pairs)


def _inner(linear: Linear) -> float:
    """Bytes of a token that a matrix adds inside a sub-layer: its output, or its input where that is cut."""
    return BF16_BYTES * (linear.inp if linear.shard == "row" else linear.out)
