"""Energy, money and carbon of a served token, from a prediction's rates and the device's datasheet."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.serving import Prediction
from nearpeak.cost.step import Step
from nearpeak.hardware import Node
from nearpeak.setup import Setup

Array = NDArray[np.float64]

GRID_CARBON = 0.445 / 3.6e6
"""kg CO2e per joule: the world's mean in 2024, 445 g/kWh (IEA, Electricity 2025)."""
LIFETIME = 4 * 365 * 86400.0
"""Seconds over which what was emitted to make a device is spread: four years, as servers are written off."""
IDLE_SHARE = 0.15
"""Idle over TDP where a device's idle power is not catalogued; H100 and A100 SXM idle at 10 to 18 % of their TDP."""


@dataclass(frozen=True)
class Costs:
    """What serving costs. ``power``: watts of all devices and their share of the nodes. Per *output* token: joules,
    dollars (nan where the device has no catalogued price), kg CO2e (operation and making).
    """

    power: Array
    energy: Array
    dollars: Array
    carbon: Array


def power(node: Node, busy: Array) -> Array:
    """Watts of one device and its share of the node; ``busy``: share of the time that its kernels run."""
    device = node.device
    idle = device.idle_power if device.idle_power is not None else IDLE_SHARE * device.tdp
    return idle + (device.tdp - idle) * np.clip(busy, 0, 1) + node.overhead_power / node.count


def _busy(step: Step, whole: Array) -> Array:
    """Share of a step's ``whole`` seconds in which its kernels run; half of it while devices talk to each other."""
    return (step.total - step.communication / 2) / whole


def costs(setup: Setup, predicted: Prediction, grid_carbon: float = GRID_CARBON) -> Costs:
    """Costs of every Setup, given its prediction. ``grid_carbon``: kg CO2e per joule of electricity."""
    device = setup.node.device
    decoding = _busy(predicted.times.decode, predicted.times.token)
    watts = power(setup.node, decoding) * setup.decode.devices
    if setup.prefill is not None:
        load = np.minimum(predicted.load, 1.0)
        watts = watts + power(setup.node, load * _busy(predicted.times.prefill, predicted.times.prompt)) * (
            setup.prefill.devices
        )
    tokens = predicted.request_rate * np.asarray(setup.osl, float)
    price = np.nan if device.price_per_hour is None else device.price_per_hour
    made = (device.embodied_carbon or 0.0) / LIFETIME * predicted.devices
    return Costs(
        power=watts,
        energy=watts / tokens,
        dollars=price / 3600 * predicted.devices / tokens,
        carbon=(watts * grid_carbon + made) / tokens,
    )
