"""Closed forms and bounds that a person can call: what long context costs, where the throughput knee is, what a format
pays; each with a topic of ``nearpeak explain`` that fills in the numbers of the person's own case.

One module a subject: functions over arrays with their formula and paper, then a ``TOPIC``. Here live no search
(``plan``) and no events (``simulate``).
"""

from nearpeak.topic import GPU, MODEL, REQUIRED, Explanation, Option, Table, Topic, numbers, require_positive, topics_of

__all__ = [
    "GPU",
    "MODEL",
    "REQUIRED",
    "Explanation",
    "Option",
    "Table",
    "Topic",
    "numbers",
    "require_positive",
    "topics",
]

_MODULES: tuple[str, ...] = (
    "finetune",
    "footprint",
    "hybrid_moe",
    "inference_scaling",
    "knee",
    "launches",
    "long_context",
    "number_format",
    "utilization",
)
"""Modules that hold a ``TOPIC``."""


def topics() -> dict[str, Topic]:
    """Every topic by its name, in alphabetical order. Modules are imported here, so that the room costs nothing."""
    return topics_of(__name__, _MODULES)
