"""Plots of simulated runs as plain Plotly figures: how times are spread, other rates, and what engines do when."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.plan.serving import Limit
from nearpeak.report import format as write
from nearpeak.report.charts import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, Chart, axis, layout, log_axis
from nearpeak.simulate.results import FIGURES, Result

COLOURS = {"ttft": BLUE, "tpot": ORANGE, "latency": GREEN}
NAMES = {"ttft": "time to first token", "tpot": "time per later token", "latency": "whole request"}
SHARES = np.concatenate([np.linspace(0.5, 98.5, 99), np.linspace(99, 99.9, 10)])
"""Percentiles at which a distribution is drawn."""
STEPS = 1500
"""Engine steps that are drawn."""
SEEN = 200
"""Engine steps that are seen before one zooms out."""
ENGINES = 16
"""Engines (pipeline stages of instances) that are drawn, the first of them."""
MOMENTS = 400
"""Moments at which the requests in the system are counted."""


def named(limit: Limit) -> str:
    """A limit as people write it: p99 TTFT."""
    return f"{limit}".replace("ttft", "TTFT").replace("tpot", "TPOT")


def spread(result: Result, limits: Sequence[Limit]) -> Chart:
    """Share of requests whose time is at most so long, by figure, and the limits: a curve passes left of its own."""
    data: list[Chart] = []
    for figure in FIGURES:
        times = [result.percentile(figure, float(share)) for share in SHARES]
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": NAMES[figure], "x": times, "y": SHARES.tolist(),
                "line": {"color": COLOURS[figure], "width": 2},
                "text": [write.seconds(time) for time in times],
                "hovertemplate": "%{y:.1f} % within %{text}<extra>" + NAMES[figure] + "</extra>",
            }
        )  # fmt: skip
    for limit in limits:
        share = _share(limit, result)
        data.append(
            {
                "type": "scatter", "mode": "markers", "x": [limit.seconds], "y": [share], "showlegend": False,
                "marker": {"symbol": "triangle-left", "size": 13, "color": COLOURS[limit.figure],
                           "line": {"color": "#FFFFFF", "width": 1}},
                "hovertemplate": f"goal: {named(limit)} at most {write.seconds(limit.seconds)}<extra></extra>",
            }
        )  # fmt: skip
    times = [x for trace in data for x in trace["x"] if x > 0]
    return {
        "data": data,
        "layout": layout(
            xaxis=log_axis("seconds", min(times) / 1.3, max(times) * 1.3),
            yaxis=axis("% of requests", range=[0, 101]),
            hovermode="closest",
        ),
    }


def _share(limit: Limit, result: Result) -> float:
    """Where a limit stands on the scale of shares: its percentile; of a mean, the share that is below it."""
    return limit.of if limit.of is not None else 100 * (1 - result.sketches[limit.figure].above(limit.seconds))


def sensitivity(rows: Sequence[Mapping[str, Any]], limits: Sequence[Limit], rate: float, knee: float) -> Chart:
    """Each goal's figure over its limit, by the rate of requests."""
    rates = [row["rate"] for row in rows]
    data: list[Chart] = []
    for limit, dash in zip(limits, ("solid", "dash", "dot", "dashdot") * len(limits), strict=False):
        over = [100 * row[f"{limit}"] / limit.seconds for row in rows]
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": named(limit), "x": rates, "y": over,
                "line": {"color": COLOURS[limit.figure], "dash": dash},
                "text": [write.seconds(row[f"{limit}"]) for row in rows],
                "hovertemplate": "%{x:.3s} requests/s: %{text}, %{y:.0f} % of the limit<extra></extra>",
            }
        )  # fmt: skip
    heights = [y for trace in data for y in trace["y"] if y > 0]
    marks = [(rate, "asked for", GREY)] + [(knee, "knee", RED)] * bool(np.isfinite(knee))
    right = max([*rates, *(x for x, _, _ in marks)])
    upright = [{"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1,
                "line": {"color": colour, "width": 1.5, "dash": "dot"}} for x, _, colour in marks]  # fmt: skip
    level = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 100, "y1": 100,
             "line": {"color": RED, "width": 1.5}}  # fmt: skip
    said = [{"x": x, "y": 1, "yref": "paper", "text": text, "showarrow": False, "xanchor": "left", "xshift": 3,
             "yanchor": "top", "font": {"color": "#52606D"}} for x, text, _ in marks]  # fmt: skip
    return {
        "data": data,
        "layout": layout(
            xaxis=axis("requests/s", range=[0, 1.08 * right]),
            yaxis=log_axis("% of the limit", min([*heights, 100]) / 1.5, max([*heights, 100]) * 1.8),
            shapes=[*upright, level],
            annotations=said,
            hovermode="closest",
        ),
    }


def timeline(result: Result) -> Chart:
    """What engines do in the first seconds of a run; below, the requests in the system all the while."""
    spans = result.timeline[result.timeline["engine"] < ENGINES][:STEPS]
    window = float(spans["end"][:SEEN][-1]) if len(spans) else 1.0
    prompts, users = spans["tokens"] > 0, spans["decoding"] > 0
    kinds = {
        "decode": (~prompts, BLUE),
        "prefill": (prompts & ~users, ORANGE),
        "prefill beside decode": (prompts & users, PURPLE),
    }
    data = [_steps(name, spans[chosen], colour) for name, (chosen, colour) in kinds.items() if chosen.any()]
    data += _in_system(result)
    return {
        "data": data,
        "layout": layout(
            barmode="overlay",
            height=430,
            xaxis=axis("seconds", anchor="y", range=[0.0, window]),
            yaxis={"domain": [0.5, 1], "automargin": True, "type": "category", "autorange": "reversed"},
            xaxis2=axis("seconds", anchor="y2"),
            yaxis2=axis("requests", domain=[0, 0.33], rangemode="tozero"),
            hovermode="closest",
        ),
    }


def _steps(name: str, spans: NDArray[np.void], colour: str) -> Chart:
    lasts = spans["end"] - spans["start"]
    columns = (spans["tokens"].tolist(), spans["decoding"].tolist(), spans["steps"].tolist(), lasts.tolist())
    return {
        "type": "bar", "orientation": "h", "name": name, "marker": {"color": colour, "line": {"width": 0}},
        "y": [f"engine {engine + 1}" for engine in spans["engine"].tolist()],
        "base": spans["start"].tolist(), "x": lasts.tolist(),
        "text": [f"{tokens} prompt tokens, {users} requests decode, {steps} steps in {write.seconds(time)}"
                 for tokens, users, steps, time in zip(*columns, strict=True)],
        "textposition": "none",
        "hovertemplate": "%{text}<extra>%{y}</extra>",
    }  # fmt: skip


def _in_system(result: Result) -> list[Chart]:
    """Requests that wait for their first token, and that are being answered."""
    if result.requests is None or result.completed == 0:
        return []
    arrival, first, finish = (np.sort(result.requests[name]) for name in ("arrival", "first", "finish"))
    moments = np.linspace(0.0, float(finish[-1]), MOMENTS)
    come, begun, gone = (np.searchsorted(times, moments, side="right") for times in (arrival, first, finish))
    return [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": moments.tolist(), "y": count.tolist(),
            "xaxis": "x2", "yaxis": "y2", "line": {"color": colour, "width": 1.5, "shape": "hv"},
            "hovertemplate": "%{y} at %{x:.3s} s<extra>" + name + "</extra>",
        }
        for name, count, colour in (("being answered", begun - gone, GREEN), ("wait for a token", come - begun, RED))
    ]  # fmt: skip
