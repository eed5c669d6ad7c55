"""Permissions for fields that not every request may have: by its task, or by the pool that is named as the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from gateway.errors import Problem
from gateway.formats.fields import (
    GATEWAY_ALONE,
    NEVER_INSIDE,
    NEVER_WITH_ADAPTERS,
    NULL,
    ON_REQUEST,
    RAW_FIELDS,
    ROLES,
    SENT_INSTEAD,
    Fields,
    Message,
)
from gateway.formats.wire_format import WireFormat
from router.policy import TaskPolicy

UNSHOWN = re.compile(r"[^A-Za-z0-9_.=\[\]-]")
NAME_CHARACTERS_MAX = 64
NEUTRAL_BYTES_MAX = 256
"""The longest JSON of a value that may be neutral."""
NO_UUID = (UNSET, NULL)
LEAVE_OUT = "leave it out, or have an operator set unknown_fields to 'drop'"
KILLS = "The logprobs of a prompt end a vLLM engine that has adapters loaded."


def is_neutral(wire_format: WireFormat, name: str, raw: Raw) -> bool:
    """True if a field's value changes nothing, since it is the default. All such values are short."""
    if memoryview(raw).nbytes > NEUTRAL_BYTES_MAX:
        return False
    try:
        value: Any = msgspec.json.decode(raw)
    except msgspec.DecodeError:  # a number such as 1e400, which is read only here
        return False
    is_flag = isinstance(value, bool)
    neutral = wire_format.neutral.get(name, ())
    return value is None or any(is_flag is isinstance(each, bool) and value == each for each in neutral)


def refusal_of(
    wire_format: WireFormat, name: str, fields: Mapping[str, Raw], read: Fields, limits: TaskPolicy
) -> Problem | None:
    """The reason why a field with a valid type may not be sent; None if it may be sent."""
    shown = name[:NAME_CHARACTERS_MAX]
    if name in GATEWAY_ALONE:
        return Problem("parameter_not_allowed", f"Only the gateway sets {shown!r}: leave it out.", shown)
    if name not in ON_REQUEST:
        place = shown.partition("=")[0]
        instead = f"send {SENT_INSTEAD[name]}" if name in SENT_INSTEAD else LEAVE_OUT
        return Problem("unknown_parameter", f"The gateway does not know {shown!r}: {instead}.", place)
    if name not in limits.parameters_allowed:
        return Problem("parameter_not_allowed", f"{name_owner(limits)} does not allow {shown!r}.", shown)
    if limits.adapters and _kills(wire_format, name, read):
        return Problem("parameter_not_allowed", f"{name_owner(limits)} never allows this. {KILLS}", shown)
    never = NEVER_INSIDE.get(name)
    for key in sorted(never & _keys(fields[name])) if never else ():
        return Problem("parameter_not_allowed", f"No task allows {key!r} there: leave it out.", f"{name}.{key}")
    return None


def _kills(wire_format: WireFormat, name: str, read: Fields) -> bool:
    """True if vLLM would compute the logprobs of the prompt."""
    if name == "echo":
        return wire_format.asks_for_prompt_logprobs(read)
    return name in NEVER_WITH_ADAPTERS


def check_messages(messages: Sequence[Message], limits: TaskPolicy) -> None:
    """Check that the roles and parts of messages are allowed. Raises Problem (400)."""
    allowed = limits.parameters_allowed
    for number, message in enumerate(messages):
        if message.role not in ROLES and "roles" not in allowed:
            text = f"{name_owner(limits)} does not allow the role {message.role!r}."
            raise Problem("parameter_not_allowed", text, f"messages[{number}].role")
        if message.content is None and message.role == "user":
            place = f"messages[{number}].content"
            raise Problem("missing_field", f"The field {place!r} is required.", place)
        if isinstance(message.content, list) and "media" not in allowed and has_media(message):
            raise Problem("parameter_not_allowed", f"{name_owner(limits)} takes text only.", "messages")


def has_media(message: Message) -> bool:
    """True if a message holds anything but text."""
    return isinstance(message.content, list) and any(
        part.type not in ("text", "refusal") or part.uuid not in NO_UUID for part in message.content
    )


def name_owner(limits: TaskPolicy) -> str:
    """The owner of the limits, as a sentence begins."""
    return f"The task {limits.name!r}" if limits.name else "This model"


def shorten_name(name: str) -> str:
    """A caller's name of a field in a safe form for headers and records."""
    return UNSHOWN.sub("?", name[:NAME_CHARACTERS_MAX])


def _keys(raw: Raw) -> set[str]:
    """The keys of a JSON object; empty for any other value."""
    try:
        return set(RAW_FIELDS.decode(raw))
    except msgspec.ValidationError:
        return set()
