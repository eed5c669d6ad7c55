"""docs/cli.md has every command, in the words of its help, and examples that the command line would take."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from gateway.admin.state_file import FORMAT, KINDS
from gateway.cli.admin_client import DEFAULT_URL, KEY_VARIABLE, LOCAL_KEPT, URL_VARIABLE
from gateway.cli.entry import STOPPED
from gateway.cli.main import app
from tests.style.source import ROOT
from tests.style.tables import code, differences, table

DOCUMENT = "docs/cli.md"
TEXT = (ROOT / DOCUMENT).read_text(encoding="utf-8")


def commands(group: Any = None, path: str = "apprentice") -> Iterator[tuple[str, Any]]:
    """Every command with its whole name, those of groups too."""
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def first_paragraph(command: Any) -> str:
    return " ".join(inspect.cleandoc(command.help).split("\n\n")[0].split())


def test_every_command_is_in_the_document_and_nothing_else() -> None:
    wanted = [(f"`{name}`", first_paragraph(command)) for name, command in commands()]
    found = table(DOCUMENT, "Command", "What it does")
    assert not differences(DOCUMENT, wanted, found)


def test_the_exit_code_after_ctrl_c_is_in_the_document() -> None:
    assert f"· {STOPPED} Ctrl-C" in TEXT


def examples() -> Iterator[list[str]]:
    """The command lines of the document's examples, in words."""
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL):
        yield from (shlex.split(line) for line in re.findall(r"(?m)^\$ (.*)$", block))


def test_every_command_has_an_example() -> None:
    shown = {" ".join(words) for words in examples()}
    for name, _ in commands():
        assert any(line == name or line.startswith(f"{name} ") for line in shown), f"an example of {name} is missing"


def test_every_example_is_one_that_the_command_takes() -> None:
    known = dict(commands())
    for words in examples():
        name = next(" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in known)
        options = {option for parameter in known[name].params for option in parameter.opts}
        given = {word.partition("=")[0] for word in words[len(name.split()) :] if word.startswith("-")}
        assert given <= options, f"{' '.join(words)}: {given - options}"


def test_every_command_of_the_admin_api_takes_the_same_options_of_the_gateway() -> None:
    told = [code(row[0]) for row in table(DOCUMENT, "Option", "Environment", "Meaning")]
    for name, command in commands():
        if name.split()[1] in (
            "adapters",
            "audit",
            "evaluate",
            "evaluations",
            "explain",
            "keys",
            "overrides",
            "reload",
            "retraining",
            "reviews",
            "state",
            "tasks",
            "why",
        ):
            options = [parameter.opts[0] for parameter in command.params]
            assert options[-len(told) :] == told, name
    assert f"`{URL_VARIABLE}`" in TEXT
    assert f"`{KEY_VARIABLE}`" in TEXT
    assert f"`{DEFAULT_URL}`" in TEXT
    assert f"`{LOCAL_KEPT}/admin-key`" in TEXT


def test_a_states_kinds_and_its_format_are_those_of_the_document() -> None:
    assert [code(row[0]) for row in table(DOCUMENT, "Kind", "What an object is")] == list(KINDS)
    assert f'"format": {FORMAT}' in TEXT
