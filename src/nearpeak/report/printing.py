"""What commands print: on a terminal as wide as it is, elsewhere as plain text of 120 columns."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nearpeak.report import format as write
from nearpeak.report import tables

if TYPE_CHECKING:
    from rich.console import Console

    from nearpeak.bounds import Explanation, Topic
    from nearpeak.plan import Explained, Miss, Plans

PLAIN_WIDTH = 120


def console() -> "Console":
    """Where commands print."""
    from rich.console import Console

    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def print_plans(plans: "Plans", best: "Sequence[Explained]") -> None:
    """Print ranked plans, and why the best is best."""
    out = console()
    out.print(tables.plans_table(plans, best))
    out.print("\n[bold]Why the first[/bold]")
    out.print(tables.why(best[0]))


def print_miss(miss: "Miss") -> None:
    """Print what comes nearest to a goal that nothing meets."""
    console().print(tables.miss_text(miss))


def print_prediction(plan: "Explained") -> None:
    """Print every figure of one configuration, and where they come from."""
    out = console()
    out.print(tables.predict_table(plan))
    if plan.verdict:
        out.print(plan.verdict, style="bold red")
    out.print(tables.why(plan))


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Print rows as a table."""
    console().print(tables.table(rows, columns))


def print_record(record: Mapping[str, Any]) -> None:
    """Print one thing in full, a line for each key; what lies inside is indented."""
    from rich.text import Text

    console().print(Text("\n".join(_lines(record, 0))))


def print_explanation(topic: "Topic", found: "Explanation") -> None:
    """Print what a topic answers: figures, tables, what they say, and the paper."""
    from rich.text import Text

    out = console()
    out.print(Text(topic.title, style="bold"))
    if found.figures:
        out.print(Text("\n".join(_lines(found.figures, 1))))
    for one in filter(lambda t: t.rows, found.tables):
        out.print(Text(f"\n{one.title}", style="bold"))
        out.print(tables.table(one.rows))
    for sentence in found.says:
        out.print(Text(sentence))
    out.print(Text(topic.paper, style="dim"))


def _lines(record: Mapping[str, Any], depth: int) -> list[str]:
    wide = max((len(write.title(name)) for name in record), default=0)
    lines = []
    for name, given in record.items():
        label = f"{'  ' * depth}{write.title(name):{wide}}"
        if isinstance(given, Mapping) and given:
            lines += [label.rstrip(), *_lines(given, depth + 1)]
        elif isinstance(given, list | tuple) and given and isinstance(given[0], Mapping):
            lines.append(label.rstrip())
            for item in given:
                first, *rest = _lines(item, depth + 2)
                lines += [f"{'  ' * depth}  - {first.lstrip()}", *rest]
        else:
            text = ", ".join(map(str, given)) if isinstance(given, list | tuple) else write.value(name, given)
            lines.append(f"{label}  {text or write.UNKNOWN}")
    return lines


def print_serving_plans(record: Mapping[str, Any]) -> None:
    """Print what ``plan.serving.serving_record`` says: ranked deployments, the best confirmed and at other rates."""
    from rich.text import Text

    out = console()
    rate = write.rate(record["rate"], "requests/s")
    out.print(
        f"{record['priced']:,} Setups priced, {record['simulated']:,} deployments and {record['requests']:,} requests "
        f"simulated in {write.seconds(record['seconds'])}; traffic of {rate}."
    )
    shown = record["plans"] or [record["nearest"]]
    rows = []
    for number, plan in enumerate(filter(None, shown), 1):
        rows.append(
            {"plan": number, "device": f"{plan['devices']} x {plan['device']}", "mode": plan["mode"],
             "instances": _instances(plan["pools"]), "techniques": ", ".join(plan["techniques"]) or "none",
             "$/h": plan["dollars_per_hour"], "$/M tokens": plan["per_million_tokens"]["dollars"]}
            | {one["limit"]: write.seconds(one["mean"]) for one in plan["limits"]}
        )  # fmt: skip
    if rows:
        out.print(tables.table(rows))
    for name, why in record["left_out"].items():
        out.print(f"{name} was left out: {why}")
    if not record["plans"]:
        shown_is = " Shown is the one that came nearest." if rows else ""
        out.print(Text(f"No deployment keeps the limits.{shown_is}", style="bold"))
        return
    best = record["confirmed"]
    said = ", ".join(
        f"{one['limit']} {write.seconds(one['mean'])} ± {write.seconds(one['half_interval'])} of "
        f"{write.seconds(one['allowed'])}"
        for one in best["limits"]
    )
    out.print(f"Plan 1 under {best['replications']} other seeds {best['verdict']}: {said} (95 %).")
    out.print(Text("\nPlan 1 at other rates", style="bold"))
    out.print(
        tables.table(
            [
                {"rate": write.rate(row["rate"], "/s"), "of planned": f"{row['factor']:g} x"}
                | {n: write.seconds(v) for n, v in row.items() if n not in ("rate", "factor", "holds")}
                | {"limits": "hold" if row["holds"] else "broken"}
                for row in record["sensitivity"]
            ]
        )
    )
    out.print(f"It serves {write.rate(record['knee_rate'], 'requests/s')} at most.")


def _instances(pools: Mapping[str, Mapping[str, int]]) -> str:
    """Instances of each pool: how many, and over how many devices each is spread in which way."""
    said = []
    for name, pool in pools.items():
        layout = " ".join(f"{n} {pool[n]}" for n in ("tp", "pp", "dp", "moe_ep") if pool[n] > 1) or "whole"
        said.append((f"{name} " if len(pools) > 1 else "") + f"{pool['replicas']} x {layout}")
    return ", ".join(said)
