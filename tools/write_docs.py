"""Write the pages of ``docs/`` that are tables of what the registries hold.

Usage: python tools/write_docs.py [FOLDER]
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from nearpeak.hardware import devices, links, systems
from nearpeak.report.format import dollars, number, si, size
from nearpeak.search.methods import METHODS
from nearpeak.search.reference import ACQUISITIONS
from nearpeak.search.surrogates.tournament import SURROGATES
from nearpeak.techniques import techniques
from nearpeak.workload import bundled, parameters, read

NOTE = "<!-- Written by tools/write_docs.py (`make docs`); do not edit. -->\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def techniques_page() -> str:
    """Every technique: what it does, when it applies, what it keeps, where it comes from."""
    rows = []
    for t in techniques().values():
        done = f"`nearpeak apply MODEL_DIR {t.command} --out OUT`" if t.command else "by the engine, or as published"
        kept = f"{t.quality.low:.3g} to {t.quality.high:.3g}"
        rows.append((f"`{t.name}`", t.title, t.slot, kept, done, t.paper))
    return (
        f"{NOTE}# Techniques\n\nWhat `nearpeak plan` chooses from; `nearpeak techniques NAME` says more. Two of one "
        "slot exclude each other. *Kept* is the share of the model's task quality that remains, with its source in "
        "`nearpeak techniques NAME`.\n\n" + table(("technique", "what", "slot", "kept", "carried out", "source"), rows)
    )


def hardware_page() -> str:
    """Devices, links and systems of the catalogue."""
    rows = [
        (f"`{d.name}`", d.title, si(d.rates.get("bf16")), si(d.rates.get("fp8")), si(d.rates.get("fp4")),
         size(d.memory_capacity), si(d.memory_bandwidth, "B/s"), f"{d.tdp:g} W", dollars(d.price_per_hour))
        for d in devices().values()
    ]  # fmt: skip
    joints = [
        (f"`{x.name}`", x.title, si(x.bandwidth, "B/s"), f"{x.latency * 1e6:g} µs", x.source) for x in links().values()
    ]
    nodes = [
        (f"`{n.name}`", n.title, f"{n.count} x `{n.device.name}`", f"`{n.scale_up.name}`") for n in systems().values()
    ]
    return (
        f"{NOTE}# Hardware\n\nDense peak rates (FLOP/s), main memory, power and the median list price of one device "
        "and hour. `nearpeak hardware NAME` shows every figure with its source.\n\n"
        + table(("device", "what", "bf16", "fp8", "fp4", "memory", "bandwidth", "TDP", "$/h"), rows)
        + "\n## Links\n\nBandwidth of one device in each direction.\n\n"
        + table(("link", "what", "bandwidth", "latency", "source"), joints)
        + "\n## Systems\n\n"
        + table(("system", "what", "devices", "joined by"), nodes)
    )


def models_page() -> str:
    """The bundled models."""
    rows = []
    for name in bundled():
        model = read(name)
        count = parameters(model)
        rows.append(
            (f"`{name}`", number(count.total), number(count.active), model.layers, number(model.context), model.family)
        )
    return (
        f"{NOTE}# Models\n\nModels that can be named by id. Any other works from its `config.json`. *Active* is what a "
        "token of text meets, without the embedding table.\n\n"
        + table(("model", "parameters", "active", "layers", "context", "family"), rows)
    )


def methods_page() -> str:
    """The search methods, and what the reference loop is made of."""
    rows = [(f"`{name}`", entry.about) for name, entry in METHODS.items()]
    return (
        f"{NOTE}# Search methods\n\nWhat `nearpeak tune --method` and `minimize(..., method=...)` take.\n\n"
        + table(("method", "what"), rows)
        + "\n`SURROGATE/ACQUISITION`, as `gp/kg`, is the reference loop with any of these surrogates: "
        + ", ".join(f"`{name}`" for name in SURROGATES)
        + "; and of these acquisition functions: "
        + ", ".join(f"`{name}`" for name in ACQUISITIONS)
        + ".\n"
    )


PAGES = {
    "techniques.md": techniques_page,
    "hardware.md": hardware_page,
    "models.md": models_page,
    "search-methods.md": methods_page,
}


def main() -> None:
    """Write the pages."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    for name, page in PAGES.items():
        (folder / name).write_text(page())
        print(folder / name)


if __name__ == "__main__":
    main()
