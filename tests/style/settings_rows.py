"""docs/settings.md as the code has it. `python -m tests.style.settings_rows` prints the tables' rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from gateway.configuration.sections import Name, Section
from gateway.configuration.settings import ENVIRONMENT_PREFIX, Settings
from tests.style.tables import Row, line

HEADER = ("Key", "Environment variable", "Type and bounds", "Default", "Meaning")
SCHEMA: Mapping[str, Any] = Settings.model_json_schema()
NAME_PATTERN = get_args(Name)[1].metadata[0].pattern
PLACEHOLDERS: Mapping[str, str] = {"pools": "POOL", "tasks": "TASK", "feedback_metrics": "METRIC"}


def rows() -> list[Row]:
    """One row a setting, in the order of the code."""
    return [row for name, schema in SCHEMA["properties"].items() for row in rows_of((name,), schema, SCHEMA)]


def rows_of(place: tuple[str, ...], schema: Mapping[str, Any], parent: Mapping[str, Any]) -> Iterator[Row]:
    inner, step = section_in(place, schema)
    if inner is None or "description" in schema:
        yield row(place, schema, place[-1] in parent.get("required", ()))
    if inner is not None:
        for name, field in inner["properties"].items():
            yield from rows_of((*place, *step, name), field, inner)


def section_in(place: tuple[str, ...], schema: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
    """The section that a field holds, and what stands between the two: a name, or `[]` for each of a list."""
    for held, step in (
        (named_only(schema), ()),
        (next(iter(schema.get("patternProperties", {}).values()), None), (PLACEHOLDERS.get(place[0], "NAME"),)),
        (schema.get("items"), ("[]",)),
    ):
        if held and "$ref" in held:
            return SCHEMA["$defs"][held["$ref"].rpartition("/")[2]], step
    return None, ()


def named_only(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema without the choice of null."""
    others = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    return others[0] if len(others) == 1 else schema


def row(place: tuple[str, ...], schema: Mapping[str, Any], required: bool) -> Row:
    key = ".".join(place).replace(".[]", "[]")
    variable = "in the list's JSON" if "[]" in place else f"`{ENVIRONMENT_PREFIX}{'__'.join(place).upper()}`"
    return f"`{key}`", variable, kind_of(schema), default_of(schema, required), schema["description"]


def kind_of(schema: Mapping[str, Any]) -> str:
    schema = named_only(schema)
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return "section"
    if "patternProperties" in schema:
        (held,) = schema["patternProperties"].values()
        return "sections by name" if "$ref" in held else f"{kind_of(held)} by name"
    if schema.get("type") == "array":
        items = schema["items"]
        return "list of sections" if "$ref" in items else f"list of {kind_of(items)}"
    name = {"string": "text", "boolean": "`true` or `false`", "integer": "whole number"}.get(
        schema["type"], schema["type"]
    )
    name = {"password": "secret text", "path": "path"}.get(schema.get("format", ""), name)
    return name + bounds_of(schema)


def bounds_of(schema: Mapping[str, Any]) -> str:
    if "pattern" in schema:
        return ", a name" if schema["pattern"] == NAME_PATTERN else f" of the form `{schema['pattern']}`"
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum")
    if low is not None and high is not None:
        return f", {'above ' if 'exclusiveMinimum' in schema else ''}{shown(low)} to {shown(high)}"
    if low is not None:
        return f", at least {shown(low)}"
    if "maxLength" in schema:
        return f", {schema.get('minLength', 0)} to {schema['maxLength']} characters"
    return ""


def shown(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


def default_of(schema: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = schema.get("default")
    if "default" not in schema:
        return made_by_default(schema)
    if default is None:
        return "unset"
    if default in ("", []):
        return "empty"
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def made_by_default(schema: Mapping[str, Any]) -> str:
    """The names that stand there where the file has none."""
    fields = [field for part in (Settings, *sections(Section)) for field in part.model_fields.values()]
    (field,) = [one for one in fields if one.description == schema["description"]]
    return ", ".join(f"`{name}`" for name in field.get_default(call_default_factory=True)) or "empty"


def sections(kind: type[Section]) -> Iterator[type[Section]]:
    """All kinds of sections, those of sections included."""
    for one in kind.__subclasses__():
        yield one
        yield from sections(one)


if __name__ == "__main__":
    for each in rows():
        print(line(*each))
