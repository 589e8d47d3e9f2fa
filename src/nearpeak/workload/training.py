"""A training job: which model learns from which batches, how it is cut over devices, and what is kept for it.

Here live no devices and no times: ``cost.training`` prices a job, ``cost.training_memory`` counts its bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UnknownName, UsageError
from nearpeak.workload.architecture import Architecture, Attention, Experts, LatentAttention, LinearAttention

Numeric = float | NDArray[Any]
"""A number, or an array of them that broadcasts."""
Flags = NDArray[np.bool_]

RECOMPUTE = ("none", "selective", "full")
"""What the backward pass computes again, by code: nothing; the core of attention; whole layers (Korthikanti et al.
2022)."""
ZERO = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "no_shard": 0, "shard_grad_op": 2, "full_shard": 3, "fsdp": 3}
"""What data-parallel ranks share out instead of repeating, by name: stage 1 optimizer states, 2 gradients as well, 3
parameters as well (Rajbhandari et al. 2020). FSDP's names stand beside ZeRO's (Zhao et al. 2023)."""
BF16_BYTES = 2.0
BATCH = ("sequence", "global_batch", "micro_batch")
WAYS = ("tp", "dp", "pp", "cp", "ep", "virtual_stages")
MOST = 10**9
"""A larger size of a batch or a layout is a slip of the pen, and products of two must stay whole numbers."""


@dataclass(frozen=True)
class Optimizer:
    """What an update needs of each parameter.

    Attributes:
        states: bytes kept beside the 16-bit weight and the gradient. flops: arithmetic of an update, on vector units.
    """

    name: str
    states: float
    flops: float


ADAM = Optimizer("adam", 12.0, 12.0)
"""Adam in mixed precision: an fp32 weight, a first and a second moment (Micikevicius et al. 2018; ZeRO's table)."""


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """One training job, or arrays of them that broadcast.

    Attributes:
        model: what learns. optimizer: one each.
        sequence: tokens of a sequence. global_batch: sequences of a step, over all devices. micro_batch: sequences
            that one replica passes at a time.
        tp, dp, pp, cp: tensor, data, pipeline and context parallelism. A device is one of ``tp * dp * pp * cp``, tensor
            ranks nearest to each other, then context, data and pipeline ranks (Megatron's order).
        ep: ways that experts are dealt out over the data- and context-parallel ranks.
        virtual_stages: stages that one device holds; above 1 the schedule is interleaved 1F1B (Narayanan et al. 2021).
        zero: stage 0 to 3, see ``ZERO``. recompute: code of ``RECOMPUTE``.
        sequence_parallel: norms and residuals are cut by ``tp`` as well (Korthikanti et al. 2022).
        flash: attention in one kernel; False: scores are written to memory (GPT-2 in Megatron without FlashAttention).
        dropout: after attention's softmax and after both sub-layers.
        overlap: gradients are reduced, and parameters gathered, while other layers compute.
        fmt: format code of the products. parameter_bytes, gradient_bytes: of a weight and of a gradient as kept.
    """

    model: Architecture
    sequence: Numeric
    global_batch: Numeric
    micro_batch: Numeric = 1
    tp: Numeric = 1
    dp: Numeric = 1
    pp: Numeric = 1
    cp: Numeric = 1
    ep: Numeric = 1
    virtual_stages: Numeric = 1
    zero: Numeric = 0
    recompute: Numeric = 0
    sequence_parallel: bool | Flags = False
    flash: bool | Flags = True
    dropout: bool | Flags = False
    overlap: bool | Flags = True
    fmt: Numeric = 0
    parameter_bytes: Numeric = BF16_BYTES
    gradient_bytes: Numeric = BF16_BYTES
    optimizer: Optimizer = ADAM

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The numeric fields by name."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self) if f.name not in ("model", "optimizer")}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that all numeric fields broadcast to; ``()`` for a single job."""
        return np.broadcast_shapes(*(a.shape for a in self.arrays().values()))

    def at(self, index: tuple[int, ...]) -> "TrainingJob":
        """The one job at ``index`` of ``shape``."""
        picked: dict[str, Any] = {
            n: np.asarray(np.broadcast_to(a, self.shape)[index]).item() for n, a in self.arrays().items()
        }
        return replace(self, **picked)

    @property
    def devices(self) -> NDArray[Any]:
        """Devices in all."""
        return np.asarray(np.asarray(self.tp) * self.dp * self.pp * self.cp)

    @property
    def micro_batches(self) -> NDArray[Any]:
        """Micro-batches that a replica passes in a step: pipeline slots, or steps of gradient accumulation."""
        return np.asarray(np.asarray(self.global_batch) / (np.asarray(self.dp) * self.micro_batch))

    @property
    def tokens(self) -> NDArray[Any]:
        """Tokens of a step."""
        return np.asarray(np.asarray(self.global_batch) * self.sequence)


def recompute_code(name: str) -> int:
    """The code of a recomputation policy.

    Raises:
        UnknownName: none is called so.
    """
    if name not in RECOMPUTE:
        raise UnknownName("recomputation", name, RECOMPUTE)
    return RECOMPUTE.index(name)


def zero_stage(name: str) -> int:
    """The ZeRO stage that a name or a digit means.

    Raises:
        UnknownName: none is called so.
    """
    if name in ("0", "1", "2", "3"):
        return int(name)
    try:
        return ZERO[name.lower()]
    except KeyError:
        raise UnknownName("sharding", name, [*ZERO, "0", "1", "2", "3"]) from None


def ends_count(job: TrainingJob) -> Flags:
    """Whether embedding and head stand in for one layer each, so that stages are equal (Llama 3, section 3.3.2).

    Where the layers themselves divide into ``pp * virtual_stages`` stages they do not.
    """
    stages = np.asarray(job.pp) * job.virtual_stages
    layers = job.model.layers
    return np.asarray((layers % stages != 0) & ((layers + 2) % stages == 0))


def check(job: TrainingJob) -> None:
    """Refuse a job that cannot be cut as it says.

    Raises:
        UsageError: the first thing that is wrong, with its value and a way out.
    """
    for wrong, reason in faults(job):
        if np.any(wrong):
            where = np.argwhere(np.broadcast_to(wrong, job.shape))[0]
            raise UsageError(reason(job.at(tuple(where))))


def faults(job: TrainingJob) -> Iterator[tuple[Flags, Any]]:
    """What can be wrong with jobs: where it is, as a mask that broadcasts to the job's shape, and what to say of one.

    Later rules take for granted that earlier ones hold.
    """
    a = job.arrays()
    for name in (*BATCH, *WAYS):
        size = a[name].astype(float)
        wrong = ~((size >= 1) & (size <= MOST) & (size == np.floor(size)))
        yield wrong, lambda one, n=name: f"{n} is {getattr(one, n)}; give a whole number of 1 or more, at most {MOST:,}"
    positive = ("parameter_bytes", "gradient_bytes")
    for name in positive:
        yield ~(a[name] > 0), lambda one, n=name: f"{n} is {getattr(one, n)}; give bytes above 0, such as 2 or 4"
    yield ~np.isin(a["zero"], (0, 1, 2, 3)), lambda one: f"zero {one.zero} is no stage; give 0, 1, 2 or 3"
    yield (
        ~np.isin(a["recompute"], (0, 1, 2)),
        lambda one: f"recompute {one.recompute} is no policy; give 0 (none), 1 (selective) or 2 (full)",
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # sizes that are refused above
        stage = a["pp"] * a["virtual_stages"]
        yield (
            a["global_batch"] % (a["dp"] * a["micro_batch"]) != 0,
            lambda one: (
                f"global batch {one.global_batch} is no multiple of dp {one.dp} x micro batch {one.micro_batch}; "
                f"the nearest that are: {_around(one.global_batch, one.dp * one.micro_batch)}"
            ),
        )
        yield (
            (job.model.layers % stage != 0) & ~ends_count(job),
            lambda one: (
                f"{one.model.layers} layers do not divide into pp {one.pp} x {one.virtual_stages} virtual stages, nor "
                "do they with embedding and head as a layer each; pp can be "
                f"{_divisors(one.model.layers, one.model.layers + 2)}"
            ),
        )
        yield (
            (a["virtual_stages"] > 1) & (a["pp"] == 1),
            lambda one: (
                f"virtual stages {one.virtual_stages} without a pipeline; give pp of 2 or more, or leave them at 1"
            ),
        )
        yield (
            (a["virtual_stages"] > 1) & (job.micro_batches % a["pp"] != 0),
            lambda one: (
                f"interleaved stages need micro-batches in multiples of pp {one.pp}, not {one.micro_batches:g}; "
                f"change the global batch to a multiple of {one.dp * one.micro_batch * one.pp}"
            ),
        )
        yield (
            a["sequence"] % (a["cp"] * np.where(a["sequence_parallel"], a["tp"], 1)) != 0,
            lambda one: (
                f"sequence {one.sequence} does not divide by cp {one.cp} (and tp {one.tp} with sequence parallelism)"
            ),
        )
        for heads, what in _heads(job.model):
            yield (
                heads % a["tp"] != 0,
                lambda one, h=heads, w=what: f"{h} {w} do not divide by tp {one.tp}; tp can be {_divisors(h)}",
            )
        yield (
            (a["dp"] * a["cp"]) % a["ep"] != 0,
            lambda one: (
                f"ep {one.ep} does not divide the dp x cp = {one.dp * one.cp} replicas that experts are dealt over"
            ),
        )
        for count in {b.ffn.count for b in job.model.blocks if isinstance(b.ffn, Experts)}:
            yield count % a["ep"] != 0, lambda one, c=count: f"{c} experts do not divide by ep {one.ep}"
        if not any(isinstance(b.ffn, Experts) for b in job.model.blocks):
            yield a["ep"] != 1, lambda one: f"ep {one.ep} for {one.model.name}, which has no experts; leave it at 1"


def _heads(model: Architecture) -> set[tuple[int, str]]:
    """Counts that tensor parallelism deals out whole."""
    found: set[tuple[int, str]] = set()
    for block in model.blocks:
        match block.mixer:
            case Attention():
                found |= {(block.mixer.heads, "attention heads"), (block.mixer.kv_heads, "key-value heads")}
            case LatentAttention():
                found.add((block.mixer.heads, "attention heads"))
            case LinearAttention():
                found.add((block.mixer.v_heads, "heads"))
    return found


def _around(value: float, step: float) -> str:
    below = int(value // step * step)
    return f"{below} and {below + int(step)}" if below else f"{int(step)}"


def _divisors(*counts: int) -> str:
    return ", ".join(str(d) for d in range(1, min(counts) + 1) if any(count % d == 0 for count in counts))
