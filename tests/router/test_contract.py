from __future__ import annotations

import json
import re
import socket
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.contract import ANSWER_LENGTH_MAX, ContractError, compile_contract

DECISION = {
    "type": "object",
    "properties": {
        "decision": {"enum": ["refund", "exchange", "refuse"]},
        "days": {"type": "integer", "minimum": 0},
        "note": {"type": "string", "maxLength": 200, "pattern": "^[^<>]*$"},
    },
    "required": ["decision"],
    "additionalProperties": False,
}
many = settings(max_examples=max(300, settings().max_examples))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def broken_by(text: str, **contract: Any) -> str | None:
    return compile_contract(contract).broken_by(text)


def refused(**contract: Any) -> str:
    with pytest.raises(ContractError) as caught:
        compile_contract(contract)
    return str(caught.value)


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        ('{"decision": "refund"}', None),
        (' {"decision": "refuse", "days": 3, "note": "worn"}\n', None),
        ('{"decision": "keep"}', "The answer's JSON breaks the schema at properties/decision/enum."),
        ('{"days": 3}', "The answer's JSON breaks the schema at required."),
        ('{"decision": "refund", "days": -1}', "The answer's JSON breaks the schema at properties/days/minimum."),
        (
            '{"decision": "refund", "note": "<b>"}',
            "The answer's JSON breaks the schema at properties/note/pattern.",
        ),
        ('{"decision": "refund", "x": 1}', "The answer's JSON breaks the schema at additionalProperties."),
        ('"refund"', "The answer's JSON breaks the schema at type."),
        ("refund", "The answer is not JSON that can be read."),
        ('```json\n{"decision": "refund"}\n```', "The answer is not JSON that can be read."),
        ('{"decision": "refund"} {}', "The answer is not JSON that can be read."),
        ('{"decision": "refund", "days": NaN}', "The answer is not JSON that can be read."),
        ("", "The answer is not JSON that can be read."),
        ("[" * 100_000 + "]" * 100_000, "The answer has more than the 65536 characters that a contract allows."),
        ("[" * 30_000 + "]" * 30_000, "The answer is not JSON that can be read."),
        ("[" * 400 + "]" * 400, "The answer's JSON can't be checked against the schema."),
        ('{"decision": "refund", "days": ' + "9" * 500 + "}", None),
        ('"\ud800"', "The answer is not valid Unicode."),
    ],
)
def test_an_answer_keeps_a_schema_or_is_told_where_it_breaks_it(answer: str, broken: str | None) -> None:
    assert broken_by(answer, json_schema=DECISION) == broken


def test_choices_are_compared_as_they_are() -> None:
    contract = compile_contract({"choices": ["refund", "refuse"]})
    assert contract.broken_by("refund") is None
    for answer in ("Refund", "refund ", " refund", "refund\n", "", "refundrefuse"):
        assert contract.broken_by(answer) == "The answer is none of the 2 choices."


@pytest.mark.parametrize(
    "pattern", [r"\d{4}-\d\d", "a|ab", "(?i)yes|no", "(a+)+", r"[a-z]+(, [a-z]+)*", "a.c", "(?m)^a$", ""]
)
@given(text=st.text("aAbcyesno0123-, \n", max_size=8) | st.sampled_from(["2024-12", "ab", "YES", "no", "a, b", "abc"]))
def test_a_regex_must_match_the_whole_answer(pattern: str, text: str) -> None:
    kept = broken_by(text, regex=pattern) is None
    assert kept == (re.fullmatch(pattern, text) is not None)


def test_a_line_break_after_a_match_breaks_it() -> None:
    assert broken_by("refund\n", regex="refund") == "The answer does not match the regex from its beginning to its end."
    assert broken_by("refund\n", regex="^refund$") is not None


def test_all_that_is_set_must_hold() -> None:
    contract = compile_contract({"json_schema": {"type": "integer"}, "choices": ["12", "x"], "regex": ".."})
    assert contract.broken_by("12") is None
    assert contract.broken_by("13") == "The answer is none of the 2 choices."
    assert contract.broken_by("x") == "The answer does not match the regex from its beginning to its end."


@many
@given(st.text() | values.map(json.dumps) | st.text(st.characters(), max_size=5))
def test_every_text_is_judged_and_no_sentence_quotes_it(text: str) -> None:
    marked = text + "Zebra"
    for contract in ({"json_schema": DECISION}, {"choices": ["a"]}, {"regex": "a+"}):
        broken = broken_by(marked, **contract)
        assert broken is not None
        assert "Zebra" not in broken
        broken_by(text, **contract)
    hidden = json.dumps({"decision": "refund", "Zebra" + text: "Zebra"})
    assert "Zebra" not in str(broken_by(hidden, json_schema=DECISION))


@many
@given(values)
def test_a_schema_says_of_a_value_what_another_validator_says(value: Any) -> None:
    import jsonschema  # 1 s, for this test alone

    schema = {
        "anyOf": [
            {"type": "object", "propertyNames": {"maxLength": 2}, "additionalProperties": {"type": ["string", "null"]}},
            {"type": "array", "items": {"type": ["integer", "boolean"]}, "uniqueItems": True},
            {"type": "number", "minimum": 0},
            {"const": "ab"},
        ]
    }
    kept = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert (broken_by(json.dumps(value), json_schema=schema) is None) == kept


def test_nothing_is_fetched_for_a_schema() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.0)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/schema.json"
        for schema in (
            {"$ref": address},
            {"$dynamicRef": address},
            {"$schema": address},
            {"$id": address, "$ref": "other.json"},
            {"$defs": {"unused": {"$ref": address}}},
            {"$ref": "file:///etc/hostname"},
            {"$ref": "other.json"},
        ):
            assert "json_schema" in refused(json_schema=schema)
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_a_schema_may_refer_to_itself() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    assert broken_by('{"next": {"next": {}}}', json_schema=tree) is None
    assert broken_by('{"next": {"last": {}}}', json_schema=tree) is not None
    deep = '{"next": ' * 400 + "{}" + "}" * 400
    assert broken_by(deep, json_schema=tree) is None
    assert broken_by(deep.replace("{}", '{"last": {}}'), json_schema=tree) is not None


@pytest.mark.parametrize(
    ("contract", "told"),
    [
        ({}, "contract is empty"),
        ({"json_schema": None}, "contract is empty"),
        ({"schema": {}}, "contract.schema is not known"),
        ({"json_schema": {"type": "strin"}}, "contract.json_schema"),
        ({"json_schema": {"properties": [1]}}, "contract.json_schema"),
        ({"json_schema": {"$ref": "#/nowhere"}}, "contract.json_schema"),
        ({"json_schema": {"$schema": "https://example.com/own"}}, "contract.json_schema"),
        ({"json_schema": {"pattern": "(?=a)b"}}, "contract.json_schema"),
        ({"json_schema": {"$defs": {"a": {"pattern": "(?=a)b"}}, "$ref": "#/$defs/a"}}, "contract.json_schema"),
        ({"json_schema": {"title": "\ud800"}}, "contract.json_schema"),
        ({"json_schema": True}, "contract.json_schema"),
        ({"choices": []}, "contract.choices"),
        ({"choices": [1]}, "contract.choices"),
        ({"choices": "refund"}, "contract.choices"),
        ({"regex": 1}, "contract.regex"),
        ({"regex": "("}, "contract.regex"),
        ({"regex": "a)|(?:b"}, "contract.regex"),
        ({"regex": "(?=a)b"}, "without look-around and back references"),
        ({"regex": r"(a)\1"}, "without look-around and back references"),
        ({"regex": "(?x)a # a comment"}, "contract.regex"),
        ({"regex": "(a{1000}){1000}"}, "at most 1 MiB"),
        ({"regex": "\ud800"}, "contract.regex"),
    ],
)
def test_a_contract_that_cannot_be_checked_is_refused(contract: dict[str, Any], told: str) -> None:
    assert told in refused(**contract)


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|aa)+", "(a*)*b", "(.*)*x", "([a-z]+)*[0-9]"])
def test_no_pattern_makes_an_answer_expensive(pattern: str) -> None:
    """A backtracking engine would be at the first of these for longer than anybody lives."""
    answer = "a" * (ANSWER_LENGTH_MAX - 3) + "!"
    by_regex = compile_contract({"regex": pattern})
    by_schema = compile_contract({"json_schema": {"pattern": f"^(?:{pattern})$"}})
    began = time.process_time()
    assert by_regex.broken_by(answer) is not None
    assert by_schema.broken_by(f'"{answer}"') is not None
    assert time.process_time() - began < 5.0


def test_an_answer_over_the_limit_is_broken_without_being_read() -> None:
    assert broken_by("a" * ANSWER_LENGTH_MAX, regex="a*") is None
    assert broken_by("a" * (ANSWER_LENGTH_MAX + 1), regex="a*") is not None


def test_a_length_is_counted_in_characters() -> None:
    bounds = {"characters_min": 2, "characters_max": 3}
    assert broken_by("a", length=bounds) == "The answer has fewer than the 2 characters that a contract wants."
    assert broken_by("\u00e4\u00f6", length=bounds) is None
    assert broken_by("abc", length=bounds) is None
    assert broken_by("abcd", length=bounds) == "The answer has more than the 3 characters that a contract allows."
    assert broken_by("", length={"characters_max": 0}) is None
    assert broken_by("ab", choices=["ab"], length={"characters_max": 1}) is not None


@pytest.mark.parametrize(
    "length",
    [
        {},
        [],
        3,
        {"characters": 3},
        {"characters_min": -1},
        {"characters_max": 1.5},
        {"characters_max": True},
        {"characters_max": ANSWER_LENGTH_MAX + 1},
        {"characters_min": 4, "characters_max": 3},
    ],
)
def test_a_length_that_can_not_be_used_is_refused_with_its_key(length: Any) -> None:
    assert refused(length=length).startswith("contract.length")


def test_json_that_was_cut_off_is_never_whole() -> None:
    number = compile_contract({"json_schema": {"type": "integer"}})
    assert (number.broken_by("12"), number.broken_by("12", cut=True)) == (
        None,
        "The answer was cut off: its JSON is not whole.",
    )
    assert compile_contract({"regex": "1+"}).broken_by("11", cut=True) is None
