"""What `nearpeak search` answers: the subjects of this room and of ``inference`` that a person can call."""

from nearpeak.topic import Topic, topics_of

_SEARCH: tuple[str, ...] = (
    "asynchronous",
    "beliefs",
    "constrained_in_context",
    "coreset_configurations",
    "exchange_rate",
    "few_switches",
    "freeze_thaw",
    "games",
    "graphs",
    "kernel_evolution",
    "large_neighbourhood",
    "marginalized",
    "means",
    "memory_learning",
    "min_max_violation",
    "mixture_replay",
    "multiobjective",
    "preferences",
    "reference",
    "scripted_language",
    "shotgun",
    "sparse",
    "successive_halving",
    "surrogates",
)
_INFERENCE: tuple[str, ...] = ("comparison_topic", "coreset_topic")
"""Modules that hold a ``TOPIC``."""


def topics() -> dict[str, Topic]:
    """The topics by name."""
    found = topics_of("nearpeak.search", _SEARCH) | topics_of("nearpeak.inference", _INFERENCE)
    return dict(sorted(found.items()))
