"""The complaints about a version: the detector of `complaints.py`, guarded so that no caller moves it alone.

Beside the detector over all requests and complaints there is one without each complaining caller's, and the evidence is
the least of them. Where one caller alone uses the version, its word counts (`raters.alone`). Callers are told apart as
in `raters.py`: the first four who complain each by themselves, others in four groups.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

import hashlib
import math

import msgspec

from monitoring.degradation.detectors import complaints, lately
from monitoring.degradation.detectors.complaints import EXPECTED_MIN, SEEN_MIN, Complaints
from monitoring.degradation.detectors.delays import HORIZON_TICKS, TICK_SECONDS, Delays
from monitoring.degradation.detectors.lately import Rate
from monitoring.degradation.detectors.restarts import LOG_FLOOR, threshold

GROUPS = 4
HORIZON_SECONDS = HORIZON_TICKS * TICK_SECONDS
STILL_RATIO = 1.5
"""The reverse test refutes that there are still so many times the complaints that are expected at most."""
RECOVERED_LOG = math.log(20.0)


class ComplaintTrack(msgspec.Struct, frozen=True, kw_only=True):
    """The complaints and how they stand. `last` is when a request or complaint last came (Unix seconds).

    `log_max` is the largest evidence so far, `busiest` the most complaints a day since it began. `reverse_seen` and
    `reverse_expected` are what was seen and expected when the reverse test began (None: it has not).
    """

    salt: str
    whole: Complaints
    last: float
    known: tuple[str, ...] = ()
    without: tuple[Complaints | None, ...] = (None,) * GROUPS
    log_max: float = LOG_FLOOR
    rate: Rate | None = None
    busiest: float = 0.0
    reverse_seen: int | None = None
    reverse_expected: float = 0.0


def start(salt: str, at: float, learned: Delays | None) -> ComplaintTrack:
    """A stream without complaints, whose delays are those that another version's taught, if any."""
    return ComplaintTrack(salt=salt, whole=complaints.start(at, learned), last=at)


def served(track: ComplaintTrack, caller: str, at: float) -> ComplaintTrack:
    """The stream after a request that was answered."""
    own, at = _group(track, caller) if any(track.without) else -1, max(at, track.last)
    return msgspec.structs.replace(
        track,
        whole=complaints.served(_caught_up(track.whole, track.last, at), at),
        without=tuple(
            [
                one if one is None or place == own else complaints.served(_caught_up(one, track.last, at), at)
                for place, one in enumerate(track.without)
            ]
        ),
        last=at,
    )


def complained(track: ComplaintTrack, caller: str, request_at: float, at: float, alone: str | None) -> ComplaintTrack:
    """The stream after the first complaint about a request. `alone` is as in `raters.py`."""
    at = max(at, track.last)
    whole = _caught_up(track.whole, track.last, at)
    digest = _digest(track.salt, caller)
    learning = complaints.learns(whole)
    if not learning and digest not in track.known and len(track.known) < GROUPS:
        track = msgspec.structs.replace(track, known=(*track.known, digest))
    own = -1 if learning else _group(track, caller)
    without = tuple(
        [
            (one or whole)
            if place == own
            else one and complaints.complained(_caught_up(one, track.last, at), request_at, at)
            for place, one in enumerate(track.without)
        ]
    )
    whole = complaints.complained(whole, request_at, at)
    evidence, rate = complaints.log_e(whole), lately.with_event(track.rate, at)
    believed = None if alone is None else _group_of(track.known, alone)
    least = [complaints.log_e(one) for place, one in enumerate(without) if one is not None and place != believed]
    evidence = min([evidence, *least])
    return msgspec.structs.replace(
        track,
        whole=whole,
        without=without,
        last=at,
        rate=rate,
        busiest=lately.busiest(track.busiest, rate, at),
        log_max=track.log_max if learning else max(track.log_max, evidence),
    )


def ticked(track: ComplaintTrack, at: float) -> ComplaintTrack:
    """The stream at a later moment, to whole ticks: the same comes of it however often it is asked."""
    until = _tick_before(min(at, track.last + HORIZON_SECONDS))
    if until <= track.whole.at:
        return track
    return msgspec.structs.replace(
        track,
        whole=complaints.advanced(track.whole, until),
        without=tuple([one and complaints.advanced(one, until) for one in track.without]),
    )


def alarms(track: ComplaintTrack, labels: float, alpha: float) -> bool:
    """Whether the evidence ever reached the threshold for so many expected complaints, on some at all."""
    enough = track.whole.seen >= SEEN_MIN and track.whole.expected >= EXPECTED_MIN
    return enough and track.log_max >= threshold(labels, alpha)


def degraded(track: ComplaintTrack) -> ComplaintTrack:
    """The stream once its version is known to be degraded: the reverse test begins."""
    return msgspec.structs.replace(track, reverse_seen=track.whole.seen, reverse_expected=track.whole.expected)


def restored(track: ComplaintTrack) -> ComplaintTrack:
    """The stream once its version is no longer degraded: it begins anew, with the delays that it knows."""
    if track.whole.learned is None:
        return msgspec.structs.replace(track, reverse_seen=None)
    anew = start(track.salt, track.last, track.whole.learned)
    return msgspec.structs.replace(anew, rate=track.rate)


def recovered(track: ComplaintTrack) -> bool:
    """Whether complaints since the reverse test began refute that there are still half as many again as expected.

    A test of a Poisson rate by its likelihood ratio, which is at most 1 on average while that is so.
    """
    if track.reverse_seen is None:
        return False
    seen = track.whole.seen - track.reverse_seen
    expected = track.whole.expected - track.reverse_expected
    return (STILL_RATIO - 1.0) * expected - math.log(STILL_RATIO) * seen >= RECOVERED_LOG


def _caught_up(state: Complaints, last: float, at: float) -> Complaints:
    """The state after a long pause as `ticked` leaves it, so that it does not matter whether that was asked."""
    if at - last <= HORIZON_SECONDS:
        return state
    until = _tick_before(last + HORIZON_SECONDS)
    return complaints.advanced(state, until) if until > state.at else state


def _tick_before(at: float) -> float:
    return at // TICK_SECONDS * TICK_SECONDS


def _digest(salt: str, name: str) -> str:
    return hashlib.blake2b(f"{salt}\n{name}".encode(), digest_size=8).hexdigest()


def _group(track: ComplaintTrack, caller: str) -> int:
    return _group_of(track.known, _digest(track.salt, caller))


def _group_of(known: tuple[str, ...], digest: str) -> int:
    return known.index(digest) if digest in known else int(digest, 16) % GROUPS
