"""The functions that tasks' texts go through before they are kept: the shipped one, or an entry point."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any, TypeVar

import msgspec

from gateway.configuration.texts import REDACTIONS_GROUP
from monitoring.texts import Conversation

Redact = Callable[[str], str]
REDACTED = ("messages", "prompt", "answer", "tool_calls")
C = TypeVar("C", bound=Conversation)


@cache
def load_redaction(name: str, phone_region: str | None) -> Redact:
    """The function of a task's setting. Raises ImportError and AttributeError where it can't be loaded."""
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
    return msgspec.structs.replace(text, **{name: redact_all(getattr(text, name), redact) for name in REDACTED})


def redact_all(value: Any, redact: Redact) -> Any:
    """A JSON value with all its texts redacted; keys of objects stay."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [redact_all(part, redact) for part in value]
    if isinstance(value, dict):
        return {name: redact_all(part, redact) for name, part in value.items()}
    return value
