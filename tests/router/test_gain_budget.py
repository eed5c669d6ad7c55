"""The budget of the predicted gain: the live share, whatever the traffic, and traffic that the model does not know."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.gain_budgets import LiveGainBudgets
from router.choice import choose
from router.findings import CheckPolicy
from router.gain_budget import CREDIT, STEP, GainBudget, get_threshold, is_fitted_elsewhere, move
from router.routing_data import Choice
from tests.router.situations import asked, checked_task, fitted, moment, policy, scored, usual_fleet

SHARE = 0.1
SHARES = st.floats(0.02, 0.5)
GAINS = st.lists(st.floats(-1.0, 1.0), max_size=300)


def send(gains: list[float], least: float, share: float) -> tuple[list[bool], GainBudget | None]:
    """For each request whether it goes to general, and the budget in the end."""
    budget, sent = None, []
    for gain in gains:
        sent.append(gain > get_threshold(budget, least))
        budget = move(budget, gain, least, share)
    return sent, budget


@pytest.mark.invariant("The live share of learned routing keeps to general_share_max.")
@given(gains=GAINS, share=SHARES)
def test_no_traffic_sends_more_than_the_share_and_a_fixed_number(gains: list[float], share: float) -> None:
    sent, _ = send(gains, 0.1, share)
    assert sum(sent) <= share * len(gains) + (1.0 - 0.1 + CREDIT) / STEP + 1


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.3])
def test_shifted_traffic_keeps_the_share_and_sends_the_greatest_gains(shift: float) -> None:
    draw = random.Random(1)
    gains = [draw.gauss(shift, 0.1) for _ in range(5_000)]
    sent, _ = send(gains, 0.128, SHARE)  # a tenth of the gains that the model was fitted on are above
    assert sum(sent) / len(sent) <= SHARE + 0.01
    chosen = [gain for gain, is_sent in zip(gains, sent, strict=True) if is_sent]
    assert sum(chosen) / len(chosen) > shift + 0.12, "hardly less than the best tenth has"


def test_traffic_unlike_that_of_the_fitting_is_noticed_and_little_more_is_not() -> None:
    draw = random.Random(2)
    for mean, is_elsewhere in ((0.0, False), (0.03, False), (0.1, True), (-0.1, True)):
        _, budget = send([draw.gauss(mean, 0.1) for _ in range(1_000)], 0.128, SHARE)
        assert is_fitted_elsewhere(budget, 0.128, SHARE) is is_elsewhere
        assert not is_fitted_elsewhere(budget, 0.2, SHARE), "another threshold begins anew"


def test_a_model_that_was_fitted_elsewhere_sends_nothing_and_says_so() -> None:
    tasks, live = checked_task(predicted_gain=CheckPolicy("enforce", SHARE)), LiveGainBudgets()
    rules = policy(tasks=tasks, fitted={"returns@v1": fitted(gain=0.128)})
    reasons = []
    for _ in range(300):
        at = replace(moment(), gain_budgets=live.by_version)
        choice = choose(asked(), scored(gain=0.4), rules, usual_fleet(), at)
        assert isinstance(choice, Choice)
        live.note(rules, rules.tasks["returns"], choice.findings)
        reasons.append(choice.reason)
    assert reasons[0] == "predicted_gain"
    assert 0.08 <= reasons[:200].count("predicted_gain") / 200 <= 0.15
    assert reasons[250:].count("predicted_gain") == 0
    assert [one.note for one in choice.findings] == ["fitted on other traffic"]
