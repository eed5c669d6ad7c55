"""One engine's address, and its idle connections."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from serving.engine_client import EngineConnection

IDLE_CONNECTIONS_MAX = 1024
KEEP_ALIVE_SECONDS = 4.0
"""Less than vLLM's own 5 s: a connection that the engine closes just as it is used costs another try."""


class Origin:
    """One engine's address, and the idle connections to it. All its paths begin with `path`.

    `tls` gives the present context of an https:// address, for each new connection.
    """

    def __init__(self, engine_url: str, tls: Callable[[str], ssl.SSLContext]) -> None:
        parts = urlsplit(engine_url)
        self.tls: Callable[[], ssl.SSLContext | None] = (
            partial(tls, engine_url) if parts.scheme == "https" else lambda: None
        )
        self.path = parts.path.rstrip("/")
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.authority = parts.netloc.rpartition("@")[2]
        self.idle: list[EngineConnection] = []
        """Idle connections; those used last are at the end."""
        self._sweeper: asyncio.TimerHandle | None = None

    def take(self, now: float) -> EngineConnection | None:
        """The idle connection that was used last, if it is open; None if there is none. Closes those kept too long."""
        while self.idle:
            connection = self.idle.pop()
            if connection.open and now - connection.idle_since < KEEP_ALIVE_SECONDS:
                return connection
            connection.abort()
        return None

    def give_back(self, connection: EngineConnection) -> None:
        """Keep a connection for the next request, for KEEP_ALIVE_SECONDS; close it if too many are kept."""
        if connection.open and len(self.idle) < IDLE_CONNECTIONS_MAX:
            connection.idle_since = time.monotonic()
            self.idle.append(connection)
            if self._sweeper is None:
                self._sweeper = connection.loop.call_later(KEEP_ALIVE_SECONDS, self._sweep, connection.loop)
        else:
            connection.abort()

    def close(self) -> None:
        """Close the idle connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        while self.idle:
            self.idle.pop().abort()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections that were idle for too long, and those that the engine has closed."""
        oldest = time.monotonic() - KEEP_ALIVE_SECONDS
        idle: list[EngineConnection] = []
        for connection in self.idle:
            if connection.open and connection.idle_since > oldest:
                idle.append(connection)
            else:
                connection.abort()
        self.idle = idle
        delay = idle[0].idle_since - oldest if idle else 0.0
        self._sweeper = loop.call_later(delay, self._sweep, loop) if idle else None
