"""W3C trace contexts: the ids under which a request and its attempts stand in a trace."""

from __future__ import annotations

from typing import NamedTuple


class TraceContext(NamedTuple):
    """A sampled request's place in a trace. Ids are hexadecimal, as in the header `traceparent`."""

    trace_id: str
    span_id: str
    parent_id: str | None
    """The span of its caller; None where the trace begins here."""

    def header(self, attempt: int = 0) -> str:
        """`traceparent` of the request, or of its attempt with this number, counted from 1."""
        return f"00-{self.trace_id}-{self.span_of(attempt)}-01"

    def span_of(self, attempt: int) -> str:
        """The span of an attempt. It follows from the request's, since its engine is told before there is a span."""
        return f"{(int(self.span_id, 16) ^ attempt) or 1:016x}"


def trace_of(request_id: str) -> str:
    """A context of our own: the request's UUID is the trace, its MAC the span. Not sampled."""
    return "00-{}-{}-00".format(*split_id(request_id))


def split_id(request_id: str) -> tuple[str, str]:
    """A request's UUID and its MAC, as a trace and a span."""
    text = request_id.replace("-", "")
    return text[:32], text[32:48]


def make_context(request_id: str, traceparent: str | None, draw: float, share: float) -> TraceContext | None:
    """The request's place in its caller's trace, or in a new one; None where it is not sampled.

    Where the caller has a trace, that says whether it is sampled; else it is if `draw` is below `share`.
    """
    trace_id, span_id = split_id(request_id)
    if traceparent is None:
        return TraceContext(trace_id, span_id, None) if draw < share else None
    _, trace_id, parent_id, flags = traceparent.split("-")
    return TraceContext(trace_id, span_id, parent_id) if int(flags, 16) & 1 else None
