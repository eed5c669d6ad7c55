"""`apprentice overrides`: rules that overrule the routing at once, and their dry run on the latest requests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from operator import itemgetter
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.admin_client import AdminClient, Unusable
from gateway.cli.command import Api, add_command, as_body, read_pairs
from gateway.cli.gate import PastGate, read_past_gate
from gateway.cli.keys import parse_span
from gateway.cli.tables import Row, format_time, tell_warnings
from router.overrides import OverrideAction, OverrideMode
from serving.adapters.versions_and_aliases import PLACED

overrides = typer.Typer(help="List, set, try and delete rules that overrule the routing.", no_args_is_help=True)
WHOM = "Which requests: those of which all that is given holds"
TEXT_LENGTH_SHOWN = 40
EMPTY = "No rule is set. Set one: apprentice overrides set NAME --action ACTION"
NOT_CONDITIONS = frozenset({"action", "version", "message", "system", "mode", "starts_at", "expires_at"})
NOT_OF_A_RULE = frozenset({"id", "to_come", "expired", "generation", "version_state"})
"""Fields of a rule that the gateway adds."""


def _about(text: str, metavar: str = "TEXT") -> Any:
    return typer.Option(rich_help_panel=WHOM, metavar=metavar, help=text)


Name = Annotated[str, typer.Argument(metavar="NAME", help="The rule's name; rules are tried in the order of names.")]


@dataclass(frozen=True)
class RuleOptions:
    """A rule as options."""

    action: Annotated[
        OverrideAction | None, typer.Option(help="To general, to a version, refuse, or add a message to the system's.")
    ] = None
    task: Annotated[str | None, _about("Of this task. Unset: of all tasks.", "TASK")] = None
    contains: Annotated[str | None, _about("The conversation has this text, in upper or lower case.")] = None
    pattern: Annotated[str | None, _about("This regular expression of RE2 is found in it.", "REGEX")] = None
    caller: Annotated[str | None, _about("From this key, by its public part.", "KEY")] = None
    metadata: Annotated[list[str] | None, _about("The request's metadata has it; again for more.", "NAME=VALUE")] = None
    version: Annotated[str | None, typer.Option(help="With the action version: the version that answers.")] = None
    message: Annotated[str | None, typer.Option(help="With the action refuse: the message that callers get.")] = None
    system: Annotated[str | None, typer.Option(help="With the action system: the message that is added.")] = None

    def body(self) -> dict[str, Any]:
        """The rule as the API takes it. Raises Unusable."""
        if self.action is None:
            raise Unusable("A rule needs an --action: general, version, refuse or system.")
        task = self.version.partition("@")[0] if self.version is not None and self.task is None else self.task
        metadata = read_pairs("--metadata", "shop=berlin", self.metadata or ())
        return as_body(self, task=task, metadata=metadata or None)


@add_command(overrides, "list")
def list_rules(api: Api) -> None:
    """List the rules in their order, expired ones too."""
    columns = ("rule", "mode", "which requests", "action", "until")
    api.out.tell_list(api.get("/overrides"), "overrides", columns, _row, EMPTY)


@add_command(overrides, "set")
def set_rule(
    api: Api,
    name: Name,
    rule: RuleOptions,
    mode: Annotated[OverrideMode, typer.Option(help="observe only notes on the records what it would do.")] = "enforce",
    expires_in: Annotated[
        str | None, typer.Option(metavar="SPAN", help="How long it holds: 30min, 2h, 7d. Unset: until it is deleted.")
    ] = None,
    starts_in: Annotated[
        str | None, typer.Option(metavar="SPAN", help="When it begins, from now on: 30min, 2h, 7d. Unset: at once.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Set nothing: show what it would have changed, as `try` does.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Yes, refuse every request of every task: for a refusal without conditions.")
    ] = False,
    past: PastGate = PastGate(),
) -> None:
    """Set or replace a rule, on every gateway within a second. The gate is asked of a version that it sends to."""
    body, past_gate = rule.body() | {"mode": mode}, read_past_gate(past)
    for field, span, least in (("expires_at", expires_in, 1), ("starts_at", starts_in, 0)):
        if span is not None:
            body[field] = time.time() + parse_span(span, least)
    if dry_run:
        _try(api, name, body)
        return
    if mode == "enforce" and not everything and body.keys() - NOT_CONDITIONS == set() and rule.action == "refuse":
        raise Unusable("This would refuse every request of every task: say whom it is about, or --all.")
    answer = api.put(_path(name), body | past_gate)
    api.out.tell(answer, f"{name}: {_which(answer)}: {_does(answer)}; {_when(answer)}.")
    tell_warnings(api.out, answer)


@add_command(overrides, "try")
def try_rule(api: Api, name: Name, rule: RuleOptions) -> None:
    """Try a rule on the last 1,000 requests. Nothing is set.

    With no more than a NAME it is the rule of that name as it is set.
    """
    _try(api, name, rule.body() if any(vars(rule).values()) else _rule_of(api, name))


@add_command(overrides, "delete")
def delete_rule(api: Api, name: Name) -> None:
    """Delete a rule, on every gateway within a second."""
    answer = api.delete(_path(name))
    api.out.tell(answer, f"{answer['id']} is deleted.")


def _path(name: str) -> str:
    if "/" in name:
        raise Unusable("A rule's name has letters, digits, - and _, at most 63.")
    return f"/overrides/{quote(name, safe='')}"


def _try(api: Api, name: str, body: dict[str, Any]) -> None:
    answer = api.post(f"{_path(name)}/dry-run", body)
    if api.out.print_json(answer):
        return
    api.out.say(answer["words"])
    if answer["changes"]:
        columns = ("from", "to", "requests")
        api.out.table(columns, map(itemgetter(*columns), answer["changes"]))
        api.out.note(f"For instance {', '.join(answer['examples'][:3])}.")


def _rule_of(client: AdminClient, name: str) -> dict[str, Any]:
    """The rule of this name. Raises Unusable if it does not exist."""
    for item in client.get("/overrides")["overrides"]:
        if item["id"] == name:
            return {key: value for key, value in item.items() if key not in NOT_OF_A_RULE}
    raise Unusable(f"No rule {name[:80]!r} is set: say with --action and the other options what it would be.")


def _row(rule: dict[str, Any]) -> Row:
    until = format_time(rule.get("expires_at"))
    over = " (expired)" if rule.get("expired") else ""
    first = f"from {format_time(rule.get('starts_at'))} to " if rule.get("to_come") else ""
    return rule["id"], rule.get("mode", "enforce"), _which(rule), _does(rule), first + until + over


def _when(rule: dict[str, Any]) -> str:
    """The time during which a rule holds, in words."""
    first = f"from {format_time(rule['starts_at'])} " if rule.get("starts_at") else ""
    until = format_time(rule.get("expires_at"))
    return first + (f"until {until}" if until != "-" else "until deleted")


def _which(rule: dict[str, Any]) -> str:
    """The conditions of a rule in words."""
    conditions = [f"task {rule['task']}" if rule.get("task") else "all tasks"]
    conditions += [f"has {_short(rule['contains'])}"] if rule.get("contains") else []
    conditions += [f"matches {_short(rule['pattern'])}"] if rule.get("pattern") else []
    conditions += [f"key {rule['caller']}"] if rule.get("caller") else []
    conditions += [f"{name}={_short(value)}" for name, value in (rule.get("metadata") or {}).items()]
    return ", ".join(conditions)


def _does(rule: dict[str, Any]) -> str:
    """The effect of a rule, in words."""
    if rule["action"] == "refuse":
        return f"refuse with {_short(rule['message'])}" if rule.get("message") else "refuse"
    if rule["action"] == "system":
        return f"add {_short(rule['system'])}"
    state = rule.get("version_state")
    away = f" ({state})" if state is not None and state not in PLACED else ""
    return f"to {rule.get('version') or 'general'}{away}"


def _short(text: str) -> str:
    return f"'{text if len(text) <= TEXT_LENGTH_SHOWN else text[: TEXT_LENGTH_SHOWN - 1] + '…'}'"
