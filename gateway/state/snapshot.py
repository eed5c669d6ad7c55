"""The policy snapshot: the admins' settings in memory, so that requests need no look-up.

Objects that this release can't read are skipped one by one. Such a caller's key is refused, and such a rule is not
applied. Such a version, alias or placement stays as it was last read, or is absent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.callers import Caller
from gateway.state.fitted_models import FittedModels
from gateway.state.fitted_store import Kind
from gateway.state.quality_store import QUALITY_KIND
from gateway.state.redis import INSTALLATION_KEY, Lives
from monitoring.quality.verdicts.quality import TaskQuality, VersionQuality, read_quality
from monitoring.quality.verdicts.retraining import Retraining
from router.overrides import Override, needs_text
from router.policy import Alias, AttemptLimits, Policy, Shift, TaskPolicy, Watched
from serving.adapters.placement import Placement, group_by_replica, map_by_place, read_placement
from serving.adapters.registry import Registry
from serving.adapters.versions_and_aliases import PLACED, AliasEntry, Version, read_alias, read_version
from serving.fleet_view import VersionView
from serving.object_store import CHANGED_CHANNEL, GENERATION_KEY, UNREADABLE, Mirror, ObjectStore, read_marks
from serving.wakeable import wait_for_event

if TYPE_CHECKING:
    from router.embedding import Embedding

OVERRIDE_FIELDS = frozenset(item.name for item in fields(Override) if item.init)
S = TypeVar("S")
T = TypeVar("T")
KINDS = ("aliases", "callers", "fitted", "overrides", "placements", QUALITY_KIND, "retraining", "versions")
"""The kinds of objects in a snapshot. Only changed objects are read again."""
MADE_AT_ONCE = 200
"""Aliases, or views, that are made before other work gets the event loop."""
READINGS_MAX = 3


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole policy at one generation. It is replaced as a whole, never changed."""

    generation: int
    callers: Mapping[str, Caller]
    policy: Policy
    versions: Mapping[str, Version]
    aliases: Mapping[str, AliasEntry]
    placements: Mapping[tuple[str, str], Placement]
    cordons: Mapping[str, str]
    """Replicas that get no requests now, with the reason."""
    quality: Mapping[str, TaskQuality] = field(default_factory=dict)
    """The quality of each task, by the monitor."""
    views: Mapping[str, VersionView] = field(default_factory=dict)
    """The versions as the router sees them."""
    retraining: Mapping[str, Retraining] = field(default_factory=dict)
    """The requests to retrain adapters."""
    versions_by_task: Mapping[str, tuple[Version, ...]] = field(default_factory=dict)
    """The versions, those of each task by themselves."""
    placements_by_replica: Mapping[str, Mapping[tuple[str, str], Placement]] = field(default_factory=dict)
    """The placements, those of each replica by themselves."""
    unreadable: frozenset[str] = frozenset()
    """Versions that this release can't read: as they were last read, or not among the versions at all."""

    def get_quality(self, task: str, version: str) -> VersionQuality:
        """The version's quality; that of a new version where nothing was judged."""
        return self.quality.get(task, TaskQuality()).versions.get(version, VersionQuality())


@dataclass(frozen=True, slots=True)
class ConfiguredPolicy:
    """The configured part of the policy: tasks, the pools that may be named as a model, and the limits of attempts.

    `auto_pool` answers requests for `auto` that fit no task. None: they are refused.
    """

    tasks: Mapping[str, TaskPolicy]
    callable_pools: frozenset[str]
    limits: AttemptLimits
    auto_pool: str | None = None


class _Derived(Generic[S, T]):
    """A value made from an object that is replaced as a whole and never changed. It is made again for a new object."""

    def __init__(self, make: Callable[[S], T]) -> None:
        self._make = make
        self._last: tuple[S, T] | None = None

    def of(self, source: S) -> T:
        if self._last is None or self._last[0] is not source:
            self._last = source, self._make(source)
        return self._last[1]


class SnapshotKeeper:
    """Keeps the present snapshot. Only `refresh` replaces it, and calls `changed` with each new one."""

    def __init__(
        self,
        redis: Redis,
        configured: ConfiguredPolicy,
        fixed_callers: Mapping[str, Caller],
        changed: Callable[[Snapshot], None],
        damaged: Callable[[Kind], None] = lambda _: None,
        deep: Embedding | None = None,
        unsuited: Callable[[Kind], None] = lambda _: None,
        registry: Registry | None = None,
        lives: Lives | None = None,
    ) -> None:
        """`damaged` is called for each unreadable fitted model, `unsuited` for each that does not fit its task's
        selector or its scope model. `deep` is the neural embedding, if any. `registry` is the gateway's own, so that
        versions are read and stored once. `lives` detects a lost state."""
        self._redis = redis
        self._configured = configured
        self._fixed_callers = fixed_callers
        self._changed = changed
        self._registry = registry or Registry(redis)
        self._lives = lives or Lives()
        self._callers = Mirror(object_store_of(redis, "callers"), Caller.from_json, keeps=False)
        self._overrides = Mirror(object_store_of(redis, "overrides"), read_override, keeps=False)
        self._placements = Mirror(object_store_of(redis, "placements"), read_placement)
        self._cordons = ObjectStore(redis, "cordons")
        self._quality = Mirror(ObjectStore(redis, QUALITY_KIND), lambda _, raw: read_quality(raw))
        self._retraining = Mirror(ObjectStore(redis, "retraining"), lambda _, raw: msgspec.convert(raw, Retraining))
        self._leading = _Derived(_leading)
        self._by_place = _Derived(_by_place)
        self._by_replica = _Derived(group_by_replica)
        self._by_task = _Derived(_group_by_task)
        self._shifts = _Derived(_shifts)
        self._watched = _Derived(_watched)
        self._made: dict[str, tuple[AliasEntry, Alias]] = {}
        self._views: dict[str, tuple[Version, VersionView]] = {}
        self._models = FittedModels(redis, damaged, deep, unsuited)
        self._reading = asyncio.Lock()
        self._next = asyncio.Event()
        self.fresh_at = 0.0
        self.given_back: dict[bytes, asyncio.Event] = {}
        """By the key of a job's lease: set when a gateway gives it back."""
        self.woken: set[asyncio.Event] = set()
        """Set at each new snapshot."""
        self.current = Snapshot(0, MappingProxyType(dict(fixed_callers)), self._policy(0, {}, {}), {}, {}, {}, {})

    async def refresh(self) -> Snapshot:
        """Read the state again if it has changed. Raises RedisError; the last snapshot then stays.

        Readings run one at a time, and again if the state changed meanwhile, so that a snapshot has one generation. The
        last of READINGS_MAX readings is used even if the state changed. Else permanent writes would hide a rollback.
        """
        async with self._reading:
            began, readings = time.monotonic(), 0
            generation = await self._generation()
            while generation != self.current.generation or not self.fresh_at:
                newer, readings = await self._read(generation), readings + 1
                latest = await self._generation()
                generation = latest if readings < READINGS_MAX else newer.generation
                if generation == newer.generation:
                    self.current = self._as_configured(newer)
                    self.fresh_at = began
                    self._models.look(self._configured.tasks)
                    self._changed(self.current)
                    self._next.set()
                    self._next = asyncio.Event()
                    for event in self.woken:
                        event.set()
            self.fresh_at = began
            return self.current

    def apply_configuration(self, configured: ConfiguredPolicy) -> None:
        """Use this configuration from now on. The admins' settings stay unchanged."""
        self._configured = configured
        self._models.look(configured.tasks)
        self.current = self._as_configured(self.current)
        self._changed(self.current)

    def _as_configured(self, read_state: Snapshot) -> Snapshot:
        """The snapshot with the present configuration, which may have been reloaded while the state was read."""
        file = self._configured
        policy = replace(
            read_state.policy,
            tasks=file.tasks,
            callable_pools=file.callable_pools,
            limits=file.limits,
            auto_pool=file.auto_pool,
        )
        return replace(read_state, policy=policy)

    async def _generation(self) -> int:
        values: Any = await self._redis.mget(GENERATION_KEY, INSTALLATION_KEY)
        generation, installation = values
        await self._lives.see_that_it_is_ours(installation)
        return int(generation or 0)

    async def _read(self, generation: int) -> Snapshot:
        present_marks = await read_marks(self._redis, KINDS)  # one look for all of them
        aliases = await self._registry.aliases(present_marks)
        generations = await self._registry.alias_generations(present_marks)
        callers = await self._callers.all(present_marks)
        made = await self._made_aliases(aliases, generations)
        policy = self._policy(generation, made, await self._overrides.all(present_marks))
        versions = await self._registry.versions(present_marks)
        placed = {name for name, item in versions.items() if item.state in PLACED}
        fitted = await self._models.read(placed, present_marks)
        policy = replace(policy, fitted=fitted, index=await self._models.index(self._leading.of(aliases), fitted))
        quality = await self._quality.all(present_marks)
        policy = replace(policy, shifts=self._shifts.of(quality), watched=self._watched.of(quality))
        placements = self._by_place.of(await self._placements.all(present_marks))
        cordons = {name: _reason(raw) for name, raw in (await self._cordons.written()).items()}
        known_callers = MappingProxyType({**callers, **self._fixed_callers})
        views = await self._made_views(versions)
        retraining = await self._retraining.all(present_marks)
        return Snapshot(
            *(generation, known_callers, policy, versions, aliases, placements, cordons, quality, views, retraining),
            versions_by_task=self._by_task.of(versions),
            placements_by_replica=self._by_replica.of(placements),
            unreadable=self._registry.unreadable,
        )

    async def _made_aliases(
        self, entries: Mapping[str, AliasEntry], generations: Mapping[str, int]
    ) -> dict[str, Alias]:
        """The aliases in the router's form. An unchanged alias is the same object as before."""
        before, self._made = self._made, {}
        for at, (task, entry) in enumerate(entries.items()):
            made = before.get(task)
            if made is None or made[0] is not entry or made[1].generation != generations.get(task, 0):
                made = entry, _alias(task, generations.get(task, 0), entry)
            self._made[task] = made
            if at % MADE_AT_ONCE == MADE_AT_ONCE - 1:
                await asyncio.sleep(0)
        return {task: alias for task, (_, alias) in self._made.items()}

    async def _made_views(self, versions: Mapping[str, Version]) -> Mapping[str, VersionView]:
        """The versions in the router's form. The view of an unchanged version is the same object as before."""
        before, self._views = self._views, {}
        for at, (name, version) in enumerate(versions.items()):
            made = before.get(name)
            self._views[name] = made if made is not None and made[0] is version else (version, version.view())
            if at % MADE_AT_ONCE == MADE_AT_ONCE - 1:
                await asyncio.sleep(0)
        return {name: view for name, (_, view) in self._views.items()}

    async def next(self, seconds: float) -> None:
        """Wait for a new snapshot, but no longer than `seconds`."""
        await wait_for_event(self._next, seconds)

    async def follow(self, interval_seconds: float) -> None:
        """Refresh at each notified change, and each `interval_seconds` in case one was missed. Runs until cancelled."""
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(CHANGED_CHANNEL)
                    while True:
                        await self.refresh()
                        notice = await channel.get_message(ignore_subscribe_messages=True, timeout=interval_seconds)
                        if notice is not None and (given_back := self.given_back.get(notice["data"])) is not None:
                            given_back.set()
            except (RedisError, OSError):
                await asyncio.sleep(interval_seconds)

    def age_seconds(self) -> float:
        """The age of the last reading of the state, in seconds."""
        return time.monotonic() - self.fresh_at

    def _policy(self, generation: int, aliases: Mapping[str, Alias], overrides: Mapping[str, Override]) -> Policy:
        rules = tuple(rule for _, rule in sorted(overrides.items()))
        return Policy(
            generation,
            self._configured.tasks,
            MappingProxyType(dict(aliases)),
            self._configured.callable_pools,
            rules,
            self._configured.limits,
            needs_text(rules),
            auto_pool=self._configured.auto_pool,
        )


def _alias(task: str, generation: int, entry: AliasEntry) -> Alias:
    canary = entry.canary.version if entry.canary else None
    first = {} if canary is None else {canary: entry.weights[canary]}  # it has the beginning of the draw
    previous_version = entry.previous[0] if entry.previous else None
    return Alias(task, generation, first | entry.weights, entry.salt, canary, entry.shadow, previous_version)


def _reason(cordon: bytes) -> str:
    """The reason why a replica gets no requests. A replica with an unreadable cordon gets none either."""
    try:
        return str(msgspec.json.decode(cordon, type=dict[str, Any]).get("reason") or "")
    except UNREADABLE:
        return "its cordon can't be read"


def _leading(aliases: Mapping[str, AliasEntry]) -> dict[str, str]:
    return {task: entry.leading for task, entry in aliases.items()}


def _by_place(placements: Mapping[str, Placement]) -> Mapping[tuple[str, str], Placement]:
    return map_by_place(placements.values())


def _group_by_task(versions: Mapping[str, Version]) -> Mapping[str, tuple[Version, ...]]:
    """The versions by task. With a thousand versions, a search for each task was the slowest part of a reading."""
    groups: dict[str, list[Version]] = {}
    for version in versions.values():
        groups.setdefault(version.task, []).append(version)
    return {task: tuple(ours) for task, ours in groups.items()}


def _shifts(quality: Mapping[str, TaskQuality]) -> Mapping[str, Shift]:
    """The shares of their requests that versions keep, of those whose requests are shifted."""
    return MappingProxyType(
        {
            name: Shift(item.kept, item.to, item.to_version)
            for task_quality in quality.values()
            for name, item in task_quality.versions.items()
            if item.to is not None and item.kept < 1.0
        }
    )


def _watched(quality: Mapping[str, TaskQuality]) -> Mapping[str, Watched]:
    return MappingProxyType(
        {task: Watched(item.shadow_share, item.review_share, item.deferral_factor) for task, item in quality.items()}
    )


def read_override(name: str, raw: Mapping[str, Any]) -> Override:
    """An override as stored in Redis. Raises ValidationError if this release can't read it: an unknown condition must
    not be ignored."""
    if unknown := raw.keys() - OVERRIDE_FIELDS:
        raise msgspec.ValidationError(f"Object contains unknown field `{min(unknown)}`")
    return msgspec.convert({"id": name, **raw}, Override)


READERS: Mapping[str, Callable[[str, dict[str, Any]], object]] = MappingProxyType(
    {
        "callers": Caller.from_json,
        "overrides": read_override,
        "versions": read_version,
        "aliases": read_alias,
        "placements": read_placement,
    }
)


def object_store_of(redis: Redis, kind: str) -> ObjectStore:
    """The object store for one kind of admins' settings. It does not overwrite objects that this release can't
    read."""
    return ObjectStore(redis, kind, READERS[kind])
