"""``nearpeak models | hardware | techniques``: what nearpeak knows."""

from typing import Any

import click

from nearpeak.cli.arguments import json_option, print_json
from nearpeak.errors import UsageError


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    from nearpeak.report import print_table

    print_table(rows)


@click.command(short_help="The models that can be named by id, or one in full.")
@click.argument("model", required=False)
@json_option
def models(model: str | None, as_json: bool) -> None:
    """List the bundled models, or show the parameters and layers of one MODEL (an id, a folder, a config.json).

    \b
    Example:
      nearpeak models Qwen/Qwen3-235B-A22B
    """
    from nearpeak.report import model_record, model_row
    from nearpeak.workload import bundled, read

    if model is None:
        _show([model_row(read(name)) for name in bundled()], as_json)
        return
    full = model_record(read(model))
    if as_json:
        print_json(full)
        return
    from nearpeak.report import print_record

    print_record(full)


@click.command(short_help="Devices in the catalogue, one in full, or this machine's.")
@click.argument("name", required=False)
@click.option("--here", is_flag=True, help="Detect the devices of this machine.")
@json_option
def hardware(name: str | None, here: bool, as_json: bool) -> None:
    """List the catalogue of devices, show what is called NAME with its sources, or detect this machine's devices.

    NAME is a device, a system (hgx_h100), a link (nvlink4) or a cluster (leonardo).

    \b
    Examples:
      nearpeak hardware h100_sxm
      nearpeak hardware --here
    """
    from nearpeak.hardware import clusters, devices, links, systems
    from nearpeak.hardware import device as device_named
    from nearpeak.hardware import here as detect
    from nearpeak.report import cluster_record, device_record, device_row, print_record, system_record

    if here and name is not None:
        raise UsageError(f"--here shows this machine's devices; leave {name!r} out, or leave --here out")
    if here:
        found = [device_record(d) for d in detect()]
    elif name in clusters():
        found = [cluster_record(clusters()[name])]
    elif name in systems():
        found = [system_record(systems()[name])]
    elif name in links():
        found = [vars(links()[name])]
    elif name is not None:
        found = [device_record(device_named(name))]
    else:
        _show([device_row(d) for d in devices().values()], as_json)
        return
    if as_json:
        print_json(found if here else found[0])
        return
    for one in found:
        print_record(one)


@click.command(short_help="What can be done to a Setup, and the papers.")
@click.argument("technique", required=False)
@json_option
def techniques(technique: str | None, as_json: bool) -> None:
    """List the techniques that plans choose from, or explain one.

    \b
    Example:
      nearpeak techniques rtn-int4
    """
    from nearpeak.report import print_record, technique_record, technique_row
    from nearpeak.techniques import technique as technique_named
    from nearpeak.techniques import techniques as registry

    if technique is None:
        _show([technique_row(t) for t in registry().values()], as_json)
        return
    full = technique_record(technique_named(technique))
    if as_json:
        print_json(full)
    else:
        print_record(full)
