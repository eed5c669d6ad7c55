"""The division into training and held-out rows by groups, and the bound on the largest class."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence, Set
from typing import NamedTuple

from monitoring.datasets.rows import DataRow, LeftOut, digest

GROUPS_MIN = 5
"""If the draw holds out no group of a class, one is added from this number of groups on: fewer would lose too much."""


class EarlierSides(NamedTuple):
    """Digests of inputs, or names of groups, that earlier sets of a task held out or trained on."""

    held: Set[str] = frozenset()
    trained: Set[str] = frozenset()


NO_SIDES = EarlierSides()


def split_groups(
    rows: Sequence[DataRow], groups: Sequence[str], heldout_share: float, earlier: EarlierSides = NO_SIDES
) -> list[bool]:
    """Decide which rows are held out. All rows of a group are on one side.

    A group's side is drawn by a hash of its name, which comes from its oldest row. So later sets with newer rows hold
    out the same groups. `earlier` decides if a name can't, for instance for rows without times, or a group that was too
    large. A group of only synthetic rows is for training if there are enough others. So is a group with over twice the
    held-out share of the rows, unless it is the smallest: it would leave little to train on. If the draw holds out
    nothing of a class, its next group is held out, if possible one that was not trained on.
    """
    by_group: dict[str, list[DataRow]] = {}
    for row, group in zip(rows, groups, strict=True):
        by_group.setdefault(group, []).append(row)
    real = {name: of_group for name, of_group in by_group.items() if any(row.origin != "synthetic" for row in of_group)}
    candidates = real if len(real) >= GROUPS_MIN else by_group
    rows_max = max(2 * heldout_share * len(rows), min(map(len, candidates.values()), default=0))
    small = [name for name, of_group in candidates.items() if len(of_group) <= rows_max or name in earlier.held]
    draws = sorted((_draw(name), name) for name in small)
    trained = earlier.trained - earlier.held
    held_out = {name for value, name in draws if value < heldout_share and name not in trained}
    held_out |= earlier.held & set(small)
    by_label: dict[str, list[str]] = {}
    for _, name in draws:
        for label in {row.label or "" for row in candidates[name]}:
            by_label.setdefault(label, []).append(name)
    for _, of_label in sorted(by_label.items()):
        if len(of_label) >= GROUPS_MIN and heldout_share > 0 and not held_out.intersection(of_label):
            held_out.add(next((name for name in of_label if name not in trained), of_label[0]))
    if len(held_out) == len(by_group) and draws:
        held_out.discard(draws[-1][1])
    return [group in held_out for group in groups]


def bound_classes(rows: Sequence[DataRow], ratio_max: float | None) -> tuple[list[DataRow], list[LeftOut]]:
    """The rows, with at most `ratio_max` times the median class in each class, and the rows that are left out for it.

    With two classes the median is the smaller one. Without `ratio_max` all rows stay.
    """
    counts = Counter(row.label for row in rows)
    if ratio_max is None or len(counts) < 2:
        return list(rows), []
    most = max(1, int(ratio_max * statistics.median_low(counts.values())))
    sizes: Counter[str | None] = Counter()
    selected, left_out = [], []
    for row in sorted(rows, key=lambda row: (row.origin == "synthetic", _draw(row.id))):
        sizes[row.label] += 1
        if sizes[row.label] <= most:
            selected.append(row)
        else:
            left_out.append(LeftOut(because="class_ratio", row=row))
    return selected, left_out


def _draw(name: str) -> float:
    """A number from 0 to 1 that is always the same for a name."""
    return int(digest(name)[:13], 16) / 16**13
