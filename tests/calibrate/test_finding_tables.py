"""Tables are told by their columns."""

import made
import numpy as np
import pytest

from nearpeak.calibrate.samples import site_numbers
from nearpeak.calibrate.tables import find, recognized
from nearpeak.cost import read_table, write_table
from nearpeak.errors import UsageError


def write(folder, name, columns):
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / name, columns)
    return folder / name


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_products_is_told_by_its_columns_whatever_else_it_has(tmp_path, kind):
    table = made.gemm() | {"operator": np.arange(160), "note": np.full(160, "x", object)}
    (file,) = recognized(write(tmp_path, f"any.{kind}", table))
    assert (file.kind, file.op) == ("operators", "gemm")
    np.testing.assert_allclose(file.table()["seconds"], table["seconds"])


def attention(rows):
    names = {"gpu": "l40s", "backend": "vllm", "attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16"}
    sizes = {"batch_size": 1, "num_heads": 8, "num_key_value_heads": 8, "head_dim": 128, "window_size": 0}
    steps = np.arange(rows) % 2
    columns = {k: np.full(rows, v, object) for k, v in names.items()} | {k: np.full(rows, v) for k, v in sizes.items()}
    table = np.where(steps == 1, "generation_attention", "context_attention").astype(object)
    return columns | {"table": table, "isl": np.full(rows, 512), "step": 511 * steps, "seconds": np.full(rows, 1e-4)}


def test_both_phases_of_attention_in_one_file_are_two_tables(tmp_path):
    found = recognized(write(tmp_path, "all.parquet", attention(10)))
    assert {f.op: len(f.table()["seconds"]) for f in found} == {"attention_prefill": 5, "attention_decode": 5}


@pytest.mark.parametrize(
    ("columns", "kind"),
    [(("ttft", "tpot", "model"), "serving"), (("iteration time (ms)",), "training"), (("watts", "seconds"), "power")],
)
def test_other_kinds_are_told_by_what_was_measured(tmp_path, columns, kind):
    (file,) = recognized(write(tmp_path, "x.csv", {c: np.arange(3.0) for c in columns}))
    assert file.kind == kind


def test_a_file_that_is_no_table_of_measurements_is_refused_by_name_and_passed_over_in_a_folder(tmp_path):
    other = write(tmp_path, "other.csv", {"a": np.arange(3)})
    with pytest.raises(UsageError, match=r"other\.csv is no table"):
        find([other])
    write(tmp_path / "gemm", "l40s.parquet", made.gemm())
    files, skipped = find([tmp_path])
    assert [f.name for f in files] == ["gemm/l40s.parquet"]
    assert [s.rpartition("/")[2] for s in skipped] == ["other.csv"]


def test_a_table_without_seconds_is_refused_even_in_a_folder(tmp_path):
    table = made.gemm()
    del table["seconds"]
    write(tmp_path / "gemm", "l40s.parquet", table)
    with pytest.raises(UsageError, match="seconds"):
        find([tmp_path])


def test_a_place_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        find([tmp_path / "nowhere"])


def test_a_site_has_its_number_in_any_table(tmp_path):
    table = made.gemm()
    part = {name: column[40:60] for name, column in table.items()}
    path = write(tmp_path, "part.csv", part | {"n": part["n"].astype(float)})
    whole, cut = (site_numbers(t, ("n", "k")) for t in (table, read_table(path)))
    np.testing.assert_array_equal(whole[40:60], cut)
    assert np.unique(whole).size == len(made.SITES)
