"""`apprentice adopt` over a real gateway, with a trainer that speaks as the real one does: stops, and goes on."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from gateway.cli.adopt import run_command
from gateway.cli.tables import Printer
from monitoring.training.manifest_draft import draft_contract, draft_manifest, read_row
from serving.adapters.manifest import (
    FILE_BYTES_MAX,
    PROMPT_LENGTH_MAX,
    SYSTEM_LENGTH_MAX,
    TEXT_LENGTH_MAX,
    from_json,
    to_json,
)
from serving.adapters.plain_yaml import write_plain_yaml
from tests.fakes.certificates import Authority
from tests.fakes.trainer import write_trainer
from tests.gateway.cli.conftest import Command, in_a_fork, in_a_process
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.fork_server import ForkServer
from tests.walks.gateway import RunningGateway, run_gateway

PRODUCTS = ("kettle", "toaster", "laptop", "novel", "lamp", "jacket", "phone", "chair", "mixer", "tent")


@pytest.fixture
async def empty(configure: Configure, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway whose task has no version yet."""
    async with run_gateway(configure(training={"python": write_trainer(tmp_path)[0]})) as running:
        yield running


@pytest.fixture
def adopting(empty: RunningGateway, fork_server: ForkServer) -> Command:
    return in_a_fork(empty, fork_server)


def examples(folder: Path) -> Path:
    """Clear cases of two decisions, as a spreadsheet writes its table, with columns of its own."""
    path = folder / "examples.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(("the case", "decision"))
        for number in range(240):
            product, days = PRODUCTS[number % len(PRODUCTS)], 1 + number // 4
            state, decision = ("sealed", "approve") if number % 2 else ("broken by me", "deny")
            case = f"A {product} number {number}, {state},\N{LINE SEPARATOR}after {days} days."
            table.writerow((case, json.dumps({"decision": decision})))
    return path


async def test_file_becomes_a_leading_version_with_a_stop_where_people_look(adopting: Command, tmp_path: Path) -> None:
    file, folder = examples(tmp_path), tmp_path / "out"
    words = ("adopt", str(file), "--task", "returns", "--out", str(folder), "--steps", "6", "--past", "readiness")
    words += ("--column", "text=the case", "--column", "expected=decision")
    stopped = await adopting(*words)
    assert (stopped.exit_code, "--past manifest" in stopped.err) == (1, True), stopped.err
    assert "--column 'text=the case'" in stopped.err, "what it shows can be run in a shell"
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    assert manifest["contract"]["json_schema"]["properties"] == {"decision": {"enum": ["approve", "deny"]}}
    manifest["general_prompt"] = {"system": "Deny what the buyer has broken."}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    unshown = await adopting(*words, "--past", "manifest")
    assert (unshown.exit_code, "To go on: --past gate." in unshown.err) == (1, True), unshown.err
    assert "points to the most frequent answer" in unshown.err, "no answer of the fake engine is right"
    words += ("--past", "gate")
    held_back = await adopting(*words, "--past", "manifest")
    assert (held_back.exit_code, "--release" in held_back.err) == (1, True), held_back.err
    assert "readiness: done before" in held_back.err
    assert re.search(r"Right on held-out rows: adapter [0-9.]+%, general [0-9.]+%\.", held_back.err), held_back.err
    for name in ("readiness.html", "card.html", "losses.svg", "evaluation.html"):
        assert (folder / name).stat().st_size > 500, name
    released = await adopting(*words, "--past", "manifest", "--release", "--json")
    assert released.exit_code == 0, released.err
    steps = released.json["steps"]
    assert (released.json["version"], steps["release"]) == ("returns@v1", {"released": "it leads"})
    shown = await adopting("adapters", "show", "returns", "--json")
    assert shown.json["weights"] == {"returns@v1": 1.0}
    shown = await adopting("adapters", "show", "returns@v1", "--json")
    assert shown.json["manifest"]["general_prompt"]["system"] == "Deny what the buyer has broken.", "a person wrote it"
    other = await adopting(*words, "--manifest", str(tmp_path / "missing.yaml"))
    assert (other.exit_code, "done before" in other.err) == (2, False), "with other options it begins anew"


async def test_a_version_is_evaluated_again_where_another_one_leads_meanwhile(
    empty: RunningGateway, adopting: Command, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    words = ("adopt", str(examples(tmp_path)), "--task", "returns", "--out", str(tmp_path / "out"), "--steps", "6")
    words += ("--column", "text=the case", "--column", "expected=decision", "--past", "readiness", "--past", "manifest")
    words += ("--past", "gate")
    ready = await adopting(*words)
    assert (ready.exit_code, "may be released" in ready.err) == (1, True), ready.err
    leading = await empty.place(make_adapter(1))
    again = await adopting(*words)
    assert "Another version leads by now" in again.err
    evaluated = json.loads((tmp_path / "out" / "adopt.json").read_text())["done"]["evaluate"]
    assert (evaluated["against"], "leading" in evaluated["right"]) == (leading, True)
    assert "evaluate: done before" not in again.err
    third = await adopting(*words)
    assert "evaluate: done before" in third.err
    state = json.loads((tmp_path / "out" / "adopt.json").read_text())
    del state["done"]["gate"]
    state["done"]["train"]["version"] = "returns@v9"
    (tmp_path / "out" / "adopt.json").write_text(json.dumps(state))
    refused = await adopting(*words)
    assert (refused.exit_code, "Traceback" in refused.err) == (1, False), refused.err
    assert "There is no version 'returns@v9'" in refused.err


async def test_manifest_that_is_changed_after_training_goes_into_another_version(
    adopting: Command, tmp_path: Path
) -> None:
    words = ("adopt", str(examples(tmp_path)), "--task", "returns", "--out", str(tmp_path / "out"), "--steps", "6")
    words += ("--column", "text=the case", "--column", "expected=decision", "--past", "readiness", "--past", "manifest")
    unshown = await adopting(*words)
    assert (unshown.exit_code, "To go on: --past gate." in unshown.err) == (1, True), unshown.err
    written = tmp_path / "out" / "manifest.yaml"
    manifest = yaml.safe_load(written.read_text())
    manifest["general_prompt"] = {"system": "Deny what the buyer has broken."}
    written.write_text(yaml.safe_dump(manifest))
    again = await adopting(*words, "--past", "gate")
    assert "The manifest was changed since returns@v1 was trained: training begins again." in again.err
    assert "returns@v2 may be released" in again.err
    shown = await adopting("adapters", "show", "returns@v2", "--json")
    assert shown.json["manifest"]["general_prompt"]["system"] == "Deny what the buyer has broken."
    third = await adopting(*words, "--past", "gate")
    assert "train: done before" in third.err, third.err


async def test_each_step_trusts_the_named_authority_and_runs_no_code_that_lies_here(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "__init__.py").write_text("raise ImportError('this lies in the working folder')")
    monkeypatch.chdir(tmp_path)
    file, authority = tmp_path / "rows.csv", Authority(tmp_path)
    file.write_text("text,expected\na kettle,approve\na tent,deny\n")
    tls = authority.sign("gateway")
    async with run_gateway(configure(listen={"tls": {"cert_file": tls.cert, "key_file": tls.key}})) as running:
        place = ("--gateway", running.url.replace("http:", "https:"), "--ca", str(authority.ca))
        words = ("adopt", str(file), "--task", "returns", "--out", str(tmp_path / "out"))
        said = await in_a_process(running)(*words, *place)
    assert (said.exit_code, "To go on: --past readiness." in said.err) == (1, True), said.err
    assert "more rows, at least. Look at" in said.err  # what to do, and where it is shown


async def test_state_file_that_is_no_state_is_a_new_beginning(adopting: Command, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,expected\na kettle,approve\na tent,deny\n")
    (tmp_path / "adopt.json").write_text("[]")
    said = await adopting("adopt", str(file), "--task", "returns", "--out", str(tmp_path))
    assert (said.exit_code, "To go on: --past readiness." in said.err) == (1, True), said.err


async def test_unknown_task_and_unknown_stop_say_what_to_do(adopting: Command, tmp_path: Path) -> None:
    file = examples(tmp_path)
    unknown = await adopting("adopt", str(file), "--task", "clauses")
    assert (unknown.exit_code, "Add it to apprentice.yaml" in unknown.err) == (2, True)
    stop = await adopting("adopt", str(file), "--task", "returns", "--past", "train")
    assert (stop.exit_code, "name one of readiness, dataset, manifest, gate" in stop.err) == (2, True)


@pytest.mark.parametrize(
    ("answers", "contract"),
    [
        (["yes", "no"] * 6, {"choices": ["no", "yes"]}),
        (["A long answer.", "Another one.", "A third."], None),
        (
            ['{"ok":true,"score":1}', '{"ok":false,"score":2.5}'],
            {
                "json_schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["ok", "score"],
                    "properties": {"ok": {"type": "boolean"}, "score": {"type": "number"}},
                }
            },
        ),
        (['{"a":1}', '{"b":1}'], None),
        (['{"a":' * 5000], None),
    ],
)
def test_drafted_contract_is_what_all_answers_keep(answers: list[str], contract: Any) -> None:
    assert draft_contract(answers) == contract


def test_draft_can_be_read_and_takes_the_shared_system_message() -> None:
    row = {
        "messages": [
            {"role": "system", "content": "Decide."},
            {"role": "user", "content": "A toaster."},
            {"role": "assistant", "content": "approve"},
        ]
    }
    rows = [read for read in [read_row(row)] * 5 if read is not None]
    manifest = from_json(draft_manifest("returns", rows))
    assert (manifest.general_prompt.system, manifest.contract) == ("Decide.", {"choices": ["approve"]})
    assert read_row({"text": "A toaster."}) is None
    calls = {"tool_calls": [{"name": "refund", "arguments": {"order": "A-7"}}]}
    row = {"text": "Refund A-7.", "expected": calls, "tools": [{"type": "function", "function": {"name": "refund"}}]}
    called = [read for read in [read_row(row)] * 5 if read is not None]
    drafted = draft_manifest("returns", called)
    assert (len(called), drafted["contract"]) == (5, None), "a contract is about texts"
    prompt = drafted["general_prompt"]["system"]
    assert 'Refund A-7.\nrefund({"order":"A-7"})' in prompt, "calls as JSON would be answered by JSON"


def test_draft_reads_contents_in_parts_and_passes_over_an_empty_expected() -> None:
    said = (("system", "Decide."), ("user", "A toaster."), ("assistant", "approve"))
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    row = read_row({"messages": messages, "expected": None})
    assert row is not None
    assert (row.system, row.request, row.answer) == ("Decide.", "A toaster.", "approve")


@pytest.mark.parametrize(
    ("system", "request_text", "answer"),
    [
        ("s" * (SYSTEM_LENGTH_MAX + 1), "x", "yes"),
        (" \n", "x", "yes"),
        ("Decide.", "x" * (PROMPT_LENGTH_MAX + 1), "yes"),
        ("Decide.", " ", "yes"),
        ("Decide.", "x", "y" * (TEXT_LENGTH_MAX + 1)),
        ("Decide.", "x", json.dumps({f"field {n}": n for n in range(2000)})),
        ("決" * 60_000, "定" * 19_000, "yes"),
    ],
)
def test_draft_of_odd_examples_keeps_the_limits_of_a_manifest(system: str, request_text: str, answer: str) -> None:
    said = (("system", system), ("user", request_text), ("assistant", answer))
    row = {"messages": [{"role": role, "content": text} for role, text in said]}
    rows = [read for read in [read_row(row)] * 5 if read is not None]
    manifest = from_json(draft_manifest("returns", rows))
    assert manifest.general_prompt.system.strip()
    assert len(write_plain_yaml(to_json(manifest))) < FILE_BYTES_MAX - (16 << 10)
    assert all(golden.prompt == request_text for golden in manifest.golden)


def test_long_step_tells_a_log_that_it_is_at_work(capfd: pytest.CaptureFixture[str]) -> None:
    slow = [sys.executable, "-c", "import time; time.sleep(0.5); print('{}')"]
    assert run_command(slow, Printer(json_only=False), note_seconds=0.1) == (0, b"{}\n")
    assert "at work for 0 s" in capfd.readouterr().err


def test_progress_is_shown_beside_json_that_goes_elsewhere_than_the_terminal() -> None:
    printer = Printer(json_only=True)
    printer.stdout, printer.stderr = Console(file=io.StringIO()), Console(file=io.StringIO(), force_terminal=True)
    with printer.progress() as shown:
        assert not shown.disable
    printer.stdout = printer.stderr
    with printer.progress() as hidden:
        assert hidden.disable
