"""The wire formats in /openapi.json: their bodies from the tables of fields, their headers and answers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec import Raw

from gateway.formats.fields import BYTES_MAX, ON_REQUEST, StructuredOutputs
from gateway.formats.format_table import FORMATS
from gateway.formats.wire_format import WireFormat

Json = dict[str, Any]
IN_STREAMS = ("stream_broken", "timeout", "draining", "internal_error")
"""Errors that end a stream that has begun, as an event."""
TOO_LONG: Mapping[str, Any] = {"type": "string", "maxLength": 512}
HOT_HEADERS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "x-apprentice-session": ("The conversation that the request belongs to.", TOO_LONG),
        "x-apprentice-subject": ("What the request is about: feedback may name it.", TOO_LONG),
        "x-apprentice-priority": (
            "Whether it may wait behind others.",
            {"type": "string", "enum": ["interactive", "batch"]},
        ),
        "traceparent": ("The W3C trace context, passed on to the engine.", {"type": "string", "maxLength": 512}),
        "tracestate": ("Its state, passed on as it came.", {"type": "string"}),
    }
)
ANSWER_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "x-request-id": "Our id of the request.",
        "x-apprentice-task": "The task.",
        "x-apprentice-version": "The version that answers.",
        "x-apprentice-pool": "The pool that answers.",
        "x-apprentice-reason": "The reason.",
        "x-apprentice-attempts": "Attempts at engines, the last one included.",
        "x-apprentice-dropped": "Fields of the request that the answering engine did not get.",
        "x-apprentice-clamped": "Bounds that replaced greater numbers of tokens.",
        "x-apprentice-contract": "`broken` where the answer breaks the task's contract and was sent anyway.",
        "x-apprentice-rejected": "The check that rejected the answer, where it was sent anyway.",
        "x-apprentice-overhead-ms": "Milliseconds until commit without waits for body, place and engine.",
        "x-apprentice-cost-usd": "The cost, of answers that are not streamed.",
        "traceparent": "The trace context that the engine got.",
    }
)
EVENTS = (
    "Events as the API has them, which chats and completions end by `data: [DONE]`. A stream that fails ends with an "
    f"error instead, whose code is one of {', '.join(IN_STREAMS)}."
)


def operation_of(wire_format: WireFormat, errors: Json) -> Json:
    """The operation of a wire format, with its `errors` by status."""
    title, name = wire_format.title, wire_format.schema_name
    named = "pool" if wire_format.for_pools_alone else "task or pool"
    content = {
        "application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}},
        "text/event-stream": {"schema": {"type": "string", "description": EVENTS}},
    }
    headers = {header: {"description": text, "schema": {"type": "string"}} for header, text in ANSWER_HEADERS.items()}
    body = {"schema": {"$ref": f"#/components/schemas/{name}Request"}}
    return {
        "tags": ["callers"],
        "summary": title,
        "description": f"{title} by the {named} that `model` names.",
        "operationId": title.lower().replace(" ", "_"),
        "security": [{"key": []}],
        "parameters": [
            {"name": header, "in": "header", "required": False, "description": text, "schema": schema}
            for header, (text, schema) in HOT_HEADERS.items()
        ],
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {
            "200": {"description": "The answer, or its events.", "headers": headers, "content": content},
            **errors,
        },
    }


def make_schemas(*others: Any) -> Json:
    """The schemas of the bodies and answers of all wire formats, and of other types."""
    types = {
        field.encode_name: field.type
        for wire_format in FORMATS.values()
        for field in msgspec.structs.fields(wire_format.fields)
    }
    types["structured_outputs"] = _without_raw() | None
    template = "#/components/schemas/{name}"
    components, schemas = msgspec.json.schema_components((*types.values(), *others), ref_template=template)
    fields = dict(zip(types, components, strict=False))
    for each in FORMATS.values():
        request = f"{each.schema_name}Request"
        if each.request_type is None:
            schemas[request] = _body_schema(each, fields)
        else:
            (_,), parts = msgspec.json.schema_components([each.request_type], ref_template=template)
            schemas |= parts
            schemas[request] = parts[each.request_type.__name__]
        schemas[each.schema_name] = each.answer_schema()
    return schemas


def _without_raw() -> Any:
    """StructuredOutputs, but with any JSON in the fields that the gateway does not decode."""
    fields: list[Any] = [
        (field.name, Any if field.type is Raw else field.type, None)
        for field in msgspec.structs.fields(StructuredOutputs)
    ]
    made = msgspec.defstruct("StructuredOutputs", fields, forbid_unknown_fields=True)
    made.__doc__ = StructuredOutputs.__doc__
    return made


def _body_schema(wire_format: WireFormat, fields: Json) -> Json:
    """The schema of a format's body, with the fields that a task has to allow. A task's bounds may be narrower."""
    required = wire_format.required
    properties = {name: dict(fields.get(name, {})) for name in sorted(wire_format.known_fields | ON_REQUEST)}
    for name in properties.keys() & BYTES_MAX.keys():
        properties[name]["description"] = f"At most {BYTES_MAX[name]:,} bytes of JSON."
    for name in properties.keys() & ON_REQUEST:
        properties[name]["description"] = "Refused unless `parameters_allowed` of the task, or of the pool, names it."
    null = {"type": "null"}
    forms = [form for form in fields[required]["anyOf"] if form != null]
    properties[required] = forms[0] if len(forms) == 1 else {"anyOf": forms}
    return {"type": "object", "properties": properties, "required": ["model", required], "additionalProperties": null}
