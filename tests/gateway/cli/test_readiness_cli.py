"""`apprentice readiness` over a real gateway: on files alone, and on a task with its archived traffic."""

from __future__ import annotations

import asyncio
import csv
import json
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.features.readiness import endpoints
from gateway.features.readiness.endpoints import PLACES, Readiness
from gateway.request_labels import AGREEMENT_KEY
from monitoring.archive.storage import FolderStorage
from monitoring.archive.tables import RecordRow, day_of, write_part
from monitoring.labels.messages import Agreement
from tests.gateway.cli.conftest import Command, ok
from tests.walks.conftest import Configure
from tests.walks.gateway import RunningGateway, run_gateway

ITEMS = {"toaster": "household", "kettle": "household", "jacket": "clothes", "boots": "clothes", "melon": "food"}
WORDS = ("please", "today", "yesterday", "sealed", "open", "twice", "receipt", "gift", "blue", "late", "from", "shop")
COSTS = (
    *("--general-usd", "0.004", "--small-usd", "0.0005", "--deferred", "0.1", "--lifetime-months", "6"),
    *("--tuning-usd", "120", "--host-usd-per-month", "200", "--labels-usd-per-month", "80"),
)


def rows_of(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Requests whose words tell their class, each one different."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        item = draw.choice(list(ITEMS))
        text = " ".join([f"case {number}", *draw.sample(WORDS, 4), item])
        found.append({"text": text, "expected": ITEMS[item], "at": 1_700_000_000 + 3600 * number})
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


async def test_a_file_is_answered_with_evidence_and_a_page(apprentice: Command, tmp_path: Path) -> None:
    data, page = write(tmp_path / "<rows>.jsonl", rows_of(400)), tmp_path / "report.html"
    said = await ok(apprentice, "readiness", str(data), *COSTS, "--requests-per-month", "200000", "--html", str(page))
    assert said.out.startswith("Not yet. Not enough is known. Evaluate the base and general with a good prompt first")
    assert "400 rows teach a cheap model" in said.out
    assert "It pays from 96,774 requests a month on" in said.out
    refused = await apprentice("readiness", str(data), *COSTS, "--html", str(page))
    assert (refused.exit_code, "is there already" in refused.err) == (2, True)
    html = page.read_text()
    assert "&lt;rows&gt;.jsonl" in html
    assert html.count("<circle") == 6
    assert "<script" not in html


async def test_tables_and_tuning_files_are_read_and_bad_rows_named(apprentice: Command, tmp_path: Path) -> None:
    rows = rows_of(220)
    asked = [{"role": "system", "content": "Sort it."}, {"role": "user", "content": "{}"}]
    tuning = [
        {"messages": [asked[0], asked[1] | {"content": row["text"]}, {"role": "assistant", "content": row["expected"]}]}
        for row in rows
    ]
    table = tmp_path / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label", "at"])
        writer.writeheader()
        writer.writerows({"text": row["text"], "label": row["expected"], "at": row["at"]} for row in rows)
    alpaca = [{"instruction": row["text"], "input": "", "output": row["expected"]} for row in rows]
    files = (write(tmp_path / "tuning.jsonl", tuning), table, write(tmp_path / "rows.jsonl", rows))
    answers = [(await ok(apprentice, "readiness", str(path), "--json")).json["facts"] for path in files]
    assert answers[0]["curve"] == answers[1]["curve"] == answers[2]["curve"]
    assert answers[1]["drop"] == answers[2]["drop"] != answers[0]["drop"]
    instructions = write(tmp_path / "alpaca.jsonl", alpaca)
    assert (await ok(apprentice, "readiness", str(instructions), "--json")).json["facts"]["curve"] == answers[0][
        "curve"
    ]
    sheet, option = tmp_path / "sheet.csv", ("--column", "text=Kundentext", "--column", "expected=Antwort")
    with sheet.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=";").writerows(
            [("Kundentext", "Antwort"), *((r["text"], r["expected"]) for r in rows)]
        )
    assert (await ok(apprentice, "readiness", str(sheet), *option, "--json")).json["facts"]["curve"] == answers[0][
        "curve"
    ]
    both = tmp_path / "both.csv"
    with both.open("w", newline="") as file:
        rows_of_both = ((row["text"], "not this one", row["expected"]) for row in rows)
        csv.writer(file).writerows([("body", "text", "expected"), *rows_of_both])
    said = await ok(apprentice, "readiness", str(both), "--column", "text=body", "--json")
    assert said.json["facts"]["curve"] == answers[0]["curve"], "not the column that has the name already"
    evals = write(tmp_path / "evals.jsonl", [{"item": {"ask": row["text"], "right": row["expected"]}} for row in rows])
    said = await ok(apprentice, "readiness", str(evals), "--column", "text=ask", "--column", "expected=right", "--json")
    assert said.json["facts"]["curve"] == answers[0]["curve"], "as OpenAI's Evals have rows"
    said = await apprentice("readiness", str(sheet))
    assert "no column named prompt or text: it has Kundentext, Antwort." in said.err
    assert "as in --column text=NAME" in said.err
    said = await apprentice("readiness", str(sheet), "--column", "text=Frage")
    assert "sheet.csv has no column 'Frage': it has Kundentext, Antwort." in said.err
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a", "expected": "b"}\n{"text": "c"}\n')
    said = await apprentice("readiness", str(bad))
    assert (said.exit_code, said.out) == (1, "")
    assert "Line 2: it has no expected answer" in said.err
    for at in (True, {"day": 1}, "soon"):
        said = await apprentice("readiness", str(write(bad, [*rows, {"text": "c", "expected": "d", "at": at}])))
        assert said.exit_code == 1
        assert "Line 221: " in said.err
        assert "is not a time: give Unix seconds" in said.err
    said = await apprentice("readiness", str(files[2]), "--class-field", "decison")
    assert (said.exit_code, "Line 1: its expected answer has no field 'decison'" in said.err) == (1, True)
    bad.write_text('{"text": "a", "expected": "b"}\n{"text": "c"}\n')
    bad.with_suffix(".csv").write_text('prompt,expected\n"a\nb",c\nd,e\nf,\n')
    for words in (("readiness",), ("suites", "add", "returns", "--data")):
        said = await apprentice(*words, str(bad.with_suffix(".csv")))
        assert "Line 5: it has no expected answer" in said.err


def archive(folder: Path, tmp_path: Path, count: int = 600) -> None:
    """Ten days of a task's traffic, of which general answered a sixth."""
    now = time.time()
    rows = []
    for number in range(count):
        at_general = number % 6 == 0
        rows.append(
            RecordRow(
                id=f"r{number}",
                at=now - 864_000 * (1 - number / count),
                endpoint="chat",
                caller="caller",
                requested_model="returns",
                task="returns",
                version=None if at_general else "returns@v1",
                outcome="ok",
                cost_usd=0.006 if at_general else 0.0005,
            )
        )
    lines = tmp_path / "records.jsonl"
    lines.write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    write_part(FolderStorage(folder), "records", lines, f"records/{day_of(now)}/part-0-1.parquet")


async def test_files_in_another_encoding_and_empty_ones_are_refused(apprentice: Command, tmp_path: Path) -> None:
    for suffix in ("csv", "json"):
        path = tmp_path / f"rows.{suffix}"
        path.write_text("text,expected\nä,b\n", encoding="latin-1")
        said = await apprentice("readiness", str(path))
        assert (said.exit_code, f"rows.{suffix} is not text in UTF-8: save it as such" in said.err) == (2, True), (
            said.err
        )
        path.write_bytes(b"")
        said = await apprentice("readiness", str(path))
        assert (said.exit_code, f"rows.{suffix} is empty" in said.err) == (2, True), said.err
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1\0")
    said = await apprentice("readiness", str(path))
    assert (said.exit_code, "write it as .csv or JSON lines" in said.err) == (2, True), said.err


async def test_answers_are_computed_one_after_another_and_few_wait(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "ANSWER_SECONDS_MAX", 0.01)
    data = "".join(json.dumps(row) + "\n" for row in rows_of(40))
    headers = {"content-type": "application/x-ndjson"}
    async with gateway.http() as http:
        async with gateway.features[Readiness].turn:
            asked = [
                asyncio.create_task(http.post("/admin/v1/readiness", content=data, headers=headers))
                for _ in range(PLACES + 1)
            ]
            (refused,), waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            assert not (await asyncio.wait(waiting, timeout=0.5))[0], "the time of those before it is none of its own"
            monkeypatch.undo()
        assert (refused.result().status_code, refused.result().headers["retry-after"]) == (503, "30")
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == PLACES * [200]


async def test_rows_of_a_task_are_read_though_their_length_is_not_told(gateway: RunningGateway) -> None:
    async def rows() -> AsyncIterator[bytes]:
        yield b"no row"

    headers = {"content-type": "application/x-ndjson"}
    async with gateway.http() as http:
        answer = await http.post("/admin/v1/readiness?task=returns", content=rows(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "data")


async def test_a_live_task_is_retired_where_it_costs_more_than_it_saves(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    said = await ok(apprentice, "readiness", "returns", "--tuning-usd", "300", "--json")
    assert (said.json["answer"], said.json["live"]["traffic"]) == ("not_yet", None)
    archive(gateway.services.settings.archive, tmp_path)
    said = await ok(apprentice, "readiness", "returns", "--tuning-usd", "300", "--json")
    costs = said.json["costs"]
    measured = [round(costs[name], 6) for name in ("general_usd", "small_usd", "host_usd_per_month")]
    assert measured == [0.006, 0.0005, 0.0]
    assert abs(costs["requests_per_month"] - 60 * 30.44) < 1
    assert said.json["answer"] == "retire"
    assert said.json["because"].startswith("returns@v1 costs more than it saves. It pays from 22,222 requests a month")
    rows = write(tmp_path / "rows.jsonl", rows_of(120))
    said = await ok(apprentice, "readiness", str(rows), "--task", "returns", "--tuning-usd", "3")
    assert said.out.startswith("Not yet. Not enough is known.")
    assert "It has paid after 0.4 months" in said.out
    folder = gateway.services.settings.dataset_folder / ("ab" * 32)
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps({"task": "returns", "digest": folder.name}))
    for name, count in (("train", 120), ("heldout", 40)):
        tuning = [
            {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["expected"]}]}
            for row in rows_of(count, seed=count)
        ]
        write(folder / f"{name}.jsonl", tuning)
    said = await ok(apprentice, "readiness", "returns", "--tuning-usd", "3", "--json")
    assert said.json["facts"]["rows"] == 160
    agreement = Agreement(items=43, ratings=129, same=0.6, alpha=0.21, low=-0.2, high=0.47)
    redis: Any = gateway.services.redis
    await redis.hset(AGREEMENT_KEY, "returns", msgspec.json.encode({"report": {"agreement": agreement}}))
    said = await ok(apprentice, "readiness", "returns", "--tuning-usd", "3")
    assert "0.210 (95% interval -0.200 to 0.470) over 43 requests that several reviewers judged." in said.out
    said = await apprentice("readiness", "refunds")
    assert "The configuration has no task 'refunds'" in said.err


async def test_rows_of_a_larger_data_set_are_spread_over_it_and_the_rest_is_told(configure: Configure) -> None:
    configuration = configure(evaluation={"rows_max": 100, "row_bytes_max": 256})
    async with run_gateway(configuration) as running, running.http() as http:
        folder = running.services.settings.dataset_folder / ("ab" * 32)
        folder.mkdir(parents=True)
        (folder / "card.json").write_text(json.dumps({"task": "returns", "digest": folder.name}))
        rows = [{"text": f"early case {n}", "expected": "yes"} for n in range(150)]
        rows[1]["text"] = "a long case " * 100
        write(folder / "train.jsonl", rows)
        write(folder / "heldout.jsonl", [{"text": f"late case {n}", "expected": "no"} for n in range(50)])
        report = (await http.post("/admin/v1/readiness?task=returns")).json()
    facts, examples = report["facts"], report["rules"][0]["evidence"]
    assert (facts["rows"], facts["unread"], facts["classes"]) == (99, 101, 2)
    assert examples.endswith("101 more rows of the data set were not read: the limits are in `evaluation`.")
