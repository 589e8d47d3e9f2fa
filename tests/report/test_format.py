import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearpeak.report import format as write


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "12.3 ms"), (1.5, "1.5 s"), (8.5e-6, "8.5 µs"), (0, "0 s"), (0.99996, "1 s"), (3e-9, "3 ns"),
     (math.nan, "\N{EN DASH}"), (math.inf, "\N{EN DASH}"), (None, "\N{EN DASH}")],
)  # fmt: skip
def test_durations(value, text):
    assert write.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(17.16e9, "17.2 GB"), (999.6e6, "1 GB"), (262144000, "262 MB"), (0, "0 B"), (141e9, "141 GB")]
)
def test_sizes_are_decimal(value, text):
    assert write.size(value) == text


def test_rates_and_money():
    assert write.si(989.4e12, "FLOP/s") == "989 TFLOP/s"
    assert write.rate(6025.6, "tokens/s") == "6,030 tokens/s"
    assert write.rate(10.76, "requests/s") == "10.8 requests/s"
    assert write.dollars(0.366) == "$0.37"
    assert write.dollars(0.0123) == "$0.0123"
    assert write.dollars(12345.6) == "$12,346"
    assert write.dollars(math.nan) == "\N{EN DASH}"


def test_counts_are_written_as_the_field_writes_them():
    assert write.number(30_532_122_624) == "30.5B"
    assert write.number(40_960) == "40,960"
    assert write.number(8) == "8"


def test_an_interval_names_a_shared_unit_once():
    assert write.interval(0.0098, 0.0294, write.seconds) == "9.8\N{EN DASH}29.4 ms"
    assert write.interval(0.8, 1.2, write.seconds) == "800 ms \N{EN DASH} 1.2 s"
    assert write.interval(0.5, 1.7, write.dollars) == "$0.50 \N{EN DASH} $1.70"


@given(st.floats(1e-9, 1e17))
def test_three_digits_are_within_half_a_percent(value):
    number, prefix = write.si(value, "B").split() if value >= 1 else (write.digits(value), "B")
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}[prefix.removesuffix("B")]
    assert float(number) * scale == pytest.approx(value, rel=5.1e-3)


@given(st.floats(1e-8, 1e3))
def test_durations_keep_their_value(value):
    number, unit = write.seconds(value).split()
    assert float(number) * {"s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[unit] == pytest.approx(value, rel=5.1e-3)


def test_what_no_one_reads_digit_by_digit_has_an_exponent():
    assert write.digits(3.3084e300) == "3.31e+300"
    assert write.digits(float("inf")) == "inf"


def test_every_figure_of_a_plan_can_be_written():
    from plans_by_hand import explained

    for name, figure in explained().figures.items():
        assert write.BY_FIGURE[name](figure.value) != write.UNKNOWN
        assert name == "power" or write.title(name) != name


def test_values_are_written_by_the_name_of_their_column():
    assert write.value("bandwidth", 4.8e12) == "4.8 TB/s"
    assert write.value("fp8_flops", 1.979e15) == "1.98 PFLOP/s"
    assert write.value("year", 2023) == "2023"
    assert write.value("price_per_hour", None) == "\N{EN DASH}"
    assert write.value("tied", True) == "yes"
    assert write.title("bf16_flops") == "bf16"
