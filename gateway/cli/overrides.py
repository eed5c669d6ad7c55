"""`apprentice overrides`: rules that overrule the routing at once, tried on the latest requests before they are set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.admin_client import AdminClient, Unusable, asks_gateway
from gateway.cli.keys import span_seconds
from gateway.cli.tables import Printer, Row, moment, tell_warnings
from router.overrides import OverrideAction, OverrideMode
from serving.adapters.entries import PLACED

overrides = typer.Typer(help="List, set, try and delete rules that overrule the routing.", no_args_is_help=True)
WHOM = "Which requests: those of which all that is given holds"
TEXT_LENGTH_SHOWN = 40
NOT_CONDITIONS = frozenset({"action", "version", "message", "system", "mode", "starts_at", "expires_at"})
NOT_OF_A_RULE = frozenset({"id", "to_come", "expired", "generation", "version_state"})
"""What the gateway tells of a rule beside what it was set with."""


def _about(name: str, text: str, metavar: str = "TEXT") -> Any:
    return typer.Option(f"--{name}", rich_help_panel=WHOM, metavar=metavar, help=text)


Name = Annotated[str, typer.Argument(metavar="NAME", help="The rule's name; rules are tried in the order of names.")]
Action = Annotated[
    OverrideAction | None,
    typer.Option("--action", help="To general, to a version, refuse, or add a message to the system's."),
]
Task = Annotated[str | None, _about("task", "Of this task. Unset: of all tasks.", "TASK")]
Contains = Annotated[str | None, _about("contains", "The conversation has this text, in whatever case.")]
Pattern = Annotated[str | None, _about("pattern", "This regular expression of RE2 is found in it.", "REGEX")]
OfCaller = Annotated[str | None, _about("caller", "From this key, by its public part.", "KEY")]
Metadata = Annotated[
    list[str] | None, _about("metadata", "The request's metadata has it; again for more.", "NAME=VALUE")
]
Version = Annotated[str | None, typer.Option(help="With the action version: the version that answers.")]
Message = Annotated[str | None, typer.Option(help="With the action refuse: what the caller is told.")]
System = Annotated[str | None, typer.Option(help="With the action system: the message that is added.")]


@overrides.command("list")
@asks_gateway
def list_rules(client: AdminClient, out: Printer) -> None:
    """List the rules in their order, expired ones too."""
    told = client.get("/overrides")
    if not out.answer(told):
        out.table(("rule", "mode", "which requests", "action", "until"), (_row(one) for one in told["overrides"]))


@overrides.command("set")
@asks_gateway
def set_rule(
    client: AdminClient,
    out: Printer,
    name: Name,
    action: Action = None,
    task: Task = None,
    contains: Contains = None,
    pattern: Pattern = None,
    caller: OfCaller = None,
    metadata: Metadata = None,
    version: Version = None,
    message: Message = None,
    system: System = None,
    mode: Annotated[OverrideMode, typer.Option(help="observe only notes on the records what it would do.")] = "enforce",
    expires_in: Annotated[
        str | None, typer.Option(metavar="SPAN", help="How long it holds: 30min, 2h, 7d. Unset: until it is deleted.")
    ] = None,
    starts_in: Annotated[
        str | None, typer.Option(metavar="SPAN", help="When it begins, from now on: 30min, 2h, 7d. Unset: at once.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Set nothing: tell what it would have changed, as `try` does.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Yes, refuse every request of every task: for a refusal without conditions.")
    ] = False,
) -> None:
    """Set or replace a rule, on every gateway within a second."""
    body = _rule(action, task, contains, pattern, caller, metadata, version, message, system) | {"mode": mode}
    if expires_in is not None:
        body["expires_at"] = time.time() + span_seconds(expires_in)
    if starts_in is not None:
        body["starts_at"] = time.time() + span_seconds(starts_in)
    if dry_run:
        _try(client, out, name, body)
        return
    if mode == "enforce" and not everything and body.keys() - NOT_CONDITIONS == set() and action == "refuse":
        raise Unusable("This would refuse every request of every task: say whom it is about, or --all.")
    told = client.put(f"/overrides/{quote(name, safe='')}", body)
    if not out.answer(told):
        out.say(f"{name}: {_which(told)}: {_does(told)}; {_when(told)}.")
    tell_warnings(out, told)


@overrides.command("try")
@asks_gateway
def try_rule(
    client: AdminClient,
    out: Printer,
    name: Name,
    action: Action = None,
    task: Task = None,
    contains: Contains = None,
    pattern: Pattern = None,
    caller: OfCaller = None,
    metadata: Metadata = None,
    version: Version = None,
    message: Message = None,
    system: System = None,
) -> None:
    """Try a rule on the last 1,000 requests. Nothing is set.

    With no more than a NAME it is the rule of that name as it is set.
    """
    given = (action, task, contains, pattern, caller, metadata, version, message, system)
    _try(client, out, name, _rule(*given) if any(given) else _known(client, name))


@overrides.command("delete")
@asks_gateway
def delete_rule(client: AdminClient, out: Printer, name: Name) -> None:
    """Delete a rule, on every gateway within a second."""
    told = client.delete(f"/overrides/{quote(name, safe='')}")
    if not out.answer(told):
        out.say(f"{told['id']} is deleted.")


def _try(client: AdminClient, out: Printer, name: str, body: dict[str, Any]) -> None:
    told = client.post(f"/overrides/{quote(name, safe='')}/dry-run", body)
    if out.answer(told):
        return
    out.say(told["words"])
    if told["changes"]:
        out.table(("from", "to", "requests"), ((one["from"], one["to"], one["requests"]) for one in told["changes"]))
        out.note(f"For instance {', '.join(told['examples'][:3])}.")


def _known(client: AdminClient, name: str) -> dict[str, Any]:
    """A rule as it is set. Raises Unusable where there is none."""
    for one in client.get("/overrides")["overrides"]:
        if one["id"] == name:
            return {key: value for key, value in one.items() if key not in NOT_OF_A_RULE}
    raise Unusable(f"No rule {name[:80]!r} is set: say with --action and the other options what it would be.")


def _rule(
    action: OverrideAction | None,
    task: str | None,
    contains: str | None,
    pattern: str | None,
    caller: str | None,
    metadata: list[str] | None,
    version: str | None,
    message: str | None,
    system: str | None,
) -> dict[str, Any]:
    """The rule as the API takes it. Raises Unusable."""
    if action is None:
        raise Unusable("A rule needs an --action: general, version, refuse or system.")
    if version is not None and task is None:
        task = version.partition("@")[0]
    given = {"task": task, "contains": contains, "pattern": pattern, "caller": caller, "version": version}
    given |= {"message": message, "system": system}
    found: dict[str, Any] = {"action": action} | {name: value for name, value in given.items() if value is not None}
    if metadata:
        found["metadata"] = dict(_pairs(metadata))
    return found


def _pairs(metadata: list[str]) -> Iterator[tuple[str, str]]:
    for text in metadata:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise Unusable(f"--metadata is NAME=VALUE, such as shop=berlin; not {text[:40]!r}.")
        yield name, value


def _row(told: dict[str, Any]) -> Row:
    until = moment(told.get("expires_at"))
    over = " (expired)" if told.get("expired") else ""
    first = f"from {moment(told.get('starts_at'))} to " if told.get("to_come") else ""
    return told["id"], told.get("mode", "enforce"), _which(told), _does(told), first + until + over


def _when(told: dict[str, Any]) -> str:
    """How long a rule holds, in words."""
    first = f"from {moment(told['starts_at'])} " if told.get("starts_at") else ""
    until = moment(told.get("expires_at"))
    return first + (f"until {until}" if until != "-" else "until deleted")


def _which(told: dict[str, Any]) -> str:
    """The conditions of a rule in words."""
    found = [f"task {told['task']}" if told.get("task") else "all tasks"]
    found += [f"has {_short(told['contains'])}"] if told.get("contains") else []
    found += [f"matches {_short(told['pattern'])}"] if told.get("pattern") else []
    found += [f"key {told['caller']}"] if told.get("caller") else []
    found += [f"{name}={_short(value)}" for name, value in (told.get("metadata") or {}).items()]
    return ", ".join(found)


def _does(told: dict[str, Any]) -> str:
    """What a rule does, in words."""
    if told["action"] == "refuse":
        return f"refuse with {_short(told['message'])}" if told.get("message") else "refuse"
    if told["action"] == "system":
        return f"add {_short(told['system'])}"
    state = told.get("version_state")
    away = f" ({state})" if state is not None and state not in PLACED else ""
    return f"to {told.get('version') or 'general'}{away}"


def _short(text: str) -> str:
    return f"'{text if len(text) <= TEXT_LENGTH_SHOWN else text[: TEXT_LENGTH_SHOWN - 1] + '…'}'"
