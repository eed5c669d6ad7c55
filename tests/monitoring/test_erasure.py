"""An erasure that is killed half-way is done again, and loses nothing else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from monitoring.archive import lock_archive
from monitoring.archive_run import ArchiveJob, run
from monitoring.erasure_run import ErasureJob, erase
from monitoring.training.preparation import PreparationJob, prepare
from tests.monitoring.test_texts import ended, job, kept, reader, text

__all__ = ["job"]

KILLED = """
import os
from monitoring import erasure, erasure_run, text_retention
{hook}
erasure_run.main()
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
    bounds = {"rows_max": 100, "bytes_max": 10_000, "row_bytes_max": 1000}
    prepared = prepare(PreparationJob(str(folder), str(source), str(heldout), [], 0.2, 0.0, 7, **bounds))
    assert (prepared.rows, prepared.heldout) == (10, 1)
    (folder / "checkpoint.pt").write_bytes(b"weights")

    assert erase(erasure_of("r3", job, tmp_path)).trained == 2

    left = "".join(path.read_text() for path in folder.glob("*.jsonl"))
    assert "Item 3" not in left
    assert (left.count("Item"), (folder / "checkpoint.pt").read_bytes()) == (9, b"weights")


async def test_an_erasure_waits_for_a_data_set_that_is_built(redis: Redis, job: ArchiveJob, tmp_path: Path) -> None:
    datasets = tmp_path / "datasets"
    built = datasets / ("a" * 64)
    built.mkdir(parents=True)
    with lock_archive(datasets, shared=True):
        erasing = asyncio.ensure_future(asyncio.to_thread(erase, erasure_of("r1", job, tmp_path)))
        assert not (await asyncio.wait([erasing], timeout=0.3))[0]
        (built / "requests.txt").write_text("r1\n")
        (built / "train.jsonl").write_text(json.dumps({"id": "r1", "text": "Item 1."}) + "\n")
    assert [(each.digest, each.rows) for each in (await erasing).datasets] == [("a" * 64, 1)]
    assert (built / "train.jsonl").read_text() == ""
