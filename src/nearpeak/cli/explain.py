"""``nearpeak explain``: closed forms and bounds, with the numbers of one's own case."""

from typing import TYPE_CHECKING, Any

import click

from nearpeak.cli.arguments import json_option, print_json

if TYPE_CHECKING:
    from nearpeak.bounds import Option, Topic


class Topics(click.Group):
    """One command a topic, made when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the topics."""
        from nearpeak.bounds import topics

        return list(topics())

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        """The command of a topic.

        Raises:
            UnknownName: there is no such topic.
        """
        from nearpeak.bounds import topics
        from nearpeak.errors import UnknownName

        known = topics()
        if name not in known:
            raise UnknownName("topic", name, known)
        return _command(known[name])


@click.group(cls=Topics, invoke_without_command=True, short_help="What bounds a case, in closed form.")
@json_option
@click.pass_context
def explain(ctx: click.Context, as_json: bool) -> None:
    """List the topics, or explain one with the numbers of your own case.

    \b
    Examples:
      nearpeak explain
      nearpeak explain long-context --model Qwen/Qwen3-32B --gpu h200
    """
    if ctx.invoked_subcommand is not None:
        return
    from nearpeak.bounds import topics

    rows = [{"topic": t.name, "what": t.title, "paper": t.paper} for t in topics().values()]
    if as_json:
        print_json(rows)
        return
    from nearpeak.report import print_table

    print_table(rows)


def _command(topic: "Topic") -> click.Command:
    def answer(as_json: bool, **given: Any) -> None:  # noqa: ANN401 (options are of many types)
        found = topic.explain(**given)
        if as_json:
            print_json(
                {"figures": found.figures, "tables": {t.title: t.rows for t in found.tables}, "says": found.says}
            )
            return
        from nearpeak.report import print_explanation

        print_explanation(topic, found)

    about = f"{topic.title}\n\n{topic.paper}\n\n\b\nExample:\n  nearpeak explain {topic.name} {topic.example}"
    options: list[click.Parameter] = [_option(option) for option in topic.options]
    command = click.Command(topic.name, callback=answer, params=options, help=about, short_help=topic.title)
    return json_option(command)


def _option(option: "Option") -> click.Option:
    from nearpeak.bounds import REQUIRED

    flag = f"--{option.name.replace('_', '-')}"
    if option.type is bool:
        return click.Option([flag, option.name], is_flag=True, help=option.help, default=option.default)
    if option.default is REQUIRED:
        return click.Option([flag, option.name], type=option.type, help=option.help, required=True)
    default = (
        ",".join(f"{v:g}" if isinstance(v, float) else v for v in option.default)
        if isinstance(option.default, tuple)
        else option.default
    )
    named: dict[str, Any] = {"type": option.type, "help": option.help, "default": default}
    return click.Option([flag, option.name], show_default=default is not None, **named)
