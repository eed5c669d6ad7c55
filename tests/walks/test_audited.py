"""Nothing is changed under /admin that is not in the audit, however large the change is."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from gateway.features.retraining.state import RetrainingRequests
from monitoring.audit import STREAM, AuditEntry, verify
from monitoring.quality.verdicts.retraining import Retraining
from serving.object_store import change_together
from tests.document import load_document
from tests.fakes.trainer import write_trainer
from tests.waiting import until
from tests.walks.audit_world import CASES, DRAFTS, V1, V2, Case, World
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway
from tests.walks.test_reload import reloadable

EVENTS = frozenset(
    {
        ("post", "/admin/v1/state/adapters"),
        ("post", "/admin/v1/reload"),
        ("post", "/admin/v1/reviews/{task}/disputed/{request_id}/resolve"),
    }
)
"""A change outside Redis: it is entered before it is done, and is not done where it can't be entered."""
TAKEN_OVER = frozenset({("post", "/admin/v1/erasures")})
"""A job adds entries of its own to these while the chain is broken, so that they can't be counted."""
OF_JOBS = ("fitting.", "building.done", "building.failed", "texts.erased")
"""Entries that jobs write in the name of an admin."""


@asynccontextmanager
async def open_world(configure: Configure, make_adapter: MakeAdapter, folder: Path) -> AsyncIterator[World]:
    trainer, plan = write_trainer(folder)
    plan.write_text('{"wait_at": 1}')
    content = configure(limits={"body_bytes_max": 32 << 20}, training={"python": trainer})
    async with reloadable(content, folder) as started:
        await started.gateway.place(make_adapter(1))
        assert await started.gateway.place(make_adapter(2), alias=False) == V2
        async with started.gateway.http() as http:
            await http.post(f"/admin/v1/adapters/{V2}/unload")
            yield World(started.gateway, http, folder / "apprentice.yaml", started.content, make_adapter)


async def entries(world: World) -> list[AuditEntry]:
    """The audit of what admins did; what jobs do meanwhile is left out."""
    found = await world.gateway.services.control.audit.read(limit=1000)
    return [one for one in found if one.actor != "system" and not one.action.startswith(OF_JOBS)]


def test_every_operation_of_the_document_that_is_no_reading_is_tried() -> None:
    found = {
        (method, path)
        for path, methods in load_document()["paths"].items()
        for method in methods
        if path.startswith("/admin/") and method != "get"
    }
    assert found == {case.operation for case in CASES}


@pytest.mark.invariant("Every change under /admin has its entry in the audit.")
@pytest.mark.timeout(240)
async def test_each_operation_with_its_largest_body_is_refused_or_audited(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    async with open_world(configure, make_adapter, tmp_path) as world:
        for case in CASES:
            before, known = await world.dump(), len(await entries(world))
            answer = await case.send(world)
            await until(lambda: _all_entered(world))  # a job may have taken it over
            new = (await entries(world))[known:]
            _see_that_it_is_as_expected(case, answer, new)
            if case.expected != "audited":
                assert await world.dump() == before, case.operation
        assert verify(await world.gateway.services.control.audit.read(limit=1000)) is None


def _see_that_it_is_as_expected(case: Case, answer: httpx.Response, new: list[AuditEntry]) -> None:
    told = f"{case.operation}: {answer.status_code} {answer.text[:300]} {[entry.action for entry in new]}"
    if case.expected == "refused":
        assert 400 <= answer.status_code < 500, told
        assert not new, told
    else:
        assert answer.is_success, told
        assert bool(new) == (case.expected == "audited"), told


@pytest.mark.invariant("Every change under /admin has its entry in the audit.")
@pytest.mark.timeout(240)
async def test_unwritable_chain_keeps_a_draft_of_each_change_and_enters_it_later(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path, redis: Redis
) -> None:
    """A gateway that is killed between a change and its entry leaves the same."""
    async with open_world(configure, make_adapter, tmp_path) as world:
        await redis.delete(STREAM)
        await redis.set(STREAM, "no stream")
        for case in CASES:
            if case.expected != "audited" or case.operation in TAKEN_OVER:
                continue
            drafted = await world.drafts()
            answer = await case.send(world)
            told = f"{case.operation}: {answer.status_code} {answer.text[:300]}"
            if case.operation in EVENTS:
                assert answer.status_code == 503, told
                continue
            assert await world.drafts() > drafted, told
            await _settled(world)
        drafted = await world.drafts()
        await redis.delete(STREAM)
        await until(lambda: _all_entered(world))
        every = await world.gateway.services.control.audit.read(limit=1000)  # jobs draft entries too
        assert len(every) >= drafted
        assert len({entry.digest for entry in every}) == len(every)


async def test_a_chain_whose_end_is_cut_off_is_told_and_its_entry_waits(gateway: RunningGateway, redis: Redis) -> None:
    async with gateway.http() as http:
        assert (await http.post("/admin/v1/replicas/small-0/cordon")).status_code == 200
        await redis.xdel(STREAM, await redis.xadd(STREAM, {"cut": "off"}, id="1000000-0"))
        answer = await http.post("/admin/v1/replicas/small-0/uncordon")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
    assert "look before you send it again" in answer.json()["error"]["message"]
    assert "replica.uncordon" in [json.loads(draft)["action"] for draft in await redis.hvals(DRAFTS[0])]


async def test_a_release_has_an_entry_for_each_request_to_train_that_it_closes(gateway: RunningGateway) -> None:
    services, path = gateway.services, f"/admin/v1/tasks/returns/quality/{V1}/pin"
    async with gateway.http() as http:
        assert (await http.post(path, json={"verdict": "degraded", "reason": "The season."})).status_code == 200
        for name in ("one", "two"):
            asked = Retraining(
                id=name, task="returns", version=V1, opened_at=time.time() + 1, by="x", because="x", action="19d5f0a1-0"
            )
            await change_together(services.redis, [gateway.features[RetrainingRequests].store.change(asked, 0)])
        known = len(await services.control.audit.read(limit=1000))
        assert (await http.delete(path)).status_code == 200
        closed = [each for each in await gateway.features[RetrainingRequests].store.all() if each.closed_at is not None]
    assert {"one", "two"} <= {each.id for each in closed}, "the monitor may have asked, too"
    new = (await services.control.audit.read(limit=1000))[known:]
    told = sorted((one.action, one.generation, (one.after or {}).get("id")) for one in new if one.actor != "system")
    closing = [entry for entry in told if entry[0] == "retraining.close"]
    assert closing == sorted(("retraining.close", 2, each.id) for each in closed)
    assert [entry[0] for entry in told if entry not in closing] == ["monitor.release"]


async def _all_entered(world: World) -> bool:
    return await world.drafts() == 0


async def _settled(world: World) -> None:
    """Wait for what was begun and not waited for: a version that is being loaded or unloaded."""

    async def settled() -> bool:
        services = world.gateway.services
        versions = await services.control.registry.versions()
        placed = {one.state for one in services.snapshot.current.placements.values() if one.version == V2}
        return versions[V2].state not in ("staging", "draining") and placed <= {"ready", "ghost"}

    await until(settled)
