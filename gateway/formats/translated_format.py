"""A wire format of another API: its requests become chat completions, and chat answers are translated into its form.

So checks, general prompts, fallbacks, contracts, records and feedback work as for chat, with any engine.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import msgspec
from msgspec import Raw

from gateway.errors import Problem
from gateway.formats.answer_writer import AnswerWriter
from gateway.formats.chat import CHAT, ChatFormat
from gateway.formats.fields import NULL, RAW_FIELDS
from gateway.formats.wire_format import WireFormat, read_fields

CHAT_ALONE = frozenset(
    {
        *("messages", "max_tokens", "max_completion_tokens", "n", "response_format", "reasoning_effort", "verbosity"),
        *("logprobs", "top_logprobs", "prompt", "modalities", "stop", "tools", "tool_choice", "stream_options"),
        "prediction",
    }
)
"""Fields of a chat completion that another API has under another name, or not at all."""
SHOWN_CHARACTERS_MAX = 64
NOT_GIVEN = (None, Raw(), NULL)


class TranslatedFormat(ChatFormat):
    """An API that is translated into chat completions."""

    openai = frozenset()

    request_type: ClassVar[type[msgspec.Struct]]
    """The fields of the API's requests, with their types."""
    field_names: ClassVar[Mapping[str, str]]
    """The API's names of chat's fields, for errors."""

    def __init__(self) -> None:
        super().__init__()
        self._requests = msgspec.json.Decoder(self.request_type)
        self.known_fields = frozenset(each.encode_name for each in msgspec.structs.fields(self.request_type))

    @abstractmethod
    def chat_fields(self, read: Any, raw_fields: dict[str, Raw]) -> dict[str, Any]:
        """The request as fields of a chat completion. Raises Problem (400) for a value without an equivalent there."""

    def translate(self, raw: bytes) -> tuple[bytes, WireFormat]:
        raw_fields = RAW_FIELDS.decode(raw)
        read = read_fields(self._requests, self.whole_numbers, raw, raw_fields)
        return msgspec.json.encode(self.chat_fields(read, raw_fields)), CHAT

    @abstractmethod
    def writer(self, raw: bytes) -> AnswerWriter: ...

    def rest(self, raw_fields: Mapping[str, Raw], *same: str) -> dict[str, Any]:
        """The unchanged fields: those that have the `same` name in chat, and unknown ones.

        A task's settings decide on unknown fields. Raises Problem (400) for a field that only chat has.
        """
        fields: dict[str, Any] = {name: raw_fields[name] for name in same if name in raw_fields}
        for name, value in raw_fields.items():
            if name not in self.known_fields and value != NULL:
                if name in CHAT_ALONE:
                    instead = f"send {self.field_names[name]}" if name in self.field_names else "leave it out"
                    raise Problem("unknown_parameter", f"{self.path} does not know {name!r}: {instead}.", name)
                fields[name] = value
        return fields

    def rename(self, problem: Problem) -> Problem:
        """The problem, with this API's name of the faulty field."""
        field = (problem.param or "").partition("[")[0].partition(".")[0]
        if field in self.field_names and problem.code != "unknown_parameter":  # that code names the caller's own field
            own = self.field_names[field]
            problem.param = own + (problem.param or "").removeprefix(field)
            problem.message = problem.message.replace(field, own)
        return problem

    def error_body(self, problem: Problem) -> bytes:
        return self.rename(problem).body()


def is_given(value: Any) -> bool:
    """True for a value that is neither null nor absent."""
    return value not in NOT_GIVEN


def make_tool(name: str | None, description: str | None, parameters: Raw, strict: bool | None = None) -> dict[str, Any]:
    """A tool that an answer may call, in chat's form."""
    function = {"name": name, "description": description, "parameters": parameters, "strict": strict}
    return {"type": "function", "function": {name: value for name, value in function.items() if is_given(value)}}


def name_untaken(kinds: Iterable[str | None], *taken: str | None) -> dict[str, Any]:
    """Tools of unsupported types, as unknown fields: a task's settings decide on them."""
    return {f"tools[{number}].type={kind}": kind for number, kind in enumerate(kinds) if kind not in taken}


def put_tools(tools: list[dict[str, Any]], tool_count: int, choice: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the supported tools (of `tool_count` sent tools), and of the choice among them.

    If the choice names an unsupported tool, the choice is dropped too: no engine is asked for a missing tool.
    """
    if not tools:
        return {}
    chosen, names = choice.get("tool_choice"), {tool["function"]["name"] for tool in tools}
    named = chosen.get("function") if isinstance(chosen, dict) else None
    if len(tools) < tool_count and named is not None and named["name"] not in names:
        choice = {name: value for name, value in choice.items() if name != "tool_choice"}
    return {"tools": tools, **choice}


def make_form(
    schema: Raw, name: str = "answer", strict: bool | None = None, description: str | None = None
) -> dict[str, Any]:
    """The `response_format` of chat that asks for an answer by this JSON schema."""
    fields = {"name": name, "schema": schema, "strict": strict, "description": description}
    return {"type": "json_schema", "json_schema": {key: value for key, value in fields.items() if is_given(value)}}


def choose_tool(name: str | None) -> dict[str, Any]:
    """The `tool_choice` of chat that asks for this tool. Raises Problem (400) for one without a name."""
    if not name:
        raise refuse_missing("tool_choice.name")
    return {"type": "function", "function": {"name": name}}


def make_call(call_id: str | None, name: str | None, arguments: str | None) -> dict[str, Any]:
    """A call of a tool, in chat's form. `arguments` are JSON."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def join_parts(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """The content of a chat message: one text if all parts are text, since not all chat templates accept parts."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def put_instructions(instructions: str | None, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with one system message first: the instructions, and all system messages that are text.

    Many templates accept only one, at the beginning. Claude Code sends another one after the user's first message.
    """
    texts, others = [instructions] if instructions else [], []
    for message in messages:
        if message["role"] == "system" and isinstance(message["content"], str):
            texts.append(message["content"])
        else:
            others.append(message)
    return [{"role": "system", "content": "\n\n".join(texts)}, *others] if texts else others


def put_reasoning(texts: list[str]) -> dict[str, Any]:
    """The field of an assistant's message with its reasoning. Templates show it to the model until the next turn."""
    return {"reasoning": "\n".join(texts)} if texts else {}


def see_that_it_has(item: object, place: str, *names: str) -> None:
    """Raise Problem (400) if an item lacks a field that it needs."""
    for name in names:
        if getattr(item, name) is None:
            raise refuse_missing(f"{place}.{name}")


def refuse_missing(place: str) -> Problem:
    """The problem for a missing field."""
    return Problem("missing_field", f"The field {place!r} is required.", place)


def refuse_value(place: str, value: str, *taken: str) -> Problem:
    """The problem for a value that the gateway does not accept at this place."""
    shown = value[:SHOWN_CHARACTERS_MAX]
    return Problem("invalid_value", f"{place} is {shown!r}: the gateway takes {', '.join(taken)}.", place)
