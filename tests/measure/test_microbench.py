import subprocess
import sys
from dataclasses import replace

import pytest
from measurements_by_hand import BRIEF, PLATFORM

from nearpeak.errors import NearpeakError, UnknownName, UsageError
from nearpeak.hardware import Device, MemoryLevel, device
from nearpeak.measure import (
    Effort,
    Figure,
    Measurement,
    Sizes,
    device_here,
    measured_device,
    microbench,
    microbenchmarks,
    record,
)

SMALL = Sizes(gemm=(64, 32), buffer=2**20, dtypes=("fp32", "bf16"), launches=10)

CPU = Device(
    name="a_cpu", title="A CPU", vendor="x", kind="cpu", architecture="x", year=2023, units=8, clock=3e9, tdp=100,
    rates={"fp32": 1e12, "int8": 4e12}, memory=(MemoryLevel("DDR5", 1e12, 1e11), MemoryLevel("L3", 1e8, 1e12)),
    sources={"default": "a datasheet"},
)  # fmt: skip


def row(benchmark: str, figure: str, value: float, **what) -> Measurement:
    what = {"benchmark": benchmark, "device": "cpu", "threads": 2, **what}
    return record(Measurement(what, {figure: Figure(value, value, value, 0.95)}, PLATFORM))


def rows() -> list[Measurement]:
    return [
        row("gemm", "rate", 3e10, dtype="fp32", size=512),
        row("gemm", "rate", 5e10, dtype="fp32", size=1024),
        row("gemm", "rate", 7e10, dtype="bf16", size=512),
        row("read", "bandwidth", 2e10),
        row("copy", "bandwidth", 1e10),
        row("launch", "latency", 1e-6),
    ]


def test_a_measured_device_has_the_best_measured_rates_and_says_where_they_come_from(monkeypatch):
    monkeypatch.setattr(microbench, "_capacity", lambda device: 8e9)
    found = measured_device(CPU, rows())
    assert found.rates == {"fp32": 5e10, "bf16": 7e10, "int8": 4e12}
    assert found.memory == (MemoryLevel("DDR5", 8e9, 2e10), CPU.memory[1])
    assert found.sources["default"] == "a datasheet"
    assert {k for k, v in found.sources.items() if v.startswith("measured here, 20")} == {
        "rates.fp32", "rates.bf16", "memory"
    }  # fmt: skip
    assert CPU.rates["fp32"] == 1e12
    assert replace(found, title=CPU.title, rates=CPU.rates, memory=CPU.memory, sources=CPU.sources) == CPU


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        rows()[:3],
        rows()[3:],
        [*rows(), row("gemm", "rate", 1e15, dtype="fp32", size=8192, device="cuda")],
        [*rows(), replace(rows()[0], fingerprint=replace(PLATFORM, threads=64))],
    ],
    ids=["none", "no bandwidth", "no product", "two devices", "two platforms"],
)
def test_rows_that_describe_no_one_device_are_refused(wrong):
    with pytest.raises(UsageError, match="one run of microbenchmarks"):
        measured_device(CPU, wrong)


def test_a_gpu_is_looked_up_by_the_name_that_torch_gives_it(torch, monkeypatch):
    monkeypatch.setattr(microbench, "chosen_device", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_name", {"cuda:1": "NVIDIA H200", "cuda:0": "NVIDIA Unheard-of"}.get)
    assert device_here("cuda:1") is device("NVIDIA H200")
    with pytest.raises(UnknownName, match="Unheard-of"):
        device_here("cuda:0")
    with pytest.raises(NearpeakError, match="measure on the cpu"):
        device_here("mps")


def test_importing_the_room_loads_no_torch_and_no_duckdb():
    heavy = "('torch', 'transformers', 'duckdb', 'numpy', 'safetensors')"
    code = f"import sys, nearpeak.measure; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


def test_every_benchmark_gives_a_row_with_its_figure(torch):
    found = microbenchmarks("cpu", sizes=SMALL, effort=BRIEF)
    assert [(r.what["benchmark"], r.what.get("dtype"), r.what.get("size"), *r.figures) for r in found] == [
        ("gemm", "fp32", 32, "rate"),
        ("gemm", "fp32", 64, "rate"),
        ("gemm", "bf16", 32, "rate"),
        ("gemm", "bf16", 64, "rate"),
        ("read", None, 2**20, "bandwidth"),
        ("copy", None, 2**20, "bandwidth"),
        ("launch", None, None, "latency"),
    ]
    work = [2 * 32**3, 2 * 64**3, 2 * 32**3, 2 * 64**3, 2**20, 2**21]
    for flop_or_bytes, r in zip(work, found, strict=False):
        (figure,) = r.figures.values()
        assert figure.value == pytest.approx(flop_or_bytes / r.samples["run"].median)
    latency = found[-1].figures["latency"]
    assert latency.value == pytest.approx(found[-1].samples["run"].median / 10)
    assert latency.low <= latency.value <= latency.high
    assert all(r.fingerprint.threads == 1 for r in found)


def test_the_products_are_those_of_random_matrices_in_the_named_dtype(torch, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "matmul", lambda a, b, out: seen.append((a.clone(), b.clone(), out.dtype)))
    microbench.gemm("cpu", "bf16", 16, Effort(warmup=0, repeats=4, most=4))
    assert {a.dtype for a, _, _ in seen} | {out for _, _, out in seen} == {torch.bfloat16}
    assert all(a.std() > 0.5 and b.std() > 0.5 for a, b, _ in seen)
    assert not torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][0], seen[3][0])


def test_a_product_that_would_outlast_the_budget_is_left_at_the_smaller_size(torch, monkeypatch):
    from nearpeak.measure import Sample

    monkeypatch.setattr(microbench, "gemm", lambda device, dtype, size, effort: Sample((1e-9 * size**3,)))
    grown = microbench._growing("cpu", "fp32", (4000, 100, 1000), Effort(budget=2.0))
    assert [size for size, _ in grown] == [100, 1000]


def test_the_precision_of_products_is_restored(torch):
    before = torch.get_float32_matmul_precision()
    microbench.gemm("cpu", "tf32", 16, BRIEF)
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"device": "gpu"}, "not here"), ({"device": "cpu", "threads": 0}, "threads 0")],
)
def test_what_the_machine_does_not_have_is_refused(torch, arguments, message):
    with pytest.raises(UsageError, match=message):
        microbenchmarks(**arguments)
    with pytest.raises(UsageError, match="int4"):
        microbench.gemm("cpu", "int4", 16)


def test_measuring_an_accelerator_that_is_not_here_is_refused(torch):
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    with pytest.raises(NearpeakError, match="no accelerator"):
        measured_device(replace(CPU, kind="gpu"))


def test_buffers_too_large_for_memory_are_an_error_with_a_way_out(torch):
    with pytest.raises(NearpeakError, match="smaller sizes"):
        microbenchmarks("cpu", sizes=replace(SMALL, buffer=2**60), effort=BRIEF)
