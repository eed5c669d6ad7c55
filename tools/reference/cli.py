"""docs/reference/cli.md, from the command line itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

from typer.main import get_command

from gateway.cli.entry import STOPPED, TERMINATED
from gateway.cli.main import app
from tools.reference.markdown import Row, code, codes, page, sentence, table

INTRODUCTION = """
`apprentice COMMAND --help` has its options. Answers go to stdout, progress to stderr. Times are in UTC.
"""
EXIT_CODES: tuple[Row, ...] = (
    ("0", "Done."),
    ("1", "The gateway refused it, or the awaited result did not come."),
    ("2", "It can't be carried out, a port is taken, or no gateway answers."),
    ("3", "`serve` could not start because of Redis."),
    (f"{STOPPED}, {TERMINATED}", "Ctrl-C or SIGTERM ended the waiting. The gateway continues with what was begun."),
)


def cli_page() -> str:
    """The page: every command with its arguments, and their common options and exit codes."""
    rows = [_row(name, command) for name, command in commands()]
    alone = [name.partition(" ")[2] for name, command in commands() if not _asks_gateway(command)]
    shared = [
        (code(option.opts[0]), option.envvar or "", option.help) for option in _connection() if option.help is not None
    ]
    return page(
        "Command line",
        INTRODUCTION,
        table(("Command", "What it does"), rows),
        "## Options of every command that asks a gateway",
        f"All but {codes(alone)}.",
        table(("Option", "Environment", "Meaning"), shared),
        "## Exit codes",
        table(("Code", "Meaning"), EXIT_CODES),
        "The reason is one line on stderr. With `--json` it is on stdout too, in the form of the API's "
        "[errors](errors.md).",
    )


@cache
def commands() -> tuple[tuple[str, Any], ...]:
    """Every command with its full name, also those of groups. They are cached, since Typer takes long to make them."""
    return tuple(_commands_in(get_command(app), "apprentice"))


def _commands_in(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands_in(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _row(name: str, command: Any) -> Row:
    arguments = [_argument(each) for each in command.params if each.param_type_name == "argument"]
    return code(" ".join([name.partition(" ")[2], *arguments])), _first_sentence(command)


def _asks_gateway(command: Any) -> bool:
    last = [parameter.opts[0] for parameter in command.params][-len(_connection()) :]
    return last == [option.opts[0] for option in _connection()]


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _first_sentence(command: Any) -> str:
    return sentence(inspect.cleandoc(command.help))


def _connection() -> list[Any]:
    """The options that every command of the admin API takes."""
    (command,) = [command for name, command in commands() if name == "apprentice reload"]
    return [parameter for parameter in command.params if parameter.rich_help_panel == "Gateway and output"]
