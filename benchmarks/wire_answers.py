"""HTTP answers, read from a connection's bytes as a strict client reads them (RFC 9112), not by the gateway."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CRLF = b"\r\n"


@dataclass(frozen=True)
class Answer:
    """One answer. `whole` is false where the connection ended, or the bytes did, before its body did."""

    version: str
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    whole: bool
    chunked: bool = False

    def header(self, name: str) -> str | None:
        """A header's value, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def code(self) -> str | None:
        """The code of an error in OpenAI's shape, also of one inside a stream."""
        for line in self.body.replace(b"data: ", b"").split(b"\n"):
            if b'"error"' in line:
                try:
                    return str(json.loads(line)["error"]["code"])
                except (ValueError, TypeError, KeyError):
                    return None
        return None

    @property
    def text(self) -> str | None:
        """The text of a completion, streamed or not."""
        try:
            if not (self.header("content-type") or "").startswith("text/event-stream"):
                return str(json.loads(self.body)["choices"][0]["message"]["content"])
            events = [json.loads(one[6:]) for one in self.body.split(b"\n\n") if one.startswith(b"data: {")]
            return "".join(
                choice["delta"].get("content") or "" for event in events for choice in event.get("choices", ())
            )
        except (ValueError, KeyError, TypeError, IndexError):
            return None


class Unreadable(Exception):
    """The bytes are not an HTTP answer; the message says where they go wrong."""


def read_answers(raw: bytes, closed: bool, methods: Sequence[str] = ()) -> list[Answer]:
    """All answers but those of status 1xx. `methods` are those of the requests, as far as they are known.

    Raises Unreadable.
    """
    found: list[Answer] = []
    while raw:
        head, separator, rest = raw.partition(CRLF + CRLF)
        if not separator:
            if closed:
                raise Unreadable(f"a head that breaks off: {raw[:80]!r}")
            return found
        version, status, headers = _head(head)
        method = methods[len(found)] if len(found) < len(methods) else ""
        if 100 <= status < 200 and status != 101:
            raw = rest
            continue
        body, raw, whole, chunked = _body(rest, headers, closed, method == "HEAD" or status in (204, 304))
        found.append(Answer(version, status, headers, body, whole, chunked))
    return found


def _head(head: bytes) -> tuple[str, int, tuple[tuple[str, str], ...]]:
    line, *rest = head.split(CRLF)
    parts = line.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/") or not parts[1].isdigit():
        raise Unreadable(f"no status line: {line[:80]!r}")
    headers = []
    for one in rest:
        name, colon, value = one.partition(b":")
        if not colon or not name or name.strip() != name:
            raise Unreadable(f"no header: {one[:80]!r}")
        headers.append((name.decode("latin-1").lower(), value.strip().decode("latin-1")))
    names = [name for name, _ in headers]
    for once in ("content-length", "transfer-encoding", "content-type"):
        if names.count(once) > 1:
            raise Unreadable(f"two headers {once}")
    return parts[0].decode("latin-1"), int(parts[1]), tuple(headers)


def _body(
    rest: bytes, headers: tuple[tuple[str, str], ...], closed: bool, none: bool
) -> tuple[bytes, bytes, bool, bool]:
    """The body, what stands behind it, whether it is whole, and whether it came in chunks."""
    told: dict[str, Any] = dict(headers)
    if none:
        return b"", rest, True, False
    if "transfer-encoding" in told:
        if "content-length" in told:
            raise Unreadable("a content-length beside transfer-encoding")
        return _chunks(rest)
    if "content-length" in told:
        length = int(told["content-length"])
        return rest[:length], rest[length:], len(rest) >= length, False
    return rest, b"", closed, False


def _chunks(rest: bytes) -> tuple[bytes, bytes, bool, bool]:
    parts: list[bytes] = []
    while True:
        line, separator, behind = rest.partition(CRLF)
        if not separator:
            return b"".join(parts), b"", False, True
        try:
            size = int(line, 16)
        except ValueError as error:
            raise Unreadable(f"no length of a chunk: {line[:40]!r}") from error
        if size == 0:
            if not behind.startswith(CRLF):
                return b"".join(parts), b"", False, True
            return b"".join(parts), behind[2:], True, True
        parts.append(behind[:size])
        if len(behind) < size + 2:
            return b"".join(parts), b"", False, True
        if behind[size : size + 2] != CRLF:
            raise Unreadable("a chunk that does not end where it says")
        rest = behind[size + 2 :]
