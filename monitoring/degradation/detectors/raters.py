"""No caller moves a verdict alone, and no rater of a caller either: the detector of `slip.py`, guarded.

Beside the detector over all labels there is one without each caller's labels, and one without each rater's. The
evidence is the least of them: what stays whoever is left out. Up to eight callers (raters) are left out each by
themselves; those after them share eight groups by their hash. If one caller alone uses the version, leaving it out
would leave nothing, and its word counts; so does a rater's who is the only one. Nor is anyone left out beside whom all
others together have less than `OTHERS_MIN` of the latest requests and of the latest labels: else a single request of
somebody else would silence a version. Labels of trusted givers (operators, admins, reviewers) are in all of them.

Each of these is a detector with the claim of `slip.py` on the labels that it sees, so the least of them has it too.

In addition a rater weighs at most `RATER_SHARE_MAX` of about the last `WINDOW` labels, or an equal part of them where
there are fewer than five raters; where there are fewer than three nobody is weighed down. Counts fade, and are kept of
the eight heaviest raters (A. Metwally, D. Agrawal, A. El Abbadi, "Efficient computation of frequent and top-k elements
in data streams", 2005).
"""

from __future__ import annotations

import hashlib

import msgspec

from monitoring.degradation.detectors import slip as detector
from monitoring.degradation.detectors.restarts import LOG_FLOOR, threshold
from monitoring.degradation.detectors.slip import Side, Slip

GROUPS = 8
RATER_SHARE_MAX = 0.2
RATERS_MIN = 3
WINDOW = 200
WEIGHT_MIN = 0.01
PRESENT_MIN = 0.5
FADING = 1.0 - 1.0 / WINDOW
NAME_BYTES = 8
OTHERS_MIN = 0.05
FADING_LABELS = 1.0 - 1.0 / 500
FADING_REQUESTS = 1.0 - 1.0 / 1000
DIGITS = 3
NOBODY = (0.0,) * GROUPS


class Without(msgspec.Struct, frozen=True, kw_only=True):
    """Detectors that leave somebody out. `known` are the digests of those who were seen first, a group each.

    `requests` and `labels` are the faded counts of each group's. `slips` is None for a group without labels: leaving it
    out changes nothing yet.
    """

    known: tuple[str, ...] = ()
    requests: tuple[float, ...] = NOBODY
    labels: tuple[float, ...] = NOBODY
    slips: tuple[Slip | None, ...] = (None,) * GROUPS


class Heavy(msgspec.Struct, frozen=True, kw_only=True):
    """How much the labels of a rater weigh among the latest."""

    rater: str
    weight: float


class Guarded(msgspec.Struct, frozen=True, kw_only=True):
    """A guarded detector and how it stands. JSON gives back the same, to the last bit.

    `slip` is over all labels. `log_max` is the largest evidence so far. `salt` keeps digests of names apart between
    versions. `labels` is the faded count of labels, `heavy` the faded weights of the heaviest raters.
    """

    salt: str
    slip: Slip
    callers: Without = Without()
    raters: Without = Without()
    log_max: float = LOG_FLOOR
    labels: float = 0.0
    heavy: tuple[Heavy, ...] = ()
    share_max: float = RATER_SHARE_MAX


def start(baseline: float, salt: str, side: Side = "above", rater_share_max: float = RATER_SHARE_MAX) -> Guarded:
    """A guarded detector; `salt` is the version.

    Raises ValueError as `slip.start` does, or if the largest share of a rater is not above 0 and at most 1.
    """
    if not 0.0 < rater_share_max <= 1.0:
        raise ValueError(f"A rater's largest share is {rater_share_max}: above 0, and at most 1.")
    return Guarded(salt=salt, slip=detector.start(baseline, side), share_max=rater_share_max)


def served(guarded: Guarded, caller: str) -> Guarded:
    """Note that a caller (the public part of its key) uses the version."""
    digest = _digest(guarded.salt, caller)
    callers = _met(guarded.callers, digest)
    requests = _counted(callers.requests, _group(callers, digest), FADING_REQUESTS)
    return msgspec.structs.replace(guarded, callers=msgspec.structs.replace(callers, requests=requests))


def spoke(guarded: Guarded, caller: str) -> Guarded:
    """Note that a caller has given a label, where no detector is to see it."""
    callers = _labelled(guarded.callers, _digest(guarded.salt, caller))
    return msgspec.structs.replace(guarded, callers=callers)


def group(guarded: Guarded, caller: str) -> int:
    """The group that a caller is left out with, of `GROUPS`."""
    return _group(guarded.callers, _digest(guarded.salt, caller))


def alone(guarded: Guarded) -> str | None:
    """The digest of the caller beside whom no others count; None where there are several, or nobody was seen."""
    for place, digest in enumerate(guarded.callers.known):
        if not _others_count(guarded.callers, place):
            return digest
    return None


def observe(
    guarded: Guarded,
    badness: float,
    caller: str,
    trusted: bool = False,
    weight: float = 1.0,
    rater: str | None = None,
) -> Guarded:
    """The detector after a label. `rater` is who gave it, if the caller told; else the caller is its rater.

    A trusted giver's label is weighed down by nothing and left out by nobody. Raises ValueError as `slip.observe` does.
    """
    if trusted:
        slip = detector.observe(guarded.slip, badness, weight)
        callers = _observed(guarded.callers, None, guarded.slip, badness, weight)
        raters = _observed(guarded.raters, None, guarded.slip, badness, weight)
        return _judged(msgspec.structs.replace(guarded, slip=slip, callers=callers, raters=raters))
    by_caller = _digest(guarded.salt, caller)
    by_rater = by_caller if rater is None else _digest(guarded.salt, f"{caller}\n{rater}")
    fading, labels = _faded(guarded.heavy), FADING * guarded.labels + 1.0
    counted = min(weight, _allowed(fading, labels, by_rater, guarded.share_max))
    return _judged(
        msgspec.structs.replace(
            guarded,
            slip=detector.observe(guarded.slip, badness, counted),
            callers=_observed(_labelled(guarded.callers, by_caller), by_caller, guarded.slip, badness, counted),
            raters=_observed(_labelled(guarded.raters, by_rater), by_rater, guarded.slip, badness, counted),
            labels=labels,
            heavy=_weighed(fading, by_rater, counted),
        )
    )


def log_e(guarded: Guarded) -> float:
    """The natural logarithm of the evidence now: what stays whichever caller or rater is left out."""
    return min([detector.log_e(guarded.slip), *_least(guarded.callers), *_least(guarded.raters)])


def alarms(guarded: Guarded, labels: float, alpha: float) -> bool:
    """Whether the evidence has ever reached the threshold for so many labels."""
    return guarded.log_max >= threshold(labels, alpha)


def rests_on_one(guarded: Guarded, labels: float, alpha: float) -> bool:
    """Whether all labels would alarm, and do not without one caller or rater: somebody should look at theirs."""
    return detector.alarms(guarded.slip, labels, alpha) and not alarms(guarded, labels, alpha)


def since(guarded: Guarded) -> int:
    """After how many labels the change is likeliest to have begun."""
    return detector.since(guarded.slip)


def mean(guarded: Guarded) -> float | None:
    """The weighted mean of the badness over all labels; None before the first."""
    return detector.mean(guarded.slip)


def _judged(guarded: Guarded) -> Guarded:
    evidence = log_e(guarded)
    return guarded if evidence <= guarded.log_max else msgspec.structs.replace(guarded, log_max=evidence)


def _digest(salt: str, name: str) -> str:
    return hashlib.blake2b(f"{salt}\n{name}".encode(), digest_size=NAME_BYTES).hexdigest()


def _group(without: Without, digest: str) -> int:
    return without.known.index(digest) if digest in without.known else int(digest, 16) % GROUPS


def _met(without: Without, digest: str) -> Without:
    """Somebody was seen: the first eight have a group each."""
    if digest in without.known or len(without.known) >= GROUPS:
        return without
    return msgspec.structs.replace(without, known=(*without.known, digest))


def _labelled(without: Without, digest: str) -> Without:
    """Somebody gave a label."""
    without = _met(without, digest)
    labels = _counted(without.labels, _group(without, digest), FADING_LABELS)
    return msgspec.structs.replace(without, labels=labels)


def _counted(counts: tuple[float, ...], own: int, fading: float) -> tuple[float, ...]:
    """The faded counts with one more of this group. They are rounded, so that they take little room as JSON."""
    return tuple([round(fading * count + (place == own), DIGITS) for place, count in enumerate(counts)])


def _others_count(without: Without, own: int) -> bool:
    """Whether all but this group have enough of the latest requests, or of the latest labels, to be asked for."""
    for counts in (without.requests, without.labels):
        total = sum(counts)
        if total > 0.0 and total - counts[own] >= OTHERS_MIN * total:
            return True
    return False


def _observed(without: Without, digest: str | None, whole: Slip, badness: float, weight: float) -> Without:
    """After a label: all but its giver's group see it. `whole` is the detector over all labels, before it."""
    own = -1 if digest is None else _group(without, digest)
    slips = tuple(
        [
            (slip or whole) if at == own else None if slip is None else detector.observe(slip, badness, weight)
            for at, slip in enumerate(without.slips)
        ]
    )
    return msgspec.structs.replace(without, slips=slips)


def _least(without: Without) -> list[float]:
    return [
        detector.log_e(slip)
        for place, slip in enumerate(without.slips)
        if slip is not None and _others_count(without, place)
    ]


def _faded(heavy: tuple[Heavy, ...]) -> tuple[Heavy, ...]:
    return tuple([Heavy(rater=one.rater, weight=FADING * one.weight) for one in heavy])


def _allowed(heavy: tuple[Heavy, ...], labels: float, rater: str, share_max: float) -> float:
    """What a label of this rater may weigh, so that its latest labels weigh no more than their share."""
    have = next((one.weight for one in heavy if one.rater == rater), None)
    raters = sum(one.weight >= PRESENT_MIN for one in heavy) + (have is None or have < PRESENT_MIN)
    if raters < RATERS_MIN:
        return 1.0
    room = max(share_max, 1.0 / raters) * labels - (have or 0.0)
    return min(1.0, max(WEIGHT_MIN, room))


def _weighed(heavy: tuple[Heavy, ...], rater: str, weight: float) -> tuple[Heavy, ...]:
    """The counts with one more label. Whoever is new takes the place, and the count, of the lightest."""
    others = [one for one in heavy if one.rater != rater]
    have = next((one.weight for one in heavy if one.rater == rater), 0.0)
    if len(others) == GROUPS:
        lightest = min(others, key=lambda one: one.weight)
        others.remove(lightest)
        have = lightest.weight
    return (*others, Heavy(rater=rater, weight=have + weight))
