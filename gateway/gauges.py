"""Gauges that are read from the Services when Prometheus asks, and stored nowhere."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version as installed_version
from types import MappingProxyType

import msgspec

from gateway.services import Services
from monitoring.metrics import Meters
from serving.adapters.placement import HELD
from serving.breaker import BreakerState
from serving.replica import Replica

WRITE_SECONDS_MAX = 5.0
"""Longest wait of a record for its write. After that, Redis counts as not writable, even if it can be read."""

BREAKER_STATES: Mapping[BreakerState, float] = MappingProxyType({"closed": 0.0, "half_open": 1.0, "open": 2.0})


def read_gauges(services: Services) -> None:
    """Connect the meters to their values, and answer the other processes' questions for measurements."""
    meters = services.meters
    services.control.siblings.answers |= {"metrics": lambda _: _measured(meters), "totals": lambda _: _totals(meters)}
    meters.replica_up.read_from(lambda: _by_replica(services, lambda replica: replica.up))
    meters.queue_length.read_from(services.admission.waiting_by_priority)
    meters.configuration_loaded_at_seconds.read_from(lambda: services.configuration.loaded_at)
    meters.breaker_state.read_from(lambda: _by_replica(services, _measure_breaker))
    meters.in_flight.read_from(lambda: _by_replica(services, lambda replica: replica.in_flight))
    meters.tasks.read_from(lambda: float(len(asyncio.all_tasks())))
    meters.processes.read_from(lambda: 1.0)
    meters.background_job_pass_seconds.read_from(services.control.passes.read_seconds)
    meters.records_pending.read_from(lambda: services.flow.pending)
    meters.records_oldest_age_seconds.read_from(services.flow.oldest_seconds)
    meters.records_spool_bytes.read_from(lambda: services.flow.spool_bytes)
    meters.records_spool_bytes_max.read_from(lambda: services.settings.records.spool_bytes_max)
    meters.snapshot_generation.read_from(lambda: services.snapshot.current.generation)
    meters.snapshot_age_seconds.read_from(services.snapshot.age_seconds)
    meters.redis_up.read_from(lambda: float(is_redis_up(services)))
    meters.state_durable.read_from(lambda: float(services.durability.storage.durable))
    meters.feedback_coverage_ratio.read_from(services.coverage.ratios)
    meters.adapter_info.read_from(lambda: _adapter_info(services))
    meters.adapter_placements.read_from(lambda: _placements(services))
    meters.adapter_loads_left.read_from(lambda: _loads_left(services))
    meters.adapter_working_set_ratio.read_from(lambda: _places_wanted(services))
    meters.replica_cordoned.read_from(lambda: _by_replica(services, lambda replica: replica.cordoned))
    meters.discovery_failing.read_from(
        lambda: {(pool,): float(bool(followed.fault)) for pool, followed in services.control.discovery.followed.items()}
    )
    meters.build_info.read_from(lambda: {(installed_version("apprentice-gateway"),): 1.0})


def is_redis_up(services: Services) -> bool:
    """Return True if Redis has answered reads and writes lately."""
    return (
        services.snapshot.age_seconds() < 3 * services.settings.snapshot_interval_seconds + 1
        and services.flow.unanswered_seconds() < WRITE_SECONDS_MAX
    )


async def _measured(meters: Meters) -> bytes:
    return meters.measured()


async def _totals(meters: Meters) -> bytes:
    return msgspec.msgpack.encode(meters.totals())


def _measure_breaker(replica: Replica) -> float:
    return BREAKER_STATES[replica.breaker_state(time.monotonic())]


def _by_replica(services: Services, value: Callable[[Replica], float]) -> dict[tuple[str, ...], float]:
    return {(r.config.pool, r.name): float(value(r)) for r in services.fleet.replicas.values()}


def _adapter_info(services: Services) -> dict[tuple[str, ...], float]:
    return {
        (v.task, v.name, v.pool, v.digest.removeprefix("sha256:")[:12], v.state): 1.0
        for v in services.snapshot.current.versions.values()
        if v.state != "retired"
    }


def _placements(services: Services) -> dict[tuple[str, ...], float]:
    """The number of replicas on which each version is in each state."""
    snapshot, fleet = services.snapshot.current, services.fleet
    pools = Counter(replica.config.pool for replica in fleet.replicas.values())
    wanted = {version.name: version for version in snapshot.versions.values() if version.state != "retired"}
    counts = Counter({(name, "absent"): pools[version.pool] for name, version in wanted.items()})
    for (on, name), placement in snapshot.placements.items():
        if name in wanted and on in fleet.replicas and fleet.replicas[on].config.pool == wanted[name].pool:
            counts[name, placement.state] += 1
            counts[name, "absent"] -= 1
    return {labels: float(count) for labels, count in counts.items() if count}


def _loads_left(services: Services) -> dict[tuple[str, ...], float]:
    placed = services.snapshot.current.placements_by_replica
    return {
        (replica.config.pool, replica.name): float(
            services.control.adapters.reconciler.capacity(replica, placed.get(replica.name, {})).loads_left
        )
        for pool in services.control.adapters.bases
        for replica in services.fleet.in_pool(pool)
        if replica.up
    }


def _places_wanted(services: Services) -> dict[tuple[str, ...], float]:
    """The working set: the share of each replica's places that versions hold or will hold, from 0 to 1."""
    snapshot = services.snapshot.current
    wanted = Counter(
        on
        for (on, name), placement in snapshot.placements.items()
        if placement.state in HELD and name in snapshot.versions
    )
    return {
        (pool, replica.name): wanted[replica.name] / services.control.adapters.reconciler.capacity(replica, {}).places
        for pool in services.control.adapters.bases
        for replica in services.fleet.in_pool(pool)
    }
