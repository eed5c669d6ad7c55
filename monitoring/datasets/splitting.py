"""The division into training and held-out rows, by groups, and the bound on the largest class."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence, Set
from typing import NamedTuple

from monitoring.datasets.rows import DataRow, LeftOut, digest

GROUPS_MIN = 5
"""A class with fewer groups is not held out where chance leaves it to training: it would lose too much."""


class EarlierSides(NamedTuple):
    """Digests of inputs, or names of groups, that earlier sets of a task held out, or gave to training."""

    held: Set[str] = frozenset()
    trained: Set[str] = frozenset()


NO_SIDES = EarlierSides()


def split_groups(
    rows: Sequence[DataRow], groups: Sequence[str], heldout_share: float, earlier: EarlierSides = NO_SIDES
) -> list[bool]:
    """Decide which rows are held out. Rows of a group are on one side.

    A group's side is drawn by a hash of its name, which is that of its oldest row: what is held out once is so in later
    sets with newer rows, too. `earlier` says it of groups of which a name does not, such as of rows without times, or
    of what was too large. A group of synthetic rows alone is for training, where there are others, and so is one with
    over twice the held-out share of the rows, if it is not the smallest: drawn as one, it would leave little to train
    on. A class of which chance holds out nothing gives its next group, rather one that was not trained on.
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
    """The rows of which no class has more than `ratio_max` times those of the median class, and those over it.

    With two classes the median is the smaller one. None: all of them.
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
