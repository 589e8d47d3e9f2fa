"""Host memory of this machine and of this process, bytes. What the system does not tell is None."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Memory of a run on its device, bytes; None where the system does not tell.

    On a GPU, what torch had allocated there; on a CPU, the resident memory of the process, interpreter and libraries
    included: take ``before`` off to see what the model took.

    Attributes:
        before: before the model was loaded. loaded: after. peak: the most while it ran.
    """

    before: int | None
    loaded: int | None
    peak: int | None


def total_memory() -> int | None:
    """Memory that this process may use: the machine's, or its container's limit where that is less."""
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    limit = _container("memory.max")
    return machine if limit is None else min(machine, limit)


def available_memory() -> int | None:
    """Memory that this process could still take without swapping."""
    free = _proc("/proc/meminfo", "MemAvailable")
    limit, used = _container("memory.max"), _container("memory.current")
    if free is None or limit is None or used is None:
        return free
    return min(free, limit - used)


def resident() -> int | None:
    """Resident memory of this process now."""
    return _proc("/proc/self/status", "VmRSS")


def peak_resident() -> int | None:
    """The most resident memory since ``reset_peak``; since the start of the process where it could not be reset."""
    peak = _proc("/proc/self/status", "VmHWM")
    if peak is not None or sys.platform == "win32":
        return peak
    import resource  # absent on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> None:
    """Let ``peak_resident`` count from now (Linux; elsewhere it keeps counting from the start of the process)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return


def _proc(path: str, key: str) -> int | None:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", Path(path).read_text(), re.M)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None


def _container(name: str) -> int | None:
    """A figure of this process's control group (cgroup v2); None without a limit."""
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
