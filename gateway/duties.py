"""Background duties: what has to happen beside requests. Whatever needs two rooms is a duty here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.house import House
from gateway.recycling import recycle_some
from gateway.shadows import run_shadows
from gateway.snapshot import Snapshot
from monitoring.records import Joined, flush_once
from serving.adapters.placer import World
from serving.adapters.registry import RegistryError
from serving.health import look
from serving.replica import Replica

log = logging.getLogger(__name__)
RECONCILE_INTERVAL_SECONDS = 1.0
PRESENCE_INTERVAL_SECONDS = 0.5
JUDGE_INTERVAL_SECONDS = 0.5
LEASE_SECONDS = 10
LAG_INTERVAL_SECONDS = 0.1
RETRY_SECONDS = 0.25
RETRY_SECONDS_MAX = 2.0
STOP_SECONDS_MAX = 5.0

RENEW = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 2 end
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return 1 end
return 0
"""
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class DutyLease:
    """Who of all gateways has a duty: one at a time, for as long as it renews."""

    def __init__(self, redis: Redis, duty: str, owner: str) -> None:
        self._renew = redis.register_script(RENEW)
        self._release = redis.register_script(RELEASE)
        self._key = f"apprentice:duty:{duty}"
        self._owner = owner
        self.taken_anew = False
        """Set when the duty was taken, not just kept: another gateway may have had it since. For its user to clear."""

    async def mine(self) -> bool:
        """Take the duty or keep it. False while another gateway has it. Raises RedisError."""
        held = int(await self._renew(keys=[self._key], args=[self._owner, LEASE_SECONDS * 1000]))
        self.taken_anew = self.taken_anew or held == 2
        return held > 0

    async def do(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Do some of the duty if it is this gateway's; it is kept meanwhile, and the work is cancelled once another
        gateway has it. Whether it was done to its end. Raises what `work` raises, and RedisError."""
        if not await self.mine():
            return False
        tasks = working, _ = asyncio.ensure_future(work()), asyncio.ensure_future(self._keep())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            return working.done()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self) -> None:
        """Renew it; returns once another gateway has it."""
        held = True
        while held:
            await asyncio.sleep(LEASE_SECONDS / 3)
            held = await self.mine()

    async def give_back(self) -> None:
        """Let another gateway have it at once. Raises RedisError."""
        await self._release(keys=[self._key], args=[self._owner])


@asynccontextmanager
async def on_duty(house: House) -> AsyncIterator[None]:
    """All duties run while the block does. One that fails is logged and begun again; it takes nothing else down."""
    duties: dict[str, Callable[[House], Awaitable[None]]] = {
        "follow_snapshot": _follow_snapshot,
        "check_health": _check_health,
        "reconcile": _reconcile,
        "tell_presence": _tell_presence,
        "run_shadows": _run_shadows,
        "judge_rollouts": _judge_rollouts,
        "flush_records": _flush_records,
        "watch_lag": _watch_lag,
    }
    stopping = asyncio.Event()
    tasks = [
        asyncio.create_task(_again_and_again(house, name, duty, stopping), name=name) for name, duty in duties.items()
    ]
    try:
        yield
    finally:
        stopping.set()
        left = set(tasks)
        until = time.monotonic() + STOP_SECONDS_MAX
        while left and time.monotonic() < until:
            for task in left:
                task.cancel()  # more than once: a library may have taken the first for a time-out of its own
            _, left = await asyncio.wait(left, timeout=0.2)
        for task in left:
            log.error("duty %s did not stop", task.get_name())


async def _again_and_again(
    house: House, name: str, duty: Callable[[House], Awaitable[None]], stopping: asyncio.Event
) -> None:
    wait_seconds = RETRY_SECONDS
    while not stopping.is_set():
        began = time.monotonic()
        try:
            await duty(house)
        except (RedisError, OSError) as error:
            log.warning("duty %s: Redis can't be reached: %s", name, error)
        except Exception:
            log.exception("duty %s failed", name)
        lasted = time.monotonic() - began > RETRY_SECONDS_MAX
        wait_seconds = RETRY_SECONDS if lasted else min(2 * wait_seconds, RETRY_SECONDS_MAX)
        await asyncio.sleep(wait_seconds)


async def _follow_snapshot(house: House) -> None:
    await house.snapshot.follow(house.settings.snapshot_interval_seconds)


async def _check_health(house: House) -> None:
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


async def _reconcile(house: House) -> None:
    lease = DutyLease(house.redis, "reconcile", house.name)

    async def pass_over_fleet() -> None:
        if lease.taken_anew:
            lease.taken_anew = False
            await check_health(house)  # what was last seen may be from before the other's last step
        await reconcile_once(house)

    try:
        while True:
            house.stirred.clear()
            if not await lease.do(pass_over_fleet):
                await house.reconciler.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECONCILE_INTERVAL_SECONDS):
                    await house.stirred.wait()
    finally:
        await house.reconciler.stop()
        with contextlib.suppress(RedisError, OSError):  # it runs out by itself; the cancellation has to go on
            await lease.give_back()


async def reconcile_once(house: House) -> None:
    """One pass of the reconciler over what the gateways want and have under way. Raises RedisError."""
    snapshot = await house.snapshot.refresh()
    await house.presence.tell()
    roll = await house.presence.present()
    world = World(
        idle=lambda replica, version: roll.idle(replica, version, snapshot.generation),
        in_flight=roll.in_flight,
    )
    await house.reconciler.step(snapshot.versions, world)
    await recycle_some(house)
    await _keep_few_standbys(house, snapshot)


async def _keep_few_standbys(house: House, snapshot: Snapshot) -> None:
    """Unload the versions that have been on standby the longest, so that releases do not fill the engines."""
    for task, settings in house.settings.tasks.items():
        standbys = sorted(
            (v for v in snapshot.versions.values() if v.task == task and v.state == "standby"),
            key=lambda version: version.changed_at,
            reverse=True,
        )
        for version in standbys[settings.standbys_kept :]:
            note = f"{settings.standbys_kept} newer versions are on standby"
            with contextlib.suppress(RegistryError):  # an alias has taken it up meanwhile
                await house.registry.withdraw(version.name, note=note)
                await house.audit.append("system", "adapter.unload", version.name, after={"note": note})


async def _run_shadows(house: House) -> None:
    await run_shadows(house)


async def _judge_rollouts(house: House) -> None:
    lease = DutyLease(house.redis, "rollouts", house.name)
    try:
        while True:
            await lease.do(house.rollouts.step)
            await asyncio.sleep(JUDGE_INTERVAL_SECONDS)
    finally:
        with contextlib.suppress(RedisError, OSError):  # it runs out by itself; the cancellation has to go on
            await lease.give_back()


async def _tell_presence(house: House) -> None:
    try:
        while True:
            await house.presence.tell()
            await asyncio.sleep(PRESENCE_INTERVAL_SECONDS)
    except asyncio.CancelledError:  # not where Redis failed for a moment: what is under way here still counts
        with contextlib.suppress(RedisError, OSError):  # it is forgotten by itself
            await house.presence.leave()
        raise


async def _flush_records(house: House) -> None:
    while True:
        await house.records.some()
        await asyncio.sleep(house.settings.records.flush_interval_seconds)
        began = time.monotonic()
        while await flush_once(house.records, house.record_stream, lambda joined: note_joined(house, joined)):
            house.meters.records_flush_seconds.observe(time.monotonic() - began)
            began = time.monotonic()
            await asyncio.sleep(0)


def note_joined(house: House, joined: Joined) -> None:
    """Count feedback that had waited for its record."""
    record = joined.record
    metric = str(joined.feedback.get("metric"))
    house.meters.feedback.add(1, record.task or "", record.version or "", metric, joined.outcome)


async def _watch_lag(house: House) -> None:
    while True:
        began = time.monotonic()
        await asyncio.sleep(LAG_INTERVAL_SECONDS)
        lag = time.monotonic() - began - LAG_INTERVAL_SECONDS
        house.meters.event_loop_lag_seconds.observe(max(0.0, lag))
