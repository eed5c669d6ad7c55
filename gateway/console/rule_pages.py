"""Pages of rules: the list, and a form that shows a dry run on the latest requests before the rule is set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from starlette.responses import Response

from gateway.console.actions import CHANGED, read_generation
from gateway.console.admin_api import Declined, fill_address
from gateway.console.figures import read_moment, write_moment
from gateway.console.signed_in_request import Visit
from gateway.server.listener import CONSOLE
from router.overrides import OverrideAction, OverrideMode

TEXTS = ("task", "contains", "pattern", "caller", "version", "message", "system", "action", "mode", "past_gate")
MOMENTS = ("starts_at", "expires_at")
METADATA = "metadata"


async def show_rules(visit: Visit) -> Response:
    """All rules, in the order in which they are tried."""
    return await visit.render("rules.html", rules=(await visit.api.get("/admin/v1/overrides"))["overrides"])


async def show_rule_form(visit: Visit) -> Response:
    """The form of a new rule, or of an existing one."""
    name, values = visit.query("rule"), {"action": "general", "mode": "enforce"}
    rules = (await visit.api.get("/admin/v1/overrides"))["overrides"]
    for rule in rules:
        if rule["id"] == name:
            values |= {key: str(value) for key, value in rule.items() if key in TEXTS and value is not None}
            values |= {"edited": name, "generation": str(rule["generation"])}
            values |= {key: write_moment(rule[key]) for key in MOMENTS if rule.get(key)}
            values[METADATA] = write_metadata(rule.get(METADATA, {}))
    if name and "edited" not in values:
        raise Declined(404, "not_found", f"There is no rule {name[:80]!r}: it was deleted, or its name is another.")
    return await _render_form(visit, {"name": name, **values})


async def try_or_set_rule(visit: Visit) -> Response:
    """Try a rule on the latest requests, or set it."""
    fields = await visit.form()
    name = fields.get("name", "")
    try:
        body = _read_rule(fields)
        if fields.get("step") != "set":
            body.pop("past_gate", None)
            tried = await visit.api.send("POST", fill_address("/admin/v1/overrides/{name}/dry-run", name=name), body)
            return await _render_form(visit, fields, tried=tried)
        if fields.get("edited") == name and (generation := fields.get("generation")):
            body["expected_generation"] = read_generation(generation)
        elif name in [each["id"] for each in (await visit.api.get("/admin/v1/overrides"))["overrides"]]:
            text = f"There is a rule {name} already. Open it to change it, or choose another name."
            raise Declined(409, "state_conflict", text)
        answer = await visit.api.send("PUT", fill_address("/admin/v1/overrides/{name}", name=name), body)
    except Declined as refused:
        return await _render_form(visit, fields, fault=refused)
    former = fields.get("edited") or name
    notes = [] if former == name else [f"The rule {former} is as it was: delete it if this one takes its place."]
    return await visit.done(f"{CONSOLE}/rules", f"The rule {name} is set.", *notes, *answer["warnings"])


async def _render_form(
    visit: Visit, values: Mapping[str, str], tried: Mapping[str, Any] | None = None, fault: Declined | None = None
) -> Response:
    tasks = [row["task"] for row in (await visit.api.get("/admin/v1/quality"))["tasks"]]
    choices = {"action": get_args(OverrideAction), "mode": get_args(OverrideMode), "task": ("", *tasks)}
    at, told = ("", "") if fault is None else fault.at_field([*TEXTS, *MOMENTS, METADATA])
    told = CHANGED if fault is not None and fault.code == "stale_generation" else told
    shown = {"values": values, "tried": tried, "fault": told, "at": at, "choices": choices}
    return await visit.render("rule.html", 200 if fault is None else 400, **shown)


def _read_rule(fields: Mapping[str, str]) -> dict[str, Any]:
    """The body for the API from the rule's form. Raises Declined."""
    body: dict[str, Any] = {name: fields[name] for name in TEXTS if fields.get(name)}
    for name in MOMENTS:
        if fields.get(name):
            try:
                body[name] = read_moment(fields[name])
            except ValueError as error:
                raise Declined(400, "invalid_value", str(error), name) from None
    return body | {METADATA: read_metadata(fields.get(METADATA, ""))}


def write_metadata(metadata: Mapping[str, str]) -> str:
    """A line name=value for each entry; or JSON, where such lines would be read as other entries."""
    lines = "\n".join(f"{name}={value}" for name, value in metadata.items())
    try:
        is_plain = read_metadata(lines) == metadata
    except Declined:
        is_plain = False
    return lines if is_plain else json.dumps(dict(metadata), ensure_ascii=False)


def read_metadata(text: str) -> dict[str, Any]:
    """The entries that `write_metadata` has written. Raises Declined."""
    if text.strip().startswith("{"):
        try:
            return dict(json.loads(text))
        except (ValueError, RecursionError):
            raise Declined(400, "invalid_value", "This is not a JSON object.", METADATA) from None
    pairs = [line.partition("=") for line in text.splitlines() if line.strip()]
    if any(not sign for _, sign, _ in pairs):
        raise Declined(400, "invalid_value", "Write one name=value on each line.", METADATA)
    return {name.strip(): value.strip() for name, _, value in pairs}
