"""Waiting of a request: its class, its pauses, and its wait for a replica where all that could answer are full."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from gateway.errors import Problem
from gateway.formats.request_body import RequestBody
from gateway.limits.admission import Place, Priority
from gateway.path.ledger import Ledger
from gateway.services import Services
from router.awaited_replicas import list_awaited_replicas
from router.choice import choose
from router.policy import Policy
from router.routing_data import Choice, Moment, Refusal, RoutingRequest, Scores


def priority_of(header: str | None, body: RequestBody) -> Priority:
    """The class of a request: a caller may have it wait behind others, by header or as OpenAI does, never before them.

    Raises Problem (400) for another value of the header.
    """
    if header is not None and header not in ("interactive", "batch"):
        raise Problem("invalid_value", "The header x-apprentice-priority is `interactive` or `batch`.")
    return "batch" if header == "batch" or body.read.service_tier == "flex" else "interactive"


async def wait_before_attempt(seconds: float, ledger: Ledger) -> None:
    """Wait before another attempt. uvloop ends a wait up to a millisecond early: its real length is noted."""
    began_at = time.monotonic()
    await asyncio.sleep(seconds)
    ledger.paused_seconds += time.monotonic() - began_at


async def wait_for_place(place: Place, ledger: Ledger) -> None:
    """Wait for a place in the gateway. Raises Problem (429, 503) where the queue is full, or the wait too long."""
    await place.turn()
    ledger.waited_seconds = place.waited_seconds


async def wait_for_room(
    services: Services,
    place: Place,
    request: RoutingRequest,
    scores: Scores,
    policy: Policy,
    decision: Choice | Refusal,
    moment: Moment,
    ledger: Ledger,
) -> Choice | Refusal:
    """Wait in line where every replica that could answer is full, and choose again, by the same draw.

    Raises Problem (429, 503) where the queue is full, or the wait too long. Any other decision is returned as it is.
    """
    waited = False
    while isinstance(decision, Refusal) and decision.code == "overload":
        try:
            await place.turn(list_awaited_replicas(request, scores, policy, services.fleet.view(), moment.now_unix))
        except BaseException:  # it goes nowhere: what is known of it is noted
            ledger.note_findings(decision.findings)
            ledger.note_refusal(decision, scores.task)
            raise
        waited = True
        moment = replace(
            moment, now=time.monotonic(), now_unix=time.time(), fallbacks_closed=services.fallback_caps.closed
        )
        decision = choose(request, scores, policy, services.fleet.view(), moment)
    if waited:
        ledger.waited_seconds = place.waited_seconds
        place.go_on()
    return decision
