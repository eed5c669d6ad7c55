"""The end of a verdict: a recovery of its cause, or labels of several callers that refute a suspicion."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.phases import Verdict
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.monitor_responses import pin, release, respond
from monitoring.quality.verdicts.quality import Judgement, Pin, SignalReport, TaskQuality, VersionQuality
from monitoring.quality.verdicts.shares import Roles
from monitoring.quality.verdicts.verdict import name_of, shows_recovery

NOW = 1_800_000_000.0
V2 = "returns@v2"
PLAN = MonitorPlan(feedback_metric="correct", labels_min=30, suspect_clears_seconds=86_400.0)
GATE = {"kind": "gate", "upper": 0.08, "at": NOW - 1000}
LEARNING = {"labels": 12, "wanted": 100}


def stream(name: str, **more: Any) -> SignalReport:
    """A labelled stream that is in order, unless it is said otherwise."""
    given = {"observed": 200, "estimate": 0.05, "low": 0.02, "high": 0.07, "high_without_one": 0.07}
    given |= {"baseline": GATE, "threshold": 4e3}
    return SignalReport(signal=name, labelled=True, **{**given, **more})


def alarm(name: str, **more: Any) -> SignalReport:
    """A labelled stream that alarms."""
    return stream(name, **{"alarming": True, "estimate": 0.3, "low": 0.2, "high": 0.4, "e_value": 5e3, **more})


def latency() -> SignalReport:
    return SignalReport(signal="latency", labelled=False, observed=900, e_value=5e3, threshold=4e3, alarming=True)


def after(health: TaskQuality, *streams: SignalReport, at: float = 0.0) -> TaskQuality:
    judged = Judgement(task="returns", version=V2, at=NOW + at, reports=list(streams))
    return respond(health, {V2: judged}, Roles(active=V2, general=True), PLAN, NOW + at)[0]


def verdict_of(health: TaskQuality) -> Verdict:
    return health.versions[V2].verdict


def test_a_verdict_writes_its_evidence_like_the_report() -> None:
    health = after(TaskQuality(), alarm("feedback", e_value=31_441.0, threshold=1_364.0))
    assert "(e-value 31,441, threshold 1,364)" in health.versions[V2].because
    health = after(TaskQuality(), alarm("feedback", e_value=3e-305))
    assert "(e-value under 0.001, threshold 4,000)" in health.versions[V2].because


# ---- degraded ----------------------------------------------------------------------------------------


def test_an_alarm_that_is_no_more_is_no_recovery_though_another_stream_has_recovered() -> None:
    """The threshold follows labels and streams, of which the monitor's own response makes more."""
    health = after(TaskQuality(), alarm("feedback"), stream("reviewed"))
    assert health.versions[V2].alarmed == ("feedback",)
    health = after(health, stream("feedback"), stream("reviewed", recovered=True), at=60)
    assert verdict_of(health) == "degraded"
    health = after(health, stream("feedback", recovered=True), stream("reviewed"), at=120)
    assert (verdict_of(health), health.versions[V2].alarmed) == ("healthy", ())


def test_alarm_while_degraded_has_to_recover_too_and_each_class_by_itself() -> None:
    health = after(TaskQuality(), alarm("feedback", of_class="lost"))
    health = after(health, alarm("feedback", of_class="lost", recovered=True), alarm("shadow"), at=60)
    assert health.versions[V2].alarmed == ("feedback:lost", "shadow")
    mean = stream("feedback", recovered=True)
    lost, shadow = stream("feedback", of_class="lost"), stream("shadow")
    recovered = (msgspec.structs.replace(lost, recovered=True), msgspec.structs.replace(shadow, recovered=True))
    assert verdict_of(after(health, mean, lost, recovered[1], at=120)) == "degraded"
    assert verdict_of(after(health, mean, recovered[0], shadow, at=120)) == "degraded"
    assert verdict_of(after(health, mean, *recovered, at=120)) == "healthy"


@pytest.mark.parametrize("gone", [[], [stream("shadow", baseline=LEARNING, recovered=True)]])
def test_a_stream_that_is_tested_no_more_neither_holds_it_nor_frees_it(gone: list[SignalReport]) -> None:
    health = after(TaskQuality(), alarm("shadow"), stream("feedback"))
    assert verdict_of(after(health, *gone, stream("feedback"), at=60)) == "degraded"
    assert verdict_of(after(health, *gone, stream("feedback", recovered=True), at=60)) == "healthy"


def test_a_reference_that_was_learned_while_it_was_degraded_shows_no_recovery() -> None:
    health = after(TaskQuality(), alarm("shadow"))
    anew = {"kind": "own", "upper": 0.3, "at": NOW + 3600}
    learned = stream("shadow", baseline=anew, recovered=True)
    assert verdict_of(after(health, learned, at=7200)) == "degraded"
    complaints = stream("complaints", recovered=True, baseline={"kind": "own", "learning": False, "to": NOW + 3600})
    assert verdict_of(after(health, complaints, at=7200)) == "degraded"
    before = stream("complaints", recovered=True, baseline={"kind": "own", "learning": False, "to": NOW - 3600})
    assert verdict_of(after(health, before, at=7200)) == "healthy"
    by_an_admin = stream("shadow", baseline={**anew, "kind": "admin"}, recovered=True)
    assert verdict_of(after(health, by_an_admin, at=7200)) == "healthy"


@pytest.mark.parametrize(("slower", "sooner"), [("feedback", "holdout"), ("holdout", "feedback")])
def test_feedback_and_holdout_each_have_to_recover_where_both_alarmed(slower: str, sooner: str) -> None:
    health = after(TaskQuality(), alarm("feedback", baseline=GATE), alarm("holdout", baseline=GATE))
    assert health.versions[V2].alarmed == ("feedback", "holdout")
    waits, shown = stream(slower, baseline=GATE), stream(sooner, recovered=True, baseline=GATE)
    health = after(health, waits, shown, at=60)
    assert verdict_of(health) == "degraded", "an alarm that fades is not freed by the other one's recovery"
    health = after(health, msgspec.structs.replace(waits, recovered=True), shown, at=120)
    assert verdict_of(health) == "healthy"


def test_a_health_that_was_written_before_goes_by_any_stream_that_recovered() -> None:
    raw = {"versions": {V2: {"verdict": "degraded", "since": NOW, "labels": 431}}}
    health = msgspec.convert(raw, TaskQuality)
    assert verdict_of(after(health, alarm("feedback"), stream("shadow", recovered=True))) == "degraded"
    assert verdict_of(after(health, stream("feedback"), stream("shadow", recovered=True))) == "healthy"


def test_alarms_are_kept_while_an_admin_degrades_it_and_forgotten_once_healthy() -> None:
    word = Pin(verdict="degraded", by="ann", reason="the policy is another", at=NOW)
    health = after(pin(TaskQuality(), V2, word, NOW)[0], alarm("feedback"))
    health, _ = release(health, V2, "ann", NOW + 30)
    health = after(health, stream("feedback"), stream("shadow", recovered=True), at=60)
    assert (verdict_of(health), health.versions[V2].alarmed) == ("degraded", ("feedback",))
    healthy = msgspec.structs.replace(word, verdict="healthy")
    assert pin(health, V2, healthy, NOW + 90)[0].versions[V2].alarmed == ()


def test_no_signal_shows_recovery_where_none_is_compared_with_the_time_before() -> None:
    known = VersionQuality(verdict="degraded", since=NOW)
    judged = Judgement(task="returns", version=V2, at=NOW, reports=[latency(), stream("shadow", baseline=LEARNING)])
    assert not shows_recovery(known, judged)
    assert shows_recovery(known, msgspec.structs.replace(judged, reports=[*judged.reports, stream("feedback")]))


# ---- suspect -----------------------------------------------------------------------------------------


def suspect() -> TaskQuality:
    """A suspicion at 100 labels of feedback and 40 reviews."""
    return after(TaskQuality(), latency(), stream("feedback", observed=100), stream("reviewed", observed=40))


def test_labels_refute_a_suspicion_and_the_same_alarm_does_not_raise_it_again() -> None:
    health = after(suspect(), latency(), stream("feedback", observed=159), at=60)
    assert verdict_of(health) == "suspect", "59 labels are too few"
    health = after(health, latency(), stream("feedback", observed=160), at=120)
    assert verdict_of(health) == "healthy"
    assert health.versions[V2].because == "60 labels since then show that it is as good as before (feedback)."
    health = after(health, latency(), stream("feedback", observed=160), at=180)
    assert verdict_of(health) == "healthy"
    cost = msgspec.structs.replace(latency(), signal="cost")
    health = after(health, latency(), cost, stream("feedback", observed=160), at=240)
    assert verdict_of(health) == "suspect", "another alarm is another suspicion"


def test_labels_refute_a_suspicion_of_which_nothing_more_is_seen_too() -> None:
    health = after(suspect(), stream("feedback", observed=159), at=60)
    assert verdict_of(health) == "suspect"
    health = after(health, stream("feedback", observed=160), at=120)
    assert (verdict_of(health), health.versions[V2].cleared) == ("healthy", ())
    assert verdict_of(after(health, latency(), stream("feedback", observed=160), at=180)) == "suspect"


def test_a_stream_without_labels_since_then_refutes_nothing_though_another_had_many() -> None:
    high = stream("feedback", observed=400, high=0.09)
    assert verdict_of(after(suspect(), latency(), high, stream("reviewed", observed=40), at=60)) == "suspect"
    assert verdict_of(after(suspect(), latency(), high, stream("reviewed", observed=100), at=60)) == "healthy"


def test_a_stream_that_began_since_then_counts_from_its_first_label() -> None:
    health = after(TaskQuality(), latency())
    assert verdict_of(after(health, latency(), stream("reviewed", observed=59), at=60)) == "suspect"
    assert verdict_of(after(health, latency(), stream("reviewed", observed=60), at=60)) == "healthy"


@pytest.mark.parametrize("worse", [{"of_class": None}, {"of_class": "damaged"}])
def test_nothing_is_refuted_while_another_stream_lies_wholly_above_its_baseline(worse: dict[str, Any]) -> None:
    above = stream("reviewed", observed=30, estimate=0.2, low=0.09, high=0.4, **worse)
    good = stream("feedback", observed=400)
    assert verdict_of(after(suspect(), latency(), good, above, at=60)) == "suspect"
    few = msgspec.structs.replace(above, observed=29)
    assert verdict_of(after(suspect(), latency(), good, few, at=60)) == "healthy"


def test_one_callers_praise_refutes_nothing() -> None:
    praised = stream("feedback", observed=400, high_without_one=0.2)
    assert verdict_of(after(suspect(), latency(), praised, at=60)) == "suspect"
    unknown = stream("shadow", observed=400, high_without_one=None)
    assert verdict_of(after(suspect(), latency(), praised, unknown, at=60)) == "suspect"
    agreed = stream("feedback", observed=400, high_without_one=0.08)
    assert verdict_of(after(suspect(), latency(), agreed, at=60)) == "healthy"


# ---- suspect by one caller's word ------------------------------------------------------------------

BY_ONE = {"estimate": 0.9, "low": 0.85, "high": 0.94, "doubt": "one_giver"}


def test_labels_that_rest_on_one_giver_make_it_suspect_and_never_degraded() -> None:
    health = after(TaskQuality(), stream("feedback", **BY_ONE))
    assert verdict_of(health) == "suspect"
    assert "by the labels of one caller or rater alone: feedback, 90.0% bad" in health.versions[V2].because
    assert verdict_of(after(health, stream("feedback", **BY_ONE), at=90_000)) == "suspect"
    assert verdict_of(after(health, alarm("reviewed"), stream("feedback", **BY_ONE), at=60)) == "degraded"


def test_reviews_clear_one_raters_alarm_and_it_is_not_raised_again_meanwhile() -> None:
    lone = stream("feedback", **BY_ONE, high_without_one=1.0)
    health = after(TaskQuality(), lone, stream("reviewed", observed=0))
    health = after(health, lone, stream("reviewed", observed=60), at=60)
    assert (verdict_of(health), health.versions[V2].cleared) == ("healthy", ("feedback",))
    assert verdict_of(after(health, lone, stream("reviewed", observed=61), at=120)) == "healthy"
    gone = after(health, stream("feedback"), at=180)
    assert gone.versions[V2].cleared == ()
    assert verdict_of(after(gone, lone, at=240)) == "suspect"


def test_a_suspicion_by_one_giver_ends_some_time_after_the_evidence_is_gone() -> None:
    health = after(TaskQuality(), stream("feedback", **BY_ONE))
    health = after(health, stream("feedback", high_without_one=1.0), at=60)
    assert verdict_of(health) == "suspect"
    assert verdict_of(after(health, stream("feedback", high_without_one=1.0), at=86_500)) == "healthy"


def test_a_suspicion_that_was_written_before_or_that_an_admin_set_counts_from_now() -> None:
    old = msgspec.convert({"versions": {V2: {"verdict": "suspect", "since": NOW, "labels": 10}}}, TaskQuality)
    word = Pin(verdict="suspect", by="ann", reason="complaints by telephone", at=NOW, until=NOW + 1)
    for health in (old, pin(TaskQuality(), V2, word, NOW)[0]):
        moved = after(health, latency(), stream("feedback", observed=400), at=60)
        assert verdict_of(moved) == "suspect"
        moved = after(moved, latency(), stream("feedback", observed=459), at=120)
        assert verdict_of(moved) == "suspect"
        assert verdict_of(after(moved, latency(), stream("feedback", observed=460), at=180)) == "healthy"


def test_the_time_without_an_alarm_counts_from_the_last_one_and_not_from_the_first() -> None:
    health = after(TaskQuality(), latency())
    health = after(health, latency(), at=3 * 86_400)
    health = after(health, at=3 * 86_400 + 60)
    assert (verdict_of(health), health.versions[V2].quiet_since) == ("suspect", NOW + 3 * 86_400 + 60)
    health = after(health, latency(), at=4 * 86_400)
    assert (verdict_of(health), health.versions[V2].quiet_since) == ("suspect", None)
    health = after(health, at=4 * 86_400 + 60)
    assert verdict_of(after(health, at=5 * 86_400 + 59)) == "suspect"
    health = after(health, at=5 * 86_400 + 60)
    assert (verdict_of(health), health.versions[V2].quiet_since) == ("healthy", None)


def test_a_suspicion_that_was_written_without_it_is_quiet_from_now_on() -> None:
    old = msgspec.convert({"versions": {V2: {"verdict": "suspect", "since": NOW - 5 * 86_400}}}, TaskQuality)
    health = after(old)
    assert (verdict_of(health), health.versions[V2].quiet_since) == ("suspect", NOW)
    assert verdict_of(after(health, at=86_400)) == "healthy"


def test_time_in_which_a_suspicion_was_pinned_is_no_time_without_an_alarm() -> None:
    health = after(after(TaskQuality(), latency()), at=60)
    word = Pin(verdict="suspect", by="ann", reason="we look into it", at=NOW + 120)
    health = after(pin(health, V2, word, NOW + 120)[0], latency(), at=2 * 86_400)
    health, _ = release(health, V2, "ann", NOW + 2 * 86_400)
    assert verdict_of(after(health, at=2 * 86_400 + 60)) == "suspect"


# ---- whatever comes ------------------------------------------------------------------------------------

some = st.builds(
    stream,
    st.sampled_from(["reviewed", "feedback", "shadow"]),
    of_class=st.sampled_from([None, "lost"]),
    alarming=st.booleans(),
    recovered=st.booleans(),
    baseline=st.sampled_from([GATE, LEARNING]),
)


@given(st.lists(st.lists(some, max_size=4, unique_by=name_of), max_size=8))
def test_degraded_never_ends_before_all_tested_alarms_have_recovered(
    steps: list[list[SignalReport]],
) -> None:
    health, since_then = TaskQuality(), set[str]()
    for at, streams in enumerate(steps):
        was = health.versions.get(V2, VersionQuality()).verdict
        health = after(health, *streams, at=at)
        since_then = {*(since_then if was == "degraded" else ()), *(name_of(one) for one in streams if one.alarming)}
        if was == "degraded" and verdict_of(health) == "healthy":
            tested = [one for one in streams if one.baseline is GATE]
            assert all(one.recovered for one in tested if name_of(one) in since_then)
            assert any(one.recovered for one in tested)
            assert not any(one.alarming and not one.recovered for one in streams)
        elif verdict_of(health) == "degraded":
            assert set(health.versions[V2].alarmed) == since_then
