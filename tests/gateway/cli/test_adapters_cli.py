"""`apprentice adapters …` over a real gateway with engines that speak as vLLM does."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gateway.callers import new_key
from gateway.cli.admin_client import DEFAULT_URL, Unusable, find_gateway, find_key
from gateway.cli.tables import format_age, format_size, format_time, make_readable, print_plainly, share
from gateway.cli.watch import list_evidence
from tests.fakes.applications import run_application
from tests.fakes.engine import FakeEngine
from tests.gateway.cli.conftest import Command, command_for, in_a_process, ok, run, served_by
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.two_replicas import LOAD, Hold

ESCAPE = "\x1b["


async def test_a_new_version_is_pushed_staged_promoted_and_rolled_back(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter
) -> None:
    pushed = await ok(apprentice, "adapters", "push", str(make_adapter(2)))
    assert pushed.out.startswith("returns@v2 is verified: for the pool small, rank 4, ")
    assert "apprentice adapters stage returns@v2" in pushed.err
    staged = await ok(apprentice, "adapters", "stage", "returns@v2")
    assert staged.out == "returns@v2 is ready, on 1 of 1 replicas.\n"
    assert await served_by(gateway) == "returns@v1"
    await gateway.services.control.fitted.put("returns@v1", "scope", b"any", "test", {})
    promoted = await ok(apprentice, "adapters", "promote", "returns@v2", "--expected-generation", "1")
    assert promoted.out == "returns is served by returns@v2 100 % (generation 2).\n"
    assert "Warning: returns@v2 has no scope model: auto does not find its task any more." in promoted.err
    assert await served_by(gateway) == "returns@v2"
    back = await ok(apprentice, "adapters", "rollback", "returns", "--reason", "Callers complain.")
    assert back.out == "returns is served by returns@v1 100 % (generation 3).\n"
    listed = (await ok(apprentice, "audit", "--action", "alias.rollback")).out
    assert listed.rstrip().endswith("returns@v1 100 %: Callers complain.")
    assert await served_by(gateway) == "returns@v1"
    to = await ok(apprentice, "adapters", "rollback", "returns", "--to", "returns@v2")
    assert to.out.startswith("returns is served by returns@v2 ")


async def test_the_same_adapter_again_is_the_same_version(apprentice: Command, tmp_path: Path) -> None:
    pushed = await ok(apprentice, "adapters", "push", str(tmp_path / "adapter-1"))
    assert pushed.out.startswith("returns@v1 is active: ")
    assert "stage" not in pushed.err


async def test_shadow_and_canary_tell_who_gets_what(apprentice: Command, make_adapter: MakeAdapter) -> None:
    await ok(apprentice, "adapters", "push", str(make_adapter(2)))
    await ok(apprentice, "adapters", "stage", "returns@v2")
    shadowed = await ok(apprentice, "adapters", "shadow", "returns@v2", "--share", "0.05")
    assert shadowed.out == "returns is served by returns@v1 100 %; copied to returns@v2 5 % (generation 2).\n"
    begun = await ok(apprentice, "adapters", "canary", "returns@v2", "--share", "0.1")
    served = "returns is served by returns@v2 10 %, returns@v1 90 %; copied to returns@v2 5 % (generation 3).\n"
    assert begun.out == served
    shown = await ok(apprentice, "adapters", "show", "returns")
    begun_by = r"since \d+ s, by admin \(\w{12}\)"
    assert re.search(rf"\nCanary: returns@v2 has 10 % of returns, {begun_by}\.\nIt has no plan: ", shown.out)
    listed = await ok(apprentice, "adapters", "list")
    assert [line.split()[:3] for line in listed.out.splitlines()] == [
        ["VERSION", "STATE", "SHARE"],
        ["returns@v1", "active", "90"],
        ["returns@v2", "canary", "10"],
    ]


async def test_the_plan_of_an_automatic_verdict_is_the_one_of_the_options(
    apprentice: Command, make_adapter: MakeAdapter
) -> None:
    await ok(apprentice, "adapters", "push", str(make_adapter(2)))
    await ok(apprentice, "adapters", "stage", "returns@v2")
    options = "--share 0.2 --auto --alpha 0.01 --margin 0.03 --latency-ratio-max 2 --requests-min 50 --seconds-min 1"
    rest = "--seconds-max 60 --feedback-metric correct --on-timeout roll_back --json"
    told = (await ok(apprentice, "adapters", "canary", "returns@v2", *options.split(), *rest.split())).json
    plan = told["canary"]["plan"]
    wanted = {"alpha": 0.01, "margin": 0.03, "latency_ratio_max": 2, "requests_min": 50, "seconds_min": 1}
    wanted |= {"seconds_max": 60, "feedback_metric": "correct", "on_timeout": "roll_back"}
    assert {name: plan[name] for name in wanted} == wanted
    assert "judged by people" not in (await ok(apprentice, "adapters", "why", "returns@v2")).out
    raised = (await ok(apprentice, "adapters", "canary", "returns@v2", "--share", "0.4", "--json")).json
    assert (raised["canary"]["share"], raised["canary"]["plan"]) == (0.4, plan)
    taken = (await ok(apprentice, "adapters", "canary", "returns@v2", "--share", "0.4", "--no-auto", "--json")).json
    assert taken["canary"]["plan"] is None
    outside = await apprentice("adapters", "canary", "returns@v2", "--share", "0.2", "--auto", "--alpha", "7")
    assert (outside.exit_code, "(invalid_value)" in outside.err) == (1, True)


@pytest.mark.parametrize(("ending", "exit_code"), [(("promote", "returns@v2"), 0), (("rollback", "returns"), 1)])
async def test_a_canary_is_watched_until_it_ends(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter, ending: tuple[str, str], exit_code: int
) -> None:
    await ok(apprentice, "adapters", "push", str(make_adapter(2)))
    await ok(apprentice, "adapters", "stage", "returns@v2")
    watching = asyncio.create_task(
        in_a_process(gateway)("adapters", "canary", "returns@v2", "--share", "0.5", "--watch")
    )
    async with gateway.http() as http, asyncio.timeout(60):
        while not (await http.get("/admin/v1/aliases/returns")).json()["canary"]:
            await asyncio.sleep(0.02)
    await ok(apprentice, "adapters", *ending)
    watched = await watching
    assert watched.exit_code == exit_code
    assert watched.err.startswith("Canary: returns@v2 has 50 % of returns, since ")
    if exit_code:
        assert watched.err.endswith(
            "apprentice: returns@v2 was rolled back. See why: apprentice adapters why returns@v2\n"
        )
    else:
        assert watched.out == "returns is served by returns@v2 100 % (generation 3).\n"


@pytest.mark.parametrize("canary", [{}, {"canary": {"version": "returns@v2", "share": 0.5, "plan": None}}])
async def test_a_watch_of_a_gateway_without_the_canarys_fields_says_where_to_look(canary: dict[str, Any]) -> None:
    weights = {"returns@v1": 0.5, "returns@v2": 0.5}

    async def answer(_: Request) -> JSONResponse:
        return JSONResponse({"task": "returns", "weights": weights, "generation": 3, "warnings": ["A."], **canary})

    older = Starlette(routes=[Route("/admin/v1/aliases/returns/canary", answer, methods=["POST"])])
    async with run_application(older) as url:
        words = ("adapters", "canary", "returns@v2", "--share", "0.5", "--watch")
        said = await asyncio.to_thread(run, *words, APPRENTICE_URL=url, APPRENTICE_KEY=new_key()[0])
    assert said.err.splitlines() == [
        "Warning: A.",
        "apprentice: returns@v2 is a canary, but this gateway does not say how it is judged: "
        "see `apprentice adapters show returns`.",
    ]
    assert said.exit_code == 2


async def test_why_tells_the_state_the_placements_and_the_audit(apprentice: Command, make_adapter: MakeAdapter) -> None:
    await ok(apprentice, "adapters", "push", str(make_adapter(2)))
    of_version = (await ok(apprentice, "adapters", "why", "returns@v1")).out
    assert "returns@v1 is active.\n" in of_version
    assert "On small-0 it is ready.\n" in of_version
    assert re.search(r"alias\.move +returns@v1 100 %\n", of_version)
    of_task = (await ok(apprentice, "adapters", "why", "returns")).out
    assert of_version in of_task
    assert "generation  1\n" in of_task


async def test_replicas_tell_how_many_loads_are_left(apprentice: Command) -> None:
    lines = (await ok(apprentice, "adapters", "replicas")).out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["small-0", "small", "up", "0", "1", "of", "16", "0", "14", "returns@v1"],
        ["general-0", "general", "up", "0", "-", "-", "-", "-"],
    ]


async def test_unload_and_retire_are_refused_while_requests_go_there(
    apprentice: Command, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    await ok(apprentice, "adapters", "push", str(make_adapter(2)))
    await ok(apprentice, "adapters", "stage", "returns@v2")
    for step in (("unload",), ("retire", "--yes")):
        refused = await apprentice("adapters", *step, "returns@v1")
        assert (refused.exit_code, refused.out) == (1, "")
        assert refused.err.endswith("sends requests to returns@v1: move it first. (state_conflict)\n")
    assert (await ok(apprentice, "adapters", "unload", "returns@v2")).out == "returns@v2 is verified.\n"
    assert set(small.adapters.registered) == {"returns@v1"}
    assert (await ok(apprentice, "adapters", "retire", "returns@v2", "--yes")).out == "returns@v2 is retired.\n"
    assert "returns@v2" not in (await ok(apprentice, "adapters", "list")).out
    assert "returns@v2" in (await ok(apprentice, "adapters", "list", "--all")).out
    assert "returns@v2" in (await ok(apprentice, "adapters", "list", "--state", "retired")).out


async def test_retiring_asks_and_does_nothing_where_nobody_answers(
    apprentice: Command, make_adapter: MakeAdapter
) -> None:
    await ok(apprentice, "adapters", "push", str(make_adapter(2)))
    said = await apprentice("adapters", "retire", "returns@v2")
    assert (said.exit_code, said.out) == (2, "")
    assert "returns@v2 is retired permanently: it can't be staged again. Retire it? Give --yes" in said.err
    assert "verified" in (await ok(apprentice, "adapters", "list")).out


async def test_push_of_what_is_there_already_says_so(apprentice: Command, make_adapter: MakeAdapter) -> None:
    folder = str(make_adapter(2))
    first, again = [(await ok(apprentice, "adapters", "push", folder)).out for _ in range(2)]
    assert "already" not in first
    assert again.startswith("returns@v2 is verified")
    assert again.endswith("It was there already, with the same files and manifest: nothing was added.\n")


async def test_audit_why_and_show_name_people_by_their_keys_name(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter
) -> None:
    key = await gateway.key(name="Ada", role="admin")
    who = f"Ada ({key.split('-')[2]})"
    await ok(apprentice, "adapters", "push", str(make_adapter(2)), "--key", key)
    for words in (("audit",), ("adapters", "why", "returns@v2"), ("adapters", "show", "returns@v2")):
        assert who in (await ok(apprentice, *words)).out, words
    pin = ("tasks", "pin", "returns", "returns@v1", "--verdict", "healthy", "--reason", "as Ada says")
    await ok(apprentice, *pin, "--key", key)
    assert f"by {who}" in (await ok(apprentice, "why", "returns")).out


async def test_a_version_that_fails_its_probe_ends_the_command_with_the_reason(
    apprentice: Command, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers["returns@v2"] = "not what its manifest expects"
    await ok(apprentice, "adapters", "push", str(make_adapter(2, expected="approve")))
    staged = await apprentice("adapters", "stage", "returns@v2")
    assert staged.exit_code == 1
    assert re.fullmatch(
        r"apprentice: returns@v2 could not be placed and is quarantined: .*not what its manifest expects.*\n",
        staged.err,
    )


async def test_staging_may_be_left_to_go_on_by_itself(
    apprentice: Command, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    hold = Hold()
    small.faults.add(hold, path=LOAD)
    await ok(apprentice, "adapters", "push", str(make_adapter(2)))
    begun = await ok(apprentice, "adapters", "stage", "returns@v2", "--wait", "0")
    assert begun.out == (
        "returns@v2 is being loaded and probed. See how far it is: apprentice adapters show returns@v2\n"
    )
    await hold.met.wait()
    late = await apprentice("adapters", "stage", "returns@v2", "--wait", "0.1")
    assert (late.exit_code, "still being loaded" in late.err) == (1, True)
    hold.let_go.set()
    placed = await ok(apprentice, "adapters", "stage", "returns@v2", "--json")
    assert (placed.json["state"], placed.json["ready"]) == ("ready", ["small-0"])


async def test_json_is_the_apis_answer_and_nothing_else(gateway: RunningGateway, apprentice: Command) -> None:
    reads = {
        ("list",): "/adapters",
        ("show", "returns@v1"): "/adapters/returns@v1",
        ("show", "returns"): "/aliases/returns",
        ("why", "returns@v1"): "/adapters/returns@v1/why",
    }
    async with gateway.http() as http:
        for words, path in reads.items():
            said = await ok(apprentice, "adapters", *words, "--json")
            assert (said.json, said.err) == ((await http.get(f"/admin/v1{path}")).json(), "")
    assert [one["name"] for one in (await ok(apprentice, "adapters", "replicas", "--json")).json["replicas"]] == [
        "small-0",
        "general-0",
    ]
    both = (await ok(apprentice, "adapters", "why", "returns", "--json")).json
    assert both["alias"]["weights"] == {"returns@v1": 1.0}
    assert list(both["versions"]) == ["returns@v1"]


async def test_what_the_gateway_refuses_is_one_line_and_fallback_code_1(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter
) -> None:
    broken = make_adapter(2)
    (broken / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    operator = await gateway.key(role="operator")
    stranger = new_key()[0]
    for words, code in (
        (("show", "returns@v9"), "not_found"),
        (("why", "nothing"), "not_found"),
        (("promote", "returns@v1", "--expected-generation", "7"), "stale_generation"),
        (("push", str(broken)), "adapter_rejected"),
        (("promote", "returns@v1", "--key", operator), "role_required"),
        (("list", "--key", stranger), "invalid_api_key"),
    ):
        said = await apprentice("adapters", *words, "--json")
        assert (said.exit_code, said.json["error"]["code"]) == (1, code), said
        assert re.fullmatch(rf"apprentice: [^\n]+ \({code}\)[^\n]*\n", said.err), said.err
    assert "--key-file" in (await apprentice("adapters", "list", "--key", stranger)).err
    assert (await ok(apprentice, "adapters", "list", "--key", operator)).out


async def test_what_can_not_be_asked_is_one_line_and_fallback_code_2(
    apprentice: Command, make_adapter: MakeAdapter, small: FakeEngine, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        closed = f"http://127.0.0.1:{listening.getsockname()[1]}"
    bare = make_adapter(2)
    (bare / "manifest.yaml").unlink()
    other = make_adapter(3)
    for words, told in (
        (("list", "--gateway", closed), "No gateway answers at"),
        (("list", "--gateway", small.url), "is the address right"),
        (("list", "--gateway", "localhost"), "is not an address"),
        (("list", "--key-file", str(tmp_path / "nowhere")), "can't be read"),
        (("list", "--key", "sk-app"), "has not the form sk-app-"),
        (("stage", "returns"), "is not a version: write task@number"),
        (("canary", "returns@v1", "--share", "0.1", "--alpha", "0.1"), "give --auto as well"),
        (("push", str(tmp_path)), "There is no adapter_config.json in"),
        (("push", str(bare)), "There is no manifest.yaml in"),
        (("push", str(bare), "--manifest", str(tmp_path / "none.yaml")), "There is no file"),
        (("push", str(other), "--task", "clauses"), "is for the task returns, not for clauses"),
        (("push", str(other), "--sign", "key.pem"), "--sign and --signer go together"),
        (("push", str(other), "--sign", str(tmp_path / "key.pem"), "--signer", "me"), "can't be read"),
    ):
        said = await apprentice("adapters", *words)
        assert (said.exit_code, said.out) == (2, ""), (words, said)
        assert re.fullmatch(r"apprentice: [^\n]+\n", said.err), said.err
        assert told in said.err


async def test_the_manifest_may_lie_beside_the_folder_or_elsewhere(
    apprentice: Command, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    two, three = make_adapter(2), make_adapter(3)
    (two / "manifest.yaml").rename(tmp_path / "manifest.yaml")
    assert (await ok(apprentice, "adapters", "push", str(two))).out.startswith("returns@v2 ")
    (three / "manifest.yaml").rename(tmp_path / "of-three.yaml")
    (tmp_path / "returns.yaml").symlink_to(tmp_path / "of-three.yaml")
    named = await ok(apprentice, "adapters", "push", str(three), "--manifest", str(tmp_path / "returns.yaml"))
    assert named.out.startswith("returns@v3 ")


async def test_an_adapter_is_signed_on_the_way(configure: Configure, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    made = [run("keygen", "--signing", str(tmp_path / name)) for name in ("key.pem", "other.pem")]
    signing = {"required": True, "trusted": {"returns-team": made[0].out.strip()}}
    async with run_gateway(configure(signing=signing)) as running:
        apprentice = command_for(running)
        push = ("adapters", "push", str(make_adapter(1)))
        for options in ((), ("--sign", str(tmp_path / "other.pem"), "--signer", "returns-team")):
            refused = await apprentice(*push, *options)
            assert (refused.exit_code, "(adapter_rejected)" in refused.err) == (1, True)
        signed = await ok(apprentice, *push, "--sign", str(tmp_path / "key.pem"), "--signer", "returns-team")
        assert signed.out.endswith(", signed by returns-team.\n")
        (listed,) = (await ok(apprentice, "adapters", "list", "--json")).json["adapters"]
        assert (listed["version"], listed["signed_by"]) == ("returns@v1", "returns-team")


async def test_a_key_that_apprentice_up_keeps_here_is_found_and_told_to_this_machine_alone(
    gateway: RunningGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "var" / "up"
    kept.mkdir(parents=True)
    port = int(gateway.url.rpartition(":")[2])
    (kept / "apprentice.yaml").write_text(yaml.safe_dump({"listen": {"port": port}}))
    (kept / "admin-key").write_text(gateway.admin_key + "\n")
    monkeypatch.chdir(tmp_path)
    said = await asyncio.to_thread(run, "adapters", "list")
    assert (said.exit_code, "returns@v1" in said.out) == (0, True), said.err
    assert find_key("http://localhost:1", None, None) == gateway.admin_key
    with pytest.raises(Unusable, match=r"There is no admin key for https://gateway\.example: give one with --key-file"):
        find_key("https://gateway.example", None, None)


def test_addresses_are_taken_with_and_without_what_openais_clients_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_gateway("https://gateway.example/v1/") == "https://gateway.example"
    assert find_gateway(None) == DEFAULT_URL
    kept = tmp_path / "var" / "up"
    kept.mkdir(parents=True)
    (kept / "apprentice.yaml").write_text("listen: {host: '::1', port: 99}")
    assert find_gateway(None) == "http://[::1]:99"
    (kept / "apprentice.yaml").write_text("- not a mapping")
    with pytest.raises(Unusable, match=r"var/up/apprentice\.yaml"):
        find_gateway(None)


def on_a_terminal(*words: str, **environment: str) -> tuple[int, str]:
    """Run the command as a person does: its exit code, and all that the terminal got."""
    ours, theirs = pty.openpty()
    command = [str(Path(sys.executable).with_name("apprentice")), *words]
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **environment}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=variables) as process:
        os.close(theirs)
        got = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other side has been closed
                break
            got += piece
            if not piece:
                break
        os.close(ours)
    return process.returncode, got.decode()


async def test_people_on_a_terminal_get_frames_colours_and_progress_and_pipes_get_none(
    gateway: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.load_delay_seconds = 0.5
    environment = {"APPRENTICE_URL": gateway.url, "APPRENTICE_KEY": gateway.admin_key}
    folder = str(make_adapter(2))
    exit_code, pushed = await asyncio.to_thread(on_a_terminal, "adapters", "push", folder, **environment)
    assert exit_code == 0, pushed
    assert "Sending" in pushed or "Verifying" in pushed
    _, staged = await asyncio.to_thread(on_a_terminal, "adapters", "stage", "returns@v2", **environment)
    assert "Placing returns@v2" in staged
    assert "of 1 replicas" in staged
    _, listed = await asyncio.to_thread(on_a_terminal, "adapters", "list", **environment)
    assert ESCAPE in listed
    assert "───" in listed
    piped = await command_for(gateway)("adapters", "list")
    assert ESCAPE not in piped.out
    assert "─" not in piped.out
    _, told = await asyncio.to_thread(on_a_terminal, "adapters", "list", "--json", **environment)
    assert json.loads(told)["adapters"][1]["version"] == "returns@v2"


async def test_a_command_of_the_shell_never_shows_a_trace(gateway: RunningGateway, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("apprentice")), "adapters", "list", "--gateway", "http://127.0.0.1:1"]
    variables = {**os.environ, "APPRENTICE_KEY": gateway.admin_key}
    ended = await asyncio.to_thread(subprocess.run, command, env=variables, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(r"apprentice: No gateway answers at http://127\.0\.0\.1:1 \([^\n]+\n", ended.stderr)


def test_texts_of_others_can_not_command_a_terminal() -> None:
    assert make_readable("a\x1b[31mb\x07\r\nc") == "a [31mb   c"
    assert [make_readable(value) for value in (None, True, 0.123456, 7)] == ["-", "yes", "0.1235", "7"]


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    lines = list(print_plainly(("name", "n"), [["returns@v1", "1"], ["a", "22"]]))
    assert lines == ["NAME        N", "returns@v1  1", "a           22"]


def test_numbers_are_told_in_their_units() -> None:
    assert [format_size(n) for n in (999, 25_755, 9_100_000)] == ["999 B", "26 kB", "9.1 MB"]
    assert [share(part) for part in (0, 0.05, 0.125, 1.0, None)] == ["-", "5 %", "12.5 %", "100 %", "-"]
    assert format_time(0) == format_age(None) == "-"
    assert format_time(1_700_000_000) == "2023-11-14 22:13:20Z"
    assert re.fullmatch(r"\d+ d", format_age(1_700_000_000))


def test_evidence_is_shown_whatever_its_form() -> None:
    evidence = {"error": {"canary": {"n": 10, "rate": 0.1}}, "why": ["slower", "worse"], "rows": [{"a": 1}], "x": []}
    assert list(list_evidence(evidence)) == [
        ("error canary n", "10"),
        ("error canary rate", "0.1"),
        ("why", "slower, worse"),
        ("rows 1 a", "1"),
        ("x", "-"),
    ]


async def test_only_a_canary_ends_where_that_is_said_and_what_leads_already_stays(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter
) -> None:
    await gateway.place(make_adapter(2))
    await ok(apprentice, "adapters", "canary", "returns@v1", "--share", "0.5")
    ended = await ok(apprentice, "adapters", "rollback", "returns", "--canary")
    assert ended.out.startswith("returns is served by returns@v2 100 %")
    again = await apprentice("adapters", "rollback", "returns", "--canary")
    assert (again.exit_code, again.out) == (1, "")
    assert "returns has no canary: returns@v2 leads it, and nothing was changed." in again.err
    both = await apprentice("adapters", "rollback", "returns", "--canary", "--to", "returns@v1")
    assert (both.exit_code, "--to and --canary do not go together" in both.err) == (2, True)
    for words in (("promote", "returns@v2"), ("rollback", "returns", "--to", "returns@v2")):
        said = await ok(apprentice, "adapters", *words)
        assert said.out == "returns@v2 leads returns already: nothing was changed.\n"
