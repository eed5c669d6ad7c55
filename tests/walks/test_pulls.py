"""Adapters pulled from where training leaves them: over sockets, from S3, an OCI registry, and a hub."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import yaml
from redis.exceptions import ConnectionError as Disconnected

from gateway.background import jobs
from gateway.features.pulls import job
from gateway.features.pulls.job import PullingWork
from gateway.features.pulls.state import Pulls
from gateway.state.work_store import WorkStore
from serving.adapters.adapter_folder import WEIGHTS_FILE
from serving.adapters.artifact_digest import digest_adapter
from serving.adapters.sources import fetching
from serving.adapters.sources.fetch_job import FetchJob, FetchSettings
from tests.fakes.sources import (
    PASSWORD,
    USER,
    Hub,
    give_credentials,
    google_storage,
    hub,
    oci_registry,
    put_objects,
    s3_server,
    token_service,
)
from tests.gateway.cli.conftest import run
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

DIGEST = "sha256:" + "0" * 64


async def pulled(gateway: RunningGateway, address: str, **body: Any) -> dict[str, Any]:
    """A pull at its end."""
    async with gateway.http() as http, asyncio.timeout(170):
        answer = await http.post("/admin/v1/pulls", json={"address": address, "task": "returns", **body})
        assert answer.status_code == 202, answer.text
        told: dict[str, Any] = answer.json()
        while told["state"] == "running":
            await asyncio.sleep(0.05)
            told = (await http.get(f"/admin/v1/pulls/{told['id']}")).json()
        return told


def left(gateway: RunningGateway) -> list[str]:
    """The folders that pulls have left in the store."""
    return [path.name for path in gateway.services.control.adapters.store.folder.glob(".incoming-*")]


async def ends_with(gateway: RunningGateway, actions: list[str]) -> bool:
    """True where these are the audit's newest actions."""
    return [entry.action for entry in await gateway.services.control.audit.read(limit=100)][-len(actions) :] == actions


@pytest.fixture
async def hugging_face() -> AsyncIterator[Hub]:
    async with hub() as running:
        yield running


def with_hub(configure: Configure, hugging_face: Hub, **more: Any) -> dict[str, Any]:
    return configure(pulls={"allowed": ["hf://shop"], "hf_endpoint_url": hugging_face.url, **more})


@pytest.mark.timeout(600)
@pytest.mark.invariant("A pulled adapter is verified as an uploaded one is.")
async def test_an_adapter_in_a_bucket_becomes_a_version_and_answers(
    configure: Configure, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_credentials(monkeypatch)
    folder = make_adapter(1)
    (folder / "tokenizer.json").write_text("{}")
    async with s3_server() as url:
        await put_objects(url, folder, "returns/run-7")
        allowed = {"allowed": ["s3://models/returns/"], "s3_endpoint_url": url}
        async with run_gateway(configure(pulls=allowed)) as gateway:
            told = await pulled(gateway, "s3://models/returns/run-7", digest=digest_adapter(folder))
            assert (told["state"], told["version"], told["error"]) == ("done", "returns@v1", "")
            assert told["left_out"] == ["'tokenizer.json'"]
            await until(lambda: not left(gateway))  # they go after the pull's end
            missing = await pulled(gateway, "s3://models/returns/run-8")
            assert "There is nothing at s3://models/returns/run-8" in missing["error"]
            wrong = await pulled(gateway, "s3://models/returns/run-7", digest=DIGEST)
            assert f"not {DIGEST}: nothing was taken" in wrong["error"]
            async with gateway.http() as http:
                assert (await http.post("/admin/v1/adapters/returns@v1/stage")).status_code == 200
                assert (await http.put("/admin/v1/aliases/returns", json={"version": "returns@v1"})).status_code == 200
            async with gateway.openai() as client:
                answer = await client.chat.completions.create(
                    model="returns", messages=[{"role": "user", "content": "A toaster."}]
                )
                assert answer.model == "returns@v1"


async def test_an_adapter_in_google_storage_becomes_a_version(
    configure: Configure, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with google_storage(tmp_path / "gs") as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setenv("NO_GCE_CHECK", "true")  # nothing but the emulator is asked
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else it asks the emulator by gRPC
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            for path in make_adapter(1).iterdir():
                query = {"uploadType": "media", "name": f"returns/{path.name}"}
                stored = await http.post("/upload/storage/v1/b/models/o", params=query, content=path.read_bytes())
                stored.raise_for_status()
        async with run_gateway(configure(pulls={"allowed": ["gs://models"]})) as gateway:
            told = await pulled(gateway, "gs://models/returns")
            assert (told["state"], told["version"], told["source"]) == ("done", "returns@v1", "gs://models/returns"), (
                told
            )


async def test_an_address_of_another_fsspec_package_is_pulled_or_its_package_named(
    configure: Configure, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_credentials(monkeypatch)
    async with s3_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        await put_objects(url, make_adapter(1), "returns")
        pulls = {"allowed": ["s3a://models", "az://models", "nosuch://models", "file://tmp"]}
        async with run_gateway(configure(pulls=pulls)) as gateway:
            told = await pulled(gateway, "s3a://models/returns")
            assert (told["state"], told["version"]) == ("done", "returns@v1"), told
            assert "Install adlfs" in (await pulled(gateway, "az://models/returns"))["error"]
            assert "Protocol not known: nosuch" in (await pulled(gateway, "nosuch://models/returns"))["error"]


def test_a_store_that_refuses_the_first_connection_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems connect before anything is listed."""
    monkeypatch.setattr(fetching, "WAIT_SECONDS", 0.0)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # it does not listen
        address = f"ftp://127.0.0.1:{nobody.getsockname()[1]}/returns"
        wanted = FetchJob(
            address=address,
            folder=str(tmp_path),
            digest="",
            size_bytes_max=1 << 20,
            free_bytes_min=0,
            settings=FetchSettings(),
        )
        result = fetching.fetch(wanted, lambda *_: None)
    assert result.error == f"{address} broke off (ConnectionRefusedError). What came is kept: pull it again to go on."


@pytest.mark.parametrize(
    "address",
    [
        *("file://etc/passwd", "local://etc", "http://169.254.169.254/latest", "https://shop.example/a", "memory://a"),
        *("simplecache::s3://models/a", "zip://a::s3://models/b", "ftp://user:secret@host/a", "az://models/../a"),
        "sftp://host/a?b=c",
    ],
)
async def test_addresses_that_lead_to_the_own_machine_or_anywhere_are_refused(
    configure: Configure, address: str
) -> None:
    allowed = {"allowed": [f"{address.partition('://')[0].split(':')[0]}://etc"]}
    async with run_gateway(configure(pulls=allowed)) as gateway, gateway.http() as http:
        refused = await http.post("/admin/v1/pulls", json={"address": address, "task": "returns"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "adapter_rejected")
    assert any(words in refused.text for words in ("is of no known kind", "has not the form"))


async def test_a_bucket_that_refuses_names_the_credentials_and_where_they_go(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(s3_server(INITIAL_NO_AUTH_ACTION_COUNT="1"))
        pulls = {"allowed": ["s3://models"], "s3_endpoint_url": url}
        gateway = await stack.enter_async_context(run_gateway(configure(pulls=pulls)))
        without = await pulled(gateway, "s3://models/returns")
        give_credentials(monkeypatch)
        refused = await pulled(gateway, "s3://models/returns")
    assert "There are no credentials for s3://models/returns" in without["error"]
    assert "refuses access (403)" in refused["error"]
    assert "AWS_ACCESS_KEY_ID" in refused["error"]


@pytest.mark.parametrize("by_token", [False, True])
async def test_an_artifact_of_a_registry_becomes_a_version(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path, by_token: bool
) -> None:
    auth = tmp_path / "auth.json"
    async with token_service() as tokens, oci_registry(tmp_path / "oci", tokens if by_token else None) as registry:
        folder = make_adapter(1)
        digest = await registry.push("shop/returns", folder)
        address = f"oci://{registry.host}/shop/returns@{digest}"
        credentials = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        pulls = {"allowed": [f"oci://{registry.host}/shop"], "plain_registries": [registry.host]}
        async with run_gateway(configure(pulls={**pulls, "registry_auth_file": auth})) as gateway:
            auth.write_text(json.dumps({"auths": {}}))
            refused = await pulled(gateway, address)
            assert "wants other credentials (401)" in refused["error"]
            assert "pulls.registry_auth_file" in refused["error"]
            auth.write_text(json.dumps({"auths": {registry.host: {"auth": credentials}}}))
            told = await pulled(gateway, address)
            assert (told["state"], told["version"], told["source"]) == ("done", "returns@v1", address), told
            assert tokens.asked == (2 if by_token else 0)
            other = await pulled(gateway, f"oci://{registry.host}/shop/returns@{DIGEST}")
            assert "has no such adapter (404)" in other["error"]


async def test_bytes_that_a_registry_has_changed_are_refused_and_not_kept(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    async with oci_registry(tmp_path / "oci") as registry:
        folder = make_adapter(1)
        weights = (folder / "adapter_model.safetensors").read_bytes()
        address = f"oci://{registry.host}/shop/returns@{await registry.push('shop/returns', folder)}"
        auth = tmp_path / "auth.json"
        credentials = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        auth.write_text(json.dumps({"auths": {registry.host: {"auth": credentials}}}))
        pulls = {"allowed": [f"oci://{registry.host}"], "plain_registries": [registry.host], "registry_auth_file": auth}
        async with run_gateway(configure(pulls=pulls)) as gateway:
            registry.path(weights).write_bytes(weights[:-1] + b"\0")
            changed = await pulled(gateway, address)
            assert "adapter_model.safetensors has the digest" in changed["error"]
            registry.path(weights).write_bytes(weights)
            assert (await pulled(gateway, address))["state"] == "done"


async def test_a_pull_that_broke_off_goes_on_where_it_was(
    configure: Configure, make_adapter: MakeAdapter, hugging_face: Hub, tmp_path: Path
) -> None:
    commit = hugging_face.commit(make_adapter(1))
    hugging_face.token = "hf_secret"
    (tmp_path / "token").write_text("hf_secret\n")
    async with run_gateway(with_hub(configure, hugging_face, hf_token_file=tmp_path / "token")) as gateway:
        hugging_face.cuts = [100, 50, 0, 0, 0]
        broken = await pulled(gateway, "hf://shop/returns@main")
        assert broken["state"] == "failed"
        assert "What came is kept" in broken["error"]
        assert len(left(gateway)) == 1
        told = await pulled(gateway, "hf://shop/returns@main")
        assert (told["state"], told["source"]) == ("done", f"hf://shop/returns@{commit}"), told
        weights = [line for line in hugging_face.ranges if line.startswith("adapter_model")]
        assert weights == [
            "adapter_model.safetensors",
            "adapter_model.safetensors bytes=100-",
            *["adapter_model.safetensors bytes=150-"] * 4,
        ]
        await until(lambda: not left(gateway))
        wanted = ["pull.begin", "pull.failed", "pull.begin", "adapter.add", "pull.done"]
        # its entry is drafted with a pull's end, and entered after it
        await until(lambda: ends_with(gateway, wanted), f"the audit ends with {wanted}")


async def test_a_pull_that_is_cancelled_makes_way_for_those_behind_it(
    configure: Configure, make_adapter: MakeAdapter, hugging_face: Hub
) -> None:
    hugging_face.commit(make_adapter(1))
    hugging_face.stalls = stalls = asyncio.Event()
    async with run_gateway(with_hub(configure, hugging_face)) as gateway, gateway.http() as http:
        body = {"address": "hf://shop/returns@main", "task": "returns"}
        slow, waiting = [(await http.post("/admin/v1/pulls", json=body)).json() for _ in range(2)]
        await until(lambda: bool(hugging_face.ranges))
        place = {"APPRENTICE_URL": gateway.url, "APPRENTICE_KEY": gateway.admin_key}
        shown = await asyncio.to_thread(run, "adapters", "pulls", "--cancel", waiting["id"], **place)
        assert "It was cancelled" in shown.out
        last = asyncio.create_task(pulled(gateway, "hf://shop/returns@main"))
        cancelled = await http.delete(f"/admin/v1/pulls/{slow['id']}")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "failed"), cancelled.text
        hugging_face.stalls = None
        assert (await last)["state"] == "done"
        again = await http.delete(f"/admin/v1/pulls/{slow['id']}")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "state_conflict")
        assert (await http.delete("/admin/v1/pulls/none")).status_code == 404
        listed = (await http.get("/admin/v1/pulls")).json()["pulls"]
        assert [pull["state"] for pull in listed] == ["done", "failed", "failed"]
    stalls.set()


async def test_a_pull_that_is_cancelled_at_its_end_leaves_no_version(
    configure: Configure, make_adapter: MakeAdapter, hugging_face: Hub
) -> None:
    hugging_face.commit(make_adapter(1))
    async with run_gateway(with_hub(configure, hugging_face)) as gateway:
        ended = await pulled(gateway, "hf://shop/returns@nowhere")
        pull = await gateway.features[Pulls].store.get(ended["id"])
        assert pull is not None
        running = msgspec.structs.replace(pull, address="hf://shop/returns@main", state="running", error="")
        result = await PullingWork(gateway.features[Pulls])._pull(running)  # as it was read before it was cancelled
        assert (result.state, result.version) == ("failed", "")
        assert await gateway.services.control.registry.versions() == {}


async def test_a_pull_whose_end_could_not_be_stored_fetches_nothing_again(
    configure: Configure, make_adapter: MakeAdapter, hugging_face: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hugging_face.commit(make_adapter(1))
    async with run_gateway(with_hub(configure, hugging_face)) as gateway:
        end, faults = WorkStore.end, [Disconnected("away")]

        async def end_later(store: Any, *of_it: Any) -> None:
            if faults:
                raise faults.pop()
            await end(store, *of_it)

        monkeypatch.setattr(WorkStore, "end", end_later)
        told = await pulled(gateway, "hf://shop/returns@main")
        assert (told["state"], told["version"], told["created"], faults) == ("done", "returns@v1", True, [])
        assert [line for line in hugging_face.ranges if line.startswith("adapter_model")] == [WEIGHTS_FILE]
        await until(lambda: not left(gateway))


@pytest.mark.parametrize("written", [b'{"id": "p1"', b'{"id": "p1"}', b'{"id": "p1", "state": "paused"}'])
async def test_a_pull_that_can_not_be_read_is_named_and_hides_no_other(gateway: RunningGateway, written: bytes) -> None:
    store = gateway.features[Pulls].store._object_store
    await gateway.services.redis.hset(store.values, "p1", written)  # type: ignore[misc]
    async with gateway.http() as http:
        for answer in (await http.get("/admin/v1/pulls/p1"), await http.delete("/admin/v1/pulls/p1")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "state_conflict"), answer.text
            assert answer.json()["error"]["message"].startswith("p1 of the pulls can't be read here")
        assert (await http.get("/admin/v1/pulls")).json() == {"pulls": []}


async def test_files_of_an_unfinished_pull_go_after_a_day_though_nothing_changes(
    configure: Configure, make_adapter: MakeAdapter, hugging_face: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "UNCHANGED_SECONDS_MAX", 0.0)
    hugging_face.commit(make_adapter(1))
    async with run_gateway(with_hub(configure, hugging_face)) as gateway:
        hugging_face.cuts = [100, 0, 0, 0, 0]
        await pulled(gateway, "hf://shop/returns@main")
        [folder] = left(gateway)
        os.utime(gateway.services.control.adapters.store.folder / folder, (0.0, 0.0))
        await until(lambda: not left(gateway))


async def test_a_pull_whose_given_manifest_finds_no_room_says_so(
    configure: Configure, make_adapter: MakeAdapter, hugging_face: Hub
) -> None:
    hugging_face.commit(make_adapter(1))
    given = yaml.safe_load((make_adapter(2) / "manifest.yaml").read_text())
    async with run_gateway(with_hub(configure, hugging_face)) as gateway:
        hugging_face.cuts = [100, 0, 0, 0, 0]
        await pulled(gateway, "hf://shop/returns@main")
        [folder] = left(gateway)
        path = gateway.services.control.adapters.store.folder / folder / "given.yaml"
        path.symlink_to("/dev/full")
        told = await pulled(gateway, "hf://shop/returns@main", manifest=given)
        text = "The adapter can't be kept (No space left on device): make room for the adapter store."
        assert (told["state"], told["error"]) == ("failed", text)
        path.unlink()
        again = await pulled(gateway, "hf://shop/returns@main", manifest=given)
        assert again["state"] == "done", again["error"]


async def test_a_pull_that_meets_a_fault_of_ours_fails_and_keeps_no_other_waiting(
    configure: Configure, make_adapter: MakeAdapter, hugging_face: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> bytes:
        raise LookupError

    monkeypatch.setattr(job, "write_plain_yaml", fail)
    hugging_face.commit(make_adapter(1))
    given = yaml.safe_load((make_adapter(2) / "manifest.yaml").read_text())
    async with run_gateway(with_hub(configure, hugging_face)) as gateway:
        told = await pulled(gateway, "hf://shop/returns@main", manifest=given)
        assert told["state"] == "failed"
        assert "LookupError" in told["error"]
        behind = await pulled(gateway, "hf://shop/returns@main")
        assert behind["state"] == "done", behind["error"]


async def test_what_is_left_of_other_bytes_is_not_gone_on_with(
    configure: Configure, make_adapter: MakeAdapter, hugging_face: Hub
) -> None:
    hugging_face.commit(make_adapter(1))
    async with run_gateway(with_hub(configure, hugging_face)) as gateway:
        hugging_face.cuts = [100, 0, 0, 0, 0]
        assert (await pulled(gateway, "hf://shop/returns@main"))["state"] == "failed"
        folder = make_adapter(2)
        hugging_face.commit(folder)
        told = await pulled(gateway, "hf://shop/returns@main", digest=digest_adapter(folder))
        assert told["state"] == "done", told


async def test_what_is_no_good_adapter_is_refused_as_an_upload_is(
    configure: Configure, make_adapter: MakeAdapter, hugging_face: Hub
) -> None:
    folder = make_adapter(1)
    async with run_gateway(with_hub(configure, hugging_face)) as gateway:
        hugging_face.commit(folder)
        hugging_face.lies = {"adapter_model.safetensors": b"\0" * (folder / "adapter_model.safetensors").stat().st_size}
        assert "has the digest" in (await pulled(gateway, "hf://shop/returns@main"))["error"]
        hugging_face.lies = {}
        manifest = folder / "manifest.yaml"
        text = manifest.read_text()
        manifest.unlink()
        hugging_face.commit(folder, "bare")
        assert "There is no manifest.yaml" in (await pulled(gateway, "hf://shop/returns@bare"))["error"]
        (folder / "adapter_model.safetensors").write_bytes(b"\0" * 64)
        manifest.write_text(text)
        hugging_face.commit(folder, "cut")
        assert (await pulled(gateway, "hf://shop/returns@cut"))["error"].startswith("The safetensors file is corrupt")
        (folder / "adapter_model.safetensors").unlink()
        hugging_face.commit(folder, "empty")
        assert "There is no adapter_model.safetensors" in (await pulled(gateway, "hf://shop/returns@empty"))["error"]
        assert "has no such adapter (404)" in (await pulled(gateway, "hf://shop/returns@nowhere"))["error"]


@pytest.mark.invariant("The gateway fetches from nowhere but the sources that pulls.allowed names.")
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://169.254.169.254/latest/meta-data", "no known kind"),
        ("file:///etc/passwd", "no known kind"),
        ("/etc/passwd", "no known kind"),
        ("s3://models-of-others/x", "outside the setting pulls.allowed"),
        ("s3://models/../x", "has not the form s3://BUCKET/FOLDER"),
        ("hf://shop/returns", "has not the form hf://OWNER/REPOSITORY@REVISION"),
        ("hf://shopping/returns@main", "outside the setting"),
        ("oci://registry.internal:1/shop@" + DIGEST, "outside the setting"),
        ("oci://registry.internal@169.254.169.254/shop@" + DIGEST, "has not the form"),
        ("oci://registry.internal/shop:latest", "has not the form oci://REGISTRY/NAME@sha256:DIGEST"),
    ],
)
async def test_an_address_outside_the_setting_is_refused_before_anything_is_asked(
    configure: Configure, address: str, words: str
) -> None:
    allowed = ["s3://models", "hf://shop", "oci://registry.internal"]
    async with run_gateway(configure(pulls={"allowed": allowed})) as gateway, gateway.http() as http:
        answer = await http.post("/admin/v1/pulls", json={"address": address, "task": "returns"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "adapter_rejected", "address")
    assert words in error["message"]


async def test_without_the_setting_nothing_is_pulled(configure: Configure) -> None:
    async with run_gateway(configure()) as gateway, gateway.http() as http:
        answer = await http.post("/admin/v1/pulls", json={"address": "s3://models/x", "task": "returns"})
        assert "Pulls are off" in answer.json()["error"]["message"]
        assert (await http.get("/admin/v1/pulls/none")).status_code == 404
        assert (await http.get("/admin/v1/pulls")).json() == {"pulls": []}
