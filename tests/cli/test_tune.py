"""``nearpeak tune``: commands, functions, files, logs, pages, and what it says about mistakes."""

import json

import pytest

INLINE = ("-p", "n=0..20", "--command", "echo $((({n} - 13) * ({n} - 13) + 5))", "--value", r"^\d+$", "--repeats", 1)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module in the current folder with functions to tune."""
    name = f"tuned_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "def bowl(x, kind='a'):\n    return (x - 3) ** 2 + (kind == 'b') + 1\n"
        "def hump(x):\n    return 10 - (x - 3) ** 2\n"
        "def fails(x):\n    raise ValueError('never')\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    return name


def test_a_command_with_its_default(run):
    ran = run("tune", *INLINE, "--default", "n=3", "--budget", 12, "--json")
    assert ran.code == 0
    found = ran.json
    assert found["best"] == {"n": 13}
    assert found["value"] == 5
    evidence = found["evidence"]
    assert (evidence["best"], evidence["default"], evidence["gain"]) == (5, 105, 21)
    assert (evidence["rounds"], evidence["low"], evidence["sure"]) == (1, None, False)
    assert found["command"] == "echo $(((13 - 13) * (13 - 13) + 5))"
    assert found["convergence"][0]["value"] == 105
    assert [step["value"] for step in found["convergence"]] == sorted(
        (step["value"] for step in found["convergence"]), reverse=True
    )


def test_what_is_printed(run):
    ran = run("tune", *INLINE[:-1], "1..2", "--default", "n=3", "--budget", 8, "--rounds", 6)
    assert ran.code == 0
    for part in ("8 evaluations; stopped by 8 evaluations", "best     n ", "default  105: the best is", "times better",
                 "without noise", "command  echo"):  # fmt: skip
        assert part in ran.out
    assert ran.out.count("*") >= 10


def test_a_file_whose_commands_run_in_its_folder(run, tmp_path):
    (tmp_path / "offset").write_text("7")
    (tmp_path / "space.toml").write_text(
        "[parameters]\nn = [1, 2, 3]\n[default]\nn = 1\n[run]\n"
        "build = 'echo $(({n} * 10 + $(cat offset) + $MORE)) > {scratch}/answer'\n"
        "command = 'cat {scratch}/answer'\nvalue = '\\d+'\nenvironment = { MORE = '{n}' }\nmaximize = true\n"
    )
    ran = run("tune", tmp_path / "space.toml", "--repeats", 1, "--json")
    assert ran.code == 0
    assert ran.json["best"] == {"n": 3}
    assert ran.json["value"] == 40
    assert ran.json["evidence"]["gain"] == pytest.approx(40 / 18)
    assert ran.json["stopped"] == "every configuration of the space"


def test_a_function_and_its_page(run, module, tmp_path):
    page = tmp_path / "page.html"
    ran = run("tune", "-p", "x=0.0..10.0", "-p", "kind=a,b", "--default", "x=9 kind=b", "--function", f"{module}:bowl",
              "--budget", 25, "--html", page, "--json")  # fmt: skip
    assert ran.code == 0
    assert ran.json["best"]["kind"] == "a"
    assert ran.json["value"] < 1.5
    assert ran.json["evidence"]["default"] == 38
    html = page.read_text()
    assert "best so far" in html
    assert '"evaluations"' in html


def test_the_largest_value(run, module):
    ran = run("tune", "-p", "x=0..9", "--function", f"{module}:hump", "--maximize", "--budget", 10, "--json")
    assert (ran.json["best"], ran.json["value"]) == ({"x": 3}, 10)
    assert ran.json["default"] is None


def test_workers_and_a_time_limit(run, module):
    ran = run("tune", "-p", "x=0..9", "--function", f"{module}:bowl", "--workers", 2, "--time-limit", 60, "--json")
    assert ran.json["value"] == 1
    assert ran.json["evaluations"] == 10


def test_a_log_is_gone_on_with_and_that_of_another_search_is_refused(run, tmp_path):
    log = tmp_path / "log.jsonl"
    assert run("tune", *INLINE, "--budget", 3, "--log", log).code == 0
    ran = run("tune", *INLINE, "--budget", 6, "--log", log, "--json")
    assert ran.json["evaluations"] == 6
    assert sum("told" in json.loads(line) for line in log.read_text().splitlines()) == 6
    ran = run("tune", "-p", "n=0..21", *INLINE[2:], "--log", log)
    assert ran.code == 2
    assert "log of another search" in ran.err


def test_if_all_fail_it_says_why(run, module):
    ran = run("tune", "-p", "x=0..2", "--function", f"{module}:fails")
    assert ran.code == 1
    assert "all 3 evaluations failed" in ran.err
    assert "never" in ran.err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "no space given"),
        (("-p", "n=1..3"), "give what to tune"),
        (("-p", "n=1..3", "--replay", "x.parquet"), "-p and --replay given"),
        (("-p", "n=1..3", "--command", "a {n}", "--function", "a:b"), "give one of them"),
        (("-p", "n=1..3", "--command", "a {m}"), "placeholder {m}"),
        (("-p", "n=1..3", "--command", "a {n}", "--value", "("), "no regular expression"),
        (("-p", "n=1..3", "--command", "a {n}", "--repeats", "x"), "--repeats 'x' is not"),
        (("-p", "n=1..3", "--command", "a {n}", "--repeats", "5..2"), "repeats go from"),
        (("-p", "n=1..3", "--command", "a {n}", "--seconds", "-1"), "--seconds -1.0 must be"),
        (("-p", "n=1..3", "--command", "a {n}", "--env", "X"), "--env 'X' is not"),
        (("-p", "n=1..3", "--command", "a {n}", "--method", "bayez"), "did you mean bayes"),
        (("-p", "n=1..3", "--command", "a {n}", "--html", "/no/such/x.html"), "there is no folder"),
        (("-p", "n=1..3", "--constraint", "n > 5", "--command", "a {n}"), "n > 5"),
        (("-p", "n=1..3", "--function", "nearpeak"), "is not MODULE:FUNCTION"),
        (("-p", "n=1..3", "--function", "no_such_module:f"), "no module 'no_such_module'"),
        (("-p", "n=1..3", "--function", "json:nothing"), "json has no 'nothing'"),
        (("-p", "n=1..3", "--function", "json:__name__"), "cannot be called"),
        (("space.toml", "--default", "n=1"), "for -p"),
        (("none.toml",), "is no file"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_runs(arguments, why, run):
    ran = run("tune", *arguments)
    assert ran.code == 2
    assert why in ran.err


@pytest.mark.slow
def test_a_ray_cluster(run, module):
    pytest.importorskip("ray")
    import ray

    try:
        ran = run("tune", "-p", "x=0..9", "--function", f"{module}:bowl", "--ray", "local", "--workers", 2, "--json")
    finally:
        ray.shutdown()
    assert ran.code == 0
    assert ran.json["value"] == 1
    assert ran.json["evaluations"] == 10
