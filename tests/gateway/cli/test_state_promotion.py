"""`apprentice state …` from one installation to another, edited by hand, and signed."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.configuration.settings import Settings
from tests.fakes.engine import FakeEngine
from tests.fakes.valkey import valkey
from tests.gateway.cli.conftest import Command, command_for, ok, run
from tests.gateway.cli.exported_state import aliases, edit, exported, refused, value_of
from tests.walks.conftest import BASE_MODEL, Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

State = dict[str, Any]


def elsewhere(configuration: dict[str, Any], engine: FakeEngine, redis_url: str, folder: Path) -> dict[str, Any]:
    """The same configuration with another engine, Redis and store."""
    small = {**configuration["pools"]["small"], "replicas": [{"name": "there-0", "url": engine.url}]}
    pools = {**configuration["pools"], "small": small}
    return {**configuration, "pools": pools, "redis_url": redis_url, "data_folder": folder}


async def test_releases_are_promoted_repeatedly_and_a_change_at_the_target_is_refused(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    file, folder = tmp_path / "release.json", tmp_path / "adapters"
    async with (
        valkey() as redis,
        FakeEngine(BASE_MODEL, n_tokens=8) as engine,
        run_gateway(configure()) as a,
        run_gateway(elsewhere(configure(), engine, redis.url, tmp_path / "there")) as b,
    ):
        here, there = command_for(a), command_for(b)

        async def promote(code: str = "") -> None:
            kinds = ("--only", "versions", "--only", "aliases", "--only", "overrides")
            await ok(here, "state", "export", "-o", str(file), "--adapters", str(folder), *kinds)
            words = ("state", "apply", str(file), "--adapters", str(folder))
            await (refused(there, *words, code=code) if code else ok(there, *words))

        for number in (1, 2, 3):
            await a.place(make_adapter(number))
            async with a.http() as http:
                await http.put("/admin/v1/overrides/a", json={"action": "general", "message": f"{number}"})
            await promote()
            assert (await aliases(b))["returns"]["weights"] == {f"returns@v{number}": 1.0}
            async with b.http() as http:
                (rule,) = (await http.get("/admin/v1/overrides")).json()["overrides"]
            assert rule["message"] == str(number)
        await ok(there, "adapters", "rollback", "returns")
        await a.place(make_adapter(4))
        await promote("stale_generation")
        told = await ok(there, "state", "diff", str(file))
        assert "changed here since: at generation" in told.out
        assert (await aliases(b))["returns"]["weights"] == {"returns@v2": 1.0}
        await ok(there, "state", "apply", str(file), "--adapters", str(folder), "--force")
        await a.place(make_adapter(5))
        await promote()
        assert (await aliases(b))["returns"]["weights"] == {"returns@v5": 1.0}


async def test_first_file_of_another_installation_does_not_overwrite_what_was_made_there(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    async with gateway.http() as http:
        await http.put("/admin/v1/overrides/a", json={"action": "general"})
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    edit(path, lambda s: s.update(installation="0" * 16))
    edit(path, lambda s: value_of(s, "overrides", "a").update(message="No."))
    said = await refused(apprentice, "state", "apply", str(path), code="stale_generation")
    assert "no file of the installation that this one is from has made it" in said
    assert "made here, by no file" in (await ok(apprentice, "state", "diff", str(path))).out
    await ok(apprentice, "state", "apply", str(path), "--force")
    edit(path, lambda s: value_of(s, "overrides", "a").update(message="No, no."))
    await ok(apprentice, "state", "apply", str(path))


async def test_every_changed_field_of_a_key_is_told_and_no_secret(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    public = (await gateway.key()).split("-")[2]
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    change = {"models": ["returns", "piano"], "secret_digest": "1" * 64, "limits": {"requests_per_minute": 5}}
    edit(path, lambda s: value_of(s, "callers", public).update(change))
    told = await ok(apprentice, "state", "apply", str(path), "--dry-run")
    for part in ("models * → piano, returns", "limits requests per minute - → 5", "secret changed"):
        assert part in told.out
    assert "there is no model piano here" in told.out
    assert "1" * 64 not in (await ok(apprentice, "state", "diff", str(path), "--json")).out
    await ok(apprentice, "state", "apply", str(path))
    (entry,) = (await ok(apprentice, "audit", "--action", "state.apply", "--json")).json["entries"]
    assert entry["evidence"]["changed"] == ["secret", "models", "limits"]


Edit = Callable[[State], object]
KEY = {"name": "shop", "role": "caller", "secret_digest": "0" * 64, "models": ["*"], "expires_at": None}


def with_key(**changes: Any) -> Edit:
    value = {name: part for name, part in {**KEY, **changes}.items() if part is not ...}
    return lambda s: s["callers"].update(abcdefghijkl={"generation": 0, "value": value})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: value_of(s, "aliases", "returns").update(weigths={}), "aliases: returns has a field weigths, and"),
        (
            lambda s: value_of(s, "versions", "returns@v1").update(sate="x"),
            "versions: returns@v1 has a field sate, and",
        ),
        (
            lambda s: value_of(s, "aliases", "returns").update(
                rollout={"version": "returns@v1", "share": 0.1, "started_at": 0, "by": "x", "paln": None}
            ),
            "aliases: returns has a field rollout.paln, and",
        ),
        (with_key(expire_at=5), "callers: abcdefghijkl has a field expire_at, and"),
        (with_key(models="returns"), "callers: abcdefghijkl can't be used: models: Expected `array`, got `str`."),
        (with_key(secret_digest=...), "callers: abcdefghijkl misses the field secret_digest."),
        (with_key(limits={"requests": 5}), "callers: abcdefghijkl has a field limits.requests, and"),
        (
            lambda s: s["overrides"].update(a={"generation": 0, "value": {"task": "returns"}}),
            "overrides: a misses the field action.",
        ),
        (
            lambda s: s["overrides"].update(a={"generation": 0, "value": {"action": "general", "tsak": "x"}}),
            "overrides: a has a field tsak, and there is no such field.",
        ),
    ],
)
async def test_a_slip_of_the_pen_is_named_with_its_object_and_field(
    apprentice: Command, tmp_path: Path, change: Edit, told: str
) -> None:
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    edit(path, change)
    assert told in await refused(apprentice, "state", "diff", str(path), code="invalid_value")


async def test_an_alias_gets_a_salt_and_names_no_version_that_there_is_not(
    gateway: RunningGateway, apprentice: Command, redis: Redis, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    await exported(apprentice, path)
    await ok(apprentice, "state", "apply", edit(path, lambda s: s["aliases"]["returns"].update(value=None)))
    value = {"weights": {"returns@v1": 1.0}, "previous": ["returns@v9"], "salt": ""}
    edit(path, lambda s: s["aliases"]["returns"].update(value=value, generation=2))
    said = await refused(apprentice, "state", "apply", str(path), code="state_conflict")
    assert "returns@v9: the alias returns of the file has it among `previous`, and there is no such version" in said
    await ok(apprentice, "state", "apply", edit(path, lambda s: value_of(s, "aliases", "returns").update(previous=[])))
    alias, _ = await gateway.services.control.registry.alias("returns")
    assert alias is not None
    assert alias.salt


async def test_only_its_writer_can_read_a_state_file(apprentice: Command, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("{}")
    path.chmod(0o644)
    await exported(apprentice, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_signed_version_is_restored_where_required_and_others_refused_before_upload(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, redis: Redis, tmp_path: Path
) -> None:
    key = tmp_path / "key.pem"
    signing = {"required": True, "trusted": {"team": run("keygen", "--signing", str(key)).out.strip()}}
    file, folder, adapter = tmp_path / "state.json", tmp_path / "adapters", make_adapter(1)
    async with run_gateway(configure()) as running:
        await running.place(adapter)
        await ok(command_for(running), "state", "export", "-o", str(file), "--adapters", str(folder))
    await redis.flushall()
    await small.restart()
    async with run_gateway(configure(signing=signing, data_folder=tmp_path / "other")) as running:
        apprentice = command_for(running)
        words = ("state", "apply", str(file), "--adapters", str(folder))
        assert "the file has no signature of it" in await refused(apprentice, *words, code="state_conflict")
        settings: Settings = running.services.settings
        assert not [path for path in settings.store.iterdir() if len(path.name) == 64]
        await ok(apprentice, "adapters", "push", str(adapter), "--sign", str(key), "--signer", "team")
        await ok(apprentice, "adapters", "stage", "returns@v1")
        await ok(apprentice, "adapters", "promote", "returns@v1")
        await exported(apprentice, file)
    await redis.flushall()
    await small.restart()
    async with run_gateway(configure(signing=signing, data_folder=tmp_path / "third")) as running:
        apprentice = command_for(running)
        await ok(apprentice, *words)
        assert (await aliases(running))["returns"]["weights"] == {"returns@v1": 1.0}
        (shown,) = (await ok(apprentice, "adapters", "list", "--json")).json["adapters"]
        assert shown["signed_by"] == "team"
    await redis.flushall()
    edit(file, lambda s: value_of(s, "versions", "returns@v1").update(signature="A" * 86 + "=="))
    async with run_gateway(configure(signing=signing, data_folder=tmp_path / "fourth")) as running:
        said = await refused(command_for(running), *words, code="state_conflict")
        assert "does not hold for these bytes" in said
    assert json.loads(file.read_text())["versions"]["returns@v1"]["value"]["signed_by"] == "team"
