"""A request's waiting: its priority, its pauses between attempts, and its wait while all its replicas are full."""

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
    """The request's priority. A caller can lower it, by the header or by OpenAI's `service_tier`, but not raise it.

    Raises Problem (400) for another value of the header.
    """
    if header is not None and header not in ("interactive", "batch"):
        raise Problem("invalid_value", "The header x-apprentice-priority is `interactive` or `batch`.")
    return "batch" if header == "batch" or body.read.service_tier == "flex" else "interactive"


async def wait_before_attempt(seconds: float, ledger: Ledger) -> None:
    """Wait before another attempt. uvloop can end a wait up to 1 ms early, so the measured time is noted."""
    began_at = time.monotonic()
    await asyncio.sleep(seconds)
    ledger.paused_seconds += time.monotonic() - began_at


async def wait_for_place(place: Place, ledger: Ledger) -> None:
    """Wait for a place in the gateway. Raises Problem (429, 503) if the queue is full or the wait is too long."""
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
    """Wait in the queue while every replica that could answer is full, then choose again with the same random draw.

    Raises Problem (429, 503) if the queue is full or the wait is too long. Any other decision is returned unchanged.
    """
    waited = False
    while isinstance(decision, Refusal) and decision.code == "overload":
        try:
            await place.turn(list_awaited_replicas(request, scores, policy, services.fleet.view(), moment.now_unix))
        except BaseException:  # the request goes to no replica: note its findings and its refusal
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
