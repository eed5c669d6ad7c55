"""Admission: places for the requests under way, and fair queues for those that find none free."""

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
"""The gateway's way to its stop.

- `open`: it takes requests.
- `leaving`: it is about to stop. It is not ready any more, but takes requests until it drains.
- `draining`: nobody is let in, and requests under way finish.
- `over`: what was still under way is ended now.
"""
Cause = Literal["queue_full", "queue_timeout", "caller_busy", "draining"]
LOOK_AGAIN_SECONDS = 0.25
"""Time between two looks of one who waits for a replica: one may have come up, or no longer rest."""
HANDED_KEPT = 64
RETRY_AFTER_SECONDS_MAX = 60.0


class Place:
    """One request's place, or its wait for one. Its holder gives it back once, by leaving its block."""

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
        """True if it has a place in the gateway; `turn` waits for one."""
        self.queued_at: float | None = None
        """Since when it has waited (monotonic seconds); None if it never had to."""
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
        """Wait for a place in the gateway, or until one of the wanted replicas may have room: then look again.

        Whoever looks without being called stays in line, and its caller keeps its turn.

        Raises Problem: 429 where the caller's own share of the queue is full, 503 where the whole of it is, or where
        the wait was too long.
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
        """Seconds of waiting in all."""
        return 0.0 if self.queued_at is None else self.waited_until - self.queued_at

    def go_on(self) -> None:
        """It waits no longer: who is next may look too, once this one has its lease."""
        self._admission.leave(self)
        asyncio.get_running_loop().call_soon(self._admission.call_next)

    def call(self, by_turn: bool = True) -> None:
        """It is this one's turn, or its time is over."""
        if self._called is not None and not self._called.done():
            self._called.set_result(by_turn)


class Admission:
    """Places in this gateway, and who waits for them or for a replica. The request path takes and gives back.

    Where places are free it is a counter. Else callers wait in turn, so that one's flood holds no other up:
    interactive requests before batch ones, which get a small share of the places all the same.
    """

    def __init__(self, limits: LimitSettings, meters: Meters, has_room: Callable[[str], bool]) -> None:
        """`has_room` says whether a replica, by its name, could take one more request."""
        self.in_flight = 0
        """Requests that have a place."""
        self.waiting = 0
        self.stage: Stage = "open"
        self.bodies = SharedCapacity(limits.bodies_bytes_max)
        """The room for the bodies under way; who reads them takes it."""
        self._meters = meters
        self._has_room = has_room
        self._running: dict[str, int] = {}
        """Places by caller, of those that wait for nothing."""
        self._waiting_of: dict[str, int] = {}
        self._lines: dict[Priority, FairQueue[Place]] = {"interactive": FairQueue(), "batch": FairQueue()}
        self._waiting_inside = 0
        self._batch_due = 0.0
        self._handed: deque[float] = deque(maxlen=HANDED_KEPT)
        self._empty = asyncio.Event()
        self.apply_settings(limits)

    def apply_settings(self, limits: LimitSettings) -> None:
        """Go by these limits from now on."""
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
        """True if it lets nobody in."""
        return self.stage in ("draining", "over")

    def admit(self, caller: str, priority: Priority = "interactive") -> Place:
        """A place for one request, or none yet: then `turn` waits for it. Raises Problem (503) while draining."""
        if self.is_closed:
            raise self.shed("draining")
        if self.in_flight >= self._in_flight_max or self.waiting > self._waiting_inside:  # nobody passes the line
            return Place(self, caller, priority, False)
        self.in_flight += 1
        self._running[caller] = self._running.get(caller, 0) + 1
        return Place(self, caller, priority, True)

    def give_back(self, place: Place) -> None:
        """For places only: one has ended."""
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
        """Number of those who wait now, by their class."""
        return {(priority,): float(len(line)) for priority, line in self._lines.items()}

    def announce_stop(self) -> None:
        """The gateway is about to stop: it is not ready any more."""
        if self.stage == "open":
            self.stage = "leaving"

    async def drain(self) -> None:
        """Let nobody in from now on, and return once the last request, of those that wait too, has left."""
        self.stage = "draining"
        if self.in_flight or self.waiting:
            await self._empty.wait()

    def end(self) -> None:
        """End what is still under way: the server cancels it."""
        self.stage = "over"

    def shed(self, cause: Cause) -> Problem:
        """Count a request that gets no place, and the problem to tell it."""
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
        """For places only. Raises Problem where the queue, or its caller's share of it, is full."""
        if self.waiting >= self._queue_max:
            raise self.shed("queue_full")
        if self._waiting_of.get(place.caller, 0) >= max(1, int(self._queue_max * self._caller_share_max)):
            raise self.shed("caller_busy")

    def join(self, place: Place, wanted: Wanted) -> None:
        """For places only: queue; who was there before, at its caller's front, or where it still is."""
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
        """For places only: it waits no longer, whatever the reason."""
        if place.in_line:
            self._lines[place.priority].remove(place)
            self._left(place)

    def call_next(self) -> bool:
        """Call who is next, if there is room for one; a place in the gateway is its own from now on.

        Who waits for a replica takes none, and may look in vain: then one is called for the place too.
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
        """A place has been taken out of its line."""
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
        """Seconds until there should be a place again, by how fast the queue has moved."""
        if len(self._handed) < 2:
            return max(1.0, self.queue_seconds_max)
        seconds = max(time.monotonic() - self._handed[0], 0.001)
        return min(max(1.0, (self.waiting + 1) * seconds / len(self._handed)), RETRY_AFTER_SECONDS_MAX)


def _count_down(counts: dict[str, int], caller: str) -> None:
    """Take one from a caller's count. A count of zero has no entry."""
    counts[caller] -= 1
    if not counts[caller]:
        del counts[caller]
