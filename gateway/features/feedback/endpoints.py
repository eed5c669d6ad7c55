"""`POST /v1/feedback`: one or several judgements of a caller."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response
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

from gateway.callers import Caller
from gateway.endpoint_parts import Identified
from gateway.errors import Problem, describe_fault
from gateway.feature import feature_of
from gateway.features.requests.endpoints import resolve_id
from gateway.features.reviews.answered_reviews import find_review, note_answered, redact_words
from gateway.features.reviews.reviewer_endpoints import metric_of
from gateway.features.reviews.state import Reviews
from gateway.openapi_parts import SPENT_ERRORS, STORED, with_errors
from gateway.request_labels import Demonstration, check_value, digest_demonstration
from gateway.services import FEEDBACK_PATH, Services
from gateway.state.durability import NotSettled, explain_not_settled
from monitoring.feedback import Feedback, Receipt, handle_of
from monitoring.ids import name_rater, read_time

FEEDBACK_BATCH_MAX = 1000
DEMONSTRATION_BYTES_MAX = 65_536
router = APIRouter()


def _a_value(value: Any) -> Any:
    """Raises ValueError, with one sentence, for a type that no metric accepts."""
    if not isinstance(value, (bool, int, float, str)):
        raise ValueError("it is true or false, a number or a text, as its metric declares")
    return value


def _so_many(entries: list[Any]) -> list[Any]:
    """Raises ValueError for an empty or too large batch."""
    if not 1 <= len(entries) <= FEEDBACK_BATCH_MAX:
        raise ValueError(f"it holds 1 to {FEEDBACK_BATCH_MAX} entries")
    return entries


def _form_of(body: Any) -> str:
    """The name of a body's form, for one judgement or several. Errors name the fields of that form."""
    return "FeedbackBatch" if isinstance(body, dict) and "feedback" in body else "FeedbackIn"


Value = Annotated[StrictBool | StrictInt | StrictFloat | StrictStr, BeforeValidator(_a_value)]


class FeedbackIn(BaseModel):
    """One judgement, of a request, or of the latest ended one of a session or about a subject."""

    model_config = ConfigDict(extra="forbid")

    request_id: str | None = Field(None, max_length=200, description="Our id, or the `id` in the answer's body.")
    session: str | None = Field(None, min_length=1, max_length=512, description="As in `x-apprentice-session`.")
    subject: str | None = Field(None, min_length=1, max_length=512, description="As in `x-apprentice-subject`.")
    metric: str = Field(max_length=64, description="A declared metric, such as `correct`.")
    value: Value = Field(description="As its metric declares.")
    rater: str | None = Field(None, max_length=200, description="Who judges, if not the caller itself.")
    feedback_id: str | None = Field(None, min_length=1, max_length=200, description="Makes a second sending harmless.")
    comment: str | None = Field(None, max_length=4000, description="Why, in words.")
    demonstration: Demonstration = None
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


ANSWERS = STORED | with_errors(
    *("request_not_found", "feedback_conflict", "feedback_window_over", "feedback_full", "no_review", *SPENT_ERRORS)
)


@router.post(FEEDBACK_PATH, tags=["callers"], responses=ANSWERS)
async def give_feedback(request: Request, caller: Identified, body: OneOrSeveral) -> Response:
    """Store one judgement or several. 201 created, 200 the same again; for a batch 200 and a result for each. Each
    judgement counts as a request against the key's limits; a refused body counts as one request.
    """
    reviews = feature_of(request, Reviews)
    services = reviews.services
    entries, size = 1 if isinstance(body, FeedbackIn) else len(body.feedback), len(await request.body())
    async with services.limits.spending(caller, entries, size) as headers:
        if isinstance(body, FeedbackIn):
            result, status = await _given_one(reviews, caller, body)
        else:
            result, status = {"results": await _given_several(reviews, caller, body)}, 200
    return JSONResponse(result, status, headers)


async def _given_one(reviews: Reviews, caller: Caller, body: FeedbackIn) -> tuple[dict[str, Any], int]:
    services = reviews.services
    mark = services.durability.mark()
    status, result = await _give(reviews, caller, body)
    try:
        await services.durability.settle(mark)
    except NotSettled as error:
        raise explain_not_settled(error, f" Its feedback_id is {result['feedback_id']!r}.") from error
    return result, status


async def _given_several(reviews: Reviews, caller: Caller, body: FeedbackBatch) -> list[dict[str, Any]]:
    services = reviews.services
    mark = services.durability.mark()
    results: list[dict[str, Any]] = []
    for entry in body.feedback:
        try:
            status, result = await _give(reviews, caller, _one_of_batch(entry))
            results.append({"status": status, **result})
        except Problem as problem:
            results.append({"status": problem.status, "error": problem.content()})
    try:
        await services.durability.settle(mark)
    except NotSettled as error:
        lost = explain_not_settled(error)
        services.meters.refusals.add(1, lost.code)
        refused = {"status": lost.status, "error": lost.content()}
        results = [entry if "error" in entry else {**entry, **refused} for entry in results]
    return results


def _one_of_batch(raw: Any) -> FeedbackIn:
    """One judgement of a batch. Its faults become its own result. Raises Problem (400)."""
    try:
        return FeedbackIn.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise describe_fault(first, first["loc"]) from None


async def _give(reviews: Reviews, caller: Caller, body: FeedbackIn) -> tuple[int, dict[str, Any]]:
    services = reviews.services
    if caller.judges_only and body.rater is not None:
        raise Problem("role_required", "A reviewer's key is one rater: leave `rater` out.", "rater")
    value = check_value(body.metric, body.value, services.settings.feedback_metrics)
    if (status := await _answer_gold(reviews, caller, body, value)) is not None:
        feedback_id = body.feedback_id or uuid.uuid4().hex
        return status, {"request_id": body.request_id, "feedback_id": feedback_id, "metric": body.metric}
    request_id = await _named(services, caller, body)
    now = time.time()
    genuine = services.ids.genuine(request_id, caller.judges)
    if genuine and now - read_time(request_id) > services.settings.records.retention_seconds:
        raise Problem("feedback_window_over", "The request is too old to be judged.", "request_id")
    if len(msgspec.json.encode((body.demonstration, body.tags))) > DEMONSTRATION_BYTES_MAX:
        text = f"The demonstration and tags are longer than {DEMONSTRATION_BYTES_MAX} bytes together."
        raise Problem("invalid_value", text, "demonstration")
    drawn = await find_review(reviews, caller, request_id, body.metric)
    if caller.judges_only and (drawn is None or body.metric != metric_of(reviews, drawn.task)[0]):
        text = "A reviewer judges the reviews that this key was given, by the metric that each names."
        raise Problem("no_review", text, "request_id")
    demonstrated = digest_demonstration(services, body.demonstration)
    words = [body.comment, body.demonstration]
    comment, demonstration = await redact_words(reviews, drawn.task, words) if drawn is not None else words
    feedback = Feedback(
        feedback_id=body.feedback_id or uuid.uuid4().hex,
        named=body.feedback_id is not None,
        metric=body.metric,
        value=value,
        at=now,
        caller=caller.public,
        rater=body.rater,
        comment=comment,
        demonstration=demonstration,
        tags=body.tags,
        demonstration_digests=demonstrated,
        reviewed=drawn is not None,
        reviewers=drawn.reviewers if drawn is not None else 1,
    )
    receipt = await services.feedback.give(request_id, feedback, caller.judges, genuine)
    services.meters.feedback.add(1, receipt.task or "", receipt.version or "", body.metric, _counted(receipt))
    if receipt.first and not receipt.reported and receipt.outcome != "pending":  # the task of a pending one is unknown
        services.coverage.judged(receipt.task or "")
    if drawn is not None:
        await note_answered(reviews, drawn, request_id, feedback, receipt)
    return _make_answer(receipt, request_id, feedback)


async def _answer_gold(reviews: Reviews, caller: Caller, body: FeedbackIn, value: bool | float | str) -> int | None:
    """Score an answer to the gold question that this reviewer holds, or held lately. Return the status that feedback
    would get, also if it is sent again. None if the answer is not to a gold question."""
    if caller.judges != "*" or not body.request_id:
        return None
    question = await reviews.gold.find_last(body.request_id, caller.public)
    if question is None or question.task not in reviews.services.settings.tasks:
        return None
    if body.metric != metric_of(reviews, question.task)[0]:
        return None
    metric = reviews.services.settings.feedback_metrics[body.metric].metric()
    rater = name_rater(caller.public, body.rater)
    is_first = await reviews.gold.answer(question, caller.public, rater, metric, value)
    return None if is_first is None else 201 if is_first else 200


def _make_answer(receipt: Receipt, request_id: str, feedback: Feedback) -> tuple[int, dict[str, Any]]:
    if receipt.outcome == "unknown":
        raise Problem("request_not_found", f"No request of yours has the id {request_id[:80]!r}.", "request_id")
    if receipt.outcome == "conflict":
        raise Problem("feedback_conflict", "This feedback_id was used for another judgement.", "feedback_id")
    if receipt.outcome == "full":
        text = "This request has been judged too often, or at too great a length."
        raise Problem("feedback_full", text, "request_id")
    result = {"request_id": request_id, "feedback_id": receipt.feedback_id, "metric": feedback.metric}
    return (200 if receipt.outcome == "same" else 201), result


def _counted(receipt: Receipt) -> str:
    return receipt.outcome if receipt.is_stored else "refused"


async def _named(services: Services, caller: Caller, body: FeedbackIn) -> str:
    names = [name for name in ("request_id", "session", "subject") if getattr(body, name) is not None]
    if len(names) != 1:
        raise Problem("invalid_value", "Name one of request_id, session and subject.", "request_id")
    if body.request_id is not None:
        return await resolve_id(services, caller, body.request_id)
    kind: Literal["session", "subject"] = "session" if body.session is not None else "subject"
    handle = handle_of(services.digest_secret, caller.public, kind, body.session or body.subject or "")
    latest = await services.flow.find_latest(handle)
    if latest is None:
        text = f"No ended request of yours names this {kind}. If its answer still runs, judge it by its request_id."
        raise Problem("request_not_found", text, kind)
    return latest
