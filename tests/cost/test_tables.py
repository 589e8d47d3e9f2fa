"""Operators priced from tables, and the files that hold them."""

import os
from pathlib import Path

import numpy as np
import pytest

from nearpeak.cost import operators as op
from nearpeak.cost.files import read_table, write_table
from nearpeak.cost.tables import READINGS, platform_named, predict_operators
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.formats import code

MEASURED = Path(__file__).parents[3] / "shared" / "measurements" / "operators"
measured = pytest.mark.skipif(not MEASURED.is_dir(), reason="no measured operators beside this checkout")


def text(*values):
    return np.array(values, object)


def gemms(**changes):
    table = {
        "gpu": text("h100_sxm", "a100_sxm", "h100_sxm"),
        "backend": text("vllm", "sglang", "trtllm"),
        "gemm_dtype": text("bfloat16", "bfloat16", "fp8"),
        "m": np.array([1, 64, 4096]),
        "n": np.array([4096, 4096, 8192]),
        "k": np.array([4096, 1024, 8192]),
        "seconds": np.array([1.0, 2.0, 3.0]),
    }
    return {**table, **changes}


def test_rows_are_priced_as_one_by_one_in_their_order():
    found = predict_operators(gemms(), "gemm")
    expected = [
        op.gemm(platform_named("h100_sxm", "vllm"), 1, 4096, 4096),
        op.gemm(platform_named("a100_sxm", "sglang"), 64, 4096, 1024),
        op.gemm(platform_named("h100_sxm", "trtllm"), 4096, 8192, 8192, code("fp8")),
    ]
    np.testing.assert_allclose(found["seconds"], expected, rtol=1e-12)
    assert list(found["m"]) == [1, 64, 4096]
    assert np.all(found["seconds_low"] < found["seconds"])
    assert np.all(found["seconds_high"] > found["seconds"])
    assert list(found["evidence"]) == ["measured"] * 3
    assert list(found["error"]) == [""] * 3


def test_measured_answers_are_never_read():
    other = predict_operators(gemms(seconds=np.array([9.0, 9.0, 9.0])), "gemm")
    np.testing.assert_array_equal(other["seconds"], predict_operators(gemms(), "gemm")["seconds"])


def test_rows_that_cannot_be_answered_say_why_and_the_others_are_answered():
    table = gemms(gpu=text("h100_sxm", "gpu_of_tomorrow", "h100_sxm"), m=np.array([0.0, 64.0, 4096.0]))
    found = predict_operators(table, "gemm")
    assert "m is 0" in found["error"][0]
    assert "gpu_of_tomorrow" in found["error"][1]
    assert found["error"][2] == ""
    assert list(np.isfinite(found["seconds"])) == [False, False, True]
    assert list(found["evidence"]) == ["", "", "measured"]
    found = predict_operators(gemms(gemm_dtype=text("fp3", None, "fp8")), "gemm")
    assert "fp3" in found["error"][0]
    assert "gemm_dtype" in found["error"][1]


def test_missing_columns_are_named():
    table = gemms()
    del table["n"], table["gemm_dtype"]
    with pytest.raises(UsageError, match="gemm_dtype, n"):
        predict_operators(table, "gemm")


def test_an_unknown_operator_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="gemm"):
        predict_operators(gemms(), "gem")


def test_unseen_devices_are_transferred_to():
    found = predict_operators(gemms(gpu=text("h200_sxm", "l40s", "gb200")), "gemm")
    assert list(found["evidence"]) == ["transferred"] * 3
    assert np.all(found["seconds"] > 0)


def test_an_attention_table_is_told_apart_row_by_row():
    table = {
        "gpu": text("h100_sxm", "h100_sxm"), "backend": text("vllm", "vllm"),
        "op_name": text("context_attention", "generation_attention"),
        "batch_size": np.array([1, 64]), "isl": np.array([4096, 1]), "step": np.array([0, 4095]),
        "num_heads": np.array([32, 32]), "num_key_value_heads": np.array([8, 8]), "head_dim": np.array([128, 128]),
        "window_size": np.array([0, 0]), "attn_dtype": text("bfloat16", "bfloat16"),
        "kv_cache_dtype": text("bfloat16", "fp8"),
    }  # fmt: skip
    p = platform_named("h100_sxm", "vllm")
    expected = [
        op.attention_prefill(p, 1, 4096, 32, 8, 128),
        op.attention_decode(p, 64, 4096, 32, 8, 128, kv=code("fp8")),
    ]
    np.testing.assert_allclose(predict_operators(table, "attention")["seconds"], expected)
    del table["op_name"]
    with pytest.raises(UsageError, match="op_name"):
        predict_operators(table, "attention")


def test_distributions_over_experts_are_read():
    count = 3
    numbers = {
        "num_tokens": 4096, "hidden_size": 4096, "inter_size": 1536, "topk": 8, "num_experts": 128,
        "moe_tp_size": 1, "moe_ep_size": 8,
    }  # fmt: skip
    table = {name: np.full(count, value) for name, value in numbers.items()}
    table |= {name: text(*[value] * count) for name, value in (("gpu", "h100_sxm"), ("backend", "trtllm"))}
    table |= {"moe_dtype": text("bfloat16", "bfloat16", "bfloat16")}
    table |= {"distribution": text("balanced", "power_law_1.2", "uniform")}
    found = predict_operators(table, "moe")
    assert found["seconds"][1] > found["seconds"][0]
    assert "uniform" in found["error"][2]


@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_tables_survive_being_written_and_read_in_order(tmp_path, extension):
    path = tmp_path / f"table.{extension}"
    columns = {"name": text("b", "a", None, "it's"), "x": np.array([3.0, np.nan, 1.5, 2.5]), "i": np.arange(4)}
    write_table(path, columns)
    back = read_table(path)
    assert list(back) == ["name", "x", "i"]
    assert list(back["name"]) == list(columns["name"])
    np.testing.assert_array_equal(back["x"], columns["x"])
    np.testing.assert_array_equal(back["i"], columns["i"])
    assert os.listdir(tmp_path) == [path.name]


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"missing\.csv"):
        read_table(tmp_path / "missing.csv")
    with pytest.raises(UsageError, match=r"\.parquet"):
        read_table(tmp_path / "table.xlsx")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"not parquet at all")
    with pytest.raises(NearpeakError, match=r"broken\.parquet"):
        read_table(broken)
    with pytest.raises(NearpeakError, match="nowhere"):
        write_table(tmp_path / "nowhere" / "table.csv", {"x": np.arange(2)})


@measured
@pytest.mark.parametrize("name", sorted(READINGS))
def test_every_measured_row_is_answered_and_most_are_close(name):
    for file in sorted((MEASURED / name).glob("*.parquet")):
        table = read_table(file)
        some = np.random.default_rng(0).permutation(len(table["seconds"]))[:5000]
        truth = np.asarray(table["seconds"], float)[some]
        found = predict_operators({column: values[some] for column, values in table.items()}, name)
        assert set(found["error"]) == {""}, file
        ratio = found["seconds"] / truth
        assert np.median(np.abs(ratio - 1)) < 0.15, file
        inside = (truth >= found["seconds_low"]) & (truth <= found["seconds_high"])
        assert np.mean(inside) > 0.7, file


def test_a_wrong_cell_anywhere_in_a_csv_fails_its_row_alone(tmp_path):
    rows = [f"h100_sxm,vllm,bfloat16,{m},64,64,true,2024-01-01" for m in range(1, 30_001)]
    rows[29_000] = rows[29_000].replace(",29001,", ",many,")
    path = tmp_path / "runs[1].csv"
    path.write_text("\n".join(["gpu,backend,gemm_dtype,m,n,k,graph,day", *rows]))
    table = read_table(path)
    assert (table["graph"][0], table["day"][0]) == ("true", "2024-01-01")
    found = predict_operators(table, "gemm")
    assert np.flatnonzero(found["error"] != "").tolist() == [29_000]
    assert "m is many" in found["error"][29_000]


@pytest.mark.parametrize("odd", [np.array(["2024-01-01"] * 3, "datetime64[us]"), np.array([True, True, True])])
def test_dates_and_truth_values_are_no_sizes(odd):
    assert all("m is" in e for e in predict_operators(gemms(m=odd), "gemm")["error"])


@pytest.mark.filterwarnings("error")
def test_sizes_beyond_all_numbers_are_told_of():
    found = predict_operators(gemms(m=np.array([1e300, 64, 64]), n=np.array([1e300, 64, 64])), "gemm")
    assert "too large" in found["error"][0]
    assert np.isnan(found["seconds"][0])
    assert list(found["error"][1:]) == ["", ""]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NearpeakError, match="cannot write"):
        write_table(tmp_path / "file" / "x.csv", gemms())
    with pytest.raises(UsageError, match="SECONDS and seconds differ in case"):
        write_table(tmp_path / "x.csv", {"SECONDS": np.ones(1), "seconds": np.ones(1)})


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"gr\xfc\xdfe,a\n1,2\n")
    with pytest.raises(NearpeakError, match="utf-8"):
        read_table(tmp_path / "x.csv")
