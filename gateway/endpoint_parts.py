"""Parts of every admin endpoint: its roles, its body, and conflicts with the state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from redis.exceptions import RedisError

from gateway.callers import Caller, admit, identify, require
from gateway.errors import Problem
from gateway.roles import Role
from gateway.server.exchange import Exchange
from gateway.services import Services
from gateway.state.snapshot import Snapshot
from monitoring.time_units import YEAR_10000
from router.policy import TaskPolicy
from serving.adapters.registry import RegistryError
from serving.adapters.versions_and_aliases import Version
from serving.object_store import Stale

T = TypeVar("T")
OBJECTS_MAX = 1000
TASKS_TOLD_MAX = 10
"""Most tasks that the error for an unknown task names. The others are only counted."""
SIGNED_IN = "gateway.signed_in"
"""Key of the ASGI scope with the caller who is signed in at the console, for calls inside the process alone."""
READ_SECONDS_MAX = 2.0
"""Longest wait for the state. After that, the state as last read is shown."""
Short = Annotated[str, Field(max_length=256)]
Moment = Annotated[float, Field(gt=0, lt=YEAR_10000, allow_inf_nan=False)]
"""Unix seconds, before the year 10000."""
ExpectedGeneration = Annotated[int | None, Query(ge=0, le=2**53, description="409 if it has changed since.")]
OfTask = Annotated[str | None, Query(max_length=63)]
"""The task of which a list is asked for; None: of all."""


def parse_time(value: Any) -> Any:
    """The Unix seconds of a date or a time in ISO 8601, which is in UTC if it has no zone. A number is unchanged.

    Raises ValueError for other texts, and for true and false, which would count as 1 and 0.
    """
    if isinstance(value, bool):
        raise ValueError("it must be a number or a date, not true or false")
    if not isinstance(value, str):
        return value
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        if value.replace(".", "", 1).isdecimal():  # in a query each value is a text; bodies are strict
            return value
        raise ValueError("it must be a date or a time as in 2026-12-01 or 2026-12-01T09:30:00Z") from None


def see_that_it_is_to_come(field: str, moment: float | None, now: float) -> None:
    """Raise Problem for a time in the past. Its text has `now`, since the caller's clock may differ."""
    if moment is not None and moment <= now:
        clock = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
        raise Problem("invalid_value", f"{field} is in the past: name a time after {clock}, which it is here.", field)


def refuse_blank(text: str) -> str:
    """Raise ValueError for a text of only blanks, which helps no later reader."""
    if not text.strip():
        raise ValueError("it is blank: say it in words")
    return text


When = Annotated[
    Moment,
    BeforeValidator(parse_time),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "maxLength": 64}]}),
]
"""Unix seconds. A body may also have a date or a time."""


def services_of(request: Request) -> Services:
    """The Services of the application that serves this request."""
    services: Services = request.app.state.services
    return services


def authorization_of(request: Request) -> str | None:
    """The header with the key, from any header that can have one; None for a call inside the process.

    Under an ASGI server other than the gateway's own, only `authorization` is read.
    """
    exchange: Exchange | None = request.scope.get("exchange")
    return request.headers.get("authorization") if exchange is None else exchange.authorization()


async def caller_of(request: Request) -> Caller:  # a coroutine, as all below: FastAPI runs the others in threads
    """The caller. Raises Problem (401; 403 if its role may not use the address)."""
    signed_in: Caller | None = request.scope.get(SIGNED_IN)
    path: str = request.scope["path"]
    if signed_in is not None:
        return admit(signed_in, path)
    return identify(services_of(request).snapshot.current.callers, authorization_of(request), time.time(), path)


ClientIdentified = Annotated[Caller, Depends(caller_of)]
"""The caller at an address of OpenAI's or Anthropic's API, whose clients send queries of their own."""

Reason = Annotated[
    str,
    Field(min_length=1, max_length=1000, description="Why, for the audit and for who looks."),
    AfterValidator(refuse_blank),
]


async def identified_of(request: Request, caller: ClientIdentified) -> Caller:
    """The caller. Raises Problem (401; 400 for an unknown parameter in the query)."""
    return _asked_rightly(request, caller)


def _let_in(*roles: Role) -> Callable[[Request, Caller], Awaitable[Caller]]:
    """The dependency that returns the caller, if it has one of these roles. It raises Problem (401, 403; 400 for an
    unknown parameter in the query)."""

    async def caller_with_role(request: Request, caller: ClientIdentified) -> Caller:
        return _asked_rightly(request, require(caller, *roles))

    return caller_with_role


def _asked_rightly(request: Request, caller: Caller) -> Caller:
    """The caller, if the endpoint knows all parameters of the query. Raises Problem (400)."""
    if not request.query_params:
        return caller
    route: APIRoute = request.scope["route"]
    parts = (route.dependant, *route.dependant.dependencies)
    parameters = [field.alias for part in parts for field in part.query_params]
    unknown = [name for name in request.query_params if name not in parameters]
    if unknown:
        takes = f"it takes {', '.join(parameters)}" if parameters else "it takes none"
        named = ", ".join(name[:80] for name in dict.fromkeys(unknown))
        raise Problem("unknown_parameter", f"The address has no parameter {named[:400]}: {takes}.", unknown[0][:80])
    return caller


admin_of = _let_in("admin")
operator_of = _let_in("operator", "admin")
reviewer_of = _let_in("reviewer", "operator", "admin")
sidecar_of = _let_in("sidecar", "operator", "admin")
ROLES_OF: Mapping[Callable[..., Awaitable[Caller]], tuple[Role, ...]] = MappingProxyType(
    {
        admin_of: ("admin",),
        operator_of: ("operator", "admin"),
        reviewer_of: ("reviewer", "operator", "admin"),
        sidecar_of: ("sidecar", "operator", "admin"),
    }
)
"""Roles that may call an endpoint, by its dependency, for /openapi.json."""
Identified = Annotated[Caller, Depends(identified_of)]
Admin = Annotated[Caller, Depends(admin_of)]
Operator = Annotated[Caller, Depends(operator_of)]
Reviewer = Annotated[Caller, Depends(reviewer_of)]
Sidecar = Annotated[Caller, Depends(sidecar_of)]


class Body(BaseModel):
    """A body of an admin call. Unknown fields are errors, and so are values of another type, such as "5" for 5."""

    model_config = ConfigDict(extra="forbid", strict=True)


def require_task(services: Services, task: str, *, param: str | None = "task", of: str | None = None) -> str:
    """The task. If the configuration does not have it, raises Problem (404) with the existing tasks. `of` is the thing
    that names the task, for the beginning of the message."""
    if task in services.settings.tasks:
        return task
    names = sorted(services.settings.tasks)
    more = len(names) - TASKS_TOLD_MAX
    there = ", ".join(names[:TASKS_TOLD_MAX]) + (f" and {more} more" if more > 0 else "")
    text = f"The configuration has no task {task[:80]!r}. It has {there or 'none'}."
    raise Problem("not_found", text if of is None else f"{of}: {text}", param)


def find_task(services: Services, task: str, *, param: str = "task") -> TaskPolicy:
    """The policy of the task. Raises Problem (404) as `require_task` does."""
    return services.snapshot.current.policy.tasks[require_task(services, task, param=param)]


def require_found(record: T | None, kind: str, name: str) -> T:
    """The record of this kind. Raises Problem (404) if no record has this name."""
    if record is None:
        raise Problem("not_found", f"There is no {kind} {name[:80]!r}, or it was removed.")
    return record


def see_that_list_has_task(services: Services, task: str | None, rows: Collection[Any]) -> None:
    """Raise Problem (404) if a task's list is empty and the task does not exist. A task that was removed from the
    configuration still lists its things."""
    if task is not None and not rows:
        require_task(services, task)


def see_that_it_reviews(caller: Caller, task: str) -> None:
    """Raise Problem (403) for a reviewer whose key is not for the task."""
    if not caller.reviews(task):
        raise Problem("role_required", f"This key does not review the task {task[:80]!r}.", "task")


async def find_version(services: Services, name: str) -> Version:
    """The present version. Raises Problem (404) and RedisError."""
    try:
        return await services.control.registry.version(name)
    except KeyError:
        raise Problem("not_found", f"There is no version {name[:80]!r}.") from None


async def require_version(services: Services, task: str, version: str) -> str:
    """The version. Raises Problem (404) if the task does not have it, or if it is retired."""
    require_task(services, task)
    entry = (await services.snapshot.refresh()).versions.get(version)
    if entry is None or entry.task != task or entry.state == "retired":
        raise Problem("not_found", f"{task} has no version {version[:80]!r}.", "version")
    return version


async def see_state(services: Services) -> tuple[Snapshot, bool]:
    """The present state and False; or, if Redis can't be reached, the state as last read and True."""
    try:
        async with asyncio.timeout(READ_SECONDS_MAX):
            return await services.snapshot.refresh(), False
    except (RedisError, OSError):
        return services.snapshot.current, True


class conflicts:  # noqa: N801 - reads as a verb where it is used
    """Translate conflicts with the state into a Problem (409)."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Stale):
            raise Problem("stale_generation", str(error)) from error
        if isinstance(error, RegistryError):
            raise Problem("state_conflict", str(error)) from error
