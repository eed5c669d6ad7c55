"""Bounds of `apprentice state apply`: the versions that it takes and retires, its roles, and canaries in a file."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis

from gateway.state.redis import INSTALLATION_KEY
from serving.object_store import ObjectStore
from tests.fakes.engine import FakeEngine
from tests.gateway.cli.conftest import Command, command_for, ok, served_by
from tests.gateway.cli.exported_state import aliases, edit, exported, refused, value_of
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway


async def test_a_manifest_that_was_edited_is_another_version(apprentice: Command, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    file = edit(path, lambda s: value_of(s, "versions", "returns@v1")["manifest"].update(sampling={"temperature": 1}))
    said = await refused(apprentice, "state", "apply", file, code="invalid_value")
    assert "its manifest is not the one that its manifest_digest names" in said


async def test_bytes_that_are_not_a_versions_never_become_it(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis, small: FakeEngine, tmp_path: Path
) -> None:
    path, bytes_of = tmp_path / "state.json", tmp_path / "adapters"
    async with run_gateway(configure()) as running:
        await running.place(make_adapter(1))
        await ok(command_for(running), "state", "export", "-o", str(path), "--adapters", str(bytes_of))
        state = json.loads(path.read_text())
    digest = state["versions"]["returns@v1"]["value"]["digest"]
    folder = bytes_of / digest.removeprefix("sha256:")
    assert sorted(os.listdir(folder)) == ["adapter_config.json", "adapter_model.safetensors", "manifest.yaml"]
    shutil.copy(make_adapter(2) / "adapter_model.safetensors", folder)
    await redis.flushall()
    await small.restart()
    async with run_gateway(configure(data_folder=tmp_path / "other")) as running:
        said = await command_for(running)("state", "apply", str(path), "--adapters", str(bytes_of))
        assert (said.exit_code, "does not hold the bytes of returns@v1" in said.err) == (2, True)
    # The store has them still, but the file lies about what they are.
    edit(path, lambda s: value_of(s, "versions", "returns@v1").update(rank=8))
    async with run_gateway(configure()) as running:
        said_of = await refused(command_for(running), "state", "apply", str(path), code="adapter_rejected")
        assert "is another adapter" in said_of


async def test_diff_tells_of_a_version_that_was_retired_since_the_export(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    await gateway.place(make_adapter(2), alias=False)
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    await ok(apprentice, "adapters", "retire", "returns@v2", "--yes")
    said = await apprentice("state", "diff", str(path), "--exit-code")
    assert (said.exit_code, said.out) == (1, "There is nothing to do.\n")
    assert "Retired here, and not in the file: returns@v2." in said.err


async def test_file_that_retires_a_version_is_not_applied_unasked(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    await gateway.place(make_adapter(2), alias=False)
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    edit(path, lambda s: value_of(s, "versions", "returns@v2").update(state="retired"))
    said = await apprentice("state", "apply", str(path))
    assert (said.exit_code, said.err.count("Give --yes")) == (2, 1), said.err
    async with gateway.http() as http:
        assert (await http.get("/admin/v1/adapters/returns@v2")).json()["state"] == "ready"


async def test_versions_are_given_up_by_the_file_and_their_numbers_stay_taken(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter, redis: Redis, tmp_path: Path
) -> None:
    await gateway.place(make_adapter(2), alias=False)
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    edit(path, lambda s: value_of(s, "versions", "returns@v2").update(state="retired"))
    await ok(apprentice, "state", "apply", str(path), "--yes")
    async with gateway.http() as http, asyncio.timeout(60):
        while (await http.get("/admin/v1/adapters/returns@v2")).json()["state"] != "retired":
            await asyncio.sleep(0.02)
    file = str(path)
    state = await exported(apprentice, path)
    edit(path, lambda s: (s.pop("aliases"), s.pop("callers"), s.pop("overrides")))
    installation = await redis.get(INSTALLATION_KEY)
    await redis.flushall()
    await redis.set(INSTALLATION_KEY, installation or b"")  # without it the gateway takes Redis for another's state
    await ok(apprentice, "state", "apply", file)
    listed = (await ok(apprentice, "adapters", "list", "--json")).json["adapters"]
    assert [(one["version"], one["state"]) for one in listed] == [("returns@v1", "verified"), ("returns@v2", "retired")]
    assert state["versions"]["returns@v2"]["value"]["state"] == "retired"
    assert (await ok(apprentice, "adapters", "push", str(make_adapter(3)))).out.startswith("returns@v3 ")


async def test_what_the_file_does_not_name_stays_unless_it_is_pruned(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    key = await gateway.key()
    async with gateway.http() as http:
        await http.put("/admin/v1/overrides/all", json={"action": "general"})
    kept = await ok(apprentice, "state", "apply", str(path))
    assert kept.out.startswith("There is nothing to do")
    said = await apprentice("state", "diff", str(path))
    assert said.err == f"Not in the file, and left as they are: all, {key.split('-')[2]}.\n"
    pruned = await ok(apprentice, "state", "apply", str(path), "--prune")
    assert [line.split()[:3] for line in pruned.out.splitlines()[1:]] == [
        ["remove", "override", "all"],
        ["remove", "caller", key.split("-")[2]],
    ]
    async with gateway.http(key) as http:
        assert (await http.get("/v1/models")).status_code == 401
    again = await exported(apprentice, tmp_path / "again.json")
    assert (again["overrides"], again["callers"]) == ({}, {})


async def test_a_value_of_null_removes_an_object(gateway: RunningGateway, apprentice: Command, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    await ok(apprentice, "state", "apply", edit(path, lambda s: s["aliases"]["returns"].update(value=None)))
    assert await aliases(gateway) == {}
    listed = (await ok(apprentice, "adapters", "list", "--json")).json["adapters"]
    assert [(one["version"], one["state"]) for one in listed] == [("returns@v1", "previous_version")]


async def test_an_admin_can_not_take_away_the_own_key(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    key = await gateway.key(role="admin")
    said = await refused(apprentice, "state", "apply", str(path), "--prune", "--key", key, code="state_conflict")
    assert "the key that you apply it with" in said
    async with gateway.http(key) as http:
        assert (await http.get("/v1/models")).status_code == 200


async def test_only_admins_see_and_change_the_state(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    key = await gateway.key(role="operator")
    for words in (("export",), ("diff", str(path)), ("apply", str(path))):
        await refused(apprentice, "state", *words, "--key", key, code="role_required")


async def test_who_brings_a_version_in_does_not_release_it_where_another_must(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    async with run_gateway(configure()) as running:
        await running.place(make_adapter(1))
        await exported(command_for(running), path)
    await redis.flushall()
    async with run_gateway(configure(release={"approver_must_differ": True})) as running:
        apprentice = command_for(running)
        await refused(apprentice, "state", "apply", str(path), code="approver_must_differ")
        versions = tmp_path / "versions.json"
        versions.write_text(path.read_text())
        await ok(apprentice, "state", "apply", edit(versions, lambda s: s.pop("aliases")))
        await refused(apprentice, "state", "apply", str(path), code="approver_must_differ")
        other = await running.admin_of("bert")
        await ok(apprentice, "state", "apply", str(path), "--key", other)
        assert await served_by(running) == "returns@v1"


async def test_unsigned_versions_do_not_come_in_by_a_file_where_adapters_must_be_signed(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    async with run_gateway(configure()) as running:
        await running.place(make_adapter(1))
        await exported(command_for(running), path)
    await redis.flushall()
    async with run_gateway(configure(signing={"required": True})) as running:
        said = await refused(command_for(running), "state", "apply", str(path), code="state_conflict")
        assert "push it, signed" in said


async def test_a_canary_in_a_file_begins_anew(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter, redis: Redis, tmp_path: Path
) -> None:
    await gateway.place(make_adapter(2), alias=False)
    path = tmp_path / "state.json"
    await ok(apprentice, "adapters", "canary", "returns@v2", "--share", "0.25", "--auto")
    began = (await aliases(gateway))["returns"]["canary"]
    await exported(apprentice, path)
    await ok(apprentice, "adapters", "rollback", "returns")
    await ok(apprentice, "state", "apply", str(path), "--force")
    now = (await aliases(gateway))["returns"]["canary"]
    assert (now["version"], now["share"], now["plan"]) == ("returns@v2", 0.25, began["plan"])
    assert now["started_at"] > began["started_at"]
    assert (await ok(apprentice, "state", "diff", str(path))).out.startswith("There is nothing to do")
    assert (await ObjectStore(redis, "aliases").generations())["returns"] == 4


async def test_a_share_raised_in_a_file_keeps_when_its_canary_began_and_its_sessions(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    await gateway.place(make_adapter(2), alias=False)
    path = tmp_path / "state.json"
    await ok(apprentice, "adapters", "canary", "returns@v2", "--share", "0.25", "--auto")
    began, _ = await gateway.services.control.registry.alias("returns")
    await exported(apprentice, path)

    def raised(state: Any) -> None:
        entry = state["aliases"]["returns"]["value"]
        entry["weights"] = {"returns@v1": 0.5, "returns@v2": 0.5}
        entry["rollout"]["share"] = 0.5

    await ok(apprentice, "state", "apply", edit(path, raised))
    now, _ = await gateway.services.control.registry.alias("returns")
    assert began is not None
    assert now is not None
    assert began.canary is not None
    assert now.canary == msgspec.structs.replace(began.canary, share=0.5)
    assert (now.weights["returns@v2"], now.salt) == (0.5, began.salt)


async def test_a_file_that_can_not_be_read_or_written_is_said_in_one_line(apprentice: Command, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    for words, told in (
        (("diff", str(tmp_path / "nowhere.json")), "can't be read: No such file or directory"),
        (("apply", str(tmp_path / "broken.json")), "is not JSON"),
        (("apply", str(tmp_path / "list.json")), "holds no JSON object"),
        (("export", "-o", str(tmp_path / "nowhere" / "state.json")), "can't be written"),
    ):
        said = await apprentice("state", *words)
        assert (said.exit_code, said.out) == (2, "")
        assert told in said.err
