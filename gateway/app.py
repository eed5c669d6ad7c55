"""The application: it builds the Services and the features in one place, and tears them down in reverse order."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from gateway import audit
from gateway.admin import fleet_endpoints, key_endpoints, reload, state_endpoints
from gateway.admin.audit_head_job import keep_audit_head, key_of
from gateway.background.jobs import Job, run_jobs
from gateway.callers import Caller, KnownKeys, identify
from gateway.configuration.base_models import read_bases
from gateway.configuration.settings import Settings
from gateway.console.routes import list_console_routes
from gateway.current_configuration import CurrentConfiguration, bounds_of, caps_of, configured_policy_of
from gateway.error_answers import add_error_answers
from gateway.errors import Problem, SettingsError, StateError
from gateway.feature import Feature, Features, make_stateless
from gateway.features.datasets.feature import DATASETS
from gateway.features.diagnosis import endpoints as diagnosis
from gateway.features.erasures.feature import ERASURES
from gateway.features.evaluations.feature import EVALUATIONS
from gateway.features.feedback import endpoints as feedback
from gateway.features.fine_tuning import endpoints as fine_tuning
from gateway.features.fine_tuning import file_endpoints
from gateway.features.fitting.feature import FITTING
from gateway.features.health import endpoints as health
from gateway.features.pulls.feature import PULLS
from gateway.features.quality.feature import QUALITY
from gateway.features.readiness.endpoints import READINESS
from gateway.features.records.append_file_rewrites import keep_rewriting
from gateway.features.records.archiving import keep_archiving
from gateway.features.records.flushing import open_flow
from gateway.features.releases.feature import RELEASES
from gateway.features.reported import endpoints as reported
from gateway.features.requests import count_tokens, model_list, route
from gateway.features.requests import endpoints as requests
from gateway.features.requests.search import SEARCHES
from gateway.features.retraining.feature import RETRAINING
from gateway.features.reviews.feature import REVIEWS
from gateway.features.rules import endpoints as rules
from gateway.features.shadows.feature import SHADOWS
from gateway.features.texts.feature import TEXTS
from gateway.features.tracing.feature import TRACING
from gateway.features.training.feature import TRAINING
from gateway.first_admin_key import make_first_admin_key
from gateway.fleet_health import check_health, find_replicas
from gateway.formats.answer_terms import TermsMaker
from gateway.formats.format_table import FORMATS
from gateway.formats.recent_bodies import RecentBodies
from gateway.gauges import read_gauges
from gateway.limits.admission import Admission
from gateway.limits.caller_limits import Limits
from gateway.limits.fallback_caps import FallbackCaps
from gateway.limits.gain_budgets import LiveGainBudgets
from gateway.limits.threads import Threads
from gateway.openapi import complete_document
from gateway.path.request_path import note_refused, walk
from gateway.roles import ADDRESSES
from gateway.server.adapter_uploads import UploadLimits, Uploads, has_own_body_limits
from gateway.server.asgi import answer_with, scope_of
from gateway.server.asgi_messages import Message, Receive, Scope, Send, bound_body, forbid_storing
from gateway.server.cors import make_preflight_routes
from gateway.server.durable_send import DurableSend
from gateway.server.exchange import Exchange
from gateway.server.listener import Answers
from gateway.service_jobs import SERVICE_JOBS
from gateway.services import Adapters, ControlPlane, Observers, PolicyObjects, Services
from gateway.sibling_processes import Siblings
from gateway.state.durability import Durability
from gateway.state.fitted_store import FittedStore
from gateway.state.presence import Presence
from gateway.state.private_files import make_private_folder
from gateway.state.redis import Lives, open_state, read_shared_secret
from gateway.state.snapshot import Snapshot, SnapshotKeeper, object_store_of
from monitoring.audit import Audit
from monitoring.feedback import STREAM_MAX as FEEDBACK_STREAM_MAX
from monitoring.feedback import Coverage, FeedbackStore
from monitoring.ids import RequestIds
from monitoring.metrics import Meters
from router.model_bytes import UnusableModel
from serving.adapters.base_model import Base
from serving.adapters.errors import ArtifactError
from serving.adapters.loader import AdapterLoader
from serving.adapters.reconcile import Reconciler
from serving.adapters.registry import Registry
from serving.adapters.signature import read_public_key
from serving.adapters.store import Store
from serving.discovery import Discovery
from serving.engine_client import EngineClient
from serving.fingerprint import UNKNOWN, BaseFingerprint, digest_chat_template
from serving.fleet import Fleet
from serving.object_store import ObjectStore
from serving.tls import FreshContext, TlsError, Trust, TrustingTransport

CRASHED_AFTER_SECONDS = 7200.0
"""Age of an incoming adapter's folder after which it counts as left behind by a gateway that died."""
READING = frozenset({"GET", "HEAD", "OPTIONS"})
MODELS = "/v1/models"
PROBES = frozenset({"/health", "/health/live", "/health/ready"})
FEATURES: tuple[Feature[Any], ...] = (
    make_stateless(health.router),
    TEXTS,
    make_stateless(requests.router, model_list.router, route.router, count_tokens.router),
    SEARCHES,
    make_stateless(reported.router),
    REVIEWS,
    make_stateless(feedback.router),
    RETRAINING,
    DATASETS,
    FITTING,
    EVALUATIONS,
    READINESS,
    make_stateless(diagnosis.router),
    RELEASES,
    PULLS,
    TRAINING,
    make_stateless(file_endpoints.router, fine_tuning.router),
    ERASURES,
    make_stateless(rules.router),
    SHADOWS,
    QUALITY,
    TRACING,
    make_stateless(jobs={"archive_records": keep_archiving, "rewrite_append_only_file": keep_rewriting}),
    make_stateless(
        *(key_endpoints.router, audit.router, fleet_endpoints.router, state_endpoints.router, reload.router),
        jobs={"keep_audit_head": keep_audit_head},
    ),
)
"""All features. A feature may use the state of the features above it."""
ROUTERS = tuple(router for feature in FEATURES for router in feature.routers)


class Gateway(FastAPI):
    """The application. Requests to the hot addresses go directly to the request path and never reach it."""

    def __init__(self, siblings: Siblings, **options: Any) -> None:
        super().__init__(**options)
        self.siblings = siblings
        self.state.not_started = ""
        self._openapi_json: bytes | None = None
        self._known_keys = KnownKeys()
        self.router.routes.append(Route("/openapi.json", self._document, methods=["GET"]))
        for path in FORMATS:
            self.router.routes.append(Route(path, _not_here, methods=["POST"]))

    def answer(self, exchange: Exchange) -> Answers:
        """The function that answers a request."""
        wire_format = FORMATS.get(exchange.path.decode("latin-1")) if exchange.method == "POST" else None
        if wire_format is None:
            return self._answer_cold
        return partial(walk, self.state.services, wire_format=wire_format)

    def identify(self, exchange: Exchange) -> Caller:
        """The caller whose key is in the request's head. Raises Problem (401)."""
        services: Services = self.state.services
        callers, header, now = services.snapshot.current.callers, exchange.key(), time.time()
        caller = self._known_keys.find(callers, header, now)
        if caller is None:
            caller = identify(callers, exchange.authorization(), now, exchange.path.decode("latin-1"))
            if caller.role not in ADDRESSES:  # those in ADDRESSES may use only some addresses
                self._known_keys.keep(header, caller, now)
        return caller

    def may_be_slow(self, exchange: Exchange) -> bool:
        """True if the endpoint limits the time of a request's body itself, as for uploads."""
        return has_own_body_limits(scope_of(exchange))

    def refused(self, exchange: Exchange, problem: Problem) -> None:
        """Note a request that was refused because of its head."""
        services: Services = self.state.services
        services.meters.refusals.add(1, problem.code)
        note_refused(services, exchange, problem)

    async def _answer_cold(self, exchange: Exchange) -> None:
        await answer_with(self, exchange, has_own_body_limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            services: Services = self.state.services
            send = forbid_storing(send)
            if not has_own_body_limits(scope):  # an upload has its own limits
                receive = bound_body(scope, receive, services.body_bytes_max_at(scope["path"]))
            if scope["method"] == "HEAD" and (scope["path"] in PROBES or scope["path"].startswith(MODELS)):
                scope = {**scope, "method": "GET"}  # the HTTP server leaves out the body
            elif scope["method"] not in READING and scope["path"].startswith("/admin/"):
                send = DurableSend(
                    services.durability, send, services.meters.refusals, services.control.siblings.catch_up
                )
        elif scope["type"] == "lifespan":
            send = self._without_trace(send)
        await super().__call__(scope, receive, send)

    async def _document(self, _: Request) -> Response:
        if self._openapi_json is None:
            self._openapi_json = json.dumps(self.openapi(), ensure_ascii=False).encode()
        return Response(self._openapi_json, media_type="application/json")

    def openapi(self) -> dict[str, Any]:
        """The document at /openapi.json."""
        if self.openapi_schema is None:
            routes = [route for router in ROUTERS for route in router.routes]
            self.openapi_schema = complete_document(super().openapi(), routes)
        return self.openapi_schema

    def _without_trace(self, send: Send) -> Send:
        """`send`, but a failed start that the user can fix is reported as one sentence instead of a stack trace."""

        async def send_sentence(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and self.state.not_started:
                message = {**message, "message": self.state.not_started}
            await send(message)

        return send_sentence


async def _not_here(request: Request) -> Response:
    """The answer to a hot address in another spelling, as with `%2F`: that is another address, which does not exist."""
    raise HTTPException(404)


def build_app(
    settings: Settings,
    config: Path | None = None,
    siblings: Siblings | None = None,
    bases: Mapping[str, Base] | None = None,
) -> Gateway:
    """The application for these settings. Its lifespan builds the Services and tears it down.

    `config` is the settings' file, if a reload can read one. `siblings` are the other processes. `bases` are the base
    models of its pools, if they were read already.
    """
    siblings = siblings or Siblings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                services, features = await stack.enter_async_context(open_gateway(settings, config, siblings, bases))
            except (StateError, SettingsError, ArtifactError, UnusableModel, RedisError, TlsError, OSError) as error:
                app.state.not_started = str(error)
                raise
            app.state.services, app.state.features = services, features
            yield

    app = Gateway(
        siblings,
        title="Apprentice",
        version=installed_version("apprentice-gateway"),
        summary="Routes each request between a fine-tuned adapter and a general model, and watches both.",
        lifespan=lifespan,
        openapi_url=None,  # FastAPI would encode it again for each request
        docs_url=None,  # these pages load scripts from other sites
        redoc_url=None,
        redirect_slashes=False,  # a redirect makes clients send a body twice or not at all: a 404 is better
    )
    add_error_answers(app)
    # Do not use `include_router`: it analyses each endpoint again for each application, at its first request.
    app.router.routes += [route for router in ROUTERS for route in router.routes]
    app.router.routes += [
        *make_preflight_routes(settings.listen.cors_origin),
        *list_console_routes(app, settings.console),
    ]
    return app


@asynccontextmanager
async def open_gateway(
    settings: Settings,
    config: Path | None = None,
    siblings: Siblings | None = None,
    bases: Mapping[str, Base] | None = None,
) -> AsyncIterator[tuple[Services, Features]]:
    """Build the services, then each feature, and run all background jobs. Raises StateError or SettingsError."""
    async with open_services(settings, config, siblings or Siblings(), bases) as services:
        features = Features()
        jobs: dict[str, Job] = {name: partial(job, services) for name, job in SERVICE_JOBS.items()}
        for feature in FEATURES:
            jobs |= feature.start(services, features)
        await _prepare_to_serve(services)
        async with run_jobs(jobs, services.snapshot):
            yield services, features


@asynccontextmanager
async def open_services(
    settings: Settings, config: Path | None, siblings: Siblings, bases: Mapping[str, Base] | None
) -> AsyncIterator[Services]:
    """Build the services that all features share, and tear them down in reverse. Raises StateError or SettingsError."""
    configuration = CurrentConfiguration(settings, siblings.part_of, config)
    settings = configuration.settings
    bases = read_bases(settings.pools) if bases is None else bases
    async with AsyncExitStack() as stack:
        redis, durability, lives = await stack.enter_async_context(_open_state(settings))
        digest_secret = await read_shared_secret(redis)
        meters, fleet = Meters(settings.series_max), Fleet(settings.pool_configs(), siblings.memory)
        http, engines, certificates = await stack.enter_async_context(_open_clients(settings, fleet))
        store, registry, fingerprints = Store(settings.store), Registry(redis), _base_fingerprints(settings, bases)
        taking = {pool: fingerprints[pool] for pool in bases}
        loader = AdapterLoader(fleet, redis, store, taking, http, engines, meters.note_adapter_load)
        reconciler = Reconciler(fleet, registry, loader)
        audit, snapshot_changed = Audit(redis), asyncio.Event()
        note, recent = siblings.note_generation, RecentBodies(settings.records.recent_bytes_max)
        siblings.answers["bodies"] = recent.tell
        use_snapshot = lambda current: note(_use_snapshot(current, fleet, reconciler, meters, snapshot_changed))  # noqa: E731
        snapshot = await _snapshot_keeper(settings, redis, audit, use_snapshot, meters, registry, lives)
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        limits, coverage = Limits(redis, name, bounds_of(settings), meters, settings.limits), Coverage()
        flow = await stack.enter_async_context(open_flow(settings, name, redis, meters, coverage))
        control = ControlPlane(
            siblings=siblings,
            registry=registry,
            fitted=FittedStore(redis),
            adapters=_adapters(settings, bases, store, reconciler, snapshot_changed),
            audit=audit,
            presence=Presence(redis, name, fleet, lambda: snapshot.current.generation),
            discovery=await stack.enter_async_context(Discovery()),
            http=http,
            certificates=certificates,
        )
        yield Services(
            control=control,
            configuration=configuration,
            name=name,
            digest_secret=digest_secret,
            ids=RequestIds(digest_secret),
            redis=redis,
            durability=durability,
            snapshot=snapshot,
            objects=PolicyObjects(
                callers=object_store_of(redis, "callers"),
                overrides=object_store_of(redis, "overrides"),
                cordons=ObjectStore(redis, "cordons"),
                baselines=ObjectStore(redis, "baselines"),
            ),
            fleet=fleet,
            engines=engines,
            fingerprints=fingerprints,
            admission=Admission(settings.limits, meters, lambda pool: fleet.has_room(pool, time.monotonic())),
            limits=limits,
            fallback_caps=FallbackCaps(caps_of(settings), settings.limits.general_share_window_seconds, limits),
            gain_budgets=LiveGainBudgets(),
            threads=stack.enter_context(Threads()),
            terms=TermsMaker(),
            observers=Observers(),
            recent=recent,
            flow=flow,
            feedback=feedback_of(configuration, redis),
            coverage=coverage,
            meters=meters,
        )


def _adapters(
    settings: Settings, bases: Mapping[str, Base], store: Store, reconciler: Reconciler, snapshot_changed: asyncio.Event
) -> Adapters:
    signers = {name: read_public_key(key) for name, key in settings.signing.trusted.items()}
    uploads = Uploads(store.folder, upload_limits_of(settings))
    return Adapters(bases, MappingProxyType(signers), store, uploads, reconciler, snapshot_changed)


async def _prepare_to_serve(services: Services) -> None:
    """Remove the remains of a crash, and read all state needed for serving. Raises RedisError and SettingsError."""
    if services.settings.audit.head_key_file is not None:
        await asyncio.to_thread(key_of, services.settings.audit)
    read_gauges(services)
    await asyncio.to_thread(services.control.adapters.store.sweep, CRASHED_AFTER_SECONDS, time.time())
    await services.snapshot.refresh()
    await services.fallback_caps.begin()
    await find_replicas(services)
    await check_health(services)


@asynccontextmanager
async def _open_clients(
    settings: Settings, fleet: Fleet
) -> AsyncIterator[tuple[httpx.AsyncClient, EngineClient, list[FreshContext]]]:
    """The clients for engines, of the control plane and of requests, with their certificates. Raises TlsError."""
    to_come = [pool.discovered.template for pool in settings.pool_configs() if pool.discovered is not None]
    trust = Trust(lambda: [(each.url, each.tls) for each in (*(it.config for it in fleet.replicas.values()), *to_come)])
    limits = settings.limits
    async with (
        httpx.AsyncClient(trust_env=False, transport=TrustingTransport(trust)) as http,
        EngineClient(limits.connect_timeout_seconds, limits.answer_bytes_max, trust.context_for) as engines,
    ):
        yield http, engines, trust.contexts


@asynccontextmanager
async def _open_state(settings: Settings) -> AsyncIterator[tuple[Redis, Durability, Lives]]:
    """The checked connection to Redis. Raises StateError if Redis can't be reached, or may drop state."""
    redis_url = settings.redis_address()
    if settings.redis_tls is not None:
        settings.redis_tls.files().context()  # names the faulty file, which redis-py does not
    _make_data_folder(settings.data_folder)
    lives, limits = Lives(settings.read_redis_password, settings.read_sentinel_password), settings.redis
    async with open_state(redis_url, settings.data_folder, lives) as redis:
        durability = Durability(redis, lives, limits.replicas_acked_min, limits.acked_timeout_seconds)
        await durability.begin()
        await lives.stay_with(redis)
        try:
            yield redis, durability, lives
        finally:
            await durability.close()


def _make_data_folder(folder: Path) -> None:
    """Make the folder. Raises StateError if this process can't write there."""
    cause = None
    try:
        make_private_folder(folder)
    except OSError as error:
        cause = error
    if cause is not None or not os.access(folder, os.W_OK | os.X_OK):
        why = f" ({cause.strerror})" if cause else ""
        text = f"data_folder {folder} can't be written{why}: give it to this user, or name another."
        raise StateError(text) from cause


async def _snapshot_keeper(
    settings: Settings,
    redis: Redis,
    audit: Audit,
    changed: Callable[[Snapshot], None],
    meters: Meters,
    registry: Registry,
    lives: Lives,
) -> SnapshotKeeper:
    """The keeper of the policy in memory. If the settings name MiniLM's file, it is loaded here, before the first
    request, since that blocks the interpreter. Raises UnusableModel if it is missing or damaged."""
    fixed = await make_first_admin_key(settings, redis, audit)
    path, deep = settings.fitting.minilm_file, None
    if path is not None:
        from router.embedding import load_deep  # noqa: PLC0415 - numpy and 12 MB, where a file is named

        deep = await asyncio.to_thread(load_deep, path)
    damaged = lambda _: meters.fitted_unused.add(1, "damaged")  # noqa: E731
    unsuited = lambda _: meters.fitted_unused.add(1, "unsuited")  # noqa: E731
    configured = configured_policy_of(settings)
    return SnapshotKeeper(redis, configured, fixed, changed, damaged, deep, unsuited, registry, lives)


def feedback_of(configuration: CurrentConfiguration, redis: Redis) -> FeedbackStore:
    """The store of feedback, with its bounds. A reload changes the keys of its words."""
    keep = configuration.settings.records
    words = lambda: configuration.words  # noqa: E731
    return FeedbackStore(redis, keep.retention_seconds, FEEDBACK_STREAM_MAX, keep.request_feedback_bytes_max, words)


def upload_limits_of(settings: Settings) -> UploadLimits:
    """Limits of uploads."""
    limits = settings.limits
    prompts = settings.fitting.prompts_bytes_max
    return UploadLimits(limits.adapter_bytes_max, limits.uploads_max, prompts_bytes_max=prompts)


def _base_fingerprints(settings: Settings, bases: Mapping[str, Base]) -> Mapping[str, BaseFingerprint]:
    return MappingProxyType(
        {
            name: BaseFingerprint(
                bases[name].fingerprint if name in bases else pool.base_fingerprint or UNKNOWN,
                digest_chat_template(pool.base_folder) if pool.base_folder else UNKNOWN,
            )
            for name, pool in settings.pools.items()
        }
    )


def _use_snapshot(
    snapshot: Snapshot, fleet: Fleet, reconciler: Reconciler, meters: Meters, changed: asyncio.Event
) -> int:
    """Make all parts use a new snapshot. Returns its generation."""
    fleet.know(snapshot.views, snapshot.cordons)
    for replica in fleet.replicas.values():
        reconciler.adopt(replica, snapshot.versions, snapshot.placements)
    changed.set()
    meters.expect(snapshot.policy.tasks)
    meters.forget(*(name for name, version in snapshot.versions.items() if version.state == "retired"))
    meters.keep_callers(snapshot.callers)
    return snapshot.generation
