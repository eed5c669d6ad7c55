"""`/health` and `/metrics` for probes and Prometheus. They need no key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from gateway.endpoint_parts import services_of
from gateway.errors import Problem
from gateway.gauges import is_redis_up
from gateway.openapi_parts import OK, TEXT, with_answer

router = APIRouter()
NOT_READY: Mapping[str, Any] = {
    "type": "object",
    "properties": {"status": {"type": "string", "enum": ["draining", "no_replica"]}},
    "required": ["status"],
}
READINESS = OK | with_answer(
    503, "Not ready: it drains, or no replica is up.", {"application/json": {"schema": NOT_READY}}
)


@router.get("/health/live", tags=["probes"])
async def live() -> dict[str, str]:
    """The process runs."""
    return {"status": "live"}


@router.get("/health/ready", tags=["probes"], responses=READINESS)
async def ready(request: Request) -> Response:
    """Readiness: 503 while it drains, or no replica is up."""
    services = services_of(request)
    replicas = {replica.name: replica.up for replica in services.fleet.replicas.values()}
    status = "draining" if services.admission.stage != "open" else "ready" if any(replicas.values()) else "no_replica"
    durable = services.durability.storage.durable and is_redis_up(services)
    content = {"status": status, "replicas": replicas, "state_durable": durable}
    return JSONResponse(content, 200 if status == "ready" else 503)


@router.get("/health", tags=["probes"], responses=READINESS)
async def health(request: Request) -> Response:
    """As `/health/ready`, at the address that vLLM has."""
    return await ready(request)


@router.get(
    "/metrics",
    tags=["probes"],
    responses=with_answer(200, "Successful Response", {"application/openmetrics-text": TEXT}),
    response_class=PlainTextResponse,
)
async def metrics(request: Request, accept: Annotated[str, Header()] = "") -> Response:
    """All metrics, for Prometheus."""
    services = services_of(request)
    merged = await services.control.siblings.ask("metrics", accept.encode("latin-1", "replace"))
    if services.control.siblings.count > 1 and not merged:  # one process's figures would be lower than the last ones
        raise Problem(
            "overload", "The gateway's processes did not answer in time, so that not all is known. Try again later."
        )
    body, content_type = (merged[0], merged[1].decode()) if merged else services.meters.exposition(accept)
    return Response(body, headers={"content-type": content_type})
