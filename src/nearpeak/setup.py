"""A Setup: what is run, on what, and how. The noun that every verb speaks of.

Numeric fields are NumPy arrays (or plain numbers) that broadcast against each other: a Setup may hold one
configuration or a million, and the cost functions do not know the difference. What cannot be an array (the model,
the device, the engine) is one per Setup; number formats are arrays of codes (``nearpeak.formats``).
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nearpeak.formats import code
from nearpeak.hardware import Node
from nearpeak.workload import Architecture

BF16 = code("bf16")
Numeric = float | NDArray[Any]
"""A number, or an array of them that broadcasts."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Engine instances of one kind: how each is laid out, how many there are, how many requests each runs at once.

    Attributes (arrays that broadcast):
        tp: tensor parallelism of attention and dense parts. pp: pipeline stages.
        dp: attention replicas inside an instance that share its experts ("data-parallel attention").
        moe_tp, moe_ep: how the ``tp * dp`` devices of a stage split the experts: each cut ``moe_tp`` ways, and
            ``moe_ep`` groups of them. Their product is ``tp * dp`` (1 and 1 in dense models).
        replicas: independent instances.
        batch: requests in flight in each attention replica.
    """

    tp: Numeric = 1
    pp: Numeric = 1
    dp: Numeric = 1
    moe_tp: Numeric = 1
    moe_ep: Numeric = 1
    replicas: Numeric = 1
    batch: Numeric = 1

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The numeric fields by name."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}

    @property
    def instance_devices(self) -> NDArray[Any]:
        """Devices of one instance."""
        return np.asarray(self.tp * self.pp * self.dp)

    @property
    def devices(self) -> NDArray[Any]:
        """Devices of the whole pool."""
        return np.asarray(self.instance_devices * self.replicas)

    @property
    def in_flight(self) -> NDArray[Any]:
        """Requests in flight in the whole pool."""
        return np.asarray(self.batch * self.dp * self.replicas)


@dataclass(frozen=True, eq=False)
class Setup:
    """One serving configuration, or arrays of them.

    Attributes:
        model, node, engine: one each; ``node`` gives the device and its links. ``engine`` may name a version of its
            own constants: ``vllm@0.12.0``.
        isl, osl: mean tokens of a prompt and of an answer.
        decode: the pool that decodes; in aggregated serving it also prefills.
        prefill: the pool that only prefills, in disaggregated serving; None in aggregated.
        attention, ffn, experts, kv: format codes of attention's matrices, of dense feed-forward matrices, of expert
            matrices, of the KV cache.
        chunk: most tokens that one step prefills, per attention replica: longer prompts take several steps, short ones
            share one. It bounds activations and is what the engine is told.
        draft: tokens that multi-token prediction drafts for each sequence and step, 0 for none.
        acceptance: probability that a drafted token is accepted when all before it are.
    """

    model: Architecture
    node: Node
    engine: str
    isl: Numeric
    osl: Numeric
    decode: Pool
    prefill: Pool | None = None
    attention: Numeric = BF16
    ffn: Numeric = BF16
    experts: Numeric = BF16
    kv: Numeric = BF16
    chunk: Numeric = 8192
    draft: Numeric = 0
    acceptance: Numeric = 0.0

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The Setup's own numeric fields by name, without those of its pools."""
        names = ("isl", "osl", "attention", "ffn", "experts", "kv", "chunk", "draft", "acceptance")
        return {name: np.asarray(getattr(self, name)) for name in names}

    @property
    def emitted(self) -> NDArray[np.float64]:
        """Mean tokens of a sequence that one decode step emits: its own, and the drafted ones up to the first rejected.

        ``1 + a + a^2 + ... + a^draft`` at acceptance ``a`` (Leviathan et al. 2023, equation 1).
        """
        drafted, accepted = np.asarray(self.draft, float), np.asarray(self.acceptance, float)
        below = np.where(accepted < 1, accepted, 0.0)
        return np.where(accepted < 1, (1 - below ** (drafted + 1)) / (1 - below), drafted + 1)

    @property
    def mode(self) -> Literal["agg", "disagg"]:
        """Aggregated: one pool does both. Disaggregated: prefill has a pool of its own."""
        return "agg" if self.prefill is None else "disagg"

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The decode pool, then the prefill pool if there is one."""
        return (self.decode,) if self.prefill is None else (self.decode, self.prefill)

    @property
    def devices(self) -> NDArray[Any]:
        """Devices in all."""
        return self.decode.devices if self.prefill is None else self.decode.devices + self.prefill.devices

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that all numeric fields broadcast to; ``()`` for a single configuration."""
        own = [a.shape for a in self.arrays().values()]
        return np.broadcast_shapes(*own, *(a.shape for pool in self.pools for a in pool.arrays().values()))

    def at(self, index: tuple[int, ...]) -> "Setup":
        """The one configuration at ``index`` of ``shape``."""

        def pick(array: NDArray[Any]) -> int | float:
            value: int | float = np.broadcast_to(array, self.shape)[index].item()
            return value

        def one(pool: Pool) -> Pool:
            return Pool(**{name: pick(a) for name, a in pool.arrays().items()})

        own: dict[str, Any] = {name: pick(a) for name, a in self.arrays().items()}
        prefill = None if self.prefill is None else one(self.prefill)
        return replace(self, decode=one(self.decode), prefill=prefill, **own)
