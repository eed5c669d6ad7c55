"""What is done in one step of the monitor's is noted: an Action each, with its evidence and what was there before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from monitoring.degradation.verdicts.health import Action, ActionKind, VersionHealth


class Noting:
    """Collects the actions of one step, at `now` in Unix seconds, and gives each its id."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.actions: list[Action] = []

    def note(
        self,
        kind: ActionKind,
        version: str,
        because: str,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        **more: Any,
    ) -> None:
        """Note one action. Its id sorts by when it was, and differs from those of others' steps at the same moment."""
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
        known: VersionHealth,
        because: str,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
    ) -> VersionHealth:
        """The version after what is done but once while its verdict lasts."""
        if kind in known.done:
            return known
        self.note(kind, version, because, before, after, evidence=known.evidence)
        return msgspec.structs.replace(known, done=(*known.done, kind))
