"""The common form of commands that call a gateway: options, errors and output."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from gateway.cli.admin_client import (
    DEFAULT_URL,
    KEY_VARIABLE,
    URL_VARIABLE,
    AdminClient,
    CommandError,
    Refused,
    Unusable,
    explain_os_error,
    find_gateway,
    find_key,
)
from gateway.cli.entry import EndedBySignal, end_by_signals, is_of_output
from gateway.cli.option_names import find_empty_argument, options_of
from gateway.cli.tables import Printer

_option = functools.partial(typer.Option, rich_help_panel="Gateway and output")


@dataclass(frozen=True)
class ConnectionOptions:
    """The options that every command of the admin API takes."""

    gateway: Annotated[
        str | None,
        _option(
            envvar=URL_VARIABLE,
            metavar="URL",
            help=f"The gateway's address. Unset: that of `make up`, else {DEFAULT_URL}.",
        ),
    ] = None
    key_file: Annotated[
        Path | None, _option(help="A file with an admin's key. Unset: the environment's, else that of `make up`.")
    ] = None
    key: Annotated[
        str | None,
        _option(
            envvar=KEY_VARIABLE, help="The key itself. Others on this machine see options: better use the environment."
        ),
    ] = None
    ca_file: Annotated[
        Path | None,
        _option("--ca", metavar="FILE", help="Authorities (PEM) of an https:// gateway. Unset: the system's."),
    ] = None
    json_only: Annotated[bool, _option("--json", help="Print only the admin API's answer, as JSON, to stdout.")] = False


class Api(AdminClient):
    """The admin API as a command uses it: the client, and `out`, which prints the answers. Raises Unusable."""

    def __init__(self, connection: ConnectionOptions, out: Printer) -> None:
        url = find_gateway(connection.gateway)
        super().__init__(url, find_key(url, connection.key, connection.key_file), connection.ca_file)
        self.ca_file = connection.ca_file
        self.out = out

    def save(self, path: str, target: Path) -> int:
        """Write the bytes at `path` to `target`, and count their lines. Raises CommandError."""
        with explain_os_error(f"{target} can't be written"):
            return self.download(path, target)


class UnaskedApi(NamedTuple):
    """The admin API of a command that may not need it: `open` returns it, and raises Unusable."""

    out: Printer
    open: Callable[[], Api]


def with_api(command: Callable[..., None], is_unasked: bool = False) -> Callable[..., None]:
    """Make a command of a function whose first argument is the Api, or the UnaskedApi where it `is_unasked`.

    An argument that is a dataclass is made from an option for each of its fields. A CommandError becomes one line on
    stderr and an exit code. What the gateway says of a field is said of its option.
    """
    signature = inspect.signature(command, eval_str=True)
    (_, *own) = signature.parameters.values()
    groups: dict[str, Any] = {each.name: each.annotation for each in own if is_dataclass(each.annotation)}
    parameters = [*_flat(own), *_fields(ConnectionOptions)]
    options = options_of(_flat(own))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        connection = _taken(ConnectionOptions, values)
        values |= {name: _taken(group, values) for name, group in groups.items()}
        out = Printer(connection.json_only)
        try:
            if empty := find_empty_argument(own, values):
                raise Unusable(f"{empty} is empty: give one.")
            with end_by_signals(), ExitStack() as opened:
                unasked = UnaskedApi(out, lambda: opened.enter_context(closing(Api(connection, out))))
                try:
                    command(unasked if is_unasked else unasked.open(), **values)
                except OSError as error:
                    if is_of_output(error):
                        raise
                    text = f"{error.filename or 'A file'} can't be read or written: {error.strerror or error}."
                    raise Unusable(text) from error
        except EndedBySignal as error:
            raise typer.Exit(error.exit_code) from error
        except CommandError as error:
            if connection.json_only and not out.answered:
                out.print_json({"error": error.content()})
            text = error.in_options(options) if isinstance(error, Refused) else str(error)
            typer.echo(f"apprentice: {' '.join(text.split())}", err=True)
            raise typer.Exit(error.exit_code) from error

    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    )
    return run


def add_command(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the function to `app` as a command that asks a gateway."""
    return lambda function: app.command(name)(with_api(function))


def as_body(group: object = None, **values: Any) -> dict[str, Any]:
    """The options that were given, of a dataclass or by name: those that are None are left out."""
    options = values if group is None else vars(group) | values
    return {name: value for name, value in options.items() if value is not None}


def read_pairs(option: str, example: str, texts: Iterable[str], needs_value: bool = False) -> dict[str, str]:
    """The values by their names, each given as NAME=VALUE. Raises Unusable."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals or (needs_value and not value):
            raise Unusable(f"{option} is NAME=VALUE, such as {example}; not {text[:40]!r}.")
        pairs[name] = value
    return pairs


def _flat(parameters: Iterable[inspect.Parameter]) -> Iterator[inspect.Parameter]:
    """The parameters; each dataclass is replaced by parameters for its fields."""
    for each in parameters:
        if is_dataclass(each.annotation):
            yield from _fields(each.annotation)
        else:
            yield each


def _fields(group: Any) -> Iterable[inspect.Parameter]:
    return inspect.signature(group, eval_str=True).parameters.values()


def _taken(group: Any, values: dict[str, Any]) -> Any:
    """The dataclass made from its options, which are removed from `values`."""
    return group(**{field.name: values.pop(field.name) for field in _fields(group)})


TaskName = Annotated[str, typer.Argument(metavar="TASK", help="A task, such as returns.")]
OfTask = Annotated[str | None, typer.Option("--task", metavar="TASK", help="Of this task alone.")]
ClassField = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The field of the expected answers that is the class. Unset: by the rows."),
]
Because = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why: it goes into the audit.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before what can't be undone.")]
Force = Annotated[bool, typer.Option("--force", help="Write over a file that is there already.")]


def see_that_it_can_be_written(force: bool, *paths: Path | None) -> None:
    """Check the paths before hours of work, not after them. Raises Unusable where a path is not a file in a folder that
    exists, or, without `force`, where a file is there already."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise Unusable(f"{path} can't be written: name a file in a folder that there is.")
        if path.is_file() and not force:
            raise Unusable(f"{path} is there already: name another file, or give --force to write over it.")


def make_sure(question: str, yes: bool) -> None:
    """Ask before a step that can't be undone. Raises Unusable if the answer is no, or nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Unusable(f"{question} Give --yes: there is no terminal to ask on.")
    if not typer.confirm(question, err=True):
        raise Unusable("Nothing was done.")
