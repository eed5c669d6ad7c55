"""A request's use of its key's limits: estimates, true counts, and each of them once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.callers import Caller, CallerLimits
from gateway.configuration.settings import LimitSettings
from gateway.errors import Problem
from gateway.formats.chat import CHAT
from gateway.formats.embeddings import EMBEDDINGS
from gateway.formats.request_body import RequestBody, read_body
from gateway.limits.caller_limits import NANOS, Bound, Limits, bound_of
from gateway.limits.quotas import Quota
from monitoring.cost import Price
from monitoring.metrics import Meters
from monitoring.records import AttemptRecord, Record

ALL = CallerLimits(100, 10_000, 1.0, 10.0)
BOUNDS = {"returns": Bound(4096, 1000.0, 2000.0)}


def body(**fields: Any) -> RequestBody:
    asked = {"model": "returns", "messages": [{"role": "user", "content": "A toaster."}], **fields}
    return read_body(CHAT, msgspec.json.encode(asked))


def record(**fields: Any) -> Record:
    found = Record(id="x", at=0.0, endpoint="chat", caller="c", requested_model="returns")
    for name, value in fields.items():
        setattr(found, name, value)
    return found


async def with_quotas(limits: CallerLimits | None) -> tuple[Limits, Caller, list[Quota]]:
    """Limits of a gateway that holds all of the key's limits; Redis is not asked."""
    services = Limits(Redis(), "one", BOUNDS, Meters(), LimitSettings())
    caller = Caller("abcdefghijkl", "shop", "caller", "", frozenset({"*"}), None, limits)
    held = []
    for name, value in limits.items() if limits else ():
        unit = NANOS if name.startswith("usd") else 1
        allowance = services.quotas.allowance(f"key:{caller.public}", name, "month", round(value * unit))
        now = time.monotonic()
        allowance.now = Quota(1, now, now + 3600)
        allowance.now.held = allowance.limit
        held.append(allowance.now)
    return services, caller, held


async def test_an_estimate_is_reserved_and_the_truth_is_taken_once() -> None:
    services, caller, held = await with_quotas(ALL)
    hold = await services.take(caller, body(max_tokens=50), 300)
    assert hold is not None
    cost = 101 * 1000 + 50 * 2000 + 1
    assert [one.reserved for one in held] == [1, 101 + 50, cost, cost]
    hold.settle(record(prompt_tokens=40, completion_tokens=12, cost_usd=2e-6, wasted_usd=1e-6))
    assert [(one.reserved, one.used) for one in held] == [(0, 1), (0, 52), (0, 3000), (0, 3000)]
    with pytest.raises(RuntimeError):
        hold.settle(record())
    assert [one.used for one in held] == [1, 52, 3000, 3000]


async def test_what_engines_took_for_answers_that_were_rejected_counts_too() -> None:
    services, caller, held = await with_quotas(ALL)
    rejected_alone = {"wasted_tokens": 30, "wasted_usd": 2e-6}
    for more, tokens in (({"prompt_tokens": 40, "completion_tokens": 12}, 82), ({}, 112)):
        hold = await services.take(caller, body(max_tokens=50), 300)
        assert hold is not None
        hold.settle(record(**more, **rejected_alone))
        assert held[1].used == tokens
    assert held[2].used == 4000


async def test_request_that_needs_no_engine_takes_one_request_however_little_is_left() -> None:
    services, caller, held = await with_quotas(ALL)
    for one in held[1:]:
        one.used = one.held + 5
    spent = [one.used for one in held[1:]]
    async with services.spending(caller) as headers:
        assert headers["x-ratelimit-limit-requests"] == "100"
        assert [one.reserved for one in held] == [1, 0, 0, 0]
    assert [(one.reserved, one.used) for one in held] == [(0, 1), *((0, each) for each in spent)]
    async with services.spending(Caller("c", "c", "caller", "", frozenset({"*"}))) as headers:
        assert headers == {}


async def test_entries_are_spent_together_whatever_becomes_of_them() -> None:
    services, caller, held = await with_quotas(ALL)
    with pytest.raises(Problem) as raised:
        async with services.spending(caller, 7):
            raise Problem("request_not_found", "x")
    assert dict(raised.value.extra_headers)[b"x-ratelimit-limit-requests"] == b"100"
    assert [(one.reserved, one.used) for one in held] == [(0, 7), (0, 0), (0, 0), (0, 0)]


async def test_without_max_tokens_what_the_task_allows_is_reserved_for_each_answer() -> None:
    services, caller, held = await with_quotas(CallerLimits(tokens_per_minute=100_000))
    assert await services.take(caller, body(n=3), 30)
    assert held[0].reserved == 11 + 3 * 4096


async def test_of_embeddings_the_texts_tokens_alone_are_reserved() -> None:
    services, caller, held = await with_quotas(CallerLimits(tokens_per_minute=5000))
    assert await services.take(caller, read_body(EMBEDDINGS, b'{"model":"returns","input":["a","b"]}'), 30)
    assert held[0].reserved == 11


async def test_a_request_that_may_need_more_than_the_limit_has_to_find_all_of_it() -> None:
    services, caller, held = await with_quotas(CallerLimits(tokens_per_minute=1000))
    hold = await services.take(caller, body(), 30)
    assert hold is not None
    assert held[0].free == 0
    hold.settle(record(prompt_tokens=5, completion_tokens=5))
    assert held[0].free == 990


@pytest.mark.parametrize(
    ("known", "tokens"),
    [
        ({"outcome": "failed"}, 0),
        ({"outcome": "ok"}, 101 + 50),
        ({"outcome": "ok", "stream": True}, 101),
        ({"completion_tokens": 7}, 101 + 7),
        ({"prompt_tokens": 5, "completion_tokens": 7}, 12),
    ],
)
async def test_of_a_prompt_that_no_engine_has_counted_the_estimate_counts(known: dict[str, int], tokens: int) -> None:
    services, caller, held = await with_quotas(CallerLimits(tokens_per_minute=10_000))
    hold = await services.take(caller, body(max_tokens=50), 300)
    assert hold is not None
    hold.settle(record(**known))
    assert (held[0].reserved, held[0].used) == (0, tokens)


async def test_a_key_without_limits_takes_nothing() -> None:
    services, caller, _ = await with_quotas(None)
    assert await services.take(caller, body(), 30) is None
    assert await services.usage(caller) == {}


def test_the_dearest_price_counts_and_an_unknown_one_does_not() -> None:
    cheap, dear, hourly = Price(1, 2), Price(10, 20), Price(replica_usd_per_hour=3.6)
    assert bound_of(10, [cheap, None, dear]).nanos(1, 1) == 10_000 + 20_000 + 1
    assert bound_of(10, [None]).nanos(1000, 1000) == 1
    assert bound_of(10, [hourly]).nanos(1000, 1000) == 5 * NANOS // 1000 + 1


def cut_off(fault: str | None, outcome: str = "cancelled", **fields: Any) -> Record:
    attempts = [AttemptRecord("small", "small-0", None, fault, 1.0)]
    return record(outcome=outcome, attempts=attempts, pool="small", **fields)


@pytest.mark.parametrize(
    ("told", "completion"),
    [
        (cut_off("cancelled"), 50),
        (cut_off("cancelled", stream=True), 0),
        (cut_off("cancelled", stream=True, completion_tokens=7), 7),
        (cut_off(None, stream=True, completion_tokens=7), 7),
        (cut_off(None, "truncated", stream=True, completion_tokens=7), 7),
        (cut_off("dropped", "truncated", stream=True, completion_tokens=7), 7),
    ],
)
async def test_a_hang_up_or_a_broken_stream_spends_the_prompt_and_what_may_have_been_made(
    told: Record, completion: int
) -> None:
    services, caller, held = await with_quotas(ALL)
    hold = await services.take(caller, body(max_tokens=50), 300)
    assert hold is not None
    hold.settle(told, Price(1.0, 2.0))
    nanos = 101 * 1000 + completion * 2000
    assert [(one.reserved, one.used) for one in held] == [(0, 1), (0, 101 + completion), (0, nanos), (0, nanos)]


@pytest.mark.parametrize(
    ("told", "price", "tokens", "nanos"),
    [
        (record(outcome="cancelled"), Price(1.0, 2.0), 0, 0),
        (cut_off("failed"), Price(1.0, 2.0), 0, 0),
        (cut_off("dropped", "failed"), Price(1.0, 2.0), 0, 0),
        (record(outcome="truncated", prompt_tokens=40, completion_tokens=9, cost_usd=1e-6), Price(1.0, 2.0), 49, 1000),
        (cut_off("cancelled"), None, 151, 0),
        (cut_off("cancelled", wasted_usd=1e-6), Price(replica_usd_per_hour=3.6), 151, 1000),
        (cut_off(None, prompt_tokens=40, completion_tokens=9, wasted_usd=1e-6), Price(1.0, 2.0), 49, 1000),
    ],
)
async def test_what_no_engine_was_at_work_on_or_is_known_anyway_is_not_estimated(
    told: Record, price: Price | None, tokens: int, nanos: int
) -> None:
    services, caller, held = await with_quotas(ALL)
    hold = await services.take(caller, body(max_tokens=50), 300)
    assert hold is not None
    hold.settle(told, price)
    assert [one.used for one in held] == [1, tokens, nanos, nanos]


@asynccontextmanager
async def one_and_other(redis: Redis) -> AsyncIterator[tuple[Limits, Limits, Caller]]:
    """Two gateways' limits on one Valkey, of which the first fetches quotas by itself; a key of a dollar a day."""
    patient = LimitSettings(lease_timeout_seconds=20)
    one, other = (Limits(redis, name, BOUNDS, Meters(), patient) for name in ("one", "other"))
    caller = Caller("abcdefghijkl", "shop", "caller", "", frozenset({"*"}), None, CallerLimits(usd_per_day=1.0))
    keeping = asyncio.create_task(one.quotas.keep(lambda: None))
    yield one, other, caller
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_that_a_limit_had_no_room_a_while_ago_refuses_nobody(redis: Redis) -> None:
    async with one_and_other(redis) as (one, _, caller):
        hold = await one.take(caller, body(max_tokens=50), 0)
        assert hold is not None
        hold.settle(record())
        allowance, _ = one._purses[caller.public].allowances[0]
        held = allowance.now
        assert held is not None
        while held.told_held != held.held or held.free == 0:
            await one.quotas.round_over(20)
        held.held, held.dry, held.told_at = held.used + allowance.target, True, time.monotonic() - 60
        assert await one.take(caller, body(max_tokens=400_000), 0), "Redis is asked, and has room"


async def test_a_limit_that_redis_says_has_no_room_refuses(redis: Redis) -> None:
    async with one_and_other(redis) as (one, other, caller):
        allowance = other._purse(caller.public, caller.limits or ALL).allowances[0][0]
        allowance.units_asked = NANOS
        await other.quotas.round()
        with pytest.raises(Problem, match="US dollars a day"):
            await one.take(caller, body(max_tokens=400_000), 0)


async def test_a_purse_of_which_one_allowance_was_given_back_is_made_anew(redis: Redis) -> None:
    async with one_and_other(redis) as (one, _, caller):
        both = Caller("abcdefghijkm", "shop", "caller", "", caller.models, None, CallerLimits(100, None, 1.0))
        assert await one.take(both, body(max_tokens=5), 0)
        requests, money = (allowance for allowance, _ in one._purses[both.public].allowances)
        one.quotas._allowances.pop(money.key)
        money.forgotten, money.now = True, None
        assert await one.take(both, body(max_tokens=5), 0)
        anew = [allowance for allowance, _ in one._purses[both.public].allowances]
        assert anew[0] is requests
        assert anew[1] is not money
        assert anew[1].now is not None
        assert anew[1].now.reserved > 0
