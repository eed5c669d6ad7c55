"""The alarm threshold from an accepted number of false alarms, and the labels until a degradation passes it.

Operators set the number of false alarms that the whole fleet may have in a month. Each signal gets an equal part. A
signal that raises one in `A` labels on average while nothing is wrong, and has `L` labels a month, raises L/A. The
detectors of `shiryaev_roberts.py` alarm at a log e-value of log(A), and begin again after each alarm. On average they
raise at most M/A false alarms in M labels, for every M and however the labels depend on each other. The reason: while
nothing is wrong, the mean of their sum less the number of labels does not grow. So the expected false alarms of the
fleet keep to the setting, as long as no signal has more labels a month than planned.

A detector's `labels` and `alpha` mean the threshold log(labels/alpha): `labels = between * alpha` gives log(between).
"""

from __future__ import annotations

import math

from monitoring.quality.detectors import rising_errors
from monitoring.quality.detectors.rising_errors import BASELINE_MIN

MONTH_DAYS = 30.0
BETWEEN_MIN = 200.0
"""A signal with few labels a month has at most one false alarm in this number of labels on average."""


def find_labels_between(
    false_alarms_per_month: float, signals: int, labels_per_day: float, between_min: float = BETWEEN_MIN
) -> float:
    """The mean number of labels between two false alarms of one of `signals` signals: the e-value at which it alarms.

    Raises ValueError if no false alarms are allowed, or if `labels_per_day` is negative or not finite.
    """
    if not (false_alarms_per_month > 0.0 and math.isfinite(false_alarms_per_month)):
        raise ValueError(f"{false_alarms_per_month} false alarms a month: more than 0, or nothing could ever alarm.")
    if not (labels_per_day >= 0.0 and math.isfinite(labels_per_day)):
        raise ValueError("The labels of a signal a day must be a number of at least 0.")
    return max(between_min, labels_per_day * MONTH_DAYS * max(1, signals) / false_alarms_per_month)


def find_labels_to_detect(
    baseline: float,
    points: float,
    labels: float,
    alpha: float,
    rate: float | None = None,
    exponent: float = 1.0,
) -> float | None:
    """Estimate the mean number of labels until a detector alarms, once the rate has risen by `points`.

    `baseline` is the detector's baseline, `rate` the signal's rate before, by default the baseline. `points` is a
    share: 0.05 for 5 points. `exponent` is that of the bets' factors if labels depend on each other (`dependence.py`).
    The best of the detector's alternatives gains g a label, and has to reach the threshold. The bets that begin at each
    label are log(1/g) ahead of a single one. None if no alternative gains, so that the change is never found. Raises
    ValueError as `start` and `find_threshold` of rising_errors.py do.
    """
    rising_errors.start(baseline)
    true = min(1.0, (baseline if rate is None else rate) + points)
    gain = max(_growth(true, baseline, p1) for p1 in rising_errors.list_alternatives(baseline, "above"))
    gain *= exponent
    if gain <= 0.0:
        return None
    return max(1.0, max(1.0, rising_errors.find_threshold(labels, alpha) - math.log(max(1.0, 1.0 / gain))) / gain)


def _growth(true: float, baseline: float, p1: float) -> float:
    """The mean growth of an alternative's logarithm per label."""
    p1 = min(1.0 - BASELINE_MIN, max(BASELINE_MIN, p1))
    return true * math.log(p1 / baseline) + (1.0 - true) * math.log((1.0 - p1) / (1.0 - baseline))
