"""Forms of an answer that an engine has to compile: which a task allows, and their bounds.

An engine can hang or end at a pattern or a grammar, and with it all other requests that it holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from gateway.asked.parameters import Fields, ToolChoice
from gateway.asked.permissions import named
from gateway.errors import Problem
from router.overrides import pattern_fault
from router.policy import TaskPolicy

FIELDS = frozenset({"response_format", "structured_outputs", "tools"})
PATTERNS_MAX = 16
"""Different patterns of one request: each may take a millisecond to compile."""
WORDS = (b"pattern", b"grammar", b"\\u")
"""JSON without any of them, as it came, holds no pattern and no grammar."""


class Construct(NamedTuple):
    """Something that an engine compiles: its name in `parameters_allowed`, and the field at fault where it may not."""

    permission: str
    param: str
    pattern: str | None = None


def check_forms(fields: Mapping[str, Raw], read: Fields, limits: TaskPolicy) -> bool:
    """See that the form which is asked for is allowed, and that its patterns compile within a bound.

    Return whether there is anything to compile but a plain schema. Raises Problem (400).
    """
    if FIELDS.isdisjoint(fields):
        return False
    found = list(_constructs(fields, read))
    for one in found:
        if one.permission not in limits.parameters_allowed:
            text = f"{named(limits)} does not allow {one.permission!r} in the form of an answer."
            raise Problem("parameter_not_allowed", text, one.param)
    patterns = {one.pattern: one.param for one in found if one.pattern is not None}
    for number, (pattern, param) in enumerate(patterns.items()):
        if number >= PATTERNS_MAX:
            raise Problem("invalid_value", f"A request has at most {PATTERNS_MAX} different patterns.", param)
        fault = _fault_of(pattern)
        if fault is not None:
            raise Problem("invalid_value", f"A pattern can't be used: {fault}.", param)
    return bool(found)


def _constructs(fields: Mapping[str, Raw], read: Fields) -> Iterator[Construct]:
    form = read.structured_outputs
    if form is not None:
        for name in ("regex", "whitespace_pattern"):
            if getattr(form, name) is not None:
                yield Construct(name, f"structured_outputs.{name}", getattr(form, name))
        for name in ("grammar", "structural_tag"):
            if getattr(form, name) is not None:
                yield Construct(name, f"structured_outputs.{name}")
        yield from _inside("structured_outputs.json", form.json)
        if form.structural_tag is not None:
            yield from _inside("structured_outputs.structural_tag", form.structural_tag.encode())
    if read.response_format is not None:
        if read.response_format.type == "structural_tag":
            yield Construct("structural_tag", "response_format")
        yield from _inside("response_format", fields["response_format"])
    if read.tools and (read.tool_choice == "required" or isinstance(read.tool_choice, ToolChoice)):
        yield from _inside("tools", fields["tools"])  # else an engine compiles nothing of them


def _inside(param: str, raw: Raw | bytes) -> Iterator[Construct]:
    """What is to be compiled inside of JSON, which may stand as a text in JSON once more."""
    data = bytes(raw)
    if not any(word in data for word in WORDS):
        return
    try:
        value = msgspec.json.decode(data)
        if isinstance(value, str):
            value = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return  # the engine refuses what is no JSON
    yield from _walk(param, value)


def _walk(param: str, value: Any) -> Iterator[Construct]:
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            left += one.values()
            if isinstance(one.get("pattern"), str):
                yield Construct("pattern", param, one["pattern"])
            if isinstance(one.get("patternProperties"), dict):
                yield from (Construct("pattern", param, pattern) for pattern in one["patternProperties"])
            if isinstance(one.get("grammar"), str):
                yield Construct("grammar", param)


@lru_cache(maxsize=1024)
def _fault_of(pattern: str) -> str | None:
    return pattern_fault(pattern)
