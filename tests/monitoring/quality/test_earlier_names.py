"""Names that earlier releases wrote are read: an upgrade loses no version, verdict, record or evidence."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from monitoring.quality.signals.arms import Arm
from monitoring.quality.signals.entries import RecordedFinding
from monitoring.quality.signals.saved_watches import read_watch
from monitoring.quality.signals.version_watch import start
from monitoring.quality.verdicts.quality import read_quality
from monitoring.quality.verdicts.retraining import Retraining
from monitoring.records import FindingRecord
from serving.adapters.versions_and_aliases import AliasEntry, CanaryEntry, read_version

VERSION = {
    "name": "returns@v1",
    "task": "returns",
    "number": 1,
    "pool": "small",
    "digest": "sha256:a",
    "base_fingerprint": "sha256:b",
    "rank": 8,
    "size_bytes": 1,
    "manifest_digest": "sha256:c",
    "created_at": 1.0,
    "created_by": "ada",
}
FINDING = b'{"rung": "contract", "mode": "enforce", "fired": true}'


def test_version_that_stood_by_is_the_previous_version_with_its_general_prompt() -> None:
    raw = {**VERSION, "state": "standby", "manifest": {"blueprint": {"system": "Decide."}}}
    view = read_version("returns@v1", raw).view()
    assert view.state == "previous_version"
    assert view.general_prompt.system == "Decide."


def test_canary_under_way_is_read_and_written_under_its_earlier_name() -> None:
    raw: dict[str, Any] = {"weights": {"returns@v1": 0.9, "returns@v2": 0.1}}
    raw["rollout"] = {"version": "returns@v2", "share": 0.1, "started_at": 5.0, "by": "ada"}
    alias = msgspec.convert(raw, AliasEntry)
    assert alias.canary == CanaryEntry(version="returns@v2", share=0.1, started_at=5.0, by="ada")
    assert alias.leading == "returns@v1"
    assert "rollout" in msgspec.to_builtins(alias), "an earlier gateway beside this one reads no other"


def test_traffic_that_moved_to_the_previous_version_still_does() -> None:
    raw = {"versions": {"returns@v2": {"verdict": "degraded", "to": "standby"}, "returns@v3": {"to": "general"}}}
    versions = read_quality(raw).versions
    assert [versions[name].to for name in ("returns@v2", "returns@v3")] == ["previous_version", "general"]


@pytest.mark.parametrize("kind", [FindingRecord, RecordedFinding])
def test_finding_under_its_earlier_name_loses_no_record(kind: type[FindingRecord | RecordedFinding]) -> None:
    assert msgspec.json.decode(FINDING, type=kind).fired


@pytest.mark.parametrize("name", ["signals", "streams"])
def test_request_to_train_knows_when_its_version_began_to_slip(name: str) -> None:
    evidence = {name: [{"since": 7.0}, {"since": 5.0}, {"since": None}]}
    told = Retraining(
        id="a", task="returns", version="returns@v2", opened_at=9.0, by="ada", because="", evidence=evidence
    )
    assert told.slipped_at == 5.0
    assert replace(told, evidence={}).slipped_at == 0.0


def test_damaged_quality_beside_an_earlier_name_is_unreadable() -> None:
    with pytest.raises(msgspec.ValidationError):
        read_quality({"versions": {"returns@v2": {"to": "standby"}, "returns@v3": 3}})


def test_watch_keeps_the_evidence_on_the_previous_version() -> None:
    watch = replace(start("returns@v2", "returns", "0-0"), previous_version=Arm(other="returns@v1"))
    written = msgspec.json.encode(watch)
    assert read_watch(written.replace(b'"previous_version":', b'"standby":', 1)) == (watch, [])


def test_class_with_the_earlier_name_of_an_arm_keeps_its_name() -> None:
    fresh = start("returns@v2", "returns", "0-0")
    watch = replace(fresh, classes={"standby": fresh.reviewed})
    assert read_watch(msgspec.json.encode(watch)) == (watch, [])
