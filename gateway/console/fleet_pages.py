"""The page of replicas: their loaded versions, the replicas that are down, and those that are cordoned."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from gateway.console.signed_in_request import Visit


async def show_fleet(visit: Visit) -> Response:
    """Each replica with its versions."""
    return await visit.render("fleet.html", **await load_fleet(visit))


async def load_fleet(visit: Visit) -> dict[str, Any]:
    """The fleet's data, by pool."""
    answer = await visit.api.get("/admin/v1/replicas")
    pools: dict[str, list[dict[str, Any]]] = {}
    for replica in answer["replicas"]:
        pools.setdefault(replica["pool"], []).append(replica)
    return {"pools": pools, "stale": answer["stale"]}
