"""The rows of a training: a held-out part that shares no group with the rest, and rows of earlier rounds. Pure."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from monitoring.datasets.foreign_rows import read_own_object
from monitoring.datasets.leaks import LeakFinder, get_request
from monitoring.datasets.rows import digest, share_tools
from monitoring.evaluation.dataset import (
    DatasetLimits,
    DatasetReader,
    Row,
    join_groups,
    list_offered,
    write_canonically,
)
from monitoring.evaluation.row_groups import join_named

HELDOUT_ROWS_MAX = 400
"""The most held-out rows that decide on an early stop: more would take time without more evidence."""
PIECE_BYTES = 1 << 20
REFUTED_ROWS_MIN = 5
"""The least number of rows that must reject an answer to refute it."""
REFUTED_RATIO_MIN = 4
"""The least number of rows that must reject an answer, for each row that expects it."""


def read_rows(path: Path, limits: DatasetLimits) -> list[Row]:
    """The rows of a file. Raises DatasetError, which names the line, and OSError."""
    reader, rows, tools = DatasetReader(limits, read_own_object), list[Row](), dict[bytes, list[dict[str, Any]]]()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            rows += [share_tools(row, tools) for row in reader.feed(piece)]
    rows += [share_tools(row, tools) for row in reader.end()]
    return join_groups(rows, reader.joined)


def split_heldout(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """The rows to train on, and about this share of their groups held out, but no group over twice the share of rows.
    No group and no request is in both."""
    joined = join_named([[("group", str(row.group)), ("request", make_request_key(row))] for row in rows])
    of_rows = [joined.first_of(at) for at in range(len(rows))]
    sizes = Counter(of_rows)
    small = sorted(group for group, size in sizes.items() if size <= max(1, 2 * share * len(rows)))
    count = min(round(share * len(sizes)), len(sizes) - 1, len(small))
    chosen = frozenset(random.Random(seed).sample(small, count))  # noqa: S311 - a repeatable draw, no secret
    divided = [(row, group in chosen) for row, group in zip(rows, of_rows, strict=True)]
    return [row for row, is_held in divided if not is_held], [row for row, is_held in divided if is_held]


def draw_rows(rows: Sequence[Row], rows_max: int, seed: int) -> list[Row]:
    """At most `rows_max` rows, drawn at random, in their order."""
    if len(rows) <= rows_max:
        return list(rows)
    places = random.Random(seed).sample(range(len(rows)), rows_max)  # noqa: S311 - a repeatable draw, no secret
    return [rows[at] for at in sorted(places)]


def as_line(row: Row, source: str) -> dict[str, Any]:
    """A row in the trainer's form, with the names by which an erasure finds it. `source` distinguishes groups of
    several files."""
    names = {"id": row.id, "request": row.request, "parent": row.parent}
    own: dict[str, Any] = {name: value for name, value in names.items() if value} | {"group": f"{source}-{row.group}"}
    if row.messages is None:
        return {"prompt": row.prompt, "expected": row.expected, **own}
    return {"messages": [*row.messages, row.answer], **own, **row.offer}


def make_request_key(row: Row) -> str:
    """The key of a row's request, which equal requests share."""
    return digest(write_canonically([row.messages, row.prompt, *list_offered(row.tools, row.tool_choice)]))


def find_refuted(rows: Sequence[Row]) -> frozenset[str]:
    """Answers that rows reject far more often than they expect them: they were right before, and are not now.

    Empty if most rows reject an answer, for instance if callers only report errors: then right answers are unknown.
    """
    rejected = Counter(row.rejected for row in rows if row.rejected)
    if 2 * rejected.total() > len(rows):
        return frozenset()
    expected = Counter(row.expected for row in rows)
    return frozenset(
        answer
        for answer, count in rejected.items()
        if count >= REFUTED_ROWS_MIN and count >= REFUTED_RATIO_MIN * expected[answer]
    )


def rehearse(rows: Sequence[Row], heldout: Sequence[Row], older: Sequence[Row], share: float, seed: int) -> list[Row]:
    """Older rows to train on beside `rows`, so that they are this share of all.

    `older` has the newest first, and of one request the newest row counts. A request that is in the new or held-out
    rows, or near a held-out one, is left out. So is a row whose answer these rows refute.
    """
    newer = [*rows, *heldout]
    refuted, requests = find_refuted(newer), {make_request_key(row) for row in newer}
    valid = (row for row in reversed(older) if row.expected not in refuted)
    unknown = {request: row for row in valid if (request := make_request_key(row)) not in requests}
    pool, finder = list(unknown.values()), LeakFinder(map(get_request, heldout))
    order = random.Random(seed).sample(range(len(pool)), len(pool))  # noqa: S311 - a repeatable draw, no secret
    unlike = (at for at in order if finder.find(get_request(pool[at])) is None)
    return [pool[at] for at in sorted(islice(unlike, round(share / (1 - share) * len(rows))))]
