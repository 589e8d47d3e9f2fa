"""How the compiled parts of the simulator are compiled.

They allocate nothing and count no references: a state of a dozen arrays goes from function to function for free.
Divisions follow NumPy's rules. ``inlined`` is for functions that are called in one or two places: compiled within
their callers, they cost no compilation of their own.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])
_HOW: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}
_SOURCES = ("cache", "loop", "policies", "queues", "state", "steps", "compiled")
_STAMP = hashlib.sha256(b"".join(Path(__file__).with_name(f"{m}.py").read_bytes() for m in _SOURCES)).hexdigest()
"""Of the sources of all that is compiled here: numba itself sees a change of a function's own file only, and would go
on calling what its callees were when it was compiled."""


def compiled(function: F) -> F:
    """The function, compiled when it is first called, and kept on disk."""
    return _made(function, **_HOW)


def inlined(function: F) -> F:
    """The function, compiled as a part of those that call it."""
    return _made(function, inline="always", **_HOW)


def _made(function: F, **how: Any) -> F:  # noqa: ANN401 (numba's options)
    made = njit(**how)(function)
    made._cache._cache_file._source_stamp = _STAMP
    return cast(F, made)
