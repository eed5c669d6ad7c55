"""The learning of complaints' delays, rhythm and spread from a reference period (method: `complaint_delays.py`).

A separate module, so that numpy (12 MB, 0.08 s) is loaded only when a reference period has ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from monitoring.quality.detectors.complaint_delays import (
    AGES,
    CELLS,
    DAY_EVIDENCE,
    DAY_HOURS,
    DAY_VARIANCE,
    HOUR_SECONDS,
    HOUR_TICKS,
    MONDAY_HOURS,
    WEEK_HOURS,
    Delays,
    Reference,
    Stretch,
    extend,
    get_age_bucket,
    list_clock,
    list_ends,
    list_widths,
    read_clock,
)

HOUR_MIN = 0.01
EVENTS_MIN = 5
"""With fewer complaints in an age bucket and in each later one, complaints at that age are not tested."""
ROUNDS = 7
SHARE_MAX = 0.95
"""The largest share with a complaint at an age, of the requests that reach that age."""
RHYTHM_SHARE = 0.25
"""The part of an hour's uncertainty that remains over the several hours that a verdict takes."""

Numbers = npt.NDArray[np.float64]


class _Spread(msgspec.Struct, frozen=True, kw_only=True):
    """The variation of complaints beyond chance, as in `Delays`."""

    dispersion: float = 1.0
    day_variance: float = DAY_VARIANCE
    day_evidence: float = DAY_EVIDENCE
    hours: float = CELLS
    """The effective number of hours of the rhythm in which complaints come."""


def learn(reference: Reference) -> Delays:
    """The delays from a reference period. An empty bucket before the last tested one counts as half a complaint.

    Hazards need the clock, the clock needs the rhythm, and the rhythm needs hazards: a few rounds find all three.
    """
    last = extend(reference.stretches[-1], math.ceil(reference.ended / HOUR_SECONDS) - 1)
    stretches = [stretch for stretch in (*reference.stretches[:-1], last) if stretch.requests]
    hours = np.concatenate([stretch.first_hour + np.arange(len(stretch.requests)) for stretch in stretches])
    complaints = np.concatenate([np.array(stretch.complaints, float) for stretch in stretches])
    rhythm, share, spread, expected = np.ones(CELLS), 0.0, _Spread(), np.zeros(0)
    weights, of = [0.0] * AGES, np.zeros(AGES)
    for _ in range(ROUNDS):
        if expected.any():
            rhythm, share = _find_rhythm(hours, complaints, expected, rhythm, spread)
        clock = list_clock(tuple(rhythm.tolist()))
        watched = np.concatenate([_watch(stretch, clock) for stretch in stretches], axis=1)
        weights, of = _weigh(reference, clock, float(complaints.sum())), watched.sum(axis=1)
        expected = np.divide(weights, of, out=np.zeros(AGES), where=of > 0.0) @ watched
        spread = _find_spread(hours, complaints, expected, share)
    return Delays(
        hazards=tuple(_find_hazards(weights, of)),
        weights=tuple(weights),
        hours=tuple(rhythm.tolist()),
        rhythm_variance=RHYTHM_SHARE
        * share**2
        * spread.dispersion
        * spread.hours
        / max(spread.hours, float(complaints.sum())),
        began=reference.began,
        ended=reference.ended,
        dispersion=float(spread.dispersion),
        day_variance=float(spread.day_variance),
        day_evidence=float(spread.day_evidence),
    )


def _watch(stretch: Stretch, clock: tuple[float, ...]) -> Numbers:
    """The request-ticks on the clock by age bucket, in each hour of a stretch. Requests are even within an hour."""
    first = stretch.first_hour
    edges = np.array([read_clock(clock, HOUR_TICKS * (first + hour)) for hour in range(len(stretch.requests) + 1)])
    requests, width = np.array(stretch.requests, float), np.diff(edges)
    begun = np.concatenate([[0.0], np.cumsum(requests)])
    area = np.concatenate([[0.0], np.cumsum((begun[1:] + begun[:-1]) / 2 * width)])
    until = []
    for age in (0.0, *(max(0.0, end - 0.5) for end in list_ends()[:-1]), math.inf):
        time = edges - age
        at = np.clip(np.searchsorted(edges, time, "right") - 1, 0, len(requests) - 1)
        part = np.maximum(0.0, time - edges[at])
        until.append(np.diff(area[at] + begun[at] * part + requests[at] * part * part / (2 * width[at])))
    return np.array([younger - older for younger, older in pairwise(until)])


def _weigh(reference: Reference, clock: tuple[float, ...], complaints: float) -> list[float]:
    """The complaints by age bucket; 0 in buckets that are not tested."""
    ages = [get_age_bucket(read_clock(clock, came) - read_clock(clock, came - age)) for came, age in reference.pairs]
    events = np.bincount(np.array(ages, int), minlength=AGES) * complaints / max(1, len(ages))
    tested = 1 + max((age for age, count in enumerate(events) if count >= EVENTS_MIN), default=-1)
    return [float(count) or 0.5 for count in events[:tested]] + [0.0] * (AGES - tested)


def _find_hazards(weights: Sequence[float], watched: Numbers) -> list[float]:
    """The hazards of requests without a complaint. `watched` has those with one too; they are taken out here."""
    hazards, left = list[float](), 1.0
    for weight, of, ticks in zip(weights, watched, list_widths(), strict=True):
        share = min(SHARE_MAX, weight * ticks / (left * float(of))) if of > 0.0 else 0.0
        hazards.append(-math.log1p(-share) / ticks)
        left *= 1.0 - share
    return hazards


def _cells(hours: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The index of each hour in the rhythm."""
    at = (hours + MONDAY_HOURS) % WEEK_HOURS
    return at % DAY_HOURS + np.where(at >= 5 * DAY_HOURS, DAY_HOURS, 0)


def _find_rhythm(
    hours: npt.NDArray[np.intp], complaints: Numbers, expected: Numbers, rhythm: Numbers, spread: _Spread
) -> tuple[Numbers, float]:
    """Each cell's complaints divided by those expected without a rhythm, drawn towards 1 as far as chance explains
    them. Also the part of the deviation that is kept, from 0 to 1. The mean of a week is 1."""
    cells = _cells(hours)
    plain = np.bincount(cells, expected / rhythm[cells], CELLS)
    plain *= complaints.sum() / max(1e-9, float((plain * rhythm).sum()))
    there = plain > 1e-6
    days = [len(np.unique(hours[(cells >= DAY_HOURS) == weekend] // DAY_HOURS)) for weekend in (False, True)]
    shared = spread.day_variance / np.maximum(1, np.repeat(days, DAY_HOURS))
    variance = plain * (spread.dispersion + shared * plain)
    counts = np.bincount(cells, complaints, CELLS)
    deviance = float((((counts - plain) ** 2)[there] / variance[there]).sum())
    share = max(0.0, 1.0 - (there.sum() - 1) / deviance) if deviance > 0.0 and there.sum() > 2 else 0.0
    factors = np.where(there, 1.0 + share * (counts / np.where(there, plain, 1.0) - 1.0), 1.0)
    factors = np.maximum(HOUR_MIN, factors)
    return factors / ((5 * factors[:DAY_HOURS].sum() + 2 * factors[DAY_HOURS:].sum()) / WEEK_HOURS), float(share)


def _find_spread(hours: npt.NDArray[np.intp], complaints: Numbers, expected: Numbers, share: float) -> _Spread:
    """The spread of hours within days, and of days, by moments. That of days is drawn towards the prior."""
    cells = _cells(hours)
    _, day = np.unique(hours // DAY_HOURS, return_inverse=True)
    by_day, of_day = np.bincount(day, complaints), np.bincount(day, expected)
    within = expected * (by_day / np.maximum(1e-9, of_day))[day]
    in_hours, in_cells, in_days = [_count_like(values) for values in (expected, np.bincount(cells, expected), of_day)]
    free = max(in_hours / 4, in_hours - share * in_cells - in_days)
    squares = float(((complaints - within) ** 2).sum()) / max(1e-9, float(within.sum()))
    dispersion = max(1.0, squares * in_hours / free)
    evidence = max(0.5, in_days - 1 - share * (len(np.unique(cells >= DAY_HOURS)) - 1))
    squares = in_days / evidence * float(((by_day - of_day) ** 2).sum()) - dispersion * float(of_day.sum())
    variance = (1.0 + 3.0 / evidence) * max(0.0, squares) / max(1e-9, float((of_day**2).sum()))
    whole = DAY_EVIDENCE + evidence
    return _Spread(
        dispersion=dispersion,
        day_variance=(DAY_EVIDENCE * DAY_VARIANCE + evidence * variance) / whole,
        day_evidence=whole,
        hours=in_cells,
    )


def _count_like(values: npt.NDArray[Any]) -> float:
    """The effective number of values (Kish)."""
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / squares if squares else 1.0
