"""What attention costs without its experts, what experts cost on devices of their own, and what copies of them gain."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import Platform, decode, platform_of
from nearpeak.cost.engine import Engine, engine_on
from nearpeak.cost.operators import moe
from nearpeak.cost.step import unevenness
from nearpeak.errors import UsageError
from nearpeak.fleet import expert_replicas as replicas
from nearpeak.formats import BYTES
from nearpeak.setup import Pool, Setup
from nearpeak.workload import Architecture, Dense, Experts, expert_linears, ffn_linears

Array = NDArray[np.float64]
TOKENS = 4 ** np.arange(2, 7)
"""Tokens of a batch at which the gain of copies is drawn; between them it is interpolated."""
DRAWS = 8
COPIES = np.array([1.0, 1.25, 1.5, 2.0, 3.0, 4.0])
"""Slots over experts at which the gain of copies is drawn; what lies between has the gain of the fewer."""

BESIDE = ("router", "latent_in", "latent_out", "shared_gate")
"""Small matrices of an expert layer that every token meets, and that stay with attention."""


def experts_of(model: Architecture) -> Experts:
    """The expert layers of a model, all alike.

    Raises:
        UsageError: it has none, several kinds, or a dense part beside them.
    """
    found = {b.ffn for b in model.blocks if isinstance(b.ffn, Experts)}
    if len(found) != 1 or next(iter(found)).dense is not None:
        raise UsageError(f"{model.name}: give a model with expert layers of one kind and no dense part beside them")
    return found.pop()


def without_experts(model: Architecture) -> Architecture:
    """What the attention pool holds: all but the routed experts; the router and the shared experts stay.

    Raises:
        UsageError: see ``experts_of``.
    """
    experts_of(model)
    blocks = []
    for block in model.blocks:
        if isinstance(ffn := block.ffn, Experts):
            small = tuple(x for x in ffn_linears(ffn, model.hidden) if x.name in BESIDE)
            shared = Dense(ffn.shared_inter, ffn.gated, ffn.shared_bias) if ffn.shared_inter else None
            block = replace(block, ffn=shared, linears=block.linears + small)
        blocks.append(block)
    return replace(model, blocks=tuple(blocks))


@dataclass(frozen=True, eq=False)
class Parts:
    """One model on one kind of device, ready to be priced.

    Attributes:
        setup: the whole model. bare: its attention pool. platform: in a captured graph. host: the engine's constants.
        ffn: the expert layers. width: values of a token that travels. context: mean tokens in a request's cache.
    """

    setup: Setup
    bare: Setup
    platform: Platform
    host: Engine
    ffn: Experts
    width: int
    context: Array

    @classmethod
    def of(cls, setup: Setup) -> "Parts":
        """The parts of a Setup; its pools and batch are not read."""
        ffn = experts_of(setup.model)
        return cls(
            setup,
            replace(setup, model=without_experts(setup.model)),
            platform_of(setup).in_graph(),
            engine_on(setup.engine, setup.node),
            ffn,
            ffn.hidden or setup.model.hidden,
            np.asarray(setup.isl + np.asarray(setup.osl, float) / 2),
        )

    def layers(self, pp: Array) -> Array:
        """Layers with experts on the way through all stages, a full pipeline waiting for its longest."""
        count = sum(b.count for b in self.setup.model.blocks if isinstance(b.ffn, Experts))
        return np.asarray(count * unevenness(self.setup, Pool(pp=pp)))

    def overhead(self, batch: Array) -> Array:
        """Seconds of the engine's host for a step of ``batch`` requests."""
        return np.asarray(self.host.step + self.host.sequence * batch)

    def attention(self, tp: Array, pp: Array, batch: Array) -> Array:
        """Seconds of all but routed experts, in all layers, for a micro-batch of ``batch`` requests of a replica.

        ``tp``, ``pp``: ``[rows, 1, 1]``, of which few differ. ``batch``: ``[micro-batches, batches]``.
        """
        layouts, row = np.unique(np.stack([tp.ravel(), pp.ravel()]), axis=1, return_inverse=True)
        pool = Pool(*layouts[:, :, None, None])
        kernels = decode(self.platform, self.bare, pool, batch * pool.pp, self.context).total
        return np.asarray(kernels[row.ravel()] * self.host.graph + self.overhead(batch))

    def experts(self, pp: Array, tokens: Array, devices: Array) -> Array:
        """Seconds of routed experts in all layers, whole ones dealt to ``devices``, one copy of each."""
        ffn, dealt = self.ffn, np.ceil(self.ffn.count / devices) * devices
        layer = moe(
            self.platform, tokens, self.width, ffn.inter, ffn.topk, dealt, 1, devices, self.setup.experts,
            gated=ffn.gated,
        )  # fmt: skip
        return np.asarray(layer * self.layers(pp) * self.host.graph)

    def slots(self, room: Array, pp: Array) -> Array:
        """Experts of each layer that ``room`` bytes of a device hold."""
        one = sum(x.parameters for x in expert_linears(self.ffn, self.setup.model.hidden))
        held = one * BYTES[np.asarray(self.setup.experts, np.intp)] * self.layers(pp) / pp
        return np.asarray(np.floor(np.maximum(room, 0.0) / held))

    def gain(self, devices: Array, slots: Array, tokens: Array, seed: int) -> Array:
        """Seconds of experts with copies, placed and chosen as in ``expert_replicas``, over those without."""
        share = slots * devices / self.ffn.count
        level = COPIES[np.maximum(np.searchsorted(COPIES, share, side="right") - 1, 0)]
        held = np.broadcast_arrays(devices, np.maximum(np.floor(level * self.ffn.count / devices), 1.0))
        cases, index = np.unique(np.stack([a.ravel() for a in held]), axis=1, return_inverse=True)
        table = np.array([_gain(self, int(n), int(s), seed) for n, s in cases.T])
        at = np.clip(np.log(tokens / TOKENS[0]) / np.log(TOKENS[1] / TOKENS[0]), 0.0, TOKENS.size - 1.0)
        low = np.minimum(at.astype(np.int64), TOKENS.size - 2)
        row = index.reshape(held[0].shape)
        return np.asarray(table[row, low] * (low + 1 - at) + table[row, low + 1] * (at - low))


@cache
def _routed(experts: int, topk: int, seed: int) -> tuple[tuple[replicas.Ints, Array], ...]:
    """For each of ``TOKENS``: tokens of each expert in ``DRAWS`` batches, and their mean over as many others."""
    hot = np.random.default_rng(seed).permutation(experts)
    found = []
    for tokens in TOKENS.tolist():
        popular = replicas.popularity(experts, tokens)[hot]
        past = replicas.route(popular, tokens, topk, DRAWS, seed + 1).mean(axis=0)
        found.append((replicas.route(popular, tokens, topk, DRAWS, seed), past))
    return tuple(found)


def _gain(at: Parts, devices: int, slots: int, seed: int) -> Array:
    """The gain of copies for each of ``TOKENS``: the slowest device with them over the slowest without.

    A device is priced by the distinct experts and the rows that it is dealt: a block of so many experts, evenly loaded.
    """
    ffn, gains = at.ffn, []
    alone = replicas.in_blocks(ffn.count, devices)
    for tokens, (rows, past) in zip(TOKENS.tolist(), _routed(ffn.count, ffn.topk, seed), strict=True):
        seconds = []
        for hosts in (alone, replicas.place(past, devices, max(slots, -(-ffn.count // devices)))):
            choice = replicas.greedy(rows, hosts)
            met, held = replicas.activated(choice, devices), replicas.carried(choice, rows, devices)
            layer = moe(
                at.platform, float(tokens), at.width, ffn.inter, np.maximum(held, 1) / tokens, np.maximum(met, 1), 1, 1,
                at.setup.experts, gated=ffn.gated, skew=0.0,
            )  # fmt: skip
            seconds.append(layer.max(axis=1).mean())
        gains.append(min(1.0, seconds[1] / seconds[0]))
    return np.array(gains)
