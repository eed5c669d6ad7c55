"""The record of one request and its costs: written during the walk, settled once at its end into record and metrics."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import NamedTuple

from gateway.current_configuration import Prices
from gateway.errors import Problem
from gateway.formats.request_body import RequestBody
from gateway.formats.server_sent_events import Progress
from gateway.limits.caller_limits import Hold
from gateway.limits.fallback_caps import FallbackHold
from gateway.services import RequestTracing, Services
from monitoring.cost import compute_cost, compute_saving
from monitoring.feedback import handle_of
from monitoring.ids import digest
from monitoring.metrics import Meters
from monitoring.records import AttemptRecord, FindingRecord, Record
from monitoring.trace_context import trace_of
from router.awaited_replicas import list_awaited_replicas
from router.checks import AFTER_THE_ANSWER, CHECK_BY_NAME, list_names
from router.findings import CheckName, Finding
from router.policy import Policy
from router.routing_data import Choice, Refusal, RoutingRequest, Scores

FALLBACK_REASONS = frozenset(
    {"no_replica", "overload", "timeout", "engine_error", "context_length"}
    | list_names(lambda check: not check.is_random)
)
"""Reasons for which a task's fallback answers because the adapter could not or may not."""
USD_MIN = 1e-12
"""Smallest amount that counts. A smaller one is a rounding error of sums."""
LANGUAGE = re.compile(r"[a-z]{2,3}")
"""A code of ISO 639, as callers send it in `metadata.language`."""


class Rejection(NamedTuple):
    """An answer that a check rejected: task, version and pool, its tokens and its cost (None: not known)."""

    labels: tuple[str, str, str]
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None


class Ledger:
    """The unfinished record of one request, and the times from which its durations come (monotonic seconds)."""

    __slots__ = (
        "attempts_began_at",
        "body",
        "chosen_at",
        "committed_at",
        "engine_seconds",
        "fallback_from",
        "fallback_hold",
        "first_reason",
        "hold",
        "labels",
        "last_chunk_at",
        "made",
        "parts",
        "paused_seconds",
        "record",
        "rejections",
        "score_began_at",
        "scored_at",
        "started_at",
        "trace",
        "traceparent",
        "tracestate",
        "turned_down",
        "waited_seconds",
    )

    def __init__(
        self,
        record: Record,
        now: float,
        traceparent: str | None = None,
        tracestate: str | None = None,
        tracing: RequestTracing | None = None,
    ) -> None:
        self.record = record
        self.body: RequestBody | None = None
        self.started_at = now
        self.trace = None if tracing is None else tracing.begin(record.id, traceparent)
        """The request's place in a trace; None if nobody traces it."""
        self.traceparent = self.trace.header() if self.trace is not None else traceparent or trace_of(record.id)
        self.tracestate = tracestate
        """The caller's `tracestate`, written by other tracers. Engines get it unchanged."""
        self.score_began_at: float | None = None
        self.scored_at: float | None = None
        self.chosen_at: float | None = None
        self.first_reason: str | None = None
        """The reason of the first choice."""
        self.attempts_began_at: list[float] = []
        self.engine_seconds = 0.0
        self.waited_seconds = 0.0
        """Seconds of waiting for a place."""
        self.paused_seconds = 0.0
        """Seconds of waiting for the caller's body, and of pauses before further attempts."""
        self.committed_at: float | None = None
        self.last_chunk_at: float | None = None
        self.fallback_from: str | None = None
        self.hold: Hold | None = None
        """The part of its key's limits that the request has taken."""
        self.fallback_hold: FallbackHold | None = None
        """The request's hold on the cap of its task's fallback, if the fallback has a cap."""
        self.made = 0
        """Tokens from an engine whose attempt was then cancelled."""
        self.labels: tuple[tuple[bytes, bytes], ...] = ()
        """Headers of this answer alone."""
        self.rejections: tuple[Rejection, ...] = ()
        """Answers that checks rejected."""
        self.turned_down: tuple[str, str] | None = None
        """A version whose whole answer a check rejected, and the text of that answer. Kept only for a request that both
        arms answer."""
        self.parts: list[tuple[str, int, float]] = []
        """Parts of the answer by engines before the last: pool, tokens, shared seconds."""

    def note_request(
        self, body: RequestBody, session: str | None, subject: str | None, policy: Policy, secret: bytes
    ) -> None:
        """Note the request, and the digests of its session and subject, by which it can be found later."""
        record = self.record
        self.body = body
        record.requested_model = body.read.model
        record.stream = body.stream
        record.policy_generation = policy.generation
        task = body.read.model.partition("@")[0]
        record.task = task if task in policy.tasks else None
        if session:
            record.handles.append(handle_of(secret, record.caller, "session", session))
        if subject:
            record.handles.append(handle_of(secret, record.caller, "subject", subject))

    def note_choice(self, choice: Choice, fingerprint: str) -> None:
        """Note the chosen version, pool and replica of the next attempt."""
        record = self.record
        record.task = choice.task.name if choice.task else None
        record.version = choice.version.name if choice.version else None
        record.pool = choice.pool.name
        record.replica = choice.replica.name
        record.reason = choice.reason
        record.general_prompt = choice.general_prompt_of is not None
        record.override_id = choice.override_id
        record.probability = choice.probability
        record.fingerprint = fingerprint
        record.fallback_capped = record.fallback_capped or choice.fallback_capped
        led_to = choice.led_to
        record.led_to = led_to.name if led_to else None
        stands_in = led_to is None or record.version != led_to.name
        if choice.task is not None and stands_in and choice.reason in FALLBACK_REASONS:
            self.fallback_from = led_to.pool if led_to else ""
        else:
            self.fallback_from = None
        record.adapter_digest = choice.version.digest if choice.version else None

    def note_refusal(self, decision: Refusal, task: str | None) -> None:
        """Note the reason for the router's refusal. `task` is the task that the router chose for the model `auto`."""
        self.record.task = self.record.task or task
        self.record.reason = decision.reason
        self.record.fallback_capped = decision.fallback_capped
        self.record.override_id = decision.override_id
        self.record.led_to = decision.led_to.name if decision.led_to else None

    def note_findings(self, findings: Iterable[Finding]) -> None:
        """Note the findings of checks."""
        for finding in findings:
            self.record.findings.append(make_finding_record(finding, self.record.version))

    def traceparent_of(self, number: int) -> str:
        """The trace context for the engine of this attempt. Attempts are counted from 1."""
        return self.traceparent if self.trace is None else self.trace.header(number)

    def note_attempt(self, choice: Choice, fault: str | None, began_at: float, now: float) -> None:
        """Note one attempt: the waiting time for its engine, and its fault (None: no fault)."""
        seconds = now - began_at
        self.attempts_began_at.append(began_at)
        self.engine_seconds += seconds
        version = choice.version.name if choice.version else None
        self.record.attempts.append(
            AttemptRecord(choice.pool.name, choice.replica.name, version, fault, round(seconds, 6))
        )

    def note_sent(self, body: bytes, cache_salt: str | None, secret: bytes) -> None:
        """Note the digest of the request to the engine, without its salt: one input has one digest for all callers."""
        if cache_salt is not None:
            body = body.replace(b',"cache_salt":"%b"' % cache_salt.encode(), b"", 1)
        self.record.request_digest = digest(secret, body)

    def note_waste(self, prices: Prices, pool: str, shared_seconds: float) -> None:
        """Note the cost of a failed attempt at a replica that is paid by the hour. Its tokens are not known."""
        spent = compute_cost(prices.by_pool.get(pool), None, None, shared_seconds)
        if spent is not None:
            self.record.wasted_usd = (self.record.wasted_usd or 0.0) + spent

    def label_rejected(self, check: CheckName) -> None:
        """Label the answer, which is sent although this check rejected it."""
        self.labels = ((b"x-apprentice-rejected", check.encode()),)
        if check == "contract":
            self.label_broken_contract()

    def label_broken_contract(self) -> None:
        """Label the answer, which is sent although it breaks the contract."""
        self.labels += ((b"x-apprentice-contract", b"broken"),)

    def note_rejected(self, check: CheckName, progress: Progress, prices: Prices, shared_seconds: float) -> None:
        """Note an answer that this check rejected: its task, version and pool, and its tokens and cost where they are
        known."""
        record, usage = self.record, progress.usage
        record.attempts[-1].fault = check
        prompt = usage.prompt_tokens if usage is not None else None
        details = usage.prompt_tokens_details if usage is not None else None
        cached = details.cached_tokens if details is not None else None
        completion = progress.completion_tokens
        if self.parts:
            record.prompt_tokens, record.completion_tokens = prompt, completion
            spent = self._cost_of_parts(prices, shared_seconds, cached)
            record.prompt_tokens = record.completion_tokens = None
            self.parts.clear()
        else:
            spent = compute_cost(prices.by_pool.get(record.pool or ""), prompt, completion, shared_seconds, cached)
        record.wasted_tokens = (record.wasted_tokens or 0) + (prompt or 0) + (completion or 0)
        if spent is not None:
            record.wasted_usd = (record.wasted_usd or 0.0) + spent
        labels = (record.task or "", record.version or "", record.pool or "")
        self.rejections += (Rejection(labels, prompt, completion, spent),)

    def note_part(self, pool: str, tokens: int, shared_seconds: float) -> None:
        """Note a part of the answer that another engine continues."""
        self.parts.append((pool, tokens, shared_seconds))

    def drop_parts(self, prices: Prices, since: int = 0) -> None:
        """Count the parts from this index on as waste: no engine continues them."""
        for pool, _, shared_seconds in self.parts[since:]:
            self.note_waste(prices, pool, shared_seconds)
        del self.parts[since:]

    def note_commit(self, now: float) -> None:
        """Note the commit: from now on the answer belongs to the caller."""
        self.committed_at = self.last_chunk_at = now
        record = self.record
        waits = self.waited_seconds + self.paused_seconds + self.engine_seconds
        record.overhead_seconds = now - self.started_at - waits
        record.first_token_seconds = now - self.started_at

    def note_problem(self, problem: Problem) -> None:
        """Note the error that the caller gets."""
        self.record.error_code = problem.code
        if self.committed_at is not None:
            self.record.outcome = "truncated"
            return
        self.record.status = problem.status
        self.record.outcome = "refused" if problem.status < 500 else "failed"

    def note_hang_up(self) -> None:
        """Note that the caller hung up."""
        record = self.record
        record.status = 499
        record.outcome = "cancelled"
        if self.made and record.completion_tokens is None:
            record.completion_tokens = self.made

    def note_answer(self, progress: Progress, prices: Prices, shared_seconds: float, secret: bytes) -> None:
        """Note the answer's tokens and finish reason, and compute its cost so far from them."""
        record = self.record
        record.answer_id = progress.answer_id
        if progress.answer_id and record.id not in progress.answer_id:
            writer = self.body.writer if self.body is not None else None
            told_id = progress.answer_id if writer is None else writer.name_answer(progress.answer_id)
            record.handles.append(handle_of(secret, record.caller, "answer", told_id))
        record.finish_reason = progress.finish_reason
        record.skipped_events = progress.skipped
        usage = progress.usage
        if usage is not None:
            record.prompt_tokens = usage.prompt_tokens
            details = usage.prompt_tokens_details
            record.cached_prompt_tokens = details.cached_tokens if details else None
        record.completion_tokens = progress.completion_tokens
        price = prices.by_pool.get(record.pool or "")
        if self.parts:
            record.cost_usd = self._cost_of_parts(prices, shared_seconds, record.cached_prompt_tokens)
        else:
            record.cost_usd = compute_cost(
                price, record.prompt_tokens, record.completion_tokens, shared_seconds, record.cached_prompt_tokens
            )
        if record.version is not None:
            record.saving_usd = compute_saving(
                prices.general, record.cost_usd, record.prompt_tokens, record.completion_tokens
            )

    def _cost_of_parts(self, prices: Prices, shared_seconds: float, cached: int | None) -> float | None:
        """The cost of all engines together. Each read the prompt with the parts before its own. Only the last engine
        gave its number of `cached` tokens.

        The prompt's length is not known for other pools, whose chat templates may differ.
        """
        record, made, total = self.record, 0, 0.0
        rest = (record.completion_tokens or 0) - sum(tokens for _, tokens, _ in self.parts)
        parts = [(*part, None) for part in self.parts]
        for pool, tokens, seconds, told in (*parts, (record.pool or "", rest, shared_seconds, cached)):
            prompt = record.prompt_tokens + made if pool == record.pool and record.prompt_tokens is not None else None
            spent = compute_cost(prices.by_pool.get(pool), prompt, tokens, seconds, told)
            if spent is None:
                return None
            total += spent
            made += tokens
        return total


def make_finding_record(finding: Finding, version: str | None) -> FindingRecord:
    """A finding as a record stores it. `version` is used if the finding names no version."""
    return FindingRecord(
        check=finding.check,
        mode=finding.mode,
        fired=finding.fired,
        score=finding.score,
        threshold=finding.threshold,
        neighbours=list(finding.neighbours),
        note=finding.note,
        version=finding.version or version,
    )


def problem_of(services: Services, decision: Refusal, request: RoutingRequest, scores: Scores) -> Problem:
    """The problem for the router's refusal, with the expected time until a replica that could answer is back."""
    wait_seconds = None
    if decision.code in ("no_replica", "version_not_loaded"):
        policy, view, now = services.snapshot.current.policy, services.fleet.view(), time.monotonic()
        awaited = list_awaited_replicas(request, scores, policy, view, time.time(), loaded_only=False)
        wait_seconds = min((services.fleet.replicas[name].back_in_seconds(now) for name in awaited), default=None)
    param = "model" if decision.code.startswith("model") else None
    return Problem(decision.code, decision.message, param, wait_seconds)


def settle(services: Services, ledger: Ledger, now: float) -> None:
    """Close the record and count it: the last step of every walk that has a ledger, however the walk ended.

    A walk has no ledger if the caller hung up while it sent the body.
    """
    record = ledger.record
    record.duration_seconds = now - ledger.started_at
    if not record.stream:
        record.first_token_seconds = None
    record.token_seconds = _token_seconds(ledger)
    price = services.prices.by_pool.get(record.pool or "")
    if record.outcome == "cancelled":
        if record.cost_usd is not None:
            record.wasted_usd = (record.wasted_usd or 0.0) + record.cost_usd
        record.cost_usd = record.saving_usd = None
    if ledger.hold is not None:
        ledger.hold.settle(record, price)
    services.fallback_caps.settle(record, ledger.fallback_hold, price)
    if record.outcome == "ok":
        services.coverage.served(record.task or "")
    if services.snapshot.current.policy.watched:
        _note_language(services, ledger)
    _count(services, ledger)
    if ledger.body is not None and record.task is not None:
        services.recent.keep(record.id, ledger.body)
    services.keep_record(record)
    if ledger.trace is not None and services.observers.tracing is not None:  # last: a fault of it costs no record
        services.observers.tracing.end(ledger, ledger.trace, now)


def settle_shadow(services: Services, ledger: Ledger, now: float, outcome: str) -> None:
    """Close a shadow's record. Its cost is counted as shadow cost, and no caller's figures change.

    The judge's cost was counted when the judge was asked. The record has the sum of both.
    """
    record = ledger.record
    record.duration_seconds = now - ledger.started_at
    record.saving_usd = None
    task, version, pool = record.task or "", record.version or "", record.pool or ""
    services.meters.shadow_requests.add(1, task, version, outcome)
    if record.cost_usd is not None:
        services.meters.cost_usd.add(record.cost_usd, task, version, pool, "shadow")
        record.cost_usd += (record.pair.judge_usd or 0.0) if record.pair is not None else 0.0
    services.keep_record(record)


def _note_language(services: Services, ledger: Ledger) -> None:
    """Note the language that the caller of a watched task's request names."""
    record, body = ledger.record, ledger.body
    if body is None or record.task not in services.snapshot.current.policy.watched:
        return
    language = (body.read.metadata or {}).get("language")
    if isinstance(language, str) and LANGUAGE.fullmatch(language):
        record.language = language


def _token_seconds(ledger: Ledger) -> float | None:
    """The time for one completion token: in a stream without the first token, else the mean of all tokens."""
    tokens = ledger.record.completion_tokens
    if ledger.committed_at is None or ledger.last_chunk_at is None or tokens is None or tokens < 2:
        return None
    if ledger.record.stream:
        return (ledger.last_chunk_at - ledger.committed_at) / (tokens - 1)
    return ledger.engine_seconds / tokens


def _count(services: Services, ledger: Ledger) -> None:
    record, meters = ledger.record, services.meters
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
        outcome = "rejected" if attempt.fault in AFTER_THE_ANSWER else attempt.fault or "answered"
        meters.attempts.add(1, attempt.pool, outcome)
    for finding in record.findings:
        if finding.fired:
            meters.check_fired.add(1, task, finding.version or "", finding.check, finding.mode)
        elif finding.mode == "enforce" and _could_not_judge(finding):
            meters.check_unjudged.add(1, task, finding.version or "", finding.check)
    if record.fallback_capped:
        meters.fallback_capped.add(1, task, record.reason or "")
    if ledger.fallback_from is not None:
        meters.fallbacks.add(1, task, ledger.fallback_from, pool, record.reason or "")
    wasted = record.wasted_usd
    for rejected in ledger.rejections:
        wasted = _count_rejected(rejected, meters, wasted)
    _count_cost(record, meters, (task, version, pool), wasted)
    _count_spending(services, record)


def _could_not_judge(finding: FindingRecord) -> bool:
    """True if a check let a request pass because the check has no model or no contract."""
    check = CHECK_BY_NAME.get(finding.check)
    return check is not None and check.lacks_basis(finding.threshold, finding.note)


def _count_rejected(rejected: Rejection, meters: Meters, wasted: float | None) -> float | None:
    """Count a rejected answer's tokens and cost. Returns the rest of the wasted cost, which has other causes."""
    for tokens, kind in ((rejected.prompt_tokens, "prompt"), (rejected.completion_tokens, "completion")):
        if tokens is not None:
            meters.tokens.add(tokens, *rejected.labels, kind)
    if rejected.usd is None or wasted is None:
        return wasted
    meters.cost_usd.add(rejected.usd, *rejected.labels, "wasted")
    left = wasted - rejected.usd
    return left if left > USD_MIN else None


def _count_cost(record: Record, meters: Meters, labels: tuple[str, str, str], wasted: float | None) -> None:
    if record.prompt_tokens is not None:
        meters.tokens.add(record.prompt_tokens, *labels, "prompt")
    if record.completion_tokens is not None:
        meters.tokens.add(record.completion_tokens, *labels, "completion")
    if wasted is not None:
        meters.cost_usd.add(wasted, *labels, "wasted")
    if record.cost_usd is not None:
        meters.cost_usd.add(record.cost_usd, *labels, "serve")
    elif record.outcome == "ok":
        meters.cost_unknown.add(1, labels[2])
    if record.saving_usd is not None:
        meters.saved(labels[0], record.saving_usd)


def _count_spending(services: Services, record: Record) -> None:
    """Count a request's cost for its key and the key's owner."""
    spent = (record.cost_usd or 0.0) + (record.wasted_usd or 0.0)
    caller = services.snapshot.current.callers.get(record.caller)
    if spent and caller is not None:
        # without a separate listener, all callers may read the metrics: hide the owner
        owner = "" if services.settings.listen.metrics is None else caller.person
        services.meters.caller_cost_usd.add(spent, caller.public, owner)
