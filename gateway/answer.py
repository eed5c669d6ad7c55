"""Opening an answer: attempt after attempt, until one has an answer that may be committed, or nobody has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Self

import msgspec

from gateway.errors import Problem
from gateway.events import BODY, EventSplitter, Progress
from gateway.house import House
from gateway.ledger import Ledger
from gateway.request_body import Endpoint, RequestBody
from gateway.wire import Deadline
from router.attempts import Failure, GiveUp, next_attempt
from router.choice import Choice
from router.policy import AttemptLimits, Policy
from serving.engine_client import EngineAnswer
from serving.errors import EngineError, Failed, Missing, RefusedByEngine, Silent, Truncated
from serving.health import engine_headers
from serving.replica import Lease

PATHS: Mapping[Endpoint, str] = MappingProxyType({"chat": "/v1/chat/completions", "completions": "/v1/completions"})
REST_SECONDS = 1.0
DRAIN_SECONDS_MAX = 1.0


class Answer:
    """An engine's answer that has begun, and the lease under which it was got. Its holder closes it once.

    A streamed one holds its first events back in `held`, until there are enough of them to commit; one that is not
    streamed is there as a whole in `body`.
    """

    def __init__(self, choice: Choice, lease: Lease) -> None:
        self.choice = choice
        self.lease = lease
        self.progress = Progress()
        self.held: list[bytes] = []
        self.body = b""
        self.kept: list[bytes] | None = None
        """What was sent, for who has to read it afterwards; None where nobody has."""
        self._engine: EngineAnswer | None = None
        self._splitter = EventSplitter()
        self._choices = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lease back, and the connection; an answer that was not read to its end is cancelled by that."""
        if self._engine is not None:
            self._engine.close()
        self.lease.give_back(time.monotonic())

    async def begin(
        self, house: House, body: RequestBody, sent: bytes, headers: dict[str, str], limits: AttemptLimits
    ) -> None:
        """Send the request, and read as much of the answer as has to be seen before it may be committed.

        Raises an EngineError for anything that is not a good beginning.
        """
        headers = headers | engine_headers(self.lease.replica)
        self._choices = body.choices
        silence = limits.answer_timeout_seconds
        if body.stream:
            silence = max(limits.first_token_timeout_seconds, limits.inter_token_timeout_seconds)
        self._engine = await house.engines.post(
            self.lease.replica.config.url, PATHS[body.endpoint], sent, headers, silence
        )
        if not body.stream:
            self._take_whole(await self._engine.read())
            return
        complete = _held_to_its_end(self.choice)
        while complete or not self.progress.answered:
            events = await self.next_events()
            if events is None:
                break
            self.held += events

    async def next_events(self) -> list[bytes] | None:
        """The events for the caller that have come since; None at the end. Raises an EngineError if it broke."""
        assert self._engine is not None
        progress = self.progress
        if progress.done:
            self._see_that_it_is_whole()
            return None
        chunk = await self._engine.next_chunk()
        plain = 0 if self._splitter.holds else progress.take_plain(chunk)
        if plain and plain == len(chunk):
            return [chunk]
        try:
            events = self._splitter.feed(chunk[plain:]) if chunk else [self._splitter.rest()]
        except ValueError as error:
            raise Truncated(str(error)) from error
        found = [event for event in map(progress.take, events) if event is not None]
        if plain:
            found.insert(0, chunk[:plain])
        if progress.broken is not None:
            raise Failed("the engine reported an error inside its stream", body=progress.broken)
        if chunk or found:
            return found
        self._see_that_it_is_whole()
        return None

    def _see_that_it_is_whole(self) -> None:
        if self.progress.choices_finished < self._choices:
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

    def _take_whole(self, body: bytes) -> None:
        try:
            read = BODY.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Failed("the engine's answer is not JSON of the expected form") from error
        if read.error is not None or not read.choices:
            raise Failed("the engine answered with an error inside a 200", body=body)
        self.body = body
        self.progress.answer_id = read.id
        self.progress.usage = read.usage
        self.progress.finish_reason = read.choices[0].finish_reason


async def open_answer(house: House, policy: Policy, body: RequestBody, choice: Choice, ledger: Ledger) -> Answer:
    """Get an answer that can be committed: try, and on a failure do as `next_attempt` says.

    Raises Problem when the attempts are over: the engine's own refusal in its words, or 502, 503, 504.
    """
    failures: tuple[Failure, ...] = ()
    headers = {
        "Content-Type": "application/json",
        "X-Request-Id": ledger.record.id,
        "traceparent": ledger.traceparent,
    }
    deadline = ledger.started_at + policy.limits.request_timeout_seconds
    while True:
        ledger.chosen(choice, house.stack(choice))
        try:
            return await _attempt(house, policy, body, choice, ledger, headers)
        except EngineError as error:
            failed = error
        _note(house, choice, failed)
        now = time.monotonic()
        replica, pool = choice.replica.name, choice.pool.name
        failures = (*failures, Failure(failed.kind, replica, pool, failed.retry_after_seconds, now))
        step = next_attempt(choice, failures, policy, house.fleet.view(), house.moment(now), deadline - now)
        if isinstance(step, GiveUp):
            raise _given_up(step, failed)
        if step.wait_seconds:
            await asyncio.sleep(step.wait_seconds)
        choice = step.choice


async def _attempt(
    house: House, policy: Policy, body: RequestBody, choice: Choice, ledger: Ledger, headers: dict[str, str]
) -> Answer:
    sent = body.for_engine(choice)
    number = len(ledger.record.attempts) + 1
    if number > 1:
        headers = {**headers, "X-Request-Id": f"{ledger.record.id}-{number}"}
    began = time.monotonic()
    answer = Answer(choice, house.fleet.replicas[choice.replica.name].lease(began, choice.engine_model))
    try:
        if body.stream:
            with Deadline(_hold_seconds(choice, policy.limits)):
                await answer.begin(house, body, sent, headers, policy.limits)
        else:
            await answer.begin(house, body, sent, headers, policy.limits)
    except BaseException as error:
        ledger.wasted(house.prices, answer.lease.share(time.monotonic()))
        answer.close()
        if isinstance(error, TimeoutError):
            error = Silent("no token within the limit")
        fault = error.kind if isinstance(error, EngineError) else "cancelled"
        ledger.attempted(choice, fault, time.monotonic() - began)
        raise error
    ledger.attempted(choice, None, time.monotonic() - began)
    ledger.sent(sent, house.digest_secret)
    answer.lease.replica.wake()
    return answer


def _held_to_its_end(choice: Choice) -> bool:
    """Whether the task commits its streams only once they are complete."""
    return choice.task is not None and choice.task.commit == "complete"


def _hold_seconds(choice: Choice, limits: AttemptLimits) -> float:
    """How long a stream may be held back before it is committed."""
    return limits.answer_timeout_seconds if _held_to_its_end(choice) else limits.first_token_timeout_seconds


def _note(house: House, choice: Choice, error: EngineError) -> None:
    """Let a replica rest that failed; one that does not know a version that we route to it has lost it."""
    if isinstance(error, RefusedByEngine):
        return
    replica = house.fleet.replicas[choice.replica.name]
    if isinstance(error, Missing) and choice.version is not None:
        replica.loaded -= {choice.version.name}
    else:
        replica.rest(time.monotonic(), error.retry_after_seconds or REST_SECONDS)
    house.fleet.changed()


def _given_up(step: GiveUp, error: EngineError) -> Problem:
    if step.because == "refused":
        return refusal_of(error)
    if error.kind == "silent":
        return Problem("timeout", "No engine answered within the time limit. Try again later.")
    if error.kind == "overloaded":
        return Problem("overload", "Every engine is busy. Try again later.", None, step.retry_after_seconds)
    if error.kind == "unreachable":
        return Problem("no_replica", "No engine can be reached now. Try again later.", None, step.retry_after_seconds)
    return Problem("engine_error", "Every attempt at an engine failed. Try again later.")


def refusal_of(error: EngineError) -> Problem:
    """The engine's refusal of a request, in its own words and our shape."""
    message, code = "The engine refused the request.", ""
    try:
        body = msgspec.json.decode(error.body)
        content = body.get("error", body)
        message = str(content.get("message") or message)[:2000]
        code = str(content.get("code") or content.get("type") or "")
    except (msgspec.DecodeError, AttributeError, UnicodeDecodeError):
        pass
    text = f"{code} {message}".lower()
    if "context_length" in text or "maximum context length" in text or "max_model_len" in text:
        return Problem("context_length_exceeded", message, "messages")
    if "content_policy" in text or "content_filter" in text or "content policy" in text:
        return Problem("content_policy", message)
    return Problem("engine_refused", message)
