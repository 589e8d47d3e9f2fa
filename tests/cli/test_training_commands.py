"""Training steps on the command line: one job in full, a table of them, and what is refused."""

import numpy as np
import pytest

STEP = ("predict", "step", "Qwen/Qwen3-8B", "--gpu", "a100", "--devices", 8, "--tp", 2, "--global-batch", 64)


def test_a_step_is_shown_by_part_with_its_interval_and_verdict(run):
    shown = run(*STEP, "--zero", 1)
    assert shown.code == 0
    for words in ("80 %", "transferred", "model FLOP utilization", "backward", "activations", "fits"):
        assert words in shown.out


def test_its_json_adds_up(run):
    record = run(*STEP, "--json").json
    assert record["seconds"] == pytest.approx(sum(record["seconds_by_part"].values()))
    assert record["memory"] == pytest.approx(sum(record["memory_by_part"].values()))
    assert record["seconds_low"] < record["seconds"] < record["seconds_high"]
    assert record["tokens_per_second"] == pytest.approx(64 * 4096 / record["seconds"])
    assert record["fits"] == (record["memory"] <= record["capacity"])
    shared = run(*STEP, "--zero", "fsdp", "--json").json
    assert shared["memory_by_part"]["optimizer"] == pytest.approx(record["memory_by_part"]["optimizer"] / 4)


def test_what_does_not_fit_is_told_what_would(run):
    command = ("predict", "step", "Qwen/Qwen3-32B", "--gpu", "h100", "--devices", 16, "--tp", 4, "--global-batch", 64)
    record = run(*command, "--json").json
    assert not record["fits"]
    assert record["ways_to_fit"]
    assert all(way["memory"] <= record["capacity"] for way in record["ways_to_fit"])
    assert record["ways_to_fit"][0]["change"] in run(*command).out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--tp", 3, "--devices", 8), "give 6"),
        (("--tp", 16, "--devices", 16), "1, 2, 4, 8"),
        (("--zero", "zero4"), "zero3"),
        (("--recompute", "ful"), "full"),
        (("--engine", "magatron"), "megatron"),
        (("--global-batch", 63), "60 and 64"),
    ],
)
def test_wrong_jobs_end_with_a_way_out(run, change, said):
    ended = run(*STEP, *change)
    assert ended.code == 2
    assert said in ended.err


def test_a_table_is_answered_row_by_row(run, tmp_path):
    names = ("# GPUs", "global batch", "micro batch", "hidden size", "attention heads", "# layers", "sequence length",
             "tensor parallelism", "data parallelism", "pipeline parallelism")  # fmt: skip
    rows = ((8, 32, 2, 2048, 16, 24, 1024, 2, 2, 2), (8, 32, 2, 2048, 16, 24, 1024, 2, 2, 4))
    table = tmp_path / "runs.csv"
    table.write_text("\n".join(",".join(map(str, row)) for row in (names, *rows)) + "\n")
    out = tmp_path / "out.csv"
    said = run("predict", "training", table, "--gpu", "a100", "--out", out, "--json").json
    assert (said["rows"], said["answered"], said["evidence"]) == (2, 1, {"measured": 1})
    from nearpeak.cost import read_table

    seconds = read_table(out)["seconds"]
    assert np.isfinite(seconds).tolist() == [True, False]
    assert 0.1 < seconds[0] < 1.0
