"""Requests of our own, which no caller waits for: a shadow's, an evaluation's."""

from __future__ import annotations

import time

from gateway.formats.request_body import RequestBody
from gateway.path.answer import Answer
from gateway.path.ledger import Ledger
from gateway.server.wire import Deadline
from gateway.services import Services
from monitoring.records import Record
from router.decision import Choice
from router.policy import AttemptLimits
from serving.errors import EngineError
from serving.view import FleetView, ReplicaView

LOAD_SHARE_MAX = 0.8
"""Share of a replica's in_flight_max up to which both arms' answers and their judges add to its load: the rest is
callers'."""


def has_room(services: Services, view: FleetView, replica: ReplicaView) -> bool:
    """True if one more request of our own takes no caller's place there: never the last one, so that a replica that
    holds one request at a time has none for us."""
    if services.admission.waiting:
        return False
    return view.in_flight.get(replica.name, 0) + 1 <= LOAD_SHARE_MAX * replica.in_flight_max


async def ask_beside(
    services: Services, choice: Choice, body: RequestBody, sent: bytes, record: Record, limits: AttemptLimits
) -> tuple[Ledger, Answer, str | None]:
    """Ask this choice's engine once, for a whole answer: its ledger, the answer, closed, and what went wrong (None:
    nothing). `sent` is `body` as the engine gets it. It is no probe of a replica that rests.
    """
    now = time.monotonic()
    ledger = Ledger(record, now, None)
    ledger.note_choice(choice, services.get_fingerprint(choice))
    headers = {"Content-Type": "application/json", "X-Request-Id": record.id, "traceparent": ledger.traceparent}
    lease = services.fleet.replicas[choice.replica.name].lease(now, choice.engine_model, probes=False)
    answer = Answer(body.wire_format, choice, lease)
    fault: str | None = None
    with answer:
        try:
            with Deadline(limits.answer_timeout_seconds):
                await answer.begin(services, body, sent, headers, limits)
        except (EngineError, TimeoutError) as error:
            fault = error.kind if isinstance(error, EngineError) else "silent"
        ledger.note_attempt(choice, fault, time.monotonic() - now)
        ledger.note_answer(
            answer.progress, services.prices, answer.lease.share(time.monotonic()), services.digest_secret
        )
    return ledger, answer, fault
