"""Sessions: labels of one session tend to be right or wrong together, so one bad session is not a degradation.

Two labels of a session have the correlation r. If k of its n earlier labels were wrong, the next one is wrong with
probability (c·m + k) / (c + n). Here m is the mean and c = 1/r - 1 (J. Skellam, 1948). The label is tested against that
probability instead of the baseline. This may be a little below the baseline; in a reverse test it is not above it. So
the claim of `rising_errors.py` holds for each label given its session, as far as r is known. A session counts for about
1/r labels at most, however long it is. Until r is known to be small, evidence from one session alone is a doubt: the
other labels since the change must hint at a degradation, too.

r is the covariance of each label with the mean of its session's earlier labels, divided by a label's variance. For
independent labels its mean is 0, even within one session. Its variance by chance is known, and only the part beyond
chance counts. As elsewhere the least value counts, whichever caller is left out. Pure functions over frozen data of
fixed size.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import msgspec

from monitoring.quality.detectors import leave_one_out, rising_errors
from monitoring.quality.detectors.rising_errors import RateDetector

PRIOR_LABELS = 300.0
"""The weight of the prior, which is independence, in labels."""
CHANCE_Z = 0.75
"""Standard deviations by chance that are subtracted, so that independent labels lose little evidence."""
ALIKE_MAX = 0.9
COUNTED_MAX = 32_000
"""The number of labels at which the sums are halved, so that the newest count most."""
LABELS_MAX = 200
"""The number of a session's latest labels that count as its past."""
SMOOTHED_WRONG, SMOOTHED_LABELS = 1.0, 20.0
UNLIKE = 0.02
"""If the correlation is shown to be less, at 95%, sessions raise no doubt."""
UNLIKE_Z = 1.645
MARKED_EACH, MARKS_MAX = 50, 20
"""Labels between two notes of the likeness, and notes kept. A degradation within a session makes its labels look
alike."""
REST_MIN = math.log(200.0)
"""The logarithm of the evidence that labels of other sessions must give."""


class Past(msgspec.Struct, frozen=True, array_like=True):
    """A session's earlier labels: their number, and their sum of badness."""

    labels: float = 0.0
    wrong: float = 0.0

    def add(self, badness: float) -> Past:
        """The past after one more label. In very long sessions the latest labels count most."""
        kept = 1.0 if self.labels < LABELS_MAX else 1.0 - 1.0 / LABELS_MAX
        return Past(kept * self.labels + 1.0, kept * self.wrong + badness)


NO_PAST = Past()


class Alike(msgspec.Struct, frozen=True, array_like=True):
    """The likeness of labels of a session. `labels` counts those with a past. `wrong` and `squares` are the sums of
    their badness and its squares. `before` is the sum of the means of their pasts, `products` that of badness times
    mean. `chance` is the variance of `products` by chance, in multiples of a label's squared variance.
    """

    labels: float = 0.0
    wrong: float = 0.0
    squares: float = 0.0
    before: float = 0.0
    products: float = 0.0
    chance: float = 0.0

    def find_correlation(self) -> float:
        """The correlation of two labels of a session, beyond chance."""
        if not self.labels:
            return 0.0
        beyond = self._sum_together() - CHANCE_Z * math.sqrt(self.chance)
        return min(ALIKE_MAX, max(0.0, beyond / (PRIOR_LABELS + self.labels)))

    def find_upper_bound(self) -> float:
        """The upper bound of that correlation, at 95%; 1 before the first label."""
        if not self.labels:
            return 1.0
        return (self._sum_together() + UNLIKE_Z * math.sqrt(self.chance)) / self.labels

    def observe(self, badness: float, past: Past) -> Alike:
        """The likeness after a label of a session with this past."""
        mean, left = past.wrong / past.labels, 0.5 if self.labels >= COUNTED_MAX else 1.0
        return Alike(
            left * self.labels + 1.0,
            left * self.wrong + badness,
            left * self.squares + badness * badness,
            left * self.before + mean,
            left * self.products + badness * mean,
            left * self.chance + 1.0 / past.labels,
        )

    def _sum_together(self) -> float:
        """The covariance of labels with their pasts, times their number, divided by a label's variance."""
        of = self.labels + SMOOTHED_LABELS
        mean = (self.wrong + SMOOTHED_WRONG) / of
        variance = max(1e-6, (self.squares + SMOOTHED_WRONG) / of - mean * mean)
        return (self.products - self.wrong * self.before / self.labels) / variance


AlikeMarks = tuple[tuple[int, float], ...]
"""Notes of a number of labels, and of the upper bound of the correlation by then."""


class Worst(msgspec.Struct, frozen=True, array_like=True):
    """The worst session since the change: its labels, their sum, and the detector's number of labels at its last
    one."""

    labels: float = 0.0
    wrong: float = 0.0
    observed: int = 0


class Likeness(NamedTuple):
    """The likeness of all labels, and of those without each group of callers (None: the group has given none)."""

    whole: Alike = Alike()
    without: tuple[Alike | None, ...] = ()


def observe(state: Likeness, badness: float, past: Past, own: Collection[int], groups: int) -> Likeness:
    """The likeness after a label from these groups of callers. The first label of a session says nothing."""
    if not past.labels:
        return state
    without = state.without or (None,) * groups
    return Likeness(*leave_one_out.move_each(state.whole, without, lambda alike: alike.observe(badness, past), own))


def find_correlation(state: Likeness) -> float:
    """The correlation that counts: the least, whoever is left out. Others must have given enough labels."""
    return min([part.find_correlation() for part in leave_one_out.list_parts(*state)])


def follow_worst(worst: Worst, badness: float, past: Past, detector: RateDetector) -> Worst:
    """The worst session after a label, which the detector has seen, of a session with this past."""
    session, baseline = past.add(badness), detector.baseline
    goes_on = past.labels > 0.0 and (past.labels, past.wrong) == (worst.labels, worst.wrong)
    is_over = not rising_errors.find_change(detector) < worst.observed <= detector.observed
    is_worse = session.wrong - session.labels * baseline > worst.wrong - worst.labels * baseline
    return Worst(session.labels, session.wrong, detector.observed) if goes_on or is_over or is_worse else worst


def add_mark(marks: AlikeMarks, labels: int, state: Likeness) -> AlikeMarks:
    """The marks after this number of labels, with the least upper bound, whoever is left out."""
    if labels % MARKED_EACH:
        return marks
    return (*marks, (labels, min([part.find_upper_bound() for part in leave_one_out.list_parts(*state)])))[-MARKS_MAX:]


def rests_on_one(worst: Worst, marks: AlikeMarks, change: int, detector: RateDetector) -> bool:
    """Return whether no degradation remains without the worst session, and labels of a session may be alike. The labels
    before the change, which came after label `change`, tell the latter."""
    if not worst.labels or next((bound for labels, bound in reversed(marks) if labels <= change), 1.0) < UNLIKE:
        return False
    bad, of = rising_errors.sum_since_change(detector)
    seen = detector.observed - rising_errors.find_change(detector)
    weight = of / seen if seen else 1.0
    labels = max(0.0, seen - worst.labels)
    wrong = min(labels, max(0.0, bad / weight - worst.wrong))
    return weight * rising_errors.weigh_labels(detector, wrong, labels) < REST_MIN


def find_times(correlation: float, past: Past | None, mean: float) -> float:
    """The chance that the next label of a session is wrong, as a multiple of the mean."""
    if not correlation or past is None:
        return 1.0
    certainty = 1.0 / correlation - 1.0
    return (certainty + past.wrong / mean) / (certainty + past.labels)
