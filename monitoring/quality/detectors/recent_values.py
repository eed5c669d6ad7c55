"""Recent values: shares and rates that fade, and the times of counts. All of fixed size.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

import math
from operator import mul

import msgspec
from msgspec.structs import astuple

from monitoring import intervals
from monitoring.intervals import Z_95
from monitoring.time_units import DAY_SECONDS

WINDOW = 200
"""The approximate number of newest values in a share."""
FADING = 1.0 - 1.0 / WINDOW
RATE_SECONDS = 3 * 86_400.0
"""A rate covers about the last three days."""
RATE_SECONDS_MIN = 3600.0
MARKS_MAX = 20
SINCE_MIN = 10
DELAYS = 26
"""Powers of 2 seconds, up to a year."""
COUNTED_MAX = 1000.0
DIGITS = 3


class FadedSums(msgspec.Struct, frozen=True, array_like=True):
    """Faded sums of the weights, of their squares, of the values and of their squares."""

    weight: float = 0.0
    squares: float = 0.0
    total: float = 0.0
    total_squares: float = 0.0


def add_value(recent: FadedSums, value: float) -> FadedSums:
    """The sums after a value."""
    return FadedSums(
        FADING * recent.weight + 1.0,
        FADING * FADING * recent.squares + 1.0,
        FADING * recent.total + value,
        FADING * recent.total_squares + value * value,
    )


def add_value_of(parts: tuple[FadedSums, ...], own: int | None, value: float) -> tuple[FadedSums, ...]:
    """Each giver's part of the sums, after a value from one of them (None: from nobody).

    Rounded, to be short in JSON.
    """
    moved = [add_value(part, value) if place == own else _fade(part) for place, part in enumerate(parts)]
    return tuple([FadedSums(*[round(number, DIGITS) for number in astuple(part)]) for part in moved])


def _fade(recent: FadedSums) -> FadedSums:
    return FadedSums(*map(mul, (FADING, FADING * FADING, FADING, FADING), astuple(recent)))


def take_away(recent: FadedSums, part: FadedSums) -> FadedSums:
    """The sums without one giver's part."""
    return FadedSums(*[max(0.0, whole - own) for whole, own in zip(astuple(recent), astuple(part), strict=True)])


def find_mean(recent: FadedSums) -> float | None:
    """The recent mean; None before the first value."""
    return recent.total / recent.weight if recent.weight else None


def find_share_interval(recent: FadedSums) -> tuple[float, float] | None:
    """The 95% interval of a share, by the effective number of values; None before the first."""
    if not recent.weight:
        return None
    of = recent.weight * recent.weight / recent.squares
    return intervals.find_share_interval(min(1.0, max(0.0, recent.total / recent.weight)), of)


def find_mean_interval(recent: FadedSums) -> tuple[float, float] | None:
    """The 95% interval of a mean of values in [-1, 1], with one value of each end added; None before the first."""
    if not recent.weight:
        return None
    of = recent.weight * recent.weight / recent.squares
    middle = recent.total / recent.weight
    spread = max(0.0, recent.total_squares / recent.weight - middle * middle)
    half = Z_95 * math.sqrt((spread * of + 2.0) / (of + 2.0) / of)
    return max(-1.0, middle - half), min(1.0, middle + half)


class Rate(msgspec.Struct, frozen=True, array_like=True):
    """Events since `since`, faded by their age at `at` (Unix seconds)."""

    since: float
    at: float
    count: float = 0.0


def add_event(rate: Rate | None, at: float) -> Rate:
    """The rate after an event. One that comes before the last counts as at that time."""
    if rate is None:
        return Rate(at, at, 1.0)
    elapsed = at - rate.at
    if elapsed <= 0.0:
        return Rate(rate.since, rate.at, rate.count + 1.0)
    return Rate(rate.since, at, rate.count * math.exp(-elapsed / RATE_SECONDS) + 1.0)


def count_per_day(rate: Rate | None, at: float, known_seconds_min: float = RATE_SECONDS_MIN) -> float:
    """Recent events a day. A rate known for less than `known_seconds_min` counts as known for that time."""
    if rate is None:
        return 0.0
    at = max(at, rate.at)
    known_seconds = max(at - rate.since, known_seconds_min)
    count = rate.count * math.exp(-(at - rate.at) / RATE_SECONDS)
    return count / (RATE_SECONDS * -math.expm1(-known_seconds / RATE_SECONDS)) * DAY_SECONDS


def find_busiest(before: float, rate: Rate | None, at: float) -> float:
    """The most events a day so far, where `before` was the most; the first three days count as whole ones.

    If a threshold followed the rate down, old evidence would alarm once events stop.
    """
    return max(before, count_per_day(rate, at, RATE_SECONDS))


Marks = tuple[tuple[int, float, float], ...]
"""Counts, the time when each was reached (Unix seconds), and the sum by then. Recent marks are denser than old ones."""


def add_mark(marks: Marks, count: int, at: float, total: float) -> Marks:
    """The marks with one more. If there are too many, the least useful one is dropped."""
    marks = (*marks, (count, at, total))
    if len(marks) <= MARKS_MAX:
        return marks
    least = min(
        range(1, len(marks) - 1), key=lambda j: ((marks[j + 1][0] - marks[j - 1][0]) / (1 + count - marks[j - 1][0]), j)
    )
    return marks[:least] + marks[least + 1 :]


def find_time(marks: Marks, count: int) -> float | None:
    """The time of the last mark before the one after `count` was counted; None without marks."""
    last_at = None
    for marked, at, _ in marks:
        if last_at is not None and marked > count + 1:
            break
        last_at = at
    return last_at


def sum_since(marks: Marks, count: int) -> tuple[float, int] | None:
    """The sum and number of values after the first `count`, as closely as marks show; None if there are too few."""
    if not marks:
        return None
    last, _, total = marks[-1]
    after = [mark for mark in marks if mark[0] >= count and last - mark[0] >= SINCE_MIN]
    before = [mark for mark in marks if mark[0] < count and last - mark[0] >= SINCE_MIN]
    mark = after[0] if after else before[-1] if before else None
    return None if mark is None else (total - mark[2], last - mark[0])


class DelayCounts(msgspec.Struct, frozen=True, array_like=True):
    """Counts of delays by powers of 2 seconds, halved at times so that the newest count most."""

    counts: tuple[float, ...] = (0.0,) * DELAYS


def add_delay(delays: DelayCounts, seconds: float) -> DelayCounts:
    """The counts after a delay."""
    at = min(DELAYS - 1, max(0, int(math.log2(seconds)) + 1 if seconds >= 1.0 else 0))
    counts = [count + (i == at) for i, count in enumerate(delays.counts)]
    if sum(counts) > COUNTED_MAX:
        counts = [count / 2 for count in counts]
    return DelayCounts(tuple(counts))


def find_median(delays: DelayCounts) -> float | None:
    """The median delay in seconds, to within its power of 2; None before the first."""
    half = sum(delays.counts) / 2
    if not half:
        return None
    passed = 0.0
    for at, count in enumerate(delays.counts):
        if count and passed + count >= half:
            low = 0.0 if at == 0 else float(1 << (at - 1))
            return low + (float(1 << at) - low) * (half - passed) / count
        passed += count
    return float(1 << (DELAYS - 1))
