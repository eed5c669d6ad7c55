"""Groups of rows that tell as much as one: those that the data say belong together, and equal requests."""

from __future__ import annotations

from collections.abc import Sequence

SHARED_GROUPS_MAX = 2
"""A request that more groups have, such as a greeting, joins none of them: most sessions would be one group."""
SESSION_FIELD = "group"
"""The field of such groups. What was made from a request, and its paraphrases, are always of one group with it."""


class RowGroups:
    """Owner of the groups of rows that are read one after the other. A group is the number of its first row."""

    def __init__(self) -> None:
        self.count = 0
        self._group_of: dict[tuple[str, str | bytes], int] = {}
        self._joined: dict[int, int] = {}
        """Groups that a later row joined to an earlier one."""
        self._names_of: dict[bytes, tuple[tuple[str, str], ...]] = {}
        """The first named groups that have a request."""

    @property
    def joined(self) -> dict[int, int]:
        """The groups which later rows joined to others, each with that which it is a part of."""
        return {group: self._find(group) for group in self._joined}

    def add(self, number: int, row_id: str, request: bytes, named: Sequence[tuple[str, str]]) -> int:
        """The group of all rows that have a name or the request in common with this one, over any chain of rows.

        `request` is its digest, `named` are the groups that the data give it.
        """
        is_shared = self._is_shared(request, named)
        joining = [name for name in named if not (is_shared and name[0] == SESSION_FIELD)]
        names: list[tuple[str, str | bytes]] = [*joining, ("parent", row_id), ("request", request)]
        before = sorted({self._find(self._group_of[name]) for name in names if name in self._group_of})
        group, *others = before or [number]
        self._joined |= dict.fromkeys(others, group)
        self.count += (group == number) - len(others)
        for name in names:
            self._group_of.setdefault(name, group)
        return group

    def _is_shared(self, request: bytes, named: Sequence[tuple[str, str]]) -> bool:
        """True if more groups have this request than it joins, this one among the others."""
        session = next((name for name in named if name[0] == SESSION_FIELD), None)
        names = self._names_of.get(request, ())
        if session is None or session in names:
            return False
        if len(names) < SHARED_GROUPS_MAX:
            self._names_of[request] = (*names, session)
        return len(names) >= SHARED_GROUPS_MAX

    def _find(self, group: int) -> int:
        """The group that a group is a part of, by all rows so far."""
        while (whole := self._joined.get(group)) is not None:
            self._joined[group] = self._joined.get(whole, whole)
            group = whole
        return group
