"""A task that the monitor watches, as walks look at it: its shares set, its shadows' records found."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from redis.asyncio import Redis

from gateway.features.quality.state import Quality
from monitoring.quality.phases import Verdict
from monitoring.quality.verdicts.quality import Pin, TaskQuality, VersionQuality
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import QUICK, V1, shadows, with_contract


@asynccontextmanager
async def watching(
    configure: Configure,
    make_adapter: MakeAdapter,
    *,
    shadow_share: float = 1.0,
    review_share: float = 0.0,
    judge: dict[str, Any] | None = None,
    versions: int = 1,
    contract: bool = False,
    task: dict[str, Any] | None = None,
    **sections: Any,
) -> AsyncIterator[tuple[RunningGateway, httpx.AsyncClient]]:
    """A gateway that serves `returns` by its newest version and draws requests with these shares; an admin's client."""
    monitor: dict[str, Any] = {"shadow_share": shadow_share, "reviews": {"per_week": 10_000 if review_share else 0}}
    monitor |= {"judge": judge} if judge else {}
    sections = QUICK | {"tasks": {"returns": {"monitor": monitor, **(task or {})}}} | sections
    configuration = configure(**sections)
    async with Redis.from_url(configuration["redis_url"]) as redis:
        await redis.set("apprentice:duty:monitor", "another gateway")  # what a test sets stays as it is
    async with run_gateway(configuration) as running, running.http() as http:
        for number in range(1, versions + 1):
            folder = make_adapter(number)
            await running.place(with_contract(folder) if contract else folder)
        await watch(running, shadow_share=shadow_share, review_share=review_share)
        yield running, http


async def watch(running: RunningGateway, **health: Any) -> None:
    """Set what is known of the task, and wait until the gateway goes by it."""
    store = running.features[Quality].store
    _, generation = await store.of("returns")
    wanted = TaskQuality(**health)
    await store.put("returns", wanted, generation)

    async def is_known() -> bool:
        return running.services.snapshot.current.quality.get("returns") == wanted

    await until(is_known)


def found(verdict: Verdict) -> VersionQuality:
    """A version on which this verdict stands."""
    return VersionQuality(verdict=verdict, pin=Pin(verdict=verdict, by="test", reason="a test", at=1.0))


async def arms(running: RunningGateway, count: int = 1) -> list[dict[str, Any]]:
    """The records of shadows that were drawn for both arms to answer, once there are so many."""

    async def so_many() -> list[dict[str, Any]]:
        told = [one for one in await shadows(running) if one["pair"]["arm"] is not None]
        return told if len(told) >= count else []

    return list(await until(so_many))


__all__ = ["V1", "arms", "found", "watch", "watching"]
