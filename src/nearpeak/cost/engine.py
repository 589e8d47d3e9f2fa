"""What an engine adds to a step beyond its kernels: scheduling, launching, sampling on the host, detokenization.

The constants are properties of an engine, fitted on served models by ``tools/fit_engines.py``; they ship as data.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from nearpeak.errors import UnknownName


@dataclass(frozen=True)
class Engine:
    """Host-side constants of an engine.

    Attributes:
        step: seconds of every step. sequence: seconds a step spends on each sequence in it.
        graph: share of the kernels' own times that is left in a captured graph, where one starts while another ends.
        layer: seconds to launch one layer's kernels from the host, where no captured graph does.
        request: seconds to receive, tokenize and admit a request.
        waves: in a closed loop, the share of the other requests' prompts that are served before one's first token.
        intervals: per way of serving (agg, disagg, and disagg with an unknown number of workers), evidence and figure,
            the factors between which 80 % of measurements lay.
    """

    step: float
    sequence: float
    graph: float
    layer: float
    request: float
    waves: float
    intervals: dict[str, dict[str, dict[str, tuple[float, float]]]]


@cache
def engines() -> dict[str, Engine]:
    """All calibrated engines by name."""
    data: Any = files("nearpeak.cost").joinpath("data/engines.json").read_bytes()
    return msgspec.json.decode(data, type=dict[str, Engine])


def engine(name: str) -> Engine:
    """The constants of an engine.

    Raises:
        UnknownName: no such engine.
    """
    try:
        return engines()[name]
    except KeyError:
        raise UnknownName("engine", name, engines()) from None
