"""The table URL → function for callers, beside the two hot endpoints; and the gateway's error shape for all of them."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
    WithJsonSchema,
)
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException

from gateway.callers import Caller, identify
from gateway.configuration.settings import FeedbackMetricSettings
from gateway.errors import Problem
from gateway.features.requests.explanation import explain, shown
from gateway.features.reviews.job import note_answered, task_of_review
from gateway.server.foreign_paths import words_for
from gateway.services import Services
from gateway.state.durability import NotSettled, not_settled
from monitoring.evaluation.forms import said_by
from monitoring.feedback import Feedback, Receipt, handle_of
from monitoring.ids import bare, made_at
from monitoring.records import Record
from serving.object_store import Unreadable

log = logging.getLogger(__name__)
YOUNG_SECONDS = 60.0
RECORD_WAIT_SECONDS = 1.0
FEEDBACK_BATCH_MAX = 1000
DEMONSTRATION_BYTES_MAX = 65_536
FLOAT_MAX = 10**300
FEEDBACK_PATH = "/v1/feedback"

router = APIRouter()


def services_of(request: Request) -> Services:
    """The Services of the application that serves this request."""
    services: Services = request.app.state.services
    return services


def caller_of(
    request: Request,
    authorization: Annotated[str | None, Header(description="`Bearer sk-app-…`")] = None,
) -> Caller:
    """Who is calling. Raises Problem (401)."""
    return identify(services_of(request).snapshot.current.callers, authorization, time.time())


Identified = Annotated[Caller, Depends(caller_of)]


def _a_value(value: Any) -> Any:
    """Raises ValueError for what no metric takes, in one sentence."""
    if not isinstance(value, (bool, int, float, str)):
        raise ValueError("it is true or false, a number or a text, as its metric declares")
    return value


def _so_many(entries: list[Any]) -> list[Any]:
    """Raises ValueError for a batch that holds nothing, or too much."""
    if not 1 <= len(entries) <= FEEDBACK_BATCH_MAX:
        raise ValueError(f"it holds 1 to {FEEDBACK_BATCH_MAX} entries")
    return entries


def _form_of(body: Any) -> str:
    """Whether a body is one judgement or several: what is wrong with it is said of that form."""
    return "FeedbackBatch" if isinstance(body, dict) and "feedback" in body else "FeedbackIn"


Value = Annotated[StrictBool | StrictInt | StrictFloat | StrictStr, BeforeValidator(_a_value)]


class FeedbackIn(BaseModel):
    """One judgement, of a request, of the latest request of a session, or of the latest one about a subject."""

    model_config = ConfigDict(extra="forbid")

    request_id: str | None = Field(None, max_length=200, description="Our id, or the `id` in the answer's body.")
    session: str | None = Field(None, min_length=1, max_length=512, description="As in `x-apprentice-session`.")
    subject: str | None = Field(None, min_length=1, max_length=512, description="As in `x-apprentice-subject`.")
    metric: str = Field(max_length=64, description="A declared metric, such as `correct`.")
    value: Value = Field(description="As its metric declares.")
    rater: str | None = Field(None, max_length=200, description="Who judges, if not the caller itself.")
    feedback_id: str | None = Field(None, min_length=1, max_length=200, description="Makes a second sending harmless.")
    comment: str | None = Field(None, max_length=4000, description="Why, in words.")
    demonstration: Any = Field(None, description="What the answer should have been.")
    tags: dict[str, str] | None = Field(None, max_length=32, description="Texts of your own, by name.")


class FeedbackBatch(BaseModel):
    """Several judgements; each gets its own result."""

    model_config = ConfigDict(extra="forbid")

    feedback: Annotated[
        list[Any],
        AfterValidator(_so_many),
        WithJsonSchema(
            {
                "type": "array",
                "items": {"$ref": "#/components/schemas/FeedbackIn"},
                "minItems": 1,
                "maxItems": FEEDBACK_BATCH_MAX,
            }
        ),
    ]


OneOrSeveral = Annotated[
    Annotated[FeedbackIn, Tag("FeedbackIn")] | Annotated[FeedbackBatch, Tag("FeedbackBatch")], Discriminator(_form_of)
]


@router.get("/health/live", tags=["probes"])
async def live() -> dict[str, str]:
    """The process runs."""
    return {"status": "live"}


@router.get("/health/ready", tags=["probes"])
async def ready(request: Request) -> Response:
    """Readiness: 503 while it drains, or no replica is up."""
    services = services_of(request)
    replicas = {replica.name: replica.up for replica in services.fleet.replicas.values()}
    status = "draining" if services.admission.leaving else "ready" if any(replicas.values()) else "no_replica"
    told = {"status": status, "replicas": replicas, "state_durable": services.durability.kept.durable}
    return JSONResponse(told, 200 if status == "ready" else 503)


@router.get("/health", tags=["probes"])
async def health(request: Request) -> Response:
    """As `/health/ready`, at the address that vLLM has."""
    return await ready(request)


@router.get("/metrics", tags=["probes"])
async def metrics(request: Request, accept: Annotated[str, Header()] = "") -> Response:
    """All metrics, for Prometheus."""
    body, content_type = services_of(request).meters.exposition(accept)
    return Response(body, headers={"content-type": content_type})


@router.get("/v1/usage", tags=["callers"])
async def read_usage(request: Request, caller: Identified) -> dict[str, Any]:
    """The key's own limits, and what is spent of them."""
    return {"public": caller.public, "name": caller.name, "usage": await services_of(request).limits.usage(caller)}


@router.get("/v1/requests/{request_id}", tags=["callers"])
async def read_request(request: Request, request_id: str, caller: Identified) -> Response:
    """A request's record, explanation and feedback. Scores, thresholds and neighbours of checks are for operators
    and admins only. It counts as a request against the key's limits.
    """
    services = services_of(request)
    async with services.limits.spending(caller) as headers:
        record = await find_record(services, await _resolve(services, caller, request_id), caller)
        feedback = await services.feedback.of(record.id)
    in_full = caller.judges == "*"
    told = record if in_full else shown(record)
    body = {"record": told, "explanation": explain(record, in_full), "feedback": feedback}
    return Response(msgspec.json.encode(body), headers=headers, media_type="application/json")


@router.post(FEEDBACK_PATH, tags=["callers"])
async def give_feedback(request: Request, caller: Identified, body: OneOrSeveral) -> Response:
    """Store one judgement or several. 201 created, 200 the same again; for a batch 200 and a result for each. Each
    judgement counts as a request against the key's limits; a refused body counts as one request.
    """
    services = services_of(request)
    entries, size = 1 if isinstance(body, FeedbackIn) else len(body.feedback), len(await request.body())
    async with services.limits.spending(caller, entries, size) as headers:
        if isinstance(body, FeedbackIn):
            result, status = await _given_one(services, caller, body)
        else:
            result, status = {"results": await _given_several(services, caller, body)}, 200
    return JSONResponse(result, status, headers)


async def _given_one(services: Services, caller: Caller, body: FeedbackIn) -> tuple[dict[str, Any], int]:
    mark = services.durability.mark()
    status, result = await _give(services, caller, body)
    try:
        await services.durability.settle(mark)
    except NotSettled as error:
        raise not_settled(error, f" Its feedback_id is {result['feedback_id']!r}.") from error
    return result, status


async def _given_several(services: Services, caller: Caller, body: FeedbackBatch) -> list[dict[str, Any]]:
    mark = services.durability.mark()
    results: list[dict[str, Any]] = []
    for one in body.feedback:
        try:
            status, result = await _give(services, caller, _one_of_batch(one))
            results.append({"status": status, **result})
        except Problem as problem:
            results.append({"status": problem.status, "error": problem.content()})
    try:
        await services.durability.settle(mark)
    except NotSettled as error:
        lost = not_settled(error)
        services.meters.refusals.add(1, lost.code)
        refused = {"status": lost.status, "error": lost.content()}
        results = [one if "error" in one else {**one, **refused} for one in results]
    return results


def _one_of_batch(raw: Any) -> FeedbackIn:
    """One judgement of several: what is wrong with it is its own result. Raises Problem (400)."""
    try:
        return FeedbackIn.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise _fault_of(first, first["loc"]) from None


async def find_record(services: Services, request_id: str, caller: Caller) -> Record:
    """A record that this caller may read; one that was just made is waited for. Raises Problem (404, 503)."""
    until = time.monotonic() + RECORD_WAIT_SECONDS
    young_seconds = YOUNG_SECONDS + services.settings.limits.request_timeout_seconds + services.flow.oldest_seconds()
    young = services.ids.genuine(request_id, caller.judges) and time.time() - made_at(request_id) < young_seconds
    while True:
        record = services.records.find(request_id) or await services.record_stream.read(request_id)
        if record is not None and caller.judges in ("*", record.caller):
            return record
        if record is not None or not young or time.monotonic() > until:
            raise Problem("request_not_found", f"No request of yours has the id {request_id[:80]!r}.", "request_id")
        await asyncio.sleep(0.05)


async def _give(services: Services, caller: Caller, given: FeedbackIn) -> tuple[int, dict[str, Any]]:
    value = _checked(given, services.settings.feedback_metrics)
    request_id = await _named(services, caller, given)
    now = time.time()
    genuine = services.ids.genuine(request_id, caller.judges)
    if genuine and now - made_at(request_id) > services.settings.records.retention_seconds:
        raise Problem("feedback_window_over", "The request is too old to be judged.", "request_id")
    if len(msgspec.json.encode((given.demonstration, given.tags))) > DEMONSTRATION_BYTES_MAX:
        text = f"The demonstration and tags are longer than {DEMONSTRATION_BYTES_MAX} bytes together."
        raise Problem("invalid_value", text, "demonstration")
    of_review = await task_of_review(services, caller, request_id, given.metric)
    demonstrated = {} if given.demonstration is None else _demonstrated(services, given.demonstration)
    feedback = Feedback(
        feedback_id=given.feedback_id or uuid.uuid4().hex,
        named=given.feedback_id is not None,
        metric=given.metric,
        value=value,
        at=now,
        caller=caller.public,
        rater=given.rater,
        comment=given.comment,
        demonstration=given.demonstration,
        tags=given.tags,
        demonstration_digests=demonstrated,
        reviewed=of_review is not None,
    )
    receipt = await services.feedback.give(request_id, feedback, caller.judges, genuine)
    services.meters.feedback.add(1, receipt.task or "", receipt.version or "", given.metric, _counted(receipt))
    if receipt.first and not receipt.reported and receipt.given != "pending":  # whose task nobody knows yet
        services.coverage.judged(receipt.task or "")
    if of_review is not None:
        await note_answered(services, of_review, request_id, feedback, receipt)
    return _told(receipt, request_id, feedback)


def _demonstrated(services: Services, demonstration: Any) -> dict[str, str]:
    """The digests by which shadow pairs are held against what somebody says that the answer should have been."""
    text = said_by(demonstration)
    told = {form.name: form.digest(services.digest_secret, text) for form in services.deployment.judge_forms}
    return {judge: found for judge, found in told.items() if found is not None}


def _told(receipt: Receipt, request_id: str, feedback: Feedback) -> tuple[int, dict[str, Any]]:
    if receipt.given == "unknown":
        raise Problem("request_not_found", f"No request of yours has the id {request_id[:80]!r}.", "request_id")
    if receipt.given == "conflict":
        raise Problem("feedback_conflict", "This feedback_id was used for another judgement.", "feedback_id")
    if receipt.given == "full":
        text = "This request has been judged too often, or at too great a length."
        raise Problem("feedback_full", text, "request_id")
    result = {"request_id": request_id, "feedback_id": receipt.feedback_id, "metric": feedback.metric}
    return (200 if receipt.given == "same" else 201), result


def _counted(receipt: Receipt) -> str:
    return receipt.given if receipt.given in ("created", "same", "pending") else "refused"


def _checked(given: FeedbackIn, metrics: dict[str, FeedbackMetricSettings]) -> bool | float | str:
    spec = metrics.get(given.metric)
    if spec is None:
        raise Problem("invalid_value", f"No such metric. Declared are: {', '.join(sorted(metrics))}.", "metric")
    value = given.value
    if spec.kind == "boolean" and isinstance(value, bool):
        return value
    if spec.kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) > FLOAT_MAX:
            raise Problem("invalid_value", "The value is too large.", "value")
        low = spec.minimum if spec.minimum is not None else float("-inf")
        high = spec.maximum if spec.maximum is not None else float("inf")
        if low <= value <= high and abs(value) != float("inf"):
            return float(value)
        raise Problem("invalid_value", f"{given.metric} lies between {low:g} and {high:g}.", "value")
    if spec.kind == "category" and value in spec.categories:
        return str(value)
    wanted = f"one of {', '.join(spec.categories)}" if spec.kind == "category" else f"a {spec.kind}"
    raise Problem("invalid_value", f"The value of {given.metric} is {wanted}.", "value")


async def _named(services: Services, caller: Caller, given: FeedbackIn) -> str:
    names = [name for name in ("request_id", "session", "subject") if getattr(given, name) is not None]
    if len(names) != 1:
        raise Problem("invalid_value", "Name one of request_id, session and subject.", "request_id")
    if given.request_id is not None:
        return await _resolve(services, caller, given.request_id)
    kind: Literal["session", "subject"] = "session" if given.session is not None else "subject"
    handle = handle_of(services.digest_secret, caller.public, kind, given.session or given.subject or "")
    found = services.flow.latest_of(handle) or await services.record_stream.latest_of(handle)
    if found is None:
        raise Problem("request_not_found", f"No request of yours names this {kind}.", kind)
    return found


async def _resolve(services: Services, caller: Caller, said: str) -> str:
    """Our id from what a caller has: our id, an answer's id with ours in it, or an id of the engine's own."""
    request_id = bare(said)
    if request_id != said or services.ids.genuine(said):
        return request_id
    handle = handle_of(services.digest_secret, caller.public, "answer", said)
    return services.flow.latest_of(handle) or await services.record_stream.latest_of(handle) or said


def add_error_answers(app: FastAPI) -> None:
    """Give all endpoints of the application our shape of errors."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _refused)
    app.add_exception_handler(UnicodeEncodeError, _half_a_character)
    app.add_exception_handler(RedisError, _no_redis)
    app.add_exception_handler(Unreadable, _unreadable)
    app.add_exception_handler(Exception, _fault)


def _answer(request: Request, problem: Problem) -> Response:
    services = services_of(request)
    services.meters.refusals.add(1, problem.code)
    client, server = request.scope.get("client"), request.scope.get("server")
    services.accesses.refused(problem, client, server, request.url.path, request.headers.get("authorization"))
    headers = {name.decode(): value.decode() for name, value in problem.headers()}
    return Response(problem.body(), problem.status, headers)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _answer(request, error)


async def _refused(request: Request, error: Exception) -> Response:
    problem = _refusal_of(request, error)
    if (request.method, request.url.path) == ("POST", FEEDBACK_PATH):
        problem = await _charged(request, problem)
    return _answer(request, problem)


async def _charged(request: Request, refusal: Problem) -> Problem:
    """The refusal of a body, which counts as one request against the key's limits; or their refusal of that one."""
    try:
        caller = caller_of(request, request.headers.get("authorization"))
        async with services_of(request).limits.spending(caller):
            raise refusal
    except Problem as problem:
        return problem


def _refusal_of(request: Request, error: Exception) -> Problem:
    """What the framework refuses, in our words."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return Problem("invalid_json", "The body is not valid JSON.")
        return _fault_of(first, first["loc"][1:])
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        problem = Problem("method_not_allowed", "This address does not take this method.")
        problem.told += [(b"allow", allowed.encode()) for allowed in [(error.headers or {}).get("Allow")] if allowed]
        return problem
    if error.status_code == 413:
        limit = services_of(request).body_bytes_max_at(request.url.path)
        return Problem("body_too_large", f"The body is longer than {limit} bytes.")
    if error.status_code == 400:
        return Problem("invalid_json", "The body is not JSON in UTF-8, or is nested too deeply.")
    return Problem("not_found", words_for(request.url.path))


def _fault_of(fault: Mapping[str, Any], place: Sequence[Any]) -> Problem:
    """What pydantic found at a place in a body."""
    named = [str(part) for part in place if part not in ("FeedbackIn", "FeedbackBatch")]
    code = {"missing": "missing_field", "extra_forbidden": "unknown_parameter"}.get(fault["type"], "invalid_value")
    param = ".".join(named) or None
    words = fault["msg"].removeprefix("Value error, ").rstrip(".")
    whole = param is None and fault["type"] == "value_error"  # a check of ours, which names its field itself
    return Problem(code, f"{words}." if whole else f"{param or 'body'}: {words}.", param)


async def _half_a_character(request: Request, _: Exception) -> Response:
    text = "A text holds half of a surrogate pair, which is no character."
    return _answer(request, Problem("invalid_value", text))


async def _no_redis(request: Request, _: Exception) -> Response:
    text = "Redis can't be reached: what was sent may not be stored. Try again later."
    if request.method in ("GET", "HEAD") or request.url.path.endswith("/dry-run"):
        text = "Redis can't be reached, so this can't be read now. Requests go on by what was read last."
    return _answer(request, Problem("storage_unavailable", text))


async def _unreadable(request: Request, error: Exception) -> Response:
    return _answer(request, Problem("state_conflict", str(error)))


async def _fault(request: Request, error: Exception) -> Response:
    request_id = services_of(request).ids.make("")
    log.error("a request failed", exc_info=error, extra={"request_id": request_id, "path": request.url.path})
    response = _answer(request, Problem("internal_error", "A fault of the gateway. It is logged with this id."))
    response.headers["x-request-id"] = request_id
    return response
