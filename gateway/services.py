"""The services that requests and features share. app.py builds them and tears them down; each part owns its state."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import httpx
from redis.asyncio import Redis

from gateway.access_log import AccessLog
from gateway.background.lease import LEASE_SECONDS, JobLease, JobPasses
from gateway.callers import Caller
from gateway.configuration.settings import Settings
from gateway.current_configuration import CurrentConfiguration, Prices
from gateway.formats.answer_reading import Reading
from gateway.formats.answer_terms import TermsMaker
from gateway.formats.conversation_texts import AnsweredRequest
from gateway.formats.recent_bodies import RecentBodies
from gateway.formats.request_body import RequestBody
from gateway.limits.admission import Admission
from gateway.limits.caller_limits import Limits
from gateway.limits.fallback_caps import FallbackCaps
from gateway.limits.gain_budgets import LiveGainBudgets
from gateway.limits.threads import Threads
from gateway.server.adapter_uploads import Uploads
from gateway.sibling_processes import Siblings
from gateway.state.audited_step import AuditedStep
from gateway.state.durability import Durability
from gateway.state.fitted_store import FittedStore
from gateway.state.presence import Presence
from gateway.state.snapshot import SnapshotKeeper
from monitoring.audit import Audit
from monitoring.feedback import Coverage, FeedbackStore
from monitoring.ids import RequestIds
from monitoring.metrics import Meters
from monitoring.record_flow import RecordFlow
from monitoring.records import Record
from monitoring.texts import Resealing
from monitoring.trace_context import TraceContext
from router.policy import Policy, TaskPolicy
from router.routing_data import Choice, Moment
from serving.adapters.base_model import Base
from serving.adapters.reconcile import Reconciler
from serving.adapters.registry import Registry
from serving.adapters.store import Store
from serving.discovery import Discovery
from serving.engine_client import EngineClient
from serving.fingerprint import BaseFingerprint, compute_fingerprint
from serving.fleet import Fleet
from serving.object_store import ObjectStore
from serving.tls import FreshContext

FEEDBACK_PATH = "/v1/feedback"
"""The address whose bodies have a limit of their own, and whose refused bodies count against the key's."""


def _nothing(*_: Any) -> None:
    """The part of an observer that has nothing to do there."""


class ObservedAnswer(Protocol):
    """An answer as observers read it: `parts` are what was sent, where one of them watches, and `reading` what a
    rejected one says; one that is `judged_whole` was rejected after its end."""

    choice: Choice
    parts: list[bytes] | None
    reading: Reading | None
    judged_whole: bool

    @property
    def mixed(self) -> bool:
        """True if a part of the answer is another model's."""
        ...

    def make_answered_request(self, record: Record, body: RequestBody) -> AnsweredRequest | None:
        """The request with its answer as sent; None if the answer was not kept."""
        ...


class ObservedLedger(Protocol):
    """The unfinished record of a request, and its rejected answer: version and text."""

    record: Record
    turned_down: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class RequestObserver:
    """A feature that follows requests on their path. No request waits for it.

    `draw` may select the request for the feature, after its destination is chosen. `watches` returns True if the
    feature needs the answer's text: `answered` gets it after it was sent. `rejected` gets an answer that a check
    rejected. `draw` and `answered` may write their own fields of the record, which is closed after them. An observer
    that raises before the commit fails the request.
    """

    watches: Callable[[Policy, Choice, Record], bool]
    answered: Callable[[Policy, RequestBody, ObservedAnswer, ObservedLedger], None]
    rejected: Callable[[Policy, RequestBody, ObservedAnswer, ObservedLedger], None] = _nothing
    draw: Callable[[Policy, Choice, Record], None] = _nothing


class TracedLedger(Protocol):
    """The record and body of a request that has ended, with the times of its steps on the monotonic clock."""

    record: Record
    body: RequestBody | None
    started_at: float
    score_began_at: float | None
    scored_at: float | None
    chosen_at: float | None
    attempts_began_at: list[float]
    committed_at: float | None
    waited_seconds: float
    first_reason: str | None
    fallback_from: str | None


class RequestTracing(Protocol):
    """A feature that makes spans of requests. The path notes times; the spans are made when a request has ended."""

    def begin(self, request_id: str, traceparent: str | None) -> TraceContext | None:
        """Return the request's place in its caller's trace or in a new one; None if it is not sampled."""
        ...

    def end(self, ledger: TracedLedger, trace: TraceContext, now: float) -> None:
        """Make the spans of a request that has ended."""
        ...


class Observers(list[RequestObserver]):
    """All observers of requests, in the order of the table of features."""

    tracing: RequestTracing | None = None

    def watch(self, policy: Policy, answer: ObservedAnswer, record: Record) -> list[RequestObserver]:
        """Return the observers that need the text of an answer. Its parts are kept if there are any."""
        watching = [observer for observer in self if observer.watches(policy, answer.choice, record)]
        answer.parts = [] if watching else None
        return watching


@dataclass(frozen=True)
class PolicyObjects:
    """Versioned objects in Redis that admins set, other than those of the registry."""

    callers: ObjectStore
    overrides: ObjectStore
    cordons: ObjectStore
    baselines: ObjectStore
    """The baselines of each version's signals, by the version's name."""


@dataclass(frozen=True)
class Adapters:
    """The parts that accept adapters, store their bytes and load them. `bases` are base models by pool."""

    bases: Mapping[str, Base]
    signers: Mapping[str, bytes]
    store: Store
    uploads: Uploads
    reconciler: Reconciler
    snapshot_changed: asyncio.Event
    """Set by each new snapshot, so that the reconciling job looks at once."""


@dataclass(frozen=True)
class ControlPlane:
    """All parts that change or maintain serving. Admins' endpoints and background jobs use them, requests do not."""

    siblings: Siblings
    registry: Registry
    fitted: FittedStore
    adapters: Adapters
    audit: Audit
    presence: Presence
    discovery: Discovery
    http: httpx.AsyncClient
    certificates: list[FreshContext]
    """The certificates for engines and for the gateway's own listeners."""
    passes: JobPasses = field(default_factory=JobPasses)
    resealing: list[Callable[[Resealing], Awaitable[None]]] = field(default_factory=list)
    """Functions that seal again the data which a feature keeps under a former key of texts."""


@dataclass(frozen=True)
class Services:
    """All parts that requests and features share. Frozen; each part owns its state. No feature has a field here."""

    control: ControlPlane

    # What is configured, and who this gateway is
    configuration: CurrentConfiguration
    name: str
    digest_secret: bytes
    ids: RequestIds
    # State in Redis
    redis: Redis
    durability: Durability
    snapshot: SnapshotKeeper
    objects: PolicyObjects
    # Engines
    fleet: Fleet
    engines: EngineClient
    fingerprints: Mapping[str, BaseFingerprint]
    # Limits
    admission: Admission
    limits: Limits
    fallback_caps: FallbackCaps
    gain_budgets: LiveGainBudgets
    threads: Threads
    # Answers, and what is kept of them
    terms: TermsMaker
    observers: Observers
    recent: RecentBodies
    flow: RecordFlow
    feedback: FeedbackStore
    coverage: Coverage
    meters: Meters
    accesses: AccessLog = field(default_factory=AccessLog)

    @property
    def settings(self) -> Settings:
        """The present settings. A reload changes them."""
        return self.configuration.settings

    @property
    def prices(self) -> Prices:
        """The prices of the pools."""
        return self.configuration.prices

    def body_bytes_max_at(self, path: str) -> int:
        """Longest body of a request to this address."""
        limits = self.settings.limits
        is_feedback = path == FEEDBACK_PATH
        return min(limits.body_bytes_max, limits.feedback_body_bytes_max) if is_feedback else limits.body_bytes_max

    def moment(self, now: float) -> Moment:
        """The time, the random draw, and the closed fallbacks and budgets for one decision."""
        draw = random.random()  # noqa: S311 - a tie-break, not a secret
        return Moment(now, time.time(), draw, self.fallback_caps.closed, self.gain_budgets.by_version)

    def hold_to_choice(self, body: RequestBody, choice: Choice, caller: Caller) -> None:
        """Check the body against what the choice allows, and set its cache salt. Raises Problem (400)."""
        salt = self.cache_salt(caller.public, choice.task)
        body.hold_to(choice, self.configuration.pool_limits[choice.pool.name], salt, caller.unknown_fields)

    def cache_salt(self, caller: str, task: TaskPolicy | None) -> str | None:
        """The salt that separates a caller's prompts in an engine's cache; None if callers share the cache."""
        isolation = task.cache_isolation if task is not None else self.settings.cache_isolation
        return salt_of(self.digest_secret, caller) if isolation == "caller" else None

    def keep_record(self, record: Record) -> None:
        """Queue a closed record for Redis. If the queue is full, the record is dropped and counted."""
        if not self.flow.buffer.put(record):
            self.meters.records_dropped.add(1)

    def lease_job(self, job: str, lease_seconds: float = LEASE_SECONDS, key_suffix: str = "") -> JobLease:
        """This gateway's lease of a background job. `key_suffix` separates jobs that each data folder has."""
        return JobLease(self.redis, self.snapshot, self.control.passes, job, self.name, lease_seconds, key_suffix)

    def begin_step(self, actor: str) -> AuditedStep:
        """A change by this actor (a caller's public id, or `system`), in one step with its audit entries. All changes
        under /admin use one."""
        return AuditedStep(self.redis, self.control.audit, actor)

    async def renew_certificates(self) -> list[str]:
        """Read certificates whose files have changed, for new connections. Return the faults of those that failed."""
        faults = [await asyncio.to_thread(certificate.renew) for certificate in self.control.certificates]
        return [fault for fault in faults if fault]

    def get_fingerprint(self, choice: Choice) -> str:
        """The fingerprint of this choice: adapter, manifest, base, engine build and chat template."""
        version = choice.version
        return compute_fingerprint(
            self.fingerprints[choice.pool.name],
            self.fleet.replicas[choice.replica.name].engine_version,
            version.digest if version else None,
            version.manifest_digest if version else None,
        )


@lru_cache(maxsize=4096)
def salt_of(secret: bytes, caller: str) -> str:
    """A caller's own salt for engines' prefix caches. Only the secret can make it, and it does not reveal the name."""
    return hashlib.blake2b(caller.encode(), key=secret, digest_size=16, person=b"cache_salt").hexdigest()
