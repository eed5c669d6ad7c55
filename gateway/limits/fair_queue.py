"""A line of those who wait: callers take turns, and each caller's own go in the order in which they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

Wanted = frozenset[str] | None
"""What one waits for: any of these replicas; None: a place in the gateway."""


class Waits(Protocol):
    """One who waits. `in_line` says whether it stands in line now; only its line sets it."""

    caller: str
    wanted: Wanted
    in_line: bool


One = TypeVar("One", bound=Waits)


class WaitingLine(Generic[One]):
    """One line. The caller that stands first in `_turns` has the next turn, and goes to the end with it."""

    def __init__(self) -> None:
        self._turns: dict[str, dict[Wanted, deque[One]]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, one: One, first: bool = False) -> None:
        """Stand in line: behind its caller's others, or before them."""
        group = self._turns.setdefault(one.caller, {}).setdefault(one.wanted, deque())
        if first:
            group.appendleft(one)
        else:
            group.append(one)
        one.in_line = True
        self._length += 1

    def remove(self, one: One) -> None:
        """Leave the line, from wherever it stands."""
        groups = self._turns[one.caller]
        group = groups[one.wanted]
        group.remove(one)
        one.in_line = False
        self._length -= 1
        if not group:
            del groups[one.wanted]
            if not groups:
                del self._turns[one.caller]

    def next(self, fits: Callable[[Wanted], bool], has_its_share: Callable[[str], bool]) -> One | None:
        """Take out who is next of those for whom there is room: a caller that has its share only if no other waits."""
        known: dict[Wanted, bool] = {}
        spare: One | None = None
        for caller, groups in self._turns.items():
            for wanted, group in groups.items():
                if wanted not in known:
                    known[wanted] = fits(wanted)
                if not known[wanted]:
                    continue
                if not has_its_share(caller):
                    return self._called(group[0])
                spare = spare or group[0]
                break
        return None if spare is None else self._called(spare)

    def _called(self, one: One) -> One:
        caller = one.caller
        self.remove(one)
        if caller in self._turns:
            self._turns[caller] = self._turns.pop(caller)
        return one
