"""An engine that holds three adapters: recorded traces, more versions than fit, and the same without the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from benchmarks.swap_callers import Crowd, under_load
from tests.engine.conftest import BASE_MODEL, EngineFiles, run_engines
from tests.engine.words import (
    LIMITS,
    PROMPTS,
    SLOW_SECONDS_MAX,
    TASK,
    Desk,
    adapter,
    assert_no_fault,
    in_a_thread,
    life_of,
    listed_by,
    loads_of,
    target,
    wait_until,
)
from tests.walks.gateway import run_gateway
from tests.walks.swap_trace import read_trace, replay
from tools.engines.process import EngineProcess, EngineState

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]
MAX_LORAS, MAX_CPU_LORAS = 2, 3
LIVE = f"{TASK}@v1"
REPLACED = 4
TRACES = Path(__file__).resolve().parent / "traces"


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
        """The engine's process, the adapters loaded so far, and those that it lists."""
        return life_of(self.engine), loads_of(self.engine), listed_by(self.engine)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tight_engine(engine_files: EngineFiles) -> AsyncIterator[EngineProcess]:
    """An engine of these tests' own, since it does not survive the last of them."""
    engine = engine_files.engine("tight", max_loras=MAX_LORAS, max_cpu_loras=MAX_CPU_LORAS)
    async with run_engines(engine):
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tight(
    engine_files: EngineFiles, tight_engine: EngineProcess, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Tight]:
    """A gateway in front of it: words@v1 leads, and words@v2 is ready."""
    folder, engine = tmp_path_factory.mktemp("tight"), tight_engine
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
        "limits": LIMITS,
    }
    async with run_gateway(configuration) as gateway:
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


def of_one_replica(trace: dict[str, Any], replica: str) -> dict[str, Any]:
    """The part of a trace that one engine saw. One token is enough of an answer: compared is its status."""
    steps = [copy.deepcopy(step) for step in trace["steps"] if step["replica"] == replica]
    for step in steps:
        if "max_tokens" in step.get("body", {}):
            step["body"]["max_tokens"] = 1
    return trace | {"steps": steps}


@pytest.mark.parametrize("name", sorted(path.name for path in TRACES.iterdir()))
async def test_what_gateways_asked_the_fake_engine_is_answered_alike_by_vllm(
    name: str, tight_engine: EngineProcess, tmp_path: Path
) -> None:
    """A restart of the fake is told by unloading all: what the engine lists is empty in either case."""
    trace = read_trace(TRACES / name)
    labels = {step["body"]["lora_path"] for step in trace["steps"] if "lora_path" in step.get("body", {})}
    folders = {label: adapter(tmp_path / label, "v1", 1 + at / 200) for at, label in enumerate(sorted(labels))}

    async def unload_all(_: str) -> None:
        async with httpx.AsyncClient(base_url=tight_engine.url, timeout=SLOW_SECONDS_MAX) as http:
            for listed in (await asyncio.to_thread(listed_by, tight_engine)).keys() - {BASE_MODEL}:
                await http.post("/v1/unload_lora_adapter", json={"lora_name": listed})

    life = await asyncio.to_thread(life_of, tight_engine)
    assert labels
    for replica in trace["replicas"]:
        part = of_one_replica(trace, replica)
        differences = await replay(part, {replica: tight_engine.url}, folders, unload_all, BASE_MODEL)
        assert differences == []
        await unload_all(replica)
    assert await asyncio.to_thread(life_of, tight_engine) == life


@in_a_thread
def test_versions_that_do_not_fit_are_refused_before_the_engine_is_touched(tight: Tight) -> None:
    before = tight.touched()
    stored = len(tight.stored())
    for number in range(1, 4):
        version = another(tight, number)
        answer = tight.desk.answer("POST", f"adapters/{version}/stage")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_capacity"), answer.text
    assert tight.touched() == before
    assert len(tight.stored()) == stored + 3, "they are entered, and wait"


@in_a_thread
def test_retiring_and_staging_versions_deletes_no_bytes_and_kills_no_engine(tight: Tight) -> None:
    life = life_of(tight.engine)

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

    answers = under_load(target(tight.desk), Crowd(2, 0.5), 4, replace_one_after_another)
    assert assert_no_fault(tight.desk, answers, [])["answers"] > REPLACED
    assert life_of(tight.engine) == life
    assert tight.engine.restarts == 0


def ask_for_a_token(engine: EngineProcess, model: str) -> None:
    """One request to the engine itself, whatever it answers."""
    turns = [{"role": "user", "content": PROMPTS[0]}]
    httpx.post(
        f"{engine.url}/v1/chat/completions",
        json={"model": model, "messages": turns, "max_tokens": 1},
        timeout=SLOW_SECONDS_MAX,
    )


@in_a_thread
def test_without_the_gateway_the_same_ends_the_engine(tight: Tight) -> None:
    """The last test here: it shows that the attack is one, on the very engine that outlived it behind the gateway."""
    engine = tight.engine
    folders = [adapter(tight.folder / f"raw-{number}", "v1") for number in range(MAX_CPU_LORAS + 1)]
    for folder in folders:
        loaded = {"lora_name": folder.name, "lora_path": str(folder)}
        httpx.post(f"{engine.url}/v1/load_lora_adapter", json=loaded, timeout=SLOW_SECONDS_MAX).raise_for_status()
        ask_for_a_token(engine, folder.name)
    assert engine.state is EngineState.RUNNING
    shutil.rmtree(folders[0])
    with contextlib.suppress(httpx.HTTPError):
        ask_for_a_token(engine, folders[0].name)
    wait_until(lambda: engine.state is not EngineState.RUNNING, "the engine has ended")
