"""The command line as a person meets it: answers, exit codes, and messages that name the way out."""

import subprocess
import sys

import duckdb
import numpy as np
import pytest

PLAN = ("plan", "Qwen/Qwen3-32B", "--gpus", "h200:1..4", "--isl", "2000", "--osl", "200")


def test_a_plan_ranks_both_structures_and_counts_what_it_priced(run):
    found = run(*PLAN, "--ttft", "1", "--tpot", "0.02", "--json")
    assert found.code == 0
    answer = found.json
    assert answer["priced"] > 10_000
    assert {p["mode"] for p in answer["plans"]} == {"agg", "disagg"}
    assert [p["rank"] for p in answer["plans"]] == list(range(1, len(answer["plans"]) + 1))
    best = answer["plans"][0]
    assert best["figures"]["ttft"]["low"] < best["figures"]["ttft"]["value"] <= 1
    assert best["bottleneck"] in best["decode_step"]
    assert answer["front"]


def test_a_plan_reads_as_a_table(run):
    found = run(*PLAN, "--ttft", "1")
    assert found.code == 0
    assert "TTFT" in found.out
    assert "Why" in found.out


def test_an_unreachable_goal_says_what_comes_nearest_and_what_binds(run):
    found = run(*PLAN, "--tpot", "1e-6", "--json")
    assert found.code == 1
    assert found.json["nearest_miss"]["binding"] == "tpot"
    told = run(*PLAN, "--tpot", "1e-6")
    assert told.code == 1
    assert "tpot" in (told.out + told.err).lower()


def test_a_plan_leaves_a_page_and_launch_files(run, tmp_path):
    found = run(*PLAN, "--html", tmp_path / "plan.html", "--export", tmp_path / "launch", "--json")
    assert found.code == 0
    assert "plotly" in (tmp_path / "plan.html").read_text()
    scripts = [p.read_text() for p in (tmp_path / "launch").iterdir()]
    assert any("vllm serve" in text for text in scripts)
    again = run(*PLAN, "--export", tmp_path / "launch")
    assert again.code == 2
    assert "launch" in again.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("plan", "Qwen/Qwen9-32B", *PLAN[2:]), 2, "Qwen9-32B"),
        (("plan", PLAN[1], "--gpus", "h2000", *PLAN[4:]), 2, "h200"),
        (("plan", PLAN[1], "--gpus", "h200:8..2", *PLAN[4:]), 2, "8..2"),
        (("plan", PLAN[1], "--gpus", "h200-8", *PLAN[4:]), 2, "h200-8"),
        ((*PLAN, "--goal", "speed"), 2, "throughput"),
        ((*PLAN, "--engine", "vlm"), 2, "vllm"),
        ((*PLAN, "--technique", "magic"), 2, "magic"),
        ((*PLAN, "--ttft", "-1"), 2, "ttft"),
        ((*PLAN, "--price", "h200=cheap"), 2, "h200=cheap"),
        (("predict", "model", "Qwen/Qwen3-8B", "--gpu", "h100", "--isl", "10", "--osl", "10", "--kv", "fp3"), 2, "fp3"),
        (("predict", "model", "Qwen/Qwen3-8B", "--gpu", "h100", "--isl", "nan", "--osl", "10"), 2, "nan"),
        (("predict", "model", "Qwen/Qwen3-8B", "--gpu", "h100", "--isl", "inf", "--osl", "10"), 2, "inf"),
        (("predict", "model", "Qwen/Qwen3-8B", "--gpu", "h100", "--isl", "1e6", "--osl", "10"), 2, "40960"),
        ((*PLAN, "--price", "l4=1"), 2, "l4"),
        (("plan", PLAN[1], "--gpus", "h200:1..99999999999999999999", *PLAN[4:]), 2, "1,000,000"),
        (("hardware", "h100", "--here"), 2, "h100"),
        (("predict", "serving", "missing.parquet"), 2, "missing.parquet"),
        (("hardware", "h1000"), 2, "h100"),
        (("techniques", "magic"), 2, "magic"),
        (("measurements", "abc"), 2, "abc"),
        (("models", "no/such"), 2, "no/such"),
        (("plan",), 2, "MODEL"),
    ],
)
def test_bad_input_gets_one_message_and_its_exit_code(run, arguments, code, words):
    found = run(*arguments)
    assert found.code == code, found.err
    assert words.lower() in found.err.lower()
    assert "Traceback" not in found.err


def test_a_config_with_missing_fields_names_them(run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    found = run("models", tmp_path)
    assert found.code == 2
    assert "num_hidden_layers" in found.err


def test_one_setup_is_predicted_in_full(run):
    found = run("predict", "model", "Qwen/Qwen3-8B", "--gpu", "h100", "--isl", "1000", "--osl", "200", "--json")
    assert found.code == 0
    assert found.json["figures"]["tpot"]["value"] > 16e9 / 3.35e12 * 0.9
    told = run("predict", "model", "Qwen/Qwen3-8B", "--gpu", "h100", "--isl", "1000", "--osl", "200")
    assert "time to first token" in told.out


@pytest.fixture
def serving_csv(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "backend,model,gpu,mode,isl,osl,tp_size,concurrency,ttft,tpot\n"
        "vllm,Qwen/Qwen3-8B,h100_sxm,agg,1024,256,1,8,123,456\n"
        "vllm,no/such,h100_sxm,agg,1024,256,1,8,,\n"
        "sglang,Qwen/Qwen3-32B,b200_sxm,agg,1024,256,2,16,123,456\n"
    )
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_runs_is_answered_row_by_row(run, serving_csv, tmp_path, kind):
    out = tmp_path / f"predicted.{kind}"
    found = run("predict", "serving", serving_csv, "--out", out, "--json")
    assert found.code == 0
    assert (found.json["rows"], found.json["answered"]) == (3, 2)
    rows = duckdb.sql(f"SELECT * FROM '{out}'").fetchnumpy()
    assert list(rows["model"]) == ["Qwen/Qwen3-8B", "no/such", "Qwen/Qwen3-32B"]
    tpot = np.ma.filled(rows["tpot"].astype(float), np.nan)
    assert (tpot[[0, 2]] < 1).all()
    assert "no/such" in rows["error"][1]
    again = run("predict", "serving", serving_csv, "--out", out)
    assert again.code == 2


def test_a_table_of_operators_is_answered(run, tmp_path):
    path, out = tmp_path / "gemm.csv", tmp_path / "out.csv"
    path.write_text(
        "gpu,backend,backend_version,gemm_dtype,m,n,k,seconds\n"
        "h100_sxm,vllm,0.24.0,bfloat16,4096,4096,4096,99\n"
        "l40s,vllm,0.24.0,fp8,4096,4096,4096,99\n"
    )
    found = run("predict", "operators", path, "--op", "gemm", "--out", out, "--json")
    assert found.code == 0
    rows = duckdb.sql(f"SELECT * FROM '{out}'").fetchnumpy()
    flops = 2 * 4096**3
    assert rows["seconds"][0] > flops / 990e12
    assert (rows["seconds_low"] < rows["seconds"]).all()
    assert list(rows["evidence"]) == ["measured", "transferred"]


@pytest.mark.parametrize("command", [("models",), ("hardware",), ("techniques",), ("measurements",)])
def test_catalogues_read_as_tables_and_as_json(run, command):
    assert run(*command).code == 0
    assert isinstance(run(*command, "--json").json, list)


def test_this_machine_is_detected(run):
    found = run("hardware", "--here", "--json")
    assert found.code == 0
    cpu = found.json[-1]
    assert cpu["memory"][0]["bandwidth"] > 1e9
    assert cpu["rates"]["fp32"] > 1e9


def test_help_has_an_example_for_every_command(run):
    for command in ("plan", "predict", "apply", "prove", "models", "hardware", "techniques", "measurements"):
        found = run(command, "--help")
        assert found.code == 0
        assert f"nearpeak {command}" in found.out
        assert len(found.out.splitlines()) <= 50


def test_the_command_line_starts_without_the_rooms():
    rooms = {"numpy", "torch", "rich", "duckdb", "plotly"}
    code = f"import sys, nearpeak.cli; print(sorted({rooms} & sys.modules.keys()))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"


def test_a_whole_machine_is_shown_by_what_follows_from_its_parts(run):
    machine = run("hardware", "leonardo", "--json").json
    assert machine["devices"] == 13_824
    assert machine["switch_hops_at_most"] == 3
    assert run("hardware", "nvlink4").code == run("hardware", "gb200_nvl72").code == 0


@pytest.mark.parametrize("option", ["--html", "--export"])
def test_a_plan_leaves_what_is_there_alone_and_says_so_before_it_searches(run, tmp_path, option):
    there = tmp_path / "there"
    there.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for place in (there, tmp_path, link):
        found = run(*PLAN, option, place)
        assert (found.code, found.out) == (2, "")
        assert "exists" in found.err
    assert there.read_text() == "mine"
    assert link.is_symlink()


def test_a_place_that_cannot_be_written_is_named_before_the_work(run, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "g.csv").write_text("gpu,backend,gemm_dtype,m,n,k\nh100,vllm,bfloat16,1,2,3\n")
    for place in ("file/out.csv", "missing/out.csv"):
        for command in ((*PLAN, "--html"), ("predict", "operators", tmp_path / "g.csv", "--op", "gemm", "--out")):
            found = run(*command, tmp_path / place)
            assert (found.code, found.out) == (2, "")
            assert "no folder" in found.err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["file", "g.csv"]


def test_answers_in_any_case_are_dropped(run, tmp_path):
    (tmp_path / "g.csv").write_text("gpu,backend,gemm_dtype,m,n,k,SECONDS\nh100,vllm,bfloat16,1,2,3,5\n")
    found = run("predict", "operators", tmp_path / "g.csv", "--op", "gemm", "--out", tmp_path / "o.csv", "--json")
    assert found.json["answered"] == 1
    header = (tmp_path / "o.csv").read_text().splitlines()[0]
    assert header.lower().split(",").count("seconds") == 1


def test_a_full_disk_gets_one_message(monkeypatch, run):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("json.dumps", full)
    found = run("models", "--json")
    assert (found.code, found.err) == (1, "error: No space left on device\n")
