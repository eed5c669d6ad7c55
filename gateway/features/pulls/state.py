"""The state of pulls: adapters that are fetched from a bucket, a hub or a registry into the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.features.releases.state import Releases
from gateway.services import Services
from gateway.state.work_store import Work, WorkStore


class Pull(Work, frozen=True, kw_only=True):
    """One pull. `digest` is the adapter's expected digest (empty: any); `manifest` replaces the source's. At the end
    `source` is the immutable address, and `version` is set if the pull succeeded."""

    address: str
    pool: str | None
    digest: str
    manifest: dict[str, Any] | None
    owner: str | None
    source: str = ""
    version: str = ""
    created: bool = False
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pulls:
    """`store` keeps the pulls in Redis."""

    services: Services
    releases: Releases
    store: WorkStore[Pull]
