"""Our operators for adapters on a CPU compute what vLLM's do, and nothing for tokens without an adapter."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from tests.engine.conftest import EngineFiles
from tools.engines.engine_command import PLUGIN_FOLDER

pytestmark = pytest.mark.engine
SCRIPT = Path(__file__).with_name("compare_operators.py")


async def test_products_are_those_of_vllm(engine_files: EngineFiles) -> None:
    if engine_files.venv.kind != "cpu":
        pytest.skip("the operators are for CPUs")
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN_FOLDER)}
    program = await asyncio.create_subprocess_exec(
        engine_files.venv.python, str(SCRIPT), env=environment, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await program.communicate()
    compared = json.loads(out.decode().splitlines()[-1])
    assert compared.pop("in_force") is True
    assert compared.pop("sequences") < 1e-4
    assert all(batch["difference"] < 1e-4 and batch["without_adapter"] == 0.0 for batch in compared.values()), compared
