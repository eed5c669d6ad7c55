"""The monitor's job: what it goes by, where the state moves on while it judges."""

from __future__ import annotations

from gateway.features.quality.job import add_newer
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.monitor_responses import respond
from monitoring.quality.verdicts.quality import TaskQuality, VersionQuality
from monitoring.quality.verdicts.shares import Roles

NOW = 1_800_000_000.0
V1, V2 = "returns@v1", "returns@v2"


def test_a_version_newer_than_the_snapshot_keeps_its_quality_and_a_gone_one_does_not() -> None:
    seen = TaskQuality(versions={V1: VersionQuality(since=NOW)})
    health = TaskQuality(versions={**seen.versions, V2: VersionQuality(verdict="degraded", since=NOW)})
    before_it, after_it = Roles(active=V1, there=(V1,)), Roles(active=V2, there=(V2,))
    kept, _ = respond(health, {}, add_newer(before_it, seen, health), MonitorPlan(), NOW)
    assert kept.versions.keys() == {V1, V2}
    assert kept.versions[V2].verdict == "degraded"
    left, _ = respond(health, {}, add_newer(after_it, health, health), MonitorPlan(), NOW)
    assert left.versions.keys() == {V2}
    assert add_newer(Roles(), seen, health).there == (), "no version is known to be there, so none is taken for gone"
