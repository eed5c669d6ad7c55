"""Why a request went where it went, in words: what callers are told, and what operators and admins are told."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from gateway.features.requests.explanation import REASON_WORDS, describe_finding, explain, redact_record
from monitoring.records import FindingRecord, Record
from router.checks import CHECK_BY_NAME, CHECKS
from router.choice import NO_INDEX
from router.findings import CHECK_NAMES, Mode
from router.routing_data import REASONS

SECRET = ("0.4321", "0.1234", "t-77", "told to admins")


def found(check: str, mode: Mode = "enforce", fired: bool = True, **changes: Any) -> FindingRecord:
    figures: dict[str, Any] = {"score": 0.4321, "threshold": 0.1234, "neighbours": ["t-77"], "note": "told to admins"}
    return FindingRecord(check=check, mode=mode, fired=fired, **{**figures, "version": "returns@v1", **changes})


def record(*findings: FindingRecord, **changes: Any) -> Record:
    told = {"pool": "general", "replica": "general-0", "reason": "out_of_scope", "outcome": "ok", "status": 200}
    made = {"id": "x", "at": 0.0, "endpoint": "chat", "caller": "c", "requested_model": "returns", "task": "returns"}
    return Record(**{**made, **told, **changes}, findings=list(findings))


def test_every_reason_and_every_check_has_its_words() -> None:
    assert list(REASON_WORDS) == list(REASONS)
    assert all(check.fired and check.kept and check.unjudged for check in CHECKS)


@pytest.mark.parametrize("check", CHECK_NAMES)
@pytest.mark.parametrize("mode", [mode for mode in get_args(Mode) if mode != "off"])
@pytest.mark.parametrize("fired", [True, False])
def test_a_caller_is_told_no_figure_of_any_check_and_an_admin_all_of_them(check: str, mode: Mode, fired: bool) -> None:
    one = record(found(check, mode, fired))
    plain, full = "\n".join(explain(one)), "\n".join(explain(one, in_full=True))
    assert not [part for part in SECRET if part in plain]
    assert all(part in full for part in SECRET)
    assert plain.startswith(f"{check}: {CHECK_BY_NAME[check].fired if fired else CHECK_BY_NAME[check].kept}")
    assert ("only observed" in plain) == (mode == "observe" and fired)
    assert redact_record(one).findings == [FindingRecord(check=check, mode=mode, fired=fired, version="returns@v1")]
    told = describe_finding(one.findings[0], in_full=False)
    assert set(told) == {"check", "mode", "fired", "version", "words"}
    assert told["version"] == "returns@v1"
    assert describe_finding(one.findings[0], in_full=True)["neighbours"] == ["t-77"]


def test_the_record_itself_is_left_as_it_is() -> None:
    one = record(found("out_of_scope"))
    assert redact_record(one) is not one
    assert one.findings == [found("out_of_scope")]


@pytest.mark.parametrize("check", [check.name for check in CHECKS if check.model is not None])
def test_what_could_not_be_judged_is_said_to_be_unknown(check: str) -> None:
    whose = " (returns@v1's answer)" if check == "low_confidence" else ""
    assert (
        explain(record(found(check, fired=False, threshold=None)))[0] == f"{check}: nothing is known of it yet{whose}."
    )


def test_each_line_says_whose_answer_it_is_about() -> None:
    told = explain(record(found("contract"), found("contract", fired=False, note="", version=None)))
    assert told[0] == "contract: the answer broke the contract (returns@v1's answer)."
    assert told[1] == "contract: the answer kept the contract (the fallback's answer)."


@pytest.mark.parametrize(
    ("outcome", "did"), [("ok", "answered it"), ("truncated", "began to answer it"), ("failed", "was to answer it")]
)
def test_what_did_answer_is_told_from_what_was_to(outcome: str, did: str) -> None:
    assert explain(record(outcome=outcome))[0].startswith(f"the base model of the pool general {did} on general-0: ")


def test_how_it_ended_is_told_with_the_errors_code() -> None:
    told = explain(record(outcome="failed", status=502, error_code="contract_violation"))
    assert told[-1] == "It ended as failed with status 502 (contract_violation)."


def test_what_is_of_no_task_is_not_compared_with_a_version() -> None:
    assert "the input is in the scope of no task that the key may use (out_of_scope)" in explain(record(task=None))[0]
    index = found("out_of_scope", fired=False, score=None, threshold=None, neighbours=[], version=None, note=NO_INDEX)
    assert "on general-0: no task has a scope model (out_of_scope)" in explain(record(index, task=None))[1]


def test_a_rule_that_is_only_observed_is_for_admins() -> None:
    one = record(found("override", "observe", note="stocktaking: refuse"))
    assert redact_record(one).findings == []
    assert "stocktaking" not in "\n".join(explain(one))
    assert explain(one, in_full=True)[0] == "A rule that is only observed would have decided: stocktaking: refuse."


def test_a_request_that_went_nowhere_says_why_it_was_to_go_to_a_fallback() -> None:
    told = explain(record(pool=None, error_code="needs_human", status=422, outcome="refused", fallback_capped=True))
    assert told[0] == "The task had sent as much to its fallback as it may: that fallback was closed to it."
    assert told[1].startswith("It was not sent to any engine: needs_human (the input is unlike")
    assert explain(record(pool=None, reason=None))[0] == "It was not sent to any engine: the caller went away."


def test_what_was_drawn_is_told_with_its_probability() -> None:
    assert "Chance decided where it went: this had the probability 0.02." in explain(record(probability=0.02))
    assert not [line for line in explain(record(probability=1.0)) if "probability" in line]
