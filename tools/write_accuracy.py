"""Write ``docs/accuracy.md``: the board of every table of measurements, with rows left out of the fit.

Usage: python tools/write_accuracy.py MEASUREMENTS [PAGE]

Every number on the page is computed here; its prose holds none that could become wrong.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nearpeak.calibrate.board import NEW, SEEN, Line, Scored, lines
from nearpeak.calibrate.left_out import By
from nearpeak.calibrate.scoring import score
from nearpeak.calibrate.tables import File, Kind, find
from nearpeak.report.format import DASH

NOTE = "<!-- Written by tools/write_accuracy.py (`make accuracy`); do not edit. -->\n"
PROCESSES = 2
ORDER = (SEEN, NEW, "site left out", "configuration left out", "layout left out", "model left out", "GPU left out")
LEAVE: dict[Kind, tuple[By, ...]] = {
    "operators": ("site", "gpu"),
    "serving": ("site", "model"),
    "training": ("site", "model"),
    "power": ("site",),
}

INTRODUCTION = """# Accuracy

How far predictions are from measurements: median absolute percentage errors unless said otherwise. The measurements are
published tables of engine kernels, served models, training iterations and power on several GPUs; they are not part of
this repository. Everything below comes from one command, and `nearpeak accuracy TABLES` makes the same board of yours:

```text
make accuracy MEASUREMENTS=FOLDER
```

*In sample*: rows that the shipped calibration was fitted on. This says how well it remembers, not how well it predicts,
so it never stands alone. *Site left out*: the model was fitted again without any measurement of the row's matrix, heads
or experts (serving: its model, formats, layout and engine on that GPU; training: its layout). *GPU left out*: fitted
again with nothing of the GPU but its datasheet. *Model left out*: without any run of the model. *Roofline*: time = the
longer of arithmetic and traffic at the datasheet's peaks, over one constant, plus another; both are fitted on the very
rows that it is scored on, for each operator and GPU: its best case. *In interval*: share of measurements inside the
80 % interval. Where rows are left out, the interval is set by other rows that were left out, never by the row's own
part.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    body = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in body) + "\n"


def percent(value: float) -> str:
    """A percentage to two digits or so; a dash where there is none."""
    return DASH if not np.isfinite(value) else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def fits(scored: Scored) -> list[str]:
    """How rows relate to the calibration, as columns: as it ships first, then what was left out."""
    return sorted(set(scored.fit.tolist()), key=ORDER.index)


def by_group(found: Iterable[Line], *names: str) -> dict[tuple[str, ...], dict[str, Line]]:
    """Lines by group, then by fit."""
    groups: dict[tuple[str, ...], dict[str, Line]] = {}
    for line in found:
        groups.setdefault(tuple(line.group[n] for n in names), {})[line.fit] = line
    return groups


def errors(scored: Scored, names: Sequence[str]) -> str:
    """A table of errors by group: roofline, then a column for each fit."""
    columns = fits(scored)
    rows = []
    for group, both in by_group(lines(scored, names), *names).items():
        first = next(iter(both.values()))
        medians = [percent(both[c].median) if c in both else DASH for c in columns]
        rows.append(
            (*group, f"{first.rows:,}", percent(100 * first.answered / first.rows), percent(first.roofline), *medians)
        )
    return table((*names, "rows", "answered, %", "roofline", *columns), rows)


def means(scored: Scored) -> str:
    """A table of errors by operator, the mean over GPUs of each GPU's median."""
    columns = fits(scored)
    found: dict[str, list[dict[str, Line]]] = {}
    for (operator, _), both in by_group(lines(scored, ("operator", "gpu")), "operator", "gpu").items():
        found.setdefault(operator, []).append(both)
    rows = []
    for operator, gpus in found.items():
        cells = [[both[c].median for both in gpus if c in both] for c in columns]
        roofline = np.mean([next(iter(both.values())).roofline for both in gpus])
        rows.append((operator, len(gpus), percent(float(roofline)), *(percent(_mean(c)) for c in cells)))
    return table(("operator", "GPUs", "roofline", *columns), rows)


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if np.isfinite(v)]
    return float(np.mean(known)) if known else float("nan")


def coverage(scored: Scored) -> str:
    """A table of the share of measurements in their intervals, by fit and evidence."""
    found = [line for line in lines(scored, ("evidence",)) if line.answered]
    found.sort(key=lambda line: (fits(scored).index(line.fit), line.group["evidence"]))
    rows = [(x.fit, x.group["evidence"], f"{x.answered:,}", percent(x.coverage), f"{x.bias:+.1f}") for x in found]
    return table(("fit", "evidence", "rows", "in interval, %", "bias, %"), rows)


def ranks(scored: Scored) -> str:
    """A table of rank correlations within model, GPU and lengths."""
    columns = fits(scored)
    rows = []
    for group, both in by_group(lines(scored, ("operator",)), "operator").items():
        rows.append(
            (*group, *(f"{both[c].rank:.2f}" if c in both and np.isfinite(both[c].rank) else DASH for c in columns))
        )
    return table(("figure", *columns), rows)


def scored_of(files: Sequence[File], kind: Kind) -> Scored | None:
    """The rows of the tables of a kind, with everything left out that the kind knows."""
    mine = [f for f in files if f.kind == kind]
    if not mine:
        return None

    def told(done: int, total: int) -> None:
        print(f"{kind}: {done} of {total}", file=sys.stderr, flush=True)

    scored, notes = score(mine, LEAVE[kind], PROCESSES, told)
    for note in notes:
        print(note, file=sys.stderr)
    return scored


OPERATORS = """
## Operators

Means over GPUs of each GPU's median.

{means}
A GPU left out is predicted by the mean of the others, the more like it the weightier: *transferred* where one of them
has its maker and kind of memory, *datasheet* where none has.

{errors}
Intervals:

{coverage}"""
SERVING = """
## Served models

Closed loops: a fixed number of requests in flight. *agg*: one pool; *disagg*: prefill and decode on workers of their
own, whose number most of these runs do not tell. All runs together, then by mode:

{every}
{errors}
By engine:

{engines}
Rank correlation among runs of one model, GPU and lengths, the median over groups of six runs or more:

{ranks}
Intervals of aggregated runs:

{coverage}"""
TRAINING = """
## Training

Iterations of Megatron-DeepSpeed on one node. The roofline's two constants are for the model's FLOP over the devices'
peak, and for each micro-batch.

{errors}
Intervals:

{coverage}"""
POWER = """
## Power

Mean watts while an operator runs over and over, as the card's sensor shows them. The roofline's two constants are for
utilization, and for what is drawn without any.

{errors}
Intervals:

{coverage}"""


CHOSEN = """
## What these figures do not test

Left-out figures are of constants that were fitted without the row. Some choices were made once, looking at all rows of
these tables, and no row is left out of those:

- *Operators*: which sizes the corrections depend on, and how stiffly; how fast the weight of a measured device falls
  with its distance from one that was not; that launches take cycles; the factor at which a launch is held to be the
  host's; which mixture kernels were timed with a gate; cycles of a collective's launch and hop, the rate of a bus.
- *Served models*: how many workers are meant where a run does not say (`WORKERS`, and as many prefill workers as keep
  up); the share of a closed loop's first wave where prompts have a pool of their own (`WAVES`); that TensorRT-LLM and
  Blackwell keep an 8-bit cache beside weights of 8 bits; that a group counted twice is read once ([tables](tables.md));
  the weight of TTFT in the fit. Runs do not say where multi-token prediction was on; a version's constants absorb it.
- *Training*: what Megatron's kernels write to memory, the vocabulary, and which constants there are.
- *Power*: one card's sensor, which remembers the kernels before; tables of that card are answered by what its sensor
  shows, every other device and all steps by physics alone ([power](power.md)).

Not tested at all: intervals of single steps (no steps are measured), copies between host and device, element-wise
kernels, collectives between nodes beyond one test bed, caps of power and clock, and memory, whose interval is assumed.
CPUs and the eager transformers engine have constants that one machine gave; `nearpeak prove` shows how far off they are
on yours.
"""


def served(s: Scored) -> str:
    """The section on served models."""
    together = replace(s, operator=np.array([str(o).partition(",")[0] for o in s.operator], object))
    aggregated = s.where(np.array([str(o).endswith(", agg") for o in s.operator]))
    texts = {"every": errors(together, ("operator",)), "errors": errors(s, ("operator",))}
    texts |= {"engines": errors(s, ("operator", "engine")), "ranks": ranks(s), "coverage": coverage(aggregated)}
    return SERVING.format(**texts)


def page(folder: Path) -> str:
    """The page."""
    files, _ = find([folder])
    parts = [NOTE, INTRODUCTION]
    if (s := scored_of(files, "operators")) is not None:
        texts = {"means": means(s), "errors": errors(s, ("operator", "gpu")), "coverage": coverage(s)}
        parts.append(OPERATORS.format(**texts))
    if (s := scored_of(files, "serving")) is not None:
        parts.append(served(s))
    if (s := scored_of(files, "training")) is not None:
        parts.append(TRAINING.format(errors=errors(s, ("operator", "gpu")), coverage=coverage(s)))
    if (s := scored_of(files, "power")) is not None:
        parts.append(POWER.format(errors=errors(s, ("operator", "gpu")), coverage=coverage(s)))
    return "".join([*parts, CHOSEN])


def main() -> None:
    """Write the page; keep nothing half written."""
    target = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/accuracy.md")
    text = page(Path(sys.argv[1]))
    target.write_text(text)
    print(target)


if __name__ == "__main__":
    main()
