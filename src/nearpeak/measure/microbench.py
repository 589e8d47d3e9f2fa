"""Microbenchmarks: what the machine at hand sustains in matrix products, in reading and copying memory, in launching.

Operands are random (zeros draw less power and so run faster on a GPU) and rotate through several allocations, so that
no product finds its operands in the cache that the last one filled. Each benchmark takes about a second; a product
that would take longer than its budget at the next larger size is left at the smaller one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING, Any

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.measure.fingerprint import fingerprint
from nearpeak.measure.measurement import Measurement, rate, record, timed
from nearpeak.measure.memory import total_memory
from nearpeak.measure.runtime import DTYPES, chosen_device, memory_errors, pinned_threads, synchronizer, torch
from nearpeak.measure.timing import Effort, Sample, measure

if TYPE_CHECKING:
    from nearpeak.hardware import Device

EFFORT = Effort(warmup=1, settle=0.2, repeats=7, most=200, width=0.03, budget=0.8)
"""How hard each benchmark is measured unless said otherwise."""


@dataclass(frozen=True)
class Sizes:
    """How large the benchmarks are on a kind of device.

    Attributes:
        gemm: sides of the square matrices. buffer: bytes that are read or copied: several times the largest cache.
        dtypes: number formats of the products. launches: operators in one timing.
    """

    gemm: tuple[int, ...]
    buffer: int
    dtypes: tuple[str, ...]
    launches: int


CPU = Sizes(gemm=(512, 1024), buffer=2**28, dtypes=("fp32", "bf16", "fp16"), launches=1000)
GPU = Sizes(gemm=(4096, 8192), buffer=2**31, dtypes=("fp32", "tf32", "bf16", "fp16"), launches=1000)


def gemm(device: str, dtype: str, size: int, effort: Effort = EFFORT) -> Sample:
    """Time ``C = A B`` of square matrices ``[size, size]``: ``2 size³`` FLOP. "tf32" is fp32 through the tf32 units.

    Raises:
        UsageError: a dtype that torch cannot multiply in.
    """
    t = torch()
    if dtype not in (*DTYPES, "tf32"):
        raise UsageError(f"dtype {dtype!r} has no matrix product in torch; allowed: tf32, {', '.join(DTYPES)}")
    kind = getattr(t, DTYPES["fp32" if dtype == "tf32" else dtype])
    operands = cycle([tuple(_random(device, kind, size, size) for _ in range(2)) for _ in range(3)])
    out = t.empty(size, size, dtype=kind, device=device)
    before = t.get_float32_matmul_precision()
    t.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        return measure(lambda: t.matmul(*next(operands), out=out), effort, synchronizer(device))
    finally:
        t.set_float32_matmul_precision(before)


def read(device: str, size: int, effort: Effort = EFFORT) -> Sample:
    """Time the product of an fp32 matrix of ``size`` bytes with a vector: the read of weights that decode is."""
    t = torch()
    columns = 4096
    matrix = _random(device, t.float32, size // (4 * columns), columns)
    vector = _random(device, t.float32, columns)
    out = t.empty(matrix.shape[0], device=device)
    return measure(lambda: t.mv(matrix, vector, out=out), effort, synchronizer(device))


def copy(device: str, size: int, effort: Effort = EFFORT) -> Sample:
    """Time a copy of ``size`` bytes within the device's memory: ``2 size`` bytes of traffic, as STREAM counts."""
    t = torch()
    source = _random(device, t.float32, size // 4)
    target = t.empty_like(source)
    return measure(lambda: target.copy_(source), effort, synchronizer(device))


def launch(device: str, count: int, effort: Effort = EFFORT) -> Sample:
    """Time ``count`` operators on one element, each of which waits for the last: all overhead, no work."""
    t = torch()
    x = t.zeros(1, device=device)

    def operators() -> None:
        for _ in range(count):
            x.add_(1.0)

    return measure(operators, effort, synchronizer(device))


def microbenchmarks(
    device: str = "auto", *, threads: int = 1, sizes: Sizes | None = None, effort: Effort = EFFORT
) -> tuple[Measurement, ...]:
    """Run them all; a row each.

    Their ``what`` has ``benchmark`` (gemm, read, copy, launch), ``device``, ``threads`` and the sizes; their figure is
    ``rate`` (FLOP/s), ``bandwidth`` (bytes/s) or ``latency`` (seconds an operator).

    Raises:
        UsageError: no such device, or more threads than cores.
        NearpeakError: torch is missing, or memory does not suffice.
    """
    device = chosen_device(device)
    sizes = sizes or (CPU if device == "cpu" else GPU)
    platform = fingerprint(threads)

    def row(figure: str, work: float, sample: Sample, **what: str | int) -> Measurement:
        found = rate(work, sample)
        if figure == "latency":
            per = timed(sample)
            found = replace(per, value=per.value / work, low=per.low / work, high=per.high / work)
        inputs: Mapping[str, str | int] = {**what, "device": device, "threads": threads}
        return record(Measurement(what=inputs, figures={figure: found}, fingerprint=platform, samples={"run": sample}))

    advice = "pass smaller sizes to microbenchmarks"
    with pinned_threads(threads), torch().inference_mode(), memory_errors(advice):
        products = [
            row("rate", 2.0 * size**3, sample, benchmark="gemm", dtype=dtype, size=size)
            for dtype in sizes.dtypes
            for size, sample in _growing(device, dtype, sizes.gemm, effort)
        ]
        return (
            *products,
            row("bandwidth", sizes.buffer, read(device, sizes.buffer, effort), benchmark="read", size=sizes.buffer),
            row("bandwidth", 2 * sizes.buffer, copy(device, sizes.buffer, effort), benchmark="copy", size=sizes.buffer),
            row("latency", sizes.launches, launch(device, sizes.launches, effort), benchmark="launch"),
        )


def device_here(name: str) -> "Device":
    """What the catalogue and the operating system say of the device that torch calls ``name`` (cpu, cuda, cuda:1).

    Raises:
        UsageError: torch has no such device here.
        UnknownName: the catalogue does not know this GPU.
        NearpeakError: an accelerator whose model torch does not tell.
    """
    from nearpeak.hardware import detect, device

    name = chosen_device(name)
    if name == "cpu":
        return detect.cpu()
    if not name.startswith("cuda"):
        raise NearpeakError(f"torch does not tell which model {name!r} is; measure on the cpu")
    return device(torch().cuda.get_device_name(name))


def measured_device(device: "Device", rows: Sequence[Measurement] | None = None, *, threads: int = 1) -> "Device":
    """A device whose rates and memory are those measured on the machine at hand, each with that as its source.

    A rate is the best of its sizes, the bandwidth the better of read and copy: what the machine has shown it can
    sustain. Rates that were not measured (fp8, int4) stay as the datasheet has them, for all cores, with its source.

    Args:
        device: a description to start from, such as ``device_here`` gives.
        rows: microbenchmarks of one device; None runs them on the CPU for a ``device`` of kind cpu, or else on the
            accelerator.
        threads: CPU threads of those runs.

    Raises:
        UsageError: rows without a matrix product or without a bandwidth, or of several devices.
        NearpeakError: ``device`` is an accelerator, and the machine has none.
    """
    if rows is None:
        at = chosen_device("cpu" if device.kind == "cpu" else "auto")
        if at == "cpu" and device.kind != "cpu":
            raise NearpeakError(f"{device.title} is a {device.kind}, and torch finds no accelerator on this machine")
        rows = microbenchmarks(at, threads=threads)
    where = {(str(r.what.get("device")), r.fingerprint.hash) for r in rows}
    products = [r for r in rows if r.what.get("benchmark") == "gemm"]
    bandwidths = [r for r in rows if "bandwidth" in r.figures]
    if len(where) != 1 or not products or not bandwidths:
        raise UsageError(f"{len(products)} matrix products and {len(bandwidths)} bandwidths of {len(where)} devices; "
                         "pass rows of one run of microbenchmarks, with one of each at least")  # fmt: skip
    rates: dict[str, float] = {}
    for r in products:
        dtype = str(r.what["dtype"])
        rates[dtype] = max(rates.get(dtype, 0.0), r.figures["rate"].value)
    best = max(r.figures["bandwidth"].value for r in bandwidths)
    capacity = _capacity(next(iter(where))[0]) or device.memory_capacity
    source = f"measured here, {max(r.created for r in rows)[:10]}, threads {rows[0].what['threads']}"
    return replace(
        device,
        title=f"{device.title}, as measured here",
        rates={**device.rates, **rates},
        memory=(replace(device.memory[0], bandwidth=best, capacity=capacity), *device.memory[1:]),
        sources={**device.sources, "memory": source, **{f"rates.{name}": source for name in rates}},
    )


def _growing(device: str, dtype: str, sizes: Sequence[int], effort: Effort) -> Iterator[tuple[int, Sample]]:
    """Products from the smallest size on, until the next would by the last take longer than the budget."""
    last: tuple[int, Sample] | None = None
    for size in sorted(sizes):
        if last and last[1].median * (size / last[0]) ** 3 > effort.budget:
            return
        last = size, gemm(device, dtype, size, effort)
        yield last


def _capacity(device: str) -> float | None:
    if device == "cpu":
        return total_memory()
    t: Any = torch()
    return float(t.cuda.get_device_properties(device).total_memory) if device.startswith("cuda") else None


def _random(device: str, dtype: Any, *shape: int) -> Any:  # noqa: ANN401 - torch's dtype and Tensor
    return torch().randn(*shape, device=device, dtype=torch().float32).to(dtype)
