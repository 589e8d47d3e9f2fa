"""LoRA and QLoRA on one card: does it fit (``adapters``), how many tokens per second, how many joules.

A frozen matrix is multiplied twice, forward and back to its input; a trained one a third time. Adapters add small
products and, in eager transformers, elementwise kernels of their own. The questions are those of Avinash, "Profiling
LoRA/QLoRA Fine-Tuning Efficiency on Consumer GPUs: An RTX 4060 Case Study", arXiv 2509.12229 (2025).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.bounds.adapters import (
    CONTEXT,
    FP32,
    NF4_BYTES,
    PROJECTIONS,
    STATES,
    WORKED,
    Job,
    Memory,
    memory,
    parts,
    shape,
)
from nearpeak.cost import Platform, platform, power
from nearpeak.cost.engine import engine_on
from nearpeak.cost.operators import attention_prefill, elementwise, gemm
from nearpeak.cost.platform import Work
from nearpeak.errors import UsageError
from nearpeak.formats import code
from nearpeak.hardware import Node, link, node_of
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, numbers, require_positive
from nearpeak.workload import Block, parameters, read

__all__ = [
    "CONTEXT",
    "NF4_BYTES",
    "PROJECTIONS",
    "TOPIC",
    "Correction",
    "Job",
    "Memory",
    "Speed",
    "calibrate",
    "memory",
    "speed",
]

Array = NDArray[np.float64]

BACKWARD_ATTENTION = 2.5
"""Products of attention's backward pass over those of its forward pass (Dao 2022): five for two."""
BACKWARD_TRAFFIC = 2.0
"""Bytes that the backward pass of an elementwise kernel moves over those of its forward pass: it reads a gradient and
what was saved, and writes a gradient."""
ENGINE = "transformers"
"""Whose launch times a training loop has."""


def _moved(job: Job, block: Block) -> float:
    """Bytes that the elementwise kernels of one layer move forward for one token, each of them on its own: eager
    transformers fuses none.
    """
    mixer, ffn = parts(block)
    a, hidden = WORKED[job.precision], job.model.hidden
    rotated = (mixer.heads + mixer.kv_heads) * mixer.head_dim
    norm = 4 * a + 6 * FP32  # widen, square, mean, scale, narrow, times its weights
    moved = norm * (2 * hidden + (rotated if mixer.extra else 0))
    moved += 2 * 3 * a * hidden  # two residual sums
    moved += 10 * a * rotated  # half of it negated, both parts joined, two products, their sum
    moved += 5 * a * ffn.inter  # the gate's activation, and the product with it
    if job.method == "lora":  # an adapter's output scaled, and added
        moved += 5 * a * sum(shape(block, name, hidden)[0] for name in job.adapted)
    return moved


@dataclass(frozen=True, eq=False)
class Speed:
    """One step, arrays of one shape: seconds of its kernels, of launching them, and of paging the optimizer.

    ``seconds`` in all, ``tokens_per_second`` and ``joules`` follow from them.
    """

    kernels: Array
    launching: Array
    paging: Array
    seconds: Array
    tokens_per_second: Array
    joules: Array


def speed(job: Job, node: Node, correction: "Correction | None" = None) -> Speed:
    """Time and energy of a step on one device of a node.

    With checkpointing all but the head runs once more forward. Kernels and launches overlap: a step takes the longer.

    Args:
        correction: constants measured on the machine (``calibrate``); None for the cost model's own.

    Raises:
        UsageError: a paged optimizer on a device without a host link; a device that cannot multiply in the precision.
    """
    device = node.device
    at = platform(device, node.scale_up, ENGINE)
    kernels = _kernels(job, at)
    passes = 3.0 + np.asarray(job.checkpointing, float)
    layers = job.model.layers * passes
    paging = np.zeros(())
    if np.any(job.paged):
        if device.host_link is None:
            raise UsageError(f"device {device.name!r} has no host_link, over which an optimizer could be paged")
        both_ways = job.trainable * STATES / link(device.host_link).bandwidth
        paging = np.where(np.asarray(job.paged, bool), both_ways, 0.0)
    if correction is None:
        launching = layers * (0.0 if device.kind == "cpu" else engine_on(ENGINE, node).layer)
        seconds = np.maximum(kernels, launching) + paging
    else:
        launching = layers * correction.layer
        seconds = kernels * correction.slower + launching + paging
    kernels, launching, paging, seconds, tokens = np.broadcast_arrays(kernels, launching, paging, seconds, job.tokens)
    watts = power.watts(device, _work(job, at), seconds) + node.overhead_power / node.count
    return Speed(kernels, launching, paging, seconds, tokens / seconds, watts * seconds)


def _work(job: Job, at: Platform) -> Work:
    """Products and elementwise traffic of a step at the peaks: what its power follows from."""
    model, tokens, fmt = job.model, job.tokens, np.asarray(code(job.precision))
    again = np.asarray(job.checkpointing, float)
    products = 2.0 * tokens * parameters(model).active * (2 + again + (job.method == "full"))
    moved = sum(b.count * _moved(job, b) for b in model.blocks) * tokens * (1 + again + BACKWARD_TRAFFIC)
    return Work("gemm", fmt, products / at.rate(fmt), at.streaming(moved), np.zeros(()), ())


def _kernels(job: Job, at: Platform) -> Array:
    """Seconds of all kernels of a step."""
    model, a, tokens = job.model, WORKED[job.precision], job.tokens
    fmt = code(job.precision)
    again = np.asarray(job.checkpointing, float)
    full = job.method == "full"
    total: Array = np.zeros(())
    for block in model.blocks:
        mixer, _ = parts(block)
        for name in PROJECTIONS:
            out, inp = shape(block, name, model.hidden)
            forward, back = gemm(at, tokens, out, inp, fmt), gemm(at, tokens, inp, out, fmt)
            total = total + block.count * (forward * (1 + again) + back)
            if full:
                total = total + block.count * gemm(at, out, inp, tokens, fmt)
            elif name in job.adapted:
                down, up = gemm(at, tokens, job.rank, inp, fmt), gemm(at, tokens, out, job.rank, fmt)
                total = total + block.count * (3 + again) * (down + up)
            if np.any(job.nf4):  # each use reads 4 bits and writes 16 that the product reads
                widened = elementwise(at, out * inp * (NF4_BYTES + a))
                total = total + block.count * np.where(np.asarray(job.nf4, bool), (2 + again) * widened, 0.0)
        attended = attention_prefill(
            at, job.batch, job.seq, mixer.heads, mixer.kv_heads, mixer.head_dim, mixer.window, fmt, fmt,
            mixer.v_head_dim,
        )  # fmt: skip
        total = total + block.count * attended * (1 + again + BACKWARD_ATTENTION)
        total = total + block.count * elementwise(at, tokens * _moved(job, block)) * (1 + again + BACKWARD_TRAFFIC)
    head = gemm(at, tokens, model.vocab, model.hidden, fmt) + gemm(at, tokens, model.hidden, model.vocab, fmt)
    if full:
        head = head + gemm(at, model.vocab, model.hidden, tokens, fmt)
    # The loss widens the logits, makes their log-softmax in two passes, and goes back through both.
    loss = elementwise(at, tokens * model.vocab * (2 * a + 8 * FP32))
    # AdamW reads parameter, gradient and both moments, and writes all but the gradient.
    update = elementwise(at, job.trainable * (2 * (FP32 + STATES) + FP32))
    return np.asarray(total + head + loss + update)


@dataclass(frozen=True)
class Correction:
    """What measured steps say of a machine: kernels take ``slower`` times as long, and a layer ``layer`` seconds."""

    slower: float
    layer: float


def calibrate(jobs: Sequence[Job], node: Node, seconds: ArrayLike) -> Correction:
    """Fit two constants to measured steps, by least squares of the relative error, neither below zero.

    Args:
        jobs: what was run, one configuration each. seconds: what a step took, ``[jobs]``.

    Raises:
        UsageError: fewer than 3 jobs, or a time that is not positive.
    """
    taken = np.asarray(seconds, float)
    if len(jobs) < 3 or taken.shape != (len(jobs),):
        raise UsageError(f"{len(jobs)} jobs and {taken.size} times; give at least 3, and one time a job")
    require_positive(seconds=taken)
    kernels = np.array([float(speed(job, node).kernels) for job in jobs])
    layers = np.array([job.model.layers * (3.0 + bool(job.checkpointing)) for job in jobs])
    sides = np.stack([kernels, layers], axis=1) / taken[:, None]
    both, *_ = np.linalg.lstsq(sides, np.ones(len(jobs)), rcond=None)
    if (both < 0).any():  # one side alone explains them better than a negative other
        alone = [float(s.sum() / (s @ s)) for s in sides.T]
        kept = int(np.argmin([((s * x - 1) ** 2).sum() for s, x in zip(sides.T, alone, strict=True)]))
        both = np.zeros(2)
        both[kept] = alone[kept]
    return Correction(float(both[0]), float(both[1]))


def _explain(model: str, gpu: str, batch: float, seq: float, rank: float, batches: tuple[float, ...]) -> Explanation:
    node, architecture = node_of(gpu), read(model)
    capacity = node.device.memory_capacity
    ways = {
        "full, AdamW": Job(architecture, batch, seq, method="full", checkpointing=True),
        "full, paged AdamW": Job(architecture, batch, seq, method="full", checkpointing=True, paged=True),
        "LoRA, AdamW": Job(architecture, batch, seq, rank),
        "LoRA, AdamW, checkpointing": Job(architecture, batch, seq, rank, checkpointing=True),
        "QLoRA, AdamW": Job(architecture, batch, seq, rank, nf4=True),
        "QLoRA, paged AdamW, checkpointing": Job(
            architecture, batch, seq, rank, nf4=True, paged=True, checkpointing=True
        ),
    }
    needs = {way: memory(job) for way, job in ways.items()}
    runs = {way: speed(job, node) for way, job in ways.items()}
    fit = [way for way in ways if float(needs[way].total) <= capacity]
    rows = tuple(
        {
            "way": way,
            "memory": float(needs[way].total),
            "fits": way in fit,
            "tokens_per_second": float(runs[way].tokens_per_second),
            "joules_per_token": float(runs[way].joules / ways[way].tokens),
        }
        for way in ways
    )
    tables = [Table(f"{seq:g} tokens a sequence, batch {batch:g}, on {capacity / 2**30:.0f} GiB", rows)]
    says = [f"Overflows the card: {'; '.join(w for w in ways if w not in fit) or 'nothing'}."]
    figures: dict[str, float | str | None] = {"capacity": capacity, "best_that_fits": None}
    if fit:
        best = max(fit, key=lambda way: float(runs[way].tokens_per_second))
        need, job = needs[best], ways[best]
        sizes = {f.name: float(getattr(need, f.name)) for f in fields(need)}
        largest = max(sizes, key=lambda name: sizes[name])
        more = replace(job, batch=np.asarray(batches))
        grown, faster = memory(more), speed(more, node)
        figures |= {
            "best_that_fits": best,
            "tokens_per_second": float(runs[best].tokens_per_second),
            "joules_per_token": float(runs[best].joules / job.tokens),
        }
        figures |= {f"{name}_memory": size for name, size in sizes.items()}
        tables.append(
            Table.of(
                f"{best}, by batch",
                batch=batches,
                memory=grown.total,
                fits=grown.total <= capacity,
                tokens_per_second=faster.tokens_per_second,
                joules_per_token=faster.joules / more.tokens,
            )
        )
        says.append(
            f"{best} is the fastest that fits: {float(runs[best].tokens_per_second):.0f} tokens/s, and {largest} take "
            f"most of its memory ({sizes[largest] / 1e9:.2g} GB)."
        )
    else:
        says.append("Nothing fits: use shorter sequences, a smaller batch, or a card with more memory.")
    return Explanation(figures, tuple(tables), tuple(says))


TOPIC = Topic(
    name="finetune",
    title="Which way of fine-tuning fits the card, and how fast is it?",
    paper="Avinash: Profiling LoRA/QLoRA Fine-Tuning Efficiency on Consumer GPUs: An RTX 4060 Case Study. arXiv "
    "2509.12229, 2025. Dettmers et al.: QLoRA. NeurIPS 2023.",
    options=(
        MODEL,
        GPU,
        Option("batch", float, "Sequences of a step.", 1.0),
        Option("seq", float, "Tokens of a sequence.", 2048.0),
        Option("rank", float, "Rank of the adapters.", 16.0),
        Option("batches", numbers, "Batches to compare.", (1.0, 2.0, 4.0, 8.0)),
    ),
    explain=_explain,
    example="--model Qwen/Qwen3-1.7B --gpu rtx_4060 --seq 2048",
)
