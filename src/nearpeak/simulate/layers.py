"""A model layer by layer on one device: bytes of each, seconds of each, seconds until its weights are there.

What ``cost`` says of a whole model, taken apart: a layer is what a second one like it adds. Everything else of a pass
(embedding, head, sampling) belongs to the last layer.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost import decode, platform_of, prefill
from nearpeak.cost.collectives import collective
from nearpeak.cost.copies import copy
from nearpeak.cost.engine import Engine
from nearpeak.cost.memory import CONTEXT, RESERVED, activation_bytes, kv_bytes, weight_bytes
from nearpeak.cost.operators import elementwise
from nearpeak.cost.platform import Platform
from nearpeak.cost.serving import launched
from nearpeak.cost.step import ACTIVATION, depth
from nearpeak.hardware import Link
from nearpeak.setup import Pool, Setup
from nearpeak.workload import Block

Array = NDArray[np.float64]
SCORE_TRAFFIC = 8 * ACTIVATION
"""Bytes that attention without a fused kernel moves for each score: the product writes it, scaling, mask and softmax
each read and write it, the product with the values reads it."""


@dataclass(frozen=True, eq=False)
class Layers:
    """Layers of a model on one device, in the order in which they run.

    Attributes:
        size: bytes of weights of each, ``[layers]``. rest: bytes that stay on the device (embedding, head, norms).
        kv: bytes of cache that one request keeps in each, ``[layers]``.
    """

    size: Array
    rest: float
    kv: Array


def _alone(setup: Setup, block: Block, count: int) -> Setup:
    """The Setup of a model that has this block alone, so many times."""
    return replace(setup, model=replace(setup.model, blocks=(replace(block, count=count),)))


def _one(setup: Setup, block: Block, of: Callable[[Setup], Any]) -> Any:  # noqa: ANN401 (a number or an array)
    """What one layer adds to a quantity of the model."""
    return of(_alone(setup, block, 2)) - of(_alone(setup, block, 1))


def layers_of(setup: Setup) -> Layers:
    """Bytes of each layer of a Setup's model in its formats, whole on one device."""
    blocks, counts, pool = setup.model.blocks, [b.count for b in setup.model.blocks], Pool()
    tokens = np.asarray(setup.isl, float) + np.asarray(setup.osl, float)
    size = [float(_one(setup, b, lambda s: weight_bytes(s, pool))) for b in blocks]
    kv = [float(_one(setup, b, lambda s: kv_bytes(s, pool, tokens))) for b in blocks]
    rest = float(weight_bytes(_alone(setup, blocks[0], 1), pool)) - size[0]
    return Layers(np.repeat(size, counts), rest, np.repeat(kv, counts))


def scores_seconds(at: Platform, block: Block, batch: ArrayLike, queries: ArrayLike, keys: ArrayLike) -> Array:
    """Seconds that one layer's attention scores take in memory where no fused kernel keeps them on the chip."""
    scores = np.asarray(batch, float) * getattr(block.mixer, "heads", 0) * np.asarray(queries, float) * keys
    return elementwise(at, SCORE_TRAFFIC * scores)


def layer_seconds(setup: Setup, host: Engine, batch: ArrayLike, decoding: bool, eager: bool = False) -> Array:
    """Seconds of each layer of a pass, ``[..., layers]``, its kernels launched one by one; no weights are fetched.

    What a pass does besides its layers (embedding, head, sampling, the engine's own work) is added to the last.

    Args:
        batch: requests, ``[...]``; each decodes one token, or has its whole prompt of ``setup.isl`` tokens processed.
        eager: attention writes its scores to memory, as torch's own operators do.
    """
    at, pool, users = platform_of(setup), Pool(), np.asarray(batch, float)
    context, serial = np.asarray(setup.isl, float) + np.asarray(setup.osl, float) / 2, setup.node.device.kind == "cpu"

    def kernels(s: Setup) -> Array:
        return (decode(at, s, pool, users, context) if decoding else prefill(at, s, pool, users, s.isl)).total  # type: ignore[arg-type]

    def step(s: Setup) -> float:
        return depth(s.model)

    blocks, bare = setup.model.blocks, replace(host, step=0.0)
    span = (1.0, context) if decoding else (setup.isl, setup.isl)
    found = []
    for block in blocks:
        own = _one(setup, block, kernels) + (scores_seconds(at, block, users, *span) if eager else 0.0)
        one = launched(own, _one(setup, block, step), bare, serial)
        found.append(np.broadcast_to(one[..., None], (*users.shape, block.count)))
    seconds = np.concatenate(found, axis=-1)
    ends = kernels(_alone(setup, blocks[0], 1)) - _one(setup, blocks[0], kernels)
    seconds[..., -1] += ends + host.step + host.sequence * users
    return seconds


def fetch_seconds(setup: Setup, size: ArrayLike, devices: int, nvme: Link | None = None, drives: int = 1) -> Array:
    """Seconds until ``size`` bytes of weights are on each of ``devices``: from host memory, or through it from NVMe.

    Each device takes its part over its own link to the host, as pinned memory, and an all-gather joins the parts. NVMe,
    host memory and links work at the same time on the pieces of a layer, so that the slowest sets the pace.

    Raises:
        UsageError: the device has no link to a host.
    """
    at, node, moved = platform_of(setup), setup.node, np.asarray(size, float)
    slowest = np.maximum(copy(at, moved / devices), collective(at, "all_gather", moved, np.asarray(float(devices))))
    if node.host is not None and node.hosts:
        slowest = np.maximum(slowest, moved / (node.host.memory_bandwidth * node.hosts))
    if nvme is not None:
        slowest = np.maximum(slowest, nvme.latency + moved / (nvme.bandwidth * drives))
    return np.asarray(slowest)


def stream_memory(setup: Setup, held: Layers, batch: ArrayLike, buffers: int) -> Array:
    """Bytes on a device that streams: buffers of the largest layer, cache and hidden states of a batch, the rest.

    A whole batch goes through a layer before the next, so hidden states of all its tokens wait there, in and out of the
    layer; what is wide inside of one is made ``chunk`` tokens at a time. An answer of one token leaves no cache behind
    the layer that made it.
    """
    users = np.asarray(batch, float)
    kv = np.where(np.asarray(setup.osl) > 1, held.kv.sum(), held.kv.max()) * users
    hidden = 2 * users * np.asarray(setup.isl, float) * setup.model.hidden * ACTIVATION
    reserved = max(RESERVED * setup.node.device.memory_capacity, CONTEXT)
    inside = activation_bytes(setup, Pool(batch=users))
    return np.asarray(held.rest + buffers * held.size.max() + kv + hidden + inside + reserved)
