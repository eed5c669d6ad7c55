"""One stream of pairs of a version: its badness less another arm's on the same, or on concurrent, requests.

The reference is the mean difference of the first pairs, at its one-sided upper 95% bound: a specialist differs from a
general model from the first day on, and what counts is that the difference grows. Another stack of general starts it
afresh once that has taken over (`stacks.py`). Pairs of while the version is known to be degraded are no part of it: its
slip would be the reference. Nobody moves it alone: each giver is left out in turn (`leaving_out.py`), up to four by
themselves.

Nor does anybody make the reference alone. One giver can move a difference both ways: a reference that is too high hides
a slip, one that is too low makes a slip of others' healthy pairs. So the detector that leaves somebody out is held
against the reference without that one's pairs, and each of these references is the least whoever else is left out.
The bound of one without somebody is that of 90%: all of them have to be under the truth for a false alarm to come more
often, which is so at most as seldom as with one reference at 95%.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import msgspec

from monitoring.quality.detectors import delays, estimates, lately, leaving_out, paired, recoveries
from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.detectors.estimates import Sums
from monitoring.quality.detectors.lately import Marks, Rate, Recent
from monitoring.quality.detectors.leaving_out import OTHERS_MIN, LeaveOneOut, Roll
from monitoring.quality.detectors.paired import PairedSlip
from monitoring.quality.detectors.planning import BETWEEN_MIN
from monitoring.quality.detectors.restarts import LOG_FLOOR
from monitoring.quality.signals.tracks import STEP_UP_MIN

FIRST_PAIRS = 100
TWO_SIDED, TWO_SIDED_WITHOUT = 0.9, 0.8
"""Of the intervals whose upper ends are the reference, and one without somebody: bounds of 95% and 90%."""
GROUPS = 4
MARGIN_MAX = 0.9
WAITING_MAX = 4
"""So few that what waits from before an outage of feedback says little."""


class First(msgspec.Struct, frozen=True, array_like=True):
    """Those of the first pairs that rest on the word of these groups of givers."""

    givers: tuple[int, ...]
    sums: Sums


class Reference(NamedTuple):
    """A sum of so many differences, and the upper bound of their mean."""

    wrong: float
    of: float
    upper: float


class PairTrack(msgspec.Struct, frozen=True, kw_only=True):
    """A stream of pairs and how it stands. `against` is the digest of what the other arm is (None: not known).

    `wrong` and `other_wrong` sum the badness of either arm. `first` are the differences that become its reference,
    `firsts` the same by their givers, of whose groups the detectors leave out one each.
    `begun`, `busiest`, `streams`, `recoveries` and `apart` are as in `Track`.
    `waiting` and `other_waiting` are values with their givers that wait for one of the other arm to pair with, `placed`
    and `other_placed` when their requests came.
    """

    givers: Roll
    against: str | None = None
    pairs: int = 0
    wrong: float = 0.0
    other_wrong: float = 0.0
    first: Sums = Sums()
    firsts: tuple[First, ...] = ()
    baseline: Baseline | None = None
    guard: LeaveOneOut[PairedSlip] | None = None
    begun: int = 0
    busiest: float = 0.0
    streams: int = 0
    recoveries: int = 0
    apart: int = 0
    reverse: LeaveOneOut[PairedSlip] | None = None
    recent: Recent = Recent()
    rate: Rate | None = None
    marks: Marks = ()
    waiting: tuple[tuple[float, str], ...] = ()
    other_waiting: tuple[tuple[float, str], ...] = ()
    placed: tuple[float, ...] = ()
    other_placed: tuple[float, ...] = ()


def start(salt: str, against: str | None = None) -> PairTrack:
    """A stream without pairs; `salt` is the version."""
    return PairTrack(givers=Roll(salt=salt, groups=GROUPS), against=against)


def held_against(track: PairTrack, baseline: Baseline) -> PairTrack:
    """The stream held against this difference from now on; the same object if it is already."""
    if track.baseline == baseline:
        return track
    guard = leaving_out.start(paired.start(_bounded(baseline.upper)), GROUPS)
    return _begun(msgspec.structs.replace(track, baseline=baseline, guard=guard))


def against(track: PairTrack, digest: str | None) -> PairTrack:
    """The stream once it goes by what the other arm is now; started afresh if that is another, but for what is set."""
    if digest is None or digest == track.against:
        return track
    if track.against is None:
        return msgspec.structs.replace(track, against=digest)
    afresh = start(track.givers.salt, digest)
    kept = track.baseline if track.baseline is not None and track.baseline.kind == "admin" else None
    return held_against(afresh, kept) if kept is not None else afresh


def paired_with(
    track: PairTrack,
    wrong: float,
    other_wrong: float,
    givers: tuple[str, ...],
    at: float,
    alone: str | None,
    is_degraded: bool = False,
    is_early: bool = False,
) -> PairTrack:
    """The stream after a pair. `givers` are the callers on whose word it rests, `alone` is as in `leaving_out.py`.

    One that `is_early` is about a request from before the version was degraded: the reverse test does not see it.
    """
    track = degraded(track) if is_degraded and track.reverse is None else track
    difference, count = wrong - other_wrong, track.pairs + 1
    total = track.wrong - track.other_wrong + difference
    roll = _with_givers(track.givers, givers)
    own = tuple(sorted({leaving_out.group(roll, one) for one in givers}))
    believed = () if alone is None else (leaving_out.group_of(roll, alone),)
    guard = track.guard and _observed(track.guard, difference, own, believed)
    reverse = track.reverse
    if reverse is not None and not is_early:
        reverse = _observed(reverse, difference, own, believed)
    rate = lately.with_event(track.rate, at)
    track = msgspec.structs.replace(
        track,
        givers=roll,
        pairs=count,
        wrong=track.wrong + wrong,
        other_wrong=track.other_wrong + other_wrong,
        guard=guard,
        apart=track.apart + (reverse is not None),
        reverse=reverse,
        recent=lately.with_value(track.recent, difference),
        rate=rate,
        busiest=lately.busiest(track.busiest, rate, at),
        marks=lately.with_mark(track.marks, count, at, total),
    )
    return _learned(track, difference, own, at) if guard is None and not is_degraded else track


def met(
    track: PairTrack,
    own: bool,
    bad: float,
    giver: str,
    at: float,
    alone: str | None,
    is_degraded: bool = False,
    placed_at: float = 0.0,
    tested_from: float = 0.0,
) -> PairTrack:
    """The stream after a label of either arm, which waits for one of the other arm; of too many the oldest goes.

    `placed_at` is when its request came; of a pair the older one counts.
    """
    others = track.other_waiting if own else track.waiting
    if others:
        (other, other_giver), other_placed_at = others[0], _placed(track, not own)[0]
        track = _with_waiting(track, not own, others[1:], _placed(track, not own)[1:])
        wrong, other_wrong = (bad, other) if own else (other, bad)
        is_early = min(placed_at, other_placed_at) < tested_from
        return paired_with(track, wrong, other_wrong, (giver, other_giver), at, alone, is_degraded, is_early)
    waits = (*(track.waiting if own else track.other_waiting), (bad, giver))
    return _with_waiting(track, own, waits[-WAITING_MAX:], (*_placed(track, own), placed_at)[-WAITING_MAX:])


def degraded(track: PairTrack) -> PairTrack:
    """The stream once its version is known to be degraded: the reverse test begins."""
    if track.guard is None:
        return track
    whole = track.guard.whole
    margin, since = whole.margin, lately.since_then(track.marks, track.begun + paired.since(whole))
    seen = margin + STEP_UP_MIN
    if since is not None:
        total, of = since
        seen = max(seen, total / of - delays.Z_UPPER * math.sqrt(_spread(track) / of))
    reverse = leaving_out.start(paired.start(_bounded((margin + seen) / 2), "below"), GROUPS)
    left = recoveries.left(track.recoveries, observed(track) - track.apart)
    return msgspec.structs.replace(track, reverse=reverse, recoveries=left)


def restored(track: PairTrack) -> PairTrack:
    """The stream once its version is no longer degraded: the detectors begin anew at their margins, and without what
    waits from before. A recovery is counted as in `tracks.py`."""
    track = msgspec.structs.replace(track, waiting=(), other_waiting=(), placed=(), other_placed=())
    if track.guard is None:
        return track
    without = tuple([left and paired.start(left.margin) for left in track.guard.without])
    anew = LeaveOneOut(whole=paired.start(track.guard.whole.margin), without=without)
    count = recoveries.one_more(track.recoveries) if recovered(track) else track.recoveries
    return msgspec.structs.replace(_begun(track), guard=anew, recoveries=count)


def released(track: PairTrack) -> PairTrack:
    """As in `tracks.py`."""
    return restored(track) if recovered(track) else untested(track)


def untested(track: PairTrack) -> PairTrack:
    """The stream without its reverse test; its evidence stands."""
    return msgspec.structs.replace(track, reverse=None)


def observed(track: PairTrack) -> int:
    """How many pairs its detector has seen."""
    return track.guard.whole.observed if track.guard is not None else 0


def alarms(track: PairTrack, labels_min: int, labels: float, alpha: float) -> bool:
    """Whether its evidence has ever reached the threshold for so many pairs, once it has seen pairs enough."""
    if track.guard is None or observed(track) < labels_min:
        return False
    return leaving_out.alarms(track.guard, labels, alpha)


def evidence(track: PairTrack, alarming: bool) -> float:
    """The logarithm of its evidence: the largest so far where that alarms, else that of all pairs as it stands."""
    if track.guard is None:
        return LOG_FLOOR
    return track.guard.log_max if alarming else paired.log_e(track.guard.whole)


def recovered(track: PairTrack) -> bool:
    """Whether the reverse test finds that the difference came down. One that rises again takes that back."""
    asked = recoveries.asked(track.recoveries)
    return track.reverse is not None and leaving_out.stands_between(track.reverse, asked)


def doubted(track: PairTrack) -> bool:
    """As in `tracks.py`."""
    return track.guard is not None and leaving_out.stands_between(track.guard, BETWEEN_MIN)


def seen_lately(track: PairTrack, alarming: bool) -> Recent:
    """Its differences lately; of the time since its evidence began where that is an alarm, and stands."""
    if track.guard is None or not alarming or not doubted(track):
        return track.recent
    since = lately.since_then(track.marks, track.begun + paired.since(track.guard.whole))
    if since is None:
        return track.recent
    total, of = since[0], float(since[1])
    return Recent(of, of, total, of * (_spread(track) + (total / of) ** 2))


def begins(track: PairTrack) -> float | None:
    """When the evidence that stands now began to grow, in Unix seconds; None without a detector."""
    if track.guard is None:
        return None
    return lately.time_of(track.marks, track.begun + paired.since(track.guard.whole))


def _learned(track: PairTrack, difference: float, own: tuple[int, ...], at: float) -> PairTrack:
    """The stream after one of the first pairs; with the last of them its references are known."""
    by_givers = {one.givers: one.sums for one in track.firsts}
    by_givers[own] = estimates.labelled(by_givers.get(own, Sums()), difference)
    track = msgspec.structs.replace(
        track,
        first=estimates.labelled(track.first, difference),
        firsts=tuple([First(*one) for one in sorted(by_givers.items())]),
    )
    if track.first.labelled < FIRST_PAIRS:
        return track
    found = _reference(track.firsts, ())
    assert found is not None, "there are pairs enough"
    own_reference = Baseline(
        kind="own",
        wrong=found.wrong,
        of=found.of,
        upper=found.upper,
        at=at,
        by="monitor",
        source="its first pairs",
    )
    track = held_against(track, own_reference)
    assert track.guard is not None, "it has just begun"
    left = [_reference(track.firsts, (place,)) for place in range(GROUPS)]
    without = tuple([one and paired.start(_bounded(one.upper)) for one in left])
    return msgspec.structs.replace(track, guard=msgspec.structs.replace(track.guard, without=without))


def _reference(firsts: tuple[First, ...], left_out: tuple[int, ...]) -> Reference | None:
    """What the first pairs without these givers are a reference for: the least, whoever else is left out.

    None where too few are left without these; whoever else would leave too few is not left out.
    """
    two_sided = TWO_SIDED_WITHOUT if left_out else TWO_SIDED
    others = ((), *[(place,) for place in range(GROUPS)])
    found = [_measured(firsts, {*left_out, *more}, two_sided) for more in others]
    known = [one for one in found if one is not None]
    return min(known, key=lambda one: one.upper) if found[0] is not None else None


def _measured(firsts: tuple[First, ...], left_out: set[int], two_sided: float) -> Reference | None:
    """The mean difference of the first pairs without these givers, with its bound; None where too few are left."""
    sums = [one.sums for one in firsts if left_out.isdisjoint(one.givers)]
    of = sum([one.labelled for one in sums])
    if of < OTHERS_MIN * sum([one.sums.labelled for one in firsts]):
        return None
    wrong = math.fsum([one.y for one in sums])
    found = estimates.difference(Sums(labelled=of, y=wrong, yy=math.fsum([one.yy for one in sums])), two_sided)
    return None if found is None else Reference(wrong, float(of), found.high)


def _begun(track: PairTrack) -> PairTrack:
    """The stream whose detector has just begun."""
    return msgspec.structs.replace(
        track, begun=track.pairs, busiest=0.0, streams=0, recoveries=0, apart=0, reverse=None
    )


def _placed(track: PairTrack, own: bool) -> tuple[float, ...]:
    """When the requests came whose labels wait; long ago where a gateway of another release has not kept it."""
    waits, known = (track.waiting, track.placed) if own else (track.other_waiting, track.other_placed)
    return known if len(known) == len(waits) else (0.0,) * len(waits)


def _with_waiting(
    track: PairTrack, own: bool, waits: tuple[tuple[float, str], ...], placed: tuple[float, ...]
) -> PairTrack:
    if own:
        return msgspec.structs.replace(track, waiting=waits, placed=placed)
    return msgspec.structs.replace(track, other_waiting=waits, other_placed=placed)


def _spread(track: PairTrack) -> float:
    """The variance of its differences lately."""
    return max(0.0, track.recent.total_squares / track.recent.weight - (lately.mean(track.recent) or 0.0) ** 2)


def _with_givers(roll: Roll, givers: tuple[str, ...]) -> Roll:
    for one in sorted(givers, key=partial(leaving_out.digest, roll)):
        roll = leaving_out.met(roll, one)
    return roll


def _observed(
    guard: LeaveOneOut[PairedSlip], difference: float, own: tuple[int, ...], believed: tuple[int, ...]
) -> LeaveOneOut[PairedSlip]:
    moved = leaving_out.moved(guard, lambda slip: paired.observe(slip, difference), own)
    return leaving_out.judged(moved, paired.log_e, believed)


def _bounded(margin: float) -> float:
    return min(MARGIN_MAX, max(-MARGIN_MAX, margin))
