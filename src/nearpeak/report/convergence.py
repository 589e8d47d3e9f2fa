"""How a search converged, drawn: plain characters for a terminal, Plotly for a page."""

from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from nearpeak.report import charts
from nearpeak.report import format as write
from nearpeak.report.html import document, plot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nearpeak.search.convergence import Convergence
    from nearpeak.search.parameters import Floats

WIDTH, HEIGHT = 64, 10
"""Characters of a sketch."""
_SPAN = 20.0
"""The largest value drawn over the least, where all are above 0: what is worse lies on the upper edge."""


def sketch(course: "Convergence", say: Callable[[float], str] = write.digits) -> str:
    """Best value so far (``*``) and each evaluation (``.``; ``x`` at the top: failed) from left to right.

    The vertical axis is logarithmic where all values have one sign.
    """
    known = course.values[~np.isnan(course.values)]
    if len(known) == 0:
        return "no evaluation gave a value"
    heights, top, bottom = _heights(course.best, known)
    n = len(course.values)
    canvas = np.full((HEIGHT, WIDTH), " ")
    columns = np.arange(n) * (WIDTH - 1) // max(n - 1, 1)
    canvas[heights(course.values), columns] = "."
    canvas[0, columns[np.isnan(course.values)]] = "x"
    latest = np.searchsorted(columns, np.arange(WIDTH), side="right") - 1
    begun = np.flatnonzero(~np.isnan(course.best[latest]))
    canvas[heights(course.best[latest[begun]]), begun] = "*"
    labels = [say(top), *[""] * (HEIGHT - 2), say(bottom)]
    wide = max(map(len, labels))
    lines = [f"{label:>{wide}} |{''.join(row).rstrip()}" for label, row in zip(labels, canvas, strict=True)]
    ends = f"1{f'{n} evaluations':>{WIDTH - 1}}"
    return "\n".join([*lines, f"{'':{wide}} +{'-' * WIDTH}", f"{'':{wide}}  {ends}"])


def _heights(best: "Floats", known: "Floats") -> "tuple[Callable[[Floats], NDArray[np.intp]], float, float]":
    """The line of each value (0 on top), and the values of the first and last line."""
    logarithmic = bool((known > 0).all())
    scale = np.log if logarithmic else np.asarray
    low, high = float(known.min()), float(known.max())
    if logarithmic and low == np.nanmin(best):
        high = min(high, _SPAN * low)
    least, most = float(scale(low)), float(scale(high))

    def lines(values: "Floats") -> "NDArray[np.intp]":
        with np.errstate(invalid="ignore"):
            share = (scale(np.nan_to_num(values, nan=high)) - least) / ((most - least) or 1.0)
        return np.rint((1 - np.clip(share, 0, 1)) * (HEIGHT - 1)).astype(np.intp)

    return lines, high, low


def convergence_chart(courses: "Mapping[str, Convergence]", against: str, title: str) -> charts.Chart:
    """Best value so far of each search as steps; ``against`` is ``evaluations`` or ``seconds``."""
    colours = (charts.BLUE, charts.ORANGE, charts.GREEN, charts.RED, charts.PURPLE, charts.SKY, charts.GREY)
    data: list[charts.Chart] = []
    for i, (name, course) in enumerate(courses.items()):
        x = (np.arange(1, len(course.best) + 1) if against == "evaluations" else course.seconds).tolist()
        colour = colours[i % len(colours)]
        dots = {"mode": "markers", "marker": {"color": colour, "size": 5, "opacity": 0.35}}
        line = {"mode": "lines", "line": {"color": colour, "width": 2, "shape": "hv"}}
        data.append({"type": "scatter", "name": f"{name}, each", "x": x, "y": course.values.tolist(), **dots})
        data.append({"type": "scatter", "name": f"{name}, best so far", "x": x, "y": course.best.tolist(), **line})
    values = np.concatenate([course.values for course in courses.values()])
    positive = bool((values[~np.isnan(values)] > 0).all())
    vertical = charts.axis(title, type="log" if positive else "linear")
    return {"data": data, "layout": charts.layout(xaxis=charts.axis(against), yaxis=vertical)}


def convergence_page(title: str, says: str, courses: "Mapping[str, Convergence]", value: str) -> str:
    """A page with the courses of searches, against evaluations and against seconds."""
    figures = {a: convergence_chart(courses, a, value) for a in ("evaluations", "seconds")}
    return document(
        f"nearpeak: {title}",
        [
            f'<header><h1>{escape(title)}</h1><p class="soft">{escape(says)}</p></header>',
            '<div class="pair">',
            plot("evaluations", "Best so far against evaluations", "Each point is an evaluation."),
            plot("seconds", "Best so far against seconds", "Seconds that evaluations took, added up over workers."),
            "</div>",
        ],
        figures,
    )
