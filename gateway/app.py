"""Builds the House in one place, tears it down in reverse, and puts the application around it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version as installed_version
from types import MappingProxyType
from typing import Any

import httpx
from fastapi import FastAPI
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.routing import Route

from gateway import endpoints
from gateway.admin import adapters, aliases, audit, fleet, keys, overrides, state, store_files
from gateway.admin.uploads import UploadLimits, Uploads, is_upload
from gateway.admission import Admission
from gateway.callers import Caller, digest_of, new_key, split_key
from gateway.duties.health import check_health
from gateway.duties.presence import Presence
from gateway.duties.rollouts import Rollouts
from gateway.duties.rota import on_duty
from gateway.duties.trials import Trials
from gateway.gauges import read_gauges
from gateway.house import House, Prices
from gateway.request_body import Endpoint
from gateway.request_path import walk
from gateway.settings import Settings
from gateway.snapshot import Deployed, Snapshot, SnapshotKeeper
from gateway.state import StateError, open_state, shared_secret
from gateway.wire import Call, Message, Receive, Scope, Send, bounded
from monitoring.audit import Audit
from monitoring.feedback import STREAM_KEY as FEEDBACK_STREAM_KEY
from monitoring.feedback import Coverage, FeedbackStore
from monitoring.ids import RequestIds
from monitoring.metrics import Meters
from monitoring.records import RecordBuffer, RecordStream, flush_until
from router.policy import TaskPolicy
from serving.adapters.artifact import ArtifactError, Base, read_base
from serving.adapters.placer import Placer
from serving.adapters.reconcile import Reconciler
from serving.adapters.registry import Registry
from serving.adapters.signature import read_public_key
from serving.adapters.store import Store
from serving.engine_client import HttptoolsEngineClient
from serving.fleet import Fleet
from serving.shelf import Shelf
from serving.stack import UNKNOWN, BaseStack, chat_template_of

log = logging.getLogger(__name__)
FEEDBACK_STREAM_MAX = 1_000_000
CRASHED_AFTER_SECONDS = 7200.0
"""An adapter that has been coming in for so long, by its folder's time, was left behind by a gateway that died."""
HOT: Mapping[str, Endpoint] = MappingProxyType({"/v1/chat/completions": "chat", "/v1/completions": "completions"})


class Hot:
    """A hot endpoint: plain ASGI, without dependency injection, response models or middleware."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await walk(scope["app"].state.house, Call(scope, receive, send), self._endpoint)


class Gateway(FastAPI):
    """The application. Its hot endpoints are routes like others, but found before FastAPI's middleware and router."""

    def __init__(self, body_bytes_max: int, **options: Any) -> None:
        super().__init__(**options)
        self.body_bytes_max = body_bytes_max
        self.state.not_started = ""
        self.hot: Mapping[str, Hot] = MappingProxyType({path: Hot(endpoint) for path, endpoint in HOT.items()})
        for path, endpoint in self.hot.items():
            self.router.routes.append(Route(path, endpoint, methods=["POST"]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self.hot.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if endpoint is None:
            if scope["type"] == "http" and not is_upload(scope):  # an upload has limits of its own
                receive = bounded(scope, receive, self.body_bytes_max)
            elif scope["type"] == "lifespan":
                send = self._without_trace(send)
            await super().__call__(scope, receive, send)
        else:
            scope["app"] = self
            await endpoint(scope, receive, send)

    def _without_trace(self, send: Send) -> Send:
        """`send`, but telling what the user can mend about a failed start as one sentence instead of a trace."""

        async def send_sentence(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and self.state.not_started:
                message = {**message, "message": self.state.not_started}
            await send(message)

        return send_sentence


def build_app(settings: Settings) -> Gateway:
    """The application for these settings. Its lifespan builds the House and tears it down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                house = await stack.enter_async_context(open_house(settings))
            except (StateError, ArtifactError, RedisError, OSError) as error:
                app.state.not_started = str(error)
                raise
            app.state.house = house
            _freeze_garbage()
            yield

    app = Gateway(
        settings.limits.body_bytes_max,
        title="Apprentice",
        version=installed_version("apprentice-gateway"),
        summary="Routes each request between a fine-tuned adapter and a general model, and watches both.",
        lifespan=lifespan,
        openapi_url="/openapi.json",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    endpoints.add_to(app)
    for part in (overrides, keys, audit, adapters, aliases, fleet, state, store_files):
        app.include_router(part.router)
    return app


@asynccontextmanager
async def open_house(settings: Settings) -> AsyncIterator[House]:
    """Build the House, room by room, and take up its duties. Raises StateError or SettingsError."""
    bases = _bases(settings)
    async with AsyncExitStack() as stack:
        redis_url = settings.redis_url.get_secret_value() if settings.redis_url else None
        redis = await stack.enter_async_context(open_state(redis_url, settings.data_folder))
        digest_secret = await shared_secret(redis)
        fixed = await _fixed_callers(settings, redis)
        meters = Meters(settings.series_max)
        fleet = Fleet(settings.pool_configs())
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        engines = await stack.enter_async_context(
            HttptoolsEngineClient(settings.limits.connect_timeout_seconds, settings.limits.answer_bytes_max)
        )
        store = Store(settings.store)
        registry = Registry(redis)
        stacks = _stacks(settings, bases)
        ours = {pool: stacks[pool] for pool in bases}
        told = lambda pool, seconds: meters.adapter_load_seconds.observe(seconds, pool)  # noqa: E731
        reconciler = Reconciler(fleet, registry, Placer(fleet, redis, store, ours, http, told))
        records, audit = _record_stream(settings, redis), Audit(redis)
        stirred = asyncio.Event()
        snapshot = SnapshotKeeper(
            redis, _deployed(settings), fixed, lambda found: _take_in(found, fleet, reconciler, meters, stirred)
        )
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        house = House(
            settings=settings,
            name=name,
            redis=redis,
            digest_secret=digest_secret,
            ids=RequestIds(digest_secret),
            admission=Admission(settings.limits.in_flight_max),
            snapshot=snapshot,
            fleet=fleet,
            bases=bases,
            signers=MappingProxyType({name: read_public_key(key) for name, key in settings.signing.trusted.items()}),
            engines=engines,
            http=http,
            store=store,
            registry=registry,
            reconciler=reconciler,
            callers=Shelf(redis, "callers"),
            overrides=Shelf(redis, "overrides"),
            cordons=Shelf(redis, "cordons"),
            records=RecordBuffer(settings.records.pending_max),
            record_stream=records,
            feedback=FeedbackStore(redis, settings.records.retention_seconds, FEEDBACK_STREAM_MAX),
            coverage=Coverage(),
            audit=audit,
            meters=meters,
            prices=_prices(settings),
            stacks=stacks,
            presence=Presence(redis, name, fleet, lambda: snapshot.current.generation),
            trials=Trials(),
            rollouts=Rollouts(redis, digest_secret, registry, records, settings.feedback_metrics, audit, meters),
            uploads=Uploads(store.folder, UploadLimits(settings.limits.adapter_bytes_max, settings.limits.uploads_max)),
            stirred=stirred,
            pool_limits=TaskPolicy("", None, max_tokens_max=settings.limits.pool_max_tokens_max),
            body_bytes_max=settings.limits.body_bytes_max,
        )
        read_gauges(house)
        await asyncio.to_thread(store.sweep, CRASHED_AFTER_SECONDS, time.time())
        await snapshot.refresh()
        await check_health(house)
        stack.push_async_callback(_flush_last, house)
        await stack.enter_async_context(on_duty(house))
        yield house


def _record_stream(settings: Settings, redis: Redis) -> RecordStream:
    keep = settings.records
    return RecordStream(
        redis, keep.retention_seconds, keep.stream_records_max, FEEDBACK_STREAM_KEY, FEEDBACK_STREAM_MAX
    )


async def _flush_last(house: House) -> None:
    left = await flush_until(house.records, house.record_stream, lambda _: None, time.monotonic() + 10)
    if left:
        log.error("%d records could not be stored before the stop", left)


async def _fixed_callers(settings: Settings, redis: Redis) -> dict[str, Caller]:
    """The admin key of the settings; without one, the first start makes one and prints it, this once."""
    if settings.admin_key is not None:
        parts = split_key(settings.admin_key.get_secret_value())
        assert parts is not None, "Settings has seen to it"
        return {parts[0]: Caller(parts[0], "admin", "admin", digest_of(parts[1]), frozenset({"*"}))}
    callers = Shelf(redis, "callers")
    if not any(raw["role"] == "admin" for raw in (await callers.all()).values()):
        key, public, digest = new_key()
        await callers.put(public, Caller(public, "first admin", "admin", digest, frozenset({"*"})).to_json(), 0)
        print(f"The first admin key, shown this once: {key}", flush=True)  # noqa: T201 - never into the log
    return {}


def _deployed(settings: Settings) -> Deployed:
    tasks = {name: task.policy(name) for name, task in settings.tasks.items()}
    pools = frozenset(name for name, pool in settings.pools.items() if pool.callable)
    return Deployed(MappingProxyType(tasks), pools, settings.limits.attempts())


def _bases(settings: Settings) -> Mapping[str, Base]:
    """The base model of each pool that takes adapters."""
    return MappingProxyType(
        {
            name: read_base(pool.base_folder, pool.base_fingerprint)
            for name, pool in settings.pools.items()
            if pool.base_folder is not None
        }
    )


def _stacks(settings: Settings, bases: Mapping[str, Base]) -> Mapping[str, BaseStack]:
    return MappingProxyType(
        {
            name: BaseStack(
                bases[name].fingerprint if name in bases else pool.base_fingerprint or UNKNOWN,
                chat_template_of(pool.base_folder) if pool.base_folder else UNKNOWN,
            )
            for name, pool in settings.pools.items()
        }
    )


def _prices(settings: Settings) -> Prices:
    by_pool = {name: pool.price.price() if pool.price else None for name, pool in settings.pools.items()}
    return Prices(by_pool, by_pool[settings.general_pool])


def _take_in(snapshot: Snapshot, fleet: Fleet, reconciler: Reconciler, meters: Meters, stirred: asyncio.Event) -> None:
    fleet.know({name: version.view() for name, version in snapshot.versions.items()})
    for replica in fleet.replicas.values():
        if replica.cordoned != (replica.name in snapshot.cordons):
            replica.cordoned = not replica.cordoned
            fleet.changed()
        reconciler.adopt(replica, snapshot.versions.values(), snapshot.placements)
    stirred.set()
    retired = [name for name, version in snapshot.versions.items() if version.state == "retired"]
    if retired:
        meters.forget(*retired)


def _freeze_garbage() -> None:
    """What is there after the start stays: the collector need not walk it at each pass (55 µs a request)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
