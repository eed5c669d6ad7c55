"""The state of pulls: adapters on their way from a bucket, a hub or a registry into the store."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.features.pulls.store import Pull
from gateway.features.releases.releases import Releases
from gateway.services import Services
from gateway.state.audited_step import Drafts
from gateway.state.work_store import WorkStore


@dataclass(frozen=True)
class Pulls:
    """`store` keeps the pulls in Redis, `drafts` the audit entries of those that have ended."""

    services: Services
    releases: Releases
    store: WorkStore[Pull]
    drafts: Drafts
