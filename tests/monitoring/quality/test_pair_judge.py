"""The judge of pairs: that a model which gives no word is told, and that another judge's agreement is its own."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from monitoring.quality.detectors.baselines import measure
from monitoring.quality.explanations.report import make_report
from monitoring.quality.signals.all_watches import Watches
from monitoring.quality.signals.entries import FeedbackEntry, RecordEntry
from monitoring.quality.signals.version_watch import Watch
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import Judgement, JudgeReport
from tests.monitoring.quality import situations
from tests.monitoring.quality.replays import replay
from tests.monitoring.quality.situations import HEALTHY, JUDGED, of, single
from tests.monitoring.quality.traffic import MORNING, V3, at, said, served, shadow, step

HELD = {V3: {"feedback": measure("gate", 40, 1000, 1.0, "gate", "evaluation-1")}}
MODEL: dict[str, Any] = {"judge": "model", "judge_digest": "sha256:a"}
SPOKE: dict[str, Any] = {"judge_answered": True, "right": True, "served_right": True, "score": 1.0, "served_score": 1.0}
SILENT: dict[str, Any] = {"judge_answered": False}
Records = list[tuple[str, RecordEntry]]
Labels = list[tuple[str, FeedbackEntry]]


def pairs(count: int, begin: int = 0, **pair: Any) -> Records:
    """So many requests, each with its pair a second later."""
    found = []
    for number in range(begin, begin + count):
        found.append((at(number * 60), served(f"r{number}")))
        found.append((at(number * 60 + 1), shadow(f"r{number}", pair={**MODEL, **pair})))
    return found


def labels(count: int, right: bool, begin: int = 0, delay_seconds: float = 2.0) -> Labels:
    """A person's word on the version's answer to each."""
    return [
        (at(number * 60 + delay_seconds), said(f"r{number}", right, f"shop{number % 3}"))
        for number in range(begin, begin + count)
    ]


def judged(records: Records, feedback: Labels = []) -> Judgement:  # noqa: B006 - it is only read
    return replay(records, feedback, step(), MORNING + 86_400, HELD)[V3]


# ---- a judge that gives no word --------------------------------------------------------------------


def test_share_of_recent_pairs_without_a_judgement_leaves_out_unrequested_pairs() -> None:
    found = judged([*pairs(30, **SPOKE), *pairs(50, 30), *pairs(10, 80, **SILENT)]).judge
    assert found is not None
    assert found.asked == pytest.approx(40, rel=0.1)
    assert found.silent == pytest.approx(0.25, abs=0.03)
    assert found.answered_since == 0
    again = judged([*pairs(10, **SILENT), *pairs(7, 10, **SPOKE)]).judge
    assert again is not None
    assert again.answered_since == 7


def test_where_no_model_is_asked_nothing_is_said_of_it() -> None:
    assert judged(pairs(30, judge="normal", judge_digest=None, score=1.0, served_score=1.0)).judge is None
    on_trial = judged(pairs(30, arm=None, **SILENT))
    assert (on_trial.judge, on_trial.shadows) == (None, 30)


def test_what_another_model_did_not_say_is_forgotten() -> None:
    found = judged([*pairs(50, **SILENT), *pairs(5, 50, judge_digest="sha256:b", **SPOKE)]).judge
    assert found is not None
    assert found.silent == 0.0
    assert found.asked == pytest.approx(5, rel=0.05)


def test_a_state_from_before_goes_on_and_one_with_it_goes_through_json_unchanged() -> None:
    watches = Watches("e")
    watches.begin(step(), HELD)
    for number, (_, seen) in enumerate(pairs(20, **SILENT)):
        watches.take_record(seen, MORNING + number)
    known = watches.by_version[V3]
    raw = msgspec.json.encode(known)
    assert msgspec.json.decode(raw, type=Watch) == known
    before = {name: one for name, one in msgspec.json.decode(raw).items() if name not in ("judge", "saving")}
    assert msgspec.convert(before, Watch).shadows == 20


# ---- agreement with people -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [{"judge_digest": "sha256:b"}, {"judge": "exact", "judge_digest": None}],
    ids=["another model", "another kind"],
)
def test_how_often_a_judge_agrees_is_begun_anew_with_another(other: dict[str, Any]) -> None:
    first = pairs(30, **SPOKE), labels(30, True)
    assert judged(*first).judge_agreement == 1.0
    then = pairs(5, 30, **{**SPOKE, **other})
    assert judged([*first[0], *then], first[1]).judge_agreement is None
    assert judged([*first[0], *then], [*first[1], *labels(5, False, 30)]).judge_agreement == 0.0


def test_a_label_that_comes_after_the_judge_has_changed_says_nothing_of_the_new_one() -> None:
    records = [*pairs(30, **SPOKE), *pairs(5, 30, **{**SPOKE, "judge_digest": "sha256:b"})]
    assert judged(records, labels(30, True, delay_seconds=36_000)).judge_agreement is None
    assert judged(records, labels(35, True, delay_seconds=36_000)).judge_agreement == 1.0


def test_pair_of_an_older_gateway_names_no_judge_model_and_restarts_nothing() -> None:
    older = {**SPOKE, "judge_digest": None, "judge_answered": None}
    for records in ([*pairs(30, **SPOKE), *pairs(5, 30, **older)], [*pairs(30, **older), *pairs(5, 30, **SPOKE)]):
        assert judged(records, labels(30, True)).judge_agreement == 1.0


# ---- in plain words --------------------------------------------------------------------------------

PLAN = msgspec.structs.replace(situations.PLAN, shadow_share=0.02, judge_pool="judges", reviews_per_week=0)
PAIRED = msgspec.structs.replace(JUDGED, shadows=240, reports=[*JUDGED.reports, situations.PAIRS])


def caveats(report: JudgeReport | None, plan: MonitorPlan = PLAN, known: Judgement = PAIRED) -> list[str]:
    return make_report(of(single(HEALTHY), msgspec.structs.replace(known, judge=report), plan=plan)).caveats


def test_a_judge_that_gives_no_word_is_told_with_what_to_look_at() -> None:
    assert caveats(JudgeReport(asked=143.2, silent=0.84, answered_since=0)) == [
        "Of about the latest 143 pairs of returns@v3 that the model in the pool judges was to judge, 84.0% got no word "
        "from it, so that they compare no arms. Is that pool up (`apprentice_replica_up`)? The gateways' logs say why "
        "at `the judge of returns rests`; `apprentice_pairs_total` counts such pairs as unjudged."
    ]


@pytest.mark.parametrize(
    ("report", "plan"),
    [
        (None, PLAN),
        (JudgeReport(asked=19.0, silent=1.0, answered_since=0), PLAN),
        (JudgeReport(asked=150.0, silent=0.19, answered_since=0), PLAN),
        (JudgeReport(asked=150.0, silent=0.84, answered_since=20), PLAN),
        (JudgeReport(asked=150.0, silent=0.84, answered_since=0), msgspec.structs.replace(PLAN, judge_pool=None)),
    ],
    ids=["no model", "few pairs", "a small share", "back again", "no model any more"],
)
def test_little_of_it_or_what_is_over_is_not_told(report: JudgeReport | None, plan: MonitorPlan) -> None:
    assert caveats(report, plan) == []


def test_while_the_judge_gives_no_word_a_model_as_judge_is_not_what_is_missing() -> None:
    unjudged = msgspec.structs.replace(JUDGED, shadows=240)
    [alone] = caveats(None, known=unjudged)
    assert alone.endswith("or a model as judge.")
    [silent] = caveats(JudgeReport(asked=143.0, silent=1.0, answered_since=0), known=unjudged)
    assert "got no word from it" in silent
