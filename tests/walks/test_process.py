"""The gateway as a process: its first start, its drain, kill -9, and the embedded Valkey that outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.callers import new_key
from tests.fakes.engine import FakeEngine

ASK = {"model": "general", "messages": [{"role": "user", "content": "How many days are in a week?"}]}


@dataclass
class Process:
    """A gateway's process, its address, and all that it has said."""

    process: asyncio.subprocess.Process
    url: str
    said: list[str]

    async def stop(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return await self.process.wait()


@asynccontextmanager
async def served(config: Path, key: str | None) -> AsyncIterator[Process]:
    """`apprentice serve`, until the block ends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("APPRENTICE_")}
    if key is not None:
        environment["APPRENTICE_ADMIN_KEY"] = key
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli.main", "serve", "--config", str(config)),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    said: list[str] = []
    url = ""
    async with asyncio.timeout(20):
        while not url:
            line = (await process.stdout.readline()).decode()
            assert line, f"the gateway ended: {said}"
            said.append(line)
            found = re.search(r"running on (http://[0-9.:]+)", line)
            url = found[1] if found else ""
    reading = asyncio.create_task(_read_on(process.stdout, said))
    try:
        yield Process(process, url, said)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()
        await reading


async def _read_on(reader: asyncio.StreamReader, said: list[str]) -> None:
    while line := await reader.readline():
        said.append(line.decode())


@pytest.fixture
async def config() -> AsyncIterator[Path]:
    """A configuration with one engine and the embedded Valkey, which is stopped in the end."""
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        async with FakeEngine("large", n_tokens=30, token_delay_seconds=0.02) as engine:
            content = {
                "listen": {"port": 0},
                "data_folder": folder,
                "log_format": "text",
                "pools": {
                    "general": {
                        "base_model": "large",
                        "callable": True,
                        "replicas": [{"name": "general-0", "url": engine.url}],
                    }
                },
            }
            path = Path(folder) / "apprentice.yaml"
            path.write_text(yaml.safe_dump(content))
            yield path
        redis = Redis(unix_socket_path=f"{folder}/valkey/valkey.sock")
        with contextlib.suppress(RedisError):
            await redis.shutdown(nosave=True)
        await redis.aclose()


def client(process: Process, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=process.url, headers={"Authorization": f"Bearer {key}"}, timeout=20)


async def test_the_first_start_prints_an_admin_key_once(config: Path) -> None:
    async with served(config, None) as first:
        key = re.search(r"shown this once: (sk-app-\S+)", "".join(first.said))
        assert key is not None
        async with client(first, key[1]) as http:
            assert (await http.get("/admin/v1/callers")).status_code == 200
    async with served(config, None) as second:
        assert "sk-app-" not in "".join(second.said)
        async with client(second, key[1]) as http:
            assert (await http.get("/admin/v1/callers")).status_code == 200


async def test_sigterm_turns_ready_off_finishes_streams_and_loses_no_record(config: Path) -> None:
    key = new_key()[0]
    async with served(config, key) as process, client(process, key) as http, client(process, key) as other:
        async with http.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True}) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            process.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(5):
                while (await other.get("/health/ready")).status_code != 503:
                    await asyncio.sleep(0.01)
            refused = await other.post("/v1/chat/completions", json=ASK)
            rest = [line async for line in lines]
        request_id = answer.headers["x-request-id"]
        assert await process.process.wait() == 0
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert rest[-2] == "data: [DONE]"
    async with served(config, key) as again, client(again, key) as http:
        record = (await http.get(f"/v1/requests/{request_id}")).json()["record"]
    assert record["outcome"] == "ok"


async def test_kill_9_loses_no_acknowledged_feedback_and_the_next_gateway_takes_valkey_over(config: Path) -> None:
    key = new_key()[0]
    async with served(config, key) as process, client(process, key) as http:
        request_id = (await http.post("/v1/chat/completions", json=ASK)).headers["x-request-id"]
        feedback = {"request_id": request_id, "metric": "correct", "value": True}
        assert (await http.post("/v1/feedback", json=feedback)).status_code == 201
        assert (await http.post("/admin/v1/callers", json={"name": "kept"})).status_code == 201
        assert (await http.get(f"/v1/requests/{request_id}")).status_code == 200
        async with asyncio.timeout(5):
            while "apprentice_records_pending 0" not in (await http.get("/metrics")).text:  # the window of records
                await asyncio.sleep(0.02)
        assert await process.stop(signal.SIGKILL) == -signal.SIGKILL
    async with served(config, key) as again, client(again, key) as http:
        told = (await http.get(f"/v1/requests/{request_id}")).json()
        callers = (await http.get("/admin/v1/callers")).json()["callers"]
    assert told["feedback"][0]["value"] is True
    assert "kept" in [caller["name"] for caller in callers]


async def test_two_gateways_on_one_folder_share_its_valkey_and_the_last_one_stops_it(config: Path) -> None:
    key = new_key()[0]
    socket = config.parent / "valkey" / "valkey.sock"
    async with served(config, key) as one:
        async with served(config, key) as two, client(one, key) as first, client(two, key) as second:
            made = (await first.post("/admin/v1/callers", json={"name": "shared"})).json()
            async with asyncio.timeout(5):
                while (await second.get("/v1/models", headers={"Authorization": f"Bearer {made['key']}"})).is_error:
                    await asyncio.sleep(0.02)
        async with client(one, key) as http:
            assert (await http.post("/admin/v1/callers", json={"name": "still"})).status_code == 201
    redis = Redis(unix_socket_path=str(socket))
    with pytest.raises(RedisError):
        await redis.ping()
    await redis.aclose()


async def test_a_configuration_that_can_not_be_used_is_one_line_and_no_trace(config: Path) -> None:
    config.write_text(json.dumps({"pools": {"general": {"replica": []}}, "colour": "blue"}))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli.main", "serve", "--config", str(config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    said = output.decode()
    assert process.returncode == 2
    assert "colour: unknown key" in said
    assert "pools.general.replica: unknown key" in said
    assert "Traceback" not in said
