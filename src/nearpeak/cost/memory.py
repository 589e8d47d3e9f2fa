"""What must fit on one device: weights, KV cache, activations, the engine's own share; and whether it will start."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.attention import STATE_BYTES
from nearpeak.cost.step import unevenness
from nearpeak.formats import BYTES
from nearpeak.setup import Pool, Setup
from nearpeak.workload import (
    Attention,
    Dense,
    Experts,
    Linear,
    Mixer,
    expert_linears,
    ffn_linears,
    mixer_linears,
    sequence_elements,
    state_elements,
)

Array = NDArray[np.float64]
BF16_BYTES = 2.0
RESERVED = 0.10
"""Share of a device's memory that vLLM and SGLang leave alone by default (``gpu_memory_utilization`` 0.9,
``mem_fraction_static`` near 0.9): contexts, communication buffers and fragmentation live there."""
CONTEXT = 1.5e9
"""Bytes of a CUDA context, captured graphs and a communicator, seen per process on current datacenter GPUs; it lies
inside ``RESERVED`` on large cards and beyond it on small ones."""


@dataclass(frozen=True)
class Ledger:
    """Bytes on one device, arrays that broadcast. ``capacity`` is the whole memory of the device.

    ``kv`` is the cache of the batch at its longest; ``reserved`` what the engine keeps for itself.
    """

    weights: Array
    kv: Array
    activations: Array
    reserved: Array
    capacity: Array

    @property
    def used(self) -> Array:
        """Bytes needed in all."""
        return self.weights + self.kv + self.activations + self.reserved

    @property
    def fits(self) -> NDArray[np.bool_]:
        """Whether an engine with this Setup starts and never runs out."""
        return self.used <= self.capacity


def ledger(setup: Setup, pool: Pool, decoding: bool = True) -> Ledger:
    """The ledger of one device of ``pool``; a pool that only prefills holds the cache of its prompts alone."""
    device = setup.node.device
    capacity = np.asarray(device.memory_capacity)
    tokens = np.asarray(setup.isl, float) + (np.asarray(setup.osl, float) if decoding else 0.0)
    kv = kv_bytes(setup, pool, tokens) * pool.batch
    reserved = np.maximum(RESERVED * capacity, CONTEXT)
    return Ledger(weight_bytes(setup, pool), kv, activation_bytes(setup, pool), reserved, capacity)


def weight_bytes(setup: Setup, pool: Pool) -> Array:
    """Bytes of weights on one device.

    Matrices are cut by ``tp`` (keys and values only down to one head), experts by ``moe_tp * moe_ep``, layers by
    ``pp``. Routers, norms, towers and the tables stay in 16 bits, as quantized checkpoints keep them.
    """
    model = setup.model
    tp = np.asarray(pool.tp, float)
    cut = np.asarray(pool.moe_tp, float) * pool.moe_ep
    attention, ffn, experts = (BYTES[np.asarray(a, np.intp)] for a in (setup.attention, setup.ffn, setup.experts))
    layers: Array = np.zeros(())
    for block in model.blocks:
        held = _cut(block.linears, tp) * ffn + block.norms * BF16_BYTES
        if block.mixer is not None:
            held = held + _cut(mixer_linears(block.mixer, model.hidden), tp, block.mixer) * attention
            held = held + block.mixer.extra * BF16_BYTES
        if block.ffn is not None:
            met = ffn_linears(block.ffn, model.hidden)
            held = held + _cut([x for x in met if x.name != "router"], tp) * ffn
            held = held + _cut([x for x in met if x.name == "router"], tp) * BF16_BYTES
        if isinstance(block.ffn, Experts):
            one = sum(linear.parameters for linear in expert_linears(block.ffn, model.hidden))
            held = held + block.ffn.count * one / cut * experts + block.ffn.extra * BF16_BYTES
        layers = layers + block.count * held
    # With stages the embedding is on the first and the head on the last: no device holds both.
    both = 1.0 if model.tied else np.where(np.asarray(pool.pp) > 1, 1.0, 2.0)
    rest = (model.vocab * model.hidden * both + model.tables + model.tower) / tp + model.extra + _cut(model.linears, tp)
    return np.asarray(layers * unevenness(setup, pool) / pool.pp + rest * BF16_BYTES)


def _cut(linears: Sequence[Linear], tp: Array, mixer: Mixer | None = None) -> Array:
    """Parameters of some matrices on one of ``tp`` devices."""
    total: Array = np.zeros(())
    for linear in linears:
        total = total + (linear.parameters if linear.shard == "replicate" else linear.parameters / tp)
        if linear.name == "qkv" and isinstance(mixer, Attention):
            cached = (linear.out - mixer.heads * mixer.head_dim) * linear.inp
            total = total + cached * np.maximum(0.0, 1 / mixer.kv_heads - 1 / tp)
    return total


def kv_bytes(setup: Setup, pool: Pool, tokens: Array) -> Array:
    """Bytes on one device that one request of ``tokens`` tokens keeps: its cache, and recurrent states in 32 bits."""
    model, tp = setup.model, np.asarray(pool.tp, float)
    states = sum(b.count * state_elements(b.mixer) for b in model.blocks if b.mixer is not None) / tp
    cache = sequence_elements(model, tokens, tp) - states
    held = cache * BYTES[np.asarray(setup.kv, np.intp)] + states * STATE_BYTES
    return np.asarray(held * unevenness(setup, pool) / pool.pp)


def activation_bytes(setup: Setup, pool: Pool) -> Array:
    """Bytes of activations at the peak of a step of ``chunk`` tokens: residual, and the widest product's in and out."""
    model = setup.model
    tp = np.asarray(pool.tp, float)
    widest = 0.0
    for block in model.blocks:
        match block.ffn:
            case Dense(inter=inter, gated=gated):
                widest = max(widest, inter * (3 if gated else 2))
            case Experts() as ffn:
                widest = max(widest, ffn.topk * ffn.inter * (3 if ffn.gated else 2) + ffn.shared_inter * 3)
        if isinstance(block.mixer, Attention):
            widest = max(widest, (block.mixer.heads + 2 * block.mixer.kv_heads) * block.mixer.head_dim)
    rows = np.asarray(setup.chunk, float)
    logits = np.asarray(pool.batch, float) * model.vocab * 4.0 / tp
    return np.asarray(rows * (4 * model.hidden + widest / tp) * BF16_BYTES + logits)


def largest_batch(setup: Setup, pool: Pool, decoding: bool = True) -> Array:
    """The most requests that one attention replica can hold; below 1 where not even the weights fit."""
    # What is used grows by the same for each request.
    none, one = (ledger(setup, replace(pool, batch=b), decoding) for b in (0, 1))
    return np.floor((none.capacity - none.used) / (one.used - none.used))
