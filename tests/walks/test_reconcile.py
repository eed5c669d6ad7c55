"""Reconciling on two replicas, by whichever gateway has the job, without a needless call."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from redis.asyncio import Redis

from gateway.callers import new_key
from gateway.features.releases.reconciling import reconcile_once
from gateway.features.releases.state import Releases
from serving.adapters import loader, reconcile, registry
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Fault, Lost, Moment, Silent, SlowHeaders, Status
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.two_replicas import (
    ASK,
    LEASE_KEY,
    LOAD,
    UNLOAD,
    Hold,
    asked_by_callers,
    called,
    callers,
    go_down,
    lists,
    loads,
    placement_state,
    pool,
    push,
    put,
    shown,
    two,
    until_ready,
    with_two,
)

__all__ = ["two"]


@pytest.mark.invariant("Adapters that others loaded are left alone.")
async def test_an_adapter_that_is_not_ours_is_left_alone_and_takes_a_place(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine
) -> None:
    small.load("stranger", make_adapter(9))
    await until(lambda: "stranger" in two.services.fleet.replicas["small-0"].seen)
    async with two.http() as http:
        replicas = (await http.get("/admin/v1/replicas")).json()["replicas"]
        assert [row["capacity"]["registered"] for row in replicas[:2]] == [2, 1]
        assert [row["capacity"]["loads_left"] for row in replicas[:2]] == [13, 14]
        assert (await http.delete("/admin/v1/aliases/returns")).status_code == 200
        assert (await http.post("/admin/v1/adapters/returns@v1/retire")).status_code == 200
    await until(lambda: not lists(small, "returns@v1") and not lists(other, "returns@v1"))
    await reconcile_once(two.features[Releases])
    assert lists(small, "stranger")
    assert not called(small, UNLOAD, "stranger")


async def test_of_two_gateways_one_loads_and_a_swap_at_either_is_seen_by_both(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine, redis: Redis
) -> None:
    configuration, key = with_two(configure, other), new_key()[0]
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        running = [await stack.enter_async_context(run_gateway(configuration, key)) for stack in (first, second)]
        await running[1].place(make_adapter(1))
        for gateway in running:
            await until_ready(gateway, "returns@v1")
        assert loads([small, other]) == 2

        owner = (await redis.get(LEASE_KEY) or b"").decode()
        stacks = {
            gateway.services.name: (gateway, stack) for gateway, stack in zip(running, (first, second), strict=True)
        }
        gone, its_stack = stacks.pop(owner)
        ((left, _),) = stacks.values()
        await put(gone, await left.place(make_adapter(2), alias=False))
        for gateway in running:
            async with callers(gateway, 1) as asked:
                pass
            asked.only("returns@v2")
        assert loads([small, other]) == 4
        await its_stack.aclose()
        await left.place(make_adapter(3))
        await until_ready(left, "returns@v3")
        assert (await redis.get(LEASE_KEY) or b"").decode() == left.services.name
    assert loads([small, other]) == 6
    assert [len(called(engine, LOAD)) for engine in (small, other)] == [3, 3]


async def test_a_gateway_that_takes_the_job_over_looks_before_it_does_anything(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine, redis: Redis
) -> None:
    configuration, key = with_two(configure, other), new_key()[0]
    configuration["health_interval_seconds"] = 30
    async with AsyncExitStack() as first:
        one = await first.enter_async_context(run_gateway(configuration, key))
        await one.place(make_adapter(1))
        await one.place(make_adapter(2), alias=False)
        async with run_gateway(configuration, key) as two, one.http() as http:  # two sees both listed, for 30 seconds
            assert (await http.post("/admin/v1/adapters/returns@v2/unload")).status_code == 200
            await first.aclose()

            async def has_done_the_job() -> bool:
                if (await redis.get(LEASE_KEY) or b"").decode() != two.services.name:
                    return False
                placements = two.services.snapshot.current.placements.values()
                its = [placement.state for placement in placements if placement.version == "returns@v2"]
                return its == ["ghost"] * 2 and not any("returns@v2" in replica.seen for replica in pool(two))

            await until(has_done_the_job)
            capacities = [
                two.services.control.adapters.reconciler.capacity(r, two.services.snapshot.current.placements)
                for r in pool(two)
            ]
    assert [full.ghosts for full in capacities] == [1, 1]
    assert [called(engine, UNLOAD) for engine in (small, other)] == [[200], [200]]


async def test_gateway_that_did_not_load_a_version_serves_and_swaps_it_once_staged(
    configure: Configure, make_adapter: MakeAdapter, other: FakeEngine, redis: Redis
) -> None:
    configuration, key = with_two(configure, other), new_key()[0]
    configuration["health_interval_seconds"] = 30  # the looks that come round by themselves are too late for it
    async with run_gateway(configuration, key) as one, run_gateway(configuration, key) as two:
        await one.place(make_adapter(1))
        owner = (await redis.get(LEASE_KEY) or b"").decode()
        follower = two if one.services.name == owner else one
        for number in range(2, 5):
            async with callers(follower) as asked:
                version = await follower.place(make_adapter(number))
                await until(lambda version=version: asked.answers[-1][1] == version, f"answers of {version}")
            asked.only(f"returns@v{number - 1}", version)


async def test_two_gateways_without_a_common_store_are_told_what_they_lack(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path, redis: Redis
) -> None:
    key = new_key()[0]
    apart = configure(data_folder=tmp_path / "apart")
    async with run_gateway(configure(), key) as one, run_gateway(apart, key) as two:
        await until(lambda: redis.get(LEASE_KEY), "one of them loads")
        owner = (await redis.get(LEASE_KEY) or b"").decode()
        async with (two if one.services.name == owner else one).http() as http:
            await http.post("/admin/v1/adapters", json={"task": "returns", "path": str(make_adapter(1))})
            staged = await http.post("/admin/v1/adapters/returns@v1/stage")
    assert staged.status_code == 409, staged.text
    assert "store_folder" in staged.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fault", "calls"),
    [
        pytest.param(SlowHeaders(30), 1, id="loaded, and the answer comes too late"),
        pytest.param(Lost(), 1, id="loaded, and the answer is lost"),
        pytest.param(Silent(), 2, id="not loaded, and no answer"),
    ],
)
async def test_a_load_without_an_answer_is_looked_into_and_never_repeated_blindly(
    two: RunningGateway,
    make_adapter: MakeAdapter,
    small: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    calls: int,
) -> None:
    monkeypatch.setattr(loader, "LOAD_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(loader, "UNKNOWN_RETRY_SECONDS", 0.1)
    small.faults.add(fault, path=LOAD, times=1)
    assert await two.place(make_adapter(2)) == "returns@v2"
    await until_ready(two, "returns@v2")
    assert len(called(small, LOAD, "returns@v2")) == calls
    order = [call.path for call in small.calls if call.path in (LOAD, "/v1/models")]
    assert (LOAD, LOAD) not in pairwise(order), "between two loads nobody looked at what is listed"


async def test_load_refused_because_the_name_is_taken_counts_if_the_bytes_are_ours(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    version = await push(two, make_adapter(2))
    held = Hold()
    small.faults.add(held, path=LOAD, times=1)
    async with two.http() as http:
        staging = asyncio.create_task(http.post(f"/admin/v1/adapters/{version}/stage"))
        await held.met.wait()
        small.load(
            version, two.services.control.adapters.store.path(two.services.snapshot.current.versions[version].digest)
        )
        held.let_go.set()
        assert (await staging).status_code == 200
    await until_ready(two, version)
    assert called(small, LOAD, version) == [400]


async def test_engine_with_other_bytes_under_our_name_keeps_them_and_gets_no_request(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine
) -> None:
    theirs = make_adapter(9)
    held = Hold()
    small.faults.add(held, path=LOAD)  # so that ours does not come first
    async with callers(two) as asked:
        await go_down(two, small)
        seen = len(small.requests)
        await small.restart()
        small.load("returns@v1", theirs)
        held.let_go.set()

        async def is_blocked() -> bool:
            return await placement_state(two, "returns@v1", "small-0") == "failed"

        await until(is_blocked, "blocked")
        for _ in range(3):
            await reconcile_once(two.features[Releases])
        assert (await shown(two, "returns@v1"))["ready"] == ["small-1"]
    asked.only("returns@v1")
    assert not [one for one in list(small.requests)[seen:] if one.model == "returns@v1"]
    assert small.adapters.registered["returns@v1"].path == str(theirs)
    assert not called(small, UNLOAD)


async def test_an_adapter_that_answers_as_the_base_is_quarantined_and_the_alias_untouched(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine
) -> None:
    version = await push(two, make_adapter(2))
    for engine in (small, other):
        engine.not_applied.add(version)
    async with callers(two) as asked, two.http() as http:
        answer = await http.post(f"/admin/v1/adapters/{version}/stage")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "state_conflict")
        assert "answers as the base model does" in answer.json()["error"]["message"]
        await until(lambda: not lists(small, version) and not lists(other, version))
        alias = (await http.get("/admin/v1/aliases/returns")).json()
    assert (await shown(two, version))["state"] == "quarantined"
    assert (alias["weights"], alias["generation"]) == ({"returns@v1": 1.0}, 1)
    asked.only("returns@v1")


@pytest.mark.invariant("No adapter is unloaded under an answer.")
async def test_an_unload_waits_for_the_stream_that_is_under_way(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine
) -> None:
    await two.place(make_adapter(2), alias=False)
    going_on = Hold(after_work=True)
    for engine in (small, other):
        engine.faults.add(_AfterFirst(going_on.met, going_on.let_go), model="returns@v1", times=1)
    async with two.openai() as client, two.http() as http:
        stream = await client.chat.completions.create(model="returns", stream=True, **ASK)
        chunks = [await anext(aiter(stream))]
        await going_on.met.wait()
        busy = small if small.in_flight else other
        name = "small-0" if busy is small else "small-1"
        await put(two, "returns@v2")
        answer = await http.post("/admin/v1/adapters/returns@v1/unload?wait_seconds=0")
        assert answer.status_code == 202

        async def is_closing() -> bool:
            return await placement_state(two, "returns@v1", name) == "closing"

        await until(is_closing, "closing")
        for _ in range(3):
            await reconcile_once(two.features[Releases])
        assert lists(busy, "returns@v1")
        idle = other if busy is small else small
        await until(lambda: not lists(idle, "returns@v1"), "the replica without a stream is done")
        going_on.let_go.set()
        chunks += [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason
    assert {chunk.model for chunk in chunks} == {"returns@v1"}
    await until(lambda: not lists(busy, "returns@v1"), "unloaded")


@dataclass(frozen=True, eq=False)
class _AfterFirst(Fault):
    """Says that the first tokens are out, and goes on when it is let go."""

    kind = "after_first"
    met: asyncio.Event
    let_go: asyncio.Event

    async def before_token(self, moment: Moment) -> None:
        if moment.made == 2:
            self.met.set()
            await self.let_go.wait()


async def test_a_rollback_is_no_load(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine
) -> None:
    await two.place(make_adapter(2))
    before = [len(called(engine, LOAD)) + len(called(engine, UNLOAD)) for engine in (small, other)]
    async with two.http() as http:
        answer = await http.post("/admin/v1/aliases/returns/rollback")
        assert answer.json()["weights"] == {"returns@v1": 1.0}
        async with callers(two) as asked:
            pass
    asked.only("returns@v1")
    await reconcile_once(two.features[Releases])
    assert [len(called(engine, LOAD)) + len(called(engine, UNLOAD)) for engine in (small, other)] == before


async def test_a_request_keeps_its_version_through_a_retry_on_the_other_replica(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine
) -> None:
    await two.place(make_adapter(2), alias=False)
    first = _FirstIsReset([])
    for engine in (small, other):
        engine.faults.add(first, model="returns@v1")
    async with two.openai() as client:
        asking = asyncio.create_task(client.chat.completions.with_raw_response.create(model="returns", **ASK))
        await first.met.wait()
        await put(two, "returns@v2")
        first.let_go.set()
        answer = await asking
    assert answer.parse().model == "returns@v1"
    assert answer.headers["x-apprentice-attempts"] == "2"
    assert answer.headers["x-apprentice-pool"] == "small"
    assert asked_by_callers(small, "returns@v1") == asked_by_callers(other, "returns@v1") == 1


@dataclass(frozen=True, eq=False)
class _FirstIsReset(Fault):
    """Holds the first request that any engine gets until it is let go, and then resets its connection."""

    kind = "first_is_reset"
    taken: list[bool]
    met: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def on_request(self, moment: Moment) -> None:
        if not self.taken:
            self.taken.append(True)
            self.met.set()
            await self.let_go.wait()
            await moment.exchange.reset()


async def test_a_version_withdrawn_while_it_loads_is_taken_off_and_stops_nothing_else(
    two: RunningGateway,
    make_adapter: MakeAdapter,
    small: FakeEngine,
    other: FakeEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    version = await push(two, make_adapter(2))
    held = Hold()
    small.faults.add(held, model=version)
    async with two.http() as http:
        await http.post(f"/admin/v1/adapters/{version}/stage?wait_seconds=0")
        await held.met.wait()
        assert lists(small, version)
        assert not lists(other, version), "a new version is tried on one engine first"
        with caplog.at_level(logging.ERROR):
            assert (await http.post(f"/admin/v1/adapters/{version}/unload?wait_seconds=0")).status_code == 202
            held.let_go.set()
            await until(lambda: not lists(small, version) and not lists(other, version), "taken off")
    assert not [record.getMessage() for record in caplog.records if "job" in record.getMessage()]
    assert (await shown(two, version))["state"] == "verified"


async def test_a_replica_that_is_gone_from_the_configuration_does_not_stop_a_swap(
    configure: Configure, make_adapter: MakeAdapter, other: FakeEngine
) -> None:
    async with run_gateway(with_two(configure, other)) as first:
        await first.place(make_adapter(1))
        await first.place(make_adapter(2))
    async with run_gateway(configure()) as second:
        await until_ready(second, "returns@v1", ["small-0"])
        await put(second, "returns@v1")
        async with callers(second) as asked:
            pass
    asked.only("returns@v1")


async def test_what_every_engine_refuses_is_told_once_in_the_engines_own_words(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine
) -> None:
    lives = [replica.life for replica in pool(two)]
    for engine in (small, other):
        engine.max_lora_rank = 2
        await engine.restart()
    await until(lambda: all(replica.up and replica.life not in lives for replica in pool(two)), "both are up again")
    version = await push(two, make_adapter(2))
    async with two.http() as http:
        answer = await http.post(f"/admin/v1/adapters/{version}/stage")
    message = answer.json()["error"]["message"]
    assert message.count("LoRA rank 4 is greater than max_lora_rank 2") == 1, message
    assert re.search(r"small-[01] did not load returns@v2 \(500\): .*; the same on small-[01]\.$", message), message
    assert "{" not in message


async def test_a_staging_whose_probes_get_no_answer_ends_with_this_reason(
    gateway: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await push(gateway, make_adapter(2))
    small.faults.add(Status(400), model=version)

    async def waits() -> bool:
        return await placement_state(gateway, version, "small-0") == "unknown"

    async with gateway.http() as http:
        assert (await http.post(f"/admin/v1/adapters/{version}/stage?wait_seconds=0")).status_code == 202
        await until(waits)
        monkeypatch.setattr(reconcile, "STAGE_SECONDS_MAX", 0.0)
        answer = await http.post(f"/admin/v1/adapters/{version}/stage")
    assert answer.status_code == 409, answer.text
    assert "small-0 did not answer the golden prompt" in answer.json()["error"]["message"]


async def test_a_staging_by_a_gateway_whose_clock_is_ahead_ends_at_its_first_failure(
    gateway: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = gateway.services.fleet.replicas["small-0"]
    life, small.max_lora_rank = replica.life, 2
    await small.restart()
    await until(lambda: replica.up and replica.life != life)
    version = await push(gateway, make_adapter(2))
    monkeypatch.setattr(registry, "time", SimpleNamespace(time=lambda: time.time() + 3600.0))
    async with gateway.http() as http:
        answer = await http.post(f"/admin/v1/adapters/{version}/stage")
    assert answer.status_code == 409, answer.text
    assert "LoRA rank 4 is greater than max_lora_rank 2" in answer.json()["error"]["message"]


async def test_an_unloaded_version_leaves_nothing_in_redis_once_its_engine_starts_anew(
    gateway: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "OVER_SECONDS_MAX", 0.1)
    name = await gateway.place(make_adapter(2), alias=False)

    async def keys() -> set[bytes]:
        return set(await gateway.services.redis.hkeys("apprentice:placements:generations"))

    assert await keys() == {b"small-0/returns@v1", b"small-0/returns@v2"}
    async with gateway.http() as http:
        assert (await http.post(f"/admin/v1/adapters/{name}/unload")).status_code == 200
    await small.restart()  # which takes the ghost

    async def is_forgotten() -> bool:
        return await keys() == {b"small-0/returns@v1"}

    await until(is_forgotten)
    async with gateway.http() as http:
        assert (await http.post(f"/admin/v1/adapters/{name}/stage")).status_code == 200
