"""W3C trace contexts: the ids of a request and its attempts in a trace."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
STATE_MEMBER = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
STATE_MEMBERS_MAX = 32
FLAGS = 0b11
"""The flags of W3C's level 2 that are passed on: sampled, and random trace id."""


class TraceContext(NamedTuple):
    """A sampled request's place in a trace. Ids are hexadecimal, as in the header `traceparent`."""

    trace_id: str
    span_id: str
    parent_id: str | None
    """The caller's span; None if the trace begins here."""
    flags: int = 1

    def header(self, attempt: int = 0) -> str:
        """`traceparent` of the request, or of its attempt with this number, counted from 1."""
        return f"00-{self.trace_id}-{self.span_of(attempt)}-{self.flags:02x}"

    def span_of(self, attempt: int) -> str:
        """An attempt's span id, computed from the request's: the engine gets it before the span exists."""
        return f"{(int(self.span_id, 16) ^ attempt) or 1:016x}"


def trace_of(request_id: str) -> str:
    """A new `traceparent`: the request's UUID is the trace, its MAC the span. Not sampled."""
    return "00-{}-{}-00".format(*split_id(request_id))


def split_id(request_id: str) -> tuple[str, str]:
    """A request's UUID and its MAC, as a trace and a span."""
    text = request_id.replace("-", "")
    return text[:32], text[32:48]


def make_context(request_id: str, traceparent: str | None, draw: float, share: float) -> TraceContext | None:
    """The request's place in its caller's trace, or in a new one; None if it is not sampled.

    A caller's trace decides whether it is sampled. Without one, it is sampled if `draw` is below `share`.
    """
    trace_id, span_id = split_id(request_id)
    if traceparent is None:
        return TraceContext(trace_id, span_id, None) if draw < share else None
    _, trace_id, parent_id, flags = traceparent.split("-")
    flag_bits = int(flags, 16) & FLAGS
    return TraceContext(trace_id, span_id, parent_id, flag_bits) if flag_bits & 1 else None


def read_trace(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str | None, str | None]:
    """`traceparent` and `tracestate` from a request's headers (names in lower case), as they are passed on.

    A malformed or repeated `traceparent` is ignored together with its state; a malformed state is ignored alone.
    """
    items = list(headers)
    parents = [value.decode("latin-1") for name, value in items if name == b"traceparent"]
    parent = PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if parent is None:
        return None, None
    version, ids, flags, rest = parent.groups()
    if version == "00" and rest is not None:
        return None, None
    traceparent = (
        parents[0] if version == "00" else f"00-{ids}-{int(flags, 16) & 1:02x}"
    )  # of a later version, the fields of version 00
    return traceparent, _read_state(",".join(value.decode("latin-1") for name, value in items if name == b"tracestate"))


def _read_state(text: str) -> str | None:
    members = [member for member in (part.strip(" \t") for part in text.split(",")) if member]
    if len(members) > STATE_MEMBERS_MAX or not all(map(STATE_MEMBER.fullmatch, members)):
        return None
    return ",".join(members) or None
