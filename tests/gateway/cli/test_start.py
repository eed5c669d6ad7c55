"""The start of the command line: a command that asks a gateway loads no part of one."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.gateway.cli.conftest import run

SERVERS_OWN = (
    "fastapi",
    "uvicorn",
    "pydantic_settings",
    "redis",
    "numpy",
    "aiohttp",
    "gateway.app",
    "gateway.configuration.settings",
)
ASKS = f"""
import sys
from gateway.cli.main import main
sys.argv = ["apprentice", "keys", "list", "--gateway", "http://127.0.0.1:1", "--key", "sk-app-{"a" * 12}-{"b" * 43}"]
try:
    main()
finally:
    print([name for name in {SERVERS_OWN!r} if name in sys.modules])
"""


def test_a_command_that_asks_a_gateway_loads_no_server() -> None:
    ended = subprocess.run([sys.executable, "-c", ASKS], capture_output=True, text=True, check=False)
    assert "No gateway answers at http://127.0.0.1:1" in ended.stderr, ended.stderr
    assert ended.stdout.strip() == "[]", "import it where the command needs it, not at the top of its file"


def test_version_option_prints_the_installed_version() -> None:
    said = run("--version")
    assert (said.exit_code, bool(re.fullmatch(r"apprentice \d+\.\d+\.\d+\S*\n", said.out))) == (0, True), said.out
