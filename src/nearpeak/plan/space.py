"""Which Setups there are: layouts of the devices, formats by technique, batches. Arrays, ready to be priced at once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError
from nearpeak.formats import BLOCKS
from nearpeak.hardware import Node
from nearpeak.setup import Numeric, Pool, Setup
from nearpeak.techniques import Technique, technique, techniques
from nearpeak.workload import Architecture, Attention, Dense, Experts, LatentAttention

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Fleet:
    """Devices to choose from: between ``least`` and ``most`` of one node's device."""

    node: Node
    least: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise UsageError(f"{self.least}..{self.most} devices of {self.node.device.name}: give least..most, from 1")


@dataclass(frozen=True)
class Variant:
    """A Setup with some techniques, and what they leave of the model's quality (the interval's low end)."""

    setup: Setup
    techniques: tuple[Technique, ...]
    quality: float


def variants(base: Setup, allowed: Iterable[str] | None = None) -> list[Variant]:
    """``base`` with every combination of applicable techniques, at most one of a slot, the plain one first.

    Args:
        allowed: names to choose from; all registered ones if None.
    """
    names = None if allowed is None else {technique(name).name for name in allowed}
    chosen = [t for t in techniques().values() if names is None or t.name in names]
    usable = [t for t in chosen if t.needs(base) is None]
    slots: dict[str, list[Technique | None]] = {}
    for one in usable:
        slots.setdefault(one.slot, [None]).append(one)
    found = []
    for combination in product(*slots.values()):
        used = tuple(t for t in combination if t is not None)
        setup, quality = base, 1.0
        for one in used:
            setup = one.effect(setup)
            quality *= one.quality.low
        found.append(Variant(setup, used, quality))
    return found


def whole_blocks(setup: Setup) -> NDArray[np.bool_]:
    """Where no cut of a matrix parts values that share a scale; engines refuse the others. Shaped like the Setup."""
    whole = np.ones((), bool)
    for pool in setup.pools:
        for width, ways, fmt in _cuts(setup, pool):
            whole = whole & (width % (ways * BLOCKS[np.asarray(fmt)]) == 0)
    return whole


def _cuts(setup: Setup, pool: Pool) -> Iterator[tuple[int, Ints, Numeric]]:
    """Widths that a layout cuts, into how many parts, and the format of what is cut."""
    for block in setup.model.blocks:
        if isinstance(block.mixer, Attention):
            yield block.mixer.heads * block.mixer.v_head_dim, np.asarray(pool.tp), setup.attention
        elif isinstance(block.mixer, LatentAttention):
            yield block.mixer.heads * block.mixer.v_dim, np.asarray(pool.tp), setup.attention
        if isinstance(block.ffn, Dense):
            yield block.ffn.inter, np.asarray(pool.tp), setup.ffn
        elif isinstance(block.ffn, Experts):
            yield block.ffn.inter, np.asarray(pool.moe_tp), setup.experts
            yield block.ffn.shared_inter, np.asarray(pool.tp), setup.ffn


def _powers(limit: int) -> list[int]:
    return [2**i for i in range(limit.bit_length()) if 2**i <= limit]


def layouts(model: Architecture, node: Node, engine: str, most: int) -> Pool:
    """Every way to lay one instance out on at most ``most`` devices, as a Pool of arrays ``[layouts]``.

    ``tp`` stays inside a node and divides the heads; ``dp`` (attention replicas around shared experts) is for
    mixtures of experts; experts are cut (``moe_tp``) or spread (``moe_ep``), as the engine's switches allow.
    """
    heads = [b.mixer.heads for b in model.blocks if isinstance(b.mixer, Attention | LatentAttention)]
    experts = [b.ffn for b in model.blocks if isinstance(b.ffn, Experts)]
    widths = [b.ffn.inter for b in model.blocks if isinstance(b.ffn, Dense)]
    rows = []
    for tp, pp, dp in product(_powers(min(most, node.count)), _powers(min(most, model.layers)), _powers(most)):
        group = tp * dp
        if group * pp > most or any(h % tp for h in heads) or any(w % tp for w in widths):
            continue
        if not experts:
            if dp == 1:
                rows.append((tp, pp, 1, 1, 1))
            continue
        for ep in _powers(group):
            cut = group // ep
            whole = ep in (1, group) or engine == "trtllm"
            if whole and all(e.count % ep == 0 and e.inter % cut == 0 for e in experts):
                rows.append((tp, pp, dp, cut, ep))
    tp, pp, dp, moe_tp, moe_ep = np.array(rows, dtype=np.int64).T
    return Pool(tp=tp, pp=pp, dp=dp, moe_tp=moe_tp, moe_ep=moe_ep)


def replicated(pool: Pool, most: int) -> Pool:
    """Every layout in every number of replicas that ``most`` devices hold, as one flat Pool."""
    times = most // pool.instance_devices
    replicas = np.concatenate([np.arange(1, t + 1) for t in times])
    return replace(picked(pool, np.repeat(np.arange(len(times)), times)), replicas=replicas)


def picked(pool: Pool, rows: slice | NDArray[np.generic]) -> Pool:
    """The pool with only these rows of its array fields."""
    return Pool(**{name: a[rows] if a.ndim else a for name, a in pool.arrays().items()})


def batches(most: int) -> Ints:
    """Batch sizes worth pricing up to ``most``: every one to 64, then in steps of about 2 %."""
    steps = np.unique(np.concatenate([np.arange(1, 65), np.geomspace(64, 4096, 210).astype(np.int64)]))
    return steps[steps <= max(most, 1)]


def reshaped(pool: Pool, shape: Sequence[int]) -> Pool:
    """The pool with its array fields in another shape."""
    return Pool(**{name: a.reshape(shape) if a.ndim else a for name, a in pool.arrays().items()})
