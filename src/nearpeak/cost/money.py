"""Energy, money and carbon of a served token, from a prediction's steps and the device's datasheet."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import power, step_power
from nearpeak.cost.serving import Prediction
from nearpeak.errors import UsageError
from nearpeak.hardware import Node
from nearpeak.setup import Setup

Array = NDArray[np.float64]

GRID_CARBON = 0.445 / 3.6e6
"""kg CO2e per joule: the world's mean in 2024, 445 g/kWh (IEA, Electricity 2025)."""
LIFETIME = 4 * 365 * 86400.0
"""Seconds over which what was emitted to make a device is spread: four years, as servers are written off."""


@dataclass(frozen=True)
class Costs:
    """What serving costs. ``power``: watts of all devices and their share of the nodes. Per *output* token: joules,
    dollars (nan where the device has no catalogued price), kg CO2e (operation and making).
    """

    power: Array
    energy: Array
    dollars: Array
    carbon: Array


def costs(
    setup: Setup,
    predicted: Prediction,
    grid_carbon: float = GRID_CARBON,
    watts: tuple[Array, Array] | None = None,
) -> Costs:
    """Costs of every Setup, given its prediction.

    Args:
        grid_carbon: kg CO2e per joule of electricity.
        watts: of a device in a decode step and in a prefill, where a cap changes them; the uncapped ones if None.
    """
    device, times = setup.node.device, predicted.times
    decoding, prefilling = step_power.watts(setup, predicted) if watts is None else watts
    share = _share_of_node(setup.node)
    if setup.prefill is None:
        # Of a replica's time, prompts take what each costs the others; decode steps run in the rest.
        rate = predicted.request_rate / (np.asarray(setup.decode.replicas, float) * setup.decode.dp)
        prompts = np.minimum(rate * times.occupied, 1.0)
        drawn = (decoding + prompts * (prefilling - decoding) + share) * setup.decode.devices
    else:
        load, waiting = np.minimum(predicted.load, 1.0), power.drawn(device, np.zeros(()))
        drawn = (decoding + share) * setup.decode.devices
        drawn = drawn + (waiting + load * (prefilling - waiting) + share) * setup.prefill.devices
    tokens = predicted.request_rate * np.asarray(setup.osl, float)
    price = np.nan if device.price_per_hour is None else device.price_per_hour
    made = (device.embodied_carbon or 0.0) / LIFETIME * predicted.devices
    return Costs(
        power=drawn,
        energy=drawn / tokens,
        dollars=price / 3600 * predicted.devices / tokens,
        carbon=(drawn * grid_carbon + made) / tokens,
    )


def _share_of_node(node: Node) -> float:
    """Watts of everything in a node that is not an accelerator, for each of them."""
    return node.overhead_power / node.count


@dataclass(frozen=True)
class CapEffect:
    """A figure of a Setup without and with a cap; arrays that broadcast."""

    free: Array
    capped: Array


def cap_effects(setup: Setup, watts_limit: float | None = None, clock: float | None = None) -> dict[str, CapEffect]:
    """What a power limit of every device, or a highest clock, changes, by figure.

    Args:
        watts_limit: watts of a device. clock: over boost.

    Returns:
        ``ttft``, ``tpot`` (seconds), ``tokens_per_second``, ``decode_watts`` and ``prefill_watts`` (of a device),
        ``decode_clock`` and ``prefill_clock`` (lowest of any operator, over boost), ``power`` (of all), and
        ``joules_per_token``.

    Raises:
        UsageError: neither a limit nor a clock is given, or one that the device cannot keep.
    """
    if watts_limit is None and clock is None:
        raise UsageError("no cap given; give a power limit in watts or a clock over boost")
    runs = [step_power.under_cap(setup), step_power.under_cap(setup, watts_limit, clock)]
    bills = [costs(setup, run.prediction, watts=run.watts) for run in runs]
    tokens = np.asarray(setup.osl, float)
    pairs = {
        "ttft": [r.prediction.ttft for r in runs],
        "tpot": [r.prediction.tpot for r in runs],
        "tokens_per_second": [r.prediction.request_rate * tokens for r in runs],
        "decode_watts": [r.watts[0] for r in runs],
        "prefill_watts": [r.watts[1] for r in runs],
        "decode_clock": [r.clock[0] for r in runs],
        "prefill_clock": [r.clock[1] for r in runs],
        "power": [bill.power for bill in bills],
        "joules_per_token": [bill.energy for bill in bills],
    }
    return {name: CapEffect(*map(np.asarray, pair)) for name, pair in pairs.items()}
