"""An erasure that is killed half-way is done again, and loses nothing else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from monitoring import erasure
from monitoring.archive.run import ArchiveJob, run
from monitoring.archive.storage import FolderStorage, open_storage
from monitoring.archive.tables import FeedbackRow, RecordRow, day_of, write_part
from monitoring.datasets import build_run
from monitoring.datasets.build import build_set
from monitoring.datasets.build_job import DatasetJob, DatasetOptions
from monitoring.datasets.card import card_of
from monitoring.datasets.folder import GONE, forget_requests, remove_set, write_set
from monitoring.datasets.rows import DataRow
from monitoring.datasets.rows_from_files import SourceFile, read_rows
from monitoring.datasets.rows_from_traffic import KeptRows
from monitoring.erasure import ErasedSet, erase_from_sets
from monitoring.erasure_run import ErasureJob, erase
from monitoring.evaluation.dataset import Row
from monitoring.evaluation.erasure import find_erased, list_names
from monitoring.evaluation.redis_keys import EVALUATIONS_KEY, SUITES_KEY, get_evaluation_key, get_suite_key
from monitoring.feedback import STREAM_KEY as FEEDBACK_STREAM_KEY
from monitoring.feedback import Feedback
from monitoring.ids import RequestIds
from monitoring.records import Record, RecordStream
from monitoring.synced_files import lock_folder
from monitoring.texts import STREAM_KEY as TEXTS_STREAM_KEY
from monitoring.texts import TEXT_KEY
from monitoring.time_units import DAY_SECONDS
from monitoring.training.preparation import prepare
from monitoring.training.preparation_job import PreparationJob
from tests.monitoring.test_archive import damage, rows
from tests.monitoring.test_texts import NOW, ended, job, kept, parts, reader, text

__all__ = ["job"]

KILLED = """
import os
from monitoring import erasure, erasure_run, text_retention
{hook}
erasure_run.run_job(erasure_run.ErasureJob, erasure_run.erase)
"""
BEFORE = "text_retention.replace_part = lambda *told: os.kill(os.getpid(), 9)"
AFTER = """
whole = text_retention.replace_part
def replace_part(*told):
    whole(*told)
    os.kill(os.getpid(), 9)
text_retention.replace_part = replace_part
"""


def begun(erasure: ErasureJob, hook: str) -> subprocess.Popen[bytes]:
    """An erasure in a process of its own, which goes on."""
    command = [sys.executable, "-c", KILLED.format(hook=hook)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(erasure) + b"\n")
    process.stdin.flush()
    return process


async def test_requests_of_a_gateway_whose_clock_was_ahead_are_found(
    redis: Redis, job: ArchiveJob, tmp_path: Path
) -> None:
    ahead = text(1, at=NOW + 3600)
    record = Record(id="r1", at=ahead.at, endpoint="chat", caller=ahead.caller, requested_model="returns")
    record.handles = ahead.handles
    await RecordStream(redis, 60, 100, FEEDBACK_STREAM_KEY, 100).append([record])
    await kept(redis, [ahead])
    erasure = erasure_of("", job, tmp_path)
    erasure.requests, erasure.names, erasure.until = [], ahead.handles, time.time()
    report = erase(erasure)
    assert (report.requests, report.texts) == (["r1"], 1)
    erasure.until = NOW - 3600
    assert erase(erasure).requests == [], "it came later"


@pytest.mark.parametrize("hook", [BEFORE, AFTER])
async def test_a_killed_erasure_is_done_again_and_loses_no_other_text(
    redis: Redis, job: ArchiveJob, tmp_path: Path, hook: str
) -> None:
    await kept(redis, [text(number) for number in range(10)])
    run(job)
    await kept(redis, [text(number) for number in range(10, 20)])
    erasure = ErasureJob(
        redis_url=job.redis_url,
        folder=job.folder,
        datasets=str(tmp_path / "datasets"),
        trainings=str(tmp_path / "trainings"),
        spool=str(tmp_path / "spool"),
        until=text(0).at,
        requests=["r3", "r13"],
        names=["handle5"],
    )
    assert ended(begun(erasure, hook)) == -9
    assert set(erase(erasure).requests) >= {"r3", "r13"}
    with reader(job) as texts:
        found = sorted(each.request for each in texts.of_task("returns"))
    assert found == sorted(f"r{number}" for number in range(20) if number not in (3, 5, 13))


def erasure_of(request: str, job: ArchiveJob, folder: Path) -> ErasureJob:
    places = {name: str(folder / name) for name in ("datasets", "trainings", "spool")}
    return ErasureJob(redis_url=job.redis_url, folder=job.folder, until=text(0).at, requests=[request], **places)


async def test_rows_of_a_training_that_may_go_on_are_erased(redis: Redis, job: ArchiveJob, tmp_path: Path) -> None:
    source, folder = tmp_path / "train.jsonl", tmp_path / "trainings" / "t1"
    folder.mkdir(parents=True)
    rows = [{"id": f"row{number}", "request": f"r{number}", "text": f"Item {number}."} for number in range(9)]
    rows.append({"id": "made", "parent": "row3", "origin": "synthetic", "text": "Item 3 again."})
    source.write_text("".join(json.dumps({**row, "expected": "yes"}) + "\n" for row in rows))
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(json.dumps({"request": "r20", "text": "Item 20.", "expected": "no"}))
    bounds = {"rows_max": 100, "bytes_max": 10_000}
    places = (str(folder), str(source), str(heldout))
    prepared = prepare(PreparationJob(*places, [], 0.2, 0.0, 7, **bounds, datasets=str(tmp_path)))
    assert (prepared.rows, prepared.heldout) == (10, 1)
    (folder / "checkpoint.pt").write_bytes(b"weights")

    assert erase(erasure_of("r3", job, tmp_path)).trained == 2

    left = "".join(path.read_text() for path in folder.glob("*.jsonl"))
    assert "Item 3" not in left
    assert (left.count("Item"), (folder / "checkpoint.pt").read_bytes()) == (9, b"weights")


NEAR = ((3, "Vanderbilt"), (5, "deny"))


def data_row(number: int, asked: str, answer: str, **more: Any) -> DataRow:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return DataRow(messages=messages, id=f"row{number}", **more)


def build(folder: Path, rows: list[DataRow], asked: dict[str, str]) -> Path:
    """A data set of these rows, whose card tells how it covers what was `asked` by request."""
    built, kept_rows = build_set(rows, [], DatasetOptions(heldout_share=0.0)), KeptRows()
    for request, text_asked in asked.items():
        kept_rows.sample(request, text_asked)
    card = {"task": "returns", "built_at": NOW} | card_of(built, DatasetOptions(), kept_rows)
    return folder / write_set(folder, built, card)


async def test_a_card_forgets_words_ids_and_classes_of_erased_texts(
    redis: Redis, job: ArchiveJob, tmp_path: Path
) -> None:
    rows = [data_row(number, f"A plain item {number}.", "approve", request=f"r{number}") for number in range(10, 40)]
    near = "The blue amphora of the old shop at the harbour came with a broken handle, number {}."
    rows += [data_row(number, near.format(number), answer, request=f"r{number}") for number, answer in NEAR]
    target = build(tmp_path / "datasets", rows, {f"r{number}": "oxenstierna" for number in range(90, 99)})
    before = (target / "card.json").read_text()
    assert [word in before for word in ("Vanderbilt", "oxenstierna", "r90", "row3")] == [True] * 4
    record = RecordRow(id="r90", at=NOW - 60, endpoint="chat", caller="c", requested_model="returns", task="returns")
    lines = tmp_path / "records.jsonl"
    lines.write_bytes(msgspec.json.encode(record))
    write_part(open_storage(job.folder), "records", lines, f"records/{day_of(NOW)}/part-1-1.parquet")
    erase(erasure_of("r90", job, tmp_path))
    assert "oxenstierna" not in (card := (target / "card.json").read_text())
    assert "Vanderbilt" in card
    erase(erasure_of("r3", job, tmp_path))
    card = (target / "card.json").read_text()
    assert [word in card for word in ("Vanderbilt", "oxenstierna", "r90", "row3")] == [False] * 4
    assert msgspec.json.decode(card)["classes"]["train"] == {"approve": 30, "deny": 1}
    assert msgspec.json.decode(card)["rows"]["train"] == 31


async def test_a_derived_row_is_erased_where_its_parent_is_in_another_file(
    redis: Redis, job: ArchiveJob, tmp_path: Path
) -> None:
    rows = [data_row(number, f"A plain item {number}.", "yes", request=f"r{number}") for number in range(9)]
    rows += [data_row(10, "Item 3 in French.", "yes", parent="row3", origin="synthetic")]
    rows += [data_row(11, "Item 3 in Dutch.", "yes", parent="row10", origin="synthetic")]
    target = build(tmp_path / "datasets", rows, {})
    folder = tmp_path / "trainings" / "t1"
    folder.mkdir(parents=True)
    derived = [line for line in (target / "train.jsonl").read_text().splitlines() if "Dutch" in line]
    (folder / "rows.jsonl").write_text("\n".join(derived) + "\n")
    report = erase(erasure_of("r3", job, tmp_path))
    assert (report.trained, report.trainings) == (1, ["t1"])
    assert (folder / "rows.jsonl").read_text() == ""
    assert erase(erasure_of("r3", job, tmp_path)).trainings == ["t1"], "it is told again until somebody has ended it"


def test_a_deleted_data_set_is_named_for_the_versions_that_learned_its_texts(tmp_path: Path) -> None:
    rows = [data_row(number, f"A plain item {number}.", "yes", request=f"r{number}") for number in range(9)]
    target = build(tmp_path, rows, {})
    remove_set(target)
    assert "plain item" not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert erase_from_sets(tmp_path, {"r3"}, {}, 0.0, []) == [ErasedSet(target.name, 1, 0)]
    assert build(tmp_path, rows, {}) == target
    assert erase_from_sets(tmp_path, {"r3"}, {}, 0.0, []) == [ErasedSet(target.name, 1, 1)], (
        "once, where it is built again"
    )


def test_whole_rows_are_decoded_only_where_one_is_erased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [data_row(number, f"A plain item {number}.", "yes", request=f"r{number}") for number in range(9)]
    build(tmp_path, rows[:4], {})
    left_out = build_set([*rows[4:], data_row(9, "A plain item 8.", "no", request="r9")], [], DatasetOptions())
    other = tmp_path / write_set(
        tmp_path, left_out, {"task": "returns"} | card_of(left_out, DatasetOptions(), KeptRows())
    )
    assert b'"r9"' in (other / "left_out.jsonl").read_bytes()
    decoded, decode = list[Any](), msgspec.json.decode

    def note(data: bytes, **options: Any) -> Any:
        value = decode(data, **options)
        if isinstance(value, dict) and not {"id", "row"}.isdisjoint(value):
            decoded.append(value)
        return value

    monkeypatch.setattr(msgspec.json, "decode", note)
    assert erase_from_sets(tmp_path, {"r99"}, {}, 0.0, []) == []
    assert decoded == []
    assert erase_from_sets(tmp_path, {"r9"}, {}, 0.0, []) == [ErasedSet(other.name, 1, 1)]
    assert len(decoded) == 6


@pytest.mark.timeout(240)
def test_lines_are_searched_for_many_requests_at_once(tmp_path: Path) -> None:
    ids = RequestIds(b"secret")
    erased, kept = [ids.make("c") for _ in range(30_000)], [ids.make("c") for _ in range(30_000)]
    (tmp_path / ".files").mkdir()
    waiting = tmp_path / ".files" / "a"
    filling = "word " * 40
    lines = [
        f'{{"id": "chatcmpl-{name}", "text": "{filling}"}}\n'
        for pair in zip(erased, kept, strict=True)
        for name in pair
    ]
    waiting.write_text("".join(lines) + '{"id": "of another gateway"}\n')
    erase_from_sets(tmp_path, {*erased, "of another"}, {}, 0.0, [])
    assert waiting.read_text() == "".join(lines[1::2])


def test_a_row_that_waits_goes_with_the_erased_one_that_it_was_derived_from(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": 1, "request": "r1"}, {"id": "b", "parent": 1}, {"id": "c", "parent": "b"}]
    rows += [{"id": "d", "parent": "e"}, {"request": "r2"}]
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / ".files").mkdir()
    waiting = tmp_path / ".files" / "a"
    waiting.write_text("".join(lines) + "no JSON\n")
    erase_from_sets(tmp_path, {"r1"}, {}, 0.0, [])
    assert waiting.read_text() == "".join(lines[3:]) + "no JSON\n"


@pytest.mark.parametrize(
    "content",
    ['text,request\n"A secret\nof two lines",r1\n"B",r2\n', json.dumps([{"text": "A secret", "id": "r1"}], indent=1)],
)
def test_a_file_that_waits_goes_whole_where_a_line_is_no_row(tmp_path: Path, content: str) -> None:
    (tmp_path / ".files").mkdir()
    waiting = tmp_path / ".files" / "a"
    waiting.write_text(content)
    erase_from_sets(tmp_path, {"r3"}, {}, 0.0, [])
    assert waiting.read_text() == content
    erase_from_sets(tmp_path, {"r1"}, {}, 0.0, [])
    assert not waiting.exists(), "the rest of the row would stay"
    build = DatasetJob(task="returns", folder=str(tmp_path), files=[SourceFile("a.csv", str(waiting))])
    assert (
        build_run.build(build).error
        == "a.csv is no longer there, as after an erasure of a request in it: send it again."
    )


async def test_leftovers_of_crashes_are_removed(redis: Redis, job: ArchiveJob, tmp_path: Path) -> None:
    names = ["datasets/.partial-1/set/train.jsonl", "archive/.partial-2/rows.jsonl", "trainings/t1/rows.new"]
    names += [f"datasets/{'a' * 64}/.train.jsonl.partial"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("A text.")
    erase(erasure_of("r1", job, tmp_path))
    assert [name for name in names if (tmp_path / name).exists()] == []


def test_a_data_set_whose_list_of_requests_is_lost_loses_its_rows_all_the_same(tmp_path: Path) -> None:
    target = build(
        tmp_path, [data_row(number, f"A plain item {number}.", "yes", request=f"r{number}") for number in (1, 2)], {}
    )
    (target / "requests.txt").unlink()
    assert erase_from_sets(tmp_path, {"r1"}, {}, 0.0, []) == [ErasedSet(target.name, 1, 1)]


def test_a_folder_that_is_no_data_set_is_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "lost+found" / "rows.jsonl"
    foreign.parent.mkdir()
    foreign.write_text('{"id": "r1"}\n')
    unread: list[str] = []
    assert erase_from_sets(tmp_path, {"r1"}, {}, 0.0, unread) == []
    assert (foreign.read_text(), unread) == ('{"id": "r1"}\n', []), "on a volume, only root can read it"


async def test_a_training_is_prepared_once_an_erasure_is_over(job: ArchiveJob, tmp_path: Path) -> None:
    source, folder = tmp_path / "train.jsonl", tmp_path / "t1"
    folder.mkdir()
    source.write_text(json.dumps({"text": "Item 1.", "expected": "yes"}))
    preparation = PreparationJob(str(folder), str(source), "", [], 0.0, 0.0, 7, 100, 10_000, str(tmp_path))
    with lock_folder(tmp_path):
        preparing = asyncio.ensure_future(asyncio.to_thread(prepare, preparation))
        assert not (await asyncio.wait([preparing], timeout=0.3))[0]
    assert (await preparing).rows == 1


async def test_an_erasure_waits_for_a_data_set_that_is_built(redis: Redis, job: ArchiveJob, tmp_path: Path) -> None:
    datasets = tmp_path / "datasets"
    built = datasets / ("a" * 64)
    built.mkdir(parents=True)
    with lock_folder(datasets, shared=True):
        erasing = asyncio.ensure_future(asyncio.to_thread(erase, erasure_of("r1", job, tmp_path)))
        assert not (await asyncio.wait([erasing], timeout=0.3))[0]
        (built / "requests.txt").write_text("r1\n")
        (built / "train.jsonl").write_text(json.dumps({"id": "r1", "text": "Item 1."}) + "\n")
    assert [(each.digest, each.rows) for each in (await erasing).datasets] == [("a" * 64, 1)]
    assert (built / "train.jsonl").read_text() == ""


def test_ids_that_an_erasure_reads_are_forgotten_another_time(tmp_path: Path) -> None:
    gone = tmp_path / f"{GONE}{'a' * 64}"
    gone.mkdir()
    with lock_folder(tmp_path):
        forget_requests(tmp_path, time.time() + 1, frozenset())
        assert gone.exists()
    forget_requests(tmp_path, time.time() + 1, frozenset())
    assert not gone.exists()


def tear(path: Path, torn: str) -> None:
    """Put a half-written line into a file of rows, before all others."""
    path.write_text(f"{torn}\n{path.read_text()}")


async def test_a_damaged_place_is_told_and_all_others_are_erased(redis: Redis, job: ArchiveJob, tmp_path: Path) -> None:
    rows = [data_row(number, f"A plain item {number}.", "yes", request=f"r{number}") for number in range(9)]
    first, last = (build(tmp_path / "datasets", part, {}) for part in (rows[:4], rows[3:]))
    unread = tmp_path / "spool" / "gw.00000001.spool.damaged"
    unread.mkdir(parents=True)  # nobody can read a folder as a file
    blocked = min(first, last) / "train.jsonl"
    blocked.unlink()
    blocked.mkdir()
    entries = tmp_path / "archive" / "unreadable" / "texts-1-1.jsonl"
    entries.mkdir(parents=True)
    report = erase(erasure_of("r3", job, tmp_path))
    assert report.unread == [f"{place}: Is a directory" for place in (entries, unread, blocked)]
    assert [each.rows for each in report.datasets] == [0, 1]
    assert "item 3" not in (max(first, last) / "train.jsonl").read_text()
    for place in (entries, unread, blocked):
        place.rmdir()
    assert erase(erasure_of("r3", job, tmp_path)).unread == []


def test_a_torn_line_is_erased_where_it_may_hold_the_text(tmp_path: Path) -> None:
    secret = "A secret of Mrs. Vanderbilt that is longer than forty characters."
    rows = [data_row(number, f"A plain item {number}.", "yes", request=f"r{number}") for number in range(9)]
    named, other = (build(tmp_path, part, {}) for part in (rows[:4], rows[4:]))
    card = msgspec.json.decode((named / "card.json").read_bytes()) | {"longest": [secret]}
    (named / "card.json").write_bytes(msgspec.json.encode(card))
    for path in (named, other):
        tear(path / "train.jsonl", f'{{"id": "row12", "messages": [{{"content": "{secret}"')
    tear(other / "heldout.jsonl", '{"id": "r3", "messages": [')
    assert erase_from_sets(tmp_path, {"r3"}, {}, 0.0, []) == [ErasedSet(named.name, 1, 2), ErasedSet(other.name, 0, 1)]
    assert "Vanderbilt" not in "".join(path.read_text() for path in named.iterdir())
    assert (named / "train.jsonl").read_text().count("plain item") == 3
    assert "Vanderbilt" in (other / "train.jsonl").read_text(), "no request of this set is erased"
    assert (other / "heldout.jsonl").read_text() == ""


def test_an_unreadable_card_is_told_and_its_rows_are_erased(tmp_path: Path) -> None:
    rows = [data_row(number, f"A plain item {number}.", "yes", request=f"r{number}") for number in range(9)]
    named, other = (build(tmp_path, part, {}) for part in (rows[:4], rows[4:]))
    for path in (named, other):
        (path / "card.json").write_text('{"torn": ')
    unread: list[str] = []
    assert erase_from_sets(tmp_path, {"r3"}, {}, 0.0, unread) == [ErasedSet(named.name, 1, 1)]
    assert [each.partition(": ")[0] for each in unread] == [str(path / "card.json") for path in sorted((named, other))]


@pytest.mark.parametrize("column", [None, "request", "text"])
async def test_a_damaged_file_of_texts_is_told_and_the_others_are_erased(
    redis: Redis, job: ArchiveJob, tmp_path: Path, column: str | None
) -> None:
    await kept(redis, [text(1, NOW), text(2, NOW), text(3, NOW - DAY_SECONDS), text(4, NOW - 2 * DAY_SECONDS)])
    run(job)
    oldest, damaged, newest = parts(job)
    damage(damaged, column)
    erasure = erasure_of("r1", job, tmp_path)
    erasure.requests.append("r3")
    report = erase(erasure)
    assert (report.texts, report.unread) == (1, [f"{damaged}: damaged"])
    assert [row["request"] for row in rows([oldest, newest])] == ["r4", "r2"]
    assert erase(erasure_of("r4", job, tmp_path)).unread == [f"{damaged}: damaged"] * (column is None)
    assert not oldest.exists()
    damaged.unlink()
    assert erase(erasure).unread == []


async def test_a_damaged_file_of_records_or_feedback_is_told_too(redis: Redis, job: ArchiveJob, tmp_path: Path) -> None:
    folder, lines = Path(job.folder), tmp_path / "lines.jsonl"
    record = RecordRow(id="r1", at=NOW, endpoint="chat", caller="c", requested_model="returns", handles=["handle1"])
    label = FeedbackRow(request="r1", at=NOW, caller="c", feedback_id="f", metric="correct", comment="A vase")
    places = []
    for dataset, row in (("records", record), ("feedback", label)):
        lines.write_bytes(msgspec.json.encode(row))
        for day in ("day=2026-03-01", "day=2026-03-02"):
            places.append(folder / dataset / day / "part-1-0-1-0.parquet")
            write_part(FolderStorage(folder), dataset, lines, f"{dataset}/{day}/part-1-0-1-0.parquet")
    for path in places[::2]:
        damage(path)
    erasure = erasure_of("r1", job, tmp_path)
    erasure.requests, erasure.names = [], ["handle1"]
    report = erase(erasure)
    assert (report.requests, report.feedback) == (["r1"], 1)
    assert report.unread == [f"{path}: damaged" for path in (places[2], places[0])]


async def test_a_damaged_value_in_redis_is_told_and_all_others_are_erased(
    redis: Redis, job: ArchiveJob, tmp_path: Path
) -> None:
    rows = [data_row(number, f"A plain item {number}.", "yes", request=f"r{number}") for number in range(4)]
    target = build(tmp_path / "datasets", rows, {})
    await redis.set(f"{TEXT_KEY}r9", b'{"request": "r9", ')
    await redis.xadd(TEXTS_STREAM_KEY, {"request": "r9"})
    suite, evaluation = get_suite_key("returns", "d"), get_evaluation_key("e", "data")
    await redis.hset(SUITES_KEY, "returns/d", b"{}")
    await redis.zadd(EVALUATIONS_KEY, {"e": 1})
    for key in (suite, evaluation, get_evaluation_key("coming-1", "coming")):
        await redis.rpush(key, b'{"torn": ')
    report = erase(erasure_of("r3", job, tmp_path))
    assert [each.partition(":")[0] for each in report.unread] == [
        "received rows apprentice",
        "suite d of returns",
        "evaluation e",
    ]
    assert [(each.digest, each.rows) for each in report.datasets] == [(target.name, 1)]


async def test_words_of_feedback_that_can_not_be_read_are_erased(redis: Redis, job: ArchiveJob, tmp_path: Path) -> None:
    torn = b'{"feedback_id": "f1", "comment": "red and'
    for request in ("r3", "r4"):
        await redis.hset(f"apprentice:feedback:{request}", mapping={"f1": b"digest\n*\n" + torn, "f2": torn})
        await redis.xadd(FEEDBACK_STREAM_KEY, {"request": request, "index": "", "feedback": torn})
    assert erase(erasure_of("r3", job, tmp_path)).unread == []
    assert await redis.hgetall("apprentice:feedback:r3") == {}
    assert len(await redis.hgetall("apprentice:feedback:r4")) == 2
    assert [fields[b"feedback"] for _, fields in await redis.xrange(FEEDBACK_STREAM_KEY)] == [b"{}", torn]
    assert b"red and" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*r3*") if path.is_file())


async def test_an_erasure_goes_on_where_redis_has_no_room_for_the_feedback(
    redis: Redis, job: ArchiveJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [data_row(number, f"A plain item {number}.", "yes", request=f"r{number}") for number in range(4)]
    target = build(tmp_path / "datasets", rows, {})
    body = msgspec.json.encode(
        Feedback(feedback_id="f", metric="correct", value=True, at=NOW, caller="c", comment="A" * 4000)
    )
    async with redis.pipeline(transaction=False) as pipe:
        for number in range(3000):
            pipe.xadd(FEEDBACK_STREAM_KEY, {"request": f"r{number}", "index": "", "feedback": body})
        await pipe.execute()
    await redis.config_set("maxmemory", (await redis.info("memory"))["used_memory"] + 6_000_000)
    try:
        report = erase(erasure_of("r3", job, tmp_path))
    finally:
        await redis.config_set("maxmemory", 0)
    assert "raise its maxmemory" in " ".join(report.unread)
    assert [(each.digest, each.rows) for each in report.datasets] == [(target.name, 1)]


def test_a_row_is_found_by_the_id_in_an_answers_body(tmp_path: Path) -> None:
    ids = RequestIds(b"secret")
    asked, other = (ids.make("c") for _ in range(2))
    names: list[dict[str, Any]] = [{"id": f"chatcmpl-{asked}"}, {"request": f"msg_{asked}"}, {"parent": asked}]
    rows = [{"text": f"Item {number}.", "expected": "yes", **name} for number, name in enumerate(names)]
    rows += [{"text": "Item of another.", "expected": "yes", "id": f"chatcmpl-{other}"}]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = [row for row in read_rows(SourceFile("rows.jsonl", str(source))) if isinstance(row, DataRow)]
    target = build(tmp_path / "datasets", read, {})
    assert (target / "requests.txt").read_text().split() == sorted((asked, other))
    assert erase_from_sets(tmp_path / "datasets", {asked}, {}, 0.0, []) == [ErasedSet(target.name, 1, 3)]
    assert "Item of another" in (target / "train.jsonl").read_text()
    suite = [Row(number, f"row{number}", number, "yes", [], None, None) for number in range(4)]
    suite = [msgspec.structs.replace(row, **name) for row, name in zip(suite, [*names, {}], strict=True)]
    assert find_erased([list_names(row) for row in suite], {asked}) == [0, 1, 2]


def test_a_file_that_is_moved_to_its_place_meanwhile_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".files" / ".incoming-1").mkdir(parents=True)
    coming, target = tmp_path / ".files" / ".incoming-1" / "rows", tmp_path / ".files" / "a"
    coming.write_text('{"id": "r1"}\n{"id": "r2"}\n')
    erase_lines = erasure._erase_lines

    def move_first(path: Path, names_one: Any) -> None:
        if path == coming:
            coming.rename(target)
        erase_lines(path, names_one)

    monkeypatch.setattr(erasure, "_erase_lines", move_first)
    unread: list[str] = []
    erase_from_sets(tmp_path, {"r1"}, {}, 0.0, unread)
    assert (target.read_text(), unread) == ('{"id": "r2"}\n', [])
