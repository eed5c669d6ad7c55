"""Replicas of discovered pools: a watcher follows each pool's source, and every endpoint in it becomes a replica.

A source that fails changes nothing: the last replicas stay, and health checks show which of them are up.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Collection, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Self
from urllib.parse import urlsplit

from serving.fleet import DiscoveredPool, PoolConfig
from serving.replica import ReplicaConfig
from serving.replica_sources import DiscoveryError, Endpoint, ReplicaSource

log = logging.getLogger(__name__)
NAME_LENGTH_MAX = 63
RETRY_SECONDS = 0.25
"""Time until a source is asked again after its first failure. Each failure doubles it, up to `interval_seconds`."""


class FollowedPool:
    """A pool's source and its last endpoints. Owner of the task that follows the source."""

    def __init__(
        self, pool: str, source: ReplicaSource, endpoints: frozenset[Endpoint], changed: asyncio.Event
    ) -> None:
        """`endpoints` are those known before; `changed` is set when they change."""
        self.pool = pool
        self.source = source
        self.endpoints = endpoints
        self.fault = ""
        """The reason why it fails or gives no replica, in words; empty if all is well."""
        self.asked = asyncio.Event()
        """Set once it has answered or failed."""
        self._changed = changed
        self._failures = 0
        self.task = asyncio.create_task(self._follow(), name=f"discover {pool}")

    async def _follow(self) -> None:
        while True:
            began = time.monotonic()
            try:
                async with aclosing(self.source.follow()) as answers:
                    async for endpoints in answers:
                        self._take_in(endpoints)
            except DiscoveryError as error:
                self._note(str(error))
            except Exception as error:
                log.exception("pool %s: %s could not be followed", self.pool, self.source)
                self._note(f"{type(error).__name__}, which the log has")
            # A source that answers and fails at once, as a list without a watch, is not asked without a pause.
            if time.monotonic() - began >= self.source.interval_seconds:
                self._failures = 0
            wait_seconds = min(RETRY_SECONDS * 2 ** min(self._failures, 16), self.source.interval_seconds)
            self._failures += 1
            await asyncio.sleep(wait_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - not all gateways at once

    def _take_in(self, endpoints: frozenset[Endpoint]) -> None:
        new, gone = endpoints - self.endpoints, self.endpoints - endpoints
        if new or gone:
            self.endpoints = endpoints
            self._changed.set()
            names = [sorted(endpoint.name for endpoint in some) for some in (new, gone)]
            log.info("pool %s: %d replicas; new %s; gone %s", self.pool, len(endpoints), *names)
        self._note("" if endpoints else "none of its endpoints is ready")

    def _note(self, fault: str) -> None:
        """Log a fault once, and its end once."""
        if fault and fault != self.fault:
            stay = len(self.endpoints)
            log.warning("pool %s: %s gives no replica (%s); %d stay", self.pool, self.source, fault, stay)
        elif self.fault and not fault:
            log.warning("pool %s: %s answers again", self.pool, self.source)
        self.fault = fault
        self.asked.set()


class Discovery:
    """All discovered pools. A context manager that ends the tasks it began."""

    def __init__(self) -> None:
        self.followed: dict[str, FollowedPool] = {}
        """By pool."""
        self.changed = asyncio.Event()
        """Set when the replicas have changed; the code that takes them in clears it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [followed.task for followed in self.followed.values()]
        self.follow(())
        await asyncio.gather(*tasks, return_exceptions=True)

    def follow(self, pools: Iterable[PoolConfig]) -> None:
        """Follow these pools' sources from now on, and no others. Endpoints stay until a new source answers."""
        sources = {pool.name: pool.discovered.source for pool in pools if pool.discovered}
        before = self.followed
        self.followed = {}
        for pool, source in sources.items():
            old = before.get(pool)
            if old is None or old.source != source:
                old = FollowedPool(pool, source, old.endpoints if old else frozenset(), self.changed)
            self.followed[pool] = old
        for followed in before.values():
            if followed not in self.followed.values():
                followed.task.cancel()

    async def first_answers(self) -> None:
        """Wait until each source has answered or failed."""
        await asyncio.gather(*(followed.asked.wait() for followed in self.followed.values()))

    def fill(self, pools: Iterable[PoolConfig]) -> list[PoolConfig]:
        """The pools; those that are followed have the replicas that were found last."""
        pools = list(pools)
        names = list_names(pools)
        return [
            pool if followed is None else fill(pool, followed.endpoints, *names)
            for pool in pools
            for followed in (self.followed.get(pool.name),)
        ]


def list_names(pools: Iterable[PoolConfig]) -> tuple[list[str], set[str]]:
    """The names of the discovered pools, and the names of the replicas of all other pools."""
    pools = list(pools)
    replica_names = {replica.name for pool in pools if not pool.discovered for replica in pool.replicas}
    return [pool.name for pool in pools if pool.discovered], replica_names


def fill(
    pool: PoolConfig, endpoints: Iterable[Endpoint], discovered: Collection[str], replica_names: Collection[str]
) -> PoolConfig:
    """A discovered pool, with a replica for each endpoint. `discovered` and `replica_names` are from `list_names`."""
    assert pool.discovered is not None
    # `eu-x` of the pool `small` and `x` of `small-eu` are two: all gateways know the pools, not each other's endpoints
    is_ambiguous = any(pool.name.startswith(f"{other}-") for other in discovered)
    replicas = [
        _replica(pool.name, pool.discovered, each, is_ambiguous or f"{pool.name}-{each.name}" in replica_names)
        for each in sorted(endpoints)
    ]
    return replace(pool, replicas=tuple(replicas))


def _replica(pool: str, discovered: DiscoveredPool, endpoint: Endpoint, is_ambiguous: bool) -> ReplicaConfig:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    sidecar_port = discovered.sidecar_port
    return replace(
        discovered.template,
        name=_name(pool, endpoint.name, is_ambiguous),
        url=f"{urlsplit(discovered.template.url).scheme}://{host}:{endpoint.port}",
        sidecar_url=f"http://{host}:{sidecar_port}" if sidecar_port else None,
    )


def _name(pool: str, endpoint: str, is_ambiguous: bool) -> str:
    """A replica's name. It is unique even if it is cut at the limit, or might also be another pool's."""
    name = f"{pool}-{endpoint}"
    if len(name) <= NAME_LENGTH_MAX and not is_ambiguous:
        return name
    whole = f"{pool}/{endpoint}" if is_ambiguous else name
    digest = hashlib.blake2b(whole.encode(), digest_size=4).hexdigest()
    return f"{name[: NAME_LENGTH_MAX - len(digest) - 1]}-{digest}"
