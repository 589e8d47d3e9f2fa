"""Sweeps: the same table whoever carries it out, resumed after a kill, with the work of dead workers done again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from nearpeak.cli import nearpeak
from nearpeak.cost import stored
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.hardware import device
from nearpeak.simulate.sweep import log_of, run


def figures(task):
    """Figures of every kind; what a task asks for besides."""
    if task.get("fails"):
        raise ValueError(f"no figure for {task['x']}")
    found = {"third": task["x"] / 3, "even": task["x"] % 2 == 0, "none": float("nan"), "text": "2024-01-01"}
    return found | ({"late": task["x"]} if task["x"] > 6 else {})


def noted(task):
    """Leaves a line in a file each time that it runs, and takes its time."""
    with open(task["note"], "a") as note:
        note.write(f"{task['x']}\n")
    time.sleep(task.get("seconds", 0))
    return {"double": 2 * task["x"]}


def deadly(task):
    """Kills its process, so many times."""
    with open(f"{task['note']}.{task['x']}", "a+") as note:
        note.write("x")
        note.flush()
        if note.tell() <= task["deaths"]:
            os._exit(1)
    return {"double": 2 * task["x"]}


def both(task):
    """Kills its process, so many times, and then makes figures."""
    return deadly(task) | figures(task)


def rows(path):
    return duckdb.sql(f"select * from '{path}'").fetchall()


def columns(path):
    return dict(duckdb.sql(f"select column_name, column_type from (describe select * from '{path}')").fetchall())


TASKS = [{"x": x, "name": f"it's {x}", "fails": x == 3, "list": [x, None]} for x in range(9)]


def test_one_worker_and_three_write_the_same_table(tmp_path):
    told = []
    one, three = tmp_path / "one.parquet", tmp_path / "three.parquet"
    run(TASKS, figures, one, workers=1, progress=lambda *seen: told.append(seen))
    run(TASKS, figures, three, workers=3)
    assert one.read_bytes() == three.read_bytes()
    assert told == [(done, 9) for done in range(10)]
    assert columns(one) == {
        "x": "BIGINT", "name": "VARCHAR", "fails": "BOOLEAN", "list": "VARCHAR", "third": "DOUBLE", "even": "BOOLEAN",
        "none": "VARCHAR", "text": "VARCHAR", "late": "BIGINT", "error": "VARCHAR",
    }  # fmt: skip
    found = rows(one)
    assert [row[0] for row in found] == list(range(9))
    assert found[1] == (1, "it's 1", False, "[1,null]", 1 / 3, False, None, "2024-01-01", None, None)
    assert found[3][4:] == (None, None, None, None, None, "ValueError: no figure for 3")
    assert found[8][8] == 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.parquet", "three.parquet"]


def _alive(children):
    return [child for child in children if Path(f"/proc/{child}").exists()]


def _children(parent):
    return Path(f"/proc/{parent}/task/{parent}/children").read_text().split()


def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    note, out = tmp_path / "note", tmp_path / "out.parquet"
    tasks = [{"x": x, "note": str(note), "seconds": 0.1 if x < 40 else 0} for x in range(50)]
    script = tmp_path / "killed.py"
    script.write_text(
        f"import json, sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom test_sweep import noted, run\n"
        "if __name__ == '__main__':\n    run(json.load(open(sys.argv[1])), noted, Path(sys.argv[2]), workers=2)\n"
    )
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    process = subprocess.Popen([sys.executable, script, tmp_path / "tasks.json", out])
    end = time.monotonic() + 120
    while not (log_of(out).exists() and len(log_of(out).read_bytes().splitlines()) > 5):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    with pytest.raises(UsageError, match="another process is at this sweep"):
        run(tasks, noted, out, workers=1)
    children = _children(process.pid) if sys.platform == "linux" else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    while _alive(children):  # workers end with the sweep, though nobody told them
        assert time.monotonic() < end
        time.sleep(0.02)
    before = note.read_text().split()
    done = [json.loads(line)["result"]["x"] for line in log_of(out).read_bytes().splitlines()[1:]]
    assert 5 <= len(done) < 40
    with log_of(out).open("a") as log:
        log.write('{"task": 49, "key": "cut')  # as a kill in the middle of a write leaves it
    told = []
    run(tasks, noted, out, workers=2, progress=lambda *seen: told.append(seen))
    assert told[0] == (len(done), 50)
    again = note.read_text().split()[len(before) :]
    assert sorted(map(int, again)) == sorted(set(range(50)) - set(done))
    found = duckdb.sql(f"select x, double, error from '{out}'").fetchall()
    assert found == [(x, 2 * x, None) for x in range(50)]


def test_the_work_of_dead_workers_is_done_again_and_only_theirs(tmp_path):
    tasks = [{"x": x, "note": str(tmp_path / "tries"), "deaths": {2: 1, 4: 99}.get(x, 0)} for x in range(6)]
    run(tasks, deadly, tmp_path / "out.parquet", workers=2)
    found = rows(tmp_path / "out.parquet")
    assert [row[3] for row in found] == [0, 2, 4, 6, None, 10]
    assert [row[4] is None for row in found] == [True, True, True, True, False, True]
    assert "died 3 times" in found[4][4]
    assert [len((tmp_path / f"tries.{x}").read_text()) for x in range(6)] == [1, 1, 2, 1, 3, 1]


def test_a_log_of_another_sweep_is_refused_with_the_reason(tmp_path, monkeypatch):
    out = tmp_path / "out.parquet"
    tasks = [{"x": 1, "note": str(tmp_path / "note")}]

    def interrupted(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tasks, noted, out, workers=1, progress=interrupted)
    kept = log_of(out).read_bytes()
    with pytest.raises(UsageError, match=r"its tasks is 1, .*, not 2, "):
        run([*tasks, {"x": 2}], noted, out, workers=1)
    with pytest.raises(UsageError, match=r"its function is .*noted, not .*figures"):
        run(tasks, figures, out, workers=1)
    other = tmp_path / "calibration"
    other.mkdir()
    (other / "about.json").write_bytes(stored.data("about.json") + b" ")
    with stored.using(str(other)), pytest.raises(UsageError, match="its calibration is"):
        run(tasks, noted, out, workers=1)
    assert log_of(out).read_bytes() == kept
    for damaged, says in (
        (b"hello", "is not the log of a sweep"),
        (kept + b'{"task": 7}\n', "line 2 of .* is damaged"),
    ):
        log_of(out).write_bytes(damaged)
        with pytest.raises(UsageError, match=says):
            run(tasks, noted, out, workers=1)
        assert log_of(out).read_bytes() == damaged


def test_what_makes_no_sense_is_refused_before_anything_runs(tmp_path):
    out = tmp_path / "out.parquet"
    for tasks, options, says in (
        ([], {}, "no tasks"),
        ([{"x": 1}, {"x": 2}, {"x": 1}], {}, "tasks 0 and 2 are the same"),
        ([{"x": float("nan")}], {}, "task 0 is not JSON"),
        ([{"x": {1, 2}}], {}, "task 0 is not JSON"),
        ([{"x": 1}], {"workers": 0}, "0 workers"),
        ([{"x": 1}], {"workers": 2, "ray": "auto"}, "2 workers"),
        ([{"x": 1}], {"out": tmp_path / "out.txt"}, "neither of .csv, .parquet"),
    ):
        with pytest.raises(UsageError, match=says):
            run(tasks, figures, **{"out": out} | options)
    with pytest.raises(NearpeakError, match="cannot be sent"):
        run([{"x": 1}], lambda task: {}, out, workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["out.parquet.log"]  # of the lambda's sweep, without a result


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of two cores on this machine."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install nearpeak[ray])")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # workers import the functions above
    context = ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield context.address_info["address"]
    ray.shutdown()


def on_ray_and_here(folder, cluster, tasks, function):
    """Rows of a sweep on the cluster, equal to those of the same sweep on two processes but for the notes."""
    tables = []
    for where, options in {"ray": {"ray": cluster}, "here": {"workers": 2}}.items():
        out = folder / f"{where}.parquet"
        run([task | {"note": str(folder / where)} for task in tasks], function, out, **options)
        tables.append((columns(out), duckdb.sql(f"select * exclude (note) from '{out}'").fetchall()))
    assert tables[0] == tables[1]
    return tables[0][1]


def test_a_ray_cluster_writes_the_same_table_and_redoes_what_died(tmp_path, cluster):
    tasks = [task | {"deaths": int(task["x"] == 2)} for task in TASKS]
    found = on_ray_and_here(tmp_path, cluster, tasks, both)
    assert [row[-1] for row in found] == [None, None, None, "ValueError: no figure for 3", *[None] * 5]
    assert [len((tmp_path / f"ray.{x}").read_text()) for x in range(9)] == [1, 1, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.slow
def test_what_kills_every_worker_of_a_ray_cluster_is_an_error_of_its_row_alone(tmp_path, cluster):
    found = on_ray_and_here(tmp_path, cluster, [{"x": x, "deaths": 99 * (x == 1)} for x in range(4)], deadly)
    assert [row[2] for row in found] == [0, None, 4, 6]
    assert "died 3 times" in found[1][3]
    assert [len((tmp_path / f"ray.{x}").read_text()) for x in range(4)] == [1, 3, 1, 1]


def test_a_cluster_that_is_not_there_is_said_to_be_not_there(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (pip install nearpeak[ray])")
    # In a process of its own: the tests' own cluster would be taken.
    script = (
        "import sys, pathlib; from nearpeak.errors import NearpeakError\n"
        "from nearpeak.simulate.sweep import run\n"
        "try:\n    run([{'x': 1}], dict, pathlib.Path(sys.argv[1]), ray='127.0.0.1:1')\n"
        "except NearpeakError as error:\n    print(error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "o.parquet"], capture_output=True, text=True, check=True
    )
    assert "no Ray cluster at '127.0.0.1:1'" in found.stdout


def command(*arguments):
    return CliRunner().invoke(nearpeak, ["simulate", *map(str, arguments)])


MODEL = "Qwen/Qwen3-8B"


def test_a_row_of_the_command_is_what_a_simulation_by_itself_says(tmp_path):
    trace, out = tmp_path / "trace.csv", tmp_path / "out.parquet"
    lines = [f"{i * 0.1},{100 + 37 * i % 900},{20 + 13 * i % 90}" for i in range(300)]
    trace.write_text("\n".join(["arrival,isl,osl", *lines]))
    settings = ("--trace", trace, "--ttft", 0.2, "--tpot", 0.012, "--json")
    alone = json.loads(command("serving", MODEL, "--gpu", "h100", "--speed-up", 2, *settings).stdout)
    swept = ("sweep", MODEL, "--gpu", "t4,h100", "--tp", "1,2", "--speed-up", "1,2", *settings)
    told = command(*swept, "--out", out, "--workers", 1)
    assert told.exit_code == 0, told.output
    answer = json.loads(told.stdout)
    assert (answer["simulations"], answer["resumed"], answer["failed"]) == (8, 0, 2)
    table = duckdb.sql(f"select * from '{out}'").fetchnumpy()
    assert list(zip(table["gpu"], table["tp"], table["speed_up"], strict=True)) == [
        (gpu, tp, speed) for gpu in ("t4", "h100") for tp in (1, 2) for speed in (1.0, 2.0)
    ]
    assert ["does not fit" in (error or "") for error in table["error"]] == [True] * 2 + [False] * 6
    row = {name: column[5] for name, column in table.items()}
    for name in ("goodput", "tokens_per_second", "joules_per_token", "rejected", "utilization_share", "saturated"):
        assert row[name] == alone[name], name
    for name in ("ttft", "tpot", "latency"):
        for of in ("p50", "p90", "p99", "mean"):
            assert row[f"{of}_{name}"] == alone["percentiles"][name][of]
    dollars = row["dollars_per_million_tokens"] * row["tokens_per_second"] * 3600 / 1e6
    assert dollars == pytest.approx(device("h100").price_per_hour)
    meet = (table["within_targets_share"] >= 0.99) & ~table["saturated"]
    cheapest = sorted(table["dollars_per_million_tokens"][meet.filled(False)])
    assert answer["meet_targets"] == len(cheapest) == len(answer["best"]) > 0
    assert [one["dollars_per_million_tokens"] for one in answer["best"]] == cheapest


def test_the_command_refuses_what_it_cannot_carry_out(tmp_path):
    out, there = tmp_path / "out.parquet", tmp_path / "there.parquet"
    there.touch()
    drawn = ("--rate", "1,2", "--isl", 100, "--osl", 10)
    for arguments, says in (
        (("--gpu", "h100,h999", *drawn), "unknown device 'h999'"),
        (("--gpu", "h100", "--policy", "stall-free,no-such", *drawn), "unknown policy 'no-such'"),
        (("--gpu", "h100", "--weights", "fp8,fp7", *drawn), "'fp7'"),
        (("--gpu", "h100", "--tp", "1,,2", *drawn), "''"),
        (("--gpu", "h100", "--tp", "1,1", *drawn), "one twice"),
        (("--gpu", "h100", "--tp", "1,0", *drawn), "0 is not in the range"),
        (("--gpu", "h100", "--concurrency", "1,2", *drawn), "rate and concurrency given"),
        (("--gpu", "h100"), "no traffic given"),
        (("--gpu", "h100", "--trace", tmp_path / "no.csv"), "there is no trace"),
        (("--gpu", "h100", "--workers", 2, "--ray", "auto", *drawn), "--workers 2 and --ray auto"),
        (("--gpu", "h100", "--out", there, *drawn), "exists"),
        (("--gpu", "h100", "--out", tmp_path / "out.txt", *drawn), "neither of .csv, .parquet"),
    ):
        told = command("sweep", MODEL, "--out", out, *arguments)
        assert told.exit_code != 0
        assert says in told.output + str(told.exception), arguments
    assert [p.name for p in tmp_path.iterdir()] == ["there.parquet"]
    assert not there.read_bytes()
