"""Announced changes of a task: the organisation says, before labels show it, that other rules hold from a day on. Pure.

From that day a version that was trained on the old rules is stale. Staleness is no verdict. The monitor's verdict is
kept beside it, though its baselines were learned under the old rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from monitoring.quality.verdicts.actions import add_actions
from monitoring.quality.verdicts.monitor_responses import ResponseError
from monitoring.quality.verdicts.quality import Action, Changed, TaskQuality, VersionQuality


def announce(task: TaskQuality, versions: Sequence[str], change: Changed) -> tuple[TaskQuality, Action]:
    """The quality after the announcement of a change: these versions are stale from its time on.

    A version that was stale from an earlier time stays so. An earlier announcement is replaced, and has no effect.
    """
    moved = _unmarked(task)
    before: dict[str, float | None] = {}
    for name in versions:
        quality = moved.get(name, VersionQuality(since=change.at))
        before[name] = quality.stale_from
        first = change.effective_at if quality.stale_from is None else min(quality.stale_from, change.effective_at)
        moved[name] = replace(quality, stale_from=first)
    change = replace(change, stale_before=before)
    action = Action(
        id=_id(change.at),
        at=change.at,
        kind="changed",
        version="",
        because=change.note or "The task's rules change.",
        before={"stale_from": _marks(task.versions, versions), "changed": msgspec.to_builtins(task.changed)},
        after={"stale_from": _marks(moved, versions), "changed": msgspec.to_builtins(change)},
        by=change.by,
    )
    return add_actions(replace(task, versions=moved, changed=change), [action]), action


def take_back(task: TaskQuality, by: str, now: float) -> tuple[TaskQuality, Changed, Action]:
    """The quality without the announced change, the change that was taken back, and the action.

    Raises ResponseError if no change is announced.
    """
    if task.changed is None:
        raise ResponseError("Nobody has said that the task changes: there is nothing to take back.")
    change = task.changed
    announced = [entry.id for entry in task.actions if entry.kind == "changed" and entry.undone_at is None]
    marked = [replace(entry, undone_at=now, undone_by=by) if entry.id in announced else entry for entry in task.actions]
    action = Action(
        id=_id(now),
        at=now,
        kind="undo",
        version="",
        because=f"{by} takes back that the task changes.",
        evidence={"undone": "changed", "action": announced[-1] if announced else None},
        before={"changed": msgspec.to_builtins(change)},
        after={"changed": None},
        by=by,
    )
    after = replace(task, versions=_unmarked(task), changed=None, actions=marked)
    return add_actions(after, [action]), change, action


def _unmarked(task: TaskQuality) -> dict[str, VersionQuality]:
    """The versions as they were before any announcement."""
    change = task.changed
    if change is None:
        return dict(task.versions)
    return {
        name: replace(quality, stale_from=change.stale_before.get(name))
        if name in change.stale_before or quality.stale_from == change.effective_at
        else quality
        for name, quality in task.versions.items()
    }


def _marks(versions: Mapping[str, VersionQuality], names: Sequence[str]) -> dict[str, float | None]:
    """The time from which each of these is stale."""
    return {name: versions[name].stale_from if name in versions else None for name in names}


def _id(now: float) -> str:
    return f"{int(now * 1000):x}-c"
