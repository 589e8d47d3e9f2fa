"""Tables and text about plans, for a terminal of 80 columns or more. Rich lays them out; without a terminal it is
plain text.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nearpeak.report import format as write
from nearpeak.report import words

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from nearpeak.plan import Explained, Figure, Miss, Plans, Point

BAR = 30
"""Characters of a bar that means the whole."""
SHORT_NAME = 20
"""Characters of a row's name that no table breaks: an id's, a device's."""


def _table(title: str | None = None) -> "Table":
    from rich import box
    from rich.table import Table

    return Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")


def plans_table(plans: "Plans", explained: "Sequence[Explained]") -> "Table":
    """The best plans, ranked. Below TTFT and TPOT is the interval that holds 80 % of measurements."""
    from rich.text import Text

    best = explained[0].setup
    one_kind = len({e.setup.node.device.name for e in explained}) == 1
    found = _table(
        f"{best.model.name} on {best.node.device.title if one_kind else 'several devices'}, "
        f"{write.number(float(best.arrays()['isl']))} + {write.number(float(best.arrays()['osl']))} tokens"
    )
    for name in ("", "devices" if not one_kind else "dev"):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("layout\nformats")
    found.add_column("batch", justify="right", no_wrap=True)
    for name in ("TTFT\n80 %", "TPOT\n80 %", "tokens/s\n/device", "$/M\ntokens"):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("bound by\nevidence", no_wrap=True)
    for rank, plan in enumerate(explained, 1):
        setup, figures = plan.setup, plan.figures
        count = f"{int(setup.devices)}"
        found.add_row(
            f"{rank}",
            count if one_kind else f"{count} {setup.node.device.name}",
            Text.assemble("\n".join(words.layouts(setup)), "\n", (words.formats(setup), "dim")),
            "\n".join(words.batches(setup)),
            _with_interval(figures["ttft"]),
            _with_interval(figures["tpot"]),
            write.number(round(figures["tokens_per_second_per_device"].value)),
            write.dollars(figures["dollars_per_million_tokens"].value),
            Text.assemble(plan.bottleneck, "\n", (str(figures["tpot"].evidence), "dim")),
            style="bold" if rank == 1 else "",
        )
    found.caption = _searched(plans)
    found.caption_justify = "left"
    return found


def _with_interval(figure: "Figure") -> "Text":
    from rich.text import Text

    value, span = write.seconds(figure.value), write.interval(figure.low, figure.high, write.seconds)
    unit = " " + value.split()[-1]
    if span.endswith(unit) and span.count(" ") == 1:  # the unit is said above
        span = span.removesuffix(unit)
    return Text.assemble(value, "\n", (span, "dim not bold"), justify="right")


def _searched(plans: "Plans") -> str:
    text = (
        f"{write.number(plans.priced)} setups priced in {write.seconds(plans.seconds)}; "
        f"{write.number(plans.started)} start in memory, {write.number(plans.met)} plans meet the goal"
    )
    return text + "".join(f"; left out: {reason}" for reason in plans.left_out.values())


def why(plan: "Explained") -> "Group":
    """Why a plan is what it is: what fills the memory, where the time goes, what would move it. A line each."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text("Memory of a device", style="bold")]
    for pool, ledger in plan.memory.items():
        capacity = ledger["capacity"]
        used = {use: held for use, held in ledger.items() if use != "capacity"}
        lines += _bars({use: (held / capacity, write.size(held)) for use, held in used.items()}, pool, len(plan.memory))
        lines.append(Text(f"  {write.size(sum(used.values()))} of {write.size(capacity)} in use", style="dim"))
    for title, step in (("decode step", plan.decode), ("prefill of one prompt", plan.prefill)):
        whole = sum(step.values())
        lines.append(Text(f"Where the time of a {title} goes ({write.seconds(whole)})", style="bold"))
        parts = sorted(((part, spent) for part, spent in step.items() if spent > 0), key=lambda item: -item[1])
        lines += _bars({part: (spent / whole, write.seconds(spent)) for part, spent in parts})
    lines.append(Text("What would move it", style="bold"))
    lines += [Text(f"  {lever_text(plan, number)}") for number in range(len(plan.levers))]
    if plan.techniques:
        lines.append(Text("Techniques", style="bold"))
        kept = f"at least {write.share(plan.quality)} of the model's quality remains (--accuracy sets a floor)"
        lines.append(Text(f"  {', '.join(plan.techniques)}; {kept}"))
    return Group(*lines)


def _bars(shares: Mapping[str, tuple[float, str]], pool: str = "", pools: int = 1) -> "list[Text]":
    from rich.text import Text

    lines = []
    for name, (part, text) in shares.items():
        label = f"{pool} {name}" if pools > 1 else name
        bar = "█" * round(BAR * min(part, 1.0))
        lines.append(Text.assemble(f"  {label:20} {write.share(part):>5} ", (f"{bar:{BAR}}", "cyan"), f" {text}"))
    return lines


def lever_text(plan: "Explained", number: int) -> str:
    """A lever in one line: ``twice the memory bandwidth: TPOT x0.61, TTFT x1, throughput x1.5``.

    What decodes faster asks for more prompts; where a prefill pool cannot keep up, they queue before it.
    """
    lever = plan.levers[number]
    queued = " (prompts queue: give prefill more)" if plan.setup.prefill is not None and lever.ttft > 1.05 else ""
    return (
        f"{lever.name}: TPOT {write.times(lever.tpot)}, TTFT {write.times(lever.ttft)}{queued}, "
        f"throughput {write.times(lever.request_rate)}"
    )


def predict_table(plan: "Explained") -> "Table":
    """Every figure of one plan with its interval and evidence."""
    found = _table(f"{plan.setup.model.name} on {int(plan.setup.devices)} x {plan.setup.node.device.title}")
    found.add_column("figure")
    found.add_column("predicted", justify="right")
    found.add_column("80 % interval", justify="right")
    found.add_column("evidence")
    for name, figure in plan.figures.items():
        by = write.BY_FIGURE[name]
        known = figure.value == figure.value  # a price may be unknown (nan)
        span = write.interval(figure.low, figure.high, by) if known else write.UNKNOWN
        found.add_row(write.title(name), by(figure.value), span, str(figure.evidence))
    found.caption = f"{', '.join(words.layouts(plan.setup))}; {words.formats(plan.setup)}; batch " + ", ".join(
        words.batches(plan.setup)
    )
    found.caption_justify = "left"
    return found


def front_table(points: "Sequence[Point]") -> "Table":
    """The trade-off between what a user sees and what a device makes, fastest for the user first."""
    found = _table("Trade-off: no setup is better in both")
    for name in ("tokens/s\nper user", "tokens/s\nper device", "devices"):
        found.add_column(name, justify="right")
    for name in ("layout", "formats", "batch", "meets the goal"):
        found.add_column(name)
    for point in sorted(points, key=lambda p: -p.per_user):
        setup = point.candidate.setup
        found.add_row(
            write.number(round(point.per_user, 1)),
            write.number(round(point.per_device)),
            f"{int(setup.devices)}",
            "\n".join(words.layouts(setup)),
            words.formats(setup),
            "\n".join(words.batches(setup)),
            "yes" if point.meets else "no",
            style="" if point.meets else "dim",
        )
    return found


def miss_text(miss: "Miss") -> "Text":
    """What comes nearest to a goal that nothing meets, which limit binds, and by how much each is missed."""
    from rich.text import Text

    setup = miss.candidate.setup
    text = Text.assemble(
        ("Nothing meets the goal.", "bold"),
        f" The nearest is {int(setup.devices)} x {setup.node.device.title}, {', '.join(words.layouts(setup))}, "
        f"{words.formats(setup)}, batch {', '.join(words.batches(setup))}.\n",
        f"The limit that binds is {miss.binding}.\n",
    )
    for name, over in sorted(miss.excess.items(), key=lambda item: -item[1]):
        # Of the rate it is the limit that is the greater where it is missed.
        ratio = f"{write.digits(100 / over if name == 'rate' else 100 * over)} % of the limit"
        text.append(f"  {name:8} {ratio}{'' if over > 1 else ', holds'}\n", style="" if over > 1 else "dim")
    text.append("Relax it, give more or other devices, or allow more techniques.")
    return text


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> "Table":
    """Rows as a table; figures are written by the name of their column.

    Args:
        rows: one mapping a row.
        columns: names in order; those of the first row if None.
    """
    found = _table()
    names = list(columns if columns is not None else rows[0] if rows else ())
    for name in names:
        numeric = any(isinstance(r.get(name), int | float) and not isinstance(r.get(name), bool) for r in rows)
        found.add_column(write.title(name), justify="right" if numeric else "left", overflow="fold")
    if names:  # what a row is called stays whole where room is short, if it is short itself; the rest wraps
        longest = max((len(write.value(names[0], row.get(names[0]))) for row in rows), default=0)
        found.columns[0].no_wrap = longest <= SHORT_NAME
    for row in rows:
        found.add_row(*(_plain(write.value(name, row.get(name))) for name in names))
    return found


def _plain(text: str) -> "Text":
    """Text that is not markup, whatever brackets it has."""
    from rich.text import Text

    return Text(text)
