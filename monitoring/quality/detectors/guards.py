"""The guarded detector: `rising_errors.py` with a guard, so that no caller and no rater moves a verdict alone.

Each caller and each rater is left out in turn (`leave_one_out.py`). The first eight callers have a group each, and so
have the first eight raters; later ones share the eight groups by their hash. Labels of trusted givers (operators,
admins, reviewers) are in all detectors.

In addition a rater weighs at most `RATER_SHARE_MAX` of about the last `WINDOW` labels. With fewer than five raters it
is an equal part; with fewer than three, nobody is weighed down. Counts fade, and are kept for the eight heaviest raters
(A. Metwally, D. Agrawal, A. El Abbadi, "Efficient computation of frequent and top-k elements in data streams", 2005).
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from monitoring.ids import name_rater
from monitoring.intervals import find_share_interval
from monitoring.quality.detectors import leave_one_out, rising_errors, shiryaev_roberts
from monitoring.quality.detectors.dependence import PLAIN, LabelTerms
from monitoring.quality.detectors.leave_one_out import GiverRoll, LeaveOneOut
from monitoring.quality.detectors.rising_errors import RateDetector, Side

GROUPS = 8
RATER_SHARE_MAX = 0.2
RATERS_MIN = 3
WINDOW = 200
WEIGHT_MIN = 0.01
PRESENT_MIN = 0.5
FADING = 1.0 - 1.0 / WINDOW


class Heavy(msgspec.Struct, frozen=True, kw_only=True):
    """The weight of a rater's labels among the latest."""

    rater: str
    weight: float


class Shares(msgspec.Struct, frozen=True, kw_only=True):
    """The givers of a signal's labels: its raters, the faded count of labels, and the weights of the heaviest."""

    raters: GiverRoll
    labels: float = 0.0
    heavy: tuple[Heavy, ...] = ()


class Guarded(msgspec.Struct, frozen=True, kw_only=True):
    """A guarded detector and its state. A round trip through JSON changes no bit.

    `detectors` leave out the groups of `callers`, and then those of `raters`. `labels` is the faded count of labels,
    `heavy` the faded weights of the heaviest raters.
    """

    detectors: LeaveOneOut[RateDetector]
    callers: GiverRoll
    raters: GiverRoll
    labels: float = 0.0
    heavy: tuple[Heavy, ...] = ()
    share_max: float = RATER_SHARE_MAX


def start_roll(salt: str) -> GiverRoll:
    """The roll of an unused version; `salt` is the version."""
    return GiverRoll(salt=salt, groups=GROUPS)


def start(baseline: float, salt: str, side: Side = "above", rater_share_max: float = RATER_SHARE_MAX) -> Guarded:
    """A guarded detector; `salt` is the version.

    Raises ValueError as `rising_errors.start` does, or if `rater_share_max` is not above 0 and at most 1.
    """
    if not 0.0 < rater_share_max <= 1.0:
        raise ValueError(f"A rater's largest share is {rater_share_max}: above 0, and at most 1.")
    detectors = leave_one_out.start(rising_errors.start(baseline, side), 2 * GROUPS)
    return Guarded(detectors=detectors, callers=start_roll(salt), raters=start_roll(salt), share_max=rater_share_max)


def restart(guarded: Guarded, baseline: float, side: Side = "above") -> Guarded:
    """A detector without labels that knows the same callers and raters as this one."""
    detectors = leave_one_out.start(rising_errors.start(baseline, side), 2 * GROUPS)
    return replace(guarded, detectors=detectors)


def move_baseline(guarded: Guarded, baseline: float) -> Guarded:
    """The detector with all it has seen. It compares the next labels with another baseline."""
    moved = leave_one_out.move(guarded.detectors, lambda detector: replace(detector, baseline=baseline))
    return replace(guarded, detectors=moved)


def find_least_error(guarded: Guarded) -> float:
    """The least lower bound of its labels' error, whoever is left out."""
    return leave_one_out.find_least(guarded.detectors, _find_lower_bound, _believed(guarded))


def start_knowing(baseline: float, salt: str, shares: Shares) -> Guarded:
    """A detector without labels that knows the raters of earlier labels."""
    fresh = start(baseline, salt)
    return replace(fresh, raters=shares.raters, labels=shares.labels, heavy=shares.heavy)


def start_shares(salt: str) -> Shares:
    """The shares of a signal without labels; `salt` is the version."""
    return Shares(raters=start_roll(salt))


def add_label(
    shares: Shares,
    caller: str,
    rater: str | None,
    reported: bool,
    share_max: float = RATER_SHARE_MAX,
    weight: float = 1.0,
    at: float = 0.0,
) -> tuple[Shares, float]:
    """The shares after an untrusted giver's label at `at` (Unix seconds), and the label's allowed weight."""
    name = name_rater(caller, rater)
    by_rater = leave_one_out.make_digest(shares.raters, name)
    fading, labels = _faded(shares.heavy), FADING * shares.labels + 1.0
    counted = min(weight, _allowed(fading, labels, by_rater, share_max))
    spoken = leave_one_out.add_label(shares.raters, name, reported, at)
    return Shares(raters=spoken, labels=labels, heavy=_weighed(fading, by_rater, counted)), counted


def set_callers(guarded: Guarded, roll: GiverRoll) -> Guarded:
    """The detector with the version's present roll of callers."""
    callers = leave_one_out.count_kind(guarded.callers, roll.reported)
    callers = replace(callers, known=roll.known, requests=roll.requests, seen=roll.seen)
    return replace(guarded, callers=callers, raters=leave_one_out.count_kind(guarded.raters, roll.reported))


def observe(
    guarded: Guarded,
    badness: float,
    caller: str,
    trusted: bool = False,
    weight: float = 1.0,
    rater: str | None = None,
    reported: bool = False,
    at: float = 0.0,
    terms: LabelTerms = PLAIN,
) -> Guarded:
    """The detector after a label, given at `at` (Unix seconds). `rater` is its giver as the caller named it; without
    one, the caller is the rater. `reported`: the label's request was not served here.

    A trusted giver's label is not weighed down, and every detector sees it. Raises ValueError as `find_gains` does.
    """
    if trusted:
        return _seen(guarded, badness, weight, terms, ())
    shares = Shares(raters=guarded.raters, labels=guarded.labels, heavy=guarded.heavy)
    shares, counted = add_label(shares, caller, rater, reported, guarded.share_max, weight, at)
    guarded = replace(
        guarded,
        callers=leave_one_out.add_label(guarded.callers, caller, reported, at),
        raters=shares.raters,
        labels=shares.labels,
        heavy=shares.heavy,
    )
    by_rater = GROUPS + leave_one_out.get_group(guarded.raters, name_rater(caller, rater))
    return _seen(guarded, badness, counted, terms, (leave_one_out.get_group(guarded.callers, caller), by_rater))


def log_e(guarded: Guarded) -> float:
    """The natural logarithm of the evidence now: the part that remains whichever caller or rater is left out."""
    return leave_one_out.find_least(guarded.detectors, rising_errors.log_e, _believed(guarded))


def rests_on_one(guarded: Guarded, labels: float, alpha: float, relief: float = 1.0) -> bool:
    """Return whether all labels would alarm now, but not without one caller or rater alone: somebody should look.

    If it is not enough without another one either, there is too little evidence yet, and it rests on nobody. `relief`
    is the part of all labels' evidence that counts if one giver's errors alone come in bursts (`dependence.py`).
    """
    return bool(_rests_on(guarded, labels, alpha, relief))


def rests_on_most(guarded: Guarded, labels: float, alpha: float, relief: float = 1.0) -> bool:
    """As `rests_on_one`, if that giver has given most of the labels: the others' few can neither confirm nor refute
    it."""
    whole, without = guarded.detectors.whole, guarded.detectors.without
    left = [without[place] for place in _rests_on(guarded, labels, alpha, relief)]
    return any(detector is not None and 2 * detector.observed < whole.observed for detector in left)


def _rests_on(guarded: Guarded, labels: float, alpha: float, relief: float) -> list[int]:
    """The places of the one caller and the one rater without whom the evidence is not enough."""
    enough, whole = shiryaev_roberts.find_threshold(labels, alpha), guarded.detectors.whole
    if relief * rising_errors.log_e(whole) < enough:
        return []
    return leave_one_out.rests_on(guarded.detectors, rising_errors.log_e, enough, _believed(guarded), GROUPS)


def find_change(guarded: Guarded) -> int:
    """The number of labels after which the change most likely began."""
    return rising_errors.find_change(guarded.detectors.whole)


def _seen(guarded: Guarded, badness: float, weight: float, terms: LabelTerms, own: tuple[int, ...]) -> Guarded:
    """The detector after a label from the givers at these places."""
    whole = guarded.detectors.whole
    gains = rising_errors.find_gains(whole.baseline, whole.side, badness, weight, terms)  # the same whoever is left out
    moved = leave_one_out.move(
        guarded.detectors, lambda detector: rising_errors.advance(detector, badness, weight, gains, crowds=True), own
    )
    detectors = leave_one_out.judge(moved, rising_errors.log_e, _believed(guarded))
    return replace(guarded, detectors=detectors)


def _find_lower_bound(detector: RateDetector) -> float:
    if not detector.weight:
        return 0.0
    return find_share_interval(min(1.0, detector.total / detector.weight), detector.weight)[0]


def _believed(guarded: Guarded) -> set[int]:
    """The places of callers and raters that may not be left out."""
    return {
        *leave_one_out.find_believed(guarded.callers),
        *[GROUPS + place for place in leave_one_out.find_believed(guarded.raters)],
    }


def _faded(heavy: tuple[Heavy, ...]) -> tuple[Heavy, ...]:
    return tuple([Heavy(rater=entry.rater, weight=FADING * entry.weight) for entry in heavy])


def _allowed(heavy: tuple[Heavy, ...], labels: float, rater: str, share_max: float) -> float:
    """The greatest weight of a label that keeps this rater's latest labels within their share."""
    have = next((entry.weight for entry in heavy if entry.rater == rater), None)
    raters = sum(entry.weight >= PRESENT_MIN for entry in heavy) + (have is None or have < PRESENT_MIN)
    if raters < RATERS_MIN:
        return 1.0
    room = max(share_max, 1.0 / raters) * labels - (have or 0.0)
    return min(1.0, max(WEIGHT_MIN, room))


def _weighed(heavy: tuple[Heavy, ...], rater: str, weight: float) -> tuple[Heavy, ...]:
    """The weights after one more label. A new rater takes the place, and the weight, of the lightest."""
    others = [entry for entry in heavy if entry.rater != rater]
    have = next((entry.weight for entry in heavy if entry.rater == rater), 0.0)
    if len(others) == GROUPS:
        lightest = min(others, key=lambda entry: entry.weight)
        others.remove(lightest)
        have = lightest.weight
    return (*others, Heavy(rater=rater, weight=have + weight))
