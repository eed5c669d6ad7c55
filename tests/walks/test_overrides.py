"""Rules at the door: on every gateway at once, until they expire; what they add; what they would have changed."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from gateway.callers import new_key
from gateway.features.rules import dry_run as dry_runs
from monitoring.records import Record
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Dies, Status, Tokens
from tests.waiting import until
from tests.walks.conftest import GENERAL_PROMPT, Configure, MakeAdapter
from tests.walks.fault_world import World, ask, world
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import judged_by_now, shadows

__all__ = ["world"]

SYSTEM = "Vases go to the fragile desk."
ADDS = {"action": "system", "system": SYSTEM}
PROMPT = "A vase, sealed, after 3 days."
SOON_SECONDS = 10.0
"""A second, and what a busy machine may add: far from the 30 that the next look at Redis would take."""


def body(text: str = PROMPT, **more: Any) -> dict[str, Any]:
    return {"model": "returns", "messages": [{"role": "user", "content": text}], **more}


async def put(http: httpx.AsyncClient, name: str, wanted: int = 200, **rule: Any) -> dict[str, Any]:
    answer = await http.put(f"/admin/v1/overrides/{name}", json=rule)
    assert answer.status_code == wanted, answer.text
    return dict(answer.json())


async def chat(http: httpx.AsyncClient, text: str = PROMPT, **more: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=body(text, **more))


async def reason(http: httpx.AsyncClient, text: str = PROMPT, **more: Any) -> str:
    answer = await chat(http, text, **more)
    return answer.headers.get("x-apprentice-reason") or answer.json()["error"]["code"]


async def dry_run(http: httpx.AsyncClient, name: str = "m", **rule: Any) -> dict[str, Any]:
    answer = await http.post(f"/admin/v1/overrides/{name}/dry-run", json=rule)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def stored(gateway: RunningGateway, count: int) -> None:
    """Wait until so many records are in the stream."""
    async with asyncio.timeout(60):
        while await gateway.services.redis.xlen("apprentice:records") < count:
            await asyncio.sleep(0.01)


# ---- active everywhere, until it expires ----------------------------------------------------------


@pytest.mark.invariant("A rule holds on every gateway within a second, and ends when it expires.")
async def test_a_rule_is_active_on_every_gateway_within_a_second_and_so_is_its_end(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    admin_key, slow = new_key()[0], {"snapshot_interval_seconds": 30}
    async with run_gateway(configure(**slow), admin_key) as one, run_gateway(configure(**slow), admin_key) as two:
        await one.place(make_adapter(1))
        async with one.http() as here, two.http() as there:

            async def becomes(wanted: str) -> float:
                began = time.monotonic()
                async with asyncio.timeout(60):
                    while await reason(there) != wanted:
                        await asyncio.sleep(0.005)
                return time.monotonic() - began

            await becomes("adapter")
            await put(here, "vases", action="general", task="returns", pattern=r"(?i)\bvase\b")
            assert await becomes("override") < SOON_SECONDS
            assert await reason(here) == "override"
            assert await reason(there, "A toaster.") == "adapter"
            assert (await here.delete("/admin/v1/overrides/vases")).status_code == 200
            assert await becomes("adapter") < SOON_SECONDS
            entries = (await here.get("/admin/v1/audit?object=vases")).json()["entries"]
    assert [entry["action"] for entry in entries] == ["override.set", "override.delete"]
    assert entries[0]["after"]["pattern"] == r"(?i)\bvase\b"
    assert entries[1]["before"] == entries[0]["after"]


@pytest.mark.invariant("A rule holds on every gateway within a second, and ends when it expires.")
async def test_a_rule_ends_by_itself_when_it_expires_and_is_then_shown_as_such(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        await put(http, "b", action="general", contains="toaster", expires_at=time.time() + 3600)
        await put(http, "a", action="refuse", message="Closed for an hour.", expires_at=time.time() + 3600)
        assert await reason(http) == "refused_by_override"
        await put(http, "a", action="refuse", message="Closed for an hour.", expires_at=time.time() + 2)
        async with asyncio.timeout(60):
            while await reason(http) != "adapter":
                await asyncio.sleep(0.02)
        told = (await http.get("/admin/v1/overrides")).json()["overrides"]
    assert [(one["id"], one["expired"]) for one in told] == [("a", True), ("b", False)]


async def test_a_rule_begins_by_itself_and_is_until_then_shown_as_to_come(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        now = time.time()
        await put(http, "a", action="refuse", starts_at=now + 1800, expires_at=now + 3600)
        await put(http, "b", wanted=400, action="refuse", starts_at=now + 7200, expires_at=now + 3600)
        assert await reason(http) == "adapter"
        told = (await http.get("/admin/v1/overrides")).json()["overrides"]
        assert [(one["id"], one["to_come"]) for one in told] == [("a", True)]
        begins_at = time.time() + 1
        await put(http, "a", action="refuse", starts_at=begins_at, expires_at=now + 3600)
        async with asyncio.timeout(60):
            while await reason(http) != "refused_by_override":
                await asyncio.sleep(0.02)
        assert time.time() >= begins_at
        told = (await http.get("/admin/v1/overrides")).json()["overrides"]
    assert [(one["id"], one["to_come"]) for one in told] == [("a", False)]


async def test_which_rule_refused_is_on_the_record(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        await put(http, "a", action="refuse")
        answer = await chat(http)
        record = (await http.get(f"/v1/requests/{answer.headers['x-request-id']}")).json()["record"]
    assert (record["error_code"], record["override_id"], record["pool"]) == ("refused_by_override", "a", None)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
async def test_a_rule_by_metadata_holds_at_every_endpoint(gateway: RunningGateway, path: str) -> None:
    said = {"messages": [{"role": "user", "content": PROMPT}], "prompt": PROMPT, "input": PROMPT}
    own = {"/v1/completions": ["prompt"], "/v1/responses": ["input"]}.get(path, ["messages"])
    told = {"model": "returns", **{name: said[name] for name in own}, "metadata": {"tier": "beta"}}
    told |= {"max_tokens": 9} if path == "/v1/messages" else {}
    async with gateway.http() as http:
        await put(http, "a", action="refuse", metadata={"tier": "beta"})
        refused = await http.post(path, json=told)
        passed = await http.post(path, json=told | {"metadata": {"tier": "other"}})
    assert (refused.status_code, "rule" in refused.text.lower()) == (400, True), refused.text
    assert passed.status_code == 200, passed.text


async def test_a_rule_that_is_only_observed_changes_nothing_and_stands_on_the_record(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        await put(http, "a", action="refuse", mode="observe")
        answer = await chat(http)
        record = (await http.get(f"/v1/requests/{answer.headers['x-request-id']}")).json()["record"]
    assert (answer.status_code, record["reason"], record["override_id"]) == (200, "adapter", None)
    assert [(one["check"], one["mode"], one["note"]) for one in record["findings"]] == [
        ("override", "observe", "a: refuse")
    ]


async def test_a_long_text_is_read_to_its_end_beside_other_requests(gateway: RunningGateway) -> None:
    text = "A toaster that was worn once. " * 20_000 + "And\n a VASE."
    async with gateway.http() as http:
        await put(http, "a", action="general", contains="and a vase")
        await put(http, "b", action="refuse", pattern=r"once\. And\s+a [A-Z]{4}\.$")
        assert gateway.services.snapshot.current.policy.takes_long("returns", text, time.time())
        reasons = await asyncio.gather(reason(http, text), reason(http, "A toaster."), reason(http, text[:-8]))
        assert reasons == ["override", "adapter", "adapter"]
        assert (await http.delete("/admin/v1/overrides/a")).status_code == 200
        assert await reason(http, text) == "refused_by_override"


@pytest.mark.invariant("One caller's long texts delay no other caller.")
@pytest.mark.parametrize("path", ["/v1/route", "/v1/chat/completions"])
async def test_flood_of_long_texts_delays_no_other_caller_and_ends_with_its_caller(
    gateway: RunningGateway, path: str
) -> None:
    one, two = [await gateway.key(models=["returns"]) for _ in range(2)]
    admission = gateway.services.admission
    async with gateway.http() as http:
        await put(http, "a", action="general", pattern="[ab]*a[ab]{900}c")
    async with gateway.http(one) as http, gateway.http(two) as other:
        flood = [asyncio.create_task(http.post(path, json=body("ab" * 20_000))) for _ in range(40)]
        async with asyncio.timeout(60):
            while admission.in_flight < 20:
                await asyncio.sleep(0.005)
        assert (await chat(other, "x" * 200)).headers["x-apprentice-reason"] == "adapter"
        assert sum(not asking.done() for asking in flood) >= 10, "it has not waited for the flood"
        for asking in flood:
            asking.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        async with asyncio.timeout(30):
            while admission.in_flight:
                await asyncio.sleep(0.005)
        assert (await chat(http, "x" * 200)).headers["x-apprentice-reason"] == "adapter"


# ---- a message that is added ----------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_added_message_reaches_adapter_and_fallback_after_the_callers_own(
    gateway: RunningGateway, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    async with gateway.http() as http:
        await put(http, "a", contains="vase", **ADDS)
        assert (await chat(http, messages=said, stream=stream)).status_code == 200
        assert small.requests[-1].body["messages"][0] == {"role": "system", "content": f"Be brief.\n\n{SYSTEM}"}
        assert (await chat(http, stream=stream)).headers["x-apprentice-reason"] == "adapter"
        assert small.requests[-1].body["messages"] == [{"role": "system", "content": SYSTEM}, said[1]]
        told = (await http.get(f"/v1/requests/{(await chat(http)).headers['x-request-id']}")).json()
        assert told["explanation"][0] == "An admin's rule added its message: a: system."
        await put(http, "b", action="general")
        assert (await chat(http, messages=said, stream=stream)).headers["x-apprentice-pool"] == "general"
        added = f"{GENERAL_PROMPT}\n\nBe brief.\n\n{SYSTEM}"
        assert general.requests[-1].body["messages"] == [{"role": "system", "content": added}, said[1]]
        assert (await chat(http, "A toaster.", stream=stream)).status_code == 200
        assert general.requests[-1].body["messages"][0]["content"] == GENERAL_PROMPT


@pytest.mark.parametrize("stream", [False, True])
async def test_a_message_is_added_to_prompts_too(
    gateway: RunningGateway, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    asked = {"model": "returns", "prompt": PROMPT, "stream": stream}
    async with gateway.http() as http:
        await put(http, "a", **ADDS)
        assert (await http.post("/v1/completions", json=asked)).status_code == 200
        assert small.requests[-1].body["prompt"] == f"{SYSTEM}\n\n{PROMPT}"
        await put(http, "b", action="general")
        assert (await http.post("/v1/completions", json=asked)).status_code == 200
        assert general.requests[-1].body["prompt"] == f"{GENERAL_PROMPT}\n\n{SYSTEM}\n\n{PROMPT}"


async def test_added_message_reaches_fallback_and_previous_version_after_a_failure(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    tasks = {"returns": {"fallbacks": {"engine_error": ["previous_version", "general"]}}}
    limits = {"retries_max": 0, "backoff_seconds": 0.01}
    async with run_gateway(configure(tasks=tasks, limits=limits)) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        await gateway.place(make_adapter(2))
        await put(http, "a", **ADDS)
        small.faults.add(Status(500), model="returns@v2")
        answer = await chat(http)
        assert answer.headers["x-apprentice-version"] == "returns@v1"
        assert small.requests[-1].body["messages"][0]["content"] == SYSTEM
        small.faults.add(Status(500), model="returns@v1")
        assert (await chat(http)).headers["x-apprentice-pool"] == "general"
        assert general.requests[-1].body["messages"][0]["content"] == f"{GENERAL_PROMPT}\n\n{SYSTEM}"


async def test_who_goes_on_with_an_answer_gets_the_added_message_too(
    world: World, small: FakeEngine, general: FakeEngine
) -> None:
    continues = {"continues": True}
    async with world(commit="first_token", small_pool=continues, general_pool=continues) as gateway:
        async with gateway.http() as http:
            await put(http, "a", **ADDS)
        small.faults.add(Tokens(60), Dies(40), model="returns@*", times=1)
        small.faults.add(Status(500), model="returns@*")
        told = await ask(gateway, max_tokens=100)
    assert told.apprentice is not None
    assert (told.apprentice["continued"], told.apprentice["pool"]) == (1, "general")
    sent = general.requests[-1].body["messages"]
    assert sent[0]["content"].endswith(SYSTEM)
    assert sent[-1]["role"] == "assistant"


async def test_a_shadow_answers_with_the_added_message_as_its_primary_did(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with run_gateway(configure()) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        version = await gateway.place(make_adapter(2), alias=False)
        shadow = {"version": version, "share": 1.0}
        assert (await http.post("/admin/v1/aliases/returns/shadow", json=shadow)).status_code == 200
        await put(http, "a", **ADDS)
        assert (await chat(http)).status_code == 200
        await until(lambda: shadows(gateway))
        sent = {one.body["model"]: one.body["messages"][0]["content"] for one in list(small.requests)[-2:]}
    assert sent == {"returns@v1": SYSTEM, "returns@v2": SYSTEM}


async def test_a_message_that_is_added_for_all_leaves_the_draw_of_a_canary_as_it_is(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with run_gateway(configure()) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        version = await gateway.place(make_adapter(2), alias=False)
        plan = {"latency_ratio_max": 100}
        canary = {"version": version, "share": 0.5, "plan": plan}
        assert (await http.post("/admin/v1/aliases/returns/canary", json=canary)).status_code == 200
        await put(http, "a", **ADDS)
        for number in range(20):  # each draws either arm, with another salt in each run
            assert (await chat(http, user=f"user {number}")).status_code == 200
        await stored(gateway, 20)
        evidence = await judged_by_now(http)
    assert evidence["canary_requests"] > 0


# ---- rules that can't be ---------------------------------------------------------------------------


IMPOSSIBLE_RULES = [
    ({"action": "general", "pattern": "(vase"}, "missing )"),
    ({"action": "general", "pattern": r"(vase)\1"}, "invalid escape sequence"),
    ({"action": "general", "pattern": "(?=vase)"}, "invalid perl operator"),
    ({"action": "general", "pattern": r"(\pL{100}){9}"}, "too large"),
    ({"action": "general", "pattern": "a" * 1001}, "1000 characters"),
    ({"action": "general", "pattern": ""}, "at least 1 character"),
    ({"action": "general", "contains": " \n"}, "white space alone"),
    ({"action": "system", "system": "\t"}, "nothing but white space"),
    ({"action": "system"}, "system goes with the action system"),
    ({"action": "general", "system": SYSTEM}, "system goes with the action system"),
    ({"action": "system", "system": "x" * 10_001}, "10000 characters"),
    ({"action": "version", "task": "returns", "version": "other@v1"}, "answers its own task alone"),
    ({"action": "version", "task": "returns", "version": "returns@v9"}, "There is no version"),
    ({"action": "general", "task": "piano"}, "has no task"),
    ({"action": "general", "mode": "off"}, "observe"),
    ({"action": "general", "expires_at": 1.0}, "is in the past: name a time after 20"),
    ({}, "action"),
]


async def test_a_rule_that_can_not_be_is_refused_with_what_is_wrong_and_nothing_is_set(
    gateway: RunningGateway, subtests: pytest.Subtests
) -> None:
    for rule, words in IMPOSSIBLE_RULES:
        with subtests.test(rule=rule, words=words):
            async with gateway.http() as http:
                answer = await http.put("/admin/v1/overrides/a", json=rule)
                assert answer.status_code in (400, 404)
                assert words in answer.json()["error"]["message"]
                tried = await http.post("/admin/v1/overrides/a/dry-run", json=rule)
                assert tried.status_code == (answer.status_code if rule.get("expires_at") is None else 200)
                assert (await http.get("/admin/v1/overrides")).json() == {"overrides": []}


async def test_state_with_a_broken_pattern_or_missing_version_is_refused_as_a_whole(
    gateway: RunningGateway,
) -> None:
    async with gateway.http() as http:
        state = (await http.get("/admin/v1/state")).json()
        broken = ({"action": "general", "pattern": "(vase"}, "missing )")
        nowhere = ({"action": "version", "task": "returns", "version": "returns@v9"}, "there is no version")
        for rule, words in (broken, nowhere):
            state["overrides"] = {
                "fine": {"generation": 0, "value": {"action": "general"}},
                "wrong": {"generation": 0, "value": rule},
            }
            answer = await http.post("/admin/v1/state/apply", json={"state": state})
            assert answer.status_code in (400, 404), answer.text
            assert words in answer.json()["error"]["message"]
            assert "wrong" in answer.json()["error"]["message"]
        assert (await http.get("/admin/v1/overrides")).json() == {"overrides": []}


# ---- the dry run ----------------------------------------------------------------------------------


async def test_a_dry_run_tells_what_a_rule_would_have_changed_and_sets_nothing(
    gateway: RunningGateway, general: FakeEngine
) -> None:
    async with gateway.http() as http:
        for number in range(6):
            metadata = {"shop": "berlin" if number < 2 else "paris"}
            assert (await chat(http, PROMPT if number % 2 else "A toaster.", metadata=metadata)).status_code == 200
        await http.post("/v1/chat/completions", json=body(model="general"))
        await stored(gateway, 7)
        before = len(general.requests)
        vases = await dry_run(http, action="general", task="returns", pattern="vase")
        assert [vases[name] for name in ("looked_at", "matched", "would_change", "unknown")] == [6, 3, 3, 0]
        assert vases["changes"] == [{"from": "returns@v1", "to": "general", "requests": 3}]
        assert len(vases["examples"]) == 3
        assert vases["words"].startswith("Of the last 6 requests it would have matched 3 and changed 3.")
        shop = await dry_run(http, action="refuse", metadata={"shop": "berlin"}, contains="VASE")
        assert shop["changes"] == [{"from": "returns@v1", "to": "refused (refused_by_override)", "requests": 1}]
        same = await dry_run(http, action="version", task="returns", version="returns@v1")
        assert (same["matched"], same["would_change"]) == (6, 0)
        adds = await dry_run(http, **ADDS, contains="vase", mode="observe", expires_at=1.0)
        assert adds["changes"] == [{"from": "returns@v1", "to": "returns@v1, with the message", "requests": 3}]
        assert (await http.get("/admin/v1/overrides")).json() == {"overrides": []}
        assert len(general.requests) == before
        assert (await reason(http)) == "adapter"


@pytest.mark.parametrize(
    ("fallbacks", "told"),
    [
        (["previous_version", "general"], [{"from": "returns@v2", "to": "returns@v1", "requests": 1}]),
        (["needs_human"], [{"from": "returns@v2", "to": "refused (needs_human)", "requests": 1}]),
    ],
)
async def test_a_dry_run_tells_the_first_fallback_to_which_rules_send(
    configure: Configure, make_adapter: MakeAdapter, fallbacks: list[str], told: list[dict[str, Any]]
) -> None:
    tasks = {"returns": {"fallbacks": {"override": fallbacks}}}
    async with run_gateway(configure(tasks=tasks)) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        await gateway.place(make_adapter(2))
        assert (await chat(http)).headers["x-apprentice-version"] == "returns@v2"
        await stored(gateway, 1)
        assert (await dry_run(http, action="general", task="returns"))["changes"] == told


async def test_a_dry_run_goes_by_the_rules_that_have_decided_before_it(gateway: RunningGateway) -> None:
    everything = {"action": "refuse", "task": "returns"}
    async with gateway.http() as http:
        await put(http, "k", action="general", contains="vase")
        for text in (PROMPT, "A toaster.", PROMPT):
            await chat(http, text)
        await stored(gateway, 3)
        assert (await dry_run(http, "z", **everything))["matched"] == 1
        assert (await dry_run(http, "a", **everything))["matched"] == 3
        narrowed = await dry_run(http, "k", action="general", contains="fragile vase")
        assert (narrowed["matched"], narrowed["would_change"]) == (0, 2)
        assert narrowed["changes"][0]["to"] == "as without the rule"


async def test_texts_of_other_gateways_and_of_forgotten_requests_are_unknown(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    admin_key = new_key()[0]
    small_room = configure(records={"recent_bytes_max": len(json.dumps(body())) + 50})
    async with run_gateway(small_room, admin_key) as one, run_gateway(configure(), admin_key) as two:
        await one.place(make_adapter(1))
        async with one.http() as here, two.http() as there:
            for http in (here, here, there, there, there):
                assert (await chat(http)).status_code == 200
            await stored(one, 5)
            told = await dry_run(here, action="general", task="returns", pattern="vase")
            assert (told["looked_at"], told["matched"], told["unknown"]) == (5, 1, 4)
            assert "For 4 this is unknown" in told["words"]
            told = await dry_run(there, action="general", task="returns", pattern="vase")
            assert (told["looked_at"], told["matched"], told["unknown"]) == (5, 3, 2)
            known = await dry_run(here, action="general", task="returns")
            assert (known["matched"], known["unknown"]) == (5, 0)


@pytest.mark.parametrize(("seconds_max", "asked"), [(60.0, 3), (-1.0, 1)])
async def test_a_dry_run_asks_on_where_a_process_starts_again_and_not_where_one_hangs(
    configure: Configure, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch, seconds_max: float, asked: int
) -> None:
    monkeypatch.setattr(dry_runs, "WAITED_SECONDS_MAX", seconds_max)
    monkeypatch.setattr(dry_runs, "AT_ONCE", 1)
    topics = []

    async def answer_of_six(topic: str, _: bytes) -> list[bytes]:
        topics.append(topic)
        return [b""] * 6

    async with run_gateway(configure(records={"recent_bytes_max": 0})) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        for _ in range(3):
            assert (await chat(http)).status_code == 200
        await stored(gateway, 3)
        monkeypatch.setattr(gateway.services.control.siblings, "count", 8)
        monkeypatch.setattr(gateway.services.control.siblings, "ask", answer_of_six)
        assert (await dry_run(http, action="general", task="returns", contains="vase"))["looked_at"] == 3
    assert topics == ["bodies"] * asked


async def test_shadows_and_reported_traffic_are_no_requests_of_a_dry_run(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        assert (await chat(http)).status_code == 200
        records = [{"source_id": str(number), "task": "returns", "at": time.time()} for number in range(120)]
        assert (await http.post("/v1/records", json={"records": records})).status_code == 200
        await stored(gateway, 1)
        told = await dry_run(http, action="general", task="returns")
    assert (told["looked_at"], told["matched"]) == (1, 1)


def test_a_dry_run_tells_of_a_caller_who_went_before_there_was_an_arm() -> None:
    tried, left = dry_runs.Tried(), Record(id="x", at=0.0, endpoint="chat", caller="c", requested_model="returns")
    left.outcome, left.status = "cancelled", 499
    tried.change(left, "general")
    assert tried.to_json()["changes"] == [{"from": "cancelled", "to": "general", "requests": 1}]


async def test_operators_try_rules_and_set_none_and_callers_do_neither(gateway: RunningGateway) -> None:
    for role, status in (("caller", 403), ("operator", 200)):
        async with gateway.http(await gateway.key(role=role)) as http:
            await put(http, "a", 403, action="general")
            tried = await http.post("/admin/v1/overrides/a/dry-run", json={"action": "general"})
            assert tried.status_code == status


async def test_a_listed_rule_has_no_newer_generation_than_its_content(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save by the list's generation would else overwrite a change that nobody has seen."""
    rules = gateway.services.objects.overrides
    read_generations = rules.generations

    async def read_late() -> dict[str, int]:
        await rules.put("a", {"action": "refuse", "message": "The second."})
        return await read_generations()

    monkeypatch.setattr(rules, "generations", read_late)
    async with gateway.http() as http:
        await put(http, "a", action="refuse", message="The first.")
        [listed] = (await http.get("/admin/v1/overrides")).json()["overrides"]
    assert (listed["generation"], listed["message"]) in [(1, "The first."), (1, "The second."), (2, "The second.")]


async def test_bodies_are_kept_up_to_the_bound_and_a_reload_changes_it(gateway: RunningGateway) -> None:
    recent = gateway.services.recent
    async with gateway.http() as http:
        answers = [await chat(http, "x" * 1000) for _ in range(5)]
        await stored(gateway, 5)
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert all(recent.get(one) for one in ids)
    recent.set_bytes_max(2500)
    assert [recent.get(one) is not None for one in ids] == [False, False, False, True, True]
    recent.set_bytes_max(0)
    assert not any(recent.get(one) for one in ids)
