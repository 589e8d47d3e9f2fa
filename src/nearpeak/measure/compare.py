"""Predicted beside measured: how far off, and whether the measurement fell where the prediction said it would."""

from dataclasses import dataclass

from nearpeak.measure.measurement import Figure, Measurement, Prediction


@dataclass(frozen=True)
class Comparison:
    """One figure, predicted and measured.

    Attributes:
        ratio: measured over predicted; above 1, it took more than predicted.
        ratio_low, ratio_high: the same at the ends of the measured interval.
        inside: the measured median lies in the predicted interval.
        compatible: the measured interval and the predicted one overlap; with ``inside`` false, more repeats may tell.
    """

    name: str
    measured: Figure
    predicted: Prediction
    ratio: float
    ratio_low: float
    ratio_high: float
    inside: bool
    compatible: bool


def compare(measurement: Measurement) -> tuple[Comparison, ...]:
    """A row for each figure that was predicted and measured, in the order in which the figures were measured."""
    return tuple(
        compare_figure(name, figure, measurement.predictions[name])
        for name, figure in measurement.figures.items()
        if name in measurement.predictions
    )


def compare_figure(name: str, measured: Figure, predicted: Prediction) -> Comparison:
    """One row."""
    return Comparison(
        name=name,
        measured=measured,
        predicted=predicted,
        ratio=measured.value / predicted.value,
        ratio_low=measured.low / predicted.value,
        ratio_high=measured.high / predicted.value,
        inside=predicted.low <= measured.value <= predicted.high,
        compatible=predicted.low <= measured.high and measured.low <= predicted.high,
    )
