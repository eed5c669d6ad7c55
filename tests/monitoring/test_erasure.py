"""An erasure that is killed half-way is done again, and loses nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from monitoring.archive_run import ArchiveJob, run
from monitoring.erasure_run import ErasureJob, erase
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
