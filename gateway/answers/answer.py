"""Opening an answer: attempt after attempt, until one has an answer that may be committed, or nobody has."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Self

import msgspec

from gateway.answers.begun import Begun, head_of
from gateway.answers.events import EventSplitter, Progress, body_of, see_that_it_is_text
from gateway.answers.judging import Demands, is_foreign, judge_now
from gateway.answers.problems import given_up, not_sent
from gateway.answers.reading import Reading
from gateway.asked.parameters import Endpoint
from gateway.asked.request_body import RequestBody
from gateway.asked.scored import scored_at
from gateway.door.wire import Deadline
from gateway.duties.trials import offer_rejected
from gateway.house import House
from gateway.ledger import Ledger
from router.attempts import Failure, GiveUp, NextAttempt, SendAnyway, after_rejection, next_attempt
from router.decision import Choice
from router.policy import AttemptLimits, Policy
from router.scoring import NO_SCORES, Scores
from serving.engine_client import EngineAnswer
from serving.errors import EngineError, Failed, Late, Missing, Oversize, RefusedByEngine, Silent, Truncated
from serving.health import engine_headers
from serving.replica import Lease

PATHS: Mapping[Endpoint, str] = MappingProxyType({"chat": "/chat/completions", "completions": "/completions"})
DRAIN_SECONDS_MAX = 1.0
OF_REQUEST = frozenset({"failed", "truncated"})
"""Faults that what is asked for may bring about at any engine."""
READ_AT_ONCE_BYTES_MAX = 1 << 17
"""A whole answer that is judged and longer than this is read in steps: many tokens' logprobs take milliseconds."""


class Answer:
    """An engine's answer that has begun, and the lease under which it was got. Its holder closes it once.

    A streamed one holds its first events back in `held`, until there are enough of them to commit; one that is not
    streamed is there as a whole in `body`. One that goes on with an answer that had `begun` elsewhere holds that too.
    `demands` are what it is held against (None: nothing), `reading` is what it says, read on the way (None: nobody
    judges it), `failures` are the attempts before this one.
    """

    def __init__(
        self,
        choice: Choice,
        lease: Lease,
        begun: Begun | None = None,
        demands: Demands | None = None,
        reading: Reading | None = None,
        scores: Scores = NO_SCORES,
        failures: tuple[Failure, ...] = (),
    ) -> None:
        self.choice = choice
        self.lease = lease
        self.begun = begun
        self.demands = demands
        self.reading = reading
        self.scores = scores
        self.failures = failures
        self.progress = Progress()
        self.held: list[bytes] = list(begun.held) if begun else []
        self.body = b""
        self.kept: list[bytes] | None = None
        """What was sent, for who has to read it afterwards; None where nobody has."""
        self.judged_by: frozenset[str] = frozenset()
        self.judged_whole = False
        self._engine: EngineAnswer | None = None
        self._splitter = EventSplitter()
        self._choices = 1
        self._first = b""
        self._committed = begun is not None and begun.committed
        self._share: float | None = None
        self._fault: EngineError | None = None
        """What is wrong with what comes next."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lease back, and the connection; an answer that was not read to its end is cancelled by that."""
        if self._share is not None:
            return
        now = time.monotonic()
        self._share = self.lease.share(now)
        if self._engine is not None:
            self._engine.close()
        self.lease.give_back(now)

    def share(self, now: float) -> float:
        """The engine time (seconds) that it answers for: up to `now`, or up to when it was closed."""
        return self.lease.share(now) if self._share is None else self._share

    async def begin(
        self, house: House, body: RequestBody, sent: bytes, headers: dict[str, str], limits: AttemptLimits
    ) -> None:
        """Send the request, and read as much of the answer as has to be seen before it may be committed.

        Raises an EngineError for anything that is not a good beginning.
        """
        headers = headers | engine_headers(self.lease.replica)
        self._choices = body.choices
        url, path = self.lease.replica.config.base_url, PATHS[body.endpoint]
        if not body.stream:
            self._engine = await house.engines.post(url, path, sent, headers, limits.answer_timeout_seconds)
            await self._take_whole(await self._engine.read())
            return
        if house.fleet.continues and body.may_go_on():
            self.progress.said = []
        began_at = time.monotonic()
        silence = limits.first_token_timeout_seconds
        try:
            with Deadline(silence):
                self._engine = await house.engines.post(url, path, sent, headers, silence)
                await self._hold(1)
        except TimeoutError as error:
            raise Silent("no token within the limit") from error
        self._engine.expect(limits.inter_token_timeout_seconds)
        wanted = self.tokens_wanted - self.tokens_before
        if self.tokens_wanted > 1 and not self._committed:
            await self._hold_on(wanted, began_at, limits)
        self._first = self.held[0] if self.held else b""
        self._committed = True

    async def _hold(self, tokens: float, judged: int = 0) -> None:
        """Hold events back until so many tokens, of each alternative so many as are `judged`, or the end, have come."""
        while not self._has(tokens, judged):
            events = await self.next_events()
            if events is None:
                return
            self.held += events
            if self._fault is not None:  # it has come already: better now than after commit
                raise self._fault

    def _has(self, tokens: float, judged: int) -> bool:
        progress = self.progress
        if progress.chunks < tokens and (tokens > 1 or not progress.answered):
            return False
        return not judged or self.reading is None or self.reading.tokens >= judged

    async def _hold_on(self, tokens: float, began_at: float, limits: AttemptLimits) -> None:
        """Hold for no longer than that may take: what is there is committed then.

        But not where all of it was to be there, or where an enforced rung can't judge by what is there.
        """
        judged = self.demands.tokens_judged(self.tokens_wanted) if self.demands is not None else 0
        name, seconds = self._hold_seconds_max(limits)
        try:
            with Deadline(max(began_at + seconds - time.monotonic(), 0.0)):
                await self._hold(tokens, judged)
        except TimeoutError as error:
            if tokens == math.inf or not self._has(0, judged):
                raise Late(f"The answer was not complete within {name} of {seconds:g} s") from error

    @property
    def tokens_wanted(self) -> float:
        """How many tokens of a stream are held back before it is committed."""
        task = self.choice.task
        return 1 if task is None else task.tokens_before_commit

    def _hold_seconds_max(self, limits: AttemptLimits) -> tuple[str, float]:
        """The setting that bounds the hold, and its seconds. A task has its own for its adapter, not for its exits."""
        task = self.choice.task
        if task is None or task.hold_seconds_max is None or self.choice.at_exit:
            return "limits.answer_timeout_seconds", limits.answer_timeout_seconds
        return f"tasks.{task.name}.hold_seconds_max", task.hold_seconds_max

    @property
    def mixed(self) -> bool:
        """Whether a part of it is another model's than the one that goes on with it."""
        return self.begun is not None and self.begun.versions != {self._version}

    @property
    def _version(self) -> str | None:
        return self.choice.version.name if self.choice.version is not None else None

    @property
    def tokens_before(self) -> int:
        """Tokens that were there before this engine went on."""
        return self.begun.tokens if self.begun else 0

    def unsent(self) -> list[bytes]:
        """The events that were held back, to be sent now."""
        held, self.held = self.held, []
        return held

    def so_far(self) -> Begun | None:
        """What there is of the answer, for another engine to go on with; None where there is nothing, or none may."""
        progress, begun = self.progress, self.begun
        if progress.said is None or progress.finish_reason is not None:
            return None
        if not progress.said:
            return begun
        text = (begun.text if begun else "") + "".join(progress.said)
        head = begun.head if begun else head_of(self._first or self.held[0])
        tokens = self.tokens_before + progress.chunks
        versions = (begun.versions if begun else frozenset()) | {self._version}
        return Begun(text, tokens, head, tuple(self.held), self._committed, self.reading, versions)

    def take_over(self, other: Answer) -> None:
        """Become the answer that goes on in this one's place, which is closed."""
        if other.choice.version != self.choice.version:
            self.kept = None  # it is neither's own
        self.choice, self.lease, self.begun = other.choice, other.lease, other.begun
        self.progress, self.held = other.progress, other.held
        self._engine, self._splitter, self._share = other._engine, other._splitter, None
        self._fault = other._fault

    def total(self) -> Progress:
        """What has been seen of the whole answer, with what another engine had begun."""
        return self.progress if self.begun is None else self.begun.total(self.progress)

    async def next_events(self) -> list[bytes] | None:
        """The events for the caller that have come since; None at the end. Raises an EngineError if it broke."""
        assert self._engine is not None
        progress = self.progress
        if self._fault is not None:
            raise self._fault
        if progress.done or (progress.usage_payload is not None and self.finished):
            self._see_that_it_is_whole()
            return None
        try:
            chunk = await self._engine.next_chunk()
        except (Oversize, Truncated):
            if self.finished:  # all of it had come: only the end of the connection was not as it should be
                progress.done = True
                return None
            raise
        plain = 0 if self._splitter.holds else progress.take_plain(chunk)
        if plain and plain == len(chunk):
            return [chunk] if self.begun is None and self.reading is None else self._passed_on([chunk])
        found = [chunk[:plain]] if plain else []
        try:
            events = self._splitter.feed(chunk[plain:]) if chunk else [self._splitter.rest()]
            found += self._until_broken(events)
        except ValueError as error:
            self._fault = Oversize(str(error))
        if progress.broken is not None:
            self._fault = Failed("the engine reported an error inside its stream", body=progress.broken)
        if not found:
            if self._fault is not None:
                raise self._fault
            self._engine.unheard()
        if chunk or found:  # what came before a fault is the caller's: it is counted, and gone on from
            return self._passed_on(found)
        self._see_that_it_is_whole()
        return None

    def _passed_on(self, events: list[bytes]) -> list[bytes]:
        """Events as they go to the caller."""
        if self.reading is not None:
            events = self.reading.take(events)
        return events if self.begun is None else self.begun.spliced(events)

    def _until_broken(self, events: list[bytes]) -> Iterator[bytes]:
        """Those for the caller, up to an error that the engine reports."""
        for event in events:
            taken = self.progress.take(event)
            if taken is not None:
                yield taken
            elif self.progress.broken is not None:
                return

    @property
    def finished(self) -> bool:
        """Whether all of a stream's answer has come."""
        return self.progress.choices_finished >= self._choices

    def _see_that_it_is_whole(self) -> None:
        if not self.finished:
            raise Truncated("the stream ended before the answer was whole")

    async def drain(self) -> None:
        """Read what the engine still sends after its last event, so that the connection can be used again."""
        assert self._engine is not None
        try:
            with Deadline(DRAIN_SECONDS_MAX):
                while await self._engine.next_chunk():
                    pass
        except (EngineError, TimeoutError):
            return

    async def _take_whole(self, body: bytes) -> None:
        try:
            see_that_it_is_text(body)
            read = body_of(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Failed("the engine's answer is not JSON of the expected form") from error
        if read.error is not None or not read.choices:
            raise Failed("the engine answered with an error inside a 200", body=body)
        if self.reading is None:
            self.body = body
        elif len(body) <= READ_AT_ONCE_BYTES_MAX:
            self.body = self.reading.take_whole(body)
        else:
            self.body = await self.reading.take_long(body)
        self.progress.answer_id = read.id
        self.progress.usage = read.usage
        self.progress.finish_reason = read.choices[0].finish_reason


async def open_answer(
    house: House, policy: Policy, body: RequestBody, choice: Choice, ledger: Ledger, scores: Scores
) -> Answer:
    """Get an answer that can be committed: try, and on a failure do as `next_attempt` says.

    An answer that a rung does not let through is followed by what `after_rejection` says.

    Raises Problem when the attempts are over: the engine's own refusal in its words, or 502, 503, 504.
    """
    failures: tuple[Failure, ...] = ()
    begun: Begun | None = None
    while True:
        ledger.chosen(choice, house.stack(choice))
        scores = await scored_at(house, body, choice, policy, scores)
        answer, failed = await attempt(house, policy, body, choice, ledger, begun, failures, scores)
        if failed is None:
            ledger.record.continued = int(begun is not None)
            instead = _turned_down(house, policy, body, answer, ledger)
            if instead is None:
                return answer
            choice, failures, begun = instead, (), None
            continue
        failures = (*failures, failure_of(answer, failed))
        step, begun = next_step(house, policy, body, answer, failed, failures, ledger)
        spent = answer.share(time.monotonic())
        made = begun.tokens - answer.tokens_before if begun else 0
        if made:
            ledger.went_on(choice.pool.name, made, spent)
        else:
            ledger.wasted(house.prices, choice.pool.name, spent)
        if begun is None:
            ledger.begins_anew(house.prices)
        if isinstance(step, GiveUp):
            ledger.record.reason = step.reason or ledger.record.reason
            ledger.record.exit_capped = ledger.record.exit_capped or step.exit_capped
            problem = given_up(step, failed)
            problem.final = problem.final or problem.status >= 500  # all attempts have been made
            raise problem
        if step.wait_seconds:
            await asyncio.sleep(step.wait_seconds)
        choice = step.choice


async def attempt(
    house: House,
    policy: Policy,
    body: RequestBody,
    choice: Choice,
    ledger: Ledger,
    begun: Begun | None,
    failures: tuple[Failure, ...],
    scores: Scores,
) -> tuple[Answer, EngineError | None]:
    """Try one engine once: an answer that may be committed, or one that is closed, with what went wrong.

    With `begun` it is asked to go on with that; `failures` are those before. Whatever comes of it is noted in the
    ledger and at the replica.
    """
    ledger.record.dropped = body.lost_by(choice.pool.engine)
    demands = house.judging.demands(policy, body, choice, scores)
    added = demands.fields if demands is not None else None
    sent = begun and begun.body(body, choice, added)
    sent = sent or body.for_engine(choice, added)
    number = len(ledger.record.attempts) + 1
    headers = {
        "Content-Type": "application/json",
        "X-Request-Id": ledger.record.id if number == 1 else f"{ledger.record.id}-{number}",
        "traceparent": ledger.traceparent,
    }
    began_at = time.monotonic()
    replica = house.fleet.replicas[choice.replica.name]
    reading = begun.reading if begun is not None else None
    if demands is not None and demands.terms.rungs and reading is None:
        reading = Reading(demands.strips, body.choices)
    lease = replica.lease(began_at, choice.engine_model)
    answer = Answer(choice, lease, begun, demands, reading, scores, failures)
    ledger.leave = house.exits.went(choice, ledger.leave, body, ledger.record)
    try:
        await answer.begin(house, body, sent, headers, policy.limits)
    except EngineError as error:
        answer.close()
        note_fault(house, choice, error, failures)
        ledger.attempted(choice, error.kind, time.monotonic() - began_at)
        return answer, error
    except BaseException:
        answer.close()
        now = time.monotonic()
        ledger.made = answer.total().chunks
        ledger.wasted(house.prices, choice.pool.name, answer.share(now))
        ledger.attempted(choice, "cancelled", now - began_at)
        raise
    now = time.monotonic()
    ledger.attempted(choice, None, now - began_at)
    ledger.sent(sent, house.digest_secret)
    replica.answered(now, choice.engine_model)
    return answer, None


def failure_of(answer: Answer, failed: EngineError) -> Failure:
    """An attempt's failure as the router sees it. A refusal to go on with a part of an answer is not the caller's."""
    choice = answer.choice
    kind = "truncated" if answer.begun is not None and isinstance(failed, RefusedByEngine) else failed.kind
    return Failure(kind, choice.replica.name, choice.pool.name, failed.retry_after_seconds, time.monotonic())


def next_step(
    house: House,
    policy: Policy,
    body: RequestBody,
    answer: Answer,
    failed: EngineError,
    failures: tuple[Failure, ...],
    ledger: Ledger,
) -> tuple[NextAttempt | GiveUp, Begun | None]:
    """What follows a failed attempt, by the router's word: to go on with what there is (told beside it), or anew."""
    now = time.monotonic()
    left = ledger.started_at + policy.limits.request_timeout_seconds - now
    view, moment = house.fleet.view(), house.moment(now)
    begun = None if isinstance(failed, RefusedByEngine) else answer.so_far()
    if begun is not None:
        step = next_attempt(answer.choice, failures, policy, view, moment, left, going_on=True)
        if isinstance(step, NextAttempt):
            demands = house.judging.demands(policy, body, step.choice, answer.scores)
            if begun.body(body, step.choice, demands.fields if demands is not None else None) is not None:
                return step, begun
    return next_attempt(answer.choice, failures, policy, view, moment, left), None


def _turned_down(house: House, policy: Policy, body: RequestBody, answer: Answer, ledger: Ledger) -> Choice | None:
    """Judge an answer before it is committed: who is to answer instead, or None where it may be sent.

    One that may not is closed, and neither its replica nor its version is at fault. Raises Problem where nobody else
    may or can answer.
    """
    try:
        rung = judge_now(house, body, answer, ledger)
    except BaseException:
        answer.close()
        raise
    if rung is None:
        if is_foreign(answer.choice) and ledger.record.contract_kept is False:
            ledger.breaks_contract()
        return None
    now = time.monotonic()
    left = ledger.started_at + policy.limits.request_timeout_seconds - now
    step = after_rejection(answer.choice, rung, policy, house.fleet.view(), house.moment(now), left)
    if isinstance(step, SendAnyway):
        ledger.labelled(rung)
        return None
    answer.close()
    ledger.rejected(rung, answer.total(), house.prices, answer.share(now))
    offer_rejected(house, policy, body, answer, ledger)
    if isinstance(step, GiveUp):
        ledger.record.reason = step.reason or ledger.record.reason
        ledger.record.exit_capped = ledger.record.exit_capped or step.exit_capped
        problem = not_sent(step)
        problem.final = problem.final or problem.status >= 500
        raise problem
    ledger.record.contract_kept = None
    return step.choice


def note_fault(
    house: House, choice: Choice, error: EngineError, failures: tuple[Failure, ...], begun: bool = False
) -> None:
    """Count a fault against its replica or version; a replica that does not know a version routed to it has lost it.

    `failures` are the request's before: what it asks for may be why its attempts fail, so that it counts once at each
    replica. `begun` says that the answer had begun well.
    """
    name = choice.replica.name
    if error.kind in OF_REQUEST and any(one.replica == name and one.kind in OF_REQUEST for one in failures):
        return
    replica = house.fleet.replicas[name]
    if isinstance(error, Missing) and choice.version is not None:
        replica.loaded -= {choice.version.name}
        house.fleet.changed()
        return
    now = time.monotonic()
    jitter = house.moment(now).draw
    replica.failed(now, choice.engine_model, error.kind, jitter, error.retry_after_seconds, begun)
