"""Is a replica there, and what has it loaded? One look, over the control plane."""

from __future__ import annotations

import logging
import re

import httpx

from serving.fleet import Fleet
from serving.replica import Replica

log = logging.getLogger(__name__)
CHECK_TIMEOUT_SECONDS = 3.0
LIFE = re.compile(r"^process_start_time_seconds\s+(\S+)", re.MULTILINE)


def engine_headers(replica: Replica) -> dict[str, str]:
    """What the gateway shows an engine that wants a key."""
    key = replica.config.api_key
    return {"Authorization": f"Bearer {key}"} if key else {}


async def look(fleet: Fleet, replica: Replica, http: httpx.AsyncClient, *, anew: bool = False) -> None:
    """Look at a replica once and write down what is there. One that is down has nothing loaded.

    Which engine process it is, is read again if it was down, if a name has vanished, or if `anew` asks for it.
    One look at a time: what an older one saw is never written over what a newer one did.
    """
    async with replica.looking:
        await _look(fleet, replica, http, anew)


async def _look(fleet: Fleet, replica: Replica, http: httpx.AsyncClient, anew: bool) -> None:
    up, seen, engine_version, life = replica.up, replica.seen, replica.engine_version, replica.life
    before = (up, seen, engine_version, life)
    try:
        (await _get(replica, http, "/health")).raise_for_status()
        models = (await _get(replica, http, "/v1/models")).raise_for_status().json()["data"]
        seen = {str(model["id"]): str(model.get("root") or "") for model in models}
        if anew or not up or not before[1].keys() <= seen.keys():  # it may have been started anew meanwhile
            engine_version = await _engine_version(replica, http)
            life = await _life(replica, http)
        up = fleet.pools[replica.config.pool].base_model in seen
    except (httpx.HTTPError, AttributeError, KeyError, TypeError, ValueError):
        up, seen = False, {}
        replica.loaded = frozenset()
    # all at once: whoever reads a replica between two awaits sees one moment of it
    replica.up, replica.seen, replica.engine_version, replica.life = up, seen, engine_version, life
    if (up, seen, engine_version, life) != before:
        fleet.changed()
    if up != before[0]:
        log.warning("replica %s of the pool %s is %s", replica.name, replica.config.pool, "up" if up else "down")


async def _engine_version(replica: Replica, http: httpx.AsyncClient) -> str:
    """The engine's build; `unknown` for an OpenAI-compatible engine that has no /version."""
    answer = await _get(replica, http, "/version")
    return str(answer.json().get("version", "unknown")) if answer.status_code == 200 else "unknown"


async def _life(replica: Replica, http: httpx.AsyncClient) -> str:
    """When the engine's process was started, by its own metrics; empty where it does not say."""
    answer = await _get(replica, http, "/metrics")
    found = LIFE.search(answer.text) if answer.status_code == 200 else None
    return found.group(1) if found else ""


async def _get(replica: Replica, http: httpx.AsyncClient, path: str) -> httpx.Response:
    return await http.get(replica.config.url + path, headers=engine_headers(replica), timeout=CHECK_TIMEOUT_SECONDS)
