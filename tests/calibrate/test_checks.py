"""Tables that cannot have been measured are refused, with the reason and the rows."""

import made
import numpy as np
import pytest

from nearpeak.calibrate.checks import checked
from nearpeak.calibrate.tables import find
from nearpeak.errors import UsageError


def refused(table, words, op="gemm"):
    with pytest.raises(UsageError) as error:
        checked(table, op, "gemm.csv")
    for word in words:
        assert word in str(error.value), str(error.value)


def changed(rows, value, column="seconds"):
    table = made.gemm()
    table[column] = table[column].copy()
    table[column][rows] = value
    return table


def test_a_sound_table_passes_whole():
    found = checked(made.gemm(), "gemm", "gemm.csv")
    assert found.samples["gemm"].rows == len(made.SITES) * len(made.ROWS)
    assert found.notes == ()


@pytest.mark.parametrize("missing", ["gpu", "backend", "n", "gemm_dtype"])
def test_missing_columns_are_named(missing):
    table = made.gemm()
    del table[missing]
    refused(table, [missing])


@pytest.mark.parametrize(
    ("factor", "unit"), [(1e3, "milliseconds"), (1e6, "microseconds"), (1e9, "nanoseconds"), (1e-3, "give seconds")]
)
def test_times_in_another_unit_are_caught_and_the_unit_is_guessed(factor, unit):
    table = made.gemm()
    table["seconds"] = table["seconds"] * factor
    refused(table, [unit[1:] if factor < 1 else unit, "l40s"])


def test_one_time_far_below_the_roofline_is_enough():
    row = len(made.ROWS) - 1
    refused(changed([row], 1e-9), [f"row {row} ", "faster than the device can be"])


def test_many_times_a_little_below_the_roofline_are_refused_and_few_are_left_out_of_the_fit():
    table = made.gemm(noise=0.0)
    sample = checked(table, "gemm", "g").samples["gemm"]
    below = np.argsort(sample.seconds / sample.floor)
    few, many = table["seconds"].copy(), table["seconds"].copy()
    few[below[:2]] = 0.8 * sample.floor[below[:2]]
    many[below[:40]] = 0.8 * sample.floor[below[:40]]
    kept = checked(table | {"seconds": few}, "gemm", "gemm.csv")
    assert kept.samples["gemm"].rows == few.size - 2
    assert str(below[:2].min()) in kept.notes[0]
    refused(table | {"seconds": many}, ["faster than the device can be"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1e-3])
def test_times_that_are_none_are_named_by_row(value):
    refused(changed([3, 7], value), ["rows 3, 7"])


def test_rows_that_are_there_twice_are_refused():
    table = made.gemm()
    refused(made.joined(table, {k: v[:5] for k, v in table.items()}), ["160, 161", "repeat other rows"])


def test_one_shape_with_two_times_is_refused():
    table = made.gemm()
    again = {k: v[:3].copy() for k, v in table.items()}
    again["seconds"] = again["seconds"] * 2
    refused(made.joined(table, again), ["one shape under one engine", "rows 0 and 160"])


def test_repeats_that_agree_pass():
    table = made.joined(made.gemm(seed=0), made.gemm(seed=1))
    assert checked(table, "gemm", "g").samples["gemm"].rows == 2 * len(made.SITES) * len(made.ROWS)


def test_too_few_rows_are_refused():
    few = {k: v[:40] for k, v in made.gemm().items()}
    refused(few, ["40 rows", "at least 60"])
    parts = [{k: v[:40] for k, v in made.gemm(engine=e).items()} for e in ("vllm", "sglang")]
    refused(made.joined(*parts), ["at most 40 rows"])


@pytest.mark.parametrize(("column", "value"), [("gpu", "l400"), ("gemm_dtype", "fp3"), ("m", -1)])
def test_rows_that_mean_nothing_are_named(column, value):
    refused(changed([5], value, column), ["row 5", str(value)])


@pytest.mark.parametrize("op", ["collective", "allreduce_custom", "mla_bmm", "linear_attention", "attention_decode"])
def test_published_tables_pass(shared, op):
    for file in find([shared / "operators" / op / "a100_sxm.parquet"])[0]:
        found = checked(file.table(), file.op, file.name)
        assert sum(s.rows for s in found.samples.values()) > 300
