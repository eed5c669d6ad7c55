"""OpenAI's Responses API without stored state: requests become chat completions, answers become items."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from gateway.errors import Problem
from gateway.formats.answer_writer import AnswerWriter
from gateway.formats.fields import StreamOptions, Tokens
from gateway.formats.responses_writer import LOGPROBS, ResponseWriter
from gateway.formats.translated_format import (
    TranslatedFormat,
    choose_tool,
    is_given,
    join_parts,
    make_call,
    make_form,
    make_tool,
    name_untaken,
    put_instructions,
    put_reasoning,
    put_tools,
    refuse_missing,
    refuse_value,
    see_that_it_has,
)

STATELESS = "The gateway stores no responses: send the whole conversation as input."
UNTAKEN_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "previous_response_id": STATELESS,
        "conversation": STATELESS,
        "background": "The gateway answers at once, or as a stream.",
        "prompt": "The gateway stores no prompt templates: send the text as instructions and input.",
    }
)
"""Refused fields, most of which need stored state, with the advice for each."""
INCLUDABLE = frozenset({LOGPROBS, "reasoning.encrypted_content"})
ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning")


class TextFormat(msgspec.Struct):
    """The form of an answer's text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = "answer"
    schema: Raw = msgspec.field(default_factory=Raw)
    strict: bool | None = None
    description: str | None = None


class TextOptions(msgspec.Struct):
    """The form of an answer's text, and how long it is."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningOptions(msgspec.Struct):
    """The amount of reasoning."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class FunctionTool(msgspec.Struct):
    """A tool that an answer may call."""

    type: Annotated[str, Meta(max_length=64)]
    name: str | None = None
    description: str | None = None
    parameters: Raw = msgspec.field(default_factory=Raw)
    strict: bool | None = None


class NamedTool(msgspec.Struct):
    """A tool that an answer has to call, or the tools that it may call."""

    type: Annotated[str, Meta(max_length=64)]
    name: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: Annotated[list[NamedTool], Meta(max_length=512)] | None = None


class InputItem(msgspec.Struct):
    """An item of the input: a message, a call of a tool, a tool's result, or reasoning."""

    type: Annotated[str, Meta(max_length=64)] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class InputPart(msgspec.Struct):
    """A part of a message's content."""

    type: Annotated[str, Meta(max_length=64)]
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: str | None = None


class ResponsesRequest(msgspec.Struct):
    """The fields of a request. Others go on as they are, where a task allows them."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=4096)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=512)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    previous_response_id: Raw = msgspec.field(default_factory=Raw)
    conversation: Raw = msgspec.field(default_factory=Raw)
    background: bool | None = None
    prompt: Raw = msgspec.field(default_factory=Raw)
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    """A bound of calls by the server. The gateway makes none."""
    client_metadata: Annotated[dict[str, Raw], Meta(max_length=64)] | None = None
    """Codex's own notes of its turn. It goes no further."""
    context_management: Annotated[list[dict[str, Raw]], Meta(max_length=64)] | None = None
    """Rules to shorten a long input. It is a hint: the gateway leaves all items as they are."""
    temperature: float | None = None
    top_p: float | None = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[dict[str, str | float | bool | None], Meta(max_length=64)] | None = None
    user: str | None = None


class ResponsesFormat(TranslatedFormat):
    """`POST /v1/responses`: items in, items out."""

    name = "responses"
    title = "Response"
    path = "/v1/responses"
    request_type = ResponsesRequest
    required = "input"
    whole_numbers = frozenset({"max_output_tokens", "max_tool_calls", "top_logprobs"})
    conversation_fields = frozenset({"input", "instructions"})
    field_names = MappingProxyType(
        {"messages": "input", "max_completion_tokens": "max_output_tokens", "max_tokens": "max_output_tokens",
         "response_format": "text.format", "reasoning_effort": "reasoning.effort", "verbosity": "text.verbosity"}
    )  # fmt: skip

    def chat_fields(self, read: Any, raw_fields: dict[str, Raw]) -> dict[str, Any]:
        request: ResponsesRequest = read
        _refuse_untaken(request)
        fields = self.rest(raw_fields, "temperature", "top_p", "metadata", "user")
        fields |= {"model": request.model, "messages": put_instructions(request.instructions, _messages(request.input))}
        if request.max_output_tokens is not None:
            fields["max_completion_tokens"] = request.max_output_tokens
        if request.reasoning is not None and request.reasoning.effort is not None:
            fields["reasoning_effort"] = request.reasoning.effort
        if request.text is not None:
            fields |= _text_fields(request.text)
        if request.tools:
            tools = [_tool(tool, f"tools[{at}]") for at, tool in enumerate(request.tools) if tool.type == "function"]
            choice: dict[str, Any] = {}
            if request.parallel_tool_calls is not None:
                choice["parallel_tool_calls"] = request.parallel_tool_calls
            if request.tool_choice is not None:
                choice["tool_choice"] = _tool_choice(request.tool_choice)
            fields |= put_tools(tools, len(request.tools), choice)
            fields |= name_untaken((tool.type for tool in request.tools), "function")
        elif request.tool_choice not in (None, "none", "auto"):
            raise Problem("invalid_value", "tool_choice asks for a tool, and there are no tools.", "tool_choice")
        if request.top_logprobs or LOGPROBS in (request.include or ()):
            fields |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
        if request.stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
            obfuscation = request.stream_options and request.stream_options.include_obfuscation
            if obfuscation is not None:
                fields["stream_options"]["include_obfuscation"] = obfuscation
        return fields

    def writer(self, raw: bytes) -> AnswerWriter:
        return ResponseWriter(raw)

    def answer_schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "object": {"const": "response"},
                "status": {"enum": ["completed", "incomplete"]},
                "model": {"type": "string", "description": "What answered."},
                "output": {"type": "array", "items": {"type": "object"}},
                "usage": {"type": ["object", "null"]},
            },
            "required": ["id", "object", "status", "model", "output"],
        }


def _refuse_untaken(request: ResponsesRequest) -> None:
    """Raise Problem (400) for fields that need stored state, or that the gateway does not support."""
    for name, text in UNTAKEN_FIELDS.items():
        value = getattr(request, name)
        if value is not False and is_given(value):
            raise Problem("parameter_not_allowed", f"{name} is not taken. {text}", name)
    for number, name in enumerate(request.include or ()):
        if name not in INCLUDABLE:
            raise refuse_value(f"include[{number}]", name, *sorted(INCLUDABLE))


def _tool_choice(choice: str | NamedTool) -> Any:
    if isinstance(choice, str):
        return choice
    if choice.type == "allowed_tools":
        tools = [choose_tool(tool.name) for tool in choice.tools or () if tool.type == "function"]
        return {"type": choice.type, "allowed_tools": {"mode": choice.mode, "tools": tools}} if tools else "none"
    if choice.type != "function":
        raise refuse_value("tool_choice.type", choice.type, "function", "allowed_tools")
    return choose_tool(choice.name)


def _text_fields(text: TextOptions) -> dict[str, Any]:
    fields: dict[str, Any] = {} if text.verbosity is None else {"verbosity": text.verbosity}
    form = text.format
    if form is None or form.type == "text":
        return fields
    if form.type == "json_object":
        return fields | {"response_format": {"type": "json_object"}}
    if not is_given(form.schema):
        raise refuse_missing("text.format.schema")
    return fields | {"response_format": make_form(form.schema, form.name, form.strict, form.description)}


def _tool(tool: FunctionTool, place: str) -> dict[str, Any]:
    if not tool.name:
        raise refuse_missing(f"{place}.name")
    return make_tool(tool.name, tool.description, tool.parameters, tool.strict)


def _messages(items: str | list[InputItem]) -> list[dict[str, Any]]:
    """The input as messages of a chat. Calls of one turn share a message, after the text of that turn."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for number, item in enumerate(items):
        place = f"input[{number}]"
        if item.type == "message":
            see_that_it_has(item, place, "role")
            role = "system" if item.role == "developer" else item.role
            content = _content(item.content, f"{place}.content")
            messages.append({"role": role, "content": content, "reasoning": thoughts if role == "assistant" else []})
            thoughts = []
        elif item.type == "function_call":
            see_that_it_has(item, place, "call_id", "name", "arguments")
            call = make_call(item.call_id, item.name, item.arguments)
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None, "reasoning": []})
            messages[-1]["reasoning"] += thoughts
            messages[-1].setdefault("tool_calls", []).append(call)
            thoughts = []
        elif item.type == "function_call_output":
            see_that_it_has(item, place, "call_id", "output")
            content = _content(item.output, f"{place}.output")
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
            thoughts = []
        elif item.type == "item_reference":
            text = f"{place} names a stored item. {STATELESS} Clients do so with `store`: false."
            raise Problem("invalid_value", text, f"{place}.type")
        elif item.type == "reasoning":
            parts = item.content if isinstance(item.content, list) else []
            thoughts += [part.text for part in parts if part.text]
        else:
            raise refuse_value(f"{place}.type", item.type, *ITEM_TYPES)
    if not messages:
        raise Problem("invalid_value", "The input holds no message.", "input")
    return [message | put_reasoning(message.pop("reasoning", [])) for message in messages]


def _content(content: str | list[InputPart] | None, place: str) -> Any:
    if content is None or isinstance(content, str):
        return content or ""
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(content):
        if part.type in ("input_text", "output_text", "text"):
            parts.append({"type": "text", "text": part.text or ""})
        elif part.type == "refusal":
            parts.append({"type": "text", "text": part.refusal or ""})
        elif part.type == "input_image":
            if not part.image_url:
                raise refuse_missing(f"{place}[{number}].image_url")
            url = {"url": part.image_url} | ({"detail": part.detail} if part.detail else {})
            parts.append({"type": "image_url", "image_url": url})
        else:
            raise refuse_value(f"{place}[{number}].type", part.type, "input_text", "output_text", "input_image")
    return join_parts(parts)


RESPONSES = ResponsesFormat()
