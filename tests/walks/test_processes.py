"""A gateway of two processes: both serve, one that dies comes back, and what is promised is promised for the whole."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.callers import new_key
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Status
from tests.waiting import until
from tests.walks.console_browsing import sign_in
from tests.walks.served import ASK, Process, Served, client, config, served

__all__ = ["config"]
SHORT = ASK | {"max_tokens": 2}
CALLERS = 8
OPEN, LISTENING = "01", "0A"
"""States of a socket, as /proc/net/tcp has them."""


@asynccontextmanager
async def pair(serve: Served, config: Path, key: str) -> AsyncIterator[tuple[Process, list[httpx.AsyncClient]]]:
    """A gateway of two processes, and callers with a connection each, which both processes share."""
    async with serve(config, key, "--processes", "2") as process, AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(client(process, key)) for _ in range(CALLERS)]
        await until(lambda: is_whole(process))
        for caller in callers:
            assert (await caller.get("/health/live")).status_code == 200
        yield process, callers


def is_whole(process: Process) -> bool:
    return sum("of 2 runs" in line for line in process.said) >= 2


async def metric(http: httpx.AsyncClient, name: str) -> float:
    """The sum of a metric's series."""
    text = (await http.get("/metrics")).text
    values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    assert values, text
    return sum(map(float, values))


def children(process: Process) -> dict[int, int]:
    """The pids of the processes by their numbers, as `ps` shows them."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            title = path.read_text().strip("\0")
            parent = re.search(r"PPid:\s*(\d+)", (path.parent / "status").read_text())
            if parent is not None and int(parent[1]) == process.process.pid and title.startswith("apprentice: process"):
                found[int(title.split()[2])] = int(path.parent.name)
    return found


def connections(process: Process, state: str = OPEN) -> Counter[int]:
    """Connections of callers, or listening sockets, by the number of their process."""
    port = int(process.url.rpartition(":")[2])
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {line[9] for line in lines if int(line[1].rpartition(":")[2], 16) == port and line[3] == state}
    counts: Counter[int] = Counter()
    for number, pid in children(process).items():
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                counts[number] += os.readlink(file).removeprefix("socket:[").removesuffix("]") in inodes
    return counts


async def kill_all(process: Process) -> None:
    """Kill the gateway with its processes: one that drains would go on, and hold the pipe that the test waits for."""
    pids = [process.process.pid, *children(process).values()]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # one that drained, or that misses its parent, may have ended
            os.kill(pid, signal.SIGKILL)
    await process.process.wait()


async def hold(config: Path) -> None:
    """From now on the engine's streams stand still after 3 tokens."""
    engine = yaml.safe_load(config.read_text())["pools"]["general"]["replicas"][0]["url"]
    async with httpx.AsyncClient() as http:
        stalls = {"kind": "stalls", "after_tokens": 3, "seconds": 60}
        assert (await http.post(f"{engine}/__faults", json={"faults": [stalls]})).is_success


def configured(config: Path, **sections: object) -> None:
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | sections))


@pytest.mark.invariant("Callers share their connections over all processes of a gateway, and its metrics are the sum.")
async def test_both_processes_serve_and_whichever_answers_says_the_same(config: Path) -> None:
    key = new_key()[0]
    async with pair(served, config, key) as (process, callers):
        assert set(children(process)) == {0, 1}
        assert min(connections(process).values()) > 0
        answers = [await caller.post("/v1/chat/completions", json=SHORT) for caller in callers]
        assert {answer.status_code for answer in answers} == {200}
        assert {await metric(caller, "apprentice_requests_total") for caller in callers} == {CALLERS}
        assert {await metric(caller, "apprentice_build_info") for caller in callers} == {1}
        assert {await metric(caller, "apprentice_processes") for caller in callers} == {2}
        for caller in callers[:6]:
            await sign_in(caller, key)
            assert f"<dt>Requests</dt><dd>{CALLERS}</dd>" in (await caller.get("/console/")).text
        ready = [(await caller.get("/health/ready")).json() for caller in callers]
        assert all(one == ready[0] for one in ready)
        made = (await callers[0].post("/admin/v1/callers", json={"name": "at once"})).json()["key"]
        headers = {"Authorization": f"Bearer {made}"}
        known = [(await caller.get("/v1/models", headers=headers)).status_code for caller in callers]
        assert set(known) == {200}
        found = [(await caller.get(f"/v1/requests/{answers[0].headers['x-request-id']}")) for caller in callers]
        assert {one.status_code for one in found} == {200}


async def test_a_dry_run_of_a_rule_reads_what_was_asked_at_the_other_process_too(config: Path, forked: Served) -> None:
    configured(config, tasks={"returns": {}})
    async with pair(forked, config, new_key()[0]) as (_, callers):
        for caller in callers:
            answer = await caller.post("/v1/chat/completions", json=SHORT | {"model": "returns"})
            assert answer.status_code == 200, answer.text
        rule = {"action": "refuse", "contains": SHORT["messages"][0]["content"]}

        async def tried() -> dict[str, Any]:
            told: dict[str, Any] = (await callers[0].post("/admin/v1/overrides/a/dry-run", json=rule)).json()
            return told

        async def all_read() -> bool:
            return (await tried())["looked_at"] == CALLERS

        await until(all_read, "the records of all are stored")
        assert {name: (await tried())[name] for name in ("matched", "unknown")} == {"matched": CALLERS, "unknown": 0}


@pytest.mark.invariant("A process that dies takes only its own requests with it, and no counter goes down.")
async def test_one_killed_under_load_loses_its_own_requests_alone_and_comes_back(config: Path, forked: Served) -> None:
    async with pair(forked, config, new_key()[0]) as (process, callers):
        for caller in callers:
            await caller.post("/v1/chat/completions", json=SHORT)
        before = await metric(callers[0], "apprentice_requests_total")
        shares, pids = connections(process), children(process)
        streams = await begin_streams(callers)
        os.kill(pids[1], signal.SIGKILL)
        whole = [await stream for stream in streams]
        assert whole.count(False) <= shares[1]
        assert whole.count(True) >= shares[0]
        async with httpx.AsyncClient(base_url=process.url) as http:
            assert await metric(http, "apprentice_requests_total") >= before
            await until(lambda: children(process).get(1, pids[1]) != pids[1])
            await until(lambda: sum("of 2 runs" in line for line in process.said) == 3)
            assert await metric(http, "apprentice_requests_total") >= before + whole.count(True)
            assert await metric(http, "apprentice_process_restarts_total") == 1
        assert any("has ended by SIGKILL" in line for line in process.said)


async def test_a_process_that_does_not_answer_makes_no_counter_go_down(config: Path, forked: Served) -> None:
    async with pair(forked, config, new_key()[0]) as (process, callers):
        for caller in callers:
            await caller.post("/v1/chat/completions", json=SHORT)
        before = await metric(callers[0], "apprentice_requests_total")
        hung = children(process)[1]
        os.kill(hung, signal.SIGSTOP)
        try:
            async with httpx.AsyncClient(base_url=process.url, timeout=60) as http:
                assert await metric(http, "apprentice_requests_total") == before == CALLERS
        finally:
            os.kill(hung, signal.SIGCONT)


async def whole_stream(http: httpx.AsyncClient, begun: asyncio.Semaphore) -> bool:
    """True if a stream came to its end."""
    lines = []
    with contextlib.suppress(httpx.HTTPError):
        async with http.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True}) as answer:
            async for line in answer.aiter_lines():
                if not lines:
                    begun.release()
                lines.append(line)
    return "data: [DONE]" in lines


async def begin_streams(callers: Sequence[httpx.AsyncClient]) -> list[asyncio.Task[bool]]:
    """A stream of each caller, all of which have begun."""
    begun = asyncio.Semaphore(0)
    streams = [asyncio.create_task(whole_stream(caller, begun)) for caller in callers]
    for _ in callers:
        await begun.acquire()
    return streams


@pytest.mark.parametrize("way", ["signal", "admin"])
async def test_a_reload_reaches_all_processes_and_is_one_entry_of_the_audit(
    config: Path, forked: Served, way: str
) -> None:
    async with pair(forked, config, new_key()[0]) as (process, callers):
        configured(config, limits={"pool_max_tokens_max": 10, "in_flight_max": 100})
        if way == "signal":
            process.process.send_signal(signal.SIGHUP)
            await until(lambda: "was read again" in "".join(process.said))
            await until(lambda: metric(callers[0], "apprentice_configuration_reloads_total"))
        else:
            reloaded = (await callers[0].post("/admin/v1/reload")).json()
            assert {change["path"]: change["after"] for change in reloaded["changes"]} == {
                "limits.pool_max_tokens_max": 10,
                "limits.in_flight_max": 100,
            }
        statuses = [(await c.post("/v1/chat/completions", json=ASK | {"max_tokens": 11})).status_code for c in callers]
        assert set(statuses) == {400}
        entries = (await callers[0].get("/admin/v1/audit")).json()["entries"]
        assert [entry["action"] for entry in entries].count("configuration.reload") == 1
        pids = children(process)
        os.kill(pids[1], signal.SIGTERM)  # the one that comes after it goes by the same settings
        await until(lambda: sum("of 2 runs" in line for line in process.said) == 3)
        statuses = [(await c.post("/v1/chat/completions", json=ASK | {"max_tokens": 11})).status_code for c in callers]
        assert set(statuses) == {400}


async def test_a_process_that_starts_while_the_configuration_is_read_again_goes_by_it(
    config: Path, forked: Served
) -> None:
    async with pair(forked, config, new_key()[0]) as (process, callers):
        killed = children(process)[1]
        os.kill(killed, signal.SIGKILL)
        started = await until(lambda: pid if (pid := children(process).get(1)) not in (None, killed) else None)
        os.kill(started, signal.SIGSTOP)
        configured(config, limits={"pool_max_tokens_max": 10})
        process.process.send_signal(signal.SIGHUP)
        await until(lambda: "was read again" in "".join(process.said))
        os.kill(started, signal.SIGCONT)
        await until(lambda: sum("of 2 runs" in line for line in process.said) == 3)

        async def all_refuse() -> bool:
            asked = [c.post("/v1/chat/completions", json=ASK | {"max_tokens": 11}) for c in callers]
            return {answer.status_code for answer in await asyncio.gather(*asked)} == {400}

        assert await until(all_refuse)
        assert connections(process)[1] > 0


@pytest.mark.invariant("A stop drains all processes of a gateway.")
async def test_a_stop_finishes_the_streams_of_all_processes(config: Path, forked: Served) -> None:
    async with pair(forked, config, new_key()[0]) as (process, callers):
        streams = await begin_streams(callers)
        process.process.send_signal(signal.SIGTERM)
        assert all([await stream for stream in streams])
        assert await asyncio.wait_for(process.process.wait(), 60) == 0
        assert not (config.parent / "valkey" / "valkey.sock").exists()


async def test_a_process_that_is_stopped_alone_finishes_what_it_has_begun_and_is_replaced(
    config: Path, forked: Served
) -> None:
    async with pair(forked, config, new_key()[0]) as (process, callers):
        streams = await begin_streams(callers)
        os.kill(children(process)[0], signal.SIGTERM)
        assert all([await stream for stream in streams])
        await until(lambda: sum("of 2 runs" in line for line in process.said) == 3)
        assert {(await caller.get("/health/ready")).status_code for caller in callers} == {200}


async def test_a_process_that_is_stopped_alone_still_answers_on_its_connections(config: Path, forked: Served) -> None:
    configured(config, limits={"drain_seconds_min": 60})
    async with pair(forked, config, new_key()[0]) as (process, callers):
        own = connections(process)[0]
        os.kill(children(process)[0], signal.SIGTERM)
        await until(lambda: not connections(process, LISTENING)[0])
        answers = [await caller.post("/v1/chat/completions", json=SHORT) for caller in callers]
        assert {answer.status_code for answer in answers} == {200}
        assert sum(answer.headers.get("connection") == "close" for answer in answers) == own > 0
        await kill_all(process)


async def test_processes_without_their_parent_end(config: Path, forked: Served) -> None:
    async with pair(forked, config, new_key()[0]) as (process, _):
        pids = children(process).values()
        process.process.kill()
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


@pytest.mark.invariant("The bounds of a gateway are of all its processes together.")
async def test_places_are_bounded_over_both_processes_together(config: Path, forked: Served) -> None:
    configured(config, limits={"in_flight_max": 2, "queue_max": 0})
    async with pair(forked, config, new_key()[0]) as (process, callers):
        await hold(config)
        async with AsyncExitStack() as stack:
            statuses = []
            for caller in callers:
                stream = caller.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True})
                statuses.append((await stack.enter_async_context(stream)).status_code)
            assert Counter(statuses) == {200: 2, 503: CALLERS - 2}
            await kill_all(process)


async def test_a_bound_less_than_the_processes_stops_the_start(config: Path) -> None:
    configured(config, limits={"in_flight_max": 1})
    with pytest.raises(AssertionError, match=r"limits\.in_flight_max is 1, too little for 2 processes"):
        async with served(config, new_key()[0], "--processes", "2"):
            pass


async def test_a_callers_limit_is_of_both_processes_together(config: Path, forked: Served) -> None:
    configured(config, limits={"lease_timeout_seconds": 30})
    async with pair(forked, config, new_key()[0]) as (_, callers):
        body = {"name": "limited", "limits": {"requests_per_minute": 5}}
        made = (await callers[0].post("/admin/v1/callers", json=body)).json()["key"]
        headers, began_at = {"Authorization": f"Bearer {made}"}, time.time()
        statuses = Counter()
        for caller in [*callers, *callers]:
            statuses[(await caller.post("/v1/chat/completions", json=SHORT, headers=headers)).status_code] += 1
        windows = int(time.time() // 60) - int(began_at // 60) + 1
        assert set(statuses) <= {200, 429}
        assert 1 <= statuses[200] <= 5 * windows


@pytest.mark.invariant("The processes of a gateway try a sick engine no more often than one process does.")
async def test_a_sick_engine_is_tried_no_more_often_than_by_one_process(config: Path, forked: Served) -> None:
    async with FakeEngine("large", n_tokens=2) as sick:
        content = yaml.safe_load(config.read_text())
        content["pools"]["general"]["replicas"].append({"name": "general-1", "url": sick.url})
        configured(config, **content)
        async with pair(forked, config, new_key()[0]) as (_, callers):
            began_at, before = time.monotonic(), sick.requests_total
            sick.faults.add(Status(503))
            for _ in range(5):
                answers = [await caller.post("/v1/chat/completions", json=SHORT) for caller in callers]
                assert {answer.status_code for answer in answers} == {200}
            seconds = time.monotonic() - began_at
            openings = 1 + math.floor(math.log2(1 + seconds / 0.75))
            assert sick.requests_total - before <= 3 + openings
