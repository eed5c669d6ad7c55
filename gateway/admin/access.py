"""What every admin endpoint is made of: who may, what a body is, what the state does not allow."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field

from gateway.callers import Caller, require
from gateway.endpoints import caller_of
from gateway.errors import Problem
from serving.adapters.registry import RegistryError
from serving.shelf import Stale

OBJECTS_MAX = 1000
Short = Annotated[str, Field(max_length=256)]


def admin_of(caller: Annotated[Caller, Depends(caller_of)]) -> Caller:
    """The caller, if it is an admin. Raises Problem (401, 403)."""
    return require(caller, "admin")


def operator_of(caller: Annotated[Caller, Depends(caller_of)]) -> Caller:
    """The caller, if it is an operator or an admin. Raises Problem (401, 403)."""
    return require(caller, "operator", "admin")


Admin = Annotated[Caller, Depends(admin_of)]
Operator = Annotated[Caller, Depends(operator_of)]


class Body(BaseModel):
    """A body of an admin call: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class conflicts:  # noqa: N801 - reads as a verb where it is used
    """Translate what the state does not allow into a 409."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Stale):
            raise Problem("stale_generation", str(error)) from error
        if isinstance(error, RegistryError):
            raise Problem("state_conflict", str(error)) from error
