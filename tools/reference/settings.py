"""docs/reference/settings.md, from the models of the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.configuration.settings import ENVIRONMENT_PREFIX, Settings
from tools.reference.markdown import Row, code, page, table
from tools.reference.schema import Schema, default_words, is_section, type_words, without_null

SCHEMA: Schema = Settings.model_json_schema()
PLACEHOLDERS: Mapping[str, str] = {"pools": "POOL", "tasks": "TASK", "feedback_metrics": "METRIC"}
INTRODUCTION = f"""
`apprentice.yaml` holds what an operator deploys; what admins set at runtime is in Redis. Every key is also an
environment variable, which wins: `{ENVIRONMENT_PREFIX}` and the key in capitals, with `__` for each dot
(`{ENVIRONMENT_PREFIX}LISTEN__PORT`). Lists and sections may be JSON. Unknown keys, and settings that contradict each
other, stop the start by name. [Reload](../guides/reload.md) lists what can change while the gateway runs.

POOL, TASK and METRIC: at most 63 of `a-z`, `0-9`, `-` and `_`, a letter or digit first. A bound after `(` is excluded.
"""


def settings_page() -> str:
    """The page: a table for each section."""
    parts: list[str] = []
    seen: dict[str, str] = {}
    shown: set[Row] = set()
    plain = [(name, schema) for name, schema in SCHEMA["properties"].items() if _section_in(schema) is None]
    parts += ["## On the top level", _table([_row((name,), schema, SCHEMA) for name, schema in plain])]
    for name, schema in SCHEMA["properties"].items():
        found = _section_in(schema)
        if found is not None:
            parts.append(f"## {name}")
            if schema.get("description") and not schema["description"].endswith("by name."):
                parts.append(f"{schema['description']} Default: {_default(schema)}.")
            place = (name, *_step(name, schema))
            seen[found] = ".".join(place)
            rows = _merged(list(_rows(place, found, seen)))
            shared = [row for row in rows if _as_in(place, row) in shown]
            shown |= {_as_in(place, row) for row in rows}
            if shared:
                keys_shared = ", ".join(row[0] for row in shared)
                parts.append(f"As in [pools](#pools): {keys_shared}.")
            parts.append(_table([row for row in rows if row not in shared]))
    return page("Settings", INTRODUCTION, *parts)


def keys() -> Iterator[str]:
    """Every key of the configuration, with POOL, TASK and METRIC for names, and `[]` for items of a list."""
    yield from _keys((), SCHEMA)


def _keys(place: tuple[str, ...], model: Schema) -> Iterator[str]:
    for name, schema in model["properties"].items():
        inner = _section_in(schema)
        yield _key((*place, name))
        if inner is not None:
            yield from _keys((*place, name, *_step(name, schema)), SCHEMA["$defs"][inner])


def _table(rows: list[Row]) -> str:
    return table(("Key", "Type", "Default", "Meaning"), rows)


def _rows(place: tuple[str, ...], section: str, seen: dict[str, str]) -> Iterator[Row]:
    """The rows of a section and of its inner sections; a section that was already shown is only named."""
    model = SCHEMA["$defs"][section]
    for name, schema in model["properties"].items():
        inner = _section_in(schema)
        here = (*place, name)
        if inner is None:
            yield _row(here, schema, model)
            continue
        if inner in seen:
            yield (*_row(here, schema, model)[:3], f"{schema['description']} Fields as in `{seen[inner]}`.")
            continue
        if "description" in schema:
            yield _row(here, schema, model)
        seen[inner] = _key(here)
        yield from _rows((*here, *_step(name, schema)), inner, seen)


def _as_in(place: tuple[str, ...], row: Row) -> Row:
    """A row without its section's place, so that a field which two sections inherit is equal in both."""
    return (row[0].replace(f"`{_key(place)}.", "`", 1), *row[1:])


def _merged(rows: list[Row]) -> list[Row]:
    """The rows; those that differ only in one section's name become one row, such as `checks.*.mode`."""
    merged = [(_starred(row[0]), *row[1:]) for row in rows]
    several = {row for row in merged if merged.count(row) > 1}
    chosen = [each if each in several else row for each, row in zip(merged, rows, strict=True)]
    return list(dict.fromkeys(chosen))


def _starred(key: str) -> str:
    parts = key.split(".")
    return ".".join([*parts[:-2], "*", parts[-1]])


def _section_in(schema: Schema) -> str | None:
    """The name of the section that a field holds, directly, in a list or by name; None if it holds none."""
    held = [without_null(schema), schema.get("items"), *schema.get("patternProperties", {}).values()]
    refs = [each["$ref"].rpartition("/")[2] for each in held if each and is_section(each)]
    return refs[0] if refs else None


def _step(name: str, schema: Schema) -> tuple[str, ...]:
    """The path between a field and the fields of its section: a name, or `[]` for items of a list."""
    if "patternProperties" in schema:
        return (PLACEHOLDERS.get(name, "NAME"),)
    return ("[]",) if "items" in schema else ()


def _key(place: tuple[str, ...]) -> str:
    return ".".join(place).replace(".[]", "[]")


def _row(place: tuple[str, ...], schema: Schema, parent: Schema) -> Row:
    required = place[-1] in parent.get("required", ())
    return code(_key(place)), type_words(schema), _default(schema, required), schema["description"]


def _default(schema: Mapping[str, Any], required: bool = False) -> str:
    if not required and "default" not in schema and "patternProperties" in schema:
        made = _made_by_default(schema["description"])
        return ", ".join(map(code, made)) or "empty"
    return default_words(schema, required)


def _made_by_default(description: str) -> list[str]:
    """The names that exist by default."""
    for field in Settings.model_fields.values():
        if field.description == description:
            return list(field.get_default(call_default_factory=True))
    return []
