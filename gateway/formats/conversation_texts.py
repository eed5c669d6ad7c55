"""The texts of a request and its answer, read from their bytes and cut to a limit, for reviews and kept texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
from msgspec import Raw

from gateway.formats.request_body import RequestBody
from gateway.formats.wire_format import WireFormat, decode_list
from monitoring.records import Record
from monitoring.texts import Conversation
from router.answers import ReceivedCall

TEXT_BYTES_MAX = 65_536
"""Most bytes (UTF-8) that are kept of a request, and of its answer."""
TOOLS_BYTES_MAX = 131_072
"""Most bytes (UTF-8) that are kept of tools. Longer ones are not kept at all."""
LEFT_OUT = " […]"
Tell = Callable[[str], None]


class _Asked(msgspec.Struct):
    """The fields that are read of a request's body."""

    messages: list[Raw] | None = None
    prompt: Any = None


ASKED = msgspec.json.Decoder(_Asked)
ORIGIN = ("task", "version", "pool", "reason", "at", "caller", "endpoint")


@dataclass(frozen=True)
class AnsweredRequest:
    """An answered request: its body, and the parts that were sent as its answer. All features that keep texts share
    it; the first one decodes the texts."""

    record: Record
    body: RequestBody
    answer: Sequence[bytes]

    @property
    def size(self) -> int:
        """Approximate bytes of memory that it holds while it waits."""
        return len(self.body.raw) + sum(map(len, self.answer))

    @cached_property
    def conversation(self) -> Conversation:
        """Its texts."""
        cut: list[str] = []
        messages, prompt = read_asked(self.body.wire_format, self.body.raw, cut.append)
        tools = read_tools(self.body.tools(), cut.append)
        asked_whole = not cut
        answer, tool_calls = read_answered(self.body.wire_format, self.answer, self.body.stream, cut.append)
        choice = self.body.tool_choice()
        return Conversation(
            messages=messages,
            prompt=prompt,
            answer=answer,
            tool_calls=tool_calls,
            tools=tools,
            parallel_tool_calls=self.body.read.parallel_tool_calls,
            tool_choice=None if choice is None else _read(choice),
            cut=cut,
            asked_whole=asked_whole,
        )

    def fields(self) -> dict[str, Any]:
        """The texts and their origin, as fields of a kept text or a review."""
        origin = {name: getattr(self.record, name) for name in ORIGIN}
        return origin | msgspec.structs.asdict(self.conversation) | {"task": self.record.task or ""}


def read_asked(wire_format: WireFormat, raw: bytes, tell: Tell) -> tuple[list[Any], str | list[str] | None]:
    """The messages of a body as sent, or its prompt. For a body with neither: its text.

    If they are too long, the earliest messages are left out. If the latest message alone is too long, its end is cut.
    `tell` then gets a sentence.
    """
    read = ASKED.decode(raw)
    if read.messages is None:
        prompt = wire_format.conversation(wire_format.decoder.decode(raw)) if read.prompt is None else read.prompt
        return [], _prompt(prompt, tell)
    messages: list[Any] = []
    left = TEXT_BYTES_MAX
    for message in reversed(read.messages):
        size = memoryview(message).nbytes
        if size > left:
            break
        left -= size
        messages.append(_read(message))
    missing = len(read.messages) - len(messages)
    if missing and not messages:
        messages.append(_shortened(_read(read.messages[-1])))
        missing -= 1
        tell(f"The last message is cut: it is longer than {TEXT_BYTES_MAX:,} bytes.")
    if missing:
        tell(f"The first {missing} of {len(read.messages)} messages are left out: they are too long.")
    return messages[::-1], None


def read_tools(tools: Raw | None, tell: Tell) -> list[Any]:
    """The tools of a body. If they are too long, the list is empty and `tell` gets a sentence."""
    raw = [] if tools is None else decode_list(tools)
    if sum(memoryview(tool).nbytes for tool in raw) > TOOLS_BYTES_MAX:
        tell(f"The tools are left out: they are longer than {TOOLS_BYTES_MAX:,} bytes.")
        return []
    return [_read(tool) for tool in raw]


def _read(message: Raw) -> Any:
    """A message. If it can't be written as JSON again, as with a number of 30 digits, it becomes a text."""
    raw = memoryview(message).tobytes()
    try:
        value = msgspec.json.decode(raw)
        msgspec.json.encode(value)
    except (ValueError, OverflowError, RecursionError):
        return {"role": None, "content": raw.decode(errors="replace")}
    return value


def _prompt(prompt: Any, tell: Tell) -> str | list[str]:
    texts = [prompt] if isinstance(prompt, str) else [text for text in prompt or [] if isinstance(text, str)]
    left, shortened = TEXT_BYTES_MAX, list[str]()
    for text in texts:
        short = clip_text(text, left)
        left = max(0, left - len(short.encode(errors="replace")))
        shortened.append(short)
    if shortened != texts:
        tell(f"The prompt is cut: it is longer than {TEXT_BYTES_MAX:,} bytes.")
    return shortened[0] if isinstance(prompt, str) else shortened


def _shortened(message: Any) -> dict[str, Any]:
    """A message with only its role and the beginning of its text."""
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    text = content if isinstance(content, str) else msgspec.json.encode(message).decode()
    return {"role": message.get("role"), "content": clip_text(text, TEXT_BYTES_MAX)}


def clip_text(text: str, most: int) -> str:
    """The beginning of a text, at most `most` bytes in UTF-8: whole characters, with a sign that it was cut."""
    raw = text.encode(errors="replace")
    if len(raw) <= most:
        return raw.decode()
    return raw[: max(0, most - len(LEFT_OUT.encode()))].decode(errors="ignore") + LEFT_OUT


def read_answered(wire_format: WireFormat, parts: Sequence[bytes], stream: bool, tell: Tell) -> tuple[str, list[Any]]:
    """The text of an answer, and its calls of tools. Several alternatives are numbered, one below the other.

    `tell` gets a sentence if a part was cut or could not be read.
    """
    reading = wire_format.read_answer(parts, stream)
    if reading.unreadable:
        tell("A part of the answer could not be read.")
    alternatives = reading.answered(whole=True).alternatives
    whole = [alternative.text + alternative.refusal for alternative in alternatives]
    text = whole[0] if len(whole) == 1 else "\n\n".join(f"[{n}] {part}" for n, part in enumerate(whole, 1))
    short = clip_text(text, TEXT_BYTES_MAX)
    if len(whole) > 1:
        tell(f"It has {len(whole)} answers: a label does not say which of them is right.")
    if len(short) < len(text):
        tell(f"The answer is cut: it is longer than {TEXT_BYTES_MAX:,} bytes.")
    calls = [_shown(call) for alternative in alternatives for call in alternative.calls]
    return short, _bounded(calls, tell)


def _shown(call: ReceivedCall) -> dict[str, str]:
    parts = {"id": call.id, "name": call.name, "arguments": call.arguments}
    return {name: text for name, text in parts.items() if text is not None}


def _bounded(calls: list[dict[str, str]], tell: Tell) -> list[Any]:
    left, bounded = TEXT_BYTES_MAX, list[Any]()
    for call in calls:
        short = {name: clip_text(text, left) for name, text in call.items()}
        left = max(0, left - sum(len(text.encode(errors="replace")) for text in short.values()))
        bounded.append(short)
        if short != call:
            tell(f"The tool calls are cut: they are longer than {TEXT_BYTES_MAX:,} bytes.")
            break
    return bounded
