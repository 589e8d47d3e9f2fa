"""A recorded run of an engine, simulated from what it was given, and beside what it showed.

A folder of a run holds ``vllm/requests.jsonl`` (a request a line: ``arrival_time``, ``input_toks``, ``output_toks``,
and what was recorded: ``queued_ts``, ``first_token_ts``, ``last_token_ts``) and ``vllm/meta.json`` (model, hardware,
engine settings). The times recorded are used for nothing but the comparison.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.engine import engine_on
from nearpeak.errors import UsageError
from nearpeak.formats import code
from nearpeak.hardware import Node, node_of
from nearpeak.setup import Pool, Setup
from nearpeak.simulate.deploy import room_blocks
from nearpeak.simulate.policies import policy
from nearpeak.simulate.results import FIGURES, Result
from nearpeak.simulate.serving import Deployment, Instances, feed, serve
from nearpeak.simulate.steps import step_table
from nearpeak.workload import Experts, read

Array = NDArray[np.float64]
BLOCK = 16
"""Tokens of a block where a run does not say it: vLLM's default."""


@dataclass(frozen=True)
class Recorded:
    """A run. ``requests``: columns ``[n]`` in the order of arrival; arrivals from 0 s, recorded figures in seconds."""

    setup: Setup
    settings: dict[str, Any]
    requests: dict[str, Array]


def read_run(folder: Path, model: str | None = None) -> Recorded:
    """Read the folder of a run. ``model``: its config, where the run's own name is in no catalogue.

    Raises:
        UsageError: a file or a field is missing or no JSON.
        UnknownName: its model or hardware is in no catalogue.
    """
    meta = _json(folder / "vllm" / "meta.json")
    meta = meta if model is None else meta | {"model": model}
    lines = _text(folder / "vllm" / "requests.jsonl").splitlines()
    rows = [_parsed(line, f"line {n} of requests.jsonl") for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UsageError(f"'{folder}' has no requests")
    requests = _columns(rows)
    return Recorded(_setup(meta, folder, requests), meta, requests)


def _text(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"'{path}' is missing; a recorded run has vllm/meta.json and vllm/requests.jsonl")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"'{path}' is no text: {error}") from None


def _json(path: Path) -> dict[str, Any]:
    return _parsed(_text(path), str(path))


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{where}: an object is needed, not {type(found).__name__}")
    return found


def _columns(rows: list[dict[str, Any]]) -> dict[str, Array]:
    """Arrivals and lengths, and the figures that were recorded.

    Arrivals are on the client's clock, the rest on the engine's. The two differ by what lies between an arrival and its
    queueing where the engine rested: the least of all differences.
    """
    names = ("arrival_time", "input_toks", "output_toks", "queued_ts", "first_token_ts", "last_token_ts")
    try:
        columns = {name: np.array([float(row[name]) for row in rows]) for name in names}
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"a request has no number for {error}; it needs {', '.join(names)}") from None
    for name, column in columns.items():
        good = np.isfinite(column) & ((column >= 1) | (name not in ("input_toks", "output_toks")))
        if not good.all():
            at = int(np.argmin(good))
            raise UsageError(f"request {at}: {name} = {column[at]:g}; lengths are at least 1, and all is finite")
    order = np.argsort(columns["arrival_time"], kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    arrival = columns["arrival_time"] - columns["arrival_time"][0]
    clock = float(np.min(columns["queued_ts"] - arrival))
    first, last = columns["first_token_ts"] - clock, columns["last_token_ts"] - clock
    later = np.maximum(columns["output_toks"] - 1, 1)
    return {
        "arrival": arrival, "isl": columns["input_toks"], "osl": columns["output_toks"],
        "ttft": first - arrival, "tpot": (last - first) / later, "latency": last - arrival,
    }  # fmt: skip


def _setup(meta: dict[str, Any], folder: Path, requests: dict[str, Array]) -> Setup:
    """The Setup that the engine was started with."""
    given: dict[str, Any] = {"kv_cache": {}, "resolved_config": {}} | meta
    objects = ("engine_kwargs", "hardware", "kv_cache", "resolved_config")
    for name, kind in [*((name, dict) for name in objects), ("model", str)]:
        if not isinstance(given.get(name), kind):
            raise UsageError(f"'{folder}/vllm/meta.json': {name} is {given.get(name)!r}; it needs {WRITTEN[kind]}")
    kwargs, hardware = meta["engine_kwargs"], meta["hardware"]
    if "device_name" not in hardware:
        raise UsageError(f"'{folder}/vllm/meta.json' has no device_name of its hardware")
    model, device = read(meta["model"]), str(hardware["device_name"])
    node = _node(device, _whole(hardware, "device_count", folder))
    quantized = kwargs.get("quantization")
    # What is stored with the weights is in the checkpoint's config already.
    stored = None if quantized in (None, "compressed-tensors") else code(str(quantized))
    own = model.checkpoint
    formats: dict[str, Any] = {
        part: stored if stored is not None else code(getattr(own, part)) for part in ("attention", "ffn", "experts")
    }
    cache = str(kwargs.get("kv_cache_dtype", "auto"))
    kv = code(own.kv) if cache == "auto" else code("fp8" if cache.startswith("fp8") else cache)
    names = (f"{way}_parallel_size" for way in ("tensor", "data", "pipeline"))
    tp, dp, pp = (_whole(kwargs, name, folder) for name in names)
    group = tp * dp
    routed = any(isinstance(block.ffn, Experts) for block in model.blocks)
    expert_parallel = bool(kwargs.get("enable_expert_parallel"))
    split = {"moe_tp": 1 if expert_parallel else group, "moe_ep": group if expert_parallel else 1} if routed else {}
    pool = Pool(
        tp=tp, pp=pp, dp=dp if routed else 1, replicas=1 if routed else dp,
        batch=1, **split,
    )  # fmt: skip
    engine = f"vllm@{meta.get('vllm_version', '')}".rstrip("@")
    isl, osl = (float(requests[name].mean()) for name in ("isl", "osl"))
    return Setup(model, node, engine, isl, osl, pool, kv=kv, **formats)


WRITTEN = {dict: "an object", str: "a text"}
"""Types of JSON values, as errors call them."""


def _whole(given: dict[str, Any], name: str, folder: Path) -> int:
    """A number of devices; 1 where it is not given."""
    found = given.get(name, 1)
    if not isinstance(found, int) or found < 1:
        raise UsageError(f"'{folder}/vllm/meta.json': {name} is {found!r}; a whole number of at least 1 is needed")
    return found


def _node(device: str, count: int) -> Node:
    """The standard server of a device, with at least as many as the run had."""
    node = node_of(device)
    return node if count <= node.count else node_of(device, count)


def deployment(run: Recorded) -> Deployment:
    """What served: step times of the Setup, and the engine's settings as it resolved them.

    Raises:
        UsageError: the run does not say how many blocks its cache had, and the model does not fit by our reckoning.
    """
    kwargs, cache = run.settings["engine_kwargs"], run.settings.get("kv_cache", {})
    scheduler = run.settings.get("resolved_config", {}).get("scheduler_config", {})
    setup, pool = run.setup, run.setup.decode
    longest = int(kwargs.get("max_model_len") or setup.model.context)
    most = int(kwargs.get("max_num_seqs") or scheduler.get("max_num_seqs") or 256)
    budget = int(scheduler.get("max_num_batched_tokens") or kwargs.get("max_num_batched_tokens") or 2048)
    block = int(cache.get("block_size") or BLOCK)
    host = engine_on(setup.engine, setup.node)
    chunked = scheduler.get("enable_chunked_prefill", True)
    table = step_table(setup, pool, most, int((run.requests["isl"] + run.requests["osl"]).max()), host)
    # One of the engine's blocks is the null block, which holds nothing.
    blocks = int(cache.get("num_gpu_blocks") or room_blocks(setup, pool, block) + 1) - 1
    return Deployment(
        table,
        (Instances(0, int(np.asarray(pool.replicas)), most, blocks, float(pool.instance_devices)),),
        policy("stall-free" if chunked else "prefill-first", budget=budget),
        block=block, longest=longest, stages=int(np.asarray(pool.pp)),
        ahead=bool(scheduler.get("async_scheduling", False)), reserves=host.reserves,
        caching=bool(cache.get("enable_prefix_caching", True)), receive=host.request,
    )  # fmt: skip


def replay(run: Recorded, seed: int = 0) -> Result:
    """Simulate a run from its arrivals, lengths and settings."""
    r = run.requests
    return serve(deployment(run), feed(r["arrival"], r["isl"], r["osl"]), seed=seed, keep=True, timeline=20_000)


def comparison(run: Recorded, result: Result) -> list[dict[str, Any]]:
    """Mean and percentiles of each figure: simulated, recorded, and the first over the second.

    Of the requests that the simulation served; a figure is left out where none has it, as TPOT of answers of one token.
    """
    assert result.requests is not None
    served = result.requests["id"]
    several = result.requests["osl"] > 1
    rows = []
    for figure in FIGURES:
        both = result.requests[figure], run.requests[figure][served]
        if figure == "tpot":
            both = both[0][several], both[1][several]
        if not len(both[0]):
            continue
        for name, statistic in STATISTICS.items():
            simulated, recorded = (float(statistic(times)) for times in both)
            rows.append(
                {"figure": figure, "of": name, "simulated_time": simulated, "recorded_time": recorded,
                 "ratio": simulated / recorded if recorded > 0 else float("nan")}
            )  # fmt: skip
    return rows


STATISTICS: dict[str, Callable[[Array], Any]] = {
    "p50": lambda x: np.percentile(x, 50),
    "p90": lambda x: np.percentile(x, 90),
    "p99": lambda x: np.percentile(x, 99),
    "mean": np.mean,
}
