"""Memory that this process holds, and the most it has held, in bytes. None where the system does not say."""

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident_memory() -> int | None:
    """Resident memory now."""
    return _status("VmRSS")


def peak_memory() -> int | None:
    """Most resident memory since the process started.

    Linux's ``getrusage`` is not asked: its figure begins with what the parent held when it started this process.
    """
    if sys.platform == "linux":
        return _status("VmHWM")
    try:
        import resource
    except ModuleNotFoundError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(field: str) -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024  # given in kB
    return None
