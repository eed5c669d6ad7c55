"""Messages of `apprentice`: advice that can be followed, one way of writing, and nothing that a script can't read."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.main import get_command

from gateway.cli.main import app
from gateway.cli.serve import serve
from gateway.errors import SettingsError
from monitoring.quality.verdicts.canary_verdict import CanaryPlan
from serving.adapters.versions_and_aliases import split_version
from tests.fakes.engine import FakeEngine
from tests.gateway.cli.conftest import Command, in_a_process, run
from tests.waiting import until
from tests.walks.conftest import MakeAdapter
from tests.walks.gateway import RunningGateway
from tests.walks.two_replicas import LOAD, Hold, go_down

PROGRAM = str(Path(sys.executable).with_name("apprentice"))


@pytest.fixture
async def staged(apprentice: Command, make_adapter: MakeAdapter) -> Command:
    """`apprentice …` where returns@v1 leads and returns@v2 is ready."""
    for words in (("push", str(make_adapter(2))), ("stage", "returns@v2")):
        said = await apprentice("adapters", *words)
        assert said.exit_code == 0, said.err
    return apprentice


def commands(group: Any = None, path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, command in (group or get_command(app)).commands.items():
        found |= commands(command, f"{path}{name} ") if hasattr(command, "commands") else {f"{path}{name}": command}
    return found


# ---- advice ----------------------------------------------------------------------------------------------------------


async def test_a_rollback_after_a_rollback_says_how_to_lead_with_what_is_loaded(staged: Command) -> None:
    for words in (("promote", "returns@v2"), ("rollback", "returns")):
        assert (await staged("adapters", *words)).exit_code == 0
    again = await staged("adapters", "rollback", "returns")
    assert again.exit_code == 1
    assert "returns@v2 (previous_version). Promote returns@v2, or roll back to returns@v2 by its name." in again.err
    assert "stage" not in again.err.replace("(state_conflict)", "")
    followed = await staged("adapters", "rollback", "returns", "--to", "returns@v2")
    assert followed.out.startswith("returns is served by returns@v2 100 %")


async def test_rollback_with_nothing_loaded_names_what_can_be_staged_and_nothing_retired(
    gateway: RunningGateway, staged: Command, make_adapter: MakeAdapter
) -> None:
    for words in (("retire", "returns@v2", "--yes"), ("push", str(make_adapter(3)))):
        assert (await staged("adapters", *words)).exit_code == 0
    refused = await staged("adapters", "rollback", "returns")
    assert "no other version that is loaded: stage one of returns@v3, then promote it." in refused.err
    assert (await staged("adapters", "retire", "returns@v3", "--yes")).exit_code == 0
    refused = await staged("adapters", "rollback", "returns")
    assert "no other version that is loaded: push another adapter." in refused.err


@pytest.mark.parametrize("step", [("stage",), ("promote",), ("canary", "--share", "0.1")])
async def test_a_retired_version_is_pushed_again_and_never_staged(staged: Command, step: tuple[str, ...]) -> None:
    assert (await staged("adapters", "retire", "returns@v2", "--yes")).exit_code == 0
    refused = await staged("adapters", step[0], "returns@v2", *step[1:])
    assert refused.exit_code == 1
    assert "returns@v2 is retired, permanently: push its adapter again, which makes a new version." in refused.err


# ---- the form of what is said ----------------------------------------------------------------------------------------


async def test_a_refusal_ends_with_one_full_stop_and_names_things_as_they_were_written(staged: Command) -> None:
    canary = ("canary", "returns@v2", "--share", "0.2", "--auto")
    for words, told in (
        ((*canary, "--alpha", "7"), "alpha is 7"),
        ((*canary, "--margin", "0.02", "--shadow-harm-margin", "0.4"), "--shadow-harm-margin is 0.4"),
        (("promote", "returns@v2", "--expected-generation", "9"), "read it and try again. (stale_generation)"),
        (("promote", "no task@v1"), "'no task'"),
        (("show", "returns@v 9"), "'returns@v 9'"),
        (("rollback", "no task"), "'no task'"),
    ):
        refused = await staged("adapters", *words)
        assert (refused.exit_code, told in refused.err) == (1, True), refused.err
        assert re.fullmatch(r"apprentice: .*[^.]\. \(\w+\)\n", refused.err), refused.err
        assert "%" not in refused.err


def test_a_checked_configuration_is_counted_in_words_that_fit(tmp_path: Path) -> None:
    path = tmp_path / "apprentice.yaml"
    path.write_text("pools: {general: {base_model: base, replicas: [{name: a, url: 'http://127.0.0.1:1'}]}}\n")
    said = run("check", "--config", str(path))
    assert said.out.replace("\n", "") == f"{path} is valid: 1 pool, 1 replica, 0 tasks."


@pytest.mark.parametrize(
    ("written", "place", "key", "words"),
    [
        ("pools: {}\nlisten:\n  port: many\n", [3, 3], "listen.port", "a whole number"),
        ("pools: {}\ncolour: blue\n", [2, 1], "colour", "unknown key"),
        ("pools: [\n", [2, 1], None, "expected"),
        (None, [None, None], None, "can't be read"),
    ],
    ids=["value", "key", "syntax", "file"],
)
def test_a_check_gives_a_script_each_fault_with_its_place(
    tmp_path: Path, written: str | None, place: list[int | None], key: str | None, words: str
) -> None:
    path = tmp_path / "apprentice.yaml"
    if written is not None:
        path.write_text(written)
    said = run("check", "--json", "--config", str(path))
    answer = json.loads(said.out)
    assert (said.exit_code, answer["valid"], said.err != "") == (2, False, True)
    (fault,) = (fault for fault in answer["faults"] if fault["key"] != "pools")
    assert ([fault["line"], fault["column"]], fault["key"]) == (place, key)
    assert fault["file"] == (str(path) if place[0] else None)
    assert words in fault["message"]
    path.write_text("pools: {general: {base_model: base, replicas: [{name: a, url: 'http://127.0.0.1:1'}]}}\n")
    valid = json.loads(run("check", "--json", "--config", str(path)).out)
    assert valid == {"valid": True, "faults": [], "pools": 1, "replicas": 1, "tasks": 0, "unusable_bases": []}


def test_a_missing_base_folder_is_named_with_its_pool(tmp_path: Path) -> None:
    path, missing = tmp_path / "apprentice.yaml", tmp_path / "missing"
    pools: dict[str, dict[str, Any]] = {
        name: {"base_model": "base", "replicas": [{"name": name, "url": "http://127.0.0.1:1"}]}
        for name in ("general", "small")
    }
    pools["small"]["base_folder"] = str(missing)
    path.write_text(json.dumps({"pools": pools, "data_folder": str(tmp_path / "data")}))
    fault = f"pools.small.base_folder is {missing}. The base model in 'missing' can't be used: config.json can't be"
    checked = run("check", "--config", str(path))
    assert f"{path}: {fault}" in checked.err
    assert checked.exit_code == 0, "it may be for another machine"
    findings = json.loads(run("doctor", "--json", "--config", str(path)).out)["findings"]
    assert [one["kind"] for one in findings if one["found"].startswith(fault)] == ["problem"]
    with pytest.raises(SettingsError, match=re.escape(fault)):
        serve(path)
    assert not (tmp_path / "data").exists()


def test_a_check_beside_make_up_names_the_configuration_that_its_gateway_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = Path("var/up/apprentice.yaml")
    kept.parent.mkdir(parents=True)
    for path in (kept, Path("apprentice.yaml")):
        path.write_text("pools: {general: {base_model: base, replicas: [{name: a, url: 'http://127.0.0.1:1'}]}}\n")
    said = run("check")
    assert (said.exit_code, said.out) == (0, "apprentice.yaml is valid: 1 pool, 1 replica, 0 tasks.\n")
    assert said.err == f"The gateway of `make up` reads {kept}: check that with --config {kept}.\n"
    assert run("check", "--config", str(kept)).err == ""


def test_broken_configuration_of_make_up_is_named_where_the_address_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = Path("var/up/apprentice.yaml")
    kept.parent.mkdir(parents=True)
    for broken in ("listen: {port: 8090}\n\tx: 1\n", "listen: 8090\n", "- listen\n"):
        kept.write_text(broken)
        refused = run("reload")
        assert (refused.exit_code, str(kept) in refused.err, "8080" in refused.err) == (2, True, False), refused.err


async def test_a_share_is_written_in_one_way(staged: Command) -> None:
    for version, share in (("returns@v1", "100%"), ("returns@v2", "0%")):
        shown = (await staged("adapters", "why", version)).out
        assert f"The alias of returns gives it {share} of the requests.\n" in shown


async def test_a_refusal_is_json_too_where_json_is_asked_for(gateway: RunningGateway, apprentice: Command) -> None:
    refused = await apprentice("adapters", "show", "returns@v9", "--json")
    async with gateway.http() as http:
        answer = await http.get("/admin/v1/adapters/returns@v9")
    assert (refused.exit_code, refused.json) == (1, answer.json())
    unusable = await apprentice("adapters", "stage", "returns", "--json")
    error = unusable.json["error"]
    assert (unusable.exit_code, list(error)) == (2, ["message", "type", "param", "code"])
    assert unusable.err == f"apprentice: {error['message']}\n"


async def test_what_came_to_nothing_is_one_json_document(
    apprentice: Command, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers["returns@v2"] = "not what its manifest expects"
    await apprentice("adapters", "push", str(make_adapter(2, expected="approve")))
    failed = await apprentice("adapters", "stage", "returns@v2", "--json")
    assert (failed.exit_code, failed.json["state"]) == (1, "quarantined")


# ---- lists -----------------------------------------------------------------------------------------------------------


async def test_a_long_note_is_shortened_in_the_list_and_whole_in_why(
    apprentice: Command, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers["returns@v2"] = "not what its manifest expects " * 4
    await apprentice("adapters", "push", str(make_adapter(2, expected="approve")))
    await apprentice("adapters", "stage", "returns@v2")
    line = (await apprentice("adapters", "list")).out.splitlines()[2]
    note = line[line.index("returns@v2 answers") :]
    assert len(note) <= 60
    assert note.endswith("…")
    assert "not 'approve'." in (await apprentice("adapters", "why", "returns@v2")).out


async def test_a_version_that_is_ready_nowhere_and_an_engine_that_is_down_say_so(
    gateway: RunningGateway, apprentice: Command, small: FakeEngine
) -> None:
    await go_down(gateway, small)
    listed = (await apprentice("adapters", "list")).out
    assert "0/1" in listed
    assert "ready on 0 of 1 replicas: small-0 is down" in listed
    (row,) = [line.split() for line in (await apprentice("adapters", "replicas")).out.splitlines() if "small-0" in line]
    assert row == ["small-0", "small", "down", "0", "-", "-", "-", "returns@v1"]


def test_versions_are_in_the_order_of_their_numbers() -> None:
    names = ["returns@v10", "returns@v2", "a@v3", "returns@v1", "returns"]
    assert sorted(names, key=split_version) == ["returns", "a@v3", "returns@v1", "returns@v2", "returns@v10"]


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["0", "1", "1.5", "nan", "much"])
async def test_canary_without_a_share_or_with_all_of_it_is_refused_before_any_request(share: str) -> None:
    said = await asyncio.to_thread(run, "adapters", "canary", "returns@v2", "--share", share)
    assert (said.exit_code, "above 0 and below 1" in " ".join(said.err.split())) == (2, True)


def test_every_field_of_a_plan_has_an_option() -> None:
    options = {option for parameter in commands()["adapters canary"].params for option in parameter.opts}
    fields = {f"--{field.name.replace('_', '-')}" for field in msgspec.structs.fields(CanaryPlan)}
    assert not fields - options


def test_every_argument_is_written_in_capitals() -> None:
    for name, command in commands().items():
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                assert str(parameter.metavar).isupper(), f"{name}: {parameter.name}"


# ---- waiting, and Ctrl-C ---------------------------------------------------------------------------------------------


async def test_a_canary_watched_into_a_pipe_is_a_line_a_change(gateway: RunningGateway, staged: Command) -> None:
    watching = asyncio.create_task(
        in_a_process(gateway)("adapters", "canary", "returns@v2", "--share", "0.5", "--watch")
    )
    async with gateway.http() as http:

        async def has_lasted() -> bool:
            canary = (await http.get("/admin/v1/aliases/returns")).json()["canary"]
            return canary is not None and time.time() - canary["started_at"] > 2.2

        await until(has_lasted)
    assert (await staged("adapters", "rollback", "returns")).exit_code == 0
    watched = await watching
    assert watched.err.count("Canary: returns@v2 has 50 %") == 1, watched.err


def test_ctrl_c_while_the_commands_are_loaded_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    command = [sys.executable, "-m", "gateway.cli.entry", "adapters", "list"]
    variables = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


async def test_ctrl_c_while_a_version_is_placed_says_that_it_goes_on_and_it_does(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    hold = Hold()
    small.faults.add(hold, path=LOAD)
    await apprentice("adapters", "push", str(make_adapter(2)))
    variables = {**os.environ, "APPRENTICE_URL": gateway.url, "APPRENTICE_KEY": gateway.admin_key}
    process = await asyncio.create_subprocess_exec(
        *(PROGRAM, "adapters", "stage", "returns@v2"), env=variables, stderr=asyncio.subprocess.PIPE
    )
    await hold.met.wait()
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    hold.let_go.set()
    assert process.returncode == 130
    told = "returns@v2 goes on being placed: see how far it is with `apprentice adapters show returns@v2`.\n"
    assert err.decode() == told

    async def is_ready() -> bool:
        return (await apprentice("adapters", "show", "returns@v2", "--json")).json["state"] == "ready"

    await until(is_ready)
