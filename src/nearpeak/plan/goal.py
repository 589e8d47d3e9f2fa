"""What a plan must reach: one objective and the limits it must keep. SI units."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.money import Costs
from nearpeak.cost.serving import Prediction
from nearpeak.errors import UsageError

Objective = Literal["cost", "throughput", "latency", "energy", "carbon"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Goal:
    """An objective and limits; a limit that is None does not bind.

    Attributes:
        objective: minimize dollars, joules or CO2 per output token, or end-to-end latency; or maximize output
            tokens/s per device.
        ttft, tpot, latency: seconds, at most. rate: requests/s, at least.
        budget: dollars per hour, at most. memory: bytes used on any device, at most.
        accuracy: share of the original model's quality that must remain, 0 to 1.
    """

    objective: Objective = "cost"
    ttft: float | None = None
    tpot: float | None = None
    latency: float | None = None
    rate: float | None = None
    budget: float | None = None
    memory: float | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise UsageError(f"unknown goal {self.objective!r}; choose one of {', '.join(get_args(Objective))}")
        for name in ("ttft", "tpot", "latency", "rate", "budget", "memory"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise UsageError(f"{name} {value} is no limit; give a positive number (seconds, $/h, bytes)")
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise UsageError(f"accuracy {self.accuracy} is no share; give a number from 0 to 1, e.g. 0.98")


def score(goal: Goal, predicted: Prediction, costs: Costs, output: Array) -> Array:
    """What the goal minimizes, for every Setup; nan where it is not known (a device without a price)."""
    match goal.objective:
        case "cost":
            return costs.dollars
        case "energy":
            return costs.energy
        case "carbon":
            return costs.carbon
        case "latency":
            return predicted.latency
        case "throughput":
            return -predicted.request_rate * output / predicted.devices


def excess(goal: Goal, predicted: Prediction, hourly: float) -> dict[str, Array]:
    """Each limit's value over what it allows, for every Setup: above 1 it is broken.

    Args:
        hourly: dollars per hour of one device, nan if not known.
    """
    used = predicted.memory.used
    if predicted.prefill_memory is not None:
        used = np.maximum(used, predicted.prefill_memory.used)
    values = {
        "ttft": predicted.ttft,
        "tpot": predicted.tpot,
        "latency": predicted.latency,
        "rate": 1 / predicted.request_rate,
        "budget": predicted.devices * hourly,
        "memory": used,
    }
    limits = {name: getattr(goal, name) for name in values}
    limits["rate"] = goal.rate and 1 / goal.rate
    return {name: values[name] / limit for name, limit in limits.items() if limit is not None}
