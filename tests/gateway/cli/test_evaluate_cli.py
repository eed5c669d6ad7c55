"""`apprentice evaluate` and `apprentice evaluations` over a real gateway with engines that speak as vLLM does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from benchmarks.confidence_curve import read_rows
from tests.fakes.engine import FakeEngine
from tests.gateway.cli.conftest import Command, ok
from tests.walks.gateway import RunningGateway

PASSED_BY = "The evaluation goes on, on the gateway"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Data of 120 rows, on each sixth of which the answer is not what is expected."""
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": f"Item {n}", "expected": "no" if n % 6 == 0 else "yes"}) for n in range(120)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def answering(gateway: RunningGateway, small: FakeEngine, general: FakeEngine) -> RunningGateway:
    """Both engines say yes, whatever they are asked."""
    small.answers["*"] = general.answers["*"] = "yes"
    return gateway


async def test_a_version_is_evaluated_and_its_report_told_and_written(
    answering: RunningGateway, apprentice: Command, rows: Path, tmp_path: Path
) -> None:
    report, out = tmp_path / "report.json", tmp_path / "answers.jsonl"
    words = ["returns@v1", "--data", str(rows), "--calibrate", "--out", str(report), "--rows-out", str(out)]
    told = await ok(apprentice, "evaluate", *words)
    assert "returns@v1 on 120 rows, by normal" in told.out
    assert "adapter  83.3 %  75.7 % to 88.9 %" in told.out
    assert "adapter minus general: +0.0 points" in told.out
    assert "Calibrated on 120 answers" in told.out
    assert "There are 120 rows, fewer than 1,000" in told.out
    assert json.loads(report.read_text())["report"]["arms"]["adapter"]["accuracy"]["right"] == 100
    found = read_rows(out, seed=1, tokens=None)
    assert (found.read, len(found.kept)) == (120, 120)
    assert json.loads(out.read_text().splitlines()[0])["general_right"] is False
    listed = await ok(apprentice, "evaluations", "list")
    name = json.loads(report.read_text())["id"]
    assert f"{name}  returns@v1  done    240 of 240  adapter, general  normal" in listed.out
    again = await ok(apprentice, "evaluate", *words[:3], "--json")
    assert (again.json["id"], again.json["status"]) == (name, "done")
    shown = await ok(apprentice, "evaluations", "show", name)
    assert shown.out == told.out
    for option, path in (("--out", report), ("--rows-out", out)):
        for again_words in (["evaluate", *words[:3]], ["evaluations", "show", name]):
            refused = await apprentice(*again_words, option, str(path))
            assert (refused.exit_code, "is there already" in refused.err) == (2, True)
            await ok(apprentice, *again_words, option, str(path), "--force")
    command = f"apprentice tasks baseline returns returns@v1 reviewed --evaluation {name}"
    said = " ".join(told.out.split())
    assert "It is not a baseline: returns@v1 was live by then" in said
    assert f"`{command}` makes it one." in said
    held = await ok(apprentice, *command.split()[1:], "--reason", "Drawn at random.")
    assert held.out == "reviewed of returns@v1 is compared with at most 23.3% from now on.\n"
    version = await ok(apprentice, "adapters", "show", "returns@v1")
    assert f"evaluation     {name}: adapter 83.3 %, general 83.3 % of 120 rows" in version.out
    gone = await ok(apprentice, "evaluations", "stop", name)
    assert gone.out == f"{name} is forgotten.\n"


async def test_data_for_fine_tuning_and_csv_are_taken_as_they_are(
    answering: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    asked = [{"role": "system", "content": "Decide."}, {"role": "user", "content": "Item 1"}]
    tuning = tmp_path / "tuning.jsonl"
    tuning.write_text(json.dumps({"messages": [*asked, {"role": "assistant", "content": "yes"}]}) + "\n")
    table = tmp_path / "rows.csv"
    table.write_text('text,expected,group,comment\n"Item 1, sealed",yes,,a\nItem 2,no,b,\n', encoding="utf-8-sig")
    for path, told in ((tuning, "adapter  100.0 %"), (table, "adapter  50.0 %")):
        assert told in (await ok(apprentice, "evaluate", "returns@v1", "--data", str(path))).out


async def test_what_can_not_be_used_is_one_line(answering: RunningGateway, apprentice: Command, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "x"}\n')
    for words, code, text in (
        (["returns@v1", "--data", str(data)], 1, "Line 1: it has no expected answer"),
        (["returns@v9", "--data", str(data)], 1, "There is no version 'returns@v9'"),
        (["returns@v1", "--data", str(tmp_path / "none")], 2, "There is no file"),
        (["returns@v1", "--data", str(data), "--out", str(tmp_path / "no" / "x")], 2, "can't be written"),
    ):
        said = await apprentice("evaluate", *words)
        assert (said.exit_code, said.out) == (code, "")
        assert said.err.count("\n") == 1
        assert text in said.err


async def test_ctrl_c_leaves_it_running_and_says_how_to_come_back(
    answering: RunningGateway, small: FakeEngine, apprentice: Command, rows: Path
) -> None:
    small.first_token_delay_seconds = 2.0
    variables = {**os.environ, "APPRENTICE_URL": answering.url, "APPRENTICE_KEY": answering.admin_key}
    process = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("apprentice"), "evaluate", "returns@v1", "--data", str(rows)),
        *("--arms", "adapter"),
        env=variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        while small.in_flight == 0 or not any("Item" in seen.prompt for seen in small.requests):
            await asyncio.sleep(0.02)
        listed = (await ok(apprentice, "evaluations", "list", "--json")).json["evaluations"]
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert process.returncode == 130
    assert PASSED_BY in err.decode()
    assert f"apprentice evaluations show {listed[0]['id']}" in err.decode()
    runs = await ok(apprentice, "evaluations", "show", listed[0]["id"])
    assert " runs: adapter " in runs.out
    stopped = await ok(apprentice, "evaluations", "stop", listed[0]["id"])
    assert stopped.out.endswith("is cancelled.\n")


async def test_suites_are_added_listed_evaluated_together_and_removed(
    answering: RunningGateway, apprentice: Command, rows: Path, tmp_path: Path
) -> None:
    hard = tmp_path / "hard.jsonl"
    hard.write_text("\n".join(rows.read_text().splitlines()[:6]))
    assert "(newest, 120 rows)" in (await ok(apprentice, "suites", "add", "returns", "--data", str(rows))).out
    assert "(hard, 6 rows)" in (await ok(apprentice, *f"suites add returns --kind hard --data {hard}".split())).out
    assert "by contract" in (await ok(apprentice, "suites", "list", "returns")).out
    assert "class   yes" in (await ok(apprentice, "suites", "show", "returns", "hard")).out
    told = await ok(apprentice, *["evaluate", "returns@v1", "--suites", "all", "--arms", "adapter"])
    assert "newest  120" in told.out
    assert told.out.splitlines()[-1].endswith("83.3 %")
    assert "Give either --data or --suite" in (await apprentice("evaluate", "returns@v1")).err
    rules = tmp_path / "rules.txt"
    rules.write_text("Say yes.")
    told = await ok(apprentice, *f"evaluate returns --prompt {rules} --suite hard --arms base".split())
    assert "returns on 6 rows, by normal" in told.out
    assert "is removed" in (await ok(apprentice, *["suites", "remove", "returns", "hard", "--yes"])).out


async def test_reports_are_pages_by_the_ending_of_their_name(
    answering: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": f"Item {n}", "expected": "<no>" if n % 6 == 0 else "yes"}) for n in range(24)]
    rows.write_text("\n".join(lines))
    page, text = tmp_path / "report.html", tmp_path / "report.md"
    for path in (page, text):
        await ok(apprentice, "evaluate", "returns@v1", "--data", str(rows), "--out", str(path))
    html, markdown = page.read_text(), text.read_text()
    assert "<title>Right answers, with 95% intervals</title>" in html
    assert "<td>&lt;no&gt;</td><td>yes</td><td>4</td>" in html
    assert "<no>" not in html
    assert "|adapter|83.3 %|" in markdown
    assert "|&lt;no>|yes|4|" in markdown
