"""A detector of more complaints than the requests so far let expect: feedback that is late and rare.

A count of complaints in order of arrival says more about the traffic than about the version: few complaints about young
requests have come yet. Here each request is expected to bring complaints according to its age. The delays are learned
in a reference period (`complaint_delays.py`), and mu is the upper 97.5% bound of the number expected. For each ratio r
the detector bets that requests from some moment on bring r times as many.

Complaints come in clusters, so c complaints where mu were expected count as c/d and mu/d, with d the learned
dispersion. Callers also complain more readily on some days than on others. So the bet on a day (UTC) is the likelihood
ratio of counts whose rate has a gamma distribution of shape k: r^c·((k + mu)/(k + r·mu))^(c + k). Its mean is at most
1. If all days are alike (k infinite), the bet is r^c·exp(-(r - 1)·mu). The smaller of both bets counts: a day without
complaints does not excuse the next one. A bet keeps its value from day to day.

A new bet begins with every tick of 300 seconds. Its stake is the number of complaints expected in the tick before. So
the mean of the sum of all bets is at most the number of complaints expected so far, at any stopping time. At a
threshold of log(N/alpha), P(any alarm while N complaints are expected) is at most alpha (Shiryaev-Roberts, as in J.
Shin, A. Ramdas, A. Rinaldo, "E-detectors", 2022, arXiv 2203.03532). Growing traffic, or time without requests, brings
an alarm no nearer. A feedback channel that was down later delivers, all at once, the complaints expected about earlier
requests. Bets that began with those requests have paid for them, and later bets are not about them.

Requests are kept as counts in cohorts. Young cohorts span one tick; after every fourth cohort of a length the next ones
span twice as much: at most 60 for 30 days (M. Datar and others, "Maintaining stream statistics over sliding windows",
2002). When cohorts are joined, their bets become one. Pure functions over frozen data; times are Unix seconds by one
clock, that of the stream.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import exp, log, log1p

import msgspec
from msgspec.structs import replace

from monitoring.quality.detectors import complaint_delays
from monitoring.quality.detectors import complaint_recovery as fewer
from monitoring.quality.detectors.complaint_delays import HORIZON_TICKS, HOUR_TICKS, TICK_SECONDS, Delays, Reference
from monitoring.quality.detectors.complaint_recovery import Fewer
from monitoring.quality.detectors.shiryaev_roberts import LOG_FLOOR
from monitoring.time_units import DAY_SECONDS

RATIOS = (1.5, 2.0, 3.0, 5.0)
"""The multiples of the expected complaints that the bets are on, from a small rise to a large one."""
RISES = (0.5, 1.0, 2.0, 4.0)
LOG_RATIOS = (log(1.5), log(2.0), log(3.0), log(5.0))
Logs = tuple[float, float, float, float]
NOTHING: Logs = (LOG_FLOOR, LOG_FLOOR, LOG_FLOOR, LOG_FLOOR)
COHORTS_PER_WIDTH = 4
"""Cohorts of one length before the next ones are twice as long."""
SEEN_MIN = 5
EXPECTED_MIN = 3.0
"""With fewer complaints, or fewer expected ones, the detector never alarms."""
REFERENCE_SEEN = 400
REFERENCE_SECONDS_MIN = 7 * DAY_SECONDS
"""Complaints that end the reference period, once it has covered each day of a week."""
REFERENCE_SEEN_MIN = 50
REFERENCE_SECONDS_MAX = 30 * DAY_SECONDS
"""After this time fewer complaints are enough."""


class Cohort(msgspec.Struct, frozen=True, array_like=True):
    """The requests from tick `begins` up to the next cohort without a complaint yet, and the bets begun in that time.

    `logs` are the natural logarithms of these bets at the beginning of the day, one for each ratio; -700 means nothing.
    Of today's complaints, `seen` are about requests of this cohort and all younger ones. At most `expected` of these
    were expected.
    """

    begins: int
    requests: float = 0.0
    logs: Logs = NOTHING
    seen: int = 0
    expected: float = 0.0


class Complaints(msgspec.Struct, frozen=True, kw_only=True):
    """The complaints about one version, and the detector's state. A round trip through JSON changes no bit.

    `at` is the latest known moment, in tick `tick`; all sums are complete up to `settled`. `cohorts` are ordered oldest
    first. The last one is open: its requests have been watched for `open_watched` request-ticks since `settled`.
    `learning` is set while delays are learned, `learned` afterwards. `seen` and `expected` count complaints from then
    on (`expected` is a 97.5% upper bound), `in_tick` those expected in this tick. `day_seen` and `day_expected` count
    today's, the latter on average. `set_aside` counts complaints that were ignored, `served` requests. `back` is the
    reverse test, if there is one.
    """

    at: float
    tick: int
    settled: float
    cohorts: tuple[Cohort, ...]
    open_watched: float = 0.0
    learning: Reference | None = None
    learned: Delays | None = None
    served: int = 0
    seen: int = 0
    expected: float = 0.0
    in_tick: float = 0.0
    day_seen: int = 0
    day_expected: float = 0.0
    set_aside: int = 0
    back: Fewer | None = None


def start(now: float, learned: Delays | None = None) -> Complaints:
    """A detector that first learns delays, or uses those from another version's reference period at once."""
    now, tick = float(now), int(now // TICK_SECONDS)
    learning = complaint_delays.start_reference(now) if learned is None else None
    return Complaints(at=now, tick=tick, settled=now, cohorts=(Cohort(tick),), learning=learning, learned=learned)


def learns(state: Complaints) -> bool:
    """Return whether the detector is still in its reference period, and so can't alarm."""
    return state.learned is None


def describe_progress(reference: Reference) -> dict[str, float]:
    """Describe the progress of a reference period, and its goals, as JSON."""
    return {
        "days": (reference.ended - reference.began) / DAY_SECONDS,
        "days_wanted": REFERENCE_SECONDS_MIN / DAY_SECONDS,
        "complaints": reference.complaints,
        "complaints_wanted": REFERENCE_SEEN,
    }


def take_requests(state: Complaints, now: float, count: int = 1) -> Complaints:
    """The detector after `count` requests were answered now. Raises ValueError if `count` is below 1.

    A time before the latest known one counts as that one.
    """
    if count < 1:
        raise ValueError(f"{count} requests: at least 1.")
    state = advance(state, now)
    last = state.cohorts[-1]
    last = replace(last, requests=last.requests + count)
    learning = state.learning and complaint_delays.add_requests(state.learning, state.tick, count)
    return replace(state, served=state.served + count, cohorts=(*state.cohorts[:-1], last), learning=learning)


def take_complaint(state: Complaints, request_at: float, now: float) -> Complaints:
    """The detector after the first complaint about a request that was answered at `request_at`.

    Pass no second complaint about the same request. A complaint is set aside if its request is older than 30 days or
    from before the start. So is one at an age about which the reference period says too little.
    """
    state = _settled(advance(state, now))
    tick = int(min(request_at, state.at) // TICK_SECONDS)
    at = bisect_right(state.cohorts, tick, key=lambda cohort: cohort.begins) - 1
    if at < 0 or state.cohorts[at].requests < 0.5:
        return replace(state, set_aside=state.set_aside + 1)
    about = state.cohorts[at]
    less = replace(about, requests=about.requests - 1.0)
    state = replace(state, cohorts=(*state.cohorts[:at], less, *state.cohorts[at + 1 :]))
    if state.learned is None:
        learning = complaint_delays.add_complaint(_get_reference(state), tick, state.tick)
        return replace(state, learning=learning)
    if not state.learned.hazards[_ages(state.learned, state.cohorts, state.tick)[at]]:
        return replace(state, set_aside=state.set_aside + 1)
    won = tuple([replace(cohort, seen=cohort.seen + 1) for cohort in state.cohorts[: at + 1]])
    back = state.back
    if back is not None and about.begins >= back.begins:
        back = fewer.take_complaint(back, state.learned)
    return replace(
        state, seen=state.seen + 1, day_seen=state.day_seen + 1, cohorts=(*won, *state.cohorts[at + 1 :]), back=back
    )


def begin_reverse_test(state: Complaints, since: float) -> Complaints:
    """The detector with a reverse test of requests from the first tick that begins after `since`."""
    return replace(state, back=Fewer(int(since // TICK_SECONDS) + 1))


def end_reverse_test(state: Complaints) -> Complaints:
    """The detector without a reverse test."""
    return replace(state, back=None)


def resume(state: Complaints, now: float) -> Complaints:
    """The detector after a gap in its reference period. The gap is not part of that period.

    Requests from before the gap are no longer watched: complaints about them may have come during it.
    """
    state, now = _settled(state), float(now)
    tick = int(now // TICK_SECONDS)
    return replace(
        state,
        at=now,
        settled=now,
        tick=tick,
        open_watched=0.0,
        cohorts=(Cohort(tick),),
        learning=state.learning and complaint_delays.resume(state.learning, now),
    )


def log_e(state: Complaints) -> float:
    """The logarithm of the mean over the ratios of each one's bets (called an e-value in reports: `rising_errors`)."""
    return max(LOG_FLOOR, _log_of_sum(_of_all(state)) - log(len(RATIOS)))


def find_change(state: Complaints) -> float:
    """The time from which requests bring more complaints (Unix seconds), by the cohort with the highest bets."""
    return max(state.cohorts, key=lambda cohort: _log_of_sum(_stand(cohort, state.learned))).begins * TICK_SECONDS


def advance(state: Complaints, now: float) -> Complaints:
    """The detector at a later moment at which nothing has happened."""
    if now - state.at > HORIZON_TICKS * TICK_SECONDS:
        return _after_a_pause(state, now)
    while now >= (state.tick + 1) * TICK_SECONDS:
        state = _ticked(_settled(_watched(state, (state.tick + 1) * TICK_SECONDS)))
    return _watched(state, now) if now > state.at else state


def _after_a_pause(state: Complaints, now: float) -> Complaints:
    """The detector once all requests are too old to watch. Its bets stay; complaints still expected do not count."""
    tick = int(now // TICK_SECONDS)
    return replace(
        state,
        at=now,
        settled=now,
        tick=tick,
        open_watched=0.0,
        in_tick=0.0,
        day_seen=0,
        day_expected=0.0,
        cohorts=(Cohort(tick, 0.0, _of_all(state)),),
        back=state.back and fewer.end_day(state.back),
    )


def _watched(state: Complaints, until: float) -> Complaints:
    """The detector at a later moment in the same tick."""
    more = state.cohorts[-1].requests * (until - state.at) / TICK_SECONDS
    return replace(state, at=until, open_watched=state.open_watched + more)


def _settled(state: Complaints) -> Complaints:
    """The detector with sums up to `at`: the complaints expected or, in the reference period, the time watched."""
    if state.at <= state.settled:
        return state
    if state.learned is None:
        learning = complaint_delays.add_watched(_get_reference(state), state.at)
        return replace(state, settled=state.at, open_watched=0.0, learning=learning)
    part = (state.at - state.settled) / TICK_SECONDS
    watched = [cohort.requests * part for cohort in state.cohorts]
    watched[-1] = state.open_watched
    ages = _ages(state.learned, state.cohorts, state.tick)
    due, means = complaint_delays.find_expected(state.learned, ages, watched, state.tick)
    cohorts = [
        Cohort(cohort.begins, cohort.requests, cohort.logs, cohort.seen, cohort.expected + mu) if mu else cohort
        for cohort, mu in zip(state.cohorts, due, strict=True)
    ]
    return replace(
        state,
        settled=state.at,
        open_watched=0.0,
        cohorts=tuple(cohorts),
        expected=state.expected + due[0],
        in_tick=state.in_tick + due[0],
        day_expected=state.day_expected + means[0],
        back=state.back and _with_expected(state.back, state.cohorts, means, state.learned),
    )


def _get_reference(state: Complaints) -> Reference:
    """The reference period. It begins now if an earlier release kept it in another form."""
    return state.learning or complaint_delays.start_reference(state.settled)


def _with_expected(back: Fewer, cohorts: tuple[Cohort, ...], due: list[float], learned: Delays) -> Fewer:
    """The reverse test after the complaints expected on average, given for each cohort with all younger ones."""
    first = bisect_left(cohorts, back.begins, key=lambda cohort: cohort.begins)
    return fewer.take_expected(back, due[first], learned) if first < len(due) and due[first] else back


def _ticked(state: Complaints) -> Complaints:
    """The detector in the next tick: a new cohort with its bets, and older cohorts joined."""
    tick = state.tick + 1
    if tick * TICK_SECONDS % DAY_SECONDS == 0:
        state = _end_day(state)
    bet = max(LOG_FLOOR, log(state.in_tick)) if state.in_tick > 0.0 else LOG_FLOOR
    cohorts = [*state.cohorts, Cohort(tick, 0.0, (bet, bet, bet, bet))]
    for at in choose_joins([cohort.begins for cohort in cohorts]):
        cohorts[at : at + 2] = [_join(cohorts[at], cohorts[at + 1], state.learned)]
    if len(cohorts) > 1 and cohorts[1].begins <= tick - HORIZON_TICKS:
        begins, requests = cohorts[1].begins, cohorts[1].requests
        joined = _join(cohorts[0], cohorts[1], state.learned)
        cohorts[:2] = [replace(joined, begins=begins, requests=requests)]
    state = replace(state, tick=tick, in_tick=0.0, cohorts=tuple(cohorts))
    return _taught(state) if state.learning is not None and tick % HOUR_TICKS == 0 else state


def _end_day(state: Complaints) -> Complaints:
    """The detector at the end of a day. Unless the version is degraded, the day teaches how much days differ."""
    if state.learned is None:
        return state
    learned = state.learned
    if state.back is None and state.day_expected > 0.0:
        learned = complaint_delays.learn_day(learned, state.day_seen, state.day_expected)
    return replace(
        state,
        cohorts=tuple(
            [Cohort(cohort.begins, cohort.requests, _stand(cohort, state.learned)) for cohort in state.cohorts]
        ),
        learned=learned,
        day_seen=0,
        day_expected=0.0,
        back=state.back and fewer.end_day(state.back),
    )


def choose_joins(begins: list[int]) -> list[int]:
    """The cohorts to join with the next one, in this order; the last cohort is still open."""
    joins: list[int] = []
    end, width, edges = len(begins) - 1, 1, list(begins)
    while True:
        first = end
        while first > 0 and edges[first] - edges[first - 1] == width:
            first -= 1
        if end - first <= COHORTS_PER_WIDTH:
            return joins
        del edges[first + 1]
        joins.append(first)
        end, width = first + 1, width * 2


def _ages(learned: Delays, cohorts: tuple[Cohort, ...], tick: int) -> tuple[int, ...]:
    """The age buckets of all cohorts' middles."""
    return _find_ages(learned.hours, tuple([cohort.begins for cohort in cohorts]), tick)


@lru_cache(maxsize=256)  # all complaints of one tick need the same, whoever is left out
def _find_ages(hours: tuple[float, ...], begins: tuple[int, ...], tick: int) -> tuple[int, ...]:
    return complaint_delays.find_ages(hours, list_middles([*begins, tick + 1]), tick)


def list_middles(begins: Sequence[int]) -> list[int]:
    """The middle ticks of all cohorts but the last. If a cohort has two middle ticks, every other one takes the
    later."""
    return [(begin + after - 1 + begin // (after - begin) % 2) // 2 for begin, after in pairwise(begins)]


def _taught(state: Complaints) -> Complaints:
    """The detector with learned delays, if the reference period has seen enough."""
    reference = _get_reference(state)
    count, seconds = reference.complaints, reference.ended - reference.began
    enough = count >= REFERENCE_SEEN and seconds >= REFERENCE_SECONDS_MIN
    if not enough and not (count >= REFERENCE_SEEN_MIN and seconds >= REFERENCE_SECONDS_MAX):
        return state
    from monitoring.quality.detectors.complaint_learning import learn  # noqa: PLC0415 - numpy: once for a version

    return replace(state, learning=None, learned=learn(reference))


def _stand(cohort: Cohort, learned: Delays | None) -> Logs:
    """The present bets of a cohort, including today's."""
    if learned is None or not (cohort.seen or cohort.expected):
        return cohort.logs
    count, mu, shape = cohort.seen / learned.dispersion, cohort.expected / learned.dispersion, learned.day_shape
    weight, alike = count + shape, shape + mu
    stand = []
    for before, rise, log_ratio in zip(cohort.logs, RISES, LOG_RATIOS, strict=True):
        more = rise * mu  # complaints beyond mu today; the price of the bet is the larger of the two likelihoods'
        by_days = weight * log1p(more / alike)
        price = more if more > by_days else by_days  # noqa: FURB136 - `max` would be half of the time of a bet
        log_bet = before + count * log_ratio - price
        stand.append(log_bet if log_bet > LOG_FLOOR else LOG_FLOOR)  # noqa: FURB136
    a, b, c, d = stand
    return (a, b, c, d)


def _join(older: Cohort, other: Cohort, learned: Delays | None) -> Cohort:
    """Two cohorts as one. The younger one's bets continue with the older one's day."""
    bare = _stand(replace(older, logs=(0.0, 0.0, 0.0, 0.0)), learned)
    both = zip(_stand(older, learned), _stand(other, learned), bare, strict=True)
    a, b, c, d = [max(LOG_FLOOR, _log_of_sum((x, y)) - today) for x, y, today in both]
    return Cohort(older.begins, older.requests + other.requests, (a, b, c, d), older.seen, older.expected)


def _of_all(state: Complaints) -> Logs:
    """The present sums of all bets, one for each ratio."""
    by_cohort = [_stand(cohort, state.learned) for cohort in state.cohorts]
    a, b, c, d = [_log_of_sum(logs) for logs in zip(*by_cohort, strict=True)]
    return (a, b, c, d)


def _log_of_sum(logs: Sequence[float]) -> float:
    largest = max(logs)
    return largest + log(sum([exp(value - largest) for value in logs])) if largest > LOG_FLOOR else LOG_FLOOR
