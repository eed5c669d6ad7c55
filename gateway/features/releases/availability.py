"""Obstacles that keep a task's requests from its versions: active rules, and replicas without a ready version."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.features.releases.state import Releases
from gateway.fleet_health import check_health
from gateway.services import Services
from gateway.state.snapshot import Snapshot
from monitoring.quality.explanations import obstacles as in_words
from monitoring.quality.explanations.obstacles import ActiveRule, Obstacles
from serving.adapters.placement import HELD
from serving.adapters.reconcile import compute_quorum
from serving.adapters.versions_and_aliases import AliasEntry, Version


def count_ready_and_up(services: Services, snapshot: Snapshot, version: Version) -> tuple[int, int]:
    """The number of replicas on which the version is ready, and the number of its wanted replicas that are up."""
    placements = [p for p in snapshot.placements.values() if p.version == version.name and p.state in HELD | {"failed"}]
    there = (services.fleet.replicas.get(p.replica) for p in placements)  # None: no longer in the configuration
    ready = sum(version.name in replica.loaded and replica.up for replica in services.fleet.in_pool(version.pool))
    return ready, sum(replica is not None and replica.up for replica in there)


async def explain_unready(services: Services, snapshot: Snapshot, version: Version) -> str:
    """The reason why an alias may not move to a version now; empty if it is ready on a quorum of its replicas."""
    ready, up = count_ready_and_up(services, snapshot, version)
    if ready < compute_quorum(up):
        await check_health(services)  # another gateway may have loaded it since the last look
        ready, up = count_ready_and_up(services, snapshot, version)
    return "" if ready >= compute_quorum(up) else f"{version.name} is ready on {ready} of its {up} replicas only"


def find_rules_away(snapshot: Snapshot, task: str, now: float) -> list[ActiveRule]:
    """The rules in force at `now` (Unix seconds) that send requests of the task elsewhere, in their order."""
    return [
        ActiveRule(
            name=rule.id,
            action=rule.action,
            version=rule.version,
            some=rule.reads_text or rule.caller is not None or bool(rule.metadata),
            ends_at=rule.expires_at,
        )
        for rule in snapshot.policy.rules_for(task)
        if rule.task in (None, task) and rule.mode == "enforce" and rule.action != "system" and rule.is_in_force(now)
    ]


def find_obstacles(
    releases: Releases,
    snapshot: Snapshot,
    task: str,
    now: float,
    names: Iterable[str | None],
    reviews: int | None = None,
) -> Obstacles:
    """All obstacles for these versions of the task. `reviews` is the number of waiting reviews."""
    there = [snapshot.versions[name] for name in names if name is not None and name in snapshot.versions]
    return Obstacles(
        rules=find_rules_away(snapshot, task, now),
        ready={version.name: count_ready_and_up(releases.services, snapshot, version) for version in there},
        reviews=reviews,
    )


def describe_canary(services: Services, snapshot: Snapshot, task: str, alias: AliasEntry | None) -> list[str]:
    """The state of an alias's canary in words, if it is paused or degraded; else empty."""
    if alias is None or alias.canary is None or task not in services.settings.tasks:
        return []
    name = alias.canary.version
    responses = services.settings.plan(task).responses
    return list(in_words.describe_canary(name, alias.weights[name], snapshot.get_quality(task, name), responses))
