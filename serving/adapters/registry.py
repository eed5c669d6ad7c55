"""Which versions and aliases there are. Kept in Redis; every change is one atomic step with a generation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec
from redis.asyncio import Redis

from serving.adapters.artifact import Artifact
from serving.adapters.manifest import Manifest, to_json
from serving.shelf import Change, Shelf, Stale, Unchanged, change_together
from serving.view import BlueprintView, VersionView

VersionState = Literal["verified", "staging", "ready", "active", "standby", "retired", "quarantined"]
VERSION_STATES: tuple[VersionState, ...] = get_args(VersionState)
PLACED: frozenset[VersionState] = frozenset({"ready", "active", "standby"})
"""States in which every replica of the pool is to have the version loaded."""

STEPS: Mapping[VersionState, frozenset[VersionState]] = {
    "verified": frozenset({"staging", "retired"}),
    "staging": frozenset({"ready", "verified", "quarantined"}),
    "ready": frozenset({"active", "staging", "verified", "quarantined", "retired"}),
    "active": frozenset({"standby", "quarantined"}),
    "standby": frozenset({"active", "verified", "quarantined", "retired"}),
    "quarantined": frozenset({"staging", "verified", "retired"}),
    "retired": frozenset(),
}
VERSIONS_PER_TASK_MAX = 1000


class RegistryError(Exception):
    """A step that the present state does not allow; the message says why and what to do."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A version as it is kept. `name` is also its name on every engine; bytes never change under a name."""

    name: str
    task: str
    number: int
    pool: str
    state: VersionState
    digest: str
    base_fingerprint: str
    rank: int
    size_bytes: int
    manifest: dict[str, Any]
    manifest_digest: str
    created_at: float
    created_by: str
    note: str = ""

    def view(self) -> VersionView:
        """As the router sees it."""
        blueprint = self.manifest.get("blueprint") or {}
        return VersionView(
            self.name,
            self.task,
            self.pool,
            self.state,
            self.digest,
            self.manifest_digest,
            self.manifest.get("sampling") or {},
            BlueprintView(
                blueprint.get("system") or "",
                blueprint.get("response_format"),
                blueprint.get("sampling") or {},
            ),
        )


class AliasEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A task's versions and their weights, and the salt that makes each rollout draw anew."""

    weights: dict[str, float]
    salt: str = ""
    previous: str | None = None


class Registry:
    """The one mover of version states and aliases."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._versions = Shelf(redis, "versions")
        self._aliases = Shelf(redis, "aliases")

    async def versions(self) -> dict[str, Version]:
        """All versions by name."""
        return {name: msgspec.convert(raw, Version) for name, raw in (await self._versions.all()).items()}

    async def version(self, name: str) -> Version:
        """One version. Raises KeyError where there is none."""
        raw = await self._versions.get(name)
        if raw is None:
            raise KeyError(name)
        return msgspec.convert(raw, Version)

    async def aliases(self) -> dict[str, AliasEntry]:
        """All aliases by task."""
        return {name: msgspec.convert(raw, AliasEntry) for name, raw in (await self._aliases.all()).items()}

    async def alias_generations(self) -> dict[str, int]:
        """The generation of each alias."""
        return await self._aliases.generations()

    async def register(self, task: str, pool: str, artifact: Artifact, manifest: Manifest, by: str) -> Version:
        """Enter a verified adapter as the task's next version; the same bytes and manifest again are the same version.

        Raises RegistryError where a task has too many versions.
        """
        content = to_json(manifest)
        digest = manifest.digest()
        while True:
            ours = [version for version in (await self.versions()).values() if version.task == task]
            for version in ours:
                same = (version.digest, version.manifest_digest, version.pool) == (artifact.digest, digest, pool)
                if same and version.state != "retired":
                    return version
            number = max((version.number for version in ours), default=0) + 1
            if number > VERSIONS_PER_TASK_MAX:
                raise RegistryError(f"{task} has {VERSIONS_PER_TASK_MAX} versions: name the task anew.")
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
                created_at=time.time(),
                created_by=by,
            )
            try:
                await self._versions.put(version.name, msgspec.to_builtins(version), expected_generation=0)
            except Stale:
                continue  # another admin has just taken this number
            return version

    async def move(self, name: str, state: VersionState, note: str = "") -> Version:
        """Bring a version into another state. Raises RegistryError where that is no step from its present one."""
        while True:
            version = await self.version(name)
            if version.state == state:
                return version
            _see_that_it_may(version, state)
            generation = (await self._versions.generations())[name]
            moved = msgspec.structs.replace(version, state=state, note=note)
            try:
                await self._versions.put(name, msgspec.to_builtins(moved), expected_generation=generation)
            except Stale:
                continue
            return moved

    async def withdraw(self, name: str) -> Version:
        """Bring a version back to `verified`, so that replicas unload it.

        Raises RegistryError while its task's alias sends requests to it, also if that begins at this very moment.
        """
        while True:
            version = await self.version(name)
            alias_generation = (await self._aliases.generations()).get(version.task, 0)
            alias = (await self.aliases()).get(version.task)
            if alias is not None and name in alias.weights:
                raise RegistryError(f"The alias {version.task!r} sends requests to {name}: move it first.")
            if version.state == "verified":
                return version
            _see_that_it_may(version, "verified")
            generation = (await self._versions.generations())[name]
            step: list[Change | Unchanged] = [
                self._moved(version, "verified", generation),
                Unchanged(self._aliases, version.task, alias_generation),
            ]
            try:
                await change_together(self._redis, step)
            except Stale:
                continue
            return await self.version(name)

    async def point(self, task: str, weights: Mapping[str, float], expected_generation: int | None) -> int:
        """Move the task's alias to these versions, at once and as a whole; returns the alias's new generation.

        Raises RegistryError for a version that is not ready, Stale on another generation than the expected one.
        """
        if abs(sum(weights.values()) - 1) > 1e-6:
            raise RegistryError("The weights of an alias add up to 1.")
        while True:
            changes = await self._pointing(task, weights, expected_generation)
            try:
                return await change_together(self._redis, changes)
            except Stale as stale:
                if stale.name == task and expected_generation is not None:
                    raise  # the alias itself; where a version has moved meanwhile, its new state is looked at

    async def _pointing(self, task: str, weights: Mapping[str, float], expected_generation: int | None) -> list[Change]:
        """The alias and the states of the versions that it takes up and lets go, as one step from what is now."""
        generations = await self._versions.generations()
        alias_generation = (await self._aliases.generations()).get(task, 0)
        versions, before = await self.versions(), (await self.aliases()).get(task)
        changes = []
        for name in weights:
            version = versions.get(name)
            if version is None or version.task != task:
                raise RegistryError(f"{name} is no version of {task}.")
            if version.state not in PLACED:
                raise RegistryError(f"{name} is {version.state}: load it first.")
            changes.append(self._moved(version, "active", generations[name]))
        left = set(before.weights if before else ()) - set(weights)
        active = [versions[name] for name in left if name in versions and versions[name].state == "active"]
        changes += [self._moved(version, "standby", generations[version.name]) for version in active]
        leading = max(before.weights, key=lambda name: before.weights[name]) if before else None
        entry = AliasEntry(weights=dict(weights), salt=f"{task}-{time.time_ns():x}", previous=leading)
        expected = alias_generation if expected_generation is None else expected_generation
        return [Change(self._aliases, task, msgspec.to_builtins(entry), expected), *changes]

    def _moved(self, version: Version, state: VersionState, generation: int) -> Change:
        moved = msgspec.structs.replace(version, state=state)
        return Change(self._versions, version.name, msgspec.to_builtins(moved), generation)


def _see_that_it_may(version: Version, state: VersionState) -> None:
    """Raises RegistryError where `state` is no step from the version's present one."""
    if state not in STEPS[version.state]:
        raise RegistryError(f"{version.name} is {version.state}: it can't become {state}.")
