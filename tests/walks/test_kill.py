"""kill -9 of a gateway at every step: before and after each note that it makes.

A proxy stands between the gateway's process and Valkey. It stops all traffic at the note that a test names, so that
the process is killed exactly there, with the note made or not made.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from redis.asyncio import Redis

from gateway.callers import new_key
from gateway.features.releases.state import Releases
from gateway.state.presence import KEY as PRESENCE_KEY
from monitoring.audit import ENTER, verify
from serving.adapters.placement import PlacementState, map_by_place, read_placement
from serving.object_store import Mirror, ObjectStore
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Status
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import ask, audit_of
from tests.walks.served import Process, Served
from tests.walks.two_replicas import (
    LEASE_KEY,
    LOAD,
    Hold,
    called,
    callers,
    end_leases,
    lists,
    loads,
    push,
    shown,
    until_ghosts_are_counted,
    until_ready,
    with_two,
)

pytestmark = pytest.mark.invariant("A gateway's death at any step of a swap leaves engines as written down.")

When = Literal["before", "after"]
MONITOR_LEASE_KEY = "apprentice:duty:monitor"


class Gate:
    """A proxy in front of Valkey that lets everything through up to one note, and nothing after it."""

    def __init__(self, valkey: str) -> None:
        self.stopped = asyncio.Event()
        self._valkey = valkey
        self._note: re.Pattern[bytes] | None = None
        self._when: When = "after"
        self._over = asyncio.Event()
        self._pumps: set[asyncio.Task[None]] = set()

    def stop_at(self, version: str, state: PlacementState, when: When, ghosts: int | None = None) -> None:
        """From now on wait for the note that the version has this state on a replica, and so many ghosts.

        `before`: the note is not made.
        """
        note = rb'"version":"%b","state":"%b"' % (version.encode(), state.encode())
        if ghosts is not None:
            note += rb'.*"ghosts":%d\b' % ghosts
        self.stop_at_bytes(note, when)

    def stop_at_bytes(self, pattern: bytes, when: When) -> None:
        """From now on wait for a command that has this in it. `before`: Valkey does not get it."""
        self._note, self._when = re.compile(pattern), when

    @asynccontextmanager
    async def open(self, socket: Path) -> AsyncIterator[str]:
        """Listen there for as long as the block lasts; the URL."""
        server = await asyncio.start_unix_server(self._serve, str(socket))
        try:
            yield f"unix://{socket}"
        finally:
            self._over.set()
            server.close()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_valkey, to_valkey = await asyncio.open_unix_connection(self._valkey)
        noted = asyncio.Event()
        for pump in (self._pump(reader, to_valkey, noted, True), self._pump(from_valkey, writer, noted, False)):
            task = asyncio.create_task(pump)
            self._pumps.add(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, noted: asyncio.Event, asks: bool
    ) -> None:
        """One way of a connection. A long command comes in parts: one that was `noted` is through once Valkey answers,
        and that answer is the first thing that nobody gets."""
        over = asyncio.ensure_future(self._over.wait())
        try:
            while not self._over.is_set():
                reading = asyncio.ensure_future(reader.read(1 << 16))
                await asyncio.wait((reading, over), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    break
                data = reading.result()
                if not data:
                    break
                if noted.is_set() and not asks:
                    self.stopped.set()
                if self.stopped.is_set():
                    await over
                if asks and self._note is not None and self._note.search(data):
                    noted.set()
                    if self._when == "before":
                        self.stopped.set()
                        await over
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            over.cancel()
            writer.close()


@dataclass
class Pair:
    """A gateway's process that has the job, and another gateway that is to take it over."""

    process: Process
    gate: Gate
    gateway: RunningGateway
    redis: Redis
    engines: tuple[FakeEngine, FakeEngine]

    async def kill(self) -> None:
        """kill -9; what Redis still has of the process runs out at once instead of after its seconds."""
        await self.process.stop(signal.SIGKILL)
        for key in await self.redis.hkeys(PRESENCE_KEY):
            if key.decode() != self.gateway.services.name:
                await self.redis.hdel(PRESENCE_KEY, key)
        await end_leases(self.redis, LEASE_KEY, MONITOR_LEASE_KEY)

    async def owner(self) -> str:
        """The gateway that has the job."""
        return (await self.redis.get(LEASE_KEY) or b"").decode()

    async def come_to_rest(self, version: str, *states: str) -> None:
        """Wait until the version has this state on each replica, for its present engine process."""
        lives = {replica.name: replica.life for replica in self.gateway.services.fleet.in_pool("small")}

        async def is_there() -> bool:
            kept = map_by_place((await Mirror(ObjectStore(self.redis, "placements"), read_placement).all()).values())
            found = [kept.get((name, version)) for name in lives]
            return all(p is not None and p.state in states and p.life == lives[p.replica] for p in found)

        await until(is_there, f"{version} {states}")


@pytest.fixture
async def pair(
    configure: Configure,
    make_adapter: MakeAdapter,
    small: FakeEngine,
    other: FakeEngine,
    valkey_socket: str,
    redis: Redis,
    tmp_path: Path,
    forked: Served,
) -> AsyncIterator[Pair]:
    """Both gateways, over two replicas on which `returns@v1` serves; the process has the job."""
    gate, key = Gate(valkey_socket), new_key()[0]
    configuration = with_two(configure, other)
    path = tmp_path / "apprentice.yaml"
    # beside Valkey's socket: the path of one may hold 104 bytes on some systems, and tmp_path is long
    async with gate.open(Path(f"{valkey_socket}.gate")) as redis_url:
        configuration["monitor"] = {"interval_seconds": 0.5}  # a verdict takes several steps of each of the two
        its_own = {"redis_url": redis_url, "listen": {"port": 0}, "log_format": "text"}
        path.write_text(json.dumps({**configuration, **its_own}, default=str))
        async with forked(path, key) as process:

            async def has_the_job() -> bool:
                return await redis.exists(LEASE_KEY, MONITOR_LEASE_KEY) == 2

            await until(has_the_job, "the process has both jobs")
            async with run_gateway(configuration, key) as gateway:
                two = Pair(process, gate, gateway, redis, (small, other))
                await gateway.place(make_adapter(1))
                await until_ready(gateway, "returns@v1")
                assert await two.owner() != gateway.services.name
                yield two


async def until_state(gateway: RunningGateway, version: str, state: str) -> None:
    """Wait until the gateway shows the version in this state: it follows those of its placements."""

    async def is_there() -> bool:
        return bool((await shown(gateway, version))["state"] == state)

    await until(is_there, f"{version} {state}")


ON_THE_WAY_IN = [
    ("loading", "before"),
    ("loading", "after"),
    ("probing", "before"),
    ("probing", "after"),
    ("ready", "before"),
    ("ready", "after"),
]
ON_THE_WAY_OUT = [
    ("closing", "before"),
    ("closing", "after"),
    ("drained", "after"),
    ("unloading", "before"),
    ("unloading", "after"),
    ("ghost", "before"),
    ("ghost", "after"),
]


@pytest.mark.parametrize(("state", "when"), ON_THE_WAY_IN)
async def test_a_gateway_killed_on_the_way_in_is_followed_by_one_that_loads_nothing_twice(
    pair: Pair, make_adapter: MakeAdapter, state: PlacementState, when: When
) -> None:
    version = await push(pair.gateway, make_adapter(2))
    pair.gate.stop_at(version, state, when)
    async with callers(pair.gateway) as asked, pair.gateway.http() as http:
        assert (await http.post(f"/admin/v1/adapters/{version}/stage?wait_seconds=0")).status_code == 202
        await until(pair.gate.stopped.is_set, "the note")
        await pair.kill()
        await pair.come_to_rest(version, "ready")
        await until_ready(pair.gateway, version)
    asked.only("returns@v1")
    assert [called(engine, LOAD, version) for engine in pair.engines] == [[200], [200]]
    assert [called(engine, LOAD, "returns@v1") for engine in pair.engines] == [[200], [200]]
    await until_state(pair.gateway, version, "ready")
    assert await pair.owner() == pair.gateway.services.name


@pytest.mark.parametrize(("state", "when"), ON_THE_WAY_OUT)
async def test_gateway_killed_while_unloading_is_followed_by_one_that_counts_the_ghost(
    pair: Pair, make_adapter: MakeAdapter, state: PlacementState, when: When
) -> None:
    version = await pair.gateway.place(make_adapter(2), alias=False)
    await until_ready(pair.gateway, version)
    pair.gate.stop_at(version, state, when)
    async with callers(pair.gateway) as asked, pair.gateway.http() as http:
        assert (await http.post(f"/admin/v1/adapters/{version}/unload?wait_seconds=0")).status_code == 202
        await until(pair.gate.stopped.is_set, "the note")
        await pair.kill()
        await pair.come_to_rest(version, "ghost")
        await until_ghosts_are_counted(http, *pair.engines)
    asked.only("returns@v1")
    assert not any(lists(engine, version) for engine in pair.engines)
    assert [len(engine.adapters.ghosts) for engine in pair.engines] == [1, 1]
    assert loads(pair.engines, version) == 2


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_gateway_killed_at_its_verdict_on_a_wrong_adapter_leaves_it_to_the_next(
    pair: Pair, make_adapter: MakeAdapter, when: When
) -> None:
    version = await push(pair.gateway, make_adapter(2))
    for engine in pair.engines:
        engine.not_applied.add(version)
    pair.gate.stop_at(version, "failed", when, ghosts=1)
    async with callers(pair.gateway) as asked, pair.gateway.http() as http:
        assert (await http.post(f"/admin/v1/adapters/{version}/stage?wait_seconds=0")).status_code == 202
        await until(pair.gate.stopped.is_set, "the note")
        await pair.kill()

        async def is_done() -> bool:
            state = (await shown(pair.gateway, version))["state"]
            return state == "quarantined" and not any(lists(engine, version) for engine in pair.engines)

        await until(is_done, "quarantined and off")

        await until_ghosts_are_counted(http, *pair.engines)
    asked.only("returns@v1")


VERDICTS = [("alias.rollback", {"latency_ratio_max": 100}), ("alias.hold", {"seconds_max": 1})]


@pytest.mark.invariant("Every verdict has its entry in the audit.")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", ["draft", "entry"])
@pytest.mark.parametrize(("action", "plan"), VERDICTS)
async def test_canary_verdict_is_entered_once_with_evidence_wherever_its_gateway_dies(
    pair: Pair, make_adapter: MakeAdapter, action: str, plan: dict[str, float], at: str, when: When
) -> None:
    version = await pair.gateway.place(make_adapter(2), alias=False)
    await until_ready(pair.gateway, version)
    await pair.redis.script_load(ENTER)  # or else the first command at the entry is only refused
    for engine in pair.engines:
        engine.faults.add(Status(500), model=version)
    forms = {"draft": b'"action":"%b"', "entry": b"\r\n%b\r\n"}
    pair.gate.stop_at_bytes(forms[at] % re.escape(action).encode(), when)
    async with pair.gateway.http() as http:
        canary = {"version": version, "share": 0.5, "plan": plan}
        assert (await http.post("/admin/v1/aliases/returns/canary", json=canary)).status_code == 200
        sessions = itertools.count()
        while not pair.gate.stopped.is_set():
            await ask(http, f"session {next(sessions)}")
        await pair.kill()

        async def is_entered() -> bool:
            return bool(await audit_of(http, action))

        await until(is_entered, "entered")
        for _ in range(2):
            await pair.gateway.features[Releases].canary_verdicts.enter_left()
        [entry] = await audit_of(http, action)
        alias = (await http.get("/admin/v1/aliases/returns")).json()
    assert (entry["object"], entry["after"]["version"]) == ("returns", version)
    assert entry["generation"] == alias["generation"]
    assert (alias["canary"] is None) == (action == "alias.rollback")
    assert set(entry["evidence"]["signals"]) >= {"error", "latency"}
    assert verify(await pair.gateway.services.control.audit.read(limit=1000)) is None
    assert await pair.redis.hlen("apprentice:verdicts") == 0


@pytest.mark.parametrize("after_work", [False, True], ids=["before it has loaded", "after it has loaded"])
async def test_a_gateway_killed_while_an_engine_loads_is_followed_by_one_that_looks_first(
    pair: Pair, make_adapter: MakeAdapter, after_work: bool
) -> None:
    version = await push(pair.gateway, make_adapter(2))
    held = Hold(after_work)
    pair.engines[0].faults.add(held, path=LOAD, times=1)
    async with callers(pair.gateway) as asked, pair.gateway.http() as http:
        assert (await http.post(f"/admin/v1/adapters/{version}/stage?wait_seconds=0")).status_code == 202
        await until(held.met.is_set, "the call")
        await pair.kill()
        await pair.come_to_rest(version, "ready")
    asked.only("returns@v1")
    loaded = [None] if after_work else [None, 200]
    await until(lambda: called(pair.engines[0], LOAD, version) == loaded, "the engine sees that its caller is gone")
    assert called(pair.engines[1], LOAD, version) == [200]
