"""The delays of complaints, learned from a reference period in which most are still to come.

A request's chance of a complaint within the next moment depends on how old it is. That hazard is taken as constant
within an age bucket, and each bucket is as wide as all before it together. It is the complaints seen in a bucket by the
time that requests spent in it, so that requests which are still young count for as long as they were watched and no
longer (right-censoring; M. Friedman, "Piecewise exponential models for survival data with covariates", 1982). From the
hours of the day at which complaints come, their daily rhythm is learned as far as it is more than chance (W. James, C.
Stein, 1961).

Time goes in ticks of 300 seconds. Pure functions over frozen data of fixed size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec

TICK_SECONDS = 300.0
HORIZON_TICKS = 8640
"""30 days: of an older request no complaint is expected, and none counts."""
AGES = HORIZON_TICKS.bit_length() + 1
HOURS = 8
"""Parts of the day, of 3 hours each."""
HOUR_MIN = 0.05
EVENTS_MIN = 5
"""With fewer complaints in an age bucket and in all later ones, complaints at that age are not tested."""
Z_UPPER = 1.959963984540054
"""Of the bound that holds with 97.5% confidence."""
RHYTHM_SHARE = 0.25
"""The part of the doubt about a part of the day that is left over the several parts that a verdict takes."""
DAY_SECONDS = 86400.0


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """The observations of a reference period: complaints, and the time that requests were watched.

    `watched` are request-ticks by part of the day and, within it, by age bucket; `events` complaints by age bucket,
    `by_hour` by part of the day. `began` and `ended` are in Unix seconds.
    """

    began: float
    ended: float
    watched: tuple[float, ...] = (0.0,) * (AGES * HOURS)
    events: tuple[int, ...] = (0,) * AGES
    by_hour: tuple[int, ...] = (0,) * HOURS


class Delays(msgspec.Struct, frozen=True, kw_only=True):
    """The hazard of a complaint by age bucket, in complaints per request and tick, and what it rests on.

    It is 0 in the buckets that are not tested, which are the last ones. `weights` are the complaints behind each
    hazard, `hours` the factor of each part of the day, and `rhythm_variance` how unsure these are, as the square of a
    share. `began` and `ended` are those of the reference period.
    """

    hazards: tuple[float, ...]
    weights: tuple[float, ...]
    hours: tuple[float, ...]
    rhythm_variance: float
    began: float
    ended: float


def get_age_bucket(ticks: int) -> int:
    """The bucket of an age in whole ticks: 0, 1, 2-3, 4-7 and so on."""
    return min(ticks.bit_length(), AGES - 1)


def get_part_of_day(tick: int) -> int:
    """The part of the day (UTC) in which a tick lies."""
    return int(tick * TICK_SECONDS % DAY_SECONDS // (DAY_SECONDS / HOURS))


def learn(reference: Reference) -> Delays:
    """The delays from a reference period. A bucket without complaints before the last tested one counts half of one."""
    watched = [math.fsum(reference.watched[age::AGES]) for age in range(AGES)]
    tested = 1 + max((age for age, seen in enumerate(reference.events) if seen >= EVENTS_MIN), default=-1)
    weights = [seen or 0.5 for seen in reference.events[:tested]] + [0.0] * (AGES - tested)
    hazards = [weight / of if of > 0.0 else 0.0 for weight, of in zip(weights, watched, strict=True)]
    hours, kept = _rhythm(reference, hazards)
    doubt = HOURS / max(HOURS, sum(reference.by_hour))
    return Delays(
        hazards=tuple(hazards),
        weights=tuple(float(weight) for weight in weights),
        hours=hours,
        rhythm_variance=RHYTHM_SHARE * kept * kept * doubt,
        began=reference.began,
        ended=reference.ended,
    )


def _rhythm(reference: Reference, hazards: list[float]) -> tuple[tuple[float, ...], float]:
    """Complaints seen by those expected, for each part of the day, drawn towards 1 as far as chance explains them.

    And how much of the deviation is kept, from 0 to 1.
    """
    expected = [
        math.fsum(h * w for h, w in zip(hazards, reference.watched[at * AGES : (at + 1) * AGES], strict=True))
        for at in range(HOURS)
    ]
    there = [(seen, of) for seen, of in zip(reference.by_hour, expected, strict=True) if of > 0.0]
    deviance = math.fsum((seen - of) ** 2 / of for seen, of in there)
    kept = max(0.0, 1.0 - (len(there) - 1) / deviance) if deviance > 0.0 and len(there) > 2 else 0.0
    raw = [
        1.0 + kept * (seen / of - 1.0) if of > 0.0 else 1.0
        for seen, of in zip(reference.by_hour, expected, strict=True)
    ]
    total = math.fsum(expected)
    scale = math.fsum(f * of for f, of in zip(raw, expected, strict=True)) / total if total > 0.0 else 1.0
    return tuple(max(HOUR_MIN, one / scale) if scale > 0.0 else 1.0 for one in raw), kept


def add_watched(
    reference: Reference, tick: int, ages: Sequence[int], request_ticks: Sequence[float], at: float
) -> Reference:
    """The reference after requests of these age buckets were watched for so long in a tick, until `at`."""
    first = get_part_of_day(tick) * AGES
    whole = list(reference.watched)
    for age, more in zip(ages, request_ticks, strict=True):
        whole[first + age] += more
    return msgspec.structs.replace(reference, watched=tuple(whole), ended=at)


def add_complaint(reference: Reference, tick: int, age: int) -> Reference:
    """The reference after a complaint about a request in this age bucket."""
    hour = get_part_of_day(tick)
    return msgspec.structs.replace(
        reference,
        events=tuple([count + (at == age) for at, count in enumerate(reference.events)]),
        by_hour=tuple([count + (at == hour) for at, count in enumerate(reference.by_hour)]),
    )


def find_expected(delays: Delays, ages: Sequence[int], request_ticks: Sequence[float], tick: int) -> list[float]:
    """The complaints that may come in a tick at most, of each cohort with all younger ones: the 97.5% bound.

    The cohorts stand oldest first, with their age buckets. The bound is that of a Poisson rate (Garwood 1936, by Wilson
    and Hilferty's formula) from as many complaints as weigh the same for these ages: where most requests are of an age
    of which little is known, it is wider. That is so of the youngest ones alone.
    """
    hour, doubt = delays.hours[get_part_of_day(tick)], delays.rhythm_variance
    found, mean, squares, younger, of_age, last = [0.0] * len(ages), 0.0, 0.0, 0.0, 0.0, -1
    for at in range(len(ages) - 1, -1, -1):
        age = ages[at]
        due = delays.hazards[age] * request_ticks[at]
        if age != last:
            younger, of_age, last = squares, 0.0, age
        if due:
            mean, of_age = mean + due, of_age + due
            squares = younger + of_age * of_age / delays.weights[age]
        if mean:
            found[at] = mean * hour * find_widening(1.0 / (squares / (mean * mean) + doubt))
    return found


def find_widening(complaints: float) -> float:
    """By which factor the 97.5% upper bound of a Poisson mean is above the count that was seen."""
    more = complaints + 1.0
    return more * (1.0 - 1.0 / (9.0 * more) + Z_UPPER / (3.0 * math.sqrt(more))) ** 3 / complaints


def get_complaint_rate(delays: Delays) -> float:
    """The share of requests that get a complaint at an age that is tested."""
    return -math.expm1(-math.fsum(h * ticks for h, ticks in zip(delays.hazards, _widths(), strict=True)))


def find_delay_quantile(delays: Delays, share: float) -> float | None:
    """The seconds after which this share of the complaints has come; None if none is expected at all.

    Within a bucket it is read along a straight line.
    """
    whole = math.fsum(h * ticks for h, ticks in zip(delays.hazards, _widths(), strict=True))
    if whole <= 0.0:
        return None
    wanted, passed, before = -math.log1p(share * math.expm1(-whole)), 0.0, 0.0
    for hazard, ticks in zip(delays.hazards, _widths(), strict=True):
        if hazard and passed + hazard * ticks >= wanted * (1 - 1e-12):
            return (before + (wanted - passed) / hazard) * TICK_SECONDS
        passed, before = passed + hazard * ticks, before + ticks
    return before * TICK_SECONDS


def _widths() -> tuple[float, ...]:
    """The number of ticks that a request is in each age bucket."""
    ends = [0.0, 1.0, *(float(1 << age) for age in range(1, AGES))]
    ends[-1] = float(HORIZON_TICKS)
    return tuple(end - begin for begin, end in pairwise(ends))
