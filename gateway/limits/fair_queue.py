"""The one fair queue: callers take turns, and each caller's own entries keep their order of arrival."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

Wanted = frozenset[str] | None
"""Replicas, any of which is enough. None: the entry waits for a place in the gateway, or for a thread."""


class QueueEntry(Protocol):
    """One waiting entry. `in_line` is true while it waits; only its queue sets that."""

    caller: str
    wanted: Wanted
    in_line: bool


Entry = TypeVar("Entry", bound=QueueEntry)


class FairQueue(Generic[Entry]):
    """A queue by callers. The first caller in `_turns` has the next turn, and then moves to the end."""

    def __init__(self) -> None:
        self._turns: dict[str, dict[Wanted, deque[Entry]]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, entry: Entry, first: bool = False) -> None:
        """Add an entry behind its caller's other entries, or with `first` before them."""
        group = self._turns.setdefault(entry.caller, {}).setdefault(entry.wanted, deque())
        if first:
            group.appendleft(entry)
        else:
            group.append(entry)
        entry.in_line = True
        self._length += 1

    def remove(self, entry: Entry) -> None:
        """Remove an entry, wherever it is."""
        groups = self._turns[entry.caller]
        group = groups[entry.wanted]
        group.remove(entry)
        entry.in_line = False
        self._length -= 1
        if not group:
            del groups[entry.wanted]
            if not groups:
                del self._turns[entry.caller]

    def next(
        self, has_room: Callable[[Wanted], bool], has_its_share: Callable[[str], bool], beyond_share: bool = True
    ) -> Entry | None:
        """Take out the next entry that has room; None if there is none.

        A caller that has its share already is skipped while another one can be called; without `beyond_share` always.
        """
        room: dict[Wanted, bool] = {}
        spare: Entry | None = None
        for caller, groups in self._turns.items():
            for wanted, group in groups.items():
                if wanted not in room:
                    room[wanted] = has_room(wanted)
                if not room[wanted]:
                    continue
                if not has_its_share(caller):
                    return self._take(group[0])
                spare = spare or group[0]
                break
        return self._take(spare) if spare is not None and beyond_share else None

    def _take(self, entry: Entry) -> Entry:
        caller = entry.caller
        self.remove(entry)
        if caller in self._turns:
            self._turns[caller] = self._turns.pop(caller)
        return entry
