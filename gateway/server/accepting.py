"""A listening socket shared by processes. The process with the fewest connections accepts the next one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable

from serving.shared_memory import SharedMemory

log = logging.getLogger(__name__)
YIELD_SECONDS = 0.01
"""Time for a process with fewer connections to accept one. After that, any process accepts it."""
AT_ONCE_SECONDS = 0.002
"""A connection that still waits this soon after YIELD_SECONDS was accepted by no other process."""
FAILED_SECONDS = 0.5
BACKLOG = 2048


class Accepting:
    """One process's part in a shared listening socket. It is closed once; its accepted connections stay open."""

    def __init__(
        self,
        listening: socket.socket,
        connection: Callable[[], asyncio.Protocol],
        memory: SharedMemory,
        open_connections: Callable[[], int],
        tls: ssl.SSLContext | None,
        handshake_seconds_max: float | None,
    ) -> None:
        self.sockets = (listening,)
        self._listening = listening
        self._connection = connection
        self._memory = memory
        self._counts = memory.row("connections")
        self._open_connections = open_connections
        self._tls = tls
        self._handshake_seconds_max = handshake_seconds_max
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._resumed_at = float("-inf")
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._resume()

    def close(self) -> None:
        """Accept no more connections here. The socket still listens for the other processes."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listening.fileno() >= 0:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._counts[self._memory.process] = 0

    async def wait_closed(self) -> None:
        """Return at once: connections end by themselves."""

    def _accept(self) -> None:
        nobody_came = time.monotonic() - self._resumed_at < AT_ONCE_SECONDS
        if not nobody_came and not self._is_our_turn():
            self._rest(YIELD_SECONDS)
            return
        self._resumed_at = float("-inf")
        try:
            accepted, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was faster, or the caller has gone
        except OSError as error:
            log.error("no connection can be taken: %s", error)
            self._rest(FAILED_SECONDS)
            return
        self._counts[self._memory.process] += 1
        task = asyncio.ensure_future(self._open(accepted))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _is_our_turn(self) -> bool:
        """True if no other process has fewer connections. Counts are stored plus 1: 0 means no process."""
        own = len(self._opening) + self._open_connections() + 1
        self._counts[self._memory.process] = own
        return all(not count or own <= count for count in self._counts)

    def _rest(self, seconds: float) -> None:
        self._loop.remove_reader(self._listening)
        self._pause = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if self._pause is not None:
            self._pause = None
            self._resumed_at = time.monotonic()
        self._counts[self._memory.process] = self._open_connections() + 1
        self._loop.add_reader(self._listening, self._accept)

    async def _open(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        with contextlib.suppress(OSError):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._loop.connect_accepted_socket(
                self._connection,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_seconds_max if self._tls else None,
            )
        except (OSError, ssl.SSLError) as error:
            log.debug("a connection was not opened: %s", error)
            accepted.close()
