"""Many devices: which to rent, how work is dealt to unlike or unreliable ones, how power and memory are shared.

One module a subject: functions and small simulations with their paper, then a ``TOPIC`` of ``nearpeak fleet``. Here
live no engine's iterations (``simulate``) and no search over Setups (``plan``).
"""

from nearpeak.topic import Topic, topics_of

_MODULES: tuple[str, ...] = (
    "capacity",
    "community",
    "decentralized",
    "expert_pools",
    "memory_rack",
    "memory_tiers",
    "mix",
    "number_format",
    "power_cap",
    "replicas",
)
"""Modules that hold a ``TOPIC``."""


def topics() -> dict[str, Topic]:
    """Every topic by its name. Modules are imported here, so that the room costs nothing."""
    return topics_of(__name__, _MODULES)
