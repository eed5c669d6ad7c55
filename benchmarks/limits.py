"""What a key's limits cost on a request's path: taking before it is routed, headers, and settling at its end.

    python -m benchmarks.limits

The quotas are there already, as they are for all but a key's first request, so Redis is not asked.
"""

from __future__ import annotations

import asyncio
import time

import msgspec
from redis.asyncio import Redis

from gateway.callers import Caller, CallerLimits
from gateway.configuration.settings import LimitSettings
from gateway.formats.chat import CHAT
from gateway.formats.request_body import RequestBody, read_body
from gateway.limits.caller_limits import Bound, Limits
from gateway.limits.quotas import Quota
from monitoring.metrics import Meters
from monitoring.records import Record

ROUNDS = 5
TIMES = 20_000
PLENTY = 10**12
BODY = msgspec.json.encode(
    {
        "model": "returns",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}],
    }
)
ALL = CallerLimits(PLENTY, PLENTY, 1_000_000.0, 1_000_000.0)
RATES = CallerLimits(PLENTY, PLENTY)


def measured(limits: CallerLimits | None, with_headers: bool) -> float:
    """Microseconds that one request takes; the best of several rounds."""
    return min(asyncio.run(_round(limits, with_headers)) for _ in range(ROUNDS))


async def _round(limits: CallerLimits | None, with_headers: bool) -> float:
    bounds = {"returns": Bound(4096, 1000.0, 2000.0)}
    services = Limits(Redis(), "bench", bounds, Meters(), LimitSettings())
    caller = Caller("bench0000000", "bench", "caller", "", frozenset({"*"}), None, limits)
    body = read_body(CHAT, BODY)
    record = Record(id="x", at=0.0, endpoint="chat", caller="bench", requested_model="returns", cost_usd=1e-5)
    record.prompt_tokens, record.completion_tokens = 40, 12
    for name, limit in limits.items() if limits else ():
        unit = 1 if name.endswith("minute") else 10**9
        allowance = services.quotas.allowance(f"key:{caller.public}", name, "month", round(limit * unit))
        now = time.monotonic()
        allowance.now = Quota(1, now, now + 3600)
        allowance.now.held = PLENTY * 10**6
    await _requests(services, caller, body, record, with_headers)
    began = time.perf_counter()
    await _requests(services, caller, body, record, with_headers)
    return (time.perf_counter() - began) / TIMES * 1e6


async def _requests(services: Limits, caller: Caller, body: RequestBody, record: Record, with_headers: bool) -> None:
    for _ in range(TIMES):
        hold = await services.take(caller, body, 120)
        if hold is not None:
            if with_headers:
                hold.purse.headers()
            hold.settle(record)


def main() -> None:
    """Print a line for each kind of key."""
    for name, limits in (("no limits", None), ("two rates", RATES), ("two rates, two budgets", ALL)):
        print(
            f"{name:24} take and settle {measured(limits, False):5.2f} µs, headers too {measured(limits, True):5.2f} µs"
        )


if __name__ == "__main__":
    main()
