"""When the host holds the GPU back: launches, their queue, the batch where a run turns GPU bound, fusions that help.

The host launches kernels one after another and the GPU runs them in order. While kernels are shorter than launches the
GPU waits for the host, and a run takes what the host takes; where they are longer, launches queue. The sum over kernels
of the time from launch to start, *total kernel launch and queuing time*, is flat before that batch and grows beyond it.
Vellaisamy, Labonte, Chakraborty, Turner, Sury, Shen, "Characterizing and Optimizing LLM Inference Workloads on CPU-GPU
Coupled Architectures", arXiv 2504.11750 (2025).
"""

import gzip
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost import platform, prefill
from nearpeak.cost.engine import engine_on
from nearpeak.errors import UsageError
from nearpeak.hardware import Node, device, node_of
from nearpeak.setup import Pool, Setup
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, require_positive
from nearpeak.workload import Architecture, read

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trace:
    """Kernels of one run in the order in which they ran, arrays ``[kernels]``; times in seconds.

    Attributes:
        name: of the kernel. launch: number of the launch call that started it; a captured graph has one for all.
        launched: when that call began. began, ended: when the kernel did.
        start: when the host began with the run's first operator.
    """

    name: NDArray[np.str_]
    launch: NDArray[np.int64]
    launched: Array
    began: Array
    ended: Array
    start: float

    def __post_init__(self) -> None:
        if not len(self.name):
            raise UsageError("a trace without kernels")
        if np.any(self.ended < self.began) or np.any(self.began < self.launched):
            raise UsageError("a trace with a kernel that ends before it begins, or begins before it is launched")


@dataclass(frozen=True)
class Timeline:
    """What a trace adds up to, seconds.

    Attributes:
        launches, kernels: how many.
        tklqt: total kernel launch and queuing time: the sum over kernels of start less launch.
        queuing: what of it is beyond the shortest way from launch to start, once a kernel: waiting in the queue.
        issue: time that the host takes to launch everything. busy: time that kernels run.
        latency: from the first operator to the end of the last kernel. idle: what of it the GPU waits.
        bound: whose time the run takes.
    """

    launches: int
    kernels: int
    tklqt: float
    queuing: float
    issue: float
    busy: float
    latency: float
    idle: float
    bound: Literal["host", "GPU"]


def timeline(trace: Trace) -> Timeline:
    """Sum up a trace. It is GPU bound where its kernels run for longer than the host takes to launch them."""
    wait = trace.began - trace.launched
    calls = np.unique(trace.launched)
    # From the first launch to the last, and one launch's time more: the last call's own.
    issue = float(calls[-1] - calls[0]) * (len(calls) / max(1, len(calls) - 1)) if len(calls) > 1 else 0.0
    busy = float((trace.ended - trace.began).sum())
    latency = float(trace.ended.max() - trace.start)
    return Timeline(
        launches=len(np.unique(trace.launch)),
        kernels=len(wait),
        tklqt=float(wait.sum()),
        queuing=float((wait - wait.min()).sum()),
        issue=issue,
        busy=busy,
        latency=latency,
        idle=latency - busy,
        bound="GPU" if busy > issue else "host",
    )


def transition_of_traces(batches: Sequence[int], traces: Iterable[Trace]) -> int | None:
    """The smallest measured batch from which on every run is GPU bound; None where the largest is not.

    Raises:
        UsageError: batches do not ascend, or are not as many as the traces.
    """
    bound = [timeline(trace).bound for trace in traces]
    if len(bound) != len(batches) or list(batches) != sorted(set(batches)):
        raise UsageError(f"{len(bound)} traces of batches {list(batches)}: give one trace a batch, ascending")
    last_host = max((i for i, b in enumerate(bound) if b == "host"), default=-1)
    return batches[last_host + 1] if last_host + 1 < len(batches) else None


def transition(host: ArrayLike, fixed: ArrayLike, each: ArrayLike) -> Array:
    """The smallest batch at which kernels take longer than launching them, in closed form; arguments broadcast.

    Kernels take ``fixed + each * batch`` seconds; launching them takes ``host`` seconds whatever the batch.

    Raises:
        UsageError: ``each`` or ``host`` is not positive, or ``fixed`` is negative.
    """
    require_positive(host=host, each=each)
    host, fixed, each = (np.asarray(x, float) for x in (host, fixed, each))
    if np.any(fixed < 0):
        raise UsageError(f"fixed is a time, at least 0, not {fixed.min():g}")
    return np.asarray(np.maximum(1.0, np.floor((host - fixed) / each) + 1))


def host_seconds(model: Architecture, node: Node, engine: str = "vllm") -> float:
    """Seconds that the node's host takes to launch a pass through all layers without a captured graph.

    An engine's time a layer, and what a host's single-thread speed does to it, are ``cost.engine``'s.

    Raises:
        UnknownName: no such engine.
    """
    return model.layers * engine_on(engine, node).layer


def prefill_seconds(
    model: Architecture, node: Node, batch: ArrayLike, isl: ArrayLike, engine: str = "vllm"
) -> tuple[Array, float]:
    """Seconds of the kernels of prefilling ``batch`` prompts of ``isl`` tokens, and seconds that the host launches.

    The run takes about the larger of the two.

    Raises:
        UsageError: a batch or a length that is not positive.
    """
    require_positive(batch=batch, isl=isl)
    pool = Pool()
    setup = Setup(model, node, engine, isl=np.asarray(isl, float), osl=1, decode=pool)
    on = platform(node.device, node.scale_up, engine).in_graph()
    kernels = prefill(on, setup, pool, np.asarray(batch, float), np.asarray(isl, float)).total
    return np.asarray(kernels), host_seconds(model, node, engine)


@dataclass(frozen=True)
class Fusion:
    """A chain of kernels that could be one.

    ``count``: how often it runs. ``proximity``: share of its first kernel's runs that the rest of it follows (1:
    always). ``saved``: launches that fusing it saves.
    """

    chain: tuple[str, ...]
    count: int
    proximity: float
    saved: int


def fusions(trace: Trace, longest: int = 8, proximity: float = 1.0, most: int = 10) -> tuple[Fusion, ...]:
    """Chains of 2 to ``longest`` kernels, ranked by the launches that fusing them saves.

    Args:
        proximity: least share of the first kernel's runs that the chain follows, 0 to 1.
        most: how many to name.

    Raises:
        UsageError: ``longest`` below 2.
    """
    if longest < 2:
        raise UsageError(f"longest = {longest}; a chain has at least 2 kernels")
    names, code = np.unique(trace.name, return_inverse=True)
    runs = np.bincount(code)
    found = []
    for length in range(2, min(longest, len(code)) + 1):
        windows = np.lib.stride_tricks.sliding_window_view(code, length)
        chains, which = np.unique(windows, axis=0, return_inverse=True)
        order = np.argsort(which, kind="stable")
        places = np.split(order, np.cumsum(np.bincount(which.ravel()))[:-1])
        for chain, at in zip(chains, places, strict=True):
            share = len(at) / runs[chain[0]]
            if share >= proximity and len(at) > 1:
                count = _apart(at, length)
                saved = count * (length - 1)
                found.append(Fusion(tuple(names[chain].tolist()), count, float(share), saved))
    return tuple(sorted(found, key=lambda f: (-f.saved, len(f.chain)))[:most])


def _apart(places: NDArray[np.intp], length: int) -> int:
    """How many of the ascending places are at least ``length`` apart, taken from the first on."""
    count, free = 0, -1
    for place in places.tolist():
        if place >= free:
            count, free = count + 1, place + length
    return count


def read_chrome(path: str | Path) -> Trace:
    """The kernels of a PyTorch profiler trace (``export_chrome_trace``), ``.json`` or ``.json.gz``.

    Kernels are matched to launch calls by their correlation number. Copies and fills are not counted.

    Raises:
        UsageError: no such file; no JSON trace; or no kernel in it (the profiler ran without the GPU's activities).
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no trace {str(path)!r}")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        parsed: Any = msgspec.json.decode(raw)
        events = parsed["traceEvents"] if isinstance(parsed, dict) else parsed
        whole = [e for e in events if e.get("ph") == "X"]
    except (msgspec.DecodeError, KeyError, AttributeError, TypeError, OSError) as error:
        raise UsageError(f"{str(path)!r} is no Chrome trace of the PyTorch profiler: {error}") from None
    calls = {
        e["args"]["correlation"]: float(e["ts"])
        for e in whole
        if e.get("cat") in ("cuda_runtime", "cuda_driver")
        and "Launch" in e["name"]
        and "correlation" in e.get("args", {})
    }
    kernels = [e for e in whole if e.get("cat") == "kernel" and e.get("args", {}).get("correlation") in calls]
    if not kernels:
        raise UsageError(
            f"{str(path)!r} has no kernel with its launch; profile with activities=[ProfilerActivity.CPU, "
            "ProfilerActivity.CUDA] on a GPU"
        )
    kernels.sort(key=lambda e: float(e["ts"]))
    launch = np.array([e["args"]["correlation"] for e in kernels], dtype=np.int64)
    launched = np.array([calls[c] for c in launch.tolist()])
    began = np.array([float(e["ts"]) for e in kernels])
    length = np.array([float(e["dur"]) for e in kernels])
    operators = [float(e["ts"]) for e in whole if e.get("cat") == "cpu_op"]
    start = min([*operators, launched.min()])
    # Clocks of host and GPU are aligned to a microsecond or so; no kernel begins before its launch.
    began = np.maximum(began, launched)
    return Trace(
        np.array([e["name"] for e in kernels]),
        launch,
        (launched - start) * 1e-6,
        (began - start) * 1e-6,
        (began + length - start) * 1e-6,
        0.0,
    )


BATCHES = 2.0 ** np.arange(9)


def _explain(model: str, gpu: str, isl: float, engine: str, host: str | None, trace: str | None) -> Explanation:
    node, architecture = node_of(gpu), read(model)
    if host is not None:
        node = replace(node, host=device(host))
    kernels, launching = prefill_seconds(architecture, node, BATCHES, isl, engine)
    every = np.arange(1.0, BATCHES[-1] + 1)
    fine, _ = prefill_seconds(architecture, node, every, isl, engine)
    bound = np.flatnonzero(fine > launching)
    turns = int(every[bound[0]]) if len(bound) else None
    figures: dict[str, Any] = {
        "host": None if node.host is None else node.host.name,
        "host_single_thread_points": None if node.host is None else node.host.single_thread,
        "launching_time": launching,
        "turns_gpu_bound_at_batch": turns,
    }
    tables = [
        Table.of(
            f"Prefill of {isl:g} tokens",
            batch=BATCHES,
            kernels_time=kernels,
            latency=np.maximum(kernels, launching),
            bound_by=np.where(kernels > launching, "GPU", "host"),
        )
    ]
    where = f"at batch {turns}" if turns is not None else f"beyond batch {BATCHES[-1]:g}"
    says = [
        f"Launching takes {launching * 1e3:.3g} ms a pass without captured graphs; the run turns GPU bound {where}.",
        "Below it a faster host, fused kernels or a captured graph help, and a faster GPU does not; above it the "
        "other way round.",
    ]
    if trace is not None:
        seen = read_chrome(trace)
        told, best = timeline(seen), fusions(seen)
        figures |= {
            "traced_launches": told.launches,
            "traced_tklqt_time": told.tklqt,
            "traced_queuing_time": told.queuing,
            "traced_issue_time": told.issue,
            "traced_busy_time": told.busy,
            "traced_idle_time": told.idle,
            "traced_bound_by": told.bound,
        }
        if best:
            tables.append(
                Table(
                    "Fusions by launches saved",
                    tuple(
                        {
                            "saved": f.saved,
                            "count": f.count,
                            "proximity_share": f.proximity,
                            "chain": " + ".join(f.chain),
                        }
                        for f in best
                    ),
                )
            )
        says.append(
            f"The traced run is {told.bound} bound: kernels run {told.busy * 1e3:.3g} ms, launching them takes "
            f"{told.issue * 1e3:.3g} ms."
        )
    return Explanation(figures, tuple(tables), tuple(says))


TOPIC = Topic(
    name="launches",
    title="From which batch on does the GPU, and not the host, hold a run back?",
    paper="Vellaisamy, Labonte, Chakraborty, Turner, Sury, Shen: Characterizing and Optimizing LLM Inference Workloads "
    "on CPU-GPU Coupled Architectures. arXiv 2504.11750, 2025.",
    options=(
        MODEL,
        GPU,
        Option("isl", float, "Tokens of a prompt.", 512.0),
        Option("engine", str, "Whose launch times: vllm, sglang, trtllm.", "vllm"),
        Option("host", str, "A CPU of the catalogue; the server's own if not given.", None),
        Option("trace", str, "A Chrome trace of the PyTorch profiler to add up.", None),
    ),
    explain=_explain,
    example="--model Qwen/Qwen3-1.7B --gpu gh200 --isl 512",
)
