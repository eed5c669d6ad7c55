"""The rows of a training: nothing leaks into the held-out part, older rows only fill up, and faults have their line."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from monitoring.evaluation.dataset import DatasetLimits, DatasetReader, Row, join_groups
from monitoring.training.loss_plot import draw_losses
from monitoring.training.preparation import prepare
from monitoring.training.preparation_job import Preparation, PreparationJob
from monitoring.training.rows import find_refuted, read_rows, rehearse, split_heldout


def rows_of(groups: list[int], answer: str = "yes") -> list[Row]:
    return [
        Row(number, f"r{number}", number + 1, answer, [{"role": "user", "content": f"Item {number}"}], group=group)
        for number, group in enumerate(groups)
    ]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=80), st.floats(0, 0.9), st.integers(0, 5))
def test_no_group_is_both_trained_on_and_held_out(groups: list[int], share: float, seed: int) -> None:
    rows = rows_of(groups)
    train, heldout = split_heldout(rows, share, seed)
    assert train
    assert sorted(row.number for row in train + heldout) == list(range(len(rows)))
    assert not {row.group for row in train} & {row.group for row in heldout}
    assert split_heldout(rows, share, seed) == (train, heldout)


def test_group_with_most_of_the_rows_is_trained_on() -> None:
    rows = rows_of([0] * 300 + list(range(1, 21)))
    sizes = {len(split_heldout(rows, 0.1, seed)[1]) for seed in range(40)}
    assert sizes == {2}


@given(st.integers(1, 60), st.integers(0, 10), st.integers(0, 90), st.floats(0.05, 0.9))
def test_rehearsed_rows_are_older_ones_without_a_newer_answer(new: int, held: int, old: int, share: float) -> None:
    rows, heldout = rows_of([0] * new), rows_of([0] * (new + held))[new:]
    older = rows_of([0] * old, "old")
    rehearsed = rehearse(rows, heldout, older, share, 1)
    assert len(rehearsed) == min(max(0, old - new - held), round(share / (1 - share) * new))
    assert all(row.expected == "old" and row.number >= new + held for row in rehearsed)


@given(st.integers(0, 20))
def test_an_equal_request_of_another_group_is_held_out_with_its_like(seed: int) -> None:
    given = [(f"{text} {case}", f"{group}{case}") for case in range(6) for text, group in ("Xa", "Yb", "Ya")]
    lines = [json.dumps({"text": text, "group": group, "expected": "yes"}) + "\n" for text, group in given]
    rows = DatasetReader(DatasetLimits(100, 10_000, 1000)).feed("".join(lines).encode())
    train, heldout = split_heldout(rows, 0.5, seed)
    assert heldout
    assert not {str(row.messages) for row in train} & {str(row.messages) for row in heldout}


def test_chats_that_begin_alike_are_no_one_group() -> None:
    texts = [(text, n) for n in range(60) for text in ("hi", f"Question {n}", f"And then {n}")]
    lines = [json.dumps({"text": text, "group": f"c{n}", "expected": "yes"}) + "\n" for text, n in texts]
    reader = DatasetReader(DatasetLimits(1000, 100_000, 1000))
    rows = join_groups(reader.feed("".join(lines).encode()), reader.joined)
    train, heldout = split_heldout(rows, 0.2, 1)
    assert 20 <= len(heldout) <= 80
    assert {row.group for row in heldout}.isdisjoint(row.group for row in train)
    assert not {str(row.messages) for row in train} & {str(row.messages) for row in heldout}
    assert reader.groups == 59, "each chat, but the first two that say hi; and copies of hi tell as much as one"


@given(st.sampled_from(["paraphrase", "parent"]))
def test_paraphrases_of_a_request_that_is_there_three_times_are_on_its_side(field: str) -> None:
    lines = []
    for n in range(180):
        whole = {"id" if field == "parent" else field: f"p{n}"}
        lines.append(json.dumps({"text": f"Said {n // 3} {n}", "expected": f"{n // 3}", **whole}) + "\n")
        lines.append(json.dumps({"text": f"Said {n // 3}", "expected": f"{n // 3}", field: f"p{n}"}) + "\n")
    reader = DatasetReader(DatasetLimits(1000, 100_000, 1000))
    rows = join_groups(reader.feed("".join(lines).encode()), reader.joined)
    sides = [{row.expected for row in side} for side in split_heldout(rows, 0.2, 1)]
    assert reader.groups == len(sides[0]) + len(sides[1]) == 60


def test_rows_with_equal_tools_share_them_in_memory(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "refund", "description": "Pay back. " * 10_000}}]
    lines = [json.dumps({"text": f"Item {n}", "expected": "yes", "tools": tools}) + "\n" for n in range(100)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    tracemalloc.start()
    try:
        rows = read_rows(tmp_path / "rows.jsonl", DatasetLimits(1000, 1 << 30, 1 << 20))
        train, heldout = split_heldout(rows, 0.5, 1)
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert [each.tools for each in train + heldout] == [tools] * 100
    assert size < 3_000_000, "the tools once, not 100 times"


def test_older_rows_that_are_near_a_held_out_one_are_not_rehearsed() -> None:
    asked = "I bought a toaster 12 days ago in Lyon, it is sealed, and the receipt is in my drawer. May it go back?"
    heldout = [structs.replace(rows_of([0])[0], messages=[{"role": "user", "content": asked}])]
    changes = [("12", "13"), ("I bought", "i  BOUGHT"), (asked, "May I return a kite that I was given in Oslo?")]
    older = [
        structs.replace(row, messages=[{"role": "user", "content": asked.replace(*change)}])
        for row, change in zip(rows_of([0] * 3, "old"), changes, strict=True)
    ]
    for share in (0.5, 0.01):
        rehearsed = rehearse(rows_of([0] * 100), heldout, older, share, 1)
        assert [row.number for row in rehearsed] == [2]


def judged(expected: str, rejected: str, count: int) -> list[Row]:
    return [structs.replace(row, rejected=rejected) for row in rows_of([0] * count, expected)]


def older_rows(*answers: str) -> list[Row]:
    return [
        structs.replace(row, messages=None, prompt=f"Old {answer} {row.number}")
        for answer in answers
        for row in rows_of([0, 0], answer)
    ]


def test_older_rows_are_not_rehearsed_whose_answers_labels_refute() -> None:
    new = [*judged("approve", "deny", 8), *judged("approve", "escalate", 4), *judged("deny", "", 2)]
    new += judged("approve", "", 20)
    assert find_refuted(new) == {"deny"}
    rehearsed = rehearse(new, [], older_rows("deny", "escalate", "approve"), 0.5, 1)
    assert Counter(row.expected for row in rehearsed) == {"escalate": 2, "approve": 2}


def test_nothing_is_refuted_by_complaints_alone() -> None:
    assert find_refuted([*judged("approve", "deny", 50), *judged("deny", "", 3)]) == frozenset()
    assert find_refuted([]) == frozenset()


def test_the_newest_of_older_rows_of_one_request_counts() -> None:
    newer, older = rows_of([0] * 40, "newer")[30:], rows_of([0] * 40, "older")[30:]
    rehearsed = rehearse(rows_of([0] * 30), [], [*newer, *older], 0.5, 1)
    assert {row.expected for row in rehearsed} == {"newer"}


def job_of(folder: Path, **files: str) -> PreparationJob:
    limits: dict[str, Any] = {"rows_max": 100, "bytes_max": 10_000, "datasets": str(folder)}
    older = [files["older"]] if "older" in files else []
    return PreparationJob(str(folder), files["train"], files.get("heldout", ""), older, 0.2, 0.5, 7, **limits)


def test_empty_held_out_file_is_as_none_and_a_broken_row_is_told_by_its_line(tmp_path: Path) -> None:
    train, empty, broken = (tmp_path / name for name in ("train.jsonl", "empty.jsonl", "broken.jsonl"))
    lines = [json.dumps({"text": f"Item {number}", "expected": "yes"}) for number in range(10)]
    train.write_text("\n".join(lines))
    empty.touch()
    assert prepare(job_of(tmp_path, train=str(train), heldout=str(empty))) == Preparation(rows=8, heldout=2)
    older = prepare(job_of(tmp_path, train=str(train), older=str(empty)))
    assert older == Preparation(rows=8, heldout=2), "all of it was erased"
    broken.write_text(lines[0] + '\n{"text": "Item"}\n')
    assert prepare(job_of(tmp_path, train=str(broken))).error.startswith("Line 2: ")


def test_long_row_of_a_data_set_is_trained_on(tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps({"text": "x" * length, "expected": "yes"}) + "\n" for length in (9000, 1, 2)))
    assert prepare(job_of(tmp_path, train=str(train))).rows == 2
    train.write_text(json.dumps({"text": "x" * 11_000, "expected": "yes"}))
    assert "more than 10000 bytes" in prepare(job_of(tmp_path, train=str(train))).error


def test_plot_escapes_its_title_and_needs_no_points() -> None:
    assert "&lt;b&gt;" in draw_losses("<b>", [], [])
    assert draw_losses("t", [[1, 0.5], [2, 0.25]], [[2, 0.5, 1.0]]).count("<polyline") == 2
