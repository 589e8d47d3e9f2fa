"""The page: a person chooses model, hardware, traffic and goals, and sees the plan, its evidence and its launch files.

A server on this machine and a page of plain HTML, CSS and JavaScript modules; plots by the plotly.js that comes with
plotly, so nothing is asked of any network. Here live the form (``form``), the work that answers it, in a process of its
own (``work``, ``jobs``), plots of simulated runs (``charts``), and the server (``server``). Nothing is computed here.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nearpeak.web.server import app, open_page

__all__ = ["app", "open_page"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (what a module holds is of any type)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.server"), name)
