"""Endpoints for the names that a key may put into `model`: tasks, their loaded versions, pools, and `auto`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request

from gateway.callers import Caller
from gateway.endpoint_parts import ClientIdentified, services_of
from gateway.errors import Problem
from gateway.openapi_parts import with_errors
from gateway.services import Services
from router.policy import AUTO
from router.routing_data import OUT_OF_SERVICE

router = APIRouter()


@router.get("/v1/models", tags=["callers"])
async def models(request: Request, caller: ClientIdentified) -> dict[str, Any]:
    """The names that this key may put into `model`."""
    cards = list(_cards(services_of(request), caller))
    ends = (cards[0]["id"], cards[-1]["id"]) if cards else (None, None)
    return {"object": "list", "data": cards, "has_more": False, "first_id": ends[0], "last_id": ends[1]}


@router.get("/v1/models/{model}", tags=["callers"], responses=with_errors("model_not_found"))
async def read_model(request: Request, model: str, caller: ClientIdentified) -> dict[str, Any]:
    """One of these models."""
    for card in _cards(services_of(request), caller):
        if card["id"] == model:
            return card
    raise Problem("model_not_found", f"No model of yours has the name {model[:80]!r}.", "model")


def _cards(services: Services, caller: Caller) -> Iterator[dict[str, Any]]:
    """The models that the key may name, with the fields that clients of OpenAI, Anthropic and vLLM read."""
    for name, kind, created, pool in _names(services):
        if not caller.models.isdisjoint(("*", name.partition("@")[0], name)):
            config = services.fleet.pools.get(pool or "")
            yield {
                "id": name,
                "object": "model",
                "type": "model",
                "display_name": name,
                "lifecycle": "active",
                "created": created,
                "created_at": datetime.fromtimestamp(created, UTC).isoformat(),
                "owned_by": "apprentice",
                "kind": kind,
                "root": config.base_model if config is not None else None,
                "max_model_len": services.fleet.context_tokens(config.name) if config is not None else None,
            }


def _names(services: Services) -> Iterator[tuple[str, str, int, str | None]]:
    """Each name with its kind, the Unix time of its creation, and the pool that answers (None: it varies)."""
    snapshot, since = services.snapshot.current, int(services.configuration.loaded_at)
    loaded = {name for replica in services.fleet.replicas.values() for name in replica.loaded}
    for task, settings in snapshot.policy.tasks.items():
        alias = snapshot.policy.aliases.get(task)
        leading = snapshot.versions.get(alias.leading) if alias is not None else None
        pool = leading.pool if leading is not None else settings.fallback_pool
        yield task, "task", int(leading.created_at) if leading is not None else since, pool
    for version in snapshot.versions.values():
        if version.name in loaded and version.task in snapshot.policy.tasks and version.state not in OUT_OF_SERVICE:
            yield version.name, "version", int(version.created_at), version.pool
    for pool in sorted(snapshot.policy.callable_pools):
        yield pool, "pool", since, pool
    if snapshot.policy.index is not None:
        yield AUTO, "auto", since, None
