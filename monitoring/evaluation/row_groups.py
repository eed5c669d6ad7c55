"""Groups of rows that count as one piece of evidence: rows that the data group together, and equal requests."""

from __future__ import annotations

from collections.abc import Sequence

SHARED_GROUPS_MAX = 2
"""A request in more groups, such as a greeting, does not join them: most sessions would become one group."""
SESSION_FIELD = "group"
"""The field of such groups. Rows made from a request, and its paraphrases, always join its group."""


class JoinedRows:
    """Rows that belong together, over any chain of reasons (union-find)."""

    def __init__(self) -> None:
        self._before: dict[int, int] = {}
        """For each row that is not the first of its group: an earlier row of the group."""

    def first_of(self, number: int) -> int:
        """The first row of a row's group."""
        while (before := self._before.get(number)) is not None:
            self._before[number] = self._before.get(before, before)
            number = before
        return number

    def join(self, *numbers: int) -> int:
        """Join the groups of these rows; returns the first row."""
        least, *others = sorted({self.first_of(number) for number in numbers})
        self._before |= dict.fromkeys(others, least)
        return least

    def list_joined(self) -> dict[int, int]:
        """The former first rows of groups, each with the first row of its present group."""
        return {number: self.first_of(number) for number in self._before}


def join_named(names: Sequence[Sequence[tuple[str, str]]]) -> JoinedRows:
    """Join the rows that share one of their `names`."""
    rows, by_name = JoinedRows(), dict[tuple[str, str], int]()
    for number, of_row in enumerate(names):
        for name in of_row:
            rows.join(number, by_name.setdefault(name, number))
    return rows


class RowGroups:
    """Owner of the groups of rows that are read in turn. A group is the number of its first row."""

    def __init__(self) -> None:
        self.count = 0
        self._group_of: dict[tuple[str, str | bytes], int] = {}
        self._rows = JoinedRows()
        self._names_of: dict[bytes, tuple[tuple[str, str], ...]] = {}
        """The first named groups of each request."""

    @property
    def joined(self) -> dict[int, int]:
        """The groups that later rows joined to others, each with the group that it is now a part of."""
        return self._rows.list_joined()

    def add(self, number: int, row_id: str, request: bytes, named: Sequence[tuple[str, str]]) -> int:
        """Add a row; returns the group of all rows that share a name or the request with it, over any chain of rows.

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
        """True if this row's named group is beyond those that its request joins."""
        session = next((name for name in named if name[0] == SESSION_FIELD), None)
        names = self._names_of.get(request, ())
        if session is None or session in names:
            return False
        if len(names) < SHARED_GROUPS_MAX:
            self._names_of[request] = (*names, session)
        return len(names) >= SHARED_GROUPS_MAX
