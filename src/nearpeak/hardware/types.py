"""What hardware is made of, as frozen values. SI units throughout: bytes, bytes/s, FLOP/s, watts, hertz, metres²."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

DeviceKind = Literal["gpu", "tpu", "accelerator", "apu", "fpga", "cpu"]
LinkKind = Literal[
    "nvlink",
    "xgmi",
    "pcie",
    "ethernet",
    "infiniband",
    "slingshot",
    "cxl",
    "nvme",
    "onchip",
    "optical",
    "ici",
    "upi",
    "thunderbolt",
]


@dataclass(frozen=True)
class MemoryLevel:
    """One level of a memory hierarchy, for the whole device. ``bandwidth`` is read bandwidth, bytes/s."""

    name: str
    capacity: float
    bandwidth: float


@dataclass(frozen=True)
class Price:
    """A list price for one device and hour, in dollars, when it was read and where."""

    per_hour: float
    date: str
    source: str


@dataclass(frozen=True)
class Link:
    """A connection between devices or nodes. ``bandwidth``: bytes/s in each direction; ``latency``: seconds one way."""

    name: str
    title: str
    kind: LinkKind
    bandwidth: float
    latency: float
    source: str


@dataclass(frozen=True)
class Device:
    """One accelerator (or CPU), as its datasheet describes it.

    Attributes:
        name: identifier, e.g. ``h100_sxm``.
        rates: peak dense FLOP/s (OP/s for integers) by rate key: fp64 and fp32 (vector units), fp64_tensor and
            fp32_tensor (matrix units), tf32, bf16, fp16, fp8, fp6, int8, fp4, int4. A format the device cannot multiply
            natively is absent. Shorter floats accumulate in fp32.
        sparse_rates: the same with 2:4 structured sparsity, where the device has it.
        memory: levels from main memory inwards, each faster than the one before. A level whose bandwidth is not
            known is left out.
        units: streaming multiprocessors, compute units or cores.
        clock: boost clock, Hz.
        tdp, idle_power: watts.
        scale_up: name of the link to its peers in a node; ``host_link`` to the host.
        single_thread: PassMark single-thread points, CPUs only.
        die_area: m², all compute dies together. embodied_carbon: kg CO2e to make one.
        prices: list prices per hour.
        sources: figure name (or "default") -> where it was read.
    """

    name: str
    title: str
    vendor: str
    kind: DeviceKind
    architecture: str
    year: int
    rates: Mapping[str, float]
    memory: tuple[MemoryLevel, ...]
    units: int
    clock: float
    tdp: float
    sources: Mapping[str, str]
    sparse_rates: Mapping[str, float] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    idle_power: float | None = None
    base_clock: float | None = None
    scale_up: str | None = None
    host_link: str | None = None
    single_thread: float | None = None
    die_area: float | None = None
    embodied_carbon: float | None = None
    prices: tuple[Price, ...] = ()

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def memory_capacity(self) -> float:
        """Bytes of main memory."""
        return self.memory[0].capacity

    @property
    def memory_bandwidth(self) -> float:
        """Bytes/s of main memory."""
        return self.memory[0].bandwidth

    @property
    def price_per_hour(self) -> float | None:
        """Dollars an hour for one device: the median list price, or None where none is known."""
        paid = sorted(p.per_hour for p in self.prices)
        return (paid[len(paid) // 2] + paid[(len(paid) - 1) // 2]) / 2 if paid else None


@dataclass(frozen=True)
class Node:
    """One server: ``count`` devices joined by ``scale_up``, hosts, and ``nics`` network ports of ``network``.

    ``overhead_power``: watts of everything that is not an accelerator, at load.
    """

    name: str
    title: str
    device: Device
    count: int
    scale_up: Link
    network: Link | None = None
    nics: int = 0
    host: Device | None = None
    hosts: int = 0
    host_memory: float = 0.0
    overhead_power: float = 0.0
    source: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class StorageTier:
    """A file system of a supercomputer. ``bandwidth``: bytes/s over all its servers."""

    name: str
    capacity: float
    bandwidth: float


@dataclass(frozen=True)
class DragonflyPlus:
    """A Dragonfly+ network (Shpiner et al., HiPINEB 2017): cells of leaf and spine switches, all cells joined.

    In a cell each leaf has one ``link`` to each spine; spine ``i`` of a cell has one to spine ``i`` of each other cell.
    A node's ports go to ``rails`` neighbouring leaves. ``switch_latency``: seconds; ``switch_power``: watts of one.
    """

    cells: int
    leaves: int
    spines: int
    nodes_per_cell: int
    rails: int
    link: Link
    switch_latency: float
    switch_power: float
    source: str

    @property
    def switches(self) -> int:
        """Switches in all cells."""
        return self.cells * (self.leaves + self.spines)


@dataclass(frozen=True)
class Cluster:
    """``count`` nodes of one kind. ``topology`` (see ``topology.py``) gives hops and bisection where it is known.

    ``pue``: power of the whole site over that of the machine; None if unknown.
    """

    name: str
    title: str
    node: Node
    count: int
    source: str = ""
    topology: DragonflyPlus | None = None
    storage: tuple[StorageTier, ...] = ()
    pue: float | None = None

    @property
    def devices(self) -> int:
        """Accelerators in all nodes."""
        return self.count * self.node.count
