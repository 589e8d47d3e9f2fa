"""torch on the machine at hand: which device, how many threads, when it is done, what memory it holds.

torch and transformers are imported here and nowhere else in this room, and only once they are needed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.measure.fingerprint import available_cores
from nearpeak.measure.memory import available_memory, peak_resident, reset_peak, resident

DTYPES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Names of number formats -> torch's."""


def torch() -> ModuleType:
    """The torch module.

    Raises:
        NearpeakError: torch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError as e:
        raise NearpeakError("measuring runs on torch, which is not installed: pip install nearpeak[torch]") from e
    return torch


def causal_language_model() -> tuple[Any, Any]:
    """The AutoConfig and AutoModelForCausalLM of transformers.

    Raises:
        NearpeakError: transformers is not installed, or cannot be imported.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as e:
        raise NearpeakError(f"measuring a model runs on transformers ({e}): pip install nearpeak[torch]") from e
    return AutoConfig, AutoModelForCausalLM


def chosen_device(name: str) -> str:
    """``auto`` resolved to this machine's accelerator, or else its CPU; any other device that torch has here as it is.

    Raises:
        UsageError: torch has no such device here.
    """
    accelerator = torch().accelerator.current_accelerator() if torch().accelerator.is_available() else None
    if name == "auto":
        return str(accelerator.type) if accelerator else "cpu"
    here = ["cpu"]
    if accelerator:
        count = torch().accelerator.device_count()
        here += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(count))]
    if name not in here:
        raise UsageError(f"device {name!r} is not here; allowed: auto, {', '.join(here)}")
    return name


def synchronizer(device: str) -> Callable[[], None] | None:
    """What waits until ``device`` has done all that was asked of it; None where calls return when done (CPU)."""
    if device == "cpu":
        return None
    t = torch()
    return lambda: t.accelerator.synchronize(t.device(device))


@contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """Let torch use ``threads`` CPU threads, and as many as before afterwards.

    Raises:
        UsageError: fewer than one, or more than the cores that this process may use.
    """
    cores = available_cores()
    if not 1 <= threads <= cores:
        raise UsageError(
            f"threads {threads}: this process may use {cores} cores, and more threads than cores slow small "
            f"operators down many times over; allowed: 1 to {cores}"
        )
    t = torch()
    before = t.get_num_threads()
    t.set_num_threads(threads)
    try:
        yield
    finally:
        t.set_num_threads(before)


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Turn every way in which torch and Python run out of memory into one error that ends with ``advice``.

    Raises:
        NearpeakError: memory ran out inside.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not out_of_memory(e):
            raise
        first = (str(e).splitlines() or ["allocation failed"])[0]
        raise NearpeakError(f"out of memory: {first}; {advice}") from e


def out_of_memory(e: Exception) -> bool:
    """Whether an error is one of those by which torch and Python say that memory ran out."""
    text = str(e).lower()
    return isinstance(e, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def memory_free(device: str) -> int | None:
    """Bytes that ``device`` has free; None where nobody tells."""
    if device == "cpu":
        return available_memory()
    return int(torch().cuda.mem_get_info(device)[0]) if device.startswith("cuda") else None


def memory_now(device: str) -> int | None:
    """Bytes that this process holds on ``device``."""
    if device == "cpu":
        return resident()
    return int(torch().cuda.memory_allocated(device)) if device.startswith("cuda") else None


def memory_peak(device: str) -> int | None:
    """The most bytes that this process held on ``device`` since ``forget_peak``."""
    if device == "cpu":
        return peak_resident()
    return int(torch().cuda.max_memory_allocated(device)) if device.startswith("cuda") else None


def forget_peak(device: str) -> None:
    """Let ``memory_peak`` count from now."""
    if device == "cpu":
        reset_peak()
    elif device.startswith("cuda"):
        torch().cuda.reset_peak_memory_stats(device)
