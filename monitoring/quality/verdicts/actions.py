"""The actions of one step of the monitor, each with its evidence and with the state before it.

If an action could not be carried out, the same action is requested again while its reason holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from monitoring.quality.verdicts.quality import ACTIONS_MAX, Action, ActionKind, TaskQuality, VersionQuality

AGAIN_SECONDS = 60.0
"""The time before a failed action is requested again."""


class Noting:
    """Collects the actions of one step, at `now` in Unix seconds, and gives each its id."""

    def __init__(self, now: float, before: Sequence[Action] = ()) -> None:
        """`before` are the task's newest actions, oldest first. A failed one is requested again with its own id."""
        self.now = now
        self.actions: list[Action] = []
        self._newest = {(action.kind, action.version): action for action in before}

    def note(
        self,
        kind: ActionKind,
        version: str,
        because: str,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        **more: Any,
    ) -> None:
        """Note one action. Its id sorts by time, and differs from those of other steps at the same moment."""
        named = f"{version} {kind} {more.get('by', 'system')} {len(self.actions)}".encode()
        mark = hashlib.blake2b(named, digest_size=3).hexdigest()
        self.actions.append(
            Action(
                id=f"{int(self.now * 1000):x}-{len(self.actions):02x}{mark}",
                at=self.now,
                kind=kind,
                version=version,
                because=because,
                before=dict(before),
                after=dict(after),
                **more,
            )
        )

    def once(
        self,
        kind: ActionKind,
        version: str,
        quality: VersionQuality,
        because: str,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
    ) -> VersionQuality:
        """The version after an action that is done once while a verdict lasts. A failed one is repeated later."""
        if kind in quality.done:
            return quality
        failed = self._failed(kind, version, quality)
        if failed is not None and 0.0 <= self.now - failed.at < AGAIN_SECONDS:
            return quality
        self.note(kind, version, because, before, after, evidence=quality.evidence)
        if failed is not None:
            self.actions[-1] = replace(self.actions[-1], id=failed.id, again=failed.again + 1)
        return replace(quality, done=(*quality.done, kind))

    def _failed(self, kind: ActionKind, version: str, quality: VersionQuality) -> Action | None:
        """The last such action since the present verdict, if it failed."""
        last = self._newest.get((kind, version))
        return last if last is not None and last.failed is not None and last.at >= quality.since else None


def add_actions(task: TaskQuality, actions: Sequence[Action]) -> TaskQuality:
    """The quality with these actions as its newest. An action that is requested again moves to the end."""
    if not actions:
        return task
    new = {action.id for action in actions}
    others = [action for action in task.actions if action.id not in new]
    return replace(task, actions=[*others, *actions][-ACTIONS_MAX:])


def mark_failed(task: TaskQuality, action: Action, why: str) -> TaskQuality:
    """The quality after one of its actions has failed. The action is marked, and requested again in a later step. The
    same object if it is marked already, or no longer there."""
    noted = next((entry for entry in task.actions if entry.id == action.id), None)
    if noted is None or noted.again != action.again or noted.failed is not None:
        return task
    marked = [replace(entry, failed=why) if entry.id == action.id else entry for entry in task.actions]
    versions, quality = dict(task.versions), task.versions.get(action.version)
    if quality is not None:
        quality = replace(quality, done=tuple(kind for kind in quality.done if kind != action.kind))
        if action.kind == "pause_canary":  # it still has its share: there is nothing to give back
            quality = replace(quality, paused_share=None)
        versions[action.version] = quality
    return replace(task, versions=versions, actions=marked)
