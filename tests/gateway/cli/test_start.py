"""The start of the command line: a command that asks a gateway loads no part of one."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.cli.main import LoadedCommands
from tests.gateway.cli.conftest import run

SERVERS_OWN = (
    "fastapi",
    "uvicorn",
    "pydantic_settings",
    "redis",
    "numpy",
    "scipy",
    "sklearn",
    "duckdb",
    "aiohttp",
    "cryptography.hazmat.bindings",
    "opentelemetry",
    "gateway.app",
    "gateway.configuration.settings",
)
SHOWS_LOADED = f"""
import sys
from gateway.cli.entry import main
sys.argv[0] = "apprentice"
try:
    main()
finally:
    print([name for name in {SERVERS_OWN!r} if name in sys.modules])
"""
ASKS = ("keys", "list", "--gateway", "http://127.0.0.1:1", "--key", f"sk-app-{'a' * 12}-{'b' * 43}")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (ASKS, "No gateway answers at http://127.0.0.1:1"),
        (("--help",), "Run the gateway until SIGTERM"),
        (("serve", "--help"), "The configuration."),
    ],
)
def test_a_command_beside_a_gateway_loads_no_server(words: Sequence[str], text: str) -> None:
    command = [sys.executable, "-c", SHOWS_LOADED, *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert text in ended.stdout + ended.stderr, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]", "import it where the command needs it, not at the top of its file"


LOADED_WHERE_USED = (
    "rich.console",
    "pygments",
    "cryptography.hazmat.bindings",
    "jsonschema_rs",
    "tokenizers",
    "numpy",
    "scipy",
    "threadpoolctl",
    "duckdb",
    "jinja2",
    "gateway.cli.adapters",
)
CHECKS = f"""
import sys
from gateway.cli.entry import main
sys.argv = ["apprentice", "check", "--config", sys.argv[1]]
try:
    main()
finally:
    import gateway.app, gateway.graceful_server, gateway.parent_process  # as `serve` does
    print([name for name in {("gateway.app", *LOADED_WHERE_USED)!r} if name in sys.modules])
"""


def test_a_gateway_loads_no_client_and_no_library_that_it_has_no_use_for(tmp_path: Path) -> None:
    config = tmp_path / "apprentice.yaml"
    config.write_text("pools: {general: {base_model: base, replicas: [{name: g0, url: 'http://127.0.0.1:1'}]}}\n")
    ended = subprocess.run([sys.executable, "-c", CHECKS, str(config)], capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines()[-1] == "['gateway.app']", (ended.stdout, ended.stderr)


def test_loading_a_command_leaves_the_garbage_collector_as_it_was() -> None:
    collecting = gc.isenabled()
    try:
        for wanted in (False, True):
            (gc.enable if wanted else gc.disable)()
            assert LoadedCommands()["check"]
            assert gc.isenabled() == wanted
    finally:
        (gc.enable if collecting else gc.disable)()


def test_version_option_prints_the_installed_version() -> None:
    said = run("--version")
    assert (said.exit_code, bool(re.fullmatch(r"apprentice \d+\.\d+\.\d+\S*\n", said.out))) == (0, True), said.out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("keys list --nope", "No such option: --nope"),
        ("keys revoke", "Missing argument 'KEY'."),
        ("requests --limit 0", "Invalid value for '--limit': Input should be greater than or equal to 1"),
        ("lists", "No such command 'lists'."),
    ],
)
def test_what_was_typed_wrong_is_one_line_and_json_where_asked_for(words: str, text: str) -> None:
    command = (str(Path(sys.executable).with_name("apprentice")), *words.split(), "--json")
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, f"apprentice: {text}\n")
    assert json.loads(ended.stdout) == {"error": {"message": text, "type": None, "param": None, "code": None}}


def test_a_group_without_a_command_shows_its_help() -> None:
    ended = subprocess.run(
        (sys.executable, "-m", "gateway.cli.main", "keys"), capture_output=True, text=True, check=False
    )
    assert (ended.returncode, "Usage:" in ended.stdout + ended.stderr, "apprentice:" in ended.stderr) == (
        2,
        True,
        False,
    )
