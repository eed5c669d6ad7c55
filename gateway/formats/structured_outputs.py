"""Forms of an answer that an engine has to compile: the forms that a task allows, and their bounds.

A pattern or a grammar can hang or crash an engine, and with it all other requests at the engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from gateway.errors import Problem
from gateway.formats.fields import Fields, ToolChoice
from gateway.formats.permissions import name_owner
from router.overrides import PATTERN_STEPS_MAX, compute_pattern_cost
from router.policy import TaskPolicy

FIELDS = frozenset({"response_format", "structured_outputs", "tools"})
PATTERNS_MAX = 16
"""Different patterns of one request."""
PATTERN_CHARACTERS_MAX = 4096
"""Characters of all different patterns of one request. Compiling them takes at most about 20 ms of the event loop."""
UNICODE_CLASSES_MAX = 64
"""Classes such as `\\pL` in all patterns of one request: each may take 0.1 ms to compile."""
STEPS_MAX = 2 * PATTERN_STEPS_MAX
"""Compiled steps of all patterns of one request."""
DATA = frozenset({"enum", "const", "default", "examples"})
"""Keywords of JSON schemas whose values are data: nothing in them is compiled."""
MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"})
"""Keywords of JSON schemas whose values have the caller's names as keys."""
REFERENCE = re.compile(rb'"\$\w*[rR]ef"\s*:\s*"([^"]*)"')
PLAIN_REFERENCE = re.compile(rb"#(/(\$defs|definitions|properties)/[^/%~\\]+)*")
ESCAPED_ASCII = re.compile(rb"\\u00[0-7]")
WORDS = (b"pattern", b"grammar", b"\\u")
"""Raw JSON without any of these words contains no pattern and no grammar."""


class Construct(NamedTuple):
    """A form that an engine compiles: its name in `parameters_allowed`, and the field to name if it is not allowed."""

    permission: str
    param: str
    pattern: str | None = None


def check_forms(fields: Mapping[str, Raw], read: Fields, limits: TaskPolicy) -> bool:
    """Check that the requested form is allowed, and that its patterns compile within the bounds.

    Returns True if an engine has to compile more than a plain schema. Raises Problem (400).
    """
    if FIELDS.isdisjoint(fields):
        return False
    constructs = list(_constructs(fields, read))
    for construct in constructs:
        if construct.permission not in limits.parameters_allowed:
            text = f"{name_owner(limits)} does not allow {construct.permission!r} in the form of an answer."
            raise Problem("parameter_not_allowed", text, construct.param)
    _check_patterns({construct.pattern: construct.param for construct in constructs if construct.pattern is not None})
    return bool(constructs)


def _check_patterns(patterns: Mapping[str, str]) -> None:
    """Check that patterns (by the fields that hold them) compile within the bounds. Raises Problem (400)."""
    characters = classes = steps = 0
    for number, (pattern, param) in enumerate(patterns.items()):
        if number >= PATTERNS_MAX:
            raise Problem("invalid_value", f"A request has at most {PATTERNS_MAX} different patterns.", param)
        characters += len(pattern)
        classes += pattern.count("\\p") + pattern.count("\\P")
        if characters > PATTERN_CHARACTERS_MAX or classes > UNICODE_CLASSES_MAX:
            text = (
                f"The patterns of a request have at most {PATTERN_CHARACTERS_MAX:,} characters in all, "
                f"and {UNICODE_CLASSES_MAX} Unicode classes."
            )
            raise Problem("invalid_value", text, param)
        taken, fault = _compiled(pattern)
        if fault is not None:
            raise Problem("invalid_value", f"A pattern can't be used: {fault}.", param)
        steps += taken
        if steps > STEPS_MAX:
            text = f"The patterns of a request take at most {STEPS_MAX:,} steps compiled: repeat less."
            raise Problem("invalid_value", text, param)


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
    if read.tools and _compiles_tools(read):
        yield from _inside("tools", fields["tools"])


def has_compiled_form(read: Fields) -> bool:
    """True if an engine compiles a form for the caller. vLLM answers 500 to some forms that it can't use."""
    form = read.response_format
    if read.structured_outputs is not None or (form is not None and form.type in ("json_schema", "structural_tag")):
        return True
    return bool(read.tools) and _compiles_tools(read)


def _compiles_tools(read: Fields) -> bool:
    """True if an engine compiles the tools' schemas: if a call is required, and always for strict tools."""
    if read.tool_choice == "required" or isinstance(read.tool_choice, ToolChoice):
        return True
    return any(tool.function is not None and tool.function.strict for tool in read.tools or ())


def _inside(param: str, raw: Raw | bytes) -> Iterator[Construct]:
    """Things to compile inside of JSON, which may be a text in JSON once more.

    Raises Problem (400) if it can't be read: an engine may accept JSON that we reject, such as NaN.
    """
    data = bytes(raw)
    if not any(word in data for word in WORDS):
        return
    try:
        value = msgspec.json.decode(data)
        if isinstance(value, str):
            data = value.encode()
            value = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Problem("invalid_value", f"{param} can't be read: {error}.", param) from error
    yield from _walk(param, value, _refers_anywhere(data))


def _refers_anywhere(data: bytes) -> bool:
    """True if a reference in a JSON schema may turn something else into a schema, such as data or a map of names."""
    if ESCAPED_ASCII.search(data):
        return True
    return any(PLAIN_REFERENCE.fullmatch(reference) is None for reference in REFERENCE.findall(data))


def _walk(param: str, value: Any, everywhere: bool) -> Iterator[Construct]:
    """Things to compile in a value. `everywhere`: data and maps of names may be schemas too."""
    left: list[tuple[Any, bool]] = [(value, False)]
    while left:
        node, has_names = left.pop()
        if isinstance(node, list):
            left += [(item, False) for item in node]
        elif isinstance(node, dict) and has_names:
            left += [(item, False) for item in node.values()]
        elif isinstance(node, dict):
            for key, item in node.items():
                if everywhere or key not in DATA:
                    left.append((item, key in MAPS and not everywhere))
            if isinstance(node.get("pattern"), str):
                yield Construct("pattern", param, node["pattern"])
            if isinstance(node.get("patternProperties"), dict):
                yield from (Construct("pattern", param, pattern) for pattern in node["patternProperties"])
            if isinstance(node.get("grammar"), str):
                yield Construct("grammar", param)


_compiled = lru_cache(maxsize=256)(compute_pattern_cost)
