"""`apprentice datasets` over a real gateway: files become a data set, and what can't be used is told with its line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.gateway.cli.conftest import Command, in_a_process, ok
from tests.waiting import until
from tests.walks.gateway import RunningGateway


def write_rows(path: Path, count: int, answer: str = "yes") -> Path:
    lines = [json.dumps({"text": f"Item {n}: {n * n} pieces of {n * 7}", "expected": answer}) for n in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


async def test_a_data_set_is_built_of_files_and_the_same_files_are_the_same_set(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    one, two = write_rows(tmp_path / "one.jsonl", 40), tmp_path / "two.csv"
    two.write_text("body,reply\nA vase from Oslo.,no\nA lamp to Malta.,no\n")
    words = ["--column", "text=body", "--column", "expected=reply"]
    first = await ok(apprentice, "datasets", "build", "returns", "-f", str(one), "-f", str(two), *words, "--json")
    card = first.json
    folder = gateway.services.settings.dataset_folder / card["digest"]
    train, heldout = ((folder / name).read_text().splitlines() for name in ("train.jsonl", "heldout.jsonl"))
    assert (len(train), len(heldout)) == (card["rows"]["train"], card["rows"]["heldout"])
    assert len(train) + len(heldout) + card["rows"]["left_out"] == 42
    assert json.loads(train[0])["messages"][-1]["role"] == "assistant"
    again = await ok(apprentice, "datasets", "build", "returns", "-f", str(two), "-f", str(one), *words, "--json")
    assert again.json == card
    listed = await ok(apprentice, "datasets", "list")
    assert f"{card['digest'][:12]}  returns  {len(train)}" in listed.out
    refused = await apprentice("datasets", "show", card["digest"][:3])
    assert "or more than one: give 4 digits or more" in refused.err
    shown = await ok(apprentice, "datasets", "show", card["digest"][:4])
    assert f"training rows  {len(train)}" in shown.out
    # a building is told as done before its files go, which its entry comes before
    await until(lambda: not list((gateway.services.settings.dataset_folder / ".files").iterdir()))
    async with gateway.http() as http:
        audit = (await http.get("/admin/v1/audit", params={"action": "building.done"})).json()["entries"]
    assert [entry["after"]["digest"] for entry in audit] == [card["digest"]] * 2


async def test_broken_rows_end_a_building_with_their_lines_or_are_left_out(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 20)
    path.write_text(path.read_text() + '{"text": "no answer"}\n{broken\n')
    refused = await apprentice("datasets", "build", "returns", "--file", str(path))
    assert (refused.exit_code, refused.out) == (1, "")
    assert "2 rows can't be read. rows.jsonl: Line 21: it has no expected answer" in refused.err
    assert "rows.jsonl: Line 22: it is not JSON" in refused.err
    assert "or build with --leave-out-faults" in refused.err
    built = await ok(apprentice, "datasets", "build", "returns", "--file", str(path), "--leave-out-faults")
    assert "2 unreadable" in built.out
    for words, code, text in (
        (["nothing", "-f", str(path)], 1, "has no task 'nothing'"),
        (["returns"], 1, "--file: give some, or --since, from when on"),
        (["returns", "--since", "soon"], 2, "'soon' is not a time"),
        (["returns", "--since", "7d"], 1, "no text of a request is kept (tasks.TASK.texts.keep)"),
        (["returns", "-f", str(tmp_path / "none.jsonl")], 2, "can't be read"),
        (["returns", "-f", str(path), "--column", "text"], 2, "is not OURS=THEIRS"),
    ):
        refused = await apprentice("datasets", "build", *words)
        assert (refused.exit_code, text in refused.err) == (code, True), refused.err


async def test_export_writes_over_a_file_with_force_alone(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    rows, there = write_rows(tmp_path / "rows.jsonl", 20), tmp_path / "mine.jsonl"
    there.write_text("mine")
    built = await ok(apprentice, "datasets", "build", "returns", "--file", str(rows), "--json")
    words = ("datasets", "export", built.json["digest"], "--out", str(there))
    refused = await apprentice(*words)
    assert (refused.exit_code, refused.out, there.read_text()) == (2, "", "mine")
    assert "mine.jsonl is there already: name another file, or give --force to write over it." in refused.err
    await ok(apprentice, *words, "--force")
    card = ("datasets", "show", built.json["digest"], "--html", str(there))
    assert "is there already" in (await apprentice(*card)).err
    await ok(apprentice, *card, "--force")
    assert there.read_text().startswith("<!doctype html>")
    await ok(apprentice, *words, "--force")
    assert len(there.read_text().splitlines()) == built.json["rows"]["train"]
    refused = await apprentice(*words, "--force", "--format", "dpo")
    assert (refused.exit_code, refused.out) == (1, "")
    assert "has no worse answer beside a right one, as dpo needs: there is nothing to export." in refused.err
    assert len(there.read_text().splitlines()) == built.json["rows"]["train"]


async def test_empty_lists_say_how_they_get_rows_and_unknown_tasks_are_refused(apprentice: Command) -> None:
    for words, more in (
        (("adapters", "pulls"), "pull ADDRESS --task TASK"),
        (("datasets", "list"), "datasets build TASK"),
        (("trainings", "list"), "train TASK --data"),
        (("retraining", "list"), "a version that is degraded"),
    ):
        assert more in (await ok(apprentice, *words, "--task", "returns")).err
        refused = await apprentice(*words, "--task", "nope")
        assert (refused.exit_code, "has no task 'nope'" in refused.err) == (1, True), (words, refused.err)
    for kind in ("evaluations", "suites", "overrides"):
        assert "apprentice " in (await ok(apprentice, kind, "list")).err
    assert (await apprentice("adapters", "list", "--task", "nope")).exit_code == 1


async def test_two_data_sets_that_are_built_at_once_are_both_built(gateway: RunningGateway, tmp_path: Path) -> None:
    paths = [write_rows(tmp_path / f"{n}.jsonl", 30 + n) for n in (1, 2)]
    command = in_a_process(gateway)
    words = [("datasets", "build", "returns", "-f", str(path), "--json") for path in paths]
    both = await asyncio.gather(*(ok(command, *each) for each in words))
    assert len({said.json["digest"] for said in both}) == 2
