"""The gateway's own requests, for which no caller waits: shadows and evaluations."""

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
"""Largest load, as a share of in_flight_max, at which a replica still takes a request of our own. The rest is for
callers."""
ROOM_SECONDS_MAX = 10.0
"""Longest wait of a request of our own for a place that it may take before callers."""
LOOK_AGAIN_SECONDS = 0.05
WAITING_MAX = 6
"""With more waiting callers than this, as a multiple of the replica's places, callers come first."""


def has_room(services: Services, view: FleetView, replica: ReplicaView) -> bool:
    """True if the replica can take another request of our own and keeps room for callers. A replica that holds one
    request at a time never has room."""
    if services.admission.waiting:
        return False
    return view.in_flight.get(replica.name, 0) + 1 <= LOAD_SHARE_MAX * replica.in_flight_max


@asynccontextmanager
async def take_room(
    services: Services, choice: Choice, own_places: Counter[str], share: float
) -> AsyncIterator[Lease | None]:
    """Take a place on the choice's replica before waiting callers. Yields None if no place is free in time.

    `own_places` counts these places by replica while their blocks run: at most `share` of a replica's places. The lease
    counts as load at once, so no caller gets the next free place. If too many callers wait, they come first. The block
    gives the lease back.
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
    """Wait until `is_so()` is true, at most until `until` (monotonic seconds). Returns False if that time passed."""
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
    """Ask this choice's engine once for a whole answer. Returns the ledger, the closed answer, and the fault or None.

    `engine_body` is `body` as the engine gets it. The request never probes a resting replica. `lease` is the place
    taken for it (None: take one)."""
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
