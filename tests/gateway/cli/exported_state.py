"""A gateway's exported state, as the tests of `apprentice state` read and edit it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.gateway.cli.conftest import Command, ok
from tests.walks.gateway import RunningGateway

State = dict[str, Any]
Edit = Callable[[State], object]


async def refused(command: Command, *words: str, code: str) -> str:
    """The one line on stderr of a command that the gateway refused."""
    said = await command(*words)
    assert (said.exit_code, said.out) == (1, ""), said
    assert re.fullmatch(rf"apprentice: [^\n]+ \({code}\)[^\n]*\n", said.err), said.err
    return said.err


async def exported(command: Command, path: Path) -> State:
    await ok(command, "state", "export", "-o", str(path))
    read: State = json.loads(path.read_text())
    return read


def edit(path: Path, change: Callable[[State], object]) -> str:
    """Change the state in a file, and give the file's path."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return str(path)


async def aliases(running: RunningGateway) -> dict[str, Any]:
    async with running.http() as http:
        told: dict[str, Any] = (await http.get("/admin/v1/aliases")).json()["aliases"]
    return told


def value_of(state: State, kind: str, name: str) -> dict[str, Any]:
    value: dict[str, Any] = state[kind][name]["value"]
    return value
