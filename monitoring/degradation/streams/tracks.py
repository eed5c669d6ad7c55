"""One labelled stream of a version: what its baseline is, the guarded detector against it, and the reverse test.

Until there is a baseline nothing is claimed: an admin's or the gate's is there at once, another version's as soon as
that has labels enough, and else the stream's own first labels are it. A version whose verdict is degraded is held
against the rate that lies half-way between its baseline and its error then: that the error is still at least so high
is what the reverse test has to refute (`raters.py` with side `below`). The error then is the lower bound of what came
since the likeliest change, as that is chosen where errors are most frequent. Where a degraded version gets another
baseline, or its first, the reverse test begins with the next label.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

import msgspec

from monitoring.degradation.detectors import baselines, lately, raters
from monitoring.degradation.detectors.baselines import Baseline, Kind
from monitoring.degradation.detectors.lately import Marks, Rate, Recent
from monitoring.degradation.detectors.raters import Guarded
from monitoring.degradation.detectors.slip import BASELINE_MIN

BASELINE_MAX = 1.0 - BASELINE_MIN
CONFIDENCE = 0.99
"""Of the bound from a version's own first labels, or the version before's: they are few, and versions are many."""
STEP_UP_MIN = 0.02
"""By how much a degraded version's error lies above its baseline at least, for the reverse test."""
RECOVERED_BETWEEN = 200.0
"""The reverse test finds a recovery that is none at most once in so many labels on average."""


Parts = tuple[tuple[int, float], ...]


class Vote(msgspec.Struct, frozen=True, kw_only=True):
    """A label as a detector takes it: how bad, by which caller and rater, and whether its giver is trusted."""

    badness: float
    caller: str = ""
    rater: str | None = None
    trusted: bool = False


class Track(msgspec.Struct, frozen=True, kw_only=True):
    """A labelled stream and how it stands.

    `labels` and `wrong` count all labels; `steady` and `steady_wrong` those that came while the version was not known
    to be degraded, which is what another version may be held against. `first` and `first_wrong` are the labels that
    become its own baseline, of `wanted`; `firsts` and `steadies` have the number and the badness of either by groups of
    callers. `begun` is the number of labels before the detector was last begun, `busiest`
    the most labels a day since then: evidence and threshold are of the same time.
    """

    wanted: int
    salt: str
    labels: int = 0
    wrong: float = 0.0
    steady: int = 0
    steady_wrong: float = 0.0
    first: int = 0
    first_wrong: float = 0.0
    firsts: Parts = ()
    steadies: Parts = ()
    baseline: Baseline | None = None
    guard: Guarded | None = None
    begun: int = 0
    busiest: float = 0.0
    reverse: Guarded | None = None
    recent: Recent = Recent()
    rate: Rate | None = None
    marks: Marks = ()


def start(wanted: int, salt: str) -> Track:
    """A stream without labels. `wanted` of its own make a baseline, if there is no other."""
    return Track(wanted=wanted, salt=salt)


def held_against(track: Track, baseline: Baseline) -> Track:
    """The stream held against this baseline from now on; the same object if it is already."""
    if track.baseline == baseline:
        return track
    upper = min(BASELINE_MAX, max(BASELINE_MIN, baseline.upper))
    guard = raters.start(upper, track.salt)
    return msgspec.structs.replace(track, baseline=baseline, guard=guard, begun=track.labels, busiest=0.0, reverse=None)


def labelled(track: Track, vote: Vote, at: float, roll: Guarded, is_degraded: bool, is_late: bool = False) -> Track:
    """The stream after a label at `at` (Unix seconds). `roll` knows which callers use the version.

    One that `is_late` is of a request from before the version recovered: it counts, and no detector sees it.
    """
    if is_late:
        return _counted(track, vote.badness, at)
    track = degraded(track) if is_degraded and track.reverse is None else track
    bad, own = vote.badness, None if vote.trusted else raters.group(roll, vote.caller)
    guard = track.guard and _observed(track.guard, vote, roll)
    reverse = track.reverse and _observed(track.reverse, vote, roll)
    track = msgspec.structs.replace(
        _counted(track, bad, at),
        steady=track.steady + (not is_degraded),
        steady_wrong=track.steady_wrong + (0.0 if is_degraded else bad),
        steadies=track.steadies if is_degraded else _with_part(track.steadies, own, bad),
        begun=track.begun,
        guard=guard,
        reverse=reverse,
    )
    return track if guard is not None else _learned(track, own, bad, at)


def evidence_of(track: Track, at: float, by: str, source: str) -> Baseline | None:
    """What this stream's labels are as another version's baseline; None without any."""
    if not track.steady:
        return None
    return _measured("previous", track.steady_wrong, track.steady, track.steadies, at, by, source)


def degraded(track: Track) -> Track:
    """The stream once its version is known to be degraded: the reverse test begins."""
    if track.guard is None or track.baseline is None:
        return track
    held = track.guard.slip.baseline
    since = lately.since_then(track.marks, track.begun + raters.since(track.guard))
    seen = held + STEP_UP_MIN
    if since is not None:
        wrong, of = since
        seen = max(seen, baselines.lower_bound(min(of, max(0.0, wrong)), of))
    half_way = min(BASELINE_MAX, (held + seen) / 2)
    return msgspec.structs.replace(track, reverse=raters.start(half_way, track.salt, "below"))


def restored(track: Track) -> Track:
    """The stream once its version is no longer degraded: the detector begins anew at its baseline."""
    if track.guard is None:
        return track
    anew = raters.start(track.guard.slip.baseline, track.salt)
    return msgspec.structs.replace(track, guard=anew, begun=track.labels, busiest=0.0, reverse=None)


def observed(track: Track) -> int:
    """How many labels its detector has seen."""
    return track.guard.slip.observed if track.guard is not None else 0


def recovered(track: Track) -> bool:
    """Whether the reverse test has found that its error came down."""
    return track.reverse is not None and raters.alarms(track.reverse, RECOVERED_BETWEEN / 2, 0.5)


def begins(track: Track) -> float | None:
    """When the evidence that stands now began to grow, in Unix seconds; None without a detector."""
    if track.guard is None:
        return None
    return lately.time_of(track.marks, track.begun + raters.since(track.guard))


def _observed(guard: Guarded, vote: Vote, roll: Guarded) -> Guarded:
    callers = msgspec.structs.replace(guard.callers, known=roll.callers.known, requests=roll.callers.requests)
    guard = msgspec.structs.replace(guard, callers=callers)
    return raters.observe(guard, vote.badness, vote.caller, vote.trusted, rater=vote.rater)


def _counted(track: Track, bad: float, at: float) -> Track:
    """The stream with a label that no detector has seen."""
    count, wrong, rate = track.labels + 1, track.wrong + bad, lately.with_event(track.rate, at)
    return msgspec.structs.replace(
        track,
        labels=count,
        wrong=wrong,
        begun=track.begun + 1,
        recent=lately.with_value(track.recent, bad),
        rate=rate,
        busiest=lately.busiest(track.busiest, rate, at),
        marks=lately.with_mark(track.marks, count, at, wrong),
    )


def _with_part(parts: Parts, own: int | None, bad: float) -> Parts:
    if own is None:
        return parts
    known = parts or ((0, 0.0),) * raters.GROUPS
    return tuple([(of + 1, wrong + bad) if place == own else (of, wrong) for place, (of, wrong) in enumerate(known)])


def _measured(kind: Kind, wrong: float, of: int, parts: Parts, at: float, by: str, source: str) -> Baseline:
    """What these labels are evidence for, whichever caller is left out: the least of it, so that nobody raises it."""
    without = [
        (max(0.0, wrong - wrong_part), of - part)
        for part, wrong_part in parts
        if part and of - part >= raters.OTHERS_MIN * of
    ]
    found = [baselines.measured(kind, bad, count, at, by, source, CONFIDENCE) for bad, count in ((wrong, of), *without)]
    return min(found, key=lambda one: one.upper)


def _learned(track: Track, own: int | None, bad: float, at: float) -> Track:
    """The stream after one of the first labels; with the last of them its baseline is known."""
    first, wrong = track.first + 1, track.first_wrong + bad
    firsts = _with_part(track.firsts, own, bad)
    track = msgspec.structs.replace(track, first=first, first_wrong=wrong, firsts=firsts)
    if first < track.wanted:
        return track
    return held_against(track, _measured("own", wrong, first, firsts, at, "monitor", "its first labels"))
