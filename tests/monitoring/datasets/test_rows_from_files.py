"""Rows of files in every form that is taken; a row that can't be read is told with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from msgspec import structs

from monitoring.datasets.export_run import as_openai
from monitoring.datasets.rows import DataRow, LeftOut, digest_of_input
from monitoring.datasets.rows_from_files import SourceFile, read_rows
from monitoring.evaluation.dataset import DatasetError, DatasetLimits, DatasetReader

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


def test_pairs_of_hugging_face_are_taken_in_each_of_their_forms(tmp_path: Path) -> None:
    no, question = {**YES, "content": "no"}, [{"role": "user", "content": "A kettle."}]
    rows = (
        {"prompt": "A kettle.", "chosen": "yes", "rejected": "no"},
        {"prompt": question, "chosen": [YES], "rejected": [no]},
        {"chosen": [*question, YES], "rejected": [*question, no]},
        {"prompt": "A kettle.", "messages": [*question, YES], "chosen": [*question, YES], "rejected": [*question, no]},
    )
    read_ones = read(lines(tmp_path / "pairs.jsonl", *rows, {"chosen": "yes", "rejected": "no"}))
    assert [(row.messages, row.rejected) for row in read_ones[:-1] if isinstance(row, DataRow)] == [
        ([*question, YES], "no")
    ] * 4
    fault = read_ones[-1]
    assert isinstance(fault, LeftOut)
    assert fault.fault == "Line 5: it asks nothing: give a prompt beside chosen and rejected."
    table = lines_of(tmp_path / "pairs.csv", "prompt,chosen,rejected", "A kettle.,yes,no")
    assert only(table).rejected == "no"


def test_an_answer_in_parts_is_its_text_and_other_parts_are_no_answer(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "y"}, {"type": "text", "text": "es"}]
    assert only(lines(tmp_path / "a.jsonl", {"messages": [*ASKED, {**YES, "content": parts}]})).answer == "yes"
    pair = {"input": {"messages": ASKED}, "preferred_output": [{**YES, "content": parts}]}
    assert only(lines(tmp_path / "b.jsonl", pair)).answer == "yes"
    refusing = {**YES, "content": [{"type": "refusal", "refusal": "I can't."}]}
    (fault,) = read(lines(tmp_path / "c.jsonl", {"messages": [*ASKED, refusing]}))
    assert isinstance(fault, LeftOut)


def test_each_answer_of_a_chat_is_a_row_of_its_group_but_for_those_of_weight_0(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function"}]}
    said = [
        {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "A kettle."},
        {**YES, "weight": 1}, {"role": "user", "content": "A toaster."}, {**YES, "content": "no", "weight": 0},
        {"role": "user", "content": "A kite."}, call, {"role": "tool", "tool_call_id": "c1", "content": "sealed"}, YES,
    ]  # fmt: skip
    rows = [
        row for row in read(lines(tmp_path / "a.jsonl", {"messages": said, "id": "r1"})) if isinstance(row, DataRow)
    ]
    assert [(row.id, row.group, len(row.messages), row.answer) for row in rows] == [
        ("r1", "r1", 9, "yes"), ("r1-2", "r1", 3, "yes"),
    ]  # fmt: skip
    assert all("weight" not in message for row in rows for message in row.messages)
    chat = [*ASKED, YES, *ASKED[1:], {**YES, "weight": 0}]
    assert only(lines(tmp_path / "b.jsonl", {"messages": chat, "id": "r2"})).messages == [*ASKED, YES]
    request = "01890a5d-ac96-774b-bcce-b302099a8057-0123456789abcdef"
    unnamed, named = ({"messages": [*ASKED, YES, *ASKED[1:], YES]} | more for more in ({}, {"id": request}))
    rows = [row for row in read(lines(tmp_path / "c.jsonl", unnamed, named)) if isinstance(row, DataRow)]
    assert len({row.id for row in rows}) == 4
    assert rows[0].group == rows[1].group != request
    assert [row.request for row in rows] == [None, None, request, request]
    (fault,) = read(lines(tmp_path / "d.jsonl", {"messages": [*ASKED, {**YES, "weight": 0}]}))
    assert isinstance(fault, LeftOut)
    assert "Line 1: each answer in it has the weight 0" in fault.fault


def test_instructions_of_alpaca_and_conversations_of_sharegpt_are_taken(tmp_path: Path) -> None:
    alpaca = {"instruction": "Decide.", "input": "A kettle.", "output": "yes", "id": "r1"}
    before = {**alpaca, "input": "", "system": "Be brief.", "history": [["Hello", "Hi"]]}
    whole = {**alpaca, "text": "Below is an instruction. Decide. A kettle. yes", "id": "r2"}
    dolly = {"instruction": "Decide.", "context": "A kettle.", "response": "yes", "category": "closed_qa"}
    rows = read(lines(tmp_path / "alpaca.jsonl", alpaca, before, whole, dolly))
    assert [row.messages for row in rows if isinstance(row, DataRow)] == [
        [{"role": "user", "content": "Decide.\n\nA kettle."}, YES],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "Decide."},
            YES,
        ],
        [{"role": "user", "content": "Decide.\n\nA kettle."}, YES],
        [{"role": "user", "content": "Decide.\n\nA kettle."}, YES],
    ]
    turns = [
        {"from": "system", "value": "Decide."},
        {"from": "human", "value": "A kettle."},
        {"from": "gpt", "value": "yes"},
    ]
    assert only(lines(tmp_path / "sharegpt.jsonl", {"conversations": turns})).messages == [*ASKED, YES]
    aside = {"system": "Decide.", "conversations": turns[1:]}
    assert only(lines(tmp_path / "aside.jsonl", aside)).messages == [*ASKED, YES]
    ours = {"text": "A kettle.", "expected": "yes", "instruction": "Be kind."}
    assert only(lines(tmp_path / "ours.jsonl", ours)).messages == [{"role": "user", "content": "A kettle."}, YES]
    bad = (
        {"conversations": [*turns, {"from": "narrator", "value": "So it was."}]},
        {**alpaca, "history": [["alone"]]},
        {**alpaca, "history": 5},
    )
    faults = read(lines(tmp_path / "bad.jsonl", *bad))
    assert [row.fault for row in faults if isinstance(row, LeftOut)] == [
        "Line 1: a turn of its conversations is `from` none of system, human, user, gpt, assistant.",
        "Line 2: a turn of its history is not a pair of a question and an answer.",
        "Line 3: a turn of its history is not a pair of a question and an answer.",
    ]


@pytest.mark.parametrize(
    "head", ["Text;Price, EUR;Answer", '"Text";"Price, EUR, net";Answer', "Text\tPrice, EUR\tAnswer"]
)
def test_separator_of_a_table_is_not_a_comma_within_a_name(tmp_path: Path, head: str) -> None:
    path, mark = tmp_path / "rows.csv", "\t" if "\t" in head else ";"
    path.write_text(f"{head}\nA kettle.{mark}12,50{mark}yes\n")
    assert only(path, text="Text", expected="Answer").messages == [ASKED[1], YES]


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
    (fault,) = read(lines(tmp_path / "empty.jsonl", {**answered, "output": {"raw": None, "parsed": None}}))
    assert isinstance(fault, LeftOut)
    assert fault.fault == "Line 1: it has no expected answer: give one as `expected`."


LOOK = {"name": "look", "description": "Look an order up.", "parameters": {"type": "object"}, "strict": False}
CALLED = {"type": "tool_call", "id": "c1", "raw_name": "look", "raw_arguments": '{"order": "A-7"}'}
CHAT_INFERENCE = {
    "inference_id": "03",
    "input": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Where is A-7?"}]},
            {"role": "assistant", "content": [
                {"type": "thought", "text": "Look it up."},
                {"type": "text", "text": "One moment."},
                {"type": "tool_call", "id": "c0", "name": "look", "arguments": "{}"},
            ]},
            {"role": "user", "content": [
                {"type": "text", "text": "Well?"},
                {"type": "tool_result", "id": "c0", "name": "look", "result": "Which order?"},
            ]},
        ]
    },
    "output": [{"type": "thought", "text": "Again."}, CALLED | {"name": "look", "arguments": {"order": "A-7"}}],
}  # fmt: skip


@pytest.mark.parametrize(
    "offer",
    [
        {"additional_tools": [LOOK], "tool_choice": {"specific": "look"}, "parallel_tool_calls": False},
        {
            "dynamic_tools": [json.dumps({"type": "client_side_function"} | LOOK)],
            "allowed_tools": '{"tools": [], "choice": "function_default"}',
            "tool_choice": '{"specific":"look"}',
            "parallel_tool_calls": False,
            "tool_params": "",
        },
        {
            "dynamic_tools": [],
            "tool_params": json.dumps(
                {"tools_available": [LOOK], "tool_choice": {"specific": "look"}, "parallel_tool_calls": False}
            ),
        },
        {
            "tools": [{"type": "function", "function": LOOK}],
            "tool_choice": {"type": "function", "function": {"name": "look"}},
            "parallel_tool_calls": False,
        },
    ],
    ids=["API", "table", "older table", "added"],
)
def test_tools_of_tensorzero_and_calls_of_them_are_taken(tmp_path: Path, offer: dict[str, object]) -> None:
    row = only(lines(tmp_path / "tools.jsonl", CHAT_INFERENCE | offer))
    call = {"id": "c0", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    assert row.messages[:-1] == [
        {"role": "user", "content": "Where is A-7?"},
        {"role": "assistant", "content": "One moment.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c0", "content": "Which order?"},
        {"role": "user", "content": "Well?"},
    ]
    assert row.answer == '{"tool_calls":[{"arguments":{"order":"A-7"},"name":"look"}]}'
    assert row.messages[-1]["content"] is None
    assert (row.tools, row.parallel_tool_calls) == ([{"type": "function", "function": LOOK}], False)
    assert row.tool_choice == {"type": "function", "function": {"name": "look"}}


def test_rows_of_tensorzero_that_cannot_be_taken_are_refused_by_line(tmp_path: Path) -> None:
    offer = {"additional_tools": [LOOK]}
    question = {"role": "user", "content": [{"type": "file", "mime_type": "image/png", "storage_path": {}}]}
    text = [{"type": "text", "text": "It is here."}]
    path = lines(
        tmp_path / "faults.jsonl",
        CHAT_INFERENCE,
        CHAT_INFERENCE | {"input": {"messages": [question]}},
        CHAT_INFERENCE | offer | {"output": [CALLED | {"raw_name": "burn"}]},
        CHAT_INFERENCE | offer | {"output": text, "dispreferred_outputs": [[CALLED]]},
        CHAT_INFERENCE | {"output": text, "staled_at": "2026-11-01 10:00:00"},
        CHAT_INFERENCE | {"output": text, "tool_params": "{}", "dynamic_tools": "['{}']"},
    )
    assert [each.fault for each in read(path) if isinstance(each, LeftOut)] == [
        "Line 1: its answer calls 'look', but it has no tools: add them as `tools`.",
        "Line 2: it has a block of the type 'file': only texts and calls of tools can be taken: leave it out.",
        "Line 3: its answer calls 'burn', which its tools do not have: add it.",
        "Line 4: an answer of a pair calls a tool: only texts can be compared: leave it out.",
        "Line 5: it was changed or deleted in TensorZero: leave it out.",
        "Line 6: its tools are not a list of objects with a function and its name.",
    ]


def test_values_of_parquet_that_json_does_not_have_are_taken_as_texts(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    columns = (
        "'What does it cost?' AS text, 12.50::DECIMAL(9, 2) AS expected, 'r1'::BLOB AS id, "
        "'2026-11-01 10:00:00'::TIMESTAMP AS at, uuid() AS session, ['2026-11-01'::DATE] AS days"
    )
    duckdb.sql(f"COPY (SELECT {columns}) TO '{path}' (FORMAT parquet)")
    row = only(path)
    assert (row.answer, row.id, row.at) == ("12.50", "r1", 1793527200.0)


@pytest.mark.parametrize("content", [r'"\ud800"', "NaN", "[" * 100_000])
def test_messages_in_a_table_that_are_no_json_are_told_as_a_row_that_can_not_be_read(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "rows.parquet"
    messages = f'[{{"role": "user", "content": {content}}}]'
    duckdb.execute(f"COPY (SELECT $1 AS messages, 'yes' AS expected) TO '{path}' (FORMAT parquet)", [messages])
    (row,) = read(path)
    assert isinstance(row, LeftOut)
    assert row.fault == "Line 1: its messages are not a list of objects with role and content."


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
    table.write_text('text,expected\nA,yes\n"A\nB",no\n"open,no\nC,yes\n')
    with pytest.raises(DatasetError, match=r"rows\.csv, line 5: the row that begins there is no CSV"):
        read(table)
    table.write_text("text,note,text,note,expected\nA,,B,,yes\n")
    with pytest.raises(DatasetError, match=r"rows\.csv has two columns 'text': which one counts"):
        read(table)
    for name, content in (("x.json", "{"), ("x.parquet", "PAR1"), ("x.csv", "a,b\n1,2\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DatasetError, match=name):
            read(tmp_path / name)


def test_the_form_of_a_file_is_told_by_its_first_bytes_too(tmp_path: Path) -> None:
    assert only(lines(tmp_path / "lines.json", {"text": "A kettle.", "expected": "yes"}, "")).answer == "yes"
    assert only(lines_of(tmp_path / "table.txt", "text|expected", "A kettle.|yes", "|", "")).answer == "yes"
    assert only(lines_of(tmp_path / "list", '[{"text": "A kettle.", "expected": "yes", "id": null}]')).answer == "yes"


def test_a_table_without_a_column_of_answers_is_one_fault_that_names_its_columns(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("text,verdict\nA kettle.,yes\nA lamp.,no\n")
    known = "answer, assistant, chosen, class, completion, expected, label, messages, output, preferred_output"
    with pytest.raises(DatasetError) as caught:
        read(table)
    assert str(caught.value) == (
        "rows.csv has no column expected: name one, as in --column expected=NAME. "
        f"It has text, verdict; known are {known}, response."
    )
    assert only(lines_of(table, "text,class", "A kettle.,yes")).answer == "yes"


def lines_of(path: Path, *texts: str) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json"])
def test_utf_16_and_a_damaged_file_are_one_fault_each(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes('{"text": "A kettle.", "expected": "yes"}\n'.encode("utf-16") * 30)
    with pytest.raises(DatasetError, match=rf"The rows of {name} are UTF-16: save them as UTF-8\."):
        read(path)
    path.write_bytes(bytes(100))
    with pytest.raises(DatasetError, match=f"The rows of {name} have bytes of zero"):
        read(path)
    with pytest.raises(DatasetError, match="The data have bytes of zero"):
        DatasetReader(DatasetLimits(10, 1000, 1000)).feed(bytes(100))


def test_a_damaged_parquet_file_is_told_without_the_path_that_it_has_here(tmp_path: Path) -> None:
    parquet = tmp_path / "sent-file"
    rows = "SELECT 'A kettle ' || i AS text, 'yes' AS expected FROM range(5000) t(i)"
    duckdb.sql(f"COPY ({rows}) TO '{parquet}.parquet'")
    whole = Path(f"{parquet}.parquet").read_bytes()
    for content in (b"PAR1", whole[:200] + bytes(len(whole) - 1200) + whole[-1000:]):
        parquet.write_bytes(content)
        with pytest.raises(DatasetError, match=r"rows\.parquet is not Parquet, or is damaged") as caught:
            list(read_rows(SourceFile("rows.parquet", str(parquet), {})))
        assert str(tmp_path) not in str(caught.value)


def test_an_answer_that_calls_a_tool_is_refused_with_its_line(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    calling = {"role": "assistant", "content": "One moment.", "tool_calls": [call]}
    path = lines(
        tmp_path / "tools.jsonl",
        {"messages": [*ASKED, calling]},
        {"messages": [*ASKED, {**calling, "content": None}]},
        {"input": {"messages": ASKED}, "preferred_output": [calling], "non_preferred_output": [YES]},
        {"messages": [*ASKED, calling, {"role": "tool", "tool_call_id": "c1", "content": "sealed"}, YES]},
    )
    *refused, taken = read(path)
    assert [each.fault for each in refused if isinstance(each, LeftOut)] == [
        "Line 1: its answer calls 'look', which its tools do not have: add it.",
        "Line 2: its answer calls 'look', which its tools do not have: add it.",
        "Line 3: an answer of a pair calls a tool: only texts can be compared: leave it out.",
    ]
    assert isinstance(taken, DataRow)
    assert taken.messages[2] == calling


def test_a_row_keeps_its_tools_and_each_call_of_them_is_an_answer(tmp_path: Path) -> None:
    arguments = '{"order": "A-7", "eur": 12.5}'
    call = {"id": "c1", "type": "function", "function": {"name": "refund", "arguments": arguments}}
    calling = {"role": "assistant", "tool_calls": [call]}
    offer = {"tools": [{"type": "function", "function": {"name": "refund"}}], "parallel_tool_calls": False}
    done = {"role": "tool", "tool_call_id": "c1", "content": "done"}
    path = lines(
        tmp_path / "tools.jsonl",
        {"messages": [*ASKED, calling, done, YES], **offer},
        {"messages": [*ASKED, {**calling, "weight": 0}, done, YES], **offer},
        {"messages": [*ASKED, YES]},
        {
            "messages": [*ASKED, {**calling, "tool_calls": [{"function": {"name": "refund", "arguments": "{"}}]}],
            **offer,
        },
        {"messages": [*ASKED, YES], "tools": ["refund"]},
        {"messages": [*ASKED, {**calling, "tool_calls": [{"function": "refund"}]}], **offer},
        {"messages": ASKED, "expected": {"tool_calls": [{"name": "burn"}]}, **offer},
    )
    text, called, weighed, plain, *faults = read(path)
    assert all(isinstance(each, DataRow) for each in (text, called, weighed, plain))
    assert isinstance(called, DataRow)
    assert isinstance(text, DataRow)
    assert isinstance(plain, DataRow)
    assert called.messages[-1] == {**calling, "content": None}
    assert called.answer == '{"tool_calls":[{"arguments":{"eur":12.5,"order":"A-7"},"name":"refund"}]}'
    assert (called.tools, called.parallel_tool_calls, text.answer) == (offer["tools"], False, YES["content"])
    assert called.group == text.group
    assert digest_of_input(plain) != digest_of_input(structs.replace(plain, tools=called.tools)), "another request"
    assert '"tools":' not in msgspec.json.encode(plain).decode()
    assert [each.fault for each in faults if isinstance(each, LeftOut)] == [
        "Line 4: the arguments of a call in its answer are not a JSON object.",
        "Line 5: its tools are not a list of objects with a function and its name.",
        "Line 6: its answer calls 'nothing', which its tools do not have: add it.",
        "Line 7: its answer calls 'burn', which its tools do not have: add it.",
    ]
    expected = {"tool_calls": [{"id": "c1", "name": "refund", "arguments": json.loads(arguments)}]}
    for given in (expected, json.dumps(expected)):
        short = only(lines(tmp_path / "short.jsonl", {"messages": ASKED, "expected": given, **offer}))
        assert (short.answer, short.messages[-1]["tool_calls"][0]["id"]) == (called.answer, "c1")
    bare = only(lines(tmp_path / "bare.jsonl", {"messages": ASKED, "expected": expected}))
    assert bare.messages[-1]["content"].startswith('{"tool_calls"'), "without tools it is a text"
    out = as_openai(called, "sft")
    assert out == {"messages": [*ASKED, {**calling, "content": None}], **offer}
    assert only(lines(tmp_path / "again.jsonl", out)).messages == called.messages
    pair = as_openai(structs.replace(text, rejected="No."), "dpo")
    again, *_ = read(lines(tmp_path / "pairs.jsonl", pair or {}))
    assert isinstance(again, DataRow)
    assert (again.tools, again.parallel_tool_calls) == (offer["tools"], False)


def test_rows_of_evals_are_taken(tmp_path: Path) -> None:
    item = {"ticket": "My monitor is black.", "right": "Hardware", "language": "en"}
    path = lines(tmp_path / "items.jsonl", {"item": item}, {"item": item | {"ticket": "X"}, "sample": {"output": "y"}})
    rows = read(path, text="ticket", expected="right")
    assert [row.messages[0]["content"] for row in rows if isinstance(row, DataRow)] == [item["ticket"], "X"]
    assert (
        only(lines(tmp_path / "known.jsonl", {"item": {"question": "A kettle.", "answer": "yes"}})).messages[-1] == YES
    )
    chat, text = {"input": ASKED, "ideal": "yes"}, {"input": "A kettle.", "ideal": ["yes"]}
    assert only(lines(tmp_path / "chat.jsonl", chat)).messages == [*ASKED, YES]
    assert only(lines(tmp_path / "text.jsonl", text)).messages == [ASKED[1], YES]
    (several,) = read(lines(tmp_path / "several.jsonl", {"input": "A kettle.", "ideal": ["yes", "no"]}))
    assert isinstance(several, LeftOut)
    assert several.fault == "Line 1: its ideal has 2 answers: leave the one that is right."
