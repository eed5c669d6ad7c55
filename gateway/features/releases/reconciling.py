"""Background job of one gateway: load on the engines the versions that admins want, and unload the others."""

from __future__ import annotations

import contextlib
import time

from gateway.features.releases.recycling import recycle_some
from gateway.features.releases.state import Releases
from gateway.fleet_health import check_health
from gateway.state.snapshot import Snapshot
from monitoring.redis_time import read_redis_time
from serving.adapters.loader import World
from serving.adapters.registry import RegistryError
from serving.adapters.versions_and_aliases import Version
from serving.object_store import Change, Unreadable

RECONCILE_INTERVAL_SECONDS = 1.0
NOTE_CHARACTERS_MAX = 2000


async def keep_reconciling(releases: Releases) -> None:
    """Reconcile once a second, and at each new snapshot, while this gateway has the lease. Raises RedisError."""
    lease = releases.services.lease_job("reconcile")

    async def pass_over_fleet() -> None:
        if lease.is_new:
            lease.is_new = False
            await check_health(releases.services)  # the last look may be older than the other gateway's last step
        await reconcile_once(releases)

    adapters = releases.services.control.adapters
    await lease.repeat(
        pass_over_fleet, RECONCILE_INTERVAL_SECONDS, wake=adapters.snapshot_changed, stop=adapters.reconciler.stop
    )


async def reconcile_once(releases: Releases) -> None:
    """Do one pass of the reconciler, with the present wishes and the requests of all gateways. Raises RedisError."""
    snapshot = await releases.services.snapshot.refresh()
    roll = await releases.services.control.presence.present()
    offset = await read_redis_time(releases.services.redis) - time.monotonic()
    world = World(
        idle=lambda replica, version: roll.idle(replica, version, snapshot.generation),
        in_flight=roll.in_flight,
        clock=lambda: time.monotonic() + offset,
    )
    step = releases.services.begin_step("system")

    def note_failure(before: Version, after: Version, generation: int) -> list[Change]:
        was, now = {"state": before.state}, {"state": after.state, "note": after.note[:NOTE_CHARACTERS_MAX]}
        return step.note("adapter.stage_failed", after.name, was, now, generation=generation)

    reconciler = releases.services.control.adapters.reconciler
    await reconciler.step(snapshot.versions, world, snapshot.unreadable, note_failure)
    await step.enter()
    await recycle_some(releases)
    await _keep_few_previous_versions(releases, snapshot)


async def _keep_few_previous_versions(releases: Releases, snapshot: Snapshot) -> None:
    """Unload the previous versions that are loaded the longest, so that releases do not fill the engines."""
    by_task: dict[str, list[Version]] = {}
    for version in snapshot.versions.values():
        if version.state == "previous_version" and version.task in releases.services.settings.tasks:
            by_task.setdefault(version.task, []).append(version)
    for task, previous_versions in by_task.items():
        settings = releases.services.settings.tasks[task]
        previous_versions.sort(key=lambda version: version.changed_at, reverse=True)
        for version in previous_versions[settings.previous_versions_kept :]:
            note = f"{settings.previous_versions_kept} newer previous versions stay loaded"
            # an alias uses it again meanwhile, or a newer release has moved it
            with contextlib.suppress(RegistryError, Unreadable):
                step = releases.services.begin_step("system")
                noted = step.noted(
                    "adapter.unload", version.name, lambda moved: {"state": moved.state, "note": moved.note}
                )
                await releases.services.control.registry.withdraw(version.name, note=note, noted=noted)
                await step.enter()
