"""An engine's stream, event by event (WHATWG server-sent events), relayed as the bytes that were received."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from gateway.formats.surrogates import Halves
from gateway.formats.token_frame import TokenFrame, find_frame

DONE = b"data: [DONE]\n\n"
BOM = b"\xef\xbb\xbf"
"""The mark that some engines put before UTF-8. It is not part of the text."""
FRAMES_MAX = 8
"""Most searches for a frame in one stream. If the frame changes often, searches cost more than decoding."""


ABORTED = frozenset({"abort", "error", "insufficient_system_resource"})
"""Finish reasons of an incomplete answer. For example, vLLM aborts running requests when it is paused. The last one is
DeepSeek's."""


Count = Annotated[int, Meta(ge=0, le=1 << 53)]
"""A number of tokens from an engine, up to the largest integer that every JSON reader reads exactly."""


class TokenDetails(msgspec.Struct, gc=False):
    """Number of the prompt's tokens that came from the engine's cache."""

    cached_tokens: Count | None = None


class Usage(msgspec.Struct, gc=False):
    """Tokens as the engine counted them."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: TokenDetails | None = None


class Delta(msgspec.Struct, gc=False):
    """The part of a chat answer in one event."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None


class EventChoice(msgspec.Struct, gc=False):
    """One alternative of an event."""

    index: int | None = 0
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class EventBody(msgspec.Struct, gc=False):
    """The fields of an event that the gateway reads."""

    id: str | None = None
    error: Any = None
    usage: Usage | None = None
    choices: list[EventChoice] | None = None


class _Uncounted(msgspec.Struct, gc=False):
    """An EventBody without its usage, and with its type."""

    id: str | None = None
    object: Any = None
    error: Any = None
    choices: list[EventChoice] | None = None


class AnswerMessage(msgspec.Struct, gc=False):
    """The message of a whole chat answer."""

    content: str | None = None
    tool_calls: list[Any] | None = None


class WholeChoice(msgspec.Struct, gc=False):
    """One alternative of a whole answer: a chat's has a message, a completion's a text."""

    text: str | None = None
    message: AnswerMessage | None = None
    finish_reason: str | None = None


class WholeBody(msgspec.Struct, gc=False):
    """The fields of a whole answer that the gateway reads."""

    id: str | None = None
    error: Any = None
    usage: Raw = Raw(b"null")
    choices: list[WholeChoice] | None = None

    def counted(self) -> Usage | None:
        """The usage; None if it is missing or impossible."""
        try:
            return _USAGE.decode(self.usage)
        except msgspec.DecodeError:
            return None


class _Fingerprinted(msgspec.Struct, gc=False):
    """The fields of a usage event that name the engine's build."""

    system_fingerprint: Any = None


_FINGERPRINTED = msgspec.json.Decoder(_Fingerprinted)
BODY = msgspec.json.Decoder(EventBody)
WHOLE = msgspec.json.Decoder(WholeBody)
_UNCOUNTED = msgspec.json.Decoder(_Uncounted)
_USAGE: msgspec.json.Decoder[Usage | None] = msgspec.json.Decoder(Usage | None)


def body_of(payload: bytes) -> EventBody | None:
    """Read an event. An impossible usage is left out; None if the event has nothing else.

    Raises msgspec.DecodeError if the event does not have the expected form, RecursionError if it is nested too deeply.
    """
    try:
        return BODY.decode(payload)
    except msgspec.ValidationError:
        read = _UNCOUNTED.decode(payload)
        if read.error is None and not read.choices:
            return None
        return EventBody(read.id, read.error, None, read.choices)


class EventSplitter:
    """Cuts a byte stream into events, independent of network packets. Line ends may be LF, CRLF or CR.

    `bytes_max` is the longest event.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._parts: list[bytes] = []
        """The parts of the event that has begun."""
        self._held_bytes = 0
        self._start: bytes | None = b""
        """The stream's first bytes, while they may be a BOM; None afterwards."""
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that are complete now, each with its closing blank line. Raises ValueError if one is too long."""
        chunk = self._with_plain_lines(chunk)
        if not chunk:
            return []
        parts = self._parts
        if b"\n\n" not in chunk and not (parts and chunk[:1] == b"\n" and parts[-1][-1:] == b"\n"):
            parts.append(chunk)  # joined once the end is there: an event of many parts takes no longer than their sum
            self._held_bytes += len(chunk)
            events, longest = [], self._held_bytes
        else:
            data = b"".join((*parts, chunk))
            *events, rest = data.split(b"\n\n")
            self._parts, self._held_bytes = [rest] if rest else [], len(rest)
            longest = max(map(len, (*events, rest))) if len(data) > self._bytes_max else 0
        if longest > self._bytes_max:
            raise ValueError("an event is longer than the gateway's limit")
        return [event + b"\n\n" for event in events if event]

    @property
    def holds(self) -> bool:
        """True if an event has begun but not ended."""
        return bool(self._parts) or bool(self._start)

    def rest(self) -> bytes:
        """The remaining bytes without a closing blank line, as an event; empty if there are none."""
        rest = b"".join(((self._start or b""), *self._parts)).strip(b"\n")
        self._parts, self._held_bytes, self._start = [], 0, None
        return rest + b"\n\n" if rest else b""

    def _with_plain_lines(self, chunk: bytes) -> bytes:
        """The chunk with LF for each line end, and without the stream's BOM."""
        if self._start is not None:
            chunk = self._start + chunk
            if len(chunk) < len(BOM) and BOM.startswith(chunk):
                self._start = chunk
                return b""
            self._start = None
            chunk = chunk.removeprefix(BOM)
        if self._after_cr and chunk[:1] == b"\n":  # the second half of a CRLF that was cut
            chunk = chunk[1:]
            self._after_cr = False
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        elif chunk:
            self._after_cr = False
        return chunk


def payload_of(event: bytes) -> bytes | None:
    """An event's data, or None for an event without data (a comment)."""
    if event.startswith(b"data: ") and event.count(b"\n") == 2:
        return event[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


class Progress:
    """The progress of an answer. `chunks` counts events with a token in them.

    `ended` has the index of each alternative that has ended. `skipped` counts unreadable events that may have held a
    token. `broken` has the event with the engine's error, and `aborted` is True if that was an abort. `texts` has the
    text for another engine to continue; None if no engine may continue, for example if the answer is not only text.
    """

    __slots__ = (
        "aborted",
        "answer_id",
        "broken",
        "chunks",
        "done",
        "ended",
        "finish_reason",
        "frame",
        "frames_left",
        "halves",
        "skipped",
        "texts",
        "usage",
        "usage_payload",
    )

    def __init__(self) -> None:
        self.answer_id: str | None = None
        self.usage: Usage | None = None
        self.usage_payload: bytes | None = None
        self.finish_reason: str | None = None
        self.ended: set[int | None] = set()
        self.chunks = 0
        self.skipped = 0
        self.done = False
        self.broken: bytes | None = None
        self.aborted = False
        self.texts: list[str] | None = None
        self.halves: Halves | None = None
        self.frame: TokenFrame | None = None
        self.frames_left = FRAMES_MAX

    def take_tokens(self, part: bytes) -> bool:
        """Note a part of whole token events without usage or end. For any other part, return False and note nothing."""
        text = self.frame.text_of(part) if self.frame is not None else None
        if text and self.halves is None:
            self.chunks += 1
            if self.texts is not None:
                self.texts.append(text)
            return True
        bodies = self._read_plain(part) if part and _end_of_plain(part) == len(part) else None
        if bodies is None or any(choice.finish_reason for body in bodies for choice in body.choices or ()):
            return False
        self._note_plain(bodies)
        text = _text_alone(bodies[0]) if self.frames_left and len(bodies) == 1 else None
        if text:
            self.frames_left -= 1
            self.frame = find_frame(part, text, _read_text) or self.frame
        return True

    def take_plain(self, chunk: bytes) -> int:
        """Note the events at the front of `chunk` that go to the caller unchanged. Returns the number of their bytes.

        They are decoded together, which costs less than half of decoding them one by one. `take` reads all other
        events, and also the usage and [DONE].
        """
        end = _end_of_plain(chunk)
        bodies = self._read_plain(chunk[:end]) if end else None
        if bodies is None:
            return 0
        self._note_plain(bodies)
        return end

    def _read_plain(self, events: bytes) -> list[EventBody] | None:
        """Read whole events; None if one of them is not plain."""
        if self.halves is not None and self.halves.waiting:
            return None
        try:
            see_that_it_is_text(events)
            bodies = BODY.decode_lines(events[6:-2].replace(b"\n\ndata: ", b"\n"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        for body in bodies:
            choices = body.choices
            if body.error is not None or (is_aborted(choices) if choices else choices is None or body.usage):
                return None
        return bodies

    def _note_plain(self, bodies: Sequence[EventBody]) -> None:
        if not self.answer_id:  # some engines' first event has an empty id
            self.answer_id = next((body.id for body in bodies if body.id), None)
        for body in bodies:
            if body.usage is not None:
                self.usage = body.usage
            self._note(body.choices or ())

    def take(self, event: bytes) -> bytes | None:
        """Note an event. Returns it if it is for the caller; None for comments, malformed events, or only the usage."""
        payload = payload_of(event)
        if not payload:
            return None
        try:
            see_that_it_is_text(payload)
            body, joined = self._read(payload)
        except (msgspec.DecodeError, ValueError, RecursionError):
            if payload.strip() == b"[DONE]":
                self.done = True
            else:
                self.skipped += 1
            return None
        if body is None or is_aborted(body.choices or ()) or _is_error(body, joined):
            self.broken = joined if body is not None else None
            self.aborted = body is not None and bool(body.choices) and body.error is None
            return None
        if not self.answer_id:
            self.answer_id = body.id
        if body.usage is not None:
            self.usage = body.usage
            if not body.choices:
                self.usage_payload = joined
                return None
        self._note(body.choices or ())
        return event if joined is payload else b"data: " + joined + b"\n\n"

    def _read(self, payload: bytes) -> tuple[EventBody | None, bytes]:
        """Read an event, and join halves of characters that are split between events. Returns it with its JSON."""
        if self.halves is None or not self.halves.waiting:
            try:
                return body_of(payload), payload
            except msgspec.DecodeError:
                if b"\\u" not in payload:
                    raise
        if self.halves is None:
            self.halves = Halves()
        joined, lost = self.halves.join(payload)
        self.skipped += lost
        return body_of(joined), joined

    def _note(self, choices: Iterable[EventChoice]) -> None:
        for choice in choices:
            if choice.finish_reason:  # some engines send an empty one with each event: that is not an end
                self.finish_reason = choice.finish_reason
                self.ended.add(choice.index)
            delta = choice.delta
            if (delta is not None and delta.content) or _has_token(choice):
                self.chunks += 1
                if self.texts is not None:
                    self._keep(delta)

    def _keep(self, delta: Delta | None) -> None:
        if delta is None or delta.tool_calls or delta.reasoning or delta.reasoning_content or delta.refusal:
            self.texts = None
        elif self.texts is not None and delta.content:
            self.texts.append(delta.content)

    @property
    def completion_tokens(self) -> int | None:
        """Tokens of the answer by its engine's count, else the number of token events; None if both are missing."""
        counted = self.usage.completion_tokens if self.usage is not None else None
        return self.chunks or None if counted is None else counted

    @property
    def answered(self) -> bool:
        """True if a token, or the end, has been received. Before that, nothing of the answer is known."""
        return self.chunks > 0 or self.finish_reason is not None


def _is_error(body: EventBody, payload: bytes) -> bool:
    """True if an event reports an engine's error, in the field `error` or as an object of that name."""
    return body.error is not None or (body.choices is None and _UNCOUNTED.decode(payload).object == "error")


def is_aborted(choices: Iterable[EventChoice | WholeChoice]) -> bool:
    """True if the engine has ended one of these alternatives before it was complete."""
    for choice in choices:  # noqa: SIM110 - each event passes here, and `any` takes three times as long
        if choice.finish_reason in ABORTED:
            return True
    return False


def _text_alone(body: EventBody) -> str | None:
    """The text of an event with one token of text and nothing else; None for any other."""
    choices = body.choices or ()
    if len(choices) != 1 or body.usage is not None or body.error is not None or choices[0].finish_reason:
        return None
    delta = choices[0].delta
    if delta is None:
        return choices[0].text
    if delta.reasoning or delta.reasoning_content or delta.refusal or delta.tool_calls:
        return None
    return delta.content


def _read_text(event: bytes) -> str | None:
    """The text of an event as msgspec reads it; None if the event has more than text."""
    try:
        return _text_alone(BODY.decode(event[6:-2]))
    except (msgspec.DecodeError, RecursionError):
        return None


def _end_of_plain(chunk: bytes) -> int:
    """The end of the events that may be plain: all complete events except [DONE] and the usage event before it."""
    if not chunk.startswith(b"data: {") or b"\r" in chunk:
        return 0
    limit = len(chunk)
    if chunk.endswith(DONE):
        limit -= len(DONE) + 2
    blank = chunk.rfind(b"\n\n", 0, limit)
    return blank + 2 if blank > 0 else 0


def see_that_it_is_text(data: bytes) -> None:
    """Raise UnicodeDecodeError if `data` is not UTF-8: msgspec does not check skipped fields, but clients do."""
    if not data.isascii():
        data.decode()


def _has_token(choice: EventChoice) -> bool:
    delta = choice.delta
    if delta is None:
        return bool(choice.text)
    return bool(delta.content or delta.reasoning or delta.reasoning_content or delta.refusal or delta.tool_calls)


def extend_usage_event(payload: bytes, fields: dict[str, Any]) -> bytes:
    """The engine's usage event, with the gateway's details of the request added as `apprentice`."""
    return _with_field(payload, "apprentice", fields)


def with_fingerprint(events: bytes, usage: bytes | None) -> bytes:
    """A stream's last events with the `system_fingerprint` of its usage event, which the caller does not get.

    An engine that is not asked for the usage puts the fingerprint into the last event itself.
    """
    if usage is None or b'"system_fingerprint"' in events:
        return events
    fingerprint = _FINGERPRINTED.decode(usage).system_fingerprint
    return with_last_field(events, "system_fingerprint", fingerprint) if isinstance(fingerprint, str) else events


def with_last_field(events: bytes, name: str, value: Any) -> bytes:
    """Add a field to the JSON object of the last of `events`, each with its closing blank line."""
    before, blank, last = events.removesuffix(b"\n\n").rpartition(b"\n\n")
    payload = payload_of(last + b"\n\n")
    return before + blank + _with_field(payload, name, value) if payload else events


def _with_field(payload: bytes, name: str, value: Any) -> bytes:
    """An event of one line: the JSON object `payload` with one more field. It may have line ends, and no fields."""
    fields = payload.replace(b"\n", b" ").rstrip()[:-1].rstrip()
    comma = b"" if fields.endswith(b"{") else b","
    return b"data: " + fields + comma + msgspec.json.encode({name: value})[1:] + b"\n\n"
