"""Admission: places for running requests, and fair queues for requests that wait for a place."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self, assert_never

from gateway.configuration.settings import LimitSettings
from gateway.errors import Problem
from gateway.limits.fair_queue import FairQueue, Wanted
from gateway.server.shared_capacity import SharedCapacity
from monitoring.metrics import Meters

log = logging.getLogger(__name__)
Priority = Literal["interactive", "batch"]
Stage = Literal["open", "leaving", "draining", "over"]
"""The stages of the gateway until its stop.

- `open`: it accepts requests.
- `leaving`: it stops soon. It reports that it is not ready, but accepts requests until it drains.
- `draining`: it accepts no requests, and running requests finish.
- `over`: it ends the requests that still run.
"""
Cause = Literal["queue_full", "queue_timeout", "caller_busy", "draining"]
LOOK_AGAIN_SECONDS = 0.25
"""Time between two looks of a request that waits for a replica, since one may have started or ended its rest."""
HANDED_KEPT = 64
RETRY_AFTER_SECONDS_MAX = 60.0


class Place:
    """One request's place, or its wait for a place. The holder gives it back once, at the end of its block."""

    __slots__ = (
        "_admission",
        "_called",
        "caller",
        "in_line",
        "is_taken",
        "priority",
        "queued_at",
        "waited_until",
        "wanted",
    )

    def __init__(self, admission: Admission, caller: str, priority: Priority, is_taken: bool) -> None:
        self._admission = admission
        self._called: asyncio.Future[bool] | None = None
        self.caller = caller
        self.priority: Priority = priority
        self.is_taken = is_taken
        """True if the request has a place in the gateway; else `turn` waits for one."""
        self.queued_at: float | None = None
        """Begin of its waiting (monotonic seconds); None if it never waited."""
        self.waited_until = 0.0
        self.wanted: Wanted = None
        self.in_line = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.give_back(self)

    async def turn(self, wanted: Wanted = None) -> None:
        """Wait for a place in the gateway, or until a wanted replica may have room: the request then chooses again.

        A request that looks before it is called stays in the queue, and its caller keeps its turn.

        Raises Problem: 429 if the caller's share of the queue is full; 503 if the queue is full, or the wait is too
        long.
        """
        admission, now = self._admission, time.monotonic()
        if self.queued_at is None:
            admission.see_that_it_may_wait(self)
            self.queued_at = now
        left = self.queued_at + admission.queue_seconds_max - now
        if left <= 0:
            raise admission.shed("queue_timeout")
        again = False
        while not again:
            seconds = left if wanted is None else min(left, LOOK_AGAIN_SECONDS)
            loop = asyncio.get_running_loop()
            self._called = loop.create_future()
            timer = loop.call_later(seconds, self.call, False)
            admission.join(self, wanted)
            try:
                again = await self._called or wanted is not None or self.is_taken
            finally:
                timer.cancel()
                self.waited_until = time.monotonic()
            left = self.queued_at + admission.queue_seconds_max - time.monotonic()
            if not again and left <= 0:
                raise admission.shed("queue_timeout")

    @property
    def waited_seconds(self) -> float:
        """Total seconds of waiting."""
        return 0.0 if self.queued_at is None else self.waited_until - self.queued_at

    def go_on(self) -> None:
        """Leave the queue. The next request is called after this one has taken its lease."""
        self._admission.leave(self)
        asyncio.get_running_loop().call_soon(self._admission.call_next)

    def call(self, by_turn: bool = True) -> None:
        """Wake the request: it is its turn, or its time is over (`by_turn` is False)."""
        if self._called is not None and not self._called.done():
            self._called.set_result(by_turn)


class Admission:
    """The places of this gateway, and the queue of requests that wait for a place or a replica.

    While places are free, it only counts. Else callers take turns, so that one caller's flood does not delay others.
    Interactive requests come before batch requests, which still get a small share of the places.
    """

    def __init__(self, limits: LimitSettings, meters: Meters, has_room: Callable[[str], bool]) -> None:
        """`has_room` returns True if the replica of this name can take one more request."""
        self.in_flight = 0
        """Requests that have a place."""
        self.waiting = 0
        self.stage: Stage = "open"
        self.bodies = SharedCapacity(limits.bodies_bytes_max)
        """Bytes of room for request bodies in memory. The reader of a body takes its room."""
        self._meters = meters
        self._has_room = has_room
        self._running: dict[str, int] = {}
        """Number of places by caller, without the requests that wait for a replica."""
        self._waiting_of: dict[str, int] = {}
        self._lines: dict[Priority, FairQueue[Place]] = {"interactive": FairQueue(), "batch": FairQueue()}
        self._waiting_inside = 0
        self._batch_due = 0.0
        self._handed: deque[float] = deque(maxlen=HANDED_KEPT)
        self._empty = asyncio.Event()
        self.apply_settings(limits)

    def apply_settings(self, limits: LimitSettings) -> None:
        """Use these limits from now on."""
        self._in_flight_max = limits.in_flight_max
        self._queue_max = limits.queue_max
        self.queue_seconds_max = limits.queue_seconds_max
        self._caller_share_max = limits.caller_share_max
        self.bodies.set_share(limits.caller_share_max)
        if (share := int(self.bodies.size_max * limits.caller_share_max)) < limits.body_bytes_max:
            text = "a body of more than %d bytes always gets 503: limits.caller_share_max leaves one key no more of the"
            text += " %d bytes of limits.bodies_bytes_max. Raise one of them, or lower limits.body_bytes_max"
            log.warning(text, share, self.bodies.size_max)
        self._batch_share_min = limits.batch_share_min
        while self.waiting and self._call(self._fits_a_place):
            pass
        if self.waiting:
            self.call_next()

    @property
    def is_closed(self) -> bool:
        """True if the gateway accepts no requests."""
        return self.stage in ("draining", "over")

    def admit(self, caller: str, priority: Priority = "interactive") -> Place:
        """A place for one request. If it is not taken yet, `turn` waits for it. Raises Problem (503) while draining."""
        if self.is_closed:
            raise self.shed("draining")
        if self.in_flight >= self._in_flight_max or self.waiting > self._waiting_inside:  # no request passes the queue
            return Place(self, caller, priority, False)
        self.in_flight += 1
        self._running[caller] = self._running.get(caller, 0) + 1
        return Place(self, caller, priority, True)

    def give_back(self, place: Place) -> None:
        """Free the place of a request that has ended. Only for Place."""
        self.leave(place)
        if place.is_taken:
            place.is_taken = False
            self.in_flight -= 1
            _count_down(self._running, place.caller)
        if place.queued_at is not None:
            self._meters.queue_seconds.observe(place.waited_seconds, place.priority)
        if self.waiting:
            self.call_next()
        elif self.is_closed and not self.in_flight:
            self._empty.set()

    def waiting_by_priority(self) -> dict[tuple[str, ...], float]:
        """Number of waiting requests by priority."""
        return {(priority,): float(len(line)) for priority, line in self._lines.items()}

    def announce_stop(self) -> None:
        """Report that the gateway is not ready any longer, since it stops soon."""
        if self.stage == "open":
            self.stage = "leaving"

    async def drain(self) -> None:
        """Accept no more requests. Returns after the last running or waiting request has left."""
        self.stage = "draining"
        if self.in_flight or self.waiting:
            await self._empty.wait()

    def end(self) -> None:
        """Enter the stage `over`: the server cancels the requests that still run."""
        self.stage = "over"

    def shed(self, cause: Cause) -> Problem:
        """Count a request that gets no place, and return its problem."""
        self._meters.requests_shed.add(1, cause)
        match cause:
            case "draining":
                return Problem("draining", "The gateway is shutting down. Try again: another one will answer.")
            case "caller_busy":
                text = "This key has as many requests waiting as it may. Send fewer at a time, or try again later."
                return Problem("caller_busy", text, None, self._retry_after_seconds())
            case "queue_full" | "queue_timeout":
                text = "The gateway, or every replica that could answer, is full. Try again later."
                return Problem("overload", text, None, self._retry_after_seconds())
            case _:
                assert_never(cause)

    def see_that_it_may_wait(self, place: Place) -> None:
        """Raise Problem if the queue, or its caller's share of it, is full. Only for Place."""
        if self.waiting >= self._queue_max:
            raise self.shed("queue_full")
        if self._waiting_of.get(place.caller, 0) >= max(1, int(self._queue_max * self._caller_share_max)):
            raise self.shed("caller_busy")

    def join(self, place: Place, wanted: Wanted) -> None:
        """Enter the queue: after a wait for a replica, before the caller's other requests. Only for Place."""
        if place.in_line and place.wanted == wanted:
            return
        self.leave(place)
        again = place.wanted is not None
        place.wanted = wanted
        self._lines[place.priority].add(place, first=again)
        self.waiting += 1
        self._waiting_of[place.caller] = self._waiting_of.get(place.caller, 0) + 1
        if place.is_taken:
            self._waiting_inside += 1
            _count_down(self._running, place.caller)

    def leave(self, place: Place) -> None:
        """Leave the queue, for any reason. Only for Place."""
        if place.in_line:
            self._lines[place.priority].remove(place)
            self._left(place)

    def call_next(self) -> bool:
        """Call the next request that has room. A place in the gateway is then its own. Returns False if none has room.

        A request that waits for a replica may look in vain. So a request that waits for a place is called as well.
        """
        if len(self._lines["batch"]):
            self._batch_due = min(1.0, self._batch_due + self._batch_share_min)
        place = self._call(self._fits)
        if place is not None and place.wanted is not None and self.waiting > self._waiting_inside:
            self._call(self._fits_a_place)
        return place is not None

    def _call(self, fits: Callable[[Wanted], bool]) -> Place | None:
        batch, interactive = self._lines["batch"], self._lines["interactive"]
        first, second = (batch, interactive) if self._batch_due >= 1 else (interactive, batch)
        place = first.next(fits, self._has_its_share) or second.next(fits, self._has_its_share)
        if place is None:
            return None
        if place.priority == "batch":
            self._batch_due = 0.0
        self._left(place)
        if not place.is_taken:
            place.is_taken = True
            self.in_flight += 1
            self._running[place.caller] = self._running.get(place.caller, 0) + 1
        self._handed.append(time.monotonic())
        place.call()
        return place

    def _left(self, place: Place) -> None:
        """Update the counts after a request has left the queue."""
        self.waiting -= 1
        _count_down(self._waiting_of, place.caller)
        if place.is_taken:
            self._waiting_inside -= 1
            self._running[place.caller] = self._running.get(place.caller, 0) + 1

    def _fits(self, wanted: Wanted) -> bool:
        if wanted is None:
            return self.in_flight < self._in_flight_max
        return any(map(self._has_room, wanted))

    def _fits_a_place(self, wanted: Wanted) -> bool:
        return wanted is None and self.in_flight < self._in_flight_max

    def _has_its_share(self, caller: str) -> bool:
        running = self.in_flight - self._waiting_inside
        return self._running.get(caller, 0) >= max(1.0, self._caller_share_max * running)

    def _retry_after_seconds(self) -> float:
        """Estimated seconds until a place is free, from the recent speed of the queue."""
        if len(self._handed) < 2:
            return max(1.0, self.queue_seconds_max)
        seconds = max(time.monotonic() - self._handed[0], 0.001)
        return min(max(1.0, (self.waiting + 1) * seconds / len(self._handed)), RETRY_AFTER_SECONDS_MAX)


def _count_down(counts: dict[str, int], caller: str) -> None:
    """Subtract one from a caller's count. A count of zero has no entry."""
    counts[caller] -= 1
    if not counts[caller]:
        del counts[caller]
