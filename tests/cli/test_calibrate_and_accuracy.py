"""``nearpeak calibrate`` and ``nearpeak accuracy`` as a person meets them."""

import sys
from pathlib import Path

import numpy as np
import pytest

from nearpeak.cost import read_table, write_table

sys.path.insert(0, str(Path(__file__).parents[1] / "calibrate"))
pytest.importorskip("scipy")
import made


@pytest.fixture
def tables(tmp_path):
    (tmp_path / "tables" / "gemm").mkdir(parents=True)
    write_table(tmp_path / "tables" / "gemm" / "l40s.parquet", made.gemm())
    (tmp_path / "tables" / "notes.csv").write_text("a,b\n1,2\n")
    return tmp_path / "tables"


def test_a_calibration_is_made_used_and_scored(run, tables, tmp_path):
    made_ = run("calibrate", tables, "--name", "lab", "--json")
    assert made_.code == 0, made_.err
    assert made_.json["calibration"] == "lab@1"
    assert [c["change"] for c in made_.json["changes"]] == ["added"]
    assert made_.json["skipped"] == ["tables/notes.csv"]
    out = tmp_path / "out.parquet"
    predict = ("predict", "operators", tables / "gemm" / "l40s.parquet", "--op", "gemm")
    assert set(run(*predict, "--json").json["evidence"]) != {"measured"}
    assert run(*predict, "--calibration", "lab", "--out", out, "--json").json["evidence"] == {"measured": 160}
    error = np.abs(read_table(out)["seconds"] / made.gemm()["seconds"] - 1)
    assert np.median(error) < 0.05
    board = run("accuracy", tables, "--calibration", "lab", "--by", "gpu", "--json")
    assert [(row["fit"], row["gpu"]) for row in board.json["board"]] == [
        ("in sample", "l40s"),
        ("site left out", "l40s"),
    ]
    without = run("accuracy", tables, "--calibration", "lab", "--by", "gpu", "--leave-out", "none", "--json")
    assert without.json["board"][0]["answered"] == 0
    told = run("accuracy", tables, "--by", "gpu", "--leave-out", "gpu")
    assert told.code == 0
    assert "roofline" in told.out
    assert "GPU left out" in told.out


def test_each_run_makes_a_version_and_a_folder_of_ones_own_is_not_written_over(run, tables, tmp_path):
    assert run("calibrate", tables, "--json").json["calibration"] == "mine@1"
    again = run("calibrate", tables, "--json").json
    assert (again["calibration"], again["replaces"]) == ("mine@2", "mine@1")
    assert [c["change"] for c in again["changes"]] == ["same"]
    assert run("calibrate", tables, "--out", tmp_path / "own").code == 0
    assert run("calibrate", tables, "--out", tmp_path / "own").code == 2
    plan = ("plan", "Qwen/Qwen3-8B", "--gpus", "l40s:1", "--isl", "1000", "--osl", "100", "--top", "1", "--json")
    shipped, own = (run(*plan, *more).json for more in ((), ("--calibration", tmp_path / "own")))
    assert shipped["priced"] == own["priced"]
    assert shipped["plans"][0]["figures"]["tpot"] != own["plans"][0]["figures"]["tpot"]


def test_the_calibration_in_use_may_come_from_the_environment_and_an_option_ends_with_its_command(
    run, tables, monkeypatch
):
    run("calibrate", tables, "--name", "lab")
    predict = ("predict", "operators", tables / "gemm" / "l40s.parquet", "--op", "gemm", "--json")
    run(*predict, "--calibration", "lab")
    assert "measured" not in run(*predict).json["evidence"]
    monkeypatch.setenv("NEARPEAK_CALIBRATION", "lab")
    assert run(*predict).json["evidence"] == {"measured": 160}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("calibrate",), 2, "nothing to fit to"),
        (("calibrate", "nowhere"), 2, "nowhere"),
        (("calibrate", "TABLES", "--name", "a/b"), 2, "a/b"),
        (("calibrate", "TABLES", "--only", "moe"), 2, "gemm"),
        (("calibrate", "TABLES", "--only", "gemm,moe"), 2, "nothing to fit moe to"),
        (("calibrate", "TABLES", "--replaces", "none"), 2, "none"),
        (("accuracy", "TABLES/notes.csv"), 2, "no table"),
        (("accuracy", "TABLES", "--by", "colour"), 2, "colour"),
        (("accuracy", "TABLES", "--calibration", "none"), 2, "none"),
        (("accuracy", "TABLES", "--leave-out", "none", "--leave-out", "site"), 2, "--leave-out none"),
        (("plan", "Qwen/Qwen3-8B", "--gpus", "h100", "--isl", "9", "--osl", "9", "--calibration", "x"), 2, "x"),
    ],
)
def test_bad_input_gets_one_message(run, tables, arguments, code, words):
    found = run(*(str(a).replace("TABLES", str(tables)) for a in arguments))
    assert found.code == code, found.err
    assert words in found.err
    assert "Traceback" not in found.err


SERVED = {"model": "Qwen/Qwen3-8B", "gpu": "h100", "backend": "vllm", "isl": 100, "osl": 20, "ttft": 0.1, "tpot": 0.01}
ITERATION = {
    "hidden size": 1024, "attention heads": 16, "# layers": 12, "sequence length": 1024, "global batch": 16,
    "micro batch": 1, "tensor parallelism": 4, "data parallelism": 1, "pipeline parallelism": 2,
    "iteration time (ms)": 390,
}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "change", "words"),
    [
        (SERVED, {"backend": "none"}, "unknown engine 'none'"),
        (SERVED, {"ttft": 0}, "no time above 0"),
        (SERVED, {"tpot": "n/a"}, "no time above 0"),
        (SERVED, {"isl": -1}, "positive numbers"),
        (ITERATION, {"iteration time (ms)": "n/a"}, "no time above 0"),
        (ITERATION, {"hidden size": 1000}, "1000 is no multiple"),
    ],
)
def test_rows_that_nothing_can_be_fitted_to_are_refused_with_the_reason(run, tmp_path, row, change, words):
    table = tmp_path / "runs.csv"
    lines = [row, row | change]
    table.write_text("\n".join(",".join(map(str, line)) for line in (row, *(x.values() for x in lines))))
    found = run("calibrate", table)
    assert found.code == 2, found.err
    assert words in found.err
    assert run("accuracy", table, "--leave-out", "none").code == 0
    table.write_text(",".join(row))
    for command in ("calibrate", "accuracy"):
        empty = run(command, table)
        assert empty.code == 2
        assert "has no rows" in empty.err


def test_a_damaged_calibration_is_named(run, tables, tmp_path):
    own = tmp_path / "own"
    assert run("calibrate", tables, "--out", own).code == 0
    model = ("predict", "model", "Qwen/Qwen3-8B", "--gpu", "h100", "--isl", "9", "--osl", "9", "--calibration", own)
    for name in ("engines.json", "power.json"):
        (own / name).write_text("{")
        found = run(*model)
        assert found.code == 2
        assert f"{name} of the calibration in {own} is damaged" in found.err
        (own / name).unlink()


def test_a_table_in_another_unit_is_refused_with_the_unit(run, tables):
    path = tables / "gemm" / "l40s.parquet"
    table = read_table(path)
    write_table(path, table | {"seconds": 1e6 * table["seconds"]})
    found = run("calibrate", tables)
    assert found.code == 2
    assert "microseconds" in found.err


def test_without_scipy_the_extra_is_named(run, tables, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "scipy" else found(name, *a))
    told = run("calibrate", tables)
    assert told.code == 1
    assert "pip install nearpeak[calibrate]" in told.err
    assert run("accuracy", tables, "--leave-out", "site").code == 1
    assert run("accuracy", tables, "--by", "gpu", "--json").json["board"][0]["answered"] == 160


def test_products_measured_here_are_fitted(run, monkeypatch):
    from dataclasses import replace

    from nearpeak.measure import Figure, Measurement, Store, fingerprint, record
    from nearpeak.measure.fingerprint import Gpu

    def measured():
        here = replace(fingerprint(), gpus=(Gpu("NVIDIA L40S", "550", 48 * 2**30, 2.5e9),))
        for size in range(128, 8200, 128):
            seconds = 2 * size**3 / 2e14 + 8e-6
            figure = Figure(2 * size**3 / seconds, 2 * size**3 / seconds, 2 * size**3 / seconds, 0.95)
            what = {"benchmark": "gemm", "dtype": "bf16", "size": size, "device": "cuda", "threads": 1}
            Store().add(record(Measurement(what=what, figures={"rate": figure}, fingerprint=here)))

    monkeypatch.setattr("nearpeak.cli.calibrate.measure_here", measured)
    found = run("calibrate", "--here", "--json")
    assert found.code == 0, found.err
    (change,) = found.json["changes"]
    assert (change["gpu"], change["engine"], change["change"], change["rows"]) == ("l40s", "torch", "added", 64)


@pytest.mark.parametrize("command", ["calibrate", "accuracy"])
def test_help_has_an_example(run, command):
    found = run(command, "--help")
    assert found.code == 0
    assert f"nearpeak {command}" in found.out
    assert len(found.out.splitlines()) <= 50
