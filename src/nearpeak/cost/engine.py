"""What an engine adds to a step beyond its kernels: scheduling, launching, sampling on the host, detokenization.

The constants are properties of an engine and of its versions, fitted on served models by
``nearpeak.calibrate.engines``; they ship as data. An engine is named ``vllm``, or with a version, ``vllm@0.12.0``: a
version that was measured often enough has constants of its own, drawn towards the engine's; others have the engine's.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from nearpeak.cost.stored import decoded, in_use
from nearpeak.errors import UnknownName
from nearpeak.hardware import Node

SERVER_THREAD = 2900.0
"""PassMark single-thread points of the hosts that the constants were fitted on. The runs do not name them; server parts
of their years lie within a fifth of this (the catalogue's EPYC 9654: 2,893)."""
FASTEST, SLOWEST = 0.5, 2.0
"""How far a host's speed moves the constants at most: single-thread points tell a part of how fast Python runs."""


@dataclass(frozen=True)
class Engine:
    """Constants of an engine on the hosts that it was measured on.

    Attributes:
        step: seconds of every step. sequence: seconds a step spends on each sequence in it.
        graph: share of the kernels' own times that is left in a captured graph, where one starts while another ends.
        layer: seconds to launch the kernels of a plain layer from the host, where no captured graph does (see
            ``step.depth``).
        request: seconds to receive, tokenize and admit a request.
        waves: in a closed loop, the share of the other requests' prompts that are before one's own in the first wave.
        together: in a closed loop, other requests whose prompts come with one's own.
        mixes: whether requests go on decoding in the steps that serve prompts; else they wait.
        reserves: whether it admits a request only where its whole answer has room; else what it holds now.
        intervals: per way of serving (agg, disagg, and disagg with an unknown number of workers), evidence and figure,
            the factors between which 80 % of measurements lay.
        versions: constants of versions that differ from the engine's, by version.
    """

    step: float
    sequence: float
    graph: float
    layer: float
    request: float
    waves: float
    together: float
    mixes: bool
    reserves: bool
    intervals: dict[str, dict[str, dict[str, tuple[float, float]]]] = field(default_factory=dict)
    versions: dict[str, dict[str, float]] = field(default_factory=dict)


def engines() -> dict[str, Engine]:
    """All calibrated engines by name."""
    return _engines(in_use())


@cache
def _engines(folder: Path | None) -> dict[str, Engine]:
    found: dict[str, Engine] = decoded("engines.json", folder, dict[str, Engine])
    return found


def engine(name: str) -> Engine:
    """The constants of an engine, or of one of its versions: ``vllm``, ``vllm@0.12.0``.

    Raises:
        UnknownName: no such engine.
    """
    plain, _, version = name.partition("@")
    if plain not in engines():
        raise UnknownName("engine", plain, engines())
    return of_version(engines()[plain], version)


def of_version(host: Engine, version: str) -> Engine:
    """The constants of a version: its own where it has any, else the engine's."""
    own: dict[str, Any] = host.versions.get(version, {})
    return replace(host, **own)


def engine_on(name: str, node: Node) -> Engine:
    """The constants of an engine on the hosts of a node: what they compute goes with their single-thread speed."""
    found = engine(name)
    points = None if node.host is None else node.host.single_thread
    if points is None:
        return found
    slower = min(max(SERVER_THREAD / points, FASTEST), SLOWEST)
    return replace(found, step=found.step * slower, sequence=found.sequence * slower, layer=found.layer * slower)
