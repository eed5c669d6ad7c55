"""Agreement of raters: Krippendorff's alpha for nominal values, with gaps, and its 95% interval.

Alpha is 1 for raters who always agree, and 0 if they agree only as often as by chance (K. Krippendorff, "Content
Analysis", 2004, chapter 11). The interval is a percentile bootstrap over items.

A rater's alpha compares the rater's disagreement with others with the disagreement by chance in all ratings. Its
interval is Student's, of the mean disagreement. Both intervals are too optimistic if raters rarely differ, and shrink
to 1 if they never do. So no lower end is above that of E. B. Wilson's interval (1927) of the share of disagreement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from monitoring.intervals import find_share_interval, find_student_quantile
from monitoring.labels.messages import Agreement
from monitoring.labels.ratings import Numbers, Ratings

DRAWS = 1000
CELLS_AT_ONCE = 2_000_000


def measure_agreement(ratings: Ratings, seed: int = 0) -> Agreement:
    """The agreement of all raters."""
    counts = ratings.count_values()
    counts = counts[counts.sum(axis=1) >= 2]
    if not len(counts):
        return Agreement()
    sizes = counts.sum(axis=1)
    disagreements = (counts * (sizes[:, None] - counts)).sum(axis=1) / (sizes - 1)
    observed = Agreement(items=len(counts), ratings=int(sizes.sum()), same=float(np.mean(disagreements == 0)))
    (alpha,) = _find_alphas(disagreements.sum(), sizes.sum(), _expect(counts.sum(axis=0)))
    sample = np.concatenate(
        [
            _find_alphas(weights @ disagreements, weights @ sizes, _expect(weights @ counts))
            for weights in _draw(len(counts), seed)
        ]
    )
    sample = sample[~np.isnan(sample)]
    if np.isnan(alpha) or not len(sample):
        return observed
    low, high = (float(bound) for bound in np.quantile(sample, (0.025, 0.975)))
    expected = float(_expect(counts.sum(axis=0))[0])
    low = min(low, _find_low(float(disagreements.sum() / sizes.sum()), len(counts), expected))
    return msgspec.structs.replace(observed, alpha=float(alpha), low=low, high=high)


def measure_raters(ratings: Ratings, names: Sequence[str]) -> dict[str, Agreement]:
    """The agreement of each of these raters with all others, over the items that both have rated."""
    counts = ratings.count_values()
    sizes = counts.sum(axis=1)
    shared = sizes[ratings.item] >= 2
    expected = _expect(counts[sizes >= 2].sum(axis=0))
    others = sizes[ratings.item] - 1
    differing = others + 1 - counts[ratings.item, ratings.value]
    agreements: dict[str, Agreement] = {}
    for name in names:
        mine = shared & (ratings.rater == ratings.raters.index(name))
        apart = differing[mine] / others[mine]
        agreements[name] = _report_rater(apart, float(expected[0])) if len(apart) else Agreement()
    return agreements


def _report_rater(apart: Numbers, expected: float) -> Agreement:
    """A rater's agreement, from the share of the other raters of each item who gave another value."""
    agreement = Agreement(items=len(apart), ratings=len(apart), same=float(np.mean(apart == 0)))
    if expected == 0.0:
        return agreement
    alpha = 1.0 - float(apart.mean()) / expected
    if len(apart) < 2:
        return msgspec.structs.replace(agreement, alpha=alpha)
    wide = float(find_student_quantile(len(apart) - 1, 0.975) * apart.std(ddof=1) / np.sqrt(len(apart))) / expected
    low = min(alpha - wide, _find_low(float(apart.mean()), len(apart), expected))
    low = max(low, 1.0 - 1.0 / expected)  # for a rater who always differs
    return msgspec.structs.replace(agreement, alpha=alpha, low=low, high=min(1.0, alpha + wide))


def _find_low(disagreement: float, items: int, expected: float) -> float:
    """The lower end of alpha at this mean disagreement, which is at most 1 for each item."""
    return 1.0 - find_share_interval(disagreement, items)[1] / expected


def _expect(totals: Numbers) -> Numbers:
    """The share of pairs that differ by chance, from the counts of each value; 0 if none can differ."""
    totals = np.atleast_2d(totals)
    count = totals.sum(axis=1)
    pairs = count * (count - 1)
    differing = (totals * (count[:, None] - totals)).sum(axis=1)
    shares: Numbers = np.divide(differing, pairs, out=np.zeros(len(totals)), where=pairs > 0)
    return shares


def _find_alphas(disagreements: Numbers | float, ratings: Numbers | float, expected: Numbers) -> Numbers:
    observed = np.atleast_1d(disagreements / ratings)
    alphas: Numbers = np.where(expected > 0, 1.0 - observed / np.where(expected > 0, expected, 1.0), np.nan)
    return alphas


def _draw(items: int, seed: int) -> Iterator[Numbers]:
    """The count of each item in each of DRAWS samples, in batches."""
    chance = np.random.default_rng(seed)
    at_once = max(1, min(DRAWS, CELLS_AT_ONCE // items))
    parts = [at_once] * (DRAWS // at_once) + [DRAWS % at_once]
    for part in filter(None, parts):
        yield chance.multinomial(items, np.full(items, 1 / items), size=part)
