"""`apprentice doctor`: what stands in the way of a gateway here, and what to do about it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from gateway.cli.doctor_checks import (
    Finding,
    check_descriptors,
    check_engines,
    check_folder,
    check_gateway,
    ok,
    problem,
)
from gateway.cli.doctor_state import check_state
from gateway.cli.tables import Printer
from gateway.settings import Settings, SettingsError, load_settings
from serving.tls import TlsError, Trust, TrustingTransport

SIGNS: Mapping[str, str] = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM"}


def doctor(
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("apprentice.yaml"),
    json_only: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Check the configuration, Redis, folders, engines and limits, and say what to do. Nothing is changed.

    It may be run beside a gateway or before there is one. Exit code 1 where there is a problem.
    """
    findings = asyncio.run(_examine(config))
    counts = {kind: sum(finding.kind == kind for finding in findings) for kind in SIGNS}
    out = Printer(json_only)
    told: dict[str, Any] = {"findings": [dataclasses.asdict(finding) for finding in findings], "counts": counts}
    if not out.answer(told):
        rows = [(SIGNS[found.kind], found.check, found.found, found.advice) for found in findings]
        out.table(("", "check", "found", "what to do"), rows)
        out.say(f"{counts['problem']} problems, {counts['warning']} warnings, {counts['ok']} ok.")
    raise typer.Exit(1 if counts["problem"] else 0)


async def _examine(config: Path) -> list[Finding]:
    try:
        settings = load_settings(config)
    except SettingsError as error:
        said = " ".join(str(error).split())
        return [problem("configuration", said, "Mend it: docs/settings.md has all keys. Nothing else was checked.")]
    return [finding async for finding in _checks(config, settings)]


async def _checks(config: Path, settings: Settings) -> AsyncIterator[Finding]:
    replicas = sum(len(pool.replicas) for pool in settings.pools.values())
    yield ok(
        "configuration", f"{config}: {len(settings.pools)} pools, {replicas} replicas, {len(settings.tasks)} tasks"
    )
    async for finding in check_state(settings):
        yield finding
    for name, folder in (("data folder", settings.data_folder), ("store folder", settings.store)):
        yield check_folder(name, folder)
    try:
        trust = Trust(lambda: [replica for pool in settings.pool_configs() for replica in pool.replicas])
        async with httpx.AsyncClient(trust_env=False, transport=TrustingTransport(trust)) as http:
            async for finding in check_engines(settings, http):
                yield finding
    except TlsError as error:
        yield problem("engines' certificates", f"{error}", "Mend the tls of that pool or replica: no engine was asked.")
    yield check_descriptors(settings)
    yield await check_gateway(settings)
