"""The guide "Your own task, from a CSV to a monitored adapter", walked by its own blocks and commands."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from gateway.callers import new_key
from tests.walks.served import run_program, served

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "your-own-task.md"
TASK = "returns"
ADOPT = f"apprentice adopt examples.csv --task {TASK}"
FEW_STEPS = ("--steps", "4", "--batch", "2", "--rank", "4")


def read_blocks(kind: str) -> list[str]:
    """The blocks of the guide in this language, in order."""
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE.read_text(), re.DOTALL)


def list_commands() -> list[str]:
    """The commands of the guide, in order."""
    return [line.removeprefix("$ ") for block in read_blocks("console") for line in block.splitlines()]


def write_examples(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write rows as the guide's file: its head, and each row's text and expected answer."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(read_blocks("csv")[0].splitlines()[0].split(","))
        table.writerows((row["text"], row["expected"]) for row in rows)


async def walk_guide(
    folder: Path, configuration: Mapping[str, Any], python: Path, *, task: str = TASK
) -> dict[str, Any]:
    """Follow the guide in a folder that has `examples.csv`; what `adopt` tells in the end.

    `configuration` has the pools, and `python` is that of the training's environment. `task` stands for the guide's own
    where the engines already serve a version of that name.
    """
    key, config = new_key()[0], folder / "apprentice.yaml"
    content: dict[str, Any] = json.loads(json.dumps({**configuration, "listen": {"port": 0}}, default=str))
    first, watched = (yaml.safe_load(block) for block in read_blocks("yaml"))
    content |= {"tasks": {task: first["tasks"][TASK]}, "training": {**first["training"], "python": str(python)}}
    config.write_text(yaml.safe_dump(content))
    async with served(config, key) as process:
        variables = {**os.environ, "APPRENTICE_URL": process.url, "APPRENTICE_KEY": key}

        async def run(command: str, *more: str, code: int = 0) -> str:
            program, *words = (task if word == TASK else word for word in shlex.split(command))
            path = Path(sys.executable).with_name(program)
            ended, out, err = await run_program(path, *words, *more, folder=folder, variables=variables)
            assert ended == code, (command, more, err, process.said[-5:])
            return out

        check, reload, adopt, *_ = list_commands()
        assert adopt == ADOPT
        await run(check)
        await run(reload)
        past = ("--past", "readiness", "--past", "dataset", "--past", "gate")  # few steps teach too little to pass it
        await run(adopt, *FEW_STEPS, *past, code=1)  # a person looks at the manifest
        told = await run(adopt, *FEW_STEPS, *past, "--past", "manifest", "--release", "--json")
        content["tasks"][task] |= watched["tasks"][TASK]
        config.write_text(yaml.safe_dump(content))
        await run(check)
        await run(reload)
        await run("apprentice why returns")
    return dict(json.loads(told))
