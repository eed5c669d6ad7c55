"""Steps of a release over HTTP, and what there is to see after them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import yaml

from monitoring.feedback import STREAM_KEY as FEEDBACK
from monitoring.quality.signals.child_messages import CURSORS_KEY
from monitoring.records import STREAM_KEY
from tests.fakes.engine import FakeEngine
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

SECONDS_MAX = 240.0
MESSAGES = [{"role": "user", "content": "A toaster, sealed, after 3 days."}]
V1, V2 = "returns@v1", "returns@v2"
QUICK = {"limits": {"retries_max": 0, "backoff_seconds": 0.01}}
JUDGED_OFTEN = {"monitor": {"interval_seconds": 0.1}}
EASY = {"margin": 0.5, "latency_ratio_max": 100, "requests_min": 10}
"""A plan under which a good canary is promoted after some ten requests."""
STRICT = {"latency_ratio_max": 100}
"""A plan under which a bad one is rolled back after some ten, and nobody is promoted before 200."""
CONTRACT = {"choices": ["approve", "reject"]}


def with_contract(folder: Path) -> Path:
    """The same adapter, with a contract in its manifest."""
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"contract": CONTRACT}))
    return folder


def of_task(task: str, folder: Path) -> Path:
    """The same adapter, made for another task."""
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"task": task}))
    return folder


async def ask(http: httpx.AsyncClient, session: str = "", **more: Any) -> httpx.Response:
    """Ask the task, and get a 200."""
    headers = {"x-apprentice-session": session} if session else {}
    answer = await http.post(
        "/v1/chat/completions", json={"model": "returns", "messages": MESSAGES, **more}, headers=headers
    )
    assert answer.status_code == 200, answer.text
    return answer


async def step(http: httpx.AsyncClient, name: str, status: int = 200, **body: Any) -> dict[str, Any]:
    """Take one step of a release of `returns`, and get this status."""
    answer = await http.post(f"/admin/v1/aliases/returns/{name}", json=body)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


def loads_of(engine: FakeEngine) -> int:
    """The number of times that the engine was told to load an adapter."""
    return sum(call.path == "/v1/load_lora_adapter" for call in engine.calls)


async def alias(http: httpx.AsyncClient) -> dict[str, Any]:
    """The alias of `returns`, with its canary's evidence."""
    return dict((await http.get("/admin/v1/aliases/returns")).json())


async def judged_by_now(http: httpx.AsyncClient) -> dict[str, Any]:
    """The evidence on the canary of `returns`, once the monitor has judged it by all that came before this moment."""
    now = time.time()

    async def evidence() -> dict[str, Any] | None:
        shown = (await alias(http))["canary"]
        until_now = shown["evidence"] and shown["started_at"] + shown["evidence"]["seconds_running"] > now
        return dict(shown["evidence"]) if until_now else None

    return dict(await until(evidence))


async def states(http: httpx.AsyncClient) -> dict[str, str]:
    """The state of each version."""
    listed = (await http.get("/admin/v1/adapters")).json()["adapters"]
    return {row["version"]: row["state"] for row in listed}


async def audit_of(http: httpx.AsyncClient, action: str) -> list[dict[str, Any]]:
    """The audit's entries of one action, oldest first."""
    entries = (await http.get("/admin/v1/audit?limit=1000")).json()["entries"]
    return [entry for entry in entries if entry["action"] == action]


async def record_of(http: httpx.AsyncClient, answer: httpx.Response) -> dict[str, Any]:
    """The record of a request, once it is there."""
    return await find_record(http, answer.headers["x-request-id"])


async def find_record(http: httpx.AsyncClient, request_id: str) -> dict[str, Any]:
    """The record of this request, once it is there."""

    async def look() -> dict[str, Any] | None:
        found = await http.get(f"/v1/requests/{request_id}")
        return dict(found.json()["record"]) if found.status_code == 200 else None

    return dict(await until(look))


async def shadows(gateway: RunningGateway) -> list[dict[str, Any]]:
    """The records of all shadow requests that were answered so far."""
    rows = await gateway.services.redis.xrange(STREAM_KEY)
    records = [msgspec.json.decode(fields[b"record"]) for _, fields in rows]
    return [record for record in records if record["purpose"] == "shadow"]


async def metric(http: httpx.AsyncClient, name: str, *labels: str) -> float:
    """The sum of a metric's series that have all of these labels."""
    lines = (await http.get("/metrics")).text.splitlines()
    series = [line for line in lines if line.startswith(name + "{") and all(label in line for label in labels)]
    return sum(float(line.split("} ")[1].split()[0]) for line in series)


async def until_the_monitor_has_read(running: RunningGateway) -> None:
    """Wait until all records and feedback are judged: the monitor is niced, and callers who go on would starve it."""
    redis = running.services.redis

    async def all_is_read() -> bool:
        cursors = await redis.hgetall(CURSORS_KEY)
        latest = {b"records": STREAM_KEY, b"feedback": FEEDBACK}
        ends = {name: await redis.xrevrange(stream, count=1) for name, stream in latest.items()}
        return all(not end or end[0][0] == cursors.get(name) for name, end in ends.items())

    await until(all_is_read)


async def asked_until_it_ends(
    running: RunningGateway,
    http: httpx.AsyncClient,
    after: Callable[[httpx.Response], Awaitable[None]] | None = None,
) -> dict[str, Any]:
    """Ask in ever new sessions until the canary has ended by itself; the alias as it is then."""
    async with asyncio.timeout(SECONDS_MAX):
        number = 0
        while True:
            for _ in range(10):
                number += 1
                answer = await ask(http, f"session {number}")
                if after is not None:
                    await after(answer)
            await until_the_monitor_has_read(running)
            shown = await alias(http)
            if shown["canary"] is None:
                return shown


async def rolled_back(http: httpx.AsyncClient, shown: dict[str, Any], signal_name: str) -> dict[str, Any]:
    """See that the canary is in quarantine because of this signal alone; the audit's entry."""
    assert shown["weights"] == {V1: 1.0}
    assert await states(http) == {V1: "active", V2: "quarantined"}
    [entry] = await until(lambda: audit_of(http, "alias.rollback"))
    assert (entry["actor"], entry["object"]) == ("system", "returns")
    harmful = [name for name, one in entry["evidence"]["signals"].items() if one["harm"]["shown"]]
    assert harmful == [signal_name]
    assert entry["after"]["because"].startswith("It is shown that ")
    return dict(entry)


@asynccontextmanager
async def two_versions(
    configure: Configure, make_adapter: MakeAdapter, contract: bool = False, **sections: Any
) -> AsyncIterator[tuple[RunningGateway, httpx.AsyncClient]]:
    """A gateway that serves `returns@v1` and has `returns@v2` ready, and an admin's client."""
    folders = [with_contract(make_adapter(n)) if contract else make_adapter(n) for n in (1, 2)]
    async with run_gateway(configure(**QUICK | sections)) as running, running.http() as http:
        await running.place(folders[0])
        await running.place(folders[1], alias=False)
        yield running, http


async def as_many(found: Awaitable[list[Any]], count: int) -> list[Any]:
    """The result, once it is so many; else nothing."""
    rows = await found
    return rows if len(rows) >= count else []
