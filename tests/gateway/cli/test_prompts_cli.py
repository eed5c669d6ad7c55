"""`apprentice adapters push --prompts` and `fit`: the forms of files, the words, and what is refused before sending."""

from __future__ import annotations

import csv
import json
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.cli.admin_client import Unusable
from gateway.cli.prompts import PROMPT_COLUMNS, as_lines
from router.fitting import background
from tests.gateway.cli.conftest import Command
from tests.walks.conftest import MakeAdapter
from tests.walks.gateway import RunningGateway
from tests.walks.scope_world import ROOT, lines, prompts
from tools.example_adapter import sample_prompts


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """Training prompts as lines of JSON, one of them twice and one empty."""
    path = tmp_path / "sample.jsonl"
    path.write_bytes(lines([*prompts("returns"), prompts("returns")[0], ""]))
    return path


async def test_a_push_with_prompts_waits_for_the_fitting_and_says_how_it_went(
    gateway: object, apprentice: Command, make_adapter: MakeAdapter, sample: Path
) -> None:
    pushed = await apprentice("adapters", "push", str(make_adapter(2)), "--prompts", str(sample))
    assert pushed.exit_code == 0, pushed.err
    assert "The scope of returns@v2 was fitted on 100 prompts (1 empty, 1 duplicates aside), AUROC " in pushed.out
    shown = await apprentice("adapters", "show", "returns@v2")
    assert "fitted on 100 prompts" in shown.out
    why = await apprentice("adapters", "why", "returns@v2")
    assert "Its scope model was fitted on 100 training prompts" in why.out


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_text_is_read_as_its_byte_order_mark_says(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    for name, text in (
        ("rows.csv", "text,id\r\nZurück — ✓,a\r\n"),
        ("rows.json", '[{"text": "Zurück — ✓", "id": "a"}]'),
    ):
        (tmp_path / name).write_bytes((mark + text).encode(encoding))
        with ExitStack() as stack:
            lines = as_lines(stack, tmp_path / name, PROMPT_COLUMNS).read_text(encoding="utf-8")
        assert json.loads(lines) == {"text": "Zurück — ✓", "id": "a"}


@pytest.mark.parametrize(
    ("text", "on_lines"),
    [
        ('[\n  {"text": "a"},\n  {\n    "text": "b\\n,]"\n  },\n\n  "c"\n]\n', {2: "a", 3: "b\n,]", 7: "c"}),
        ('[{"text": "a"}, "b",\n\n\n"c"]', {1: "a", 2: "b", 4: "c"}),
    ],
)
def test_a_row_of_a_list_is_told_by_its_line(tmp_path: Path, text: str, on_lines: dict[int, str]) -> None:
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    with ExitStack() as stack:
        lines = as_lines(stack, tmp_path / "rows.json", PROMPT_COLUMNS).read_text(encoding="utf-8").split("\n")
    assert {number: json.loads(line)["text"] for number, line in enumerate(lines, 1) if line} == on_lines


def test_a_table_is_read_as_data_sets_read_it_and_told_what_is_wrong(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"

    def read(content: str, own_names: dict[str, str] | None = None) -> list[str]:
        table.write_text(content, newline="")
        with ExitStack() as stack:
            return as_lines(stack, table, PROMPT_COLUMNS, own_names).read_text().split("\n")

    rows = read('body;id\r\n"a\r\nb";1\r\n;\r\n\r\nc;2\r\n', {"text": "body"})
    assert {at: json.loads(row) for at, row in enumerate(rows, 1) if row} == {
        2: {"text": "a\r\nb", "id": "1"},
        6: {"text": "c", "id": "2"},
    }
    table = tmp_path / "rows.tsv"
    assert json.loads(read("text\tid\na, b\t1\n")[1]) == {"text": "a, b", "id": "1"}
    table = tmp_path / "rows.csv"
    for content, fault in (
        ("text,id\na, b,1\nc,2\nd\n", r"rows\.csv: 2 rows can't be read\. Line 2: it has more .* Line 4: it has fewer"),
        ("text,id,text\na,1,b\n", r"rows\.csv has two columns 'text': which one counts\? Rename the other\."),
        ('text,id\n"a,1\nb,2\n', r"rows\.csv, line 2: the row that begins there is no CSV"),
    ):
        with pytest.raises(Unusable, match=fault):
            read(content)


@pytest.mark.parametrize("form", ["csv", "json"])
async def test_prompts_are_taken_as_csv_and_as_a_list_too(
    gateway: object, apprentice: Command, tmp_path: Path, form: str
) -> None:
    path = tmp_path / f"sample.{form}"
    if form == "csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
            writer = csv.writer(file)
            writer.writerow(["id", "text", "note"])
            writer.writerows([f"row-{number}", text, "x"] for number, text in enumerate(prompts("returns")))
    else:
        path.write_text(json.dumps(prompts("returns")), encoding="utf-8-sig")
    fitted = await apprentice("adapters", "fit", "returns@v1", "--prompts", str(path), "--wait", "0", "--json")
    assert fitted.exit_code == 0, fitted.err
    assert fitted.json["prompts"]["used"] == 100
    assert fitted.json["fitted"]["scope"]["state"] in ("waiting", "fitting")


async def test_what_can_not_be_used_is_told_and_nothing_is_fitted(
    gateway: object, apprentice: Command, make_adapter: MakeAdapter, sample: Path, tmp_path: Path
) -> None:
    few, table = tmp_path / "few.jsonl", tmp_path / "table.csv"
    few.write_bytes(lines(prompts("returns")[:3]))
    table.write_text("question\nwhere?\n")
    for words, told in (
        (("fit", "returns@v1", "--prompts", str(few)), "3 different training prompts are too few"),
        (("fit", "returns@v9", "--prompts", str(sample)), "There is no version 'returns@v9'"),
        (("fit", "returns@v1", "--prompts", str(tmp_path / "nope")), "There is no file"),
        (("fit", "returns@v1", "--prompts", str(table)), "has no column named prompt or text"),
        (("push", str(make_adapter(3)), "--background", str(sample)), "--background is of use beside --prompts"),
    ):
        said = await apprentice("adapters", *words)
        assert (said.exit_code != 0, told in said.err) == (True, True), said
    listed = await apprentice("adapters", "list", "--json")
    assert [one["version"] for one in listed.json["adapters"]] == ["returns@v1"]


async def test_what_is_doubtful_of_a_sample_is_told_with_a_warning(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    path = tmp_path / "marks.jsonl"
    texts = background.read_stand_in()[::25][:40]  # the other traffic itself
    rows = [{"id": "one" if number < 38 else f"id-{number}", "text": text} for number, text in enumerate(texts, 1)]
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    told = await apprentice("adapters", "fit", "returns@v1", "--prompts", str(path))
    assert told.exit_code == 0, told.err
    assert "Warning: it barely separates the prompts from other traffic." in told.out
    assert "Warning: 37 rows share an id" in told.out
    why = await apprentice("adapters", "why", "returns@v1")
    assert "it barely separates them from other traffic" in why.out


async def test_what_was_fitted_is_shown_with_its_rows_and_its_target(
    gateway: RunningGateway, apprentice: Command
) -> None:
    summary = {"rows": 800, "tokens": 8, "least_certified": 0.03, "scope": None}
    await gateway.services.control.fitted.put("returns@v1", "confidence", b"{}", "", summary)
    summary = {"rows": 900, "shown_to_help": False, "apgr": 0.61, "apgr_low": 0.48}
    await gateway.services.control.fitted.put("returns@v1", "gain", b"{}", "", summary)
    shown = (await apprentice("adapters", "show", "returns@v1")).out
    assert re.search(
        r"calibration +on 800 rows, the first 8 tokens; certified for a wrong share of 0\.03 and up", shown
    )
    assert re.search(r"gain +on 900 rows; not shown to help \(APGR 0\.610, at least 0\.480\)", shown)


def test_the_demo_sends_a_sample_of_the_examples_training_rows(tmp_path: Path) -> None:
    found = sample_prompts(ROOT / "examples" / "returns" / "adapter", tmp_path / "prompts.jsonl")
    assert found == tmp_path / "prompts.jsonl"
    rows = [json.loads(line) for line in found.read_text().splitlines()]
    assert len({row["text"] for row in rows}) > 950
    assert sample_prompts(tmp_path / "adapter", tmp_path / "other.jsonl") is None


def test_fields_of_json_rows_are_named(tmp_path: Path) -> None:
    own_names, row = {"text": "ticket", "expected": "right"}, {"ticket": "A", "right": "b", "text": "other", "id": 7}
    (tmp_path / "rows.jsonl").write_text(f"\n{json.dumps({'item': row})}\n\n{json.dumps(row)}\n")
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    named = {"id": 7, "text": "A", "expected": "b"}
    with ExitStack() as stack:
        made = as_lines(stack, tmp_path / "rows.jsonl", PROMPT_COLUMNS, own_names).read_text().split("\n")
        assert [json.loads(line) if line else None for line in made[:4]] == [None, named, None, named], "on their lines"
        assert json.loads(as_lines(stack, tmp_path / "rows.json", PROMPT_COLUMNS, own_names).read_text()) == named
        with pytest.raises(Unusable, match=r"no field 'body' in its first row: it has ticket, right, text, id"):
            as_lines(stack, tmp_path / "rows.jsonl", PROMPT_COLUMNS, {"text": "body"})
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n{")
        with pytest.raises(Unusable, match="can't be read: line 2: Expecting property name"):
            as_lines(stack, tmp_path / "rows.jsonl", PROMPT_COLUMNS, own_names)
