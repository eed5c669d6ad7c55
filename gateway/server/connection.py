"""One caller's connection: HTTP/1.1 under uvicorn's server; tests/gateway/server/test_rfc9112.py is its table of tests.

Requests are answered in the order in which they came; what comes behind one is read once that one is answered. What is
not HTTP, too large, too slow or without a key is refused here, before an application hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
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
"""Bytes that are parsed at once: no more requests than fit into them wait, parsed, for their answer."""
LINGER_SECONDS = 2.0
"""Time for which bytes are dropped once the last answer is sent: a reset could overtake the answer."""
REFUSALS_MAX = 100
"""Requests that are refused by their head before their connection is closed."""
PROBE_AFTER_SECONDS = 0.3
"""Time until a caller that sends no more, and has no answer yet, gets an interim one: who has gone resets that."""
LOOK_SECONDS = 0.2
"""Time between two looks whether it has, or has read its last answer."""
TCP_INFO_CLOSED = 7

Waiting = Literal["idle", "head", "body", "reserved", "slow", "nothing"]
"""Purposes of a connection's timer: nothing while an answer is under way, or while a body takes its own time (slow)."""


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
        """Bytes that the caller's side had taken when it was last looked at."""
        # time: one timer for whatever it waits for, and one for a caller that does not read
        self._waiting: Waiting = "nothing"
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        # requests
        self._reader = RequestReader(self, listener.limits, self._opened)
        self._unparsed = b""
        """Bytes behind the requests that wait, or not parsed yet."""
        self._parse_is_due = False
        self._queue: deque[tuple[Exchange, Problem | None]] = deque()
        self._current: Exchange | None = None
        """The request that is being answered."""
        self._refusals = 0
        self._advancing = False
        """True if requests are being begun, one after the other."""
        self._last: Problem | None = None
        """The fault behind all requests: sent once they are answered."""

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it in, or refuse it where there are too many."""
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
        """It is over: nobody reads an answer any more."""
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
        """The caller sends no more; it may wait for its answers all the same. Whether the connection stays open."""
        self._half_closed = True
        waits = bool(self._queue or self._unparsed) or (self._current is not None and not self._breaks_off())
        if self._closing or not waits or self._listener.tls:  # TLS has no half of a connection
            self._close()
            return not (self._listener.tls or self._transport.is_closing())
        self.loop.call_later(PROBE_AFTER_SECONDS, self._look_whether_gone)
        return True

    def data_received(self, data: bytes) -> None:
        """Read on, as far as requests may be read ahead of their answers."""
        if self._closing:
            return
        if self._unparsed:
            self._unparsed += data
        else:
            self._parse(data)

    def pause_writing(self) -> None:
        """The caller reads more slowly than it is answered."""
        self._write_paused = True
        if self._unread_timer is None:
            self._watch_reader()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._write_paused = False
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        self._wake()
        if self._queue or self._unparsed:
            self._go_on()

    def shutdown(self) -> None:
        """For the server: close it once what is being answered has been."""
        if self._current is None:
            self._close()
        else:
            self._current.keep_alive = False

    # What an exchange uses.

    @property
    def ends(self) -> tuple[End, End]:
        """The addresses of its two ends: the caller's, and the gateway's own."""
        peer, own = (self._transport.get_extra_info(name) for name in ("peername", "sockname"))
        return (peer[:2] if isinstance(peer, tuple) else None), (own[:2] if isinstance(own, tuple) else None)

    def send(self, data: bytes) -> None:
        """Write bytes to the caller, or nothing where it has gone."""
        if not self._transport.is_closing():
            self._sent_bytes += len(data)
            self._transport.write(data)

    @property
    def flows(self) -> bool:
        """True if the caller is there and reads what it is sent."""
        return not self._write_paused and not self._transport.is_closing()

    async def writable(self) -> None:
        """Wait while the caller reads slowly."""
        while self._write_paused and not self._transport.is_closing():
            await self._wait()

    def server_headers(self) -> bytes:
        """The header lines of every answer."""
        return self._listener.server_headers()

    def read_on(self) -> None:
        """The body of the present request may be read further."""
        if self._read_paused:
            self._see_to_reading()

    def finished(self, exchange: Exchange) -> None:
        """An answer is whole: the next request has its turn, or the connection ends."""
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
        """Parse what has come: a piece of it, or what a body still lacks. Others have their turn before the rest."""
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
        """A request's head is there: it is answered, or has to wait for its turn."""
        listener = self._listener
        if self._closing:  # it comes behind the last request that is answered
            exchange.ended = True
            return
        if problem is not None or listener.leaving or self._standing != "open":
            exchange.keep_alive = False  # after a faulty head nobody knows where the next request begins
        problem = problem or listener.check_head(exchange, self._standing)
        if problem is not None:
            exchange.fault = problem  # its body is dropped as it comes
            self._refusals += 1
            exchange.keep_alive = exchange.keep_alive and not exchange.comes_long and self._refusals < REFUSALS_MAX
            listener.application.refused(exchange, problem)
        self._queue.append((exchange, problem))
        if self._current is None and not self._advancing:
            self._advance()

    def _advance(self) -> None:
        """Begin the next request, and those behind it, as long as each is refused at once."""
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
            pass  # it failed for want of a caller
        except Exception:
            level = logging.INFO if exchange.hung_up else logging.ERROR  # it may have failed for want of a caller
            log.log(level, "an address failed", extra={"path": exchange.path.decode("latin-1")[:200]}, exc_info=True)
            exchange.refuse(Problem("internal_error", "A fault of the gateway. It is logged."))
        finally:
            exchange.release()
            if not exchange.ended:  # half an answer is followed by nothing
                self._transport.abort()

    def _go_on(self) -> None:
        """Answer the requests that wait, read on behind them, or end where there is nothing more to come."""
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
        """True if the present request lacks a part of its body, as it must where no more comes."""
        return self._current is not None and not self._current.complete and self._current.fault is None

    def _stop_reading(self, problem: Problem) -> None:
        """Stop reading, since no request can be read from here: answer what came before once, and close."""
        self._last = problem
        reading = self._reader.exchange
        if reading is not None and not reading.ended:
            reading.fail(problem)
        elif self._current is None:
            self._end(problem if reading is None else None)

    # Ends.

    def _end(self, problem: Problem | None) -> None:
        """Send the last answer, if there is one more, and close once the caller has: what still comes is dropped."""
        if self._closing:
            return
        self._closing = True
        if problem is not None:
            body = problem.body()
            headers = [*problem.headers(), (b"content-length", b"%d" % len(body))]
            self.send(write_head(problem.status, self.server_headers(), headers, b"connection: close\r\n") + body)
        half_open = self._transport.can_write_eof()
        reads = self._reader.in_head or self._reader.exchange is not None
        if self._half_closed or not (half_open or reads):  # TLS can't tell its end but by closing
            self._close()
            return
        if half_open and not self._transport.is_closing():
            self._transport.write_eof()
        self._set_timer(LINGER_SECONDS, self._close)
        self._see_to_reading()

    def _close(self) -> None:
        """Close it as soon as what was sent is read, or too long is not."""
        self._closing = True
        if self._write_paused and not self._transport.is_closing():  # `_cut` ends it where nothing of that is read
            self._set_timer(LOOK_SECONDS, self._close)
            return
        self._transport.close()
        self._set_timer(self._listener.limits.unread_seconds_max, self._transport.abort)

    def _watch_reader(self) -> None:
        """Look again, after the time in which a caller has to read something, whether it has."""
        self._taken_bytes = self._sent_bytes - self._transport.get_write_buffer_size()
        self._unread_timer = self.loop.call_later(self._listener.limits.unread_seconds_max, self._cut)

    def _cut(self) -> None:
        """End the connection of a caller that has read nothing for too long."""
        if self._sent_bytes - self._transport.get_write_buffer_size() > self._taken_bytes:
            self._watch_reader()
            return
        log.info("a caller did not read its answer: the connection was closed", extra={"address": self._host})
        self._transport.abort()

    def _look_whether_gone(self) -> None:
        """See whether a caller that sends no more has gone: who waits takes an interim answer, who has gone resets.

        Nothing else tells the two apart; and only the kernel knows of the reset, since there is no more to read.
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
        """Read no further while requests wait behind the present one, or its body waits to be read."""
        reading = self._reader.exchange
        wanted = not self._closing and (bool(self._unparsed) or (reading is not None and reading.reads_ahead))
        if wanted != self._read_paused and not self._transport.is_closing():
            self._read_paused = wanted
            (self._transport.pause_reading if wanted else self._transport.resume_reading)()

    def _see_to_time(self) -> None:
        """See that what has begun to come comes to its end in time, unless an answer is under way."""
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
