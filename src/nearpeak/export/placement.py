"""Which devices of which node each server of a pool gets."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nearpeak.errors import NearpeakError

if TYPE_CHECKING:
    from nearpeak.hardware import Node
    from nearpeak.setup import Pool, Setup

Role = Literal["serve", "prefill", "decode"]

VISIBLE = {"NVIDIA": "CUDA_VISIBLE_DEVICES", "AMD": "HIP_VISIBLE_DEVICES"}
"""The environment variable that pins a process to devices, by vendor (CUDA and HIP programming guides)."""
LARGEST_HOST = 16
"""Devices that one operating system drives at most: two boards of eight. A rack that acts as one node is many hosts."""


@dataclass(frozen=True)
class Servers:
    """The servers of one pool.

    Attributes:
        tp, pp, dp, moe_tp, moe_ep, batch, replicas: as in ``nearpeak.setup.Pool``.
        per_node: servers on one node; 0 where a server spans several nodes.
        span: nodes that one server takes.
        first: number of the first device that the pool may use on its nodes.
        alone: nothing else runs on the pool's nodes.
    """

    role: Role
    tp: int
    pp: int
    dp: int
    moe_tp: int
    moe_ep: int
    batch: int
    replicas: int
    per_node: int
    span: int
    first: int
    alone: bool

    @property
    def devices(self) -> int:
        """Devices of one server."""
        return self.tp * self.pp * self.dp

    @property
    def pinned(self) -> bool:
        """Whether a server must be kept to some of its node's devices."""
        return self.span == 1 and (self.replicas > 1 or not self.alone) and (self.per_node > 1 or not self.alone)

    @property
    def nodes(self) -> int:
        """Nodes that the pool takes."""
        return self.replicas * self.span if self.span > 1 else -(-self.replicas // self.per_node)


def place(setup: "Setup") -> tuple[Servers, ...]:
    """The pools of a plan, decode (or the one that does both) last, on nodes of the plan's kind.

    Two pools share a node where it holds them both, as the cost model has it; otherwise each has nodes of its own.

    Raises:
        NearpeakError: the node is a rack of many hosts, or a server would be cut unevenly among nodes.
    """
    node = setup.node
    if node.count > LARGEST_HOST:
        raise NearpeakError(
            f"{node.title} acts as one node of {node.count} devices but is many hosts, and how it is cut into hosts is "
            "not known here; plan for a server of up to 16 devices, or write the launch files of this plan by hand"
        )
    if setup.prefill is None:
        return (_servers("serve", setup.decode, node, 0, alone=True),)
    both = int(setup.devices) <= node.count
    first = int(setup.prefill.devices) if both else 0
    return (
        _servers("prefill", setup.prefill, node, 0, alone=not both),
        _servers("decode", setup.decode, node, first, alone=not both),
    )


def _servers(role: Role, pool: "Pool", node: "Node", first: int, alone: bool) -> Servers:
    given = {name: int(a) for name, a in pool.arrays().items()}
    devices = given["tp"] * given["pp"] * given["dp"]
    span = -(-devices // node.count)
    if span > 1 and (devices % span or (devices // span) % given["tp"]):
        raise NearpeakError(
            f"a server of {devices} devices (tp {given['tp']}, pp {given['pp']}, dp {given['dp']}) does not divide "
            f"into {span} equal nodes of whole tensor-parallel groups; make tp * pp * dp a multiple of {node.count}"
        )
    per_node = node.count // devices
    if node.device.vendor not in VISIBLE and (min(per_node, given["replicas"]) > 1 or not (alone or span > 1)):
        raise NearpeakError(
            f"how to give a server some of the devices of {node.title} is known for {' and '.join(VISIBLE)} only; "
            "plan for one server on a node"
        )
    return Servers(role, per_node=per_node, span=span, first=first, alone=alone, **given)
