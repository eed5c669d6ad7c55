"""Preferences of people who see two arms' answers side by side, without knowing the arms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from monitoring.intervals import find_share_interval

DIGITS = 4
SKIPPED = "?"
"""A value in place of the better arm: the person could not tell."""


class Preference(msgspec.Struct, frozen=True):
    """One person's preference on a row: the arm that answered better; "" if both are equally good, SKIPPED if the
    person could not tell."""

    number: int
    reviewer: str
    first: str
    second: str
    better: str


def count_preferences(preferences: Iterable[Preference]) -> list[dict[str, Any]]:
    """For each pair of arms: the numbers of rows on which most reviewers prefer one of them, and the first arm's share
    of these. The share has its 95% interval (E. B. Wilson, 1927), and the exact two-sided sign test's p-value. Skipped
    pairs count only as `skipped`."""
    skipped: Counter[tuple[str, str]] = Counter()
    votes: dict[tuple[str, str], Counter[int]] = {}
    reviewers: dict[tuple[str, str], set[str]] = {}
    for vote in preferences:
        arms = (vote.first, vote.second)
        of_rows, people = votes.setdefault(arms, Counter()), reviewers.setdefault(arms, set())
        if vote.better == SKIPPED:
            skipped[arms] += 1
            continue
        of_rows[vote.number] += (vote.better == vote.first) - (vote.better == vote.second)
        people.add(vote.reviewer)
    return [
        {
            "first": arms[0],
            "second": arms[1],
            "reviewers": len(reviewers[arms]),
            **_compare(of_rows),
            "skipped": skipped[arms],
        }
        for arms, of_rows in sorted(votes.items())
    ]


def _compare(votes: Counter[int]) -> dict[str, Any]:
    first, second = sum(vote > 0 for vote in votes.values()), sum(vote < 0 for vote in votes.values())
    decided = first + second
    interval = find_share_interval(first / decided, decided) if decided else None
    beyond = sum(math.comb(decided, count) for count in range(max(first, second), decided + 1))
    return {
        "rows": len(votes),
        "first_better": first,
        "second_better": second,
        "same": len(votes) - decided,
        "share": round(first / decided, DIGITS) if decided else None,
        "low": round(interval[0], DIGITS) if interval else None,
        "high": round(interval[1], DIGITS) if interval else None,
        "p_value": round(min(1.0, 2 * beyond / 2**decided), DIGITS),
    }
