"""Reads the requests from one connection's bytes (RFC 9112, with httptools): limits heads, passes bodies on."""

from __future__ import annotations

from collections.abc import Callable

import httptools

from gateway.configuration.sections import DoorLimits
from gateway.errors import Problem
from gateway.server.asgi_messages import Headers
from gateway.server.exchange import Exchange, Wire
from gateway.server.head import check_head, is_single

VERSIONS = ("1.1", "1.0")
SEPARATORS_BYTES = 4
"""Bytes between a header's name and its value, and after the value."""


class RequestReader:
    """Reads requests for one connection, which owns it."""

    def __init__(self, wire: Wire, limits: DoorLimits, opened: Callable[[Exchange, Problem | None], None]) -> None:
        """`opened` is called with each request after its head, and with the head's problem or None."""
        self._wire = wire
        self._limits = limits
        self._opened = opened
        self._parser = self._new_parser()
        # the request that is being read
        self.in_head = False
        """True if a head has begun but not ended."""
        self.exchange: Exchange | None = None
        """The request whose body is being read."""
        self._url = b""
        self._headers: Headers = []
        self._fields: dict[bytes, bytes] = {}
        self._repeated: bytes | None = None
        self._count = 0
        """Number of headers so far, with trailers."""
        self._head_bytes = 0
        """Bytes of the address and headers, with trailers."""
        self._head_bytes_came = 0
        """Received bytes of a head that has not ended."""
        self._bytes_unread = 0
        """Bytes since the parser's last callback."""
        self._ended = False
        """True if a request has ended in the bytes that are being read."""
        self._muted = False
        """True while the parser gets a head from `_ignore_upgrade`, and not the caller's bytes."""
        self._upgrades = False
        """True if the request asks for an upgrade: the parser reports its end before its body."""

    def feed(self, data: bytes) -> None:
        """Read these bytes. Raises Problem if they can't be read: then no later bytes can be read either."""
        self._bytes_unread += len(data)
        self._ended = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            self._ignore_upgrade()
            rest = data[stopped.args[0] :]
            if rest:
                self.feed(rest)
            return
        except httptools.HttpParserError:
            raise Problem("invalid_http", "What was sent is not an HTTP request.") from None
        if self.in_head and not self._ended:
            self._head_bytes_came += len(data)
        if self._is_too_large() or (self.in_head and self._head_bytes_came > self._limits.head_bytes_max):
            raise self._too_large()

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # bytes after the last request are not a fault
        return parser

    def _ignore_upgrade(self) -> None:
        """Ignore the request's upgrade (RFC 9110, 7.8), for which the parser treats the body as another protocol."""
        exchange, self._upgrades = self.exchange, False
        self._parser = self._new_parser()
        assert exchange is not None, "its head has been read"
        framing = b"transfer-encoding: chunked\r\n" if exchange.bytes_left is None else b""
        if exchange.bytes_left:
            framing = b"content-length: %d\r\n" % exchange.bytes_left
        self._muted = True
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % framing)
        self._muted = False
        if not framing:
            self._end()

    def _is_too_large(self) -> bool:
        limits = self._limits
        return self._count > limits.headers_max or self._head_bytes + self._bytes_unread > limits.head_bytes_max

    def _too_large(self) -> Problem:
        limits = self._limits
        text = f"A request has at most {limits.headers_max} headers, and a head of {limits.head_bytes_max} bytes."
        return Problem("head_too_large", text)

    def _fault(self, exchange: Exchange) -> Problem | None:
        if self._is_too_large():
            return self._too_large()
        try:
            check_head(exchange.method, exchange.path, exchange.http10, self._fields, self._repeated)
        except Problem as problem:
            return problem
        return None

    # Called by the parser.

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._muted:
            return
        self.in_head = True
        self._url = b""
        self._headers = []
        self._fields = {}
        self._repeated = None
        self._count = self._head_bytes = self._head_bytes_came = 0

    def on_url(self, url: bytes) -> None:
        """A part of its address."""
        if not self._muted:
            self._bytes_unread = 0
            self._head_bytes += len(url)
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. After a body it is a trailer, which is counted but not read."""
        if self._muted:
            return
        self._bytes_unread = 0
        self._count += 1
        self._head_bytes += len(name) + len(value) + SEPARATORS_BYTES
        if not self.in_head:
            return
        name, value = name.lower(), value.rstrip(b" \t")  # the parser keeps the white space behind a value
        if name in self._fields and is_single(name):
            self._repeated = name
        self._fields[name] = value
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is complete."""
        if self._muted:
            return
        parser = self._parser
        self._bytes_unread = 0
        self.in_head = False
        version = parser.get_http_version()
        http10 = version == "1.0"
        path, query = _split(self._url) if version in VERSIONS else (b"", b"")
        self.exchange = exchange = Exchange(
            self._wire,
            parser.get_method().decode("ascii"),
            path,
            query,
            self._headers,
            self._fields,
            parser.should_keep_alive() and version == "1.1",
            http10,
        )
        self._upgrades = parser.should_upgrade()
        self._opened(exchange, self._fault(exchange))

    def on_chunk_header(self) -> None:
        """A part of the body begins."""
        self._bytes_unread = 0

    def on_body(self, body: bytes) -> None:
        """Bytes of the body."""
        self._bytes_unread = 0
        if self.exchange is not None:
            self.exchange.take(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if not self._muted and not self._upgrades:
            self._end()

    def _end(self) -> None:
        self._bytes_unread = 0
        self._ended = True
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        if self._is_too_large():  # by its trailers
            exchange.fail(self._too_large())
        exchange.come()


def _split(url: bytes) -> tuple[bytes, bytes]:
    """An address's path and query as sent. The path is empty if the address has none."""
    if url[:1] != b"/":  # the form for proxies, with scheme and host, is valid too (RFC 9112, 3.2.2)
        try:
            parsed = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError:
            return b"", b""
        return parsed.path or b"/", parsed.query or b""
    path, _, query = url.partition(b"#")[0].partition(b"?")
    return path, query
