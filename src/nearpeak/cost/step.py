"""Time of one engine step: every operator of a prefill, a decode or a mixed pass through one instance of a pool.

A step is the sum over layers of what each layer's operators take on one device, plus what the devices say to each
other. In a mixed step (Agrawal et al. 2023, "SARATHI") chunks of prompts and decoding requests go through the matrices
and experts together, and through their mixers' kernels apart. With multi-token prediction (DeepSeek-V3 report, section
2.2) a decode pass checks the tokens that a draft layer proposed, and drafts the next ones. Everything broadcasts over
the arrays of a Setup: one call prices a million layouts and batches. Steps know nothing of queueing; ``serving`` puts
them together. The mixers' own kernels are in ``mixers``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.collectives import collective
from nearpeak.cost.fabric import Fabric
from nearpeak.cost.mixers import Batch, chunk_kernel
from nearpeak.cost.operators import elementwise, gemm, moe, sampling
from nearpeak.cost.platform import Platform
from nearpeak.errors import UsageError
from nearpeak.formats import code
from nearpeak.setup import Pool, Setup
from nearpeak.workload import (
    Architecture,
    Attention,
    Block,
    CompressedAttention,
    Dense,
    Experts,
    LatentAttention,
    Linear,
    LinearAttention,
    Mixer,
    ffn_linears,
    mixer_linears,
)

Array = NDArray[np.float64]
BF16 = np.asarray(code("bf16"))
ACTIVATION = 2.0
"""Bytes of an activation between operators: engines keep them in 16 bits."""
NORM_TRAFFIC = 4
"""Residual-width vectors that a sub-layer's fused add-and-norm moves: reads two, writes two."""
Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"]


def _nothing() -> Array:
    return np.zeros(())


@dataclass(frozen=True)
class Step:
    """Seconds of one pass by what they are spent on; arrays that broadcast against each other.

    ``matrices``: dense products and the head; ``attention``: the mixers' own kernels; ``experts``: routed expert
    blocks; ``communication``: collectives and pipeline transfers; ``other``: norms, activations, sampling.
    """

    matrices: Array = field(default_factory=_nothing)
    attention: Array = field(default_factory=_nothing)
    experts: Array = field(default_factory=_nothing)
    communication: Array = field(default_factory=_nothing)
    other: Array = field(default_factory=_nothing)

    @property
    def total(self) -> Array:
        """Seconds of the whole pass."""
        return self.matrices + self.attention + self.experts + self.communication + self.other

    def __add__(self, later: "Step") -> "Step":
        """One pass, then another."""
        return Step(*(getattr(self, f.name) + getattr(later, f.name) for f in fields(self)))

    def __mul__(self, times: float | Array) -> "Step":
        """The pass, so many times."""
        return Step(*(getattr(self, f.name) * times for f in fields(self)))


def decode(platform: Platform, setup: Setup, pool: Pool, batch: Array, context: Array) -> Step:
    """One decode pass: each of ``batch`` requests of an attention replica gets its next tokens.

    With pipeline stages the batch is split into as many micro-batches, one in each stage; the way of one of them
    through all the stages is the time between two steps of a request.

    Args:
        batch: requests of one attention replica. context: mean tokens in the cache of a request.

    Raises:
        UsageError: tokens are drafted, but the model has no layer that drafts.
    """
    at = _decoding(setup, pool, batch, context)
    return _pass(platform, setup, pool, at, (at,), at.rows) + _draft(platform, setup, at)


def prefill(platform: Platform, setup: Setup, pool: Pool, prompts: Array, isl: Array) -> Step:
    """One prefill pass over ``prompts`` whole prompts of ``isl`` tokens in each attention replica."""
    prompts, isl = np.asarray(prompts, float), np.asarray(isl, float)
    at = _batch(setup, pool, False, prompts, isl, prompts * isl)
    return _pass(platform, setup, pool, at, (at,), prompts, np.ones(()))


def mixed(
    platform: Platform,
    setup: Setup,
    pool: Pool,
    prompts: Array,
    chunk: Array,
    prefix: Array,
    batch: Array,
    context: Array,
) -> Step:
    """One pass over a chunk of each of ``prompts`` prompts, and the next tokens of ``batch`` requests that decode.

    Args:
        chunk: new tokens of each prompt. prefix: its tokens that are in the cache already.
        batch: requests of one attention replica, 0 for none. context: mean tokens in the cache of one.
    """
    prompts, chunk = np.asarray(prompts, float), np.asarray(chunk, float)
    new = replace(_batch(setup, pool, False, prompts, chunk, prompts * chunk), prefix=np.asarray(prefix, float))
    if not np.any(batch):
        return _pass(platform, setup, pool, new, (new,), prompts, np.ones(()))
    old = _decoding(setup, pool, batch, context)
    together = replace(new, rows=new.rows + old.rows)
    both = _pass(platform, setup, pool, together, (new, old), prompts + old.rows, np.ones(()))
    return both + _draft(platform, setup, old)


def head(platform: Platform, setup: Setup, pool: Pool, sampled: Array) -> Array:
    """Seconds that the head over the vocabulary and sampling take for ``sampled`` rows of an attention replica."""
    one = np.ones(())
    at = _batch(setup, pool, False, one, one, one)
    return _ends(platform, setup.model, at, sampled).total


def unevenness(setup: Setup, pool: Pool) -> Array:
    """Layers of the longest pipeline stage over the mean: what a full pipeline waits for."""
    layers, stages = setup.model.layers, np.asarray(pool.pp, float)
    return np.asarray(np.ceil(layers / stages) * stages / layers)


KERNELS: dict[type[Any], int] = {
    Attention: 3,
    LatentAttention: 6,
    CompressedAttention: 6,
    LinearAttention: 6,
    Dense: 1,
    Experts: 6,
}
"""Kernels of a layer's parts besides the products with their matrices. Attention: rotation, the cache's write, itself;
latent attention also normalizes, splits and joins its latents; a recurrence has a convolution, gates, norms and a
gated output; a dense block has its activation; experts have their choice, sorting, two products, activation and sum."""
NORMS = 2
"""Of a layer, each with the residual's sum."""


def depth(model: Architecture) -> float:
    """Layers of a model, each counted by the kernels that it launches over those of a plain layer.

    A plain layer is attention and a gated dense block: four products with matrices and six kernels besides.
    """
    plain = 4 + KERNELS[Attention] + KERNELS[Dense] + NORMS
    kernels = 0.0
    for block in model.blocks:
        launched: float = len(block.linears)
        if block.mixer is not None:
            launched += len(mixer_linears(block.mixer, model.hidden)) + KERNELS[type(block.mixer)] + NORMS / 2
        if block.ffn is not None:
            launched += len(ffn_linears(block.ffn, model.hidden)) + KERNELS[type(block.ffn)] + NORMS / 2
        kernels += block.count * launched
    return kernels / plain


def _decoding(setup: Setup, pool: Pool, batch: Array, context: Array) -> Batch:
    """What a stage meets of ``batch`` decoding requests: a micro-batch, each with its drafted tokens."""
    sequences = np.maximum(1.0, np.asarray(batch, float) / pool.pp)
    rows = sequences * (1.0 + np.asarray(setup.draft, float))
    return _batch(setup, pool, True, sequences, np.asarray(context, float), rows)


def _batch(setup: Setup, pool: Pool, decoding: bool, sequences: Array, context: Array, rows: Array) -> Batch:
    layout: dict[str, Any] = {name: np.asarray(getattr(pool, name), float) for name in ("tp", "dp", "moe_tp", "moe_ep")}
    formats: dict[str, Any] = {
        name: np.asarray(getattr(setup, name), np.intp) for name in ("attention", "ffn", "experts", "kv")
    }
    link = setup.node.network
    network = None if link is None else Fabric(link, max(1, setup.node.nics))
    node: dict[str, Any] = {"network": network, "node_devices": setup.node.count}
    return Batch(decoding, sequences, context, rows, **layout, **formats, **node)


def _pass(
    platform: Platform,
    setup: Setup,
    pool: Pool,
    at: Batch,
    parts: Sequence[Batch],
    sampled: Array,
    stretch: Array | None = None,
) -> Step:
    """One pass of all ``parts`` together.

    Args:
        at: their rows together. sampled: rows that the head is needed for.
        stretch: how much longer the layers take than their sum; as the longest stage does if None.
    """
    model = setup.model
    longer = unevenness(setup, pool) if stretch is None else stretch
    step = _ends(platform, model, at, sampled)
    for block in model.blocks:
        step = step + _block(platform, model.hidden, block, at, parts) * (block.count * longer)
    stages = np.asarray(pool.pp, float)
    spread = at.tp * at.dp * stages
    hop = _said(platform, at, "send_recv", at.rows * model.hidden * ACTIVATION, np.minimum(stages, 2.0), spread)
    return step + Step(communication=(stages - 1) * hop)


def _draft(platform: Platform, setup: Setup, at: Batch) -> Step:
    """Drafting: for each drafted token, one pass of the sequences through the draft layer and the model's head."""
    draft, model = np.asarray(setup.draft, float), setup.model
    if not np.any(draft):
        return Step()
    if not model.mtp:
        raise UsageError(f"{model.name} has no multi-token-prediction layer to draft with; set draft to 0")
    one = replace(at, rows=at.sequences)
    once = _ends(platform, model, one, one.rows) + _block(platform, model.hidden, model.mtp[0], one, (one,))
    return once * draft


def _block(platform: Platform, hidden: int, block: Block, at: Batch, parts: Sequence[Batch]) -> Step:
    width = at.rows * hidden * ACTIVATION
    norm = Step(other=elementwise(platform, NORM_TRAFFIC * width))
    step = Step(matrices=_products(platform, block.linears, at, at.ffn))
    if block.mixer is not None:
        # A decoding latent attention absorbs kv_b into query and output; those products are in its kernel.
        linears = mixer_linears(block.mixer, hidden)
        shared, unfolding = ([x for x in linears if (x.name == "kv_b") == is_kv_b] for is_kv_b in (False, True))
        matrices = _products(platform, shared, at, at.attention, block.mixer)
        attention = _nothing()
        for part in parts:
            attention = attention + chunk_kernel(block.mixer, platform, part)
            if not part.decoding:
                matrices = matrices + _products(platform, unfolding, part, part.attention, block.mixer)
        step = step + norm + Step(
            matrices=matrices,
            attention=attention,
            communication=_said(platform, at, "all_reduce", width, at.tp),
        )  # fmt: skip
    if isinstance(block.ffn, Dense):
        step = step + norm + Step(
            matrices=_products(platform, ffn_linears(block.ffn, hidden), at, at.ffn),
            communication=_said(platform, at, "all_reduce", width, at.tp),
            other=_activation(platform, block.ffn, at),
        )  # fmt: skip
    elif isinstance(block.ffn, Experts):
        step = step + norm + _experts(platform, hidden, block.ffn, at)
    return step


def _products(
    platform: Platform, linears: Sequence[Linear], at: Batch, fmt: NDArray[np.intp], mixer: Mixer | None = None
) -> Array:
    """Seconds of the products of ``rows`` tokens with some matrices, cut as tensor parallelism cuts them.

    ``mixer``: whose matrices they are; keys and values of grouped attention are cut down to one head, then repeated.
    """
    seconds = _nothing()
    for linear in linears:
        out, inp = np.asarray(float(linear.out)), np.asarray(float(linear.inp))
        if linear.shard == "column":
            out = out / at.tp
        elif linear.shard == "row":
            inp = inp / at.tp
        if linear.name == "qkv" and isinstance(mixer, Attention):
            cached = linear.out - mixer.heads * mixer.head_dim
            out = out + cached * np.maximum(0.0, 1 / mixer.kv_heads - 1 / at.tp)
        # Routers stay in 16 bits in every quantized checkpoint.
        stored = BF16 if linear.name == "router" else fmt
        seconds = seconds + gemm(platform, at.rows, out, inp / linear.groups, stored)
    return seconds


def _said(
    platform: Platform, at: Batch, what: Collective, size: Array, ranks: Array, spread: Array | None = None
) -> Array:
    """Seconds of a collective: over the node's links, or over the network where it spreads over more than a node.

    ``spread``: devices that the ranks are spread over, if more than the ranks themselves.
    """
    outside = (ranks if spread is None else spread) > at.node_devices
    if at.network is None or not np.any(outside):
        return collective(platform, what, size, ranks)
    near = np.minimum(ranks, at.node_devices)
    across = collective(platform, what, size, ranks, at.network, near)
    if spread is None:
        return across
    return np.where(outside & (ranks > 1), across, collective(platform, what, size, near))


def _activation(platform: Platform, ffn: Dense, at: Batch) -> Array:
    return elementwise(platform, at.rows * ffn.inter / at.tp * (3 if ffn.gated else 2) * ACTIVATION)


def _experts(platform: Platform, hidden: int, ffn: Experts, at: Batch) -> Step:
    """The router, shared experts, routed experts, and moving tokens to and from them.

    With one attention replica every device has every token: the partial sums meet in an all-reduce. With several,
    tokens are gathered over the group before the experts and scattered back after (all-gather, reduce-scatter).
    """
    width = ffn.hidden or hidden
    tokens = at.rows * at.dp
    message = tokens * width * ACTIVATION
    group = at.tp * at.dp
    said = _said(platform, at, "all_reduce", message, group)
    if np.any(at.dp > 1):
        gathered = _said(platform, at, "all_gather", message, group)
        said = np.where(at.dp > 1, gathered + _said(platform, at, "reduce_scatter", message, group), said)
    routed = moe(
        platform, tokens, width, ffn.inter, ffn.topk, ffn.count, at.moe_tp, at.moe_ep, at.experts, gated=ffn.gated
    )
    return Step(_products(platform, ffn_linears(ffn, hidden), at, at.ffn), experts=routed, communication=said)


def _ends(platform: Platform, model: Architecture, at: Batch, sampled: Array) -> Step:
    """Embedding look-up, final norm, the head over the vocabulary for ``sampled`` rows, and sampling."""
    other = elementwise(platform, 3 * at.rows * model.hidden * ACTIVATION)
    if model.encoder:
        return Step(other=other)
    return Step(
        matrices=gemm(platform, sampled, model.vocab / at.tp, model.hidden, BF16)
        + _products(platform, model.linears, at, at.ffn),
        communication=_said(platform, at, "all_gather", sampled * model.vocab * ACTIVATION, at.tp),
        other=other + sampling(platform, sampled, model.vocab),
    )
