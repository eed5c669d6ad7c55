"""The document at /openapi.json: FastAPI's, with the hot endpoints, and with every error of every endpoint.

A route names only its own errors (`errors` of gateway/openapi_parts.py). The common errors are added here: they follow
from its key, its roles, its body and its parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi.routing import APIRoute

from gateway.endpoint_parts import ROLES_OF, caller_of, identified_of
from gateway.errors import ERRORS, FINAL
from gateway.features.reported.reports import Report
from gateway.formats.anthropic_messages import ERROR_TYPES, THREAD_CODE, CountedMessages
from gateway.formats.format_table import FORMATS
from gateway.formats.hot_schemas import make_schemas, operation_of
from gateway.openapi_parts import CHOICE_ERRORS, CODES, JSON_ERRORS, Json

ANYWHERE = ("invalid_http", "unsupported_media_type", "head_too_large", "internal_error", "not_implemented", "overload")
"""Errors of any request, before its endpoint is known."""
KEY_ERRORS = ("invalid_api_key", "role_required")
STATE_ERRORS = ("storage_unavailable",)
UNREADABLE_ERRORS = ("state_conflict",)
"""Errors of an object that a newer release has written, and this one can't read."""
KEYED_WITHOUT_STATE = frozenset({"models", "read_model"})
"""Endpoints that take a key, and answer from memory."""
HOT_ERRORS = (
    *(*ANYWHERE, *KEY_ERRORS, *JSON_ERRORS, *STATE_ERRORS, *CHOICE_ERRORS),
    *("engine_refused", "context_length_exceeded", "content_policy", "caller_busy"),
    *("engine_error", "draining", "timeout", "contract_violation"),
)
NOT_AGAIN = FINAL | {"no_replica", "version_not_loaded", "rate_limit_exceeded"}
"""Errors whose headers may forbid clients to retry."""
RETRY_AFTER: Mapping[str, Any] = {
    "description": "Seconds to wait before the next try.",
    "schema": {"type": "integer", "minimum": 1},
}
SHOULD_RETRY: Mapping[str, Any] = {
    "description": "`false` where trying again is of no use: OpenAI's clients then leave it.",
    "schema": {"type": "string", "const": "false"},
}


def complete_document(document: Json, routes: Iterable[object]) -> Json:
    """FastAPI's document of these routes, completed, with the wire formats."""
    schemas: Json = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Error"] = _error_schema()
    schemas.update(make_schemas(Report, CountedMessages))
    for route in routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods or ():
                _complete(document["paths"][route.path][method.lower()], route)
    for path, wire_format in FORMATS.items():
        document["paths"][path] = {"post": operation_of(wire_format, _error_answers(HOT_ERRORS))}
    key = {"type": "http", "scheme": "bearer", "bearerFormat": "sk-app-<public12>-<secret>"}
    document["components"]["securitySchemes"] = {"key": key}
    return document


def _complete(operation: Json, route: APIRoute) -> None:
    """Add the parts that FastAPI does not know: the roles that may call it, and its errors."""
    called = _dependencies(route)
    roles = next((list(roles) for function, roles in ROLES_OF.items() if function in called), [])
    keyed = bool(roles) or caller_of in called
    answers: Json = operation["responses"]
    codes = [*ANYWHERE]
    for status in [status for status, answer in answers.items() if status == "422" or CODES in answer]:
        codes += answers.pop(status).get(CODES, ())
    if keyed:
        operation["security"] = [{"key": roles}]
        codes += KEY_ERRORS + (UNREADABLE_ERRORS if roles else ())
        codes += ("unknown_parameter",) if roles or identified_of in called else ()
        codes += STATE_ERRORS if route.name not in KEYED_WITHOUT_STATE else ()
    parameters = [each for each in operation.pop("parameters", ()) if each["in"] != "header"]
    if parameters:
        operation["parameters"] = parameters
    if route.body_field is not None:
        codes += JSON_ERRORS
    if any(each["in"] == "query" for each in parameters):
        codes.append("invalid_value")
    for status, answer in _error_answers(codes).items():
        own: Any = answers.setdefault(status, answer)
        if own is not answer:  # the same status has a body of the endpoint's own
            forms = [part["content"]["application/json"]["schema"] for part in (own, answer)]
            own["content"]["application/json"]["schema"] = {"anyOf": forms}


def _dependencies(route: APIRoute) -> list[Any]:
    """All functions that are called before the endpoint."""
    functions: list[Any] = []
    left = list(route.dependant.dependencies)
    while left:
        each = left.pop()
        functions.append(each.call)
        left += each.dependencies
    return functions


def _error_schema() -> Json:
    content = {
        "message": {"type": "string", "description": "What is wrong, and what to do."},
        "type": {"type": "string", "enum": sorted({spec.type for spec in ERRORS.values()} | {*ERROR_TYPES.values()})},
        "param": {"type": ["string", "null"], "description": "The field at fault."},
        "code": {"type": "string", "enum": sorted(ERRORS)},
        "engine_code": {"type": "string", "description": "The engine's own code, where it gave one."},
        "details": {"const": {"error_code": THREAD_CODE}, "description": "Of a `thread`, at /v1/messages alone."},
    }
    error = {
        "type": "object",
        "properties": content,
        "required": ["message", "type", "param", "code"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "description": "The form of every error: that of OpenAI.",
        "properties": {"error": error, "type": {"const": "error", "description": "At /v1/messages alone."}},
        "required": ["error"],
        "additionalProperties": False,
    }


def _error_answers(codes: Iterable[str]) -> Json:
    """The answers with an error, by status, each with the codes that it may have."""
    by_status: dict[int, list[str]] = {}
    for code in sorted(set(codes)):
        by_status.setdefault(ERRORS[code].status, []).append(code)
    return {str(status): _error_answer(status, codes) for status, codes in sorted(by_status.items())}


def _error_answer(status: int, codes: list[str]) -> Json:
    own = {"properties": {"error": {"properties": {"code": {"enum": codes}}}}}
    answer: Json = {
        "description": "\n".join(f"- `{code}`: {ERRORS[code].meaning}" for code in codes),
        "content": {"application/json": {"schema": {"allOf": [{"$ref": "#/components/schemas/Error"}, own]}}},
    }
    headers = {"retry-after": RETRY_AFTER} if status in (429, 503) else {}
    headers |= {"x-should-retry": SHOULD_RETRY} if NOT_AGAIN.intersection(codes) else {}
    return answer | ({"headers": headers} if headers else {})
