"""What a measurement ran on: enough to tell two platforms apart, nothing that tells whose they are.

No host name, user name, address or path is read. What the system does not tell is None, never a guess.
"""

import hashlib
import os
import platform
import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from nearpeak.measure.memory import total_memory

_ISA = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile",
        "amx_bf16", "amx_int8", "asimd", "sve", "sve2", "bf16", "i8mm")  # fmt: skip
"""The instruction sets that matrix products get faster by, as the kernel names them."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver reports it. ``memory``: bytes; ``clock``: the highest clock of its cores, Hz."""

    name: str
    driver: str
    memory: int
    clock: float


@dataclass(frozen=True)
class Fingerprint:
    """A platform.

    Attributes:
        cpu: model name. isa: instruction sets that matter to matrix products.
        cores: cores that this process may use (affinity and container quota). threads: threads that it used.
        memory: bytes that this process may use, to the nearest GiB (kernels differ in what they keep to themselves).
        system: operating system, release and machine. governor: of the CPU's clock, where it can be read.
        python, torch, transformers: versions. gpus: those that the driver shows, in its order.
    """

    cpu: str | None
    isa: tuple[str, ...]
    cores: int
    threads: int
    memory: int | None
    system: str
    governor: str | None
    python: str
    torch: str | None
    transformers: str | None
    gpus: tuple[Gpu, ...] = ()

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that equal platforms share, today and in a later version of nearpeak."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:16]


def fingerprint(threads: int = 1) -> Fingerprint:
    """The fingerprint of this machine. ``threads``: CPU threads that the measurement used."""
    cpuinfo = _read("/proc/cpuinfo") or ""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.M)
    memory = total_memory()
    return Fingerprint(
        cpu=_cpu_name(cpuinfo),
        isa=tuple(i for i in _ISA if flags and i in flags.group(1).split()),
        cores=available_cores(),
        threads=threads,
        memory=None if memory is None else round(memory / 2**30) * 2**30,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        python=platform.python_version(),
        torch=_version("torch"),
        transformers=_version("transformers"),
        gpus=_nvidia_gpus(),
    )


def available_cores() -> int:
    """Cores that this process may use: its affinity, and its container's CPU quota rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = (_read("/sys/fs/cgroup/cpu.max") or "max").split()
    if len(quota) == 2 and quota[0] != "max":
        cores = min(cores, max(-(-int(quota[0]) // int(quota[1])), 1))
    return cores


def _cpu_name(cpuinfo: str) -> str | None:
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.M)
    if named:
        return named.group(1).strip()
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or None


@cache
def _nvidia_gpus() -> tuple[Gpu, ...]:
    """GPUs of NVIDIA's driver, asked for without torch; none where the driver's tool is missing or answers nothing."""
    table = _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm",
                    "--format=csv,noheader,nounits")  # fmt: skip
    rows = [[cell.strip() for cell in line.split(",")] for line in (table or "").splitlines()]
    return tuple(
        Gpu(name, driver, int(memory) * 2**20, float(clock) * 1e6)
        for name, driver, memory, clock in (row for row in rows if len(row) == 4)
        if memory.isdigit() and clock.isdigit()
    )


def _output(*command: str) -> str | None:
    """What a command prints, or None where it is missing, fails, or does not answer in 10 seconds."""
    if shutil.which(command[0]) is None:
        return None
    import subprocess  # here, since it takes longer to import than the rest of this room

    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # here, for the same reason

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip() or None
    except OSError:
        return None
