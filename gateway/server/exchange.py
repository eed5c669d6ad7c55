"""One request on a connection, and its answer: what of it is read, how it is answered, and whether its caller is there.

The request path takes it as it is; everything else gets it as an ASGI application does (gateway/server/asgi.py).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Protocol

from gateway.callers import Caller
from gateway.errors import Problem
from gateway.formats.format_table import get_format
from gateway.formats.server_sent_events import BOM
from gateway.server.asgi_messages import Headers, HungUp
from gateway.server.shared_capacity import SharedCapacity
from monitoring.trace_context import read_trace
from serving.wakeable import Wakeable

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
HEADER_CHARACTERS_MAX = 512
READ_AHEAD_BYTES = 65_536
"""Bytes of a body that wait for their reader before the connection is read no further."""
WRITE_AHEAD_BYTES = 65_536
"""Bytes of an answer that are handed to the connection before its caller has read some."""
DISCARDED_BYTES_MAX = 65_536
"""Rest of a body that is read and dropped to keep a connection open; with a longer one it is closed."""
STATUS_LINES: Mapping[int, bytes] = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
} | {499: b"HTTP/1.1 499 Client Closed Request\r\n"}
"""The last one is for a caller who has gone, and gets nothing of it."""
BODILESS = frozenset({204, 304})


End = tuple[str, int] | None
"""Host and port of one end of a connection, where it has those."""


class Wire(Protocol):
    """The connection, as an exchange uses it."""

    @property
    def ends(self) -> tuple[End, End]:
        """The addresses of its two ends: the caller's, and the gateway's own."""

    def send(self, data: bytes) -> None:
        """Write bytes to the caller, or nothing where it has gone."""

    @property
    def flows(self) -> bool:
        """True if the caller is there and reads what it is sent."""

    async def writable(self) -> None:
        """Wait while the caller reads slowly."""

    def server_headers(self) -> bytes:
        """The header lines of every answer."""

    @property
    def bodies(self) -> SharedCapacity:
        """The room for bodies."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it runs in."""

    def read_on(self) -> None:
        """Its body may be read further."""

    def finished(self, exchange: Exchange) -> None:
        """Its answer is whole."""


class Exchange(Wakeable):
    """One request and its answer. Its connection feeds it; whoever answers reads the body once, begins, and ends."""

    __slots__ = (
        "_awaited",
        "_body_left",
        "_bytes_held",
        "_chunked",
        "_continue",
        "_events",
        "_fields",
        "_parts",
        "_walking",
        "_wire",
        "begun",
        "bytes_left",
        "caller",
        "complete",
        "ended",
        "fault",
        "headers",
        "http10",
        "hung_up",
        "keep_alive",
        "method",
        "path",
        "query",
        "waited_seconds",
        "waiting_bytes",
    )

    def __init__(
        self,
        wire: Wire,
        method: str,
        path: bytes,
        query: bytes,
        headers: Headers,
        fields: Mapping[bytes, bytes],
        keep_alive: bool,
        http10: bool,
    ) -> None:
        """`headers` are all, their names in lower case; `fields` the last of each name."""
        super().__init__(wire.loop)
        # the request's head
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.http10 = http10
        self._fields = fields
        self.caller: Caller | None = None
        """The caller whose key its head holds; None where its address needs no key."""
        # its body
        self.complete = False
        length = fields.get(b"content-length", b"").strip()
        self.bytes_left: int | None = int(length) if length.isdigit() else None if b"transfer-encoding" in fields else 0
        """Bytes of the body that have not come; None where nobody knows."""
        self.fault: Problem | None = None
        """The reason why its body can't be read to its end."""
        self.waiting_bytes = 0
        self.waited_seconds = 0.0
        """Time for which it was waited for."""
        self._parts: list[bytes | bytearray] = []
        self._bytes_held = 0
        self._awaited = False
        self._continue = fields.get(b"expect", b"").lower() == b"100-continue" and not http10
        # its answer
        self.keep_alive = keep_alive
        self.begun = False
        self.ended = False
        self._chunked = False
        self._events = False
        """True if the answer is server-sent events, between which a comment may be sent."""
        self._body_left: int | None = None
        # its caller
        self.hung_up = False
        """True if the caller went before its answer was whole."""
        self._walking: asyncio.Task[Any] | None = None
        self._wire = wire

    # The request.

    @property
    def _holder(self) -> str:
        """In whose name its body takes room."""
        return self.caller.public if self.caller is not None else ""

    @property
    def ends(self) -> tuple[End, End]:
        """The addresses of the connection's two ends: the caller's, and the gateway's own."""
        return self._wire.ends

    def key(self) -> bytes:
        """The header with the key, as it came; a key in `x-api-key`, as Anthropic's clients send it, as such a header.

        Empty where there is none.
        """
        authorization = self._fields.get(b"authorization")
        key = self._fields.get(b"x-api-key") if authorization is None else None
        return authorization or b"" if key is None else b"Bearer " + key

    def authorization(self) -> str:
        """The same as text."""
        return text_of(self.key())

    def require_caller(self) -> Caller:
        """The caller that the listener found by the key in the head; only where the address needs one."""
        assert self.caller is not None, "the listener lets nobody in without a key"
        return self.caller

    def header(self, name: str) -> str | None:
        """A header's value, or None. Raises Problem (400) for one that is too long or holds control characters."""
        raw = self._fields.get(name.encode())
        if raw is None:
            return None
        value = text_of(raw)
        if len(value) > HEADER_CHARACTERS_MAX:
            raise Problem("invalid_value", f"The header {name} is longer than {HEADER_CHARACTERS_MAX} characters.")
        if not value.isprintable() and CONTROL.search(value):
            raise Problem("invalid_value", f"The header {name} holds control characters.")
        return value

    def trace(self) -> tuple[str | None, str | None]:
        """The caller's W3C trace context and its state, each if it is well-formed."""
        return read_trace(self.headers) if b"traceparent" in self._fields else (None, None)

    async def body(self, bytes_max: int) -> bytes:
        """The whole JSON body, without a BOM. Raises Problem (413, 415; 503 without room), HungUp if it breaks off."""
        see_that_it_is_json(self._fields)
        if self.bytes_left is not None and self.bytes_left + self.waiting_bytes > bytes_max:
            raise refuse_too_large(bytes_max)
        self._awaited = True
        while not self.complete and self.waiting_bytes <= bytes_max:
            await self._more()
        if self.waiting_bytes > bytes_max:
            raise refuse_too_large(bytes_max)
        if self.fault is not None:
            raise self.fault
        parts, self._parts = self._parts, []
        self.waiting_bytes = 0
        body = parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)
        return body.removeprefix(BOM)

    async def next_part(self) -> tuple[bytes, bool]:
        """The part of the body that has come since, and whether there is more.

        Raises HungUp, and Problem for a body that can't be read to its end (400, 431, 503), also where the rest came.
        """
        while not self.complete and not self._parts:
            await self._more()
        if self.fault is not None:  # its parts were dropped: what is left is not the body
            raise self.fault
        parts, self._parts, self.waiting_bytes = self._parts, [], 0
        self._wire.read_on()
        return b"".join(parts), not self.complete

    def give_back_read(self) -> None:
        """Give back the room of the part that was read: it went to disk."""
        if self._bytes_held:
            self._wire.bodies.give_back(self._holder, self._bytes_held)
            self._bytes_held = 0

    async def gone(self) -> None:
        """Wait until the caller has gone or its answer is whole."""
        while not self.hung_up and not self.ended:
            await self._wait()

    def hang_up_cancels(self) -> HangUpWatch:
        """Cancel the present task, inside the block, when the caller hangs up."""
        return HangUpWatch(self)

    # The answer.

    async def begin(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Send status, headers and a first part of the body at once. From here on the answer belongs to the caller."""
        await self._wire.writable()
        head = self._head(status, headers)
        self._wire.send(head + self._framed(body))

    async def write(self, body: bytes) -> None:
        """Send a part of the body; waits while the caller reads slowly."""
        await self._wire.writable()
        if framed := self._framed(body):
            self._wire.send(framed)

    @property
    def flows(self) -> bool:
        """True if parts of the body may be passed on at once: it has no length, and its caller reads."""
        return self._chunked and not self.ended and self._wire.flows

    def pass_on(self, body: bytes) -> None:
        """Send a part of the body at once; only where `flows`."""
        self._wire.send(b"%x\r\n%b\r\n" % (len(body), body))

    async def end(self, body: bytes = b"") -> None:
        """Send the last part of the body."""
        await self._wire.writable()
        body = self._framed(body)
        if self._body_left:
            raise ValueError("an answer is shorter than its content-length")
        while len(body) > WRITE_AHEAD_BYTES and not self._chunked:
            self._wire.send(body[:WRITE_AHEAD_BYTES])
            body = body[WRITE_AHEAD_BYTES:]
            await self._wire.writable()
        self._finish(body + b"0\r\n\r\n" if self._chunked else body)

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer at once."""
        await self._wire.writable()
        self.tell(status, headers, body)

    def tell(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer at once, without waiting for a caller that reads slowly."""
        head = self._head(status, [*headers, (b"content-length", b"%d" % len(body))])
        self._finish(head if self._body_left == 0 else head + body)

    def probe(self) -> bytes:
        """Bytes that change nothing for a caller that waits: who has gone resets them. Empty where there are none."""
        if not self.begun:
            return b"HTTP/1.1 100 Continue\r\n\r\n"
        return b"3\r\n:\n\n\r\n" if self._events and self._chunked and not self.ended else b""

    def refuse(self, problem: Problem) -> None:
        """Answer with a problem, if nothing of an answer has gone out."""
        if not self.begun and not self.hung_up:
            self.tell(problem.status, problem.headers(), get_format(self.path).error_body(problem))

    def _head(self, status: int, headers: Headers) -> bytes:
        """The answer's head. Raises ValueError for a header with a line end in it."""
        if not self.complete and (self.comes_long or self._continue):
            self.keep_alive = False  # nobody knows whether who was not told to go on sends its body all the same
        self._continue = False
        fields = dict(headers)
        length = fields.get(b"content-length")
        self.keep_alive = self.keep_alive and b"connection" not in fields
        self._events = fields.get(b"content-type", b"").startswith(b"text/event-stream")
        framing = b""
        if self.method == "HEAD" or status in BODILESS:
            self._body_left = 0
        elif length is not None:
            self._body_left = int(length)
        elif self.http10:  # it knows no chunks: the end of the connection ends the body
            self.keep_alive = False
        else:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        if not self.keep_alive:
            framing += b"connection: close\r\n"
        head = write_head(status, self._wire.server_headers(), headers, framing)
        self.begun = True
        return head

    def _framed(self, body: bytes) -> bytes:
        """A part of the body as it is sent: nothing where the answer has none, or none any more."""
        if not body or self._body_left == 0:
            return b""
        if self._chunked:
            return b"%x\r\n%b\r\n" % (len(body), body)
        if self._body_left is not None:
            if len(body) > self._body_left:
                raise ValueError("an answer is longer than its content-length")
            self._body_left -= len(body)
        return body

    def _finish(self, data: bytes) -> None:
        self._wire.send(data)
        self.ended = True
        self._wake()
        self._wire.finished(self)

    # What its connection tells.

    def take(self, part: bytes) -> None:
        """A part of the body has come; it is dropped where nobody reads it any more."""
        size = len(part)
        if self.bytes_left is not None:
            self.bytes_left -= size
        if self.ended or self.fault is not None:
            return
        if not self._wire.bodies.take(self._holder, size):
            text = "The gateway holds as many bytes of bodies as it may, or as it may of one key. Try again later."
            self.fail(Problem("overload", text))
            return
        self._bytes_held += size
        last = self._parts[-1] if self._parts else None
        if self.bytes_left is not None:
            self._parts.append(part)
        elif isinstance(last, bytearray) and len(last) < READ_AHEAD_BYTES:  # small chunks are kept as one piece
            last += part
        else:
            self._parts.append(bytearray(part))
        self.waiting_bytes += size
        self._wake()

    def fail(self, fault: Problem) -> None:
        """Its body can't be read to its end."""
        self.fault = fault
        self._parts = []
        self.waiting_bytes = 0
        self.keep_alive = False
        self.release()
        self._wake()

    def come(self) -> None:
        """The body is whole."""
        self.complete = True
        self.bytes_left = 0
        self._wake()

    @property
    def comes_long(self) -> bool:
        """True if so much of the body may come yet that the connection is rather closed than read to its end."""
        return self.bytes_left is None or self.bytes_left > DISCARDED_BYTES_MAX

    @property
    def reads_ahead(self) -> bool:
        """True if more of the body has come than its reader should leave waiting."""
        return self.waiting_bytes > READ_AHEAD_BYTES and not self._awaited and not self.ended

    def lost(self) -> None:
        """The caller has gone."""
        if not self.ended:
            self.hung_up = True
            if self._walking is not None:
                self._walking.cancel()
        self._wake()

    def release(self) -> None:
        """Nobody needs its body any more."""
        self._parts = []
        self.give_back_read()

    # Waiting.

    async def _more(self) -> None:
        """Wait until something has come. Raises HungUp, Problem (503) where no more can come."""
        if self.fault is not None:
            raise self.fault
        if self.hung_up:
            raise HungUp
        if self._continue:
            self._continue = False
            self._wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._wire.read_on()
        began_at = time.monotonic()
        await self._wait()
        self.waited_seconds += time.monotonic() - began_at


class HangUpWatch:
    """Cancels the present task, inside its block, when the caller hangs up."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __enter__(self) -> None:
        task = asyncio.current_task(self._exchange.loop)
        assert task is not None
        self._exchange._walking = task
        if self._exchange.hung_up:
            task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exchange._walking = None


def write_head(status: int, server_headers: bytes, headers: Headers, framing: bytes) -> bytes:
    """The head of an answer. `framing` replaces its `connection`. Raises ValueError for a header with a line end."""
    lines = [b": ".join(header) for header in headers if header[0] != b"connection"]
    text = b"\r\n".join([*lines, b""])
    if not text.count(b"\n") == text.count(b"\r") == len(lines):
        raise ValueError("a header has a line end in it")
    return b"".join((STATUS_LINES[status], server_headers, text, framing, b"\r\n"))


def text_of(value: bytes) -> str:
    """A header's value: UTF-8, as curl and HTTP libraries send it, else Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def see_that_it_is_json(fields: Mapping[bytes, bytes]) -> None:
    """Raises Problem (415) for a body that is not declared as JSON."""
    kind = fields.get(b"content-type", b"application/json").lower()
    if kind != b"application/json" and kind.partition(b";")[0].strip() != b"application/json":
        raise Problem("unsupported_media_type", "Send the body as `Content-Type: application/json`.")


def refuse_too_large(bytes_max: int) -> Problem:
    """The problem of a body that is longer than it may be."""
    return Problem("body_too_large", f"The body is longer than {bytes_max} bytes.")
