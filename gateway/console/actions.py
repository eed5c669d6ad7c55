"""The actions of an admin: a table of steps, each with a page to confirm it and one call of the admin API."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from starlette.responses import Response

from gateway.callers import LIMIT_NAMES
from gateway.console.admin_api import Declined, fill_address
from gateway.console.figures import read_moment
from gateway.console.signed_in_request import Visit
from gateway.roles import ROLES
from gateway.server.listener import CONSOLE

Kind = Literal["text", "number", "percent", "choice", "list", "moment"]
GenerationField = Literal["body", "query", "none"]


@dataclass(frozen=True)
class Field:
    """A field of a step's form: its name in the API's body, and its display. `inside` is the body's object for it.

    A choice lists values with their labels. An empty value is left out of the body."""

    name: str
    label: str
    kind: Kind = "text"
    required: bool = False
    hint: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    value: str = ""
    inside: str = ""


@dataclass(frozen=True)
class Click:
    """A step: its words, its API call, and the page to return to. Names in braces come from the step's URL.

    `names_in_body` go into the body; `generation` is the place of the generation that the person has seen.
    """

    title: str
    text: str
    method: str
    path: str
    back: str
    fields: tuple[Field, ...] = ()
    body: Mapping[str, Any] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    names_in_body: tuple[str, ...] = ()
    generation: GenerationField = "none"
    is_dangerous: bool = False
    shows_gate: bool = False
    shows_key: bool = False
    """True if the answer shows a new key. The form then works only once: to reload that page would send it again."""


@dataclass(frozen=True)
class Home:
    """The API address that shows whether a step's object exists: by itself, or in a list under the names `at`."""

    address: str
    at: tuple[str, ...] = ()
    key: str = ""
    """The field of the list's items that holds the name."""


PAST_GATE = Field("past_gate", "Past the gate", hint="Only where the gate says no: the reason, for the audit.")
CHANGED = "It was changed since you opened its page. Go back, and see what it is now."
GENERATION_DIGITS_MAX = 16
VERDICTS = (
    ("", "hold: the monitor judges and does nothing"),
    *((each, each) for each in ("healthy", "suspect", "degraded")),
)
LIMITS = tuple(
    Field(name, name.replace("_", " ").capitalize().replace("Usd", "US dollars"), "number", inside="limits")
    for name in LIMIT_NAMES
)
TASK, VERSION, KEY, FLEET = "/tasks/{task}", "/versions/{version}", "/keys/{public}", "/fleet"
ACTIONS: Mapping[str, Click] = MappingProxyType(
    {
        "promote": Click(
            "Promote {version}",
            "All requests of {task} go to {version}. The version that leads now stays loaded, to go back to.",
            *("POST", "/admin/v1/aliases/{task}/promote", TASK, (PAST_GATE,)),
            names_in_body=("version",),
            generation="body",
            shows_gate=True,
        ),
        "canary": Click(
            "Try {version} as a canary",
            "A share of the sessions of {task} goes to {version}. With a plan it is promoted or rolled back by itself.",
            *("POST", "/admin/v1/aliases/{task}/canary", TASK),
            (
                Field("share", "Share of the sessions, in percent", "percent", True, value="5"),
                Field("plan", "Judged", "choice", choices=(("{}", "by the usual plan"), ("null", "by people"))),
                PAST_GATE,
            ),
            names_in_body=("version",),
            generation="body",
            shows_gate=True,
        ),
        "roll-back": Click(
            "Roll {task} back to {version}",
            "All requests of {task} go to {version} again. A canary ends.",
            *("POST", "/admin/v1/aliases/{task}/rollback", TASK),
            names_in_body=("version",),
            generation="body",
            is_dangerous=True,
        ),
        "end-canary": Click(
            "End the canary of {task}",
            "The canary gets no more requests. The version that leads answers all of them.",
            *("POST", "/admin/v1/aliases/{task}/rollback", TASK),
            body={"canary_only": True},
            generation="body",
            is_dangerous=True,
        ),
        "pin": Click(
            "Pin the verdict on {version}",
            "Your verdict holds instead of the monitor's, until you let it judge again.",
            *("POST", "/admin/v1/tasks/{task}/quality/{version}/pin", TASK),
            (
                Field("verdict", "Verdict", "choice", choices=VERDICTS),
                Field("reason", "Reason", required=True, hint="For the audit, and for who looks."),
                Field("until", "Until (UTC)", "moment", hint="Empty: until it is released."),
            ),
            generation="body",
        ),
        "unpin": Click(
            "Let the monitor judge {version} again",
            "The pin ends, and the monitor's own verdict holds.",
            *("DELETE", "/admin/v1/tasks/{task}/quality/{version}/pin", TASK),
            generation="query",
        ),
        "undo": Click(
            "Undo what the monitor did to {task}",
            "What was there before is there again. The monitor does not do the same before the version is healthy.",
            *("POST", "/admin/v1/tasks/{task}/quality/actions/{action}/undo", TASK),
            generation="query",
        ),
        "stage": Click(
            "Stage {version}",
            "{version} is loaded on its replicas and probed. It gets no requests yet.",
            *("POST", "/admin/v1/adapters/{version}/stage", VERSION),
            query={"wait_seconds": 30},
        ),
        "unload": Click(
            "Unload {version}",
            "{version} is taken off every replica after its last answer.",
            *("POST", "/admin/v1/adapters/{version}/unload", VERSION),
            query={"wait_seconds": 30},
            is_dangerous=True,
        ),
        "retire": Click(
            "Retire {version} permanently",
            "{version} can't be used again. Its bytes stay in the store.",
            *("POST", "/admin/v1/adapters/{version}/retire", VERSION),
            query={"wait_seconds": 30},
            generation="query",
            is_dangerous=True,
        ),
        "cordon": Click(
            "Cordon {replica}",
            "{replica} gets no new requests from any gateway. Those in progress finish.",
            *("POST", "/admin/v1/replicas/{replica}/cordon", FLEET),
            (Field("reason", "Reason", required=True),),
        ),
        "uncordon": Click(
            "Uncordon {replica}",
            "{replica} gets requests again.",
            *("POST", "/admin/v1/replicas/{replica}/uncordon", FLEET),
            generation="query",
        ),
        "recycle": Click(
            "Recycle {replica}",
            "The engine of {replica} is restarted after its answers. Its versions are loaded and probed again.",
            *("POST", "/admin/v1/replicas/{replica}/recycle", FLEET),
            is_dangerous=True,
        ),
        "stop-training": Click(
            "Stop the training {training}",
            "Its checkpoint stays: the same training, asked for again, goes on from there.",
            *("POST", "/admin/v1/fine_tuning/jobs/{training}/cancel", "/trainings/{training}"),
            is_dangerous=True,
        ),
        "delete-rule": Click(
            "Delete the rule {rule}",
            "The rule matches nothing any more, from the next request on.",
            *("DELETE", "/admin/v1/overrides/{rule}", "/rules"),
            generation="query",
            is_dangerous=True,
        ),
        "remove-gold": Click(
            "Remove a gold question of {task}",
            "Its texts go, and nobody is given it any more. Answers to it stay counted.",
            *("DELETE", "/admin/v1/reviews/{task}/gold/{request}", "/reviews/{task}/gold"),
            is_dangerous=True,
        ),
        "make-key": Click(
            "Make a key",
            "The key is shown once, on the next page.",
            *("POST", "/admin/v1/callers", "/keys"),
            shows_key=True,
            fields=(
                Field("name", "Name", required=True),
                Field("owner", "Owner", hint="The person who answers for it. Empty: you."),
                Field("role", "Role", "choice", choices=tuple((role, role) for role in ROLES)),
                Field(
                    "models", "Models", "list", True, value="*", hint="Tasks and pools, with commas between; * is all."
                ),
                Field("expires_at", "Ends (UTC)", "moment", hint="Empty: never."),
                *LIMITS,
            ),
        ),
        "limit-key": Click(
            "Limit the key {public}",
            "What is left empty is not bounded.",
            *("PATCH", "/admin/v1/callers/{public}", KEY, LIMITS),
            generation="body",
        ),
        "rotate-key": Click(
            "Give {public} a new secret",
            "The new key is shown once, on the next page. The old one works beside it for a while.",
            *("POST", "/admin/v1/callers/{public}/rotate", KEY),
            (Field("overlap_seconds", "Seconds in which the old secret works too", "number", True, value="3600"),),
            generation="body",
            shows_key=True,
        ),
        "revoke-key": Click(
            "Revoke the key {public}",
            "No gateway takes the key any more. This can't be undone.",
            *("DELETE", "/admin/v1/callers/{public}", "/keys"),
            generation="query",
            is_dangerous=True,
        ),
        "approve-key": Click(
            "Approve the admin key {public}",
            "The key works from then on.",
            *("POST", "/admin/v1/callers/{public}/approve", KEY),
            generation="query",
        ),
    }
)
"""The table name → step."""
HOMES: Mapping[str, Home] = MappingProxyType(
    {
        "task": Home("/admin/v1/tasks/{task}/quality"),
        "version": Home("/admin/v1/adapters/{version}"),
        "public": Home("/admin/v1/callers/{public}"),
        "replica": Home("/admin/v1/replicas", at=("replicas",), key="name"),
        "training": Home("/admin/v1/trainings/{training}"),
        "rule": Home("/admin/v1/overrides", at=("overrides",), key="id"),
        "action": Home("/admin/v1/tasks/{task}/quality", at=("quality", "actions"), key="id"),
    }
)
"""The place to look up each kind of object that a step may need."""


async def ask_first(visit: Visit) -> Response:
    """The page that explains a step, and has a form for its fields. Raises Declined (403, 404)."""
    action, names = _read_step(visit, dict(visit.request.query_params))
    if not visit.is_admin:
        raise Declined(403, "role_required", "This needs a key with the role admin.")
    for name in HOMES.keys() & names.keys():
        await _find(visit, name, names)
    values = {each.name: names.get(each.name, each.value) for each in action.fields}
    return await _render_question(visit, action, names, values)


async def take_action(visit: Visit) -> Response:
    """Take a step, then return to its page; a step that makes a key shows the key instead."""
    fields = await visit.form()
    action, names = _read_step(visit, {name[1:]: value for name, value in fields.items() if name.startswith("@")})
    body, query = dict(action.body), dict(action.query)
    try:
        body |= {name: names[name] for name in action.names_in_body} | _read_fields(action, fields)
        if action.generation != "none" and (generation := names.get("generation")):
            (body if action.generation == "body" else query)["expected_generation"] = read_generation(generation)
        if action.shows_key and not await visit.is_first(fields.get("once", "")):
            text = "This form was taken already, and its key was shown. See it in the list; rotate it if it was lost."
            return await visit.done(CONSOLE + fill_address(action.back, **names), text)
        answer = await visit.api.send(action.method, fill_address(action.path, **names), body or None, query)
    except Declined as refused:
        return await _render_question(visit, action, names, fields, refused)
    if "key" in answer:
        return await visit.render("new_key.html", caller=answer)
    warnings = answer.get("warnings", ())
    note = (
        f"Done: {action.title.format_map(names)}."
        if answer.get("changed", True)
        else "It was so already: nothing changed."
    )
    return await visit.done(CONSOLE + fill_address(action.back, **names), note, *warnings)


def _read_step(visit: Visit, names: dict[str, str]) -> tuple[Click, dict[str, str]]:
    """The step, and the names of its objects. Raises Declined (404) if there is no such step, or a name is missing."""
    action = ACTIONS.get(visit.request.path_params["action"])
    try:
        if action is not None:
            (action.title + action.text + action.path + action.back).format_map(names)
            _see_that_version_is_of_task(names)
            return action, names
    except KeyError:
        pass
    raise Declined(404, "not_found", "There is no such step, or its address is not whole.")


def _see_that_version_is_of_task(names: Mapping[str, str]) -> None:
    """Raises Declined (404)."""
    task, version = names.get("task"), names.get("version")
    if task and version and version.partition("@")[0] != task:
        raise Declined(404, "not_found", f"{version[:80]} is not a version of {task[:80]}: open it from its own task.")


async def _find(visit: Visit, name: str, names: Mapping[str, str]) -> None:
    """Raises Declined (404) if no object has this name."""
    home = HOMES[name]
    entries = await visit.api.get(fill_address(home.address, **names))
    for step in home.at:
        entries = entries[step]
    if home.key and names[name] not in [each[home.key] for each in entries]:
        raise Declined(404, "not_found", f"There is no {name} {names[name][:80]!r}.")


async def _render_question(
    visit: Visit, action: Click, names: dict[str, str], values: Mapping[str, str], fault: Declined | None = None
) -> Response:
    at, told = ("", "") if fault is None else fault.at_field([each.name for each in action.fields])
    gate = None
    if action.shows_gate:
        gate = await visit.api.find(fill_address("/admin/v1/adapters/{version}/gate", version=names["version"]))
    return await visit.render(
        "confirm.html",
        200 if fault is None else fault.status,
        action=action,
        title=action.title.format_map(names),
        text=action.text.format_map(names),
        names={name: value for name, value in names.items() if name not in values},
        values=values,
        fault=CHANGED if fault is not None and fault.code == "stale_generation" else told,
        at=at,
        once=secrets.token_urlsafe(16) if action.shows_key else "",
        back=CONSOLE + fill_address(action.back, **names),
        gate=gate,
    )


def _read_fields(action: Click, texts: Mapping[str, str]) -> dict[str, Any]:
    """The body for the API from a form's fields. Raises Declined."""
    body: dict[str, Any] = {}
    for each in action.fields:
        text = texts.get(each.name, "")
        try:
            if each.inside:
                body.setdefault(each.inside, {})[each.name] = _read(each, text) if text else None
            elif text:
                body[each.name] = _read(each, text)
            elif each.required:
                raise ValueError("It is empty.")
        except ValueError as error:
            raise Declined(400, "invalid_value", str(error), each.name) from None
    return body


def read_generation(text: str) -> int:
    """The generation in a form's field. Raises Declined."""
    if not text.isdecimal() or len(text) > GENERATION_DIGITS_MAX:
        text = f"The generation is not a number: {text[:20]!r}. Open the page again."
        raise Declined(400, "invalid_value", text)
    return int(text)


def _read(field: Field, text: str) -> Any:
    if field.kind in ("number", "percent"):
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError("Write a number.")
        if field.kind == "percent":
            if not 0 < number < 100:
                raise ValueError("Write a number above 0 and below 100.")
            return number / 100
        return int(number) if number == int(number) else number
    if field.kind == "list":
        return [part.strip() for part in text.split(",") if part.strip()]
    if field.kind == "moment":
        return read_moment(text)
    if field.name == "plan":
        return {} if text == "{}" else None
    return text
