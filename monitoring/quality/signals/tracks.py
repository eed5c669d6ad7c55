"""One labelled stream of a version: what its baseline is, the guarded detector against it, and the reverse test.

Until there is a baseline nothing is claimed: an admin's or the gate's is there at once, another version's as soon as
that has labels enough, and else the stream's own first labels are it. None is learned while the version is degraded:
the reverse test would be held against the slipped state, and find a recovery that is none.

A version whose verdict is degraded is held against the rate that lies half-way between its baseline and its error then:
that the error is still at least so high is what the reverse test has to refute (`raters.py` with side `below`). The
error then is the lower bound of what came since the likeliest change, as that is chosen where errors are most frequent.
Where a degraded version gets another baseline, or its first, the reverse test begins with the next label. It sees
labels of requests from after the verdict alone: once traffic is shifted, late praise of those before would show a
recovery.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from monitoring.quality.detectors import baselines, lately, leaving_out, raters, recoveries
from monitoring.quality.detectors.baselines import Baseline, Kind
from monitoring.quality.detectors.lately import Marks, Rate, Recent
from monitoring.quality.detectors.leaving_out import OTHERS_MIN, Roll
from monitoring.quality.detectors.planning import BETWEEN_MIN
from monitoring.quality.detectors.raters import Guarded, Shares
from monitoring.quality.detectors.restarts import LOG_FLOOR
from monitoring.quality.detectors.slip import BASELINE_MIN

BASELINE_MAX = 1.0 - BASELINE_MIN
CONFIDENCE = 0.99
"""Of the bound from a version's own first labels, or the version before's: they are few, and versions are many."""
STEP_UP_MIN = 0.02
"""By how much a degraded version's error lies above its baseline at least, for the reverse test."""
PART_MIN = 0.5
"""Labels that weigh less than this together are none."""


Parts = tuple[tuple[int, float], ...]


class Vote(msgspec.Struct, frozen=True, kw_only=True):
    """A label as a detector takes it: how bad, by which caller and rater, and whether its giver is trusted.

    `reported`: its request was not served here.
    """

    badness: float
    caller: str = ""
    rater: str | None = None
    trusted: bool = False
    reported: bool = False


class Track(msgspec.Struct, frozen=True, kw_only=True):
    """A labelled stream and how it stands.

    `labels` and `wrong` count all labels; `steady` and `steady_wrong` those that another version may be held against:
    that count for a baseline (`teaches`), and came while the version was neither known to be degraded nor doubted.
    `first` and `first_wrong` are the labels that become its own baseline, of `wanted`; `firsts` and `steadies` have the
    number and the badness of either by groups of callers. `shares` are its raters as long as it has no detector.
    `begun` is the number of labels before the detector was last begun, `busiest` the most labels a day since then,
    `streams` the most streams of all versions (`parting.py`): evidence and threshold are of the same time. `recoveries`
    counts those in a row that have not held (`recoveries.py`); `apart` counts what its detector saw while there was
    a reverse test: no recovery stood then. `by_caller` is what each group of callers has given to `recent`.
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
    streams: int = 0
    recoveries: int = 0
    apart: int = 0
    reverse: Guarded | None = None
    recent: Recent = Recent()
    by_caller: tuple[Recent, ...] = ()
    shares: Shares | None = None
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
    if track.guard is not None:
        guard = raters.anew(track.guard, upper)
    else:
        guard = raters.start_knowing(upper, track.salt, track.shares or raters.shares(track.salt))
    return _begun(msgspec.structs.replace(track, baseline=baseline, guard=guard, shares=None))


def labelled(
    track: Track,
    vote: Vote,
    at: float,
    roll: Roll,
    is_degraded: bool,
    is_late: bool = False,
    is_doubted: bool = False,
    is_early: bool = False,
) -> Track:
    """The stream after a label at `at` (Unix seconds). `roll` knows which callers use the version.

    One that `is_late` is of a request from before the version recovered: it counts, and no detector sees it. One that
    `is_early` is of a request from before it was degraded, and shows no recovery. One that came while the version
    `is_doubted` is nothing that another is held against.
    """
    own = None if vote.trusted else leaving_out.group(roll, vote.caller)
    if is_late:
        return _counted(track, vote.badness, own, at)
    track = degraded(track) if is_degraded and track.reverse is None else track
    bad, counts = vote.badness, teaches(vote, roll) and not is_degraded
    is_steady = counts and not is_doubted
    guard = track.guard and _observed(track.guard, vote, at, roll)
    reverse = track.reverse if is_early or track.reverse is None else _observed(track.reverse, vote, at, roll)
    track = msgspec.structs.replace(
        _counted(track, bad, own, at),
        steady=track.steady + is_steady,
        steady_wrong=track.steady_wrong + (bad if is_steady else 0.0),
        steadies=_with_part(track.steadies, own, bad) if is_steady else track.steadies,
        begun=track.begun,
        apart=track.apart + (reverse is not None),
        guard=guard,
        reverse=reverse,
        shares=_heard(track, vote, at, roll) if guard is None else None,
    )
    return _learned(track, own, bad, at) if guard is None and counts else track


def teaches(vote: Vote, roll: Roll) -> bool:
    """Whether a label may become part of a baseline: one on a report does where reports are all that there is."""
    return vote.trusted or vote.reported == roll.reported


def evidence_of(track: Track, at: float, by: str, source: str) -> Baseline | None:
    """What this stream's labels are as another version's baseline; None without any."""
    if not track.steady:
        return None
    return _measured("previous", track.steady_wrong, track.steady, track.steadies, at, by, source)


def degraded(track: Track) -> Track:
    """The stream once its version is known to be degraded: the reverse test begins."""
    if track.guard is None or track.baseline is None:
        return track
    held = track.guard.detectors.whole.baseline
    since = lately.since_then(track.marks, track.begun + raters.since(track.guard))
    seen = held + STEP_UP_MIN
    if since is not None:
        wrong, of = since
        seen = max(seen, baselines.lower_bound(min(of, max(0.0, wrong)), of))
    half_way = min(BASELINE_MAX, (held + seen) / 2)
    left = recoveries.left(track.recoveries, observed(track) - track.apart)
    return msgspec.structs.replace(track, reverse=raters.anew(track.guard, half_way, "below"), recoveries=left)


def restored(track: Track) -> Track:
    """The stream once its version is no longer degraded: the detector begins anew at its baseline.

    That it has recovered is counted where its own reverse test says so.
    """
    if track.guard is None:
        return track
    anew = raters.anew(track.guard, track.guard.detectors.whole.baseline)
    count = recoveries.one_more(track.recoveries) if recovered(track) else track.recoveries
    return msgspec.structs.replace(_begun(track), guard=anew, recoveries=count)


def released(track: Track) -> Track:
    """The stream once an admin overrules no more that its version is degraded: it has recovered meanwhile, or its
    evidence stands."""
    return restored(track) if recovered(track) else untested(track)


def untested(track: Track) -> Track:
    """The stream without its reverse test; its evidence stands."""
    return msgspec.structs.replace(track, reverse=None)


def observed(track: Track) -> int:
    """How many labels its detector has seen."""
    return track.guard.detectors.whole.observed if track.guard is not None else 0


def alarms(track: Track, labels_min: int, labels: float, alpha: float) -> bool:
    """Whether its evidence has ever reached the threshold for so many labels, once it has seen labels enough."""
    return track.guard is not None and observed(track) >= labels_min and raters.alarms(track.guard, labels, alpha)


def evidence(track: Track, alarming: bool) -> float:
    """The logarithm of its evidence: the largest so far where that alarms, else as it stands."""
    if track.guard is None:
        return LOG_FLOOR
    return track.guard.detectors.log_max if alarming else raters.log_e(track.guard)


def recovered(track: Track) -> bool:
    """Whether the reverse test finds that its error came down. An error that rises again takes that back."""
    asked = recoveries.asked(track.recoveries)
    return track.reverse is not None and leaving_out.stands_between(track.reverse.detectors, asked)


def rests_on_most(track: Track, labels_min: int, labels: float, alpha: float) -> bool:
    """Whether it would alarm as it stands, by the word alone of a caller or rater who gave most of its labels; once it
    has seen labels enough."""
    enough = track.guard is not None and observed(track) >= labels_min
    return enough and track.guard is not None and raters.rests_on_most(track.guard, labels, alpha)


def doubted(track: Track) -> bool:
    """Whether its evidence, as it stands, would be an alarm of the stream that may alarm most often."""
    return track.guard is not None and leaving_out.stands_between(track.guard.detectors, BETWEEN_MIN)


def seen_lately(track: Track, alarming: bool) -> Recent:
    """Its errors lately; of the time since its evidence began where that is an alarm, and stands."""
    if track.guard is None or not alarming or not doubted(track):
        return track.recent
    since = lately.since_then(track.marks, track.begun + raters.since(track.guard))
    return track.recent if since is None else Recent(float(since[1]), float(since[1]), max(0.0, since[0]), since[0])


def high_without_one(track: Track, believed: Collection[int]) -> float | None:
    """The greatest upper end of the interval of its errors lately, whichever caller is left out who may be."""
    there = [part for place, part in enumerate(track.by_caller) if place not in believed and part.weight >= PART_MIN]
    left = [lately.without(track.recent, part) for part in there]
    found = [lately.share_interval(one) if one.weight >= PART_MIN else (0.0, 1.0) for one in (track.recent, *left)]
    return max([one[1] for one in found if one is not None], default=None) if track.recent.weight else None


def begins(track: Track) -> float | None:
    """When the evidence that stands now began to grow, in Unix seconds; None without a detector."""
    if track.guard is None:
        return None
    return lately.time_of(track.marks, track.begun + raters.since(track.guard))


def _begun(track: Track) -> Track:
    """The stream whose detector has just begun."""
    return msgspec.structs.replace(
        track, begun=track.labels, busiest=0.0, streams=0, recoveries=0, apart=0, reverse=None
    )


def _observed(guard: Guarded, vote: Vote, at: float, roll: Roll) -> Guarded:
    guard = raters.used_by(guard, roll)
    return raters.observe(
        guard, vote.badness, vote.caller, vote.trusted, rater=vote.rater, reported=vote.reported, at=at
    )


def _heard(track: Track, vote: Vote, at: float, roll: Roll) -> Shares | None:
    """The shares of its raters after a label that no detector has seen."""
    if vote.trusted:
        return track.shares
    known = track.shares or raters.shares(track.salt)
    known = msgspec.structs.replace(known, raters=leaving_out.of_kind(known.raters, roll.reported))
    return raters.heard(known, vote.caller, vote.rater, vote.reported, at=at)[0]


def _counted(track: Track, bad: float, own: int | None, at: float) -> Track:
    """The stream with a label that no detector has seen."""
    parts = track.by_caller or (() if own is None else (Recent(),) * raters.GROUPS)
    count, wrong, rate = track.labels + 1, track.wrong + bad, lately.with_event(track.rate, at)
    return msgspec.structs.replace(
        track,
        labels=count,
        wrong=wrong,
        begun=track.begun + 1,
        recent=lately.with_value(track.recent, bad),
        by_caller=lately.with_value_of(parts, own, bad),
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
    """What these labels are evidence for, whichever caller is left out: the least of it, so that nobody raises it.

    The least of several bounds is under the truth more often than each of them: half of the error is that of all
    labels' bound, and those without a caller share the other half.
    """
    without = [
        (max(0.0, wrong - wrong_part), of - part) for part, wrong_part in parts if part and of - part >= OTHERS_MIN * of
    ]
    error = (1.0 - CONFIDENCE) / 2
    confidences = [1.0 - error, *[1.0 - error / len(without)] * len(without)] if without else [CONFIDENCE]
    found = [
        baselines.measured(kind, bad, count, at, by, source, confidence)
        for (bad, count), confidence in zip(((wrong, of), *without), confidences, strict=True)
    ]
    return min(found, key=lambda one: one.upper)


def _learned(track: Track, own: int | None, bad: float, at: float) -> Track:
    """The stream after one of the first labels; with the last of them its baseline is known."""
    first, wrong = track.first + 1, track.first_wrong + bad
    firsts = _with_part(track.firsts, own, bad)
    track = msgspec.structs.replace(track, first=first, first_wrong=wrong, firsts=firsts)
    if first < track.wanted:
        return track
    return held_against(track, _measured("own", wrong, first, firsts, at, "monitor", "its first labels"))
