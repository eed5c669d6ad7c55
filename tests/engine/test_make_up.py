"""README's first command, as a newcomer types it: everything starts, the printed lines work, Ctrl-C stops it all."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
START_SECONDS_MAX = 1500
STOP_SECONDS_MAX = 90


async def test_make_up_starts_all_of_it_and_its_three_lines_work_when_pasted() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    up = await asyncio.create_subprocess_exec(
        *("make", "--no-print-directory", "up", f"PORT={port}"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert up.stdout is not None
    said = ""
    try:
        async with asyncio.timeout(START_SECONDS_MAX):
            while "Ctrl-C stops all of it" not in said:
                line = (await up.stdout.readline()).decode()
                assert line, said
                said += line
        assert "there is no fallback" in said
        lines = re.findall(r"^(?:ID=\$\()?curl .*$", said, re.MULTILINE)
        assert len(lines) == 3, said
        pasted = await asyncio.create_subprocess_exec(
            *("bash", "-c", "\necho\n".join(lines)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await pasted.communicate()
    finally:
        os.killpg(up.pid, signal.SIGINT)
        async with asyncio.timeout(STOP_SECONDS_MAX):
            rest, _ = await up.communicate()
    adapters = json.loads(errors)
    general, feedback = (json.loads(line) for line in output.decode().split("\n") if line.strip())
    assert adapters["model"].startswith("returns@v")
    assert set(json.loads(adapters["choices"][0]["message"]["content"])) == {"facts", "rule", "decision"}
    assert general["model"] == "smollm2-135m-instruct"
    assert general["choices"][0]["message"]["content"]
    assert feedback["metric"] == "correct"
    # make itself says that Ctrl-C ended it, however its command ended
    assert up.returncode in (0, 2, -signal.SIGINT), rest.decode()
    assert "Stopping the engine" in rest.decode()
