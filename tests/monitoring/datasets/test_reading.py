"""Rows of files in every form that is taken; a row that can't be read is told with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from monitoring.datasets.reading import SourceFile, read_rows
from monitoring.datasets.rows import DataRow, LeftOut
from monitoring.evaluation.dataset import DatasetError

ASKED = [{"role": "system", "content": "Decide."}, {"role": "user", "content": "A kettle."}]
YES = {"role": "assistant", "content": "yes"}


def read(path: Path, **columns: str) -> list[DataRow | LeftOut]:
    return list(read_rows(SourceFile(path.name, str(path), columns)))


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows))
    return path


def only(path: Path, **columns: str) -> DataRow:
    (row,) = read(path, **columns)
    assert isinstance(row, DataRow), row
    return row


def test_rows_for_fine_tuning_and_pairs_of_preference_are_taken(tmp_path: Path) -> None:
    tuning = only(lines(tmp_path / "sft.jsonl", {"messages": [*ASKED, YES], "group": 7}))
    assert (tuning.messages, tuning.group, tuning.origin, tuning.source) == ([*ASKED, YES], "7", "real", "sft.jsonl")
    pair = {"input": {"messages": ASKED}, "preferred_output": [YES], "non_preferred_output": [{**YES, "content": "no"}]}
    preferred = only(lines(tmp_path / "dpo.jsonl", pair))
    assert (preferred.messages, preferred.rejected) == ([*ASKED, YES], "no")
    assert preferred.id == tuning.id  # the same chat


def test_inferences_of_tensorzero_are_taken_from_its_table_and_from_its_api(tmp_path: Path) -> None:
    asked = {"system": "Decide.", "messages": [{"role": "user", "content": [{"type": "text", "text": "A kettle."}]}]}
    inference = {
        "id": "01", "function_name": "returns", "variant_name": "a", "episode_id": "e1",
        "input": json.dumps(asked), "output": json.dumps([{"type": "text", "text": "yes"}]),
        "timestamp": "2026-11-01 10:00:00",
    }  # fmt: skip
    row = only(lines(tmp_path / "chat.jsonl", inference))
    assert (row.id, row.group, row.messages) == ("01", "e1", [*ASKED, YES])
    assert row.at == 1793527200.0
    asked["messages"][0]["content"] = [{"type": "text", "value": "A kettle."}]  # type: ignore[index]
    answered = {
        "type": "json", "inference_id": "02", "episode_id": "e1", "input": asked,
        "output": {"raw": '{"ok": true}', "parsed": {"ok": True}},
        "dispreferred_outputs": [{"raw": '{"ok": false}', "parsed": {"ok": False}}],
    }  # fmt: skip
    path = tmp_path / "api.json"
    path.write_text(json.dumps({"inferences": [answered]}))
    row = only(path)
    assert (row.id, row.answer, row.rejected) == ("02", '{"ok": true}', '{"ok": false}')
    calling = {**inference, "output": [{"type": "tool_call", "name": "look", "arguments": {}}]}
    (fault,) = read(lines(tmp_path / "tools.jsonl", calling))
    assert isinstance(fault, LeftOut)
    assert fault.fault == "Line 1: it has a block of the type 'tool_call': only texts can be taken."


def test_tables_are_taken_with_their_own_names_of_columns(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text('question,answer,origin\n"A kettle,\nsealed.",yes,hand\n', encoding="utf-8-sig")
    row = only(table)
    assert (row.messages[0]["content"], row.answer, row.origin) == ("A kettle,\nsealed.", "yes", "demonstrated")
    table.write_text("body,reply,text\nA kettle.,yes,unused\n")
    assert only(table, text="body", expected="reply").messages == [ASKED[1], YES]
    with pytest.raises(DatasetError, match="has no column 'bod': it has body, reply, text"):
        read(table, text="bod")
    parquet = tmp_path / "rows.parquet"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [*ASKED, YES], "class": "a"}) + "\n")
    duckdb.sql(f"COPY (FROM read_json('{tmp_path}/rows.jsonl')) TO '{parquet}' (FORMAT parquet)")
    row = only(parquet)
    assert (row.messages, row.label) == ([*ASKED, YES], "a")


def test_every_broken_row_is_told_with_its_line(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "rows.jsonl",
        {"text": "A", "expected": "yes"},
        "{broken",
        {"text": "A"},
        "",
        {"messages": [{"content": "x"}], "expected": "yes"},
        '"text"',
    )
    faults = [each for each in read(path) if isinstance(each, LeftOut)]
    assert [each.line for each in faults] == [2, 3, 5, 6]
    assert all(each.fault.startswith(f"Line {each.line}: it") or "message" in each.fault for each in faults)
    table = tmp_path / "rows.csv"
    table.write_text('text,expected\n"a\nb",yes\nc\nd,no,more\n')
    faults = [each for each in read(table) if isinstance(each, LeftOut)]
    assert [(each.line, "fewer" in each.fault) for each in faults] == [(4, True), (5, False)]
    for name, content in (("x.json", "{"), ("x.parquet", "PAR1"), ("x.csv", "a,b\n1,2\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DatasetError, match=name):
            read(tmp_path / name)
