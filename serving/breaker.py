"""A circuit breaker: opens after faults, lets one request through to see, and closes on an answer. No clock of its own.

Who asks which faults count: unreachable, dropped, silent, overloaded, failed, truncated. A request that its caller got
wrong, a hang-up or a deadline of the caller's says nothing of an engine.
"""

from __future__ import annotations

from typing import Literal

from serving.view import CircuitView

IN_A_ROW = 3
WINDOW_SECONDS = 10.0
WINDOW_FAULTS = 5
"""So many faults within the window, and half of all that it saw, open it too."""
SOFT_REST_SECONDS = 1.0
SOFT_REST_SECONDS_MAX = 30.0
OPEN_SECONDS_MAX = 15.0
JITTER_SHARE = 0.25

BreakerState = Literal["closed", "half_open", "open"]


class Breaker:
    """The faults of one replica, or of one model on it, since it was last well. Owner: the replica.

    Closed, it rests a second after a fault: others are preferred, and it is asked where there are none. Open, it is
    asked only where nobody else can answer, until its rest is over; then it is half-open, for one request at a time.
    """

    __slots__ = ("_answered", "_failed", "_in_a_row", "_opened", "_window_at", "open", "prober", "resting_until")

    def __init__(self) -> None:
        self.resting_until = 0.0
        self.open = False
        self.prober: object | None = None
        """Whose request was let through, while it is under way."""
        self._opened = 0
        self._in_a_row = 0
        self._window_at = 0.0
        self._answered = 0
        self._failed = 0

    def failed(self, now: float, jitter: float, rest_seconds: float | None = None, begun: bool = False) -> None:
        """A fault, at `now` (monotonic seconds). `jitter` in [0, 1) spreads the gateways' probes.

        `rest_seconds` is what the engine asked for itself; `begun` says that its answer had been counted as good.
        """
        self._turn(now)
        self._failed += 1
        self._answered -= begun
        self._in_a_row += 1
        if self.open:
            if self.resting_until <= now:  # it was let through to see; one sent before it opened changes nothing
                self._open(now, jitter)
        elif self._in_a_row >= IN_A_ROW or (self._failed >= WINDOW_FAULTS and self._failed >= self._answered):
            self._open(now, jitter)
        seconds = min(rest_seconds or SOFT_REST_SECONDS, SOFT_REST_SECONDS_MAX)
        if rest_seconds is not None or not self.open:
            self.resting_until = max(self.resting_until, now + seconds)

    def answered(self, now: float) -> bool:
        """A good answer: it closes. Whether that changed what the router sees."""
        self._turn(now)
        changed = self.open or self.resting_until > 0
        self._answered += 1
        self._in_a_row = 0
        self.open = False
        self.prober = None
        self._opened = 0
        self.resting_until = 0.0
        return changed

    def forgotten(self, now: float) -> bool:
        """True if there is nothing left to remember."""
        recent = self._failed > 0 and now - self._window_at <= WINDOW_SECONDS
        return not self.open and self._in_a_row == 0 and not recent

    def may_be_well(self, now: float) -> None:
        """The engine was seen to come up: it need not rest any longer."""
        self.resting_until = min(self.resting_until, now)

    @property
    def probing(self) -> bool:
        """True if a request that was let through is under way."""
        return self.prober is not None

    def state(self, now: float) -> BreakerState:
        """For people and gauges."""
        if not self.open:
            return "closed"
        return "half_open" if self.probing or self.resting_until <= now else "open"

    def view(self) -> CircuitView:
        """The frozen picture, for the router."""
        return CircuitView(self.resting_until, self.open, self.probing)

    def _open(self, now: float, jitter: float) -> None:
        self.open = True
        self.resting_until = now + min(2.0**self._opened, OPEN_SECONDS_MAX) * (1 - JITTER_SHARE * jitter)
        self._opened = min(self._opened + 1, 8)

    def _turn(self, now: float) -> None:
        if now - self._window_at > WINDOW_SECONDS:
            self._window_at = now
            self._answered = self._failed = 0
