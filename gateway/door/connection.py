"""One caller's connection: uvicorn's, with bounds on what a request's head may hold and on how slowly it may come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.configuration.sections import DoorLimits
from gateway.door.wire import Scope
from gateway.errors import Problem

IDLE, HEAD, BODY = range(3)
SEPARATORS_BYTES = 4
"""What stands between a header's name and value, and behind it."""


class Door:
    """What the connections of one listener share. Its owner is the listener."""

    __slots__ = ("app", "connections", "leaving", "limits", "may_be_slow")

    def __init__(self, app: Any, limits: DoorLimits, may_be_slow: Callable[[Scope], bool]) -> None:
        """`app` answers what comes in; `may_be_slow` says whose body has limits of its own."""
        self.app = app
        self.limits = limits
        self.may_be_slow = may_be_slow
        self.connections = 0
        self.leaving = False
        """Whether each answer is the last of its connection: the gateway is about to stop."""


class Connection(HttpToolsProtocol):
    """A connection that is closed where it is one too many, or too slow; it refuses what is no HTTP, in our shape.

    A request that comes in one piece, as nearly all do, starts no timer.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        door: Door,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.app = door.app
        self._door = door
        self._slow: asyncio.TimerHandle | None = None
        self._timed = HEAD
        self._coming = IDLE
        self._came_bytes = 0
        self._head_bytes = 0
        self._problem: Problem | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it in, or refuse it where there are too many."""
        super().connection_made(transport)
        self._door.connections += 1
        if self._door.connections > self._door.limits.connections_max:
            self._refuse(Problem("overload", "Too many connections. Try again later."))
        else:
            self._slow = self.loop.call_later(self._door.limits.head_seconds_max, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._door.connections -= 1
        self._unset_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, and see that what has begun to come comes to its end in time."""
        self._came_bytes = len(data)
        super().data_received(data)
        if self._coming == IDLE:
            if self._slow is not None:
                self._unset_timer()
            return
        if self._coming == HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self._door.limits.head_bytes_max:
                self._refuse(self._too_large())
        if self._slow is None or self._timed != self._coming:
            self._set_timer()

    def on_message_begin(self) -> None:
        """For the parser only."""
        self._coming = HEAD
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """For the parser only. Raises Problem, which it takes for a fault of the caller's."""
        limits = self._door.limits
        known = self._came_bytes + self._head_bytes
        if len(self.headers) > limits.headers_max or (
            known > limits.head_bytes_max and self._size_of_head() > limits.head_bytes_max
        ):
            self._problem = self._too_large()
            raise self._problem
        self._coming = BODY
        super().on_headers_complete()
        if self._door.leaving:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """For the parser only."""
        self._coming = IDLE
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser could not read, in the shape of all errors."""
        self._refuse(self._problem or Problem("invalid_http", "What was sent is no HTTP request."))

    def _refuse(self, problem: Problem) -> None:
        if self.transport.is_closing():
            return
        if not self._answers_another():
            body = problem.body()
            headers = [*self.server_state.default_headers, *problem.headers(), (b"connection", b"close")]
            headers.append((b"content-length", b"%d" % len(body)))
            lines = [name + b": " + value + b"\r\n" for name, value in headers]
            self.transport.write(b"".join([STATUS_LINE[problem.status], *lines, b"\r\n", body]))
        self.transport.close()

    def _answers_another(self) -> bool:
        """Whether a request before what is refused is owed an answer: nothing may stand in its place or inside it."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        return bool(self.pipeline) or self._coming != BODY or self.cycle.response_started

    def _too_large(self) -> Problem:
        limits = self._door.limits
        text = f"A request has at most {limits.headers_max} headers, and a head of {limits.head_bytes_max} bytes."
        return Problem("head_too_large", text)

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + SEPARATORS_BYTES for name, value in self.headers)

    def _set_timer(self) -> None:
        self._unset_timer()
        limits, answered = self._door.limits, self.cycle is None or self.cycle.response_complete
        if self.pipeline or (self._coming == HEAD and not answered):
            return  # an answer is under way, and is not broken off for what comes behind it
        if self._coming == BODY and not answered and self._door.may_be_slow(dict(self.scope)):
            return
        seconds = limits.head_seconds_max if self._coming == HEAD else limits.body_seconds_max
        self._timed = self._coming
        self._slow = self.loop.call_later(seconds, self._too_slow)

    def _unset_timer(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _too_slow(self) -> None:
        self._slow = None
        if not self.transport.is_closing():
            self.transport.close()
