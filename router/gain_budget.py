"""The budget of the check `predicted_gain`: at most the share of requests that is set goes to general. Pure.

A threshold from fitting keeps to a share only on traffic like that of the fitting. So each gateway moves the threshold
after every request: up a step if the request goes to general, else down a fraction of it (I. Gibbs, E. Candès,
"Adaptive conformal inference under distribution shift", 2021, arXiv 2106.00170). On any traffic, no more requests go
than the share and (greatest gain - least threshold + CREDIT) / STEP.

If more than twice the share lie above the fitted threshold, or less than two thirds of it, the traffic differs from the
fitting's. The model's benefit was then shown on other traffic, so the check sends nothing. Of MMLU's unseen subjects 0
to 6% lie above a threshold for 10%; where 6% do, general helps them less than others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

STEP = 0.03
CREDIT = 0.3
"""Distance that the threshold may fall below the fitted one, which then applies: credit for later requests."""
FADING = 1.0 - 1.0 / 1000
JUDGED_MIN = 200.0
"""Fewest requests by which the traffic is judged."""
ELSEWHERE_FACTOR, FEWER_FACTOR = 2.0, 1.5


class GainBudget(NamedTuple):
    """The state of one version's budget: the threshold now, and faded counts of the latest requests.

    `least` is the fitted threshold; a budget with another one is void. `above` counts those of the `judged` requests
    whose gain is above `least`.
    """

    least: float
    threshold: float
    judged: float = 0.0
    above: float = 0.0


GainBudgets = Mapping[str, GainBudget]
"""Budgets by version."""


def get_threshold(budget: GainBudget | None, least: float) -> float:
    """The gain above which a request goes to general; never under the fitted one (`least`)."""
    return least if budget is None or budget.least != least else max(least, budget.threshold)


def is_fitted_elsewhere(budget: GainBudget | None, least: float, share: float) -> bool:
    """True if the present traffic is unlike the traffic of the model's fitting."""
    if budget is None or budget.least != least or budget.judged < JUDGED_MIN:
        return False
    expected = share * budget.judged
    if budget.above > ELSEWHERE_FACTOR * expected:
        return True
    few = min(expected / FEWER_FACTOR, expected - 3.0 * math.sqrt(expected))
    return least > 0.0 and budget.above < few  # a threshold raised to 0 does not show how many are above


def move(budget: GainBudget | None, gain: float, least: float, share: float) -> GainBudget:
    """The budget after a request with this gain; at most this share of requests may go to general."""
    if budget is None or budget.least != least:
        budget = GainBudget(least, least)
    is_sent = gain > get_threshold(budget, least)
    return GainBudget(
        least=least,
        threshold=max(least - CREDIT, budget.threshold + STEP * (is_sent - share)),
        judged=FADING * budget.judged + 1.0,
        above=FADING * budget.above + (gain > least),
    )
