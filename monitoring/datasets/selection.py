"""The selection of rows: one of equal or similar rows, none of contradicting rows; and their groups."""

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
    """The rows that are kept, each with the name of its group, and those that are left out.

    `contrasts` are pairs of kept rows that are near each other and have different answers: right, or a wrong label.
    """

    kept: list[DataRow] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    contrasts: list[tuple[str, str]] = field(default_factory=list)
    earlier: EarlierSides = NO_SIDES
    """The names of groups that have an input which an earlier set had on a side."""


def select_rows(rows: Sequence[DataRow], earlier: EarlierSides = NO_SIDES) -> Selection:
    """Choose among rows. The result is the same in whatever order they come. `earlier` has digests of inputs."""
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
    """The place of a row in their order: what people wrote before what a program made; then by digests alone."""

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
    """The rows; of those that share an id, all but the first have a part of their digest behind it."""
    ids: set[str] = set()
    unique = []
    for row in rows:
        name = row.id
        if name in ids:
            name = f"{row.id}-{digest(msgspec.json.encode(row).decode())[:12]}"
            while name in ids:  # the same row, given twice: it is left out further on
                name = f"{name}+"
        ids.add(name)
        unique.append(row if name == row.id else msgspec.structs.replace(row, id=name))
    return unique


def _names_of_groups(row: DataRow, parents: Set[str | None]) -> list[tuple[str, str]]:
    """The names under which a row belongs together with others, whatever their sources: what was made from a row, or of
    its group, may come from elsewhere."""
    names = [("parent", name) for name in (row.parent, row.id) if name and name in parents]
    return names + ([("group", row.group)] if row.group else [])


def _has_kin(row: DataRow, parents: Set[str | None]) -> bool:
    """True if others ask the same in other words: what was made from it, what it was made from, or a paraphrase."""
    return row.parent is not None or row.id in parents or (row.group or "").startswith(PARAPHRASED)


def _find_shared(ranks: Sequence[_Rank], groups: JoinedRows) -> set[str]:
    """The digests of inputs that more groups have than it joins, by the groups that the rows name."""
    of_input: dict[str, set[int]] = {}
    for number, rank in enumerate(ranks):
        of_input.setdefault(rank.input, set()).add(groups.first_of(number))
    return {name for name, firsts in of_input.items() if len(firsts) > SHARED_GROUPS_MAX}


def _without_equal(
    rows: Sequence[DataRow], ranks: Sequence[_Rank], groups: JoinedRows, selection: Selection, shared: Set[str]
) -> list[int]:
    """The numbers of rows that stand for all with the same input; of those with several answers none does."""
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
    """The numbers of rows that are near no other with the same tools and answer. All that are near each other are one
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
    """The names of the groups of the rows with these numbers, each by its oldest row: newer ones change none. An input
    that groups share names none that has another."""
    oldest: dict[int, tuple[bool, float, str]] = {}
    for number, (row, rank) in enumerate(zip(rows, ranks, strict=True)):
        age = (rank.input in shared, math.inf if row.at is None else row.at, rank.input)
        first = groups.first_of(number)
        oldest[first] = min(oldest.get(first, age), age)
    return [oldest[groups.first_of(number)][2][:16] for number in numbers]
