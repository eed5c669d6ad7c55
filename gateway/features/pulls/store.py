"""The pulls of adapters, as they stand in Redis."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from gateway.state.work_store import Work, WorkStore


class Pull(Work, frozen=True, kw_only=True):
    """One pull. `digest` is the adapter's expected one (empty: any), `manifest` takes the place of the source's. At the
    end `source` is the immutable address, and `version` is there where it has not failed."""

    address: str
    pool: str | None
    digest: str
    manifest: dict[str, Any] | None
    owner: str | None
    source: str = ""
    version: str = ""
    created: bool = False
    left_out: tuple[str, ...] = ()


def make_pull_store(redis: Redis) -> WorkStore[Pull]:
    """The store of pulls."""
    return WorkStore(redis, "pulls", Pull, "the pull")
