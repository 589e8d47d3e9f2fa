"""What this machine is made of: its CPU from what the kernel says, its GPUs from ``nvidia-smi`` or ``rocm-smi``.

A CPU's peak is cores x operations a clock x clock, operations from the instruction sets it has (``OPERATIONS``). Its
memory bandwidth is nowhere to be read, so it is measured: a copy by all cores, under a third of a second.
"""

import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from nearpeak.errors import NearpeakError, UnknownName
from nearpeak.hardware.catalogue import device
from nearpeak.hardware.types import Device, MemoryLevel

OPERATIONS: tuple[tuple[str, str, int], ...] = (
    ("amx_bf16", "bf16", 1024),
    ("amx_int8", "int8", 2048),
    ("avx512f", "fp32", 64),
    ("avx512_bf16", "bf16", 128),
    ("avx512_vnni", "int8", 256),
    ("fma", "fp32", 32),
    ("avx_vnni", "int8", 128),
    ("asimd", "fp32", 16),
    ("sse2", "fp32", 8),
)
"""Instruction set, rate key, operations a clock and core; the first that a CPU has counts for a rate. Two FMA units of
512, 256 or 128 bits (an FMA is two operations), an AMX tile product in 16 clocks, SSE2 with one adder and one
multiplier. AMD family 25 (Zen 3, Zen 4) runs 512 bits in two passes: half."""

APPLE_CLOCK = 3.2e9
"""Assumed: macOS does not say the clock of Apple's chips; the performance cores of all of them reach it."""

WATTS_A_CORE = 5.0
"""Assumed for a CPU that the catalogue does not know: 350 W for 64 to 96 cores, rounded up."""


@dataclass(frozen=True)
class Processor:
    """A CPU as the operating system describes it. ``clock`` in Hz, ``memory`` and ``caches`` (by level) in bytes."""

    name: str
    vendor: str
    family: int
    cores: int
    clock: float
    flags: frozenset[str]
    memory: float
    caches: Mapping[int, float]


def here() -> tuple[Device, ...]:
    """The devices of this machine: GPUs first, the CPU last.

    A GPU that is not in the catalogue is left out with a warning that names it and says how to add it.

    Raises:
        NearpeakError: the operating system does not say what the CPU is.
    """
    return (*gpus(), cpu())


@cache
def cpu() -> Device:
    """The CPU of this machine, with the cores and the memory that this process may use.

    Raises:
        NearpeakError: the operating system does not say what the CPU is.
    """
    found = _mac() if platform.system() == "Darwin" else _linux()
    out_of_cache = int(max(64 * 2**20, 2 * max(found.caches.values(), default=0)))
    measured = {0: copy_bandwidth(out_of_cache, found.cores)}
    if found.caches:
        last = max(found.caches)
        measured[last] = copy_bandwidth(int(found.caches[last] / 4), found.cores)
    return cpu_device(found, measured)


def cpu_device(found: Processor, bandwidth: Mapping[int, float]) -> Device:
    """A ``Device`` of a processor. ``bandwidth``: measured bytes/s by cache level, 0 for main memory."""
    memory = [MemoryLevel("RAM", found.memory, bandwidth[0])]
    for level, rate in bandwidth.items():
        if level and rate > memory[0].bandwidth and found.caches[level] < found.memory:
            memory.append(MemoryLevel(f"L{level}", found.caches[level], rate))
    sources = {
        "default": "what the operating system says of this machine",
        "rates": "cores x operations a clock x clock (nearpeak.hardware.detect.OPERATIONS)",
        "memory": "capacity from the operating system; bandwidth measured here: a copy, bytes read and written",
    }
    if found.vendor == "Apple":
        sources["clock"] = f"assumed: {APPLE_CLOCK:g} Hz"
    facts = Device(
        name="this_cpu",
        title=found.name,
        vendor=found.vendor,
        kind="cpu",
        architecture=f"family {found.family}" if found.family else platform.machine(),
        year=time.gmtime().tm_year,
        rates={rate: found.cores * found.clock * n for rate, n in operations(found).items()},
        memory=tuple(memory),
        units=found.cores,
        clock=found.clock,
        tdp=WATTS_A_CORE * found.cores,
        host_link="pcie4_x16",
        sources={**sources, "tdp": f"assumed: {WATTS_A_CORE:g} W a core", "year": "unknown: the present one"},
    )
    try:
        model = device(found.name)
    except UnknownName:
        return facts
    share = min(1.0, found.cores / model.units)
    return replace(
        facts,
        kind=model.kind,
        architecture=model.architecture,
        year=model.year,
        tdp=model.tdp * share,
        rates=facts.rates if model.kind == "cpu" else model.rates,
        single_thread=model.single_thread,
        scale_up=model.scale_up,
        host_link=model.host_link,
        sources={**sources, "tdp": f"catalogue: {model.name}, by the share of its cores", "year": model.name},
    )


def operations(found: Processor) -> dict[str, int]:
    """Operations a clock and core by rate key, from the instruction sets."""
    narrow = found.vendor == "AuthenticAMD" and found.family == 25
    rates: dict[str, int] = {}
    for flag, rate, count in OPERATIONS:
        if flag in found.flags and rate not in rates:
            rates[rate] = count // 2 if narrow and flag.startswith("avx512") else count
    return dict(sorted(rates.items()))


def copy_bandwidth(size: int, threads: int) -> float:
    """Bytes/s read and written by a copy of ``size`` bytes, cut among threads: the best of a tenth of a second."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    source = np.ones(max(size // 8, 1024))
    target = np.zeros_like(source)
    parts = np.array_split(np.arange(len(source) + 1), min(threads, 16))
    slices = [slice(int(p[0]), int(p[-1]) + 1) for p in parts if len(p)]
    best = math.inf
    with ThreadPoolExecutor(len(slices)) as pool:
        end = time.perf_counter() + 0.1
        while time.perf_counter() < end:
            start = time.perf_counter()
            list(pool.map(lambda s: np.copyto(target[s], source[s]), slices))
            best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def _linux() -> Processor:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise NearpeakError(f"cannot tell this machine's CPU: /proc/cpuinfo: {error.strerror}") from error
    cpus = [_fields(block) for block in text.split("\n\n") if block.strip()]
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(len(cpus)))
    mine = [c for c in cpus if int(c.get("processor", -1)) in allowed] or cpus
    cores = len({(c.get("physical id", c.get("processor")), c.get("core id", c.get("processor"))) for c in mine})
    first = mine[0]
    family = first.get("cpu family", "0")
    return Processor(
        name=first.get("model name", platform.processor() or platform.machine()),
        vendor=first.get("vendor_id", first.get("CPU implementer", "unknown")),
        family=int(family) if family.isdigit() else 0,
        cores=int(min(cores, cpu_quota(Path("/sys/fs/cgroup")))),
        clock=_clock(first),
        flags=frozenset(first.get("flags", first.get("Features", "")).split()),
        memory=_memory(Path("/proc/meminfo"), Path("/sys/fs/cgroup")),
        caches=_caches(Path("/sys/devices/system/cpu"), sorted(allowed)),
    )


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_quota(root: Path) -> float:
    """CPUs that the control group at ``root`` grants (version 2 or 1); infinite where it sets no limit."""
    try:
        quota, _, period = (root / "cpu.max").read_text().strip().partition(" ")
        return math.inf if quota == "max" else max(1.0, int(quota) / int(period))
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        return math.inf if quota_us < 0 else max(1.0, quota_us / int((root / "cpu/cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        return math.inf


def _clock(fields: Mapping[str, str]) -> float:
    try:
        kilohertz = int(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text())
    except (OSError, ValueError):
        megahertz = fields.get("cpu MHz")  # virtual machines say the nominal clock here
        if megahertz is None:
            raise NearpeakError("cannot tell this CPU's clock: neither cpufreq nor /proc/cpuinfo says it") from None
        return float(megahertz) * 1e6
    return kilohertz * 1e3


def _memory(meminfo: Path, group: Path) -> float:
    total = next(float(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if "MemTotal" in line)
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(total, float((group / limit).read_text()))
        except (OSError, ValueError):
            continue
    return total


def _caches(root: Path, cpus: Iterable[int]) -> dict[int, float]:
    """Bytes of data cache by level, each shared cache counted once."""
    seen: dict[tuple[int, str], float] = {}
    for number in cpus:
        for index in (root / f"cpu{number}/cache").glob("index*"):
            try:
                kind, level, size, shared = (
                    (index / key).read_text().strip() for key in ("type", "level", "size", "shared_cpu_list")
                )
            except OSError:
                continue
            if kind != "Instruction":
                seen[int(level), shared] = float(size.rstrip("KM")) * (2**20 if size.endswith("M") else 2**10)
    levels = {level for level, _ in seen}
    return {wanted: sum(size for (level, _), size in seen.items() if level == wanted) for wanted in sorted(levels)}


def _mac() -> Processor:
    def ask(key: str) -> str:
        return _output(["sysctl", "-n", key]).strip()

    name = ask("machdep.cpu.brand_string")
    if not name:
        raise NearpeakError("cannot tell this machine's CPU: sysctl does not say machdep.cpu.brand_string")
    arm = platform.machine() == "arm64"
    clock = ask("hw.cpufrequency_max")
    return Processor(
        name=name,
        vendor="Apple" if arm else "GenuineIntel",
        family=0,
        cores=int(ask("hw.physicalcpu") or os.cpu_count() or 1),
        clock=float(clock) if clock else APPLE_CLOCK,
        flags=frozenset({"asimd"} if arm else ask("machdep.cpu.features").lower().split()),
        memory=float(ask("hw.memsize")),
        caches={2: float(ask("hw.l2cachesize") or 0) or 4.0 * 2**20},
    )


def gpus() -> tuple[Device, ...]:
    """GPUs of this machine by ``nvidia-smi`` and ``rocm-smi``, each with the memory that the tool reports.

    A GPU that is not in the catalogue is left out with a warning.
    """
    nvidia = _output(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"])
    amd = _output(["rocm-smi", "--showproductname", "--showmeminfo", "vram", "--csv"])
    return (*_known(parse_nvidia(nvidia)), *_known(parse_rocm(amd)))


def parse_nvidia(text: str) -> list[tuple[str, float]]:
    """Names and bytes of memory in the output of ``nvidia-smi`` (name, MiB); 0 where it does not say."""
    import csv

    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]
    return [(row[0], float(row[1]) * 2**20 if row[1].isdigit() else 0.0) for row in rows if len(row) == 2]


def parse_rocm(text: str) -> list[tuple[str, float]]:
    """Names and bytes of memory in the CSV of ``rocm-smi``, whose column titles differ by version."""
    import csv

    lines = [line for line in text.splitlines() if "," in line]
    found = []
    for row in csv.DictReader(lines):
        titles = {title.lower(): value for title, value in row.items() if title}
        name = titles.get("card series", titles.get("card model", ""))
        memory = next((value for title, value in titles.items() if "total memory" in title), "0")
        if name:
            found.append((name, float(memory or 0)))
    return found


def _known(found: Iterable[tuple[str, float]], look_up: Callable[[str], Device] = device) -> list[Device]:
    known = []
    for name, capacity in found:
        try:
            model = look_up(name)
        except UnknownName as error:
            warnings.warn(f"this machine has a GPU that is left out: {error}", stacklevel=3)
            continue
        main, *inner = model.memory
        if capacity:
            model = replace(model, memory=(replace(main, capacity=capacity), *inner))
        known.append(model)
    return known


def _output(command: list[str]) -> str:
    """What a command prints; nothing where it is not installed or fails."""
    import subprocess  # a slow import, and not every machine asks

    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
