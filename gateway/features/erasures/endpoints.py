"""Admin endpoints for erasures: delete texts of requests, and read the progress."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field, model_validator

from gateway.endpoint_parts import Admin, Body, Operator, require_found
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.erasures.state import Erasures
from gateway.features.erasures.store import Erasure
from gateway.openapi_parts import with_errors
from monitoring.feedback import handle_of
from monitoring.ids import make_timed_id, strip_id
from monitoring.redis_time import read_redis_time
from monitoring.text_stream import forgotten_name_of

CALLERS_MAX = 10_000
"""Callers whose subject is erased at once: each is a key in Redis for as long as texts may come late."""
router = APIRouter(prefix="/admin/v1", tags=["admins"])


class ErasureIn(Body):
    """Whose texts are erased: one request's, or all until now of a caller, or about a subject of a caller or of all."""

    request: str | None = Field(None, min_length=1, max_length=200, description="A request's id.")
    subject: str | None = Field(None, min_length=1, max_length=512, description="As `x-apprentice-subject` named it.")
    caller: str | None = Field(None, min_length=1, max_length=63, description="A key's public part.")

    @model_validator(mode="after")
    def _require_one(self) -> ErasureIn:
        if (self.request is None) == (self.subject is None and self.caller is None):
            raise ValueError("name a request, or a subject, or a caller; a caller may go with a subject")
        return self


@router.post("/erasures", status_code=202)
async def erase_texts(request: Request, body: ErasureIn, admin: Admin) -> dict[str, Any]:
    """Erase texts of requests; records and labels stay. Read the progress by its id."""
    erasures = feature_of(request, Erasures)
    now = await read_redis_time(erasures.services.redis)
    erasure = Erasure(
        id=make_timed_id(now),
        at=now,
        by=admin.public,
        of="a request" if body.request else "a subject" if body.subject else f"the caller {body.caller}",
        requests=[strip_id(body.request)] if body.request else [],
        names=await _names(erasures, body),
    )
    step = erasures.services.begin_step(admin.public)
    step.note("texts.erase", erasure.id, after=_shown(erasure))
    await erasures.store.open(erasure, step)
    erasures.wake.set()
    return _shown(erasure)


@router.get("/erasures")
async def list_erasures(request: Request, _: Operator) -> dict[str, Any]:
    """All erasures, the newest first."""
    return {"erasures": [_shown(erasure) for erasure in await feature_of(request, Erasures).store.all()]}


@router.get("/erasures/{erasure}", responses=with_errors("not_found"))
async def read_erasure(request: Request, erasure: str, _: Operator) -> dict[str, Any]:
    """One erasure, with data sets and versions that had the texts."""
    return _shown(require_found(await feature_of(request, Erasures).store.get(erasure), "erasure", erasure))


async def _names(erasures: Erasures, body: ErasureIn) -> list[str]:
    """The names under which the requests are found. A subject without a caller has a name for each caller ever made.

    Raises RedisError, and Problem for too many callers.
    """
    if body.subject is None:
        return [forgotten_name_of(body.caller)] if body.caller else []
    services = erasures.services
    callers_known = {*services.snapshot.current.callers, *await services.objects.callers.generations()}
    callers = [body.caller] if body.caller else sorted(callers_known)
    if len(callers) > CALLERS_MAX:
        raise Problem("invalid_value", f"There are over {CALLERS_MAX} keys: name the caller, one by one.", "caller")
    return [handle_of(services.digest_secret, caller, "subject", body.subject) for caller in callers]


def _shown(erasure: Erasure) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(erasure)
    del fields["names"]
    return fields
