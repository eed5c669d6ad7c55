"""A data set from rows: selected, classified, divided and bounded. Pure: the same rows give the same set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import msgspec

from monitoring.datasets.build_job import DatasetOptions
from monitoring.datasets.rows import DataRow, LeftOut, digest, list_requests, name_requests
from monitoring.datasets.selection import select_rows
from monitoring.datasets.splitting import NO_SIDES, EarlierSides, bound_classes, split_groups
from monitoring.evaluation.row_classes import Classes, ClassFinder


@dataclass(frozen=True)
class BuiltSet:
    """A data set. `contrasts` are pairs of ids of rows with near inputs and different answers.

    `held_before` counts rows that are held out only because earlier sets held them out, not by this set's draw.
    """

    train: list[DataRow]
    heldout: list[DataRow]
    left_out: list[LeftOut]
    contrasts: list[tuple[str, str]]
    held_before: int = 0

    @property
    def rows(self) -> list[DataRow]:
        """The training rows and the held-out rows."""
        return [*self.train, *self.heldout]

    def requests(self) -> list[str]:
        """The ids of requests whose texts are in any of its files."""
        return list_requests([*self.rows, *(each.row for each in self.left_out if each.row is not None)])


def build_set(
    rows: Sequence[DataRow],
    faults: Sequence[LeftOut],
    options: DatasetOptions,
    earlier: EarlierSides = NO_SIDES,
) -> BuiltSet:
    """Build a data set of the readable rows. Inputs stay on the side that `earlier` has for their digests."""
    selection = select_rows(name_requests(rows, rows), earlier)
    left_out = [*faults, *selection.left_out]
    labelled: list[DataRow] = []
    groups: list[str] = []
    sizes = Counter(selection.groups)
    for row, label, group in zip(selection.kept, _labels(selection.kept, options), selection.groups, strict=True):
        if options.class_field and label is None:
            fault = f"Row {row.id}: its answer has no field {options.class_field!r} for a class."
            left_out.append(LeftOut(because="unreadable", row=row, fault=fault, source=row.source))
            continue
        named = group if sizes[group] > 1 else None
        labelled.append(msgspec.structs.replace(row, label=label, group=named))
        groups.append(group)
    held_out = split_groups(labelled, groups, options.heldout_share, selection.earlier)
    drawn = split_groups(labelled, groups, options.heldout_share)
    divided = [(row, side) for row, side in zip(labelled, held_out, strict=True)]
    all_synthetic = all(row.origin == "synthetic" for row, side in divided if side)
    is_held = [side and (all_synthetic or row.origin != "synthetic") for row, side in divided]
    if not all_synthetic:
        synthetic = [row for row, side in divided if side and row.origin == "synthetic"]
        left_out += [LeftOut(because="made_from_heldout", row=row) for row in synthetic]
    train, over = bound_classes([row for row, side in divided if not side], options.class_ratio_max)
    return BuiltSet(
        sorted(train, key=_order),
        sorted(compress(labelled, is_held), key=_order),
        sorted([*left_out, *over], key=_place),
        selection.contrasts,
        sum(held and not alone for held, alone in zip(is_held, drawn, strict=True)),
    )


def _labels(rows: Sequence[DataRow], options: DatasetOptions) -> list[str | None]:
    """The class of each row: a named field of its answer, or else found as an evaluation finds classes."""
    if options.class_field:
        classes = Classes("field", options.class_field)
    else:
        finder = ClassFinder()
        for row in rows:
            finder.add(row.evaluated())
        classes = finder.found()
    return [classes.of_row(row.evaluated()) for row in rows]


def _order(row: DataRow) -> str:
    """The sort key of a row in its file: a shuffled order that is always the same."""
    return digest(row.id)


def _place(left_out: LeftOut) -> tuple[str, str, str, int]:
    """The sort key of a row that is left out: by reason, rows of one conflict together."""
    name = digest(left_out.row.id) if left_out.row is not None else left_out.source
    return left_out.because, left_out.conflict, name, left_out.line
