"""The mix of reviewers: if a mild one is away, more labels are wrong though the version has not changed.

Each reviewer's share of wrong labels before the change gives the errors to expect since then (direct standardisation).
If these are more than before, the evidence must hold against a baseline that is higher in proportion. A new reviewer
counts as the mean of all.

Only reviewers' labels count: others could make themselves look strict, and so hide a degradation. Pure functions over
frozen data of fixed size."""

from __future__ import annotations

import hashlib

import msgspec
from msgspec.structs import replace

from monitoring.quality.detectors import rising_errors
from monitoring.quality.detectors.rising_errors import RateDetector

REVIEWERS_MAX = 16
"""The number of reviewers with counts of their own, the first ones; all later ones count as one."""
MARKED_EACH = 50
"""Labels between two notes of the counts. No note is taken if a change began before the last one."""
SMOOTHED_LABELS = 20.0
"""Labels with the mean of all reviewers that are added to each reviewer's own."""
TIMES_MAX = 2.0
NAME_BYTES = 6


class ReviewedCounts(msgspec.Struct, frozen=True, array_like=True):
    """Each reviewer's labels among the first `at` labels, and the number of wrong ones."""

    at: int = 0
    labels: tuple[int, ...] = ()
    wrong: tuple[float, ...] = ()


class ReviewersMix(msgspec.Struct, frozen=True, array_like=True):
    """The reviewers by digest, with their counts now, at the last note, and at the note before the change."""

    known: tuple[str, ...] = ()
    now: ReviewedCounts = ReviewedCounts()
    noted: ReviewedCounts = ReviewedCounts()
    before: ReviewedCounts = ReviewedCounts()


def add_label(mix: ReviewersMix, reviewer: str, badness: float, at: int, change: int) -> ReviewersMix:
    """The mix after a reviewer's label, number `at` of the signal. The change most likely began after label
    `change`."""
    digest = hashlib.blake2b(reviewer.encode(), digest_size=NAME_BYTES).hexdigest()
    known = mix.known if digest in mix.known or len(mix.known) >= REVIEWERS_MAX else (*mix.known, digest)
    place = known.index(digest) if digest in known else REVIEWERS_MAX
    more = (0,) * (place + 1 - len(mix.now.labels))
    labels, wrong = [*mix.now.labels, *more], [*mix.now.wrong, *more]
    labels[place] += 1
    wrong[place] += badness
    now = ReviewedCounts(at, tuple(labels), tuple(wrong))
    moved = replace(mix, known=known, now=now)
    if at % MARKED_EACH or change < mix.noted.at:
        return moved
    return replace(moved, noted=now, before=mix.noted)


def find_times(mix: ReviewersMix) -> float:
    """The errors that the present reviewers would see for each one of the earlier reviewers: at least 1."""
    before, now = mix.before, mix.now
    total = sum(before.labels)
    if not total:
        return 1.0
    mean = sum(before.wrong) / total
    due_before = due_since = 0.0
    since_total = sum(now.labels) - total
    for place, count in enumerate(now.labels):
        labels, wrong = (before.labels[place], before.wrong[place]) if place < len(before.labels) else (0, 0.0)
        share = (wrong + SMOOTHED_LABELS * mean) / (labels + SMOOTHED_LABELS)
        due_before += labels * share / total
        due_since += (count - labels) * share / max(1, since_total)
    return min(TIMES_MAX, max(1.0, due_since / due_before)) if due_before and since_total else 1.0


def find_part_left(detector: RateDetector, times: float) -> float:
    """The part of the evidence that remains against `times` the baseline."""
    bad, of = rising_errors.sum_since_change(detector)
    whole = rising_errors.weigh_labels(detector, bad, of)
    if times == 1.0 or whole <= 0.0:
        return 1.0
    return min(1.0, max(0.0, rising_errors.weigh_labels(detector, bad, of, times) / whole))
