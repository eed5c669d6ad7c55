"""Replicas of pools that are discovered by name: every address that DNS has for it is one.

An answer without an address, or no answer, changes nothing: those that were there last stay, and health checks tell
which of them are up.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from ipaddress import IPv6Address, ip_address

from serving.fleet import DiscoveredPool, PoolConfig
from serving.replica import ReplicaConfig

log = logging.getLogger(__name__)
Resolve = Callable[[str], Awaitable[frozenset[str]]]
NAME_LENGTH_MAX = 63


async def resolve(name: str) -> frozenset[str]:
    """All addresses of a name. Raises OSError, also where there is none."""
    found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return frozenset(str(address[0]) for *_, address in found)


class Discovery:
    """The replicas found last, by pool. Owner of what DNS has answered."""

    def __init__(self, failed: Callable[[str], None], resolver: Resolve | None = None) -> None:
        """`failed` is told the pool whose name gave no address."""
        self._failed = failed
        self._resolve = resolver or resolve
        self._found: dict[str, tuple[DiscoveredPool, frozenset[str]]] = {}
        self._asked_at: dict[str, float] = {}
        self._silent: set[str] = set()

    def fill(self, pools: Iterable[PoolConfig]) -> list[PoolConfig]:
        """The pools, those that are discovered with the replicas that were found last."""
        return [
            pool if pool.discovered is None else replace(pool, replicas=self._replicas(pool.name, pool.discovered))
            for pool in pools
        ]

    def due_at(self, pools: Iterable[PoolConfig]) -> float | None:
        """The time of the next look, in monotonic seconds; None where no pool is discovered."""
        times = [
            self._asked_at.get(pool.name, 0.0) + pool.discovered.interval_seconds for pool in pools if pool.discovered
        ]
        return min(times, default=None)

    async def look(self, pools: Iterable[PoolConfig], now: float) -> bool:
        """Ask DNS for the pools that are due at `now`. Whether there are other replicas than before."""
        due = [
            (pool.name, pool.discovered)
            for pool in pools
            if pool.discovered and self._asked_at.get(pool.name, 0.0) + pool.discovered.interval_seconds <= now
        ]
        return any(await asyncio.gather(*(self._look(name, wanted, now) for name, wanted in due)))

    async def _look(self, pool: str, wanted: DiscoveredPool, now: float) -> bool:
        self._asked_at[pool] = now
        try:
            addresses, fault = await self._resolve(wanted.dns), "no address"
        except (OSError, UnicodeError) as error:
            addresses, fault = frozenset[str](), str(error)
        before = self._found.get(pool)
        if not addresses:
            self._failed(pool)
            if pool not in self._silent:
                self._silent.add(pool)
                kept = len(before[1]) if before else 0
                log.warning("pool %s: %s gives no replica (%s); %d stay", pool, wanted.dns, fault, kept)
            return False
        if pool in self._silent:
            self._silent.discard(pool)
            log.warning("pool %s: %s answers again", pool, wanted.dns)
        self._found[pool] = wanted, addresses
        if before == (wanted, addresses):
            return False
        gone = before[1] - addresses if before else frozenset[str]()
        new = addresses - before[1] if before else addresses
        log.info("pool %s: %d replicas; new %s; gone %s", pool, len(addresses), sorted(new), sorted(gone))
        return True

    def _replicas(self, pool: str, wanted: DiscoveredPool) -> tuple[ReplicaConfig, ...]:
        _, addresses = self._found.get(pool, (wanted, frozenset[str]()))
        return tuple(_replica(pool, wanted, address) for address in sorted(addresses))


def _replica(pool: str, wanted: DiscoveredPool, address: str) -> ReplicaConfig:
    parsed = ip_address(address)
    host = f"[{address}]" if isinstance(parsed, IPv6Address) else address
    suffix = re.sub(r"[^0-9a-f]+", "-", parsed.exploded)
    return replace(
        wanted.template,
        name=f"{pool[: NAME_LENGTH_MAX - len(suffix) - 1]}-{suffix}",
        url=f"http://{host}:{wanted.port}",
        sidecar_url=f"http://{host}:{wanted.sidecar_port}" if wanted.sidecar_port else None,
    )
