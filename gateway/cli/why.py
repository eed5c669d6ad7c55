"""`apprentice why`: what the monitor knows of a task, in plain words."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.command import Api, with_api
from gateway.cli.key_names import KeyNames
from gateway.cli.tables import Printer

PARTS = (
    ("known", "What is known"),
    ("sure", "How sure"),
    ("done", "What was done"),
    ("next", "What to do next"),
    ("caveats", "To bear in mind"),
)


@with_api
def why(
    api: Api,
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task, such as returns.")],
) -> None:
    """Explain the state of a task's versions: verdict, evidence, actions, and what to do next."""
    answer = api.get(f"/tasks/{quote(task, safe='')}/quality")
    if not api.out.answer(answer):
        tell_why(api.out, answer, KeyNames(api))


def tell_why(out: Printer, answer: dict[str, Any], names: KeyNames) -> None:
    """A task's health in words, a part after the other."""
    out.say(answer["told"]["line"])
    for name, title in PARTS:
        if answer["told"][name]:
            out.say("")
            out.say(f"{title}:")
            for sentence in answer["told"][name]:
                out.say(f"  {names.within(sentence)}")
