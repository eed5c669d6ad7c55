"""Faults of an engine, each a dataclass; tests/fakes/fault_rules.py says when one is shown."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tests.fakes.wire import AnswerOver, Exchange

COMPLETIONS = frozenset({"/v1/chat/completions", "/v1/completions"})
DONE = b"data: [DONE]\n\n"


def error_body(status: int, message: str, kind: str, param: str | None = None, code: Any = None) -> dict[str, Any]:
    """An error as vLLM words it; `code` is the status unless it is given."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status if code is None else code}}


def missing_model(model: str, served: str = "base-model") -> dict[str, Any]:
    """The body of vLLM's 404 for a model that it does not know."""
    message = f"The model `{model}` does not exist. Valid aliases: {served}."
    return error_body(404, message, "NotFoundError", "model")


@dataclass
class Moment:
    """Where an answer is: how many tokens were made, of how many."""

    exchange: Exchange
    body: Mapping[str, Any]
    first_at: float
    """When the fault's rule first took a request, on the monotonic clock."""
    made: int = 0
    held: list[bytes] = field(default_factory=list)
    """Events that wait to be written together with the next."""
    marked: bool = False
    """True once the stream's BOM was sent."""

    @property
    def stream(self) -> bool:
        """True where the answer is streamed."""
        return bool(self.body.get("stream"))


@dataclass(frozen=True)
class Fault:
    """A fault in one answer. Each method is called at its moment, and spoils the answer or does nothing.

    An answer that is not streamed is made before its headers go out: what befalls a token befalls it before them.
    """

    kind: ClassVar[str] = ""

    async def on_request(self, moment: Moment) -> None:
        """The request was read, and nothing was done yet."""

    async def before_headers(self, moment: Moment) -> None:
        """The work is done (a load), or begins (a completion), and no byte was sent."""

    async def before_token(self, moment: Moment) -> None:
        """`moment.made` tokens were sent; called once more after the last one."""

    async def before_done(self, moment: Moment) -> None:
        """All tokens and the usage were sent, but neither `[DONE]` nor the end of the body."""

    def pieces(self, event: bytes, moment: Moment) -> list[bytes]:
        """In which writes an event goes out; none if it is held back for now."""
        return [event]

    def whole(self, answer: dict[str, Any]) -> bytes | None:
        """The body of a whole answer; None where it stays as it is."""
        return None


@dataclass(frozen=True)
class Status(Fault):
    """Answers with this status. Without a body, an error in vLLM's shape; `text` is sent as it is instead."""

    kind = "status"
    status: int = 503
    body: Mapping[str, Any] | None = None
    retry_after: float | str | None = None
    text: str | None = None

    async def on_request(self, moment: Moment) -> None:
        headers = [] if self.retry_after is None else [("retry-after", f"{self.retry_after}")]
        if self.text is not None:
            await moment.exchange.whole(self.status, self.text.encode(), headers, "text/html")
        else:
            await moment.exchange.whole(self.status, self.body or self._default(moment), headers)
        raise AnswerOver("refused")

    def _default(self, moment: Moment) -> dict[str, Any]:
        if self.status == 404:
            return missing_model(str(moment.body.get("model")))
        kinds = {429: "RateLimitError", 503: "ServiceUnavailableError"}
        kind = kinds.get(self.status, "InternalServerError" if self.status >= 500 else "BadRequestError")
        return error_body(self.status, f"The engine answers {self.status}.", kind)


@dataclass(frozen=True)
class Reset(Fault):
    """Resets the connection before the headers, without doing the work."""

    kind = "reset"

    async def on_request(self, moment: Moment) -> None:
        await moment.exchange.reset()


@dataclass(frozen=True)
class Lost(Fault):
    """Does the work of a control call (it loads, it unloads), then resets the connection instead of answering."""

    kind = "lost"

    async def before_headers(self, moment: Moment) -> None:
        await moment.exchange.reset()


@dataclass(frozen=True)
class Silent(Fault):
    """Accepts the request and never answers."""

    kind = "silent"

    async def on_request(self, moment: Moment) -> None:
        await moment.exchange.hang()


@dataclass(frozen=True)
class SlowHeaders(Fault):
    """Answers in full, but the headers come this late (a load is done at once, its answer comes late)."""

    kind = "slow_headers"
    seconds: float = 20.0

    async def before_headers(self, moment: Moment) -> None:
        await asyncio.sleep(self.seconds)


@dataclass(frozen=True)
class Down(Fault):
    """For this long from the first request on, every request's connection is reset before the headers."""

    kind = "down"
    seconds: float = 60.0

    async def on_request(self, moment: Moment) -> None:
        if time.monotonic() - moment.first_at < self.seconds:
            await moment.exchange.reset()


@dataclass(frozen=True)
class SlowFirstToken(Fault):
    """Sends the headers at once, and the first token this late."""

    kind = "slow_first_token"
    seconds: float = 20.0

    async def before_token(self, moment: Moment) -> None:
        if moment.made == 0:
            await asyncio.sleep(self.seconds)


@dataclass(frozen=True)
class Tokens(Fault):
    """Makes the answer this many tokens long: no fault of its own, but the others count on a length."""

    kind = "tokens"
    count: int = 60


@dataclass(frozen=True)
class Dies(Fault):
    """The answer breaks off after so many tokens.

    `how`: `close` (the process died: end of the connection, no last chunk), `reset`, `half_chunk` (inside a chunk, then
    close; not streamed: inside the body), `end` (a proper last chunk, but no finish_reason, usage or [DONE]), `done`
    (as `end`, with [DONE]: a truncation that looks like success).
    """

    kind = "dies"
    after_tokens: int = 40
    how: Literal["close", "reset", "half_chunk", "end", "done"] = "close"

    async def before_token(self, moment: Moment) -> None:
        if moment.made < self.after_tokens:
            return
        exchange = moment.exchange
        if self.how == "reset":
            await exchange.reset()
        if self.how == "half_chunk":
            if not exchange.begun:
                await exchange.begin(200, [("content-type", "application/json")], 4096)
            await exchange.half_chunk(b'data: {"id":"chatcmpl-half","object":"chat.completion.chunk","choices":[{"in')
        if self.how in ("end", "done") and exchange.begun:
            if self.how == "done":
                await exchange.write(DONE)
            await exchange.end()
            raise AnswerOver
        await exchange.close()


@dataclass(frozen=True)
class Stalls(Fault):
    """Says nothing for this long after so many tokens, then goes on."""

    kind = "stalls"
    after_tokens: int = 20
    seconds: float = 30.0

    async def before_token(self, moment: Moment) -> None:
        if moment.made == self.after_tokens:
            await asyncio.sleep(self.seconds)


@dataclass(frozen=True)
class ErrorEvent(Fault):
    """The engine died under an innocent stream: an error event inside the 200, then [DONE]. Not streamed: HTTP 500."""

    kind = "error_event"
    after_tokens: int = 5
    message: str = "EngineCore encountered an issue. See stack trace (above) for the root cause."

    async def before_token(self, moment: Moment) -> None:
        if moment.made >= self.after_tokens:
            await send_error(moment, self.message)


@dataclass(frozen=True)
class RawEvent(Fault):
    """Sends these bytes, among the good events, after so many tokens. Not streamed: they are the whole body."""

    kind = "raw_event"
    after_tokens: int = 5
    data: bytes = b'data: {"id":"chatcmpl-x","choices":[{"index":0,"delta":{"content":"br\n\n'

    async def before_token(self, moment: Moment) -> None:
        if moment.made != self.after_tokens:
            return
        if moment.stream:
            await moment.exchange.write(self.data)
        else:
            await moment.exchange.whole(200, self.data, content_type="application/json")
            raise AnswerOver


@dataclass(frozen=True)
class HugeEvent(Fault):
    """One event with this many bytes of text in it, after so many tokens."""

    kind = "huge_event"
    text_bytes: int = 2 << 20
    after_tokens: int = 5

    async def before_token(self, moment: Moment) -> None:
        if moment.made == self.after_tokens and moment.stream:
            event = {
                "id": "chatcmpl-huge",
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": {"content": "x" * self.text_bytes}, "finish_reason": None}],
            }
            await moment.exchange.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@dataclass(frozen=True)
class NoDone(Fault):
    """All of the answer and its usage, but no [DONE]: a proper end of the body (`end`), or of the connection (`close`),
    or neither (`open`: the caller waits)."""

    kind = "no_done"
    ending: Literal["end", "close", "open"] = "end"

    async def before_done(self, moment: Moment) -> None:
        if self.ending == "open":
            await moment.exchange.hang()
        if self.ending == "close":
            await moment.exchange.close()
        await moment.exchange.end()
        raise AnswerOver("done")


@dataclass(frozen=True)
class EmptyAnswer(Fault):
    """A well-formed answer without a token in it."""

    kind = "empty_answer"


@dataclass(frozen=True)
class RefusesPrefill(Fault):
    """Refuses a conversation whose last message is the assistant's, whatever else it asks for."""

    kind = "refuses_prefill"

    async def on_request(self, moment: Moment) -> None:
        if ends_with_assistant(moment.body):
            message = "This model does not support assistant message prefill: end with a user message."
            await moment.exchange.whole(400, error_body(400, message, "BadRequestError", "messages"))
            raise AnswerOver("refused")


@dataclass(frozen=True)
class Framing(Fault):
    """Valid, unusual framing: events cut into writes of so many bytes, CRLF or CR line ends, comments between events,
    no space after `data:`, two events in a write (`together`), a BOM before the first."""

    kind = "framing"
    split_bytes: int = 0
    crlf: bool = False
    cr: bool = False
    bom: bool = False
    comments: bool = False
    tight: bool = False
    together: int = 1

    def pieces(self, event: bytes, moment: Moment) -> list[bytes]:
        if self.tight:
            event = event.replace(b"data: ", b"data:", 1)
        if self.comments:
            event = b": ping\n\n" + event
        if self.crlf:
            event = event.replace(b"\n", b"\r\n")
        if self.cr:
            event = event.replace(b"\n", b"\r")
        if self.bom and not moment.marked:
            moment.marked = True
            event = b"\xef\xbb\xbf" + event
        if self.together > 1:
            moment.held.append(event)
            if len(moment.held) < self.together and b"[DONE]" not in event:
                return []
            event = b"".join(moment.held)
            moment.held.clear()
        size = self.split_bytes or len(event)
        return [event[start : start + size] for start in range(0, len(event), size)]


@dataclass(frozen=True)
class Edited(Fault):
    """Each event's JSON, or the whole answer's, as `edit` changes it; `dumped` turns it into bytes."""

    kind = "edited"
    edit: Callable[[dict[str, Any]], None] = lambda _: None
    dumped: Callable[[dict[str, Any]], bytes] = lambda told: json.dumps(told).encode()

    def pieces(self, event: bytes, moment: Moment) -> list[bytes]:
        if event == DONE:
            return [event]
        told = json.loads(event.removeprefix(b"data: "))
        self.edit(told)
        return [b"data: " + self.dumped(told) + b"\n\n"]

    def whole(self, answer: dict[str, Any]) -> bytes:
        self.edit(answer)
        return self.dumped(answer)


@dataclass(frozen=True)
class Pings(Fault):
    """Says nothing but comments after so many tokens, for this long."""

    kind = "pings"
    after_tokens: int = 10
    seconds: float = 30.0
    every_seconds: float = 0.02

    async def before_token(self, moment: Moment) -> None:
        until = time.monotonic() + self.seconds
        while moment.made == self.after_tokens and time.monotonic() < until:
            await moment.exchange.write(b": ping\n\n")
            await asyncio.sleep(self.every_seconds)


async def send_error(moment: Moment, message: str) -> None:
    """Send vLLM's error inside an answer: an event and [DONE], or HTTP 500 before any header."""
    exchange, body = moment.exchange, error_body(500, message, "InternalServerError")
    if exchange.begun:
        await exchange.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        await exchange.write(DONE)
        await exchange.end()
    else:
        await exchange.whole(500, body)
    raise AnswerOver


def ends_with_assistant(body: Mapping[str, Any]) -> bool:
    """True where the engine has to continue an assistant's message."""
    messages = body.get("messages")
    return isinstance(messages, list) and bool(messages) and messages[-1].get("role") == "assistant"
