"""Rehearsal: rows of earlier rounds that are trained on again, but those whose answer is right no more. Pure."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice

from monitoring.datasets.leaks import LeakFinder, get_request
from monitoring.evaluation.dataset import Row
from monitoring.training.rows import make_request_key

REFUTED_ROWS_MIN = 5
"""Rows that have to reject an answer before it counts as refuted."""
REFUTED_RATIO_MIN = 4
"""Rows that reject a refuted answer, for each that expects it."""


def find_refuted(rows: Sequence[Row]) -> frozenset[str]:
    """Answers that rows reject far more often than they expect them: what was right before, and is not now.

    None where most rows reject an answer, as where callers report errors alone: then nobody says what is right still.
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

    `older` has the newest first, and of one request the newest row counts. A request that is in the new rows, or is in
    the held-out ones or near one of these, is left out; so is a row with an answer that these refute.
    """
    newer = [*rows, *heldout]
    refuted, requests = find_refuted(newer), {make_request_key(row) for row in newer}
    valid = (row for row in reversed(older) if row.expected not in refuted)
    unknown = {request: row for row in valid if (request := make_request_key(row)) not in requests}
    pool, finder = list(unknown.values()), LeakFinder(map(get_request, heldout))
    order = random.Random(seed).sample(range(len(pool)), len(pool))  # noqa: S311 - a repeatable draw, no secret
    unlike = (at for at in order if finder.find(get_request(pool[at])) is None)
    return [pool[at] for at in sorted(islice(unlike, round(share / (1 - share) * len(rows))))]
