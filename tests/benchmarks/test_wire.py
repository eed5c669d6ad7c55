"""The benchmark of the wire: that its cases can be read, that it can fail, and that what holds is told as holding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fault_cases import Told
from benchmarks.harness import judge
from benchmarks.wire import BUILT_IN, FAULT_NAMES, GOALS, GROUPS, chosen, play_worlds, report_of
from benchmarks.wire_answers import Unreadable, read_answers
from benchmarks.wire_callers import Conversation, reasons_against
from benchmarks.wire_engines import Outcome, Seen, holds
from benchmarks.wire_engines import reasons_against as reasons_against_engine
from benchmarks.wire_format import CallerExpect, CaseError, EngineCase, EngineExpect, read_file, read_folder
from benchmarks.wire_processes import PROCESSES
from benchmarks.wire_script import words

WHOLE = Told(0.0, 200, 1.0, words(), "case-0@v1", "stop", {"completion_tokens": 60}, done=True, ends={0: "stop"})
CUT = replace(WHOLE, text=words(40), finish_reason=None, ends={})
REFUSED = Told(0.0, 400, 0.1, error='{"message": "no", "type": "t", "param": null, "code": "engine_refused"}')
INSTEAD = replace(WHOLE, text=" ".join(["large#1 says:", *["elm"] * 58]))
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
ENGINE = """
group: engine
name: an-answer
says: answers
engine: [[healthy: true]]
expect: {answer: whole, by: primary, attempts: 1, attempts_fallback: %d}
---
group: caller
name: a-request
says: asks
send: [request: {}]
expect: {statuses: [%d], engine_requests: 1}
"""


def seen(told: Told, attempts: int = 1, instead: int = 0) -> Seen:
    return Seen(told, attempts, instead, None, 1)


def test_built_in_cases_can_be_read_and_have_names_of_their_own() -> None:
    cases = read_folder(BUILT_IN)
    names = [case.name for case in cases] + [case.name for case in PROCESSES] + list(FAULT_NAMES)
    assert len(set(names)) == len(names)
    assert {case.group for case in cases} == set(GROUPS) - {"process"}
    assert len(cases) > 300


@pytest.mark.parametrize(
    ("expect", "right", "wrong"),
    [
        ({"answer": "whole", "by": "primary"}, seen(WHOLE), seen(CUT)),
        ({"answer": "whole"}, seen(INSTEAD), seen(REFUSED)),
        ({"by": "fallback"}, seen(INSTEAD), seen(WHOLE)),
        ({"answer": "error"}, seen(REFUSED), seen(CUT)),
        ({"status": 400, "code": "engine_refused"}, seen(REFUSED), seen(replace(REFUSED, status=500))),
        ({"attempts": 1}, seen(WHOLE), seen(WHOLE, 2)),
        ({"attempts_fallback": [0, 1]}, seen(WHOLE), seen(WHOLE, 1, 2)),
        ({"seconds_max": 2}, seen(WHOLE), seen(replace(WHOLE, seconds=3.5))),
        ({"seconds_min": 1}, seen(WHOLE), seen(replace(WHOLE, seconds=0.5))),
        ({"ends": {0: "stop"}}, seen(WHOLE), seen(CUT)),
        ({"completion_tokens": 60}, seen(WHOLE), seen(replace(WHOLE, usage={"completion_tokens": 61}))),
        ({"absent": ["LATER"]}, seen(WHOLE), seen(replace(WHOLE, raw=b"LATER"))),
        ({"present": ["NOW"]}, seen(replace(WHOLE, raw=b"NOW")), seen(WHOLE)),
    ],
)
def test_an_engine_case_passes_only_where_its_expectation_holds(
    expect: dict[str, object], right: Seen, wrong: Seen
) -> None:
    wanted = EngineExpect.model_validate(expect)
    assert not reasons_against_engine(wanted, right)
    assert reasons_against_engine(wanted, wrong)


def conversation(raw: bytes, closed: bool = False) -> Conversation:
    return Conversation(bytearray(raw), closed, began_at=1.0, first_at=1.5, closed_at=2.0)


@pytest.mark.parametrize(
    ("expect", "right", "wrong"),
    [
        ({"statuses": [200]}, conversation(OK), conversation(OK + OK)),
        ({"answers": 0}, conversation(b""), conversation(OK)),
        ({"status": [200, 400]}, conversation(OK), conversation(OK.replace(b"200", b"500"))),
        ({"closed": True}, conversation(OK, closed=True), conversation(OK)),
        ({"closed": False}, conversation(OK), conversation(OK, closed=True)),
        ({"absent": ["{}"]}, conversation(OK.replace(b"{}", b"[]")), conversation(OK)),
        ({"headers": {"content-length": "2"}}, conversation(OK), conversation(OK.replace(b"length", b"size"))),
        ({"statuses": [200]}, conversation(OK), conversation(b"garbage\r\n\r\n")),
    ],
)
def test_a_caller_case_passes_only_where_its_expectation_holds(
    expect: dict[str, object], right: Conversation, wrong: Conversation
) -> None:
    wanted = CallerExpect.model_validate(expect)
    assert not reasons_against(wanted, right)
    assert reasons_against(wanted, wrong)


def test_answers_are_read_one_behind_the_other_with_or_without_chunks() -> None:
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
    first, second = read_answers(b"HTTP/1.1 100 Continue\r\n\r\n" + chunked + OK, closed=False)
    assert (first.body, first.whole, first.chunked) == (b"ab", True, True)
    assert (second.body, second.whole, second.chunked) == (b"{}", True, False)
    assert not read_answers(chunked[:-4], closed=True)[0].whole
    with pytest.raises(Unreadable):
        read_answers(OK.replace(b"\r\n\r\n", b"\r\ncontent-length: 3\r\n\r\n"), closed=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("group: engine\nname: a\n", "says: Field required"),
        ("group: other\n", "group is engine or caller"),
        ("group: engine\nname: a\nsays: b\nengine: [[fly: true]]\nexpect: {}\n", "fly"),
        ("group: engine\nname: a\nsays: b\nengine: [[{hang: true, wait: 1}]]\nexpect: {}\n", "a step has one key"),
        ("group: caller\nname: a\nsays: b\nsend: []\nexpect: {colour: red}\n", "colour"),
        ("- 5\n", "a case is a mapping"),
        ("{", "expected"),
    ],
)
def test_a_file_that_is_no_case_is_refused_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CaseError, match=says):
        read_file(path)


def test_a_case_in_json_is_a_case_and_for_each_makes_several(tmp_path: Path) -> None:
    case = {"group": "engine", "name": "s-%STATUS%", "says": "no", "for_each": {"STATUS": [405, 411]}}
    case |= {"engine": [[{"whole": {"status": "%STATUS%"}}]], "expect": {"status": "%STATUS%"}}
    (tmp_path / "case.json").write_text(json.dumps(case), encoding="utf-8")
    first, second = read_folder(tmp_path)
    assert isinstance(first, EngineCase)
    assert (first.name, second.name) == ("s-405", "s-411")
    assert (first.engine[0][0].value.status, first.expect[0].status) == (405, 405)


def test_only_a_report_without_a_failure_holds() -> None:
    good, bad = Outcome("engine", "a", "", "", 1.0), Outcome("caller", "b", "", "why", 1.0)
    assert judge(GOALS, report_of([good], 1.0)["figures"]).holds
    report = report_of([good, bad], 1.0)
    assert not judge(GOALS, report["figures"]).holds
    assert report["groups"]["caller"] == {"passed": 0, "cases": 1}


def test_cases_are_chosen_by_group_by_name_and_by_pattern() -> None:
    assert chosen("engine", "a-b", [])
    assert chosen("engine", "a-b", ["engine"])
    assert chosen("engine", "a-b", ["caller", "a-*"])
    assert not chosen("engine", "a-b", ["caller", "a"])
    assert holds(None, 3)
    assert holds((1, 3), 3)
    assert not holds(2, 3)


@pytest.mark.parametrize(("fallbacks", "status", "right"), [(0, 200, True), (1, 400, False)])
async def test_further_cases_are_played_on_a_real_gateway_and_a_wrong_one_fails(
    tmp_path: Path, fallbacks: int, status: int, right: bool
) -> None:
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "further.yaml").write_text(ENGINE % (fallbacks, status), encoding="utf-8")
    found = await play_worlds(read_folder(tmp_path / "cases"), tmp_path)
    passed = {one.case: one.passed for one in found}
    assert (passed.pop("an-answer"), passed.pop("a-request")) == (right, right), [one.why for one in found]
    assert len(passed) == 4
    assert all(passed.values()), [one.why for one in found]


FAST = ("finish-event-twice", "split-into-7-bytes", "connection-close", "body-of-a-brace", "address-with-a-query")


async def test_a_fast_part_of_the_built_in_cases_holds(tmp_path: Path) -> None:
    cases = [case for case in read_folder(BUILT_IN) if case.name in FAST]
    found = await play_worlds(cases, tmp_path)
    assert set(FAST) < {one.case for one in found}
    assert not [f"{one.case}: {one.why}" for one in found if not one.passed]
