"""What a simulation found: percentiles, goodput, use, energy; of each request where they were kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError
from nearpeak.simulate.state import BINS, LEAST, RATIO

Array = NDArray[np.float64]
FIGURES = ("ttft", "tpot", "latency")
"""Seconds to the first token, between later tokens in the mean, and to the last token."""
PERCENTILES = (50, 90, 95, 99)


@dataclass
class Sketch:
    """A distribution of positive times in logarithmic bins, with its exact sum: percentiles to 0.05 %, memory constant.

    ``counts``: ``[BINS]``, bin ``b`` from ``LEAST * RATIO**b``.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    total: float = 0.0

    def add(self, values: Array) -> None:
        """Count some times in seconds."""
        places = (np.log(np.maximum(values, LEAST) / LEAST) / np.log(RATIO)).astype(np.int64)
        self.counts += np.bincount(np.minimum(places, BINS - 1), minlength=BINS)
        self.total += float(values.sum())

    @property
    def n(self) -> int:
        """How many were counted."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Their mean, nan of none."""
        return self.total / self.n if self.n else float("nan")

    def percentile(self, q: float) -> float:
        """The time that ``q`` percent do not exceed, nan of none."""
        cumulative = np.cumsum(self.counts)
        if cumulative[-1] == 0:
            return float("nan")
        place = int(np.searchsorted(cumulative, max(q / 100 * cumulative[-1], 1)))
        return float(LEAST * RATIO ** (min(place, BINS - 1) + 0.5))

    def above(self, limit: float) -> float:
        """Share of times above a limit."""
        place = int(np.log(max(limit, LEAST) / LEAST) / np.log(RATIO)) + 1
        return float(self.counts[place:].sum() / max(self.n, 1))


@dataclass(frozen=True)
class Targets:
    """Limits of a service class in seconds, on every request: its time to the first token, per later token, in all."""

    ttft: float = np.inf
    tpot: float = np.inf
    latency: float = np.inf

    def __post_init__(self) -> None:
        for name in FIGURES:
            if not getattr(self, name) > 0:
                raise UsageError(f"a target of {getattr(self, name)} s for {name}; give seconds above 0")

    def met(self, requests: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """Which requests meet all of them."""
        met = [requests[name] <= getattr(self, name) for name in FIGURES]
        return np.asarray(np.logical_and.reduce(met))


@dataclass(frozen=True)
class Result:
    """A simulated run. Seconds, joules, tokens.

    Attributes:
        sketches: distributions by figure; ``gap`` that of all times between two tokens.
        requests: columns by name ``[completed]`` in the order of their ids, None where there were too many to keep.
        offered, completed, rejected: requests. met: those within their class's targets.
        tokens: of answers. prompt_tokens: computed; cached_tokens: found in the cache.
        preemptions: times that a request gave up its memory.
        span: seconds from the first arrival to the last token. backlog: requests in the system when the last arrived,
            ``offered_span`` seconds after the first.
        busy: share of time that devices worked, by instance. joules: of all devices, waiting included.
        devices: of all instances.
        timeline: plans carried out, the first of them (see ``state.SPAN``).
        closed: clients sent a request only when their last was answered, so that no queue could grow.
    """

    sketches: dict[str, Sketch]
    requests: dict[str, NDArray[Any]] | None
    offered: int
    completed: int
    rejected: int
    met: int
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    preemptions: int
    span: float
    backlog: int
    offered_span: float
    busy: Array
    joules: float
    devices: float
    timeline: NDArray[np.void]
    closed: bool = False

    @property
    def request_rate(self) -> float:
        """Requests completed a second."""
        return self.completed / self.span if self.span > 0 else 0.0

    @property
    def token_rate(self) -> float:
        """Tokens of answers a second."""
        return self.tokens / self.span if self.span > 0 else 0.0

    @property
    def goodput(self) -> float:
        """Requests a second that met their targets."""
        return self.met / self.span if self.span > 0 else 0.0

    @property
    def saturated(self) -> bool:
        """Whether requests came faster than they were served: at the last arrival more were in the system than are
        served at once (Little's law: the rate times the latency of one that does not queue), by more than chance adds
        where the two rates are alike (a random walk of as many steps: three times its deviation).

        Of a rate hardly above what is served, a run that lasts only a few latencies cannot tell.
        """
        if self.closed or not self.completed:
            return False
        return bool(self.backlog > self.busy_rate * self._unhurried + 3 * np.sqrt(self.offered))

    @property
    def busy_rate(self) -> float:
        """Requests completed a second until the last began: the rate without the last's own latency."""
        return self.completed / max(self.span - self._unhurried, self.offered_span, self._unhurried)

    @property
    def _unhurried(self) -> float:
        """Seconds that a request takes when it does not queue: in a growing queue only the first do not."""
        later = self.sketches["tpot"].percentile(50) * self.tokens / self.completed if self.sketches["tpot"].n else 0.0
        return self.sketches["ttft"].percentile(10) + later

    def percentiles(self) -> dict[str, dict[str, float]]:
        """Mean and percentiles by figure."""
        return {
            name: {"mean": sketch.mean} | {f"p{q}": self.percentile(name, q) for q in PERCENTILES}
            for name, sketch in self.sketches.items()
        }

    def percentile(self, figure: str, q: float) -> float:
        """A percentile of a figure: exact where requests were kept, else to 0.05 %.

        Answers of one token have no TPOT.
        """
        if self.requests is not None and figure in FIGURES:
            values = self.requests[figure]
            if figure == "tpot":
                values = values[self.requests["osl"] > 1]
            return float(np.percentile(values, q)) if len(values) else float("nan")
        return self.sketches[figure].percentile(q)

    def record(self) -> dict[str, Any]:
        """The run as plain values."""
        return {
            "offered": self.offered, "completed": self.completed, "rejected": self.rejected,
            "goodput": self.goodput, "within_targets_share": self.met / max(self.completed + self.rejected, 1),
            "request_rate": self.request_rate, "tokens_per_second": self.token_rate,
            "saturated": self.saturated, "span_time": self.span,
            "utilization_share": float(np.mean(self.busy)),
            "power": self.joules / self.span if self.span > 0 else 0.0,
            "joules_per_token": self.joules / max(self.tokens, 1),
            "preemptions": self.preemptions,
            "cached_share": self.cached_tokens / max(self.cached_tokens + self.prompt_tokens, 1),
            "percentiles": self.percentiles(),
        }  # fmt: skip
