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

from nearpeak.cost import stored
from nearpeak.errors import NearpeakError, UsageError
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
    run(TASKS, figures, tmp_path / "one.csv", workers=2)
    assert (tmp_path / "one.csv").read_text().startswith("x,name,fails,list,third")


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
    with pytest.raises(UsageError, match="its tasks is 1, .*, not 2, "):
        run([*tasks, {"x": 2}], noted, out, workers=1)
    with pytest.raises(UsageError, match="its function is .*noted, not .*figures"):
        run(tasks, figures, out, workers=1)
    other = tmp_path / "calibration"
    other.mkdir()
    (other / "about.json").write_bytes(stored.data("about.json") + b" ")
    with stored.using(str(other)), pytest.raises(UsageError, match="its calibration is"):
        run(tasks, noted, out, workers=1)
    assert log_of(out).read_bytes() == kept
    for damaged, says in ((b"hello", "is not the log of a sweep"), (kept + b'{"task": 7}\n', "line 2 of .* is damaged")):
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


def test_a_ray_cluster_writes_the_same_table_and_redoes_what_died(tmp_path, cluster):
    for name, tasks, function in (
        ("plain", TASKS, figures),
        ("deadly", [{"x": x, "deaths": {2: 1, 4: 99}.get(x, 0)} for x in range(6)], deadly),
    ):
        tables = {}
        for where, options in {"ray": {"ray": cluster}, "cores": {"workers": 2}}.items():
            note, out = tmp_path / f"{name}-{where}", tmp_path / f"{name}-{where}.parquet"
            run([task | {"note": str(note)} for task in tasks], function, out, **options)
            place = list(columns(out)).index("note")
            tables[where] = [row[:place] + row[place + 1 :] for row in rows(out)]
        assert tables["ray"] == tables["cores"]
        assert columns(tmp_path / f"{name}-ray.parquet") == columns(tmp_path / f"{name}-cores.parquet")
    assert [len((tmp_path / f"deadly-ray.{x}").read_text()) for x in range(6)] == [1, 1, 2, 1, 3, 1]


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
