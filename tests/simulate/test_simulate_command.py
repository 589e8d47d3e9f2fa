"""``nearpeak simulate MODEL`` and ``simulate replay``: what they print, and what they say of bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from nearpeak.cli import nearpeak
from nearpeak.errors import NearpeakError
from nearpeak.simulate.replay import comparison, read_run, replay

MODEL = ["Qwen/Qwen3-8B", "--gpu", "h100"]
DRAWN = ["--isl", "100", "--osl", "20", "--requests", "60"]


def simulate(*given: str) -> Any:
    result = CliRunner().invoke(nearpeak, ["simulate", *given], catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0
    return result


def answer(*given: str) -> dict[str, Any]:
    return dict(json.loads(simulate(*given, "--json").output))


def run_folder(folder: Path, requests: dict[str, np.ndarray], **meta: Any) -> Path:
    """The folder of a recorded run, of requests whose times are on two clocks."""
    (folder / "vllm").mkdir(parents=True)
    said = {
        "model": "Qwen/Qwen3-8B",
        "hardware": {"device_name": "h100"},
        "engine_kwargs": {},
        "vllm_version": "0.12.0",
    }
    (folder / "vllm" / "meta.json").write_text(json.dumps(said | meta))
    lines = [
        {"arrival_time": 1000.0 + a, "input_toks": int(i), "output_toks": int(o),
         "queued_ts": 7.0 + a, "first_token_ts": 7.0 + f, "last_token_ts": 7.0 + e}
        for a, f, e, i, o in zip(*(requests[n] for n in ("arrival", "first", "finish", "isl", "osl")), strict=True)
    ]  # fmt: skip
    (folder / "vllm" / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def requests() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    n = 80
    arrival = np.append(0.0, np.cumsum(rng.exponential(0.1, n - 1)))
    isl, osl = rng.integers(10, 900, n), rng.integers(2, 60, n)
    return {"arrival": arrival, "first": arrival + 0.05, "finish": arrival + 0.5, "isl": isl, "osl": osl}


def test_a_replayed_run_of_the_simulator_shows_its_own_times(tmp_path: Path, requests: dict[str, np.ndarray]) -> None:
    first = replay(read_run(run_folder(tmp_path / "a", requests)))
    assert first.requests is not None
    run = read_run(run_folder(tmp_path / "b", first.requests))
    again = replay(run)
    assert again.requests is not None
    for name in ("isl", "osl"):
        assert (again.requests[name] == requests[name]).all()
    assert again.tokens == requests["osl"].sum()
    assert again.prompt_tokens == requests["isl"].sum()
    assert again.completed == len(requests["isl"])
    for row in comparison(run, again):
        assert row["ratio"] == pytest.approx(1.0, rel=1e-6), row


def test_a_replay_compares_the_requests_that_it_served(tmp_path: Path, requests: dict[str, np.ndarray]) -> None:
    requests["isl"][::2] = 5000
    requests["finish"][::2] += 100
    folder = run_folder(tmp_path / "a", requests, engine_kwargs={"max_model_len": 1000})
    run = read_run(folder)
    result = replay(run)
    assert result.rejected == len(requests["isl"]) // 2
    row = next(row for row in comparison(run, result) if (row["figure"], row["of"]) == ("latency", "mean"))
    assert row["recorded_time"] == pytest.approx(0.5)
    assert f"Rejected: {result.rejected} of {result.offered}" in simulate("replay", str(folder)).output


def test_a_replay_of_answers_of_one_token_has_no_time_per_token(
    tmp_path: Path, requests: dict[str, np.ndarray]
) -> None:
    requests["osl"][:] = 1
    run = read_run(run_folder(tmp_path / "a", requests))
    assert {row["figure"] for row in comparison(run, replay(run))} == {"ttft", "latency"}


@pytest.mark.parametrize(
    ("meta", "word"),
    [
        ({"engine_kwargs": []}, "engine_kwargs"),
        ({"hardware": "h100"}, "hardware"),
        ({"hardware": {}}, "device_name"),
        ({"hardware": {"device_name": "h100", "device_count": "x"}}, "device_count"),
        ({"model": 3}, "model"),
        ({"model": "no/such"}, "no/such"),
        ({"engine_kwargs": {"tensor_parallel_size": 0}}, "tensor_parallel_size"),
        ({"engine_kwargs": {"kv_cache_dtype": "foo"}}, "foo"),
        ({"kv_cache": [1]}, "kv_cache"),
        ({"resolved_config": None}, "resolved_config"),
    ],
)
def test_a_broken_meta_is_named(tmp_path: Path, requests: dict[str, np.ndarray], meta: Any, word: str) -> None:
    with pytest.raises(NearpeakError, match=word):
        replay(read_run(run_folder(tmp_path / "a", requests, **meta)))


@pytest.mark.parametrize(
    "line", [b"", b"no json", b"[1]", b'{"arrival_time": 1}', b"\xff\xfe\x00", None], ids=lambda b: repr(b)
)
def test_broken_requests_are_named(tmp_path: Path, requests: dict[str, np.ndarray], line: bytes | None) -> None:
    folder = run_folder(tmp_path / "a", requests)
    if line is None:
        (folder / "vllm" / "requests.jsonl").unlink()
    else:
        (folder / "vllm" / "requests.jsonl").write_bytes(line)
    with pytest.raises(NearpeakError):
        read_run(folder)
    for name, bad in (("input_toks", 0), ("last_token_ts", float("nan"))):
        broken = json.loads((run_folder(tmp_path / name, requests) / "vllm/requests.jsonl").read_text().splitlines()[3])
        (tmp_path / name / "vllm/requests.jsonl").write_text(json.dumps(broken | {name: bad}))
        with pytest.raises(NearpeakError, match=name):
            read_run(tmp_path / name)


def test_the_same_seed_prints_the_same_and_tokens_add_up() -> None:
    first, second = (answer(*MODEL, *DRAWN, "--rate", "8") for _ in range(2))
    assert first == second
    assert first["completed"] == 60
    assert first["tokens_per_second"] * first["span_time"] == pytest.approx(60 * 20)
    assert not first["saturated"]


def test_json_is_printed_wherever_it_is_asked_for() -> None:
    assert json.loads(simulate("--json", *MODEL, *DRAWN, "--rate", "8").output) == answer(*MODEL, *DRAWN, "--rate", "8")


def test_answers_of_one_token_that_come_too_fast_are_said_to_saturate() -> None:
    record = answer(*MODEL, "--isl", "4000", "--osl", "1", "--requests", "400", "--rate", "1000")
    assert record["saturated"]
    assert record["knee_rate"] < 1000
    assert record["percentiles"]["tpot"]["p50"] is None


def test_prompts_beyond_the_context_are_rejected_and_said(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival,isl,osl\n0,100,5\n1,100000,5\n")
    said = simulate(*MODEL, "--trace", str(trace)).output
    assert "Rejected: 1 of 2 requests" in said
    trace.write_text("arrival,isl,osl\n0.5,100000,5\n1,100000,5\n")
    record = answer(*MODEL, "--trace", str(trace))
    assert (record["completed"], record["rejected"], record["span_time"]) == (0, 2, 0)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["--rate", "0", *DRAWN], "rate"),
        (["--rate", "nan", *DRAWN], "rate"),
        (["--rate", "8", "--concurrency", "3", *DRAWN], "concurrency"),
        (["--rate", "8"], "--isl"),
        (["--rate", "8", *DRAWN, "--spread", "-1"], "spread"),
        (["--rate", "8", "--isl", "inf", "--osl", "20"], "--isl inf"),
        (["--rate", "8", "--isl", "9", "--osl", "nan"], "--osl nan"),
        (["--rate", "8", *DRAWN, "--policy", "foo"], "foo"),
        (["--rate", "8", *DRAWN, "--router", "foo"], "foo"),
        (["--rate", "8", *DRAWN, "--ttft", "0"], "ttft"),
        (["--rate", "8", *DRAWN, "--ep", "2"], "ep 2"),
        (["--trace", "TRACE", "--speed-up", "inf"], "speed-up"),
        (["--trace", "TRACE", "--time-unit", "0"], "time_unit"),
        (["--trace", "ZERO"], "isl = '0'"),
        (["--trace", "/no/such"], "no trace"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, given: list[str], word: str) -> None:
    for name, isl in (("TRACE", 5), ("ZERO", 0)):
        (tmp_path / name).write_text(f"arrival,isl,osl\n0,{isl},5\n")
        given = [str(tmp_path / name) if part == name else part for part in given]
    with pytest.raises(NearpeakError, match=word):
        simulate(*MODEL, *given)


def test_a_negative_seed_is_refused_and_the_command_is_called_by_its_name() -> None:
    refused = CliRunner().invoke(nearpeak, ["simulate", *MODEL, *DRAWN, "--rate", "8", "--seed", "-1"])
    assert refused.exit_code == 2
    assert "--seed" in refused.output
    assert "simulate serving [OPTIONS] MODEL" in refused.output


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(NearpeakError, match="does not fit"):
        simulate("deepseek-ai/DeepSeek-V3", "--gpu", "h100", "--rate", "1", *DRAWN)
