"""The lists of a large fleet: their time grows with what there is and with placements, not with their product."""

from __future__ import annotations

from collections.abc import ValuesView
from dataclasses import replace

import msgspec

from serving.adapters.placement import Placement, group_by_replica
from serving.object_store import Change, ObjectStore, change_together
from tests.fakes.engine import FakeEngine
from tests.walks.conftest import Configure
from tests.walks.gateway import RunningGateway, run_gateway

VERSIONS = 300
REPLICAS = 60


class Counted(dict[tuple[str, str], Placement]):
    """Placements that count how often all of them are gone through."""

    times = 0

    def values(self) -> ValuesView[Placement]:
        self.times += 1
        return super().values()


async def test_all_adapters_are_listed_without_a_walk_over_all_placements_for_each(gateway: RunningGateway) -> None:
    services = gateway.services
    first = await services.control.registry.version("returns@v1")
    copies = [
        msgspec.structs.replace(first, name=f"returns@v{at}", number=at, state="retired") for at in range(2, VERSIONS)
    ]
    versions = ObjectStore(services.redis, "versions")
    await change_together(
        services.redis, [Change(versions, copy.name, msgspec.to_builtins(copy), 0) for copy in copies]
    )
    snapshot = await services.snapshot.refresh()
    placements = Counted(snapshot.placements)
    services.snapshot.current = replace(snapshot, placements=placements)
    async with gateway.http() as http:
        rows = (await http.get("/admin/v1/adapters")).json()["adapters"]
    assert len(rows) == VERSIONS - 1
    assert (rows[0]["version"], rows[0]["ready"], len(rows[0]["placements"])) == ("returns@v1", ["small-0"], 1)
    assert placements.times < VERSIONS / 3, "the health check goes through them as well, a few times a second"


async def test_all_replicas_are_listed_without_a_walk_over_all_placements_for_each(
    configure: Configure, general: FakeEngine
) -> None:
    sections = configure(health_interval_seconds=30.0)
    sections["pools"]["general"]["replicas"] = [{"name": f"general-{at}", "url": general.url} for at in range(REPLICAS)]
    placement = Placement(replica="general-1", version="returns@v1", state="ready", path="/store/a")
    async with run_gateway(sections) as gateway, gateway.http() as http:
        snapshot = await gateway.services.snapshot.refresh()
        placements = Counted({("general-1", "returns@v1"): placement})
        placed = group_by_replica(placements)
        gateway.services.snapshot.current = replace(snapshot, placements=placements, placements_by_replica=placed)
        rows = (await http.get("/admin/v1/replicas")).json()["replicas"]
    assert len(rows) == REPLICAS + 1
    assert placements.times < REPLICAS / 3
