"""The running gateways, each with the snapshot that it uses and its leases by replica."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis

from monitoring.redis_time import read_redis_time
from serving.fleet import Fleet
from serving.object_store import UNREADABLE

log = logging.getLogger(__name__)
KEY = "apprentice:gateways"
GONE_SECONDS = 5.0
"""Time without a report after which a gateway counts as gone. Engines cancel the answers of a process that is gone. A
gateway that only lost Redis goes on with its last snapshot: docs/explanation/swaps.md explains the consequences."""
SMOOTHING_SECONDS = 30.0


class PresenceReport(msgspec.Struct, frozen=True):
    """One gateway's report. `at` is Redis's own time in Unix seconds; `holds` are its leases by replica and
    model; `demand` its requests in flight by version, as a mean over the last half minute."""

    at: float
    generation: int
    holds: dict[str, dict[str, int]]
    demand: dict[str, float]


class Presence:
    """Writes this gateway's report to Redis, and reads the reports of other gateways. Owner of its own line there."""

    def __init__(
        self,
        redis: Redis,
        name: str,
        fleet: Fleet,
        generation: Callable[[], int],
        clock: Callable[[], Awaitable[float]] | None = None,
    ) -> None:
        """`generation` returns the generation of the snapshot that this gateway uses now. `clock` None: Redis's clock,
        since the clocks of two machines may differ."""
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._name = name
        self._fleet = fleet
        self._generation = generation
        self._clock = clock or (lambda: read_redis_time(redis))
        self._demand: dict[str, float] = {}
        self._told_at: float | None = None
        self._told: tuple[int, dict[str, dict[str, int]]] | None = None
        self._unreadable: dict[bytes, tuple[bytes, float]] = {}
        """The unreadable lines, each with Redis's time when it was first seen."""

    async def tell(self) -> None:
        """Write this gateway's line to Redis. Raises RedisError."""
        # Read the generation first: a later lease then belongs to a snapshot that is at least as new.
        generation, holds = self._look()
        now = await self._clock()
        self._smooth(holds, now)
        self._told = generation, holds
        report = PresenceReport(now, generation, holds, self._demand)
        await self._redis.hset(KEY, self._name, msgspec.json.encode(report))

    def has_news(self) -> bool:
        """Return True if the report has changed, or if there is demand to report."""
        return bool(self._demand) or self._look() != self._told

    def _look(self) -> tuple[int, dict[str, dict[str, int]]]:
        """The generation of the snapshot that this gateway uses, and its leases, at this moment."""
        holds = {replica.name: dict(replica.holds) for replica in self._fleet.replicas.values() if replica.holds}
        return self._generation(), holds

    async def leave(self) -> None:
        """Remove this gateway's line: it has no running requests. Raises RedisError."""
        await self._redis.hdel(KEY, self._name)

    async def present(self) -> GatewayRoll:
        """The present report of this gateway, and the recent reports of all others. Reports of gateways that are gone
        are deleted. Raises RedisError."""
        raw: dict[bytes, bytes] = await self._redis.hgetall(KEY)
        now = await self._clock()
        reports = {name: self._read(name, line, now) for name, line in raw.items()}
        self._unreadable = {name: entry for name, entry in self._unreadable.items() if raw.get(name) == entry[0]}
        since = now - GONE_SECONDS
        gone = [name for name, line in reports.items() if line.at < since]
        if gone:
            await self._redis.hdel(KEY, *gone)
        others = [line for name, line in reports.items() if line.at >= since and name != self._name.encode()]
        return GatewayRoll([PresenceReport(now, *self._look(), self._demand), *others])

    def _read(self, name: bytes, line: bytes, now: float) -> PresenceReport:
        """A gateway's report. An unreadable one may use anything: nothing is idle until its line is too old."""
        try:
            return msgspec.json.decode(line, type=PresenceReport)
        except UNREADABLE as error:
            written, since = self._unreadable.get(name, (b"", now))
            if not written:
                log.error("the line of gateway %r in %s can't be read: %s", name, KEY, error)
            self._unreadable[name] = line, since if line == written else now
            return PresenceReport(self._unreadable[name][1], -1, {}, {})

    def _smooth(self, holds: Mapping[str, Mapping[str, int]], now: float) -> None:
        """Update the exponential mean of the requests in flight by version. Means close to 0 are dropped."""
        passed = 0.0 if self._told_at is None else now - self._told_at
        self._told_at = now
        share = min(1.0, max(0.0, passed / SMOOTHING_SECONDS))  # Redis's clock may be set back
        in_flight: Counter[str] = Counter()
        for models in holds.values():
            in_flight.update(models)
        for model in in_flight.keys() | self._demand.keys():
            mean = self._demand.get(model, 0.0)
            self._demand[model] = mean + share * (in_flight[model] - mean)
        self._demand = {model: mean for model, mean in self._demand.items() if mean > 0.001}


class GatewayRoll:
    """The running gateways at one moment."""

    def __init__(self, reports: Sequence[PresenceReport]) -> None:
        self._reports = reports

    def idle(self, replica: str, model: str | None, generation: int) -> bool:
        """Return True if all gateways know the state of this generation, and no gateway uses the model on the replica.

        Without a model: no gateway uses the replica.
        """
        for report in self._reports:
            holds = report.holds.get(replica, {})
            if report.generation < generation or (holds if model is None else holds.get(model)):
                return False
        return True

    def in_flight(self, version: str) -> float:
        """The smoothed mean of running requests for a version, over all gateways."""
        return sum(report.demand.get(version, 0.0) for report in self._reports)
