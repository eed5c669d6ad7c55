"""One stream of pairs of a version: its badness less another arm's on the same, or on concurrent, requests.

The reference is the mean difference of the first pairs, at its one-sided upper 95% bound: a specialist differs from a
general model from the first day on, and what counts is that the difference grows. A change of the other arm starts it
afresh. As in `raters.py` nobody moves it alone: beside the detector over all pairs there is one without each giver's,
and the evidence is the least of them.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

import hashlib
import math

import msgspec

from monitoring.degradation.detectors import delays, estimates, lately, paired
from monitoring.degradation.detectors.baselines import Baseline
from monitoring.degradation.detectors.estimates import Sums
from monitoring.degradation.detectors.lately import Marks, Rate, Recent
from monitoring.degradation.detectors.paired import PairedSlip
from monitoring.degradation.detectors.restarts import LOG_FLOOR, threshold
from monitoring.degradation.streams.tracks import RECOVERED_BETWEEN, STEP_UP_MIN

FIRST_PAIRS = 100
GROUPS = 4
MARGIN_MAX = 0.9
WAITING_MAX = 4
"""So few that what waits from before an outage of feedback says little."""


class PairGuard(msgspec.Struct, frozen=True, kw_only=True):
    """A detector over all pairs, and one without each group of givers. `log_max` is the largest evidence so far."""

    whole: PairedSlip
    known: tuple[str, ...] = ()
    without: tuple[PairedSlip | None, ...] = (None,) * GROUPS
    log_max: float = LOG_FLOOR


class PairTrack(msgspec.Struct, frozen=True, kw_only=True):
    """A stream of pairs and how it stands. `against` is the digest of what the other arm is (None: not known).

    `wrong` and `other_wrong` sum the badness of either arm. `first` are the differences that become its reference.
    `begun` and `busiest` are as in `Track`.
    `waiting` and `other_waiting` are values with their givers that wait for one of the other arm to pair with.
    """

    salt: str
    against: str | None = None
    pairs: int = 0
    wrong: float = 0.0
    other_wrong: float = 0.0
    first: Sums = Sums()
    baseline: Baseline | None = None
    guard: PairGuard | None = None
    begun: int = 0
    busiest: float = 0.0
    reverse: PairGuard | None = None
    recent: Recent = Recent()
    rate: Rate | None = None
    marks: Marks = ()
    waiting: tuple[tuple[float, str], ...] = ()
    other_waiting: tuple[tuple[float, str], ...] = ()


def held_against(track: PairTrack, baseline: Baseline) -> PairTrack:
    """The stream held against this difference from now on; the same object if it is already."""
    if track.baseline == baseline:
        return track
    guard = PairGuard(whole=paired.start(_bounded(baseline.upper)))
    return msgspec.structs.replace(track, baseline=baseline, guard=guard, begun=track.pairs, busiest=0.0, reverse=None)


def against(track: PairTrack, digest: str | None) -> PairTrack:
    """The stream once the other arm is known to be this; started afresh if it was another, but for what is set."""
    if digest is None or digest == track.against:
        return track
    if track.against is None:
        return msgspec.structs.replace(track, against=digest)
    afresh = PairTrack(salt=track.salt, against=digest)
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
) -> PairTrack:
    """The stream after a pair. `givers` are the callers on whose word it rests, `alone` is as in `raters.py`."""
    track = degraded(track) if is_degraded and track.reverse is None else track
    difference, count = wrong - other_wrong, track.pairs + 1
    total = track.wrong - track.other_wrong + difference
    guard = track.guard and _observed(track.guard, track.salt, difference, givers, alone)
    reverse = track.reverse and _observed(track.reverse, track.salt, difference, givers, alone)
    rate = lately.with_event(track.rate, at)
    track = msgspec.structs.replace(
        track,
        pairs=count,
        wrong=track.wrong + wrong,
        other_wrong=track.other_wrong + other_wrong,
        guard=guard,
        reverse=reverse,
        recent=lately.with_value(track.recent, difference),
        rate=rate,
        busiest=lately.busiest(track.busiest, rate, at),
        marks=lately.with_mark(track.marks, count, at, total),
    )
    return track if guard is not None else _learned(track, difference, at)


def met(
    track: PairTrack, own: bool, bad: float, giver: str, at: float, alone: str | None, is_degraded: bool = False
) -> PairTrack:
    """The stream after a label of either arm, which waits for one of the other arm; of too many the oldest goes."""
    others = track.other_waiting if own else track.waiting
    if others:
        other, other_giver = others[0]
        field = "other_waiting" if own else "waiting"
        track = msgspec.structs.replace(track, **{field: others[1:]})
        wrong, other_wrong = (bad, other) if own else (other, bad)
        return paired_with(track, wrong, other_wrong, (giver, other_giver), at, alone, is_degraded)
    field = "waiting" if own else "other_waiting"
    waits = (*(track.waiting if own else track.other_waiting), (bad, giver))
    return msgspec.structs.replace(track, **{field: waits[-WAITING_MAX:]})


def degraded(track: PairTrack) -> PairTrack:
    """The stream once its version is known to be degraded: the reverse test begins."""
    if track.guard is None:
        return track
    margin = track.guard.whole.margin
    since = lately.since_then(track.marks, track.begun + paired.since(track.guard.whole))
    seen = margin + STEP_UP_MIN
    if since is not None:
        total, of = since
        spread = max(0.0, track.recent.total_squares / track.recent.weight - (lately.mean(track.recent) or 0.0) ** 2)
        seen = max(seen, total / of - delays.Z_UPPER * math.sqrt(spread / of))
    reverse = PairGuard(whole=paired.start(_bounded((margin + seen) / 2), "below"))
    return msgspec.structs.replace(track, reverse=reverse)


def restored(track: PairTrack) -> PairTrack:
    """The stream once its version is no longer degraded: the detector begins anew at its margin."""
    if track.guard is None:
        return track
    anew = PairGuard(whole=paired.start(track.guard.whole.margin))
    return msgspec.structs.replace(track, guard=anew, begun=track.pairs, busiest=0.0, reverse=None)


def observed(track: PairTrack) -> int:
    """How many pairs its detector has seen."""
    return track.guard.whole.observed if track.guard is not None else 0


def alarms(guard: PairGuard, labels: float, alpha: float) -> bool:
    """Whether the evidence has ever reached the threshold for so many pairs."""
    return guard.log_max >= threshold(labels, alpha)


def recovered(track: PairTrack) -> bool:
    """Whether the reverse test has found that the difference came down."""
    return track.reverse is not None and alarms(track.reverse, RECOVERED_BETWEEN / 2, 0.5)


def begins(track: PairTrack) -> float | None:
    """When the evidence that stands now began to grow, in Unix seconds; None without a detector."""
    if track.guard is None:
        return None
    return lately.time_of(track.marks, track.begun + paired.since(track.guard.whole))


def _learned(track: PairTrack, difference: float, at: float) -> PairTrack:
    """The stream after one of the first pairs; with the last of them its reference is known."""
    track = msgspec.structs.replace(track, first=estimates.labelled(track.first, difference))
    if track.first.labelled < FIRST_PAIRS:
        return track
    found = estimates.difference(track.first, 0.9)
    assert found is not None, "there are labels enough"
    own = Baseline(
        kind="own",
        wrong=track.first.y,
        of=float(track.first.labelled),
        upper=found.high,
        at=at,
        by="monitor",
        source="its first pairs",
    )
    return held_against(track, own)


def _observed(guard: PairGuard, salt: str, difference: float, givers: tuple[str, ...], alone: str | None) -> PairGuard:
    digests = {hashlib.blake2b(f"{salt}\n{one}".encode(), digest_size=8).hexdigest() for one in givers}
    known = tuple(dict.fromkeys((*guard.known, *sorted(digests))))[:GROUPS]
    own = {_group(known, one) for one in digests}
    believed = None if alone is None else _group(known, alone)
    whole = paired.observe(guard.whole, difference)
    without = tuple(
        [
            (slip or guard.whole) if at in own else None if slip is None else paired.observe(slip, difference)
            for at, slip in enumerate(guard.without)
        ]
    )
    least = [paired.log_e(slip) for at, slip in enumerate(without) if slip is not None and at != believed]
    evidence = min([paired.log_e(whole), *least])
    return PairGuard(whole=whole, known=known, without=without, log_max=max(guard.log_max, evidence))


def _group(known: tuple[str, ...], digest: str) -> int:
    return known.index(digest) if digest in known else int(digest, 16) % GROUPS


def _bounded(margin: float) -> float:
    return min(MARGIN_MAX, max(-MARGIN_MAX, margin))
