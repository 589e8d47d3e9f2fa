"""How arguments are written: ranges of devices, prices, and the options that several commands share."""

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nearpeak.errors import UsageError

if TYPE_CHECKING:
    from nearpeak.plan import Fleet

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


def _use_calibration(context: click.Context, _: click.Parameter, name: str | None) -> None:
    if name:
        from nearpeak.cost.stored import folder_of, using

        folder_of(name)
        context.with_resource(using(name))


calibration_option = click.option(
    "--calibration",
    expose_value=False,
    callback=_use_calibration,
    metavar="NAME|FOLDER",
    help="Predict with this calibration (see `nearpeak calibrate`), not the one that ships.",
)
PROGRESS_AFTER = 2.0
"""Seconds after which long work shows its progress."""
MOST_DEVICES = 1_000_000
"""More devices than any one system has: a larger number is a slip of the pen."""


def print_json(value: object) -> None:
    """Print a value as JSON. Infinities and nan become null: JSON has none."""
    import json

    def plain(v: object) -> object:
        match v:
            case dict():
                return {str(k): plain(x) for k, x in v.items()}
            case list() | tuple():
                return [plain(x) for x in v]
            case float() if not math.isfinite(v):
                return None
        return v

    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def check_new(path: Path | None, option: str) -> None:
    """Refuse a place for a new file before any work is done for it.

    Raises:
        UsageError: something is there already, or its folder is not there or cannot be written to.
    """
    if path is None:
        return
    if path.exists() or path.is_symlink():
        raise UsageError(f"'{path}' exists; remove it or choose another {option}")
    if not path.parent.is_dir():
        raise UsageError(
            f"cannot write '{path}': there is no folder '{path.parent}'; make it or choose another {option}"
        )
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write '{path}': '{path.parent}' is not writable; choose another {option}")


def fleets(text: str, prices: tuple[str, ...] = ()) -> "list[Fleet]":
    """Read ``h200:1..8,l40s:4``: devices, and how many of each (a range, a number, or up to a node's worth).

    ``h100/4`` is the Lite-GPU that an H100's die makes when it is split in four.

    Raises:
        UsageError: the text is not of this form, a price is not ``DEVICE=DOLLARS``, or it is for none of the devices.
        UnknownName: a device is not in the catalogue.
    """
    from nearpeak.hardware import Price, device, lite_node, node_of
    from nearpeak.plan import Fleet

    own = {}
    for item in prices:
        name, _, dollars = item.partition("=")
        try:
            price = float(dollars)
        except ValueError:
            price = math.nan
        if not 0 < price < math.inf:
            raise UsageError(f"price {item!r} is not DEVICE=DOLLARS_PER_HOUR above 0, e.g. h200=2.50")
        own[device(name).name] = Price(price, "today", "given with --price")
    found = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([^:/]+)(?:/(\d+))?(?::(\d+)(?:\.\.(\d+))?)?", item)
        if match is None:
            raise UsageError(f"devices {item!r} are not DEVICE, DEVICE:COUNT or DEVICE:LEAST..MOST, e.g. h200:1..8")
        name, parts, first, last = match.groups()
        node = node_of(name) if parts is None else lite_node(node_of(name), int(parts))
        least, most = (1, node.count) if first is None else (int(first), int(last or first))
        if most > MOST_DEVICES:
            raise UsageError(f"devices {item!r}: give at most {MOST_DEVICES:,} of them")
        if node.device.name in own:
            node = replace(node, device=replace(node.device, prices=(own[node.device.name],)))
        found.append(Fleet(node, least, most))
    if not found:
        raise UsageError("no devices given; write e.g. --gpus h200:1..8")
    if unused := sorted(own.keys() - {fleet.node.device.name for fleet in found}):
        raise UsageError(f"--price is for {', '.join(unused)}, which --gpus does not name")
    return found


def announce_compilation() -> None:
    """Say that the simulator is compiled first, where it never was on this machine."""
    from nearpeak.simulate.serving import compiled_here

    if not compiled_here():
        click.echo("compiling the simulator, once on this machine: about a minute", err=True)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (done, in all) that shows a bar on a terminal once the work has taken ``PROGRESS_AFTER`` seconds."""
    import sys
    import time

    began, bar = time.monotonic(), None

    def update(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            if not sys.stderr.isatty() or time.monotonic() - began < PROGRESS_AFTER:
                return
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            bar = Progress(*columns, console=Console(stderr=True), transient=True)
            bar.start()
            bar.add_task(title, total=total)
        bar.update(bar.task_ids[0], completed=done, total=total)

    try:
        yield update
    finally:
        if bar is not None:
            bar.stop()
