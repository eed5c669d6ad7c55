"""Reading an answer's content on its way to the caller, for the checks that judge it.

Logprobs that only the checks need are replaced by `null`. Else the caller gets the answer as the engine sent it.
"""

from __future__ import annotations

import asyncio
import math
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import Raw

from gateway.formats.server_sent_events import Delta, payload_of
from router.answers import AnswerAlternative, ReceivedAnswer, ReceivedCall

NAMED_BEFORE = b'"logprobs"'
NAME_BYTES_MAX = 64
"""Bytes before a value in which its name is searched."""
HEAD_BYTES = 256
"""Bytes of the beginning of a long value with which it is searched."""


class _Choice(msgspec.Struct, gc=False):
    index: Any = 0
    text: str | None = None
    delta: Delta | None = None
    message: Any = None
    finish_reason: str | None = None
    logprobs: Raw = Raw(b"null")


class _Body(msgspec.Struct, gc=False):
    choices: list[_Choice] = []


class _Token(msgspec.Struct, gc=False):
    logprob: float | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Token] | None = None
    token_logprobs: list[float | None] | None = None


_BODY = msgspec.json.Decoder(_Body)
_LOGPROBS = msgspec.json.Decoder(_Logprobs)


class _Alternative:
    """One alternative of an answer, as far as it was received."""

    __slots__ = ("calls", "events", "finish_reason", "logprobs", "refusal", "text")

    def __init__(self) -> None:
        self.events = 0
        """Events with a token of it."""
        self.text: list[str] = []
        self.refusal: list[str] = []
        self.calls: list[list[Any]] = []
        """Each call: its place, name, parts of the arguments (None for a tool that takes text), and id."""
        self.logprobs: list[float] = []
        self.finish_reason: str | None = None

    def call(self, delta: Any, number: int) -> None:
        """Note a call of a tool, or a part of one."""
        if not isinstance(delta, dict):
            return
        place, call_id = delta.get("index"), delta.get("id")
        place = place if isinstance(place, int) else number
        call_id = call_id if isinstance(call_id, str) and call_id else None
        call = next((each for each in reversed(self.calls) if each[0] == place), None)
        if call is None or (call_id is not None and call[3] not in (None, call_id)):  # some engines number no calls
            call = [place, "", [], None]
            self.calls.append(call)
        call[3] = call_id or call[3]
        function = delta.get("function")
        if not isinstance(function, dict):
            function, call[2] = delta.get("custom"), None
        if isinstance(function, dict):
            if isinstance(function.get("name"), str):
                call[1] += function["name"]
            if call[2] is not None and isinstance(function.get("arguments"), str):
                call[2].append(function["arguments"])

    @property
    def tokens(self) -> float:
        """Number of its tokens that can be judged; infinity after its end. Without logprobs, its events count."""
        return math.inf if self.finish_reason is not None else len(self.logprobs) or self.events

    def read(self) -> AnswerAlternative:
        """The alternative as far as it was read."""
        calls = tuple(
            ReceivedCall(name, None if parts is None else "".join(parts), call_id)
            for _, name, parts, call_id in sorted(self.calls, key=itemgetter(0))
        )
        return AnswerAlternative("".join(self.text), self.finish_reason, "".join(self.refusal), calls, self.logprobs)


class Reading:
    """The content of one answer, as far as it was read."""

    __slots__ = ("_alternatives", "_choices", "_strips", "unreadable")

    def __init__(self, strips: bool, choices: int = 1) -> None:
        """`choices` is the number of alternatives. With `strips`, logprobs are removed from the caller's answer."""
        self._strips = strips
        self._choices = choices
        self._alternatives: dict[int, _Alternative] = {}
        self.unreadable = False
        """True if a part of the answer could not be read."""

    def take(self, parts: list[bytes]) -> list[bytes]:
        """Read a stream's events; one part may have several. Returns them in their form for the caller."""
        return [self._part(part) for part in parts]

    def take_whole(self, body: bytes) -> bytes:
        """Read an answer that is not streamed. Returns it in its form for the caller."""
        return self._read(body, body)

    async def take_long(self, body: bytes) -> bytes:
        """As `take_whole`, for an answer that takes milliseconds: other requests run between its steps.

        A thread would not help, since the JSON decoder holds the interpreter's lock.
        """
        shown = body
        await asyncio.sleep(0)
        for choice in self._choices_of(body):
            await asyncio.sleep(0)
            raw = self._note(choice)
            if raw is not None and self._strips:
                await asyncio.sleep(0)
                shown = _without(shown, raw, body)
        return shown

    @property
    def tokens(self) -> float:
        """The smallest number of tokens of the alternatives that have not ended; infinity if all have ended."""
        if len(self._alternatives) < self._choices:
            return 0
        return min(each.tokens for each in self._alternatives.values())

    def answered(self, whole: bool, mixed: bool = False) -> ReceivedAnswer:
        """The answer so far, in the form for checks. `mixed`: a part of it is another model's."""
        alternatives = tuple(each.read() for _, each in sorted(self._alternatives.items()))
        return ReceivedAnswer(alternatives, whole, mixed, self.tokens)

    def _part(self, part: bytes) -> bytes:
        events = part.split(b"\n\n")
        changed = False
        for number, event in enumerate(events):
            payload = payload_of(event + b"\n\n") if event else None
            if payload is None:
                continue
            shown = self._read(payload, event)
            if shown is not event:
                events[number] = shown
                changed = True
        return b"\n\n".join(events) if changed else part

    def _read(self, payload: bytes, shown: bytes) -> bytes:
        for choice in self._choices_of(payload):
            raw = self._note(choice)
            if raw is not None and self._strips:
                shown = _without(shown, raw, payload)
        return shown

    def _choices_of(self, payload: bytes) -> list[_Choice]:
        try:
            return _BODY.decode(payload).choices
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.unreadable = self.unreadable or payload != b"[DONE]"
            return []  # the relay has checked that the event may pass

    def text(self) -> str | None:
        """The text of the only alternative; None if it calls tools, or has no text."""
        alternative = next(iter(self._alternatives.values()), None)
        return None if alternative is None or alternative.calls or not alternative.text else "".join(alternative.text)

    def _note(self, choice: _Choice) -> bytes | None:
        """Note a choice's content. Returns its logprobs as received, or None."""
        place = choice.index if isinstance(choice.index, int) else 0
        alternative = self._alternatives.get(place)
        if alternative is None:
            alternative = self._alternatives[place] = _Alternative()
        _note(choice, alternative)
        raw = bytes(choice.logprobs)
        if raw == b"null":
            return None
        _note_logprobs(raw, alternative)
        return raw


def _note(choice: _Choice, alternative: _Alternative) -> None:
    if choice.finish_reason:
        alternative.finish_reason = choice.finish_reason
    if choice.text is not None:
        alternative.text.append(choice.text)
        alternative.events += bool(choice.text)
    delta = choice.delta
    if delta is not None:
        if delta.content or delta.reasoning or delta.reasoning_content or delta.refusal or delta.tool_calls:
            alternative.events += 1
        if delta.content is not None:
            alternative.text.append(delta.content)
        if delta.refusal:
            alternative.refusal.append(delta.refusal)
        for number, call in enumerate(delta.tool_calls or ()):
            alternative.call(call, number)
    message = choice.message
    if isinstance(message, dict):
        for name, parts in (("content", alternative.text), ("refusal", alternative.refusal)):
            if isinstance(message.get(name), str):
                parts.append(message[name])
        calls = message.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            alternative.call(call, number)


def _note_logprobs(raw: bytes, alternative: _Alternative) -> None:
    try:
        logprobs = _LOGPROBS.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return
    if logprobs.content is not None:
        alternative.logprobs += [token.logprob for token in logprobs.content if token.logprob is not None]
    elif logprobs.token_logprobs is not None:
        alternative.logprobs += [logprob for logprob in logprobs.token_logprobs if logprob is not None]


def _without(shown: bytes, raw: bytes, payload: bytes) -> bytes:
    """An answer or an event with `null` for these logprobs. The other bytes stay the same if that is possible."""
    at = _find(shown, raw, 0)
    while at >= 0:
        before = shown[max(0, at - NAME_BYTES_MAX) : at].rstrip()
        if before.endswith(b":") and before[:-1].rstrip().endswith(NAMED_BEFORE):
            return b"%b%b%b" % (shown[:at], b"null", shown[at + len(raw) :])
        at = _find(shown, raw, at + 1)
    event = msgspec.json.decode(payload)
    for choice in event["choices"]:
        choice["logprobs"] = None
    written = msgspec.json.encode(event)
    return b"data: " + written if shown.startswith(b"data:") else written


def _find(shown: bytes, raw: bytes, start: int) -> int:
    """As `bytes.find`, which is too slow for a long `raw`: it would take as long as all other work together."""
    head = raw[:HEAD_BYTES]
    at = shown.find(head, start)
    while at >= 0 and not shown.startswith(raw, at):
        at = shown.find(head, at + 1)
    return at
