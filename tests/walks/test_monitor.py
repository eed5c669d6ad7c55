"""The monitor over real sockets: labels come, a version degrades, its traffic goes to the better arm, and comes
back."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections import Counter
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from gateway.features.evaluations.gate_baselines import SIGNAL
from gateway.features.quality import job
from gateway.features.quality.state import Quality
from monitoring.quality.detectors.baselines import declare_rate
from monitoring.quality.verdicts.quality import JUDGEMENTS_KEY, SUMMARY_KEY, ArmReport, Summary
from serving.object_store import CHANGES_KEY, STEPS, ObjectStore
from tests.fakes.engine import FakeEngine
from tests.gateway.features.quality.test_webhooks import receiver
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import QUICK, V1, V2, audit_of, metric, step, two_versions, until_the_monitor_has_read

SECONDS_MAX = 240.0
"""The monitor's process is niced: where others are at work, it waits."""
AT_ONCE = 10
FLEET = {"interval_seconds": 0.05}
WATCHED: dict[str, Any] = {
    "checks": {"degraded": {"mode": "enforce", "explored_share": 0.1}},
    "monitor": {"shadow_share": 1.0, "step_seconds": 0.2, "kept_steps": [0.5], "trusted_callers": []},
}


def watched(**more: Any) -> dict[str, Any]:
    """Sections of a configuration whose task is watched."""
    monitor = {**WATCHED["monitor"], **more}
    return {"tasks": {"returns": {**WATCHED, "monitor": monitor}}, "monitor": FLEET}


class World:
    """Callers who ask, and a person who knows what is right."""

    def __init__(self, running: RunningGateway, http: httpx.AsyncClient) -> None:
        self.running, self.http = running, http
        self.right = "approve"
        self.numbers = itertools.count()

    async def baseline(self, version: str, rate: float = 0.05) -> None:
        """Have the version's streams compared with a rate that an admin states."""
        one = msgspec.to_builtins(declare_rate(rate, time.time(), "admin", "a test"))
        await self.running.services.objects.baselines.put(version, {SIGNAL: one, "feedback": one})

    async def ask_and_judge(self) -> str:
        """One request, judged with its demonstration; which version answered (empty: general)."""
        answer = await self.http.post(
            "/v1/chat/completions",
            json={"model": "returns", "messages": [{"role": "user", "content": f"Case {next(self.numbers)}."}]},
        )
        assert answer.status_code == 200, answer.text
        said = answer.json()["choices"][0]["message"]["content"]
        judged = {
            "request_id": answer.headers["x-request-id"],
            "metric": "correct",
            "value": said == self.right,
            "demonstration": self.right,
        }
        assert (await self.http.post("/v1/feedback", json=judged)).status_code == 201
        return answer.headers.get("x-apprentice-version", "")

    async def until(self, holds: Any) -> Counter[str]:
        """Ask and judge until the health of the task is so; which versions answered the last hundred."""
        latest: list[str] = []
        async with asyncio.timeout(SECONDS_MAX):
            while not holds(await self.health()):
                latest += await asyncio.gather(*(self.ask_and_judge() for _ in range(AT_ONCE)))
                await until_the_monitor_has_read(self.running)
        return Counter(latest[-100:])

    async def health(self) -> dict[str, Any]:
        """The health of the task, as it stands in Redis."""
        return dict(msgspec.to_builtins((await self.running.features[Quality].store.of("returns"))[0]))


def verdict(health: dict[str, Any], version: str = V1) -> str:
    return str(health["versions"].get(version, {}).get("verdict"))


def kept(health: dict[str, Any], version: str = V1) -> float:
    return float(health["versions"].get(version, {}).get("kept", 1.0))


async def test_slipping_version_is_found_and_its_traffic_goes_to_general_and_returns(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    small.answers |= {V1: "approve"}
    general.answers |= {"large": "reject"}
    async with (
        receiver() as hook,
        run_gateway(
            configure(**QUICK | watched() | {"monitor": FLEET | {"webhook_url": f"http://127.0.0.1:{hook.port}/"}})
        ) as running,
        running.http() as http,
    ):
        await running.place(make_adapter(1))
        world = World(running, http)
        await world.baseline(V1)
        await world.until(lambda health: health["shadow_share"] == 1.0)
        for _ in range(20):
            assert await world.ask_and_judge() == V1
        assert set(await world.until(lambda health: verdict(health) != "None")) <= {V1}
        assert verdict(await world.health()) == "healthy"

        world.right = "reject"
        await world.until(lambda health: kept(health) == 0.1)
        health = await world.health()
        assert (verdict(health), health["versions"][V1]["to"]) == ("degraded", "general")
        after = Counter([await world.ask_and_judge() for _ in range(100)])
        assert after[""] > 60 > 1 <= after[V1] + 1, "most goes to general, and the floor goes on measuring"
        assert await metric(http, "apprentice_verdict", f'version="{V1}"') == 2
        assert await metric(http, "apprentice_kept_ratio", f'version="{V1}"') == pytest.approx(0.1)
        kinds = Counter(one["kind"] for one in health["actions"])
        assert kinds["shift"] == 2
        assert kinds["retrain"] == 1
        [entry, *_] = await until(lambda: audit_of(http, "monitor.shift"))
        assert entry["actor"] == "system"
        arm = msgspec.convert(entry["evidence"]["arm"], ArmReport)
        assert (arm.arm, arm.is_better) == ("general", True)
        await until(lambda: said(hook, "shift"))

        world.right = "approve"
        await world.until(lambda health: verdict(health) == "healthy" and kept(health) == 1.0)
        await until(lambda: shifted_to_nothing(running))
        latest = Counter([await world.ask_and_judge() for _ in range(50)])
        assert latest == {V1: 50}


async def shifted_to_nothing(running: RunningGateway) -> bool:
    return not running.services.snapshot.current.policy.shifts


async def said(hook: Any, kind: str) -> list[dict[str, Any]]:
    return [body for _, body in hook.got if body["kind"] == kind]


async def test_traffic_goes_to_the_previous_version_version_where_that_is_better(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    small.answers |= {V1: "reject", V2: "approve"}
    general.answers |= {"large": "escalate"}
    async with two_versions(configure, make_adapter, **watched()) as (running, http):
        await step(http, "promote", version=V2)
        world = World(running, http)
        await world.baseline(V2)
        await world.until(lambda health: health["shadow_share"] == 1.0)
        world.right = "reject"
        await world.until(lambda health: kept(health, V2) == 0.1)
        assert (await world.health())["versions"][V2]["to"] == "previous_version"
        answered = Counter([await world.ask_and_judge() for _ in range(60)])
        assert answered[V1] > 30


async def test_where_no_arm_is_better_nothing_moves_and_people_are_told(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    small.answers |= {V1: "approve"}
    general.answers |= {"large": "approve"}
    async with run_gateway(configure(**QUICK | watched())) as running, running.http() as http:
        await running.place(make_adapter(1))
        world = World(running, http)
        await world.baseline(V1)
        world.right = "reject"
        await world.until(lambda health: any(one["kind"] == "hold_and_alert" for one in health["actions"]))
        health = await world.health()
        assert (verdict(health), kept(health)) == ("degraded", 1.0)
        assert await world.ask_and_judge() == V1


async def test_the_next_gateway_goes_on_where_one_stopped(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, redis_url: str
) -> None:
    small.answers |= {V1: "approve"}
    shared = QUICK | watched(shadow_share=0.0) | {"redis_url": redis_url}
    async with run_gateway(configure(**shared)) as running, running.http() as http:
        await running.place(make_adapter(1))
        world = World(running, http)
        await world.baseline(V1)
        world.right = "reject"
        for _ in range(8):
            await world.ask_and_judge()
        await until(lambda: judged_labels(running, 8))
        before = (await running.features[Quality].store.judgements())[V1]
    async with run_gateway(configure(**shared), admin_key=running.admin_key) as running, running.http() as http:
        world = World(running, http)
        world.right = "reject"
        assert (await running.features[Quality].store.judgements())[V1].labels == before.labels
        await world.until(lambda health: verdict(health) == "degraded")
        labels = (await running.features[Quality].store.judgements())[V1].labels
        assert labels >= 30, "not from too few"


async def judged_labels(running: RunningGateway, count: int) -> bool:
    found = (await running.features[Quality].store.judgements()).get(V1)
    return found is not None and found.labels >= count


async def judged_requests(running: RunningGateway, count: int) -> bool:
    found = (await running.features[Quality].store.judgements()).get(V1)
    return found is not None and found.requests >= count


async def test_a_webhook_that_hangs_keeps_no_judgement_waiting(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    small.answers |= {V1: "approve"}
    reached, over = asyncio.Event(), asyncio.Event()
    connections = itertools.count(1)
    made = 0

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made = next(connections)
        reached.set()
        await over.wait()
        writer.close()

    listening = await asyncio.start_server(hang, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    async with (
        run_gateway(configure(**QUICK | watched() | {"monitor": FLEET | {"webhook_url": url}})) as running,
        running.http() as http,
    ):
        await running.place(make_adapter(1))
        for number in range(8):
            for write in await running.features[Quality].webhooks.message(f"m{number}", {"kind": "verdict"}):
                await running.services.redis.hsetnx(write.key, f"m{number}", write.value.decode())
        async with asyncio.timeout(SECONDS_MAX):
            await reached.wait()
        await World(running, http).ask_and_judge()
        await until(lambda: judged_requests(running, 1))
        assert made < 8
    assert "did not stop" not in caplog.text
    over.set()
    listening.close()


async def test_the_end_of_the_monitors_process_is_not_told_as_an_outage_of_redis(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    async with run_gateway(configure(**watched())):
        await until(lambda: "the monitor's process ended with exit code 3: see the log" in caplog.text)
    assert "Redis can't be used" not in caplog.text


async def test_what_is_damaged_in_redis_stops_the_monitor_for_no_other_task(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    small.answers |= {V1: "approve"}
    async with Redis.from_url(redis_url) as redis:
        await redis.hset(JUDGEMENTS_KEY, mapping={V1: b"{", "clauses@v1": b'{"task": 5}'})
        await redis.set(SUMMARY_KEY, msgspec.json.encode(Summary(at=1.0)))
        await ObjectStore(redis, "health").put("clauses", {"versions": {"clauses@v1": {"verdict": "of another time"}}})
        await ObjectStore(redis, "health").put("returns", {"versions": "damaged"})
        await redis.hset("apprentice:responses", mapping={"clauses:1-0": b"{not json", b"\xff": b"{}"})
        await redis.hset("apprentice:responses:audit", "clauses:0-0", b"{not json")
        await redis.hset("apprentice:admins:audit", "a", b'{"actor": {}}')
        await redis.hset("apprentice:webhooks", "clauses-1", b"{not json")
        await redis.hset("apprentice:retraining", "a", b"{not json")
        shared = QUICK | watched(shadow_share=0.0) | {"redis_url": redis_url}
        async with run_gateway(configure(**shared)) as running, running.http() as http:
            await running.place(make_adapter(1))
            world = World(running, http)
            await world.ask_and_judge()
            await until(lambda: judged_requests(running, 1))
            await until(lambda: told_by(running, 2))
            await redis.hset("apprentice:baselines", V1, b"{")
            assert sum("the quality of returns" in one.getMessage() for one in caplog.records) == 1
            await running.features[Quality].store.object_store.delete("returns")
            await world.until(lambda health: V1 in health["versions"])
            judged = '{"feedback_id": "f", "metric": "correct", "value": false, "at": 1.0, "caller": "c"}'
            await redis.xadd("apprentice:feedback", {"request": "gone", "index": "", "feedback": judged})
            await until(lambda: unmatched(running))
            assert "apprentice_monitor_unmatched_total 1\n" in (await http.get("/metrics")).text


async def unmatched(running: RunningGateway) -> bool:
    told = await running.features[Quality].store.read_last_summary()
    return told is not None and told.unmatched == 1


async def told_by(running: RunningGateway, unreadable: int) -> bool:
    return (
        running.features[Quality].monitored.summary.unreadable == unreadable
        and V1 in running.features[Quality].monitored.summary.judgements
    )


async def test_many_tasks_of_a_new_fleet_get_their_health_in_one_step(configure: Configure, redis: Redis) -> None:
    """Each step has all gateways read: a thousand first ones kept a fleet busy for minutes."""
    tasks = {f"task-{number}": {"fallback_pool": "general", **WATCHED} for number in range(12)}
    async with run_gateway(configure(**QUICK | {"tasks": tasks, "monitor": FLEET})) as running:

        async def of_all() -> bool:
            return tasks.keys() <= running.services.snapshot.current.quality.keys()

        await until(of_all)
        assert all(health.shadow_share == 1.0 for health in running.services.snapshot.current.quality.values())
    assert int(await redis.hget(CHANGES_KEY, STEPS) or 0) < len(tasks)
