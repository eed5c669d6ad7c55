"""The registry of versions and aliases. Kept in Redis; every change is one atomic step with a generation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import msgspec
from msgspec.structs import replace
from redis.asyncio import Redis

from monitoring.redis_time import read_redis_time
from serving.adapters.manifest import Manifest, to_json
from serving.adapters.verification import Artifact
from serving.adapters.versions_and_aliases import (
    GIVEN_UP,
    PLACED,
    ROLES,
    STEPS,
    AliasEntry,
    CanaryEntry,
    Version,
    VersionState,
    read_alias,
    read_version,
    split_version,
)
from serving.object_store import (
    Change,
    Marks,
    Mirror,
    ObjectStore,
    Stale,
    Unchanged,
    Unreadable,
    change_together,
    guard_read,
)

VERSIONS_PER_TASK_MAX = 1000
PREVIOUS_MAX = 100
Noted = Callable[[Any, Any, int], Sequence[Change | Unchanged]]
"""Makes the objects stored in the same step as a change, such as its audit entry. Its arguments are the object before
(None: it is new) and after the change, and its new generation. It is called again for each new try."""


def note_nothing(_before: Any, _after: Any, _generation: int) -> Sequence[Change]:
    """Store nothing beside the change."""
    return ()


class RegistryError(Exception):
    """A step that the present state does not allow; the message says why and what to do."""


class Registry:
    """The one mover of version states and aliases. A state file moves several at once, by `find_role_changes`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._versions = ObjectStore(redis, "versions", read_version)
        self._aliases = ObjectStore(redis, "aliases", read_alias)
        self._version_mirror = Mirror(self._versions, read_version)
        self._alias_mirror = Mirror(self._aliases, read_alias)

    async def versions(self, present_marks: Marks | None = None) -> Mapping[str, Version]:
        """All versions by name. One that can't be read is as it was last read, or left out."""
        return await self._version_mirror.all(present_marks)

    @property
    def unreadable(self) -> frozenset[str]:
        """The names of versions that could not be read the last time."""
        return self._version_mirror.unreadable

    async def version(self, name: str) -> Version:
        """One version. Raises KeyError if it does not exist, Unreadable if it can't be read."""
        raw = await self._versions.get(name)
        if raw is None:
            raise KeyError(name)
        with guard_read(self._versions.kind, name):
            return read_version(name, raw)

    async def aliases(self, present_marks: Marks | None = None) -> Mapping[str, AliasEntry]:
        """All aliases by task. One that can't be read is as it was last read, or left out."""
        return await self._alias_mirror.all(present_marks)

    async def alias(self, task: str) -> tuple[AliasEntry | None, int]:
        """A task's alias (None: it has none) and its generation, which is never newer than the alias.

        Raises Unreadable if it can't be read.
        """
        return await self._aliases.fetch(task, partial(read_alias, task))

    async def generations(self) -> dict[str, int]:
        """The generation of each version."""
        return await self._versions.generations()

    async def generation(self, name: str) -> int:
        """The generation of one version. Raises Unreadable if it is damaged."""
        return await self._versions.generation(name)

    async def alias_generations(self, present_marks: Marks | None = None) -> Mapping[str, int]:
        """The generation of each alias."""
        return await self._alias_mirror.generations(present_marks)

    async def register(
        self,
        task: str,
        pool: str,
        artifact: Artifact,
        manifest: Manifest,
        by: str,
        signed_by: str | None = None,
        signature: str | None = None,
        noted: Noted = note_nothing,
        owner: str | None = None,
    ) -> Version:
        """Add a verified adapter as the task's next version. The same bytes and manifest again are the same version.

        `noted` is stored if anything changes. Raises RegistryError if the task has too many versions.
        """
        content, digest = to_json(manifest), manifest.digest()
        while True:
            ours = [version for version in (await self.versions()).values() if version.task == task]
            for version in ours:
                same = (version.digest, version.manifest_digest, version.pool) == (artifact.digest, digest, pool)
                if same and version.state not in GIVEN_UP:
                    signed = signed_by is None or (signed_by, signature) == (version.signed_by, version.signature)
                    return version if signed else await self._sign(version, signed_by, signature, noted)
            numbers = [version.number for version in ours]
            numbers += [number for task_of, number in map(split_version, self.unreadable) if task_of == task]
            number = max(numbers, default=0) + 1
            if number > VERSIONS_PER_TASK_MAX:
                raise RegistryError(f"{task} has {VERSIONS_PER_TASK_MAX} versions: name the task again.")
            version = Version(
                name=f"{task}@v{number}",
                task=task,
                number=number,
                pool=pool,
                state="verified",
                digest=artifact.digest,
                base_fingerprint=artifact.base_fingerprint,
                rank=artifact.rank,
                size_bytes=artifact.size_bytes,
                manifest=content,
                manifest_digest=digest,
                created_at=(now := await read_redis_time(self._redis)),
                created_by=by,
                changed_at=now,
                signed_by=signed_by,
                signature=signature,
                owner=msgspec.UNSET if owner is None else owner,
            )
            try:
                change = Change(self._versions, version.name, msgspec.to_builtins(version), 0)
                await change_together(self._redis, [change, *noted(None, version, 1)])
            except Stale as stale:
                if stale.name != version.name:
                    raise
                continue  # another admin has just taken this number
            return version

    async def _sign(self, version: Version, signed_by: str | None, signature: str | None, noted: Noted) -> Version:
        while True:
            generation = await self._versions.generation(version.name)
            present = await self.version(version.name)
            signed = replace(present, signed_by=signed_by, signature=signature)
            change = Change(self._versions, version.name, msgspec.to_builtins(signed), generation)
            try:
                await change_together(self._redis, [change, *noted(present, signed, generation + 1)])
            except Stale as stale:
                if stale.name != version.name:
                    raise
            else:
                return signed

    async def move(self, name: str, state: VersionState, note: str = "", noted: Noted = note_nothing) -> Version:
        """Bring a version into another state; `noted` is stored if its state changes. Raises RegistryError if its
        present state does not allow the step."""
        return await self._move(name, state, note, noted, must_be_unaliased=False)

    async def withdraw(
        self,
        name: str,
        state: Literal["verified", "draining"] = "verified",
        note: str = "",
        noted: Noted = note_nothing,
        expected_generation: int | None = None,
    ) -> Version:
        """Have replicas unload a version, and bring it back to `verified`, or on its way to `retired`. `noted` is
        stored if its state changes.

        Raises RegistryError if its task's alias sends requests to it, even if that begins at this very moment. Raises
        Stale if its generation is not the expected one, and Unreadable if any of this can't be read.
        """
        return await self._move(name, state, note, noted, True, expected_generation)

    async def _move(
        self,
        name: str,
        state: VersionState,
        note: str,
        noted: Noted,
        must_be_unaliased: bool,
        expected_generation: int | None = None,
    ) -> Version:
        while True:
            generation = await self._versions.generation(name)
            if expected_generation not in (None, generation):
                raise Stale(name, generation)
            version = await self.version(name)
            beside: list[Unchanged] = []
            if must_be_unaliased:
                alias_generation = await self._aliases.generation(version.task)
                alias = (await self.aliases()).get(version.task)
                if alias is not None and alias.role(name) is not None:
                    raise RegistryError(f"The alias {version.task!r} sends requests to {name}: move it first.")
                beside = [Unchanged(self._aliases, version.task, alias_generation)]
            if version.state == state:
                return version
            _see_that_it_may(version, state)
            change = self._moved(version, state, generation, note, await read_redis_time(self._redis))
            after = msgspec.convert(change.value, Version)
            with contextlib.suppress(Stale):
                await change_together(self._redis, [change, *beside, *noted(version, after, generation + 1)])
                return after

    async def point(
        self,
        task: str,
        weights: Mapping[str, float],
        expected_generation: int | None = None,
        noted: Noted = note_nothing,
    ) -> bool:
        """Point the task's alias at these versions, at once and as a whole. Returns False if nothing changed.

        Ends a canary and a shadow. Raises RegistryError for a version that is not ready, Stale if the generation is not
        the expected one.
        """
        if not weights or abs(sum(weights.values()) - 1) > 1e-6:
            raise RegistryError("The weights of an alias add up to 1.")
        return await self._realias(
            task, expected_generation, lambda before, _: _led(before, task, dict(weights)), noted=noted
        )

    async def shadow(
        self, task: str, name: str, share: float, expected_generation: int | None = None, noted: Noted = note_nothing
    ) -> bool:
        """Copy a share of the task's requests to a version whose answers nobody sees; 0 ends it.

        A canary may also be the shadow of the leading version: both then answer the same inputs.
        """

        def shadowed(before: AliasEntry | None, _: Mapping[str, Version]) -> AliasEntry:
            entry = _there(before, task)
            if share and name in entry.weights and (entry.canary is None or entry.canary.version != name):
                raise RegistryError(f"{name} answers requests of {task}: it can't be its own shadow.")
            shadow = {name: share} if share else {each: part for each, part in entry.shadow.items() if each != name}
            return entry if shadow == entry.shadow else replace(entry, shadow=shadow)

        return await self._realias(task, expected_generation, shadowed, noted=noted)

    async def canary(
        self,
        task: str,
        name: str,
        share: float,
        by: str,
        plan: dict[str, Any] | None,
        expected_generation: int | None = None,
        beside: Change | None = None,
        keeps_plan: bool = False,
        noted: Noted = note_nothing,
    ) -> bool:
        """Send a share of the task's sessions to a version, and the rest to the leading version.

        A session stays at the canary when its share is raised, since the canary has the beginning of the draw. With the
        same plan its judgement goes on; with another plan it begins again. `keeps_plan`: a canary on trial keeps its
        plan, and `plan` is for a new one. A shadow stays a shadow. The change `beside` is made in the same step. Raises
        RegistryError if another version is the canary, and RedisError.
        """
        at = await read_redis_time(self._redis)  # the clock of the evidence

        def split(before: AliasEntry | None, _: Mapping[str, Version]) -> AliasEntry:
            entry = _there(before, task)
            leading = entry.leading
            if name == leading:
                raise RegistryError(f"{name} is the active version of {task}: a canary is another one.")
            before_it = entry.canary
            if before_it is not None and before_it.version != name:
                end = f"`apprentice adapters rollback {task} --canary`"
                raise RegistryError(f"{before_it.version} is the canary of {task}: promote it, or end it with {end}.")
            of_it = before_it.plan if before_it is not None and keeps_plan else plan
            canary = CanaryEntry(version=name, share=share, started_at=at, by=by, plan=of_it).since(before_it)
            return replace(
                entry,
                weights={name: share, leading: 1 - share},
                salt=entry.salt if before_it is not None else new_salt(task),
                canary=canary,
            )

        return await self._realias(task, expected_generation, split, beside=beside, noted=noted)

    async def promote(
        self,
        task: str,
        name: str,
        expected_generation: int | None = None,
        beside: Change | None = None,
        noted: Noted = note_nothing,
    ) -> bool:
        """Make a version the task's only one; the version that led stays loaded. The change `beside` is made in the
        same step."""
        led = {name: 1.0}
        return await self._realias(task, expected_generation, lambda at, _: _led(at, task, led), "", beside, noted)

    async def roll_back(
        self,
        task: str,
        to: str | None = None,
        expected_generation: int | None = None,
        quarantine: str = "",
        beside: Change | None = None,
        canary_only: bool = False,
        noted: Noted = note_nothing,
    ) -> bool:
        """End a canary, or else go back to the version that led before (or to `to`): a pointer swap, without a load.

        `quarantine` is the reason why the version that is left must be staged before it serves again; empty: it stays
        loaded. The change `beside` is made in the same step. `canary_only` changes no leader. Raises RegistryError if
        there is no version to go back from, or to.
        """

        def back(before: AliasEntry | None, versions: Mapping[str, Version]) -> AliasEntry:
            entry = _there(before, task)
            if entry.canary is not None and to is None:
                shadow = {name: share for name, share in entry.shadow.items() if name != entry.canary.version}
                return replace(entry, weights={entry.leading: 1.0}, shadow=shadow, canary=None)
            if canary_only:
                raise RegistryError(f"{task} has no canary: {entry.leading} leads it, and nothing was changed.")
            if to is not None and _leads_alone(entry, to):
                return entry
            placed = (name for name in entry.previous if name in versions and versions[name].state in PLACED)
            target = to or next(placed, None)
            if target is None:
                raise RegistryError(_no_way_back(task, entry, versions))
            at = entry.previous.index(target) + 1 if target in entry.previous else 0
            return replace(
                entry, weights={target: 1.0}, salt=new_salt(task), previous=entry.previous[at:], canary=None, shadow={}
            )

        return await self._realias(task, expected_generation, back, quarantine, beside, noted)

    async def remove_alias(
        self, task: str, expected_generation: int | None = None, noted: Noted = note_nothing
    ) -> bool:
        """Leave the task without a version: its fallback answers. Raises RegistryError if it has no version."""
        return await self._realias(task, expected_generation, lambda at, _: _there(at, task) and None, noted=noted)

    async def _realias(
        self,
        task: str,
        expected_generation: int | None,
        make: Callable[[AliasEntry | None, Mapping[str, Version]], AliasEntry | None],
        quarantine: str = "",
        beside: Change | None = None,
        noted: Noted = note_nothing,
    ) -> bool:
        """Change the alias, and the states of versions that it gains and loses, in one step. False: nothing changed."""
        while True:
            generations = await self._versions.generations()
            alias_generation = (await self._aliases.generations()).get(task, 0)
            versions, before = await self.versions(), (await self.aliases()).get(task)
            if expected_generation is not None and expected_generation != alias_generation:
                raise Stale(task, alias_generation)
            if task in self._alias_mirror.unreadable:
                raise Unreadable(self._aliases.kind, task)
            after = make(before, versions)
            if after is before:
                return False
            if unread := sorted(self.unreadable & (_named(before) | _named(after))):
                raise Unreadable(self._versions.kind, unread[0])
            now = await read_redis_time(self._redis)
            value = None if after is None else msgspec.to_builtins(after)
            changes: list[Change | Unchanged] = [Change(self._aliases, task, value, alias_generation)]
            changes += [
                self._moved(versions[name], state, generations[name], note, now)
                for name, state, note in find_role_changes(task, versions, before, after, quarantine)
            ]
            changes += [] if beside is None else [beside]
            changes += noted(before, after, alias_generation + 1)
            try:
                await change_together(self._redis, changes)
                return True
            except Stale as stale:
                with_it = beside is not None and beside.expected_generation is not None and stale.name == beside.name
                if with_it or (stale.name == task and expected_generation is not None):
                    raise  # else a version changed meanwhile: try again with its new state

    def _moved(self, version: Version, state: VersionState, generation: int, note: str, now: float) -> Change:
        moved = replace(version, state=state, note=note, changed_at=now)
        return Change(self._versions, version.name, msgspec.to_builtins(moved), generation)


def find_role_changes(
    task: str,
    versions: Mapping[str, Version],
    before: AliasEntry | None,
    after: AliasEntry | None,
    quarantine: str = "",
) -> Iterator[tuple[str, VersionState, str]]:
    """The new state of each version that an alias names, or named. Raises RegistryError for one that is not ready."""
    weights_after = {} if after is None else after.weights | after.shadow
    for name in weights_after:
        version = versions.get(name)
        if version is None or version.task != task:
            raise RegistryError(f"{name} is not a version of {task}.")
        if version.state not in PLACED:
            raise RegistryError(_given_up(version) or f"{name} is {version.state}: stage it first.")
        role = after.role(name) if after is not None else None
        if role is not None and role != version.state:
            _see_that_it_may(version, role)
        yield name, role or version.state, ""
    weights_before = {} if before is None else before.weights | before.shadow
    for name in weights_before:
        version = versions.get(name)
        if name in weights_after or version is None or version.state not in ROLES:
            continue
        led = before is not None and (name == before.leading or name in before.previous)
        if quarantine and version.state != "shadow":
            yield name, "quarantined", quarantine
        else:
            yield name, "previous_version" if led else "ready", ""


def _led(before: AliasEntry | None, task: str, weights: dict[str, float]) -> AliasEntry:
    """The alias with these weights. It remembers the version that led until now, for a rollback."""
    entry = AliasEntry(weights=weights, salt=new_salt(task))
    if before is None:
        return entry
    if list(weights) == [before.leading] and _leads_alone(before, before.leading):
        return before
    previous = before.previous
    if before.leading != entry.leading:
        previous = [before.leading, *(name for name in previous if name not in (before.leading, entry.leading))]
    return replace(entry, previous=previous[:PREVIOUS_MAX])


def _leads_alone(alias: AliasEntry, name: str) -> bool:
    """True if the version answers all requests already, with nothing on trial beside it."""
    return set(alias.weights) == {name} and alias.canary is None and not alias.shadow


def _there(alias: AliasEntry | None, task: str) -> AliasEntry:
    if alias is None:
        raise RegistryError(f"{task} has no version yet: promote one first.")
    return alias


def _named(alias: AliasEntry | None) -> frozenset[str]:
    """The versions that an alias gives weight, or shadows."""
    return frozenset() if alias is None else frozenset(alias.weights.keys() | alias.shadow.keys())


def new_salt(task: str) -> str:
    """A new salt. With it, a canary draws its sessions again."""
    return f"{time.time_ns():x}-{task}"


def _see_that_it_may(version: Version, state: VersionState) -> None:
    """Raise RegistryError if `state` is not a step from the version's present state."""
    if state not in STEPS[version.state]:
        raise RegistryError(_given_up(version) or f"{version.name} is {version.state}: it can't become {state}.")


def _given_up(version: Version) -> str:
    """Advice for a version that was given up for good; empty for any other."""
    if version.state not in ("draining", "retired"):
        return ""
    return f"{version.name} is {version.state}, permanently: push its adapter again, which makes a new version."


def _no_way_back(task: str, entry: AliasEntry, versions: Mapping[str, Version]) -> str:
    """The reason why no version that led before can lead again, and what to do."""
    ours = sorted((each for each in versions.values() if each.task == task), key=lambda each: -each.number)
    others = [each for each in ours if each.name not in entry.weights and each.state in PLACED]
    if others:
        there = ", ".join(f"{each.name} ({each.state})" for each in others)
        name = others[0].name
        return (
            f"Before {entry.leading} nothing led {task} that is still loaded; loaded is {there}. "
            f"Promote {name}, or roll back to {name} by its name."
        )
    before = [name for name in entry.previous if name in versions and not _given_up(versions[name])]
    stageable = before or [each.name for each in ours if each.name not in entry.weights and not _given_up(each)]
    todo = f"stage one of {', '.join(stageable)}, then promote it" if stageable else "push another adapter"
    return f"{task} has no other version that is loaded: {todo}."
