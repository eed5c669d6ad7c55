"""LangChain's standard integration tests: its models of OpenAI and Anthropic, and its embeddings, by the gateway.

They bring plugins of pytest that change every run, so they live in an environment of their own: var/langchain-venv.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.environments import install_environment
from tests.fakes.answers import Called
from tests.fakes.engine import FakeEngine
from tests.walks.gateway import RunningGateway
from tests.walks.sdk_world import running

__all__ = ["running"]

pytestmark = pytest.mark.timeout(900)
STANDARD = Path(__file__).parent / "langchain" / "standard.py"
SESSION = [option for name in ("test", "fixture") for option in ("-o", f"asyncio_default_{name}_loop_scope=session")]
"""Its clients keep their connections: all tests share one event loop."""
LEFT_OUT = re.compile(r"test_(pdf|audio|image)_|test_stream_time|test_json_mode|test_anthropic_inputs")
"""Media, of which some are fetched from elsewhere; recorded answers; what one of the clients has not."""
PASSED_LEAST = 130


def make_argument(schema: Mapping[str, Any], text: str) -> Any:
    """The value that the text gives an argument: its first number, or what it quotes."""
    if schema.get("type") == "integer":
        return int(re.findall(r"\d+|$", text)[0] or 3)
    return re.findall(r"'([^']+)'|$", text)[0] or "pirate"


def answer(body: Mapping[str, Any]) -> Called | str | None:
    """A call of the tool that is asked for, as a model does that understands what it is told."""
    last, choice = body["messages"][-1], body.get("tool_choice", "auto")
    if (body.get("response_format") or {}).get("type") == "json_object":
        return json.dumps({"setup": "Why?", "punchline": "So."})
    if not body.get("tools") or last["role"] == "tool" or choice == "none":
        return None
    tools = {each["function"]["name"]: each["function"] for each in body["tools"]}
    name = choice["function"]["name"] if isinstance(choice, dict) else next(iter(tools))
    content = last["content"]
    text = content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
    properties = tools[name]["parameters"].get("properties", {})
    return Called(name, {key: make_argument(schema, text) for key, schema in properties.items()})


async def run_standard_tests(gateway: RunningGateway, python: Path, folder: Path) -> list[ET.Element]:
    """All of them in one process: their results, as JUnit has them."""
    report, tests = folder / "report.xml", shutil.copy(STANDARD, folder)  # away from conftest.py and pyproject.toml
    environment = {"GATEWAY_URL": gateway.url, "GATEWAY_KEY": gateway.admin_key, "PATH": "/usr/bin:/bin"}
    options = ["-p", "no:cacheprovider", "--asyncio-mode=auto", *SESSION, "--tb=short", f"--junitxml={report}"]
    process = await asyncio.create_subprocess_exec(
        *(python, "-m", "pytest", "-q", *options, tests),
        cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert report.exists(), output.decode()[-2000:]
    return list(ET.parse(report).iter("testcase"))


async def test_langchains_standard_tests_pass(
    running: RunningGateway, small: FakeEngine, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    small.auto_tool_choice, small.max_model_len = True, 8192
    small.answers["returns@v1"] = answer
    cases = await run_standard_tests(running, install_environment("langchain"), tmp_path)
    passed = 0
    for case in cases:
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        results = {result.tag: result.text or "" for result in case}
        passed += not {"failure", "error", "skipped"} & set(results)
        with subtests.test(case=name):
            assert not {"failure", "error"} & set(results), "\n".join(results.values())
            assert "skipped" not in results or LEFT_OUT.match(str(case.get("name"))), results
    assert passed >= PASSED_LEAST
