import gzip
import json

import numpy as np
import pytest

from nearpeak.bounds.launches import (
    TOPIC,
    Trace,
    fusions,
    host_seconds,
    prefill_seconds,
    read_chrome,
    timeline,
    transition,
    transition_of_traces,
)
from nearpeak.errors import UsageError
from nearpeak.hardware import device, node_of
from nearpeak.workload import from_config

LATENCY = 3e-6
LLAMA_1B = from_config(
    {
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256,
        "max_position_embeddings": 131072, "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.2-1B",
)  # fmt: skip


def run(gaps, lengths, names=None):
    """A launch queue, event by event: the host launches after each gap, the GPU runs kernels in order."""
    now = free = 0.0
    launched, began, ended = [], [], []
    for gap, length in zip(gaps, lengths, strict=True):
        launched.append(now)
        now += gap
        start = max(launched[-1] + LATENCY, free)
        free = start + length
        began.append(start)
        ended.append(free)
    names = np.array([f"k{i}" for i in range(len(gaps))]) if names is None else np.array(names)
    return Trace(names, np.arange(len(names)), np.array(launched), np.array(began), np.array(ended), 0.0)


def layers(seed=0, count=16, kernels=20):
    """Relative lengths of the kernels of a model of equal layers: a few long products among short kernels."""
    one = np.random.default_rng(seed).lognormal(0, 1, kernels)
    return np.tile(one / one.mean(), count)


@pytest.mark.parametrize("speed", [0.3, 0.5, 0.8, 1.3, 2.1, 3.4, 5.5, 8.9, 14.4, 23.3])
def test_the_transition_batch_is_recovered_from_traces(speed):
    """``speed``: GPU over host; kernels take ``fixed + each * batch``."""
    shape = layers()
    gap, fixed, each = 10e-6, 1e-6, 4e-6 / speed
    batches = list(range(1, 65))
    traces = [run(np.full(len(shape), gap), shape * (fixed + each * b)) for b in batches]
    expected = int(transition(gap, fixed, each))  # per kernel, as over all of them
    truth = min(b for b in batches if fixed + each * b > gap)
    assert expected == truth
    assert transition_of_traces(batches, traces) == truth


def test_launching_and_queuing_is_flat_below_the_transition_and_grows_beyond_it():
    shape, gap, each = layers(), 10e-6, 1.1e-6
    batches = np.arange(1, 40)
    told = [timeline(run(np.full(len(shape), gap), shape * each * b)) for b in batches]
    turn = int(transition(gap, 0.0, each))
    tklqt = np.array([t.tklqt for t in told])
    below, above = tklqt[batches < turn / 2], tklqt[batches >= turn]
    assert below.max() < 1.5 * len(shape) * LATENCY
    assert np.all(np.diff(above) > 0)
    assert above[-1] > 20 * below.max()
    latency = np.array([t.latency for t in told])
    assert np.ptp(latency[batches < turn / 2]) < 0.02 * latency[0]
    assert latency[batches == 2 * turn] / latency[batches == turn] == pytest.approx(2, rel=0.05)


def test_a_timeline_adds_up():
    told = timeline(run([1e-5] * 4, [4e-5, 1e-5, 1e-5, 1e-5]))
    assert told.busy == pytest.approx(7e-5)
    assert told.latency == pytest.approx(7e-5 + LATENCY)
    assert told.idle == pytest.approx(LATENCY)
    # starts 3, 43, 53, 63 µs; launches 0, 10, 20, 30 µs
    assert told.tklqt == pytest.approx((3 + 33 + 33 + 33) * 1e-6)
    assert told.queuing == pytest.approx(3 * 30e-6)
    assert told.bound == "GPU"
    assert timeline(run([1e-5] * 4, [1e-6] * 4)).bound == "host"


def test_no_transition_where_every_run_is_host_bound():
    assert transition_of_traces([1, 2], [run([1e-5] * 9, [1e-6 * b] * 9) for b in (1, 2)]) is None
    with pytest.raises(UsageError, match="ascending"):
        transition_of_traces([2, 1], [run([1e-5] * 9, [1e-6] * 9)] * 2)


def test_gh200_turns_gpu_bound_later_than_a_pcie_h100_yet_prefills_faster_at_batch_64():
    batches = np.arange(1, 257)
    turns, at_64 = {}, {}
    for name in ("h100_pcie", "gh200"):
        kernels, launching = prefill_seconds(LLAMA_1B, node_of(name), batches, 512)
        turns[name] = batches[np.argmax(kernels > launching)]
        at_64[name] = max(kernels[63], launching)
    assert turns["gh200"] > turns["h100_pcie"]
    assert at_64["gh200"] < at_64["h100_pcie"]
    assert node_of("gh200").host.single_thread < device("epyc_9654").single_thread
    assert host_seconds(LLAMA_1B, node_of("gh200")) > host_seconds(LLAMA_1B, node_of("h100_pcie"))


def test_fusions_are_ranked_by_launches_saved():
    block = ["norm", "gemm", "rope", "attend", "gemm", "add"]
    names = ["embed", *block * 10, "norm", "head"]
    found = fusions(run([1e-5] * len(names), [1e-6] * len(names), names), longest=6)
    best = found[0]
    assert (best.chain, best.count, best.saved, best.proximity) == (
        ("rope", "attend", "gemm", "add", "norm"), 10, 40, 1.0,
    )  # fmt: skip
    assert all(f.proximity == 1.0 for f in found)
    assert [f.saved for f in found] == sorted((f.saved for f in found), reverse=True)
    assert not any(f.chain[0] == "gemm" for f in found)  # half of its runs are followed by something else
    loose = fusions(run([1e-5] * len(names), [1e-6] * len(names), names), longest=2, proximity=0.5, most=50)
    assert {f.chain for f in loose} > {f.chain for f in found if len(f.chain) == 2}


def test_a_chain_of_one_kernel_does_not_overlap_itself():
    found = fusions(run([1e-5] * 9, [1e-6] * 9, ["add"] * 9), longest=3, proximity=0.5)
    assert {(f.chain, f.count, f.saved) for f in found} == {(("add",) * 3, 3, 6), (("add",) * 2, 4, 4)}


def chrome(trace, batch=1):
    events = [{"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 1000.0, "dur": 5.0, "args": {}}]
    for i in range(len(trace.name)):
        where = {"correlation": i + 7}
        events.append(
            {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 1000 + 1e6 * trace.launched[i],
             "dur": 2.0, "args": where}
        )  # fmt: skip
        events.append(
            {"ph": "X", "cat": "kernel", "name": trace.name[i], "ts": 1000 + 1e6 * trace.began[i],
             "dur": 1e6 * (trace.ended[i] - trace.began[i]), "args": where}
        )  # fmt: skip
    events.append({"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD", "ts": 0.0, "dur": 9.0, "args": {}})
    return {"traceEvents": [*events, {"ph": "M", "name": "process_name"}]}


def test_a_profilers_trace_is_read(tmp_path):
    original = run([1e-5] * 30, np.linspace(1e-6, 3e-5, 30))
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps(chrome(original)).encode()))
    told, expected = timeline(read_chrome(path)), timeline(original)
    for figure in ("tklqt", "queuing", "issue", "busy", "latency"):
        assert getattr(told, figure) == pytest.approx(getattr(expected, figure), abs=1e-9), figure
    assert told.bound == expected.bound
    shown = TOPIC.explain(
        model="Qwen/Qwen3-0.6B", gpu="h100_pcie", isl=512.0, engine="vllm", host="grace", trace=str(path)
    )
    assert shown.figures["traced_launches"] == 30


def test_what_is_no_trace_of_a_gpu_is_refused(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text('{"traceEvents": [{"ph": "X", "cat": "cpu_op", "name": "a", "ts": 1, "dur": 1}]}')
    with pytest.raises(UsageError, match=r"ProfilerActivity\.CUDA"):
        read_chrome(path)
    path.write_text("no json")
    with pytest.raises(UsageError, match="no Chrome trace"):
        read_chrome(path)
    with pytest.raises(UsageError, match="there is no trace"):
        read_chrome(tmp_path / "absent.json")


def test_a_trace_of_torchs_own_profiler_without_a_gpu_says_what_is_missing(tmp_path):
    torch = pytest.importorskip("torch")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.ones(8) + 1
    profile.export_chrome_trace(str(tmp_path / "cpu.json"))
    with pytest.raises(UsageError, match="no kernel"):
        read_chrome(tmp_path / "cpu.json")
