"""The HTTP server side alone, on a real socket: connections in front of a small application of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from uvicorn.server import ServerState

from gateway.callers import Caller
from gateway.configuration.sections import DoorLimits
from gateway.errors import Problem
from gateway.server.connection import Connection
from gateway.server.exchange import Exchange
from gateway.server.listener import Address, Listener
from gateway.server.shared_capacity import SharedCapacity

KEY = "Bearer sk-app-abcdefghijkl-secret"
CALLER = Caller("abcdefghijkl", "someone", "caller", "", frozenset({"*"}))
ADMIN_KEY = "Bearer sk-app-abcdefghijkm-secret"
ADMIN = Caller("abcdefghijkm", "an admin", "admin", "", frozenset({"*"}))


async def echo(exchange: Exchange) -> None:
    """Answer with the request's method, path and body."""
    body = await exchange.body(1 << 20)
    said = b"%b %b %b" % (exchange.method.encode(), exchange.path, body)
    await exchange.whole(200, [(b"content-type", b"text/plain")], said)


@dataclass
class Answers:
    """The final answers on a connection until it was closed: status and body of each; interim ones are passed over."""

    raw: bytes
    statuses: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rest = self.raw
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            status = int(first.split()[1])
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            if status < 200:
                continue
            body = b""
            if headers.get("transfer-encoding") == "chunked":
                size = -1
                while size:
                    line, _, rest = rest.partition(b"\r\n")
                    size = int(line, 16)
                    body, rest = body + rest[:size], rest[size + 2 :]
            elif "content-length" in headers:
                length = int(headers["content-length"])
                body, rest = rest[:length], rest[length:]
            else:
                body, rest = rest, b""
            self.statuses.append(status)
            self.bodies.append(body)
            self.headers.append(headers)


@dataclass
class Listening:
    """An application: `key_for_all` lets in requests without a key, as their holder."""

    respond: Callable[[Exchange], Awaitable[None]] = echo
    key_for_all: bool = False
    limits: DoorLimits = field(default_factory=DoorLimits)
    bodies_bytes_max: int = 1 << 20
    slow_bodies: bool = False
    refusals: list[str] = field(default_factory=list)
    opened: list[Exchange] = field(default_factory=list)
    listener: Listener | None = None

    def identify(self, exchange: Exchange) -> Caller:
        authorization = exchange.header("authorization")
        if authorization == ADMIN_KEY:
            return ADMIN
        if authorization == KEY or self.key_for_all:
            return CALLER
        raise Problem("invalid_api_key", "There is no API key.")

    def answer(self, exchange: Exchange) -> Callable[[Exchange], Awaitable[None]]:
        self.opened.append(exchange)
        return self.respond

    def may_be_slow(self, _: Exchange) -> bool:
        return self.slow_bodies

    def refused(self, _: Exchange, problem: Problem) -> None:
        self.refusals.append(problem.code)

    @property
    def connections(self) -> int:
        """Connections that are open."""
        assert self.listener is not None
        return self.listener.connections

    @property
    def body_bytes(self) -> int:
        """Bytes of bodies that are held."""
        assert self.listener is not None
        return self.listener.bodies.taken


@asynccontextmanager
async def listening(app: Listening) -> AsyncIterator[int]:
    """Run it for as long as the block does; gives the port. At the end nothing may be held."""
    state = ServerState()
    budget = SharedCapacity(app.bodies_bytes_max)
    app.listener = listener = Listener(Address("tests", "127.0.0.1", 0), app.limits, budget, state, app)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(listener), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        for task in list(state.tasks):
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(30):
                while state.connections or state.tasks:
                    await asyncio.sleep(0.01)
        assert not state.connections, "a connection is left"
        assert budget.taken == 0, "bytes of bodies are left"
