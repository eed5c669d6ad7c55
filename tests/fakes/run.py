"""One completion on the fake engine: how the request was seen, and how its answer is made and sent, token by token."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tests.fakes.answers import Said, Shape, Speaker, choices_of, digest_of, prompt_of, prompt_tokens, say
from tests.fakes.faults import DONE, EmptyAnswer, Fault, Moment, Tokens
from tests.fakes.lora import Adapter
from tests.fakes.wire import Exchange

if TYPE_CHECKING:
    from tests.fakes.engine import FakeEngine

STREAM_HEADERS = [("content-type", "text/event-stream; charset=utf-8")]
Outcome = Literal["running", "done", "refused", "cancelled", "failed"]


@dataclass(eq=False)
class Seen:
    """A completion request as the engine got it, and what became of it.

    `refused`: an HTTP error was its answer. `cancelled`: the caller hung up. `failed`: a fault, a death or a kill ended
    it. `tokens` is what was made up to then, for all alternatives.
    """

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    raw: bytes
    at: float
    """When it came, on the monotonic clock; `ended_at` likewise."""
    outcome: Outcome = "running"
    tokens: int = 0
    adapter_digest: str | None = None
    ended_at: float | None = None

    @property
    def model(self) -> str:
        """The name that was asked for."""
        return str(self.body.get("model") or "")

    @property
    def request_id(self) -> str | None:
        """The caller's X-Request-Id."""
        return self.headers.get("x-request-id")

    @property
    def prompt(self) -> str:
        """Messages or prompt as one text."""
        return prompt_of(self.body)


class EngineDied(Exception):
    """The engine's core died under an answer."""


class Run:
    """One answer being made and sent."""

    def __init__(
        self,
        engine: FakeEngine,
        exchange: Exchange,
        seen: Seen,
        moment: Moment,
        faults: tuple[Fault, ...],
        adapter: Adapter | None,
    ) -> None:
        self._engine = engine
        self._exchange = exchange
        self._seen = seen
        self._moment = moment
        self._faults = faults
        self._adapter = adapter
        self._prompt = prompt_tokens(seen.body)
        self._began_at = self._first_at = self._last_at = time.monotonic()
        request_id = seen.request_id or secrets.token_hex(8)
        chat = seen.path.endswith("chat/completions")
        self._shape = Shape(seen.body, chat, request_id, int(time.time()), seen.model or engine.model)

    async def whole(self) -> None:
        """Make all of the answer, then send it."""
        said = self._say()
        await self._make(said)
        for fault in self._faults:
            await fault.before_headers(self._moment)
        answer = self._shape.whole(said, self._prompt)
        answer = answer if self._engine.tells_usage else answer | {"usage": None}
        edited = next((body for fault in self._faults if (body := fault.whole(answer)) is not None), None)
        await self._exchange.whole(200, answer if edited is None else edited, content_type="application/json")
        self._count(said)

    async def streamed(self) -> None:
        """Send the headers, then an event a token."""
        for fault in self._faults:
            await fault.before_headers(self._moment)
        await self._exchange.begin(200, STREAM_HEADERS)
        said = self._say()
        await self._make(said)
        if self._shape.wants_usage and self._engine.tells_usage:
            await self._send(self._shape.usage_event(self._prompt, self._seen.tokens))
        for fault in self._faults:
            await fault.before_done(self._moment)
        await self._send(DONE)
        await self._exchange.end()
        self._count(said)

    async def _make(self, said: list[Said]) -> None:
        """Token by token, at the engine's speed, sending each if the answer is streamed. Faults strike in between."""
        engine, moment = self._engine, self._moment
        for number in range(max([1, *(len(one.tokens) for one in said)])):
            await engine.rest(engine.token_delay_seconds if number else engine.first_token_delay_seconds)
            if self._adapter is not None and number and engine.adapters.may_change(self._adapter):
                self._say_on(said, number)
            for fault in self._faults:
                await fault.before_token(moment)
            if not number:
                await self._open(said)
            for one in said:
                if number < max(1, len(one.tokens)):
                    if moment.stream:
                        await self._send(self._shape.token(one, number, self._prompt))
                    self._seen.tokens += number < len(one.tokens)
            moment.made += 1
            self._time_token(first=not number)
        for fault in self._faults:
            await fault.before_token(moment)

    async def _open(self, said: list[Said]) -> None:
        self._first_at = self._last_at = time.monotonic()
        self._engine.count.histograms["time_to_first_token_seconds"].observe(self._first_at - self._began_at)
        if self._moment.stream:
            for one in said:
                await self._send(self._shape.opening(one.index, self._prompt))

    def _time_token(self, *, first: bool) -> None:
        now = time.monotonic()
        if not first:
            self._engine.count.histograms["inter_token_latency_seconds"].observe(now - self._last_at)
        self._last_at = now

    def _say(self) -> list[Said]:
        engine, body = self._engine, self._seen.body
        speaker = self._speaker()
        self._seen.adapter_digest = None if self._adapter is None else speaker.digest
        count = next((fault.count for fault in self._faults if isinstance(fault, Tokens)), engine.n_tokens)
        wording = engine.answers.get(self._seen.model, engine.answers.get("*"))
        if any(isinstance(fault, EmptyAnswer) for fault in self._faults):
            wording = ""
        said = [say(speaker, body, index, count, wording) for index in range(choices_of(body))]
        twist = engine.twists.get(self._seen.model, engine.twists.get("*"))
        for one in said if twist is not None else ():
            twist(one)
        return said

    def _say_on(self, said: list[Said], number: int) -> None:
        """The rest of the text, from the weights as they are now; finished tokens stay."""
        for one, other in zip(said, self._say(), strict=True):
            one.tokens[number:], one.logprobs[number:] = other.tokens[number:], other.logprobs[number:]

    def _speaker(self) -> Speaker:
        name = self._seen.model or self._engine.model
        if self._adapter is None:
            return Speaker(name, digest_of(name))
        digest = self._engine.adapters.step(self._adapter)
        if name in self._engine.not_applied:
            return Speaker(self._engine.model, digest_of(self._engine.model))
        return Speaker(name, self._engine.adapters.prefix(self._adapter, self._seen.prompt, digest))

    async def _send(self, event: bytes | None) -> None:
        if event is None:
            return
        pieces = [event]
        for fault in self._faults:
            pieces = [piece for whole in pieces for piece in fault.pieces(whole, self._moment)]
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(0)
            await self._exchange.write(piece)

    def _count(self, said: list[Said]) -> None:
        count = self._engine.count
        count.end(self._began_at, self._first_at, self._prompt, self._seen.tokens)
        for one in said:
            count.finished["length" if one.finish_reason == "length" else "stop"] += 1
