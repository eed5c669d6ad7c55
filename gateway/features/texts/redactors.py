"""The functions that redact a task's texts before they are kept: the built-in one, or an entry point."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial
from importlib.metadata import entry_points
from typing import Any, TypeVar

import msgspec

from gateway.configuration.texts import REDACTIONS_GROUP
from monitoring.evaluation.dataset import read_arguments
from monitoring.texts import TOOLS_KNOWN_MAX, Conversation

Redact = Callable[[str], str]
REDACTED = ("messages", "prompt", "answer", "tool_calls")
C = TypeVar("C", bound=Conversation)


@cache
def load_redaction(name: str, phone_region: str | None) -> Redact:
    """The function of a task's setting. Raises ImportError and AttributeError if it can't be loaded."""
    if name == "none":
        return str
    if name == "mask":
        from monitoring.redaction import mask_text  # noqa: PLC0415 - it loads all numbering plans

        return partial(mask_text, phone_region=phone_region)
    (entry_point,) = entry_points(group=REDACTIONS_GROUP, name=name)
    redact: Redact = entry_point.load()
    return redact


def redact_conversation(text: C, redact: Redact) -> C:
    """A conversation with all its texts redacted."""
    redacted = {name: redact_all(getattr(text, name), redact) for name in REDACTED}
    if text.tools:
        redacted["tools"] = msgspec.json.decode(_redact_tools(msgspec.json.encode(text.tools), redact))
    if isinstance(text.tool_choice, dict):  # a tool's name stays the same in both
        redacted["tool_choice"] = redact_all(text.tool_choice, redact)
    return msgspec.structs.replace(text, **redacted)


@lru_cache(TOOLS_KNOWN_MAX)
def _redact_tools(tools: bytes, redact: Redact) -> bytes:
    return msgspec.json.encode(redact_all(msgspec.json.decode(tools), redact))


def redact_all(value: Any, redact: Redact) -> Any:
    """A JSON value with all its texts redacted; keys of objects stay."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [redact_all(part, redact) for part in value]
    if isinstance(value, dict):
        return {
            name: _redact_arguments(part, redact)
            if name == "arguments" and isinstance(part, str)
            else redact_all(part, redact)
            for name, part in value.items()
        }
    return value


def _redact_arguments(arguments: str, redact: Redact) -> str:
    """A tool call's arguments, redacted. They are JSON, and stay so if possible: a masked number becomes a text. Each
    value is also redacted alone, since JSON's escapes can hide an address or a number."""
    redacted = redact(arguments)
    if not isinstance(values := read_arguments(arguments), dict):
        return redacted
    try:
        masked = _redact_values(values, redact)
        if read_arguments(redacted) == masked:
            return redacted
    except RecursionError:
        return redacted
    return redact(msgspec.json.encode(masked).decode())


def _redact_values(value: Any, redact: Redact) -> Any:
    if isinstance(value, list):
        return [_redact_values(part, redact) for part in value]
    if isinstance(value, dict):
        return {name: _redact_values(part, redact) for name, part in value.items()}
    if isinstance(value, bool) or value is None:
        return value
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return value if (redacted := redact(text)) == text else redacted
