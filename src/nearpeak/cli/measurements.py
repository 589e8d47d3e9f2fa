"""``nearpeak measurements``: what has been measured here."""

from pathlib import Path

import click

from nearpeak.cli.arguments import json_option, print_json


@click.command(short_help="What `prove` has measured here.")
@click.argument("id", required=False)
@click.option("--store", "store_path", type=click.Path(path_type=Path), help="Where measurements are kept.")
@json_option
def measurements(id: str | None, store_path: Path | None, as_json: bool) -> None:
    """List the measurements kept on this machine, or show one by the beginning of its ID.

    \b
    Example:
      nearpeak measurements --json
    """
    from nearpeak.measure import Store
    from nearpeak.report import measurement_record, measurement_row, print_record, print_table

    store = Store(store_path) if store_path else Store()
    if id is not None:
        full = measurement_record(store.get(id))
        if as_json:
            print_json(full)
        else:
            print_record(full)
        return
    kept = store.list()
    if as_json:
        print_json([measurement_record(m) for m in kept])
    elif kept:
        print_table([measurement_row(m) for m in kept])
    else:
        click.echo("nothing measured yet; `nearpeak prove MODEL_DIR` measures a model")
