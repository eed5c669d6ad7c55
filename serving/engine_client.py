"""The client for engines: a POST with its streamed answer, or a look. HTTP/1.1 on httptools, kept-alive connections."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Self, cast

import httptools

from serving.engine_connections import Origin
from serving.errors import Dropped, EngineError, Failed, Oversize, Silent, Truncated, Unreachable, from_status
from serving.wakeable import Wakeable

ERROR_BODY_BYTES_MAX = 65_536
ERROR_BODY_SECONDS_MAX = 1.0
"""Time for the text of an engine's error. Its status is known by then, so no caller waits longer for the text."""
READ_BUFFER_BYTES = 1 << 18
HEAD_BYTES_MAX = 1 << 16
JOINED_BYTES_MAX = 1 << 16
LOOK_BYTES_MAX = 32 << 20
"""Longest answer to a look, even if answers to requests have a lower limit."""
SIZE_LINES: Mapping[int, bytes] = {
    len(line) + size + 2: line for line, size in ((b"%x\r\n" % size, size) for size in range(1, 0x800))
}
"""First lines of HTTP chunks, by the size of the whole chunk in bytes."""
EVENT_END = b"\n\n\r\n"
"""The end of an HTTP chunk that ends with an event."""
Taker = Callable[[list[bytes]], int]
"""Takes parts of a body instead of the task that waits for them; returns the number taken, from the front."""


class EngineConnection(Wakeable, asyncio.Protocol):
    """One connection: `begin` an exchange, wait for `head`, take its `chunk`s, `finish` or `abort`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self.open = False
        self.idle_since = 0.0
        # While an exchange is under way:
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._silence_seconds = 0.0
        self._heard_at = 0.0
        self._by_tokens = False
        self._lapsed = 0
        """1 if the limit on silence passed while received parts were not taken yet, 2 once those were taken."""
        self._fault: EngineError | None = None
        self._parts: list[bytes] = []
        self._buffered = 0
        self._bytes_left = 0
        self.taker: Taker | None = None
        self._between = False
        """True if the next byte begins an HTTP chunk."""
        self._paused = False
        self._head_bytes = 0
        self._framed = False
        self.answered = False
        self.headed = False
        self.whole = False
        self.reusable = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}

    # The exchange, in its order.

    def begin(self, head: bytes, body: bytes, silence_seconds: float, bytes_max: int) -> None:
        """Send a request. Its answer may have at most `bytes_max` bytes."""
        assert self._transport is not None
        assert not self._busy
        self._busy = True
        self._fault = None
        self._parts = []
        self._buffered = self._head_bytes = self.status = 0
        self._bytes_left = bytes_max
        self._framed = self.answered = self.headed = self.whole = self.reusable = False
        self.headers = {}
        self._silence_seconds = silence_seconds
        self._heard_at = self.loop.time()
        self._by_tokens = False
        self._lapsed = 0
        self._listen_at(self._heard_at + silence_seconds)
        if len(body) > JOINED_BYTES_MAX:
            self._transport.writelines((head, body))
        else:
            self._transport.write(head + body)

    async def head(self) -> None:
        """Wait for the status and the headers. Raises Silent, Dropped."""
        while not self.headed:
            if self._fault is not None:
                raise self._fault
            await self._wait()

    async def chunk(self) -> bytes:
        """The bytes received since the last call; empty at the answer's end. Raises Silent, Truncated, Oversize."""
        if self._lapsed:
            self._judge_lapse()
        while not self._parts:
            if self.whole:
                return b""
            if self._fault is not None:
                raise self._fault
            await self._wait()
        if self._bytes_left < 0:
            raise Oversize("the answer is longer than the gateway's limit")
        parts, self._parts, self._buffered = self._parts, [], 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._heard_at = self.loop.time()
            self._transport.resume_reading()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def expect_tokens(self, silence_seconds: float) -> None:
        """From now on only a token (`heard`) ends a silence, whose limit is `silence_seconds`."""
        self._silence_seconds = silence_seconds
        self._by_tokens = True
        self._heard_at = self.loop.time()
        if self._timer is not None:  # otherwise its lapse is not judged yet
            self._listen_at(self._heard_at + silence_seconds)

    def heard(self) -> None:
        """Note that a token has come."""
        self._heard_at = self.loop.time()

    @property
    def is_read(self) -> bool:
        """True if the answer is complete and all of it was taken."""
        return self.whole and not self._parts

    def finish(self) -> bool:
        """End the exchange. Returns True if the connection can be used again."""
        self._rest()
        return self.open and self.reusable and self.is_read

    def abort(self) -> None:
        """Close the connection at once, whatever is under way."""
        self._rest()
        self.open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    def _rest(self) -> None:
        self._busy = False
        self.taker = None

    def _fail(self, error: EngineError) -> None:
        if self._busy and self._fault is None and not self.whole:
            self._fault = error
        self._wake()

    def _listen_at(self, due: float) -> None:
        """Make sure that a silence is noticed at `due`. A timer for an earlier time, as of the exchange before, is
        kept: a new timer for each exchange would cost 2 µs."""
        if self._timer is None or self._timer.when() > due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(due, self._listen)

    def _listen(self) -> None:
        """Check for silence. Bytes that our own caller has not taken yet are not the engine's silence."""
        self._timer = None
        if not self._busy:
            return
        if self._paused or self._parts:
            if self._by_tokens:  # the parts may have a token
                self._lapsed = 1
                return
            self._heard_at = self.loop.time()
        self._see_that_it_is_not_silent()

    def _judge_lapse(self) -> None:
        """Check a silence again whose limit has passed, once the parts received until then were taken."""
        if self._lapsed == 1 and self._parts:
            self._lapsed = 2
            return
        self._lapsed = 0
        before = self._fault
        self._see_that_it_is_not_silent()
        if self._fault is not before:  # silent: parts without a token are useless; before a cut they may have one
            self._parts = []

    def _see_that_it_is_not_silent(self) -> None:
        remaining = self._heard_at + self._silence_seconds - self.loop.time()
        if remaining > 0:
            self._timer = self.loop.call_later(remaining, self._listen)
            return
        what = "no token for" if self._by_tokens else "nothing came for" if self.headed else "no answer within"
        self._fail(Silent(f"{what} {self._silence_seconds:g} s"))

    # Callbacks of the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        """Take in bytes of an answer. Bytes outside an exchange are an engine's fault, and end the connection."""
        if not self._busy or self.whole:
            self.abort()
            return
        if self.headed and not self._by_tokens:
            self._heard_at = self.loop.time()
        taker = self.taker
        if self._parts or self._fault is not None or not self._is_awaited:
            taker = None
        if taker is not None and self._between and self._pass_chunk(data, taker):
            return
        self.answered = True
        self._between = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._broken(type(error).__name__)
            return
        if not self.headed:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._broken("its headers are too long")
                return
        self._between = self._between and data.endswith(EVENT_END)  # otherwise the next chunk's size may have begun
        if taker is not None and self._parts and self._bytes_left >= 0:
            count = taker(self._parts)
            self._buffered -= sum(map(len, self._parts[:count]))
            del self._parts[:count]
        if self._buffered > READ_BUFFER_BYTES and not self._paused and self._transport is not None and not self.whole:
            self._paused = True
            self._transport.pause_reading()
        if self._parts or self.whole:
            self._wake()

    def _pass_chunk(self, data: bytes, taker: Taker) -> bool:
        """Offer the taker a read that is exactly one HTTP chunk, as most are: the parser need not see it."""
        line = SIZE_LINES.get(len(data))
        if line is None or not data.startswith(line) or not data.endswith(EVENT_END) or len(data) > self._bytes_left:
            return False
        if not taker([data[len(line) : -2]]):
            return False
        self._bytes_left -= len(data)
        return True

    def eof_received(self) -> None:
        """The engine sends no more. This is the end of an answer without a stated length."""
        if self._busy and self.headed and not self._framed and not self.whole:
            self.whole = True
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed. The exchange under way fails."""
        self.open = False
        reason = getattr(exc, "reason", None)  # for TLS: the engine's alert
        self._broken(f"{type(exc).__name__}{f' ({reason})' if reason else ''}" if exc else "it was closed")

    def _broken(self, why: str) -> None:
        self.open = False
        if self.headed:
            self._fail(Truncated(f"the connection broke inside the answer: {why}"))
        else:
            self._fail(Dropped(f"no answer from the engine: {why}"))
        if self._transport is not None:
            self._transport.abort()

    # Callbacks of the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one header, if it matters."""
        lower = name.lower()
        if lower in (b"content-length", b"transfer-encoding"):
            self._framed = True
        elif lower in (b"content-type", b"content-encoding", b"retry-after"):
            self.headers[lower] = value

    def on_headers_complete(self) -> None:
        """The head is complete. Informational ones (1xx) do not belong to the answer."""
        status: int = self._parser.get_status_code()
        if status >= 200:
            self.status = status
            self.headed = True
            self._heard_at = self.loop.time()
            self._wake()

    def on_body(self, body: bytes) -> None:
        """Take in bytes of the body, without their framing."""
        self._parts.append(body)
        self._buffered += len(body)
        self._bytes_left -= len(body)

    def on_chunk_complete(self) -> None:
        """An HTTP chunk is complete."""
        self._between = True

    def on_message_complete(self) -> None:
        """The answer is complete."""
        if self.headed:
            self.whole = True
            self.reusable = self._framed and self._parser.should_keep_alive()


class EngineClient:
    """Asks engines over kept-alive connections. One per gateway; its opener closes it.

    Each engine has its own connections: those that hang at one engine do not block another engine.
    """

    def __init__(
        self,
        connect_timeout_seconds: float,
        answer_bytes_max: int,
        context_for: Callable[[str], ssl.SSLContext | None] = lambda _: None,
    ) -> None:
        self._connect_timeout_seconds = connect_timeout_seconds
        self._answer_bytes_max = answer_bytes_max
        self._context_for = context_for
        self._origins: dict[str, Origin] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for origin in self._origins.values():
            origin.close()

    def keep(self, engine_urls: Collection[str]) -> None:
        """Close the idle connections to all engines except these; answers under way are completed."""
        for engine_url in self._origins.keys() - engine_urls:
            self._origins.pop(engine_url).close()

    async def post(
        self,
        engine_url: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        silence_seconds: float,
        fresh: bool = False,
    ) -> EngineAnswer:
        """Send `body` and wait for the headers; no silence may be longer than `silence_seconds`.

        `path` is appended to the path of `engine_url`, if that has one. With `fresh` the request uses a new connection,
        so it is never sent twice: a kept connection may close just as it is used.

        Raises an EngineError for everything that is not an answer: no connection, silence, or a status other than 2xx.
        """
        origin = self._origin(engine_url)
        head = _head("POST", origin, path, headers, f"Content-Length: {len(body)}\r\n")
        connection = await self._begun(origin, head, body, silence_seconds, self._answer_bytes_max, fresh)
        if connection.status >= 300:
            raise await _refused(connection)
        encoding = connection.headers.get(b"content-encoding", b"identity").decode("latin-1")
        if encoding.lower() != "identity":
            connection.abort()
            raise Failed(f"the engine's answer is encoded as {encoding[:32]!r}, though no encoding was asked for")
        return EngineAnswer(origin, connection)

    async def get(
        self, engine_url: str, path: str, headers: Mapping[str, str], silence_seconds: float, with_body: bool = True
    ) -> tuple[int, bytes]:
        """The status and the whole body of this path of the engine. Without `with_body` the body is not awaited.

        Raises an EngineError if there is no answer, or no complete one.
        """
        origin = self._origin(engine_url)
        head = _head("GET", origin, path, headers)
        connection = await self._begun(origin, head, b"", silence_seconds, LOOK_BYTES_MAX, fresh=False)
        answer = EngineAnswer(origin, connection)
        try:
            return connection.status, await answer.read() if with_body else b""
        finally:
            answer.close()

    def _origin(self, engine_url: str) -> Origin:
        origin = self._origins.get(engine_url)
        if origin is None:
            origin = self._origins[engine_url] = Origin(engine_url, self._tls_for)
        return origin

    def _tls_for(self, engine_url: str) -> ssl.SSLContext:
        return self._context_for(engine_url) or self._system_tls

    @cached_property
    def _system_tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()  # once: it reads all certificates of the system

    async def _begun(
        self, origin: Origin, head: bytes, body: bytes, silence_seconds: float, bytes_max: int, fresh: bool
    ) -> EngineConnection:
        """A connection that has received the answer's headers. Raises as `post` does."""
        connection = None if fresh else origin.take(time.monotonic())
        fresh = connection is None
        while True:
            if connection is None:
                connection = await self._connect(origin)
            try:
                connection.begin(head, body, silence_seconds, bytes_max)
                await connection.head()
                return connection
            except BaseException as error:
                connection.abort()
                # An engine may close an idle connection at the moment in which we use it.
                if fresh or connection.answered or not isinstance(error, Dropped):
                    raise
                connection, fresh = None, True

    async def _connect(self, origin: Origin) -> EngineConnection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                _, connection = await loop.create_connection(
                    lambda: EngineConnection(loop), origin.host, origin.port, ssl=origin.tls()
                )
        except TimeoutError as error:
            raise Unreachable("the engine did not accept a connection in time") from error
        except OSError as error:
            raise Unreachable(f"no connection to the engine: {type(error).__name__}") from error
        return connection


class EngineAnswer:
    """An answer that has begun: its headers are read, its body is still to come. Its holder closes it once."""

    def __init__(self, origin: Origin, connection: EngineConnection) -> None:
        self._origin = origin
        self._connection = connection
        self._closed = False
        self.next_chunk = connection.chunk
        self.expect_tokens = connection.expect_tokens
        self.heard = connection.heard

    def pass_to(self, taker: Taker | None) -> None:
        """While `next_chunk` is awaited, offer new parts to the taker first; None ends this."""
        if not self._closed:
            self._connection.taker = taker

    @property
    def is_read(self) -> bool:
        """True if all of it was taken."""
        return self._connection.is_read

    async def read(self) -> bytes:
        """The whole body. Raises as `next_chunk` does."""
        parts: list[bytes] = []
        while chunk := await self.next_chunk():
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Give the connection back after a whole body. Otherwise drop it, which cancels the engine's work."""
        if self._closed:
            return
        self._closed = True
        if self._connection.finish():
            self._origin.give_back(self._connection)
        else:
            self._connection.abort()


def _head(method: str, origin: Origin, path: str, headers: Mapping[str, str], last: str = "") -> bytes:
    """The head of a request. Raises ValueError if a header's value has a line end."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers):
        raise ValueError("a header's value has a line end")
    return (
        f"{method} {origin.path}{path} HTTP/1.1\r\nHost: {origin.authority}\r\nUser-Agent: apprentice\r\n"
        f"Accept-Encoding: identity\r\n{lines}{last}\r\n"
    ).encode("latin-1")


async def _refused(connection: EngineConnection) -> EngineError:
    body = b""
    try:
        async with asyncio.timeout(ERROR_BODY_SECONDS_MAX):
            while len(body) < ERROR_BODY_BYTES_MAX and (chunk := await connection.chunk()):
                body += chunk
    except (EngineError, TimeoutError):
        pass
    finally:
        connection.abort()
    retry_after = connection.headers.get(b"retry-after", b"").decode("latin-1")
    return from_status(connection.status, body[:ERROR_BODY_BYTES_MAX], retry_after or None)
