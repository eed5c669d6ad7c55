"""Helper processes: a job goes in, progress and a result come out, and what goes wrong is said in a sentence."""

from __future__ import annotations

import sys

import msgspec
import pytest
from redis.exceptions import ConnectionError as Disconnected

from gateway.background.job_process import run_process
from gateway.errors import Problem
from monitoring.helper_process import ProgressStep

TELLS = """
from msgspec import Struct
from monitoring.helper_process import run_data_job, tell_step
class Job(Struct):
    bytes: int
def work(job, data):
    tell_step("counting", 0.5)
    return {"type": "result", "letters": len(data)}
run_data_job(Job, work)
"""


class Counted(msgspec.Struct, tag="result"):
    """The result of TELLS."""

    letters: int


async def test_a_helper_gets_its_job_and_data_and_gives_its_steps_and_result() -> None:
    steps: list[ProgressStep] = []

    async def note(step: ProgressStep) -> None:
        steps.append(step)

    counted = await run_process((sys.executable, "-c", TELLS), {"bytes": 3}, Counted, 30.0, data=b"abc", note=note)
    assert (counted, steps) == (Counted(3), [ProgressStep("counting", 0.5)])


async def test_a_step_that_redis_does_not_take_ends_no_helper() -> None:
    async def note(_: ProgressStep) -> None:
        raise Disconnected("It is away for a moment.")

    counted = await run_process((sys.executable, "-c", TELLS), {"bytes": 3}, Counted, 30.0, data=b"abc", note=note)
    assert counted == Counted(3)


@pytest.mark.parametrize(
    ("program", "code", "text"),
    [
        ("import time; time.sleep(60)", "timeout", "It took longer than 0.2 s: give fewer rows."),
        ("raise SystemExit(3)", "internal_error", "The process ended with exit code 3: see the gateway's log."),
        (
            "import os; os.kill(os.getpid(), 9)",
            "internal_error",
            "exit code -9: see the gateway's log, and give it less",
        ),
    ],
)
async def test_a_helper_without_a_result_is_a_problem_with_its_reason(program: str, code: str, text: str) -> None:
    seconds_max = 0.2 if code == "timeout" else 30.0
    with pytest.raises(Problem, match=text.replace(".", r"\.")) as caught:
        await run_process((sys.executable, "-c", program), {}, Counted, seconds_max, advice="give fewer rows")
    assert caught.value.code == code
