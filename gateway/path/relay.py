"""Relaying a committed answer to its caller, as the bytes that the engine sent. Nothing is retried from here on.

Another engine may continue a stream that breaks (gateway/path/continuation.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

from gateway.errors import Problem
from gateway.formats.answer_writer import AnswerWriter
from gateway.formats.format_table import get_format
from gateway.formats.request_body import RequestBody
from gateway.formats.server_sent_events import extend_usage_event, with_fingerprint, with_last_field
from gateway.path.answer import Answer
from gateway.path.answer_checks import judge_sent
from gateway.path.answer_headers import JSON_HEADERS, STREAM_HEADERS, make_choice_headers
from gateway.path.continuation import go_on
from gateway.path.ledger import Ledger
from gateway.server.asgi_messages import HungUp
from gateway.server.deadline import Deadline
from gateway.server.exchange import Exchange
from gateway.services import Services
from monitoring.ids import DIGEST_BYTES
from monitoring.records import Record
from router.policy import Policy
from serving.errors import EngineError

LAST_SEND_SECONDS_MAX = 1.0
HELD_SECONDS_MAX = 0.25
"""Longest time to hold a stream's last event for the usage that follows it: the event gets the usage's fingerprint."""


async def relay(
    services: Services, exchange: Exchange, policy: Policy, body: RequestBody, answer: Answer, ledger: Ledger
) -> None:
    """Commit the answer and send it. Raises Problem if a stream breaks after it has begun."""
    ledger.note_commit(time.monotonic())
    ledger.record.status = 200
    if body.stream:
        await _relay_stream(services, exchange, policy, body, answer, ledger)
        judge_sent(services, body, answer, ledger)
    else:
        await _relay_whole(services, exchange, body, answer, ledger)


async def _relay_whole(
    services: Services, exchange: Exchange, body: RequestBody, answer: Answer, ledger: Ledger
) -> None:
    ledger.note_answer(answer.progress, services.prices, answer.lease.share(time.monotonic()), services.digest_secret)
    ledger.record.answer_digest = _keyed(services, answer.body).hexdigest()
    if answer.parts is not None:
        answer.parts.append(answer.body)
    ledger.record.outcome = "ok"
    headers = [*JSON_HEADERS, *make_choice_headers(ledger, get_format(exchange.path))]
    if ledger.record.cost_usd is not None:
        headers.append((b"x-apprentice-cost-usd", b"%.9f" % ledger.record.cost_usd))
    await exchange.whole(200, headers, answer.body if body.writer is None else body.writer.write_whole(answer.body))


async def _relay_stream(
    services: Services, exchange: Exchange, policy: Policy, body: RequestBody, answer: Answer, ledger: Ledger
) -> None:
    end = HeldEnd(answer, holds=not body.wants_usage)
    flow, writer = TokenFlow(exchange, answer, ledger, _keyed(services, b""), body.writer), body.writer
    try:
        headers = [*STREAM_HEADERS, *make_choice_headers(ledger, get_format(exchange.path))]
        await exchange.begin(200, headers, flow.write(end.ready(answer.take_held_events())))
        if writer is None:
            answer.pass_to(flow.take)
        events: list[bytes] | None = []
        while events is not None:
            try:
                events = await end.next_events()
            except EngineError as error:
                await go_on(services, policy, body, answer, ledger, error)
                events = answer.take_held_events()
            if events is not None:
                await exchange.write(flow.write(end.ready(events)))
        if last := end.release():
            flow.note(last)
        ledger.record.outcome = "ok"
    finally:
        answer.pass_to(None)
        progress = answer.total()
        ledger.note_answer(progress, services.prices, answer.share(time.monotonic()), services.digest_secret)
        ledger.record.answer_digest = flow.digest.hexdigest()
    ending = _ending(body, answer, ledger.record, last)
    await exchange.end(ending + body.wire_format.last_event if writer is None else writer.write_end(ending))
    await answer.drain()


class TokenFlow:
    """A stream's parts on their way to the caller. Plain tokens go past the relay.

    While the relay waits, the engine's connection calls `take`, which sends tokens at once. All else wakes the relay:
    the stream's end, the usage, a fault, a caller that reads slowly.
    """

    def __init__(
        self,
        exchange: Exchange,
        answer: Answer,
        ledger: Ledger,
        digest: hashlib.blake2b,
        writer: AnswerWriter | None,
    ) -> None:
        self._exchange = exchange
        self._answer = answer
        self._ledger = ledger
        self._writer = writer
        self.digest = digest

    def take(self, parts: list[bytes]) -> int:
        """Send the parts at the front that are tokens. Returns their number."""
        taken = self._answer.take_tokens(parts) if self._exchange.flows else 0
        if taken:
            part = parts[0] if taken == 1 else b"".join(parts[:taken])
            self.note(part)
            self._exchange.pass_on(part)
        return taken

    def write(self, part: bytes) -> bytes:
        """Note a part that the relay sends now. Returns it in the caller's format."""
        if not part:
            return b""
        self.note(part)
        return part if self._writer is None else self._writer.write_events(part)

    def note(self, part: bytes) -> None:
        """Note a part that is sent now."""
        self.digest.update(part)
        if self._answer.parts is not None:
            self._answer.parts.append(part)
        self._ledger.last_chunk_at = time.monotonic()


class HeldEnd:
    """A stream's last events, held until the usage follows: its fingerprint goes into the last event.

    With `holds` False, as for a caller that gets the usage itself, they are held only when nothing else is awaited.
    One write then sends them and the end. Held events mean a complete answer, so no engine has to continue it.
    """

    def __init__(self, answer: Answer, holds: bool) -> None:
        self._answer = answer
        self._holds = holds
        self._end = b""

    def ready(self, events: list[bytes]) -> bytes:
        """The part of the stream to send now; the rest is held."""
        part, self._end = self._end + b"".join(events), b""
        if self._answer.finished and (self._holds or self._answer.is_over):
            part, self._end = b"", part
        return part

    async def next_events(self) -> list[bytes] | None:
        """The answer's next events, or an empty list once events were held for HELD_SECONDS_MAX: then they are ready.

        Returns None at the answer's end. Raises an EngineError if it broke.
        """
        if not self._end:
            return await self._answer.next_events()
        try:
            with Deadline(HELD_SECONDS_MAX):
                return await self._answer.next_events()
        except TimeoutError:
            self._holds = False
            return []

    def release(self) -> bytes:
        """The events still held, with the fingerprint if they were held for it; empty if none are held."""
        end, self._end = self._end, b""
        return with_fingerprint(end, self._answer.total().usage_payload) if self._holds else end


def _ending(body: RequestBody, answer: Answer, record: Record, end: bytes) -> bytes:
    """A stream's last events, with the gateway's details of the request if an event has room for them.

    Clients that do not ask for the usage expect a choice in every event, so they get no event without one. A comment
    gives the number of unreadable events to all clients, whose parsers ignore it.
    """
    progress = answer.total()
    comment = b": skipped_events=%d\n\n" % progress.skipped if progress.skipped else b""
    if body.wants_usage and (progress.usage_payload or progress.skipped):
        payload = progress.usage_payload or body.wire_format.empty_event(
            progress.answer_id or record.id, int(record.at), answer.choice.engine_model
        )
        return end + extend_usage_event(payload, _make_details(record)) + comment
    if progress.skipped:
        end = with_last_field(end, "apprentice", _make_details(record))
    return end + comment


def _make_details(record: Record) -> dict[str, Any]:
    """The `apprentice` object of a stream's last event, also with the unreadable events and the continuations."""
    details: dict[str, Any] = {"cost_usd": record.cost_usd, "request_id": record.id, "reason": record.reason}
    if record.skipped_events:
        details["skipped_events"] = record.skipped_events
    if record.continued:
        details |= {"continued": record.continued, "version": record.version, "pool": record.pool}
    return details


async def refuse(exchange: Exchange, problem: Problem, ledger: Ledger | None) -> None:
    """Send the caller a problem: as an answer, or inside a stream that has begun, which ends without [DONE].

    Raises HungUp for a caller that reads nothing of a stream.
    """
    wire_format = get_format(exchange.path)
    if exchange.begun:
        writer = ledger.body.writer if ledger and ledger.body else None
        ending = wire_format.error_event(problem) if writer is None else writer.write_failure(problem)
        try:
            async with asyncio.timeout(LAST_SEND_SECONDS_MAX):
                await exchange.end(ending)
        except TimeoutError:  # do not wait for a caller that reads nothing
            raise HungUp from None
        return
    headers = problem.headers() + (make_choice_headers(ledger, wire_format) if ledger else [])
    await exchange.whole(problem.status, headers, wire_format.error_body(problem))


def _keyed(services: Services, data: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(data, key=services.digest_secret, digest_size=DIGEST_BYTES)
