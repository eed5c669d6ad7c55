"""Data sets: what is read, and what is said of data that can't be used, with the line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.evaluation.dataset import DatasetError, DatasetLimits, DatasetReader, Row, join_groups

LIMITS = DatasetLimits(rows_max=100, bytes_max=100_000, row_bytes_max=2000)
GOOD: dict[str, Any] = {"text": "A toaster.", "expected": "approve"}


def read(data: bytes, limits: DatasetLimits = LIMITS) -> list[Row]:
    reader = DatasetReader(limits)
    return [*reader.feed(data), *reader.end()]


def lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_a_row_asks_by_messages_by_text_or_by_a_prompt() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A toaster."}]
    first, second, third = read(
        lines({"messages": chat, "expected": "a"}, GOOD, {"id": 7, "prompt": "Once", "expected": {"b": 1, "a": None}})
    )
    assert first.messages == chat
    assert second.messages == [{"role": "user", "content": "A toaster."}]
    assert (third.prompt, third.messages, third.id) == ("Once", None, "7")
    assert third.expected == '{"a":null,"b":1}'
    assert [row.id for row in (first, second)] == ["line-1", "line-2"]


def test_the_examples_data_are_read_as_they_are() -> None:
    row = {"id": "dev-1", "origin": "template", "facts": {"days": 14}, "text": "Hi", "label": '{"decision":"deny"}'}
    (found,) = read(lines(row))
    assert (found.expected, found.label) == ('{"decision":"deny"}', None)


def test_a_label_is_the_rows_class_where_something_else_is_expected() -> None:
    assert [row.label for row in read(lines({**GOOD, "label": "fair"}, {**GOOD, "class": 3}))] == ["fair", "3"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no row"),
        (b"\n \n", "no row"),
        (lines(GOOD) + b"\xff\xfe\n", "Line 2: it is not text in UTF-8"),
        (lines(GOOD) + b"{no\n", "Line 2: it is not JSON"),
        (b"[1]\n", "Line 1: it is not a JSON object"),
        (b"[" * 1500 + b"\n", "Line 1: it is not JSON"),
        (lines({"text": "A toaster."}), "Line 1: it has no expected answer"),
        (lines({**GOOD, "expected": ""}), "Line 1: it has no expected answer"),
        (lines({"expected": "a"}), "Line 1: it asks nothing"),
        (lines({**GOOD, "prompt": "x"}), "Line 1: it has prompt and text"),
        (lines({"messages": ["x"], "expected": "a"}), "Line 1: its messages"),
        (lines({"messages": [], "expected": "a"}), "Line 1: its messages"),
        (lines({"text": 3, "expected": "a"}), "Line 1: its text is not text"),
        (lines({**GOOD, "id": "one"}, {**GOOD, "id": "one"}), "Line 2: the id 'one' is that of line 1"),
        (lines({**GOOD, "id": {}}), "Line 1: its id"),
        (lines({**GOOD, "label": "x" * 300}), "Line 1: its label"),
        (lines({**GOOD, "text": "x" * 3000}), "Line 1: it has more than 2000 bytes"),
        (b"x" * 2500, "Line 1: it has more than 2000 bytes"),
        (lines(*[GOOD] * 101), "Line 101: the data have more than 100 rows"),
        (lines({**GOOD, "text": "x" * 1900}) * 60, "more than 100000 bytes"),
        (lines({**GOOD, "text": " \n"}), "Line 1: its text is not text, or empty"),
        (lines({**GOOD, "expected": " "}), "Line 1: it has no expected answer"),
    ],
)
def test_what_can_not_be_used_is_said_with_its_line(data: bytes, said: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read(data)
    assert said in str(caught.value)


def test_all_rows_that_cannot_be_read_are_named_together() -> None:
    with pytest.raises(DatasetError) as caught:
        read(lines({"text": "A toaster."}, GOOD, {"expected": "a"}) + b"{no")
    assert str(caught.value).startswith("3 rows can't be read. Line 1: it has no expected answer")
    assert all(f" Line {line}: " in str(caught.value) for line in (3, 4))


def test_rows_that_cannot_be_read_count_towards_the_most_rows() -> None:
    reader = DatasetReader(LIMITS)
    with pytest.raises(DatasetError, match=r"101 rows can't be read\. Line 1: .* 81 more are like that\."):
        reader.feed(b"0\n" * 1_000)


def test_rows_that_repeat_or_contradict_are_counted() -> None:
    reader = DatasetReader(LIMITS)
    reader.feed(lines(GOOD, GOOD, {**GOOD, "expected": "deny"}))
    reader.end()
    assert (reader.rows, reader.repeated, reader.contradicted) == (3, 1, 1)


def test_rows_of_one_parent_or_group_and_equal_requests_are_one_group() -> None:
    found = read(
        lines(
            {"id": "a", "text": "one", "expected": "x"},
            {"id": "b", "text": "two", "expected": "x", "parent": "a"},
            {"id": "c", "text": "three", "expected": "x", "group": 7},
            {"id": "d", "text": "four", "expected": "x", "group": "7"},
            {"id": "e", "text": "two", "expected": "y"},
            {"id": "f", "text": "five", "expected": "x", "parent": "g"},
            {"id": "g", "text": "six", "expected": "x"},
            {"id": "7", "text": "seven", "expected": "x"},
        )
    )
    assert [row.group for row in found] == [0, 0, 2, 2, 0, 5, 5, 7]


def test_a_row_that_belongs_to_two_groups_makes_one_of_them() -> None:
    reader = DatasetReader(LIMITS)
    found = reader.feed(
        lines(
            {"id": "a", "text": "one", "expected": "x", "group": "g1"},
            {"id": "b", "text": "two", "expected": "x", "group": "g2"},
            {"id": "c", "text": "three", "expected": "x", "parent": "z"},
            {"id": "d", "text": "two", "expected": "x", "group": "g1"},
            {"id": "e", "text": "four", "expected": "x", "group": "g2", "parent": "z"},
        )
    )
    assert [row.group for row in join_groups(found, reader.joined)] == [0, 0, 0, 0, 0]
    assert (reader.groups, {row.group for row in found[:3]}) == (1, {0, 1, 2})


@given(st.lists(st.integers(0, 400), max_size=8))
def test_any_cut_of_the_bytes_gives_the_same_rows(cuts: list[int]) -> None:
    data = b"\xef\xbb\xbf" + lines(GOOD, {**GOOD, "text": "Grüße, 返品"}) + b"\n" + lines({**GOOD, "id": "z"})[:-1]
    reader, rows, at = DatasetReader(LIMITS), [], 0
    for cut in sorted(min(cut, len(data)) for cut in cuts):
        rows += reader.feed(data[at:cut])
        at = cut
    rows += [*reader.feed(data[at:]), *reader.end()]
    assert rows == read(data)
    assert [row.line for row in rows] == [1, 2, 4]
