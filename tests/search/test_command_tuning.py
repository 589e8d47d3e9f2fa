"""Command lines as what is tuned, and the files that say over what."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search import Categorical, Float, Integer, Ordinal, Permutation, Space
from nearpeak.search.commands import CommandTarget, Value, shell
from nearpeak.search.measurement import Repeats, RunFailed
from nearpeak.search.space_file import inline_space, read_space
from nearpeak.search.tune import tune


def ran(command, configuration, **more):
    with CommandTarget(command, frozenset(configuration), **more).prepared(configuration) as run:
        return run()


def output_of(command, configuration):
    target = CommandTarget(command, frozenset(configuration))
    return shell(target.filled(command, configuration, "/s"), os.environ)[0]


@pytest.mark.parametrize("word", ["plain", "two words", "it's", '"; echo hacked', "$(echo hacked)", "*", "-n"])
def test_a_value_arrives_as_one_argument_whatever_is_in_it(word):
    assert output_of("printf '<%s>' a{word}z end", {"word": word}) == f"<a{word}z><end>"


def test_what_is_not_a_placeholder_stays():
    found = output_of("X=5; echo ${X} {{n}} {n} {1} | awk '{ print $0 }'", {"n": 3})
    assert found.split() == ["5", "{n}", "3", "{1}"]


def test_booleans_lists_and_inactive_parameters():
    target = CommandTarget("run {on} {order} [{gone}]", frozenset({"on", "order", "gone"}))
    assert target.filled(target.command, {"on": True, "order": [2, 0, 1]}, "/s") == "run true 2,0,1 []"


def test_templates_that_make_no_sense():
    with pytest.raises(UsageError, match=r"placeholder \{tyle\}; parameters are tile"):
        CommandTarget("prog {tile} {tyle}", frozenset({"tile"}))
    with pytest.raises(UsageError, match="unroll would change nothing"):
        CommandTarget("prog {tile}", frozenset({"tile", "unroll"}))
    with pytest.raises(UsageError, match="cannot be called scratch"):
        CommandTarget("prog {scratch}", frozenset({"scratch"}))
    assert CommandTarget("prog", frozenset({"n"}), environment={"N": "{n}"}).names == {"n"}


def test_the_value_by_expression_json_and_time():
    assert ran("echo 'step 1: 9 s'; echo 'step 2: {n}.5 s'", {"n": 7}, value=Value(r"([\d.]+) s")) == 7.5
    assert ran("echo 1e3{n}", {"n": 1}, value=Value(r"^\S+$")) == 1e31
    nested = 'echo noise; echo \'{"runs": [{"t": 1}, {"t": \'{n}\'}]}\''
    assert ran(nested, {"n": 4}, value=Value("json:runs.1.t")) == 4
    assert 0.05 < ran("sleep 0.0{n}", {"n": 5}) < 5


@pytest.mark.parametrize(
    ("value", "command", "why"),
    [
        (r"took (\d+)", "echo nothing {n}", "matches nothing in the output 'nothing 1'"),
        (r"(\w+)", "echo abc{n}", "gives 'abc1', which is no number"),
        (r"(\w+)", "echo nan; : {n}", "gives nan, which is no number|gives nan"),
        ("json:a.b", """echo '{{a}}' {n}""", "is no JSON"),
        ("json:a.b", """printf '{"a": {"c": %s}}' {n}""", "no 'b' of 'a.b'; it has c"),
        ("json:a", """printf '{"a": [%s]}' {n}""", "no number"),
    ],
)
def test_a_value_that_is_not_there_is_a_failure_with_its_reason(value, command, why):
    with pytest.raises(RunFailed, match=why):
        ran(command, {"n": 1}, value=Value(value))


def test_expressions_that_make_no_sense():
    with pytest.raises(UsageError, match="no regular expression"):
        Value("(")
    with pytest.raises(UsageError, match="2 groups"):
        Value("(a)(b)")


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("echo first >&2; echo no room >&2; exit {n}", "exit code 3: no room"),
        ("echo on stdout; exit {n}", "exit code 3: on stdout"),
        ("exit {n}", "^exit code 3$"),
        ("kill -SEGV $$; : {n}", "SIGSEGV"),
        ("no-such-program {n}", "exit code 127: .*not found"),
    ],
)
def test_a_command_that_fails_says_its_last_line(command, why):
    with pytest.raises(RunFailed, match=why):
        ran(command, {"n": 3})


def test_a_build_that_fails_says_so_and_scratch_is_a_folder_of_its_own_that_goes():
    with pytest.raises(RunFailed, match="the build failed: exit code 1: broken"):
        ran("true {n}", {"n": 3}, build="echo broken >&2; exit 1")
    target = CommandTarget("cat {scratch}/n", frozenset({"n"}), build="echo {n} > {scratch}/n", value=Value(r"\d+"))
    with target.prepared({"n": 3}) as three, target.prepared({"n": 4}) as four:
        assert (three(), four(), three()) == (3, 4, 3)
    kept = CommandTarget("echo {n} {scratch}", frozenset({"n"}), build="touch {scratch}/x")
    with kept.prepared({"n": 1}) as run:
        run()
    assert not list(Path(tempfile.gettempdir()).glob("nearpeak-tune-*/x"))


def test_variables_and_the_folder(tmp_path):
    (tmp_path / "factor").write_text("10")
    assert ran("echo $((N * $(cat factor)))", {"n": 4}, environment={"N": "{n}"}, folder=tmp_path,
               value=Value(r"\d+")) == 40  # fmt: skip


def gone(pid):
    """Whether a process has ended, or will within a few seconds."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_the_time_limit_ends_all_that_the_command_began(tmp_path):
    begun = time.perf_counter()
    with pytest.raises(RunFailed, match=r"longer than 0\.5 s"):
        ran(f"sh -c 'sleep 60 & echo $! > {tmp_path}/pid; wait' ; : {{n}}", {"n": 1}, time_limit=0.5)
    assert time.perf_counter() - begun < 20
    assert gone(int((tmp_path / "pid").read_text()))


def test_nothing_that_a_command_leaves_behind_runs_on(tmp_path):
    ran(f"sleep 60 & echo $! > {tmp_path}/pid; : {{n}}", {"n": 1})
    assert gone(int((tmp_path / "pid").read_text()))


def cli(*arguments, **more):
    # What runs in the background of a shell ignores SIGINT, and so would its children.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from nearpeak.cli import main; main()"
    )
    return subprocess.Popen([sys.executable, "-c", code, "tune", *map(str, arguments)], **more)


def lines_of(path):
    return path.read_text().count("told") if path.exists() else 0


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


SEARCH = ("-p", "n=0..40", "--command", "sleep 0.05; echo $((({n} - 30) * ({n} - 30) + 5))", "--value", r"^\d+$",
          "--method", "random", "--budget", 30, "--repeats", 1, "--seed", 4)  # fmt: skip


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_search_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(end, tmp_path):
    log = tmp_path / "log.jsonl"
    killed = cli(*SEARCH, "--log", log, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: lines_of(log) >= 3 or killed.poll() is not None)
    killed.send_signal(end)
    said = killed.communicate(timeout=60)[1]
    assert lines_of(log) < 30
    if end == signal.SIGINT:
        assert re.search(r"stopped after \d+ evaluations; the best so far gives", said)
        assert "run the same command again to go on" in said
        assert "Traceback" not in said
    again = cli(*SEARCH, "--log", log, "--json", stdout=subprocess.PIPE, text=True)
    found = json.loads(again.communicate(timeout=120)[0])
    told = [json.loads(line) for line in log.read_text().splitlines() if "told" in line]
    assert len(told) == found["evaluations"] == 30
    if end == signal.SIGKILL:
        whole = tmp_path / "whole.jsonl"
        assert cli(*SEARCH, "--log", whole, stdout=subprocess.DEVNULL).wait(timeout=120) == 0
        never = [json.loads(line)["told"] for line in whole.read_text().splitlines() if "told" in line]
        assert [event["told"] for event in told] == never


def test_being_terminated_ends_the_commands_of_all_workers_too(tmp_path):
    killed = cli("-p", "n=1,2", "--command", f"echo $$ > {tmp_path}/{{n}}; sleep 300", "--workers", 2)
    pids = [tmp_path / "1", tmp_path / "2"]
    wait_for(lambda: all(pid.exists() and pid.read_text().strip() for pid in pids))
    killed.terminate()
    assert killed.wait(timeout=60) == 128 + signal.SIGTERM
    assert all(gone(int(pid.read_text())) for pid in pids)


def test_a_command_that_fails_in_places_is_tuned_around_them():
    space = Space({"n": Integer(0, 40), "kind": Categorical(("a", "b"))})
    target = CommandTarget(
        '[ {kind} = a ] || { echo "no {{kind}} b" >&2; exit 1; }; echo $((({n} - 30) * ({n} - 30) + 5))',
        frozenset(space.parameters), value=Value(r"^\d+$"),
    )  # fmt: skip
    tuned = tune(target, space, 25, default={"n": 0, "kind": "a"}, repeats=Repeats(1, 2, warmups=0), rounds=6)
    assert tuned.best["kind"] == "a"
    assert tuned.value <= 9
    assert tuned.evidence.default == 905
    assert "exit code 1: no {kind} b" in tuned.found.reasons.values()


GOOD = """
constraints = ["tile % unroll == 0"]
[parameters]
tile = [16, 32, 64]
layout = ["row", "column"]
unroll = { kind = "integer", low = 1, high = 8 }
rate = { kind = "float", low = 1e-4, high = 0.1, log = true }
solver = { kind = "categorical", values = ["sgd", "adam"] }
momentum = { kind = "float", low = 0, high = 0.99, when = "solver == 'sgd'" }
order = { kind = "permutation", items = 3 }
mixture = { kind = "simplex", parts = 2 }
[default]
tile = 32
layout = "row"
unroll = 4
rate = 0.01
solver = "adam"
order = [2, 0, 1]
mixture = [0.5, 0.5]
[run]
command = "prog {tile}"
environment = { THREADS = "{unroll}" }
maximize = true
"""


def written(tmp_path, text, name="space.toml"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_a_space_of_every_kind(tmp_path):
    file = read_space(written(tmp_path, GOOD))
    assert file.space.parameters["tile"] == Ordinal((16, 32, 64))
    assert file.space.parameters["layout"] == Categorical(("row", "column"))
    assert file.space.parameters["rate"] == Float(1e-4, 0.1, log=True)
    assert file.space.parameters["order"] == Permutation(3)
    assert file.space.conditions == {"momentum": "solver == 'sgd'"}
    assert file.default["tile"] == 32
    assert file.run["maximize"] is True
    assert file.folder == tmp_path


def test_json_says_the_same(tmp_path):
    import tomllib

    path = written(tmp_path, json.dumps(tomllib.loads(GOOD)), "space.json")
    assert read_space(path) == read_space(written(tmp_path, GOOD))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("[16, 32, 64]", "[]", "parameters.tile: Ordinal.* has no values"),
        ("[16, 32, 64]", "[16, [32]]", r"parameters.tile: values\[1\] is \[32\]"),
        ("[16, 32, 64]", "[16, 16]", "parameters.tile: .*a value twice"),
        ("[16, 32, 64]", "7", "parameters.tile: it is 7; it must be a table"),
        ("low = 1,", "low = 1.5,", "parameters.unroll: low is 1.5; it must be a whole number"),
        ("low = 1,", "low = true,", "parameters.unroll: low is True"),
        ("low = 1,", "low = 9,", "parameters.unroll: .*empty"),
        ("low = 1,", "", "parameters.unroll: low is missing"),
        ("low = 1,", "lo = 1,", "parameters.unroll: unknown key 'lo'; did you mean low"),
        ('"integer"', '"integr"', "parameters.unroll: unknown kind 'integr'; did you mean integer"),
        ("log = true", "log = 1", "parameters.rate: log is 1; it must be true or false"),
        ("when = \"solver == 'sgd'\"", "when = 3", "parameters.momentum: when is 3; it must be a text"),
        ("solver == 'sgd'", "solvr == 'sgd'", "names solvr"),
        ("tile % unroll == 0", "tile % unrol == 0", "names unrol"),
        ('["tile % unroll == 0"]', '"tile"', "constraints is 'tile'; it must be a list"),
        ('tile = 32\nlayout = "row"', 'tile = 33\nlayout = "row"', "default: tile = 33: it is one of 16, 32, 64"),
        ('tile = 32\nlayout = "row"', "tile = 32", "default: .*without layout"),
        ("unroll = 4", "unroll = 5", "default: .*does not meet 'tile % unroll == 0'"),
        ("[run]", "[runs]", "unknown key 'runs'; did you mean run"),
        ("maximize = true", "maximize = 1", "run: maximize is 1; it must be true or false"),
        ('THREADS = "{unroll}"', "THREADS = 4", "run: environment.THREADS is 4; it must be a text"),
        ("[default]", "[default", "is no TOML"),
    ],
)
def test_a_file_that_makes_no_sense_says_where(old, new, why, tmp_path):
    assert GOOD.count(old) >= 1
    with pytest.raises(UsageError, match=why) as error:
        read_space(written(tmp_path, GOOD.replace(old, new, 1)))
    assert "space.toml" in str(error.value)


def test_files_that_are_not_there_or_hold_nothing(tmp_path):
    with pytest.raises(UsageError, match="is no file"):
        read_space(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="parameters: there are none"):
        read_space(written(tmp_path, ""))
    with pytest.raises(UsageError, match="is no JSON"):
        read_space(written(tmp_path, "{", "x.json"))


def test_parameters_of_the_command_line():
    file = inline_space(
        ["tile=16,32", "n=1..8", "rate=1e-4..0.1..log", "share=0..1.5", "mode=fast,-O2", "on=true,false"],
        ["tile % n == 0"], "tile=32 n=4 rate=0.01 share=1 mode=-O2 on=false",
    )  # fmt: skip
    assert file.space.parameters == {
        "tile": Ordinal((16, 32)),
        "n": Integer(1, 8),
        "rate": Float(1e-4, 0.1, log=True),
        "share": Float(0, 1.5),
        "mode": Categorical(("fast", "-O2")),
        "on": Categorical((True, False)),
    }
    assert file.default["on"] is False


@pytest.mark.parametrize(
    ("parameters", "default", "why"),
    [
        (["tile"], None, "'tile' is not NAME=VALUES"),
        (["tile="], None, "is not NAME=VALUES"),
        (["2x=1..3"], None, "is not NAME=VALUES"),
        (["n=1..3", "n=1..4"], None, "is there twice"),
        (["n=3..1"], None, "parameters.n: .*empty"),
        (["n=1..3"], "n", "'n' is not NAME=VALUE"),
        (["n=1..3"], "n=7", "default: n = 7"),
        ([], None, "there are none"),
    ],
)
def test_parameters_that_make_no_sense(parameters, default, why):
    with pytest.raises(UsageError, match=why):
        inline_space(parameters, [], default)


def test_an_unknown_name_stays_one_in_the_exit_code():
    assert issubclass(UnknownName, UsageError)
