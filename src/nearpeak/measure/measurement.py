"""A Measurement: what a run on real hardware showed, beside what had been predicted for it.

Figures are SI and named by what they are: ``ttft``, ``tpot`` (seconds), ``memory`` (bytes), ``rate`` (FLOP/s),
``bandwidth`` (bytes/s), ``latency`` (seconds).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import msgspec

from nearpeak.errors import UsageError
from nearpeak.measure.fingerprint import Fingerprint
from nearpeak.measure.timing import Sample

What = Mapping[str, str | int | float | bool | None]
"""The inputs of a run, flat: model, batch, isl, osl, device, dtype, threads, ..."""


@dataclass(frozen=True)
class Figure:
    """A measured figure and the range that holds its median with probability ``coverage``.

    A figure that was read once (a peak of memory) is its own range, with ``coverage`` 0: repeats would tell more.
    """

    value: float
    low: float
    high: float
    coverage: float

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise UsageError(f"figure {self.value} does not lie in its range {self.low} to {self.high}")


@dataclass(frozen=True)
class Prediction:
    """A predicted figure, its interval, and the evidence it rests on (measured, transferred, datasheet)."""

    value: float
    low: float
    high: float
    evidence: str

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.value <= self.high:
            raise UsageError(f"prediction {self.value} must lie in its interval {self.low} to {self.high}, above 0")


@dataclass(frozen=True)
class Measurement:
    """One measured run.

    Attributes:
        what: what was run: model, batch, isl, osl, device, dtype, threads, ...
        figures: what it showed, by name. predictions: what had been predicted, by the same names.
        samples: the timings behind the figures. fingerprint: the platform.
        created: when, ISO 8601, UTC. id: twelve hexadecimal digits of the content, given by ``record``.
    """

    what: What
    figures: Mapping[str, Figure]
    fingerprint: Fingerprint
    predictions: Mapping[str, Prediction] = field(default_factory=dict)
    samples: Mapping[str, Sample] = field(default_factory=dict)
    created: str = ""
    id: str = ""


def record(measurement: Measurement) -> Measurement:
    """The measurement, dated now and with the id of its content.

    Raises:
        UsageError: it predicts a figure that it did not measure.
    """
    unmeasured = sorted(set(measurement.predictions) - set(measurement.figures))
    if unmeasured:
        measured = ", ".join(measurement.figures)
        raise UsageError(f"predicted but not measured: {', '.join(unmeasured)}; measured: {measured}")
    dated = replace(measurement, created=datetime.now(UTC).isoformat(timespec="microseconds"), id="")
    return replace(dated, id=hashlib.sha256(msgspec.json.encode(dated, order="sorted")).hexdigest()[:12])


def timed(sample: Sample, level: float = 0.95) -> Figure:
    """The figure of a timing: its median and the interval of the median, seconds."""
    interval = sample.interval(level)
    return Figure(sample.median, interval.low, interval.high, interval.coverage)


def rate(work: float, sample: Sample, level: float = 0.95) -> Figure:
    """The figure of ``work`` (FLOP, bytes) a second, done in each of the sample's timings."""
    interval = sample.interval(level)
    return Figure(work / sample.median, work / interval.high, work / interval.low, interval.coverage)
