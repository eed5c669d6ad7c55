"""`apprentice gate`: the gate's verdict on a version, line by line; and the options that pass it by force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.admin_client import KeyNames, Unusable
from gateway.cli.command import Api, TaskName, with_api
from gateway.cli.tables import Printer, format_time

MODE_WORDS: Mapping[str, str] = {
    "off": "The setting release.gate is off: the verdict blocks nothing.",
    "warn": "The setting release.gate is warn: the verdict blocks nothing.",
    "enforce": "The setting release.gate is enforce: no request goes to a version that does not pass.",
}


@dataclass(frozen=True)
class PastGate:
    """The options by which an admin passes the gate."""

    force: Annotated[bool, typer.Option("--force", help="Pass the gate; it needs --reason, and stays in `why`.")] = (
        False
    )
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="With --force: why the gate is passed.")] = None


def read_past_gate(options: PastGate) -> dict[str, Any]:
    """The options as a part of a body. Raises Unusable if only one of them is given."""
    if options.force != bool(options.reason):
        raise Unusable("--force and --reason go together: say why the gate is passed.")
    return {"past_gate": options.reason} if options.force else {}


@with_api
def show_gate(
    api: Api,
    task: TaskName,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A version, such as v3 or returns@v3.")],
) -> None:
    """Show whether a version may replace what leads its task, line by line. Exit code 1 where it is not shown.

    It is compared with the version that leads, and the best that has led, by the newest evaluations that compare them.
    """
    name = version if "@" in version else f"{task}@{version}"
    if name.partition("@")[0] != task:
        raise Unusable(f"{name} is not a version of {task}.")
    answer = api.get(f"/adapters/{quote(name, safe='')}/gate")
    if not api.out.print_json(answer):
        _tell(api.out, answer, KeyNames(api))
    if answer["verdict"] != "passed":
        raise typer.Exit(1)


def _tell(out: Printer, answer: dict[str, Any], names: KeyNames) -> None:
    summary = answer["summary"] if answer["lines"] else answer["because"]
    out.say(f"{answer['version']}: {answer['verdict'].replace('_', ' ')}. {summary}".rstrip())
    if answer["lines"]:
        out.say("")
        for line in answer["lines"]:
            is_said = line["needs"].lower() in summary.lower()
            needs = "" if is_said else f" It needs {line['needs']}."
            out.say(f"{line['verdict'].replace('_', ' '):<11}  {line['subject']:<8}  {line['text']}{needs}")
        out.say("")
    if references := answer.get("held_against"):
        out.say(f"Held against: {', '.join(f'{name} ({role})' for role, name in references.items())}.")
    if answer["evaluations"]:
        out.say(f"By: {', '.join(answer['evaluations'])} (`apprentice evaluations show ID`).")
    if running := answer.get("running"):  # an earlier gateway sends none
        out.say(f"Running: {', '.join(running)} (`apprentice evaluations show ID`).")
    if (forced := answer["forced"]) is not None:
        out.say(names.within(f"Passed by force on {format_time(forced['at'])} by {forced['by']}: {forced['reason']}"))
    out.say(MODE_WORDS[answer["mode"]])
