"""Answers for callers of other APIs: a chat completion, whole or streamed, translated into the API's own form.

Engines and the request path use chat completions. A writer reads them and makes blocks: reasoning, text, a refusal,
or a call of a tool. Each API has its own events for blocks.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import Raw

from gateway.errors import Problem
from gateway.formats.fields import NULL
from gateway.formats.server_sent_events import Count, Usage, payload_of

BlockKind = Literal["reasoning", "text", "refusal", "tool"]
CUT_AT_CONTEXT = "model_length"
"""Mistral's finish reason of an answer that has filled the model's context. OpenAI's API calls that `length`, too."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, or the next part of a call. The arguments are JSON text, or in a stream a part of that text."""

    index: int
    id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, gc=False):
    """The message of an answer, or the part of it in one event."""

    content: str | None = None
    reasoning: Any = None
    reasoning_content: Any = None
    refusal: Any = None
    tool_calls: list[Any] | None = None


class ChatChoice(msgspec.Struct, gc=False):
    """The first alternative, the only one in other APIs. `delta` is its next part."""

    delta: ChatMessage | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    logprobs: Raw = NULL


class ChatLogprobs(msgspec.Struct, gc=False):
    """The logprobs of an answer's tokens, those of its reasoning too."""

    content: list[dict[str, Any]] | None = None


class ReasoningTokens(msgspec.Struct, gc=False):
    """Tokens of an answer that are reasoning."""

    reasoning_tokens: Count | None = None


class ChatUsage(Usage, gc=False):
    """Tokens as the engine counted them, those of reasoning too."""

    completion_tokens_details: Raw = NULL

    @property
    def cached(self) -> int:
        """Tokens of the prompt that came from the engine's cache."""
        return (self.prompt_tokens_details.cached_tokens or 0) if self.prompt_tokens_details else 0

    @property
    def reasoned(self) -> int:
        """Tokens of the answer that are reasoning; 0 if the engine does not count them, or not readably."""
        try:
            details = _REASONING.decode(self.completion_tokens_details)
        except msgspec.DecodeError:
            return 0
        return (details.reasoning_tokens or 0) if details is not None else 0


class ChatAnswer(msgspec.Struct, gc=False):
    """An event of a chat completion. It accepts every event that the request path accepts."""

    id: str | None = None
    created: Any = None
    model: Any = None
    choices: list[ChatChoice] | None = None
    usage: Raw = NULL
    apprentice: Any = None


class CompletionChoice(ChatChoice, gc=False):
    """The first alternative of an answer that is not streamed."""

    delta: ChatMessage | None = msgspec.field(default=None, name="message")


class WholeAnswer(ChatAnswer, gc=False):
    """A whole chat completion."""

    choices: list[CompletionChoice] | None = None  # type: ignore[assignment]


_EVENT = msgspec.json.Decoder(ChatAnswer)
_WHOLE = msgspec.json.Decoder(WholeAnswer)
_LOGPROBS: msgspec.json.Decoder[ChatLogprobs | None] = msgspec.json.Decoder(ChatLogprobs | None)
_REASONING: msgspec.json.Decoder[ReasoningTokens | None] = msgspec.json.Decoder(ReasoningTokens | None)
_USAGE: msgspec.json.Decoder[ChatUsage | None] = msgspec.json.Decoder(ChatUsage | None)


@dataclass(slots=True)
class AnswerBlock:
    """A part of an answer: reasoning, text, a refusal, or a call with its `call_id` and the tool's `name`."""

    kind: BlockKind
    index: int
    """Its index among the blocks."""
    tool: int = 0
    """The engine's number of the call."""
    call_id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    """The logprobs of its tokens, if it is text and they were requested."""
    added: list[dict[str, Any]] = field(default_factory=list)
    """The logprobs of its latest text."""

    @property
    def text(self) -> str:
        """The whole text of the block. For a call: its arguments as JSON."""
        return "".join(self.parts)


class AnswerWriter(ABC):
    """The answer to one request, in an API's own form. A subclass defines the form. Parts arrive in their order."""

    id_prefix: ClassVar[str]
    """The beginning of an answer's id, in the place of `chatcmpl-`."""
    begins_with_usage: ClassVar[bool] = False
    """True if a stream's first event has the number of prompt tokens, so the engine has to count from the start."""

    def __init__(self) -> None:
        self.blocks: list[AnswerBlock] = []
        self.answer = ChatAnswer()
        """The latest `id`, `model` and `created`."""
        self.usage = ChatUsage()
        self.details: Any = None
        """The gateway's details of the request, which come at a stream's end."""
        self.finish_reason: str | None = None
        self.stop_reason: Any = None
        self.has_logprobs = False
        """True if the caller asked for logprobs, and the form has a place for them."""
        self._open: AnswerBlock | None = None
        """The block that is being told. Those behind it wait: clients take blocks one after the other."""
        self._begun = False

    # Defined by a form.

    @abstractmethod
    def final(self) -> dict[str, Any]:
        """The whole answer."""

    @abstractmethod
    def begin(self) -> Iterator[dict[str, Any]]:
        """The events before the first block."""

    @abstractmethod
    def open_block(self, block: AnswerBlock) -> Iterator[dict[str, Any]]:
        """The events that begin a block."""

    @abstractmethod
    def add_text(self, block: AnswerBlock, text: str) -> Iterator[dict[str, Any]]:
        """The events of a block's next text."""

    @abstractmethod
    def close_block(self, block: AnswerBlock) -> Iterator[dict[str, Any]]:
        """The events that end a block."""

    @abstractmethod
    def finish(self) -> Iterator[dict[str, Any]]:
        """The events after the last block."""

    @abstractmethod
    def fail(self, problem: Problem) -> Iterator[dict[str, Any]]:
        """The events that end a stream which broke after it had begun."""

    # Called by the relay.

    def name_answer(self, answer_id: str | None) -> str:
        """The id that callers get for the engine's id of an answer."""
        return self.id_prefix + (answer_id or "").removeprefix("chatcmpl-")

    def write_whole(self, body: bytes) -> bytes:
        """A whole answer, from the chat completion in `body`."""
        read = self._read(_WHOLE.decode(body))
        for _ in (*self._take_choice((read.choices or [ChatChoice()])[0]), *self._take_nothing()):
            pass
        return msgspec.json.encode(self.final())

    def write_events(self, events: bytes) -> bytes:
        """The events of a stream's next part, from the chat completion's events in `events`."""
        return b"".join(map(write_event, self._translate(events)))

    def write_end(self, events: bytes) -> bytes:
        """The events of a stream's last part."""
        translated = [*self._translate(events), *self._take_nothing(), *self._tell_waiting(ended=True)]
        if self._open is not None:
            translated += self.close_block(self._open)
        return b"".join(map(write_event, (*translated, *self.finish())))

    def write_failure(self, problem: Problem) -> bytes:
        """The last events of a stream that broke. Nothing follows them."""
        return b"".join(map(write_event, self.fail(problem)))

    def _translate(self, events: bytes) -> Iterator[dict[str, Any]]:
        for event in events.split(b"\n\n"):
            payload = payload_of(event + b"\n\n")
            if not payload or payload == b"[DONE]":
                continue
            read = self._read(_EVENT.decode(payload))
            if not self._begun and (self.answer.id or read.choices):  # some engines' first event has neither
                self._begun = True
                yield from self.begin()
            for choice in (read.choices or ())[:1]:
                yield from self._take_choice(choice)

    def _read(self, read: ChatAnswer) -> ChatAnswer:
        self.answer.id = self.answer.id or read.id
        self.answer.created = self.answer.created or read.created
        self.answer.model = self.answer.model or read.model
        with contextlib.suppress(msgspec.DecodeError):  # a usage that can't be read is left out
            self.usage = _USAGE.decode(read.usage) or self.usage
        self.details = read.apprentice or self.details
        return read

    def _take_choice(self, choice: ChatChoice) -> Iterator[dict[str, Any]]:
        message = choice.delta or ChatMessage()
        yield from self._take_text("reasoning", message.reasoning or message.reasoning_content)
        yield from self._take_text("text", message.content, self._logprobs_of(choice, message))
        yield from self._take_text("refusal", message.refusal)
        for number, call in enumerate(message.tool_calls or ()):
            yield from self._take_call(read_call(call, number))
        self.finish_reason = choice.finish_reason or self.finish_reason
        if self.finish_reason == CUT_AT_CONTEXT:
            self.finish_reason = "length"
        self.stop_reason = choice.stop_reason if choice.stop_reason is not None else self.stop_reason

    def _take_nothing(self) -> Iterator[dict[str, Any]]:
        """An empty text block if the answer has no block, since clients read the first block without a check."""
        if not self.blocks:
            yield from self._begin_block(AnswerBlock("text", 0))

    def _logprobs_of(self, choice: ChatChoice, message: ChatMessage) -> list[dict[str, Any]]:
        """The logprobs of the message's text; empty if they can't be read."""
        if not self.has_logprobs or not message.content:
            return []
        try:
            read = _LOGPROBS.decode(choice.logprobs)
        except (msgspec.DecodeError, RecursionError):
            return []
        tokens = (read.content if read is not None else None) or []
        return _select_tokens(tokens, message.content)

    def _take_text(
        self, kind: BlockKind, text: Any, logprobs: Sequence[dict[str, Any]] = ()
    ) -> Iterator[dict[str, Any]]:
        if not text or not isinstance(text, str):
            return
        block = self.blocks[-1] if self.blocks else None
        if block is None or block.kind != kind:
            block = AnswerBlock(kind, len(self.blocks))
            yield from self._begin_block(block)
        block.logprobs += logprobs
        yield from self._add(block, text, list(logprobs))

    def _take_call(self, call: ToolCall) -> Iterator[dict[str, Any]]:
        """A call, or the next part of a call. Parts of several calls may alternate."""
        block = next((each for each in reversed(self.blocks) if each.kind == "tool" and each.tool == call.index), None)
        if block is None or (call.id and call.id != block.call_id):  # some engines number no calls
            call_id = call.id or f"call_{self.answer.id}_{call.index}"
            block = AnswerBlock("tool", len(self.blocks), call.index, call_id, call.name)
            yield from self._begin_block(block)
        if call.arguments:
            yield from self._add(block, call.arguments)

    def _begin_block(self, block: AnswerBlock) -> Iterator[dict[str, Any]]:
        self.blocks.append(block)
        if self._open is None:
            self._open = block
            yield from self.open_block(block)
        else:
            yield from self._tell_waiting()

    def _add(
        self, block: AnswerBlock, text: str, logprobs: list[dict[str, Any]] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Add text to a block. If the block is the open one, yield the events for the text."""
        block.parts.append(text)
        if block is self._open:
            block.added = logprobs or []
            yield from self.add_text(block, text)
            yield from self._tell_waiting()

    def _tell_waiting(self, ended: bool = False) -> Iterator[dict[str, Any]]:
        """Close the open block if it is complete, and open the next one. With `ended`, all blocks are complete."""
        while (current := self._open) is not None and current is not self.blocks[-1] and (ended or _is_whole(current)):
            yield from self.close_block(current)
            self._open = block = self.blocks[current.index + 1]
            text, block.parts, block.added = block.text, [], list(block.logprobs)
            yield from self.open_block(block)
            if text:
                block.parts.append(text)
                yield from self.add_text(block, text)


def _is_whole(block: AnswerBlock) -> bool:
    """True if no more of a block can follow another one. A call is complete if its arguments are an object."""
    if block.kind != "tool":
        return True
    try:
        return isinstance(msgspec.json.decode(block.text), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def read_call(value: Any, number: int) -> ToolCall:
    """The engine's call, even if its fields have wrong types. `number` is its index if it has none of its own."""
    call = value if isinstance(value, dict) else {}
    function = call.get("function")
    named = function if isinstance(function, dict) else {}
    index = call.get("index")
    place = index if isinstance(index, int) else number
    return ToolCall(place, *map(_write_text, (call.get("id"), named.get("name"), named.get("arguments"))))


def _write_text(value: Any) -> str:
    """A text as it is, nothing as none, and anything else as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    return msgspec.json.encode(value).decode()


def _select_tokens(tokens: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The tokens of this text, without those of reasoning before it and the end token after it.

    All of them where their texts do not show it: a character may be cut between two.
    """
    texts = [str(each.get("token")) for each in tokens]
    start = "".join(texts).rfind(text)
    if start < 0:
        return tokens
    places = accumulate(map(len, texts), initial=0)
    return [each for each, place in zip(tokens, places, strict=False) if start <= place < start + len(text)]


def write_event(event: dict[str, Any]) -> bytes:
    """A server-sent event that is named by its `type`."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))
