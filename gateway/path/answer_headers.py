"""The headers of an answer: its media type, where it came from, and why."""

from __future__ import annotations

from functools import lru_cache

from gateway.formats.wire_format import WireFormat
from gateway.path.ledger import Ledger
from gateway.server.asgi_messages import Headers

JSON_HEADERS = ((b"content-type", b"application/json"),)
STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


def make_choice_headers(ledger: Ledger, wire_format: WireFormat) -> Headers:
    """The headers of every answer: where it came from, and why."""
    record = ledger.record
    headers = [
        (b"x-request-id", record.id.encode()),
        (b"x-apprentice-attempts", b"%d" % len(record.attempts)),
        *_list_place_headers(record.task, record.version, record.pool, record.reason),
    ]
    if record.dropped:
        headers.append((b"x-apprentice-dropped", ",".join(record.dropped).encode()))
    if ledger.body is not None and ledger.body.clamped:
        headers.append((b"x-apprentice-clamped", ledger.body.clamped.encode()))
    headers.append((b"traceparent", ledger.traceparent.encode()))
    if wire_format.id_header is not None:
        headers.append((wire_format.id_header, record.id.encode()))
    headers += ledger.labels
    if ledger.hold is not None:
        headers += ledger.hold.purse.headers()
    if record.overhead_seconds is not None:
        headers.append((b"x-apprentice-overhead-ms", b"%.3f" % (record.overhead_seconds * 1000)))
    return headers


@lru_cache(maxsize=1024)
def _list_place_headers(
    task: str | None, version: str | None, pool: str | None, reason: str | None
) -> tuple[tuple[bytes, bytes], ...]:
    """The headers of one task, version, pool and reason. Callers can't invent any of these values."""
    named = (
        (b"x-apprentice-task", task),
        (b"x-apprentice-version", version),
        (b"x-apprentice-pool", pool),
        (b"x-apprentice-reason", reason),
    )
    return tuple((name, value.encode()) for name, value in named if value)
