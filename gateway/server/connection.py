"""One caller's connection: HTTP/1.1 under uvicorn's server; tests/gateway/server/test_rfc9112.py is its table of tests.

Requests are answered in their order of arrival. The bytes after a request are read once that request is answered. A
request that is not HTTP, too large, too slow or without a key is refused here, before the application gets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import socket
import sys
import termios
from collections import deque
from typing import Literal, cast

from starlette.requests import ClientDisconnect

from gateway.errors import Problem
from gateway.server.asgi_messages import HungUp
from gateway.server.exchange import End, Exchange, write_head
from gateway.server.listener import RESERVED_SECONDS_MAX, Listener, Standing, network_of, refuse_connection
from gateway.server.reader import RequestReader
from serving.wakeable import Wakeable

log = logging.getLogger(__name__)
PIECE_BYTES = 16_384
"""Bytes that are parsed at once. They bound the number of parsed requests that wait for their answer."""
LINGER_SECONDS = 2.0
"""Time after the last answer in which received bytes are dropped, since a reset could overtake the answer."""
REFUSALS_MAX = 100
"""Number of requests refused by their head after which their connection is closed."""
PROBE_AFTER_SECONDS = 0.3
"""Time until a caller that sends no more, and still waits, gets an interim answer. A caller that left resets it."""
LOOK_SECONDS = 0.2
"""Time between two checks whether a caller has reset the connection, or has read its last answer."""
TCP_INFO_CLOSED = 7

Waiting = Literal["idle", "head", "body", "reserved", "slow", "nothing"]
"""Purposes of a connection's timer. `slow`: the reader of the body limits its time. `nothing`: an answer is running."""


class Connection(Wakeable, asyncio.Protocol):
    """One connection. What connections share belongs to its listener."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(asyncio.get_running_loop())
        self._listener = listener
        self.bodies = listener.bodies
        """The room for bodies."""
        # the connection
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._host = ""
        self._standing: Standing = "none"
        self._closing = False
        """True if nothing more is read or answered."""
        self._half_closed = False
        """True if the caller sends no more."""
        self._probed = False
        self._write_paused = False
        self._read_paused = False
        self._sent_bytes = 0
        self._taken_bytes = 0
        """Bytes that the caller's side had taken at the last check."""
        # time: one timer for the present wait, and one for a caller that does not read
        self._waiting: Waiting = "nothing"
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        # requests
        self._reader = RequestReader(self, listener.limits, self._opened)
        self._unparsed = b""
        """Bytes that are not parsed yet."""
        self._parse_is_due = False
        self._queue: deque[tuple[Exchange, Problem | None]] = deque()
        self._current: Exchange | None = None
        """The request that is being answered."""
        self._refusals = 0
        self._advancing = False
        """True while `_advance` begins requests."""
        self._last: Problem | None = None
        """The fault after the last request: sent once all requests are answered."""

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the connection, or refuse it if there are too many."""
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._host = network_of(peer[0]) if isinstance(peer, tuple) else ""
        self._standing = self._listener.enter(self, self._host)
        if self._standing == "none":
            self._end(refuse_connection())
        elif self._standing == "reserved":
            self._wait_for("reserved", RESERVED_SECONDS_MAX)
        else:
            self._wait_for("head", self._listener.limits.head_seconds_max)

    def connection_lost(self, exc: Exception | None) -> None:
        """End everything: no caller reads an answer now."""
        self._closing = True
        self._listener.leave(self, self._host, self._standing)
        for timer in (self._timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._unread_timer = None
        self._unparsed = b""
        if self._current is not None:
            self._current.lost()
        for waiting, _ in self._queue:
            waiting.release()
        self._queue.clear()
        self._wake()

    def eof_received(self) -> bool:
        """The caller sends no more, but may still wait for answers. Returns True if the connection stays open."""
        self._half_closed = True
        waits = bool(self._queue or self._unparsed) or (self._current is not None and not self._breaks_off())
        if self._closing or not waits or self._listener.tls:  # TLS has no half-closed connections
            self._close()
            return not (self._listener.tls or self._transport.is_closing())
        self.loop.call_later(PROBE_AFTER_SECONDS, self._look_whether_gone)
        return True

    def data_received(self, data: bytes) -> None:
        """Parse the bytes, or keep them while requests before them wait for their answers."""
        if self._closing:
            return
        if self._unparsed:
            self._unparsed += data
        else:
            self._parse(data)

    def pause_writing(self) -> None:
        """The caller reads more slowly than the gateway sends."""
        self._write_paused = True
        if self._unread_timer is None:
            self._watch_reader()

    def resume_writing(self) -> None:
        """The caller has read the bytes that were waiting."""
        self._write_paused = False
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        self._wake()
        if self._queue or self._unparsed:
            self._go_on()

    def shutdown(self) -> None:
        """Close the connection after the present answer. Called by the server."""
        if self._current is None:
            self._close()
        else:
            self._current.keep_alive = False

    # Used by an exchange.

    @property
    def ends(self) -> tuple[End, End]:
        """The addresses of the connection's two ends: the caller's, and the gateway's own."""
        peer, own = (self._transport.get_extra_info(name) for name in ("peername", "sockname"))
        return (peer[:2] if isinstance(peer, tuple) else None), (own[:2] if isinstance(own, tuple) else None)

    def send(self, data: bytes) -> None:
        """Write bytes to the caller. Does nothing if the connection is closing."""
        if not self._transport.is_closing():
            self._sent_bytes += len(data)
            self._transport.write(data)

    @property
    def flows(self) -> bool:
        """True if the connection is open and the caller reads fast enough."""
        return not self._write_paused and not self._transport.is_closing()

    async def writable(self) -> None:
        """Wait while the caller reads slowly."""
        while self._write_paused and not self._transport.is_closing():
            await self._wait()

    def server_headers(self) -> bytes:
        """The header lines of every answer."""
        return self._listener.server_headers()

    def read_on(self) -> None:
        """Allow more of the present request's body to be read."""
        if self._read_paused:
            self._see_to_reading()

    def finished(self, exchange: Exchange) -> None:
        """Go on after a complete answer: with the next request, or with the end of the connection."""
        if self._closing or exchange is not self._current:
            return
        self._current = None
        if not exchange.keep_alive:
            self._end(None)
            return
        self._wait_for("idle", self._listener.limits.keep_alive_seconds_max)
        if not self._advancing:
            self._go_on()

    # Requests, in their order.

    def _parse(self, data: bytes) -> None:
        """Parse one piece of the received bytes, or the rest of a body. Other connections run before the next piece."""
        if data and not self._queue and not self._write_paused and self._last is None:
            reading = self._reader.exchange
            size = max(PIECE_BYTES, (reading.bytes_left or 0) if reading is not None else 0)
            piece, data = (data, b"") if len(data) <= size else (data[:size], data[size:])
            try:
                self._reader.feed(piece)
            except Problem as problem:
                self._stop_reading(problem)
        self._unparsed = b"" if self._closing or self._last is not None else data
        if self._unparsed and not self._queue and not self._write_paused:
            self._parse_later()
        self._see_to_reading()
        self._see_to_time()

    def _opened(self, exchange: Exchange, problem: Problem | None) -> None:
        """Take a request whose head is complete: answer it, or let it wait for its turn."""
        listener = self._listener
        if self._closing:  # no request is answered after the last one
            exchange.ended = True
            return
        if problem is not None or listener.leaving or self._standing != "open":
            exchange.keep_alive = False  # after a faulty head, the begin of the next request is unknown
        problem = problem or listener.check_head(exchange, self._standing)
        if problem is not None:
            exchange.fault = problem  # its body is dropped as it arrives
            self._refusals += 1
            exchange.keep_alive = exchange.keep_alive and not exchange.comes_long and self._refusals < REFUSALS_MAX
            listener.application.refused(exchange, problem)
        self._queue.append((exchange, problem))
        if self._current is None and not self._advancing:
            self._advance()

    def _advance(self) -> None:
        """Begin the next request. While requests are refused at once, begin the ones after them too."""
        self._advancing = True
        while self._current is None and self._queue and not self._closing and not self._write_paused:
            self._begin(*self._queue.popleft())
        self._advancing = False

    def _begin(self, exchange: Exchange, problem: Problem | None) -> None:
        self._current = exchange
        self._waiting = "nothing"
        if problem is not None:
            exchange.refuse(problem)
            return
        task = self.loop.create_task(self._answer(exchange))
        self._listener.tasks.add(task)
        task.add_done_callback(self._listener.tasks.discard)

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self._listener.application.answer(exchange)(exchange)
            if not exchange.ended and not exchange.hung_up:
                raise RuntimeError("a request was left without the end of its answer")
        except Problem as problem:
            exchange.refuse(problem)
        except (HungUp, ClientDisconnect):
            pass  # the caller hung up
        except Exception:
            level = logging.INFO if exchange.hung_up else logging.ERROR  # the hang-up may be the cause
            log.log(level, "an address failed", extra={"path": exchange.path.decode("latin-1")[:200]}, exc_info=True)
            exchange.refuse(Problem("internal_error", "A fault of the gateway. It is logged."))
        finally:
            exchange.release()
            if not exchange.ended:  # no other answer may follow a broken one
                self._transport.abort()

    def _go_on(self) -> None:
        """Answer the waiting requests, then read on, or end the connection if no more can come."""
        self._advance()
        if self._closing or self._queue:
            return
        if self._unparsed:
            self._parse_later()
        elif self._current is None and (self._last is not None or self._half_closed):
            self._end(self._last)
        elif self._half_closed and self._breaks_off():
            self._close()
        self._see_to_reading()
        self._see_to_time()

    def _parse_later(self) -> None:
        if not self._parse_is_due:
            self._parse_is_due = True
            self.loop.call_soon(self._parse_on)

    def _parse_on(self) -> None:
        self._parse_is_due = False
        data, self._unparsed = self._unparsed, b""
        if not self._closing:
            self._parse(data)
            self._go_on()

    def _breaks_off(self) -> bool:
        """True if the present request's body is not complete."""
        return self._current is not None and not self._current.complete and self._current.fault is None

    def _stop_reading(self, problem: Problem) -> None:
        """Stop reading, since no further request can be read. Answer the earlier requests, and close."""
        self._last = problem
        reading = self._reader.exchange
        if reading is not None and not reading.ended:
            reading.fail(problem)
        elif self._current is None:
            self._end(problem if reading is None else None)

    # Ends.

    def _end(self, problem: Problem | None) -> None:
        """Send the last answer, if any, and close after the caller or LINGER_SECONDS. Received bytes are dropped."""
        if self._closing:
            return
        self._closing = True
        if problem is not None:
            body = problem.body()
            headers = [*problem.headers(), (b"content-length", b"%d" % len(body))]
            self.send(write_head(problem.status, self.server_headers(), headers, b"connection: close\r\n") + body)
        half_open = self._transport.can_write_eof()
        reads = self._reader.in_head or self._reader.exchange is not None
        if self._half_closed or not (half_open or reads):  # TLS shows its end only by closing
            self._close()
            return
        if half_open and not self._transport.is_closing():
            self._transport.write_eof()
        self._set_timer(LINGER_SECONDS, self._close)
        self._see_to_reading()

    def _close(self) -> None:
        """Close the connection when the caller has read all that was sent, or has read nothing for too long."""
        self._closing = True
        if self._write_paused and not self._transport.is_closing():  # `_cut` ends it where nothing of that is read
            self._set_timer(LOOK_SECONDS, self._close)
            return
        self._transport.close()
        self._set_timer(self._listener.limits.unread_seconds_max, self._transport.abort)

    def _watch_reader(self) -> None:
        """Check after `unread_seconds_max` whether the caller has read anything."""
        self._taken_bytes = self._count_taken()
        self._unread_timer = self.loop.call_later(self._listener.limits.unread_seconds_max, self._cut)

    def _cut(self) -> None:
        """End the connection of a caller that has read nothing for too long."""
        if self._count_taken() > self._taken_bytes:
            self._watch_reader()
            return
        log.info("a caller did not read its answer: the connection was closed", extra={"address": self._host})
        self._transport.abort()

    def _count_taken(self) -> int:
        """Bytes that the caller's machine has acknowledged.

        The kernel's queue is counted too: it takes further bytes only once a third of its megabytes is free.
        """
        peer: socket.socket | None = self._transport.get_extra_info("socket")
        queued = b""
        if peer is not None:
            with contextlib.suppress(OSError, ValueError):  # it is closed already
                queued = fcntl.ioctl(peer.fileno(), termios.TIOCOUTQ, bytes(4))
        return self._sent_bytes - self._transport.get_write_buffer_size() - int.from_bytes(queued, sys.byteorder)

    def _look_whether_gone(self) -> None:
        """Check whether a caller that sends no more has gone: if so, it resets the connection at an interim answer.

        There is no other way to know. Only the kernel sees the reset, since nothing more is read.
        """
        if self._transport.is_closing() or self._current is None:
            return
        unanswered = not self._current.begun
        if self._is_reset() or (unanswered and self._current.http10):  # HTTP/1.0 knows no interim answers
            self._transport.abort()
            return
        if not self._probed:
            self.send(self._current.probe())
        self._probed = True
        self.loop.call_later(LOOK_SECONDS, self._look_whether_gone)

    def _is_reset(self) -> bool:
        peer: socket.socket | None = self._transport.get_extra_info("socket")
        if peer is None or not hasattr(socket, "TCP_INFO"):
            return False
        with contextlib.suppress(OSError):
            return peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_INFO_CLOSED
        return True

    # Flow and time.

    def _see_to_reading(self) -> None:
        """Pause reading while bytes wait behind the present request, or while much of its body waits for its reader."""
        reading = self._reader.exchange
        wanted = not self._closing and (bool(self._unparsed) or (reading is not None and reading.reads_ahead))
        if wanted != self._read_paused and not self._transport.is_closing():
            self._read_paused = wanted
            (self._transport.pause_reading if wanted else self._transport.resume_reading)()

    def _see_to_time(self) -> None:
        """Set the time limit for a head or body that has begun, unless an answer is running."""
        if self._closing:
            return
        reading, limits = self._reader.exchange, self._listener.limits
        if reading is not None:
            if self._waiting not in ("body", "slow") and not self._queue:
                if self._listener.application.may_be_slow(reading):
                    self._waiting = "slow"
                else:
                    self._wait_for("body", limits.body_seconds_max)
        elif self._current is not None:
            self._waiting = "nothing"
        elif self._reader.in_head and self._waiting in ("idle", "body", "slow"):
            self._wait_for("head", limits.head_seconds_max)
        elif self._waiting in ("body", "slow"):
            self._wait_for("idle", limits.keep_alive_seconds_max)

    def _wait_for(self, what: Waiting, seconds: float) -> None:
        self._waiting = what
        self._due = self.loop.time() + seconds
        if self._timer is None or self._timer.when() > self._due:
            self._set_timer(seconds, self._on_timer)

    def _set_timer(self, seconds: float, then: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, then)  # type: ignore[arg-type]

    def _on_timer(self) -> None:
        self._timer = None
        if self._waiting in ("slow", "nothing"):
            return
        left = self._due - self.loop.time()
        if left > 0:
            self._set_timer(left, self._on_timer)
        elif self._waiting == "reserved":
            self._end(refuse_connection())
        elif self._current is None:
            self._end(None)
        else:
            seconds = self._listener.limits.body_seconds_max
            text = f"The body did not come within {seconds:g} s (limits.body_seconds_max). Send it again, in less time."
            self._stop_reading(Problem("body_too_slow", text))
