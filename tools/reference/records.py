"""docs/reference/records.md, from the structures of records, feedback and reports, and the comments on their fields."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping
from typing import get_args

import msgspec
from pydantic import BaseModel

from gateway.features.feedback.endpoints import FEEDBACK_BATCH_MAX, FeedbackIn
from gateway.features.reported.reports import REPORTS_MAX, Report
from monitoring.archive.tables import SCALARS, FeedbackRow
from monitoring.feedback import FEEDBACK_PER_REQUEST_MAX
from monitoring.records import OUTCOMES, AttemptRecord, FindingRecord, PairRecord, Record
from serving.fleet_view import FaultKind
from tools.reference.markdown import Row, code, codes, page, table
from tools.reference.schema import type_words

INTRODUCTION = """
[How a record is kept](../explanation/records.md). `?` marks a field that may be null: unknown or not applicable, never
0. Times are in seconds, costs in US dollars.
"""
TYPES: Mapping[type, str] = {str: "text", float: "float", int: "integer", bool: "boolean"}


def records_page() -> str:
    """The page: the fields of a record and of its parts, outcomes, reports and feedback."""
    return page(
        "Records, reports and feedback",
        INTRODUCTION,
        _table(Record),
        "## Outcomes",
        table(("Outcome", "Meaning"), [(code(name), words) for name, words in OUTCOMES.items()]),
        "## Attempts",
        _table(AttemptRecord),
        f"Faults: {codes((*get_args(FaultKind), 'cancelled'))}.",
        "## Findings",
        "Callers see `check`, `mode`, `fired` and `version`; operators and admins see all.",
        _table(FindingRecord),
        "## Pair",
        _table(PairRecord),
        "## Feedback",
        f'`POST /v1/feedback` takes one judgement, or up to {FEEDBACK_BATCH_MAX:,} as `{{"feedback": […]}}`; a request '
        f"takes {FEEDBACK_PER_REQUEST_MAX}.",
        _schema_table(FeedbackIn.model_json_schema(), _descriptions(FeedbackIn)),
        "## Reports",
        f"`POST /v1/records` takes one report of a request that another gateway served, or up to {REPORTS_MAX:,} as "
        '`{"records": […]}`.',
        _schema_table(msgspec.json.schema(Report)["$defs"]["Report"], comments(Report)),
        "## In the archive",
        f"Types in Parquet: {', '.join(f'{TYPES[kind]} `{column}`' for kind, column in SCALARS.items())}; structures "
        "are `STRUCT`. A record also has `entry`, its place in the stream. Feedback has these columns:",
        _table(FeedbackRow),
    )


def comments(struct: type) -> Mapping[str, str]:
    """The comment on each field of a class, by the field's name."""
    source = inspect.getsource(struct)
    by_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (defined,) = ast.parse(source).body
    assert isinstance(defined, ast.ClassDef)
    return {
        node.target.id: by_line.get(node.end_lineno or 0, "")
        for node in defined.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def type_of(annotation: typing.Any) -> str:
    """The type of a field in words, with `?` if it may be null."""
    kinds = [kind for kind in typing.get_args(annotation) or (annotation,) if kind is not types.NoneType]
    may_be_null = len(typing.get_args(annotation)) > len(kinds)
    name = "list" if typing.get_origin(annotation) is list else TYPES.get(kinds[0], "object")
    return f"{name}?" if may_be_null else name


def _table(struct: type[msgspec.Struct]) -> str:
    words = comments(struct)
    rows = [
        (code(field.encode_name), type_of(field.type), words[field.name]) for field in msgspec.structs.fields(struct)
    ]
    return table(("Field", "Type", "Meaning"), rows)


def _descriptions(model: type[BaseModel]) -> Mapping[str, str]:
    return {name: field.description or "" for name, field in model.model_fields.items()}


def _schema_table(schema: Mapping[str, typing.Any], words: Mapping[str, str]) -> str:
    def rows() -> Iterator[Row]:
        for name, field in schema["properties"].items():
            needed = "**" if name in schema.get("required", ()) else ""
            yield f"{needed}`{name}`{needed}", type_words(field), words[name]

    return table(("Field (needed in bold)", "Type", "Meaning"), rows())
