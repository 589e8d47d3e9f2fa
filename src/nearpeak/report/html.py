"""A page about a search and its best plan: one HTML file that asks nothing of any network."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.report import charts, tables, words
from nearpeak.report import format as write

if TYPE_CHECKING:
    from nearpeak.plan import Explained, Goal, Plans

STYLE = """
:root { --ink: #1f2933; --soft: #616e7c; --line: #e4e7eb; --paper: #ffffff; --page: #f5f7fa; --mark: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 2px; }
p { margin: 4px 0 10px; } .soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(185px, 1fr)); gap: 12px; margin: 18px 0; }
.card, section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 12px 16px; } .card b { display: block; font-size: 22px; letter-spacing: -0.01em; }
.card.text b { font-size: 17px; line-height: 1.35; }
.card span { color: var(--soft); font-size: 13px; display: block; }
section { padding: 18px 20px; margin: 0 0 16px; min-width: 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(520px, 100%), 1fr)); gap: 16px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; } td.n, th.n { text-align: right; white-space: nowrap; }
tr.best td { font-weight: 600; } td small { color: var(--soft); font-weight: 400; display: block; }
pre { background: #102a43; color: #f0f4f8; padding: 14px 16px; border-radius: 8px; overflow-x: auto;
  font: 13px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; margin: 8px 0; }
summary { cursor: pointer; font-weight: 600; } ul { margin: 6px 0; padding-left: 20px; }
""".strip()

DRAW = """
for (const [id, figure] of Object.entries(JSON.parse(document.getElementById("figures").textContent)))
  Plotly.newPlot(id, figure.data, figure.layout, {responsive: true, displayModeBar: false});
""".strip()


def page(plans: "Plans", explained: "Sequence[Explained]", goal: "Goal") -> str:
    """The page, as one HTML text with its plots, styles and scripts inside.

    Args:
        plans: what the planner found.
        explained: plans in full, best first.
        goal: what they were to reach.

    Raises:
        NearpeakError: there is no plan to show.
    """
    if not explained:
        raise NearpeakError("there is no plan to show on a page: nothing meets the goal; relax a limit and plan again")
    best = explained[0]
    figures = {
        "pareto": charts.pareto(plans, explained),
        "roofline": charts.roof_chart(best),
        "memory": charts.memory_chart(best),
        "steps": charts.step_chart(best),
    }
    body = [
        _header(plans, best, goal),
        _cards(best),
        '<div class="pair">',
        plot("pareto", "Speed for a user against output of a device", "No setup beats the grey line in both."),
        plot("roofline", "Roofline of the best plan", f"One {best.setup.node.device.title}, times as predicted."),
        "</div>",
        '<div class="pair">',
        plot("memory", "What fills the memory", "The cache is that of all requests in flight at their longest."),
        plot("steps", "Where the time goes", f"A decode step is bound by {best.bottleneck}."),
        "</div>",
        _levers(best),
        _ranking(explained),
        _launch(best),
    ]
    title = f"nearpeak: {best.setup.model.name} on {best.setup.node.device.title}"
    return document(title, body, figures)


def document(title: str, body: Sequence[str], figures: Mapping[str, charts.Chart]) -> str:
    """A page of parts of HTML and of plots, each drawn in the element of its name."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>",
            *body,
            f'</main>\n<script type="application/json" id="figures">{_json(figures)}</script>',
            f"<script>{_plotly()}</script>\n<script>\n{DRAW}\n</script>\n</body>\n</html>\n",
        ]
    )


def plot(name: str, title: str, note: str) -> str:
    """The section in which the plot of a name is drawn."""
    return (
        f'<section aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>'
        f'<p class="soft">{escape(note)}</p><div id="{name}" role="img" aria-label="{escape(title)}"></div></section>'
    )


def write_page(path: Path, html: str) -> None:
    """Write a page; what was there is replaced at once, or kept whole if writing fails.

    Raises:
        UsageError: the place cannot be written.
    """
    staging = None
    try:
        handle, staging = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(html)
        Path(staging).chmod(0o644)
        Path(staging).replace(path)
    except OSError as error:
        if staging is not None:
            Path(staging).unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}; name a place that you may write") from error


def _plotly() -> str:
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def _json(value: Any) -> str:  # noqa: ANN401 (JSON is of many types)
    """JSON that no browser takes for markup. Figures that are not known (nan) become null."""

    def plain(v: Any) -> Any:  # noqa: ANN401
        match v:
            case dict():
                return {k: plain(x) for k, x in v.items()}
            case list() | tuple():
                return [plain(x) for x in v]
            case float() if not math.isfinite(v):
                return None
        return v

    return json.dumps(plain(value), allow_nan=False).replace("<", "\\u003c")


def _header(plans: "Plans", best: "Explained", goal: "Goal") -> str:
    setup = best.setup
    kinds = sorted({p.candidate.setup.node.device.title for p in plans.front} | {setup.node.device.title})
    isl, osl = (write.number(float(setup.arrays()[n])) for n in ("isl", "osl"))
    lines = [
        f"{isl} prompt and {osl} answer tokens on average, on {', '.join(kinds)}.",
        f"Goal: {_goal(goal)}.",
        f"{write.number(plans.priced)} setups were priced in {write.seconds(plans.seconds)} of processor time; "
        f"{write.number(plans.started)} of them start, and {write.number(plans.met)} plans meet the goal.",
    ]
    lines += [f"Left out: {reason}." for reason in plans.left_out.values()]
    said = " ".join(lines)
    return f'<header><h1>{escape(setup.model.name)}</h1><p class="soft">{escape(said)}</p></header>'


def _goal(goal: "Goal") -> str:
    limits: dict[str, Callable[[float], str]] = {
        "ttft": lambda v: f"TTFT at most {write.seconds(v)}",
        "tpot": lambda v: f"TPOT at most {write.seconds(v)}",
        "latency": lambda v: f"a request at most {write.seconds(v)}",
        "rate": lambda v: f"at least {write.number(v)} requests/s",
        "budget": lambda v: f"at most {write.dollars(v)} an hour",
        "memory": lambda v: f"at most {write.size(v)} on a device",
        "accuracy": lambda v: f"at least {write.number(100 * v)} % of the model's quality",
    }
    said = [text(value) for name, text in limits.items() if (value := getattr(goal, name)) is not None]
    aim = {"throughput": "most output of a device", "latency": "least latency"}.get(
        goal.objective, f"least {goal.objective} of a token"
    )
    return ", ".join([aim, *said])


def _cards(best: "Explained") -> str:
    setup, figures = best.setup, best.figures
    cards = [
        ("best of the plans", words.devices(setup), ", ".join(words.layouts(setup))),
        ("formats", words.formats(setup), f"batch {', '.join(words.batches(setup))} in each attention replica"),
    ]
    for name, title in (
        ("ttft", "time to first token"),
        ("tpot", "time per output token"),
        ("tokens_per_second_per_device", "output of a device"),
        ("dollars_per_million_tokens", "price of a million tokens"),
    ):
        figure, by = figures[name], write.BY_FIGURE[name]
        span = write.interval(figure.low, figure.high, by) if math.isfinite(figure.value) else write.UNKNOWN
        cards.append((title, by(figure.value), f"80 % interval {span}, {figure.evidence}"))
    kinds = ["card text", "card text", "card", "card", "card", "card"]
    each = (
        f'<div class="{kind}"><span>{escape(title)}</span><b>{escape(text)}</b><span>{escape(note)}</span></div>'
        for kind, (title, text, note) in zip(kinds, cards, strict=True)
    )
    return f'<div class="cards">{"".join(each)}</div>'


def _levers(best: "Explained") -> str:
    items = "".join(f"<li>{escape(tables.lever_text(best, i))}</li>" for i in range(len(best.levers)))
    techniques = ", ".join(best.techniques) or "none"
    return (
        f"<section><h2>What would move it</h2><ul>{items}</ul>"
        f'<p class="soft">Techniques in the plan: {escape(techniques)}. '
        f"At least {escape(write.share(best.quality))} of the model's quality remains.</p></section>"
    )


def _ranking(explained: "Sequence[Explained]") -> str:
    heads = (
        ("", "n"), ("devices", ""), ("layout", ""), ("formats", ""), ("batch", "n"), ("TTFT", "n"), ("TPOT", "n"),
        ("tokens/s/device", "n"), ("$/M tokens", "n"), ("bound by", ""), ("evidence", ""),
    )  # fmt: skip
    head = "".join(f'<th scope="col" class="{kind}">{escape(name)}</th>' for name, kind in heads)
    rows = "".join(_row(rank, plan, [kind for _, kind in heads]) for rank, plan in enumerate(explained, 1))
    note = "Below each latency is the interval that holds 80 % of measurements."
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<section><h2>Ranked plans</h2><p class="soft">{note}</p><div class="scroll">{table}</div></section>'


def _row(rank: int, plan: "Explained", kinds: Sequence[str]) -> str:
    setup, figures = plan.setup, plan.figures
    cells = [
        escape(f"{rank}"),
        escape(words.devices(setup)),
        "<br>".join(map(escape, words.layouts(setup))),
        escape(words.formats(setup)),
        "<br>".join(map(escape, words.batches(setup))),
    ]
    for name in ("ttft", "tpot"):
        figure = figures[name]
        span = write.interval(figure.low, figure.high, write.seconds)
        cells.append(f"{escape(write.seconds(figure.value))}<small>{escape(span)}</small>")
    cells += [
        escape(write.number(round(figures["tokens_per_second_per_device"].value))),
        escape(write.dollars(figures["dollars_per_million_tokens"].value)),
        escape(plan.bottleneck),
        escape(str(figures["tpot"].evidence)),
    ]
    row = "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, cells, strict=True))
    return f'<tr class="{"best" if rank == 1 else ""}">{row}</tr>'


def _launch(best: "Explained") -> str:
    from nearpeak.export import launch_files

    try:
        scripts = launch_files(best)
    except NearpeakError as error:
        return f"<section><h2>Launch</h2><p>{escape(str(error))}</p></section>"
    each = "".join(
        f"<details{' open' if i == 0 else ''}><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
        for i, (name, text) in enumerate(scripts.items())
    )
    return f"<section><h2>Launch the best plan</h2>{each}</section>"
