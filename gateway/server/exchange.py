"""One request on a connection, and its answer: reading the body, sending the answer, and noticing a hang-up.

The request path uses it directly. All other endpoints get it as ASGI (gateway/server/asgi.py).
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
"""Most bytes of a body that wait for their reader. Then reading from the connection pauses."""
WRITE_AHEAD_BYTES = 65_536
"""Bytes of an answer that are given to the connection at once. The next ones wait until the caller has read some."""
DISCARDED_BYTES_MAX = 65_536
"""Longest rest of a body that is read and dropped to keep the connection open. With a longer rest it is closed."""
STATUS_LINES: Mapping[int, bytes] = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
} | {499: b"HTTP/1.1 499 Client Closed Request\r\n"}
"""499 is for a caller that hung up, and never reaches it."""
BODILESS = frozenset({204, 304})


End = tuple[str, int] | None
"""Host and port of one end of a connection, if it has them."""


class Wire(Protocol):
    """The connection, as an exchange uses it."""

    @property
    def ends(self) -> tuple[End, End]:
        """The addresses of its two ends: the caller's, and the gateway's own."""

    def send(self, data: bytes) -> None:
        """Write bytes to the caller, or nothing where it has gone."""

    @property
    def flows(self) -> bool:
        """True if the connection is open and the caller reads fast enough."""

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
    """One request and its answer. The connection feeds it. The answering code reads the body once, begins, and ends."""

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
        """`headers` has all headers, with names in lower case; `fields` has the last header of each name."""
        super().__init__(wire.loop)
        # the request's head
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.http10 = http10
        self._fields = fields
        self.caller: Caller | None = None
        """The caller whose key is in the head; None if the address needs no key."""
        # its body
        self.complete = False
        length = fields.get(b"content-length", b"").strip()
        self.bytes_left: int | None = int(length) if length.isdigit() else None if b"transfer-encoding" in fields else 0
        """Bytes of the body that have not arrived; None if unknown."""
        self.fault: Problem | None = None
        """The reason why the body can't be read to its end."""
        self.waiting_bytes = 0
        self.waited_seconds = 0.0
        """Seconds of waiting for the body."""
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
        """True if the answer is server-sent events: a comment may be sent between two events."""
        self._body_left: int | None = None
        # its caller
        self.hung_up = False
        """True if the caller hung up before its answer was complete."""
        self._walking: asyncio.Task[Any] | None = None
        self._wire = wire

    # The request.

    @property
    def _holder(self) -> str:
        """The holder of the body's room in memory: the key's public part."""
        return self.caller.public if self.caller is not None else ""

    @property
    def ends(self) -> tuple[End, End]:
        """The addresses of the connection's two ends: the caller's, and the gateway's own."""
        return self._wire.ends

    def key(self) -> bytes:
        """The `authorization` header as sent. A key in `x-api-key`, from Anthropic's clients, is given the same form.

        Empty if there is no key.
        """
        authorization = self._fields.get(b"authorization")
        key = self._fields.get(b"x-api-key") if authorization is None else None
        return authorization or b"" if key is None else b"Bearer " + key

    def authorization(self) -> str:
        """The result of `key` as text."""
        return text_of(self.key())

    def require_caller(self) -> Caller:
        """The caller that the listener found by the key in the head. Only for addresses that need a key."""
        assert self.caller is not None, "the listener lets nobody in without a key"
        return self.caller

    def header(self, name: str) -> str | None:
        """A header's value, or None. Raises Problem (400) if it is too long or has control characters."""
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
        """The next part of the body, and True if more follows.

        Raises HungUp, and Problem for a body that can't be read to its end (400, 431, 503), even if its rest arrived.
        """
        while not self.complete and not self._parts:
            await self._more()
        if self.fault is not None:  # parts were dropped: the rest alone is not the body
            raise self.fault
        parts, self._parts, self.waiting_bytes = self._parts, [], 0
        self._wire.read_on()
        return b"".join(parts), not self.complete

    def give_back_read(self) -> None:
        """Give back the memory room of the part that was read, after it was written to disk."""
        if self._bytes_held:
            self._wire.bodies.give_back(self._holder, self._bytes_held)
            self._bytes_held = 0

    async def gone(self) -> None:
        """Wait until the caller hangs up or its answer is complete."""
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
        """True if parts of the answer may be passed on at once: it is chunked, and the caller reads fast enough."""
        return self._chunked and not self.ended and self._wire.flows

    def pass_on(self, body: bytes) -> None:
        """Send a part of the body at once; only if `flows`."""
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
        """Bytes without meaning for a waiting caller. A caller that has gone resets them. Empty if none can be sent."""
        if not self.begun:
            return b"HTTP/1.1 100 Continue\r\n\r\n"
        return b"3\r\n:\n\n\r\n" if self._events and self._chunked and not self.ended else b""

    def refuse(self, problem: Problem) -> None:
        """Answer with a problem, if no answer has begun."""
        if not self.begun and not self.hung_up:
            self.tell(problem.status, problem.headers(), get_format(self.path).error_body(problem))

    def _head(self, status: int, headers: Headers) -> bytes:
        """The answer's head. Raises ValueError for a header with a line end in it."""
        if not self.complete and (self.comes_long or self._continue):
            self.keep_alive = False  # a caller without a 100 Continue may or may not send its body
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
        elif self.http10:  # HTTP/1.0 has no chunks: the end of the connection ends the body
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
        """A part of the body in its framing. Empty if the answer has no body, or no more of it."""
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

    # Called by the connection.

    def take(self, part: bytes) -> None:
        """Keep a received part of the body, or drop it if the answer has ended or the body has a fault."""
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
        """Note that the body can't be read to its end, and drop its parts."""
        self.fault = fault
        self._parts = []
        self.waiting_bytes = 0
        self.keep_alive = False
        self.release()
        self._wake()

    def come(self) -> None:
        """Note that the body is complete."""
        self.complete = True
        self.bytes_left = 0
        self._wake()

    @property
    def comes_long(self) -> bool:
        """True if the rest of the body may be so long that the connection is closed instead of read to its end."""
        return self.bytes_left is None or self.bytes_left > DISCARDED_BYTES_MAX

    @property
    def reads_ahead(self) -> bool:
        """True if too many bytes of the body wait for their reader."""
        return self.waiting_bytes > READ_AHEAD_BYTES and not self._awaited and not self.ended

    def lost(self) -> None:
        """Note that the connection is lost."""
        if not self.ended:
            self.hung_up = True
            if self._walking is not None:
                self._walking.cancel()
        self._wake()

    def release(self) -> None:
        """Drop the body, which nobody needs now."""
        self._parts = []
        self.give_back_read()

    # Waiting.

    async def _more(self) -> None:
        """Wait for more of the body. Raises HungUp, or the fault of the body, if no more can come."""
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
    """Raise Problem (415) if the body is not declared as JSON."""
    kind = fields.get(b"content-type", b"application/json").lower()
    if kind != b"application/json" and kind.partition(b";")[0].strip() != b"application/json":
        raise Problem("unsupported_media_type", "Send the body as `Content-Type: application/json`.")


def refuse_too_large(bytes_max: int) -> Problem:
    """The problem for a body that is too long."""
    return Problem("body_too_large", f"The body is longer than {bytes_max} bytes.")
