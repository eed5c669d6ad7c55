"""A circuit breaker: opens after faults, then lets one request through as a test, and closes on an answer. No clock.

The caller decides which faults count: unreachable, dropped, silent, overloaded, failed, truncated. A caller's invalid
request, hang-up or deadline says nothing about an engine.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from serving.fleet_view import CircuitView
from serving.shared_memory import PROBER, Row, SharedMemory

IN_A_ROW_MAX = 3
WINDOW_SECONDS = 10.0
WINDOW_FAULTS = 5
"""This number of faults within the window, at least as many as good answers, opens it too."""
UNASKED_SECONDS = 600.0
"""After this time without a fault or an answer, the faults say nothing about the model as it is now."""
SOFT_REST_SECONDS = 1.0
SOFT_REST_SECONDS_MAX = 30.0
OPEN_SECONDS_MAX = 15.0
JITTER_SHARE = 0.25
TURN_SECONDS = 0.25
"""Time after the rest in which one process of a gateway alone may let a request through; each has its turn."""
OPEN, RESTING_UNTIL, OPENED, IN_A_ROW, WINDOW_AT, ANSWERED, FAILED = range(PROBER + 1, PROBER + 8)
"""The places of a breaker's numbers. OPEN: the process that opened it, plus 1; OPENED: number of openings in a row."""
NUMBERS = FAILED + 1

BreakerState = Literal["closed", "half_open", "open"]


class Breaker:
    """The faults of one replica, or of one model on it, since it was last well. Owner: the replica.

    A closed breaker rests a second after a fault: others are preferred, and it is asked if there are none. An open one
    is asked only if nobody else can answer, until its rest is over. Then it is half-open, for one request at a time.
    With `memory` all processes of the gateway share one row of numbers; the one that opened it may try it first.
    """

    __slots__ = ("_memory", "_row", "prober")

    def __init__(self, row: Row | None = None, memory: SharedMemory | None = None) -> None:
        self._row: Row = [0.0] * NUMBERS if row is None else row
        self._memory = memory
        self.prober: object | None = None
        """The holder of this process's test request, while that is under way."""

    def failed(self, now: float, jitter: float, rest_seconds: float | None = None, had_answered: bool = False) -> None:
        """Count a fault, at `now` (monotonic seconds). `jitter` in [0, 1) spreads the gateways' tests.

        `rest_seconds` is the rest that the engine asked for; `had_answered`: its answer had counted as good.
        """
        with self._locked():
            self._turn(now)
            row = self._row
            row[FAILED] += 1
            row[ANSWERED] -= had_answered
            row[IN_A_ROW] += 1
            if self.open:
                if self.resting_until <= now:  # it was a test; a request sent before it opened changes nothing
                    self._open(now, jitter)
            elif row[IN_A_ROW] >= IN_A_ROW_MAX or (row[FAILED] >= WINDOW_FAULTS and row[FAILED] >= row[ANSWERED]):
                self._open(now, jitter)
            seconds = min(rest_seconds or SOFT_REST_SECONDS, SOFT_REST_SECONDS_MAX)
            if rest_seconds is not None or not self.open:
                row[RESTING_UNTIL] = max(row[RESTING_UNTIL], now + seconds)

    def rest(self, now: float) -> None:
        """Rest after a fault that the request may have caused: others are preferred for a moment, nothing is
        counted."""
        with self._locked():
            if not self.open:
                self._row[RESTING_UNTIL] = max(self.resting_until, now + SOFT_REST_SECONDS)

    def answered(self, now: float) -> bool:
        """Count a good answer, which closes it. Returns True if that changed the router's view of it."""
        with self._locked():
            self._turn(now)
            changed = self.open or self.resting_until > 0
            self._row[ANSWERED] += 1
            self._close()
            return changed

    def is_well(self, now: float) -> bool:
        """True if there is no fault left to remember."""
        recent = self._row[FAILED] > 0 and now - self._row[WINDOW_AT] <= WINDOW_SECONDS
        return not self.open and self._row[IN_A_ROW] == 0 and not recent

    def forgotten(self, now: float) -> bool:
        """True if no test request is under way, and it is well or nobody has asked for long."""
        if self.probing or self.prober is not None:
            return False
        return self.is_well(now) or now - max(self.resting_until, self._row[WINDOW_AT]) > UNASKED_SECONDS

    def forget(self) -> None:
        """Close it, so that its numbers can be used again."""
        with self._locked():
            self._close()

    def may_be_well(self, now: float) -> None:
        """End its rest, since the engine was seen to come up."""
        self._row[RESTING_UNTIL] = now if self.open else min(self.resting_until, now)

    def let_through(self, prober: object) -> None:
        """Let a request through as a test; one at a time."""
        self.prober = prober
        self._row[PROBER] = self._process + 1

    def probed(self, prober: object) -> None:
        """Note that a test request has ended."""
        if self.prober is prober:
            self.prober = None
            if self._row[PROBER] == self._process + 1:
                self._row[PROBER] = 0.0

    @property
    def _process(self) -> int:
        return 0 if self._memory is None else self._memory.process

    @property
    def open(self) -> bool:
        """True from the fault that opened it until an answer."""
        return self._row[OPEN] > 0

    @property
    def probing(self) -> bool:
        """True if a test request is under way."""
        return self._row[PROBER] > 0

    @property
    def resting_until(self) -> float:
        """The end of its rest, in monotonic seconds."""
        return self._row[RESTING_UNTIL]

    @property
    def my_turn_at(self) -> float:
        """The time from which this process may let a test request through, so that no two do at the same moment."""
        if self._memory is None or not self.open:
            return self.resting_until
        turn = (self._process + 1 - int(self._row[OPEN])) % self._memory.processes
        return self.resting_until + turn * TURN_SECONDS

    def state(self, now: float) -> BreakerState:
        """The state, for people and gauges."""
        if not self.open:
            return "closed"
        return "half_open" if self.probing or self.resting_until <= now else "open"

    def view(self) -> CircuitView:
        """The frozen state, for the router."""
        return CircuitView(self.my_turn_at, self.open, self.probing)

    def _open(self, now: float, jitter: float) -> None:
        row = self._row
        row[OPEN] = self._process + 1
        row[RESTING_UNTIL] = now + min(2.0 ** row[OPENED], OPEN_SECONDS_MAX) * (1 - JITTER_SHARE * jitter)
        row[OPENED] = min(row[OPENED] + 1, 8)

    def _close(self) -> None:
        self.prober = None
        for place in (IN_A_ROW, OPEN, OPENED, RESTING_UNTIL, PROBER):
            self._row[place] = 0.0

    def _turn(self, now: float) -> None:
        if now - self._row[WINDOW_AT] > WINDOW_SECONDS:
            self._row[WINDOW_AT] = now
            self._row[ANSWERED] = self._row[FAILED] = 0.0

    def _locked(self) -> AbstractContextManager[None]:
        return nullcontext() if self._memory is None else self._memory.locked()
