"""Caps on what a task sends to its fallback: the share that is counted, and the fact that the router decides by."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.configuration.settings import LimitSettings
from gateway.formats.chat import CHAT
from gateway.formats.request_body import read_body
from gateway.limits.caller_limits import NANOS, Bound, Limits
from gateway.limits.fallback_caps import REQUESTS_MIN, Cap, FallbackCaps, FallbackHold, ShareWindow
from gateway.limits.quotas import Allowance
from monitoring.cost import Price
from monitoring.metrics import Meters
from monitoring.records import AttemptRecord, Record

CAPPED = {"returns": Cap(None, 1.0)}
TO_THE_EXIT: Any = SimpleNamespace(
    task=SimpleNamespace(name="returns"), version=None, pool=SimpleNamespace(name="general")
)


def test_the_share_of_all_requests_in_the_window_opens_and_closes_the_fallback() -> None:
    counted = ShareWindow(0.25, 100.0)
    for _ in range(100):
        counted.count(10.0, 1, 0)
    for _ in range(25):
        assert counted.has_room(10.0)
        counted.count(10.0, 0, 1)
    assert not counted.has_room(10.0)
    counted.count(20.0, 4, 0)
    assert counted.has_room(20.0)


def test_what_is_older_than_the_window_counts_no_more() -> None:
    counted = ShareWindow(0.5, 100.0)
    for _ in range(10):
        counted.count(0.0, 1, 1)
    assert not counted.has_room(90.0)
    assert counted.has_room(101.0)


@pytest.mark.parametrize(("share", "first"), [(0.0, 0), (0.2, 4), (1.0, 20)])
def test_few_requests_count_as_if_they_were_more(share: float, first: int) -> None:
    counted = ShareWindow(share, 100.0)
    sent = 0
    while counted.has_room(1.0) and sent < REQUESTS_MIN:
        counted.count(1.0, 0, 1)
        sent += 1
    assert sent == first


def test_a_share_of_all_stays_open_however_many_are_under_way() -> None:
    counted = ShareWindow(1.0, 100.0)
    for _ in range(3 * REQUESTS_MIN):
        assert counted.has_room(1.0)
        counted.count(1.0, 0, 1)


def record(**fields: Any) -> Record:
    return Record(id="x", at=0.0, endpoint="chat", caller="c", requested_model="returns", task="returns", **fields)


def went(fallback_caps: FallbackCaps) -> tuple[FallbackHold, Allowance]:
    asked = {"model": "returns", "messages": [{"role": "user", "content": "A toaster."}], "max_tokens": 100}
    hold = fallback_caps.hold_for(TO_THE_EXIT, None, read_body(CHAT, msgspec.json.encode(asked)), record())
    assert hold is not None
    return hold, fallback_caps._money["returns"]


def fallbacks_of(redis: Redis, caps: dict[str, Cap]) -> tuple[FallbackCaps, Limits]:
    limits = Limits(redis, "one", {"general": Bound(10, 1000.0, 1e6)}, Meters(), LimitSettings(lease_timeout_seconds=5))
    return FallbackCaps(caps, 60.0, limits), limits


async def test_what_is_under_way_while_a_reload_takes_its_cap_away_is_settled_all_the_same(redis: Redis) -> None:
    fallbacks, _ = fallbacks_of(redis, CAPPED)
    await fallbacks.begin()
    hold, allowance = went(fallbacks)
    held = allowance.quota_at(time.monotonic())
    assert held is not None
    assert held.reserved > 0
    fallbacks.apply_settings({}, 60.0)
    fallbacks.settle(record(cost_usd=0.1), hold)
    fallbacks.apply_settings(CAPPED, 60.0)
    assert (held.reserved, held.used) == (0, NANOS // 10)


async def test_a_cap_that_a_reload_adds_does_not_close_its_fallback_until_redis_was_asked(redis: Redis) -> None:
    fallbacks, limits = fallbacks_of(redis, {})
    await fallbacks.begin()
    fallbacks.apply_settings(CAPPED, 60.0)
    fallbacks.look()
    assert fallbacks.closed == set()
    await limits.quotas.round(whole=False)
    assert fallbacks._money["returns"].now is not None, "it is asked for at once"
    fallbacks.look()
    assert fallbacks.closed == set()


async def test_a_cap_that_a_reload_adds_is_known_before_it_is_in_force(redis: Redis) -> None:
    fallbacks, limits = fallbacks_of(redis, {})
    await fallbacks.begin()
    keeping = asyncio.create_task(limits.quotas.keep(fallbacks.look))
    await fallbacks.prepare({**CAPPED, "clauses": Cap(0.5, None)})
    fallbacks.apply_settings(CAPPED, 60.0)
    assert fallbacks._money["returns"].now is not None
    keeping.cancel()
    await asyncio.wait([keeping])


async def test_who_hangs_up_on_a_fallback_has_spent_what_it_is_thought_to_have_cost(redis: Redis) -> None:
    fallbacks, _ = fallbacks_of(redis, CAPPED)
    await fallbacks.begin()
    hold, allowance = went(fallbacks)
    held = allowance.quota_at(time.monotonic())
    assert held is not None
    cut = record(outcome="cancelled", attempts=[AttemptRecord("general", "general-0", None, "cancelled", 1.0)])
    fallbacks.settle(cut, hold, Price(1.0, 1000.0))
    prompt, completion = hold.estimate
    assert (held.reserved, held.used) == (0, prompt * 1000 + completion * 1_000_000)


async def test_a_version_that_answered_as_its_fallback_failed_costs_the_fallback_nothing(redis: Redis) -> None:
    fallbacks, _ = fallbacks_of(redis, CAPPED)
    await fallbacks.begin()
    hold, allowance = went(fallbacks)
    fallbacks.settle(record(version="returns@v1", cost_usd=0.1, wasted_usd=0.02), hold)
    assert allowance.now is not None
    assert (allowance.now.reserved, allowance.now.used) == (0, round(0.02 * NANOS))


async def test_cap_below_the_estimate_of_a_request_stays_closed_once_it_is_spent(redis: Redis) -> None:
    fallbacks, limits = fallbacks_of(redis, {"returns": Cap(None, 0.05)})
    await fallbacks.begin()
    sent = 0
    for _ in range(300):
        await limits.quotas.round()
        fallbacks.look()
        if not fallbacks.closed:
            hold, _ = went(fallbacks)
            await limits.quotas.round()
            fallbacks.settle(record(cost_usd=0.01), hold)
            sent += 1
    assert sent == 5
