"""The quality of an arm on all requests of its task, from few labels by people and a judge's opinion on many.

The mean of the labels is corrected by how much more the judge thinks of the other rows than of the labelled ones, as
far as the judge is worth it: mean(y) + lam·(mean(f, others) - mean(f, labelled)). With the weight lam that makes the
variance least, within 0 and 1, a judge that tells nothing does no harm, and whatever the judge's faults are the
estimate is not biased by them. It holds for rows that were drawn uniformly, and of these the labelled ones too.

A. Angelopoulos, J. Duchi, T. Zrnic, "PPI++: Efficient Prediction-Powered Inference", 2023, arXiv 2311.01453.

With few labels the normal interval is too narrow. As in "add two successes and two failures" (A. Agresti, B. Coull,
1998) the interval, not the estimate, is reckoned as if every way in which label and judge can differ had been seen a
little more often, and has Student's quantiles.

Those intervals are for one look. For looking at every row, and acting on the first that shows it, use `bound_always`:
bounds that hold at all times together (I. Waudby-Smith, D. Arbour, R. Sinha, E. Kennedy, A. Ramdas, "Time-uniform
central limit theory and asymptotic confidence sequences", 2021, arXiv 2103.06476).

Pure functions over frozen sums of fixed size.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import msgspec
from msgspec.structs import replace

ADDED = 0.35
"""The number of rows of each of the four ways that are added for an interval."""
ADDED_DIFFERENCE = 0.175
"""The same for a difference, half as much: its rows, `DIFFERENCES`, are eight instead of four."""
LABELS_MIN = 2
"""A variance takes two."""
TIGHT_AT = 100
"""With this number of labels the bounds that always hold are as tight as they can be made."""
DIFFERING = 0.3
"""Share of requests on which two arms differ in rightness, where it is not known."""
COMPARED_MIN, COMPARED_MAX = 20, 100_000
"""The numbers of labels between which the one that a difference needs is sought."""
DIFFERENCES = (
    *((0.0, 0.0), (0.0, 0.0), (1.0, 1.0), (-1.0, -1.0)),
    *((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)),
)
"""Label and judge's guess of the rows that are added for an interval of a difference."""


class Sums(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """The sums over rows that an estimate needs. JSON gives back the same, to the last bit.

    Of the labelled rows: their number, the sums of the labels y, of the judge's guess f, of their product and their
    squares. Of the other rows, which only the judge has seen: their number, the sum of f and of its squares. Of the
    labelled rows without the judge's guess: their number, and the sum of y.
    """

    labelled: int = 0
    y: float = 0.0
    f: float = 0.0
    yf: float = 0.0
    yy: float = 0.0
    ff: float = 0.0
    unlabelled: int = 0
    other_f: float = 0.0
    other_ff: float = 0.0
    silent: int = 0
    silent_y: float = 0.0


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A mean with its interval. `labels` and `pairs` count labelled and other rows, `lam` is the judge's weight."""

    mean: float
    low: float
    high: float
    labels: int
    pairs: int
    lam: float


def add_label(sums: Sums, y: float, f: float | None = None) -> Sums:
    """The sums after a row that a person has judged, and the judge too (None: it said nothing). Both lie in [-1, 1].

    Raises ValueError if a value lies outside.
    """
    guess = 0.0 if f is None else f
    _see_that_it_is_bounded(y, guess)
    return replace(
        sums,
        labelled=sums.labelled + 1,
        y=sums.y + y,
        f=sums.f + guess,
        yf=sums.yf + y * guess,
        yy=sums.yy + y * y,
        ff=sums.ff + guess * guess,
        silent=sums.silent + (f is None),
        silent_y=sums.silent_y + (y if f is None else 0.0),
    )


def add_guess(sums: Sums, f: float) -> Sums:
    """The sums after a row that only the judge has seen. Raises ValueError if its guess is not within -1 and 1."""
    _see_that_it_is_bounded(f)
    return replace(sums, unlabelled=sums.unlabelled + 1, other_f=sums.other_f + f, other_ff=sums.other_ff + f * f)


def replace_guess(sums: Sums, y: float, f: float) -> Sums:
    """The sums after a person has judged a row that counted as the judge's alone. Raises ValueError as they do."""
    _see_that_it_is_bounded(y, f)
    without = replace(sums, unlabelled=sums.unlabelled - 1, other_f=sums.other_f - f, other_ff=sums.other_ff - f * f)
    return add_label(without, y, f)


def estimate(sums: Sums, confidence: float = 0.95) -> Estimate | None:
    """The mean of labels in [0, 1] over all rows, with its two-sided interval; None with fewer than two labels."""
    cells = ((0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0))
    return _estimated(sums, confidence, cells, ADDED, 0.0, 1.0)


def estimate_difference(sums: Sums, confidence: float = 0.95) -> Estimate | None:
    """The mean difference of two arms on the same rows, in [-1, 1]; None with fewer than two labels.

    Each row's label is one arm's less the other's, and so is the judge's guess.
    """
    return _estimated(sums, confidence, DIFFERENCES, ADDED_DIFFERENCE, -1.0, 1.0)


def bound_always(sums: Sums, alpha: float = 0.05) -> tuple[float, float] | None:
    """The lower and the upper bound of the mean difference of two arms; None with fewer than two labels.

    Each holds by itself, at whatever number of labels one looks, with a probability of 1 - alpha. That is so once there
    are labels enough for a mean to be about normal: from 20 on, as tests show. The spread is reckoned from the widened
    sums, and so is never 0. Raises ValueError if alpha is not a probability below a half.
    """
    if not 0.0 < alpha < 0.5:
        raise ValueError(f"An alpha of {alpha}: it must lie between 0 and 0.5.")
    if sums.labelled < LABELS_MIN:
        return None
    n = float(sums.labelled)
    mean, _, lam = _mean_and_variance(sums, n, None)
    rows = n + ADDED_DIFFERENCE * len(DIFFERENCES)
    middle, variance, _ = _mean_and_variance(_widened(sums, DIFFERENCES, ADDED_DIFFERENCE), rows, lam)
    half = math.sqrt(variance * rows) * find_radius(n, alpha)
    return max(-1.0, min(mean, middle) - half), min(1.0, max(mean, middle) + half)


def find_radius(n: float, alpha: float) -> float:
    """The distance of the one-sided bound of n rows of variance 1 from their mean (the paper's appendix).

    The tuning is the paper's for a two-sided bound at twice alpha, which this one is within 1% of.
    """
    logarithm = -2.0 * math.log(2.0 * alpha)
    rho_squared = (logarithm + math.log(logarithm) + 1.0) / TIGHT_AT
    grown = n * rho_squared + 1.0
    return math.sqrt(2.0 * grown / (n * n * rho_squared) * math.log1p(math.sqrt(grown) / (2.0 * alpha)))


def find_saved_share(agreement: float) -> float:
    """The share of labels that a judge saves, in a comparison of arms that differ on `DIFFERING` of requests.

    `agreement` is how often it agrees with people on an answer. Labels and a judge that errs by chance correlate by r,
    and save r². One that agrees in 75% saves a sixth, in 60% next to nothing.
    """
    error = min(0.5, 1.0 - agreement)
    explained = (1.0 - 2.0 * error) ** 2 * DIFFERING
    return explained / (explained + 2.0 * error * (1.0 - error)) if error > 0.0 else 1.0


def find_labels_to_compare(points: float, agreement: float | None, alpha: float) -> int:
    """About how many labels show, by `bound_always`, an arm that is so much better (a share: 0.1 for 10 points).

    `agreement` is how often the judge of pairs agrees with people (None: there is no judge).
    """
    saved = 0.0 if agreement is None else find_saved_share(agreement)
    spread, labels = math.sqrt((DIFFERING - points**2) * (1.0 - saved)), COMPARED_MIN
    while labels < COMPARED_MAX and find_radius(float(labels), alpha) * spread > points:
        labels += 1 + labels // 50
    return labels


def _estimated(
    sums: Sums, confidence: float, cells: tuple[tuple[float, float], ...], added: float, least: float, most: float
) -> Estimate | None:
    if sums.labelled < LABELS_MIN:
        return None
    mean, _, lam = _mean_and_variance(sums, sums.labelled, None)
    rows = sums.labelled + added * len(cells)
    middle, variance, _ = _mean_and_variance(_widened(sums, cells, added), rows, lam)
    half = find_two_sided_quantile(sums.labelled - 1, confidence) * math.sqrt(variance)
    mean = min(most, max(least, mean))
    return Estimate(
        mean=mean,
        low=max(least, min(mean, middle - half)),
        high=min(most, max(mean, middle + half)),
        labels=sums.labelled,
        pairs=sums.unlabelled,
        lam=lam,
    )


def _widened(sums: Sums, cells: tuple[tuple[float, float], ...], added: float) -> Sums:
    """The sums with so much more of each of these rows; their number stays."""
    return replace(
        sums,
        y=sums.y + added * sum(y for y, _ in cells),
        f=sums.f + added * sum(f for _, f in cells),
        yf=sums.yf + added * sum(y * f for y, f in cells),
        yy=sums.yy + added * sum(y * y for y, _ in cells),
        ff=sums.ff + added * sum(f * f for _, f in cells),
    )


def _mean_and_variance(sums: Sums, n: float, lam: float | None) -> tuple[float, float, float]:
    """The estimate, its variance and the judge's weight, which is chosen where none is given."""
    y, others, heard = sums.y / n, sums.unlabelled, n - sums.silent
    y_variance = n / (n - 1.0) * max(0.0, sums.yy / n - y * y)
    if others == 0 or heard <= 1.0:
        return y, y_variance / n, 0.0
    # The judge is measured where it said something, among labelled rows as among the others.
    f, scale = sums.f / heard, heard / (heard - 1.0)
    f_variance = scale * max(0.0, sums.ff / heard - f * f)
    both = scale * (sums.yf / heard - (sums.y - sums.silent_y) / heard * f)
    other_f = sums.other_f / others
    whole_f = (sums.f + sums.other_f) / (heard + others)
    whole_variance = max(0.0, (sums.ff + sums.other_ff) / (heard + others) - whole_f * whole_f)
    if lam is None:
        least = both / ((n / heard + n / others) * whole_variance) if whole_variance > 0.0 else 0.0
        lam = min(1.0, max(0.0, least))
    residual = max(0.0, y_variance - 2.0 * lam * both + lam * lam * f_variance * (n / heard))
    return y + lam * (other_f - f), residual / n + lam * lam * whole_variance / others, lam


def find_two_sided_quantile(degrees: int, confidence: float) -> float:
    """Student's two-sided quantile, within 1% up to a confidence of 95%: from 3 degrees of freedom on by the
    Cornish-Fisher series. `monitoring/intervals.py` has the exact one-sided quantile, in a hundred times the time.

    Raises ValueError if the confidence is not a probability between 0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"A confidence of {confidence}: it must lie between 0 and 1.")
    if degrees <= 2:
        return math.tan(math.pi * confidence / 2) if degrees < 2 else confidence * math.sqrt(2 / (1 - confidence**2))
    z, d = NormalDist().inv_cdf(0.5 + confidence / 2), float(degrees)
    return (
        z
        + (z**3 + z) / (4 * d)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * d**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * d**3)
    )


def _see_that_it_is_bounded(*values: float) -> None:
    if not all(-1.0 <= value <= 1.0 for value in values):
        raise ValueError(f"{values}: labels and a judge's guess lie within -1 and 1.")
