"""All checks of `apprentice doctor`, in their order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from gateway.cli.doctor_checks import (
    DoctorFinding,
    check_archive,
    check_descriptors,
    check_engines,
    check_folder,
    check_gateway,
    check_shared_engines,
    check_webhook,
    find_replicas,
    report_ok,
    report_problem,
)
from gateway.cli.doctor_promises import check_promises
from gateway.cli.doctor_state import check_state
from gateway.configuration.base_models import find_unusable_bases
from gateway.configuration.settings import Settings, load_settings
from gateway.errors import SettingsError
from serving.discovery import list_names
from serving.tls import TlsError, Trust, TrustingTransport


async def examine(config: Path) -> list[DoctorFinding]:
    """The findings of all checks; only one finding if the configuration can't be used."""
    try:
        settings = load_settings(config)
    except SettingsError as error:
        message = " ".join(str(error).split())
        return [
            report_problem(
                "configuration", message, "Fix it: docs/reference/settings.md has all keys. Nothing else was seen."
            )
        ]
    return [finding async for finding in _checks(config, settings)]


async def _checks(config: Path, settings: Settings) -> AsyncIterator[DoctorFinding]:
    configs = settings.pool_configs()
    names = list_names(configs)
    results = [await find_replicas(pool, names) for pool in configs]
    pools = [pool for pool, _ in results]
    replicas = sum(len(pool.replicas) for pool in pools)
    yield report_ok("configuration", f"{config}: {len(pools)} pools, {replicas} replicas, {len(settings.tasks)} tasks")
    for finding in check_promises(settings):
        yield finding
    async for finding in check_state(settings):
        yield finding
    for fault in find_unusable_bases(settings.pools):
        yield report_problem("base model", fault, "Put the base's config.json there, or fix the folder.")
    for name, folder in (("data folder", settings.data_folder), ("store folder", settings.store)):
        yield check_folder(name, folder)
    if settings.records.archive and settings.records.archive_folder is not None:
        yield await check_archive(settings)
    for finding in filter(None, (each for _, each in results)):
        yield finding
    try:
        trust = Trust(lambda: [(replica.url, replica.tls) for pool in pools for replica in pool.replicas])
        async with httpx.AsyncClient(trust_env=False, transport=TrustingTransport(trust)) as http:
            async for finding in check_engines(pools, http):
                yield finding
    except TlsError as error:
        yield report_problem(
            "engines' certificates", f"{error}", "Fix the tls of that pool or replica: no engine was asked."
        )
    for finding in check_shared_engines(settings, pools):
        yield finding
    yield check_descriptors(settings)
    if settings.tasks:
        yield check_webhook(settings)
    yield await check_gateway(settings)
