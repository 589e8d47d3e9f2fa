"""What fine-tuning keeps on one card: weights, adapters, optimizer states, and what a pass saves, tensor by tensor.

A frozen matrix keeps no input for its gradient; an adapter of rank ``r`` beside it keeps its own input and ``r`` values
a token. What a pass saves is therefore counted as PyTorch's autograd saves it in a decoder of transformers: the
residual before each norm, adapters' inputs, queries, keys, values and outputs of attention, and the four tensors of a
gated feed-forward part. Logits are often the peak: the loss holds them several times.

Hu et al., "LoRA", ICLR 2022; Dettmers et al., "QLoRA" (4-bit base, paged optimizer), NeurIPS 2023.
"""

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.errors import UnknownName, UsageError
from nearpeak.topic import require_positive
from nearpeak.workload import Architecture, Attention, Block, Dense, parameters

Array = NDArray[np.float64]
Method = Literal["lora", "full"]
Precision = Literal["fp32", "bf16"]

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a 4-bit weight: an 8-bit scale each 64 values, and for 256 of these a 32-bit one (double quantization)."""
WORKED = {"fp32": 4.0, "bf16": 2.0}
"""Bytes of an activation."""
FP32 = 4.0
STATES = 8.0
"""Bytes of AdamW's two moments a parameter, kept in fp32, as trained parameters and their gradients are."""
LOSS = 3 * FP32
"""Bytes a vocabulary entry and token when the loss is differentiated: the log-softmax in fp32, its gradient and the
gradient of the logits. The logits themselves are gone by then, as in transformers' ``Trainer``; a loop that holds the
model's output through the backward pass needs them on top."""
CONTEXT = 0.6e9
"""Bytes of a CUDA context, cuBLAS workspaces and the allocator's rounding on a consumer card: assumed."""


@dataclass(frozen=True, eq=False)
class Job:
    """Fine-tuning of a model, or arrays of jobs that broadcast.

    Attributes:
        batch: sequences of a step; seq: tokens of each. rank: of the adapters.
        nf4: whether the frozen matrices are kept in 4 bits (QLoRA). paged: whether the optimizer's states live in host
            memory and visit the card. checkpointing: whether only each layer's input is kept, and the rest made again.
        adapted: which of ``PROJECTIONS`` have adapters.
        method: ``lora``, or ``full`` to train every weight. precision: of weights and products.
    """

    model: Architecture
    batch: ArrayLike = 1
    seq: ArrayLike = 512
    rank: ArrayLike = 16
    nf4: ArrayLike = False
    paged: ArrayLike = False
    checkpointing: ArrayLike = False
    adapted: tuple[str, ...] = PROJECTIONS
    method: Method = "lora"
    precision: Precision = "bf16"

    def __post_init__(self) -> None:
        require_positive(batch=self.batch, seq=self.seq, rank=self.rank)
        for name in self.adapted:
            if name not in PROJECTIONS:
                raise UnknownName("projection", name, PROJECTIONS)
        if self.method not in ("lora", "full"):
            raise UnknownName("method", self.method, ("lora", "full"))
        if self.precision not in WORKED:
            raise UnknownName("precision", self.precision, WORKED)
        if self.method == "lora" and not self.adapted:
            raise UsageError(f"lora without adapters; name some of {', '.join(PROJECTIONS)}")
        if self.method == "full" and np.any(self.nf4):
            raise UsageError("4-bit weights cannot be trained; nf4 goes with method lora")
        for block in self.model.blocks:
            if not isinstance(block.mixer, Attention) or not isinstance(block.ffn, Dense) or not block.ffn.gated:
                raise UsageError(
                    f"model {self.model.name!r} is no decoder of grouped attention and gated feed-forward parts; "
                    "finetune counts the saved tensors of those alone"
                )

    @property
    def tokens(self) -> Array:
        """Tokens of a step."""
        return np.asarray(np.asarray(self.batch, float) * np.asarray(self.seq, float))

    @property
    def trainable(self) -> Array:
        """Parameters that are trained."""
        if self.method == "full":
            return np.asarray(float(parameters(self.model).language))
        per_rank = sum(
            b.count * sum(sum(shape(b, name, self.model.hidden)) for name in self.adapted) for b in self.model.blocks
        )
        return np.asarray(np.asarray(self.rank, float) * per_rank)


def parts(block: Block) -> tuple[Attention, Dense]:
    """The mixer and the feed-forward part of a block that a ``Job`` has accepted."""
    assert isinstance(block.mixer, Attention)
    assert isinstance(block.ffn, Dense)  # a Job refuses others
    return block.mixer, block.ffn


def shape(block: Block, name: str, hidden: int) -> tuple[int, int]:
    """Output and input width of a projection."""
    mixer, ffn = parts(block)
    return {
        "q": (mixer.heads * mixer.head_dim, hidden),
        "k": (mixer.kv_heads * mixer.head_dim, hidden),
        "v": (mixer.kv_heads * mixer.v_head_dim, hidden),
        "o": (hidden, mixer.heads * mixer.v_head_dim),
        "gate": (ffn.inter, hidden),
        "up": (ffn.inter, hidden),
        "down": (hidden, ffn.inter),
    }[name]


@dataclass(frozen=True, eq=False)
class Memory:
    """Bytes on the card at the peak of a step, arrays of one shape.

    ``weights``: frozen, or trained in full. ``adapters``: their parameters. ``gradients``: where they are the peak.
    ``optimizer``: states on the card. ``activations``: saved for the backward pass. ``logits``: of the loss.
    ``context``: what the CUDA context takes; 0 on a CPU.
    """

    weights: Array
    adapters: Array
    gradients: Array
    optimizer: Array
    activations: Array
    logits: Array
    context: Array

    @property
    def total(self) -> Array:
        """Bytes in all."""
        return np.asarray(sum(getattr(self, f.name) for f in fields(self)))


def memory(job: Job, context: float = CONTEXT) -> Memory:
    """The ledger of a step's highest moment: when the loss is differentiated, in the last layer's backward pass, or
    after it, when all gradients are there.
    """
    model, a, tokens = job.model, WORKED[job.precision], job.tokens
    count, trained = parameters(model), job.trainable
    checkpointing = np.asarray(job.checkpointing, bool)
    matrices = float(count.attention + count.ffn)
    weights: Array | float
    if job.method == "full":  # automatic mixed precision: weights in fp32, and their copies in 16 bits
        weights = count.language * (FP32 + (a if job.precision == "bf16" else 0.0))
    else:
        weights = matrices * np.where(np.asarray(job.nf4, bool), NF4_BYTES, a) + (count.language - matrices) * a

    saved = [_saved(job, b) for b in model.blocks]
    whole = np.asarray(sum(b.count * s for b, s in zip(model.blocks, saved, strict=True)))
    largest = np.max(np.broadcast_arrays(*saved), axis=0)
    widest = max(parts(b)[1].inter for b in model.blocks)
    # With checkpointing the input of each layer is kept, and the input of the last norm.
    inputs = model.layers * model.hidden * a + FP32 * (model.hidden + 1)
    held = tokens * np.where(checkpointing, inputs, whole)

    at_loss = tokens * model.vocab * LOSS
    # One layer made again; gradients of both factors of the gated product in place of their product.
    in_layer = tokens * (np.where(checkpointing, largest, 0.0) + 2 * widest * a)
    moment = np.maximum(at_loss, in_layer)

    gradients = trained * FP32
    optimizer = np.where(np.asarray(job.paged, bool), 0.0, trained * STATES)
    # Gradients grow while activations go: whichever is more.
    over = np.maximum(gradients - (held + moment), 0.0)
    logits = np.minimum(at_loss, moment)
    held_by = (
        weights,
        np.where(job.method == "full", 0.0, trained * FP32),
        over,
        optimizer,
        held + moment - logits,
        logits,
        np.asarray(context),
    )
    return Memory(*np.broadcast_arrays(*(np.asarray(p, float) for p in held_by)))


def _saved(job: Job, block: Block) -> Array:
    """Bytes that autograd saves of one layer for one token."""
    mixer, ffn = parts(block)
    a, hidden = WORKED[job.precision], job.model.hidden
    met = set(PROJECTIONS if job.method == "full" else job.adapted)
    q, kv = mixer.heads * mixer.head_dim, mixer.kv_heads * (mixer.head_dim + mixer.v_head_dim)
    out = mixer.heads * mixer.v_head_dim
    # Each norm keeps its input and a scale in fp32; norms of heads, where there are any, their queries and keys.
    saved = 2 * FP32 * (hidden + 1)
    if mixer.extra:
        saved += FP32 * (q + mixer.kv_heads * mixer.head_dim)
    saved += a * (q + kv + out) + FP32 * mixer.heads
    saved += a * 3 * ffn.inter
    saved += a * hidden * (bool(met & {"q", "k", "v"}) + bool(met & {"gate", "up"}))
    saved += a * ffn.inter * ("down" in met)
    ranks = 0.0 if job.method == "full" else a * np.asarray(job.rank, float) * len(met)
    return np.asarray(saved + ranks)
