"""The table of checks, and the judges of answers: what each finds, and that they find something of any answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.answers import AnswerAlternative, Offered, ReceivedAnswer, ReceivedCall, Terms
from router.check_loop import AnswerJudgement, judge_answer
from router.checks import ANSWER_CHECKS, CHECK_BY_NAME, CHECKS
from router.confidence_model import Calibration, ConfidenceModel
from router.contract import compile_contract
from router.findings import CHECK_NAMES, CheckName, CheckPolicy, Finding, Mode
from router.refusals import REFUSAL_LENGTH_MAX, WORDINGS, is_refusal
from router.tool_arguments import read_parameters

MODEL = ConfidenceModel(
    (1.0, 0.0, 0.0, 0.0, 0.0, -3.0), 0.0, 0.5, Calibration(100, 0.1, (0, 100), (0.9, 0.0), (50, 100))
)
SURE, UNSURE = (-0.01,) * 8, (-0.01,) * 7 + (-6.0,)
CHOICES = compile_contract({"choices": ["accept", "refuse"]})
ANSWER_NAMES = tuple(check.name for check in ANSWER_CHECKS)
many = settings(max_examples=max(300, settings().max_examples))


def terms(mode: Mode = "enforce", **changes: Any) -> Terms:
    checks: dict[CheckName, CheckPolicy] = {name: CheckPolicy(mode, 0.05) for name in ANSWER_NAMES}
    return replace(Terms(checks, CHOICES, MODEL, 0.9, None, logprobs_asked=True), **changes)


def judged(
    said: AnswerAlternative | ReceivedAnswer, held: Terms | None = None, offered: Offered | None = None
) -> AnswerJudgement:
    answered = said if isinstance(said, ReceivedAnswer) else ReceivedAnswer((said,))
    return judge_answer(answered, held or terms(), offered)


def finding(found: AnswerJudgement, check: CheckName) -> Finding:
    (one,) = (one for one in found.findings if one.check == check)
    return one


GOOD = AnswerAlternative("accept", "stop", logprobs=SURE)


def test_every_name_of_a_check_has_its_row_in_the_same_order() -> None:
    assert tuple(check.name for check in CHECKS) == CHECK_NAMES == tuple(CHECK_BY_NAME)
    assert len({check.share for check in CHECKS if check.share}) == sum(check.share is not None for check in CHECKS)


def test_a_good_answer_passes_every_check_in_their_order() -> None:
    found = judged(GOOD)
    assert [one.check for one in found.findings] == ["contract", "low_confidence", "refusal"]
    assert not any(one.fired for one in found.findings)
    assert (found.rejected_by, found.contract_kept) == (None, True)


@pytest.mark.parametrize(
    ("said", "rejected_by", "kept"),
    [
        (replace(GOOD, text="keep it"), "contract", False),
        (replace(GOOD, logprobs=UNSURE), "low_confidence", True),
        (replace(GOOD, logprobs=UNSURE, text="keep it"), "contract", False),
        (replace(GOOD, refusal="No."), "refusal", True),
        (replace(GOOD, finish_reason="content_filter"), "refusal", True),
        (replace(GOOD, text=""), "contract", False),
    ],
)
def test_the_first_enforced_check_that_fires_rejects(said: AnswerAlternative, rejected_by: str, kept: bool) -> None:
    found = judged(said)
    assert (found.rejected_by, found.contract_kept) == (rejected_by, kept)
    assert judged(said, terms("observe")).rejected_by is None
    assert [one.fired for one in judged(said, terms("observe")).findings] == [one.fired for one in found.findings]


def test_json_that_was_cut_off_is_broken_even_where_it_happens_to_be_valid() -> None:
    number = compile_contract({"json_schema": {"type": "integer"}})
    assert judged(AnswerAlternative("12", "stop", logprobs=SURE), terms(contract=number)).contract_kept is True
    assert judged(AnswerAlternative("12", "length", logprobs=SURE), terms(contract=number)).contract_kept is False
    text = compile_contract({"length": {"characters_max": 3}})
    assert judged(AnswerAlternative("12", "length", logprobs=SURE), terms(contract=text)).contract_kept is True


@pytest.mark.parametrize(
    ("changes", "answered", "fired", "note"),
    [
        ({"confidence": None}, ReceivedAnswer((GOOD,)), False, "no calibration"),
        ({"threshold": None}, ReceivedAnswer((GOOD,)), True, "no threshold can be certified"),
        ({"logprobs_asked": False}, ReceivedAnswer((GOOD,)), False, "logprobs could not be asked for"),
        ({}, ReceivedAnswer((replace(GOOD, logprobs=()),)), True, "no logprobs came"),
        ({}, ReceivedAnswer((GOOD,), mixed=True), False, "another engine went on with it"),
        ({}, ReceivedAnswer((GOOD,), whole=False), False, "calibrated for another prefix"),
        ({"confidence": replace(MODEL, tokens=8)}, ReceivedAnswer((GOOD,), whole=False, tokens=8), False, ""),
        (
            {"confidence": replace(MODEL, tokens=9)},
            ReceivedAnswer((GOOD,), whole=False, tokens=8),
            False,
            "calibrated for another prefix",
        ),
        (
            {"confidence": replace(MODEL, tokens=8)},
            ReceivedAnswer((replace(GOOD, logprobs=UNSURE),), whole=False, tokens=8),
            True,
            "",
        ),
        (
            {"confidence": replace(MODEL, tokens=8)},
            ReceivedAnswer((replace(GOOD, logprobs=()),), whole=False, tokens=8),
            True,
            "no logprobs came",
        ),
        (
            {"confidence": replace(MODEL, weights=(1.0, 0.0, 0.0, 0.0, 0.1, 0.0))},
            ReceivedAnswer((GOOD,)),
            True,
            "scope is not known",
        ),
        (
            {"confidence": replace(MODEL, weights=(1.0, 0.0, 0.0, 0.0, 0.1, 0.0)), "scope": 0.9},
            ReceivedAnswer((GOOD,)),
            False,
            "",
        ),
        ({"confidence": replace(MODEL, tokens=4)}, ReceivedAnswer((replace(GOOD, logprobs=UNSURE),)), False, ""),
    ],
)
def test_confidence_says_why_it_can_not_judge(
    changes: dict[str, Any], answered: ReceivedAnswer, fired: bool, note: str
) -> None:
    found = finding(judged(answered, terms(**changes)), "low_confidence")
    assert (found.fired, found.note) == (fired, note)


def test_least_sure_of_several_alternatives_decides_and_so_does_a_broken_one() -> None:
    assert judged(ReceivedAnswer((GOOD, replace(GOOD, logprobs=UNSURE)))).rejected_by == "low_confidence"
    assert judged(ReceivedAnswer((GOOD, replace(GOOD, text="keep")))).rejected_by == "contract"


def test_of_a_prefix_only_the_confidence_is_judged() -> None:
    prefix = ReceivedAnswer((AnswerAlternative("acc", logprobs=SURE),), whole=False, tokens=8)
    found = judged(prefix, terms(confidence=replace(MODEL, tokens=8)))
    assert [one.check for one in found.findings] == ["low_confidence"]
    assert found.contract_kept is None


def test_what_was_judged_before_is_left_out() -> None:
    found = judge_answer(ReceivedAnswer((GOOD,)), terms(), None, frozenset({"low_confidence"}))
    assert [one.check for one in found.findings] == ["contract", "refusal"]


REFUSED = (
    "I'm sorry, but I can't help with that.",
    "\u201cI\u2019m sorry, but I can\u2019t assist with this request.\u201d",
    "As an AI language model, I have no opinion.",
    "Es tut mir leid, aber ich kann Ihnen dabei nicht helfen.",
    "Je suis désolé, mais je ne peux pas vous aider à faire cela.",
    "Lo siento, pero no puedo ayudarte con eso.",
    "抱歉\uff0c我无法协助您。",
    "",
    " \n",
)
ANSWERED = (
    "I'm sorry, but this can't be returned: the 30 days are over.",
    "Sorry, I can only accept sealed returns.",
    "Refuse: the customer said I can't help with that.",
    "Es tut mir leid, dass der Toaster kaputt ist.",
    "I can't help with that. " + "But here is what you can do. " * 20,
    "Leider abgelehnt.",
)


@pytest.mark.parametrize("text", REFUSED)
def test_what_begins_as_refusals_do_or_is_empty_fires(text: str) -> None:
    assert judged(AnswerAlternative(text, "stop", logprobs=SURE), terms(contract=None)).rejected_by == "refusal"


@pytest.mark.parametrize("text", ANSWERED)
def test_what_an_answer_may_begin_with_does_not(text: str) -> None:
    assert judged(AnswerAlternative(text, "stop", logprobs=SURE), terms(contract=None)).rejected_by is None


def test_an_answer_that_keeps_its_contract_is_no_refusal_whatever_it_says() -> None:
    free = compile_contract({"length": {"characters_max": 500}})
    for text in REFUSED:
        assert judged(AnswerAlternative(text, "stop", logprobs=SURE), terms(contract=free)).rejected_by is None


def test_every_wording_is_folded_and_found_with_and_without_its_apology() -> None:
    for wording in WORDINGS.values():
        for opening in wording.openings:
            assert opening == opening.casefold().replace("\u2019", "'")
            assert is_refusal(opening.upper() if "ß" not in opening else opening)
            assert not is_refusal(opening + "x" * REFUSAL_LENGTH_MAX)
            assert all(is_refusal(apology + opening) for apology in wording.apologies)
        assert not any(is_refusal(apology + "it is accepted") for apology in wording.apologies)


DECIDE = compile_contract({"json_schema": {"type": "object", "required": ["days"]}})
TOOLS = {"decide": read_parameters(b'{"type": "object", "required": ["days"]}'), "free": None}


@pytest.mark.parametrize(
    ("calls", "offered", "note"),
    [
        ((ReceivedCall("decide", '{"days": 3}'),), Offered(TOOLS), ""),
        ((ReceivedCall("decide", '{"day": 3}'),), Offered(TOOLS), "its arguments do not fit the tool's parameters"),
        ((ReceivedCall("decide", '{"days": '),), Offered(TOOLS), "its arguments do not fit the tool's parameters"),
        ((ReceivedCall("free", "anything"),), Offered(TOOLS), ""),
        ((ReceivedCall("free", None),), Offered(TOOLS), ""),
        ((ReceivedCall("other", "{}"),), Offered(TOOLS), "it calls a tool that was not offered"),
        ((ReceivedCall("free", "{}"),), Offered(), "it calls a tool that was not offered"),
        ((ReceivedCall("free", "{}"),), Offered(TOOLS, may_call=False), "it calls a tool, and none was allowed"),
        (
            (ReceivedCall("free", "{}"),),
            Offered(TOOLS, True, True, "decide"),
            "it calls another tool than was required",
        ),
        ((), Offered(TOOLS, must_call=True), "it calls no tool, and one was required"),
        ((), Offered(TOOLS), ""),
    ],
)
def test_calls_are_held_against_the_tools_that_were_offered(
    calls: tuple[ReceivedCall, ...], offered: Offered, note: str
) -> None:
    said = AnswerAlternative("" if calls else "accept", "tool_calls", calls=calls, logprobs=SURE)
    found = judged(said, offered=offered)
    assert finding(found, "refusal").note == note
    assert found.rejected_by == ("refusal" if note else None)
    assert found.contract_kept is (None if calls else True)


texts = st.text(max_size=20) | st.sampled_from([*REFUSED, *ANSWERED, "accept"])
calls = st.builds(ReceivedCall, st.sampled_from(["decide", "free", "x", ""]), st.none() | st.text(max_size=6))
alternatives = st.builds(
    AnswerAlternative,
    texts,
    st.none() | st.sampled_from(["stop", "length", "content_filter", "tool_calls", "x"]),
    st.sampled_from(["", "No."]),
    st.lists(calls, max_size=2).map(tuple),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=6),
)
answers = st.builds(
    ReceivedAnswer, st.lists(alternatives, max_size=3).map(tuple), st.booleans(), st.booleans(), st.integers(0, 6)
)
modes = st.sampled_from(["observe", "enforce"])
any_terms = st.builds(
    Terms,
    st.dictionaries(st.sampled_from(ANSWER_NAMES), st.builds(CheckPolicy, modes, st.floats(0, 1))),
    st.sampled_from([None, CHOICES, DECIDE]),
    st.sampled_from([None, MODEL, replace(MODEL, tokens=3)]),
    st.none() | st.floats(0, 1),
    st.none() | st.floats(allow_nan=True),
    st.booleans(),
)
any_offered = st.none() | st.builds(
    Offered, st.just(TOOLS), st.booleans(), st.booleans(), st.none() | st.sampled_from(["decide", "x"])
)


@pytest.mark.invariant("Every answer is judged, and always in the same way.")
@many
@given(answers, any_terms, any_offered)
def test_any_answer_is_judged_and_the_same_one_always_in_the_same_way(
    answered: ReceivedAnswer, held: Terms, offered: Offered | None
) -> None:
    found = judge_answer(answered, held, offered)
    assert found == judge_answer(answered, held, offered)
    names = [one.check for one in found.findings]
    wanted = [name for name in ANSWER_NAMES if name in held.checks]
    assert names == (wanted if answered.whole else [name for name in wanted if name == "low_confidence"])
    fired = [one.check for one in found.findings if one.fired and one.mode == "enforce"]
    assert found.rejected_by == (fired[0] if fired else None)
    for one in found.findings:
        assert one.mode == held.checks[one.check].mode
        assert one.score is None or 0.0 <= one.score <= 1.0
