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
"""The threshold may fall so far under the fitted one, which then holds: what was not sent may be sent later."""
FADING = 1.0 - 1.0 / 1000
JUDGED_MIN = 200.0
"""With fewer requests nothing is said of the traffic."""
ELSEWHERE_FACTOR, FEWER_FACTOR = 2.0, 1.5


class GainBudget(NamedTuple):
    """The state of one version's budget: the threshold now, and faded counts of the latest requests.

    `least` is the fitted threshold; a budget for another one is void. `above` are those of the `judged` requests whose
    gain is above it.
    """

    least: float
    threshold: float
    judged: float = 0.0
    above: float = 0.0


GainBudgets = Mapping[str, GainBudget]
"""By version."""


def get_threshold(budget: GainBudget | None, least: float) -> float:
    """The gain above which a request goes to general; never under the fitted one (`least`)."""
    return least if budget is None or budget.least != least else max(least, budget.threshold)


def is_fitted_elsewhere(budget: GainBudget | None, least: float, share: float) -> bool:
    """Return whether the traffic is unlike that which the model was fitted on."""
    if budget is None or budget.least != least or budget.judged < JUDGED_MIN:
        return False
    expected = share * budget.judged
    if budget.above > ELSEWHERE_FACTOR * expected:
        return True
    few = min(expected / FEWER_FACTOR, expected - 3.0 * math.sqrt(expected))
    return least > 0.0 and budget.above < few  # a threshold that was raised to 0 says nothing of how many are above


def move(budget: GainBudget | None, gain: float, least: float, share: float) -> GainBudget:
    """The budget after a request with this gain, of which at most this share may go."""
    if budget is None or budget.least != least:
        budget = GainBudget(least, least)
    is_sent = gain > get_threshold(budget, least)
    return GainBudget(
        least=least,
        threshold=max(least - CREDIT, budget.threshold + STEP * (is_sent - share)),
        judged=FADING * budget.judged + 1.0,
        above=FADING * budget.above + (gain > least),
    )
