"""`apprentice records …` over what gateways archived: each record once, whoever of them wrote it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from gateway.cli.records import moment_of
from gateway.errors import SettingsError
from monitoring.archive.storage import FolderStorage
from monitoring.archive.tables import Dataset, FeedbackRow, RecordRow, write_part
from monitoring.records import AttemptRecord
from tests.gateway.cli.conftest import Said, run
from tests.monitoring.test_archive import damage
from tests.walks.conftest import Configure
from tests.walks.gateway import run_gateway

ASK = {"model": "general", "messages": [{"role": "user", "content": "How many days are in a week?"}]}


async def said(*words: str) -> Said:
    return await asyncio.to_thread(run, *words)


async def ok(*words: str) -> Said:
    ended = await said(*words)
    assert ended.exit_code == 0, ended.err
    return ended


@pytest.fixture
async def archived(configure: Configure, tmp_path: Path) -> AsyncIterator[tuple[Path, list[str]]]:
    """The archive of two gateways that run, and the ids of the requests that they served; one of them is judged."""
    keep = {"archive_interval_seconds": 0.1, "archive_folder": str(tmp_path / "archive")}
    async with (
        run_gateway(configure(records=keep)) as one,
        run_gateway(configure(records=keep), one.admin_key) as two,
        one.http() as first,
        two.http() as second,
    ):
        served = []
        for http in (first, second) * 10:
            answer = await http.post("/v1/chat/completions", json=ASK)
            served.append(answer.headers["x-request-id"])
        judged = {"request_id": served[0], "metric": "correct", "value": True}
        assert (await first.post("/v1/feedback", json=judged)).status_code == 201

        async def counted(dataset: str) -> int:
            ended = await said(
                "records", "count", "--json", "--dataset", dataset, "--folder", str(tmp_path / "archive")
            )
            return int(ended.json["rows"]) if ended.exit_code == 0 else 0

        async with asyncio.timeout(60):
            while await counted("records") < 20 or await counted("feedback") < 1:
                await asyncio.sleep(0.05)

        async def archived_by_both() -> float:
            told = (await first.get("/metrics")).text + (await second.get("/metrics")).text
            lines = [line.split() for line in told.splitlines() if line.startswith("apprentice_records_archived_total")]
            return sum(float(value) for _, value in lines)

        async with asyncio.timeout(60):  # files are there a moment before the run has ended, and is counted
            while await archived_by_both() < 20:
                await asyncio.sleep(0.05)
        assert await archived_by_both() == 20
        yield tmp_path / "archive", served


async def test_what_two_gateways_served_is_counted_and_exported_once(
    archived: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, served = archived
    counted = await ok("records", "count", "--folder", str(folder))
    lines = counted.out.splitlines()
    assert lines[0].split() == ["DAY", "RECORDS", "FILES", "SIZE", "OF", "FILES"]
    assert lines[-1].split()[:2] == ["all", "20"]
    out = tmp_path / "all.jsonl"
    told = await ok("records", "export", "--folder", str(folder), "--since", "1h", "--out", str(out))
    assert told.out.startswith(f"Wrote {out}: 20 rows, ")
    again = await ok("records", "export", "--folder", str(folder), "--out", str(out), "--force", "--json")
    assert again.json == {"file": str(out), "dataset": "records", "rows": 20, "size_bytes": out.stat().st_size}
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == sorted(served)
    assert {(row["pool"], row["outcome"]) for row in rows} == {("general", "ok")}
    feedback = ("records", "export", "--dataset", "feedback", "--folder", str(folder), "--out", str(out))
    refused = await said(*feedback)
    assert (refused.exit_code, refused.out, "give --force to write over it" in refused.err) == (2, "", True)
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    await ok(*feedback, "--force")
    (judged,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (judged["request"], judged["value_boolean"], judged["pool"]) == (served[0], True, "general")
    assert (await ok("records", "count", "--folder", str(folder), "--task", "returns", "--json")).json["rows"] == 0


async def test_what_can_not_be_is_one_line_and_writes_nothing(archived: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = ("--folder", str(archived[0]))
    for words, told in (
        (("count", "--folder", str(tmp_path / "none")), "none: there is no such folder."),
        (("count", "--config", str(tmp_path / "none.yaml")), "can't be read"),
        (("count", *folder, "--since", "yesterday"), "'yesterday' is not a time"),
        (("count", *folder, "--since", "999999d"), "'999999d' is not a time"),
        (("count", *folder, "--until", "9999-12-31T23:59-01:00"), "-01:00' is not a time"),
        (("export", *folder, "--out", str(tmp_path / "x.xlsx")), "ends in none of"),
        (("export", *folder, "--out", str(tmp_path / "no" / "x.csv")), "name a file in a folder that there is"),
        (("export", *folder, "--until", "2001-01-01", "--out", str(tmp_path / "x.csv")), "There are no records"),
    ):
        ended = await said("records", *words)
        assert (ended.exit_code, ended.out, ended.err.count("\n")) == (2, "", 1), ended
        assert ended.err.startswith("apprentice: ")
        assert told in ended.err
    assert not list(tmp_path.glob("*x.*"))


def test_times_are_days_moments_and_ages() -> None:
    now = 1_772_366_400.0
    assert moment_of("2026-03-01", now) == moment_of("2026-03-01T00:00Z", now) == now - 43_200
    assert moment_of("2026-03-01T13:00+01:00", now) == now
    assert (moment_of("36h", now), moment_of("7d", now)) == (now - 36 * 3600, now - 7 * 86_400)
    assert moment_of("30m", now) == now - 1800
    assert moment_of("1h", time.time()) < time.time()
    for wrong in ("yesterday", "7w", "", "2026-13-01", "-1h"):
        with pytest.raises(SettingsError):
            moment_of(wrong, now)


# ---- replay ------------------------------------------------------------------------------------------


BEGAN = 1_772_366_400.0


def with_labels(folder: Path, tmp_path: Path, wrong: Callable[[int], bool], count: int = 700) -> None:
    """An archive of a version's requests, one a minute, each judged by its caller ten minutes later."""
    rows: dict[Dataset, list[msgspec.Struct]] = {"records": [], "feedback": []}
    for number in range(count):
        at, caller = BEGAN + 60 * number, f"caller{number % 4}"
        place = round(at * 1000)
        rows["records"].append(
            RecordRow(
                id=f"r{number}",
                at=at,
                endpoint="chat",
                caller=caller,
                requested_model="returns",
                task="returns",
                led_to="returns@v3",
                version="returns@v3",
                reason="adapter",
                outcome="ok",
                attempts=[AttemptRecord("small", "small-0", "returns@v3", None, 0.1)],
                entry=f"{place}-0",
            )
        )
        rows["feedback"].append(
            FeedbackRow(
                request=f"r{number}",
                at=at + 600,
                caller=caller,
                task="returns",
                feedback_id=f"f{number}",
                metric="correct",
                value_boolean=not wrong(number),
                reviewed=False,
                entry=f"{place + 600_000}-0",
            )
        )
    for dataset, made in rows.items():
        lines = tmp_path / f"{dataset}.jsonl"
        lines.write_bytes(b"\n".join(msgspec.json.encode(one) for one in made))
        write_part(FolderStorage(folder), dataset, lines, f"{dataset}/day=2026-03-01/part-0-1.parquet")


@pytest.fixture
def configured(configure: Configure, tmp_path: Path) -> str:
    """A configuration with a task that is watched."""
    path = tmp_path / "apprentice.yaml"
    told = configure(
        records={"archive_folder": tmp_path / "archive"}, feedback_metrics={"correct": {"kind": "boolean"}}
    )
    told["tasks"]["returns"] = {"monitor": {"feedback_metric": "correct"}}
    path.write_text(json.dumps(told, default=str))
    return str(path)


def test_a_replay_tells_each_verdict_that_moved_with_its_evidence(configured: str, tmp_path: Path) -> None:
    with_labels(tmp_path / "archive", tmp_path, lambda number: number % 2 == 0 if 300 <= number < 420 else False)
    held = ("--version", "returns@v3", "--gate-rows", "30/1000")
    ended = run("records", "replay", "--config", configured, "--task", "returns", *held, "--json")
    assert ended.exit_code == 0, ended.err
    told = ended.json
    assert told["read"] == {"records": 700, "feedback": 700, "feedback_without_record": 0, "without_a_place": 0}
    assert [(one["from"], one["to"]) for one in told["verdict_changes"]] == [
        ("healthy", "degraded"),
        ("degraded", "healthy"),
    ]
    degraded, recovered = told["verdict_changes"]
    assert BEGAN + 300 * 60 < degraded["at"] < BEGAN + 345 * 60 < recovered["at"]
    assert degraded["evidence"][0]["signal"] == "feedback"
    assert degraded["evidence"][0]["alarming"]
    assert 300 < degraded["labels"] < 345
    version = told["versions"]["returns@v3"]
    assert (version["verdict"], version["requests"], version["labels"]) == ("healthy", 700, 700)
    shown = run("records", "replay", "--config", configured, *held)
    assert "healthy to degraded" in shown.out
    assert "Read 700 records and 700 judgements." in shown.out
    assert run("records", "replay", "--config", configured, "--until", "2026-03-01T14:00").out.count("to degraded") == 0


def test_a_version_that_is_not_in_the_archive_is_refused_with_those_that_are(configured: str, tmp_path: Path) -> None:
    with_labels(tmp_path / "archive", tmp_path, lambda _: False, count=3)
    for held in ((), ("--gate-rows", "50/1000")):
        ended = run("records", "replay", "--config", configured, "--version", "returns@v9", *held)
        assert (ended.exit_code, ended.out) == (2, "")
        assert ended.err == "apprentice: The archive has no record of returns@v9. Of returns it has returns@v3.\n"
    ended = run("records", "replay", "--config", configured, "--version", "returns@v9", "--until", "2001-01-01")
    assert "There are no records" in ended.err
    ended = run("records", "replay", "--config", configured, "--version", "other@v1")
    assert (ended.exit_code, "The configuration has no task other" in ended.err) == (2, True)


@pytest.mark.parametrize("dataset", ["records", "feedback"])
def test_a_replay_names_the_damaged_file(configured: str, tmp_path: Path, dataset: str) -> None:
    with_labels(tmp_path / "archive", tmp_path, lambda _: False, count=3)
    damage(damaged := tmp_path / "archive" / dataset / "day=2026-03-01" / "part-0-1.parquet", "caller")
    ended = run("records", "replay", "--config", configured)
    assert (ended.exit_code, ended.out) == (2, "")
    assert f"damaged files: {damaged}. Leave out" in ended.err


def test_a_folder_that_is_not_there_is_told_as_such(configured: str, tmp_path: Path) -> None:
    for command in ("replay", "count"):
        ended = run("records", command, "--config", configured, "--folder", str(tmp_path / "none"))
        assert (ended.exit_code, ended.out) == (2, "")
        assert ended.err == f"apprentice: {tmp_path / 'none'}: there is no such folder.\n"
    unset = run("records", "replay", "--config", configured)
    assert "There are no records" in unset.err, "a gateway that has archived nothing yet has no folder"


def test_json_is_printed_where_nothing_is_archived(configured: str) -> None:
    counted = run("records", "count", "--config", configured, "--json")
    assert (counted.exit_code, counted.err, counted.json) == (0, "", {"dataset": "records", "rows": 0, "days": []})
    assert run("records", "count", "--config", configured).out.splitlines()[1].split() == ["all", "0", "0", "0", "B"]
    refused = run("records", "replay", "--config", configured, "--json")
    assert (refused.exit_code, "There are no records" in refused.json["error"]["message"]) == (2, True)
    assert refused.err == f"apprentice: {refused.json['error']['message']}\n"


def test_what_can_not_be_replayed_is_one_line(configured: str, tmp_path: Path) -> None:
    for words, told in (
        ((), "There are no records"),
        (("--task", "nobody"), "The configuration has no task nobody"),
        (("--baseline", "0.1"), "name it with --version"),
        (("--version", "returns@v3", "--baseline", "2"), "a rate from"),
        (("--version", "returns@v3", "--gate-rows", "7/5"), "not as in 50/1000"),
        (("--version", "returns@v3", "--gate-rows", "7/50", "--baseline", "0.1"), "one of them"),
    ):
        ended = run("records", "replay", "--config", configured, *words)
        assert (ended.exit_code, ended.out) == (2, ""), ended
        assert told in ended.err
