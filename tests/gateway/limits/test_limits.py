"""What a request takes of its key's limits, and gives back: estimates, truths, and each of them once."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.callers import Caller, CallerLimits
from gateway.limits.limits import NANOS, Bound, Limits, bound_of
from gateway.limits.slices import Slice
from gateway.request_body import RequestBody, read_body
from gateway.settings import LimitSettings
from monitoring.cost import Price
from monitoring.metrics import Meters
from monitoring.records import Record

ALL = CallerLimits(100, 10_000, 1.0, 10.0)
BOUNDS = {"returns": Bound(4096, 1000.0, 2000.0)}


def body(**fields: Any) -> RequestBody:
    asked = {"model": "returns", "messages": [{"role": "user", "content": "A toaster."}], **fields}
    return read_body("chat", msgspec.json.encode(asked))


def record(**fields: Any) -> Record:
    found = Record(id="x", at=0.0, endpoint="chat", caller="c", model_asked="returns")
    for name, value in fields.items():
        setattr(found, name, value)
    return found


async def with_slices(limits: CallerLimits | None) -> tuple[Limits, Caller, list[Slice]]:
    """Limits of a gateway that holds all of the key's limits; Redis is not asked."""
    house = Limits(Redis(), "one", BOUNDS, Meters(), LimitSettings())
    caller = Caller("abcdefghijkl", "shop", "caller", "", frozenset({"*"}), None, limits)
    held = []
    for name, value in limits.items() if limits else ():
        unit = NANOS if name.startswith("usd") else 1
        allowance = house.slices.allowance(f"key:{caller.public}", name, "month", round(value * unit))
        now = time.monotonic()
        allowance.now = Slice(1, now, now + 3600)
        allowance.now.held = allowance.limit
        held.append(allowance.now)
    return house, caller, held


async def test_an_estimate_is_reserved_and_the_truth_is_taken_once() -> None:
    house, caller, held = await with_slices(ALL)
    hold = await house.take(caller, body(max_tokens=50), 300)
    assert hold is not None
    cost = 101 * 1000 + 50 * 2000 + 1
    assert [one.reserved for one in held] == [1, 101 + 50, cost, cost]
    hold.settle(record(prompt_tokens=40, completion_tokens=12, cost_usd=2e-6, wasted_usd=1e-6))
    assert [(one.reserved, one.used) for one in held] == [(0, 1), (0, 52), (0, 3000), (0, 3000)]
    with pytest.raises(RuntimeError):
        hold.settle(record())
    assert [one.used for one in held] == [1, 52, 3000, 3000]


async def test_without_max_tokens_what_the_task_allows_is_reserved_for_each_answer() -> None:
    house, caller, held = await with_slices(CallerLimits(tokens_per_minute=100_000))
    assert await house.take(caller, body(n=3), 30)
    assert held[0].reserved == 11 + 3 * 4096


async def test_a_request_that_may_need_more_than_the_limit_has_to_find_all_of_it() -> None:
    house, caller, held = await with_slices(CallerLimits(tokens_per_minute=1000))
    hold = await house.take(caller, body(), 30)
    assert hold is not None
    assert held[0].free == 0
    hold.settle(record(prompt_tokens=5, completion_tokens=5))
    assert held[0].free == 990


@pytest.mark.parametrize(
    ("known", "tokens"),
    [({}, 0), ({"completion_tokens": 7}, 101 + 7), ({"prompt_tokens": 5, "completion_tokens": 7}, 12)],
)
async def test_of_a_prompt_that_no_engine_has_counted_the_estimate_counts(known: dict[str, int], tokens: int) -> None:
    house, caller, held = await with_slices(CallerLimits(tokens_per_minute=10_000))
    hold = await house.take(caller, body(max_tokens=50), 300)
    assert hold is not None
    hold.settle(record(**known))
    assert (held[0].reserved, held[0].used) == (0, tokens)


async def test_a_key_without_limits_takes_nothing() -> None:
    house, caller, _ = await with_slices(None)
    assert await house.take(caller, body(), 30) is None
    assert await house.usage(caller) == {}


def test_the_dearest_price_counts_and_an_unknown_one_does_not() -> None:
    cheap, dear, hourly = Price(1, 2), Price(10, 20), Price(replica_usd_per_hour=3.6)
    assert bound_of(10, [cheap, None, dear]).nanos(1, 1) == 10_000 + 20_000 + 1
    assert bound_of(10, [None]).nanos(1000, 1000) == 1
    assert bound_of(10, [hourly]).nanos(1000, 1000) == 5 * NANOS // 1000 + 1
