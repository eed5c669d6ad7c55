"""Parts of an endpoint's entry in /openapi.json that its route hands to FastAPI: `responses` and `openapi_extra`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.errors import ERRORS

Json = dict[str, Any]
Responses = dict[int | str, Json]
CODES = "x-codes"
"""The key of an answer that holds its error codes, until openapi.py writes the answer."""

JSON_ERRORS = ("invalid_json", "invalid_value", "missing_field", "unknown_parameter", "body_too_large", "body_too_slow")
FORM_ERRORS = (*JSON_ERRORS[1:], "unsupported_media_type", "adapter_rejected")
DATA_ERRORS = (*JSON_ERRORS, "unsupported_media_type", "parameter_not_allowed")
MODEL_ERRORS = ("model_not_allowed", "model_not_found")
CHANGE_ERRORS = ("not_found", "stale_generation", "state_conflict")
SPENT_ERRORS = ("rate_limit_exceeded", "budget_exceeded")
WAIT_ERRORS = ("overload", "caller_busy", "draining", "timeout")
"""Errors of waiting for a place, and of the time that it may take."""
CHOICE_ERRORS = (
    *("unsupported_media_type", "parameter_not_allowed", "refused_by_override", *MODEL_ERRORS, *SPENT_ERRORS),
    *("needs_human", "no_task_fits", "no_replica", "version_not_loaded", "fallback_capped"),
)
"""Errors of the routing decision."""

OBJECT: Mapping[str, Any] = {"schema": {"type": "object"}}
TEXT: Mapping[str, Any] = {"schema": {"type": "string"}}
BYTES: Mapping[str, Any] = {"type": "string", "format": "binary"}
LINES: Mapping[str, Any] = {"application/x-ndjson": TEXT}


def with_errors(*codes: str) -> Responses:
    """The errors of an endpoint's own. openapi.py adds those that any endpoint may have."""
    responses: Responses = {}
    for code in codes:
        responses.setdefault(ERRORS[code].status, {CODES: []})[CODES].append(code)
    return responses


def with_answer(status: int, description: str, content: Mapping[str, Any] | None = None) -> Responses:
    """An answer with its description, and its content by media type. Without: a JSON object."""
    return {status: {"description": description, "content": content or {"application/json": OBJECT}}}


def as_form(fields: Mapping[str, Any], required: Sequence[str]) -> Mapping[str, Any]:
    """The content of a body that is a form."""
    schema = {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}
    return {"multipart/form-data": {"schema": schema}}


def with_body(content: Mapping[str, Any], **more: str) -> Json:
    """A required body with its content by media type, for `openapi_extra`."""
    return {"requestBody": {"required": True, "content": content, **more}}


OK: Responses = with_answer(200, "Successful Response")
ACCEPTED: Responses = with_answer(202, "Not done within the wait: it goes on.")
STORED: Responses = with_answer(200, "The same was given before; or the results of a batch.") | with_answer(
    201, "Stored."
)
