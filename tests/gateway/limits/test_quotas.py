"""Quotas on a real Valkey: whatever gateways do, and in whatever order, what they hold together is within the limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from gateway.limits.quotas import (
    AHEAD_SECONDS,
    IDLE_SECONDS,
    LEASE,
    Allowance,
    Quota,
    Quotas,
    bounds_of,
    number_window,
    read_spent,
)
from tests.fakes.valkey import valkey

LIMIT = 100


@dataclass
class Gateway:
    """A gateway that takes, settles and asks Redis when it is told to. What it took is within `free`, as in a walk."""

    quotas: Quotas
    allowance: Allowance
    open: list[tuple[Quota, int]] = field(default_factory=list)
    spent: int = 0

    def take(self, amount: int) -> bool:
        now = time.monotonic()
        self.allowance.touched_at = now
        held = self.allowance.quota_at(now)
        need = min(amount, self.allowance.limit)
        self.allowance.expect(max(need, self.allowance.need))
        if held is None or held.free < need:
            self.allowance.units_asked += need
            return False
        held.reserved += need
        self.open.append((held, need))
        return True

    def settle(self, share: float) -> None:
        if self.open:
            held, reserved = self.open.pop()
            used = round(reserved * share)
            held.reserved -= reserved
            held.used += used
            self.spent += used

    @property
    def at_stake(self) -> int:
        """Spent tokens, and those that may still be spent without a lease."""
        held = self.allowance.quota_at(time.monotonic())
        return self.spent + sum(need for _, need in self.open) if held is None else max(held.held, held.used)


def gateway(redis: Redis, subject: str, name: str, limit: int = LIMIT, share: float = 0.1) -> Gateway:
    quotas = Quotas(redis, name, share, 5.0)
    return Gateway(quotas, quotas.allowance(subject, "tokens", "month", limit))


STEPS = st.tuples(
    st.integers(0, 3), st.sampled_from(["take", "settle", "round", "lost", "leave", "die"]), st.integers(1, 60)
)


class LosesReplies:
    """A connection to a real Valkey that does what it is told, and whose next answer may get lost."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.lose = False

    def register_script(self, text: str) -> Callable[..., Awaitable[Any]]:
        script = self._redis.register_script(text)

        async def run(**given: Any) -> Any:
            reply = await script(**given)
            if self.lose:
                self.lose = False
                raise TimeoutError
            return reply

        return run


async def granted(redis: Redis, subject: str) -> int:
    (key,) = await redis.keys(f"apprentice:limits:{subject}:tokens:*") or [None]
    return int(await redis.hget(key, "total") or 0) if key else 0  # type: ignore[misc]


async def play(socket: str, steps: list[tuple[int, str, int]]) -> None:
    subject = f"key:{uuid4().hex}"
    async with Redis(unix_socket_path=socket) as redis:
        lines = [LosesReplies(redis) for _ in range(4)]
        names = iter(range(1000))
        gateways = [gateway(line, subject, f"g{next(names)}") for line in lines]  # type: ignore[arg-type]
        gone = 0
        for number, step, amount in steps:
            one = gateways[number]
            if step == "take":
                one.take(amount)
            elif step == "settle":
                one.settle(amount / 60)
            elif step in ("round", "lost"):
                lines[number].lose = step == "lost"
                await one.quotas.round()
                lines[number].lose = False
            else:
                if step == "leave":
                    await one.quotas.round(leaving=True)
                gone += one.at_stake if one.allowance.now is not None else 0
                gateways[number] = gateway(lines[number], subject, f"g{next(names)}")  # type: ignore[arg-type]
            assert await granted(redis, subject) <= LIMIT
            assert gone + sum(each.at_stake for each in gateways) <= LIMIT


@pytest.mark.invariant("Gateways together never exceed a key's limit.")
@settings(max_examples=150)
@given(st.lists(STEPS, max_size=40))
def test_whatever_gateways_do_together_they_hold_no_more_than_the_limit(
    valkey_socket: str, steps: list[tuple[int, str, int]]
) -> None:
    asyncio.run(play(valkey_socket, steps))


async def test_what_was_spent_beyond_the_estimate_is_all_by_which_a_limit_is_exceeded(redis: Redis) -> None:
    one, other = gateway(redis, "key:x", "one"), gateway(redis, "key:x", "other")
    for each in (one, other):
        each.take(10)
        await each.quotas.round()
        assert each.take(10)
    held, reserved = one.open.pop()
    held.reserved -= reserved
    held.used += 95  # it said 10
    await one.quotas.round()
    taken = 0
    while other.take(10):
        taken += 10
        await other.quotas.round()
    assert taken <= 20, "what the other had leased before"
    assert other.allowance.now is not None
    assert other.allowance.now.dry


async def test_a_call_that_comes_late_changes_nothing(redis: Redis) -> None:
    one = gateway(redis, "key:x", "one")
    for _ in range(3):
        one.take(40)
        await one.quotas.round()
    (key,) = await redis.keys(f"{one.allowance.key}:*")
    before = await redis.hgetall(key)  # type: ignore[misc]
    late = ["one", 1, "month", key.decode().rpartition(":")[2], 0, 0, 50, 0, LIMIT]
    reply = await redis.register_script(LEASE)(keys=[one.allowance.key], args=late)
    assert await redis.hgetall(key) == before  # type: ignore[misc]
    assert reply[4] == int(before[b"total"])


async def test_a_gateway_that_died_has_spent_what_it_held(redis: Redis) -> None:
    one, other = gateway(redis, "key:x", "one", share=0.4), gateway(redis, "key:x", "other", share=1.0)
    one.take(1)
    await one.quotas.round()
    assert one.allowance.now is not None
    held = one.allowance.now.held
    other.take(LIMIT)
    await other.quotas.round()
    assert other.allowance.now is not None
    assert other.allowance.now.held == LIMIT - held
    assert other.allowance.now.dry


async def test_what_a_gateway_gives_back_when_it_leaves_is_there_for_others(redis: Redis) -> None:
    one, other = gateway(redis, "key:x", "one", share=0.4), gateway(redis, "key:x", "other", share=1.0)
    one.take(7)
    await one.quotas.round()
    assert one.take(7)
    one.settle(1.0)
    await one.quotas.round(leaving=True)
    other.take(LIMIT)
    await other.quotas.round()
    assert other.allowance.now is not None
    assert other.allowance.now.held == LIMIT - 7


async def test_an_idle_gateway_gives_its_quota_back_and_finds_what_it_spent_again(redis: Redis) -> None:
    one, other = gateway(redis, "key:x", "one", share=0.4), gateway(redis, "key:x", "other", share=1.0)
    one.take(7)
    await one.quotas.round()
    assert one.take(7)
    one.settle(1.0)
    one.allowance.touched_at -= IDLE_SECONDS + 1
    await one.quotas.round()
    assert one.allowance.forgotten
    one.allowance = one.quotas.allowance("key:x", "tokens", "month", LIMIT)
    assert not one.take(1)
    await one.quotas.round()
    assert one.allowance.now is not None
    assert one.allowance.now.used == 7
    other.take(LIMIT)
    await other.quotas.round()
    assert one.allowance.now.held + (other.allowance.now.held if other.allowance.now else 0) == LIMIT
    ((said, _),) = await read_spent(redis, [(one.allowance.key, "month")])
    assert said == 7


async def test_a_window_that_redis_is_in_sooner_than_thought_has_one_quota(redis: Redis) -> None:
    one = gateway(redis, "key:x", "one", share=0.4)
    one.take(7)
    await one.quotas.round()
    early = one.allowance.now
    assert early is not None
    early.begins_at = time.monotonic() + 60.0  # as of an answer that took long; it was leased ahead
    one.allowance.now, one.allowance.ahead = None, early
    assert not one.take(7)
    await one.quotas.round()
    assert one.take(7)
    one.settle(1.0)
    one.allowance.touched_at -= IDLE_SECONDS + 1
    await one.quotas.round()
    ((said, _),) = await read_spent(redis, [(one.allowance.key, "month")])
    assert said == 7


async def test_what_an_idle_gateway_spent_while_redis_was_away_counts_when_it_is_back() -> None:
    async with valkey() as server, Redis(unix_socket_path=str(server.socket)) as redis:
        one, other = gateway(redis, "key:x", "one", share=0.5), gateway(redis, "key:x", "other", share=1.0)
        one.take(40)
        await one.quotas.round()
        assert one.take(40)
        await server.end()
        one.settle(1.0)
        one.allowance.touched_at -= IDLE_SECONDS + 1
        for _ in range(3):
            await one.quotas.round()
            assert one.quotas.redis_gone
        assert one.quotas.allowance("key:x", "tokens", "month", LIMIT) is one.allowance
        await server.start()
        for _ in range(3):
            await one.quotas.round()
        assert one.allowance.forgotten
        assert one.quotas.allowance("key:x", "tokens", "month", LIMIT) is not one.allowance
        other.take(LIMIT)
        await other.quotas.round()
        assert other.allowance.now is not None
        assert other.allowance.now.held == LIMIT - 40
        ((said, _),) = await read_spent(redis, [(one.allowance.key, "month")])
        assert said == 40


async def test_an_allowance_that_is_asked_for_while_it_is_given_back_is_not_forgotten(redis: Redis) -> None:
    one = gateway(redis, "key:x", "one", share=0.4)
    one.take(7)
    await one.quotas.round()
    one.allowance.touched_at -= IDLE_SECONDS + 1
    round_under_way = asyncio.create_task(one.quotas.round())
    await asyncio.sleep(0)
    assert one.allowance.now is not None
    assert one.allowance.now.held == 0
    assert not one.take(7)
    await round_under_way
    assert not one.allowance.forgotten
    await one.quotas.round()
    assert one.take(7)


async def test_a_lowered_limit_counts_at_once_and_a_raised_one_lets_more_through(redis: Redis) -> None:
    one = gateway(redis, "key:x", "one", share=1.0)
    one.take(10)
    await one.quotas.round()
    assert one.take(10)
    one.quotas.allowance("key:x", "tokens", "month", 12)
    assert not one.take(10)
    await one.quotas.round()
    assert one.take(2)
    assert not one.take(1)
    one.quotas.allowance("key:x", "tokens", "month", 50)
    await one.quotas.round()
    assert one.take(38)
    assert not one.take(1)


async def test_another_share_holds_for_the_allowances_that_are_there(redis: Redis) -> None:
    one = gateway(redis, "key:x", "one", share=0.1)
    one.take(1)
    await one.quotas.round()
    for share, least, most in ((0.5, 50, 60), (0.02, 2, 4)):
        one.quotas.set_share(share)
        assert one.allowance.now is not None
        one.allowance.now.told_at -= 2.0
        await one.quotas.round()
        assert least <= one.allowance.now.held <= most


async def test_before_a_window_ends_who_spends_has_a_quota_of_the_next(redis: Redis) -> None:
    quotas = Quotas(redis, "one", 0.1, 5.0)
    allowance = quotas.allowance("key:x", "requests", "day", LIMIT)
    allowance.units_asked = 1
    await quotas.round()
    first = allowance.now
    assert first is not None
    allowance.ahead = None
    first.ends_at = time.monotonic() + AHEAD_SECONDS / 2
    await quotas.round()
    ahead = allowance.ahead
    assert ahead is not None
    assert ahead.window == first.window + 1
    assert allowance.quota_at(ahead.begins_at) is ahead
    assert allowance.quota_at(ahead.ends_at) is None


async def test_a_quota_of_a_window_that_has_not_begun_is_not_spent_from(redis: Redis) -> None:
    allowance = Quotas(redis, "one", 0.1, 5.0).allowance("key:x", "requests", "minute", LIMIT)
    now = time.monotonic()
    allowance.ahead = Quota(7, now + 30, now + 90)
    assert allowance.quota_at(now) is None
    assert allowance.quota_at(now + 30) is not None


def at(*moment: int) -> float:
    return datetime(*moment, tzinfo=UTC).timestamp()  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(
    "moment", [(2024, 2, 29, 23, 59, 59), (2026, 1, 1), (2026, 12, 31, 12), (2000, 3, 1), (2100, 2, 28)]
)
def test_windows_are_minutes_days_and_months_of_utc(moment: tuple[int, ...]) -> None:
    now = at(*moment)
    for span in ("minute", "day", "month"):
        begins, ends = bounds_of(span, number_window(span, now))  # type: ignore[arg-type]
        assert begins <= now < ends
    begins, ends = bounds_of("month", number_window("month", now))
    assert datetime.fromtimestamp(begins, UTC).day == datetime.fromtimestamp(ends, UTC).day == 1
    assert number_window("month", ends) == number_window("month", begins) + 1


@given(st.integers(0, 4_102_444_800))
@settings(max_examples=200)
def test_redis_finds_the_same_month_as_the_calendar(valkey_socket: str, unix_seconds: int) -> None:
    text = LEASE[: LEASE.index("local time =")] + "return month_of(math.floor(tonumber(ARGV[1]) / 86400))"

    async def asked() -> int:
        async with Redis(unix_socket_path=valkey_socket) as redis:
            return int(await redis.eval(text, 0, str(unix_seconds)))  # type: ignore[misc]

    assert asyncio.run(asked()) == number_window("month", unix_seconds)
