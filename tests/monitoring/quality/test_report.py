"""The report on a task in typical situations, word for word: reports/NAME.txt, one file a situation."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from monitoring.quality.explanations import certainty
from monitoring.quality.explanations.report import TaskReport, make_report
from monitoring.quality.phrases import NOBODY_WOKEN
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import (
    Action,
    ArmEvidence,
    ArmReport,
    Judgement,
    Pin,
    SignalReport,
    TaskQuality,
    VersionQuality,
)
from monitoring.quality.verdicts.shares import Roles
from monitoring.quality.verdicts.verdict import describe_evidence
from tests.monitoring.quality.situations import (
    DEGRADED,
    FEEDBACK,
    HEALTHY,
    JUDGED,
    JUDGED_DEGRADED,
    NOW,
    PAIRS,
    PLAN,
    QUIET,
    SHIFTED,
    SITUATIONS,
    UNLABELLED,
    of,
    single,
    text_of,
)

FOLDER = Path(__file__).with_name("reports")


@pytest.mark.parametrize("name", SITUATIONS)
def test_each_situation_is_told_word_for_word(name: str) -> None:
    assert text_of(make_report(SITUATIONS[name])) == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def test_there_is_no_text_without_its_situation() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(SITUATIONS)


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_sentence_ends_as_one_and_none_is_said_twice(name: str) -> None:
    found = make_report(SITUATIONS[name])
    sentences = [*found.known, *found.sure, *found.done, *found.next, *found.caveats]
    assert all(one[-1] in ".?" and not one.endswith("..") for one in sentences)
    assert len(set(sentences)) == len(sentences)
    assert "None" not in text_of(found)
    assert "nan" not in text_of(found).split()


def test_it_goes_through_json_unchanged() -> None:
    found = make_report(SITUATIONS["degraded_and_shifted"])
    assert msgspec.json.decode(msgspec.json.encode(found), type=TaskReport) == found
    assert (found.version, found.verdict, found.since) == ("returns@v3", "degraded", NOW - 3 * 3600)


def test_a_pin_that_is_over_is_no_caveat() -> None:
    pin = Pin(verdict=None, by="a", reason="Wait.", at=NOW - 10, until=NOW - 1)
    assert make_report(of(single(msgspec.structs.replace(HEALTHY, pin=pin)), JUDGED)).caveats == []


def test_that_nobody_is_woken_is_told_beside_a_verdict_alone() -> None:
    silent = msgspec.structs.replace(PLAN, has_webhook=False)
    assert NOBODY_WOKEN in make_report(of(single(DEGRADED), JUDGED_DEGRADED, plan=silent)).caveats
    assert NOBODY_WOKEN not in make_report(of(single(DEGRADED), JUDGED_DEGRADED)).caveats
    assert NOBODY_WOKEN not in make_report(of(single(HEALTHY), JUDGED, plan=silent)).caveats


def test_a_version_that_is_held_is_told_with_the_reason() -> None:
    pin = Pin(verdict=None, by="abcdefghijkl", reason="An experiment.", at=NOW - 60)
    caveats = make_report(of(single(msgspec.structs.replace(DEGRADED, pin=pin)), JUDGED_DEGRADED)).caveats
    assert caveats[0].startswith("returns@v3 is held: nothing is done about its verdict until it is released, by abc")


def test_what_the_settings_forbid_is_not_told_as_not_known() -> None:
    known = msgspec.structs.replace(DEGRADED, done=("hold_and_alert",))
    found = make_report(of(single(known), JUDGED_DEGRADED, plan=msgspec.structs.replace(PLAN, enforced=False)))
    assert "the task's settings let nothing be shifted to the better arm" in found.line
    assert any("is not enforced" in one for one in found.caveats)


def test_a_shift_that_an_admin_has_undone_is_not_told_as_the_settings() -> None:
    known = msgspec.structs.replace(DEGRADED, done=("hold_and_alert",), undone=("shift",))
    found = make_report(of(single(known), JUDGED_DEGRADED))
    assert "goes on, as an admin has undone the shift to the better arm" in found.line
    found = make_report(of(single(known), msgspec.structs.replace(JUDGED_DEGRADED, arms=[])))
    assert "goes on, as an admin has undone the shift, and no other arm is known to be better" in found.line


def test_what_has_to_recover_is_told_while_it_has_not() -> None:
    known = msgspec.structs.replace(DEGRADED, alarmed=("feedback", "feedback:lost", "shadow"))
    lost = msgspec.structs.replace(FEEDBACK, of_class="lost")
    judged = msgspec.structs.replace(JUDGED, reports=[FEEDBACK, lost])
    said = "returns@v3 is degraded until labels show that feedback and feedback:lost came down."
    assert said in make_report(of(single(known), judged)).known
    judged = msgspec.structs.replace(
        JUDGED, reports=[msgspec.structs.replace(one, recovered=True) for one in judged.reports]
    )
    assert not [one for one in make_report(of(single(known), judged)).known if "is degraded until" in one]


def test_where_no_stream_can_show_a_recovery_that_is_told_and_what_to_do() -> None:
    learning = msgspec.structs.replace(FEEDBACK, baseline={"labels": 12, "wanted": 200})
    found = make_report(of(SHIFTED, msgspec.structs.replace(JUDGED, reports=[learning, *QUIET])))
    [caveat] = [one for one in found.caveats if "No signal can show that returns@v3 has recovered" in one]
    assert "from before it was degraded" in caveat
    assert "`apprentice tasks baseline returns returns@v3 SIGNAL --wrong N --of M --reason TEXT`" in found.next[0]
    assert any("apprentice tasks pin returns returns@v3" in one for one in found.next)
    assert not [one for one in found.next if "comes back by itself" in one]
    assert not [one for one in make_report(of(SHIFTED, JUDGED_DEGRADED)).caveats if "No signal can show" in one]


def test_pairs_that_nobody_judges_are_told() -> None:
    plan = msgspec.structs.replace(PLAN, shadow_share=0.1, reviews_per_week=0, trusted_callers=[])
    asked = msgspec.structs.replace(JUDGED, shadows=300)
    assert any("no shadow was asked" in one for one in make_report(of(single(HEALTHY), JUDGED, plan=plan)).caveats)
    assert any(
        "of no pair is it known which" in one for one in make_report(of(single(HEALTHY), asked, plan=plan)).caveats
    )
    reported = msgspec.structs.replace(JUDGED, led_per_day=0.0)
    assert not any("shadow" in one for one in make_report(of(single(HEALTHY), reported, plan=plan)).caveats)
    reviewed = msgspec.structs.replace(plan, reviews_per_week=100)
    [caveat] = [one for one in make_report(of(single(HEALTHY), asked, plan=reviewed)).caveats if "reviewers and" in one]
    assert "demonstrations too, does not compare the arms" in caveat


def test_an_arm_of_which_no_label_speaks_is_told_as_not_known_and_still_as_better() -> None:
    arm = ArmReport(arm="general", labels=3, pairs=400, advantage_low=0.041)
    sure = make_report(of(single(HEALTHY), msgspec.structs.replace(JUDGED, arms=[arm]))).sure
    said = "How often the general model is right is not known (3 labels and 400 judged pairs); it is better by at least"
    assert f"{said} 4.1 points." in sure
    judged = msgspec.structs.replace(arm, advantage_words=400)
    sure = make_report(of(single(HEALTHY), msgspec.structs.replace(JUDGED, arms=[judged]))).sure
    assert f"{said} 4.1 points, by the judge's word alone on 400 pairs." in sure


def test_what_was_undone_is_told_as_long_as_it_holds() -> None:
    known = msgspec.structs.replace(DEGRADED, undone=("shift", "roll_back"))
    caveats = make_report(of(single(known, undone=("reviews",)), JUDGED_DEGRADED)).caveats
    assert any(one.startswith("An admin has undone: reviews. It is not done again until") for one in caveats)
    of_it = "An admin has undone of returns@v3: shift and roll back. It is not done again before returns@v3 is healthy."
    assert of_it in caveats


def test_few_minutes_are_no_rate() -> None:
    young = msgspec.structs.replace(
        JUDGED, requests=90, requests_per_day=2160, labels=30, labels_per_day=720, labels_since=NOW - 181
    )
    told = make_report(of(single(HEALTHY), msgspec.structs.replace(young, requests_since=NOW - 601)))
    assert "returns@v3 has had 90 requests in 10 minutes so far, and 30 labels in 3 minutes so far" in told.known[1]
    assert "A rise of 10 points would be found within about 1,584 labels." in told.sure
    assert "a day" not in "".join(told.known + told.sure)


def test_before_there_is_a_baseline_that_is_told() -> None:
    learning = msgspec.structs.replace(FEEDBACK, baseline={"labels": 50, "wanted": 200})
    latency = SignalReport(signal="latency", labelled=False, observed=3, baseline={"learning": True})
    never = {"5": None, "10": None}
    judged = msgspec.structs.replace(JUDGED, reports=[learning, latency], seconds_to_detect=never)
    sure = make_report(of(single(HEALTHY), judged)).sure
    assert any("compared with nothing before 200 labels are there (50 labels so far)" in one for one in sure)
    assert "What is usual of latency is still being learned: nothing of it can be unlike before." in sure
    assert "A rise of 5 points would never be found: labels are compared with nothing yet." in sure


def test_a_baseline_that_hides_a_slip_is_told_with_what_to_do() -> None:
    judged = msgspec.structs.replace(JUDGED, reports=[FEEDBACK], seconds_to_detect={"5": None, "10": None})
    found = make_report(of(single(HEALTHY), judged))
    assert any("A rise of 10 points would never be found: so much is hardly more" in one for one in found.sure)
    assert any("apprentice tasks baseline returns returns@v3 SIGNAL --accept" in one for one in found.next)


def test_a_judge_that_judges_itself_is_told() -> None:
    plan = msgspec.structs.replace(PLAN, shadow_share_suspect=0.1, judges_itself=True)
    [one] = [one for one in make_report(of(single(HEALTHY), JUDGED, plan=plan)).caveats if "judges its own" in one]
    assert "monitor.judge.pool" in one
    none = msgspec.structs.replace(plan, shadow_share=0.0, shadow_share_suspect=0.0)
    assert not [one for one in make_report(of(single(HEALTHY), JUDGED, plan=none)).caveats if "judges its own" in one]


def test_a_monitor_that_is_behind_is_told() -> None:
    (caveat,) = make_report(of(single(HEALTHY), JUDGED, behind_seconds=7_200.0)).caveats
    assert caveat.startswith("The monitor is 2 hours behind")


def test_a_version_that_can_not_be_judged_is_told_with_when_it_last_was() -> None:
    caveat = make_report(of(single(HEALTHY), JUDGED, unjudged=["returns@v3"])).caveats[0]
    assert caveat.startswith("returns@v3 can't be judged: its last judgement is of 2026-11-26 ")


def test_the_step_to_take_back_is_the_last_move_of_that_version() -> None:
    others = [
        Action(id="a-1", at=NOW, kind="pause_canary", version="returns@v4", because=""),
        Action(id="a-2", at=NOW, kind="reviews", version="returns@v3", because=""),
        Action(id="a-3", at=NOW, kind="retrain", version="returns@v3", because=""),
    ]
    health = msgspec.structs.replace(SHIFTED, actions=[*SHIFTED.actions, *others])
    [step] = [one for one in make_report(of(health, JUDGED_DEGRADED)).next if "undo" in one]
    assert step == "Take the last step back if it was wrong: `apprentice tasks undo returns 19d5f0a2-0`."


def test_a_canary_has_sentences_of_its_own() -> None:
    health = TaskQuality(
        versions={"returns@v3": HEALTHY, "returns@v4": VersionQuality(verdict="degraded", because="Bad.")}
    )
    found = make_report(of(health, JUDGED, roles=Roles(active="returns@v3", canary="returns@v4")))
    assert "returns@v4 is the canary of returns, and is degraded." in found.known
    assert found.verdict == "healthy"


def test_a_degraded_canary_that_still_gets_requests_is_to_be_decided_about() -> None:
    health = TaskQuality(versions={"returns@v3": HEALTHY, "returns@v4": DEGRADED}, undone=("pause_canary",))
    roles = Roles(active="returns@v3", canary="returns@v4", canary_share=0.1)
    found = make_report(of(health, JUDGED, roles=roles))
    assert found.next[0] == "Decide about returns@v4: it still gets 10% of the requests, and is known to be worse."
    assert "Nothing: it is watched." not in found.next


@pytest.mark.parametrize("paused_share", [None, 0.1])
def test_canary_without_requests_is_paused_but_not_where_that_was_requested(
    paused_share: float | None,
) -> None:
    known = msgspec.structs.replace(DEGRADED, paused_share=paused_share)
    health = TaskQuality(versions={"returns@v3": HEALTHY, "returns@v4": known})
    asked = make_report(of(health, JUDGED, roles=Roles(active="returns@v3", canary="returns@v4", canary_share=0.1)))
    assert "paused" not in text_of(asked)
    assert "Decide about returns@v4: it still gets 10% of the requests, and is known to be worse." in asked.next
    done = make_report(of(health, JUDGED, roles=Roles(active="returns@v3", canary="returns@v4", canary_share=0.0)))
    assert "the canary returns@v4 is degraded and paused" in done.line
    had = ", and had 10% of them before" if paused_share else ""
    assert f"returns@v4 is paused: it gets none of the requests{had}." in done.known


def test_a_suspect_canary_is_to_be_judged() -> None:
    health = TaskQuality(versions={"returns@v3": HEALTHY, "returns@v4": VersionQuality(verdict="suspect")})
    found = make_report(of(health, JUDGED, roles=Roles(active="returns@v3", canary="returns@v4", canary_share=0.1)))
    assert found.next[0].startswith("Have answers of returns@v4 judged")
    assert "the canary returns@v4 is suspect" in found.line


def test_degraded_previous_version_is_reported_and_never_recommended() -> None:
    held = msgspec.structs.replace(DEGRADED, done=("hold_and_alert",))
    found = make_report(of(TaskQuality(versions={"returns@v3": held, "returns@v2": DEGRADED}), JUDGED_DEGRADED))
    assert not [one for one in found.next if "apprentice adapters rollback" in one]
    [said] = [one for one in found.next if "the previous version returns@v2 is degraded" in one]
    assert "no share is shifted to it" in said
    assert any("apprentice tasks pin returns returns@v2 --verdict healthy" in one for one in found.next)


def test_what_failed_is_told_with_why_and_as_what_waits_only_while_it_is_wanted() -> None:
    why = "returns@v2 is staging: stage it first."
    failed = Action(id="a-0", at=NOW, kind="roll_back", version="returns@v3", because="", failed=why)
    held = msgspec.structs.replace(DEGRADED, pin=Pin(verdict=None, by="ada", reason="a test", at=NOW))
    undone = msgspec.structs.replace(DEGRADED, undone=("roll_back",))
    plan = msgspec.structs.replace(PLAN, enforced=False)
    previous_version = ArmReport(arm="previous_version", version="returns@v2", labels=80, advantage_low=0.1)
    worse = msgspec.structs.replace(previous_version, advantage_low=-0.1)
    degraded = msgspec.structs.replace(JUDGED_DEGRADED, arms=[previous_version])
    recovered = msgspec.structs.replace(JUDGED, arms=[previous_version])

    def told_of(known: VersionQuality, judged: Judgement, plan: MonitorPlan) -> str:
        (one,) = make_report(of(single(known, actions=[failed]), judged, plan=plan)).done
        return one

    waits = f"It is not carried out yet, and is tried again: {why}"
    assert told_of(DEGRADED, degraded, plan).endswith(waits)
    for known, judged, by in [
        (HEALTHY, recovered, plan),
        (held, degraded, plan),
        (undone, degraded, plan),
        (DEGRADED, degraded, msgspec.structs.replace(plan, responses=[])),
        (DEGRADED, degraded, PLAN),  # shares are shifted now
        (DEGRADED, msgspec.structs.replace(JUDGED_DEGRADED, arms=[worse]), plan),
    ]:
        assert told_of(known, judged, by).endswith(f"It was not carried out: {why}")


def test_a_share_that_could_not_be_given_back_is_told_as_what_waits() -> None:
    known = VersionQuality(since=NOW - 9, because="It has recovered.", paused_share=0.1)
    why = "returns@v3 is staging: stage it first."
    failed = Action(
        id="a-0", at=NOW, kind="recover", version="returns@v4", because="", failed=why, after={"share": 0.1}
    )
    health = TaskQuality(versions={"returns@v3": HEALTHY, "returns@v4": known}, actions=[failed])
    roles = Roles(active="returns@v3", canary="returns@v4", general=True)
    situation = of(health, JUDGED, roles=roles)
    judged = msgspec.structs.replace(JUDGED, version="returns@v4")
    found = make_report(msgspec.structs.replace(situation, judgements={**situation.judgements, "returns@v4": judged}))
    assert found.done[0].endswith(f"It is not carried out yet, and is tried again: {why}")
    assert "returns@v4 is paused: it gets none of the requests, and had 10% of them before." in found.known


def test_signal_that_alarms_and_has_recovered_is_shown_as_both_and_blames_nothing() -> None:
    word = Pin(verdict="healthy", by="ada", reason="it is fixed", at=NOW)
    health = single(msgspec.structs.replace(HEALTHY, pin=word))
    found = make_report(of(health, JUDGED_DEGRADED))
    assert "The monitor would say that returns@v3 is degraded: labels speak against it." in found.caveats
    streams = [msgspec.structs.replace(one, recovered=one.alarming and one.labelled) for one in JUDGED_DEGRADED.reports]
    found = make_report(of(health, msgspec.structs.replace(JUDGED_DEGRADED, reports=streams)))
    assert not [one for one in found.caveats if "would say" in one]
    [said] = [one for one in found.sure if "ALARM" in one and one.startswith("feedback")]
    assert said.endswith("; recovered since then.")


def test_no_more_actions_are_told_than_can_be_read() -> None:
    actions = [
        Action(id=f"a-{number}", at=NOW, kind="verdict", version="returns@v3", because="") for number in range(100)
    ]
    done = make_report(of(single(HEALTHY, actions=actions), JUDGED)).done
    assert len(done) == 10
    assert "action a-99." in done[0]


def test_whatever_is_not_known_is_left_out() -> None:
    judged = Judgement(task="returns", version="returns@v3", at=NOW)
    found = make_report(of(single(VersionQuality()), judged, plan=MonitorPlan(), roles=Roles(active="returns@v3")))
    assert found.line == "returns@v3 is healthy; as far as can be told with so few labels; 0 labels."
    assert found.since is None


def test_where_complaints_are_looked_at_few_labels_do_not_say_that_it_is_safe() -> None:
    few = msgspec.structs.replace(JUDGED, labels=12)
    [caveat] = [one for one in make_report(of(single(HEALTHY), few)).caveats if "12 labels only" in one]
    assert caveat.endswith("fewer than 30 never make it degraded, however bad they are.")
    complaints = SignalReport(signal="complaints", labelled=True, observed=900, wrong=12)
    heard = msgspec.structs.replace(few, reports=[*few.reports, complaints])
    [caveat] = [one for one in make_report(of(single(HEALTHY), heard)).caveats if "12 labels only" in one]
    assert caveat.endswith("fewer than 30 never make it degraded, however bad they are; its complaints may.")


def test_pairs_that_make_a_version_degraded_without_labels_are_told_as_able_to() -> None:
    by_pairs = msgspec.structs.replace(PAIRS, estimate=0.3, low=0.2, high=0.4, e_value=31_400, alarming=True)
    caveats = make_report(of(single(DEGRADED), msgspec.structs.replace(UNLABELLED, reports=[by_pairs, *QUIET]))).caveats
    assert "No label comes at present: without labels only judged pairs can make it degraded." in caveats
    assert any(one.endswith("however bad they are; its judged pairs may.") for one in caveats)
    assert not any("at most become suspicious" in one for one in caveats)


@pytest.mark.parametrize(
    ("baseline", "end"),
    [
        ({"learning": True, "days": 3.9, "days_wanted": 7.0}, "is being learned: 3 of 7 days; "),
        (
            {"learning": True, "days": 9.0, "days_wanted": 7.0, "complaints": 61, "complaints_wanted": 400},
            "is being learned: 61 of 400 complaints; ",
        ),
        (
            {"learning": False, "rate": 0.05, "day_deviation": 0.12},
            "in 10,000 are usual, on a day 12.0% more or fewer; ",
        ),
        ({"learning": False, "rate": 0.05}, "in 10,000 are usual; "),
    ],
)
def test_progress_of_learning_complaints_is_reported(baseline: dict[str, float], end: str) -> None:
    heard = SignalReport(signal="complaints", labelled=True, observed=900, wrong=12, baseline=baseline)
    sure = make_report(of(single(HEALTHY), msgspec.structs.replace(JUDGED, reports=[heard]))).sure
    [line] = [one for one in sure if one.startswith("complaints: 12 complaints about 900 requests")]
    assert end in line


@pytest.mark.parametrize("observed", [0.0, 12.0])
def test_what_was_set_for_another_metric_is_told(observed: float) -> None:
    baseline = {"labels": 12, "wanted": 200, "set_for_another_metric": True}
    lost = msgspec.structs.replace(FEEDBACK, baseline=baseline, observed=observed)
    sure = make_report(of(single(HEALTHY), msgspec.structs.replace(JUDGED, reports=[lost]))).sure
    said = "the baseline that was set for it was for another metric: set it again (`apprentice tasks baseline`)."
    assert any(one.startswith("feedback: ") and one.endswith(said) for one in sure)


def test_the_class_of_all_others_is_told_as_that() -> None:
    other = msgspec.structs.replace(FEEDBACK, of_class="*")
    sure = make_report(of(single(HEALTHY), msgspec.structs.replace(JUDGED, reports=[other]))).sure
    assert any(one.startswith("feedback, all other classes: ") for one in sure)
    assert describe_evidence([other]).startswith("feedback of all other classes, ")


def test_the_wait_for_a_better_arm_is_reported_with_its_evidence_and_time() -> None:
    held = msgspec.structs.replace(DEGRADED, since=NOW - 120.0, done=("hold_and_alert",), to=None, kept=1.0)
    evidence = ArmEvidence(pairs=14, unjudged=2, e_value=6.0, e_value_without_one=2.0)
    arm = ArmReport(arm="previous_version", version="returns@v2", evidence=evidence)

    def known(*arms: ArmReport) -> list[str]:
        judged = msgspec.structs.replace(JUDGED_DEGRADED, arms=list(arms))
        return make_report(of(single(held, shadow_share=1.0), judged)).known

    [wait] = [one for one in known(arm) if "moves to returns@v2" in one]
    assert "e-value of 33.3, and of 10 without any one caller" in wait
    assert (
        "14 judged pairs (2 more are not judged) gave 6 and 2; at this rate that takes about 4.6 minutes more" in wait
    )
    assert any("shadows may take places before callers" in one for one in known(arm))
    lost = msgspec.structs.replace(arm, evidence=msgspec.structs.replace(evidence, e_value=0.4))
    assert any("so far they do not speak for it" in one for one in known(lost))
    unjudged = msgspec.structs.replace(arm, evidence=msgspec.structs.replace(evidence, unjudged=40))
    assert any("most pairs lack a judgement of both answers" in one for one in known(unjudged))
    assert any("waits for pairs with another arm: none has come since the verdict, 2 minutes" in one for one in known())


@pytest.mark.parametrize(("agreement", "labels"), [(None, 283), (0.6, 277), (0.75, 233), (0.95, 76)])
def test_the_number_of_labels_depends_on_the_judges_agreement(agreement: float | None, labels: int) -> None:
    held = msgspec.structs.replace(DEGRADED, done=("hold_and_alert",), to=None, kept=1.0)
    judged = msgspec.structs.replace(JUDGED_DEGRADED, arms=[], judge_agreement=agreement)
    [step] = [one for one in make_report(of(single(held), judged)).next if "`demonstration`" in one]
    assert f"about {labels} labels show an arm that is 10 points better" in step
    assert ("agrees with people" in step) is (agreement is not None)


def test_clusters_of_errors_and_their_rhythm_are_told() -> None:
    signal = SignalReport(signal="reviewed", labelled=True, observed=400, wrong=20, dispersion=2.4, has_rhythm=True)
    judged = Judgement(task="returns", version="returns@v3", at=1.0, reports=[signal])
    (sentence,) = certainty.describe_signals(judged, MonitorPlan(), stale=False)
    assert "errors come in clusters: about 2.4 labels count as one; errors follow the day" in sentence
    plain = msgspec.structs.replace(judged, reports=[msgspec.structs.replace(signal, dispersion=1.1, has_rhythm=False)])
    assert "clusters" not in next(certainty.describe_signals(plain, MonitorPlan(), stale=False))


@pytest.mark.parametrize(
    ("roles", "back"),
    [
        ({}, "`apprentice adapters rollback returns --to returns@v2`"),
        ({"canary": "returns@v4"}, "`apprentice adapters rollback returns --to returns@v2`"),
        ({"active": "returns@v2", "canary": "returns@v3"}, "`apprentice adapters rollback returns --canary`"),
        ({"previous_version": None}, None),
    ],
    ids=["leads", "leads beside a canary", "canary", "first version"],
)
def test_way_back_from_a_forced_version_is_a_step_that_works(roles: dict[str, str | None], back: str | None) -> None:
    situation = of(TaskQuality(), None)
    present = msgspec.structs.replace(situation.roles, **roles)
    told = make_report(msgspec.structs.replace(situation, roles=present, forced=["returns@v3"])).next
    [step] = [words for words in told if "let past the gate by force" in words]
    assert step.endswith(f", else go back ({back})." if back else "(`apprentice gate returns returns@v3`).")
