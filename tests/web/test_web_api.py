"""The server of the page: whom it answers, what it takes, what it says of mistakes, and the work it starts."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

httpx = pytest.importorskip("httpx", reason="the tests of the page's server need httpx")

FORM = {
    "model": "Qwen/Qwen3-8B",
    "devices": [{"name": "h100_sxm", "least": 1, "most": 2}],
    "goals": [{"figure": "ttft", "of": 99, "seconds": 2.0}, {"figure": "tpot", "of": 99, "seconds": 0.05}],
    "rate": 4.0,
    "isl": 1000,
    "osl": 200,
    "spread": 0.5,
    "simulate": False,
}


@pytest.fixture(scope="module")
def client(served):
    with httpx.Client(base_url=served, timeout=120) as client:
        yield client


def start(client, body, **headers):
    return client.post("/api/jobs", content=json.dumps(body), headers={"content-type": "application/json", **headers})


def events(client, job):
    """All events of a job, until it is over."""
    with client.stream("GET", f"/api/jobs/{job}/events") as stream:
        return [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: ")]


def parts(found):
    return {f"{e['part']} {e.get('of', '')}".strip(): e for e in found if e["kind"] == "part"}


def errors(client, **changed):
    answer = start(client, {"form": FORM | changed})
    assert answer.status_code == 422, answer.text
    return answer.json()["errors"]


@pytest.fixture(scope="module")
def planned(client):
    """A job of closed forms, and its events."""
    answer = start(client, {"form": FORM})
    assert answer.status_code == 202, answer.text
    job = answer.json()["job"]
    return job, events(client, job)


def test_plans_are_those_of_the_planner(planned):
    from nearpeak.hardware import node_of
    from nearpeak.plan import Fleet, Goal, plan, shortlist
    from nearpeak.report import words
    from nearpeak.workload import read

    goal = Goal("cost", ttft=2.0, tpot=0.05, rate=4.0, accuracy=0.0)
    found = plan(read("Qwen/Qwen3-8B"), [Fleet(node_of("h100"), 1, 2)], goal, 1000, 200)
    # All serve the rate; the fewest devices, here of one kind, are the cheapest.
    ranked = replace(found, candidates=tuple(sorted(found.candidates, key=lambda c: (c.devices, c.score))))
    expected = [[words.devices(c.setup), words.layouts(c.setup), words.batches(c.setup)] for c in shortlist(ranked, 8)]
    shown = parts(planned[1])["plans closed"]["plans"]
    assert [[p["row"][name] for name in ("devices", "layout", "batch")] for p in shown] == expected


def test_a_plan_comes_with_its_plots_and_the_work_ends(planned):
    found = planned[1]
    assert found[-1]["kind"] == "end"
    assert any(e["kind"] == "progress" and e["total"] > 0 for e in found)
    assert len(parts(found)["pareto"]["figure"]["data"][0]["x"]) > 3
    best = parts(found)["plans closed"]["plans"][0]
    for name in ("roofline", "memory", "steps"):
        assert best[name]["data"]
    assert sum(len(trace["x"]) for trace in best["memory"]["data"]) >= 5
    assert len(best["levers"]) == 4


def test_launch_files_come_as_text_and_as_an_archive_of_executable_scripts(client, planned):
    job, found = planned
    launch = parts(found)["plans closed"]["plans"][0]["launch"]
    assert any("vllm serve" in text for text in launch["files"].values())
    answer = client.get(f"/api/jobs/{job}/files/{launch['zip']}")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        held = {entry.filename.split("/")[-1]: entry for entry in archive.infolist()}
        assert {name: archive.read(entry).decode() for name, entry in held.items()} == launch["files"]
        assert all(entry.external_attr >> 16 & 0o111 for name, entry in held.items() if name.endswith(".sh"))


def test_a_pasted_config_gives_the_plans_of_the_model_that_it_is(client, planned):
    from importlib.resources import files

    config = (files("nearpeak.workload") / "configs" / "Qwen--Qwen3-8B.json").read_text()
    job = start(client, {"form": FORM | {"config": config, "model": ""}}).json()["job"]
    rows = [[p["row"] for p in parts(found)["plans closed"]["plans"]] for found in (events(client, job), planned[1])]
    assert rows[0] == rows[1]


def test_limits_that_nothing_meets_name_the_nearest(client):
    goals = [{"figure": "tpot", "of": 50, "seconds": 0.0001}]
    job = start(client, {"form": FORM | {"goals": goals}}).json()["job"]
    found = parts(events(client, job))
    assert "tpot" in found["closed"]["miss"]
    assert "plans closed" not in found


@pytest.mark.parametrize(
    ("changed", "field", "says"),
    [
        ({"model": "Qwen/Qwen9"}, "model", "unknown model"),
        ({"model": ""}, "model", "no model"),
        ({"config": "{"}, "config", "no JSON"),
        ({"config": "{}", "model": "a\nb"}, "config", "one line"),
        ({"config": '{"model_type": "abacus"}'}, "config", "abacus"),
        ({"engine": "abacus"}, "engine", "vllm"),
        ({"devices": []}, "devices", "no devices"),
        ({"devices": [{"name": "h1000", "least": 1, "most": 8}]}, "devices.0.name", "did you mean"),
        ({"devices": [{"name": "h100", "least": 9, "most": 8}]}, "devices.0.most", "9..8"),
        ({"devices": [{"name": "h100", "least": 1, "most": 10**6}]}, "devices.0.most", "at most"),
        ({"devices": [{"name": "h100", "least": 1, "most": 2, "price": -1}]}, "devices.0.price", "-1"),
        ({"devices": 2 * [{"name": "h100", "least": 1, "most": 2}]}, "devices", "twice"),
        ({"rate": -1}, "rate", "-1"),
        ({"rate": None}, "form.rate", "null"),
        ({"isl": 0}, "isl", "give 1 to"),
        ({"osl": 10**6}, "isl", "exceed"),
        ({"spread": -0.5}, "spread", "-0.5"),
        ({"burstiness": -1}, "burstiness", "-1"),
        ({"requests": 1}, "requests", "10"),
        ({"accuracy": 2}, "accuracy", "2"),
        ({"goals": []}, "goals", "no goals"),
        ({"goals": [{"figure": "ttft", "of": 99, "seconds": -1}]}, "goals.ttft.99", "-1"),
        ({"goals": [{"figure": "ttft", "of": 199, "seconds": 1}]}, "goals.ttft.199", "p199"),
        ({"goals": [{"figure": "speed", "of": 99, "seconds": 1}]}, "goals.speed.99", "speed"),
        ({"objective": "fame"}, "form.objective", "fame"),
        ({"trace": "when,what\n1,2\n"}, "trace", "no column"),
        ({"trace": "arrival,isl,osl\n0,10,10\n-1,10,10\n"}, "trace", "line 3"),
        ({"trace": "arrival,isl,osl\n0,10,0\n"}, "trace", "line 2"),
        ({"trace": "arrival,isl,osl\n0,10,10\n"}, "trace", "at least 20"),
        ({"trace": "arrival,isl,osl\n" + 30 * "1,10,10\n"}, "trace", "in no time"),
        ({"trace": "arrival,isl,osl\n0,10,10\n", "speed_up": 0}, "speed_up", "0"),
        ({"unknown": 1}, "form", "unknown"),
    ],
)
def test_a_mistake_is_told_with_its_field(client, changed, field, says):
    found = errors(client, **changed)
    assert field in found, found
    assert says in found[field]


def test_all_mistakes_are_told_at_once(client):
    assert set(errors(client, model="nothing", rate=-1, requests=1)) == {"model", "rate", "requests"}


def test_no_path_is_read(client, tmp_path):
    from importlib.resources import files

    text = (files("nearpeak.workload") / "configs" / "Qwen--Qwen3-8B.json").read_text()
    (tmp_path / "config.json").write_text(text)
    for name in (str(tmp_path), str(tmp_path / "config.json"), "/etc/passwd", "../.."):
        assert "unknown model" in errors(client, model=name)["model"]
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/api/jobs/../../etc/passwd", "/etc/passwd"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", ""])
def test_a_server_called_by_another_name_answers_nothing(client, host):
    for path in ("/", "/api/catalogue"):
        assert client.get(path, headers={"host": host}).status_code == 400


def test_it_is_called_by_its_address_or_localhost(client, served):
    port = served.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost", f"[::1]:{port}"):
        assert client.get("/api/catalogue", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
     {"sec-fetch-site": "same-site"}, {"origin": "http://127.0.0.1:1"}],
)  # fmt: skip
def test_pages_of_other_sites_start_nothing(client, headers):
    assert start(client, {"form": FORM}, **headers).status_code == 403


def test_a_form_of_another_site_cannot_pass_for_json(client):
    answer = client.post("/api/jobs", content=json.dumps({"form": FORM}), headers={"content-type": "text/plain"})
    assert answer.status_code == 415


def test_what_is_too_large_is_refused_whether_or_not_it_says_so(client):
    large = b"x" * ((16 << 20) + 1)
    headers = {"content-type": "application/json"}
    assert client.post("/api/jobs", content=large, headers=headers).status_code == 413
    chunks = (large[at : at + (1 << 20)] for at in range(0, len(large), 1 << 20))
    assert client.post("/api/jobs", content=chunks, headers=headers).status_code == 413


def test_the_page_may_load_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert client.get("/plotly.js").headers["content-type"].startswith("text/javascript")
    assert "http://" not in answer.text
    assert "https://" not in answer.text


def test_a_chosen_plan_must_be_one(client, planned):
    key = parts(planned[1])["plans closed"]["plans"][0]["key"]
    for changed in (
        {"device": "t4"},
        {"techniques": ["magic"]},
        {"decode": key["decode"] | {"tp": 0}},
        {"decode": {"tp": 1}},
    ):
        answer = start(client, {"form": FORM, "plan": key | changed})
        assert answer.status_code == 422
        assert "plan again" in answer.text or "a pool of" in answer.text


def test_a_job_is_ended_at_once_and_says_so(client):
    heavy = {"devices": [{"name": "h100_sxm", "least": 1, "most": 24}]}
    job = start(client, {"form": FORM | heavy}).json()["job"]
    client.delete(f"/api/jobs/{job}")
    found = events(client, job)
    assert found[-2]["errors"] == {"": "ended"}
    assert found[-1]["kind"] == "end"
    assert not any(e["kind"] == "part" for e in found)


def test_only_so_many_jobs_run_at_once(client):
    heavy = {"devices": [{"name": "h100_sxm", "least": 1, "most": 24}]}
    answers = [start(client, {"form": FORM | heavy}) for _ in range(3)]
    assert [a.status_code for a in answers] == [202, 202, 422]
    assert "running" in answers[2].json()["errors"][""]
    for answer in answers[:2]:
        client.delete(f"/api/jobs/{answer.json()['job']}")
        assert events(client, answer.json()["job"])[-1]["kind"] == "end"


def test_events_are_sent_again_from_where_a_page_lost_them(client, planned):
    job, found = planned
    lines = client.get(f"/api/jobs/{job}/events", headers={"last-event-id": str(len(found) - 2)}).text
    assert lines.count("data: ") == 1
    assert '"end"' in lines


def test_what_is_not_there_is_not_found(client, planned):
    assert client.get("/api/jobs/none/events").status_code == 404
    assert client.delete("/api/jobs/none").status_code == 404
    assert client.get(f"/api/jobs/{planned[0]}/files/none.zip").status_code == 404


def test_a_trace_sets_rate_and_lengths():
    from nearpeak.web.form import Form, decode, understood

    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(0.5, 200))
    rows = "\n".join(f"{1000 * t:.3f},{100 + i},{10 + i}" for i, t in enumerate(times))
    text = {"trace": f"arrived_at,isl,osl\n{rows}\n", "time_unit": 0.001, "speed_up": 2.0}
    asked = understood(decode(FORM | text, Form))
    assert asked.rate == pytest.approx(2 * 199 / (times[-1] - times[0]), rel=1e-3)
    assert asked.isl == pytest.approx(np.mean(np.arange(100, 300)))
    first, again, other = (asked.replication(seed) for seed in (0, 0, 1))
    assert len(first.isl) == 100
    assert (first.isl == again.isl).all()
    assert first.isl[0] != other.isl[0]


def test_goals_on_percentiles_bound_means_from_above():
    from nearpeak.web.form import Form, decode, understood

    goals = [{"figure": "ttft", "of": of, "seconds": s} for of, s in ((50, 0.5), (99, 2.0), (10, 0.01))]
    goal = understood(decode(FORM | {"goals": goals}, Form)).goal
    assert goal.ttft == 0.5
    assert goal.tpot is None


def test_a_taken_port_is_said(served):
    from nearpeak.errors import UsageError
    from nearpeak.web import open_page

    with pytest.raises(UsageError, match="--port"):
        open_page("127.0.0.1", int(served.rpartition(":")[2]), False)


def test_without_fastapi_the_command_names_the_extra(monkeypatch, capsys):
    import sys

    from nearpeak.cli import main

    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [n for n in sys.modules if n.startswith("nearpeak.web")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("sys.argv", ["nearpeak", "web", "--no-browser"])
    with pytest.raises(SystemExit):
        main()
    assert "pip install nearpeak[web]" in capsys.readouterr().err


@pytest.mark.slow
def test_under_traffic_the_best_plan_keeps_its_goals_and_shows_its_run(client):
    job = start(client, {"form": FORM | {"simulate": True, "requests": 2000}}).json()["job"]
    found = parts(events(client, job))
    best = found["plans served"]["plans"][0]
    assert all(goal["holds"] for goal in best["row"]["goals"])
    assert "confirmed" in found["served"]["text"]
    run = found["run"]
    assert not run["saturated"]
    assert {row["figure"] for row in run["percentiles"]} >= {"time to first token", "whole request"}
    for curve in run["spread"]["data"][:3]:
        assert (np.diff(curve["x"]) >= 0).all()
    lasts = [x for trace in run["timeline"]["data"] if trace["type"] == "bar" for x in trace["x"]]
    assert len(lasts) > 50
    assert min(lasts) > 0
    at_rates = {trace["name"]: trace["y"] for trace in run["sensitivity"]["data"]}
    assert at_rates["p99 TPOT"][-1] > 1.1 * at_rates["p99 TPOT"][0]
    events_ = client.get(f"/api/jobs/{job}/files/timeline.json").json()["traceEvents"]
    assert sum(e["ph"] == "X" for e in events_) > 50


@pytest.mark.slow
def test_a_plan_of_the_closed_forms_is_simulated_as_asked(client, planned):
    key = parts(planned[1])["plans closed"]["plans"][0]["key"]
    job = start(client, {"form": FORM | {"requests": 1000}, "plan": key}).json()["job"]
    run = parts(events(client, job))["run"]
    assert run["facts"]["requests"] in ("1000", "1,000")
    assert run["layout"] == parts(planned[1])["plans closed"]["plans"][0]["row"]["layout"]
