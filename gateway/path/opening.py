"""Opening an answer: one attempt after another, until an answer may be committed or the router gives up."""

from __future__ import annotations

import time

from gateway.formats.answer_reading import Reading
from gateway.formats.answer_terms import is_foreign
from gateway.formats.request_body import RequestBody
from gateway.formats.structured_outputs import has_compiled_form
from gateway.path.answer import Answer
from gateway.path.answer_checks import judge_now
from gateway.path.ledger import Ledger
from gateway.path.partial_answer import PartialAnswer
from gateway.path.problems import explain_failures, explain_rejected_answer
from gateway.path.scoring import score_for_version
from gateway.path.waiting import wait_before_attempt
from gateway.services import Services
from router.attempts import Failure, GiveUp, NextAttempt, SendAnyway, choose_after_rejection, choose_next_attempt
from router.policy import Policy
from router.routing_data import Choice, Scores
from serving.errors import EngineError, Missing, RefusedByEngine, as_unserved

OF_REQUEST = frozenset({"failed", "truncated"})
"""Faults that the request itself may cause at any engine."""


async def open_answer(
    services: Services, policy: Policy, body: RequestBody, choice: Choice, ledger: Ledger, scores: Scores
) -> Answer:
    """Get an answer that can be committed. After a failed attempt, `choose_next_attempt` decides the next step.

    After a check rejects an answer, `choose_after_rejection` decides the next step.

    Raises Problem when the attempts are over: the engine's own refusal in its words, or 502, 503, 504.
    """
    failures: tuple[Failure, ...] = ()
    partial: PartialAnswer | None = None
    while True:
        ledger.note_choice(choice, services.get_fingerprint(choice))
        scores = await score_for_version(services, body, choice, policy, scores)
        answer, failed = await attempt(services, policy, body, choice, ledger, partial, failures, scores)
        if failed is None:
            ledger.record.continued = int(partial is not None)
            try:
                instead = _turned_down(services, policy, body, answer, ledger)
            except BaseException:
                answer.close()
                raise
            if instead is None:
                return answer
            choice, failures, partial = instead, (), None
            continue
        failures = (*failures, failure_of(answer, failed))
        step, partial = next_step(services, policy, body, answer, failed, failures, ledger)
        spent = answer.share(time.monotonic())
        made = partial.tokens - answer.tokens_before if partial else 0
        if made:
            ledger.note_part(choice.pool.name, made, spent)
        else:
            ledger.note_waste(services.prices, choice.pool.name, spent)
        if partial is None:
            ledger.drop_parts(services.prices)
        if isinstance(step, GiveUp):
            ledger.record.reason = step.reason or ledger.record.reason
            ledger.record.fallback_capped = ledger.record.fallback_capped or step.fallback_capped
            seconds = None if body.stream else policy.limits.answer_timeout_seconds
            raise explain_failures(step, failed, failures, body.wire_format.required, seconds)
        if step.wait_seconds:
            await wait_before_attempt(step.wait_seconds, ledger)
        choice = step.choice


async def attempt(
    services: Services,
    policy: Policy,
    body: RequestBody,
    choice: Choice,
    ledger: Ledger,
    partial: PartialAnswer | None,
    failures: tuple[Failure, ...],
    scores: Scores,
) -> tuple[Answer, EngineError | None]:
    """Try one engine once. Returns an answer that may be committed and None, or a closed answer and its error.

    With `partial`, the engine is asked to continue that text. `failures` are the earlier attempts' failures. The result
    is noted in the ledger and at the replica.
    """
    ledger.record.dropped = body.dropped_by(choice.pool.engine)
    demands = services.terms.make_demands(policy, body, choice, scores)
    added = demands.fields if demands is not None else None
    engine_body = partial and partial.body(body, choice, added)
    engine_body = engine_body or body.for_engine(choice, added)
    number = len(ledger.record.attempts) + 1
    headers = {
        "Content-Type": "application/json",
        "X-Request-Id": ledger.record.id if number == 1 else f"{ledger.record.id}-{number}",
        "traceparent": ledger.traceparent_of(number),
    }
    if ledger.tracestate is not None:
        headers["tracestate"] = ledger.tracestate
    began_at = time.monotonic()
    replica = services.fleet.replicas[choice.replica.name]
    reading = partial.reading if partial is not None else None
    if demands is not None and demands.terms.checks and reading is None:
        reading = Reading(demands.strips, body.choices)
    ledger.fallback_hold = services.fallback_caps.hold_for(choice, ledger.fallback_hold, body, ledger.record)
    lease = replica.lease(began_at, choice.engine_model)
    answer = Answer(body.wire_format, choice, lease, partial, demands, reading, scores, failures)
    try:
        await answer.begin(services, body, engine_body, headers, policy.limits)
    except EngineError as error:
        answer.close()
        is_known = not body.wire_format.has_template or replica.config.traits.health_path is not None
        error = as_unserved(error, body.wire_format.path, is_known)
        answer.has_form = has_compiled_form(body.read)
        note_fault(services, choice, error, failures, is_doubtful=failure_of(answer, error).may_be_its_form)
        ledger.note_attempt(choice, error.kind, began_at, time.monotonic())
        return answer, error
    except BaseException:
        answer.close()
        now = time.monotonic()
        ledger.made = answer.total().chunks
        ledger.note_waste(services.prices, choice.pool.name, answer.share(now))
        ledger.note_attempt(choice, "cancelled", began_at, now)
        raise
    now = time.monotonic()
    ledger.note_attempt(choice, None, began_at, now)
    ledger.note_sent(engine_body, body.cache_salt, services.digest_secret)
    replica.answered(now, choice.engine_model)
    return answer, None


def failure_of(answer: Answer, failed: EngineError) -> Failure:
    """An attempt's failure as the router sees it. A refusal to continue a partial answer is not the caller's fault."""
    choice = answer.choice
    kind = "truncated" if answer.partial is not None and isinstance(failed, RefusedByEngine) else failed.kind
    name, wait, now = choice.replica.name, failed.retry_after_seconds, time.monotonic()
    return Failure(kind, name, choice.pool.name, wait, now, answer.fragile, failed.status, answer.has_form)


def next_step(
    services: Services,
    policy: Policy,
    body: RequestBody,
    answer: Answer,
    failed: EngineError,
    failures: tuple[Failure, ...],
    ledger: Ledger,
) -> tuple[NextAttempt | GiveUp, PartialAnswer | None]:
    """The router's step after a failed attempt, and the part of the answer to go on with (None: begin again)."""
    now = time.monotonic()
    left = ledger.started_at + policy.limits.request_timeout_seconds - now
    view, moment = services.fleet.view(), services.moment(now)
    partial = None if isinstance(failed, RefusedByEngine) else answer.so_far()
    if partial is not None:
        step = choose_next_attempt(answer.choice, failures, policy, view, moment, left, going_on=True)
        if isinstance(step, NextAttempt):
            demands = services.terms.make_demands(policy, body, step.choice, answer.scores)
            if partial.body(body, step.choice, demands.fields if demands is not None else None) is not None:
                return step, partial
    return choose_next_attempt(answer.choice, failures, policy, view, moment, left), None


def _turned_down(
    services: Services, policy: Policy, body: RequestBody, answer: Answer, ledger: Ledger
) -> Choice | None:
    """Judge an answer before it is committed. Returns None if it may be sent, or the choice that answers instead.

    A rejected answer is closed, and counts as no fault of its replica or version. Raises Problem if no other choice
    may or can answer.
    """
    check = judge_now(services, body, answer, ledger)
    if check is None:
        if is_foreign(answer.choice) and ledger.record.contract_kept is False:
            ledger.label_broken_contract()
        return None
    now = time.monotonic()
    left = ledger.started_at + policy.limits.request_timeout_seconds - now
    step = choose_after_rejection(answer.choice, check, policy, services.fleet.view(), services.moment(now), left)
    if isinstance(step, SendAnyway):
        ledger.label_rejected(check)
        return None
    answer.close()
    ledger.note_rejected(check, answer.total(), services.prices, answer.share(now))
    for observer in services.observers:
        observer.rejected(policy, body, answer, ledger)
    if isinstance(step, GiveUp):
        ledger.record.reason = step.reason or ledger.record.reason
        ledger.record.fallback_capped = ledger.record.fallback_capped or step.fallback_capped
        problem = explain_rejected_answer(step)
        problem.final = problem.final or problem.status >= 500
        raise problem
    ledger.record.contract_kept = None
    return step.choice


def note_fault(
    services: Services,
    choice: Choice,
    error: EngineError,
    failures: tuple[Failure, ...],
    had_answered: bool = False,
    is_doubtful: bool = False,
) -> None:
    """Count a fault against its replica. If the replica does not know a version, the version counts as unloaded there.

    `failures` are the request's earlier ones. The request itself may cause them, so they count once at each replica.
    `had_answered`: the answer had begun well. `is_doubtful`: the form that the caller asks for may be the cause, and
    must not take the model from other callers.
    """
    name = choice.replica.name
    if error.kind in OF_REQUEST and any(each.replica == name and each.kind in OF_REQUEST for each in failures):
        return
    replica = services.fleet.replicas[name]
    if isinstance(error, Missing) and choice.version is not None:
        replica.loaded -= {choice.version.name}
        services.fleet.changed()
        return
    now = time.monotonic()
    jitter = services.moment(now).draw
    replica.failed(now, choice.engine_model, error.kind, jitter, error.retry_after_seconds, had_answered, is_doubtful)
