"""An engine's stream, event by event (WHATWG server-sent events), relayed as the bytes that came."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

EVENT_BYTES_MAX = 1 << 20
DONE = b"data: [DONE]\n\n"


Count = Annotated[int, Meta(ge=0, le=1 << 53)]
"""Tokens that an engine may tell of: as many as every JSON reader takes exactly."""


class TokenDetails(msgspec.Struct, gc=False):
    """How many of the prompt's tokens came from the engine's cache."""

    cached_tokens: Count | None = None


class Usage(msgspec.Struct, gc=False):
    """Tokens as the engine counted them."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: TokenDetails | None = None


class Delta(msgspec.Struct, gc=False):
    """What an event adds to a chat answer."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None


class EventChoice(msgspec.Struct, gc=False):
    """One alternative of an event or an answer."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class EventBody(msgspec.Struct, gc=False):
    """What the gateway reads of an event's JSON, and of a whole answer's."""

    id: str | None = None
    error: Any = None
    usage: Usage | None = None
    choices: list[EventChoice] = []


class _Uncounted(msgspec.Struct, gc=False):
    """An EventBody whatever stands in its usage."""

    id: str | None = None
    error: Any = None
    choices: list[EventChoice] = []


BODY = msgspec.json.Decoder(EventBody)
_UNCOUNTED = msgspec.json.Decoder(_Uncounted)


def body_of(payload: bytes) -> EventBody:
    """What is read of an event or a whole answer. A usage that can't be is not known: the answer stands without it.

    Raises msgspec.DecodeError where there is nothing else, or anything else is not of the expected form;
    RecursionError for what is too deep.
    """
    try:
        return BODY.decode(payload)
    except msgspec.ValidationError:
        read = _UNCOUNTED.decode(payload)
        if read.error is None and not read.choices:
            raise
        return EventBody(read.id, read.error, None, read.choices)


class EventSplitter:
    """Cuts a byte stream into events, wherever the network cut it. Line ends may be LF or CRLF."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that are whole now, each with its closing blank line. Raises ValueError on an endless one."""
        data = self._rest + chunk if self._rest else chunk
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *events, self._rest = data.split(b"\n\n")
        if len(self._rest) > EVENT_BYTES_MAX:
            raise ValueError("an event is longer than the gateway's limit")
        return [event + b"\n\n" for event in events if event]

    @property
    def holds(self) -> bool:
        """Whether the beginning of an event waits for its end."""
        return bool(self._rest)

    def rest(self) -> bytes:
        """What is left without a closing blank line, made an event; empty if nothing is."""
        rest, self._rest = self._rest.strip(b"\r\n"), b""
        return rest + b"\n\n" if rest else b""


def payload_of(event: bytes) -> bytes | None:
    """An event's data, or None for one that carries none (a comment)."""
    if event.startswith(b"data: ") and event.count(b"\n") == 2:
        return event[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


class Progress:
    """What has been seen of an answer so far. `chunks` counts events with a token in them.

    `said` is its text, kept where another engine may have to go on with it; None where that may not be, as where
    it is more than text.
    """

    __slots__ = (
        "answer_id",
        "broken",
        "choices_finished",
        "chunks",
        "done",
        "finish_reason",
        "said",
        "skipped",
        "usage",
        "usage_payload",
    )

    def __init__(self) -> None:
        self.answer_id: str | None = None
        self.usage: Usage | None = None
        self.usage_payload: bytes | None = None
        self.finish_reason: str | None = None
        self.choices_finished = 0
        self.chunks = 0
        self.skipped = 0
        self.done = False
        self.broken: bytes | None = None
        self.said: list[str] | None = None

    def take_plain(self, chunk: bytes) -> int:
        """Note the events at the front of `chunk` that go to the caller as they came; returns how many bytes they are.

        They are decoded together, which costs less than half of taking them one by one. Whatever is not plain, the
        usage and [DONE] too, is left to `take`.
        """
        end = _end_of_plain(chunk)
        if not end:
            return 0
        try:
            if not chunk.isascii():
                chunk[:end].decode()  # see_that_it_is_text, of the part that is taken
            bodies = BODY.decode_lines(chunk[6 : end - 2].replace(b"\n\ndata: ", b"\n"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return 0
        if any(body.error is not None or body.usage is not None for body in bodies):
            return 0
        if self.answer_id is None:
            self.answer_id = bodies[0].id
        for body in bodies:
            self._note(body.choices)
        return end

    def take(self, event: bytes) -> bytes | None:
        """Note an event, and return it if it is for the caller: not a comment, not malformed, not the usage alone."""
        payload = payload_of(event)
        if payload is None:
            return None
        try:
            see_that_it_is_text(payload)
            body = body_of(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if payload == b"[DONE]":
                self.done = True
            else:
                self.skipped += 1
            return None
        if body.error is not None:
            self.broken = payload
            return None
        if self.answer_id is None:
            self.answer_id = body.id
        if body.usage is not None:
            self.usage = body.usage
            if not body.choices:
                self.usage_payload = payload
                return None
        self._note(body.choices)
        return event

    def _note(self, choices: list[EventChoice]) -> None:
        for choice in choices:
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
                self.choices_finished += 1
            delta = choice.delta
            if (delta is not None and delta.content) or _has_token(choice):
                self.chunks += 1
                if self.said is not None:
                    self._keep(delta)

    def _keep(self, delta: Delta | None) -> None:
        if delta is None or delta.tool_calls or delta.reasoning or delta.reasoning_content or delta.refusal:
            self.said = None
        elif self.said is not None and delta.content:
            self.said.append(delta.content)

    @property
    def answered(self) -> bool:
        """Whether a token, or the end, has come: before that, nothing of the answer is known."""
        return self.chunks > 0 or self.finish_reason is not None


def _end_of_plain(chunk: bytes) -> int:
    """Where the events end that may be plain: all whole ones, but not [DONE] and the one before it, the usage."""
    if not chunk.startswith(b"data: {"):
        return 0
    limit = len(chunk)
    if chunk.endswith(DONE):
        limit -= len(DONE) + 2
    blank = chunk.rfind(b"\n\n", 0, limit)
    return blank + 2 if blank > 0 else 0


def see_that_it_is_text(data: bytes) -> None:
    """Raises UnicodeDecodeError: msgspec does not look into what it skips, and clients do."""
    if not data.isascii():
        data.decode()


def _has_token(choice: EventChoice) -> bool:
    delta = choice.delta
    if delta is None:
        return bool(choice.text)
    return bool(delta.content or delta.reasoning or delta.reasoning_content or delta.refusal or delta.tool_calls)


def usage_event(payload: bytes, told: dict[str, Any]) -> bytes:
    """The engine's usage event as it came, with what the gateway tells of the request spliced in as `apprentice`."""
    return b"data: " + payload.rstrip()[:-1] + b',"apprentice":' + msgspec.json.encode(told) + b"}\n\n"


def error_event(error: dict[str, Any]) -> bytes:
    """The event that ends a stream which broke after it had begun. No [DONE] follows it."""
    return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"
