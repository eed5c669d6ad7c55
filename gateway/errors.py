"""Errors for callers: OpenAI's shape, from one table (docs/reference/errors.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec


class SettingsFault(NamedTuple):
    """A fault of a configuration: its message and key, and its place in the file, or its environment variable."""

    message: str
    key: str | None = None
    file: str | None = None
    line: int | None = None
    column: int | None = None
    variable: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line is not None else None
        return ": ".join(filter(None, (self.variable or place, self.key, self.message)))


class SettingsError(Exception):
    """The configuration can't be used. The message names every faulty key; `faults` lists the faults one by one."""

    def __init__(self, text: str, faults: Iterable[SettingsFault] = ()) -> None:
        super().__init__(text)
        self.faults = tuple(faults) or (SettingsFault(text),)


class StateError(Exception):
    """State can't be stored. The message says why, and what to do."""


class ErrorSpec(NamedTuple):
    """An error code's HTTP status, its OpenAI error type, and when a caller gets it."""

    status: int
    type: str
    meaning: str


ERRORS: Mapping[str, ErrorSpec] = {
    "invalid_http": ErrorSpec(400, "invalid_request_error", "The bytes are not an HTTP request."),
    "invalid_json": ErrorSpec(400, "invalid_request_error", "The body is not JSON in UTF-8."),
    "invalid_value": ErrorSpec(400, "invalid_request_error", "A field has a wrong type or is out of its bounds."),
    "missing_field": ErrorSpec(400, "invalid_request_error", "A required field is missing."),
    "unknown_parameter": ErrorSpec(400, "invalid_request_error", "The gateway does not know this field."),
    "parameter_not_allowed": ErrorSpec(
        400, "invalid_request_error", "The task, or the pool's engine, does not take this field."
    ),
    "engine_refused": ErrorSpec(400, "invalid_request_error", "The engine refused the request as invalid."),
    "context_length_exceeded": ErrorSpec(400, "invalid_request_error", "The prompt is too long for the model."),
    "content_policy": ErrorSpec(400, "invalid_request_error", "The engine's content policy refused the request."),
    "refused_by_override": ErrorSpec(400, "invalid_request_error", "An admin's rule refuses this request."),
    "invalid_api_key": ErrorSpec(401, "authentication_error", "The API key is missing, malformed, unknown or expired."),
    "model_not_allowed": ErrorSpec(403, "permission_error", "The key may not use this model."),
    "role_required": ErrorSpec(403, "permission_error", "The key's role does not allow this endpoint."),
    "approver_must_differ": ErrorSpec(
        403, "permission_error", "Another person must release the version, or approve the admin key."
    ),
    "model_not_found": ErrorSpec(404, "not_found_error", "No task, version or pool has this name."),
    "request_not_found": ErrorSpec(404, "not_found_error", "The key sees no request with this id."),
    "no_review": ErrorSpec(404, "not_found_error", "No request waits for this reviewer to judge it."),
    "not_found": ErrorSpec(404, "not_found_error", "No such address or object."),
    "method_not_allowed": ErrorSpec(405, "invalid_request_error", "The address does not take this method."),
    "body_too_slow": ErrorSpec(408, "invalid_request_error", "The body did not come in time."),
    "feedback_conflict": ErrorSpec(409, "conflict_error", "The request has another judgement of this feedback id."),
    "record_conflict": ErrorSpec(409, "conflict_error", "The source_id was used for another report."),
    "stale_generation": ErrorSpec(409, "conflict_error", "The object has changed since it was read."),
    "state_conflict": ErrorSpec(409, "conflict_error", "The object's state does not allow this step."),
    "gate_not_passed": ErrorSpec(409, "conflict_error", "No evaluation shows the version to be no worse."),
    "no_capacity": ErrorSpec(409, "conflict_error", "The engines have no room for another adapter."),
    "restart_required": ErrorSpec(409, "conflict_error", "The new configuration needs a restart."),
    "feedback_window_over": ErrorSpec(410, "gone_error", "The request is too old to be judged."),
    "body_too_large": ErrorSpec(413, "invalid_request_error", "The body is longer than the gateway's limit."),
    "unsupported_media_type": ErrorSpec(415, "invalid_request_error", "The body is not declared as JSON."),
    "adapter_rejected": ErrorSpec(422, "invalid_request_error", "The adapter failed verification."),
    "prompts_rejected": ErrorSpec(422, "invalid_request_error", "The training prompts are not usable."),
    "needs_human": ErrorSpec(422, "invalid_request_error", "The task leaves this request to a person."),
    "no_task_fits": ErrorSpec(422, "invalid_request_error", "The request for `auto` is in no task's scope."),
    "configuration_invalid": ErrorSpec(422, "invalid_request_error", "The configuration can't be used."),
    "feedback_full": ErrorSpec(429, "rate_limit_error", "The request has too much feedback."),
    "caller_busy": ErrorSpec(429, "rate_limit_error", "The key has too many waiting requests."),
    "rate_limit_exceeded": ErrorSpec(
        429, "rate_limit_error", "The key's limit of this minute, or of feedback on this day, is reached."
    ),
    "budget_exceeded": ErrorSpec(429, "insufficient_quota", "The key's money of this day or month is spent."),
    "head_too_large": ErrorSpec(431, "invalid_request_error", "The request's headers are too many or too long."),
    "not_implemented": ErrorSpec(501, "invalid_request_error", "The transfer coding is not `chunked`."),
    "internal_error": ErrorSpec(500, "api_error", "A fault of the gateway, logged with the request's id."),
    "engine_error": ErrorSpec(502, "api_error", "Every attempt at an engine failed."),
    "contract_violation": ErrorSpec(
        502, "api_error", "The answer breaks the task's contract, and so does the fallback's."
    ),
    "stream_broken": ErrorSpec(502, "api_error", "The engine failed inside a stream."),
    "overload": ErrorSpec(503, "overloaded_error", "The gateway or every replica is full."),
    "no_replica": ErrorSpec(503, "overloaded_error", "No replica can answer now."),
    "version_not_loaded": ErrorSpec(503, "overloaded_error", "No replica has the pinned version loaded."),
    "fallback_capped": ErrorSpec(503, "overloaded_error", "The task's fallback is capped."),
    "storage_unavailable": ErrorSpec(
        503,
        "overloaded_error",
        "Redis is away, or did not store it durably in time: it may be lost. Or the archive's bucket can't be used.",
    ),
    "draining": ErrorSpec(503, "overloaded_error", "The gateway is shutting down."),
    "timeout": ErrorSpec(504, "api_error", "No engine answered within the request's time limit."),
}

FINAL = frozenset(
    {code for code, spec in ERRORS.items() if spec.status == 409}
    | {"feedback_full", "budget_exceeded", "fallback_capped", "needs_human", "no_task_fits"}
    | {"engine_error", "timeout", "not_implemented"}
)
"""Codes after which a retry is useless: it would fail again, or the gateway has made all attempts at engines.
OpenAI's clients retry twice after a 409, a 429 or a 5xx, unless a header forbids it."""


CAPPED_SECONDS = 60.0
"""Seconds to wait at a capped fallback: a share's cap opens as its window moves, a money cap at midnight."""


WAIT_SECONDS_MAX = 60.0
"""Longest Retry-After that OpenAI's clients obey. They ignore a longer one, and retry at once."""


class Problem(Exception):
    """An error that a caller gets unchanged. `code` is a key of ERRORS; `param` names the faulty field."""

    def __init__(
        self, code: str, message: str, param: str | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.spec = ERRORS[code]
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.engine_code: str | None = None
        """The engine's own code of an error that it gave; None where it gave none."""
        self.extra_headers: list[tuple[bytes, bytes]] = []
        """Headers of this problem alone."""
        self.final = code in FINAL or (retry_after_seconds or 0.0) > WAIT_SECONDS_MAX
        """True if clients that try again by themselves are told not to."""
        if retry_after_seconds is None and self.spec.status == 503:
            self.retry_after_seconds = CAPPED_SECONDS if code == "fallback_capped" else 1.0

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.spec.status

    def body(self) -> bytes:
        """The OpenAI-shaped error object, as JSON."""
        return msgspec.json.encode({"error": self.content()})

    def content(self) -> dict[str, Any]:
        """The error object's fields."""
        error = {"message": self.message, "type": self.spec.type, "param": self.param, "code": self.code}
        return error if self.engine_code is None else error | {"engine_code": self.engine_code}

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that go with the error."""
        headers = [(b"content-type", b"application/json"), *self.extra_headers]
        if self.retry_after_seconds is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(self.retry_after_seconds))))
        if self.final:
            headers.append((b"x-should-retry", b"false"))
        return headers


def describe_fault(fault: Mapping[str, Any], place: Sequence[Any]) -> Problem:
    """The error for a fault that pydantic found at a place in a body."""
    named = [str(part) for part in place if part not in ("FeedbackIn", "FeedbackBatch")]
    code = {"missing": "missing_field", "extra_forbidden": "unknown_parameter"}.get(fault["type"], "invalid_value")
    param = ".".join(named) or None
    words = fault["msg"].removeprefix("Value error, ").rstrip(".")
    if param is None and fault["type"] == "model_attributes_type":
        return Problem(code, "The body is not a JSON object. Send one as `Content-Type: application/json`.")
    whole = param is None and fault["type"] == "value_error"  # a check of ours, which names its field itself
    return Problem(code, f"{words}." if whole else f"{param or 'body'}: {words}.", param)
