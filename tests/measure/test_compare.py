from dataclasses import replace

import pytest
from measurements_by_hand import PLATFORM, a_measurement

from nearpeak.errors import UsageError
from nearpeak.measure import Figure, Measurement, Prediction, Sample, compare, compare_figure, rate, record, timed


def test_ratios_are_measured_over_predicted():
    (row,) = compare(a_measurement())
    assert (row.name, row.ratio, row.ratio_high) == ("ttft", pytest.approx(2.0), pytest.approx(3.0))
    assert row.inside
    assert row.compatible


@pytest.mark.parametrize(
    ("low", "value", "high", "inside", "compatible"),
    [(1.1, 1.2, 1.3, True, True), (1.9, 2.1, 2.2, False, True), (2.1, 2.2, 2.3, False, False),
     (0.1, 0.2, 0.49, False, False), (0.4, 0.45, 0.5, False, True), (0.4, 2.0, 5.0, True, True)],
)  # fmt: skip
def test_inside_is_of_the_median_and_compatible_of_the_intervals(low, value, high, inside, compatible):
    row = compare_figure("tpot", Figure(value, low, high, 0.95), Prediction(1.0, 0.5, 2.0, "measured"))
    assert (row.inside, row.compatible) == (inside, compatible)


def test_what_was_not_predicted_has_no_row():
    assert compare(a_measurement(predicted=False)) == ()


def test_predicting_what_is_not_measured_is_refused():
    with pytest.raises(UsageError, match="energy"):
        record(Measurement({}, {}, PLATFORM, predictions={"energy": Prediction(1.0, 1.0, 1.0, "datasheet")}))


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 2.0, 3.0), (0.0, 0.0, 1.0), (float("nan"), 0.1, 1.0)])
def test_a_prediction_outside_its_interval_is_refused(value, low, high):
    with pytest.raises(UsageError):
        Prediction(value, low, high, "datasheet")


def test_a_figure_outside_its_range_is_refused():
    with pytest.raises(UsageError):
        Figure(1.0, 2.0, 3.0, 0.95)


def test_ids_tell_contents_apart():
    m = a_measurement()
    assert record(replace(m, what={"batch": 99})).id != m.id
    assert len(m.id) == 12


def test_rates_turn_the_interval_over():
    sample = Sample((1.0, 2.0, 4.0, 8.0, 16.0, 2.0, 4.0))
    seconds, work = timed(sample), rate(32.0, sample)
    assert work.value == 32.0 / seconds.value
    assert (work.low, work.high) == (32.0 / seconds.high, 32.0 / seconds.low)
