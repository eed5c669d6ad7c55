"""Two real vLLM engines (small, general), the demo model and the example adapter. Started once for all tests here."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import httpx
import pytest
import pytest_asyncio
from xdist.remote import Producer
from xdist.scheduler.loadfile import LoadFileScheduling

from gateway.callers import new_key
from serving import health
from serving.adapters import loader, probe
from tests.engine.words import LIMITS, LOGS, SLOW_SECONDS_MAX, STAGE_SECONDS_MAX, TASK, Desk, adapter, loads_of, log_of
from tests.fakes.ports import free_port
from tests.walks import gateway as walks
from tests.walks.gateway import RunningGateway, run_gateway
from tools.engines.demo_model import ensure_demo_model
from tools.engines.engine_command import EngineOptions, count_threads, make_engine
from tools.engines.engine_venv import EngineVenv, ensure_engine_venv
from tools.engines.process import EngineProcess
from tools.engines.warm_up import warm_up

ROOT = Path(__file__).resolve().parents[2]
VAR = ROOT / "var"
ADAPTER = ROOT / "examples" / "returns"
BASE_MODEL = "smollm2-135m-instruct"
START_TIMEOUT_SECONDS = 1200.0
SNAPSHOT_SECONDS = 1.0
FOLDER = PurePath("tests/engine")
BESIDE = {
    "test_adapter_operators.py",
    "test_embeddings.py",
    "test_make_up.py",
    "test_swap_capacity.py",
    "test_tool_calls.py",
    "test_training.py",
}
"""Files whose tests use other engines than the two of `engines`, or none: they may run beside those."""


class SharedEngines(LoadFileScheduling):
    """One process for all tests on the two engines. Other files go where there is room."""

    def _split_scope(self, nodeid: str) -> str:
        path = PurePath(nodeid.partition("::")[0])
        return "engines" if path.parent == FOLDER and path.name not in BESIDE else str(path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> SharedEngines:
    """Have the two engines started in one process."""
    return SharedEngines(config, log)


@dataclass(frozen=True)
class RealEngines:
    """Two engines, and where the base model lies."""

    small: EngineProcess
    general: EngineProcess
    model: Path

    def configuration(self, data_folder: Path) -> dict[str, Any]:
        """A gateway's configuration with these engines as its pools."""
        return {
            "data_folder": data_folder,
            "health_interval_seconds": 0.5,
            "pools": {
                "small": {
                    "base_model": BASE_MODEL,
                    "base_folder": self.model,
                    "replicas": [{"name": "small-0", "url": self.small.url}],
                    "price": {"prompt_usd_per_million_tokens": 0.02, "completion_usd_per_million_tokens": 0.04},
                },
                "general": {
                    "base_model": BASE_MODEL,
                    "callable": True,
                    "replicas": [{"name": "general-0", "url": self.general.url}],
                    "price": {"prompt_usd_per_million_tokens": 0.6, "completion_usd_per_million_tokens": 2.4},
                },
            },
            "tasks": {"returns": {}},
            "limits": LIMITS,
        }


@pytest.fixture(scope="session", autouse=True)
def _patience() -> Iterator[None]:
    """A slow engine is neither down nor a failure here, nor does a client of these tests hang up on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(health, "CHECK_TIMEOUT_SECONDS", 60.0)
        patch.setattr(health, "LOOK_SECONDS_MAX", 240.0)
        patch.setattr(loader, "LOAD_TIMEOUT_SECONDS", STAGE_SECONDS_MAX)
        patch.setattr(probe, "PROBE_TIMEOUT_SECONDS", STAGE_SECONDS_MAX)
        patch.setattr(walks, "CLIENT_SECONDS_MAX", SLOW_SECONDS_MAX)
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class TwoReplicas:
    """Both engines as the replicas of one pool, behind two gateways on one Redis: words@v1 and words@v2 are ready."""

    engines: RealEngines
    gateways: tuple[RunningGateway, ...]
    desks: tuple[Desk, ...]

    def loads(self) -> dict[str, list[str]]:
        """The adapters that either engine has loaded so far."""
        return {engine.name: loads_of(engine) for engine in (self.engines.small, self.engines.general)}


@dataclass(frozen=True)
class EngineFiles:
    """Files from which an engine is started."""

    venv: EngineVenv
    model: Path

    def options(self, **chosen: Any) -> EngineOptions:
        """The options of an engine on a free port."""
        return EngineOptions(
            python=self.venv.python,
            model=self.model,
            served_model_names=(BASE_MODEL,),
            port=free_port(),
            on_gpu=self.venv.kind == "gpu",
            **chosen,
        )

    def engine(self, name: str, **options: Any) -> EngineProcess:
        """An engine, not yet started."""
        return make_engine(name, self.options(threads=count_threads(2), **options), log_of(name), _say)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine_files() -> EngineFiles:
    """vLLM and the demo model, installed and made where they are missing."""
    venv = await ensure_engine_venv(VAR / "engine-venv", LOGS / "engine-venv.log", _say)
    model = await ensure_demo_model(VAR / "models" / "SmolLM2-135M-Instruct", venv, LOGS / "demo-model.log", _say)
    return EngineFiles(venv, model.folder)


@asynccontextmanager
async def run_engines(*engines: EngineProcess) -> AsyncIterator[None]:
    """Engines that are up and warm for as long as the block runs."""
    try:
        await asyncio.gather(*(engine.start(START_TIMEOUT_SECONDS, lambda _: None) for engine in engines))
        await asyncio.gather(*(warm_up(engine.url, BASE_MODEL) for engine in engines))
        yield
    finally:
        await asyncio.gather(*(engine.stop(30) for engine in engines))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engines(engine_files: EngineFiles) -> AsyncIterator[RealEngines]:
    """Both engines, up and warm."""
    small, general = (engine_files.engine(name, memory_share=0.45) for name in ("small", "general"))
    async with run_engines(small, general):
        yield RealEngines(small, general, engine_files.model)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateway(engines: RealEngines, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    """A gateway in front of both, with the example adapter as the task's version."""
    data_folder = tmp_path_factory.mktemp("d")
    async with run_gateway(engines.configuration(data_folder)) as running:
        await running.place(ADAPTER / "adapter")
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def two_replicas(
    engines: RealEngines, valkey_socket: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TwoReplicas]:
    """Two gateways in front of both engines. General has no engine of its own, and nobody looks at what it says."""
    folder = tmp_path_factory.mktemp("two")
    admin_key = new_key()[0]
    configuration = engines.configuration(folder) | {
        "redis_url": f"unix://{valkey_socket}",
        "store_folder": folder / "store",
        "snapshot_interval_seconds": SNAPSHOT_SECONDS,
        "tasks": {TASK: {}},
    }
    configuration["pools"]["small"]["replicas"].append({"name": "small-1", "url": engines.general.url})
    configuration["pools"]["small"]["continues"] = True
    places = [configuration | {"data_folder": folder / name} for name in ("one", "two")]
    async with run_gateway(places[0], admin_key) as one, run_gateway(places[1], admin_key) as two:
        desks = (Desk(one), Desk(two))
        for name in ("v1", "v2"):
            version = await asyncio.to_thread(desks[0].push, adapter(folder / name, name))
            staged = await asyncio.to_thread(desks[0].stage, version)
            assert staged["ready"] == ["small-0", "small-1"], staged
        yield TwoReplicas(engines, (one, two), desks)
        for desk in desks:
            desk.close()


@pytest.fixture(scope="session")
def second_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example adapter at nine tenths of its strength: other bytes, and nearly the same answers."""
    folder = tmp_path_factory.mktemp("second") / "adapter"
    shutil.copytree(ADAPTER / "adapter", folder)
    shutil.copy(ADAPTER / "manifest.yaml", folder / "manifest.yaml")
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["lora_alpha"] *= 0.9
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def sample() -> list[dict[str, Any]]:
    """A few held-out requests, hand-written, with their labels."""
    lines = (ADAPTER / "data" / "heldout_hand.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:12]]


async def until_loaded(gateway: RunningGateway, version: str, seconds: float) -> None:
    """Wait until the version serves on every replica of its pool. Raises TimeoutError."""
    async with asyncio.timeout(seconds), gateway.http() as http:
        while True:
            try:
                shown = (await http.get(f"/admin/v1/adapters/{version}")).json()
            except httpx.HTTPError:
                shown = {"wanted": []}
            if shown["wanted"] and set(shown["wanted"]) == set(shown["ready"]):
                return
            await asyncio.sleep(0.2)
