"""The fake engine's adapters: loaded, told apart, unloaded, evicted and lost as in vLLM."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.adapters import write_adapter
from tests.fakes.asking import chat, events, post, text_of
from tests.fakes.engine import FakeEngine, adapter_digest
from tests.fakes.faults import (
    Lost,
)


async def load(http: httpx.AsyncClient, name: str, path: Path, **more: Any) -> httpx.Response:
    return await http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path), **more})


async def test_loading_and_unloading_answer_as_vllm(http: httpx.AsyncClient, v1: Path) -> None:
    loaded = await load(http, "returns@v1", v1)
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'returns@v1' added successfully.")
    listed = (await http.get("/v1/models")).json()["data"]
    assert [(one["id"], one["root"], one["parent"]) for one in listed] == [
        ("base-model", "/models/base-model", None),
        ("returns@v1", str(v1), "base-model"),
    ]
    again = await load(http, "returns@v1", v1)
    assert (again.status_code, again.json()["error"]["type"]) == (400, "InvalidUserInput")
    assert "has already been loaded" in again.json()["error"]["message"]
    gone = await http.post("/v1/unload_lora_adapter", json={"lora_name": "returns@v1"})
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'returns@v1' removed successfully.")
    twice = await http.post("/v1/unload_lora_adapter", json={"lora_name": "returns@v1"})
    assert twice.json() == {
        "error": {
            "message": "The lora adapter 'returns@v1' cannot be found.",
            "type": "NotFoundError",
            "param": None,
            "code": 404,
        }
    }


async def test_what_cannot_be_loaded_is_refused(http: httpx.AsyncClient, v1: Path, tmp_path: Path) -> None:
    missing = await load(http, "a", tmp_path / "nowhere")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "NotFoundError")
    assert (await load(http, "a", Path("relative"))).status_code == 404
    high = await load(http, "a", write_adapter(tmp_path / "high", rank=32))
    assert (high.status_code, high.json()["error"]["message"]) == (
        500,
        "LoRA rank 32 is greater than max_lora_rank 16.",
    )
    assert (await load(http, "base-model", v1)).status_code == 400
    assert (await http.post("/v1/load_lora_adapter", json={"lora_name": "a"})).json()["error"]["param"] == (
        "body.lora_path"
    )
    weights = v1 / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for broken in (b"", whole[:-10], b"\xff" * 100, (2).to_bytes(8, "little") + b"{}"):
        weights.write_bytes(broken)
        assert (await load(http, "a", v1)).status_code == 500
    weights.unlink()
    assert (await load(http, "a", v1)).status_code == 500
    assert len((await http.get("/v1/models")).json()["data"]) == 1


async def test_versions_are_told_apart_by_their_answers(
    http: httpx.AsyncClient, engine: FakeEngine, v1: Path, v2: Path
) -> None:
    engine.load("returns@v1", v1)
    engine.load("returns@v2", v2)
    said = {}
    for name, path in (("returns@v1", v1), ("returns@v2", v2), ("base-model", None)):
        body = (await post(http, chat(name))).json()
        assert body["model"] == name
        said[name] = body["choices"][0]["message"]["content"]
        digest = engine.speaks(name).digest
        assert said[name].startswith(f"{name}#{digest[:6]} says:")
        assert path is None or digest == adapter_digest(path) == engine.requests[-1].adapter_digest
    assert len({text.partition(" says:")[2] for text in said.values()}) == 3


async def test_an_unloaded_name_is_gone_at_once_but_running_streams_finish(
    http: httpx.AsyncClient, engine: FakeEngine, v1: Path
) -> None:
    engine.load("returns@v1", v1)
    engine.token_delay_seconds = 0.01
    running = asyncio.create_task(post(http, chat("returns@v1", stream=True)))
    await engine.until(lambda: engine.in_flight == 1 and engine.requests[0].tokens > 0)
    await http.post("/v1/unload_lora_adapter", json={"lora_name": "returns@v1"})
    assert (await post(http, chat("returns@v1"))).status_code == 404
    assert events(await running)[-1] == "[DONE]"
    assert len(engine.adapters.ghosts) == 1


async def test_lost_directory_of_an_evicted_adapter_kills_the_engine_and_other_streams(
    engine: FakeEngine, http: httpx.AsyncClient, v1: Path, v2: Path
) -> None:
    engine.max_cpu_loras = 1
    await engine.restart()
    engine.load("returns@v1", v1)
    engine.load("returns@v2", v2)
    assert (len(engine.adapters.resident), engine.adapters.evicted) == (1, 1)
    assert (await post(http, chat("returns@v1"))).status_code == 200  # read again from the disk, which evicts v2
    (v2 / "adapter_config.json").unlink()
    engine.token_delay_seconds = 0.02
    innocent = asyncio.create_task(post(http, chat(stream=True)))
    await engine.until(lambda: engine.in_flight == 1 and engine.requests[-1].tokens > 0)
    guilty = await post(http, chat("returns@v2"))
    found = events(await innocent)
    assert guilty.status_code == 500
    assert found[-2]["error"]["type"] == "InternalServerError"
    assert found[-1] == "[DONE]"
    async with asyncio.timeout(30):
        await engine.ended.wait()
    with pytest.raises(httpx.ConnectError):
        await http.get("/health")


async def test_a_dead_engine_may_be_told_to_live_on(engine: FakeEngine, http: httpx.AsyncClient, v1: Path) -> None:
    engine.dies_with_lost_adapter = False
    engine.load("returns@v1", v1)
    engine.adapters.resident.clear()
    (v1 / "adapter_config.json").unlink()
    assert (await post(http, chat("returns@v1"))).status_code == 500
    assert (await post(http, chat())).status_code == 200


async def test_in_place_loading_reads_the_disk_at_every_step_and_mixes_two_versions(
    engine: FakeEngine, http: httpx.AsyncClient, v1: Path, v2: Path
) -> None:
    assert (await load(http, "returns", v1, load_inplace=True)).status_code == 200
    engine.token_delay_seconds = 0.01
    running = asyncio.create_task(post(http, chat("returns", stream=True)))
    await engine.until(lambda: engine.in_flight == 1 and engine.requests[0].tokens >= 3)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (v1 / name).write_bytes((v2 / name).read_bytes())
    mixed = text_of(events(await running))
    engine.token_delay_seconds = 0
    after = (await post(http, chat("returns"))).json()["choices"][0]["message"]["content"]
    assert mixed != after
    assert mixed.split()[-1] == after.split()[-1]


@pytest.mark.parametrize("at_first_in_place", [True, False])
async def test_loading_another_folder_in_place_changes_a_stream_that_runs(
    engine: FakeEngine, http: httpx.AsyncClient, v1: Path, v2: Path, at_first_in_place: bool
) -> None:
    await load(http, "returns", v1, load_inplace=at_first_in_place)
    whole = (await post(http, chat("returns"))).json()["choices"][0]["message"]["content"]
    engine.token_delay_seconds = 0.01
    running = asyncio.create_task(post(http, chat("returns", stream=True)))
    await engine.until(lambda: engine.in_flight == 1 and engine.requests[-1].tokens >= 3)
    await load(http, "returns", v2, load_inplace=True)
    after = (await post(http, chat("returns"))).json()["choices"][0]["message"]["content"]
    mixed = text_of(events(await running))
    assert mixed.startswith(" ".join(whole.split()[:3]))
    assert mixed != whole
    assert after.startswith(f"returns#{adapter_digest(v2)[:6]} ")


async def test_other_bytes_under_the_same_name_and_path_meet_a_stale_cache(
    engine: FakeEngine, http: httpx.AsyncClient, v1: Path, v2: Path
) -> None:
    engine.load("returns", v1)
    await post(http, chat("returns"))
    engine.adapters.unload("returns")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (v1 / name).write_bytes((v2 / name).read_bytes())
    engine.load("returns", v1)
    stale = (await post(http, chat("returns"))).json()["choices"][0]["message"]["content"]
    assert not stale.startswith(f"returns#{adapter_digest(v2)[:6]} ")
    other = await post(http, chat("returns") | {"messages": [{"role": "user", "content": "Another prompt"}]})
    assert other.json()["choices"][0]["message"]["content"].startswith(f"returns#{adapter_digest(v2)[:6]} ")


async def test_more_adapters_in_flight_than_slots_wait_without_an_error(
    engine: FakeEngine, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    engine.max_loras = 1
    await engine.restart()
    for number in range(3):
        engine.load(f"a@v{number}", write_adapter(tmp_path / str(number), seed=number))
    engine.token_delay_seconds = 0.002
    asked = [asyncio.create_task(post(http, chat(f"a@v{number}"))) for number in range(3)]
    await engine.until(lambda: engine.adapters.waiting == 2)
    info = (await http.get("/metrics")).text
    assert 'running_lora_adapters="a@v' in info
    assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
    assert (engine.adapters.waiting, engine.adapters.running) == (0, [])


async def test_a_slow_load_takes_its_time(engine: FakeEngine, http: httpx.AsyncClient, v1: Path) -> None:
    engine.load_delay_seconds = 0.1
    began = time.monotonic()
    await load(http, "returns@v1", v1)
    assert time.monotonic() - began >= 0.1


async def test_a_lost_answer_to_a_load_has_loaded_all_the_same(
    engine: FakeEngine, http: httpx.AsyncClient, v1: Path
) -> None:
    engine.faults.add(Lost(), path="/v1/load_lora_adapter", times=1)
    with pytest.raises(httpx.ReadError):
        await load(http, "returns@v1", v1)
    assert engine.calls[-1].status is None
    assert "returns@v1" in (await http.get("/v1/models")).text
    assert (await load(http, "returns@v1", v1)).status_code == 400
