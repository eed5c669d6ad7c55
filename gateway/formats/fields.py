"""The fields of a body: who may set them, and their types and bounds. docs/reference/api.md lists them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from serving.engine_traits import ENGINE_TRAITS

KEPT_HERE = frozenset({"metadata", "store", "prompt_cache_key", "safety_identifier", "service_tier", "user"})
"""Fields that the gateway accepts but sends to no engine."""
HINTS = ENGINE_TRAITS["vllm"].fields_unknown
"""Fields of OpenAI's API that vLLM does not know. Only other engines get them."""
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
        "allowed_token_ids",
        "logprob_token_ids",
        "bad_words",
        "return_token_ids",
        "truncate_prompt_tokens",
        "include_reasoning",
        "thinking_token_budget",
    }
)
"""Fields that a task, or a pool that is named as the model, must allow by name."""
OF_MESSAGES = frozenset({"media", "roles"})
"""Permissions that are not fields: for message parts other than text, and for roles other than ROLES."""
OF_FORMS = frozenset({"regex", "grammar", "structural_tag", "whitespace_pattern", "pattern"})
"""Permissions for forms of an answer that an engine compiles. `pattern` allows patterns inside JSON schemas."""
ALLOWABLE = ON_REQUEST | OF_MESSAGES | OF_FORMS
"""Names that `parameters_allowed` may hold."""
NEVER_WITH_ADAPTERS = frozenset({"prompt_logprobs"})
"""Fields that crash a vLLM process with loaded adapters. `echo` with `logprobs` crashes it too."""
OPENAI_SAMPLING = frozenset(
    {
        "max_tokens",
        "n",
        "temperature",
        "top_p",
        "frequency_penalty",
        "presence_penalty",
        "seed",
        "stop",
        "logit_bias",
    }
)
SAMPLING = OPENAI_SAMPLING | {
    "max_completion_tokens",
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop_token_ids",
    "min_tokens",
    "include_stop_str_in_output",
    "skip_special_tokens",
}
_MODEL_AND_FORM = frozenset({"model", "stream", "stream_options", "logprobs", "response_format", "structured_outputs"})
KNOWN_ANYWHERE = SAMPLING | KEPT_HERE | HINTS | _MODEL_AND_FORM
"""Fields of all formats."""
OPENAI_ANYWHERE = OPENAI_SAMPLING | {"model", "stream", "stream_options", "logprobs"}
"""Fields of all formats in OpenAI's own API."""
GOES_ON = KEPT_HERE | {
    "model",
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "n",
    "logit_bias",
    "skip_special_tokens",
    "cache_salt",
}
"""Fields that keep their meaning when another engine continues an answer."""
SHAPES_THE_ANSWER = frozenset({"response_format", "structured_outputs"})
"""Fields without which an answer would have another form than its caller reads."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "top_k": (0, -1),
        "min_p": (0,),
        "repetition_penalty": (1,),
        "min_tokens": (0,),
        "stop_token_ids": ([],),
        "include_stop_str_in_output": (False,),
        "skip_special_tokens": (True,),
        "ignore_eos": (False,),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
        "response_format": ({"type": "text"},),
        "echo": (False,),
        "prompt_logprobs": (False,),
        "priority": (0,),
        "chat_template_kwargs": ({},),
        "mm_processor_kwargs": ({},),
        "media_io_kwargs": ({},),
        "vllm_xargs": ({},),
        "kv_transfer_params": ({},),
        "documents": ([],),
        "bad_words": ([],),
        "return_token_ids": (False,),
        "return_tokens_as_token_ids": (False,),
        "include_reasoning": (True,),
        "thinking_token_budget": (-1,),
        "spaces_between_special_tokens": (True,),
        "use_beam_search": (False,),
        "early_stopping": (False,),
        "length_penalty": (1,),
        "functions": ([],),
        "function_call": ("none",),
        "modalities": (["text"],),
        "verbosity": ("medium",),
    }
)
"""Neutral values, which change nothing, like null. They can be dropped if the field is unknown or not allowed."""
SENT_INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "functions": "tools",
        "function_call": "tool_choice",
        "max_output_tokens": "max_completion_tokens",
        "output_format": "output_config.format",
        **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), "structured_outputs"),
    }
)
"""Fields of earlier clients or other formats, with the field of the same meaning here."""
NEVER_INSIDE: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "kv_transfer_params": frozenset({"prompt_token_ids"}),
        "chat_template_kwargs": frozenset(
            {
                *("chat_template", "tokenize", "add_generation_prompt", "continue_final_message"),
                *("documents", "messages", "conversation", "tools"),
            }
        ),
    }
)
"""Keys inside of fields that no caller may send: the engine would read another prompt than the gateway."""
BYTES_MAX: Mapping[str, int] = MappingProxyType(
    {
        "response_format": 65_536,
        "structured_outputs": 65_536,
        "tools": 262_144,
        "tool_choice": 65_536,
        "stream_options": 4096,
        "prompt_cache_options": 4096,
        "prediction": 262_144,
        "stop": 65_536,
        "logit_bias": 131_072,
        "bad_words": 262_144,
        "allowed_token_ids": 65_536,
        "kv_transfer_params": 65_536,
    }
)
"""The longest JSON of a field, in bytes."""
FIELD_BYTES_MAX = 16_384
"""The longest JSON of any other field, in bytes. UNBOUNDED and the field that a format requires have none."""
UNBOUNDED = frozenset({"suffix", "chat_template", "documents", "mm_processor_kwargs", "vllm_xargs"})

NULL = Raw(b"null")
RAW_FIELDS = msgspec.json.Decoder(dict[str, Raw])
"""Reads an object of JSON, its values as they came."""
TOKEN_ID_MAX = (1 << 31) - 1
Name = Annotated[str, Meta(max_length=512)]
Logprob = Annotated[int, Meta(ge=0, le=20)]
Small = Annotated[float, Meta(ge=-2, le=2)]
Tokens = Annotated[int, Meta(ge=1)]
Alternatives = Annotated[int, Meta(ge=1, le=TOKEN_ID_MAX)]
"""A number of answers. Its bound keeps their estimated cost a finite number; a task's own bound is far lower."""
TokenId = Annotated[int, Meta(ge=0, le=TOKEN_ID_MAX)]
Stop = Annotated[str, Meta(min_length=1, max_length=256)]
Role = Annotated[str, Meta(min_length=1, max_length=64)]
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
"""Roles that every task takes."""
LogitBias = Annotated[
    dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]],
    Meta(
        max_length=1024,
        extra_json_schema={"propertyNames": {"type": "string", "pattern": "^[0-9]{1,10}$"}, "maxProperties": 1024},
    ),
]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class Part(msgspec.Struct, gc=False):
    """A part of a message's content. With a `uuid` vLLM reads any medium's address in it, whatever its type."""

    type: str
    text: str | None = None
    uuid: Raw | UnsetType = UNSET


class Message(msgspec.Struct, gc=False):
    """A message, as far as routing reads it; the rest of it goes to the engine as it came."""

    role: Role
    content: str | list[Part] | None = None


class StreamOptions(msgspec.Struct):
    """Options of a stream that a caller may set."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class PredictedPart(msgspec.Struct):
    """A part of a prediction, which is text."""

    type: Literal["text"]
    text: str


class Prediction(msgspec.Struct):
    """Text that much of the answer is expected to repeat."""

    type: Literal["content"]
    content: str | list[PredictedPart]


class JsonSchema(msgspec.Struct):
    """A schema with its name, which go to the engine as they came."""


class ResponseFormat(msgspec.Struct):
    """The form of the answer, as OpenAI's API has it; its schema goes to the engine as it came."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None

    def __post_init__(self) -> None:
        if self.type == "json_schema" and self.json_schema is None:  # vLLM answers 500, as if it were broken
            raise ValueError("Object missing required field `json_schema`")


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """The form of the answer, as vLLM has it."""

    json: Raw = Raw()
    regex: Annotated[str, Meta(max_length=4096)] | None = None
    choice: Annotated[list[Annotated[str, Meta(max_length=4096)]], Meta(max_length=1024)] | None = None
    grammar: Annotated[str, Meta(max_length=16_384)] | None = None
    json_object: bool | None = None
    structural_tag: Annotated[str, Meta(max_length=16_384)] | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: Annotated[str, Meta(max_length=256)] | None = None


class ToolFunction(msgspec.Struct):
    """The function of a tool; its parameters go to the engine as they came."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    strict: bool | None = None


class Tool(msgspec.Struct):
    """A tool that the answer may call."""

    type: Literal["function", "custom"]
    function: ToolFunction | None = None
    custom: ToolFunction | None = None

    @property
    def name(self) -> str | None:
        """Its name, whatever its type."""
        named = self.function or self.custom
        return named.name if named is not None else None


class AllowedTools(msgspec.Struct):
    """The tools that the answer may call, of those that are sent."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=512)]


class ToolChoice(msgspec.Struct):
    """A tool that the answer has to call, or the tools that it may call."""

    type: Annotated[str, Meta(max_length=64)]
    function: ToolFunction | None = None
    allowed_tools: AllowedTools | None = None


class Fields(msgspec.Struct):
    """The fields with types and bounds; what is not named here is relayed unread, once a task has allowed it."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)] | None = None
    prompt: str | Annotated[list[str], Meta(min_length=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    n: Alternatives | None = None
    best_of: Alternatives | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=TOKEN_ID_MAX)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Small | None = None
    presence_penalty: Small | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=128)] | None = None
    logit_bias: LogitBias | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    echo: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    prompt_logprobs: bool | Logprob | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=1024)] | None = None
    logprob_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=128)] | None = None
    bad_words: Annotated[list[Stop], Meta(max_length=128)] | None = None
    return_token_ids: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=TOKEN_ID_MAX)] | None = None
    include_reasoning: bool | None = None
    thinking_token_budget: Annotated[int, Meta(ge=-1, le=TOKEN_ID_MAX)] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=64)] | None = None
    logprobs: bool | Logprob | None = None
    top_logprobs: Logprob | None = None
    tools: Annotated[list[Tool], Meta(max_length=512)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[str, Meta(max_length=32)] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    modalities: Annotated[list[Literal["text"]], Meta(max_length=1)] | None = None
    prompt_cache_retention: Annotated[str, Meta(max_length=32)] | None = None
    prompt_cache_options: Annotated[dict[str, Any], Meta(max_length=16)] | None = None
    prediction: Prediction | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    suffix: str | None = None
    user: Name | None = None
    prompt_cache_key: Name | None = None
    safety_identifier: Name | None = None
    service_tier: Name | None = None
    store: bool | None = None
    metadata: Annotated[dict[str, Any], Meta(max_length=64)] | None = None


WHOLE_NUMBERS = frozenset(
    {
        *("max_tokens", "max_completion_tokens", "min_tokens", "n", "best_of", "top_k", "seed", "stop_token_ids"),
        *("prompt_logprobs", "logprobs", "top_logprobs", "allowed_token_ids", "logprob_token_ids"),
        *("truncate_prompt_tokens", "thinking_token_budget"),
    }
)
"""Fields that hold whole numbers: 4.0 counts as 4 there, as in vLLM."""
