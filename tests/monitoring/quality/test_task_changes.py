"""The organisation's word that a task changes: which versions are stale from when, and how it is taken back."""

from __future__ import annotations

import msgspec
import pytest

from monitoring.quality.verdicts.monitor_responses import ResponseError
from monitoring.quality.verdicts.quality import ACTIONS_MAX, Action, Changed, TaskQuality, VersionQuality
from monitoring.quality.verdicts.task_changes import announce, take_back

NOW = 1_795_680_000.0
WORD = Changed(effective_at=NOW + 100.0, by="a", note="New rules.", at=NOW)
HEALTH = TaskQuality(versions={"returns@v1": VersionQuality(verdict="suspect", kept=0.5, to="general")})


def stale(health: TaskQuality) -> dict[str, float | None]:
    return {name: one.stale_from for name, one in health.versions.items()}


def test_versions_are_stale_from_then_on_and_nothing_else_of_them_moves() -> None:
    after, action = announce(HEALTH, ["returns@v1", "returns@v2"], WORD)
    assert stale(after) == {"returns@v1": NOW + 100.0, "returns@v2": NOW + 100.0}
    known = msgspec.structs.replace(after.versions["returns@v1"], stale_from=None)
    assert known == HEALTH.versions["returns@v1"]
    assert (action.kind, action.because, after.actions) == ("changed", "New rules.", [action])
    assert after.changed == msgspec.structs.replace(WORD, stale_before={"returns@v1": None, "returns@v2": None})


def test_taken_back_all_is_as_before_but_for_what_was_done() -> None:
    after, done = announce(HEALTH, ["returns@v1"], WORD)
    back, word, action = take_back(after, "b", NOW + 5)
    assert msgspec.structs.replace(back, actions=[]) == HEALTH
    assert (word, action.kind) == (after.changed, "undo")
    assert action.evidence == {"undone": "changed", "action": done.id}
    assert (back.actions[0].undone_by, back.actions[0].undone_at) == ("b", NOW + 5)
    with pytest.raises(ResponseError, match="nothing to take back"):
        take_back(back, "b", NOW + 6)


LATER = msgspec.structs.replace(WORD, effective_at=NOW + 900.0, at=NOW + 1)


def test_second_announcement_replaces_first_and_withdrawal_removes_both() -> None:
    first, _ = announce(HEALTH, ["returns@v1"], WORD)
    second, _ = announce(first, ["returns@v1", "returns@v2"], LATER)
    assert stale(second) == {"returns@v1": NOW + 900.0, "returns@v2": NOW + 900.0}
    third, _ = announce(second, ["returns@v1"], WORD)
    assert stale(third) == {"returns@v1": NOW + 100.0, "returns@v2": None}
    for said in (second, third):
        back, _, _ = take_back(said, "b", NOW + 5)
        assert stale(back) == {"returns@v1": None, "returns@v2": None}
        assert all(one.undone_by == "b" for one in back.actions if one.kind == "changed")
    again, _ = announce(take_back(second, "b", NOW + 5)[0], ["returns@v2"], LATER)
    assert stale(again) == {"returns@v1": None, "returns@v2": NOW + 900.0}


def test_version_stale_before_an_announcement_stays_stale_from_its_earlier_time() -> None:
    known = TaskQuality(versions={"returns@v1": VersionQuality(stale_from=NOW - 50.0)})
    first, _ = announce(known, ["returns@v1", "returns@v2"], WORD)
    second, _ = announce(first, ["returns@v1", "returns@v2"], LATER)
    assert stale(second) == {"returns@v1": NOW - 50.0, "returns@v2": NOW + 900.0}
    assert stale(take_back(second, "b", NOW + 5)[0]) == {"returns@v1": NOW - 50.0, "returns@v2": None}


def test_announcement_stored_without_the_earlier_state_is_replaced_and_withdrawn() -> None:
    old = TaskQuality(versions={"returns@v1": VersionQuality(stale_from=WORD.effective_at)}, changed=WORD)
    assert stale(take_back(old, "b", NOW + 5)[0]) == {"returns@v1": None}
    second, _ = announce(old, ["returns@v1"], LATER)
    assert stale(second) == {"returns@v1": NOW + 900.0}
    assert stale(take_back(second, "b", NOW + 5)[0]) == {"returns@v1": None}


def test_it_is_taken_back_though_its_action_was_forgotten() -> None:
    after, _ = announce(HEALTH, ["returns@v1"], WORD)
    many = [Action(id=str(number), at=NOW, kind="verdict", version="", because="") for number in range(ACTIONS_MAX)]
    back, _, _ = take_back(msgspec.structs.replace(after, actions=many), "b", NOW + 5)
    assert (stale(back), back.changed, len(back.actions)) == ({"returns@v1": None}, None, ACTIONS_MAX)


def test_it_goes_through_json_unchanged() -> None:
    after, _ = announce(HEALTH, ["returns@v1"], WORD)
    assert msgspec.json.decode(msgspec.json.encode(after), type=TaskQuality) == after
