"""One engine's answer: begun, held back until it may be committed, and read event by event."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from gateway.formats.answer_reading import Reading
from gateway.formats.answer_terms import Demands
from gateway.formats.conversation_texts import AnsweredRequest
from gateway.formats.request_body import RequestBody
from gateway.formats.server_sent_events import BOM, EventSplitter, Progress
from gateway.formats.wire_format import WireFormat
from gateway.path.partial_answer import PartialAnswer, head_of
from gateway.server.deadline import Deadline
from gateway.services import Services
from monitoring.records import Record
from router.attempts import Failure
from router.policy import AttemptLimits
from router.routing_data import NO_SCORES, Choice, Scores
from serving.engine_client import EngineAnswer
from serving.errors import EngineError, Failed, Late, Oversize, Silent, Truncated, from_inside, make_abort
from serving.health import make_engine_headers
from serving.replica import Lease

DRAIN_SECONDS_MAX = 1.0
END_SECONDS_MAX = 2.0
"""Longest silence after a stream's answer is complete: only its usage or [DONE] can follow."""
READ_AT_ONCE_BYTES_MAX = 1 << 17
"""A longer whole answer is read in steps if it is judged, since the logprobs of many tokens take milliseconds."""


class Answer:
    """An engine's answer and the lease on its replica. The holder closes the answer once.

    A streamed answer keeps its first events in `held_events` until there are enough to commit. An answer that is not
    streamed is whole in `body`. `partial` is another engine's partial answer that this one continues. `demands` are
    the task's demands on it (None: no demands). `reading` collects its content for the checks (None: no check reads
    it). `failures` are those of the earlier attempts.
    """

    def __init__(
        self,
        wire_format: WireFormat,
        choice: Choice,
        lease: Lease,
        partial: PartialAnswer | None = None,
        demands: Demands | None = None,
        reading: Reading | None = None,
        scores: Scores = NO_SCORES,
        failures: tuple[Failure, ...] = (),
    ) -> None:
        self.wire_format = wire_format
        self.choice = choice
        self.lease = lease
        self.partial = partial
        self.demands = demands
        self.reading = reading
        self.scores = scores
        self.failures = failures
        self.progress = Progress()
        self.held_events: list[bytes] = list(partial.held_events) if partial else []
        self.body = b""
        self.parts: list[bytes] | None = None
        """The parts sent, for readers after the answer; None if there is no reader."""
        self._sent: AnsweredRequest | None = None
        self.judged_by: frozenset[str] = frozenset()
        self.judged_whole = False
        self._engine: EngineAnswer | None = None
        self._splitter = EventSplitter(0)
        self._event_bytes_max = 0
        self.fragile = False
        """True if the request may crash its engine: it has a caller's own pattern or grammar."""
        self.has_form = False
        """True if the attempt failed and the caller asked for a form that engines compile."""
        self._choices = 1
        self._first = b""
        self._committed = partial is not None and partial.committed
        self._share: float | None = None
        self._fault: EngineError | None = None
        """The fault to raise at the next read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the lease and the connection. That cancels an answer that was not read to its end."""
        if self._share is not None:
            return
        if self._engine is not None:
            self._engine.close()
        self._share = self.lease.give_back(time.monotonic())

    def make_answered_request(self, record: Record, body: RequestBody) -> AnsweredRequest | None:
        """The request and its answer as sent, one object for all readers; None if the parts were not kept."""
        if self._sent is None and self.parts is not None:
            self._sent = AnsweredRequest(record, body, tuple(self.parts))
        return self._sent

    def share(self, now: float) -> float:
        """The answer's share of the engine's time (seconds), until `now` or until the answer was closed."""
        return self.lease.share(now) if self._share is None else self._share

    async def begin(
        self, services: Services, body: RequestBody, engine_body: bytes, headers: dict[str, str], limits: AttemptLimits
    ) -> None:
        """Send the request, and read the part of the answer that is needed before the commit.

        Raises an EngineError if the answer does not begin well.
        """
        headers = headers | make_engine_headers(self.lease.replica.config)
        self._choices = body.choices
        self.fragile = body.fragile
        url, path = self.lease.replica.config.base_url, self.wire_format.engine_path
        if not body.stream:
            self._engine = await services.engines.post(
                url, path, engine_body, headers, limits.answer_timeout_seconds, fresh=body.fragile
            )
            await self._take_whole(await self._engine.read())
            return
        self._event_bytes_max = limits.event_bytes_max
        self._splitter = EventSplitter(limits.event_bytes_max)
        if services.fleet.continues and body.may_go_on():
            self.progress.texts = []
        began_at = time.monotonic()
        silence = limits.first_token_timeout_seconds
        try:
            with Deadline(silence):
                self._engine = await services.engines.post(url, path, engine_body, headers, silence, fresh=body.fragile)
                await self._hold(1)
        except TimeoutError as error:
            raise Silent("no token within the limit") from error
        self._engine.expect_tokens(limits.inter_token_timeout_seconds)
        wanted = self.tokens_wanted - self.tokens_before
        if self.tokens_wanted > 1 and not self._committed:
            await self._hold_on(wanted, began_at, limits)
        self._first = self.held_events[0] if self.held_events else b""
        self._committed = True

    async def _hold(self, tokens: float, judged: int = 0) -> None:
        """Hold events back until `tokens`, of each alternative as many as are `judged`, or the end, have come."""
        while not self._has(tokens, judged):
            events = await self.next_events()
            if events is None:
                return
            self.held_events += events
            if self._fault is not None:  # raise a known fault now rather than after the commit
                raise self._fault

    def _has(self, tokens: float, judged: int) -> bool:
        progress = self.progress
        if progress.chunks < tokens and (tokens > 1 or not progress.answered):
            return False
        return not judged or self.reading is None or self.reading.tokens >= judged

    async def _hold_on(self, tokens: float, began_at: float, limits: AttemptLimits) -> None:
        """Hold the answer until `tokens` have come or the time limit passes. Then the tokens so far may be committed.

        Raises Late if the whole answer was wanted, or if an enforced check can't judge the tokens so far.
        """
        judged = self.demands.tokens_judged(self.tokens_wanted) if self.demands is not None else 0
        name, seconds = self._hold_seconds_max(limits)
        try:
            with Deadline(max(began_at + seconds - time.monotonic(), 0.0)):
                await self._hold(tokens, judged)
        except TimeoutError as error:
            if self.finished:  # only the stream's own end is late
                self.progress.done = True
            elif tokens == math.inf or not self._has(0, judged):
                raise Late(f"The answer was not complete within {name} of {seconds:g} s") from error

    @property
    def tokens_wanted(self) -> float:
        """Number of tokens of a stream that are held back before it is committed."""
        task = self.choice.task
        return 1 if task is None else task.tokens_before_commit

    def _hold_seconds_max(self, limits: AttemptLimits) -> tuple[str, float]:
        """The name and the seconds of the setting that bounds the hold. A task's own setting bounds its adapter's
        answers, not its fallback's."""
        task = self.choice.task
        if task is None or task.hold_seconds_max is None or self.choice.at_fallback:
            return "limits.answer_timeout_seconds", limits.answer_timeout_seconds
        return f"tasks.{task.name}.hold_seconds_max", task.hold_seconds_max

    @property
    def mixed(self) -> bool:
        """True if a part of the answer is from another version than its present one."""
        return self.partial is not None and self.partial.versions != {self._version}

    @property
    def _version(self) -> str | None:
        return self.choice.version.name if self.choice.version is not None else None

    @property
    def tokens_before(self) -> int:
        """Number of tokens of the partial answer that this engine continues."""
        return self.partial.tokens if self.partial else 0

    def pass_to(self, take: Callable[[list[bytes]], int] | None) -> None:
        """Offer each part from the engine to `take` while `next_events` is awaited; None stops that."""
        assert self._engine is not None
        self._engine.pass_to(take)

    def take_tokens(self, parts: list[bytes]) -> int:
        """Note the parts at the front that are whole token events, for the caller. Returns their number.

        `next_events` reads all other events: ends, usage and faults. It reads the whole of an answer that checks read,
        or that continues a partial one.
        """
        progress = self.progress
        if self._splitter.holds or self.reading is not None or self.partial is not None or progress.ended:
            return 0
        taken, tokens = 0, progress.chunks
        for part in parts:
            if len(part) > self._event_bytes_max or not progress.take_tokens(part):
                break
            taken += 1
        if progress.chunks != tokens and self._engine is not None:
            self._engine.heard()
        return taken

    def take_held_events(self) -> list[bytes]:
        """The events that were held back, to be sent now."""
        events, self.held_events = self.held_events, []
        return events

    def so_far(self) -> PartialAnswer | None:
        """The partial answer that another engine can continue; None if there is none, or if none may."""
        progress, partial = self.progress, self.partial
        if progress.texts is None or progress.finish_reason is not None:
            return None
        if progress.skipped and not self._committed:  # a token may be missing: the answer begins again
            return None
        if not progress.texts:
            return partial
        text = (partial.text if partial else "") + "".join(progress.texts)
        head = partial.head if partial else head_of(self._first or self.held_events[0])
        tokens = self.tokens_before + progress.chunks
        versions = (partial.versions if partial else frozenset()) | {self._version}
        skipped = (partial.skipped if partial else 0) + progress.skipped
        return PartialAnswer(
            text, tokens, head, tuple(self.held_events), self._committed, self.reading, versions, skipped
        )

    def take_over(self, other: Answer) -> None:
        """Become `other`, which continues this answer. This one is closed already."""
        if other.choice.version != self.choice.version:
            self.parts = None  # the text belongs to neither version alone
        self.choice, self.lease, self.partial = other.choice, other.lease, other.partial
        self.progress, self.held_events = other.progress, other.held_events
        self._engine, self._splitter, self._share = other._engine, other._splitter, None
        self._fault = other._fault

    def total(self) -> Progress:
        """The progress of the whole answer, with the earlier engines' part."""
        return self.progress if self.partial is None else self.partial.total(self.progress)

    async def next_events(self) -> list[bytes] | None:
        """The next events for the caller; None at the end. Raises an EngineError if the answer broke."""
        assert self._engine is not None
        progress = self.progress
        if self._fault is not None:
            raise self._fault
        if self.is_over:
            self._see_that_it_is_whole()
            return None
        try:
            chunk = await (self._read_end(self._engine) if self.finished else self._engine.next_chunk())
        except (Oversize, Silent, Truncated):
            if self.finished:  # the answer is complete: only the stream's end is faulty
                progress.done = True
                return None
            raise
        tokens, ends = progress.chunks, len(progress.ended)
        plain = 0
        if not self._splitter.holds and len(chunk) <= self._event_bytes_max:
            plain = progress.take_plain(chunk)
        if plain and plain == len(chunk):
            if progress.chunks != tokens or len(progress.ended) != ends:
                self._engine.heard()
            return [chunk] if self.partial is None and self.reading is None else self._passed_on([chunk])
        passed = [chunk[:plain]] if plain else []
        rest = b"" if chunk else self._splitter.rest()
        try:
            events = self._splitter.feed(chunk[plain:]) if chunk else [rest]
            passed += self._until_broken(events)
        except ValueError as error:
            progress.done = self.finished  # after a complete answer, an event that is too long is not a fault
            self._fault = None if progress.done else Oversize(str(error))
        if progress.chunks != tokens or len(progress.ended) != ends:
            self._engine.heard()
        self._fault = self._fault_told() or self._fault
        if not passed and self._fault is not None:
            raise self._fault
        if chunk or passed:  # events before a fault go to the caller: they are counted, and can be continued
            return self._passed_on(passed)
        self._see_that_it_is_whole(rest)
        return None

    async def _read_end(self, engine: EngineAnswer) -> bytes:
        """The next bytes after a complete answer. Raises Silent if the stream's end does not come in time."""
        try:
            with Deadline(END_SECONDS_MAX):
                return await engine.next_chunk()
        except TimeoutError as error:
            raise Silent("the end of a whole answer did not come") from error

    def _fault_told(self) -> EngineError | None:
        """The fault that the events name, or None."""
        if self.progress.broken is not None:
            text, body = "the engine reported an error inside its stream", self.progress.broken
            if self.progress.aborted:
                return make_abort(body)
            return Failed(text, body=body) if self.progress.answered else from_inside(text, body)
        if self.progress.skipped and not self._committed:
            return Failed("an event of the engine's stream can't be read, and may have held a token")
        return None

    def _passed_on(self, events: list[bytes]) -> list[bytes]:
        """Events as they go to the caller."""
        if self.reading is not None:
            events = self.reading.take(events)
        return events if self.partial is None else self.partial.spliced(events)

    def _until_broken(self, events: list[bytes]) -> Iterator[bytes]:
        """The events for the caller, until the stream's end or an error that the engine reports inside the answer."""
        for event in events:
            finished, skipped = self.finished, self.progress.skipped
            taken = self.progress.take(event)
            if finished:  # the event can hold no token, even if it is unreadable
                self.progress.skipped = skipped
            if taken is not None:
                yield taken
            elif self.progress.done:
                return
            elif self.progress.broken is not None:
                if not self.finished:
                    return
                self.progress.broken = None  # the answer is complete

    @property
    def finished(self) -> bool:
        """True if the answer in a stream is complete."""
        return len(self.progress.ended) >= self._choices

    @property
    def is_over(self) -> bool:
        """True if nothing more of the stream is awaited."""
        return self.progress.done or (self.progress.usage_payload is not None and self.finished)

    def _see_that_it_is_whole(self, rest: bytes = b"") -> None:
        if self.finished:
            return
        if rest.startswith(b"{") and not self.progress.answered:
            self.wire_format.note_whole(rest, self._choices, Progress())  # an error inside a 200 has a code of its own
            raise Failed("the engine sent its answer as a whole, though a stream was asked for")
        raise Truncated("the stream ended before the answer was whole")

    async def drain(self) -> None:
        """Read the rest after the last event, so that the connection can be used again."""
        assert self._engine is not None
        if self._engine.is_read:
            return
        try:
            with Deadline(DRAIN_SECONDS_MAX):
                while await self._engine.next_chunk():
                    pass
        except (EngineError, TimeoutError):
            return

    async def _take_whole(self, body: bytes) -> None:
        body = body.removeprefix(BOM)
        self.wire_format.note_whole(body, self._choices, self.progress)
        if self.reading is None:
            self.body = body
        elif len(body) <= READ_AT_ONCE_BYTES_MAX:
            self.body = self.reading.take_whole(body)
        else:
            self.body = await self.reading.take_long(body)
