"""The gateway as a process: its first start, its drain, kill -9, and the embedded Valkey that outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.callers import new_key
from tests.fakes.valkey import AT_ONCE
from tests.live_folder import find_paths
from tests.waiting import until
from tests.walks.served import ASK, Process, Served, client, config, served

__all__ = ["config"]


@pytest.mark.invariant("No other user reads the data folder, and no admin key is in a log.")
async def test_the_first_admin_key_is_in_a_private_file_and_not_in_the_log(config: Path) -> None:
    async with served(config, None) as first:
        found = re.search(r"the first admin key is in the file (\S+):", "".join(first.said))
        assert found is not None
        path = Path(found[1])
        key = path.read_text().strip()
        assert oct(path.stat().st_mode & 0o777) == "0o600"
        async with client(first, key) as http:
            assert (await http.get("/admin/v1/callers")).status_code == 200
            (made,) = (await http.get("/admin/v1/audit")).json()["entries"]
            assert (made["actor"], made["action"], made["object"]) == ("system", "caller.make", key[7:19])
    async with served(config, None) as second:
        assert path.read_text().strip() == key
        assert "sk-app-" not in "".join(first.said + second.said)
        async with client(second, key) as http:
            assert (await http.get("/admin/v1/callers")).status_code == 200


@pytest.mark.invariant("No other user reads the data folder, and no admin key is in a log.")
async def test_all_of_the_data_folder_is_closed_to_other_users(config: Path) -> None:
    content = yaml.safe_load(config.read_text())
    data = config.parent / "d"
    data.mkdir(mode=0o755)
    content |= {"data_folder": str(data), "records": {"archive_interval_seconds": 0.1}}
    config.write_text(yaml.safe_dump(content))
    key = new_key()[0]
    async with served(config, key) as process, client(process, key) as http:
        answer = await http.post("/v1/chat/completions", json={**ASK, "max_tokens": 5})
        assert answer.status_code == 200, answer.text
        await until(lambda: [path for path in find_paths(data) if path.suffix == ".parquet"], seconds=60)
        modes = {}
        for path in [data, *find_paths(data)]:
            with contextlib.suppress(FileNotFoundError):  # a file is moved to its place when it is whole
                modes[str(path.relative_to(data))] = path.lstat().st_mode
    assert {"valkey/valkey.sock", "valkey/valkey.log", "valkey/appendonlydir", "spool", "records"} <= modes.keys()
    assert modes.pop("store") & 0o777 == 0o755, "engines of other users read it where it is elsewhere"
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}


def configured(config: Path, **limits: object) -> None:
    """Give the configuration these limits."""
    content = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(content | {"limits": limits}))


async def until_not_ready(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(30):
        while (await http.get("/health/ready")).status_code != 503:
            await asyncio.sleep(0.01)


async def until_closed(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(30):
        with contextlib.suppress(httpx.TransportError):
            while (await http.get("/health/ready")).status_code == 503:
                await asyncio.sleep(0.01)


async def stall(config: Path, seconds: float, **rule: object) -> None:
    """From now on the engine's answers stand still for so long after 3 tokens."""
    engine = yaml.safe_load(config.read_text())["pools"]["general"]["replicas"][0]["url"]
    stalls = {"kind": "stalls", "after_tokens": 3, "seconds": seconds}
    async with httpx.AsyncClient(timeout=60) as http:
        assert (await http.post(f"{engine}/__faults", json={"faults": [stalls], **rule})).is_success


async def test_sigterm_turns_ready_off_then_closes_finishes_streams_and_loses_no_record(
    config: Path, forked: Served
) -> None:
    configured(config, drain_seconds_min=3)
    await stall(config, seconds=5, times=1)
    key = new_key()[0]
    async with forked(config, key) as process, client(process, key) as http, client(process, key) as other:
        async with http.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True}) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            process.process.send_signal(signal.SIGTERM)
            await until_not_ready(other)
            taken = await other.post("/v1/chat/completions", json=ASK)
            await until_closed(other)
            rest = [line async for line in lines]
        request_ids = [taken.headers["x-request-id"], answer.headers["x-request-id"]]
        assert await process.process.wait() == 0
    assert (taken.status_code, taken.headers["connection"]) == (200, "close")
    assert rest[-2] == "data: [DONE]"
    async with forked(config, key) as again, client(again, key) as http:
        records = [(await http.get(f"/v1/requests/{one}")).json()["record"] for one in request_ids]
    assert [record["outcome"] for record in records] == ["ok", "ok"]


@pytest.mark.invariant("A stop leaves no stream without an end.")
async def test_what_is_left_when_the_time_to_drain_is_over_ends_with_an_error(config: Path, forked: Served) -> None:
    configured(config, drain_seconds_max=1)
    key = new_key()[0]
    async with forked(config, key) as process, client(process, key) as http:
        rest, request_id = await stopped_inside_a_stream(config, process, http)
        assert await process.process.wait() == 0
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "draining"
    assert "data: [DONE]" not in rest
    async with forked(config, key) as again, client(again, key) as http:
        record = (await http.get(f"/v1/requests/{request_id}")).json()["record"]
    assert (record["outcome"], record["error_code"], record["status"]) == ("truncated", "draining", 200)
    assert record["completion_tokens"] > 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_waits_for_nothing_and_still_loses_no_record(
    config: Path, forked: Served, second: signal.Signals
) -> None:
    configured(config, drain_seconds_min=60, drain_seconds_max=60)
    key = new_key()[0]
    async with forked(config, key) as process, client(process, key) as http:
        rest, request_id = await stopped_inside_a_stream(config, process, http, second)
        assert await asyncio.wait_for(process.process.wait(), 30) == 0
    configured(config)
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "draining"
    async with forked(config, key) as again, client(again, key) as http:
        assert (await http.get(f"/v1/requests/{request_id}")).json()["record"]["outcome"] == "truncated"


async def test_signals_that_come_together_are_one_and_the_stop_is_an_orderly_one(config: Path, forked: Served) -> None:
    async with forked(config, new_key()[0]) as process:
        for _ in range(5):
            process.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.process.wait(), 30) == 0
    assert not await valkey_answers(config.parent / "valkey" / "valkey.sock")


async def stopped_inside_a_stream(
    config: Path, process: Process, http: httpx.AsyncClient, second: signal.Signals | None = None
) -> tuple[list[str], str]:
    """The rest of a stream that stood still at SIGTERM, and its id; after `second`, if it is given."""
    await stall(config, seconds=60)
    async with http.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        process.process.send_signal(signal.SIGTERM)
        if second is not None:
            async with httpx.AsyncClient(base_url=process.url, timeout=60) as other:
                await until_not_ready(other)
            process.process.send_signal(second)
        return [line async for line in lines], answer.headers["x-request-id"]


async def test_sighup_has_the_configuration_read_again_and_a_bad_one_keeps_the_old_one(
    config: Path, forked: Served
) -> None:
    key = new_key()[0]
    async with forked(config, key) as process, client(process, key) as http:
        configured(config, pool_max_tokens_max=10)
        process.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(30):
            while (await http.post("/v1/chat/completions", json=ASK | {"max_tokens": 11})).status_code != 400:
                await asyncio.sleep(0.01)
        configured(config, pool_max_tokens_max="many")
        process.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(30):
            while 'reloads_total{outcome="refused"} 1' not in (await http.get("/metrics")).text:
                await asyncio.sleep(0.01)
        assert (await http.post("/v1/chat/completions", json=ASK | {"max_tokens": 10})).status_code == 200
        await until(lambda: "limits.pool_max_tokens_max" in "".join(process.said))
        entry = (await http.get("/admin/v1/audit")).json()["entries"][-1]
    assert (entry["actor"], entry["action"]) == ("system", "configuration.reload")


async def test_kill_9_loses_no_acknowledged_feedback_and_the_next_takes_valkey_over(
    config: Path, forked: Served
) -> None:
    key = new_key()[0]
    async with forked(config, key) as process, client(process, key) as http:
        request_id = (await http.post("/v1/chat/completions", json=ASK)).headers["x-request-id"]
        feedback = {"request_id": request_id, "metric": "correct", "value": True}
        assert (await http.post("/v1/feedback", json=feedback)).status_code == 201
        assert (await http.post("/admin/v1/callers", json={"name": "kept"})).status_code == 201
        async with asyncio.timeout(30):
            while "\napprentice_records_pending 0" not in (await http.get("/metrics")).text:
                await asyncio.sleep(0.01)
        assert await process.stop(signal.SIGKILL) == -signal.SIGKILL
    async with forked(config, key) as again, client(again, key) as http:
        told = (await http.get(f"/v1/requests/{request_id}")).json()
        callers = (await http.get("/admin/v1/callers")).json()["callers"]
    assert told["feedback"][0]["value"] is True
    assert "kept" in [caller["name"] for caller in callers]


async def test_valkey_killed_alone_is_restarted_and_has_all_that_was_acknowledged(config: Path, forked: Served) -> None:
    key = new_key()[0]
    async with forked(config, key) as process, client(process, key) as http:
        assert (await http.post("/admin/v1/callers", json={"name": "before"})).status_code == 201
        for _ in range(2):
            os.kill(await valkey_pid(config), signal.SIGKILL)
            answers = [(await http.post("/v1/chat/completions", json=ASK)).status_code for _ in range(3)]
            assert answers == [200, 200, 200]
            async with asyncio.timeout(60):
                while (await http.post("/admin/v1/callers", json={"name": "after"})).status_code != 201:
                    await asyncio.sleep(0.02)
        names = [caller["name"] for caller in (await http.get("/admin/v1/callers")).json()["callers"]]
        assert {"before", "after"} <= set(names)
        await until(lambda: "was started again" in "".join(process.said))


async def test_one_of_two_gateways_restarts_the_killed_valkey_even_if_only_adopted(
    config: Path, forked: Served
) -> None:
    key = new_key()[0]
    async with forked(config, key) as one, forked(config, key) as two, client(two, key) as http:
        await one.stop(signal.SIGKILL)
        os.kill(await valkey_pid(config), signal.SIGKILL)
        async with asyncio.timeout(60):
            while (await http.post("/admin/v1/callers", json={"name": "after"})).status_code != 201:
                await asyncio.sleep(0.02)


async def valkey_pid(config: Path) -> int:
    async with Redis(unix_socket_path=str(config.parent / "valkey" / "valkey.sock"), retry=AT_ONCE) as redis:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(RedisError, OSError):
                    return int((await redis.info("server"))["process_id"])
                await asyncio.sleep(0.02)


async def test_two_gateways_on_one_folder_share_its_valkey_and_the_last_one_stops_it(
    config: Path, forked: Served
) -> None:
    key = new_key()[0]
    socket = config.parent / "valkey" / "valkey.sock"
    async with forked(config, key) as one:
        async with forked(config, key) as two, client(one, key) as first, client(two, key) as second:
            made = (await first.post("/admin/v1/callers", json={"name": "shared"})).json()
            async with asyncio.timeout(30):
                while (await second.get("/v1/models", headers={"Authorization": f"Bearer {made['key']}"})).is_error:
                    await asyncio.sleep(0.02)
        async with client(one, key) as http:
            assert (await http.post("/admin/v1/callers", json={"name": "still"})).status_code == 201
    assert not await valkey_answers(socket)


async def valkey_answers(socket: Path) -> bool:
    """True where a Valkey runs there."""
    redis = Redis(unix_socket_path=str(socket), retry=AT_ONCE)
    try:
        return bool(await redis.ping())
    except RedisError:
        return False
    finally:
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


@pytest.mark.parametrize("place", ["file", "/proc/none"])
async def test_a_data_folder_that_can_not_be_written_is_named_with_what_to_do(config: Path, place: str) -> None:
    (config.parent / "file").touch()
    folder = config.parent / place
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"data_folder": str(folder)}))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli.main", "serve", "--config", str(config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    said = output.decode()
    assert process.returncode != 0
    assert f"data_folder {folder} can't be written" in said
    assert "give it to this user, or name another." in said
    assert "Traceback" not in said
