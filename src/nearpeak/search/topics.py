"""What `nearpeak search` answers: the subjects of this room and of ``inference`` that a person can call."""

from nearpeak.topic import Topic, topics_of

_SEARCH: tuple[str, ...] = (
    "strategies.asynchronous",
    "strategies.beliefs",
    "strategies.constrained_in_context",
    "solvers.coreset_configurations",
    "strategies.exchange_rate",
    "strategies.few_switches",
    "trials.freeze_thaw",
    "strategies.games",
    "strategies.graphs",
    "surrogates.kernel_evolution",
    "solvers.large_neighbourhood",
    "surrogates.marginalized",
    "surrogates.means",
    "solvers.memory_learning",
    "solvers.min_max_violation",
    "trials.mixture_replay",
    "populations.multiobjective",
    "strategies.preferences",
    "reference",
    "strategies.scripted_language",
    "strategies.shotgun",
    "surrogates.sparse",
    "trials.successive_halving",
    "surrogates.tournament",
)
_INFERENCE: tuple[str, ...] = ("comparison_topic", "coreset_topic")
"""Modules that hold a ``TOPIC``."""


def topics() -> dict[str, Topic]:
    """The topics by name."""
    found = topics_of("nearpeak.search", _SEARCH) | topics_of("nearpeak.inference", _INFERENCE)
    return dict(sorted(found.items()))
