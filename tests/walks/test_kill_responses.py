"""kill -9 of a gateway at each step of carrying out an action: it is done once, audited once, and sent once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from gateway.callers import new_key
from gateway.features.quality.state import Quality
from gateway.state.outbox import SETTLE
from gateway.state.presence import KEY as PRESENCE_KEY
from monitoring.audit import ENTER, verify
from monitoring.quality.verdicts.quality import Action, VersionQuality
from serving.object_store import Change, Stale
from tests.gateway.features.quality.test_webhooks import KEY as MESSAGES
from tests.gateway.features.quality.test_webhooks import Receiver, receiver
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import V1, V2, audit_of, step
from tests.walks.served import Process, Served, client
from tests.walks.test_kill import Gate, When
from tests.walks.two_replicas import LEASE_KEY, end_leases

NOW = 1_800_000_000.0
MONITOR_LEASE_KEY = "apprentice:duty:monitor"
ROLL_BACK = Action(
    id="a-0",
    at=NOW,
    kind="roll_back",
    version=V2,
    because="a test",
    before={"leading": V2},
    after={"leading": V1},
)


def script(text: str) -> bytes:
    """The words in a command that runs a script."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode()


POINTS: dict[str, bytes] = {
    "step": rb'"action":"monitor\.%b"',
    "effect": rb'"weights":\{"%b":1',
    "entry": rb"\r\nmonitor\.%b\r\n",
    "finish": script(SETTLE) + rb"(?s:.*)\r\nDEL\r\n",
    "failure": script(SETTLE) + rb"(?s:.*)\"failed\":\"",
    "mark": rb'"failed":"returns@v1 is verified[^"]*","again":0\}[\],]',
}


@dataclass
class Two:
    """A gateway's process that has the monitor's job, and another gateway that is to take it over."""

    process: Process
    gate: Gate
    gateway: RunningGateway
    redis: Redis
    http: httpx.AsyncClient
    receiver: Receiver
    key: str

    async def kill(self) -> None:
        """kill -9 at the point; what Redis still has of the process runs out at once instead of after its seconds."""
        async with asyncio.timeout(60):
            await self.gate.stopped.wait()
        with suppress(ProcessLookupError):  # it was killed before
            await self.process.stop(signal.SIGKILL)
        for name in await self.redis.hkeys(PRESENCE_KEY):
            if name.decode() != self.gateway.services.name:
                await self.redis.hdel(PRESENCE_KEY, name)
        claims = [claim async for claim in self.redis.scan_iter("apprentice:responses:claim:*")]
        for claim in claims:
            await self.redis.delete(claim)
        await end_leases(self.redis, MONITOR_LEASE_KEY, LEASE_KEY)

    async def write(self, *with_it: Change, **more: Any) -> None:
        """Have the health know of the roll back, and write what goes with it."""
        health = self.gateway.features[Quality].store
        while True:
            found, generation = await health.of("returns")
            with suppress(Stale):  # the monitor has set what the task's settings say
                after = msgspec.structs.replace(found, actions=[ROLL_BACK], **more)
                await health.put("returns", after, generation, with_it)
                return

    async def decide(self, **more: Any) -> None:
        """Write the roll back that is to be done, as a gateway that is killed right after that."""
        services = self.gateway.services
        draft = services.control.audit.draft("system", "monitor.roll_back", V2, after={"id": ROLL_BACK.id})
        await self.write(*self.gateway.features[Quality].outbox.changes("returns", ROLL_BACK, draft), **more)

    async def leading(self) -> tuple[str, int]:
        alias, generation = await self.gateway.services.control.registry.alias("returns")
        assert alias is not None
        return alias.leading, generation

    async def is_over(self) -> bool:
        left = self.gateway.features[Quality].outbox
        return not await left.actions.written() and not await self.redis.hlen(MESSAGES)

    async def is_let_go(self) -> bool:
        names = self.gateway.features[Quality].outbox.actions.generation_names
        claims = [claim async for claim in self.redis.scan_iter("apprentice:responses:claim:*")]
        return not await self.redis.hlen(names) and not claims

    async def once(self, kind: str, **more: Any) -> None:
        """See that the action was audited once and sent once, and that nothing is left of it."""
        await until(lambda: audit_of(self.http, f"monitor.{kind}"))  # the step may be on its way to Redis yet
        await until(self.is_over)
        await asyncio.gather(*(self.gateway.features[Quality].outbox.enter_strays() for _ in range(2)))
        [entry] = await audit_of(self.http, f"monitor.{kind}")
        assert verify(await self.gateway.services.control.audit.read(limit=1000)) is None
        assert ("not_carried_out" in entry["after"]) == more.get("failed", False)
        sent = [body["id"] for _, body in self.receiver.got if body["kind"] == kind]
        assert sent == [entry["after"]["id"]]
        left = self.gateway.features[Quality].outbox
        drafts = (await left.drafts.written()).values()  # the monitor goes on, and may have drafted its next step
        assert not [draft for draft in drafts if f'"monitor.{kind}"'.encode() in draft]
        await until(self.is_let_go)


@pytest.fixture
async def two(
    configure: Configure,
    make_adapter: MakeAdapter,
    valkey_socket: str,
    redis: Redis,
    tmp_path: Path,
    forked: Served,
) -> AsyncIterator[Two]:
    """Both gateways; `returns@v2` leads and `returns@v1` is its previous version."""
    gate, key = Gate(valkey_socket), new_key()[0]
    path = tmp_path / "apprentice.yaml"
    async with receiver() as there, gate.open(Path(f"{valkey_socket}.gate")) as redis_url:
        told = {"interval_seconds": 0.05, "webhook_url": f"http://127.0.0.1:{there.port}/"}
        configuration = configure(monitor=told)
        its_own = {"redis_url": redis_url, "listen": {"port": 0}, "log_format": "text"}
        path.write_text(json.dumps({**configuration, **its_own}, default=str))
        for each in (ENTER, SETTLE):  # or else the first command of each is only refused
            await redis.script_load(each)
        async with forked(path, key) as process:
            await until(lambda: redis.exists(MONITOR_LEASE_KEY))
            async with run_gateway(configuration, key) as gateway, gateway.http() as http:
                await gateway.place(make_adapter(1))
                await gateway.place(make_adapter(2), alias=False)
                await step(http, "promote", version=V2)
                yield Two(process, gate, gateway, redis, http, there, key)


@asynccontextmanager
async def undoing(two: Two) -> AsyncIterator[None]:
    """An admin asks the process to undo a roll back, and never hears of it again."""
    async with client(two.process, two.key) as http:
        path = f"/admin/v1/tasks/returns/quality/actions/{ROLL_BACK.id}/undo"
        asking = asyncio.create_task(http.post(path))
        yield
        with suppress(httpx.HTTPError):
            await asking


WHERE = [(point, when) for point in ("step", "effect", "entry", "finish") for when in ("before", "after")]


@pytest.mark.parametrize(("point", "when"), WHERE)
async def test_what_an_admin_undoes_is_undone_once_wherever_the_gateway_is_killed(
    two: Two, point: str, when: When
) -> None:
    await step(two.http, "rollback")
    await two.write()
    leading, generation = await two.leading()
    assert leading == V1
    value = POINTS[point]
    two.gate.stop_at_bytes(value % (V2.encode() if point == "effect" else b"undo") if b"%b" in value else value, when)
    async with undoing(two):
        await two.kill()
    if (point, when) == ("step", "before"):
        assert not await audit_of(two.http, "monitor.undo")
        assert await two.leading() == (V1, generation)
        return
    await two.once("undo")
    assert await two.leading() == (V2, generation + 1)


@pytest.mark.parametrize(("point", "when"), [where for where in WHERE if where[0] != "step"])
async def test_written_actions_of_a_killed_gateway_are_done_once_despite_a_second_kill(
    two: Two, point: str, when: When
) -> None:
    _, generation = await two.leading()
    value = POINTS[point]
    two.gate.stop_at_bytes(
        value % (V1.encode() if point == "effect" else b"roll_back") if b"%b" in value else value, when
    )
    await two.decide()
    await two.kill()
    await two.once("roll_back")
    assert await two.leading() == (V1, generation + 1)


@pytest.mark.parametrize("point", ["failure", "mark", "entry", "finish"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_failed_is_told_once_and_asked_for_again_wherever_the_gateway_is_killed(
    two: Two, point: str, when: When
) -> None:
    registry = two.gateway.services.control.registry
    await registry._versions.put(V1, {**(await registry._versions.get(V1) or {}), "state": "verified"})
    before = await two.leading()
    value = POINTS[point]
    two.gate.stop_at_bytes(value.replace(b"%b", b"roll_back"), when)
    known = VersionQuality(verdict="degraded", done=("roll_back", "retrain"), since=NOW)
    await two.decide(versions={V2: known})
    await two.kill()
    await two.once("roll_back", failed=True)
    assert await two.leading() == before
    health, _ = await two.gateway.features[Quality].store.of("returns")
    [action] = [one for one in health.actions if one.kind == "roll_back"]
    assert re.fullmatch("returns@v1 is verified: .*", action.failed or "")
    assert "roll_back" not in health.versions[V2].done


async def test_a_roll_back_is_not_done_again_where_its_version_was_promoted_since(two: Two) -> None:
    two.gate.stop_at_bytes(POINTS["effect"] % V1.encode(), "after")
    await two.decide()
    async with asyncio.timeout(60):
        await two.gate.stopped.wait()
    await two.redis.set(MONITOR_LEASE_KEY, "a test")
    await two.process.stop(signal.SIGKILL)
    await until(lambda: is_led_by(two, V1))
    await step(two.http, "promote", version=V2)
    promoted = await two.leading()
    await two.kill()
    await two.once("roll_back")
    assert await two.leading() == promoted


async def test_a_canary_is_not_paused_again_where_it_was_given_a_share_since(two: Two) -> None:
    await step(two.http, "canary", version=V1, share=0.25)
    two.gate.stop_at_bytes(POINTS["effect"].replace(b"%b", V1.encode()).replace(b":1", rb":0\.0,"), "after")
    services = two.gateway.services
    pause = msgspec.structs.replace(ROLL_BACK, kind="pause_canary", version=V1, before={"share": 0.25}, after={})
    draft = services.control.audit.draft("system", "monitor.pause_canary", V1, after={"id": pause.id})
    await two.write(*two.gateway.features[Quality].outbox.changes("returns", pause, draft))
    async with asyncio.timeout(60):
        await two.gate.stopped.wait()
    await two.redis.set(MONITOR_LEASE_KEY, "a test")
    await two.process.stop(signal.SIGKILL)
    await until(lambda: has_the_share(two, 0.0))
    await step(two.http, "canary", version=V1, share=0.1)
    await two.kill()
    await two.once("pause_canary")
    assert await has_the_share(two, 0.1)


async def has_the_share(two: Two, share: float) -> bool:
    alias, _ = await two.gateway.services.control.registry.alias("returns")
    return alias is not None and alias.weights[V1] == share


async def is_led_by(two: Two, version: str) -> bool:
    return (await two.leading())[0] == version
