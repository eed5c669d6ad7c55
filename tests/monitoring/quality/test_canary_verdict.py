"""The verdict on a canary: what promotes it, what rolls it back, what waits, and that any gateway says the same."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.quality.detectors import guards, leave_one_out, sequential
from monitoring.quality.verdicts import canary_verdict
from monitoring.quality.verdicts.canary_verdict import (
    SIGNALS,
    WAITING_MAX,
    CanaryArm,
    CanaryPlan,
    CanaryVerdict,
    Outcome,
    ShadowPair,
    Tally,
)

PLAN = CanaryPlan()
arms = st.sampled_from(["canary", "active"])
known = st.none() | st.booleans()
outcomes = st.builds(
    Outcome,
    arm=arms,
    error=known,
    contract_broken=known,
    latency_seconds=st.none() | st.floats(0, 1e6),
    badness=st.none() | st.floats(0, 1),
    caller=st.sampled_from(["ann", "bob", "cem"]),
    rater=st.none() | st.sampled_from(["r1", "r2"]),
    trusted=st.booleans(),
)
pairs = st.builds(ShadowPair, canary_wrong=st.booleans(), active_wrong=st.booleans())


def good(arm: CanaryArm, **more: Any) -> Outcome:
    return Outcome(**{"arm": arm, "error": False, "latency_seconds": 0.2, **more})


def seen(plan: CanaryPlan, *happened: Outcome | ShadowPair, state: Tally | None = None) -> Tally:
    state = state or canary_verdict.start(plan)
    for one in happened:
        if isinstance(one, Outcome):
            state = canary_verdict.observe(state, plan, one)
        else:
            state = canary_verdict.observe_pair(state, plan, one)
    return state


def both(count: int, canary: Outcome | None = None, active: Outcome | None = None) -> Iterator[Outcome]:
    for _ in range(count):
        yield active or good("active")
        yield canary or good("canary")


def judged(plan: CanaryPlan, *happened: Outcome | ShadowPair, seconds: float = 60.0) -> CanaryVerdict:
    return canary_verdict.judge_canary(seen(plan, *happened), plan, seconds)


# ---- promotion -----------------------------------------------------------------------------------


def test_a_canary_that_is_as_good_is_promoted_once_enough_is_seen() -> None:
    found = judged(PLAN, *both(300))
    assert found.action == "promote"
    assert found.because == "After 300 requests it is shown to be no worse: error, latency."


def test_it_waits_for_the_requests_that_the_plan_asks_for() -> None:
    found = judged(CanaryPlan(requests_min=301), *both(300))
    assert found.action == "continue"
    assert "300 of 301 canary requests were seen" in found.because


def test_it_waits_for_the_seconds_that_the_plan_asks_for() -> None:
    plan = CanaryPlan(seconds_min=600)
    state = seen(plan, *both(300))
    assert canary_verdict.judge_canary(state, plan, 599).action == "continue"
    assert "599 of 600 s have passed" in canary_verdict.judge_canary(state, plan, 599).because
    assert canary_verdict.judge_canary(state, plan, 600).action == "promote"


def test_errors_and_latency_are_always_required() -> None:
    without_latency = judged(PLAN, *both(300, good("canary", latency_seconds=None)))
    assert without_latency.action == "continue"
    assert without_latency.because.endswith("not yet shown to be no worse: latency.")


def test_contracts_are_required_where_there_is_one() -> None:
    late = [good("active", contract_broken=False), good("canary", contract_broken=False)]
    found = judged(PLAN, *both(300), *late)
    assert (found.action, found.evidence["signals"]["contract"]["required"]) == ("continue", True)
    assert "not yet shown to be no worse: contract" in found.because


def test_feedback_is_required_where_the_plan_names_its_metric() -> None:
    plan = CanaryPlan(feedback_metric="correct")
    assert "no worse: feedback" in judged(plan, *both(300)).because
    unneeded = CanaryPlan(feedback_metric="correct", feedback_required=False)
    assert judged(unneeded, *both(300)).action == "promote"
    judgements = both(300, Outcome(arm="canary", badness=0.0), Outcome(arm="active", badness=0.0))
    assert judged(plan, *both(300), *judgements).action == "promote"


def test_shadow_pairs_are_required_where_the_plan_says_so() -> None:
    plan = CanaryPlan(shadow_required=True)
    equal = [ShadowPair(canary_wrong=False, active_wrong=False)] * 300
    assert judged(plan, *both(300)).action == "continue"
    assert judged(plan, *both(300), *equal).action == "promote"


def test_late_feedback_is_no_request() -> None:
    state = seen(PLAN, Outcome(arm="canary", badness=1.0), Outcome(arm="active", badness=0.0))
    assert (state.canary_requests, state.active_requests) == (0, 0)
    assert state.feedback.whole.harm.observed == 1


# ---- rolling back --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "worse", "words"),
    [
        ("error", {"error": True, "latency_seconds": None}, "errors are more than 2 points more frequent"),
        ("contract", {"contract_broken": True}, "broken contracts are more than 2 points more frequent"),
        ("latency", {"latency_seconds": 0.31}, "more than half of its answers take over 1.5 times as long"),
        ("feedback", {"badness": 1.0}, "feedback is more than 2 points worse"),
    ],
)
def test_harm_in_any_signal_rolls_back_at_once(name: str, worse: dict[str, Any], words: str) -> None:
    plan = CanaryPlan(feedback_metric="correct")
    fine = good("active", contract_broken=False, badness=0.0)
    found = judged(plan, *both(80, good("canary", **{"contract_broken": False, "badness": 0.0, **worse}), fine))
    assert found.action == "roll_back"
    assert words in found.because
    assert [one for one in SIGNALS if found.evidence["signals"][one]["harm"]["shown"]] == [name]


def test_harm_on_the_same_inputs_rolls_back_and_says_how_sure_it_is() -> None:
    found = judged(PLAN, *[ShadowPair(canary_wrong=True, active_wrong=False)] * 14)
    assert found.action == "roll_back"
    assert "on the same inputs it is wrong more than 0 points more often" in found.because
    assert "+100.0 points in 14 pairs" in found.because
    assert "e-value 2,625, threshold 40)" in found.because


def test_harm_rolls_back_before_a_promotion_and_after_the_time() -> None:
    happened: list[Outcome | ShadowPair] = [*both(300), *[ShadowPair(canary_wrong=True, active_wrong=False)] * 10]
    assert judged(PLAN, *happened).action == "roll_back"
    assert judged(CanaryPlan(on_timeout="promote"), *happened, seconds=1e6).action == "roll_back"


def test_harm_that_was_shown_once_stays_shown_however_seldom_anybody_looks() -> None:
    happened = [ShadowPair(canary_wrong=True, active_wrong=False)] * 10
    happened += [ShadowPair(canary_wrong=False, active_wrong=True)] * 50
    found = judged(PLAN, *happened)
    assert found.action == "roll_back"
    assert found.evidence["signals"]["shadow"]["harm"]["e_value"] < 1


def test_feedback_that_the_plan_does_not_name_rolls_nothing_back() -> None:
    worse = both(50, Outcome(arm="canary", badness=1.0), Outcome(arm="active", badness=0.0))
    found = judged(PLAN, *worse)
    assert found.action == "continue"
    assert found.evidence["signals"]["feedback"]["harm"]["threshold"] is None


def test_an_outage_of_both_arms_is_nobody_s_harm() -> None:
    draw = random.Random(3)
    state, worst = canary_verdict.start(PLAN), 0.0
    for n in range(4_000):
        out = (n // 100) % 4 == 3
        arm: CanaryArm = "canary" if draw.random() < 0.3 else "active"
        state = seen(PLAN, good(arm, error=out or draw.random() < 0.02), state=state)
        worst = max(worst, state.error.whole.harm.log_e_max)
    assert math.exp(worst) < 1 / (PLAN.alpha * canary_verdict.split_alpha(PLAN)["error"])


def test_outage_with_values_waiting_takes_an_e_value_from_one_to_seven_at_most() -> None:
    waiting = [good("active")] * 100
    state = seen(PLAN, *waiting, *[good("canary", error=True)] * 100)
    assert state.error.whole.harm.observed == WAITING_MAX
    assert math.exp(state.error.whole.harm.log_e_max) < 7


# ---- nobody alone --------------------------------------------------------------------------------

SHOPS = tuple(f"shop{n}" for n in range(4))
WORSE = [
    ("error", {"error": True, "latency_seconds": None}),
    ("contract", {"contract_broken": True}),
    ("latency", {"latency_seconds": 9.0}),
    ("feedback", {"badness": 1.0}),
]


def of_shops(bad: tuple[str, ...], worse: dict[str, Any], rounds: int = 100) -> Iterator[Outcome]:
    """Every shop asks both arms in turn, the third one most often; the canary is worse for those that are `bad`."""
    for _ in range(rounds):
        for shop in (*SHOPS, *SHOPS[2:3] * 5):
            fine = {"contract_broken": False, "badness": 0.0, "caller": shop}
            yield good("active", **fine)
            yield good("canary", **fine | (worse if shop in bad else {}))


@pytest.mark.parametrize(("name", "worse"), WORSE)
def test_harm_to_one_caller_alone_rolls_nothing_back_and_people_are_told(name: str, worse: dict[str, Any]) -> None:
    plan = CanaryPlan(feedback_metric="correct")
    found = judged(plan, *of_shops(SHOPS[2:3], worse))
    assert found.action == "continue"
    assert f"one caller or rater alone shows it to be worse, which is not enough: {name}" in found.because
    signals = found.evidence["signals"]
    assert [one for one in SIGNALS if signals[one]["harm"]["rests_on_one"]] == [name]
    assert not signals[name]["no_worse"]["shown"]


@pytest.mark.parametrize(("name", "worse"), WORSE)
def test_harm_to_several_callers_rolls_back(name: str, worse: dict[str, Any]) -> None:
    found = judged(CanaryPlan(feedback_metric="correct"), *of_shops(SHOPS[:3], worse))
    assert found.action == "roll_back"
    assert [one for one in SIGNALS if found.evidence["signals"][one]["harm"]["shown"]] == [name]
    assert not found.evidence["signals"][name]["harm"]["rests_on_one"]


def test_shadow_pairs_of_one_caller_s_requests_roll_nothing_back() -> None:
    equal = [ShadowPair(canary_wrong=False, active_wrong=False, callers=(shop,)) for shop in SHOPS]
    worse = [ShadowPair(canary_wrong=True, active_wrong=False, callers=("shop2",))] * 20
    requests = list(of_shops((), {}, rounds=10))
    assert judged(PLAN, *requests, *equal, *worse).action == "continue"
    others = [msgspec.structs.replace(one, callers=("shop1",)) for one in worse]
    assert judged(PLAN, *requests, *equal, *worse, *others).action == "roll_back"


def test_one_rater_of_a_caller_who_is_alone_rolls_nothing_back() -> None:
    plan = CanaryPlan(feedback_metric="correct")
    for complaining, action in ((("ann",), "continue"), (("ann", "bob", "cem"), "roll_back")):
        state = seen(plan, *both(20, good("canary", caller="app"), good("active", caller="app")))
        for number in range(90):
            rater = ("ann", "bob", "cem")[number % 3]
            fine = Outcome(arm="active", badness=0.0, caller="app", rater=rater)
            state = seen(
                plan,
                fine,
                msgspec.structs.replace(fine, arm="canary", badness=float(rater in complaining)),
                state=state,
            )
        assert canary_verdict.judge_canary(state, plan, 1.0).action == action


def test_trusted_feedback_is_never_left_out() -> None:
    plan = CanaryPlan(feedback_metric="correct")
    requests = list(of_shops((), {}, rounds=10))
    labels = [
        Outcome(arm="canary", badness=1.0, caller="desk", trusted=True),
        Outcome(arm="active", badness=0.0, caller="desk", trusted=True),
    ]
    assert judged(plan, *requests, *labels * 30).action == "roll_back"


def test_first_caller_of_a_canary_is_not_alone_beside_the_active_versions_callers() -> None:
    failing = list(
        both(80, good("canary", error=True, latency_seconds=None, caller="shop0"), good("active", caller="shop0"))
    )
    used = guards.start_roll("returns@v1")
    for number in range(100):
        used = leave_one_out.add_request(used, SHOPS[number % 4])
    assert canary_verdict.judge_canary(seen(PLAN, *failing), PLAN, 1.0).action == "roll_back"
    beside_others = canary_verdict.start(PLAN, callers=used)
    assert canary_verdict.judge_canary(seen(PLAN, *failing, state=beside_others), PLAN, 1.0).action == "continue"


@pytest.mark.invariant("No caller and no rater moves a canary alone.")
def test_one_caller_s_good_requests_promote_nothing_that_is_worse_for_the_others() -> None:
    draw, state = random.Random(4), canary_verdict.start(PLAN)
    for number in range(4_000):
        big = number % 10 != 0
        for arm in ("active", "canary"):
            error = not big and arm == "canary" and draw.random() < 0.1
            caller = "big" if big else SHOPS[number % 4]
            state = seen(PLAN, good(arm, error=error, caller=caller), state=state)  # type: ignore[arg-type]
    found = canary_verdict.judge_canary(state, PLAN, 1.0)
    assert found.action != "promote"
    assert sequential.log_e(state.error.whole.no_worse) >= -math.log(PLAN.alpha)


# ---- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_timeout", ["hold", "roll_back", "promote"])
def test_without_a_verdict_the_plan_decides_when_the_time_is_over(on_timeout: Any) -> None:
    plan = CanaryPlan(on_timeout=on_timeout, seconds_max=100)
    assert canary_verdict.judge_canary(canary_verdict.start(plan), plan, 99).action == "continue"
    found = canary_verdict.judge_canary(canary_verdict.start(plan), plan, 100)
    assert found.action == on_timeout
    assert found.because.startswith("No verdict after 100 s (0 of 200 canary requests were seen; ")


# ---- pairs ---------------------------------------------------------------------------------------


def test_the_rarer_arm_loses_nothing_and_the_other_keeps_its_latest() -> None:
    happened = [good("active", latency_seconds=float(n)) for n in range(20)]
    state = seen(PLAN, *happened)
    assert state.latency.whole.active == tuple(float(n) for n in range(20 - WAITING_MAX, 20))
    assert state.latency.whole.unpaired == 20 - WAITING_MAX
    state = seen(PLAN, good("canary"), state=state)
    assert (state.latency.whole.harm.observed, len(state.latency.whole.active), state.latency.whole.canary) == (
        1,
        WAITING_MAX - 1,
        (),
    )


def test_a_canary_that_comes_first_is_compared_the_same_way_round() -> None:
    slow, quick = good("canary", latency_seconds=9.0), good("active", latency_seconds=1.0)
    assert seen(PLAN, slow, quick).latency.whole.harm.total == seen(PLAN, quick, slow).latency.whole.harm.total == 1.0


def test_with_equal_shares_nine_tenths_of_the_requests_find_a_partner() -> None:
    draw = random.Random(5)
    state = seen(PLAN, *(good("canary" if draw.random() < 0.5 else "active") for _ in range(4_000)))
    assert state.error.whole.harm.observed * 2 / 4_000 > 0.85


# ---- guarantee -----------------------------------------------------------------------------------


def test_good_canaries_are_rolled_back_no_more_often_than_the_plan_says() -> None:
    plan = CanaryPlan(alpha=0.2, feedback_metric="correct")
    rolled_back = 0
    for n in range(100):
        draw = random.Random(n)
        state = canary_verdict.start(plan)
        for _ in range(300):
            canary = draw.random() < 0.5
            rate = 0.07 if canary else 0.05
            happened = Outcome(
                arm="canary" if canary else "active",
                error=draw.random() < rate,
                contract_broken=draw.random() < rate,
                latency_seconds=draw.random() * (1.5 if canary else 1.0),
                badness=float(draw.random() < rate),
            )
            pair = ShadowPair(canary_wrong=draw.random() < 0.2, active_wrong=draw.random() < 0.2)
            state = seen(plan, happened, pair, state=state)
        rolled_back += canary_verdict.judge_canary(state, plan, 1).action == "roll_back"
    assert rolled_back <= 100 * 0.2 + 3.1 * math.sqrt(100 * 0.2 * 0.8)


@given(st.none() | st.just("correct"))
def test_the_shares_of_alpha_add_up_to_one(metric: str | None) -> None:
    shares = canary_verdict.split_alpha(CanaryPlan(feedback_metric=metric))
    assert sum(shares.values()) == pytest.approx(1.0)
    assert set(shares) == set(SIGNALS)


# ---- state ---------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(outcomes | pairs, max_size=60), st.integers(0, 60))
def test_a_gateway_that_goes_on_from_the_saved_state_says_the_same(
    happened: list[Outcome | ShadowPair], cut: int
) -> None:
    plan = CanaryPlan(feedback_metric="correct", requests_min=1)
    saved = msgspec.json.encode(seen(plan, *happened[:cut]))
    resumed = seen(plan, *happened[cut:], state=msgspec.json.decode(saved, type=Tally))
    straight = seen(plan, *happened)
    assert resumed == straight
    assert canary_verdict.judge_canary(resumed, plan, 5.0) == canary_verdict.judge_canary(straight, plan, 5.0)


@settings(max_examples=60)
@given(st.lists(outcomes | pairs, max_size=60), st.floats(0, 1e6))
def test_every_verdict_is_json_without_nan_and_says_why(happened: list[Outcome | ShadowPair], seconds: float) -> None:
    found = judged(PLAN, *happened, seconds=seconds)
    json.dumps(found.evidence, allow_nan=False)
    assert msgspec.json.decode(msgspec.json.encode(found), type=CanaryVerdict) == found
    assert found.because.endswith(".")
    assert set(found.evidence["signals"]) == set(SIGNALS)


def test_the_state_stays_small() -> None:
    draw = random.Random(1)
    happened = [
        Outcome(
            arm="active" if draw.random() < 0.9 else "canary",
            error=draw.random() < 0.1,
            contract_broken=draw.random() < 0.1,
            latency_seconds=draw.random(),
            badness=draw.random(),
            caller=f"shop{draw.randrange(20)}",
            rater=f"rater{draw.randrange(40)}",
        )
        for _ in range(2_000)
    ]
    assert len(msgspec.json.encode(seen(PLAN, *happened))) < 40_000


def test_looking_and_observing_change_nothing_that_was_there() -> None:
    state = seen(PLAN, *both(20))
    before = msgspec.json.encode(state)
    canary_verdict.judge_canary(state, PLAN, 3.0)
    seen(PLAN, *both(5), ShadowPair(canary_wrong=True, active_wrong=False), state=state)
    assert msgspec.json.encode(state) == before


@pytest.mark.parametrize("moved", [{"margin": 0.03}, {"latency_ratio_max": 2.0}, {"shadow_harm_margin": 0.01}])
def test_a_plan_with_other_margins_asks_for_a_fresh_start(moved: dict[str, Any]) -> None:
    state, plan = canary_verdict.start(PLAN), CanaryPlan(**moved)
    for ask in (
        lambda: canary_verdict.observe(state, plan, good("canary")),
        lambda: canary_verdict.observe_pair(state, plan, ShadowPair(canary_wrong=True, active_wrong=True)),
        lambda: canary_verdict.judge_canary(state, plan, 1.0),
    ):
        with pytest.raises(ValueError, match="start the canary's judgement afresh"):
            ask()


# ---- bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0},
        {"alpha": 0.6},
        {"alpha": math.nan},
        {"margin": -0.01},
        {"margin": 0.6},
        {"latency_ratio_max": 0.9},
        {"requests_min": 0},
        {"seconds_max": 0.5},
        {"seconds_min": 86_401},
        {"shadow_harm_margin": 0.03},
        {"on_timeout": "wait"},
        {"feedback_metric": ""},
    ],
)
def test_a_plan_out_of_bounds_is_refused_with_the_name_of_what_is_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CanaryPlan(**wrong)


def test_a_plan_comes_from_json_with_the_same_bounds_and_no_unknown_field() -> None:
    assert msgspec.json.decode(b"{}", type=CanaryPlan) == PLAN
    assert msgspec.json.decode(msgspec.json.encode(PLAN), type=CanaryPlan) == PLAN
    for raw in (b'{"alpha": 2}', b'{"alhpa": 0.05}', b'{"on_timeout": "wait"}', b'{"requests_min": "many"}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(raw, type=CanaryPlan)


@pytest.mark.parametrize(
    "wrong", [{"badness": 1.1}, {"latency_seconds": -1.0}, {"latency_seconds": math.nan}, {"arm": "shadow"}]
)
def test_an_outcome_that_can_t_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        good(**{"arm": "canary", **wrong})
