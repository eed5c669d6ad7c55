"""Spans of requests, made from their ledgers at their end. They hold names and numbers, but no texts."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version as installed_version
from types import MappingProxyType
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from gateway.services import Services, TracedLedger
from monitoring.records import FindingRecord, Record
from monitoring.trace_context import TraceContext, make_context
from router.checks import AFTER_THE_ANSWER

SAMPLED = TraceFlags(TraceFlags.SAMPLED)
EXPORT_SECONDS_MAX = 5.0
OPERATIONS: Mapping[str, str] = MappingProxyType({"completions": "text_completion", "embeddings": "embeddings"})
"""`gen_ai.operation.name` by the record's endpoint; all others chat."""
FAILED = frozenset({"failed", "truncated"})
PARAMETERS: Mapping[str, str] = MappingProxyType(
    {
        "max_tokens": "gen_ai.request.max_tokens",
        "temperature": "gen_ai.request.temperature",
        "top_p": "gen_ai.request.top_p",
        "top_k": "gen_ai.request.top_k",
        "seed": "gen_ai.request.seed",
        "n": "gen_ai.request.choice.count",
        "frequency_penalty": "gen_ai.request.frequency_penalty",
        "presence_penalty": "gen_ai.request.presence_penalty",
    }
)
"""Fields of a body that are numbers, by their attributes."""
Attributes = dict[str, Any]


class Tracer:
    """Maker of the spans of sampled requests. It hands them to the SDK, whose thread sends them."""

    def __init__(self, services: Services, endpoint: str, sampled_share: float) -> None:
        self._fleet = services.fleet
        self._meters = services.meters
        self._sampled_share = sampled_share
        self._resource = Resource.create(
            {
                "service.name": "apprentice-gateway",
                "service.instance.id": services.name,
                "service.version": installed_version("apprentice-gateway"),
            }
        )
        self._processor = BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=EXPORT_SECONDS_MAX))

    def begin(self, request_id: str, traceparent: str | None) -> TraceContext | None:
        """Return the request's place in its trace; None if it is not sampled."""
        draw = random.random()  # noqa: S311 - a sample, not a secret
        return make_context(request_id, traceparent, draw, self._sampled_share)

    def end(self, ledger: TracedLedger, trace: TraceContext, now: float) -> None:
        """Make the spans of a request that has ended, and exemplars of its times."""
        record, meters, at = ledger.record, self._meters, time.time()
        for histogram, seconds in (
            (meters.request_duration_seconds, record.duration_seconds),
            (meters.overhead_seconds, record.overhead_seconds),
            (meters.time_to_first_token_seconds, record.first_token_seconds),
            (meters.time_per_output_token_seconds, record.token_seconds),
        ):
            if seconds is not None:
                histogram.cell(record.task or "", record.pool or "").exemplify(seconds, trace.trace_id, at)
        for span in self._make_spans(ledger, trace, now):
            self._processor.on_end(span)

    def close(self) -> None:
        """Send the waiting spans in a thread. The process's end waits for it, at most the time of one export."""
        threading.Thread(target=self._processor.shutdown).start()

    def _make_spans(self, ledger: TracedLedger, trace: TraceContext, now: float) -> Iterator[ReadableSpan]:
        zero = time.time_ns() - int(now * 1e9)
        """Unix time in nanoseconds at which the monotonic clock was 0."""
        trace_id, record = int(trace.trace_id, 16), ledger.record
        operation = OPERATIONS.get(record.endpoint, "chat")
        own, parent_id = _context(trace_id, trace.span_id), trace.parent_id

        def make(
            name: str, context: SpanContext, parent: SpanContext | None, began: float, ended: float, **rest: Any
        ) -> ReadableSpan:
            start, end = zero + int(began * 1e9), zero + int(ended * 1e9)
            return ReadableSpan(name, context, parent, self._resource, start_time=start, end_time=end, **rest)

        def child(name: str, began: float, ended: float, **rest: Any) -> ReadableSpan:
            return make(name, _context(trace_id, os.urandom(8).hex()), own, began, ended, **rest)

        if ledger.score_began_at is not None and ledger.scored_at is not None:
            yield child("score", ledger.score_began_at, ledger.scored_at)
        if ledger.scored_at is not None and ledger.chosen_at is not None:
            chosen = _without_none({"apprentice.reason": ledger.first_reason, "apprentice.led_to": record.led_to})
            at = zero + int(ledger.chosen_at * 1e9)
            before = [each for each in record.findings if each.check not in AFTER_THE_ANSWER]
            yield child("choose", ledger.scored_at, ledger.chosen_at, attributes=chosen, events=_events(before, at))
        for number, (began, ended) in enumerate(_attempt_times(ledger, now), 1):
            attributes = self._of_attempt(record, number, operation)
            yield make(
                f"{operation} {attributes['gen_ai.request.model']}",
                _context(trace_id, trace.span_of(number)),
                own,
                began,
                ended,
                kind=SpanKind.CLIENT,
                attributes=attributes,
                status=_status(record.attempts[number - 1].fault),
            )
        after = [each for each in record.findings if each.check in AFTER_THE_ANSWER]
        yield make(
            f"{operation} {record.task or record.pool or ''}".rstrip(),
            own,
            _context(trace_id, parent_id, is_remote=True) if parent_id is not None else None,
            ledger.started_at,
            now,
            kind=SpanKind.SERVER,
            attributes=_of_request(ledger, operation),
            events=_events(after, zero + int((ledger.committed_at or now) * 1e9)),
            status=_status(record.error_code if record.outcome in FAILED else None),
        )

    def _of_attempt(self, record: Record, number: int, operation: str) -> Attributes:
        attempt = record.attempts[number - 1]
        pool = self._fleet.view().pools.get(attempt.pool)
        attributes: Attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": pool.engine if pool is not None else None,
            "gen_ai.request.model": attempt.version or (pool.base_model if pool is not None else attempt.pool),
            "apprentice.attempt": number,
            "apprentice.pool": attempt.pool,
            "apprentice.replica": attempt.replica,
            "apprentice.version": attempt.version,
            "error.type": attempt.fault,
        }
        if record.stream and (attempt.fault is None or attempt.fault in AFTER_THE_ANSWER):
            attributes["gen_ai.response.time_to_first_chunk"] = attempt.seconds
        return _without_none(attributes)


def _of_request(ledger: TracedLedger, operation: str) -> Attributes:
    record, read = ledger.record, ledger.body.read if ledger.body is not None else None
    finish, version = record.finish_reason, record.version
    attributes = {
        "http.request.method": "POST",
        "http.response.status_code": record.status,
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "apprentice",
        "gen_ai.request.model": record.requested_model if record.reason is not None else None,
        "gen_ai.request.stream": record.stream,
        **{name: getattr(read, field, None) for field, name in PARAMETERS.items()},
        "gen_ai.response.id": record.answer_id,
        "gen_ai.response.model": version,
        "gen_ai.response.finish_reasons": [finish] if finish is not None else None,
        "gen_ai.response.time_to_first_chunk": record.first_token_seconds,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_prompt_tokens,
        "apprentice.request_id": record.id,
        "apprentice.caller": record.caller,
        "apprentice.task": record.task,
        "apprentice.version": version,
        "apprentice.pool": record.pool,
        "apprentice.replica": record.replica,
        "apprentice.reason": record.reason,
        "apprentice.fallback_from": ledger.fallback_from or None,
        "apprentice.rule": record.override_id,
        "apprentice.outcome": record.outcome,
        "apprentice.cost_usd": record.cost_usd,
        "apprentice.wasted_usd": record.wasted_usd,
        "apprentice.saving_usd": record.saving_usd,
        "apprentice.overhead_seconds": record.overhead_seconds,
        "apprentice.waited_seconds": ledger.waited_seconds or None,
        "error.type": record.error_code,
    }
    return _without_none(attributes)


def _attempt_times(ledger: TracedLedger, now: float) -> Iterator[tuple[float, float]]:
    """Begin and end of each attempt. An attempt with an answer lasts until the next one, or until the request's end."""
    next_ones = [*ledger.attempts_began_at[1:], now]
    for attempt, began, later in zip(ledger.record.attempts, ledger.attempts_began_at, next_ones, strict=False):
        answered = attempt.fault is None or attempt.fault in AFTER_THE_ANSWER
        yield began, later if answered else began + attempt.seconds


def _events(findings: list[FindingRecord], at: int) -> list[Event]:
    """One event for each finding, without its note, which may quote an answer."""
    return [
        Event(
            "apprentice.check",
            _without_none(
                {
                    "apprentice.check": finding.check,
                    "apprentice.check.mode": finding.mode,
                    "apprentice.check.fired": finding.fired,
                    "apprentice.check.score": finding.score,
                    "apprentice.check.threshold": finding.threshold,
                    "apprentice.version": finding.version,
                }
            ),
            at,
        )
        for finding in findings
    ]


def _context(trace_id: int, span_id: str, is_remote: bool = False) -> SpanContext:
    return SpanContext(trace_id, int(span_id, 16), is_remote, SAMPLED)


def _status(fault: str | None) -> Status:
    return Status(StatusCode.UNSET) if fault is None else Status(StatusCode.ERROR, fault)


def _without_none(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if value is not None}
