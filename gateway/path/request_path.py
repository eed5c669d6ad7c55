"""THE WALK: what happens to a request, top to bottom, in one function."""

from __future__ import annotations

import asyncio
import logging
import time

from gateway.access_log import REFUSED
from gateway.callers import Caller
from gateway.errors import Problem
from gateway.formats.bounds import LONG_BODY_BYTES
from gateway.formats.request_body import RequestBody, make_routing_request, read_body
from gateway.formats.wire_format import WireFormat
from gateway.path.ledger import Ledger, problem_of, settle
from gateway.path.opening import open_answer
from gateway.path.problems import explain_time_limit
from gateway.path.relay import refuse, relay
from gateway.path.scoring import score_request
from gateway.path.waiting import priority_of, wait_for_place, wait_for_room
from gateway.server.asgi_messages import HungUp
from gateway.server.deadline import Deadline
from gateway.server.exchange import Exchange
from gateway.services import Services
from monitoring.records import Record
from router.choice import choose
from router.policy import Policy
from router.routing_data import Choice, Refusal, RoutingRequest, Scores

log = logging.getLogger(__name__)


async def walk(services: Services, exchange: Exchange, wire_format: WireFormat) -> None:
    """One request: identify (the listener did) → read → admit → score → choose → open → relay → settle."""
    began_at = time.monotonic()
    ledger: Ledger | None = None
    try:
        snapshot = services.snapshot.current
        with Deadline(snapshot.policy.limits.request_timeout_seconds, exchange.loop):
            caller = exchange.require_caller()
            raw = await exchange.body(services.settings.limits.body_bytes_max)
            policy = services.snapshot.current.policy  # a new one may have come while a slow body was read
            ledger = _begin(services, exchange, wire_format, began_at)
            body = (
                read_body(wire_format, raw)
                if len(raw) <= LONG_BODY_BYTES
                else await _read(services, caller, wire_format, raw)
            )
            session = body.session(exchange.header("x-apprentice-session"))
            ledger.note_request(body, session, exchange.header("x-apprentice-subject"), policy, services.digest_secret)
            priority = priority_of(exchange.header("x-apprentice-priority"), body)
            ledger.hold = await services.limits.take(caller, body, len(raw))
            with services.admission.admit(caller.public, priority) as place, exchange.hang_up_cancels():
                if not place.is_taken:
                    await wait_for_place(place, ledger)
                request = make_routing_request(body, caller.public, caller.models, session, policy)
                # The present time, not the request's begin: it may have waited for its body and its place.
                moment, ledger.score_began_at = services.moment(now := time.monotonic()), now
                scores, ledger.scored_at = await score_request(services, request, policy, moment), time.monotonic()
                decision = choose(request, scores, policy, services.fleet.view(), moment)
                if decision.__class__ is Refusal:
                    decision = await wait_for_room(services, place, request, scores, policy, decision, moment, ledger)
                choice = _accepted(services, policy, decision, request, scores, ledger)
                services.hold_to_choice(body, choice, caller)
                with await open_answer(services, policy, body, choice, ledger, scores) as answer:
                    watching = services.observers.watch(policy, answer, ledger.record)
                    await relay(services, exchange, policy, body, answer, ledger)
                    for observer in watching:
                        observer.answered(policy, body, answer, ledger)
    except Problem as problem:
        # A refused body (413, 415) has no ledger yet: begin one, so that its refusal is recorded like others.
        await _tell(services, exchange, problem, ledger := ledger or _begin(services, exchange, wire_format, began_at))
    except TimeoutError:
        await _tell(services, exchange, explain_time_limit(ledger.record if ledger is not None else None), ledger)
    except (HungUp, asyncio.CancelledError) as gone:
        cancelled_here = isinstance(gone, asyncio.CancelledError) and not exchange.hung_up
        if cancelled_here and services.admission.stage == "over":
            await _tell(services, exchange, services.admission.shed("draining"), ledger)
        elif ledger is not None and not exchange.ended:
            ledger.note_hang_up()
        if cancelled_here and services.admission.stage != "over":
            raise
    except Exception:
        log.exception("the walk failed", extra={"request_id": ledger.record.id if ledger else None})
        await _tell(services, exchange, Problem("internal_error", "A fault of the gateway. It is logged."), ledger)
    finally:
        if ledger is not None:
            settle(services, ledger, time.monotonic())


async def _read(services: Services, caller: Caller, wire_format: WireFormat, raw: bytes) -> RequestBody:
    """Read a long body in a thread. That takes milliseconds, so callers take turns and the event loop stays free."""
    return await services.threads.run(caller.public, len(raw), read_body, wire_format, raw)


def note_refused(services: Services, exchange: Exchange, problem: Problem) -> None:
    """Log a request that is answered with 401 or 403."""
    peer, listener = exchange.ends
    services.accesses.refused(problem, peer, listener, exchange.path.decode("latin-1"), exchange.authorization())


async def _tell(services: Services, exchange: Exchange, problem: Problem, ledger: Ledger | None) -> None:
    if exchange.ended:  # the caller has the whole answer: a later problem changes nothing
        return
    services.meters.refusals.add(1, problem.code)
    if problem.status in REFUSED:
        note_refused(services, exchange, problem)
    if ledger is not None:
        ledger.note_problem(problem)
    await refuse(exchange, problem, ledger)


def _accepted(
    services: Services,
    policy: Policy,
    decision: Choice | Refusal,
    request: RoutingRequest,
    scores: Scores,
    ledger: Ledger,
) -> Choice:
    ledger.chosen_at, ledger.first_reason = time.monotonic(), decision.reason
    ledger.note_findings(decision.findings)
    if scores.gain is not None:
        services.gain_budgets.note(policy, policy.tasks.get(scores.task or request.model), decision.findings)
    if isinstance(decision, Refusal):
        ledger.note_refusal(decision, scores.task)
        raise problem_of(services, decision, request, scores)
    if policy.watched:
        for observer in services.observers:
            observer.draw(policy, decision, ledger.record)
    return decision


def _begin(services: Services, exchange: Exchange, wire_format: WireFormat, began_at: float) -> Ledger:
    caller = exchange.require_caller().public
    request_id, at = services.ids.make(caller), time.time()
    record = Record(id=request_id, at=at, endpoint=wire_format.name, caller=caller, requested_model="")
    ledger = Ledger(record, began_at, *exchange.trace(), services.observers.tracing)
    ledger.paused_seconds = exchange.waited_seconds
    return ledger
