"""Decoding for real (torch): an engine that runs a transformers model under the simulator's own policies, layers
streamed from disk or through encryption, and batches without padding.

Works on its own, without planner or simulator. Here live no predictions (``cost``, ``simulate``).
"""

from nearpeak.topic import Topic, topics_of

_MODULES: tuple[str, ...] = (
    "apps",
    "confidential",
    "engine",
    "layer_streaming",
    "packing",
)
"""Modules that hold a ``TOPIC``."""


def topics() -> dict[str, Topic]:
    """Every topic by its name. Modules are imported here, so that the room costs nothing."""
    return topics_of(__name__, _MODULES)
