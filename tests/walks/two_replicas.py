"""Two replicas of the pool that adapters are loaded on, and what a walk over them asks: who loaded what, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from serving.object_store import CHANGED_CHANNEL
from serving.replica import Replica
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Fault, Moment
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
ASK = {"messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}]}
DEADLINE_SECONDS = 60.0
LEASE_KEY = "apprentice:duty:reconcile"


async def end_leases(redis: Redis, *keys: str) -> None:
    """The leases of jobs of a killed gateway end now instead of after their seconds, and others hear of it."""
    for key in keys:
        await redis.delete(key)
        await redis.publish(CHANGED_CHANNEL, key)


@dataclass(frozen=True, eq=False)
class Hold(Fault):
    """Holds a call, before its work or after it, until it is let go; `met` is set once a call is held."""

    kind = "hold"
    after_work: bool = False
    met: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def on_request(self, moment: Moment) -> None:
        if not self.after_work:
            await self._hold()

    async def before_headers(self, moment: Moment) -> None:
        if self.after_work:
            await self._hold()

    async def _hold(self) -> None:
        self.met.set()
        await self.let_go.wait()


def with_two(configure: Configure, other: FakeEngine, **small: Any) -> dict[str, Any]:
    """The configuration with a second replica, `small-1`; keyword arguments set more of the pool."""
    configuration = configure()
    section = configuration["pools"]["small"]
    section["replicas"] = [*section["replicas"], {"name": "small-1", "url": other.url}]
    section.update(small)
    return configuration


def called(engine: FakeEngine, path: str, name: str | None = None) -> list[int | None]:
    """The statuses of the calls of this kind that the engine got, for one name or for all."""
    return [call.status for call in engine.calls if call.path == path and name in (None, call.body.get("lora_name"))]


def loads(engines: Sequence[FakeEngine], name: str | None = None) -> int:
    """The number of loads that the engines have answered with 200."""
    return sum(called(engine, LOAD, name).count(200) for engine in engines)


def lists(engine: FakeEngine, name: str) -> bool:
    """True where the engine lists the name."""
    return name in engine.adapters.registered


def is_resident(engine: FakeEngine, name: str) -> bool:
    """True where a name that the engine lists has its weights in memory."""
    return engine.adapters.registered[name].number in engine.adapters.resident


def asked_by_callers(engine: FakeEngine, model: str) -> int:
    """Requests for a model that came from callers: neither a probe nor a token to keep it warm."""
    return sum(seen.model == model and is_of_a_caller(seen.body) for seen in engine.requests)


def is_of_a_caller(body: Any) -> bool:
    """A probe asks for logprobs of the five likeliest; what keeps an adapter warm asks for one token."""
    return body.get("top_logprobs") != 5 and not (body.get("max_tokens") == 1 and body.get("prompt") == "a")


async def shown(gateway: RunningGateway, version: str) -> dict[str, Any]:
    """A version as the admin API shows it."""
    async with gateway.http() as http:
        answer = await http.get(f"/admin/v1/adapters/{version}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@pytest.fixture
async def two(configure: Configure, make_adapter: MakeAdapter, other: FakeEngine) -> AsyncIterator[RunningGateway]:
    """A gateway over two replicas, on both of which `returns@v1` is ready and served."""
    async with run_gateway(with_two(configure, other)) as running:
        await running.place(make_adapter(1))
        await until_ready(running, "returns@v1")
        yield running


async def until_ghosts_are_counted(http: httpx.AsyncClient, *engines: FakeEngine) -> None:
    """Wait until the gateway shows as many ghosts on the replicas as their engines have."""

    async def are_counted() -> bool:
        replicas = (await http.get("/admin/v1/replicas")).json()["replicas"]
        counted = [row["capacity"]["ghosts"] for row in replicas if row["pool"] == "small"]
        return counted == [len(engine.adapters.ghosts) for engine in engines]

    await until(are_counted, "ghosts as many as written down")


async def until_ready(gateway: RunningGateway, version: str, replicas: Sequence[str] = ("small-0", "small-1")) -> None:
    """Wait until the version is ready on exactly these replicas, as this gateway sees it."""

    async def is_ready() -> bool:
        return (await shown(gateway, version))["ready"] == list(replicas)

    await until(is_ready, f"{version} ready on {replicas}")


async def placement_state(gateway: RunningGateway, version: str, replica: str) -> str:
    """Where a version stands on a replica; `absent` where nothing is written down."""
    found = {row["replica"]: row["state"] for row in (await shown(gateway, version))["placements"]}
    return str(found.get(replica, "absent"))


def pool(gateway: RunningGateway) -> list[Replica]:
    """The two replicas, as this gateway knows them."""
    return gateway.services.fleet.in_pool("small")


async def go_down(gateway: RunningGateway, engine: FakeEngine) -> None:
    """Kill an engine, and wait until the gateway has seen that it is down."""
    (replica,) = [replica for replica in pool(gateway) if replica.config.url == engine.url]
    await engine.kill()
    await until(lambda: not replica.up, f"{replica.name} down")


async def put(gateway: RunningGateway, version: str, task: str = "returns") -> None:
    """Move the alias."""
    async with gateway.http() as http:
        answer = await http.put(f"/admin/v1/aliases/{task}", json={"version": version})
        assert answer.status_code == 200, answer.text


async def push(gateway: RunningGateway, folder: Any, task: str = "returns") -> str:
    """Import an adapter; no engine hears of it."""
    async with gateway.http() as http:
        answer = await http.post("/admin/v1/adapters", json={"task": task, "path": str(folder)})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["version"])


@dataclass
class Asked:
    """The callers' answers: (status, model, pool) of each."""

    answers: list[tuple[int, str, str]] = field(default_factory=list)

    def only(self, *models: str) -> None:
        """Assert that all were answered, and by these models alone."""
        assert self.answers
        wrong = [answer for answer in self.answers if answer[0] != 200 or answer[1] not in models]
        assert not wrong, f"{len(wrong)} of {len(self.answers)}: {wrong[:3]}"


@asynccontextmanager
async def callers(gateway: RunningGateway, count: int = 2, task: str = "returns") -> AsyncIterator[Asked]:
    """Callers who ask one request after another for as long as the block lasts."""
    asked, over = Asked(), asyncio.Event()

    async def ask_on() -> None:
        async with gateway.http() as http:
            while not over.is_set():
                answer = await http.post("/v1/chat/completions", json={"model": task, "max_tokens": 3, **ASK})
                told = answer.json()
                pool = answer.headers.get("x-apprentice-pool", "")
                asked.answers.append((answer.status_code, str(told.get("model", told)), pool))
                await asyncio.sleep(0.01)

    asking = [asyncio.create_task(ask_on()) for _ in range(count)]
    try:
        yield asked
        seen = len(asked.answers)
        await until(lambda: len(asked.answers) >= seen + count or any(task.done() for task in asking), "answers")
    finally:
        over.set()
        await asyncio.gather(*asking)
