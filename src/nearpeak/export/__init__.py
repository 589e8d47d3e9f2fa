"""Launch files: a plan as shell scripts that start the engine which runs it.

Here live the engines' command lines and where each server goes. What an engine cannot express is an error here, never
a flag that means something else. Here lives no choosing of plans (``plan``) and no explaining of them (``report``).
Names are loaded when they are used, so that importing the room costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nearpeak.export.files import write
    from nearpeak.export.for_sglang import sglang
    from nearpeak.export.for_vllm import vllm
    from nearpeak.export.launch import engines, launch_files

__all__ = ["engines", "launch_files", "sglang", "vllm", "write"]

_HOMES = {"engines": "launch", "launch_files": "launch", "sglang": "for_sglang", "vllm": "for_vllm", "write": "files"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (what a module holds is of any type)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
