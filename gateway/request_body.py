"""A caller's body: read once for what routing needs, then sent on with only the fields changed that must be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from gateway.errors import Problem
from router.choice import Asked, Choice
from router.overrides import fold
from router.policy import TaskPolicy

Endpoint = Literal["chat", "completions"]
Logprob = Annotated[int, Meta(ge=0, le=20)]
Small = Annotated[float, Meta(ge=-2, le=2)]

KEPT_HERE = frozenset({"metadata", "store", "prompt_cache_key", "safety_identifier", "service_tier", "user"})
"""Fields that the gateway takes and no engine gets."""
GATEWAY_ALONE = frozenset({"priority", "request_id", "cache_salt"})
"""Fields that engines take and only the gateway may set."""
ON_REQUEST = frozenset(
    {
        "kv_transfer_params",
        "vllm_xargs",
        "chat_template",
        "chat_template_kwargs",
        "mm_processor_kwargs",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "ignore_eos",
        "prompt_logprobs",
        "echo",
        "media",
    }
)
"""Fields that a task must allow by name; `media` stands for message parts that are not text."""
SAMPLING = frozenset(
    {
        "max_tokens",
        "max_completion_tokens",
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "stop",
        "stop_token_ids",
        "min_tokens",
        "logit_bias",
        "include_stop_str_in_output",
        "skip_special_tokens",
    }
)
ON_BOTH = (
    SAMPLING | KEPT_HERE | {"model", "stream", "stream_options", "logprobs", "response_format", "structured_outputs"}
)
KNOWN: Mapping[Endpoint, frozenset[str]] = {
    "chat": ON_BOTH | {"messages", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort"},
    "completions": ON_BOTH | {"prompt", "suffix", "best_of"},
}
SYSTEM_ROLES = ("system", "developer")


class Part(msgspec.Struct):
    """A part of a message's content."""

    type: str
    text: str | None = None


class Message(msgspec.Struct):
    """A message, as far as routing reads it; the rest of it goes to the engine as it came."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None


class StreamOptions(msgspec.Struct):
    """What a caller may ask of a stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Fields(msgspec.Struct):
    """The fields with types and bounds; what is not named here is relayed unread."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)] | None = None
    prompt: str | list[Any] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Small | None = None
    presence_penalty: Small | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    logprobs: bool | Logprob | None = None
    top_logprobs: Logprob | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=512)] | None = None
    response_format: dict[str, Any] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = None


FIELDS = msgspec.json.Decoder(Fields)
RAW_FIELDS = msgspec.json.Decoder(dict[str, Raw])
MESSAGES = msgspec.json.Decoder(list[Raw])
AT_FIELD = re.compile(r"`\$\.?([^`]*)`$")
MISSING_FIELD = re.compile(r"missing required field `([^`]*)`")


class RequestBody:
    """A body that has been read and found valid. `fields` holds each top-level field's JSON as it came."""

    def __init__(self, endpoint: Endpoint, fields: dict[str, Raw], read: Fields) -> None:
        self.endpoint = endpoint
        self.read = read
        self.stream = bool(read.stream)
        self.wants_usage = bool(read.stream_options and read.stream_options.include_usage)
        self._fields = fields

    @property
    def size(self) -> int:
        """Its fields' bytes, their names aside."""
        return sum(memoryview(raw).nbytes for raw in self._fields.values())

    @property
    def choices(self) -> int:
        """How many alternatives are asked for: each has an end of its own."""
        prompts = len(self.read.prompt) if isinstance(self.read.prompt, list) else 1
        return (self.read.n or 1) * prompts

    def session(self, header: str | None) -> str | None:
        """The conversation that this request belongs to, or None where the caller names none."""
        named = (self.read.metadata or {}).get("session_id")
        return header or (str(named) if named else None) or self.read.prompt_cache_key or self.read.user

    def metadata(self) -> dict[str, str]:
        """The caller's metadata, as far as its values are text."""
        return {key: value for key, value in (self.read.metadata or {}).items() if isinstance(value, str)}

    def text(self) -> str:
        """All that the caller and the conversation say, folded as rules compare it."""
        if self.endpoint == "completions":
            prompt = self.read.prompt
            return fold(prompt if isinstance(prompt, str) else " ".join(p for p in prompt or [] if isinstance(p, str)))
        return fold("\n".join(_text_of(message) for message in self.read.messages or []))

    def check(self, task: TaskPolicy | None, defaults: TaskPolicy) -> None:
        """Hold the body against what the task allows. Raises Problem (400) naming the field at fault."""
        limits = task or defaults
        for name in self._fields.keys() - KNOWN[self.endpoint]:
            _check_extra(name, limits)
        if "media" not in limits.parameters_allowed and any(_has_media(m) for m in self.read.messages or []):
            raise Problem("parameter_not_allowed", f"{_of(limits)} takes text only.", "messages")
        for name in ("max_tokens", "max_completion_tokens"):
            if (getattr(self.read, name) or 0) > limits.max_tokens_max:
                raise Problem("invalid_value", f"{name} is at most {limits.max_tokens_max}.", name)
        for name in ("n", "best_of"):
            if (getattr(self.read, name) or 1) > limits.n_max:
                raise Problem("invalid_value", f"{name} is at most {limits.n_max}.", name)
        if self.choices > limits.n_max:
            text = f"The prompts, times n, are at most {limits.n_max}: send them one by one."
            raise Problem("invalid_value", text, "prompt")

    def whole(self) -> RequestBody:
        """The same request, asking for its answer at once instead of streamed."""
        fields = {name: raw for name, raw in self._fields.items() if name not in ("stream", "stream_options")}
        return RequestBody(self.endpoint, fields, msgspec.structs.replace(self.read, stream=None, stream_options=None))

    def for_engine(self, choice: Choice) -> bytes:
        """The body as this choice's engine gets it: its model, its version's sampling, its blueprint."""
        fields: dict[str, Any] = {name: raw for name, raw in self._fields.items() if name not in KEPT_HERE}
        fields["model"] = choice.engine_model
        if self.stream:
            fields["stream_options"] = {"include_usage": True}
        if choice.version is not None:
            self._add_sampling(fields, choice.version.sampling)
        elif choice.blueprint_of is not None:
            blueprint = choice.blueprint_of.blueprint
            self._add_sampling(fields, blueprint.sampling)
            if blueprint.response_format and not self._shapes_its_answer():
                fields["response_format"] = blueprint.response_format
            self._add_system(fields, blueprint.system)
        return msgspec.json.encode(fields)

    def _add_sampling(self, fields: dict[str, Any], sampling: Mapping[str, Any]) -> None:
        for name, value in sampling.items():
            if name == "max_tokens" and self.read.max_completion_tokens is not None:
                continue
            if getattr(self.read, name, None) is None:
                fields[name] = value

    def _shapes_its_answer(self) -> bool:
        """Whether the caller says itself what form the answer has: the blueprint's form then stays out."""
        named = self._fields.keys() & {"structured_outputs", "tools"}
        return bool(named) or self.read.response_format is not None

    def _add_system(self, fields: dict[str, Any], system: str) -> None:
        if self.endpoint == "completions":
            prompt = self.read.prompt
            if isinstance(prompt, str):
                fields["prompt"] = f"{system}\n\n{prompt}"
            else:
                fields["prompt"] = [f"{system}\n\n{text}" for text in prompt or []]
            return
        messages: list[Any] = list(MESSAGES.decode(self._fields["messages"]))
        first = (self.read.messages or [])[0]
        if first.role in SYSTEM_ROLES:
            messages[0] = {"role": "system", "content": f"{system}\n\n{_text_of(first)}"}
        else:
            messages.insert(0, {"role": "system", "content": system})
        fields["messages"] = messages


def read_body(endpoint: Endpoint, body: bytes) -> RequestBody:
    """Read a body. Raises Problem (400) that names what is wrong with it and where."""
    try:
        body.decode()  # msgspec does not look into what it skips
        fields = RAW_FIELDS.decode(body)
        read = FIELDS.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem("invalid_json", f"The body is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise Problem("invalid_json", "The body is nested too deeply.") from error
    if isinstance(read.prompt, list) and not all(isinstance(text, str) for text in read.prompt):
        raise Problem("invalid_value", "The prompt is text or a list of texts; token ids are not taken.", "prompt")
    wanted = "messages" if endpoint == "chat" else "prompt"
    if getattr(read, wanted) is None:
        raise Problem("missing_field", f"The field {wanted!r} is required.", wanted)
    return RequestBody(endpoint, fields, read)


def asked_of(body: RequestBody, caller: str, models: frozenset[str], session: str | None, with_text: bool) -> Asked:
    """The request as the router sees it."""
    text = body.text() if with_text else ""
    return Asked(body.read.model, caller, models, session, body.metadata(), text)


def _invalid(message: str) -> Problem:
    missing = MISSING_FIELD.search(message)
    if missing:
        return Problem("missing_field", f"The field {missing[1]!r} is required.", missing[1])
    place = AT_FIELD.search(message)
    return Problem("invalid_value", f"{message}.", place[1] if place and place[1] else None)


def _check_extra(name: str, limits: TaskPolicy) -> None:
    shown = name[:64]
    if name in GATEWAY_ALONE:
        raise Problem("parameter_not_allowed", f"Only the gateway sets {shown!r}: leave it out.", shown)
    if name in ON_REQUEST:
        if name in limits.parameters_allowed:
            return
        raise Problem("parameter_not_allowed", f"{_of(limits)} does not allow {shown!r}.", shown)
    raise Problem("unknown_parameter", f"The gateway does not know {shown!r}: leave it out.", shown)


def _of(limits: TaskPolicy) -> str:
    return f"The task {limits.name!r}" if limits.name else "This model"


def _text_of(message: Message) -> str:
    if isinstance(message.content, list):
        return "\n".join(part.text or "" for part in message.content)
    return message.content or ""


def _has_media(message: Message) -> bool:
    return isinstance(message.content, list) and any(part.type not in ("text", "refusal") for part in message.content)
