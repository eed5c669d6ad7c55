"""Every gateway looks at every replica with its own eyes, and adopts what is loaded there."""

from __future__ import annotations

import asyncio
import contextlib
import time

from redis.exceptions import RedisError

from gateway.house import House
from serving.health import look
from serving.replica import Replica


async def keep_checking_health(house: House) -> None:
    """Look once an interval, and at once where there is more than was seen. Ends with its task."""
    while True:
        began_at = house.snapshot.current.generation
        until = time.monotonic() + house.settings.health_interval_seconds
        await check_health(house)
        while (left := until - time.monotonic()) > 0:
            if house.snapshot.current.generation != began_at and _has_more_than_seen(house):
                break  # another gateway has loaded it, and an alias may move to it at once
            await house.snapshot.next(left)


def _has_more_than_seen(house: House) -> bool:
    """Whether a replica that is up is written down to have a version ready that was not to be seen there yet."""
    up = {replica.name: replica.seen for replica in house.fleet.replicas.values() if replica.up}
    placements = house.snapshot.current.placements.values()
    return any(p.state == "ready" and p.version not in up[p.replica] for p in placements if p.replica in up)


async def check_health(house: House) -> None:
    """Look at every replica once, and adopt what is loaded there. One that is slow keeps none of the others waiting."""
    await asyncio.gather(*(_look_and_adopt(house, replica) for replica in house.fleet.replicas.values()))


async def _look_and_adopt(house: House, replica: Replica) -> None:
    snapshot = house.snapshot.current
    written = (p.life for p in snapshot.placements.values() if p.replica == replica.name)
    await look(house.fleet, replica, house.http, anew=any(life != replica.life for life in written))
    snapshot = house.snapshot.current
    if replica.up and (replica.seen.keys() & snapshot.versions.keys()) - replica.loaded:
        with contextlib.suppress(RedisError, OSError):  # without Redis by what was last read
            snapshot = await house.snapshot.refresh()  # what is listed newly may be being probed: read where it stands
    house.reconciler.adopt(replica, snapshot.versions.values(), snapshot.placements)
