"""Budget alerts: a message to the webhook when a key has spent 80% of its budget, and one when it has spent all."""

from __future__ import annotations

import logging

from gateway.callers import Caller
from gateway.features.quality.state import Quality
from gateway.limits.caller_limits import LIMITS, MONEY, NANOS
from gateway.limits.quotas import PREFIX, SPAN_SECONDS, read_spent

log = logging.getLogger(__name__)
LEVELS = (1.0, 0.8)
"""Shares of a budget at which there is a message, the greatest first."""
TOLD_PREFIX = "apprentice:budgets:told:"


async def tell_budgets(quality: Quality) -> None:
    """Queue a message for each budget that has reached a level in its present window. Each level has one message, and
    another one after the budget was raised.

    One gateway does this, under the monitor's lease. Raises RedisError.
    """
    if quality.services.settings.monitor.webhook_url is None:
        return
    for caller in quality.services.snapshot.current.callers.values():
        if caller.limits is not None:
            await _tell_of(quality, caller)


async def _tell_of(quality: Quality, caller: Caller) -> None:
    redis = quality.services.redis
    assert caller.limits is not None
    budgets = [(name, limit) for name, limit in caller.limits.items() if LIMITS[name].kind == MONEY]
    of_each = await read_spent(
        redis, [(f"{PREFIX}key:{caller.public}:{name}", LIMITS[name].span) for name, _ in budgets]
    )
    for (name, limit), (units, ends_at) in zip(budgets, of_each, strict=True):
        usd = units / NANOS
        level = next((level for level in LEVELS if usd >= level * limit), None)
        if level is None:
            continue
        told_key = f"{TOLD_PREFIX}budget-{caller.public}-{name}-{int(ends_at)}-{level:g}"
        if limit <= float(await redis.get(told_key) or 0):
            continue
        body = {
            "kind": "budget",
            "key": caller.public,
            "name": caller.name,
            "owner": caller.person,
            "limit": name,
            "limit_usd": limit,
            "spent_usd": usd,
            "level": level,
            "resets_at": ends_at,
        }
        message = await quality.webhooks.message(f"{told_key.removeprefix(TOLD_PREFIX)}-{limit:g}", body)
        async with redis.pipeline(transaction=True) as step:
            step.set(told_key, limit, ex=SPAN_SECONDS[LIMITS[name].span])
            for write in message:
                step.hsetnx(write.key, write.field, write.value)
            await step.execute()
        log.warning("the key %s has spent %.0f%% of %s", caller.public, 100 * usd / limit, name)
