"""An engine that holds three adapters, behind the gateway and without it: more than fit, and bytes that are gone."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from benchmarks.swap_callers import Crowd, under_load
from benchmarks.swap_counts import FAULTS, count
from serving.launch.process import EngineProcess, EngineState
from tests.engine.conftest import BASE_MODEL, EngineFiles, run_engines
from tests.engine.words import (
    PROMPTS,
    TASK,
    Desk,
    adapter,
    life_of,
    listed_by,
    loads_of,
    references,
)
from tests.walks.gateway import run_gateway

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]
MAX_LORAS, MAX_CPU_LORAS = 2, 3
LIVE = f"{TASK}@v1"
REPLACED = 4


@dataclass(frozen=True)
class Tight:
    """An engine with little room, the gateway in front of it, and where that keeps adapters."""

    engine: EngineProcess
    desk: Desk
    folder: Path

    def stored(self) -> dict[str, int]:
        """Bytes of every adapter in the store, by the folder that engines read it from."""
        folders = [folder for folder in (self.folder / "data" / "store").iterdir() if not folder.name.startswith(".")]
        return {str(folder): sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}

    def touched(self) -> tuple[str, list[str], dict[str, str]]:
        """Which process the engine is, what it has loaded so far, and what it lists."""
        return life_of(self.engine), loads_of(self.engine), listed_by(self.engine)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tight(engine_files: EngineFiles, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tight]:
    """An engine of its own, since it does not survive the last test; words@v1 leads, and words@v2 is ready."""
    folder = tmp_path_factory.mktemp("tight")
    engine = engine_files.engine("tight", max_loras=MAX_LORAS, max_cpu_loras=MAX_CPU_LORAS)
    pool = {
        "base_model": BASE_MODEL,
        "base_folder": engine_files.model,
        "replicas": [{"name": "tight-0", "url": engine.url}],
        "max_loras": MAX_LORAS,
        "max_cpu_loras": MAX_CPU_LORAS,
    }
    general = {"base_model": BASE_MODEL, "replicas": [{"name": "general-0", "url": engine.url}]}
    configuration = {
        "data_folder": folder / "data",
        "pools": {"small": pool, "general": general},
        "tasks": {TASK: {}},
    }
    async with run_engines(engine), run_gateway(configuration) as gateway:
        made = Tight(engine, Desk(gateway), folder)
        await asyncio.to_thread(fill, made)
        yield made
        made.desk.close()


def fill(tight: Tight) -> None:
    """Stage two versions: that is all that the engine takes."""
    for name in ("v1", "v2"):
        tight.desk.stage(tight.desk.push(adapter(tight.folder / name, name)))
    tight.desk.point(LIVE)


def another(tight: Tight, number: int) -> str:
    """Push one more version, which says what v2 says; its name. The same number again is the same version."""
    folder = tight.folder / f"more-{number}"
    return tight.desk.push(folder if folder.exists() else adapter(folder, "v2", strength=1 + number / 200))


async def test_versions_that_do_not_fit_are_refused_before_the_engine_is_touched(tight: Tight) -> None:
    def refuse_three() -> None:
        before = tight.touched()
        for number in range(1, 4):
            version = another(tight, number)
            answer = tight.desk.answer("POST", f"adapters/{version}/stage")
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_capacity"), answer.text
        assert tight.touched() == before
        assert len(tight.stored()) == 5, "they are entered, and wait"

    await asyncio.to_thread(refuse_three)


async def test_versions_retired_and_others_staged_delete_no_bytes_and_leave_the_engine_alive(tight: Tight) -> None:
    life = await asyncio.to_thread(life_of, tight.engine)

    def replace_one_after_another() -> None:
        stored, version = tight.stored(), f"{TASK}@v2"
        for number in range(1, REPLACED + 1):
            tight.desk.call("POST", f"adapters/{version}/retire")
            version = another(tight, number)
            tight.desk.stage(version)
            assert listed_by(tight.engine).keys() == {BASE_MODEL, LIVE, version}
            model, text = tight.desk.ask(version)
            assert (model, text.split()[0]) == (version, "hammer")
        assert stored.items() <= tight.stored().items()

    answers = await asyncio.to_thread(under_load, tight.desk.target(), Crowd(2, 0.5), 4, replace_one_after_another)
    found = count(answers, [], references(), 1, TASK + "@v{}")
    assert {name: found[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0)
    assert found["answers"] > REPLACED
    assert await asyncio.to_thread(life_of, tight.engine) == life
    assert tight.engine.restarts == 0


async def test_without_the_gateway_the_same_ends_the_engine(tight: Tight) -> None:
    """The last test here: it shows that the attack is one, on the very engine that outlived it behind the gateway."""
    engine = tight.engine
    folders = [adapter(tight.folder / f"raw-{number}", "v1") for number in range(MAX_CPU_LORAS + 1)]

    def ask(name: str) -> None:
        turns = [{"role": "user", "content": PROMPTS[0]}]
        asked = {"model": name, "messages": turns, "max_tokens": 1}
        httpx.post(f"{engine.url}/v1/chat/completions", json=asked, timeout=60)

    def register_more_than_fit_and_delete_one() -> None:
        for folder in folders:
            loaded = {"lora_name": folder.name, "lora_path": str(folder)}
            httpx.post(f"{engine.url}/v1/load_lora_adapter", json=loaded, timeout=60).raise_for_status()
            ask(folder.name)
        shutil.rmtree(folders[0])
        with contextlib.suppress(httpx.HTTPError):
            ask(folders[0].name)

    assert engine.pid is not None
    await asyncio.to_thread(register_more_than_fit_and_delete_one)
    async with asyncio.timeout(60):
        while engine.state is EngineState.RUNNING and not engine.restarts:
            await asyncio.sleep(0.1)
    engine.kill()
