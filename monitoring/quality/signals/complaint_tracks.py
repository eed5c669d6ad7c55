"""The complaints about a version: the detector of `complaints.py`, guarded so that no caller alone makes it alarm.

Each caller who complains is left out in turn (`leaving_out.py`), with its requests: up to four by themselves. Nothing
is learned while the version is known to be degraded: what was being learned by then begins anew with its end, or goes
on after an admin's own word. The reverse test (`fewer.py`) has to refute that there are still half as many again as
expected, of requests from after the verdict. It leaves nobody out: what is expected was learned of all callers, and
where one of those who rarely complain is left out the others would never come down to it.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

import math

import msgspec

from monitoring.quality.detectors import complaints, fewer, lately, leaving_out, recoveries
from monitoring.quality.detectors.complaints import EXPECTED_MIN, SEEN_MIN, Complaints
from monitoring.quality.detectors.delays import HORIZON_TICKS, TICK_SECONDS, Delays
from monitoring.quality.detectors.lately import Rate
from monitoring.quality.detectors.leaving_out import LeaveOneOut, Roll
from monitoring.quality.detectors.planning import BETWEEN_MIN

GROUPS = 4
HORIZON_SECONDS = HORIZON_TICKS * TICK_SECONDS


class ComplaintTrack(msgspec.Struct, frozen=True, kw_only=True):
    """The complaints and how they stand. `last` is when a request or complaint last came (Unix seconds).

    `detectors` leave out the groups of `complainers`. `busiest` are the most complaints a day since it began, `streams`
    and `recoveries` are as in `Track`. Of the complaints that it has expected, `apart` were while there was a reverse
    test, but for the present one, which began when `tested_at` were expected.
    """

    detectors: LeaveOneOut[Complaints]
    complainers: Roll
    last: float
    rate: Rate | None = None
    busiest: float = 0.0
    streams: int = 0
    recoveries: int = 0
    apart: float = 0.0
    tested_at: float = 0.0


def start(salt: str, at: float, learned: Delays | None) -> ComplaintTrack:
    """A stream without complaints, whose delays are those that another version's taught, if any."""
    detectors = leaving_out.start(complaints.start(at, learned), GROUPS)
    return ComplaintTrack(detectors=detectors, complainers=Roll(salt=salt, groups=GROUPS), last=at)


def learns(track: ComplaintTrack) -> bool:
    """Whether it is still learned how many complaints are usual, and how late they come."""
    return complaints.learns(track.detectors.whole)


def served(track: ComplaintTrack, caller: str, at: float) -> ComplaintTrack:
    """The stream after a request that was answered."""
    last, at = track.last, max(at, track.last)
    own = list[int]()
    if any(track.detectors.without):
        place = leaving_out.group(track.complainers, caller)
        own = [place] if track.detectors.without[place] is not None else []
    detectors = leaving_out.moved(track.detectors, lambda one: complaints.served(_caught_up(one, last, at), at), own)
    return msgspec.structs.replace(track, detectors=detectors, last=at)


def complained(track: ComplaintTrack, caller: str, request_at: float, at: float, alone: str | None) -> ComplaintTrack:
    """The stream after the first complaint about a request. `alone` is as in `leaving_out.py`."""
    last, at, rate = track.last, max(at, track.last), lately.with_event(track.rate, at)
    whole = _caught_up(track.detectors.whole, last, at)
    known = msgspec.structs.replace(track.detectors, whole=whole)
    roll, own = track.complainers, list[int]()
    if not complaints.learns(whole):
        roll = leaving_out.met(roll, caller)
        own = [leaving_out.group(roll, caller)]
    moved = leaving_out.moved(known, lambda one: complaints.complained(_caught_up(one, last, at), request_at, at), own)
    believed = () if alone is None else (leaving_out.group_of(roll, alone),)
    return msgspec.structs.replace(
        track,
        detectors=leaving_out.judged(moved, complaints.log_e, believed) if own else moved,
        complainers=roll,
        last=at,
        rate=rate,
        busiest=lately.busiest(track.busiest, rate, at),
    )


def ticked(track: ComplaintTrack, at: float) -> ComplaintTrack:
    """The stream at a later moment, to whole ticks: the same comes of it however often it is asked.

    No time passes for one that may learn nothing, as its version is degraded.
    """
    until = _tick_before(min(at, track.last + HORIZON_SECONDS))
    if until <= track.detectors.whole.at or (learns(track) and is_tested(track)):
        return track
    detectors = leaving_out.moved(track.detectors, lambda one: complaints.advanced(one, until))
    return msgspec.structs.replace(track, detectors=detectors)


def alarms(track: ComplaintTrack, labels: float, alpha: float) -> bool:
    """Whether the evidence ever reached the threshold for so many expected complaints, on some at all."""
    whole = track.detectors.whole
    enough = whole.seen >= SEEN_MIN and whole.expected >= EXPECTED_MIN
    return enough and leaving_out.alarms(track.detectors, labels, alpha)


def evidence(track: ComplaintTrack, alarming: bool) -> float:
    """The logarithm of its evidence: the largest so far where that alarms, else that of all as it stands."""
    return track.detectors.log_max if alarming else complaints.log_e(track.detectors.whole)


def doubted(track: ComplaintTrack) -> bool:
    """As in `tracks.py`. Time that passes without a complaint takes evidence away too."""
    one = track.detectors
    now = min(one.log_now, complaints.log_e(one.whole))
    return leaving_out.stands_between(msgspec.structs.replace(one, log_now=now), BETWEEN_MIN)


def begins(track: ComplaintTrack) -> float | None:
    """From which time on (Unix seconds) requests bring more complaints, likeliest; None while delays are learned."""
    whole = track.detectors.whole
    return None if complaints.learns(whole) else complaints.since(whole)


def degraded(track: ComplaintTrack, since: float) -> ComplaintTrack:
    """The stream once its version is known to be degraded `since` then: the reverse test begins."""
    whole = track.detectors.whole
    if not is_tested(track):
        left = recoveries.left(track.recoveries, whole.expected - track.apart)
        track = msgspec.structs.replace(track, recoveries=left, tested_at=whole.expected)
    detectors = msgspec.structs.replace(track.detectors, whole=complaints.turned(whole, since))
    return msgspec.structs.replace(track, detectors=detectors)


def is_tested(track: ComplaintTrack) -> bool:
    """Whether there is a reverse test."""
    return track.detectors.whole.back is not None


def restored(track: ComplaintTrack, at: float) -> ComplaintTrack:
    """The stream once its version is no longer degraded, from `at` on: it begins anew, with the delays that it knows.

    Where it knows none, none of the time before is learned from. A recovery is counted as in `tracks.py`.
    """
    learned = track.detectors.whole.learned
    anew = start(track.complainers.salt, track.last if learned is not None else max(track.last, at), learned)
    count = recoveries.one_more(track.recoveries) if recovered(track) else track.recoveries
    return msgspec.structs.replace(anew, rate=track.rate, recoveries=count)


def released(track: ComplaintTrack, at: float) -> ComplaintTrack:
    """As in `tracks.py`, from `at` on. What was being learned when it got degraded begins anew here too."""
    return restored(track, at) if learns(track) or recovered(track) else _untested(track)


def lifted(track: ComplaintTrack, at: float) -> ComplaintTrack:
    """The stream once an admin's own `degraded` is over, from `at` on: what it knows stands.

    What was being learned goes on, as if the time between had not been: complaints that came then were not taken.
    """
    track = _untested(track)
    if not learns(track):
        return track
    at = max(track.last, at)
    detectors = msgspec.structs.replace(track.detectors, whole=complaints.resumed(track.detectors.whole, at))
    return msgspec.structs.replace(track, detectors=detectors, last=at)


def recovered(track: ComplaintTrack) -> bool:
    """Whether the reverse test finds that complaints came down. More of them take that back."""
    back = track.detectors.whole.back
    return back is not None and fewer.log_e(back) >= math.log(recoveries.asked(track.recoveries))


def _untested(track: ComplaintTrack) -> ComplaintTrack:
    """The stream without its reverse test; its evidence stands."""
    if not is_tested(track):
        return track
    whole = track.detectors.whole
    detectors = msgspec.structs.replace(track.detectors, whole=complaints.untested(whole))
    apart = track.apart + whole.expected - track.tested_at
    return msgspec.structs.replace(track, detectors=detectors, apart=apart)


def _caught_up(state: Complaints, last: float, at: float) -> Complaints:
    """The state after a long pause as `ticked` leaves it, so that it does not matter whether that was asked."""
    if at - last <= HORIZON_SECONDS:
        return state
    until = _tick_before(last + HORIZON_SECONDS)
    return complaints.advanced(state, until) if until > state.at else state


def _tick_before(at: float) -> float:
    return at // TICK_SECONDS * TICK_SECONDS
