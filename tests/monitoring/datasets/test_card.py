"""The card of a data set: what production asks and no row has, and what synthetic rows are worth."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from monitoring.datasets import synthetic
from monitoring.datasets.build import BuiltSet
from monitoring.datasets.build_job import DatasetOptions, ExportJob
from monitoring.datasets.card import card_of
from monitoring.datasets.card_page import draw_bars, make_card_page
from monitoring.datasets.coverage import measure_coverage
from monitoring.datasets.export_run import run
from monitoring.datasets.foreign_rows import as_own_form
from monitoring.datasets.rows import DataRow
from monitoring.datasets.rows_from_files import SourceFile, data_row_of, read_rows
from monitoring.datasets.rows_from_traffic import KeptRows
from monitoring.datasets.synthetic import measure_synthetic

GOODS = ("toaster", "kettle", "novel", "kite", "lamp", "phone", "jacket", "vase")
STATES = ("sealed", "opened", "used", "broken")
ENDS = ("please help", "what now", "thank you", "can it go back", "is that possible")


def asked(draw: random.Random, extra: str = "") -> str:
    return f"{draw.choice(GOODS)} {draw.choice(STATES)} {extra} {draw.randrange(90)} days {draw.choice(ENDS)}"


def row(text: str, answer: str, origin: str = "real") -> DataRow:
    fields = {"text": text, "expected": answer, "class": answer, "origin": origin, "rejected": "maybe"}
    return data_row_of(fields, 1, "a.jsonl")


def built(train: list[DataRow], heldout: list[DataRow]) -> BuiltSet:
    return BuiltSet(train, heldout, [], [])


def test_rows_that_stand_twice_make_no_request_unlike_them() -> None:
    draw = random.Random(1)
    inputs, production = ([asked(draw) for _ in range(300)] for _ in range(2))
    texts = {f"r{n}": text for n, text in enumerate(production)}
    assert measure_coverage(inputs * 2, texts)["far"] == measure_coverage(inputs, texts)["far"]


def test_words_of_production_that_no_row_has_are_told_with_their_share() -> None:
    draw = random.Random(1)
    inputs = [asked(draw) for _ in range(300)]
    production = {f"r{n}": asked(draw, "cross-border customs" if n % 12 == 0 else "") for n in range(240)}
    found = measure_coverage(inputs, production)
    assert [(gap["requests"], gap["rows"]) for gap in found["gaps"]] == [(20, 0)]
    assert {found["gaps"][0]["word"], *found["gaps"][0]["together"]} == {"cross-border", "customs"}
    assert re.search("No example of “.*”.*: 8.3% of requests, such as r", found["words"][1])
    same = measure_coverage(inputs, {f"r{n}": asked(draw) for n in range(240)})
    assert not same["gaps"]
    assert same["far"] < 30
    unlike = measure_coverage(inputs, {f"r{n}": f"invoice {n} wrong currency, send another" for n in range(50)})
    assert unlike["far"] == 50
    assert "is unknown" in measure_coverage(inputs, {})["words"][0]
    many = measure_coverage(inputs, {f"r{n}": f"invoice {n} wrong currency, send another" for n in range(4500)})
    assert (many["requests"], many["far"]) == (4500, 4500)


def test_rows_without_words_fail_no_card() -> None:
    made = [row("👍" * count, "yes", "synthetic") for count in range(1, 25)]
    others = [row("👎" * count, "no") for count in range(1, 25)]
    found = measure_synthetic(built([*made, *others], []))
    assert found["distance"] is None
    assert "their use are unknown" in found["words"][-1]


def test_words_that_go_together_have_one_order_whatever_the_process() -> None:
    production = {f"r{n}": "winter parcels need seven customs forms" for n in range(40)}
    (gap,) = measure_coverage(["A toaster."], production)["gaps"]
    assert [gap["word"], *gap["together"]] == ["customs", "forms", "need", "parcels", "seven"]


def test_synthetic_rows_are_measured_by_distance_and_by_leaving_them_out() -> None:
    draw = random.Random(2)

    def made(count: int, origin: str = "real", wrong: bool = False, extra: str = "") -> list[DataRow]:
        texts = [asked(draw, extra) for _ in range(count)]
        return [row(text, "no" if ("used" in text) != wrong else "yes", origin) for text in texts]

    heldout = made(120)
    alike = measure_synthetic(built([*made(200), *made(100, "synthetic")], heldout))
    assert alike["share"] == 0.3333
    assert 0.35 < alike["distance"]["auroc"] < 0.65
    assert abs(alike["ablation"]["difference"]) <= 0.05
    harmful = measure_synthetic(built([*made(80), *made(300, "synthetic", wrong=True, extra="indeed")], heldout))
    assert harmful["distance"]["auroc"] > 0.95
    assert harmful["ablation"]["high"] < 0
    assert "with them on" in harmful["words"][2]
    assert measure_synthetic(built(made(30), heldout))["words"] == ["0.0% of the training rows are synthetic."]
    few_real = measure_synthetic(built(made(30, "synthetic"), heldout))["words"][1]
    assert few_real.startswith("Fewer than 20 are not")
    few_made = measure_synthetic(built([*made(300), *made(5, "synthetic")], heldout))["words"][1]
    assert few_made == "Those are fewer than 20: their distance and their use are unknown."


def test_leaving_synthetic_rows_out_leaves_the_same_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more rows than are compared the first ones alone count: synthetic ones displace none of the real ones."""
    monkeypatch.setattr(synthetic, "TEXTS_MAX", 100)
    draw = random.Random(3)
    right = [row(f"used {asked(draw)}", "no") for _ in range(25)] + [
        row(f"new {asked(draw)}", "yes") for _ in range(25)
    ]
    wrong = [row(f"used {asked(draw)}", "yes") for _ in range(500)] + [
        row(f"new {asked(draw)}", "no") for _ in range(9)
    ]
    told_of_first = [*right, *(row(asked(draw), "yes", "synthetic") for _ in range(50))]
    heldout = [row(f"used {asked(draw)}", "no") for _ in range(30)]
    cut = measure_synthetic(built(told_of_first, heldout))["ablation"]
    assert measure_synthetic(built([*told_of_first, *wrong], heldout))["ablation"] == cut


def test_the_page_has_every_figure_and_escapes_what_others_wrote() -> None:
    draw = random.Random(3)
    rows = [row(asked(draw), "<script>" if n % 2 else "yes") for n in range(40)]
    spelt = [msgspec.structs.replace(row, label=label) for row, label in zip(rows, ("Yes", "yes "), strict=False)]
    card = {"task": "t"} | card_of(built(spelt, []), DatasetOptions(), KeptRows())
    assert "Spell each class in one way: &#x27;Yes&#x27; and &#x27;yes &#x27;." in make_card_page(card)
    page = make_card_page({"task": "<b>", "digest": "d"} | card_of(built(rows, rows[:4]), DatasetOptions(), KeptRows()))
    assert "<script>" not in page
    assert "<b>" not in page
    assert (page.count("<svg"), "<h2>Left out" in page) == (3, False), "a picture of nothing"
    assert "kettle" not in page
    assert "60 more are in" in draw_bars({str(n): (n,) for n in range(100)})


def test_a_set_goes_out_in_the_forms_of_openai_and_of_hugging_face(tmp_path: Path) -> None:
    rows = [row("A kite.", "yes"), msgspec.structs.replace(row("A lamp.", "no"), rejected=None, at=5.0)]
    source = tmp_path / "train.jsonl"
    source.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in rows))
    target = tmp_path / "it's.out"
    assert run(ExportJob(str(source), str(target), "sft")) == 2
    tuning = [msgspec.json.decode(line) for line in target.read_bytes().splitlines()]
    assert tuning[0] == {"messages": [{"role": "user", "content": "A kite."}, {"role": "assistant", "content": "yes"}]}
    assert run(ExportJob(str(source), str(target), "dpo")) == 1
    pair = msgspec.json.decode(target.read_bytes())
    assert pair["input"]["messages"] == tuning[0]["messages"][:1]
    assert pair["preferred_output"][0]["content"] == "yes"
    assert data_row_of(as_own_form(pair, 1), 1, "a.jsonl").rejected == "maybe"
    assert run(ExportJob(str(source), str(target), "parquet")) == 2
    found = duckdb.execute('SELECT messages, class, "at" FROM read_parquet(?)', [str(target)]).fetchall()
    assert found == [(tuning[0]["messages"], "yes", None), (tuning[1]["messages"], "no", 5.0)]
    source.write_bytes(b"")
    assert run(ExportJob(str(source), str(target), "parquet")) == 0


def test_names_and_answers_that_look_like_messages_go_out_as_parquet_and_come_back(tmp_path: Path) -> None:
    source, target = tmp_path / "train.jsonl", tmp_path / "train.parquet"
    chat = [
        {"role": "user", "content": "Who spoke?", "name": "ann"},
        {"role": "assistant", "content": '[{"role":"user","content":"I did."}]'},
    ]
    source.write_bytes(msgspec.json.encode({"id": "1", "messages": chat}) + b"\n")
    assert run(ExportJob(str(source), str(target), "parquet")) == 1
    (row,) = read_rows(SourceFile("train.parquet", str(target)))
    assert isinstance(row, DataRow), row
    assert row.messages == chat


def test_calls_of_tools_go_out_as_parquet_and_come_back(tmp_path: Path) -> None:
    source, target = tmp_path / "train.jsonl", tmp_path / "train.parquet"
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"id": 7}'}}
    calling = [
        {"role": "user", "content": "A lamp."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "sealed", "tool_call_id": "c1"},
        {"role": "assistant", "content": "yes"},
    ]
    rows = [row("A kite.", "yes"), msgspec.structs.replace(row("A lamp.", "yes"), messages=calling)]
    source.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in rows))
    assert run(ExportJob(str(source), str(target), "sft")) == 2
    _, tuning = map(msgspec.json.decode, target.read_bytes().splitlines())
    assert [message.get("weight") for message in tuning["messages"]] == [None, 0, None, None]
    assert run(ExportJob(str(source), str(target), "parquet")) == 2
    read = list(read_rows(SourceFile("train.parquet", str(target))))
    assert [each.messages for each in read if isinstance(each, DataRow)] == [each.messages for each in rows]


def test_a_choice_of_tools_goes_out_as_parquet_and_comes_back(tmp_path: Path) -> None:
    source, target = tmp_path / "train.jsonl", tmp_path / "train.parquet"
    tool: dict[str, Any] = {"type": "function", "function": {"name": "look"}}
    asked = {"messages": [{"role": "user", "content": "A lamp."}], "tools": [tool]}
    called = {"tool_calls": [{"name": "look", "arguments": {}}]}
    given = ((tool, called), ("required", called), ("none", "yes"), ("auto", "yes"))
    rows = [data_row_of({**asked, "expected": answer, "tool_choice": choice}, 1, "") for choice, answer in given]
    rows.append(row("A kite.", "yes"))
    source.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in rows))
    assert run(ExportJob(str(source), str(target), "parquet")) == 5
    read = list(read_rows(SourceFile("train.parquet", str(target))))
    choices = [each.tool_choice or None for each in read if isinstance(each, DataRow)]
    assert choices == [tool, "required", "none", None, None]
    assert run(ExportJob(str(source), str(target), "sft")) == 5
    assert b"tool_choice" not in target.read_bytes(), "OpenAI's fine-tuning has no place for it"


def test_long_rows_are_exported_in_row_groups_that_memory_holds(tmp_path: Path) -> None:
    source, target = tmp_path / "train.jsonl", tmp_path / "train.parquet"
    texts = [f"{number:03} " * (1 << 17) for number in range(128)]
    rows = [{"id": text[:3], "messages": [{"role": "user", "content": text}]} for text in texts]
    source.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in rows))
    assert run(ExportJob(str(source), str(target), "parquet")) == 128
    groups = "SELECT sum(total_uncompressed_size) FROM parquet_metadata(?) GROUP BY row_group_id"
    assert max(size for (size,) in duckdb.execute(groups, [str(target)]).fetchall()) < 48 << 20
