"""Which engines there are launch files for."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nearpeak.errors import NearpeakError
from nearpeak.export.for_sglang import sglang
from nearpeak.export.for_vllm import vllm

if TYPE_CHECKING:
    from nearpeak.plan import Explained


def engines() -> "Mapping[str, Callable[[Explained], dict[str, str]]]":
    """Engines with launch files: the name, and the function from a plan to its files (name: text)."""
    return {"sglang": sglang, "vllm": vllm}


def launch_files(plan: "Explained") -> dict[str, str]:
    """The launch files of a plan on the engine that it was made for.

    Raises:
        NearpeakError: there are none for this engine, or the engine cannot express the plan.
    """
    known = engines()
    name = plan.setup.engine
    if name not in known:
        raise NearpeakError(
            f"there are no launch files for {name!r}; known: {', '.join(sorted(known))}: plan for one of these engines"
        )
    return known[name](plan)
