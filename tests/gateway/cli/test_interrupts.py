"""Ctrl-C or SIGTERM in a command: the exit code, the line that says how to go on, and the files that it was writing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gateway.callers import new_key
from gateway.cli.admin_client import write_whole
from tests.fakes.applications import run_application

PROGRAM = Path(sys.executable).with_name("apprentice")
NOTHING_IGNORED = ("env", "--default-signal")
"""Under `nohup`, or behind a shell's `&`, tests would hand down that a signal is ignored."""
BUILD = {"id": "b1", "state": "running", "progress": {"share": 0.1, "stage": "reading"}}
BUILT_ON = "The data set goes on being built: see how far it is with `apprentice datasets list`.\n"
GOES_ON = "The adoption stops here: the same command goes on where it stood.\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("datasets", "build", "returns", "--file", "rows.jsonl"), BUILT_ON),
        (("datasets", "build", "returns", "--file", "rows.jsonl", "--json"), BUILT_ON),
        (("adopt", "rows.jsonl", "--task", "returns"), BUILT_ON + GOES_ON),
    ],
    ids=["build", "json", "adopt"],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_while_a_data_set_is_built_says_how_to_go_on_and_leaves_nothing(
    words: tuple[str, ...], told: str, number: signal.Signals, tmp_path: Path
) -> None:
    looked = asyncio.Event()

    async def answer(request: Request) -> JSONResponse:
        if "/builds/" in request.url.path:
            looked.set()
        rest = {"tasks": [{"task": "returns"}], "digest": "d" * 64, "rules": [], "answer": "not_yet", "because": "x"}
        return JSONResponse(BUILD | rest)

    (tmp_path / "rows.jsonl").write_text("{}\n")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    async with run_application(app) as url, asyncio.timeout(60):
        variables = {**os.environ, "APPRENTICE_URL": url, "APPRENTICE_KEY": new_key()[0], "TMPDIR": str(temporary)}
        process = await asyncio.create_subprocess_exec(
            *(*NOTHING_IGNORED, PROGRAM, *words), cwd=tmp_path, env=variables, stdout=-1, stderr=-1
        )
        await looked.wait()
        process.send_signal(number)
        out, err = await process.communicate()  # which a command that it runs would keep open
    assert (process.returncode, out) == (128 + number, b"")
    assert list(temporary.iterdir()) == [], "the admin's key, or texts, are left there"
    assert err.decode().endswith(told), err.decode()
    assert "Traceback" not in err.decode()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("old")
    with pytest.raises(ValueError, match="half"), write_whole(report) as partial:
        raise ValueError("half" * partial.write_text("n"))
    assert ([path.name for path in tmp_path.iterdir()], report.read_text()) == (["report.json"], "old")
    with write_whole(report) as partial:
        partial.write_text("new")
    assert ([path.name for path in tmp_path.iterdir()], report.read_text()) == (["report.json"], "new")


def test_what_is_no_plain_file_is_written_and_not_replaced(tmp_path: Path) -> None:
    output, link = tmp_path / "output", tmp_path / "stdout"
    link.symlink_to(output)
    with write_whole(link) as written:
        written.write_text("all of it")
    assert (link.is_symlink(), output.read_text()) == (True, "all of it")
