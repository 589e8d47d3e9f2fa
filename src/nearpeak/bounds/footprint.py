"""The hardware that a run consumes: devices' lives, and the elements that they are made of, beside energy and money.

A device gives ``peak x MFU x lifespan`` FLOP in its life; a run of so many FLOP uses up that share of it. Falk, Kluge
Corrêa, Luccioni, Biber-Freudenberger, van Wynsberghe, "From FLOPs to Footprints: The Resource Cost of Artificial
Intelligence", arXiv 2512.04142 (2025). What devices are made of is data (``data/materials.toml``), where each mass and
each composition says whether it was weighed, printed in a product brief, or estimated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost import power
from nearpeak.cost.money import GRID_CARBON
from nearpeak.cost.platform import BF16, Work
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.hardware import Device, Node, link, node_of
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, numbers, require_positive
from nearpeak.workload import parameters, read

Array = NDArray[np.float64]

YEAR = 365 * 86400.0
"""Seconds."""
WAFER = 775e-6
"""Thickness of a 300 mm wafer, m (SEMI M1)."""
SILICON = 2329.0
"""Density, kg/m³."""
HEAVY = ("Cu", "Fe", "Sn", "Ni", "Zn", "Mn", "Sb", "Ag", "Au", "Pd")
"""Heavy metals: denser than 5 g/cm³."""


class Material(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a part is made of: shares of its mass by element, which sum to 1."""

    title: str
    source: str
    elements: dict[str, float]


class Parts(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Masses of a dismantled device, kg: in all, of its heat sink, of its casing. ``form``: module or card."""

    form: str
    mass: float
    heatsink: float
    casing: float
    source: str

    @property
    def board(self) -> float:
        """The board with its dies."""
        return self.mass - self.heatsink - self.casing


class _Data(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    material: dict[str, Material]
    device: dict[str, Parts]


@dataclass(frozen=True)
class Bill:
    """What one device is made of. ``elements``: kg by symbol, the heaviest first. ``estimated``: it was not weighed."""

    device: str
    elements: Mapping[str, float]
    source: str
    estimated: bool

    @property
    def mass(self) -> float:
        """Kg in all."""
        return sum(self.elements.values())

    @property
    def heavy_share(self) -> float:
        """Share of heavy metals in the mass."""
        return sum(self.elements.get(e, 0.0) for e in HEAVY) / self.mass


@dataclass(frozen=True, eq=False)
class Footprint:
    """What runs consume; arrays of one shape.

    Attributes:
        devices: lives of a device. device_seconds: seconds of one device.
        energy: joules, with the node's share. carbon: kg CO2e, of electricity and of making the devices.
        dollars: rent at the list price; None where the device has no catalogued price.
        mass: kg of devices used up. elements: the same by symbol.
        bill: of one device.
    """

    devices: Array
    device_seconds: Array
    energy: Array
    carbon: Array
    dollars: Array | None
    mass: Array
    elements: Mapping[str, Array]
    bill: Bill


def training_flops(active: ArrayLike, tokens: ArrayLike) -> Array:
    """FLOP to train: 6 for each parameter that a token meets, and token (Kaplan et al. 2020).

    Raises:
        UsageError: a count is not positive.
    """
    require_positive(active=active, tokens=tokens)
    return np.asarray(6.0 * np.asarray(active, float) * np.asarray(tokens, float))


def lives(flops: ArrayLike, peak: ArrayLike, mfu: ArrayLike, lifespan: ArrayLike) -> Array:
    """Devices that a run uses up: ``flops / (peak mfu lifespan)``. Arguments broadcast.

    Args:
        flops: FLOP of the run. peak: FLOP/s of a device. mfu: achieved share of it. lifespan: seconds.

    Raises:
        UsageError: an argument is not positive, or ``mfu`` above 1.
    """
    return np.asarray(_device_seconds(flops, peak, mfu) / _lifespan(lifespan))


def training(
    node: Node, flops: ArrayLike, mfu: ArrayLike, lifespan: ArrayLike, grid_carbon: ArrayLike = GRID_CARBON
) -> Footprint:
    """What training runs consume on a node's devices, multiplying in bf16.

    Args:
        flops: FLOP of the run (``training_flops``). mfu: achieved share of the peak. lifespan: seconds of a device.
        grid_carbon: kg CO2e per joule of electricity.

    Raises:
        UsageError: an argument is not positive, or ``mfu`` above 1; the device multiplies no bf16 or fp16.
    """
    rates = node.device.rates
    peak = rates.get("bf16", rates.get("fp16"))
    if peak is None:
        raise UsageError(f"device {node.device.name!r} has no bf16 or fp16 rate; it has {', '.join(rates)}")
    seconds = _device_seconds(flops, peak, mfu)
    # Of each second, products take the MFU's share at the peak.
    share, none = np.asarray(mfu, float), np.zeros(())
    watts = power.watts(node.device, Work("gemm", np.asarray(BF16), share, none, none, ()), np.ones(()))
    return consumed(node, seconds, watts + node.overhead_power / node.count, lifespan, grid_carbon)


def consumed(
    node: Node,
    device_seconds: ArrayLike,
    watts: ArrayLike,
    lifespan: ArrayLike,
    grid_carbon: ArrayLike = GRID_CARBON,
) -> Footprint:
    """What runs consume that hold devices for so many seconds in all: of training, or of serving.

    Every array broadcasts, so that a planner may price all its Setups at once and take any field as an objective.

    Args:
        device_seconds: devices times seconds. watts: of one device with its share of the node.
        lifespan: seconds that a device lives. grid_carbon: kg CO2e per joule of electricity.

    Raises:
        UsageError: an argument is not positive; the device's bill of materials is not known (see ``bill``).
    """
    require_positive(device_seconds=device_seconds, watts=watts, grid_carbon=grid_carbon)
    device, one = node.device, bill(node.device)
    held = np.asarray(device_seconds, float)
    drawn, grid = np.asarray(watts, float), np.asarray(grid_carbon, float)
    used, held, drawn, grid = np.broadcast_arrays(held / _lifespan(lifespan), held, drawn, grid)
    energy = held * drawn
    made = device.embodied_carbon
    if made is None:
        raise NearpeakError(f"device {device.name!r} has no embodied_carbon in the catalogue; describe it with one")
    price = device.price_per_hour
    return Footprint(
        devices=used,
        device_seconds=held,
        energy=energy,
        carbon=energy * grid + used * made,
        dollars=None if price is None else held / 3600 * price,
        mass=used * one.mass,
        elements={symbol: used * mass for symbol, mass in one.elements.items()},
        bill=one,
    )


def _device_seconds(flops: ArrayLike, peak: ArrayLike, mfu: ArrayLike) -> Array:
    require_positive(flops=flops, peak=peak, mfu=mfu)
    if np.any(np.asarray(mfu) > 1):
        raise UsageError(f"mfu is a share of the peak, at most 1, not {np.max(mfu):g}")
    return np.asarray(np.asarray(flops, float) / (np.asarray(peak, float) * np.asarray(mfu, float)))


def _lifespan(lifespan: ArrayLike) -> Array:
    require_positive(lifespan=lifespan)
    return np.asarray(lifespan, float)


def bill(device: Device) -> Bill:
    """The elements of one device.

    Parts that were weighed are taken as they were. For another GPU or accelerator heat sink and casing are the medians
    per watt of the weighed devices of its form, and the board their median; ``estimated`` says so.

    Raises:
        UsageError: the device is a CPU, an APU or an FPGA, none of which was weighed.
    """
    data = _data()
    parts = data.device.get(device.name)
    estimated = parts is None
    if parts is None:
        parts = _like(device, data.device)
    silicon = min(parts.board, (device.die_area or 0.0) * WAFER * SILICON)
    masses = {
        f"heatsink_{parts.form}": parts.heatsink,
        "casing": parts.casing,
        "board": parts.board - silicon,
    }
    elements: dict[str, float] = {"Si": silicon}
    for material, mass in masses.items():
        for symbol, share in data.material[material].elements.items():
            elements[symbol] = elements.get(symbol, 0.0) + mass * share
    ordered = dict(sorted(elements.items(), key=lambda item: -item[1]))
    return Bill(device.name, ordered, parts.source, estimated)


def _like(device: Device, weighed: Mapping[str, Parts]) -> Parts:
    if device.kind not in ("gpu", "accelerator", "tpu"):
        raise UsageError(
            f"nothing is known of what device {device.name!r}, a {device.kind}, is made of; "
            f"weighed: {', '.join(sorted(weighed))}; estimated: any GPU, TPU or accelerator"
        )
    from nearpeak.hardware import device as catalogued

    joined = link(device.scale_up).kind if device.scale_up else "pcie"
    form = "card" if joined == "pcie" else "module"
    known = {name: parts for name, parts in weighed.items() if parts.form == form}

    def per_watt(part: str) -> float:
        return float(np.median([getattr(p, part) / catalogued(n).tdp for n, p in known.items()]))

    board = float(np.median([p.board for p in known.values()]))
    heatsink, casing = per_watt("heatsink") * device.tdp, per_watt("casing") * device.tdp
    source = f"estimated: heat sink and casing per watt, and board, of {', '.join(sorted(known))}"
    return Parts(form, heatsink + casing + board, heatsink, casing, source)


@cache
def _data() -> _Data:
    text = files("nearpeak.bounds").joinpath("data/materials.toml").read_bytes()
    data = msgspec.toml.decode(text, type=_Data)
    for name, material in data.material.items():
        total = sum(material.elements.values())
        if abs(total - 1) > 1e-9:
            raise NearpeakError(f"materials.toml: the elements of {name!r} sum to {total:g}, not 1")
    for name, parts in data.device.items():
        if not 0 < parts.heatsink + parts.casing < parts.mass:
            raise NearpeakError(f"materials.toml: the parts of {name!r} leave no mass for its board")
    return data


def _explain(model: str, gpu: str, tokens: float, mfu: float, years: float, mfus: tuple[float, ...]) -> Explanation:
    node = node_of(gpu)
    flops = training_flops(parameters(read(model)).active, tokens)
    run = training(node, flops, mfu, years * YEAR)
    grid = training(node, flops, np.asarray(mfus)[:, None], np.array([1.0, 2.0, 3.0, 5.0]) * YEAR)
    spans = ["1 year", "2 years", "3 years", "5 years"]
    made = run.devices * (node.device.embodied_carbon or 0.0)
    weighed = "estimated" if run.bill.estimated else "weighed"
    first = ", ".join(f"{e} {m:.3g} kg" for e, m in list(run.elements.items())[:5])
    return Explanation(
        figures={
            "training_flop": float(flops),
            "devices": float(run.devices),
            "device_years": float(run.device_seconds / YEAR),
            "energy": float(run.energy),
            "kg_co2e": float(run.carbon),
            "dollars": None if run.dollars is None else float(run.dollars),
            "kg_of_devices": float(run.mass),
            "heavy_metals_share": run.bill.heavy_share,
        },
        tables=(
            Table(
                "Devices by MFU and lifespan",
                tuple(
                    {"mfu_share": m} | dict(zip(spans, line, strict=True))
                    for m, line in zip(mfus, grid.devices.tolist(), strict=True)
                ),
            ),
            Table.of(
                f"Elements ({run.bill.device}, {weighed})",
                element=list(run.elements),
                kg_in_one=list(run.bill.elements.values()),
                kg=[float(m) for m in run.elements.values()],
            ),
        ),
        says=(
            f"The run uses up {float(run.devices):.3g} devices at {100 * mfu:.0f} % MFU and {years:g} years: {first}.",
            f"Making them is {100 * float(made / run.carbon):.0f} % of the carbon; the rest is electricity.",
            "Both MFU and lifespan divide the count: three times either saves two thirds of the devices, both together "
            "eight ninths.",
        ),
    )


TOPIC = Topic(
    name="footprint",
    title="How many devices, and what elements, does a training run use up?",
    paper="Falk, Kluge Corrêa, Luccioni, Biber-Freudenberger, van Wynsberghe: From FLOPs to Footprints: The Resource "
    "Cost of Artificial Intelligence. arXiv 2512.04142, 2025.",
    options=(
        MODEL,
        GPU,
        Option("tokens", float, "Training tokens.", 15e12),
        Option("mfu", float, "Achieved share of the peak.", 0.4),
        Option("years", float, "Years that a device lives.", 3.0),
        Option("mfus", numbers, "Shares of the peak to compare.", (0.2, 0.3, 0.4, 0.5, 0.6)),
    ),
    explain=_explain,
    example="--model meta-llama/Meta-Llama-3.1-70B --gpu a100_sxm --tokens 15e12 --mfu 0.4 --years 3",
)
