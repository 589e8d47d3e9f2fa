"""The page's plots as plain Plotly figures: data and layout, no drawing."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nearpeak.report import format as write
from nearpeak.report import words
from nearpeak.report.roof import Operating, roofline

if TYPE_CHECKING:
    from nearpeak.plan import Explained, Plans, Point
    from nearpeak.setup import Setup

Chart = dict[str, Any]

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#9AA5B1",
)  # fmt: skip
"""Okabe and Ito's colours, which people with any colour vision tell apart."""
COLOURS = {
    "matrices": BLUE, "attention": ORANGE, "experts": GREEN, "communication": RED, "other": GREY, "engine": PURPLE,
    "weights": BLUE, "kv": ORANGE, "activations": GREEN, "reserved": PURPLE, "free": "#E4E7EB",
}  # fmt: skip
NAMES = {"kv": "KV cache", "reserved": "kept by the engine", "engine": "engine overhead", "other": "norms and others"}
SYMBOLS = {"decode": "circle", "prefill": "diamond"}


def axis(title: str, **more: Any) -> Chart:  # noqa: ANN401 (Plotly's attributes are of many types)
    """An axis in the page's colours."""
    grid = {"gridcolor": "#E4E7EB", "zerolinecolor": "#CBD2D9", "linecolor": "#CBD2D9"}
    return {"title": {"text": title, "standoff": 8}, **grid, "automargin": True, **more}


def log_axis(title: str, low: float, high: float) -> Chart:
    """A logarithmic axis from ``low`` to ``high`` with a tick at 1, 2 and 5 of each decade, or fewer if it is long."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    leading = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [n * 10.0**decade for decade in range(first, last + 1) for n in leading]
    shown = [t for t in ticks if low <= t <= high]
    return axis(
        title,
        type="log",
        range=[math.log10(low), math.log10(high)],
        tickvals=shown,
        ticktext=[write.si(t).replace(" ", "") if t >= 1000 else write.digits(t) for t in shown],
    )


def layout(**more: Any) -> Chart:  # noqa: ANN401 (Plotly's attributes are of many types)
    """A layout in the page's font and margins."""
    plain = {
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": "#323F4B"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 60, "r": 20, "t": 16, "b": 50},
        "legend": {"orientation": "h", "y": -0.2, "x": 0},
        "hoverlabel": {"align": "left"},
        "height": 400,
    }
    return plain | more


def _said(setup: "Setup") -> str:
    """A configuration, for a hover label."""
    parts = [*words.layouts(setup), words.formats(setup)]
    parts.append(words.devices(setup))
    parts.append(f"batch {', '.join(words.batches(setup))}")
    return "<br>".join(parts)


def pareto(plans: "Plans", explained: "Sequence[Explained]") -> Chart:
    """The trade-off: the front, which of it meets the goal, and the ranked plans."""
    front = sorted(plans.front, key=lambda p: p.per_user)
    line: Chart = {
        "type": "scatter",
        "mode": "lines",
        "line": {"color": GREY, "width": 1.5},
        "x": [p.per_user for p in front],
        "y": [p.per_device for p in front],
        "hoverinfo": "skip",
        "showlegend": False,
    }
    data = [line]
    for meets, name, colour in ((False, "breaks a limit", "#B8C2CC"), (True, "meets the goal", GREEN)):
        data.append(_front_points([p for p in front if p.meets is meets], name, colour))
    data.append(_ranked(explained))
    xs, ys = ([v for trace in data for v in trace[side]] for side in "xy")
    return {
        "data": data,
        "layout": layout(
            xaxis=log_axis("output tokens/s for a user", min(xs) / 1.2, max(xs) * 1.2),
            yaxis=log_axis("output tokens/s of a device", min(ys) / 1.4, max(ys) * 1.4),
            hovermode="closest",
        ),
    }


def _front_points(points: "Sequence[Point]", name: str, colour: str) -> Chart:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "marker": {"color": colour, "size": 7},
        "x": [p.per_user for p in points],
        "y": [p.per_device for p in points],
        "text": [_said(p.candidate.setup) for p in points],
        "hovertemplate": "<b>%{x:.3s} tokens/s a user, %{y:.3s} tokens/s a device</b><br>%{text}<extra></extra>",
    }


def _ranked(explained: "Sequence[Explained]") -> Chart:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "ranked plans (1 is the star)",
        "marker": {
            "color": RED,
            "size": [16, *[8] * (len(explained) - 1)],
            "symbol": ["star", *["circle-open"] * (len(explained) - 1)],
            "line": {"width": 1.5, "color": RED},
        },
        "x": [1 / e.figures["tpot"].value for e in explained],
        "y": [e.figures["tokens_per_second_per_device"].value for e in explained],
        "text": [_said(e.setup) for e in explained],
        "customdata": list(range(1, len(explained) + 1)),
        "hovertemplate": "<b>plan %{customdata}</b>: %{x:.3s} tokens/s a user, %{y:.3s} a device<br>%{text}"
        "<extra></extra>",
    }


def roof_chart(plan: "Explained") -> Chart:
    """The device's roofs, and the parts of the plan's steps under them."""
    roof = roofline(plan)
    ridge = [peak / roof.bandwidth for peak in roof.peaks.values()]
    inside = [p.intensity for p in roof.points]
    left, right = min([*inside, *ridge]) / 4, max([*inside, *ridge]) * 6
    heights = [*(p.achieved for p in roof.points), *roof.peaks.values()]
    data: list[Chart] = []
    for (rate, peak), dash in zip(roof.peaks.items(), ("solid", "dash", "dot"), strict=False):
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{rate} roof, {write.si(peak, 'FLOP/s')}",
                "line": {"color": "#52606D", "width": 2, "dash": dash},
                "x": [left, peak / roof.bandwidth, right],
                "y": [left * roof.bandwidth, peak, peak],
                "hoverinfo": "skip",
            }
        )
    data += [_operating(p, plan) for p in roof.points]
    slope = {
        "text": f"memory, {write.si(roof.bandwidth, 'B/s')}",
        "x": 0.02,
        "y": 0.98,
        "xref": "paper",
        "yref": "paper",
        "showarrow": False,
        "font": {"color": "#52606D"},
    }
    return {
        "data": data,
        "layout": layout(
            xaxis=log_axis("arithmetic intensity, FLOP per byte of memory traffic", left, right),
            yaxis=log_axis("FLOP/s of a device", min(heights) / 5, max(heights) * 3),
            annotations=[slope],
        ),
    }


def _operating(point: Operating, plan: "Explained") -> Chart:
    step = plan.decode if point.phase == "decode" else plan.prefill
    lines = (
        f"<b>{point.phase}: {point.part}</b>",
        f"{write.seconds(point.seconds)}, {write.share(point.seconds / sum(step.values()))} of the step",
        f"{write.si(point.flops, 'FLOP')}, {write.size(point.bytes)}",
        f"{write.si(point.achieved, 'FLOP/s')} at {write.number(point.intensity)} FLOP/byte",
    )
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{point.phase}: {point.part}",
        "marker": {
            "color": COLOURS[point.part],
            "symbol": SYMBOLS[point.phase],
            "size": 13,
            "line": {"color": "white", "width": 1},
        },
        "x": [point.intensity],
        "y": [point.achieved],
        "hovertemplate": "<br>".join(lines) + "<extra></extra>",
    }


def memory_chart(plan: "Explained") -> Chart:
    """What fills a device of each pool."""
    uses = ("weights", "kv", "activations", "reserved")
    ledgers = {pool: [ledger[u] for u in uses] for pool, ledger in plan.memory.items()}
    free = {pool: max(0.0, plan.memory[pool]["capacity"] - sum(held)) for pool, held in ledgers.items()}
    rows = {use: [ledgers[pool][i] for pool in ledgers] for i, use in enumerate(uses)} | {"free": list(free.values())}
    pools = [f"{pool} device" for pool in ledgers]
    data = [_bars(use, pools, [b / 1e9 for b in held], [write.size(b) for b in held]) for use, held in rows.items()]
    return {"data": data, "layout": _stacked("GB on a device", len(pools))}


def step_chart(plan: "Explained") -> Chart:
    """Shares of the time of a decode step and of a prefill."""
    steps = {"prefill": plan.prefill, "decode": plan.decode}
    wholes = {name: sum(step.values()) for name, step in steps.items()}
    labels = [f"{name} ({write.seconds(wholes[name])})" for name in steps]
    data = []
    for part in plan.decode:
        spent = [step[part] for step in steps.values()]
        if any(spent):
            shares = [100 * s / w for s, w in zip(spent, wholes.values(), strict=True)]
            data.append(_bars(part, labels, shares, [write.seconds(s) for s in spent]))
    return {"data": data, "layout": _stacked("% of the step", len(labels), range=[0, 100])}


def _bars(name: str, rows: Sequence[str], lengths: Sequence[float], texts: Sequence[str]) -> Chart:
    return {
        "type": "bar",
        "orientation": "h",
        "name": NAMES.get(name, name),
        "marker": {"color": COLOURS[name]},
        "y": list(rows),
        "x": list(lengths),
        "text": list(texts),
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "constraintext": "inside",
        "hovertemplate": f"{NAMES.get(name, name)}: %{{text}}<extra>%{{y}}</extra>",
    }


def _stacked(title: str, rows: int, **scale: Any) -> Chart:  # noqa: ANN401 (Plotly's attributes are of many types)
    return layout(
        barmode="stack",
        height=150 + 55 * rows,
        bargap=0.35,
        xaxis=axis(title, **scale),
        yaxis={"automargin": True, "ticksuffix": "  "},
        legend={"orientation": "h", "y": -0.45 if rows > 1 else -0.6, "x": 0, "traceorder": "normal"},
        uniformtext={"minsize": 10, "mode": "hide"},
    )
