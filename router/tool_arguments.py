"""The check of a tool call's arguments against the parameters that the caller declared, in bounded time. Pure.

A caller's schema is never compiled: a few hundred bytes of a schema can take seconds to check. This check reads only
the schema's top level: the required properties, the type of each, and the texts that each may have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import msgspec

PARAMETERS_BYTES_MAX = 1 << 14
"""Longest JSON of parameters that is read. For longer ones, the arguments need only be an object."""
ARGUMENTS_LENGTH_MAX = 1 << 16
"""Most characters of arguments; longer arguments do not fit."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


TYPES: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "array": lambda value: isinstance(value, list),
        "boolean": lambda value: isinstance(value, bool),
        "integer": lambda value: _is_number(value) and value == value // 1,
        "null": lambda value: value is None,
        "number": _is_number,
        "object": lambda value: isinstance(value, dict),
        "string": lambda value: isinstance(value, str),
    }
)


@dataclass(frozen=True, slots=True)
class Parameters:
    """The checked part of a tool's parameters: the required ones, and the types and texts that each may have."""

    required: tuple[str, ...] = ()
    types: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    texts: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def fit(self, arguments: str) -> bool:
        """True if the arguments, as the engine wrote them, are a JSON object that matches these parameters."""
        values = _read_object(arguments, ARGUMENTS_LENGTH_MAX)
        if values is None or not all(name in values for name in self.required):
            return False
        return all(self._fits(name, value) for name, value in values.items())

    def _fits(self, name: str, value: Any) -> bool:
        types, texts = self.types.get(name), self.texts.get(name)
        if types is not None and not any(TYPES[type_name](value) for type_name in types):
            return False
        return texts is None or (isinstance(value, str) and value in texts)


ANY_OBJECT = Parameters()


def read_parameters(raw: bytes) -> Parameters:
    """Read the checked part of a tool's parameters from the caller's JSON. Total: it accepts any bytes."""
    schema = _read_object(raw, PARAMETERS_BYTES_MAX)
    if schema is None:
        return ANY_OBJECT
    required, properties = schema.get("required"), schema.get("properties")
    types: dict[str, tuple[str, ...]] = {}
    texts: dict[str, frozenset[str]] = {}
    for name, declared in properties.items() if isinstance(properties, dict) else ():
        if not isinstance(declared, dict):
            continue
        type_named = declared.get("type")
        kinds = type_named if isinstance(type_named, list) else [type_named]
        if kinds and all(isinstance(kind, str) and kind in TYPES for kind in kinds):
            types[name] = tuple(map(str, kinds))
        allowed = declared.get("enum")
        if isinstance(allowed, list) and allowed and all(isinstance(value, str) for value in allowed):
            texts[name] = frozenset(allowed)
    names = required if isinstance(required, list) else []
    return Parameters(tuple(name for name in names if isinstance(name, str)), types, texts)


def _read_object(raw: str | bytes, length_max: int) -> dict[str, Any] | None:
    """The JSON object in a text; None if it is something else, or longer than `length_max`."""
    if len(raw) > length_max:
        return None
    try:
        read = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return read if isinstance(read, dict) else None
