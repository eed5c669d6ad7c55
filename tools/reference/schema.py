"""Types, bounds and defaults of a JSON schema, in as few words as possible."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]
TYPES: Mapping[str, str] = {"string": "text", "array": "list", "object": "mapping"}
FORMATS: Mapping[str, str] = {"password": "secret", "path": "path", "binary": "file"}
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
PATTERN_LENGTH_MAX = 44
NUMBER_MAX = 1 << 60


def is_section(schema: Schema) -> bool:
    """True for an object with fields of its own, such as a section of the configuration."""
    return "$ref" in schema


def without_null(schema: Schema) -> Schema:
    """The schema without the choice of null."""
    others = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    return others[0] if len(others) == 1 else schema


def type_words(schema: Schema) -> str:
    """The type with its bounds, such as `integer[0..16]`."""
    schema = without_null(schema)
    if "anyOf" in schema:
        return " or ".join(type_words(choice) for choice in schema["anyOf"] if choice != {"type": "null"})
    if "enum" in schema:
        return " ".join(f"`{value}`" for value in schema["enum"])
    if is_section(schema):
        return "section"
    kind = schema.get("type", "JSON")
    if kind == "array":
        items = schema.get("items", {})
        inner = "" if not items or is_section(items) else f" of {type_words(items)}"
        return f"list{inner}{_up_to(schema.get('maxItems'))}"
    if kind == "object" and "patternProperties" in schema:
        (held,) = schema["patternProperties"].values()
        return "sections" if is_section(held) else f"{type_words(held)} by name"
    name = FORMATS.get(schema.get("format", ""), TYPES.get(kind, kind))
    if schema.get("pattern") == NAME_PATTERN:
        name = "name"
    return f"{name}{_up_to(schema.get('maxProperties'))}{_bounds(schema)}"


def default_words(schema: Schema, required: bool) -> str:
    """The default: `required`, `unset`, or the value."""
    if required:
        return "required"
    default = schema.get("default")
    if default is None:
        return "unset"
    if default in ("", [], {}):
        return "empty"
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{default if isinstance(default, str) else json.dumps(default, separators=(',', ':'))}`"


def _bounds(schema: Schema) -> str:
    if "pattern" in schema and schema["pattern"] != NAME_PATTERN:
        return f" `{schema['pattern']}`" if len(schema["pattern"]) <= PATTERN_LENGTH_MAX else ""
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    end = ")" if "exclusiveMaximum" in schema else "]"
    if low is not None and high is not None and high < NUMBER_MAX:
        return f"{'(' if 'exclusiveMinimum' in schema else '['}{number_words(low)}..{number_words(high)}{end}"
    if low is not None and high is None:
        return f"[{number_words(low)}..]"
    return _up_to(schema.get("maxLength"))


def _up_to(most: int | None) -> str:
    return "" if most is None else f"[..{most:,}]"


def number_words(number: float) -> str:
    """A number with separated thousands; a multiple of a MiB, GiB or TiB in that unit."""
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if number >= size and number % size == 0:
            return f"{int(number // size):,}{unit}"
    return f"{int(number):,}" if number == int(number) else f"{number:g}"
