"""The quality of an arm on all requests of its task, from few labels by people and many guesses by a judge.

The mean of the labels is corrected by the judge's mean on the other rows, less its mean on the labelled ones: mean(y) +
lam·(mean(f, others) - mean(f, labelled)). The weight lam is the one within 0 and 1 that makes the variance least. So an
uninformative judge does no harm, and no fault of the judge biases the estimate. The estimate holds if the rows were
drawn uniformly, and the labelled ones uniformly among them.

A. Angelopoulos, J. Duchi, T. Zrnic, "PPI++: Efficient Prediction-Powered Inference", 2023, arXiv 2311.01453.

With few labels the normal interval is too narrow. As in "add two successes and two failures" (A. Agresti, B. Coull,
1998), each combination of label and guess counts as seen a little more often. Only the interval is computed so, not the
estimate. It has Student's quantiles.

Those intervals are for one look. To look at every row, and act on the first that shows a difference, use
`bound_always`: bounds that hold at all times together (I. Waudby-Smith, D. Arbour, R. Sinha, E. Kennedy, A. Ramdas,
"Time-uniform central limit theory and asymptotic confidence sequences", 2021, arXiv 2103.06476).

Pure functions over frozen sums of fixed size.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import msgspec
from msgspec.structs import replace

ADDED = 0.35
"""The number of rows that an interval adds for each of the four combinations of label and guess."""
ADDED_DIFFERENCE = 0.175
"""The same for a difference. It is half as much, since `DIFFERENCES` has eight rows instead of four."""
LABELS_MIN = 2
"""A variance needs two labels."""
TIGHT_AT = 100
"""The number of labels at which the bounds that always hold are tightest."""
DIFFERING = 0.3
"""The assumed share of requests on which only one of two arms is right."""
COMPARED_MIN, COMPARED_MAX = 20, 100_000
"""The range in which the number of labels that a difference needs is sought."""
DIFFERENCES = (
    *((0.0, 0.0), (0.0, 0.0), (1.0, 1.0), (-1.0, -1.0)),
    *((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)),
)
"""Label and judge's guess of the rows that the interval of a difference adds."""


class Sums(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """The sums over rows that an estimate needs. A round trip through JSON changes no bit.

    Of the labelled rows: their number, and the sums of the labels y, of the judge's guesses f, of their products and of
    their squares. Of the other rows, which only the judge has seen: their number, and the sums of f and of its squares.
    Of the labelled rows without the judge's guess: their number, and the sum of y.
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
    """The sums after a row with a person's label and the judge's guess (None: it has none). Both lie in [-1, 1].

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
    """The sums after a row that only the judge has seen. Raises ValueError if its guess lies outside [-1, 1]."""
    _see_that_it_is_bounded(f)
    return replace(sums, unlabelled=sums.unlabelled + 1, other_f=sums.other_f + f, other_ff=sums.other_ff + f * f)


def replace_guess(sums: Sums, y: float, f: float) -> Sums:
    """The sums after a person has labelled a row of the judge alone. Raises ValueError as `add_label` does."""
    _see_that_it_is_bounded(y, f)
    without = replace(sums, unlabelled=sums.unlabelled - 1, other_f=sums.other_f - f, other_ff=sums.other_ff - f * f)
    return add_label(without, y, f)


def estimate(sums: Sums, confidence: float = 0.95) -> Estimate | None:
    """The mean of labels in [0, 1] over all rows, with its two-sided interval; None with fewer than two labels."""
    cells = ((0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0))
    return _estimated(sums, confidence, cells, ADDED, 0.0, 1.0)


def estimate_difference(sums: Sums, confidence: float = 0.95) -> Estimate | None:
    """The mean difference of two arms on the same rows, in [-1, 1]; None with fewer than two labels.

    A row's label is one arm's label less the other's, and so is the judge's guess.
    """
    return _estimated(sums, confidence, DIFFERENCES, ADDED_DIFFERENCE, -1.0, 1.0)


def bound_always(sums: Sums, alpha: float = 0.05) -> tuple[float, float] | None:
    """The lower and the upper bound of the mean difference of two arms; None with fewer than two labels.

    Each bound alone holds with a probability of 1 - alpha, at whatever number of labels one looks. This needs enough
    labels for a mean to be about normal: 20 or more, as tests show. The spread is computed from the widened sums, and
    so is never 0. Raises ValueError if alpha is not a probability below a half.
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
    """The distance from the mean of n rows of variance 1 to their one-sided bound (the paper's appendix).

    The tuning is the paper's for a two-sided bound at twice alpha. This bound is within 1% of that one.
    """
    logarithm = -2.0 * math.log(2.0 * alpha)
    rho_squared = (logarithm + math.log(logarithm) + 1.0) / TIGHT_AT
    grown = n * rho_squared + 1.0
    return math.sqrt(2.0 * grown / (n * n * rho_squared) * math.log1p(math.sqrt(grown) / (2.0 * alpha)))


def find_saved_share(agreement: float) -> float:
    """The share of labels that a judge saves, in a comparison of arms that differ on `DIFFERING` of requests.

    `agreement` is how often it agrees with people on an answer. A judge that errs by chance correlates with labels by
    r, and saves the share r². One that agrees in 75% saves a sixth, in 60% next to nothing.
    """
    error = min(0.5, 1.0 - agreement)
    explained = (1.0 - 2.0 * error) ** 2 * DIFFERING
    return explained / (explained + 2.0 * error * (1.0 - error)) if error > 0.0 else 1.0


def find_labels_to_compare(points: float, agreement: float | None, alpha: float) -> int:
    """Estimate the labels that `bound_always` needs to show an arm better by `points` (a share: 0.1 for 10 points).

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
    """The sums with `added` more of each of these rows; the number of rows stays."""
    return replace(
        sums,
        y=sums.y + added * sum(y for y, _ in cells),
        f=sums.f + added * sum(f for _, f in cells),
        yf=sums.yf + added * sum(y * f for y, f in cells),
        yy=sums.yy + added * sum(y * y for y, _ in cells),
        ff=sums.ff + added * sum(f * f for _, f in cells),
    )


def _mean_and_variance(sums: Sums, n: float, lam: float | None) -> tuple[float, float, float]:
    """The estimate, its variance and the judge's weight, which is chosen if `lam` is None."""
    y, others, heard = sums.y / n, sums.unlabelled, n - sums.silent
    y_variance = n / (n - 1.0) * max(0.0, sums.yy / n - y * y)
    if others == 0 or heard <= 1.0:
        return y, y_variance / n, 0.0
    # The judge is measured on rows with a guess, labelled or not.
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
    """Student's two-sided quantile, within 1% up to a confidence of 95%. From 3 degrees of freedom it is the
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
