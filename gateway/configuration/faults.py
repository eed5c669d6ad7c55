"""The faults of a configuration in plain words: each fault's place, the allowed values, and the given value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gateway.errors import SettingsError, SettingsFault
from serving.adapters.plain_yaml import find_places

Schema = Mapping[str, Any]
Keys = tuple[str | int, ...]
"""Nested keys, from the outermost; in a list, the number of the item."""
PLACEHOLDER = re.compile(r"\$\{\w+\}")
NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
NAME_WORDS = "a name is needed: at most 63 of a-z, 0-9, - and _, a letter or digit first"
OF_A_NAME = "[key]"
"""The step that pydantic puts behind an invalid name."""
SHOWN_CHARACTERS_MAX = 40
SHOWN_NUMBER_MAX = 1e300
RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "exit_pool": "fallback_pool",
        "exits": "fallbacks",
        "exit_breaks": "fallback_breaks",
        "rungs": "checks",
        "slice_share": "quota_share",
        "standbys_kept": "previous_versions_kept",
    }
)
"""Keys of earlier releases, with their present names."""


class ContradictingSettings(ValueError):
    """Settings that can't be used together; each sentence begins with its key."""

    def __init__(self, sentences: Iterable[str]) -> None:
        self.sentences = tuple(sentences)
        super().__init__("; ".join(self.sentences))


@dataclass(frozen=True, slots=True)
class ConfigurationSource:
    """The origin of settings: the file, its text, and the environment's variables by their keys."""

    path: Path | None
    text: str
    variables: Mapping[Keys, str]

    def explain(self, faults: Iterable[tuple[Keys, str]]) -> SettingsError:
        """The error of these faults, one line each: the variable, or the file with line and column, then the key and
        the fault."""
        told = tuple(faults)
        places = find_places(self.text, [keys for keys, _ in told]) if self.path is not None else [None] * len(told)
        located = dict[SettingsFault, None]()
        for (keys, text), place in zip(told, places, strict=True):
            variable = self._find_variable(keys)
            fault = SettingsFault(text.rstrip("."), _join(keys), variable=variable)
            if variable is None and self.path is not None:
                fault = SettingsFault(fault.message, fault.key, str(self.path), *(place or ()))
            located[fault] = None
        lines = "".join(f"\n  {fault}." for fault in located)
        return SettingsError(f"The configuration can't be used:{lines}", located)

    def _find_variable(self, keys: Keys) -> str | None:
        """The variable that gives the value, a section around it, or a part of it."""
        lowered = tuple(str(key).lower() for key in keys)
        names = [self.variables.get(lowered[:count]) for count in range(len(lowered), 0, -1)]
        names += [name for parts, name in self.variables.items() if lowered and parts[: len(lowered)] == lowered]
        return next(filter(None, names), None)


def find_placeholders(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Yield a fault for each value that is only `${NAME}`."""
    if isinstance(value, str) and PLACEHOLDER.fullmatch(value):
        yield keys, "a variable is not replaced here. Set it from the environment: docs/reference/settings.md"
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from find_placeholders(child, (*keys, key))


def describe_errors(errors: Iterable[Any], schema: Schema) -> Iterator[tuple[Keys, str]]:
    """Yield pydantic's errors as faults; `schema` is the JSON schema of the settings."""
    for error in errors:
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, ContradictingSettings):
            for sentence in cause.sentences:
                key, _, text = sentence.partition(": ")
                yield tuple(key.split(".")), text
        else:
            yield _describe(error, schema)


def _describe(error: Any, schema: Schema) -> tuple[Keys, str]:
    keys, outer, place = _resolve(error["loc"], schema)
    given = error["input"]
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return keys, _describe_unknown(str(keys[-1]), outer)
    if error["type"] == "value_error":
        return keys, str(error["msg"]).removeprefix("Value error, ")
    if error["loc"][-1] == OF_A_NAME:
        return keys, NAME_WORDS
    need = _describe_need(place)
    if error["type"] == "missing":
        return keys, f"it is missing: {need}"
    shown = _show(given, place)
    is_plain = place.get("type") == "string" and not {"enum", "pattern"} & place.keys()
    quotes = is_plain and not isinstance(given, str | list | dict | None)
    return keys, f"{need}{f', and this is {shown}' if shown else ''}{': put it into quotes' if quotes else ''}"


def _describe_unknown(key: str, section: Schema) -> str:
    if key in RENAMED:
        return f"this key is called {RENAMED[key]} now"
    similar = get_close_matches(key, section.get("properties", ()), 1)
    return f"unknown key; the nearest is {similar[0]}" if similar else "unknown key"


def _resolve(loc: Keys, root: Schema) -> tuple[Keys, Schema, Schema]:
    """The keys without pydantic's own steps, the schema of the last key's parent, and the schema of its value."""
    keys: list[str | int] = []
    outer = place = _open(root, root)
    for key in loc:
        if key == OF_A_NAME or "anyOf" in place:
            continue
        by_name = [*place.get("patternProperties", {}).values(), place.get("additionalProperties") or {}]
        inner = place.get("items", {}) if isinstance(key, int) else place.get("properties", {}).get(key, by_name[0])
        keys.append(key)
        outer, place = place, _open(inner, root)
    return tuple(keys), outer, place


def _open(schema: Schema, root: Schema) -> Schema:
    """The schema behind references, without the choice of null."""
    if "$ref" in schema:
        return root["$defs"][schema["$ref"].rpartition("/")[2]]  # type: ignore[no-any-return]
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) != 1:
        return schema
    return _open({key: value for key, value in schema.items() if key != "anyOf"} | choices[0], root)


def _describe_need(schema: Schema) -> str:
    pattern = schema.get("pattern", "")
    if schema.get("type") == "object":
        return f"it holds keys and values{', at least one' if 'minProperties' in schema else ''}"
    if pattern.startswith("^https?://"):
        return "an address is needed, such as http://127.0.0.1:8000"
    if pattern == NAME:
        return NAME_WORDS
    return f"{_describe_kind(schema)} is needed"


def _describe_kind(schema: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_describe_kind, schema["anyOf"]))
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
    if schema.get("type") == "string":
        return _describe_text(schema)
    kinds = {
        "integer": f"a whole number{_describe_bounds(schema)}",
        "number": f"a number{_describe_bounds(schema)}",
        "boolean": "true or false",
        "array": f"a list{f' of at most {most}' if (most := schema.get('maxItems')) else ''}",
    }
    return kinds.get(schema.get("type", ""), "another value")


def _describe_text(schema: Schema) -> str:
    if schema.get("examples"):
        return f"a text such as {schema['examples'][0]}"
    most = schema.get("maxLength")
    return "a path" if schema.get("format") == "path" else f"a text{f' of at most {most:,} characters' if most else ''}"


def _describe_bounds(schema: Schema) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high = schema.get("maximum")
    start = f" from {low:,}" if low is not None else f" above {above:,}" if above is not None else ""
    if high is None:
        return f" of {low:,} or more" if low is not None else start
    return f"{start} to {high:,}" if low is not None else f"{start}{' and' if start else ' of'} at most {high:,}"


def _show(given: Any, schema: Schema) -> str:
    """The given value, in a form that reveals no secret; empty for a text where the schema wants a text."""
    match given:
        case str():
            return _show_text(given, schema)
        case bool() | None:
            return {None: "null", True: "true", False: "false"}[given]
        case int() | float():
            is_shown = schema.get("format") != "password" and abs(given) < SHOWN_NUMBER_MAX
            return f"{given:.15g}" if is_shown else "a number"
        case list():
            return f"a list of {len(given)}"
        case dict():
            return "keys and values" if given else "empty"
    return str(given)[:SHOWN_CHARACTERS_MAX]


def _show_text(given: str, schema: Schema) -> str:
    if schema.get("type") in ("integer", "number", "boolean") or {"enum", "anyOf"} & schema.keys():
        return repr(given[:SHOWN_CHARACTERS_MAX])
    if schema.get("type") != "string":
        return "a text"
    too_long = len(given) > schema.get("maxLength", len(given))
    return f"one of {len(given):,}" if too_long else "" if given else "empty"


def _join(keys: Keys) -> str:
    return ".".join(map(str, keys))
