"""Adapters at runtime, through the admin API: placed, swapped while requests flow, recovered after every restart."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from gateway.callers import new_key
from gateway.features.releases.reconciling import reconcile_once
from gateway.features.releases.state import Releases
from tests.fakes.adapters import BASE_CONFIG, write_base
from tests.fakes.engine import FakeEngine
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

ASK = {"messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}]}


async def test_a_swap_is_one_call_and_no_request_under_way_changes_its_version(
    gateway: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.n_tokens, small.token_delay_seconds = 40, 0.01
    await gateway.place(make_adapter(2), alias=False)
    async with gateway.openai() as client:
        stream = await client.chat.completions.create(model="returns", stream=True, **ASK)
        first = await anext(aiter(stream))
        async with gateway.http() as http:
            swap = {"version": "returns@v2", "expected_generation": 1}
            answer = await http.put("/admin/v1/aliases/returns", json=swap)
            assert answer.json().get("generation") == 2, answer.text
        after = await client.chat.completions.create(model="returns", max_tokens=2, **ASK)
        rest = [chunk async for chunk in stream]
    assert {first.model} | {chunk.model for chunk in rest} == {"returns@v1"}
    assert rest[-1].choices[0].finish_reason
    assert after.model == "returns@v2"


@pytest.mark.invariant("A swap drops, breaks and mixes no answer, and loads nothing.")
async def test_swaps_back_and_forth_under_load_drop_and_mix_nothing(
    gateway: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    await gateway.place(make_adapter(2), alias=False)
    digests = {name: small.speaks(name).digest[:6] for name in ("returns@v1", "returns@v2")}
    over = asyncio.Event()
    answered = 0

    async def ask_on(stream: bool) -> None:
        nonlocal answered
        async with gateway.openai() as client:
            while not over.is_set():
                if stream:
                    chunks = [
                        c async for c in await client.chat.completions.create(model="returns", stream=True, **ASK)
                    ]
                    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
                    models = {c.model for c in chunks}
                else:
                    answer = await client.chat.completions.create(model="returns", **ASK)
                    text, models = answer.choices[0].message.content or "", {answer.model}
                assert len(models) == 1
                assert text.startswith(f"{models.copy().pop()}#{digests[models.pop()]} says:")
                answered += 1

    asking = [asyncio.create_task(ask_on(number % 2 == 0)) for number in range(6)]
    async with gateway.http() as http:
        for number in range(20):
            swap = {"version": f"returns@v{2 - number % 2}"}
            assert (await http.put("/admin/v1/aliases/returns", json=swap)).status_code == 200
            seen = answered
            while answered < seen + 3 and not any(task.done() for task in asking):
                await asyncio.sleep(0.002)
    over.set()
    await asyncio.gather(*asking)
    assert answered >= 60


async def test_the_same_adapter_again_is_the_same_version(gateway: RunningGateway, tmp_path: Path) -> None:
    async with gateway.http() as http:
        body = {"task": "returns", "path": str(tmp_path / "adapter-1")}
        again = await http.post("/admin/v1/adapters", json=body)
        listed = (await http.get("/admin/v1/adapters")).json()["adapters"]
    assert again.json()["version"] == "returns@v1"
    assert [row["version"] for row in listed] == ["returns@v1"]
    assert (listed[0]["state"], listed[0]["share"], listed[0]["ready"]) == ("active", 1.0, ["small-0"])


async def test_one_of_those_who_push_the_same_adapter_at_once_has_created_it(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with (
        run_gateway(configure()) as one,
        run_gateway(configure()) as two,
        one.http() as http,
        two.http() as other,
    ):
        for number in range(1, 5):
            body = {"task": "returns", "path": str(make_adapter(number))}
            pushed = await asyncio.gather(*(each.post("/admin/v1/adapters", json=body) for each in (http, other) * 2))
            assert {answer.json()["version"] for answer in pushed} == {f"returns@v{number}"}
            assert sum(answer.json()["created"] for answer in pushed) == 1


async def test_a_version_whose_golden_answer_is_another_is_quarantined_and_taken_off(
    gateway: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers["returns@v2"] = "not what its manifest expects"
    async with gateway.http() as http:
        folder = make_adapter(2, expected="approve")
        imported = await http.post("/admin/v1/adapters", json={"task": "returns", "path": str(folder)})
        assert imported.status_code == 201
        loaded = await http.post("/admin/v1/adapters/returns@v2/stage")
        assert (loaded.status_code, loaded.json()["error"]["code"]) == (409, "state_conflict")
        assert "quarantined" in loaded.json()["error"]["message"]
        moved = await http.put("/admin/v1/aliases/returns", json={"version": "returns@v2"})
        assert moved.status_code == 409
    assert "returns@v2" not in small.adapters.registered


async def test_a_version_is_unloaded_once_no_alias_sends_to_it(
    gateway: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    await gateway.place(make_adapter(2))
    async with gateway.http() as http:
        assert (await http.post("/admin/v1/adapters/returns@v1/unload")).status_code == 200
        assert set(small.adapters.registered) == {"returns@v2"}
        assert (await http.post("/admin/v1/adapters/returns@v1/stage")).status_code == 200
        assert (await http.put("/admin/v1/aliases/returns", json={"version": "returns@v1"})).status_code == 200
    async with gateway.openai() as client:
        assert (await client.chat.completions.create(model="returns", **ASK)).model == "returns@v1"


async def test_a_restarted_gateway_adopts_what_is_loaded_and_loads_nothing_again(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with run_gateway(configure()) as first:
        await first.place(make_adapter(1))
    loads = sum(call.path == "/v1/load_lora_adapter" for call in small.calls)
    async with run_gateway(configure()) as second, second.openai() as client:
        answer = await client.chat.completions.create(model="returns", **ASK)
        assert answer.model == "returns@v1"
        async with second.http() as http:
            assert (await http.post("/admin/v1/adapters/returns@v1/stage")).status_code == 200
    assert sum(call.path == "/v1/load_lora_adapter" for call in small.calls) == loads


async def test_a_second_gateway_sees_a_swap_within_its_interval(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    admin_key = new_key()[0]
    async with run_gateway(configure(), admin_key) as one, run_gateway(configure(), admin_key) as two:
        await one.place(make_adapter(1))
        await one.place(make_adapter(2))
        async with two.openai() as client, asyncio.timeout(30):
            while (await client.chat.completions.create(model="returns", **ASK)).model != "returns@v2":
                await asyncio.sleep(0.02)


@pytest.mark.invariant("A version's bytes never change under its name.")
async def test_other_bytes_under_a_versions_name_are_never_served(
    gateway: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    await small.restart()
    replica = gateway.services.fleet.replicas["small-0"]
    small.load("returns@v1", make_adapter(9))
    await small.until(lambda: replica.seen.get("returns@v1", "").endswith("adapter-9"))
    async with gateway.openai() as client:
        answer = await client.chat.completions.with_raw_response.create(model="returns", **ASK)
    assert answer.headers["x-apprentice-pool"] == "general"
    assert answer.headers["x-apprentice-reason"] == "no_replica"


async def test_a_version_is_not_served_on_another_base_model(
    configure: Configure, make_adapter: MakeAdapter, base_folder: Path, small: FakeEngine
) -> None:
    async with run_gateway(configure()) as first:
        await first.place(make_adapter(1))
    write_base(base_folder, BASE_CONFIG, seed=7)
    async with run_gateway(configure()) as second, second.openai() as client:
        answer = await client.chat.completions.with_raw_response.create(model="returns", **ASK)
        async with second.http() as http:
            loaded = await http.post("/admin/v1/adapters/returns@v1/stage")
    assert (answer.headers["x-apprentice-pool"], answer.headers["x-apprentice-reason"]) == ("general", "no_replica")
    assert loaded.status_code == 409
    assert "another base model" in loaded.json()["error"]["message"]


async def test_an_adapter_goes_to_the_first_pool_whose_base_it_fits(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path, other: FakeEngine
) -> None:
    base = write_base(tmp_path / "another-base", BASE_CONFIG, seed=7)
    config, folder = configure(), make_adapter(1)
    replicas = [{"name": "another-0", "url": other.url}]
    another = {"base_model": "another-base", "base_folder": tmp_path / "another-base", "replicas": replicas}
    asked = {"task": "returns", "path": str(folder)}
    async with run_gateway(configure(pools={"another": another, **config["pools"]})) as running, running.http() as http:
        pushed = await http.post("/admin/v1/adapters", json=asked)
        assert (pushed.status_code, pushed.json().get("pool")) == (201, "small")
        manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
        (folder / "manifest.yaml").write_text(yaml.safe_dump({**manifest, "base_fingerprint": base.fingerprint}))
        refused = await http.post("/admin/v1/adapters", json={**asked, "pool": "small"})
    text = f"The pool small does not serve the adapter's base model ({base.fingerprint})."
    assert (refused.status_code, refused.json()["error"]["message"]) == (422, text)


async def test_a_version_whose_pool_is_gone_says_so_where_it_is_staged(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    config = configure()
    async with run_gateway(config) as first:
        await first.place(make_adapter(1))
    pools = {"little" if name == "small" else name: pool for name, pool in config["pools"].items()}
    async with run_gateway(configure(pools=pools)) as second, second.http() as http:
        staged = await http.post("/admin/v1/adapters/returns@v1/stage")
    error = staged.json()["error"]
    assert (staged.status_code, error["code"]) == (409, "state_conflict")
    assert error["message"] == "returns@v1 is for the pool small, and none of this name takes adapters: push it again."


async def test_who_stages_a_version_is_told_that_it_was_taken_off_meanwhile(
    gateway: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.load_delay_seconds = 1.0
    async with gateway.http() as http, gateway.http() as other:
        body = {"task": "returns", "path": str(make_adapter(2))}
        version = (await http.post("/admin/v1/adapters", json=body)).json()["version"]
        staging = asyncio.create_task(http.post(f"/admin/v1/adapters/{version}/stage"))
        await until(lambda: gateway.services.snapshot.current.versions[version].state == "staging")
        await other.post(f"/admin/v1/adapters/{version}/unload", params={"wait_seconds": 0})
        error = (await staging).json()["error"]
    told = f"{version} was not loaded and is verified: it was taken off again meanwhile."
    assert (error["code"], error["message"]) == ("state_conflict", told)


async def test_an_alias_never_ends_on_a_version_that_was_unloaded_meanwhile(
    gateway: RunningGateway, make_adapter: MakeAdapter
) -> None:
    await gateway.place(make_adapter(2), alias=False)
    async with gateway.http() as one, gateway.http() as two:
        for _ in range(10):
            assert (await one.post("/admin/v1/adapters/returns@v2/stage")).status_code == 200
            await asyncio.gather(
                one.put("/admin/v1/aliases/returns", json={"version": "returns@v2"}),
                two.post("/admin/v1/adapters/returns@v2/unload"),
            )
            listed = (await one.get("/admin/v1/adapters")).json()["adapters"]
            assert [row["state"] for row in listed if row["share"] > 0] == ["active"]
            assert (await one.put("/admin/v1/aliases/returns", json={"version": "returns@v1"})).status_code == 200


async def test_another_installations_adapter_of_the_same_name_is_left_alone(
    gateway: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with gateway.http() as http:
        body = {"task": "returns", "path": str(make_adapter(2))}
        assert (await http.post("/admin/v1/adapters", json=body)).json()["version"] == "returns@v2"
    small.load("returns@v2", make_adapter(3))
    await small.until(lambda: "returns@v2" in gateway.services.fleet.replicas["small-0"].seen)
    await reconcile_once(gateway.features[Releases])
    assert "returns@v2" in small.adapters.registered


async def test_a_store_without_room_is_told_to_who_sends_an_adapter_for_a_state(
    gateway: RunningGateway, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.services.control.adapters.store, "_free_bytes_min", 1 << 60)
    folder = make_adapter(2)
    files = {path.name: (path.name, path.read_bytes()) for path in folder.iterdir()}
    async with gateway.http() as http:
        answer = await http.post("/admin/v1/state/adapters", data={"pool": "small"}, files=files)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "adapter_rejected")
    assert "too little room" in answer.json()["error"]["message"]


async def test_a_key_that_is_deleted_is_refused_at_once(gateway: RunningGateway) -> None:
    key = await gateway.key()
    async with gateway.http() as http, gateway.http(key) as caller:
        assert (await caller.get("/v1/models")).status_code == 200
        public = key.split("-")[2]
        assert (await http.delete(f"/admin/v1/callers/{public}")).status_code == 200
        assert (await caller.get("/v1/models")).status_code == 401


async def test_the_audit_tells_who_did_what_and_its_chain_holds(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        entries = (await http.get("/admin/v1/audit?limit=1000")).json()["entries"]
        limited = await http.get("/admin/v1/audit?limit=1001")
    assert [entry["action"] for entry in entries] == ["adapter.add", "adapter.stage", "alias.move"]
    assert {entry["actor"] for entry in entries} == {gateway.admin_key.split("-")[2]}
    assert all(later["previous"] == earlier["digest"] for earlier, later in pairwise(entries))
    assert limited.status_code == 400


async def test_a_contract_that_can_not_be_checked_is_refused_when_it_is_pushed(
    gateway: RunningGateway, make_adapter: MakeAdapter
) -> None:
    folder = make_adapter(2)
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    (folder / "manifest.yaml").write_text(yaml.safe_dump({**manifest, "contract": {"regex": "(unclosed"}}))
    async with gateway.http() as http:
        refused = await http.post("/admin/v1/adapters", json={"task": "returns", "path": str(folder)})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "adapter_rejected")
    assert "contract.regex" in refused.json()["error"]["message"]
