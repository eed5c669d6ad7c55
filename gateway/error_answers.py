"""The error shape of all endpoints: the translation of exceptions into answers."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException

from gateway.endpoint_parts import authorization_of, caller_of, services_of
from gateway.errors import Problem, describe_fault
from gateway.formats.format_table import get_format
from gateway.formats.surrogates import HALF
from gateway.server.foreign_paths import explain_path
from gateway.services import FEEDBACK_PATH
from monitoring.audit import AuditConflict
from serving.object_store import Unreadable

log = logging.getLogger(__name__)


def add_error_answers(app: FastAPI) -> None:
    """Put the error shape of all endpoints into the application."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _refused)
    app.add_exception_handler(UnicodeEncodeError, _half_a_character)
    app.add_exception_handler(RedisError, _no_redis)
    app.add_exception_handler(AuditConflict, _no_entry)
    app.add_exception_handler(Unreadable, _unreadable)
    app.add_exception_handler(Exception, _fault)


def _answer(request: Request, problem: Problem) -> Response:
    services = services_of(request)
    services.meters.refusals.add(1, problem.code)
    client, server = request.scope.get("client"), request.scope.get("server")
    services.accesses.refused(problem, client, server, request.url.path, authorization_of(request))
    headers = {name.decode(): value.decode() for name, value in problem.headers()}
    body = get_format(request.url.path.encode()).error_body(problem)
    return Response(body, problem.status, headers)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _answer(request, error)


async def _refused(request: Request, error: Exception) -> Response:
    cause = error.__cause__  # set if the body can't be read to its end
    problem = cause if isinstance(cause, Problem) else _refusal_of(request, error)
    if (request.method, request.url.path) == ("POST", FEEDBACK_PATH):
        problem = await _charged(request, problem)
    return _answer(request, problem)


async def _charged(request: Request, refusal: Problem) -> Problem:
    """The refusal of a body, which counts as one request in the key's limits; or the limits' own refusal."""
    try:
        caller = await caller_of(request)
        async with services_of(request).limits.spending(caller):
            raise refusal
    except Problem as problem:
        return problem


def _refusal_of(request: Request, error: Exception) -> Problem:
    """The framework's refusal, in our words."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return Problem("invalid_json", "The body is not valid JSON.")
        return describe_fault(first, first["loc"][1:])
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        problem = Problem("method_not_allowed", "This address does not take this method.")
        problem.extra_headers += [(b"allow", value.encode()) for value in [(error.headers or {}).get("Allow")] if value]
        return problem
    if error.status_code == 413:
        limit = services_of(request).body_bytes_max_at(request.url.path)
        return Problem("body_too_large", f"The body is longer than {limit} bytes.")
    if error.status_code == 400:
        return Problem("invalid_json", "The body is not JSON in UTF-8, or is nested too deeply.")
    return Problem("not_found", explain_path(request.url.path))


async def _half_a_character(request: Request, _: Exception) -> Response:
    return _answer(request, Problem("invalid_value", HALF))


async def _no_redis(request: Request, _: Exception) -> Response:
    text = "Redis can't be used: what was sent may not be stored. Try again later."
    if request.method in ("GET", "HEAD") or request.url.path.endswith("/dry-run"):
        text = "Redis can't be used, so this can't be read now. Requests go on by what was read last."
    return _answer(request, Problem("storage_unavailable", text))


async def _no_entry(request: Request, error: Exception) -> Response:
    log.error("%s", error, extra={"path": request.url.path})
    text = f"{error} The change itself may have been made: look before you send it again."
    return _answer(request, Problem("storage_unavailable", text))


async def _unreadable(request: Request, error: Exception) -> Response:
    return _answer(request, Problem("state_conflict", str(error)))


async def _fault(request: Request, error: Exception) -> Response:
    request_id = services_of(request).ids.make("")
    log.error("a request failed", exc_info=error, extra={"request_id": request_id, "path": request.url.path})
    response = _answer(request, Problem("internal_error", "A fault of the gateway. It is logged with this id."))
    response.headers["x-request-id"] = request_id
    return response
