"""Reconciling: moves each replica from the versions it has to those it should have, in small steps.

One gateway at a time has this job, by a lease. Only that gateway loads, probes and unloads, and writes placements. All
gateways read them: `adopt` sets the versions that a replica may be sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Mapping, Sequence

from serving.adapters.loader import AdapterLoader, Pass, World, join_notes
from serving.adapters.placement import (
    HELD,
    UNDER_WAY,
    Capacity,
    Listed,
    Placement,
    Sight,
    Step,
    map_by_place,
    may_be_one_life,
    name_placement,
    next_step,
)
from serving.adapters.placement_plan import Demand, Room, spread
from serving.adapters.registry import Noted, Registry, RegistryError, note_nothing
from serving.adapters.versions_and_aliases import PLACED, WANTED, Version, VersionState
from serving.fleet import LEAVING_SECONDS_MAX, Fleet
from serving.object_store import Stale, Unreadable
from serving.replica import Replica

log = logging.getLogger(__name__)
STAGE_SECONDS_MAX = 600.0
DOWN_SECONDS_MAX = 30.0
"""A replica that is down for longer is skipped, and its versions are placed elsewhere."""
STEPS_MAX = 8
PASS_SECONDS_MAX = 5.0
FORGOTTEN_AT_ONCE = 200
OVER_SECONDS_MAX = 60.0
"""Seconds for which the generation of a removed placement is kept: several times a lease."""
BY_PRIORITY: tuple[VersionState, ...] = ("staging", "ready", "previous_version", "shadow", "canary", "active")
PRIORITY: Mapping[VersionState, int] = {state: at for at, state in enumerate(BY_PRIORITY)}
"""Priority if there is not room for all: the highest is placed first, and gives way last."""


class Reconciler:
    """Decides which versions each replica should hold, and has the loader take the steps there."""

    def __init__(self, fleet: Fleet, registry: Registry, loader: AdapterLoader) -> None:
        self._fleet = fleet
        self._registry = registry
        self._loader = loader
        self._down_since: dict[str, float] = {}
        self._gone_since: dict[str, float] = {}
        self._over_since: dict[str, float] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def explain_misfit(self, version: Version) -> str:
        """The reason why the version can't be loaded, as a sentence; empty if its pool serves its base model."""
        return self._loader.explain_misfit(version)

    def capacity(self, replica: Replica, placements: Mapping[tuple[str, str], Placement]) -> Capacity:
        """The capacity of the replica's engine, and its use."""
        return self._loader.capacity(replica, placements)

    def adopt(
        self, replica: Replica, versions: Mapping[str, Version], placements: Mapping[tuple[str, str], Placement]
    ) -> None:
        """Set the replica's loaded versions: those its engine lists that are ready for its process and fingerprint."""
        listed = [version for name in replica.seen if (version := versions.get(name)) and version.state in PLACED]
        there = frozenset(
            version.name
            for version in listed
            if self._proven(replica, version, placements.get((replica.name, version.name)))
        )
        if there != replica.loaded:
            replica.loaded = there
            self._fleet.changed()

    def _proven(self, replica: Replica, version: Version, placement: Placement | None) -> bool:
        return (
            placement is not None
            and placement.state == "ready"
            and may_be_one_life(placement.life, replica.life)
            and replica.seen.get(version.name) == self._loader.path_on(replica, version) == placement.path
            and not self.explain_misfit(version)
            and placement.fingerprint == self._loader.compute_fingerprint_on(replica, version)
        )

    async def step(
        self,
        versions: Mapping[str, Version],
        world: World,
        unreadable: Collection[str] = (),
        noted: Noted = note_nothing,
    ) -> None:
        """Make one pass: spread the wanted versions over the replicas, and bring each replica a few steps nearer to
        that. `noted` is stored in the same step as the end of a staging that has failed.

        Versions that are `unreadable` stay as they are on every replica, unless `versions` has them as last read. A
        replica with a placement that can't be read is left alone: nobody knows how full it is.

        Replicas are handled in parallel. Work on one that takes longer than PASS_SECONDS_MAX goes on beside the next
        passes, which skip that replica. Raises RedisError.
        """
        written, generations = await self._loader.written.all_with_generations()
        now = Pass(versions, map_by_place(written.values()), dict(generations), world, frozenset(unreadable))
        unsure = self._unsure()
        await self._forget_gone(now)
        for pool in self._fleet.pools:
            now.plan |= self._spread(pool, now)
        names = self._names_on_replicas(now)
        for replica in self._fleet.replicas.values():
            if replica.up and replica.name not in self._under_way and replica.name not in unsure:
                steps = self._step_on(replica, names[replica.name], now)
                self._under_way[replica.name] = asyncio.create_task(steps)
        try:
            if self._under_way:
                await asyncio.wait(self._under_way.values(), timeout=PASS_SECONDS_MAX)
        except asyncio.CancelledError:
            await self.stop()
            raise
        for name in [name for name, task in self._under_way.items() if task.done()]:
            try:
                self._under_way.pop(name).result()
            except (Stale, Unreadable) as moved:
                log.warning("reconcile: another gateway has taken over: %s", moved)
        await self._settle(now, noted)

    async def _forget_gone(self, now: Pass) -> None:
        """Delete placements on replicas that left long ago: most discovered ones never come back. Also delete
        generations of removed placements whose version is wanted nowhere, but not at once. Otherwise a gateway that had
        the job before might take a new placement for the one that it knows."""
        placed = {name_placement(*place) for place in now.placements}
        names = now.generations.keys() | placed
        places = {name: name.partition("/")[0] for name in names - self._loader.written.unreadable}
        moment, gone = time.monotonic(), {*places.values()} - self._fleet.replicas.keys()
        self._gone_since = {on: self._gone_since.get(on, moment) for on in gone}
        old = {on for on, since in self._gone_since.items() if moment - since > LEAVING_SECONDS_MAX}
        version_names = {version.name for version in now.versions.values() if version.state in WANTED}
        over = {name for name in places.keys() - placed if name.partition("/")[2] not in version_names}
        self._over_since = {name: self._over_since.get(name, moment) for name in over}
        old_names = {name for name, since in self._over_since.items() if moment - since > OVER_SECONDS_MAX}
        keys = [name for name, on in places.items() if on in old or name in old_names][:FORGOTTEN_AT_ONCE]
        await self._loader.placements.forget(keys)
        for name in keys:
            now.generations.pop(name, None)

    def _unsure(self) -> frozenset[str]:
        """The replicas with a placement that can't be read."""
        return frozenset(name.partition("/")[0] for name in self._loader.written.unreadable)

    async def stop(self) -> None:
        """Take no further step: this gateway stops, or another one has the job."""
        tasks = list(self._under_way.values())
        self._under_way.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spread(self, pool_name: str, now: Pass) -> dict[str, tuple[str, ...]]:
        """The replicas that should hold each version of a pool; empty for a pool that takes no adapters."""
        pool = self._fleet.pools[pool_name]
        demands = {
            version.name: Demand(now.world.in_flight(version.name), PRIORITY[version.state])
            for version in now.versions.values()
            if version.pool == pool_name and version.state in WANTED and not self.explain_misfit(version)
        }
        if not demands:
            return {}
        rooms = []
        for replica in self._fleet.in_pool(pool_name):
            if self._is_there(replica):
                ours = sum(1 for name in replica.seen if name in now.versions)
                capacity = self.capacity(replica, {})
                rooms.append(Room(replica.name, pool.max_loras, max(0, capacity.places - (capacity.registered - ours))))
        before: dict[str, set[str]] = {}
        for (on, name), placement in now.placements.items():
            if placement.state in HELD:
                before.setdefault(name, set()).add(on)
        plan = dict(spread(demands, rooms, pool.replicas_min, pool.in_flight_target, before))
        enough = min(pool.replicas_min or len(rooms), len(rooms))
        for name in demands:  # a new version gets at least its minimum of copies, or none
            if now.versions[name].state == "staging" and len(plan.get(name, ())) < enough:
                plan[name] = ()
        return plan

    def _is_there(self, replica: Replica) -> bool:
        now = time.monotonic()
        if replica.up:
            self._down_since.pop(replica.name, None)
            return True
        return bool(replica.life) and now - self._down_since.setdefault(replica.name, now) < DOWN_SECONDS_MAX

    def _names_on_replicas(self, now: Pass) -> dict[str, list[str]]:
        """The versions that each replica should have, has, or is recorded to have: the most important first.

        Other versions need no step there. To check all versions on every replica took seconds in a large fleet.
        """
        names = {replica.name: set(replica.seen) & now.versions.keys() for replica in self._fleet.replicas.values()}
        places = [*now.placements, *((on, name) for name, planned in now.plan.items() for on in planned)]
        for on, name in places:
            if on in names:
                names[on].add(name)

        def rank(name: str) -> tuple[int, str]:
            version = now.versions.get(name)
            return (1 if version is None else -PRIORITY.get(version.state, -1)), name

        return {
            on: sorted((name for name in there if self._is_of_pool(on, name, now)), key=rank)
            for on, there in names.items()
        }

    def _is_of_pool(self, replica: str, name: str, now: Pass) -> bool:
        version = now.versions.get(name)
        return version is None or version.pool == self._fleet.replicas[replica].config.pool

    async def _step_on(self, replica: Replica, names: Sequence[str], now: Pass) -> None:
        """Take steps on one replica, for its versions in order, until the pass's state is too old."""
        until = time.monotonic() + PASS_SECONDS_MAX
        for name in names:
            for _ in range(STEPS_MAX):
                if not replica.up or time.monotonic() > until:
                    return
                version = now.versions.get(name)
                step = self._next(replica, name, version, now)
                if step == "none" or not await self._loader.take(step, replica, name, version, now):
                    break

    def _is_wanted(self, replica: Replica, name: str, now: Pass) -> bool:
        """True if the plan has the version there. A ready version also stays until each of its planned replicas is
        ready, or failed beside one that is ready."""
        planned = now.plan.get(name, ())
        placement = now.placements.get((replica.name, name))
        if replica.name in planned or placement is None or placement.state != "ready":
            return replica.name in planned
        states = {p.state if (p := now.placements.get((target, name))) else None for target in planned}
        return bool(states) and ("ready" not in states or bool(states - {"ready", "failed"}))

    def _next(self, replica: Replica, name: str, version: Version | None, now: Pass) -> Step:
        placement = now.placements.get((replica.name, name))
        if version is None:
            return "forget" if placement is not None and name not in now.unreadable else "none"
        there = replica.seen.get(name)
        listed: Listed = "not" if there is None else "elsewhere"
        if there == self._loader.path_on(replica, version):
            listed = "here"
        fits = not self.explain_misfit(version)
        sight = Sight(
            wanted=fits and version.state in WANTED and self._is_wanted(replica, name, now),
            listed=listed,
            life=replica.life,
            fingerprint=self._loader.compute_fingerprint_on(replica, version) if fits else "",
            idle=now.world.idle(replica.name, name),
            now=now.world.clock(),
            asked_at=version.changed_at if version.state == "staging" else 0.0,
            drain_seconds_max=self._fleet.pools[version.pool].drain_seconds_max,
        )
        step = next_step(placement, sight)
        return "none" if step == "load" and not self._may_load(replica, version, now) else step

    def _may_load(self, replica: Replica, version: Version, now: Pass) -> bool:
        """True, except for a new version that is not yet ready on the first of its replicas. The others load it after
        that one, so that an adapter that is wrong, or ends its engine, meets one engine alone."""
        if version.state != "staging":
            return True
        placed = now.of(version.name)
        if any(placement.state == "ready" for placement in placed.values()):
            return True
        tried = {on: placement.state for (on, _), placement in placed.items() if placement.since >= version.changed_at}
        under_way = [on for on, state in tried.items() if state in UNDER_WAY]
        up = (on for on in now.plan.get(version.name, ()) if (there := self._fleet.replicas.get(on)) and there.up)
        coming = under_way or [on for on in up if on not in tried]
        return not coming or coming[0] == replica.name

    async def _settle(self, now: Pass, noted: Noted) -> None:
        """Advance the versions whose placements allow it: staged ones to ready, draining ones to retired."""
        unsure = self._unsure()
        for version in now.versions.values():
            moves = version.state in ("staging", "draining")
            if not moves or not unsure.isdisjoint(now.plan.get(version.name, ())):
                continue
            # an admin changed it meanwhile, by this release or a newer one: the next pass handles it
            with contextlib.suppress(RegistryError, Unreadable):
                if (await self._registry.version(version.name)).changed_at != version.changed_at:
                    continue  # staged again: what the pass saw is of the staging before
                if version.state == "staging":
                    await self._settle_staged(version, now, noted)
                elif not self._is_listed(version):
                    await self._registry.move(version.name, "retired", version.note)
                    await self._loader.forget_references(version.name)

    def _is_listed(self, version: Version) -> bool:
        up = [replica for replica in self._fleet.in_pool(version.pool) if replica.up]
        return any(replica.seen.get(version.name) == self._loader.path_on(replica, version) for replica in up)

    async def _settle_staged(self, version: Version, now: Pass, noted: Noted) -> None:
        """End the version's staging once its result is known."""
        targets = now.plan.get(version.name, ())
        if note := self.explain_misfit(version):
            await self._registry.move(version.name, "verified", note, noted)
            return
        if not targets:
            await self._registry.move(version.name, "verified", self._no_target(version, now), noted)
            return
        there = [now.placements.get((replica, version.name)) for replica in targets]
        failed = [p for p in there if p is not None and p.state == "failed" and p.since >= version.changed_at]
        ready = [p for p in there if p is not None and p.state == "ready"]
        notes = join_notes(failed)
        overdue = now.world.clock() - version.changed_at > STAGE_SECONDS_MAX
        if any(placement.wrong for placement in failed):
            await self._registry.move(version.name, "quarantined", notes, noted)
            await self._loader.forget_references(version.name)  # the first replica may have been the wrong one
        elif len(ready) + len(failed) < len(targets) and not overdue:
            return
        elif len(ready) >= compute_quorum(len(targets)):
            await self._registry.move(version.name, "ready", notes)
        else:
            unknown = join_notes(p for p in there if p is not None and p.state == "unknown")
            note = notes or unknown or self._name_away(version, now) or "it took too long to load"
            await self._registry.move(version.name, "verified", note, noted)

    def _name_away(self, version: Version, now: Pass) -> str:
        """A sentence on the replicas that went down or left with the version; empty if there are none."""
        placed, here = now.of(version.name), self._fleet.replicas
        away = [on for (on, _), p in placed.items() if p.state in UNDER_WAY and not (on in here and here[on].up)]
        return f"{', '.join(sorted(away))} went away while it began to serve it: see that engine's log" if away else ""

    def _no_target(self, version: Version, now: Pass) -> str:
        replicas = [replica for replica in self._fleet.in_pool(version.pool) if self._is_there(replica)]
        if not replicas:
            return f"no replica of the pool {version.pool} is up: see `replicas`, and stage it again once one is."
        return self._loader.no_room(version.pool, now)


def compute_quorum(replicas: int) -> int:
    """The number of a version's replicas that must be ready before an alias may move to it: more than half."""
    return replicas // 2 + 1
