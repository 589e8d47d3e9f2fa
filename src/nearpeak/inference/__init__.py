"""Probabilistic models and statistics: what surrogates, calibration intervals and comparisons of algorithms stand on.

Here live samplers (``hmc``) and their diagnostics, a hierarchical model of runs over problems (``mixed``) and what it
says of algorithms (``comparison``, ``fallback``), and Gaussian processes for many rows (``sparse_gp``: the bound, its
training and its measures; ``coreset_gp`` and ``svgp``: two variational families of it). Here live no search, which is
``nearpeak.search`` and stands on this room, and nothing of GPUs. Importing the room loads none of its modules; torch is
imported inside the functions that train.
"""

from nearpeak.topic import Topic, topics_of

__all__ = ["topics"]

_MODULES: tuple[str, ...] = ("comparison_topic", "coreset_topic")
"""Modules that hold a ``TOPIC``."""


def topics() -> dict[str, Topic]:
    """Every topic by its name, in alphabetical order. Modules are imported here, so that the room costs nothing."""
    return topics_of(__name__, _MODULES)
