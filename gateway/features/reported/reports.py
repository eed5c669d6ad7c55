"""The form of the body of `POST /v1/records`: one or several reports of requests that another gateway served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from gateway.errors import Problem
from gateway.formats.fields import RAW_FIELDS, Message
from gateway.formats.request_body import explain_invalid

REPORTS_MAX = 1000
REPORT_REF: Mapping[str, Any] = {"$ref": "#/components/schemas/Report"}
REPORTS: Mapping[str, Any] = {"type": "array", "items": REPORT_REF, "minItems": 1, "maxItems": REPORTS_MAX}
REPORTED: Mapping[str, Any] = {
    "anyOf": [
        REPORT_REF,
        {"type": "object", "properties": {"records": REPORTS}, "required": ["records"], "additionalProperties": False},
    ]
}
"""The body in /openapi.json: one report or several."""
TEXT_CHARACTERS_MAX = 1 << 20
LOGPROBS_MAX = 65_536

Short = Annotated[str, Meta(min_length=1, max_length=512)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Text = Annotated[str, Meta(max_length=TEXT_CHARACTERS_MAX)]
Tokens = Annotated[int, Meta(ge=0, le=100_000_000)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Messages = Annotated[list[Message], Meta(min_length=1, max_length=4096)]
Logprobs = Annotated[list[Annotated[float, Meta(ge=-1e6, le=0)]], Meta(max_length=LOGPROBS_MAX)]


class Report(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A report of a request that another gateway served: its time (Unix seconds), its task, and its outcome.

    `source_id` names it there: sent again, it is stored once. `version` is what answered, or none: a general model.
    """

    source_id: Annotated[str, Meta(min_length=1, max_length=200)]  # Its name there; stored once.
    task: Name  # Its task; the key must be allowed it.
    at: Annotated[float, Meta(gt=0, lt=253_402_300_800)]  # Unix time when it was served.
    version: Name | None = None  # The version that answered; unset: a general model.
    pool: Name | None = None  # Its pool, if known here.
    messages: Messages | None = None  # The conversation; or `prompt`. Unset: its scope is not judged.
    prompt: Text | None = None  # The prompt, of a completion.
    answer: Text | None = None  # The answer. Unset: it is not judged.
    logprobs: Logprobs | None = None  # Of the answer's tokens (nats), for its confidence.
    finish_reason: Annotated[str, Meta(min_length=1, max_length=64)] | None = None  # Why the engine stopped.
    status: Annotated[int, Meta(ge=100, le=599)] = 200  # HTTP status there.
    prompt_tokens: Tokens | None = None  # As counted there.
    completion_tokens: Tokens | None = None  # As counted there.
    cost_usd: Annotated[float, Meta(ge=0, le=1_000_000)] | None = None  # Cost there, in US dollars.
    duration_seconds: Seconds = 0.0  # Duration there.
    first_token_seconds: Seconds | None = None  # Time to the first token, of a stream.
    session: Short | None = None  # Name under which feedback may find it.
    subject: Short | None = None  # Another such name.
    probability: Annotated[float, Meta(gt=0, le=1)] = 1.0  # Probability that this arm got it there.


REPORT = msgspec.json.Decoder(Report)
BATCH = msgspec.json.Decoder(list[Raw])


def batch_of(raw: bytes) -> list[Raw] | None:
    """The undecoded entries of a batch; None if the body is a single report. Raises Problem (400)."""
    try:
        raw.decode()
        fields = RAW_FIELDS.decode(raw)
        if "records" not in fields:
            return None
        if len(fields) > 1:
            (name, *_) = fields.keys() - {"records"}
            raise Problem("unknown_parameter", f"The gateway does not know {name[:64]!r} beside records.", name[:64])
        entries = BATCH.decode(fields["records"])
    except msgspec.ValidationError as error:
        raise Problem("invalid_value", f"{error}.", "records") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem("invalid_json", "The body is not JSON in UTF-8, or is nested too deeply.") from error
    if not 1 <= len(entries) <= REPORTS_MAX:
        raise Problem("invalid_value", f"records holds 1 to {REPORTS_MAX} entries.", "records")
    return entries


def read_report(raw: bytes | Raw) -> Report:
    """One report. Raises Problem (400), which names the faulty field."""
    try:
        return REPORT.decode(raw)
    except msgspec.ValidationError as error:
        raise explain_invalid(str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Problem("invalid_json", f"It is not valid JSON: {error}.") from None
