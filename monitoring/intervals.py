"""Intervals of a rate: exact one-sided ones (C. Clopper, E. Pearson, 1934), Wilson's; and Student's t. Pure.

Not taken from scipy: nothing on the path of a request imports it (pyproject.toml), and it is 0.2 s of a process' start.
"""

from __future__ import annotations

import math
from statistics import NormalDist

CONFIDENCE = 0.95
Z_95 = 1.959963984540054
BISECTIONS = 60
"""The most steps of a search: so many halvings reach the precision of floats. Newton's method takes about eight."""
ROOT_STEP_MIN = 1e-10
TERMS_MAX = 300
"""The most terms of the continued fraction, without those added for large counts. It ends earlier at its precision."""
TINY = 1e-300
"""Replacement for 0 where the fraction would divide by it (Lentz's method)."""
LEAST = 1e-9
"""A sum of badness that counts as zero."""
STEP_MIN = 1e-13
"""The relative step at which Newton's method ends."""
PRECISION = 1e-15
"""The fraction ends at a term that changes it by less: floats have no more digits."""


def find_upper_bound(wrong: float, of: float, confidence: float = CONFIDENCE) -> float:
    """The rate that the true one exceeds with probability at most 1 - confidence, from `wrong` wrong labels of `of`.

    1.0 if all are wrong, or there are no labels. Sums of badness may be fractions. Raises ValueError for impossible
    counts and for a confidence that is not between 0 and 1.
    """
    _see_that_they_can_be(wrong, of, confidence)
    if of <= wrong:
        return 1.0
    return _find_root(wrong + 1.0, of - wrong, confidence)


def find_lower_bound(wrong: float, of: float, confidence: float = CONFIDENCE) -> float:
    """The rate that the true one is below with probability at most 1 - confidence. 0.0 if no label is wrong.

    Raises ValueError as `find_upper_bound` does.
    """
    _see_that_they_can_be(wrong, of, confidence)
    if wrong <= LEAST:
        return 0.0
    return _find_root(wrong, of - wrong + 1.0, 1.0 - confidence)


def find_share_interval(share: float, of: float, z: float = Z_95) -> tuple[float, float]:
    """The interval of a share of `of` values (E. B. Wilson, 1927), at z standard errors; from 0 on for a share of 0."""
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, round(middle - half, 12)), min(1.0, round(middle + half, 12))


def find_student_quantile(degrees: float, confidence: float) -> float:
    """The value that Student's t with these degrees of freedom exceeds with probability 1 - confidence.

    By Newton's method on the logarithms of both. The tail is concave there: each step but the first approaches from
    above. Raises ValueError for a confidence that is not between 0.5 and 1, or degrees not above 0.
    """
    if not (0.5 < confidence < 1.0 and 0.0 < degrees < math.inf):
        raise ValueError(f"{degrees} degrees of freedom, confidence {confidence}: above 0, and between 0.5 and 1.")
    norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi) / 2
    value = NormalDist().inv_cdf(confidence)
    for _ in range(BISECTIONS):
        squared = value * value / degrees
        if squared < 1.0:
            tail = (1.0 - compute_incomplete_beta(0.5, degrees / 2, squared / (1.0 + squared))) / 2
        else:
            tail = compute_incomplete_beta(degrees / 2, 0.5, 1.0 / (1.0 + squared)) / 2
        density = math.exp(norm - (degrees + 1) / 2 * math.log1p(squared))
        step = math.log(tail / (1.0 - confidence)) * tail / (value * density)
        value *= math.exp(step)
        if abs(step) < STEP_MIN:
            break
    return value


def compute_incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (modified Lentz's method)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _fraction(a, b, x) / a
    return 1.0 - front * _fraction(b, a, 1.0 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    first = 1.0 - (a + b) * x / (a + 1.0)
    c, d = 1.0, 1.0 / (first if abs(first) > TINY else TINY)
    value = d
    for m in range(1, TERMS_MAX + round(math.sqrt(max(a, b)))):
        before = value
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            c, d = 1.0 + term / c, 1.0 + term * d
            c, d = c if abs(c) > TINY else TINY, 1.0 / (d if abs(d) > TINY else TINY)
            value *= c * d
        if abs(value - before) <= PRECISION * abs(value):
            break
    return value


def _find_root(a: float, b: float, wanted: float) -> float:
    """The point where the incomplete beta function is `wanted`, by Newton's method with halving as its safeguard."""
    norm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    low, high, x = 0.0, 1.0, a / (a + b)
    for _ in range(BISECTIONS):
        if not 0.0 < x < 1.0:  # the root is as near to an end as floats can tell
            break
        over = compute_incomplete_beta(a, b, x) - wanted
        low, high = (x, high) if over < 0.0 else (low, x)
        density = math.exp(norm + (a - 1.0) * math.log(x) + (b - 1.0) * math.log1p(-x))
        following = x - over / density if density > TINY else -1.0
        if not low <= following <= high:
            x = (low + high) / 2
            continue
        step, x = abs(following - x), following
        if step <= ROOT_STEP_MIN * x:  # the next step would be about the square of this one
            break
    return x


def _see_that_they_can_be(wrong: float, of: float, confidence: float) -> None:
    if not (0.0 <= wrong <= of and math.isfinite(of)):
        raise ValueError(f"{wrong} wrong of {of}: at least 0, and at most all of them.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"A confidence of {confidence}: it must lie between 0 and 1.")
