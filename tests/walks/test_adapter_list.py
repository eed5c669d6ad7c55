"""The list of all adapters of a large fleet: its time grows with versions and placements, not with their product."""

from __future__ import annotations

from collections.abc import ValuesView
from dataclasses import replace

import msgspec

from serving.adapters.placement import Placement
from serving.object_store import Change, ObjectStore, change_together
from tests.walks.gateway import RunningGateway

VERSIONS = 300


class Counted(dict[tuple[str, str], Placement]):
    """Placements that count how often all of them are gone through."""

    times = 0

    def values(self) -> ValuesView[Placement]:
        self.times += 1
        return super().values()


async def test_all_adapters_are_listed_without_a_walk_over_all_placements_for_each(gateway: RunningGateway) -> None:
    services = gateway.services
    first = await services.registry.version("returns@v1")
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
