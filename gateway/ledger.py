"""What one request takes and costs: written along the walk, settled once at its end into record and metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.answers.events import Progress
from gateway.configuration.deployment import Prices
from gateway.errors import Problem
from gateway.house import House
from gateway.limits.exits import Leave
from gateway.limits.limits import Hold
from gateway.request_body import RequestBody
from monitoring.cost import cost, saving
from monitoring.feedback import handle_of
from monitoring.ids import digest
from monitoring.records import AttemptRecord, FindingRecord, Record
from router.decision import Choice
from router.policy import Policy
from router.rungs import Finding

FALLBACK_REASONS = frozenset({"no_replica", "overload", "timeout", "engine_error", "context_length"})
"""Reasons for which a task's exit answers in its adapter's place, though the adapter should have."""


class Ledger:
    """The record of one request in the making, and the clocks that its times are read from (monotonic seconds)."""

    __slots__ = (
        "committed_at",
        "engine_seconds",
        "fallback_from",
        "hold",
        "last_chunk_at",
        "leave",
        "made",
        "parts",
        "record",
        "started_at",
        "traceparent",
        "waited_seconds",
    )

    def __init__(self, record: Record, now: float, traceparent: str | None) -> None:
        self.record = record
        self.started_at = now
        self.traceparent = traceparent or trace_of(record.id)
        self.engine_seconds = 0.0
        self.waited_seconds = 0.0
        """How long it waited for a place."""
        self.committed_at: float | None = None
        self.last_chunk_at: float | None = None
        self.fallback_from: str | None = None
        self.hold: Hold | None = None
        """What it has taken of its key's limits."""
        self.leave: Leave | None = None
        """Its leave to go to its task's exit, where that is capped."""
        self.made = 0
        """Tokens that had come from an engine whose attempt was cancelled."""
        self.parts: list[tuple[str, int, float]] = []
        """What engines made of the answer before another went on: pool, tokens, shared seconds."""

    def asked(self, body: RequestBody, session: str | None, subject: str | None, policy: Policy, secret: bytes) -> None:
        """Note what was asked, and under which names of the caller's own it may be found again."""
        record = self.record
        record.model_asked = body.read.model
        record.stream = body.stream
        record.policy_generation = policy.generation
        task = body.read.model.partition("@")[0]
        record.task = task if task in policy.tasks else None
        if session:
            record.handles.append(handle_of(secret, record.caller, "session", session))
        if subject:
            record.handles.append(handle_of(secret, record.caller, "subject", subject))

    def chosen(self, choice: Choice, stack: str) -> None:
        """Note where the request goes now."""
        record = self.record
        record.task = choice.task.name if choice.task else None
        record.version = choice.version.name if choice.version else None
        record.pool = choice.pool.name
        record.replica = choice.replica.name
        record.reason = choice.reason
        record.blueprint = choice.blueprint_of is not None
        record.override_id = choice.override_id
        record.probability = choice.probability
        record.stack = stack
        record.exit_capped = record.exit_capped or choice.exit_capped
        if choice.task is not None and choice.version is None and choice.reason in FALLBACK_REASONS:
            self.fallback_from = choice.blueprint_of.pool if choice.blueprint_of else ""
        record.adapter_digest = choice.version.digest if choice.version else None

    def found(self, findings: Iterable[Finding]) -> None:
        """Note what rungs found."""
        self.record.findings += [
            FindingRecord(one.rung, one.mode, one.fired, one.score, one.threshold, list(one.neighbours), one.note)
            for one in findings
        ]

    def attempted(self, choice: Choice, fault: str | None, seconds: float) -> None:
        """Note one attempt: how long its engine was waited for, and what went wrong (None: nothing)."""
        self.engine_seconds += seconds
        version = choice.version.name if choice.version else None
        self.record.attempts.append(
            AttemptRecord(choice.pool.name, choice.replica.name, version, fault, round(seconds, 6))
        )

    def sent(self, body: bytes, secret: bytes) -> None:
        """Note the request as its engine got it."""
        self.record.request_digest = digest(secret, body)

    def wasted(self, prices: Prices, pool: str, shared_seconds: float) -> None:
        """Note what an attempt cost that came to nothing, where a replica is paid by the hour; tokens are not known."""
        spent = cost(prices.by_pool.get(pool), None, None, shared_seconds)
        if spent is not None:
            self.record.wasted_usd = (self.record.wasted_usd or 0.0) + spent

    def went_on(self, pool: str, tokens: int, shared_seconds: float) -> None:
        """Note a part of the answer that another engine goes on with."""
        self.parts.append((pool, tokens, shared_seconds))

    def begins_anew(self, prices: Prices) -> None:
        """Nobody goes on with the parts that there are."""
        for pool, _, shared_seconds in self.parts:
            self.wasted(prices, pool, shared_seconds)
        self.parts.clear()

    def committed(self, now: float) -> None:
        """The answer belongs to the caller from now on."""
        self.committed_at = self.last_chunk_at = now
        record = self.record
        record.overhead_seconds = now - self.started_at - self.waited_seconds - self.engine_seconds
        record.first_token_seconds = now - self.started_at

    def problem(self, problem: Problem) -> None:
        """The caller gets an error."""
        self.record.error_code = problem.code
        if self.committed_at is not None:
            self.record.outcome = "truncated"
            return
        self.record.status = problem.status
        self.record.outcome = "refused" if problem.status < 500 else "failed"

    def cancelled(self) -> None:
        """The caller has gone."""
        record = self.record
        record.status = 499
        record.outcome = "cancelled"
        if self.made and record.completion_tokens is None:
            record.completion_tokens = self.made

    def learned(self, progress: Progress, prices: Prices, shared_seconds: float, secret: bytes) -> None:
        """Take over what the answer told: tokens, how it ended, and from them the cost so far."""
        record = self.record
        record.answer_id = progress.answer_id
        if progress.answer_id and record.id not in progress.answer_id:
            record.handles.append(handle_of(secret, record.caller, "answer", progress.answer_id))
        record.finish_reason = progress.finish_reason
        usage = progress.usage
        if usage is not None:
            record.prompt_tokens = usage.prompt_tokens
            record.completion_tokens = usage.completion_tokens
            details = usage.prompt_tokens_details
            record.cached_prompt_tokens = details.cached_tokens if details else None
        elif progress.chunks:
            record.completion_tokens = progress.chunks
        price = prices.by_pool.get(record.pool or "")
        if self.parts:
            record.cost_usd = self._cost_of_parts(prices, shared_seconds)
        else:
            record.cost_usd = cost(
                price, record.prompt_tokens, record.completion_tokens, shared_seconds, record.cached_prompt_tokens
            )
        if record.version is not None:
            record.saving_usd = saving(prices.general, record.cost_usd, record.prompt_tokens, record.completion_tokens)

    def _cost_of_parts(self, prices: Prices, shared_seconds: float) -> float | None:
        """What the engines took together: each read the prompt, and as part of it what was there before.

        How long the prompt was in another pool, whose template is another, is not known.
        """
        record, made, total = self.record, 0, 0.0
        rest = (record.completion_tokens or 0) - sum(tokens for _, tokens, _ in self.parts)
        for pool, tokens, seconds in (*self.parts, (record.pool or "", rest, shared_seconds)):
            prompt = record.prompt_tokens if pool == record.pool else None
            spent = cost(prices.by_pool.get(pool), None if prompt is None else prompt + made, tokens, seconds)
            if spent is None:
                return None
            total += spent
            made += tokens
        return total


def trace_of(request_id: str) -> str:
    """A W3C trace context of our own: the request's UUID is the trace, its MAC the span. Not sampled."""
    text = request_id.replace("-", "")
    return f"00-{text[:32]}-{text[32:48]}-00"


def settle(house: House, ledger: Ledger, now: float) -> None:
    """Close the record and count it: the last step of every walk that found its caller, whatever became of it."""
    record = ledger.record
    record.duration_seconds = now - ledger.started_at
    if not record.stream:
        record.first_token_seconds = None
    record.token_seconds = _token_seconds(ledger)
    price = None
    if record.outcome == "cancelled":
        price = house.prices.by_pool.get(record.pool or "")
        if record.cost_usd is not None:
            record.wasted_usd = (record.wasted_usd or 0.0) + record.cost_usd
        record.cost_usd = record.saving_usd = None
    if ledger.hold is not None:
        ledger.hold.settle(record, price)
    house.exits.settle(record, ledger.leave, price)
    if record.outcome == "ok":
        house.coverage.served(record.task or "")
    _count(house, ledger)
    if not house.records.put(record):
        house.meters.records_dropped.add(1)


async def settle_shadow(house: House, ledger: Ledger, now: float, outcome: str) -> None:
    """Close a shadow's record: its cost is booked as shadow, and no caller's figures change. Raises RedisError."""
    record = ledger.record
    record.duration_seconds = now - ledger.started_at
    record.saving_usd = None
    task, version, pool = record.task or "", record.version or "", record.pool or ""
    house.meters.shadow_requests.add(1, task, version, outcome)
    if record.cost_usd is not None:
        house.meters.cost_usd.add(record.cost_usd, task, version, pool, "shadow")
    if not house.records.put(record):
        house.meters.records_dropped.add(1)
    await house.rollouts.keep_pair(record)


def _token_seconds(ledger: Ledger) -> float | None:
    """The time of one completion token: after the first in a stream, of all where the answer came at once."""
    tokens = ledger.record.completion_tokens
    if ledger.committed_at is None or ledger.last_chunk_at is None or tokens is None or tokens < 2:
        return None
    if ledger.record.stream:
        return (ledger.last_chunk_at - ledger.committed_at) / (tokens - 1)
    return ledger.engine_seconds / tokens


def _count(house: House, ledger: Ledger) -> None:
    record, meters = ledger.record, house.meters
    task, version, pool = record.task or "", record.version or "", record.pool or ""
    meters.requests.add(1, task, version, pool, record.reason or "", record.outcome)
    meters.request_duration_seconds.observe(record.duration_seconds, task, pool)
    if record.overhead_seconds is not None:
        meters.overhead_seconds.observe(record.overhead_seconds, task, pool)
    if record.first_token_seconds is not None:
        meters.time_to_first_token_seconds.observe(record.first_token_seconds, task, pool)
    if record.token_seconds is not None:
        meters.time_per_output_token_seconds.observe(record.token_seconds, task, pool)
    for attempt in record.attempts:
        meters.attempts.add(1, attempt.pool, attempt.fault or "answered")
    if record.error_code == "exit_capped":
        meters.exit_capped.add(1, task, record.reason or "")
    if ledger.fallback_from is not None:
        meters.fallbacks.add(1, task, ledger.fallback_from, pool, record.reason or "")
    _count_cost(record, meters, (task, version, pool))


def _count_cost(record: Record, meters: Any, labels: tuple[str, str, str]) -> None:
    if record.prompt_tokens is not None:
        meters.tokens.add(record.prompt_tokens, *labels, "prompt")
    if record.completion_tokens is not None:
        meters.tokens.add(record.completion_tokens, *labels, "completion")
    if record.wasted_usd is not None:
        meters.cost_usd.add(record.wasted_usd, *labels, "wasted")
    if record.cost_usd is not None:
        meters.cost_usd.add(record.cost_usd, *labels, "serve")
    elif record.outcome == "ok":
        meters.cost_unknown.add(1, labels[2])
    if record.saving_usd is not None:
        meters.saved(labels[0], record.saving_usd)
