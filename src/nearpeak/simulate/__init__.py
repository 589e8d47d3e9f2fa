"""Simulation of one deployment, event by event: serving under real traffic, policies, pipelines, streams and sharing.

Here live arrivals meeting an engine's steps, the policies that compose those steps, and the schedules inside a device
or a pipeline. Here live no step times (``cost``), no fleets of unlike devices (``fleet``), no search (``plan``), and
no torch: the same policies drive a real model in ``decode``.
"""

from nearpeak.topic import Topic, topics_of

_MODULES: tuple[str, ...] = (
    "apps",
    "confidential",
    "layer_streaming",
    "nano_batch",
    "pipeline",
    "split",
)
"""Modules that hold a ``TOPIC``."""


def topics() -> dict[str, Topic]:
    """Every topic by its name. Modules are imported here, so that the room costs nothing."""
    return topics_of(__name__, _MODULES)
