"""A small HTTP/1.1 server that can also misbehave: half a chunk, a reset, silence. Keep-alive and pipelining work."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, NoReturn, cast

import httptools

BODY_BYTES_MAX = 64 << 20
LISTEN_BACKLOG = 1024
ARRIVAL_SECONDS = 0.02
"""A reset drops what is still on its way, so that what was sent before gets this long to arrive."""

Headers = Iterable[tuple[str, str]]


class AnswerOver(Exception):
    """A fault has ended the answer, nothing more can be sent. `outcome` is how the request counts."""

    def __init__(self, outcome: Literal["done", "refused", "failed"] = "failed") -> None:
        super().__init__(outcome)
        self.outcome = outcome


@dataclass(frozen=True)
class Request:
    """A request as it came over the wire. Header names are lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    keep_alive: bool


class Exchange:
    """One request, and its answer as it is written. `begun` is true from the status line on."""

    def __init__(self, connection: _Connection, request: Request) -> None:
        self.request = request
        self.begun = False
        self.ended = False
        self._connection = connection
        self._chunked = False

    @property
    def ended_by_us(self) -> bool:
        """True where the connection was cut from this side: then the caller did not hang up."""
        return self._connection.cut

    async def begin(self, status: int, headers: Headers = (), length: int | None = None) -> None:
        """Send the status line and headers; without a length, what follows is sent in chunks."""
        self.begun, self._chunked = True, length is None
        lines = [f"HTTP/1.1 {status} {_phrase(status)}", "server: uvicorn"]
        lines += [f"{name}: {value}" for name, value in headers]
        lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
        if not self.request.keep_alive:
            lines.append("connection: close")
        await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    async def write(self, data: bytes) -> None:
        """Send a part of the body, as a chunk of its own if the answer is chunked."""
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are, and wait while the caller does not read."""
        self._connection.transport.write(data)
        await self._connection.writable.wait()

    async def end(self) -> None:
        """Send the last chunk; the connection serves the next request."""
        self.ended = True
        if self._chunked:
            await self.raw(b"0\r\n\r\n")

    async def whole(
        self, status: int, body: bytes | Mapping[str, Any], headers: Headers = (), content_type: str = ""
    ) -> None:
        """Send a whole answer; a mapping goes out as JSON."""
        if not isinstance(body, bytes):
            body = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
            content_type = content_type or "application/json"
        kinds = [("content-type", content_type)] if content_type else []
        await self.begin(status, [*kinds, *headers], len(body))
        await self.write(body)
        await self.end()

    async def half_chunk(self, data: bytes) -> None:
        """Announce a part of the body, and send half of it."""
        announced = b"%x\r\n" % len(data) if self._chunked else b""
        await self.raw(announced + data[: len(data) // 2])

    async def hang(self) -> NoReturn:
        """Say nothing until the caller gives up."""
        await asyncio.Event().wait()
        raise AssertionError("the caller's hang-up cancels this")

    async def close(self) -> NoReturn:
        """Close the connection as the system does for a process that died: what was sent arrives, then the end."""
        self._connection.cut = True
        self._connection.transport.close()
        raise AnswerOver

    async def reset(self) -> NoReturn:
        """Reset the connection (RST)."""
        await asyncio.sleep(ARRIVAL_SECONDS)
        self._connection.cut = True
        peer = self._connection.transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.transport.abort()
        raise AnswerOver


class _Connection(asyncio.Protocol):
    """Reads requests one after another; each is answered in a task, which a hang-up cancels."""

    def __init__(self, listener: HttpListener) -> None:
        # for the connection's whole life
        self.transport: asyncio.Transport
        self.writable = asyncio.Event()
        self.cut = False
        self._listener = listener
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        # for the request being read
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.writable.set()
        self._listener.connections.add(self)
        self._listener.connections_opened += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.connections.discard(self)
        self.writable.set()
        if self._task is not None and not self.cut:
            self._task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()

    def drop(self) -> asyncio.Task[None] | None:
        """Drop the connection and what it was answering."""
        self.cut = True
        self.transport.abort()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body = b"", {}, bytearray()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > BODY_BYTES_MAX:
            self.drop()

    def on_message_complete(self) -> None:
        keep_alive = self._parser.should_keep_alive()
        path, _, query = self._url.decode("latin-1").partition("?")
        method = self._parser.get_method().decode()
        self._waiting.append(Request(method, path, query, self._headers, bytes(self._body), keep_alive))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._answer_all())

    async def _answer_all(self) -> None:
        while self._waiting and not self.transport.is_closing():
            exchange = Exchange(self, self._waiting.popleft())
            try:
                await self._listener.handle(exchange)
            except AnswerOver:
                pass
            except Exception:
                self._listener.crashes.append(traceback.format_exc())
                if not exchange.begun:
                    await exchange.whole(500, b"Internal Server Error", content_type="text/plain")
            if not exchange.ended or not exchange.request.keep_alive:
                self.cut = True
                self.transport.close()
                return


class HttpListener:
    """Listens on one port for its whole life, also while it is stopped: nobody else gets the port in between."""

    def __init__(
        self, handle: Callable[[Exchange], Awaitable[None]], host: str, port: int, tls: ssl.SSLContext | None = None
    ) -> None:
        self.handle = handle
        self.connections: set[_Connection] = set()
        self.connections_opened = 0
        self.crashes: list[str] = []
        """Tracebacks of bugs in `handle` itself."""
        self._host = host
        self._tls = tls
        self._reserved = _bound(host, port)
        self.port: int = self._reserved.getsockname()[1]
        self._listener: asyncio.Server | None = None

    @property
    def listening(self) -> bool:
        """True while connections are accepted; else they are refused."""
        return self._listener is not None

    async def start(self) -> None:
        """Listen."""
        assert self._listener is None, "the server is started once"
        loop = asyncio.get_running_loop()
        listening = _bound(self._host, self.port)
        self._listener = await loop.create_server(
            lambda: _Connection(self), sock=listening, backlog=LISTEN_BACKLOG, ssl=self._tls
        )

    async def stop(self) -> None:
        """Refuse new connections and drop all that are open, at once."""
        server, self._listener = self._listener, None
        if server is not None:
            server.close()
        tasks = [task for connection in list(self.connections) if (task := connection.drop()) is not None]
        own = asyncio.current_task()
        await asyncio.gather(*(task for task in tasks if task is not own), return_exceptions=True)

    def release(self) -> None:
        """Give the port back."""
        self._reserved.close()


def _bound(host: str, port: int) -> socket.socket:
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each answer waits 40 ms for an ACK
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    bound.setblocking(False)
    return bound


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
