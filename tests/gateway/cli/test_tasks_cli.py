"""`apprentice why`, `tasks` and `retraining` over a real gateway: told, overruled, undone, changed, exported."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from gateway.features.retraining.state import RetrainingRequests
from monitoring.evaluation.dataset import DatasetLimits, DatasetReader
from monitoring.quality.phrases import NOBODY_WOKEN
from monitoring.quality.verdicts.quality import SignalReport
from monitoring.quality.verdicts.retraining import Retraining
from serving.object_store import change_together
from tests.gateway.cli.conftest import Command, in_a_process, ok
from tests.walks.gateway import RunningGateway
from tests.walks.review_world import monitor_elsewhere
from tests.walks.test_health import SHIFT, become, judged, sent
from tests.walks.test_retraining import asked, keep_texts, stored
from tests.walks.test_retraining import judged as judge

__all__ = ["monitor_elsewhere"]  # so that what a test has judged stays

FEEDBACK = SignalReport(signal="feedback", labelled=True, observed=400, wrong=90, estimate=0.22, low=0.18, high=0.27)


def rows(out: str) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in out.splitlines()[1:]]


async def test_a_task_is_told_in_plain_words_and_as_json(gateway: RunningGateway, apprentice: Command) -> None:
    await become(gateway, SHIFT)
    await judged(gateway, FEEDBACK)
    said = (await ok(apprentice, "why", "returns")).out.splitlines()
    assert said[0].startswith("returns@v1 is degraded since 2026-11-26 08:00 UTC")
    assert [line for line in said if line.endswith(":") and not line.startswith(" ")] == [
        "What is known:",
        "How sure:",
        "What was done:",
        "What to do next:",
        "Note:",
    ]
    assert any(line.startswith("  feedback: 22.0% wrong lately, 95% interval 18.0% to 27.0%") for line in said)
    assert any("action 19d5f0a1-0. General is better by at least 4.1 points." in line for line in said)
    told = (await ok(apprentice, "why", "returns", "--json")).json
    assert (told["report"]["verdict"], told["task"]) == ("degraded", "returns")


async def test_without_a_webhook_every_list_of_verdicts_says_that_nobody_is_woken(
    gateway: RunningGateway, apprentice: Command
) -> None:
    await become(gateway, SHIFT)
    await judged(gateway, FEEDBACK)
    assert NOBODY_WOKEN in (await ok(apprentice, "why", "returns")).out
    assert NOBODY_WOKEN in (await ok(apprentice, "why", "returns", "--plan")).out
    assert NOBODY_WOKEN in (await ok(apprentice, "tasks", "list")).err


async def test_tasks_are_listed_with_their_verdicts(gateway: RunningGateway, apprentice: Command) -> None:
    await become(gateway, SHIFT, since=time.time() - 3 * 3600)
    (row,) = rows((await ok(apprentice, "tasks", "list")).out)
    assert row[:5] == ["returns", "returns@v1", "degraded", "3 h", "20 %, else general"]
    assert (await ok(apprentice, "tasks", "list", "--json")).json["tasks"][0]["kept"] == 0.2


async def test_a_version_is_pinned_held_and_released(gateway: RunningGateway, apprentice: Command) -> None:
    await become(gateway, SHIFT)
    words = ("--verdict", "healthy", "--reason", "Wrong labels.", "--until", "2099-01-01")
    said = await ok(apprentice, "tasks", "pin", "returns", "returns@v1", *words)
    assert said.out == "returns@v1 is pinned as healthy; until 2099-01-01 00:00:00Z.\n"
    assert "pinned" in (await ok(apprentice, "tasks", "list")).out
    said = await ok(apprentice, "tasks", "pin", "returns", "returns@v1", "--reason", "Wait.")
    assert said.out == "returns@v1 is held: nothing is done about its verdict; until it is released.\n"
    listed = (await ok(apprentice, "tasks", "list")).out
    assert ("held" in listed, "pinned" in listed) == (True, False)
    said = await ok(apprentice, "tasks", "release", "returns", "returns@v1", "--reason", "I waited.")
    assert "again. I waited." in (await ok(apprentice, "audit", "--action", "monitor.release")).out
    assert said.out == "The monitor judges returns@v1 again; it is healthy.\n"


async def test_release_closes_the_request_to_train_that_the_pin_opened(
    gateway: RunningGateway, apprentice: Command
) -> None:
    pin = ("tasks", "pin", "returns", "returns@v1", "--verdict", "degraded", "--reason", "The season.")
    await ok(apprentice, *pin)
    store = gateway.features[RetrainingRequests].store
    for name, action in (("by-the-pin", "19d5f0a1-0"), ("by-a-person", None)):
        one = Retraining(
            id=name, task="returns", version="returns@v1", opened_at=time.time() + 1, by="x", because="x", action=action
        )
        await change_together(gateway.services.redis, [store.change(one)])
    await ok(apprentice, "tasks", "release", "returns", "returns@v1")
    states = {one.id: one.state for one in await store.all()}
    assert (states["by-the-pin"], states["by-a-person"]) == ("closed", "open")


async def test_an_action_is_undone_by_its_id(gateway: RunningGateway, apprentice: Command) -> None:
    await become(gateway, SHIFT)
    said = await ok(apprentice, "tasks", "undo", "returns", SHIFT.id, "--reason", "The labels were wrong.")
    assert said.out.endswith(f"undid shift ({SHIFT.id}). The labels were wrong.\n")
    again = await apprentice("tasks", "undo", "returns", SHIFT.id)
    assert (again.exit_code, again.out) == (1, "")
    assert "It was undone already" in again.err


async def test_a_baseline_is_counted_or_accepted(gateway: RunningGateway, apprentice: Command) -> None:
    await judged(gateway, FEEDBACK)
    place = ("tasks", "baseline", "returns", "returns@v1")
    said = await ok(apprentice, *place, "feedback", "--wrong", "12", "--of", "240", "--reason", "Counted.")
    assert said.out == "feedback of returns@v1 is compared with at most 8.0% from now on.\n"
    said = await ok(apprentice, *place, "feedback", "--accept", "--reason", "As good as it gets.")
    assert said.out == "feedback of returns@v1 is compared with at most 27.0% from now on.\n"
    said = await ok(apprentice, *place, "feedback", "--remove", "--reason", "It was not.")
    assert said.out == "feedback of returns@v1 is compared with what it learns from now on.\n"
    said = await ok(apprentice, *place, "length", "--accept", "--reason", "Longer answers are wanted.")
    assert said.out == "length of returns@v1 is compared with what it learns from now on.\n"


async def test_calibration_adds_the_labellers_difference_to_the_evaluations_baseline(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    place = ("tasks", "baseline", "returns", "returns@v1", "reviewed")
    both = [("right", "right")] * 90 + [("right", "wrong")] * 8 + [("wrong", "right")] + [("wrong", "wrong")]
    path = tmp_path / "both.csv"
    path.write_text("gate,reviewer,note\n" + "".join(f"{gate},{reviewer},x\n" for gate, reviewer in both), "utf-8")
    calibrate = ("--calibrate", str(path), "--reason", "Reviewers are stricter.")
    early = await apprentice(*place, *calibrate)
    assert (early.exit_code, "no baseline of an evaluation" in early.err) == (1, True)
    await ok(apprentice, *place, "--wrong", "50", "--of", "1000", "--reason", "Counted.")
    said = await ok(apprentice, *place, *calibrate)
    assert said.out == "reviewed of returns@v1 is compared with at most 21.4% from now on.\n"
    again = await ok(apprentice, *place, *calibrate, "--json")
    held = again.json["set"]["reviewed"]
    assert held["source"] == "calibration, 8 stricter and 1 milder of 100 rows: Reviewers are stricter."
    assert (held["kind"], held["wrong"], held["of"], round(held["upper"], 3)) == ("admin", 50, 1000, 0.214)
    assert "monitor.baseline" in (await ok(apprentice, "audit", "--object", "returns@v1")).out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("gate,reviewer\nright,maybe\n", "Line 2: gate and reviewer must each be right or wrong"),
        ("gate,other\nright,1\n", "Line 2: no column reviewer"),
        ('{"gate": true}\n', "Line 1: no column reviewer"),
        ('{"gate": true, "reviewer": 1}\n' * 49, "greater than or equal to 50"),
    ],
)
async def test_calibration_that_can_not_be_is_one_line(
    apprentice: Command, tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "both"
    path.write_text(text, "utf-8")
    place = ("tasks", "baseline", "returns", "returns@v1", "reviewed", "--reason", "x")
    refused = await apprentice(*place, "--calibrate", str(path))
    assert refused.exit_code > 0
    assert reason in refused.err


async def test_plan_tells_how_soon_a_slip_is_found_at_other_rates(gateway: RunningGateway, apprentice: Command) -> None:
    none = await apprentice("why", "returns", "--plan")
    assert (none.exit_code, "no version that was judged yet" in none.err) == (2, True)
    baseline = {"kind": "gate", "wrong": 50, "of": 1000, "upper": 0.063, "rate": 0.05}
    report = SignalReport(
        signal="reviewed", labelled=True, observed=400, wrong=20, baseline=baseline, threshold=3_000, dispersion=2.0
    )
    await judged(gateway, report)
    said = (await ok(apprentice, "why", "returns", "--plan", "--labels-per-day", "100")).out
    assert "For nothing: at most 1 time a month" in said
    assert "about 2 labels count as one" in said
    assert re.search(r"\nSIGNAL +A DAY +BASELINE .*\nreviewed +100 +6\.3% ", said)
    assert all(len(line) <= 80 for line in said.splitlines() if line.startswith(("SIGNAL", "reviewed  ")))
    assert "+20 points  █" in said
    many = (await ok(apprentice, "why", "returns", "--labels-per-day", "1000", "--json")).json
    few = (await ok(apprentice, "why", "returns", "--labels-per-day", "100", "--json")).json
    assert many["days"]["10"] < few["days"]["10"]
    assert few["days"]["20"] < few["days"]["5"]


async def test_replay_takes_the_terms_of_a_live_task(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("outcome\n" + "0\n1\n" * 40, "utf-8")
    early = await apprentice("replay", str(path), "--like", "returns")
    assert (early.exit_code, "returns@v1 has no feedback yet" in early.err) == (2, True)
    held = {"kind": "own", "wrong": 8.0, "of": 200.0, "upper": 0.082, "at": 1.0, "by": "monitor", "source": "firsts"}
    await judged(gateway, msgspec.structs.replace(FEEDBACK, baseline={**held, "rate": 0.04}, threshold=474.0))
    said = await ok(apprentice, "replay", str(path), "--like", "returns")
    assert "Settings of feedback of returns@v1, as it is now. Alarm at an e-value of 474, from 30 labels on" in said.out
    assert "all: 80 labels, compared with 8.20% wrong, as stated" in said.out
    assert "At the end: degraded" in said.out
    other = (await ok(apprentice, "replay", str(path), "--like", "returns", "--gate-rows", "90/200", "--json")).json
    assert (other["claim"]["like"], other["claim"]["labels_min"]) == ("feedback of returns@v1", 30)
    assert other["signals"]["all"]["baseline"]["of"] == 200
    both = await apprentice("replay", str(path), "--like", "returns", "--labels", "500")
    assert (both.exit_code, "--like: it sets --warm-up, --labels" in both.err) == (2, True)
    none = await apprentice("replay", str(path), "--like", "nothing")
    assert (none.exit_code, "has no task 'nothing'" in none.err) == (1, True)
    assert "Settings of this command: --like TASK takes a task's." in (await ok(apprentice, "replay", str(path))).out


async def test_a_baseline_of_a_class_is_confirmed_with_the_class(gateway: RunningGateway, apprentice: Command) -> None:
    await judged(gateway, FEEDBACK)
    place = ("tasks", "baseline", "returns", "returns@v1", "feedback", "--wrong", "12", "--of", "240")
    said = await ok(apprentice, *place, "--class", "glass", "--reason", "Counted.")
    assert said.out == "feedback, class glass, of returns@v1 is compared with at most 8.0% from now on.\n"
    assert said.err.startswith("Warning: feedback of returns@v1 has no label of the class glass yet")


async def test_a_change_is_announced_and_taken_back(gateway: RunningGateway, apprentice: Command) -> None:
    year = datetime.now(UTC).year + 3
    words = ("--effective", f"{year}-01-01", "--note", "60 days to return.", "--until", f"{year}-02-01T09:30:00Z")
    first, second, third = (await ok(apprentice, "tasks", "changed", "returns", *words)).out.splitlines()
    assert first == f"returns changes from {year}-01-01 00:00:00Z on: returns@v1 stale then."
    assert second == f"The rule changed-returns sends its requests to general until {year}-02-01 09:30:00Z."
    assert third.startswith("Training is asked for: ")
    assert f"from {year}-01-01 00:00:00Z to {year}-02-01 09:30:00Z" in (await ok(apprentice, "overrides", "list")).out
    shown = (await ok(apprentice, "adapters", "show", "returns@v1")).out
    assert re.search(rf"(?m)^stale from +{year}-01-01 00:00:00Z$", shown)
    assert f"stale from {year}" in (await ok(apprentice, "tasks", "list")).out
    said = await ok(apprentice, "tasks", "changed", "returns", "--undo")
    assert said.out == "returns does not change: its versions are not stale, its rule is gone.\n"
    begins = int(datetime(year, 1, 1, tzinfo=UTC).timestamp())
    said = await ok(apprentice, "tasks", "changed", "returns", "--effective", str(begins), "--override", "none")
    assert "The rule" not in said.out
    assert said.out.startswith(f"returns changes from {year}-01-01 00:00:00Z on")


async def test_a_change_that_is_past_is_told_as_past(gateway: RunningGateway, apprentice: Command) -> None:
    day = datetime.fromtimestamp(time.time() - 30 * 86_400, UTC).strftime("%Y-%m-%d")
    said = await ok(apprentice, "tasks", "changed", "returns", "--effective", day)
    assert said.out.splitlines()[0] == f"returns has changed, on {day} 00:00:00Z: returns@v1 stale since then."
    await ok(apprentice, "tasks", "changed", "returns", "--undo")
    said = await ok(apprentice, "tasks", "changed", "returns", "--effective", day.replace("-", ""))
    assert said.out.startswith(f"returns has changed, on {day} 00:00:00Z")


async def test_what_was_judged_bad_is_listed_shown_exported_and_closed(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    async with gateway.http() as http:
        request_id, other = await asked(http, "A vase."), await asked(http, "A toaster.")
        await judge(http, request_id, False, demonstration="accept")
        await judge(http, other, False)
        await stored(gateway, 2)
        await keep_texts(gateway, request_id, "A vase.")
        opened = await sent(http, "POST", "/admin/v1/retraining", wanted=201, task="returns", reason="The season.")
    (row,) = rows((await ok(apprentice, "retraining", "list", "--state", "open")).out)
    assert (row[0], row[1:4], row[5:]) == (opened["id"], ["returns", "returns@v1", "open"], ["2", "The season."])
    shown = (await ok(apprentice, "retraining", "show", opened["id"])).out
    assert re.search(r"(?m)^examples +2 of 2 are kept; 1 can be evaluated$", shown)
    path = tmp_path / "failed.jsonl"
    said = await ok(apprentice, "retraining", "export", opened["id"], "--out", str(path), "--complete")
    assert said.out.replace("\n", "") == f"Wrote {path}: 1 example."
    reader = DatasetReader(DatasetLimits(10, 10_000, 10_000))
    assert [one.id for one in [*reader.feed(path.read_bytes()), *reader.end()]] == [request_id]
    assert said.err == ""
    told = (await ok(apprentice, "retraining", "export", opened["id"], "--out", str(path), "--json", "--force")).json
    assert told == {"file": str(path), "examples": 2}
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [other, request_id]
    async with asyncio.timeout(30):
        piped = await in_a_process(gateway)("retraining", "export", opened["id"], "--out", "/dev/stdout")
    assert piped.out == f"{path.read_text()}Wrote /dev/stdout: 2 examples.\n"
    assert (await ok(apprentice, "retraining", "close", opened["id"])).out == f"{opened['id']} is closed.\n"
    assert rows((await ok(apprentice, "retraining", "list", "--state", "open")).out) == []


async def test_an_export_that_can_not_be_evaluated_says_what_it_lacks(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    async with gateway.http() as http:
        first, second = await asked(http, "A vase."), await asked(http, "A toaster.")
        await judge(http, first, False, demonstration="accept")
        await judge(http, second, False)
        await stored(gateway, 2)
        opened = await sent(http, "POST", "/admin/v1/retraining", wanted=201, task="returns", reason="The season.")
    path = tmp_path / "failed.jsonl"
    words = ("retraining", "export", opened["id"], "--out", str(path))
    refused = await apprentice(*words, "--complete")
    assert (refused.exit_code, refused.out, path.exists()) == (2, "", False)
    lack = "of 2 examples, 2 have no text, and 1 no demonstration. Texts are kept of later requests with "
    assert f"Nothing is written: {lack}tasks.returns.texts.keep" in refused.err
    said = await ok(apprentice, *words)
    assert said.out.replace("\n", "") == f"Wrote {path}: 2 examples."
    assert said.err.startswith(f"None can be trained on: {lack}")


async def test_request_to_train_without_examples_exports_nothing(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    async with gateway.http() as http:
        opened = await sent(http, "POST", "/admin/v1/retraining", wanted=201, task="returns", reason="The season.")
    path = tmp_path / "failed.jsonl"
    refused = await apprentice("retraining", "export", opened["id"], "--out", str(path))
    assert (refused.exit_code, refused.out, path.exists()) == (2, "", False)
    assert "Nothing is written: no request was judged bad." in refused.err


REFUSED_COMMANDS = [
    (("why", "nothing"), 1, "The configuration has no task 'nothing'. It has returns."),
    (("why", "returns@v1"), 1, "The configuration has no task 'returns@v1'. It has returns."),
    (("tasks", "changed", "returns", "--effective", "99999999999"), 1, "--effective is 5138-11-16: a change is at"),
    (("tasks", "changed", "returns", "--effective", "1999-01-01"), 1, "is at most 1 year past and 5 years to come"),
    (("tasks", "changed", "returns", "--effective", "soon"), 1, ": --effective: it must be a date"),
    (("tasks", "pin", "returns", "returns@v1", "--reason", "  "), 1, "--reason: it is blank: say it in words."),
    (("tasks", "pin", "returns", "returns@v1", "--reason", "a", "--until", "1999-01-01"), 1, "--until is in the past"),
    (("tasks", "changed", "returns"), 2, "Give --effective with a date"),
    (("tasks", "changed", "returns", "--effective", "soon"), 1, "a date or a time as in 2026-12-01"),
    (("tasks", "changed", "returns", "--effective", "nan"), 1, "a date or a time as in 2026-12-01"),
    (("tasks", "changed", "returns", "--effective", "2099-01-01", "--undo"), 2, "either --effective or --undo"),
    (("tasks", "changed", "returns", "--undo"), 1, "there is nothing to take back"),
    (("tasks", "pin", "returns", "returns@v9", "--reason", "a"), 1, "returns has no version 'returns@v9'"),
    (("tasks", "pin", "returns", "returns@v1"), 2, "--reason"),
    (("tasks", "release", "returns", "returns@v1"), 1, "neither pinned nor held"),
    (("tasks", "undo", "returns", "nothing"), 1, "there is no 'nothing'"),
    (("tasks", "baseline", "returns", "returns@v1", "feedback", "--reason", "a"), 1, "give either --accept"),
    (
        ("tasks", "baseline", "returns", "returns@v1", "reviewed", "--evaluation", "nothing", "--reason", "a"),
        1,
        "There is no evaluation 'nothing' of returns@v1.",
    ),
    (("tasks", "baseline", "returns", "returns@v1", "weather", "--accept", "--reason", "a"), 1, "signal"),
    (("retraining", "show", "nothing"), 1, "There is no request to train 'nothing'"),
    (("retraining", "export", "../etc"), 2, "is not a request's id"),
    (("retraining", "export", "nothing"), 1, "There is no request to train 'nothing'"),
    (("retraining", "close", "nothing"), 1, "There is no request to train 'nothing'"),
]


async def test_what_can_not_be_done_is_one_line(apprentice: Command, subtests: pytest.Subtests) -> None:
    for words, exit_code, said in REFUSED_COMMANDS:
        with subtests.test(words=words, exit_code=exit_code, said=said):
            ended = await apprentice(*words)
            assert (ended.exit_code, ended.out) == (exit_code, "")
            assert said in ended.err
            assert "Traceback" not in ended.err
