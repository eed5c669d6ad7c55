"""The selection of rows: one row of several equal or similar ones, none of contradicting rows; and groups of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import msgspec

from monitoring.datasets.near_duplicates import NearIndex
from monitoring.datasets.rows import (
    ORIGINS,
    PARAPHRASED,
    DataRow,
    LeftOut,
    digest,
    digest_of_answer,
    digest_of_input,
    fold_text,
    input_of,
)
from monitoring.datasets.splitting import NO_SIDES, EarlierSides
from monitoring.evaluation.dataset import list_offered, write_canonically
from monitoring.evaluation.row_groups import SHARED_GROUPS_MAX, JoinedRows, join_named


@dataclass
class Selection:
    """The kept rows, each with the name of its group, and the rows that are left out.

    `contrasts` are pairs of near kept rows with different answers: either both are right, or a label is wrong.
    """

    kept: list[DataRow] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    contrasts: list[tuple[str, str]] = field(default_factory=list)
    earlier: EarlierSides = NO_SIDES
    """The names of groups with an input that an earlier set had on a side."""


def select_rows(rows: Sequence[DataRow], earlier: EarlierSides = NO_SIDES) -> Selection:
    """Select rows. The result does not depend on their order. `earlier` has digests of inputs."""
    ranked = sorted(((_rank(row), row) for row in rows), key=itemgetter(0))
    ranks, ordered = [rank for rank, _ in ranked], _with_unique_ids([row for _, row in ranked])
    parents = {row.parent for row in rows}
    groups = join_named([_names_of_groups(row, parents) for _, row in ranked])  # by the ids that were given
    selection = Selection()
    shared = _find_shared(ranks, groups) - {rank.input for rank, row in ranked if _has_kin(row, parents)}
    equal = _without_equal(ordered, ranks, groups, selection, shared)
    numbers = _without_near(ordered, ranks, equal, groups, selection)
    selection.kept = [ordered[number] for number in numbers]
    selection.groups = _name_groups(ordered, ranks, numbers, groups, shared)
    deciding = {*numbers, *(number for number, rank in enumerate(ranks) if rank.input not in shared)}
    named = [(groups.first_of(number), name) for number, name in zip(numbers, selection.groups, strict=True)]

    def name_groups_with(inputs: Set[str]) -> frozenset[str]:
        firsts = {groups.first_of(number) for number in deciding if ranks[number].input in inputs}
        return frozenset(name for first, name in named if first in firsts)

    selection.earlier = EarlierSides(*map(name_groups_with, earlier))
    return selection


class _Rank(NamedTuple):
    """The sort key of a row: rows of people before synthetic ones, then by digests."""

    origin: int
    input: str
    answer: str
    whole: str
    tools: str


def _rank(row: DataRow) -> _Rank:
    whole = digest(msgspec.json.encode(row).decode())
    tools = write_canonically(list_offered(row.tools, row.tool_choice))
    return _Rank(ORIGINS.index(row.origin), digest_of_input(row), digest_of_answer(row), whole, digest(tools))


def _with_unique_ids(rows: Sequence[DataRow]) -> list[DataRow]:
    """The rows with unique ids: if several share an id, all but the first get a part of their digest as a suffix."""
    ids: set[str] = set()
    unique = []
    for row in rows:
        name = row.id
        if name in ids:
            name = f"{row.id}-{digest(msgspec.json.encode(row).decode())[:12]}"
            while name in ids:  # the same row, given twice: it is left out later
                name = f"{name}+"
        ids.add(name)
        unique.append(row if name == row.id else msgspec.structs.replace(row, id=name))
    return unique


def _names_of_groups(row: DataRow, parents: Set[str | None]) -> list[tuple[str, str]]:
    """The names by which a row belongs together with others. They hold across sources: derived rows, and rows of its
    group, may come from elsewhere."""
    names = [("parent", name) for name in (row.parent, row.id) if name and name in parents]
    return names + ([("group", row.group)] if row.group else [])


def _has_kin(row: DataRow, parents: Set[str | None]) -> bool:
    """True if other rows ask the same in other words: derived rows, its parent, or paraphrases."""
    return row.parent is not None or row.id in parents or (row.group or "").startswith(PARAPHRASED)


def _find_shared(ranks: Sequence[_Rank], groups: JoinedRows) -> set[str]:
    """The digests of inputs in too many of the rows' named groups to join them."""
    of_input: dict[str, set[int]] = {}
    for number, rank in enumerate(ranks):
        of_input.setdefault(rank.input, set()).add(groups.first_of(number))
    return {name for name, firsts in of_input.items() if len(firsts) > SHARED_GROUPS_MAX}


def _without_equal(
    rows: Sequence[DataRow], ranks: Sequence[_Rank], groups: JoinedRows, selection: Selection, shared: Set[str]
) -> list[int]:
    """The numbers of rows that stand for all rows with their input; none for an input with different answers."""
    by_input: dict[str, dict[str, list[int]]] = {}
    for number, rank in enumerate(ranks):
        by_input.setdefault(rank.input, {}).setdefault(rank.answer, []).append(number)
    standing = []
    for name, by_answer in by_input.items():
        numbers = [number for equal in by_answer.values() for number in equal]
        if name not in shared:
            groups.join(*numbers)
        if len(by_answer) > 1:
            selection.left_out += [LeftOut(because="conflict", row=rows[each], conflict=name[:16]) for each in numbers]
            continue
        first, *others = numbers
        standing.append(first)
        selection.left_out += [LeftOut(because="exact_duplicate", row=rows[each], of=rows[first].id) for each in others]
    return sorted(standing)


def _without_near(
    rows: Sequence[DataRow], ranks: Sequence[_Rank], numbers: Sequence[int], groups: JoinedRows, selection: Selection
) -> list[int]:
    """The numbers of rows that are near no earlier row with the same tools and answer. Rows near each other are one
    group, whatever their tools."""
    texts = [fold_text(input_of(rows[number])) for number in numbers]
    index, distinct = NearIndex(texts), []
    for number, text in zip(numbers, texts, strict=True):
        sketch = index.sketch(text)
        near = [other for other, _ in index.near(sketch)]
        groups.join(number, *near)
        near = [other for other in near if ranks[other].tools == ranks[number].tools]
        same = next((other for other in near if ranks[other].answer == ranks[number].answer), None)
        if same is not None:
            selection.left_out.append(LeftOut(because="near_duplicate", row=rows[number], of=rows[same].id))
            continue
        selection.contrasts += [(rows[other].id, rows[number].id) for other in near]
        distinct.append(number)
        index.add(number, sketch)
    return distinct


def _name_groups(
    rows: Sequence[DataRow], ranks: Sequence[_Rank], numbers: Sequence[int], groups: JoinedRows, shared: Set[str]
) -> list[str]:
    """The names of these rows' groups. A group's oldest row names it, so newer rows change no name. An input shared by
    many groups names a group only if it has no other input."""
    oldest: dict[int, tuple[bool, float, str]] = {}
    for number, (row, rank) in enumerate(zip(rows, ranks, strict=True)):
        age = (rank.input in shared, math.inf if row.at is None else row.at, rank.input)
        first = groups.first_of(number)
        oldest[first] = min(oldest.get(first, age), age)
    return [oldest[groups.first_of(number)][2][:16] for number in numbers]
