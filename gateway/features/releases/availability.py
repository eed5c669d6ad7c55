"""What stands between a task's versions and its callers now: rules in force, and replicas that have a version ready."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.features.releases.releases import Releases
from gateway.state.snapshot import Snapshot
from monitoring.quality.explanations.obstacles import ActiveRule, Obstacles
from serving.adapters.entries import Version
from serving.adapters.placement import HELD


def ready_and_up(releases: Releases, snapshot: Snapshot, version: Version) -> tuple[int, int]:
    """On how many replicas the version is ready, and how many of those that are to have it are up."""
    held = [p for p in snapshot.placements.values() if p.version == version.name and p.state in HELD | {"failed"}]
    there = (releases.services.fleet.replicas.get(p.replica) for p in held)  # None: it is configured no more
    ready = sum(
        version.name in replica.loaded and replica.up for replica in releases.services.fleet.in_pool(version.pool)
    )
    return ready, sum(replica is not None and replica.up for replica in there)


def rules_away(snapshot: Snapshot, task: str, now: float) -> list[ActiveRule]:
    """The rules in force at `now` (Unix seconds) that send requests of the task elsewhere, in their order."""
    return [
        ActiveRule(
            name=one.id,
            action=one.action,
            version=one.version,
            some=one.reads_text or one.caller is not None or bool(one.metadata),
            ends_at=one.expires_at,
        )
        for one in snapshot.policy.rules_for(task)
        if one.task in (None, task) and one.mode == "enforce" and one.action != "system" and one.is_in_force(now)
    ]


def around(
    releases: Releases,
    snapshot: Snapshot,
    task: str,
    now: float,
    names: Iterable[str | None],
    reviews: int | None = None,
) -> Obstacles:
    """All of it for these versions of the task; `reviews` is how many wait for a person."""
    there = [snapshot.versions[name] for name in names if name is not None and name in snapshot.versions]
    return Obstacles(
        rules=rules_away(snapshot, task, now),
        ready={one.name: ready_and_up(releases, snapshot, one) for one in there},
        reviews=reviews,
    )
