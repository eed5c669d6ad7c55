"""A multipart form that is read part by part as it arrives, and is never whole in memory."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers

from gateway.errors import Problem

FORM = b"multipart/form-data"
HEADERS_MAX = 8
HEADER_BYTES_MAX = 1024
PLAIN = frozenset({b"binary", b"8bit", b"7bit"})
"""Transfer encodings of bytes as they are, which some clients name (RFC 2045)."""
BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")


def read_boundary(headers: Headers, what: str) -> bytes:
    """The boundary of the form in a body. Raises Problem (400, 415)."""
    kind, options = parse_options_header(headers.get("content-type", "")[:HEADER_BYTES_MAX])
    if kind != FORM:
        raise Problem("unsupported_media_type", f"Send {what} as `Content-Type: multipart/form-data`.")
    boundary = options.get(b"boundary", b"")
    if not BOUNDARY.fullmatch(boundary):
        raise Problem("invalid_value", "The Content-Type names no boundary of 1 to 70 characters.")
    return boundary


class FormReader(ABC):
    """One form. Its parser calls a subclass at the begin of each part, then with the part's bytes."""

    def __init__(self) -> None:
        self.has_ended = False
        self._headers: dict[bytes, bytes] = {}
        self._header = (b"", b"")

    @abstractmethod
    def begin_file(self, field: str, name: str) -> None:
        """Take the bytes that come now as those of a file with this name. Raises Problem."""

    @abstractmethod
    def begin_field(self, field: str) -> None:
        """Take the bytes that come now as a field's text. Raises Problem."""

    @abstractmethod
    def take(self, data: bytes) -> None:
        """Take more bytes of the part that has begun. Raises Problem."""

    def parser(self, boundary: bytes) -> MultipartParser:
        """The parser that calls this form. It raises FormParserError."""
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._add_to_header(data[start:end], b""),
                "on_header_value": lambda data, start, end: self._add_to_header(b"", data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": lambda data, start, end: self.take(data[start:end]),
                "on_end": self._end,
            },
            max_header_count=HEADERS_MAX,
            max_header_size=HEADER_BYTES_MAX,
        )

    def _begin_part(self) -> None:
        self._headers = {}
        self._header = (b"", b"")

    def _add_to_header(self, name: bytes, value: bytes) -> None:
        self._header = (self._header[0] + name, self._header[1] + value)

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[name.lower()] = value
        self._header = (b"", b"")

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        field = options.get(b"name", b"").decode("latin-1")
        if kind != b"form-data" or not field:
            raise Problem("invalid_value", "A part of the form has no name: send each as a field or a file of a form.")
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in PLAIN:
            raise Problem("invalid_value", f"{field[:80]!r} has a Content-Transfer-Encoding: send bytes as they are.")
        if b"filename" in options:
            self.begin_file(field, options[b"filename"].decode("latin-1"))
        else:
            self.begin_field(field)

    def _end(self) -> None:
        self.has_ended = True
