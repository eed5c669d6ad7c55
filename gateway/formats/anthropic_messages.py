"""Anthropic's Messages API: requests become chat completions, answers become content blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Raw

from gateway.errors import Problem
from gateway.formats.answer_writer import AnswerBlock, AnswerWriter
from gateway.formats.fields import Tokens
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

ERROR_TYPES: Mapping[int, str] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
        502: "api_error",
        503: "overloaded_error",
        504: "timeout_error",
    }
)
"""Anthropic's types of errors by status; any other status is an `invalid_request_error`."""
THREAD_CODE = "thread_unsupported_request"
"""The code of an error by which Anthropic's clients know that they have to send the whole conversation."""
STOP_REASONS: Mapping[str, str] = MappingProxyType(
    {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
)
CLIENTS_TOOLS = (None, "custom")
"""Types of tools that a caller carries out itself."""
ATTRIBUTION = "x-anthropic-billing-header:"
"""The begin of a block from Claude Code that differs in each request, so that no prompt could be cached."""
TOOL_CHOICES: Mapping[str, str] = MappingProxyType({"auto": "auto", "any": "required", "none": "none"})


class ImageSource(msgspec.Struct):
    """The bytes of an image, or its address."""

    type: Annotated[str, Meta(max_length=64)]
    media_type: str = "image/png"
    data: str = ""
    url: str = ""


class ContentBlock(msgspec.Struct):
    """A block of a message: text, an image, reasoning, a call of a tool, or a tool's result."""

    type: Annotated[str, Meta(max_length=64)]
    text: str | None = None
    thinking: str | None = None
    source: ImageSource | str | None = None
    id: str | None = None
    name: str | None = None
    input: Raw = msgspec.field(default_factory=Raw)
    tool_use_id: str | None = None
    is_error: bool | None = None
    content: str | list[ContentBlock] | None = None


class TurnMessage(msgspec.Struct):
    """A turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


class ClientTool(msgspec.Struct):
    """A tool that the answer may call."""

    name: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    type: str | None = None
    description: str | None = None
    input_schema: Raw = msgspec.field(default_factory=Raw)
    strict: bool | None = None


class ToolUseChoice(msgspec.Struct):
    """The tools that the answer may, must or must not call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    """Thinking before the answer. It is a hint: the engine's template decides."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None
    display: str | None = None


class OutputForm(msgspec.Struct):
    """The form of an answer's text."""

    type: Literal["json_schema"]
    schema: Raw = msgspec.field(default_factory=Raw)


class OutputConfig(msgspec.Struct):
    """The form of an answer's text, and the amount of reasoning before it."""

    format: OutputForm | None = None
    effort: Annotated[str, Meta(max_length=32)] | None = None


class CacheControl(msgspec.Struct):
    """Caching of the prompt. It is a hint: engines cache by themselves."""

    type: Annotated[str, Meta(max_length=64)]
    ttl: Annotated[str, Meta(max_length=64)] | None = None


class CountedMessages(msgspec.Struct, kw_only=True):
    """A request whose tokens are counted. Other fields go on as they are, where a task allows them."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[TurnMessage], Meta(min_length=1, max_length=4096)]
    system: str | list[ContentBlock] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: Annotated[list[ClientTool], Meta(max_length=512)] | None = None
    tool_choice: ToolUseChoice | None = None
    metadata: Annotated[dict[str, Any], Meta(max_length=64)] | None = None
    """`user_id` is the caller's own id of its user. Rules read the others, as in chat."""
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    context_management: Annotated[dict[str, Raw], Meta(max_length=64)] | None = None
    """Edits of earlier turns. It is a hint: the gateway leaves all turns as they are."""
    service_tier: str | None = None
    thread: Annotated[dict[str, Raw], Meta(max_length=64)] | None = None
    max_tokens: Tokens | None = None


class MessagesRequest(CountedMessages, kw_only=True):
    """The fields of a request. Others go on as they are, where a task allows them."""

    max_tokens: Tokens


class _Stops(msgspec.Struct):
    """The field of a request that its answer's writer reads, with any type."""

    stop_sequences: Any = None


_STOPS = msgspec.json.Decoder(_Stops)


class MessagesFormat(TranslatedFormat):
    """`POST /v1/messages`: turns with content blocks."""

    name = "messages"
    title = "Anthropic message"
    path = "/v1/messages"
    id_header = b"request-id"
    request_type: ClassVar[type[CountedMessages]] = MessagesRequest
    required = "messages"
    token_limit_required = True
    conversation_fields = frozenset({"messages", "system"})
    field_names = MappingProxyType(
        {"max_completion_tokens": "max_tokens", "stop": "stop_sequences", "user": "metadata.user_id",
         "response_format": "output_config.format", "reasoning_effort": "output_config.effort"}
    )  # fmt: skip

    def chat_fields(self, read: Any, raw_fields: dict[str, Raw]) -> dict[str, Any]:
        request: CountedMessages = read
        if request.thread is not None:  # without it, a later turn would be answered without those before it
            text = "thread is not taken. The gateway stores no threads: send the whole conversation as messages."
            raise Problem("parameter_not_allowed", text, "thread")
        fields = self.rest(raw_fields, "temperature", "top_p", "top_k", "metadata", "service_tier")
        turns: list[dict[str, Any]] = []
        for number, message in enumerate(request.messages):
            turns += _read_turn(message, f"messages[{number}].content")
        system = request.system
        if isinstance(system, list):
            system = [block for block in system if not (block.text or "").startswith(ATTRIBUTION)]
        messages = put_instructions(_join_text(system, "system"), turns)
        fields |= {"model": request.model, "messages": messages}
        if request.stop_sequences:
            fields["stop"] = request.stop_sequences
        if request.tools:
            tools = [_read_tool(tool, at) for at, tool in enumerate(request.tools) if tool.type in CLIENTS_TOOLS]
            choice = {} if request.tool_choice is None else _read_choice(request.tool_choice)
            fields |= put_tools(tools, len(request.tools), choice)
            fields |= name_untaken((tool.type for tool in request.tools), *CLIENTS_TOOLS)
        if request.output_config is not None:
            fields |= _read_output(request.output_config)
        user = (request.metadata or {}).get("user_id")
        if user is not None and not isinstance(user, str):
            raise Problem("invalid_value", "metadata.user_id has to be a text.", "metadata.user_id")
        if user:
            fields["user"] = user
        if not isinstance(request, MessagesRequest):
            return fields  # nobody answers it
        fields["max_tokens"] = request.max_tokens
        if messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:
            text = "The last message is the assistant's. The gateway does not continue an answer: end with the user's."
            raise Problem("invalid_value", text, "messages")
        if request.stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        return fields

    def writer(self, raw: bytes) -> AnswerWriter:
        return MessageWriter(_STOPS.decode(raw).stop_sequences)

    def error_body(self, problem: Problem) -> bytes:
        return msgspec.json.encode(self.describe_error(problem))

    def describe_error(self, problem: Problem) -> dict[str, Any]:
        """A problem in Anthropic's shape of errors, which events have too."""
        self.rename(problem)
        message, more = problem.message, dict[str, Any](param=problem.param, code=problem.code)
        if problem.code == "context_length_exceeded" and problem.param != "max_tokens":
            message = f"prompt is too long: {message}"  # clients shorten the prompt if they find these words
        if problem.param == "thread":
            more["details"] = {"error_code": THREAD_CODE}
        error = {"type": ERROR_TYPES.get(problem.status, "invalid_request_error"), "message": message}
        return {"type": "error", "error": error | more}

    def answer_schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "type": {"const": "message"},
                "role": {"const": "assistant"},
                "model": {"type": "string", "description": "What answered."},
                "content": {"type": "array", "items": {"type": "object"}},
                "stop_reason": {"enum": [*STOP_REASONS.values(), "stop_sequence"]},
                "usage": {"type": "object"},
            },
            "required": ["id", "type", "role", "model", "content", "stop_reason", "usage"],
        }


class CountedMessagesFormat(MessagesFormat):
    """A message whose tokens are counted: it may end with the assistant's turn, as its history does."""

    request_type = CountedMessages


def _join_text(content: str | list[ContentBlock] | None, place: str) -> str:
    """The text of blocks that may be only text."""
    if content is None or isinstance(content, str):
        return content or ""
    for number, block in enumerate(content):
        if block.type != "text":
            raise refuse_value(f"{place}[{number}].type", block.type, "text")
    return "\n".join(block.text or "" for block in content)


def _read_turn(message: TurnMessage, place: str) -> list[dict[str, Any]]:
    """A turn as messages of a chat. Each tool's result is a separate message."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    thoughts = [block.thinking for block in message.content if block.type == "thinking" and block.thinking]
    for number, block in enumerate(message.content):
        at = f"{place}[{number}]"
        if block.type == "text":
            parts.append({"type": "text", "text": block.text or ""})
        elif block.type == "image":
            parts.append(_read_image(block, at))
        elif block.type == "tool_use":
            see_that_it_has(block, at, "id", "name")
            arguments = bytes(block.input).decode() if is_given(block.input) else "{}"
            calls.append(make_call(block.id, block.name, arguments))
        elif block.type == "tool_result":
            see_that_it_has(block, at, "tool_use_id")
            content, images = _read_result(block, f"{at}.content")
            results.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": content})
            parts += images
        elif block.type not in ("thinking", "redacted_thinking"):
            raise refuse_value(f"{at}.type", block.type, "text", "image", "tool_use", "tool_result", "thinking")
    turn = {"role": message.role, "content": join_parts(parts), **put_reasoning(thoughts)}
    if calls:
        return [turn | {"content": turn["content"] or None, "tool_calls": calls}]
    return [*results, turn] if parts or not results else results


def _read_image(block: ContentBlock, place: str) -> dict[str, Any]:
    """An image as a part of a chat message. Raises Problem (400) if the block has no image."""
    source = block.source
    if not isinstance(source, ImageSource):
        raise refuse_missing(f"{place}.source")
    if source.type not in ("base64", "url"):
        raise refuse_value(f"{place}.source.type", source.type, "base64", "url")
    name = "url" if source.type == "url" else "data"
    if not getattr(source, name):
        raise refuse_missing(f"{place}.source.{name}")
    url = source.url if source.type == "url" else f"data:{source.media_type};base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _read_result(block: ContentBlock, place: str) -> tuple[str, list[dict[str, Any]]]:
    """The result of a tool: its text, and its images, which tool messages can't hold."""
    images: list[dict[str, Any]] = []
    content = block.content
    if isinstance(content, list):
        images = [_read_image(each, f"{place}[{at}]") for at, each in enumerate(content) if each.type == "image"]
        content = [each for each in content if each.type != "image"]
    text = _join_text(content, place)
    return (f"Error: {text}" if block.is_error else text), images


def _read_output(config: OutputConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {} if config.effort is None else {"reasoning_effort": config.effort}
    if config.format is None:
        return fields
    if not is_given(config.format.schema):
        raise refuse_missing("output_config.format.schema")
    return fields | {"response_format": make_form(config.format.schema)}


def _read_tool(tool: ClientTool, number: int) -> dict[str, Any]:
    if tool.name is None:
        raise refuse_missing(f"tools[{number}].name")
    return make_tool(tool.name, tool.description, tool.input_schema, tool.strict)


def _read_choice(choice: ToolUseChoice) -> dict[str, Any]:
    fields: dict[str, Any] = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    if choice.type != "tool":
        return fields | {"tool_choice": TOOL_CHOICES[choice.type]}
    return fields | {"tool_choice": choose_tool(choice.name)}


class MessageWriter(AnswerWriter):
    """An answer as a message with content blocks."""

    id_prefix = "msg_"
    begins_with_usage = True

    def __init__(self, stop_sequences: Any = None) -> None:
        """`stop_sequences` are the request's. Those of a version's manifest count as the model's own end."""
        super().__init__()
        self._stop_sequences = stop_sequences or ()

    def final(self) -> dict[str, Any]:
        stop_reason, stop_sequence = self._stop()
        message = {
            "id": self.name_answer(self.answer.id),
            "type": "message",
            "role": "assistant",
            "model": self.answer.model,
            "content": [_write_block(block) for block in self.blocks],
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": self._usage(),
        }
        return message | ({"apprentice": self.details} if self.details else {})

    def begin(self) -> Iterator[dict[str, Any]]:
        message = self.final() | {"stop_reason": None, "stop_sequence": None}
        yield {"type": "message_start", "message": message}

    def open_block(self, block: AnswerBlock) -> Iterator[dict[str, Any]]:
        empty = _write_block(AnswerBlock(block.kind, block.index, call_id=block.call_id, name=block.name))
        yield {"type": "content_block_start", "index": block.index, "content_block": empty}

    def add_text(self, block: AnswerBlock, text: str) -> Iterator[dict[str, Any]]:
        kind, name = DELTA_TYPES[block.kind]
        yield {"type": "content_block_delta", "index": block.index, "delta": {"type": kind, name: text}}

    def close_block(self, block: AnswerBlock) -> Iterator[dict[str, Any]]:
        yield {"type": "content_block_stop", "index": block.index}

    def finish(self) -> Iterator[dict[str, Any]]:
        stop_reason, stop_sequence = self._stop()
        details = {"apprentice": self.details} if self.details else {}
        delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        yield {"type": "message_delta", "delta": delta, "usage": self._usage(), **details}
        yield {"type": "message_stop"}

    def fail(self, problem: Problem) -> Iterator[dict[str, Any]]:
        yield MESSAGES.describe_error(problem)

    def _stop(self) -> tuple[str, str | None]:
        if any(block.kind == "refusal" for block in self.blocks):
            return "refusal", None
        if self.finish_reason == "stop" and self.stop_reason in self._stop_sequences:
            return "stop_sequence", self.stop_reason
        if any(block.kind == "tool" for block in self.blocks) and self.finish_reason == "stop":
            return "tool_use", None  # so vLLM ends a call that `tool_choice` asked for
        return STOP_REASONS.get(self.finish_reason or "stop", "end_turn"), None

    def _usage(self) -> dict[str, Any]:
        usage = self.usage
        return {
            "input_tokens": max(0, (usage.prompt_tokens or 0) - usage.cached),
            "cache_read_input_tokens": usage.cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": usage.completion_tokens or 0,
        }


DELTA_TYPES: Mapping[str, tuple[str, str]] = {
    "text": ("text_delta", "text"),
    "refusal": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "tool": ("input_json_delta", "partial_json"),
}


def _write_block(block: AnswerBlock) -> dict[str, Any]:
    if block.kind == "tool":
        return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": _read_arguments(block.text)}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "text", "text": block.text}


def _read_arguments(text: str) -> Any:
    """A call's arguments; unchanged if the model wrote no JSON object."""
    try:
        arguments = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return {"arguments": text}
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}


MESSAGES = MessagesFormat()
COUNTED_MESSAGES = CountedMessagesFormat()
