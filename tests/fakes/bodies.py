"""Bodies as a fake engine reads them: its refusals are worded as those of vLLM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.fakes.answers import prompt_tokens
from tests.fakes.faults import ends_with_assistant
from tests.fakes.lora import Refused

STOPS_MAX = 4
"""Stop sequences that vLLM takes, unless VLLM_MAX_STOP_STRINGS says otherwise."""
OPENAI_FIELDS = frozenset(
    (
        *("model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n"),
        *("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "logit_bias", "logprobs"),
        *("top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort"),
        *("suffix", "best_of", "echo", "user", "metadata", "store", "service_tier"),
    )
)
"""Fields of a bare engine, as OpenAI's reference has them."""


def read_name(body: Mapping[str, Any], key: str) -> str:
    """The text under a key. Raises Refused as vLLM does."""
    value = body.get(key)
    if not isinstance(value, str):
        kind = "missing" if value is None else "string_type"
        raise refusal(f"{{'type': '{kind}', 'loc': 'body.{key}', 'msg': 'Field required'}}", f"body.{key}")
    return value


def refusal(message: str, param: str | None) -> Refused:
    """vLLM's refusal of a body."""
    return Refused(400, f"1 validation error:\n  {message}", "Bad Request", param)


def read_json_or_nothing(raw: bytes) -> dict[str, Any]:
    """The body, empty where it is refused."""
    try:
        return read_json_object(raw)
    except Refused:
        return {}


def read_json_object(raw: bytes) -> dict[str, Any]:
    """The body. Raises Refused as vLLM does."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise refusal("{'type': 'json_invalid', 'loc': 'body.0', 'msg': 'JSON decode error'}", "body.0") from error
    if not isinstance(body, dict):
        raise refusal("{'type': 'model_attributes_type', 'loc': 'body'}", "body")
    return body


def check_options(
    body: Mapping[str, Any], max_model_len: int, *, prefills: bool, auto_tool_choice: bool, bare: bool
) -> None:
    """Raises Refused as vLLM does for what it is not started to do."""
    stops = body.get("stop")
    if isinstance(stops, list) and len(stops) > STOPS_MAX and not bare:
        most = f"List should have at most {STOPS_MAX} items after validation, not {len(stops)}"
        faults = [("string_type", "Input should be a valid string"), ("too_long", most)]
        lines = [f"  {{'type': {kind!r}, 'loc': 'body.stop', 'msg': {text!r}}}" for kind, text in faults]
        raise Refused(400, "\n".join(["2 validation errors:", *lines]), "Bad Request", "body.stop")
    most = body.get("max_completion_tokens") or body.get("max_tokens") or 0
    if not isinstance(most, int) or most > max_model_len:
        message = f"max_tokens={most} cannot be greater than max_model_len={max_model_len}."
        raise Refused(400, message, "BadRequestError", "max_tokens")
    prompt = prompt_tokens(body)
    if prompt + 1 > max_model_len:
        message = (
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
            f"{prompt} input tokens, which exceeds this limit even without any output tokens. Please reduce the "
            "length of the input prompt."
        )
        raise Refused(400, message, "BadRequestError", "input_tokens")
    if body.get("continue_final_message") and body.get("add_generation_prompt", True):
        message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
        raise Refused(400, message, "BadRequestError", "continue_final_message")
    if not prefills and ends_with_assistant(body):
        message = "This model does not support assistant message prefill: end with a user message."
        raise Refused(400, message, "BadRequestError", "messages")
    if body.get("tools") and body.get("tool_choice", "auto") == "auto" and not auto_tool_choice:
        message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        raise Refused(400, message, "BadRequestError")
