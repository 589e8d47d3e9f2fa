"""``nearpeak explain``, ``fleet``, ``live`` and ``search``: topics with the numbers of one's own case."""

from typing import TYPE_CHECKING

import click

from nearpeak.cli.arguments import json_option
from nearpeak.cli.topics import Topics, print_topics

if TYPE_CHECKING:
    from nearpeak.topic import Topic


def _bounds() -> "dict[str, Topic]":
    from nearpeak.bounds import topics

    return topics()


def _fleet() -> "dict[str, Topic]":
    from nearpeak.fleet import topics

    return topics()


def _live() -> "dict[str, Topic]":
    from nearpeak.decode import topics

    return topics()


def _search() -> "dict[str, Topic]":
    from nearpeak.search.topics import topics

    return topics()


@click.group(cls=Topics, found=_bounds, short_help="What bounds a case, in closed form.")
@json_option
@click.pass_context
def explain(ctx: click.Context, as_json: bool) -> None:
    """List the topics, or explain one with the numbers of your own case.

    \b
    Examples:
      nearpeak explain
      nearpeak explain long-context --model Qwen/Qwen3-32B --gpu h200
    """
    if ctx.invoked_subcommand is None:
        print_topics(_bounds(), as_json)


@click.group(cls=Topics, found=_fleet, short_help="Which devices, and how they share work, power and memory.")
@json_option
@click.pass_context
def fleet(ctx: click.Context, as_json: bool) -> None:
    """List the topics, or answer one for your own fleet.

    \b
    Examples:
      nearpeak fleet
      nearpeak fleet mix --model meta-llama/Meta-Llama-3.1-8B --gpus l4,a100_sxm,h100
    """
    if ctx.invoked_subcommand is None:
        print_topics(_fleet(), as_json)


@click.group(cls=Topics, found=_live, short_help="Serving techniques on a real model here.")
@json_option
@click.pass_context
def live(ctx: click.Context, as_json: bool) -> None:
    """List what can be run, or run one. Needs the extra ``nearpeak[torch]``."""
    if ctx.invoked_subcommand is None:
        print_topics(_live(), as_json)


@click.group(cls=Topics, found=_search, short_help="How optimizers compare, and what they solve besides tuning.")
@json_option
@click.pass_context
def search(ctx: click.Context, as_json: bool) -> None:
    """List the topics of search, or run one. To tune a program of your own: nearpeak tune.

    \b
    Examples:
      nearpeak search
      nearpeak search pareto --problem dtlz2 --population 300 --generations 60
    """
    if ctx.invoked_subcommand is None:
        print_topics(_search(), as_json)
