"""The caps of a task's fallback: a share of its requests, and US dollars a day. Over a cap, the fallback is closed to
the task, so that one bad adapter does not overload the general pool. The router sees only whether it is closed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.formats.request_body import RequestBody
from gateway.limits.caller_limits import NANOS, Bound, Limits, cut_off, estimate_cut_off_nanos
from gateway.limits.quotas import Allowance, Quota
from monitoring.cost import Price
from monitoring.records import Record
from router.routing_data import Choice

PARTS = 20
"""Number of parts of a share's window. The window moves by one part at a time."""
REQUESTS_MIN = 20
"""A share is computed with at least this number of requests, else the first one would close the fallback."""


@dataclass(frozen=True, slots=True)
class Cap:
    """A task's caps. `share_max` is a share of its requests, from 0 to 1. None: no cap."""

    share_max: float | None = None
    usd_per_day: float | None = None


class ShareWindow:
    """The numbers of a task's requests, and of those at its fallback, in the last `window_seconds`."""

    def __init__(self, share_max: float, window_seconds: float) -> None:
        self._share_max = share_max
        self._part_seconds = window_seconds / PARTS
        self._parts: deque[list[int]] = deque()
        self._requests = 0
        self._fallbacks = 0

    def count(self, now: float, requests: int, fallbacks: int) -> None:
        """Add to the present part, and remove the parts that are too old."""
        part = int(now / self._part_seconds)
        if not self._parts or self._parts[-1][0] != part:
            self._parts.append([part, 0, 0])
        self._parts[-1][1] += requests
        self._parts[-1][2] += fallbacks
        self._requests += requests
        self._fallbacks += fallbacks
        while self._parts[0][0] <= part - PARTS:
            _, old_requests, old_fallbacks = self._parts.popleft()
            self._requests -= old_requests
            self._fallbacks -= old_fallbacks

    def has_room(self, now: float) -> bool:
        """True if one more request may go to the fallback. Requests that still run there count too."""
        self.count(now, 0, 0)
        sent = self._fallbacks + 1
        return sent <= self._share_max * max(self._requests, sent, REQUESTS_MIN)


@dataclass(eq=False, slots=True)
class FallbackHold:
    """A request's hold on the cap of its task's fallback. It is settled once."""

    wasted_before: float
    taken: Quota | None = None
    reserved: int = 0
    estimate: tuple[int, int] = (0, 0)
    """Estimated tokens of the prompt, and the most of the answers."""


class FallbackCaps:
    """Counts the requests and the money at capped fallbacks. `closed` has the tasks whose fallback is closed now."""

    def __init__(self, caps: Mapping[str, Cap], window_seconds: float, limits: Limits) -> None:
        self._limits = limits
        self._shares: dict[str, ShareWindow] = {}
        self._money: dict[str, Allowance] = {}
        self._tasks: frozenset[str] = frozenset()
        self.closed: frozenset[str] = frozenset()
        self.apply_settings(caps, window_seconds)

    async def prepare(self, caps: Mapping[str, Cap]) -> None:
        """Read the quotas of the money caps that apply next, if Redis answers in time. A new cap stays open until its
        quota is known."""
        quotas, until = self._limits.quotas, time.monotonic() + self._limits.quotas.timeout_seconds
        money = [
            self._keep(task, round(cap.usd_per_day * NANOS))
            for task, cap in caps.items()
            if cap.usd_per_day is not None
        ]
        while not (quotas.redis_gone or all(allowance.is_known for allowance in money)) and time.monotonic() < until:
            await quotas.round_over(until - time.monotonic())

    def apply_settings(self, caps: Mapping[str, Cap], window_seconds: float) -> None:
        """Use these caps from now on. The shares are counted from zero."""
        self._shares = {
            task: ShareWindow(cap.share_max, window_seconds) for task, cap in caps.items() if cap.share_max is not None
        }
        for allowance in self._money.values():
            allowance.is_kept = False  # set again below for the caps that remain
        self._money = {
            task: self._keep(task, round(cap.usd_per_day * NANOS))
            for task, cap in caps.items()
            if cap.usd_per_day is not None
        }
        self._tasks = frozenset(self._shares.keys() | self._money.keys())

    def _keep(self, task: str, limit: int) -> Allowance:
        allowance = self._limits.quotas.allowance(f"task:{task}", "fallback_usd_per_day", "day", limit)
        allowance.is_kept = True
        self._limits.quotas.feed(allowance)
        return allowance

    async def begin(self) -> None:
        """Get the first quotas, and find the closed fallbacks."""
        await self._limits.quotas.round()
        self.look()

    def look(self) -> None:
        """Find the fallbacks that are closed now."""
        now = time.monotonic()
        self.closed = frozenset(task for task in self._tasks if not self._is_open(task, now))

    def hold_for(
        self, choice: Choice, hold: FallbackHold | None, body: RequestBody, record: Record
    ) -> FallbackHold | None:
        """The request's hold before it is sent to this choice. The first capped fallback takes the hold."""
        task = choice.task.name if choice.task is not None and choice.version is None else ""
        if hold is not None or task not in self._tasks:
            return hold
        now = time.monotonic()
        if task in self._shares:
            self._shares[task].count(now, 0, 1)
        hold = FallbackHold(record.wasted_usd or 0.0)
        if task in self._money:
            self._reserve(self._money[task], hold, self._limits.bound(choice.pool.name), body, now)
        self._look_at(task, now)
        return hold

    def _reserve(self, allowance: Allowance, hold: FallbackHold, bound: Bound, body: RequestBody, now: float) -> None:
        quota = allowance.quota_at(now)
        if quota is None or quota.free <= 0:
            self._limits.let_through()
        if quota is None:
            return
        hold.estimate = bound.tokens(body, body.size)
        hold.taken, hold.reserved = quota, bound.nanos(*hold.estimate)
        quota.reserved += hold.reserved
        allowance.expect(max(allowance.need, min(hold.reserved, allowance.limit)))
        if 2 * quota.free < allowance.target and not quota.dry:
            self._limits.quotas.feed(allowance)

    def settle(self, record: Record, hold: FallbackHold | None, price: Price | None = None) -> None:
        """Count a finished request and its cost at the fallback, with failed attempts there.

        For a request that was cut off an estimate counts, at `price`, the price of its pool. If the fallback failed
        and a version answered, the cost of that version's answer does not count.
        """
        there = record.version is None
        if hold is not None and hold.taken is not None:  # even if its task's cap was removed meanwhile
            spent = (record.wasted_usd or 0.0) - hold.wasted_before + ((record.cost_usd or 0.0) if there else 0.0)
            hold.taken.reserved -= hold.reserved
            hold.taken.used += round(spent * NANOS)
            if there and cut_off(record):
                hold.taken.used += estimate_cut_off_nanos(record, hold.estimate, price)
            hold.taken = None
        if record.task not in self._tasks:
            return
        now = time.monotonic()
        if record.task in self._shares:
            self._shares[record.task].count(now, 1, 0)
        self._look_at(record.task, now)

    def _look_at(self, task: str, now: float) -> None:
        if self._is_open(task, now) == (task in self.closed):
            self.closed = self.closed ^ {task}

    def _is_open(self, task: str, now: float) -> bool:
        share, allowance = self._shares.get(task), self._money.get(task)
        if share is not None and not share.has_room(now):
            return False
        if allowance is None:
            return True
        quota = allowance.quota_at(now)
        if quota is None and not allowance.is_known and not self._limits.quotas.redis_gone:
            return True  # a new cap: Redis will answer in a moment
        if quota is not None and quota.free >= max(1, allowance.need):
            return True
        reached = quota is not None and quota.dry
        return not reached and self._limits.quotas.redis_gone and self._limits.open_without_redis
