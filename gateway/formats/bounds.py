"""Bounds of a body, checked before its values are decoded: many small values would block the event loop."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from gateway.errors import Problem
from gateway.formats.fields import BYTES_MAX, FIELD_BYTES_MAX, ON_REQUEST, UNBOUNDED
from gateway.formats.format_table import FORMATS

FIELDS_MAX = 256
"""Top-level fields of one body."""
TOO_MANY = f"The body has over {FIELDS_MAX} fields, or unknown fields that hold too much: leave some out."
LONG_BODY_BYTES = 1 << 18
"""A longer body is read in a thread, and its strings are counted first."""
STRINGS_OUTSIDE_MAX = 16_384
"""Strings of a long body outside the fields that have bounds of their own, names included."""
STRINGS_INSIDE_MAX = 131_072
"""Strings in the messages or prompts of a long body, names included."""
STRINGS_MAX = 262_144
"""Strings of a long body in total, names included."""
ALL_KNOWN = ON_REQUEST.union(*(each.known_fields for each in FORMATS.values()))
CONVERSATIONS = frozenset[str]().union(*(each.conversation_fields for each in FORMATS.values()))
"""Fields that hold the conversation, or the prompts."""
MANY_STRINGS = UNBOUNDED | CONVERSATIONS | {"tools", "logit_bias", "bad_words", "response_format", "structured_outputs"}
"""Fields that may hold many strings and have a bound of their own, or that of the body."""
MANY_RAW = msgspec.json.Decoder(
    msgspec.defstruct("ManyRaw", [(name, Raw, Raw()) for name in sorted(MANY_STRINGS)], module=__name__)
)
"""Reads the JSON of those fields. It skips all others, and makes no object of them."""


def check_strings(body: bytes) -> None:
    """Check that a long body does not have too many strings to be read quickly.

    Raises Problem (400), or msgspec's error if the body is not a JSON object.
    """
    if body.count(b'"') // 2 <= STRINGS_OUTSIDE_MAX:
        return
    outside = _strings(body)
    if outside <= STRINGS_OUTSIDE_MAX:
        return
    if outside > STRINGS_MAX:
        raise Problem("invalid_value", f"The body has at most {STRINGS_MAX:,} strings, names included.")
    raw = MANY_RAW.decode(body)
    for name in MANY_STRINGS:
        inside = _strings(bytes(getattr(raw, name)))
        if inside > STRINGS_INSIDE_MAX and name in CONVERSATIONS:
            raise Problem("invalid_value", f"{name} has at most {STRINGS_INSIDE_MAX:,} strings, names included.", name)
        outside -= inside
    if outside > STRINGS_OUTSIDE_MAX:
        raise Problem("invalid_value", TOO_MANY)


def check_fields(fields: dict[str, Raw], size: int) -> None:
    """Check that a body of `size` bytes has neither too many fields nor one that is too long. Raises Problem (400)."""
    if len(fields) > FIELDS_MAX:
        raise Problem("invalid_value", TOO_MANY)
    if size <= FIELD_BYTES_MIN:
        return
    for name, raw in fields.items():
        if name in BOUNDED and memoryview(raw).nbytes > (most := BYTES_MAX.get(name, FIELD_BYTES_MAX)):
            raise Problem("invalid_value", f"{name} is at most {most:,} bytes of JSON.", name)


BOUNDED = (ALL_KNOWN - UNBOUNDED - CONVERSATIONS) | BYTES_MAX.keys()
FIELD_BYTES_MIN = min(FIELD_BYTES_MAX, *BYTES_MAX.values())
"""No field of a shorter body is too long."""


def _strings(raw: bytes) -> int:
    """At least the number of strings in JSON: each begins with a quote without a backslash before it.

    Ends of strings are not told apart from their beginnings, so the quotes are halved: at worst it is half of them.
    """
    return (raw.count(b'"') - raw.count(b'\\"')) // 2
