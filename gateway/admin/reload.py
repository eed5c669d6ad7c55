"""Reload of the configuration while the gateway runs: validate it, then swap all of it or nothing.

If a changed setting needs a restart, the error names it and nothing changes. docs/guides/reload.md lists the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import SecretStr
from redis.exceptions import RedisError

from gateway.configuration.pools import PoolSettings
from gateway.configuration.settings import Settings, load_settings
from gateway.current_configuration import bounds_of, caps_of, configured_policy_of
from gateway.endpoint_parts import Admin, services_of
from gateway.errors import Problem, SettingsError
from gateway.fleet_health import apply_pools, check_health
from gateway.limits.caller_limits import Bound
from gateway.limits.fallback_caps import Cap
from gateway.openapi_parts import with_errors
from gateway.services import Services
from gateway.state.snapshot import ConfiguredPolicy
from monitoring.audit import AuditConflict
from serving.fleet import PoolConfig

log = logging.getLogger(__name__)
router = APIRouter(prefix="/admin/v1", tags=["admins"])
SYSTEM = "system"
HIDDEN = "(hidden)"
HIDDEN_PATHS = ("recycle_url", "webhook_url")
"""Settings whose address may contain a secret."""
WITH_USER = re.compile(r"[a-z][a-z0-9+.-]*://.*@.*", re.IGNORECASE | re.DOTALL)
"""An address with a user, and so with a secret."""
AUDITED_MAX = 500
CHANGEABLE = (
    "tasks.*",
    "feedback_metrics.*",
    "release.*",
    "import_folders",
    "pulls.*",
    "fitting.fitting_seconds_max",
    "datasets.rows_max",
    "datasets.file_bytes_max",
    "datasets.building_seconds_max",
    "training.*",
    "evaluation.concurrency",
    "evaluation.load_share_max",
    "evaluation.rows_max",
    "evaluation.bytes_max",
    "evaluation.row_bytes_max",
    "general_pool",
    "cache_isolation",
    "log_level",
    "pools.*.replicas.*",
    "pools.*.discover.*",
    "pools.*.api_key",
    "pools.*.price.*",
    "pools.*.callable",
    "pools.*.parameters_allowed",
    "pools.*.n_max",
    "pools.*.unknown_fields",
    "pools.*.max_tokens_over",
    "pools.*.replicas_min",
    "pools.*.in_flight_target",
    "pools.*.health_interval_seconds",
    "pools.*.continues",
    "pools.*.context_tokens_max",
    "records.recent_bytes_max",
    "texts.keys.*",
    "texts.key",
    "texts.phone_region",
    "monitor.*",
    "limits.request_timeout_seconds",
    "limits.answer_timeout_seconds",
    "limits.first_token_timeout_seconds",
    "limits.inter_token_timeout_seconds",
    "limits.retries_max",
    "limits.backoff_seconds",
    "limits.retry_after_seconds_max",
    "limits.body_bytes_max",
    "limits.feedback_body_bytes_max",
    "limits.feedback_bytes_per_day",
    "limits.in_flight_max",
    "limits.queue_max",
    "limits.queue_seconds_max",
    "limits.caller_share_max",
    "limits.batch_share_min",
    "limits.drain_seconds_min",
    "limits.drain_seconds_max",
    "limits.pool_max_tokens_max",
    "limits.redis_gone",
    "limits.quota_share",
    "limits.lease_timeout_seconds",
    "limits.general_share_window_seconds",
)
"""The keys that a reload may change. `*` is any one name; at the end it also stands for all keys below."""


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One difference between two configurations, by its key. None: the key is missing. Secrets are hidden."""

    path: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The result of a reload: `applied`, `same`, or `dry_run`; with the changed keys that need a restart."""

    outcome: str
    changes: tuple[SettingChange, ...]
    restart_required: tuple[str, ...] = ()


async def reload(services: Services, actor: str, dry_run: bool = False) -> Reloaded:
    """Read the configuration again and apply it; with `dry_run` only return the changes.

    Raises Problem if it is invalid or needs a restart, and the errors of the audit. After an error nothing has changed.
    """
    async with services.configuration.turn:
        try:
            reloaded = await _read_again(services, actor, dry_run)
        except Problem as problem:
            if not dry_run:
                services.meters.configuration_reloads.add(1, "refused")
                log.error("the configuration was not taken, the old one stays: %s", problem.message)
            raise
        except (RedisError, OSError, AuditConflict) as error:
            services.meters.configuration_reloads.add(1, "failed")
            log.error("the configuration was not taken, the old one stays: the audit can't be written: %s", error)
            raise
        if not dry_run:
            services.meters.configuration_reloads.add(1, reloaded.outcome)
            keys = ", ".join(change.path for change in reloaded.changes) or "nothing"
            log.info("the configuration was read again; changed: %s", keys)
    if reloaded.outcome == "applied":
        await check_health(services)  # there may be new replicas
    return reloaded


async def _read_again(services: Services, actor: str, dry_run: bool) -> Reloaded:
    config = services.configuration.config
    if config is None:
        raise Problem("state_conflict", "This gateway was not started from a file: there is nothing to read again.")
    settings = await asyncio.to_thread(_load, services, config)
    before = services.configuration.whole
    changes = tuple(_differences("", before.model_dump(), settings.model_dump()))
    fixed = tuple(find_restarts(before, settings, changes))
    if dry_run:
        return Reloaded("dry_run", changes, fixed)
    if fixed:
        raise Problem("restart_required", f"These need a restart, and nothing was changed: {', '.join(fixed)}.")
    if faults := await services.renew_certificates():
        raise Problem("configuration_invalid", " ".join(faults))
    if changes:
        parts = parts_of(settings)
        audited_changes = changes[:AUDITED_MAX]
        await services.control.audit.append(
            actor,
            "configuration.reload",
            config.name,
            before={change.path: _cut(change.before) for change in audited_changes},
            after={change.path: _cut(change.after) for change in audited_changes},
            evidence={"changes": len(changes)},
        )
        await apply_settings(services, settings, parts)
        await services.control.siblings.ask("settings", pickle.dumps(settings))
    return Reloaded("applied" if changes else "same", changes)


def _load(services: Services, config: Path) -> Settings:
    try:
        settings = load_settings(config)
        services.control.siblings.part_of(settings)
        settings.listen.load_certificate()
        return settings
    except SettingsError as error:
        raise Problem("configuration_invalid", str(error)) from error


@dataclass(frozen=True, slots=True)
class ReloadedParts:
    """The parts that are built from settings. Building may fail, so it comes before the audit entry."""

    bounds: Mapping[str, Bound]
    caps: Mapping[str, Cap]
    configured: ConfiguredPolicy
    pools: list[PoolConfig]


def parts_of(settings: Settings) -> ReloadedParts:
    """The parts for `apply_settings`."""
    return ReloadedParts(
        bounds_of(settings), caps_of(settings), configured_policy_of(settings), settings.pool_configs()
    )


async def apply_settings(services: Services, settings: Settings, parts: ReloadedParts) -> None:
    """Apply all settings at once. Before that, wait a short time for the spend of new money caps from Redis."""
    await services.fallback_caps.prepare(parts.caps)
    before = services.settings
    services.configuration.apply_settings(settings)
    settings = services.settings  # this process's part of them
    services.admission.apply_settings(settings.limits)
    services.limits.apply_settings(parts.bounds, settings.limits)
    services.recent.set_bytes_max(settings.records.recent_bytes_max)
    services.fallback_caps.apply_settings(parts.caps, settings.limits.general_share_window_seconds)
    services.fallback_caps.look()
    apply_pools(services, parts.pools)
    services.snapshot.apply_configuration(parts.configured)
    if before.log_level != settings.log_level:
        logging.getLogger().setLevel(settings.log_level)


def find_restarts(before: Settings, after: Settings, changes: tuple[SettingChange, ...]) -> Iterator[str]:
    """The changed keys that need a restart."""
    changeable = re.compile("|".join(map(_pattern, CHANGEABLE)))
    yield from (change.path for change in changes if not changeable.fullmatch(change.path))
    pool_of = {replica.name: name for name, pool in before.pools.items() for replica in pool.replicas}
    for name, pool in after.pools.items():
        old = before.pools.get(name)
        urls = {replica.url for replica in old.replicas} if old is not None else set[str]()
        for replica in pool.replicas:
            moved = pool_of.get(replica.name, name) != name
            if moved or (pool.tls is not None and replica.url not in urls):  # its certificates were opened at the start
                yield f"pools.{name}.replicas.{replica.name}"
        if _server_name_of(pool) not in (None, _server_name_of(old)):  # so were these
            yield f"pools.{name}.discover.server_name"


def _server_name_of(pool: PoolSettings | None) -> str | None:
    return None if pool is None or pool.discover is None else pool.discover.server_name


def _pattern(changeable: str) -> str:
    if changeable.endswith(".*"):
        return _pattern(changeable[:-2]) + r"(\..*)?"
    return re.escape(changeable).replace(r"\*", r"[^.]+")


def _differences(path: str, before: Any, after: Any) -> Iterator[SettingChange]:
    """The differences, key by key, in the order of the document. Secrets are compared but never shown."""
    before, after = _by_name(before), _by_name(after)
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in [*before, *(name for name in after if name not in before)]:
            yield from _differences(f"{path}.{name}" if path else name, before.get(name), after.get(name))
    elif before != after:
        yield SettingChange(path, _shown(path, before), _shown(path, after))


def _by_name(value: Any) -> Any:
    """A list of named sections as sections by name."""
    if (
        isinstance(value, tuple)
        and value
        and all(isinstance(section, Mapping) and "name" in section for section in value)
    ):
        return {section["name"]: section for section in value}
    return value


def _shown(path: str, value: Any) -> Any:
    is_address = value is not None and (path.endswith(HIDDEN_PATHS) or WITH_USER.fullmatch(str(value)))
    if isinstance(value, SecretStr) or is_address:
        return HIDDEN
    value = _by_name(value)
    if isinstance(value, Mapping):
        return {name: _shown(f"{path}.{name}", part) for name, part in value.items() if part is not None}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _cut(value: Any) -> Any:
    text = str(value)
    return value if len(text) <= AUDITED_MAX else f"{text[:AUDITED_MAX]}…"


def reload_on_signal(services: Services) -> None:
    """Let SIGHUP reload the configuration, if there is a file. Errors go to the log.

    If the gateway has several processes, one reads the file, and the others apply the same settings.
    """
    if services.configuration.config is None:
        return
    services.control.siblings.answers["reload"] = lambda _: _reload_and_log(services)
    services.control.siblings.answers["settings"] = lambda settings: _go_by_others(services, pickle.loads(settings))  # noqa: S301 - our own process wrote it
    tasks: set[asyncio.Task[bytes]] = set()

    def begin() -> None:
        task = asyncio.get_running_loop().create_task(_reload_and_log(services))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    with contextlib.suppress(RuntimeError, ValueError):  # another thread's loop gets no signals
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, begin)


async def _go_by_others(services: Services, settings: Settings) -> bytes:
    if settings != services.configuration.whole:  # otherwise they are this process's own settings, sent back
        parts = parts_of(settings)
        await apply_settings(services, settings, parts)
        await check_health(services)
    return b""


async def _reload_and_log(services: Services) -> bytes:
    try:
        await reload(services, SYSTEM)
    except (Problem, RedisError, OSError, AuditConflict):
        pass  # `reload` has logged and counted it
    except Exception:
        log.exception("the configuration could not be read again")
    return b""


@router.post("/reload", responses=with_errors("configuration_invalid", "restart_required", "state_conflict"))
async def reload_configuration(
    request: Request, admin: Admin, dry_run: Annotated[bool, Query(description="Only show what would change.")] = False
) -> dict[str, Any]:
    """Reload the configuration, whole or not at all."""
    services = services_of(request)
    reloaded = await reload(services, admin.public, dry_run)
    return {
        "file": str(services.configuration.config),
        "outcome": reloaded.outcome,
        "changes": [asdict(change) for change in reloaded.changes],
        "restart_required": list(reloaded.restart_required),
    }
