"""`apprentice state …` over real gateways: a backup that restores, a file in git, and the way to another cluster."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from serving.object_store import ObjectStore
from tests.fakes.adapters import BASE_CONFIG, write_base
from tests.fakes.engine import FakeEngine
from tests.gateway.cli.conftest import Command, command_for, ok, served_by
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

State = dict[str, Any]


async def refused(command: Command, *words: str, code: str) -> str:
    """The one line on stderr of a command that the gateway refused."""
    said = await command(*words)
    assert (said.exit_code, said.out) == (1, ""), said
    assert re.fullmatch(rf"apprentice: [^\n]+ \({code}\)[^\n]*\n", said.err), said.err
    return said.err


async def exported(command: Command, path: Path) -> State:
    await ok(command, "state", "export", "-o", str(path))
    read: State = json.loads(path.read_text())
    return read


def edit(path: Path, change: Callable[[State], object]) -> str:
    """Change the state in a file, and give the file's path."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return str(path)


async def aliases(running: RunningGateway) -> dict[str, Any]:
    async with running.http() as http:
        told: dict[str, Any] = (await http.get("/admin/v1/aliases")).json()["aliases"]
    return told


async def test_the_same_state_is_the_same_file_and_holds_no_secret(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    key = await gateway.key()
    state = await exported(apprentice, tmp_path / "one.json")
    await exported(apprentice, tmp_path / "two.json")
    text = (tmp_path / "one.json").read_text()
    assert text == (tmp_path / "two.json").read_text()
    assert text == (await ok(apprentice, "state", "export")).out
    assert key.split("-", 3)[3] not in text
    assert key.split("-")[2] in state["callers"]
    assert (state["format"], list(state)) == (1, sorted(state))
    assert state["aliases"]["returns"]["value"]["weights"] == {"returns@v1": 1.0}
    assert state["versions"]["returns@v1"]["value"]["manifest"]["task"] == "returns"
    only = (await ok(apprentice, "state", "export", "--only", "aliases", "--only", "versions")).json
    assert sorted(only) == ["aliases", "format", "installation", "versions"]


async def test_a_lost_redis_and_store_are_restored_and_the_same_alias_serves_again(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis, small: FakeEngine, tmp_path: Path
) -> None:
    backup, bytes_of = tmp_path / "state.json", tmp_path / "adapters"
    async with run_gateway(configure()) as running:
        await running.place(make_adapter(1))
        await running.place(make_adapter(2))
        key = await running.key()
        async with running.http() as http:
            rule = {"action": "refuse", "task": "returns", "contains": "piano", "message": "No pianos."}
            assert (await http.put("/admin/v1/overrides/pianos", json=rule)).status_code == 200
        said = await ok(command_for(running), "state", "export", "-o", str(backup), "--adapters", str(bytes_of))
        assert said.out == f"Wrote {backup}: 2 versions, 1 alias, 1 override, 1 caller.\n"
        told = json.loads(backup.read_text())
    await redis.flushall()
    await small.restart()
    lost(tmp_path / "data" / "store")
    async with run_gateway(configure()) as running:
        apprentice = command_for(running)
        assert (await served_by(running)) == "large"
        missing = await apprentice("state", "apply", str(backup))
        assert (missing.exit_code, "give their folder with --adapters" in missing.err) == (2, True)
        applied = await ok(apprentice, "state", "apply", str(backup), "--adapters", str(bytes_of))
        steps = [line.split()[:3] for line in applied.out.splitlines()[1:]]
        assert steps == [
            ["create", "version", "returns@v1"],
            ["create", "version", "returns@v2"],
            ["stage", "version", "returns@v2"],
            ["create", "alias", "returns"],
            ["create", "override", "pianos"],
            ["create", "caller", key.split("-")[2]],
            ["stage_previous", "version", "returns@v1"],
        ]
        assert await served_by(running, key) == "returns@v2"
        again = await exported(apprentice, tmp_path / "again.json")
        assert again["aliases"]["returns"]["value"] == told["aliases"]["returns"]["value"]
        assert again["overrides"]["pianos"]["value"] == told["overrides"]["pianos"]["value"]
        assert {name: without_progress(one) for name, one in again["versions"].items()} == {
            name: without_progress(one) for name, one in told["versions"].items()
        }
        nothing = await ok(apprentice, "state", "apply", str(backup))
        assert nothing.out == "There is nothing to do: what is there is what is in the file.\n"
        async with running.http() as http, asyncio.timeout(60):
            while (await http.get("/admin/v1/adapters/returns@v1")).json()["state"] != "ready":
                await asyncio.sleep(0.02)
        assert (await ok(apprentice, "adapters", "rollback", "returns")).out.startswith(
            "returns is served by returns@v1"
        )


def lost(folder: Path) -> None:
    """As a disk that is gone. Its files are read-only."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def without_progress(held: dict[str, Any]) -> dict[str, Any]:
    """A version without what depends on where it is placed."""
    return {key: part for key, part in held["value"].items() if key not in ("state", "changed_at", "note")}


async def test_a_file_that_was_edited_is_compared_and_applied_once(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    await ok(apprentice, "adapters", "push", str(make_adapter(2)))
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    weights = {"returns@v1": 0.25, "returns@v2": 0.75}
    file = edit(path, lambda state: state["aliases"]["returns"]["value"].update(weights=weights))
    compared = await ok(apprentice, "state", "diff", file)
    assert [line.split()[:3] for line in compared.out.splitlines()[1:]] == [
        ["stage", "version", "returns@v2"],
        ["change", "alias", "returns"],
    ]
    assert "weights returns@v1 1 → 0.25, weights returns@v2 - → 0.75" in compared.out
    assert (await apprentice("state", "diff", file, "--exit-code")).exit_code == 1
    dry = await ok(apprentice, "state", "apply", file, "--dry-run")
    assert dry.out == compared.out
    assert (await aliases(gateway))["returns"]["generation"] == 1
    await ok(apprentice, "state", "apply", file)
    moved = (await aliases(gateway))["returns"]
    assert (moved["weights"], moved["generation"]) == (weights, 2)
    listed = (await ok(apprentice, "adapters", "list", "--json")).json["adapters"]
    assert [one["state"] for one in listed] == ["canary", "active"]
    assert (await ok(apprentice, "state", "diff", file, "--exit-code")).out.startswith("There is nothing to do")
    async with gateway.http() as http:
        entries = (await http.get("/admin/v1/audit?limit=1000")).json()["entries"]
    back = await ok(apprentice, "adapters", "rollback", "returns")
    assert back.out == "returns is served by returns@v1 100 % (generation 3).\n"
    (entry,) = [one for one in entries if one["action"] == "state.apply"]
    assert (entry["object"], entry["generation"], entry["after"]["weights"]) == ("returns", 2, weights)
    assert entry["evidence"]["state"].startswith("sha256:")


async def test_what_was_changed_since_the_export_is_named_and_nothing_is_done(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    await gateway.place(make_adapter(2))
    said = await refused(apprentice, "state", "apply", str(path), code="stale_generation")
    assert "aliases: returns is at generation 2, and the file has 1" in said
    assert "changed since: at generation 2, the file has 1" in (await ok(apprentice, "state", "diff", str(path))).out
    assert await served_by(gateway) == "returns@v2"
    await ok(apprentice, "state", "apply", str(path), "--force")
    assert await served_by(gateway) == "returns@v1"


async def test_an_alias_that_moves_while_versions_are_placed_stops_the_apply(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter, small: FakeEngine, tmp_path: Path
) -> None:
    await ok(apprentice, "adapters", "push", str(make_adapter(2)))
    await ok(apprentice, "adapters", "push", str(make_adapter(3)))
    await ok(apprentice, "adapters", "stage", "returns@v3")
    path = tmp_path / "state.json"
    await exported(apprentice, path)

    def wanted(state: State) -> None:
        state["aliases"]["returns"]["value"]["weights"] = {"returns@v2": 1.0}
        state["overrides"]["all"] = {"generation": 0, "value": {"action": "general"}}

    file = edit(path, wanted)
    small.load_delay_seconds = 1.0
    applying = asyncio.create_task(apprentice("state", "apply", file))
    async with gateway.http() as http, asyncio.timeout(60):
        while (await http.get("/admin/v1/adapters/returns@v2")).json()["state"] != "staging":
            await asyncio.sleep(0.02)
        moved = await http.put("/admin/v1/aliases/returns", json={"version": "returns@v3"})
        assert moved.status_code == 200
    said = await applying
    assert (said.exit_code, "(stale_generation)" in said.err) == (1, True), said
    assert await served_by(gateway) == "returns@v3"
    async with gateway.http() as http:
        assert (await http.get("/admin/v1/overrides")).json() == {"overrides": []}


async def test_cluster_with_the_same_base_takes_over_a_release_and_others_refuse_it(
    configure: Configure, make_adapter: MakeAdapter, base_folder: Path, redis: Redis, small: FakeEngine, tmp_path: Path
) -> None:
    file, bytes_of = tmp_path / "release.json", tmp_path / "adapters"
    only = ("--only", "versions", "--only", "aliases")
    async with run_gateway(configure()) as here:
        await here.place(make_adapter(1))
        await ok(command_for(here), "state", "export", "-o", str(file), "--adapters", str(bytes_of), *only)
    await redis.flushall()
    await small.restart()
    there = {"data_folder": tmp_path / "there"}
    async with run_gateway(configure(**there)) as running:
        key = await running.key()
        await ok(command_for(running), "state", "apply", str(file), "--adapters", str(bytes_of), "--prune")
        assert await served_by(running, key) == "returns@v1"
    await redis.flushall()
    await small.restart()
    write_base(base_folder, BASE_CONFIG, seed=7)
    async with run_gateway(configure(**there)) as running:
        said = await refused(command_for(running), "state", "apply", str(file), code="state_conflict")
        assert "returns@v1 was trained on a base model with the fingerprint sha256:" in said
        assert "it has to be trained on this base" in said
        assert await aliases(running) == {}
        assert (await ok(command_for(running), "adapters", "list", "--json")).json["adapters"] == []


async def test_a_version_that_can_not_be_placed_leaves_every_alias_rule_and_key_as_it_was(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter, small: FakeEngine, tmp_path: Path
) -> None:
    small.answers["returns@v2"] = "not what its manifest expects"
    await ok(apprentice, "adapters", "push", str(make_adapter(2, expected="approve")))
    path = tmp_path / "state.json"
    await exported(apprentice, path)

    def wanted(state: State) -> None:
        state["aliases"]["returns"]["value"]["weights"] = {"returns@v2": 1.0}
        state["overrides"]["all"] = {"generation": 0, "value": {"action": "general"}}

    said = await refused(apprentice, "state", "apply", edit(path, wanted), code="state_conflict")
    assert "returns@v2 was not loaded and is quarantined" in said
    assert "Aliases, rules and keys are as they were." in said
    assert (await aliases(gateway))["returns"]["weights"] == {"returns@v1": 1.0}


async def test_an_apply_that_was_not_waited_for_goes_on_when_it_is_repeated(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter, small: FakeEngine, tmp_path: Path
) -> None:
    await ok(apprentice, "adapters", "push", str(make_adapter(2)))
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    file = edit(path, lambda state: state["aliases"]["returns"]["value"].update(weights={"returns@v2": 1.0}))
    small.load_delay_seconds = 0.5
    early = await apprentice("state", "apply", file, "--wait", "0")
    assert (early.exit_code, early.out) == (1, "")
    assert "returns@v2 not placed after 0 s: aliases, rules and keys are as they were" in early.err
    assert await served_by(gateway) == "returns@v1"
    await ok(apprentice, "state", "apply", file)
    assert await served_by(gateway) == "returns@v2"


Edit = Callable[[State], object]


def value_of(state: State, kind: str, name: str) -> dict[str, Any]:
    value: dict[str, Any] = state[kind][name]["value"]
    return value


REFUSED_STATES = [
    (lambda s: value_of(s, "versions", "returns@v1").update(rank=8), "state_conflict", "another version (rank"),
    (lambda s: s["versions"]["returns@v1"].update(value=None), "state_conflict", "a version is never removed"),
    (lambda s: value_of(s, "versions", "returns@v1").update(state="retired"), "state_conflict", "move the alias"),
    (lambda s: value_of(s, "aliases", "returns").update(weights={"returns@v9": 1}), "state_conflict", "no such"),
    (lambda s: value_of(s, "aliases", "returns").update(weights={"clauses@v1": 1}), "invalid_value", "own task"),
    (lambda s: value_of(s, "aliases", "returns").update(weights={"returns@v1": 0.5}), "invalid_value", "add up"),
    (lambda s: value_of(s, "aliases", "returns").update(shadow={"returns@v1": 7}), "invalid_value", "at most 1"),
    (lambda s: s["aliases"].update(piano={"generation": 0, "value": {"weights": {"piano@v1": 1}}}), "", "piano"),
    (lambda s: s["overrides"].update({"a b": {"generation": 0, "value": {}}}), "invalid_value", "rule's name"),
    (lambda s: s["overrides"].update(a={"generation": 0, "value": {"action": "sing"}}), "invalid_value", "Input"),
    (lambda s: s["callers"].update(short={"generation": 0, "value": {}}), "invalid_value", "name"),
    (lambda s: s.update(format=2), "invalid_value", "format"),
    (lambda s: s.update(more={}), "unknown_parameter", "more"),
]


async def test_what_can_not_be_is_refused_in_words(
    apprentice: Command, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for change, code, told in REFUSED_STATES:
        with subtests.test(change=change, code=code, told=told):
            path = tmp_path / "state.json"
            before = await exported(apprentice, path)
            said = await apprentice("state", "apply", edit(path, change))
            assert (said.exit_code, said.out) == (1, "")
            assert f"({code or 'state_conflict'})" in said.err
            assert told in said.err
            assert await exported(apprentice, tmp_path / "after.json") == before


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
    await redis.flushall()
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
    began = (await aliases(gateway))["returns"]["rollout"]
    await exported(apprentice, path)
    await ok(apprentice, "adapters", "rollback", "returns")
    await ok(apprentice, "state", "apply", str(path), "--force")
    now = (await aliases(gateway))["returns"]["rollout"]
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
    began, _ = await gateway.services.registry.alias("returns")
    await exported(apprentice, path)

    def raised(state: Any) -> None:
        entry = state["aliases"]["returns"]["value"]
        entry["weights"] = {"returns@v1": 0.5, "returns@v2": 0.5}
        entry["rollout"]["share"] = 0.5

    await ok(apprentice, "state", "apply", edit(path, raised))
    now, _ = await gateway.services.registry.alias("returns")
    assert began is not None
    assert now is not None
    assert began.rollout is not None
    assert now.rollout == msgspec.structs.replace(began.rollout, share=0.5)
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
