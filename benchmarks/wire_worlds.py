"""Where cases at the wire are played: a gateway as a user starts it, with fake engines of this process behind it."""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fault_cases import FALLBACK, PRIMARY
from benchmarks.fault_subjects import START_SECONDS_MAX, Admin, fingerprint, place_adapters, write_base
from benchmarks.harness import Running, answers
from benchmarks.subjects import apprentice
from benchmarks.wire_format import CallerCase, EngineCase
from benchmarks.wire_script import TOKENS, Script
from tests.fakes.engine import FakeEngine
from tests.fakes.ports import free_port

ECHO = "echo"
PRICE = {"prompt_usd_per_million_tokens": 0.02, "completion_usd_per_million_tokens": 0.04}
LIMITS_OF_ENGINES: Mapping[str, Any] = {
    "retries_max": 2,
    "answer_timeout_seconds": 6,
    "first_token_timeout_seconds": 3,
    "inter_token_timeout_seconds": 3,
    "request_timeout_seconds": 20,
    "backoff_seconds": 0.1,
    "answer_bytes_max": 8 << 20,
}
LIMITS_OF_CALLERS: Mapping[str, Any] = {
    "head_seconds_max": 2,
    "body_seconds_max": 3,
    "keep_alive_seconds_max": 3,
    "body_bytes_max": 4 << 20,
}


@dataclass
class World:
    """A running gateway. `keys` are by the words of a case file: caller, limited, admin, wrong."""

    port: int
    pid: int
    log: Path
    keys: Mapping[str, str]
    admin: Admin
    primaries: dict[str, FakeEngine] = field(default_factory=dict)
    """Of an engine case, or of a caller case that describes one, by the case's name."""
    fallbacks: dict[str, FakeEngine] = field(default_factory=dict)
    echo: FakeEngine | None = None
    """The engine of all other caller cases: it says again what it was told last."""


def task_of(number: int) -> str:
    """The name under which callers ask for a case's model."""
    return f"case-{number}"


async def start_engine_world(
    stack: AsyncExitStack, folder: Path, cases: Sequence[EngineCase], settings: Mapping[str, Any]
) -> World:
    """A gateway with a task, a pool and an adapter for each case, and a fallback. Raises Unmeasurable."""
    base = write_base(folder)
    healthy = await stack.enter_async_context(FakeEngine(FALLBACK, n_tokens=TOKENS))
    pools: dict[str, Any] = {"general": _pool("general", FALLBACK, healthy)}
    tasks: dict[str, Any] = {}
    primaries: dict[str, FakeEngine] = {}
    fallbacks: dict[str, FakeEngine] = {}
    for number, case in enumerate(cases):
        task, pool = task_of(number), f"small-{number}"
        primaries[case.name] = await stack.enter_async_context(FakeEngine(PRIMARY, n_tokens=TOKENS))
        of_adapters = {"base_folder": str(base), "base_fingerprint": fingerprint(task)}
        pools[pool] = _pool(pool, PRIMARY, primaries[case.name]) | of_adapters | case.pool
        fallback_pool: str | None = "general" if case.fallback != "none" else None
        fallbacks[case.name] = healthy
        if not isinstance(case.fallback, str):
            fallback_pool = f"general-{number}"
            engine = await stack.enter_async_context(FakeEngine(FALLBACK, n_tokens=TOKENS))
            engine.faults.add(Script(engine, case.fallback))
            fallbacks[case.name] = engine
            pools[fallback_pool] = _pool(fallback_pool, FALLBACK, engine)
        tasks[task] = {"fallback_pool": fallback_pool, **case.task}
    sections = {
        "health_interval_seconds": 5,
        "pools": pools,
        "tasks": tasks,
        **_with_limits(settings, LIMITS_OF_ENGINES),
    }
    world = await start_gateway(stack, folder, sections)
    world.primaries, world.fallbacks = primaries, fallbacks
    tasks_of_cases = [task_of(number) for number in range(len(cases))]
    await asyncio.to_thread(place_adapters, world.admin, folder, tasks_of_cases)
    for case in cases:
        engine = primaries[case.name]
        engine.requests.clear()  # of the probes
        engine.faults.add(Script(engine, case.engine))
    return world


async def start_caller_world(
    stack: AsyncExitStack, folder: Path, cases: Sequence[CallerCase], settings: Mapping[str, Any]
) -> World:
    """A gateway with an engine that echoes, and one for each case that describes its own. Raises Unmeasurable."""
    echo = await stack.enter_async_context(FakeEngine(ECHO, requests_kept=20_000))
    echo.answers["*"] = lambda body: str(body["messages"][-1]["content"])
    pools: dict[str, Any] = {ECHO: _pool(ECHO, ECHO, echo) | {"callable": True}}
    primaries: dict[str, FakeEngine] = {}
    for number, case in enumerate(cases):
        if case.engine is not None:
            engine = await stack.enter_async_context(FakeEngine(PRIMARY, n_tokens=TOKENS))
            engine.faults.add(Script(engine, case.engine))
            primaries[case.name] = engine
            pools[task_of(number)] = _pool(task_of(number), PRIMARY, engine) | {"callable": True}
    sections = {"pools": pools, "general_pool": ECHO, "tasks": {}, **_with_limits(settings, LIMITS_OF_CALLERS)}
    world = await start_gateway(stack, folder, sections)
    world.primaries, world.echo = primaries, echo
    return world


async def start_gateway(stack: AsyncExitStack, folder: Path, sections: Mapping[str, Any]) -> World:
    """`apprentice serve` with these sections, ready, and the keys. Raises Unmeasurable."""
    port = free_port()
    admin_key = f"sk-app-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"
    config = folder / "apprentice.yaml"
    # Not in the caller's folder: a Unix socket's path may hold 104 bytes on some systems.
    data = stack.enter_context(tempfile.TemporaryDirectory(prefix="wire"))
    own: dict[str, Any] = {
        "listen": {"host": "127.0.0.1", "port": port},
        "data_folder": data,
        "log_format": "text",
    }
    own["import_folders"] = [str(folder)]
    config.write_text(json.dumps(own | dict(sections), indent=1), encoding="utf-8")  # JSON is YAML
    log = folder / "gateway.log"
    command = [apprentice(), "serve", "--config", str(config)]
    gateway = Running("the gateway", command, None, log, {"APPRENTICE_ADMIN_KEY": admin_key})
    stack.callback(gateway.stop)
    await asyncio.to_thread(gateway.wait_until, lambda: answers(port, "/health/ready"), START_SECONDS_MAX)
    admin = Admin(port, admin_key)
    keys = {
        "admin": admin_key,
        "wrong": f"sk-app-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}",
        "caller": await _key(admin, {"name": "caller"}),
        "limited": await _key(admin, {"name": "limited", "models": ["none"]}),
    }
    return World(port, gateway.pid, log, keys, admin)


async def _key(admin: Admin, caller: dict[str, Any]) -> str:
    return str((await asyncio.to_thread(admin, "POST", "callers", caller))["key"])


def _pool(name: str, model: str, engine: FakeEngine) -> dict[str, Any]:
    return {"base_model": model, "price": PRICE, "replicas": [{"name": f"{name}-0", "url": engine.url}]}


def _with_limits(settings: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, "limits": {**limits, **settings.get("limits", {})}}
