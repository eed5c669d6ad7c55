"""`apprentice keys` over a real gateway, and keys with their limits in a state file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.cli.conftest import Command, Said
from tests.walks.gateway import RunningGateway


async def ok(command: Command, *words: str) -> Said:
    said = await command(*words)
    assert said.exit_code == 0, said.err
    return said


async def works(gateway: RunningGateway, key: str) -> bool:
    async with gateway.http(key) as http:
        return (await http.get("/v1/models")).status_code == 200


async def test_a_key_is_made_listed_limited_rotated_and_revoked(gateway: RunningGateway, apprentice: Command) -> None:
    words = ("--model", "returns", "--expires-in", "90d", "--requests-per-minute", "600", "--usd-per-month", "0.5")
    made = await ok(apprentice, "keys", "make", "shop", *words)
    key = made.out.strip()
    public = key.split("-")[2]
    assert await works(gateway, key)
    assert public in made.err
    row = next(line for line in (await ok(apprentice, "keys", "list")).out.splitlines() if line.startswith(public))
    assert re.split(r"  +", row)[1:5] == ["shop", "admin", "caller", "returns"]
    assert row.endswith("600 requests a minute, 0.5 USD a month")
    assert key not in (await ok(apprentice, "keys", "list", "--json")).out

    shown = await ok(apprentice, "keys", "limits", public, "--tokens-per-minute", "200000", "--usd-per-month", "none")
    rows = [re.split(r"  +", line)[:4] for line in shown.out.splitlines()[1:]]
    assert rows == [["600", "requests a minute", "0", "600"], ["200000", "tokens a minute", "0", "200000"]]
    assert list((await ok(apprentice, "keys", "limits", public, "--json")).json["usage"]) == [
        "requests_per_minute",
        "tokens_per_minute",
    ]

    rotated = await ok(apprentice, "keys", "rotate", public, "--overlap", "1h")
    new = rotated.out.strip()
    assert (new != key, "An earlier secret" in rotated.err) == (True, False)
    assert await works(gateway, new)
    assert await works(gateway, key)
    again = await ok(apprentice, "keys", "rotate", public, "--overlap", "0s")
    newest = again.out.strip()
    assert "Warning: An earlier secret of this key, which was to work until" in again.err
    assert not await works(gateway, new)
    assert not await works(gateway, key)
    assert await works(gateway, newest)
    unasked = await apprentice("keys", "revoke", public)
    assert (unasked.exit_code, "Give --yes: there is no terminal to ask on." in unasked.err) == (2, True)
    assert (await ok(apprentice, "keys", "revoke", public, "--yes")).out == f"{public} is revoked.\n"
    assert not await works(gateway, newest)


async def test_key_for_a_model_that_nothing_is_named_is_made_with_a_warning(apprentice: Command) -> None:
    said = await ok(apprentice, "keys", "make", "shop", "--model", "retruns", "--model", "returns", "--model", "auto")
    assert said.out.startswith("sk-app-")
    assert said.err.count("Warning:") == 1
    assert "Warning: Nothing is named 'retruns': the key can ask for it once there is." in said.err


async def test_a_key_may_have_unknown_fields_dropped(gateway: RunningGateway, apprentice: Command) -> None:
    made = await ok(apprentice, "keys", "make", "bench", "--unknown-fields", "drop")
    assert gateway.services.snapshot.current.callers[made.out.split("-")[2]].unknown_fields == "drop"


async def test_an_admin_key_of_another_owner_is_approved(gateway: RunningGateway, apprentice: Command) -> None:
    public = (await gateway.admin_of("bert"))[7:19]
    raw = await gateway.services.objects.callers.get(public)
    await gateway.services.objects.callers.put(public, {**(raw or {}), "pending": "bert"})
    row = next(line for line in (await ok(apprentice, "keys", "list")).out.splitlines() if line.startswith(public))
    assert "bert" in row
    assert "admin, not approved" in row
    assert (await ok(apprentice, "keys", "approve", public)).out.startswith(f"{public} works from now on")
    assert (await apprentice("keys", "approve", public)).exit_code == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("limits", "abcdefghijkl", "--tokens-per-minute", "many"), "--tokens-per-minute is a number"),
        (("make", "shop", "--usd-per-day", "nan"), "--usd-per-day is a number"),
        (("make", "shop", "--usd-per-day", "inf"), "--usd-per-day is a number"),
        (("make", "shop", "--expires-in", "soon"), "not a span of time"),
        (("make", "shop", "--expires-in", "0d"), "'0d' is not a span of time above 0"),
        (("rotate", "sk-app-abcdefghijkl-secret"), "a whole key is a secret"),
    ],
)
async def test_what_is_no_limit_span_or_key_is_said_in_one_line(
    apprentice: Command, words: tuple[str, ...], said: str
) -> None:
    told = await apprentice("keys", *words)
    assert (told.exit_code, told.out) == (2, "")
    assert said in told.err
    assert "secret\n" not in told.err.replace(said, "")


async def test_a_state_carries_limits_and_a_rotation_under_way(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    old = await gateway.key(limits={"requests_per_minute": 600, "usd_per_day": 1.5})
    public = old.split("-")[2]
    new = (await ok(apprentice, "keys", "rotate", public)).out.strip()
    path = tmp_path / "state.json"
    await ok(apprentice, "state", "export", "-o", str(path))
    value = json.loads(path.read_text())["callers"][public]["value"]
    assert value["limits"] == {"requests_per_minute": 600, "usd_per_day": 1.5}
    assert re.fullmatch(r"[0-9a-f]{64}", value["former"]["secret_digest"])
    await ok(apprentice, "state", "diff", str(path), "--exit-code")

    await ok(apprentice, "keys", "revoke", public, "--yes")
    assert not await works(gateway, new)
    await ok(apprentice, "state", "apply", str(path), "--force")
    assert await works(gateway, new)
    assert await works(gateway, old)
    shown = (await ok(apprentice, "keys", "limits", public, "--json")).json
    assert shown["limits"] == value["limits"]


def edited(path: Path, public: str, **changes: Any) -> str:
    content = json.loads(path.read_text())
    content["callers"][public]["value"] |= changes
    path.write_text(json.dumps(content))
    return str(path)


async def test_a_state_says_what_it_changes_of_limits_and_refuses_what_is_none(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    public = (await gateway.key(limits={"requests_per_minute": 600})).split("-")[2]
    path = tmp_path / "state.json"
    await ok(apprentice, "state", "export", "-o", str(path))
    told = await ok(apprentice, "state", "diff", edited(path, public, limits={"requests_per_minute": 60}))
    assert "600" in told.out
    await ok(apprentice, "state", "apply", str(path))
    shown = (await ok(apprentice, "keys", "limits", public, "--json")).json
    assert shown["limits"] == {"requests_per_minute": 60}
    for bad in ({"limits": {"requests_per_minute": 0}}, {"limits": {"smiles_a_day": 1}}, {"former": {"until": 1}}):
        refused = await apprentice("state", "apply", edited(path, public, **bad))
        assert (refused.exit_code, "invalid_value" in refused.err) == (1, True), bad
        edited(path, public, limits={"requests_per_minute": 60})
        content = json.loads(path.read_text())
        content["callers"][public]["value"].pop("former", None)
        path.write_text(json.dumps(content))


async def test_keys_from_before_there_were_limits_are_read_and_differ_in_nothing(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    key = await gateway.key(name="shop", owner="shop")
    public = key.split("-")[2]
    raw = await gateway.services.objects.callers.get(public)
    assert raw is not None
    assert sorted(raw) == ["expires_at", "models", "name", "role", "secret_digest"]
    path = tmp_path / "state.json"
    await ok(apprentice, "state", "export", "-o", str(path))
    assert (await ok(apprentice, "state", "diff", str(path), "--exit-code")).exit_code == 0
