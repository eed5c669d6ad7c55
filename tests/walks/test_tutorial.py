"""The tutorial, walked by its own blocks and commands on a fake engine that knows the answers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.callers import new_key
from tests.fakes.engine import FakeEngine
from tests.fakes.valkey import AT_ONCE
from tests.style.source import ROOT
from tests.waiting import until
from tests.walks.served import Process, run_program, served
from tools.example_adapter import AdminApi, place_adapter, sample_prompts
from tools.local_product import make_local_configuration

BASE: Mapping[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152,
}  # fmt: skip
"""The sizes of the demo model: the examples' adapters have to fit them."""
RETURNS = ROOT / "examples" / "returns"
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8080"


def list_steps() -> list[tuple[str, str]]:
    """The tutorial's commands in order: those of `apprentice` each by itself, a block of shell as a whole."""
    steps = []
    for kind, block in re.findall(r"```(sh|console)\n(.*?)```", TUTORIAL, re.DOTALL):
        lines = [line.removeprefix("$ ") for line in block.splitlines()] if kind == "console" else [block]
        steps += [(kind, line) for line in lines]
    return steps


def list_answers(season: str) -> dict[str, str]:
    """The answers of the example's held-out cases and golden prompts, as an adapter of this season has them."""
    rows = [
        json.loads(line)
        for name in ("templates", "hand")
        for line in (RETURNS / "data" / f"heldout_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    golden = yaml.safe_load((RETURNS / season / "manifest.yaml").read_text(encoding="utf-8"))["golden"]
    return {row["text"]: row["label"] for row in rows} | {each["prompt"]: each["expected"] for each in golden}


def spoil(answers: dict[str, str]) -> dict[str, str]:
    """The same with every third case decided wrongly, but for the golden prompts, which stand last."""
    wrong = json.dumps({"decision": "escalate", "rule": "goodwill-60"})
    return {text: wrong if number % 3 == 0 and number < 500 else answer
            for number, (text, answer) in enumerate(answers.items())}  # fmt: skip


def answer_with(answers: Mapping[str, str], body: Mapping[str, Any]) -> str:
    return answers.get(body["messages"][-1]["content"], "Seven.")


@pytest.fixture
async def started() -> AsyncIterator[tuple[Process, dict[str, str]]]:
    """All that step 1 starts, with a fake engine, and a terminal's variables."""
    shipped = yaml.safe_load((ROOT / "apprentice.yaml").read_text(encoding="utf-8"))
    key = new_key()[0]
    with tempfile.TemporaryDirectory(prefix="gw") as name:
        async with FakeEngine(shipped["pools"]["small"]["base_model"]) as engine:
            engine.answers["returns@v1"] = partial(answer_with, list_answers("."))
            engine.answers["returns@v2"] = partial(answer_with, spoil(list_answers("holiday")))
            folder = Path(name)
            model = folder / "SmolLM2-135M-Instruct"
            model.mkdir()
            (model / "config.json").write_text(json.dumps(BASE))
            urls = dict.fromkeys(shipped["pools"], engine.url)
            content = make_local_configuration(shipped, urls, 0, model, RETURNS, folder) | {"data_folder": name}
            content["pools"]["small"]["base_fingerprint"] = f"sha256:{'ab' * 32}"
            config = folder / "apprentice.yaml"
            config.write_text(yaml.safe_dump(content))
            async with served(config, key) as process:
                async with httpx.AsyncClient(base_url=process.url, timeout=60) as client:
                    admin, adapter = AdminApi(client, key), RETURNS / "adapter"
                    caller = (await admin.ask("POST", "/admin/v1/callers", {"name": "make up"}))["key"]
                    prompts = sample_prompts(adapter, folder / "prompts.jsonl")
                    await place_adapter(admin, "returns", adapter, lambda _: None, prompts)
                path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
                variables = {"PATH": path, "KEY": caller, "APPRENTICE_URL": process.url, "APPRENTICE_KEY": key}
                yield process, {**os.environ, **variables}
        redis = Redis(unix_socket_path=f"{name}/valkey/valkey.sock", retry=AT_ONCE)
        with contextlib.suppress(RedisError):
            await redis.shutdown(nosave=True)
        await redis.aclose()


async def run(command: str, variables: Mapping[str, str], code: int = 0) -> str:
    """The output of a command."""
    ended, out, err = await run_program("bash", "-ec", command, folder=ROOT, variables=variables)
    assert ended == code, (command, out, err)
    return out


@pytest.mark.timeout(300)
async def test_tutorial_leads_from_a_start_to_a_version_that_is_degraded_and_rolled_back(
    started: tuple[Process, dict[str, str]],
) -> None:
    process, variables = started
    make_up, export, *steps = list_steps()
    assert (make_up, export[1].startswith("export KEY=")) == (("sh", "make up\n"), True)
    request_id, told = "", {}

    async def is_degraded() -> bool:
        return "returns@v2 is degraded" in await run("apprentice why returns", variables)

    for kind, step in steps:
        if step == "apprentice why returns":
            await until(is_degraded, "the monitor says degraded", seconds=120)
            continue
        code = 1 if step.startswith("apprentice gate") else 0
        command = step.replace(ADDRESS, process.url).replace("REQUEST_ID", shlex.quote(request_id))
        told[step] = await run(command, variables, code)
        if kind == "sh" and "curl" in step:
            request_id = re.findall(r"^x-request-id: (\S+)\r$", told[step], re.MULTILINE)[0]
            for shown in re.findall(r"`((?:x-apprentice-|\{)[^`]*)`", TUTORIAL):
                assert shown.replace('"', "") in told[step].replace("\\", "").replace('"', ""), told[step]
    assert "out_of_scope" in told["apprentice explain REQUEST_ID"].replace(" ", "_")
    assert "failed" in told["apprentice gate returns v2"]
    assert "returns@v1" in told["apprentice tasks list"]
    assert "alias.rollback" in told["apprentice audit"]
