"""The House: all that a gateway is made of. Built and torn down by app.py; the rooms' parts own their state."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from redis.asyncio import Redis

from gateway.admin.uploads import Uploads
from gateway.admission import Admission
from gateway.duties.presence import Presence
from gateway.duties.rollouts import Rollouts
from gateway.duties.trials import Trials
from gateway.settings import Settings
from gateway.snapshot import SnapshotKeeper
from monitoring.audit import Audit
from monitoring.cost import Price
from monitoring.feedback import Coverage, FeedbackStore
from monitoring.ids import RequestIds
from monitoring.metrics import Meters
from monitoring.records import RecordBuffer, RecordStream
from router.choice import Choice, Moment
from router.policy import TaskPolicy
from serving.adapters.artifact import Base
from serving.adapters.reconcile import Reconciler
from serving.adapters.registry import Registry
from serving.adapters.store import Store
from serving.engine_client import EngineClient
from serving.fleet import Fleet
from serving.shelf import Shelf
from serving.stack import BaseStack, stack_of


@dataclass(frozen=True, slots=True)
class Prices:
    """What each pool's engines cost, and what a saving is measured against. None where no price is known."""

    by_pool: dict[str, Price | None]
    general: Price | None


@dataclass(frozen=True)
class House:
    """What the gateway is made of. Frozen; each part owns its own state."""

    settings: Settings
    name: str
    redis: Redis
    digest_secret: bytes
    ids: RequestIds
    admission: Admission
    snapshot: SnapshotKeeper
    fleet: Fleet
    bases: Mapping[str, Base]
    signers: Mapping[str, bytes]
    engines: EngineClient
    http: httpx.AsyncClient
    store: Store
    registry: Registry
    reconciler: Reconciler
    callers: Shelf
    overrides: Shelf
    cordons: Shelf
    records: RecordBuffer
    record_stream: RecordStream
    feedback: FeedbackStore
    coverage: Coverage
    audit: Audit
    meters: Meters
    prices: Prices
    stacks: Mapping[str, BaseStack]
    presence: Presence
    trials: Trials
    rollouts: Rollouts
    uploads: Uploads
    stirred: asyncio.Event
    """Set by each new snapshot: the reconciling duty looks at once."""
    pool_limits: TaskPolicy
    body_bytes_max: int

    def moment(self, now: float) -> Moment:
        """The time and the chance of one decision."""
        return Moment(now, time.time(), random.random())  # noqa: S311 - a tie-break, not a secret

    def stack(self, choice: Choice) -> str:
        """The digest of all that is to answer this choice."""
        version = choice.version
        return stack_of(
            self.stacks[choice.pool.name],
            self.fleet.replicas[choice.replica.name].engine_version,
            version.digest if version else None,
            version.manifest_digest if version else None,
        )
