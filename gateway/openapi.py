"""The document at /openapi.json: what FastAPI knows of the endpoints, and what it can't know, said by hand.

By hand are the two hot endpoints, whose fields come from gateway/formats/fields.py; every error of every endpoint,
with the codes that it may have; keys and roles; headers; and bodies that are no JSON of a fixed form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
from fastapi.routing import APIRoute
from msgspec import Raw

from gateway.access import ROLES_OF, caller_of
from gateway.errors import ERRORS, FINAL
from gateway.features.reported.reports import REPORTS_MAX, Report
from gateway.formats.fields import BYTES_MAX, ON_REQUEST, StructuredOutputs
from gateway.formats.format_table import FORMATS
from gateway.formats.wire_format import WireFormat
from gateway.server.uploads import FIELDS as FORM_FIELDS
from gateway.server.uploads import FILES, NEEDED, SAMPLES
from serving.adapters.adapter_folder import PROMPTS_FILE
from serving.adapters.pull import FILES as STORE_FILES

Json = dict[str, Any]

ANYWHERE = ("invalid_http", "unsupported_media_type", "head_too_large", "internal_error", "not_implemented", "overload")
"""What any request may be told, before it is known what it is for."""
OF_KEYS = ("invalid_api_key", "role_required")
OF_JSON = ("invalid_json", "invalid_value", "missing_field", "unknown_parameter", "body_too_large")
OF_FORMS = (*OF_JSON[1:], "unsupported_media_type", "adapter_rejected")
OF_DATA = (*OF_JSON, "unsupported_media_type", "parameter_not_allowed")
OF_STATE = ("storage_unavailable",)
OF_SHELVES = ("state_conflict",)
"""Of what a newer release has written, and this one can't read."""
OF_MODELS = ("model_not_allowed", "model_not_found")
OF_RELEASES = ("not_found", "stale_generation", "state_conflict")
OF_CHOICE = (
    *("unsupported_media_type", "parameter_not_allowed", "refused_by_override", "model_not_allowed"),
    *("model_not_found", "needs_human", "no_task_fits", "rate_limit_exceeded", "budget_exceeded"),
    *("no_replica", "version_not_loaded", "fallback_capped"),
)
"""Of deciding where a request goes."""
HOT_ERRORS = (
    *(*ANYWHERE, *OF_KEYS, *OF_JSON, *OF_STATE, *OF_CHOICE),
    *("engine_refused", "context_length_exceeded", "content_policy", "caller_busy"),
    *("engine_error", "draining", "timeout", "contract_violation"),
)
IN_LINE = ("overload", "caller_busy", "draining", "timeout")
"""Of waiting for a place, and of the time that it may take."""
IN_STREAMS = ("stream_broken", "timeout", "draining", "internal_error")
"""What a stream that has begun may end with, as an event."""
OWN: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "read_request": ("request_not_found", "rate_limit_exceeded", "budget_exceeded"),
        "route": (*OF_JSON, *OF_CHOICE, *IN_LINE),
        "report_records": (
            *(*OF_JSON, "unsupported_media_type", "record_conflict", *OF_MODELS, *IN_LINE),
            *("rate_limit_exceeded", "budget_exceeded"),
        ),
        "give_feedback": (
            *("request_not_found", "feedback_conflict", "feedback_window_over", "feedback_full"),
            *("rate_limit_exceeded", "budget_exceeded"),
        ),
        "read_model": ("model_not_found",),
        "next_review": ("no_review", "not_found"),
        "skip_review": ("no_review", "state_conflict"),
        "list_reviews": ("not_found",),
        "delete_reviews": ("not_found",),
        "set_override": ("not_found", "approver_must_differ", "stale_generation", "state_conflict"),
        "try_override": ("not_found",),
        "delete_override": ("not_found", "stale_generation"),
        "make_caller": ("state_conflict",),
        "read_caller": ("not_found",),
        "change_caller": ("not_found", "approver_must_differ", "stale_generation", "state_conflict"),
        "rotate_caller": ("not_found", "approver_must_differ", "stale_generation", "state_conflict"),
        "approve_caller": ("not_found", "approver_must_differ", "stale_generation", "state_conflict"),
        "delete_caller": ("not_found",),
        "read_adapter": ("not_found",),
        "add_adapter": (*OF_RELEASES, *OF_FORMS, "invalid_json", "prompts_rejected"),
        "give_prompts": ("not_found", "state_conflict", *OF_JSON[1:], "unsupported_media_type", "prompts_rejected"),
        "stage_adapter": (*OF_RELEASES, "no_capacity"),
        "unload_adapter": OF_RELEASES,
        "retire_adapter": OF_RELEASES,
        "why": ("not_found",),
        "read_alias": ("not_found",),
        "move_alias": (*OF_RELEASES, "approver_must_differ"),
        "remove_alias": OF_RELEASES,
        "shadow": (*OF_RELEASES, "approver_must_differ"),
        "canary": (*OF_RELEASES, "approver_must_differ"),
        "promote": (*OF_RELEASES, "approver_must_differ"),
        "roll_back": (*OF_RELEASES, "approver_must_differ"),
        "begin_evaluation": ("not_found", "state_conflict", *OF_DATA),
        "read_evaluation": ("not_found",),
        "read_evaluation_rows": ("not_found",),
        "end_evaluation": ("not_found", "state_conflict"),
        "read_health": ("not_found",),
        "pin_version": OF_RELEASES,
        "release_version": OF_RELEASES,
        "undo_action": OF_RELEASES,
        "announce_change": OF_RELEASES,
        "take_change_back": OF_RELEASES,
        "read_baselines": ("not_found",),
        "set_baseline": OF_RELEASES,
        "read_retraining": ("not_found",),
        "read_examples": ("not_found",),
        "ask_retraining": ("not_found",),
        "close_retraining": OF_RELEASES,
        "cordon": ("not_found",),
        "uncordon": ("not_found",),
        "recycle": OF_RELEASES,
        "store_adapter": ("not_found", *OF_FORMS),
        "apply_state": (*OF_RELEASES, "adapter_rejected", "approver_must_differ"),
        "read_store_file": ("not_found", "invalid_value"),
        "reload_configuration": ("configuration_invalid", "restart_required", "state_conflict"),
    }
)
"""What an endpoint may tell of its own, by the name of its function."""

TOO_LONG: Mapping[str, Any] = {"type": "string", "maxLength": 512}
HOT_HEADERS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "x-apprentice-session": ("The conversation that the request belongs to.", TOO_LONG),
        "x-apprentice-subject": ("What the request is about: feedback may name it.", TOO_LONG),
        "x-apprentice-priority": (
            "Whether it may wait behind others.",
            {"type": "string", "enum": ["interactive", "batch"]},
        ),
        "traceparent": ("The W3C trace context, passed on to the engine.", {"type": "string", "maxLength": 512}),
    }
)
ANSWER_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "x-request-id": "Our id of the request.",
        "x-apprentice-task": "The task.",
        "x-apprentice-version": "The version that answers.",
        "x-apprentice-pool": "The pool that answers.",
        "x-apprentice-reason": "The reason.",
        "x-apprentice-attempts": "Attempts at engines, the last one included.",
        "x-apprentice-dropped": "Fields of the request that the answering engine did not get.",
        "x-apprentice-clamped": "Bounds that replaced greater numbers of tokens.",
        "x-apprentice-contract": "`broken` where the answer breaks the task's contract and was sent all the same.",
        "x-apprentice-rejected": "The check that rejected the answer, where it was sent all the same.",
        "x-apprentice-overhead-ms": "Milliseconds until commit that were not spent on waiting for an engine.",
        "x-apprentice-cost-usd": "The cost, of answers that are not streamed.",
        "traceparent": "The trace context that the engine got.",
    }
)
EVENTS = (
    "Events as OpenAI's API has them, ended by `data: [DONE]`. A stream that fails ends with `data: ` and an error "
    f"instead, whose code is one of {', '.join(IN_STREAMS)}."
)
AGAIN: Mapping[str, Any] = {
    "description": "Seconds to wait before the next try.",
    "schema": {"type": "integer", "minimum": 1},
}
FINALLY: Mapping[str, Any] = {
    "description": "`false` where trying again is of no use: OpenAI's clients then leave it.",
    "schema": {"type": "string", "const": "false"},
}
TEXT: Mapping[str, Any] = {"schema": {"type": "string"}}
OBJECT: Mapping[str, Any] = {"schema": {"type": "object"}}
BYTES: Mapping[str, Any] = {"type": "string", "format": "binary"}


def described(document: Json, routes: Iterable[object]) -> Json:
    """FastAPI's document of these routes, with all that it can't know, the wire formats too."""
    schemas: Json = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Error"] = _error_schema()
    for route in routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods or ():
                _complete(document["paths"][route.path][method.lower()], route)
    fields = _fields(schemas)
    for path, wire_format in FORMATS.items():
        document["paths"][path] = {"post": _hot(wire_format, fields, schemas)}
    key = {"type": "http", "scheme": "bearer", "bearerFormat": "sk-app-<public12>-<secret>"}
    document["components"]["securitySchemes"] = {"key": key}
    return document


def _complete(operation: Json, route: APIRoute) -> None:
    """What FastAPI leaves open of one operation: who may use it, its errors, and the form of what it answers."""
    called = _called(route)
    roles = next((list(roles) for function, roles in ROLES_OF.items() if function in called), [])
    keyed = bool(roles) or caller_of in called
    codes = [*ANYWHERE, *OWN.get(route.name, ())]
    if keyed:
        operation["security"] = [{"key": roles}]
        codes += OF_KEYS + ((*OF_SHELVES, "unknown_parameter") if roles else ())
        codes += OF_STATE if route.name not in ("models", "read_model") else ()
    parameters = [each for each in operation.get("parameters", ()) if each["in"] != "header"]
    operation.pop("parameters", None)
    if parameters:
        operation["parameters"] = parameters
    if "requestBody" in operation:
        codes += OF_JSON
    if any(each["in"] == "query" for each in parameters):
        codes.append("invalid_value")
    operation["responses"].pop("422", None)
    OF_OTHER_FORM.get(route.name, lambda _: None)(operation)
    for status, answer in _error_answers(codes).items():
        told = operation["responses"].setdefault(status, answer)
        if told is not answer:  # the same status has a body of the endpoint's own
            forms = [part["content"]["application/json"]["schema"] for part in (told, answer)]
            told["content"]["application/json"]["schema"] = {"anyOf": forms}


def _called(route: APIRoute) -> list[Any]:
    """All that is called before the endpoint, for what it depends on."""
    found: list[Any] = []
    left = list(route.dependant.dependencies)
    while left:
        each = left.pop()
        found.append(each.call)
        left += each.dependencies
    return found


def _error_schema() -> Json:
    content = {
        "message": {"type": "string", "description": "What is wrong, and what to do."},
        "type": {"type": "string", "enum": sorted({spec.type for spec in ERRORS.values()})},
        "param": {"type": ["string", "null"], "description": "The field at fault."},
        "code": {"type": "string", "enum": sorted(ERRORS)},
        "engine_code": {"type": "string", "description": "The engine's own code, where it gave one."},
    }
    error = {
        "type": "object",
        "properties": content,
        "required": ["message", "type", "param", "code"],
        "additionalProperties": False,
    }
    description = "What every error is told as, in OpenAI's form."
    return {
        "type": "object",
        "description": description,
        "properties": {"error": error},
        "required": ["error"],
        "additionalProperties": False,
    }


def _error_answers(codes: Iterable[str]) -> Json:
    """The answers with an error, by status, each with the codes that it may have."""
    by_status: dict[int, list[str]] = {}
    for code in sorted(set(codes)):
        by_status.setdefault(ERRORS[code].status, []).append(code)
    return {str(status): _error_answer(found) for status, found in sorted(by_status.items())}


def _error_answer(codes: list[str]) -> Json:
    described = "\n".join(f"- `{code}`: {ERRORS[code].meaning}" for code in codes)
    known = {"properties": {"error": {"properties": {"code": {"enum": codes}}}}}
    answer: Json = {
        "description": described,
        "content": {"application/json": {"schema": {"allOf": [{"$ref": "#/components/schemas/Error"}, known]}}},
    }
    headers = {}
    if ERRORS[codes[0]].status in (429, 503):
        headers["retry-after"] = AGAIN
    at_times = {"no_replica", "version_not_loaded", "rate_limit_exceeded"}
    if FINAL.intersection(codes) or at_times.intersection(codes):
        headers["x-should-retry"] = FINALLY
    if headers:
        answer["headers"] = headers
    return answer


# ---- the hot endpoints ----------------------------------------------------------------------------


def _hot(wire_format: WireFormat, fields: Json, schemas: Json) -> Json:
    title = wire_format.title
    name = wire_format.schema_name
    schemas[f"{name}Request"] = _body_schema(wire_format, fields)
    schemas[name] = wire_format.answer_schema()
    headers = {name: {"description": told, "schema": {"type": "string"}} for name, told in ANSWER_HEADERS.items()}
    content = {
        "application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}},
        "text/event-stream": {"schema": {"type": "string", "description": EVENTS}},
    }
    body = {"schema": {"$ref": f"#/components/schemas/{name}Request"}}
    return {
        "tags": ["callers"],
        "summary": title,
        "description": f"{title}, streamed or not, by a task's adapter or a general model.",
        "operationId": title.lower().replace(" ", "_"),
        "security": [{"key": []}],
        "parameters": [
            {"name": header, "in": "header", "required": False, "description": told, "schema": schema}
            for header, (told, schema) in HOT_HEADERS.items()
        ],
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {
            "200": {"description": "The answer, or its events.", "headers": headers, "content": content},
            **_error_answers(HOT_ERRORS),
        },
    }


def _fields(schemas: Json) -> Json:
    """The schema of each field of a body, from the code's own table; what they refer to goes into `schemas`."""
    types = {
        field.encode_name: field.type
        for wire_format in FORMATS.values()
        for field in msgspec.structs.fields(wire_format.fields)
    }
    types["structured_outputs"] = _without_raw() | None
    asked = (*types.values(), Report)
    found, referred = msgspec.json.schema_components(asked, ref_template="#/components/schemas/{name}")
    schemas.update(referred)
    return dict(zip(types, found, strict=False))


def _without_raw() -> Any:
    """StructuredOutputs, but with any JSON where the gateway reads none."""
    fields: list[Any] = [
        (field.name, Any if field.type is Raw else field.type, None)
        for field in msgspec.structs.fields(StructuredOutputs)
    ]
    made = msgspec.defstruct("StructuredOutputs", fields, forbid_unknown_fields=True)
    made.__doc__ = StructuredOutputs.__doc__
    return made


def _body_schema(wire_format: WireFormat, fields: Json) -> Json:
    """The body of a hot endpoint. What a task has to allow is there too; its bounds may be narrower."""
    required = wire_format.required
    found = {name: dict(fields.get(name, {})) for name in sorted(wire_format.known | ON_REQUEST)}
    for name in found.keys() & BYTES_MAX.keys():
        found[name]["description"] = f"At most {BYTES_MAX[name]:,} bytes of JSON."
    for name in found.keys() & ON_REQUEST:
        found[name]["description"] = "Refused unless `parameters_allowed` of the task, or of the pool, names it."
    null = {"type": "null"}
    forms = [form for form in fields[required]["anyOf"] if form != null]
    found[required] = forms[0] if len(forms) == 1 else {"anyOf": forms}
    return {"type": "object", "properties": found, "required": ["model", required], "additionalProperties": null}


# ---- what is no JSON of a fixed form ---------------------------------------------------------------


def _as_json(operation: Json) -> None:
    operation["responses"]["200"]["content"] = {"application/json": OBJECT}


def _as_route(operation: Json) -> None:
    """The body is that of a hot endpoint: with messages or with a prompt."""
    bodies = [{"$ref": f"#/components/schemas/{each.schema_name}Request"} for each in FORMATS.values()]
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": {"anyOf": bodies}}}}
    operation["responses"]["200"]["content"] = {"application/json": OBJECT}


def _as_reported(operation: Json) -> None:
    one = {"$ref": "#/components/schemas/Report"}
    several = {"type": "array", "items": one, "minItems": 1, "maxItems": REPORTS_MAX}
    batch: Json = {"type": "object", "properties": {"records": several}, "required": ["records"]}
    batch["additionalProperties"] = False
    schema = {"anyOf": [one, batch]}
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    _as_judged(operation)


def _as_judged(operation: Json) -> None:
    operation["responses"]["200"] = {
        "description": "The same was given before; or the results of a batch.",
        "content": {"application/json": OBJECT},
    }
    operation["responses"]["201"] = {"description": "Stored.", "content": {"application/json": OBJECT}}


def _as_ready(operation: Json) -> None:
    operation["responses"]["200"]["content"] = {"application/json": OBJECT}
    states = {"status": {"type": "string", "enum": ["draining", "no_replica"]}}
    not_ready = {"type": "object", "properties": states, "required": ["status"]}
    operation["responses"]["503"] = {
        "description": "Not ready: it drains, or no replica is up.",
        "content": {"application/json": {"schema": not_ready}},
    }


def _as_metrics(operation: Json) -> None:
    content = {"text/plain": TEXT, "application/openmetrics-text": TEXT}
    operation["responses"]["200"]["content"] = content


def _as_file(operation: Json) -> None:
    operation["responses"]["200"] = {
        "description": "The bytes.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
    for each in operation["parameters"]:
        if each["name"] == "file":
            each["schema"]["enum"] = list(STORE_FILES)


def _or_later(operation: Json) -> None:
    """It may be answered before it is done."""
    operation["responses"]["202"] = {
        "description": "Not done within the wait: it goes on.",
        "content": {"application/json": OBJECT},
    }


def _as_data(operation: Json) -> None:
    """The body is a data set, and what is there already is told with 200."""
    content = {"application/x-ndjson": TEXT}
    operation["requestBody"] = {"required": True, "description": "JSON lines.", "content": content}
    told = operation["responses"]["201"]["content"]
    operation["responses"]["200"] = {"description": "It was there already, or goes on.", "content": told}


def _as_lines(operation: Json) -> None:
    operation["responses"]["200"] = {"description": "JSON lines.", "content": {"application/x-ndjson": TEXT}}


def _as_form(operation: Json) -> None:
    operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _form()}}}


def _as_form_or_json(operation: Json) -> None:
    _as_form(operation)
    files = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    files |= dict.fromkeys(SAMPLES, BYTES)
    path = {"pattern": "^/", "maxLength": 4096}
    fields = {
        "task": {"type": "string", "maxLength": 63},
        "path": {"type": "string", **path},
        "pool": {"type": ["string", "null"], "maxLength": 63},
        "prompts": {"type": ["string", "null"], **path},
        "background": {"type": ["string", "null"], **path},
    }
    folder = {"type": "object", "properties": fields, "required": ["task", "path"], "additionalProperties": False}
    operation["requestBody"]["content"]["application/json"] = {"schema": folder}


def _as_samples(operation: Json) -> None:
    schema = {
        "type": "object",
        "properties": dict.fromkeys(SAMPLES, BYTES),
        "required": [PROMPTS_FILE],
        "additionalProperties": False,
    }
    operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _form() -> Json:
    def part(most: int | None) -> Iterator[tuple[str, Any]]:
        yield "type", "string"
        yield "format", "binary"
        if most is not None:
            yield "description", f"At most {most:,} bytes."

    fields: Json = {name: {"type": "string", "maxLength": most} for name, most in FORM_FIELDS.items()}
    files = {name: dict(part(most)) for name, most in FILES.items()}
    return {"type": "object", "properties": fields | files, "required": list(NEEDED), "additionalProperties": False}


OF_OTHER_FORM = MappingProxyType(
    {
        "ready": _as_ready,
        "health": _as_ready,
        "metrics": _as_metrics,
        "read_request": _as_json,
        "next_review": _as_json,
        "route": _as_route,
        "give_feedback": _as_judged,
        "report_records": _as_reported,
        "add_adapter": _as_form_or_json,
        "give_prompts": _as_samples,
        "store_adapter": _as_form,
        "stage_adapter": _or_later,
        "unload_adapter": _or_later,
        "retire_adapter": _or_later,
        "apply_state": _or_later,
        "read_store_file": _as_file,
        "begin_evaluation": _as_data,
        "read_examples": _as_lines,
    }
)
