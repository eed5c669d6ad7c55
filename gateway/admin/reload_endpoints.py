"""The table URL → function for admins, the configuration: reading it again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from gateway.admin.reload import reload
from gateway.endpoint_parts import Admin, services_of
from gateway.openapi_parts import with_errors

router = APIRouter(prefix="/admin/v1", tags=["admins"])


@router.post("/reload", responses=with_errors("configuration_invalid", "restart_required", "state_conflict"))
async def reload_configuration(
    request: Request, admin: Admin, dry_run: Annotated[bool, Query(description="Only tell what would change.")] = False
) -> dict[str, Any]:
    """Reload the configuration, whole or not at all."""
    services = services_of(request)
    reloaded = await reload(services, admin.public, dry_run)
    return {
        "file": str(services.configuration.config),
        "outcome": reloaded.outcome,
        "changes": [asdict(change) for change in reloaded.changes],
        "restart_required": list(reloaded.restart_required),
    }
