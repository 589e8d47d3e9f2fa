"""Lite-GPUs: a GPU split into ``k`` small dies, each a device of its own, joined by co-packaged optics.

After Canakci et al., "Good things come in small packages: Should we build AI clusters with Lite-GPUs?"
(arXiv:2501.10187, 2025). Arithmetic, memory and power are shared out; the die's edge is not: ``k`` dies of 1/k the area
have sqrt(k) times the edge of the one, and the edge ("shoreline") is what memory and network signals leave through.
Small dies yield better, so silicon gets cheaper; every exchange between parts of the former die becomes a link's.
"""

import math
from dataclasses import replace
from typing import Literal

from nearpeak.errors import UsageError
from nearpeak.hardware.catalogue import device as catalogued_device
from nearpeak.hardware.catalogue import link as catalogued_link
from nearpeak.hardware.types import Device, Link, MemoryLevel, Node, Price

YieldModel = Literal["negative_binomial", "poisson", "murphy"]
Shoreline = Literal["none", "memory", "network", "both"]

DEFECT_DENSITY = 1000.0
"""Killer defects per m² (0.1 per cm²) of a mature 5 nm-class process, as TSMC showed for N5 in 2020."""
WAFER_COST = 16988.0
"""Dollars for a processed 300 mm wafer at 5 nm (Khan and Mann, AI Chips, CSET 2020)."""
WAFER_DIAMETER = 0.3
SILICON_SHARE = 0.165
"""Part of a GPU's cost that is its die: 549 dollars by this model of the 3320 that an H100 costs to build (Raymond
James' estimate, 2023)."""
OPTICAL_ENERGY = 6.9e-12
"""Joules per bit of co-packaged optics: 5.5 W for 800 Gb/s (Broadcom Bailly, 2024)."""


def die_yield(
    area: float, defect_density: float, model: YieldModel = "negative_binomial", clustering: float = 3.0
) -> float:
    """Part of the dies that work.

    With A the area (m²) and D the defects per m²: negative binomial (1 + AD/a)^-a with clustering a (Stapper 1983),
    Poisson exp(-AD), Murphy ((1 - exp(-AD)) / AD)².

    Raises:
        UsageError: an argument is not positive (``defect_density`` may be 0), or the model is unknown.
    """
    if area <= 0 or defect_density < 0 or clustering <= 0:
        raise UsageError(f"die_yield({area}, {defect_density}, clustering={clustering}): give positive numbers")
    defects = area * defect_density
    match model:
        case "negative_binomial":
            return float((1 + defects / clustering) ** -clustering)
        case "poisson":
            return math.exp(-defects)
        case "murphy":
            return 1.0 if defects == 0 else float((-math.expm1(-defects) / defects) ** 2)
        case _:
            raise UsageError(f"unknown yield model {model!r}; give negative_binomial, poisson or murphy")


def dies_per_wafer(area: float, diameter: float = WAFER_DIAMETER) -> float:
    """Whole dies on a round wafer: pi d²/4A - pi d/sqrt(2A) (de Vries, 2005).

    Raises:
        UsageError: the die does not fit.
    """
    dies = math.pi * diameter**2 / (4 * area) - math.pi * diameter / math.sqrt(2 * area)
    if dies < 1:
        raise UsageError(f"a die of {area:g} m² does not fit on a wafer of {diameter:g} m")
    return dies


def silicon_cost(
    area: float,
    defect_density: float = DEFECT_DENSITY,
    model: YieldModel = "negative_binomial",
    clustering: float = 3.0,
    wafer_cost: float = WAFER_COST,
) -> float:
    """Dollars for one working die of ``area`` m².

    Raises:
        UsageError: as ``die_yield`` and ``dies_per_wafer``.
    """
    return wafer_cost / (dies_per_wafer(area) * die_yield(area, defect_density, model, clustering))


def silicon_saving(
    area: float,
    k: int,
    defect_density: float = DEFECT_DENSITY,
    model: YieldModel = "negative_binomial",
    clustering: float = 3.0,
) -> float:
    """Silicon dollars per FLOP of ``k`` dies of ``area / k`` over those of one die of ``area``: below 1 is cheaper.

    Raises:
        UsageError: as ``silicon_cost``.
    """
    small = silicon_cost(area / k, defect_density, model, clustering)
    return k * small / silicon_cost(area, defect_density, model, clustering)


def lite(
    device: Device | str,
    k: int,
    *,
    link: str = "optical_cpo",
    shoreline: Shoreline = "none",
    defect_density: float = DEFECT_DENSITY,
    silicon_share: float = SILICON_SHARE,
) -> Device:
    """One of the ``k`` Lite-GPUs that a GPU is split into.

    Rates, capacities, inner bandwidths, power, units (rounded), die and footprint are 1/k of the GPU's. Main memory's
    bandwidth is too, or 1/sqrt(k) where ``shoreline`` gives the added edge to "memory" or "both". List prices are
    1/k with ``silicon_share`` of them following the die's cost.

    Args:
        device: a GPU, or its name.
        k: parts, at least 2.
        link: name of the link that joins the parts.
        shoreline: what the added edge is used for; the network's share is seen in ``lite_node``.
        defect_density: defects per m².
        silicon_share: part of the price that is the die's.

    Raises:
        UnknownName: no device or link is called so.
        UsageError: ``k`` is below 2 or above the device's units, or the die's area is not known.
    """
    whole = catalogued_device(device) if isinstance(device, str) else device
    if not 2 <= k <= whole.units:
        raise UsageError(f"{whole.name} split {k} ways; give k from 2 to {whole.units}, its units")
    if whole.die_area is None:
        raise UsageError(f"the die area of {whole.name} is not known, so its parts cannot be priced; add die_area")
    optics = catalogued_link(link)
    growth = math.sqrt(k) if _checked(shoreline) in ("memory", "both") else 1.0
    main, *inner = (MemoryLevel(m.name, m.capacity / k, m.bandwidth / k) for m in whole.memory)
    cheaper = 1 + silicon_share * (silicon_saving(whole.die_area, k, defect_density) - 1)
    derived = f"derived from {whole.name}, die split {k} ways (arXiv:2501.10187)"
    return replace(
        whole,
        name=f"{whole.name}_lite{k}" + ("" if shoreline == "none" else f"_{shoreline}"),
        title=f"Lite-GPU: 1/{k} of {whole.title}",
        aliases=(),
        rates={rate: peak / k for rate, peak in whole.rates.items()},
        sparse_rates={rate: peak / k for rate, peak in whole.sparse_rates.items()},
        memory=(replace(main, bandwidth=main.bandwidth * growth), *inner),
        units=round(whole.units / k),
        tdp=whole.tdp / k,
        idle_power=None if whole.idle_power is None else whole.idle_power / k,
        scale_up=optics.name,
        die_area=whole.die_area / k,
        embodied_carbon=None if whole.embodied_carbon is None else whole.embodied_carbon / k,
        prices=tuple(Price(p.per_hour / k * cheaper, p.date, f"{derived}; {p.source}") for p in whole.prices),
        sources={**whole.sources, "default": f"{derived}; {whole.sources['default']}"},
    )


def _checked(shoreline: str) -> str:
    if shoreline not in ("none", "memory", "network", "both"):
        raise UsageError(f"unknown shoreline {shoreline!r}; give none, memory, network or both")
    return shoreline


def lite_node(
    node: Node,
    k: int,
    *,
    link: str = "optical_cpo",
    shoreline: Shoreline = "none",
    defect_density: float = DEFECT_DENSITY,
    silicon_share: float = SILICON_SHARE,
) -> Node:
    """A server of equal FLOP/s in which each GPU is ``k`` Lite-GPUs.

    Its ``scale_up`` carries 1/k of the old bandwidth to each part (1/sqrt(k) where ``shoreline`` is "network" or
    "both"), and the old latency plus the optical link's: a message now crosses both. The optics' power is added.

    Raises:
        UnknownName, UsageError: as ``lite``.
        UsageError: the parts need more bandwidth than the link has.
    """
    part = lite(
        node.device, k, link=link, shoreline=shoreline, defect_density=defect_density, silicon_share=silicon_share
    )
    optics = catalogued_link(link)
    bandwidth = node.scale_up.bandwidth / (math.sqrt(k) if shoreline in ("network", "both") else k)
    if bandwidth > optics.bandwidth:
        raise UsageError(f"{part.name} needs {bandwidth:g} bytes/s but link {link!r} carries {optics.bandwidth:g}")
    joined = Link(
        name=f"{link}_{part.name}",
        title=f"{optics.title}, {part.title}",
        kind=optics.kind,
        bandwidth=bandwidth,
        latency=node.scale_up.latency + optics.latency,
        source=f"{node.scale_up.source}; split {k} ways; {optics.source}",
    )
    count = node.count * k
    return replace(
        node,
        name=f"{node.name}_lite{k}" + ("" if shoreline == "none" else f"_{shoreline}"),
        title=f"{node.title}, each GPU as {k} Lite-GPUs",
        device=part,
        count=count,
        scale_up=joined,
        overhead_power=node.overhead_power + count * bandwidth * 8 * OPTICAL_ENERGY,
        source=f"{part.sources['default']}; {node.source}",
        aliases=(),
    )


def blast_radius(node: Node) -> float:
    """Part of a server's arithmetic that one failed device takes away."""
    return 1 / node.count
