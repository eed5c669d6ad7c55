"""The delays of complaints, learned from a reference period while most complaints are still to come.

A request's chance of a complaint in the next moment depends on its age. That hazard is taken as constant within an age
bucket, and each bucket is as wide as all before it together. It is the number of complaints in a bucket, divided by the
time that requests spent in it. So young requests count only for the time they were watched (right-censoring; M.
Friedman, "Piecewise exponential models for survival data with covariates", 1982).

People complain by day and on weekdays. The rhythm has a factor for each hour of a weekday and of a weekend day. It
keeps only the part of each factor that is more than chance (W. James, C. Stein, 1961). Ages are counted on a clock that
runs at the speed of this rhythm: a night or weekend before a late complaint hardly ages its request.

Complaints are not independent events. Within an hour they come in clusters: `dispersion` is their variance divided by
their mean. Callers also complain more readily on some days than on others: `day_variance` is the variance of that
readiness about 1. Seven days say little about it, so it is drawn towards a prior and learned further, day by day.

Time is counted in ticks of 300 seconds. Pure functions over frozen data of bounded size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import msgspec
from msgspec.structs import replace

from monitoring.intervals import Z_95
from monitoring.time_units import DAY_SECONDS

TICK_SECONDS = 300.0
HORIZON_TICKS = 8640
"""30 days: no complaint is expected about an older request, and none counts."""
AGES = HORIZON_TICKS.bit_length() + 1
HOUR_TICKS = 12
HOUR_SECONDS = HOUR_TICKS * TICK_SECONDS
DAY_HOURS = 24
WEEK_HOURS = 168
MONDAY_HOURS = 72
"""The Unix epoch began on a Thursday."""
CELLS = 2 * DAY_HOURS
"""The hours (UTC) of a weekday, and of a weekend day."""
CLOSED_MAX = 0.02
"""The largest factor of an hour with hardly any complaint. None is expected then on average, but a few may come."""
PAIRS_MAX = 1000
HOURS_MAX = 180 * DAY_HOURS
"""A longer reference period, one with few complaints, keeps only its latest hours."""
DAY_VARIANCE = 0.0144
DAY_EVIDENCE = 6.0
"""The prior: days differ by 12%, with the weight of six days."""
DAY_EVIDENCE_MAX = 40.0
DAY_SQUARE_MAX = 5.0
"""A day farther from the expected number counts no more than this: it may be the first day of a degradation."""


class Stretch(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive hours from `first_hour` on: the requests answered and the complaints received in each."""

    first_hour: int
    requests: tuple[int, ...] = ()
    complaints: tuple[int, ...] = ()


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """The observations of a reference period, from `began` to `ended` in Unix seconds.

    Each pause begins another stretch. `pairs` hold the tick of every `every`th complaint and its request's age in
    ticks: 1,000 pairs at most.
    """

    began: float
    ended: float
    stretches: tuple[Stretch, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    every: int = 1

    @property
    def complaints(self) -> int:
        """The number of complaints."""
        return sum(sum(stretch.complaints) for stretch in self.stretches)


class Delays(msgspec.Struct, frozen=True, kw_only=True):
    """The hazard of a complaint by age bucket, in complaints per request and tick, with its evidence.

    It is 0 in the buckets that are not tested: the last ones. `weights` are the complaints behind each hazard. `hours`
    are the factors of the hours of a weekday and then of a weekend day. An earlier release stored those of eight parts
    of any day; ages are then plain time. `rhythm_variance` is their uncertainty, as the square of a share. `began` and
    `ended` are those of the reference period. `day_evidence` is the number of days behind `day_variance`.
    """

    hazards: tuple[float, ...]
    weights: tuple[float, ...]
    hours: tuple[float, ...]
    rhythm_variance: float
    began: float
    ended: float
    dispersion: float = 1.0
    day_variance: float = DAY_VARIANCE
    day_evidence: float = DAY_EVIDENCE

    @property
    def variance(self) -> float:
        """The variance of the level beyond that of counts: from the rhythm, and from the days of the reference."""
        return self.rhythm_variance + self.day_variance / max(1.0, (self.ended - self.began) / DAY_SECONDS)

    @property
    def complaints_alike(self) -> float:
        """The number of complaints that are worth one independent complaint."""
        days = max(1.0, (self.ended - self.began) / DAY_SECONDS)
        return self.dispersion + self.day_variance * sum(self.weights) / days

    @property
    def day_shape(self) -> float:
        """The shape of the gamma distribution of a day's readiness. Few days of evidence make it wider."""
        return 1.0 / (self.day_variance * (1.0 + 2.0 / self.day_evidence))


# ---- time ------------------------------------------------------------------------------------------------


def get_age_bucket(ticks: float) -> int:
    """The bucket of an age in ticks: under 1, under 2, under 4, under 8 and so on."""
    return min(int(ticks).bit_length(), AGES - 1)


def get_hour_factor(delays: Delays, tick: int) -> float:
    """The factor of the hour in which a tick lies."""
    return list_week(delays.hours)[(tick // HOUR_TICKS + MONDAY_HOURS) % WEEK_HOURS]


def find_ages(hours: tuple[float, ...], ticks: Sequence[int], tick: int) -> tuple[int, ...]:
    """The age buckets at `tick` of requests from `ticks`, on the clock of this rhythm (`Delays.hours`)."""
    clock = list_clock(hours)
    now = read_clock(clock, tick)
    return tuple([get_age_bucket(now - read_clock(clock, request_tick)) for request_tick in ticks])


@lru_cache(maxsize=256)
def list_week(hours: tuple[float, ...]) -> tuple[float, ...]:
    """The factors of all hours of a week, from Monday on."""
    if len(hours) == CELLS:
        return hours[:DAY_HOURS] * 5 + hours[DAY_HOURS:] * 2
    return tuple(hours[hour * len(hours) // DAY_HOURS] for hour in range(DAY_HOURS)) * 7


@lru_cache(maxsize=256)
def list_clock(hours: tuple[float, ...]) -> tuple[float, ...]:
    """The clock's ticks from Monday to each hour of a week, and to the week's end."""
    week = list_week(hours) if len(hours) == CELLS else (1.0,) * WEEK_HOURS
    return (0.0, *accumulate(factor * HOUR_TICKS for factor in week))


def read_clock(clock: tuple[float, ...], tick: int) -> float:
    """The clock's time at the beginning of a tick."""
    hour, part = divmod(tick, HOUR_TICKS)
    week, at = divmod(hour + MONDAY_HOURS, WEEK_HOURS)
    return week * clock[-1] + clock[at] + (clock[at + 1] - clock[at]) * part / HOUR_TICKS


# ---- the reference period --------------------------------------------------------------------------------


def start_reference(now: float) -> Reference:
    """A reference period that begins now."""
    return Reference(began=now, ended=now, stretches=(Stretch(int(now // HOUR_SECONDS)),))


def resume(reference: Reference, now: float) -> Reference:
    """The reference after a pause until now. The pause is not part of it."""
    elapsed = now - reference.ended
    return replace(
        reference,
        began=reference.began + elapsed,
        ended=now,
        stretches=(*reference.stretches, *start_reference(now).stretches),
    )


def add_watched(reference: Reference, at: float) -> Reference:
    """The reference, watched until `at`."""
    return replace(reference, ended=at)


def add_requests(reference: Reference, tick: int, count: int) -> Reference:
    """The reference after `count` requests in a tick."""
    return _with_counts(reference, tick, count, 0)


def add_complaint(reference: Reference, request_tick: int, tick: int) -> Reference:
    """The reference after a complaint in `tick` about a request from `request_tick`."""
    reference = _with_counts(reference, tick, 0, 1)
    if reference.complaints % reference.every:
        return reference
    pairs, every = (*reference.pairs, (tick, tick - request_tick)), reference.every
    if len(pairs) > PAIRS_MAX:
        pairs, every = pairs[::2], 2 * every
    return replace(reference, pairs=pairs, every=every)


def _with_counts(reference: Reference, tick: int, requests: int, complaints: int) -> Reference:
    last = extend(reference.stretches[-1], tick // HOUR_TICKS)
    last = Stretch(
        last.first_hour,
        (*last.requests[:-1], last.requests[-1] + requests),
        (*last.complaints[:-1], last.complaints[-1] + complaints),
    )
    stretches = (*reference.stretches[:-1], last)
    over = sum(len(stretch.requests) for stretch in stretches) - HOURS_MAX
    if over > 0:
        return _without_oldest(reference, stretches, over)
    return replace(reference, stretches=stretches)


def _without_oldest(reference: Reference, stretches: tuple[Stretch, ...], hours: int) -> Reference:
    """The reference without its oldest hours and without the pairs of requests from them."""
    first = stretches[0]
    left = Stretch(first.first_hour + hours, first.requests[hours:], first.complaints[hours:])
    stretches = (left, *stretches[1:]) if left.requests else stretches[1:]
    begins = stretches[0].first_hour * HOUR_TICKS
    return replace(
        reference,
        began=reference.began + min(hours, len(first.requests)) * HOUR_SECONDS,
        stretches=stretches,
        pairs=tuple([(came, age) for came, age in reference.pairs if came - age >= begins]),
    )


def extend(stretch: Stretch, hour: int) -> Stretch:
    """The stretch, extended to an hour."""
    more = (0,) * (hour + 1 - stretch.first_hour - len(stretch.requests))
    return Stretch(stretch.first_hour, stretch.requests + more, stretch.complaints + more) if more else stretch


# ---- learning, day by day (the reference: complaint_learning.py) ------------------------------------------


def learn_day(delays: Delays, complaints: float, expected: float) -> Delays:
    """The delays after another day, from its complaints and the number expected on average."""
    own = expected * delays.day_variance
    share = own / (delays.dispersion + own)
    square = (complaints - expected) ** 2 / (expected * (delays.dispersion + own))
    more = share * (min(square, DAY_SQUARE_MAX) - 1.0) / delays.day_evidence
    evidence = min(DAY_EVIDENCE_MAX, delays.day_evidence + share * share)
    return replace(delays, day_variance=delays.day_variance * (1.0 + more), day_evidence=evidence)


# ---- use ---------------------------------------------------------------------------------------------------


def find_expected(
    delays: Delays, ages: Sequence[int], request_ticks: Sequence[float], tick: int
) -> tuple[list[float], list[float]]:
    """Find the complaints in a tick about each cohort with all younger ones: their 97.5% bound, and their mean.

    The cohorts come oldest first, with age buckets. The bound is that of a Poisson rate (Garwood 1936, by Wilson and
    Hilferty's formula). It rests on the effective number of complaints behind these ages. It is wider if most requests
    have an age with little evidence, as it is for the youngest cohorts alone.
    """
    hour, doubt = get_hour_factor(delays, tick), delays.variance
    bounds, means = [0.0] * len(ages), [0.0] * len(ages)
    mean, squares, younger, of_age, last = 0.0, 0.0, 0.0, 0.0, -1
    for at in range(len(ages) - 1, -1, -1):
        age = ages[at]
        due = delays.hazards[age] * request_ticks[at]
        if age != last:
            younger, of_age, last = squares, 0.0, age
        if due:
            mean, of_age = mean + due, of_age + due
            squares = younger + of_age * of_age / delays.weights[age]
        if mean:
            means[at] = mean * hour if hour > CLOSED_MAX else 0.0
            bounds[at] = mean * hour * find_widening(1.0 / (delays.dispersion * squares / (mean * mean) + doubt))
    return bounds, means


def find_widening(complaints: float) -> float:
    """The 97.5% upper bound of a Poisson mean, divided by the count that was seen."""
    more = complaints + 1.0
    return more * (1.0 - 1.0 / (9.0 * more) + Z_95 / (3.0 * math.sqrt(more))) ** 3 / complaints


def get_complaint_rate(delays: Delays) -> float:
    """The share of requests that get a complaint at a tested age."""
    return -math.expm1(-math.fsum(h * ticks for h, ticks in zip(delays.hazards, list_widths(), strict=True)))


def find_delay_quantile(delays: Delays, share: float) -> float | None:
    """The clock's seconds until this share of the complaints has come; None if no complaint is expected.

    Within a bucket it is interpolated linearly.
    """
    whole = math.fsum(h * ticks for h, ticks in zip(delays.hazards, list_widths(), strict=True))
    if whole <= 0.0:
        return None
    wanted, passed, before = -math.log1p(share * math.expm1(-whole)), 0.0, 0.0
    for hazard, ticks in zip(delays.hazards, list_widths(), strict=True):
        if hazard and passed + hazard * ticks >= wanted * (1 - 1e-12):
            return (before + (wanted - passed) / hazard) * TICK_SECONDS
        passed, before = passed + hazard * ticks, before + ticks
    return before * TICK_SECONDS


def list_ends() -> tuple[float, ...]:
    """The age at which each bucket ends, in ticks."""
    return (*(float(1 << age) for age in range(AGES - 1)), float(HORIZON_TICKS))


def list_widths() -> tuple[float, ...]:
    """The number of ticks that a request is in each age bucket."""
    return tuple(end - begin for begin, end in pairwise((0.0, *list_ends())))
