"""The Services: all that a gateway is made of. Built and torn down by app.py; the rooms' parts own their state."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import httpx
from redis.asyncio import Redis

from gateway.access_log import AccessLog
from gateway.callers import Caller
from gateway.configuration.settings import Settings
from gateway.deployment import Deployment, Prices
from gateway.features.evaluations.store import EvaluationStore
from gateway.features.fitting.samples import Samples
from gateway.features.quality.store import HealthStore, Monitored
from gateway.features.quality.webhooks import Webhooks
from gateway.features.releases.canaries import Rollouts
from gateway.features.releases.uploads import Uploads
from gateway.features.retraining.store import RetrainingStore
from gateway.features.reviews.queue import ReviewQueue
from gateway.features.reviews.store import ReviewStore
from gateway.features.rules.recent_bodies import Recent
from gateway.features.shadows.trials import Trials
from gateway.formats.request_body import RequestBody
from gateway.limits.admission import Admission
from gateway.limits.fallback_caps import FallbackCaps
from gateway.limits.limits import Limits
from gateway.limits.threads import Threads
from gateway.path.demands import Judging
from gateway.state.durability import Durability
from gateway.state.fitted import FittedStore
from gateway.state.outbox import LeftStore
from gateway.state.presence import Presence
from gateway.state.snapshot import SnapshotKeeper
from monitoring.audit import Audit
from monitoring.feedback import Coverage, FeedbackStore
from monitoring.flow import RecordFlow
from monitoring.ids import RequestIds
from monitoring.metrics import Meters
from monitoring.records import RecordBuffer, RecordStream
from router.decision import Choice, Moment
from router.policy import TaskPolicy
from serving.adapters.artifact import Base
from serving.adapters.reconcile import Reconciler
from serving.adapters.registry import Registry
from serving.adapters.store import Store
from serving.engine_client import EngineClient
from serving.fleet import Fleet
from serving.object_store import ObjectStore
from serving.stack import BaseStack, stack_of


@dataclass(frozen=True)
class Services:
    """What the gateway is made of. Frozen; each part owns its own state."""

    deployment: Deployment
    name: str
    redis: Redis
    durability: Durability
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
    fitted: FittedStore
    samples: Samples
    reconciler: Reconciler
    callers: ObjectStore
    limits: Limits
    fallback_caps: FallbackCaps
    overrides: ObjectStore
    cordons: ObjectStore
    health: HealthStore
    left: LeftStore
    """What is decided and yet to be carried out."""
    baselines: ObjectStore
    """What streams of versions are held against: a baseline a stream, by the version's name."""
    retraining: RetrainingStore
    webhooks: Webhooks
    monitored: Monitored
    recent: Recent
    records: RecordBuffer
    record_stream: RecordStream
    flow: RecordFlow
    feedback: FeedbackStore
    coverage: Coverage
    audit: Audit
    meters: Meters
    stacks: Mapping[str, BaseStack]
    presence: Presence
    judging: Judging
    trials: Trials
    reviews: ReviewStore
    rollouts: Rollouts
    uploads: Uploads
    evaluations: EvaluationStore
    threads: Threads
    stirred: asyncio.Event
    """Set by each new snapshot: the reconciling job looks at once."""
    accesses: AccessLog = field(default_factory=AccessLog)

    @property
    def settings(self) -> Settings:
        """The settings in force; a reload changes them."""
        return self.deployment.settings

    @property
    def prices(self) -> Prices:
        """What the pools cost."""
        return self.deployment.prices

    @property
    def pool_limits(self) -> Mapping[str, TaskPolicy]:
        """What one may ask of each pool that is named as the model."""
        return self.deployment.pool_limits

    @property
    def body_bytes_max(self) -> int:
        """Longest body of a request."""
        return self.deployment.body_bytes_max

    def body_bytes_max_at(self, path: str) -> int:
        """Longest body of a request to this address."""
        least = self.body_bytes_max
        return min(least, self.settings.limits.feedback_body_bytes_max) if path == "/v1/feedback" else least

    @property
    def review_queue(self) -> ReviewQueue:
        """What was drawn for review, on its way into Redis."""
        return self.trials.reviews

    def moment(self, now: float) -> Moment:
        """The time and the chance of one decision."""
        return Moment(now, time.time(), random.random(), self.fallback_caps.closed)  # noqa: S311 - a tie-break, not a secret

    def fit(self, body: RequestBody, choice: Choice, caller: Caller) -> None:
        """See that the choice allows what the caller asks, and fit the body to it. Raises Problem (400)."""
        salt = self.cache_salt(caller.public, choice.task)
        body.fit(choice, self.pool_limits[choice.pool.name], salt, caller.unknown_fields)

    def cache_salt(self, caller: str, task: TaskPolicy | None) -> str | None:
        """What keeps this caller's prompts apart from others' in an engine's cache; None where they are shared."""
        isolation = task.cache_isolation if task is not None else self.settings.cache_isolation
        return salt_of(self.digest_secret, caller) if isolation == "caller" else None

    def stack(self, choice: Choice) -> str:
        """The digest of all that is to answer this choice."""
        version = choice.version
        return stack_of(
            self.stacks[choice.pool.name],
            self.fleet.replicas[choice.replica.name].engine_version,
            version.digest if version else None,
            version.manifest_digest if version else None,
        )


@lru_cache(maxsize=4096)
def salt_of(secret: bytes, caller: str) -> str:
    """A caller's own salt of engines' prefix caches: nobody without the secret can make it, and it tells no name."""
    return hashlib.blake2b(caller.encode(), key=secret, digest_size=16, person=b"cache_salt").hexdigest()
