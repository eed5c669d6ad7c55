"""Quotas of limits: amounts that this gateway may spend without asking Redis. One script in Redis leases them; all
leases together never exceed the limit (docs/guides/limits-and-keys.md).

A gateway sends the amount of a limit that it holds, and the extra amount that it wants. The script replaces the old
amount in the window's total by the new one, and grants extra up to the limit. A gateway that knows no quota of its
own gets its stored one back. So a lost reply wastes nothing. If a gateway is gone, its quota counts as spent until
the window ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal

from redis.asyncio import Redis
from redis.exceptions import RedisError

from monitoring.redis_time import read_redis_time
from serving.wakeable import wait_for_event

Span = Literal["minute", "day", "month"]
SPAN_SECONDS: Mapping[Span, int] = MappingProxyType({"minute": 60, "day": 86_400, "month": 31 * 86_400})
PREFIX = "apprentice:limits:"
INTERVAL_SECONDS = 0.25
"""Time between two rounds over all quotas, which report spent amounts and give back unneeded ones."""
TELL_SECONDS = 1.0
IDLE_SECONDS = 10.0
"""Time without spending after which a quota is given back."""
AHEAD_SECONDS = 2.0
"""Time before the end of a window at which a quota of the next window is leased."""
EARLY_SECONDS = 0.05
"""Time before its window in which a quota may be spent already: Redis's clock is not known exactly."""
ORDERS_MAX = 200

LEASE = """
local function month_of(day)
  local z = day + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local years = doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)
  local yoe = math.floor(years / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local month = math.floor((5 * doy + 2) / 153) + 3
  return (yoe + era * 400) * 12 + month - 1
end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local windows = {
  minute = math.floor(now / 60), day = math.floor(now / 86400), month = month_of(math.floor(now / 86400))
}
local told = {string.format('%.6f', now)}
for i = 1, #KEYS do
  local at = (i - 1) * 8 + 2
  local current = windows[ARGV[at + 1]]
  local window = tonumber(ARGV[at + 2]) or current + tonumber(ARGV[at + 3])
  local held, wanted = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  local used, limit = tonumber(ARGV[at + 6]), tonumber(ARGV[at + 7])
  local total = 0
  if window >= current then
    local key = KEYS[i] .. ':' .. string.format('%d', window)
    local before = redis.call('HGET', key, 'by:' .. ARGV[1])
    local seq, had, spent = 0, 0, 0
    if before then
      local first, second, third = string.match(before, '^(%d+) (%d+) (%d+)')
      seq, had, spent = tonumber(first), tonumber(second), tonumber(third)
    end
    total = tonumber(redis.call('HGET', key, 'total') or '0')
    if tonumber(ARGV[at]) > seq then
      if ARGV[at + 2] == '' then
        held, used = had, spent
      end
      total = total - had + held
      local granted = math.max(0, math.min(wanted, limit - total))
      total, held = total + granted, held + granted
      local line = string.format('%s %.0f %.0f', ARGV[at], held, used)
      redis.call('HSET', key, 'total', string.format('%.0f', total), 'by:' .. ARGV[1], line)
      if not before then redis.call('EXPIRE', key, 4 * ({minute = 60, day = 86400, month = 2678400})[ARGV[at + 1]]) end
    end
  end
  told[#told + 1] = window
  told[#told + 1] = held
  told[#told + 1] = used
  told[#told + 1] = total
end
return told
"""


@dataclass(eq=False, slots=True)
class Quota:
    """This gateway's part of one window. Amounts are whole units; `ends_at` is in monotonic seconds.

    `used` is the amount spent, `reserved` the amount that running requests may still spend. `total` is the amount
    that all gateways hold together by Redis's last reply. `dry`: the limit has no more room.
    """

    window: int
    begins_at: float
    ends_at: float
    used: int = 0
    held: int = 0
    reserved: int = 0
    total: int = 0
    dry: bool = False
    told_held: int = 0
    told_used: int = 0
    told_at: float = 0.0

    @property
    def free(self) -> int:
        """The rest that may be spent; below 0 if more was spent than held."""
        return self.held - self.used - self.reserved


@dataclass(eq=False, slots=True)
class Allowance:
    """One limit of one subject, such as a key's tokens a minute: this gateway's quotas of it and its demand.

    `target` is the amount that should be free here. `units_asked` is the amount that waiting requests lack. `need` is
    the largest recent need of one request. An allowance without spending is `forgotten` once Redis knows all amounts
    spent, unless `is_kept`.
    """

    key: str
    span: Span
    limit: int
    step: int
    target: int
    is_kept: bool = False
    forgotten: bool = False
    is_known: bool = False
    """True if Redis has replied about it."""
    now: Quota | None = None
    ahead: Quota | None = None
    units_asked: int = 0
    need: int = 0
    touched_at: float = field(default_factory=time.monotonic)

    def quota_at(self, now: float) -> Quota | None:
        """The present window's quota, or None. At the window's end, the quota leased ahead becomes the present one."""
        quota = self.now
        if quota is not None and now < quota.ends_at:
            return quota
        self.now = quota = self.ahead
        if quota is None:
            return None
        if now < quota.begins_at - EARLY_SECONDS:
            self.now = None
            return None
        self.ahead = None
        return quota if now < quota.ends_at else None

    def expect(self, need: int) -> None:
        """Set the need of one request. The target becomes twice the need, or the step if that is more."""
        self.need = need
        self.target = min(self.limit, max(self.step, 2 * need))

    def change(self, limit: int, step: int) -> None:
        """Apply an admin's new limit. The amount held but not spent is given back, and requested again."""
        self.limit = limit
        self.step = step
        self.ahead = None
        self.expect(self.need)
        if self.now is not None:
            self.now.held = min(self.now.held, self.now.used + self.now.reserved)
            self.now.dry = False


@dataclass(slots=True)
class Order:
    """One question to Redis about an allowance in one window (None: the present one, or with `ahead` the next)."""

    allowance: Allowance
    of: Quota | None
    held: int
    wanted: int
    used: int
    ahead: int = 0
    last: bool = False
    """True if the allowance may be forgotten after Redis's reply to this order."""


class Quotas:
    """All quotas of this gateway. Its job is `keep`. A request that needs a quota now waits for `round_over`."""

    def __init__(self, redis: Redis, gateway: str, share: float = 0.02, timeout_seconds: float = 0.5) -> None:
        """A quota is at least this share of its limit. `timeout_seconds` is the longest wait for Redis."""
        self._gateway = gateway
        self._share = share
        self.timeout_seconds = timeout_seconds
        self._lease: Any = redis.register_script(LEASE)
        self._allowances: dict[str, Allowance] = {}
        self._hungry: set[Allowance] = set()
        self._wanted = asyncio.Event()
        self._round_over = asyncio.Event()
        self._looked_at = 0.0
        self._sequence = 0
        self.redis_gone = False
        """True if Redis did not answer the last call."""

    def allowance(self, subject: str, kind: str, span: Span, limit: int) -> Allowance:
        """The allowance for this limit. It is made if it does not exist, and changed if its limit was another."""
        step = self._step_of(limit)
        new = Allowance(f"{PREFIX}{subject}:{kind}", span, limit, step, step)
        allowance = self._allowances.setdefault(new.key, new)
        if allowance.limit != limit:
            allowance.change(limit, step)
        return allowance

    def set_share(self, share: float) -> None:
        """Lease this share of each limit, or more, from now on."""
        self._share = share
        for allowance in self._allowances.values():
            allowance.step = self._step_of(allowance.limit)
            allowance.expect(allowance.need)

    def _step_of(self, limit: int) -> int:
        return max(1, int(limit * self._share))

    def feed(self, allowance: Allowance) -> None:
        """Have the job fetch a quota for this allowance at once. The request does not wait for it."""
        self._hungry.add(allowance)
        self._wanted.set()

    async def round_over(self, seconds: float) -> None:
        """Wait until the next round has ended, with or without Redis's reply, but no longer than `seconds`."""
        await wait_for_event(self._round_over, seconds)

    async def keep(self, looked: Callable[[], object]) -> None:
        """Fetch, report and give back quotas, and call `looked` after each round. Runs until cancelled.

        Then it gives back the amounts not spent.
        """
        try:
            while True:
                await wait_for_event(self._wanted, INTERVAL_SECONDS)
                await self.round(time.monotonic() - self._looked_at >= INTERVAL_SECONDS)
                looked()
                if self.redis_gone:
                    await asyncio.sleep(INTERVAL_SECONDS)
        except asyncio.CancelledError:
            leaving = asyncio.ensure_future(self.round(leaving=True))
            while not leaving.done():
                with contextlib.suppress(asyncio.CancelledError):  # a gateway's stop cancels its jobs again and again
                    await asyncio.shield(leaving)
            raise

    async def round(self, whole: bool = True, leaving: bool = False) -> None:
        """Call Redis once about all quotas that need it. If Redis does not answer, `redis_gone` becomes True.

        A `whole` round covers all quotas, else those that run low. With `leaving`, amounts not spent are given back.
        """
        self._wanted.clear()
        now = time.monotonic()
        if leaving:
            orders = list(self._last_orders(now))
        elif whole:
            self._looked_at = now
            orders = list(self._all_orders(now))
        else:
            orders = [order for allowance in self._hungry if (order := self._top_up(allowance, now)) is not None]
        self._hungry.clear()
        try:
            for first in range(0, len(orders) or int(self.redis_gone), ORDERS_MAX):
                await self._ask(orders[first : first + ORDERS_MAX])
                self.redis_gone = False
            for order in orders:
                if order.last:
                    self._forget(order.allowance, time.monotonic())
        except (RedisError, OSError, TimeoutError):
            self.redis_gone = True
        finally:
            self._round_over.set()
            self._round_over = asyncio.Event()

    async def _ask(self, orders: list[Order]) -> None:
        args: list[str | int] = [self._gateway]
        for order in orders:
            self._sequence += 1
            window = "" if order.of is None else order.of.window
            args += [self._sequence, order.allowance.span, window, order.ahead]
            args += [order.held, order.wanted, order.used, order.allowance.limit]
        began = time.monotonic()
        async with asyncio.timeout(self.timeout_seconds):
            reply = await self._lease(keys=[order.allowance.key for order in orders], args=args)
        at = began - float(reply[0])
        """Add this to a time of Redis's clock to get a monotonic time here."""
        for order, window, units_held, used, total in zip(
            orders, reply[1::4], reply[2::4], reply[3::4], reply[4::4], strict=True
        ):
            _take_in(order, window, units_held, used, total, at)

    def _all_orders(self, now: float) -> Iterator[Order]:
        for allowance in list(self._allowances.values()):
            quota = allowance.quota_at(now)
            if not self.redis_gone and _is_idle(allowance, quota, now):
                if not self._forget(allowance, now):
                    yield from _given_back(allowance)
                continue
            allowance.expect(allowance.need - allowance.need // 16)
            order = self._top_up(allowance, now) or _news(allowance, quota, now)
            if order is not None:
                yield order
            if quota is not None and allowance.ahead is None and quota.ends_at - now < AHEAD_SECONDS:
                yield Order(allowance, None, 0, allowance.target, 0, 1)

    def _forget(self, allowance: Allowance, now: float) -> bool:
        """Forget an idle allowance if Redis knows all that was spent and nothing else is held. True if forgotten."""
        present = allowance.quota_at(now)
        quotas = [quota for quota in (present, allowance.ahead) if quota is not None]
        is_settled = all(quota.told_held == quota.held == quota.used == quota.told_used for quota in quotas)
        if not is_settled or not _is_idle(allowance, present, now):
            return False
        self._allowances.pop(allowance.key, None)
        allowance.forgotten = True
        allowance.now = allowance.ahead = None
        return True

    def _last_orders(self, now: float) -> Iterator[Order]:
        for allowance in self._allowances.values():
            for quota in (allowance.quota_at(now), allowance.ahead):
                if quota is not None:
                    quota.held = quota.used + quota.reserved
                    yield Order(allowance, quota, quota.held, 0, quota.used)

    def _top_up(self, allowance: Allowance, now: float) -> Order | None:
        quota = allowance.quota_at(now)
        units_asked, allowance.units_asked = allowance.units_asked, 0
        target = allowance.target
        if quota is None:
            return Order(allowance, None, 0, units_asked + target, 0) if units_asked or allowance.is_kept else None
        free = quota.free
        if units_asked <= free and 2 * free >= target:
            return None
        quota.held = max(quota.held, quota.used + quota.reserved)
        units_wanted = min(allowance.limit, max(target, units_asked + target // 2) - max(free, 0))
        return Order(allowance, quota, quota.held, units_wanted, quota.used)


def _is_idle(allowance: Allowance, quota: Quota | None, now: float) -> bool:
    if allowance.is_kept or now - allowance.touched_at <= IDLE_SECONDS:
        return False
    return quota is None or not quota.reserved


def _given_back(allowance: Allowance) -> Iterator[Order]:
    """The orders that give back the unspent amounts of an idle allowance."""
    for quota in (allowance.now, allowance.ahead):
        if quota is not None:
            quota.held = quota.used
            yield Order(allowance, quota, quota.held, 0, quota.used, last=True)


def _news(allowance: Allowance, quota: Quota | None, now: float) -> Order | None:
    """The order that reports a quota with enough free, and gives back the excess; None if nothing has changed."""
    if quota is None or now - quota.told_at < TELL_SECONDS:
        return None
    if quota.free > 2 * allowance.target:
        quota.held = quota.used + quota.reserved + allowance.target
    if (quota.used, quota.held) == (quota.told_used, quota.told_held):
        return None
    return Order(allowance, quota, quota.held, 0, quota.used)


def _take_in(order: Order, window: int, units_held: int, used: int, total: int, at: float) -> None:
    """Note Redis's reply about this gateway's quota. `at` plus a Unix time of Redis's clock is a monotonic time."""
    allowance, quota = order.allowance, order.of
    allowance.is_known = True
    begins, ends = (moment + at for moment in bounds_of(allowance.span, window))
    if quota is None:
        # A quota leased ahead may exist already, if Redis entered the window earlier than this gateway assumed.
        same = (each for each in (allowance.now, allowance.ahead) if each is not None and each.window == window)
        quota = next(same, None) or Quota(window, begins, ends, used)
        if order.ahead:
            allowance.ahead = quota
        else:
            allowance.now, allowance.ahead = quota, None if allowance.ahead is quota else allowance.ahead
    quota.begins_at, quota.ends_at = begins, ends
    quota.told_held = units_held
    # Amounts that running requests reserved beyond the limit do not become free if the requests spend less.
    quota.held = max(used, units_held - max(0, total - allowance.limit))
    quota.told_used = used
    quota.told_at = time.monotonic()
    quota.total = total
    quota.dry = total >= allowance.limit


def bounds_of(span: Span, window: int) -> tuple[float, float]:
    """Begin and end of a window, in Unix seconds; days and months are UTC's."""
    if span != "month":
        seconds = SPAN_SECONDS[span]
        return float(window * seconds), float((window + 1) * seconds)
    first, after = (datetime(at // 12, at % 12 + 1, 1, tzinfo=UTC) for at in (window, window + 1))
    return first.timestamp(), after.timestamp()


def number_window(span: Span, unix_seconds: float) -> int:
    """The number of the window that holds this time."""
    if span != "month":
        return int(unix_seconds // SPAN_SECONDS[span])
    moment = datetime.fromtimestamp(unix_seconds, UTC)
    return moment.year * 12 + moment.month - 1


async def read_spent(redis: Redis, keys: Iterable[tuple[str, Span]]) -> list[tuple[int, float]]:
    """For each key, the amount spent by all gateways in its present window, and the window's end (Unix seconds).

    Raises RedisError.
    """
    reading: Any = redis
    now = await read_redis_time(redis)
    amounts = []
    for key, span in keys:
        window = number_window(span, now)
        raw: Mapping[bytes, bytes] = await reading.hgetall(f"{key}:{window}")
        used = sum(int(line.split()[2]) for name, line in raw.items() if name.startswith(b"by:"))
        amounts.append((used, bounds_of(span, window)[1]))
    return amounts
