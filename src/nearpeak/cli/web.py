"""``nearpeak web``: the page on this machine."""

import click


@click.command(short_help="A page in your browser: choose, plan, simulate, copy the launch command.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any that is free.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on: this machine alone.")
@click.option("--no-browser", is_flag=True, help="Only serve; open no browser.")
def web(port: int, host: str, no_browser: bool) -> None:
    """Open a local page: choose a model, hardware, traffic and goals; see plans, plots and launch files.

    \b
    Example:
      nearpeak web
    """
    from nearpeak.web import open_page

    open_page(host, port, not no_browser)
