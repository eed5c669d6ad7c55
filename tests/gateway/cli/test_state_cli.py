"""`apprentice state …` over real gateways: a backup that restores, a file in git, and the way to another cluster."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.fakes.adapters import BASE_CONFIG, write_base
from tests.fakes.engine import FakeEngine
from tests.gateway.cli.conftest import Command, command_for, ok, served_by
from tests.gateway.cli.exported_state import State, aliases, edit, exported, refused, value_of
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.two_replicas import LOAD, Hold


async def test_the_same_state_is_the_same_file_and_holds_no_secret(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    key = await gateway.key()
    state = await exported(apprentice, tmp_path / "one.json")
    (tmp_path / "two.json").write_text("an older state " * 1000)
    (tmp_path / "link.json").symlink_to("two.json")
    await exported(apprentice, tmp_path / "link.json")
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
    hold = Hold()
    small.faults.add(hold, path=LOAD)
    applying = asyncio.create_task(apprentice("state", "apply", file))
    async with gateway.http() as http, asyncio.timeout(60):
        while (await http.get("/admin/v1/adapters/returns@v2")).json()["state"] != "staging":
            await asyncio.sleep(0.02)
        moved = await http.put("/admin/v1/aliases/returns", json={"version": "returns@v3"})
        assert moved.status_code == 200
    hold.let_go.set()
    said = await applying
    assert (said.exit_code, "(stale_generation)" in said.err) == (1, True), said
    assert await served_by(gateway) == "returns@v3"
    async with gateway.http() as http:
        assert (await http.get("/admin/v1/overrides")).json() == {"overrides": []}


async def test_tasks_whose_versions_have_the_same_bytes_are_restored(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis, tmp_path: Path
) -> None:
    tasks: dict[str, Any] = {"returns": {}, "swaps": {}}
    file, bytes_of, folder, other = tmp_path / "state.json", tmp_path / "adapters", make_adapter(1), tmp_path / "m.yaml"
    other.write_text((folder / "manifest.yaml").read_text().replace("task: returns", "task: swaps"))
    async with run_gateway(configure(tasks=tasks)) as here:
        for manifest in (folder / "manifest.yaml", other):
            await ok(command_for(here), "adapters", "push", str(folder), "--manifest", str(manifest))
        await ok(command_for(here), "state", "export", "-o", str(file), "--adapters", str(bytes_of))
    await redis.flushall()
    async with run_gateway(configure(tasks=tasks, data_folder=tmp_path / "there")) as there:
        await ok(command_for(there), "state", "apply", str(file), "--adapters", str(bytes_of))
        listed = (await ok(command_for(there), "adapters", "list", "--json")).json["adapters"]
        assert [version["version"] for version in listed] == ["returns@v1", "swaps@v1"]


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
    hold = Hold()
    small.faults.add(hold, path=LOAD)
    early = await apprentice("state", "apply", file, "--wait", "0")
    assert (early.exit_code, early.out) == (1, "")
    assert "returns@v2 not placed after 0 s: aliases, rules and keys are as they were" in early.err
    assert await served_by(gateway) == "returns@v1"
    hold.let_go.set()
    await ok(apprentice, "state", "apply", file)
    assert await served_by(gateway) == "returns@v2"


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
