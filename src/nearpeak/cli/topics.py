"""Groups of commands that are topics: ``nearpeak explain``, ``simulate``, ``fleet`` and ``live`` are each one."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from nearpeak.cli.arguments import json_option, print_json

if TYPE_CHECKING:
    from nearpeak.topic import Option, Topic

Found = Callable[[], "dict[str, Topic]"]


class Topics(click.Group):
    """One command a topic, made when it is asked for, beside commands of its own.

    Args:
        found: the topics. default: the command that arguments go to which name none.
    """

    def __init__(self, found: Found, default: click.Command | None = None, **kwargs: Any) -> None:  # noqa: ANN401 (click's)
        super().__init__(invoke_without_command=True, **kwargs)
        self.found, self.default = found, default

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, then of the topics."""
        return [*super().list_commands(ctx), *self.found()]

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        """A command, or that of a topic.

        Raises:
            UnknownName: there is no such topic.
        """
        from nearpeak.errors import UnknownName

        if (own := super().get_command(ctx, name)) is not None:
            return own
        known = self.found()
        if name not in known:
            raise UnknownName("topic", name, known)
        return _command(str(ctx.info_name), known[name])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named, else the default with all arguments; a ``--json`` before it is its own."""
        args = [*args, "--json"] if ctx.params.get("as_json") else args
        if self.default is not None and args[0] not in self.commands and args[0] not in self.found():
            return self.default.name, self.default, args
        return super().resolve_command(ctx, args)


def print_topics(topics: "dict[str, Topic]", as_json: bool) -> None:
    """A table of what can be asked."""
    rows = [{"topic": t.name, "what": t.title, "paper": t.paper} for t in topics.values()]
    if as_json:
        print_json(rows)
        return
    from nearpeak.report import print_table

    print_table(rows)


def _command(group: str, topic: "Topic") -> click.Command:
    def answer(as_json: bool, **given: Any) -> None:  # noqa: ANN401 (options are of many types)
        found = topic.explain(**given)
        if as_json:
            print_json(
                {"figures": found.figures, "tables": {t.title: t.rows for t in found.tables}, "says": found.says}
            )
            return
        from nearpeak.report import print_explanation

        print_explanation(topic, found)

    about = f"{topic.title}\n\n{topic.paper}\n\n\b\nExample:\n  nearpeak {group} {topic.name} {topic.example}"
    options: list[click.Parameter] = [_option(option) for option in topic.options]
    command = click.Command(topic.name, callback=answer, params=options, help=about, short_help=topic.title)
    return json_option(command)


def _option(option: "Option") -> click.Option:
    from nearpeak.topic import REQUIRED

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
