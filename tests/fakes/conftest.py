"""A fake engine for each test that asks for one, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI

from tests.fakes.adapters import write_adapter
from tests.fakes.engine import FakeEngine


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine() as engine:
        yield engine


@pytest.fixture
async def http(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=engine.url, timeout=60) as http:
        yield http


@pytest.fixture
async def sdk(engine: FakeEngine) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="any", max_retries=0, timeout=60) as sdk:
        yield sdk


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "v1", seed=1)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "v2", seed=2)
