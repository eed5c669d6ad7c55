"""A version that learns to call tools, on a real engine: from a file of calls to calls that vLLM reads out of it."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.callers import new_key
from tests.engine.conftest import BASE_MODEL, EngineFiles, run_engines
from tests.engine.words import LIMITS, SLOW_SECONDS_MAX
from tests.walks.served import run_program, served

pytestmark = pytest.mark.engine
TASK = "stock"
PRODUCTS = ("toaster", "kettle", "lamp", "chair", "sofa", "mirror")
PHRASES = {
    "check_stock": ("Is the {} in stock?", "How many of the {} are left?", "Do you have the {}?"),
    "reserve": ("Keep the {} for me.", "Please reserve the {}.", "Put the {} aside until Friday."),
}


def offer(name: str) -> dict[str, Any]:
    """A tool as requests offer it."""
    parameters = {"type": "object", "properties": {"product": {"type": "string"}}, "required": ["product"]}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


STEPS = ("--steps", "40", "--batch", "8", "--rank", "8", "--evaluate-every", "20")
TOOLS = [offer(name) for name in PHRASES]


def make_row(name: str, phrase: str, product: str) -> dict[str, Any]:
    """A row of OpenAI's fine-tuning file: a question with its tools, and the call that answers it."""
    function = {"name": name, "arguments": json.dumps({"product": product})}
    call = {"id": "call_1", "type": "function", "function": function}
    asked, answer = {"role": "user", "content": phrase.format(product)}, {"role": "assistant", "tool_calls": [call]}
    return {"messages": [asked, answer], "tools": TOOLS}


async def test_adopted_version_calls_the_tools_of_its_examples(engine_files: EngineFiles, tmp_path: Path) -> None:
    base = engine_files.model
    engine = engine_files.engine("tools", memory_share=0.3)
    rows = [
        make_row(name, phrase, product)
        for (name, phrases), product in itertools.product(PHRASES.items(), PRODUCTS)
        for phrase in phrases
    ]
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small, general = (
        {"base_model": BASE_MODEL, "replicas": [{"name": name, "url": engine.url}]} for name in ("small", "general")
    )
    configuration = {
        "listen": {"port": 0},
        "data_folder": str(tmp_path / "data"),
        "pools": {"small": {**small, "base_folder": str(base)}, "general": general},
        "tasks": {TASK: {}},
        "training": {"python": str(engine_files.venv.python), "niceness": 0},
        "limits": LIMITS,
    }
    config, key = tmp_path / "apprentice.yaml", new_key()[0]
    config.write_text(yaml.safe_dump(configuration))
    past = [word for step in ("readiness", "dataset", "manifest", "gate") for word in ("--past", step)]
    async with run_engines(engine), served(config, key) as process:
        ended, out, err = await run_program(
            Path(sys.executable).with_name("apprentice"),
            *("adopt", "calls.jsonl", "--task", TASK, *STEPS, *past, "--release", "--json"),
            folder=tmp_path,
            variables={**os.environ, "APPRENTICE_URL": process.url, "APPRENTICE_KEY": key},
        )
        assert ended == 0, f"{out}{err}"
        steps = json.loads(out)["steps"]
        assert steps["evaluate"]["right"]["adapter"] > 0.7
        headers, asked = {"authorization": f"Bearer {key}"}, {"model": TASK, "tools": TOOLS, "temperature": 0}
        async with httpx.AsyncClient(base_url=process.url, headers=headers, timeout=SLOW_SECONDS_MAX) as http:
            for row in rows[::9]:
                question, expected = row["messages"]
                answer = await http.post("/v1/chat/completions", json={**asked, "messages": [question]})
                choice = answer.json()["choices"][0]
                called = choice["message"]["tool_calls"][0]["function"]
                wanted = expected["tool_calls"][0]["function"]
                assert (called["name"], json.loads(called["arguments"])) == (
                    wanted["name"],
                    json.loads(wanted["arguments"]),
                )
                assert choice["finish_reason"] == "tool_calls"
