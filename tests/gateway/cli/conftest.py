"""The command line over a real gateway: the walks' fixtures, and a command as the shell would run it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer import testing
from typer.main import get_command

from gateway.cli.main import app
from tests.walks.conftest import base_folder, configure, gateway, general, make_adapter, redis_url, small
from tests.walks.fork_server import ForkServer, run_forked
from tests.walks.gateway import RunningGateway

__all__ = ["base_folder", "configure", "gateway", "general", "make_adapter", "redis_url", "small"]


testing._get_command = cache(get_command)  # type: ignore[attr-defined]  # else all commands are built for each: 60 ms


@dataclass(frozen=True)
class Said:
    """The end of a command: its exit code and output."""

    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its stdout, which is JSON and nothing else."""
        return json.loads(self.out)


Command = Callable[..., Awaitable[Said]]


def run(*words: str, typed: str | None = None, **environment: str) -> Said:
    """Run `apprentice …` in this process. It blocks: a gateway of the same event loop could not answer it. `typed` is
    its input."""
    variables = {"APPRENTICE_URL": None, "APPRENTICE_KEY": None, "COLUMNS": "200", **environment}
    ended = testing.CliRunner().invoke(app, list(words), input=typed, env=variables)
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return Said(ended.exit_code, ended.stdout, ended.stderr)


def in_a_process(running: RunningGateway) -> Command:
    """The same as a process of its own, so that two can run beside each other."""

    async def command(*words: str) -> Said:
        variables = {**os.environ, "APPRENTICE_URL": running.url, "APPRENTICE_KEY": running.admin_key}
        program = Path(sys.executable).with_name("apprentice")
        process = await asyncio.create_subprocess_exec(
            program, *words, env=variables, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        return Said(process.returncode or 0, out.decode(), err.decode())

    return command


def in_a_fork(running: RunningGateway, server: ForkServer) -> Command:
    """The same, forked by what has loaded the commands."""

    async def command(*words: str) -> Said:
        variables = {**os.environ, "APPRENTICE_URL": running.url, "APPRENTICE_KEY": running.admin_key}
        return Said(*await asyncio.to_thread(run_forked, server.path(), words, variables))

    return command


def command_for(running: RunningGateway) -> Command:
    """`apprentice …` with the gateway's address and key in the environment."""

    async def command(*words: str, **environment: str) -> Said:
        variables = {"APPRENTICE_URL": running.url, "APPRENTICE_KEY": running.admin_key, **environment}
        return await asyncio.to_thread(run, *words, **variables)

    return command


async def ok(command: Command, *words: str) -> Said:
    """The output of a command that has to succeed."""
    said = await command(*words)
    assert said.exit_code == 0, said.err
    return said


async def served_by(running: RunningGateway, key: str | None = None) -> str:
    """The version that answers a request of the task `returns`."""
    messages: Any = [{"role": "user", "content": "A toaster, sealed, after 3 days."}]
    async with running.openai(key) as client:
        return (await client.chat.completions.create(model="returns", messages=messages)).model


@pytest.fixture
def apprentice(gateway: RunningGateway) -> Command:
    """`apprentice …` for the gateway whose task `returns` is served by `returns@v1`."""
    return command_for(gateway)
