"""Groups of rows that count as one piece of evidence: rows that the data group together, and equal requests."""

from __future__ import annotations

from collections.abc import Sequence

SHARED_GROUPS_MAX = 2
"""A request that more groups have, such as a greeting, joins none of them: most sessions would be one group."""
SESSION_FIELD = "group"
"""The field of such groups. What was made from a request, and its paraphrases, are always of one group with it."""


class JoinedRows:
    """Rows that belong together, over any chain of reasons (union-find)."""

    def __init__(self) -> None:
        self._before: dict[int, int] = {}
        """Of each row that is not the first of its group an earlier one of the group."""

    def first_of(self, number: int) -> int:
        """The first row of this one's group."""
        while (before := self._before.get(number)) is not None:
            self._before[number] = self._before.get(before, before)
            number = before
        return number

    def join(self, *numbers: int) -> int:
        """Make one group of the groups of these rows; its first row."""
        least, *others = sorted({self.first_of(number) for number in numbers})
        self._before |= dict.fromkeys(others, least)
        return least

    def list_joined(self) -> dict[int, int]:
        """The former first rows of groups, each with the first row of the group that it was joined to."""
        return {number: self.first_of(number) for number in self._before}


def join_named(names: Sequence[Sequence[tuple[str, str]]]) -> JoinedRows:
    """Rows by the `names` of each: those that share one belong together."""
    rows, by_name = JoinedRows(), dict[tuple[str, str], int]()
    for number, of_row in enumerate(names):
        for name in of_row:
            rows.join(number, by_name.setdefault(name, number))
    return rows


class RowGroups:
    """Owner of the groups of rows that are read one after the other. A group is the number of its first row."""

    def __init__(self) -> None:
        self.count = 0
        self._group_of: dict[tuple[str, str | bytes], int] = {}
        self._rows = JoinedRows()
        self._names_of: dict[bytes, tuple[tuple[str, str], ...]] = {}
        """The first named groups that have a request."""

    @property
    def joined(self) -> dict[int, int]:
        """The groups which later rows joined to others, each with that which it is a part of."""
        return self._rows.list_joined()

    def add(self, number: int, row_id: str, request: bytes, named: Sequence[tuple[str, str]]) -> int:
        """The group of all rows that have a name or the request in common with this one, over any chain of rows.

        `request` is its digest, `named` are the groups that the data give it.
        """
        is_shared = self._is_shared(request, named)
        joining = [name for name in named if not (is_shared and name[0] == SESSION_FIELD)]
        names: list[tuple[str, str | bytes]] = [*joining, ("parent", row_id), ("request", request)]
        before = {self._rows.first_of(self._group_of[name]) for name in names if name in self._group_of}
        group = self._rows.join(*before or {number})
        self.count += 1 - len(before)
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
