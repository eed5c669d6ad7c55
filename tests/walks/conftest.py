"""Fixtures of a walk: two fake engines over real sockets, a base model on disk, adapters, and a gateway in front."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.asyncio import Redis

from tests.fakes.adapters import BASE_CONFIG, write_adapter, write_base
from tests.fakes.engine import FakeEngine
from tests.walks.fork_server import ForkServer
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.served import Served, served

BASE_MODEL = "tiny-base"
GENERAL_PROMPT = "Decide the return by the shop's policy."
Configure = Callable[..., dict[str, Any]]
MakeAdapter = Callable[..., Path]
Gateways = Callable[..., AbstractAsyncContextManager[RunningGateway]]


@pytest.fixture
async def redis_url(valkey_socket: str, redis: Redis) -> str:
    """The address of a Valkey that was just emptied."""
    assert await redis.dbsize() == 0
    return f"unix://{valkey_socket}"


@pytest.fixture(scope="session")
def forked(fork_server: ForkServer) -> Served:
    """`served`, of gateways that are forked by a process that has loaded one: for all but tests of a start."""
    return partial(served, fork_server=fork_server.path())


@pytest.fixture
async def small() -> AsyncIterator[FakeEngine]:
    """The engine of the pool that adapters are loaded on."""
    async with FakeEngine(BASE_MODEL, n_tokens=8) as engine:
        yield engine


@pytest.fixture
async def other() -> AsyncIterator[FakeEngine]:
    """A second engine of that pool, for a configuration that names it."""
    async with FakeEngine(BASE_MODEL, n_tokens=8) as engine:
        yield engine


@pytest.fixture
async def general() -> AsyncIterator[FakeEngine]:
    """The engine of the general pool."""
    async with FakeEngine("large", n_tokens=8) as engine:
        yield engine


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """A small base model's folder."""
    folder = tmp_path / BASE_MODEL
    folder.mkdir()
    write_base(folder, BASE_CONFIG)
    return folder


@pytest.fixture
def make_adapter(tmp_path: Path) -> MakeAdapter:
    """Makes a valid adapter with its manifest; another number, other bytes."""

    def make(number: int, expected: str | None = None) -> Path:
        folder = tmp_path / f"adapter-{number}"
        folder.mkdir()
        write_adapter(folder, BASE_CONFIG, rank=4, seed=number)
        manifest = {
            "task": "returns",
            "general_prompt": {"system": GENERAL_PROMPT, "sampling": {"temperature": 0, "max_tokens": 40}},
            "sampling": {"temperature": 0, "max_tokens": 30},
            "golden": [{"prompt": "A toaster, sealed, after 3 days.", "expected": expected}],
            "provenance": {"number": number},
        }
        (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
        return folder

    return make


@pytest.fixture
def configure(small: FakeEngine, general: FakeEngine, base_folder: Path, tmp_path: Path, redis_url: str) -> Configure:
    """A configuration with the two engines; keyword arguments replace whole sections of it."""

    def configured(**sections: Any) -> dict[str, Any]:
        return {
            "data_folder": tmp_path / "data",
            "import_folders": [tmp_path],
            "redis_url": redis_url,
            "health_interval_seconds": 0.1,
            "snapshot_interval_seconds": 0.2,
            "monitor": {"interval_seconds": 3.0},  # its process takes 0.3 s of CPU time, and most walks end before
            "pools": {
                "small": {
                    "base_model": BASE_MODEL,
                    "base_folder": base_folder,
                    "replicas": [{"name": "small-0", "url": small.url}],
                    "price": {"prompt_usd_per_million_tokens": 1, "completion_usd_per_million_tokens": 2},
                },
                "general": {
                    "base_model": "large",
                    "callable": True,
                    "replicas": [{"name": "general-0", "url": general.url}],
                    "price": {"prompt_usd_per_million_tokens": 10, "completion_usd_per_million_tokens": 20},
                },
            },
            "tasks": {"returns": {}},
            **sections,
        }

    return configured


@pytest.fixture
async def gateway(configure: Configure, make_adapter: MakeAdapter) -> AsyncIterator[RunningGateway]:
    """A gateway whose task `returns` is served by `returns@v1`."""
    async with run_gateway(configure()) as running:
        await running.place(make_adapter(1))
        yield running
