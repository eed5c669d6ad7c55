"""A detector of more complaints than expected: late and rare feedback, against the number that the requests so far lead
to.

Complaints that are counted in the order in which they come say more of the traffic than of the version: of young
requests few were heard of yet. Here each request is expected to bring complaints according to its age, by the delays
that were learned in a reference period (`delays.py`), at the upper 97.5% bound mu. For each ratio r it is bet that
requests from some moment on bring r times as many: r^c·exp(-(r - 1)·mu), for c complaints about these requests where
mu were expected. While no request's hazard is above the bound, whatever came before, this is at most 1 on average.

Such a bet begins with every tick of 300 seconds, and what is put on it is the number of complaints that were expected
in the tick before. So the sum of all bets is on average at most the number of complaints expected so far, whenever one
stops: P(any alarm while N complaints are expected) is at most alpha at a threshold of log(N/alpha) (Shiryaev-Roberts,
as in J. Shin, A. Ramdas, A. Rinaldo, "E-detectors", 2022, arXiv 2203.03532). Growth, or time in which nothing is
asked, brings it no nearer. A feedback channel that was down delivers in a clump what was expected of the requests
before: bets that began with these have paid for it, and those that begin later are not about them.

Requests are kept as counts in cohorts, of one tick while they are young and of twice the length after every fourth of a
length: at most 60 for 30 days (M. Datar and others, "Maintaining stream statistics over sliding windows", 2002). Bets
that began in cohorts which are joined go on as one. Pure functions over frozen data; times are Unix seconds, by one
clock (that of the stream).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import exp, log

import msgspec

from monitoring.quality.detectors import complaint_recovery as fewer
from monitoring.quality.detectors import delays
from monitoring.quality.detectors.complaint_recovery import Fewer
from monitoring.quality.detectors.delays import AGES, HORIZON_TICKS, TICK_SECONDS, Delays, Reference
from monitoring.quality.detectors.restarts import LOG_FLOOR

RATIOS = (1.5, 2.0, 3.0, 5.0)
LOG_RATIOS = (log(1.5), log(2.0), log(3.0), log(5.0))
Logs = tuple[float, float, float, float]
NOTHING: Logs = (LOG_FLOOR, LOG_FLOOR, LOG_FLOOR, LOG_FLOOR)
COHORTS_PER_WIDTH = 4
SEEN_MIN = 5
EXPECTED_MIN = 3.0
REFERENCE_SEEN = 400
REFERENCE_SECONDS_MIN = 86400.0
REFERENCE_SEEN_MIN = 50
REFERENCE_SECONDS_MAX = 30 * 86400.0


class Cohort(msgspec.Struct, frozen=True, array_like=True):
    """The requests from a tick on, up to the next cohort, that nobody complained about yet, and the bets begun then.

    `logs` are the natural logarithms of these, one for each ratio, and -700 for nothing.
    """

    begins: int
    requests: float = 0.0
    logs: Logs = NOTHING


class Complaints(msgspec.Struct, frozen=True, kw_only=True):
    """The complaints about one version, and how the detector stands. JSON gives back the same, to the last bit.

    `at` is the last moment that was heard of, in tick `tick`; up to `settled` all is reckoned with. `cohorts` stand
    oldest first; the last one is open, and its requests have been watched for `open_watched` request-ticks since
    `settled`. `reference` is there while delays are learned, `learned` afterwards. `seen` and `expected` count
    complaints from then on (at most so many, with 97.5%), `in_tick` those expected in this tick; `set_aside` counts
    complaints that did not count, `served` requests. `back` is the reverse test while there is one.
    """

    at: float
    tick: int
    settled: float
    cohorts: tuple[Cohort, ...]
    open_watched: float = 0.0
    reference: Reference | None = None
    learned: Delays | None = None
    served: int = 0
    seen: int = 0
    expected: float = 0.0
    in_tick: float = 0.0
    set_aside: int = 0
    back: Fewer | None = None


def start(now: float, learned: Delays | None = None) -> Complaints:
    """A detector that first learns delays, or begins at once with those that another version's reference taught."""
    now, tick = float(now), int(now // TICK_SECONDS)
    reference = Reference(began=now, ended=now) if learned is None else None
    return Complaints(at=now, tick=tick, settled=now, cohorts=(Cohort(tick),), reference=reference, learned=learned)


def learns(state: Complaints) -> bool:
    """Return whether it is still in its reference period, and so can't alarm."""
    return state.learned is None


def take_requests(state: Complaints, now: float, count: int = 1) -> Complaints:
    """The detector after so many requests were answered now. Raises ValueError if there are none.

    A time before the last one counts as that.
    """
    if count < 1:
        raise ValueError(f"{count} requests: at least 1.")
    state = advance(state, now)
    last = state.cohorts[-1]
    return msgspec.structs.replace(
        state,
        served=state.served + count,
        cohorts=(*state.cohorts[:-1], Cohort(last.begins, last.requests + count, last.logs)),
    )


def take_complaint(state: Complaints, request_at: float, now: float) -> Complaints:
    """The detector after the first complaint about a request that was answered at `request_at`.

    A second one about the same request must not be given. A complaint about a request that is not waited for (older
    than 30 days, or from before the start), or at an age of which the reference tells too little, is set aside.
    """
    state = _settled(advance(state, now))
    tick = int(min(request_at, state.at) // TICK_SECONDS)
    at = bisect_right(state.cohorts, tick, key=lambda cohort: cohort.begins) - 1
    age = _age(state.cohorts, at, state.tick) if at >= 0 else 0
    if at < 0 or state.cohorts[at].requests < 0.5:
        return msgspec.structs.replace(state, set_aside=state.set_aside + 1)
    about = state.cohorts[at]
    less = Cohort(about.begins, about.requests - 1.0, about.logs)
    state = msgspec.structs.replace(state, cohorts=(*state.cohorts[:at], less, *state.cohorts[at + 1 :]))
    if state.reference is not None:
        return _noted(state, state.reference, age)
    if state.learned is None or not state.learned.hazards[age]:
        return msgspec.structs.replace(state, set_aside=state.set_aside + 1)
    won = tuple([Cohort(one.begins, one.requests, _more(one.logs, LOG_RATIOS)) for one in state.cohorts[: at + 1]])
    back = state.back
    if back is not None and about.begins >= back.begins:
        back = fewer.take_complaint(back)
    return msgspec.structs.replace(state, seen=state.seen + 1, cohorts=(*won, *state.cohorts[at + 1 :]), back=back)


def begin_reverse_test(state: Complaints, since: float) -> Complaints:
    """The detector with a reverse test, of the requests from the first tick on that begins after `since`."""
    return msgspec.structs.replace(state, back=Fewer(int(since // TICK_SECONDS) + 1))


def end_reverse_test(state: Complaints) -> Complaints:
    """The detector without a reverse test."""
    return msgspec.structs.replace(state, back=None)


def resume(state: Complaints, now: float) -> Complaints:
    """The detector in its reference period after a time of which it was told nothing: that is no part of it.

    Requests from before are watched no more, as complaints about them may have come meanwhile.
    """
    state, now = _settled(state), float(now)
    tick, passed = int(now // TICK_SECONDS), now - state.at
    reference = state.reference
    if reference is not None:
        began, ended = reference.began + passed, reference.ended + passed
        reference = msgspec.structs.replace(reference, began=began, ended=ended)
    return msgspec.structs.replace(
        state, at=now, settled=now, tick=tick, open_watched=0.0, cohorts=(Cohort(tick),), reference=reference
    )


def log_e(state: Complaints) -> float:
    """The natural logarithm of the e-value as it stands: of the mean over the ratios of all that is bet on each."""
    return max(LOG_FLOOR, _log_of_sum([one for cohort in state.cohorts for one in cohort.logs]) - log(len(RATIOS)))


def find_change(state: Complaints) -> float:
    """The time from which requests bring more complaints (Unix seconds), by the highest bets."""
    return max(state.cohorts, key=lambda cohort: _log_of_sum(cohort.logs)).begins * TICK_SECONDS


def advance(state: Complaints, now: float) -> Complaints:
    """The detector at a later moment at which nothing has happened."""
    if now - state.at > HORIZON_TICKS * TICK_SECONDS:
        return _after_a_pause(state, now)
    while now >= (state.tick + 1) * TICK_SECONDS:
        state = _ticked(_settled(_watched(state, (state.tick + 1) * TICK_SECONDS)))
    return _watched(state, now) if now > state.at else state


def _after_a_pause(state: Complaints, now: float) -> Complaints:
    """The detector when no request is waited for any more. What was bet so far loses what is still expected of them."""
    logs = _of_all(state.cohorts) if state.learned is not None else NOTHING
    tick = int(now // TICK_SECONDS)
    return msgspec.structs.replace(
        state, at=now, settled=now, tick=tick, open_watched=0.0, in_tick=0.0, cohorts=(Cohort(tick, 0.0, logs),)
    )


def _watched(state: Complaints, until: float) -> Complaints:
    """A moment in the same tick."""
    more = state.cohorts[-1].requests * (until - state.at) / TICK_SECONDS
    return msgspec.structs.replace(state, at=until, open_watched=state.open_watched + more)


def _settled(state: Complaints) -> Complaints:
    """All up to `at` reckoned with: what was expected, or in the reference period how long requests were watched."""
    if state.at <= state.settled:
        return state
    part = (state.at - state.settled) / TICK_SECONDS
    watched = [cohort.requests * part for cohort in state.cohorts]
    watched[-1] = state.open_watched
    ages = _ages(state.cohorts, state.tick)
    if state.reference is not None:
        reference = delays.add_watched(state.reference, state.tick, ages, watched, state.at)
        return msgspec.structs.replace(state, settled=state.at, open_watched=0.0, reference=reference)
    assert state.learned is not None
    due = delays.find_expected(state.learned, ages, watched, state.tick)
    cohorts = [
        Cohort(one.begins, one.requests, _paid(one.logs, mu)) if mu else one
        for one, mu in zip(state.cohorts, due, strict=True)
    ]
    return msgspec.structs.replace(
        state,
        settled=state.at,
        open_watched=0.0,
        cohorts=tuple(cohorts),
        expected=state.expected + due[0],
        in_tick=state.in_tick + due[0],
        back=state.back and _with_expected(state.back, state.cohorts, due),
    )


def _with_expected(back: Fewer, cohorts: tuple[Cohort, ...], due: list[float]) -> Fewer:
    """The reverse test after what was due, of each cohort with all younger ones."""
    first = bisect_left(cohorts, back.begins, key=lambda cohort: cohort.begins)
    return fewer.take_expected(back, due[first]) if first < len(due) and due[first] else back


def _ticked(state: Complaints) -> Complaints:
    """The next tick: a new cohort with its bets, and older ones joined."""
    tick = state.tick + 1
    bet = max(LOG_FLOOR, log(state.in_tick)) if state.in_tick > 0.0 else LOG_FLOOR
    cohorts = [*state.cohorts, Cohort(tick, 0.0, (bet, bet, bet, bet))]
    for at in choose_joins([cohort.begins for cohort in cohorts]):
        one, next_one = cohorts[at], cohorts.pop(at + 1)
        cohorts[at] = Cohort(one.begins, one.requests + next_one.requests, _both(one.logs, next_one.logs))
    if len(cohorts) > 1 and cohorts[1].begins <= tick - HORIZON_TICKS:
        oldest, next_one = cohorts.pop(0), cohorts[0]
        cohorts[0] = Cohort(next_one.begins, next_one.requests, _both(oldest.logs, next_one.logs))
    state = msgspec.structs.replace(state, tick=tick, in_tick=0.0, cohorts=tuple(cohorts))
    return _taught(state) if state.reference is not None else state


def choose_joins(begins: list[int]) -> list[int]:
    """The cohorts to join with their next one, one after the other; the last cohort is still open."""
    found: list[int] = []
    end, width, edges = len(begins) - 1, 1, list(begins)
    while True:
        first = end
        while first > 0 and edges[first] - edges[first - 1] == width:
            first -= 1
        if end - first <= COHORTS_PER_WIDTH:
            return found
        del edges[first + 1]
        found.append(first)
        end, width = first + 1, width * 2


def _ages(cohorts: tuple[Cohort, ...], tick: int) -> list[int]:
    """The age buckets of all cohorts' middles."""
    begins = [cohort.begins for cohort in cohorts]
    twice, last = 2 * tick + 1, AGES - 1
    return [
        min(((twice - one - after) // 2).bit_length(), last)
        for one, after in zip(begins, [*begins[1:], tick + 1], strict=True)
    ]


def _age(cohorts: tuple[Cohort, ...], at: int, tick: int) -> int:
    """The age bucket of a cohort's middle."""
    end = cohorts[at + 1].begins - 1 if at + 1 < len(cohorts) else tick
    return delays.get_age_bucket((2 * tick - cohorts[at].begins - end) // 2)


def _noted(state: Complaints, reference: Reference, age: int) -> Complaints:
    """A complaint in the reference period."""
    return msgspec.structs.replace(state, reference=delays.add_complaint(reference, state.tick, age))


def _taught(state: Complaints) -> Complaints:
    """The end of the reference period, once enough was seen."""
    reference = state.reference
    assert reference is not None
    count, seconds = sum(reference.events), reference.ended - reference.began
    enough = count >= REFERENCE_SEEN and seconds >= REFERENCE_SECONDS_MIN
    if not enough and not (count >= REFERENCE_SEEN_MIN and seconds >= REFERENCE_SECONDS_MAX):
        return state
    return msgspec.structs.replace(state, reference=None, learned=delays.learn(reference))


def _more(logs: Logs, by: Logs) -> Logs:
    return (logs[0] + by[0], logs[1] + by[1], logs[2] + by[2], logs[3] + by[3])


def _paid(logs: Logs, mu: float) -> Logs:
    """The bets after so many complaints were expected."""
    return (
        max(LOG_FLOOR, logs[0] - 0.5 * mu),
        max(LOG_FLOOR, logs[1] - mu),
        max(LOG_FLOOR, logs[2] - 2.0 * mu),
        max(LOG_FLOOR, logs[3] - 4.0 * mu),
    )


def _both(one: Logs, other: Logs) -> Logs:
    a, b, c, d = [_log_of_sum(pair) for pair in zip(one, other, strict=True)]
    return (a, b, c, d)


def _of_all(cohorts: tuple[Cohort, ...]) -> Logs:
    whole = NOTHING
    for cohort in cohorts:
        whole = _both(whole, cohort.logs)
    return whole


def _log_of_sum(logs: Sequence[float]) -> float:
    largest = max(logs)
    return largest + log(sum([exp(one - largest) for one in logs])) if largest > LOG_FLOOR else LOG_FLOOR
