"""Requests of our own, which no caller waits for: a shadow's, an evaluation's."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gateway.formats.request_body import RequestBody
from gateway.path.answer import Answer
from gateway.path.ledger import Ledger
from gateway.server.deadline import Deadline
from gateway.services import Services
from monitoring.records import Record
from router.policy import AttemptLimits
from router.routing_data import Choice
from serving.errors import EngineError
from serving.fleet_view import FleetView, ReplicaView
from serving.replica import Lease

LOAD_SHARE_MAX = 0.8
"""Share of a replica's in_flight_max up to which both arms' answers and their judges add to its load: the rest is
callers'."""
ROOM_SECONDS_MAX = 10.0
"""The longest wait of a request of our own for a place that it may take before callers."""
LOOK_AGAIN_SECONDS = 0.05
WAITING_MAX = 6
"""Callers who wait, as a multiple of what a replica holds, beside whom none of our own comes first."""


def has_room(services: Services, view: FleetView, replica: ReplicaView) -> bool:
    """True if one more request of our own takes no caller's place there: never the last one, so that a replica that
    holds one request at a time has none for us."""
    if services.admission.waiting:
        return False
    return view.in_flight.get(replica.name, 0) + 1 <= LOAD_SHARE_MAX * replica.in_flight_max


@asynccontextmanager
async def take_room(
    services: Services, choice: Choice, own_places: Counter[str], share: float
) -> AsyncIterator[Lease | None]:
    """Take a place on the choice's replica before callers that wait; None where none is free in time.

    `own_places` counts by replica the places that are taken so while their blocks run: at most this `share` of a
    replica. It counts as under way at once, so that no caller gets the next one that is free. Where callers would wait
    too long, they come first. The block's user gives the lease back.
    """
    replica, places = services.fleet.replicas[choice.replica.name], choice.replica.in_flight_max
    held_max, until = max(1, int(share * places)), time.monotonic() + ROOM_SECONDS_MAX
    if not await _wait(
        lambda: own_places[replica.name] < held_max and services.admission.waiting <= WAITING_MAX * places, until
    ):
        yield None
        return
    lease = replica.lease(time.monotonic(), choice.engine_model, probes=False)
    own_places[replica.name] += 1
    is_free = False
    try:
        try:
            is_free = await _wait(lambda: replica.load <= places, until)
        finally:
            if not is_free:
                lease.give_back(time.monotonic())
        yield lease if is_free else None
    finally:
        own_places[replica.name] -= 1
        if services.admission.waiting:
            services.admission.call_next()


async def _wait(is_so: Callable[[], bool], until: float) -> bool:
    """Wait for this, at most until then (monotonic seconds); return whether it came."""
    while not is_so():
        if time.monotonic() >= until:
            return False
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
    return True


async def ask_beside(
    services: Services,
    choice: Choice,
    body: RequestBody,
    engine_body: bytes,
    record: Record,
    limits: AttemptLimits,
    lease: Lease | None = None,
) -> tuple[Ledger, Answer, str | None]:
    """Ask this choice's engine once, for a whole answer: its ledger, the answer, closed, and what went wrong (None:
    nothing). `engine_body` is `body` as the engine gets it. It is not a probe of a replica that rests. `lease` is
    the place that was taken for it (None: it takes one).
    """
    now = time.monotonic()
    if lease is None:
        lease = services.fleet.replicas[choice.replica.name].lease(now, choice.engine_model, probes=False)
    fault: str | None = None
    with Answer(body.wire_format, choice, lease) as answer:
        ledger = Ledger(record, now)
        ledger.note_choice(choice, services.get_fingerprint(choice))
        headers = {"Content-Type": "application/json", "X-Request-Id": record.id, "traceparent": ledger.traceparent}
        try:
            with Deadline(limits.answer_timeout_seconds):
                await answer.begin(services, body, engine_body, headers, limits)
        except (EngineError, TimeoutError) as error:
            fault = error.kind if isinstance(error, EngineError) else "silent"
        ledger.note_attempt(choice, fault, now, time.monotonic())
        ledger.note_answer(
            answer.progress, services.prices, answer.lease.share(time.monotonic()), services.digest_secret
        )
    return ledger, answer, fault
