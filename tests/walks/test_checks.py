"""The ladder at the door: where checks send requests, what callers and admins are told of it, and /v1/route."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from router.version_choice import place_for_arm
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Reset, Status
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.one_minute import in_one_minute
from tools.reference.api import ROUTE_ANSWER

ALL = {"mode": "enforce", "share": 1.0}
PROMPT = "A toaster, sealed, after 3 days."


@asynccontextmanager
async def checked_task(
    configure: Configure, make_adapter: MakeAdapter, versions: int = 1, **task: Any
) -> AsyncIterator[RunningGateway]:
    """A gateway whose task `returns` has these settings; the last of its versions answers, the one before stands by."""
    async with run_gateway(configure(tasks={"returns": task})) as gateway:
        for number in range(1, versions + 1):
            await gateway.place(make_adapter(number))
        yield gateway


def body(model: str = "returns", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], **more}


async def ask(http: httpx.AsyncClient, path: str = "/v1/chat/completions", session: str = "", **more: Any) -> Any:
    return await http.post(path, json=body(**more), headers={"x-apprentice-session": session} if session else {})


async def told(http: httpx.AsyncClient, answer: httpx.Response) -> Any:
    got = await http.get(f"/v1/requests/{answer.headers['x-request-id']}")
    assert got.status_code == 200, got.text
    return got.json()


def fired(gateway: RunningGateway, check: str, mode: str, version: str = "returns@v1") -> float:
    return gateway.services.meters.check_fired.cell("returns", version, check, mode).value


async def test_holdout_sends_its_share_of_sessions_to_general_labelled_with_probability(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    checks = {"holdout": {"mode": "enforce", "share": 0.3}}
    async with checked_task(configure, make_adapter, checks=checks) as gateway, gateway.http() as http:
        salt = gateway.services.snapshot.current.policy.aliases["returns"].salt
        held = 0
        for number in range(40):
            session = f"session {number}"
            route = (await ask(http, "/v1/route", session)).json()
            answer = await ask(http, session=session)
            reason = answer.headers["x-apprentice-reason"]
            away = place_for_arm(session, salt, 0.5, "holdout") < 0.3
            held += away
            assert (reason, answer.headers["x-apprentice-pool"]) == (
                ("holdout", "general") if away else ("adapter", "small")
            )
            assert (route["reason"], route["pool"]) == (reason, answer.headers["x-apprentice-pool"])
            assert route["version"] == answer.headers.get("x-apprentice-version")
            if number < 6 or (away and held < 3):
                record = (await told(http, answer))["record"]
                assert record["probability"] == pytest.approx(0.3 if away else 0.7)
                assert route["probability"] == record["probability"]
                assert record["general_prompt"] == route["general_prompt"] == away
                assert [(one["check"], one["fired"], one["version"]) for one in record["findings"]] == [
                    ("holdout", away, "returns@v1")
                ]
        assert 0 < held < 40
        assert fired(gateway, "holdout", "enforce") == held


async def test_request_for_a_person_is_refused_with_the_reason_and_not_retryable(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    task = {"checks": {"holdout": ALL}, "fallbacks": {"holdout": ["needs_human"]}}
    async with checked_task(configure, make_adapter, **task) as gateway, gateway.http() as http:
        asked = len(small.requests) + len(general.requests)
        answer = await ask(http)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "needs_human")
        assert answer.headers["x-apprentice-reason"] == "holdout"
        assert answer.headers["x-apprentice-task"] == "returns"
        assert answer.headers["x-should-retry"] == "false"
        assert len(small.requests) + len(general.requests) == asked
        known = await told(http, answer)
        assert (known["record"]["outcome"], known["record"]["error_code"]) == ("refused", "needs_human")
        assert known["record"]["findings"][0]["fired"] is True
        assert "It was not sent to any engine: needs_human" in " ".join(known["explanation"])
        assert gateway.services.meters.refusals.cell("needs_human").value == 1
        route = await ask(http, "/v1/route")
        assert (route.status_code, route.json()["error"]["code"]) == (422, "needs_human")
        assert (route.headers["x-apprentice-reason"], route.headers["x-should-retry"]) == ("holdout", "false")


async def test_the_version_that_led_before_stands_in_and_answers_without_a_general_prompt(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    task = {"checks": {"holdout": ALL}, "fallbacks": {"holdout": ["previous_version", "general"]}}
    async with checked_task(configure, make_adapter, versions=2, **task) as gateway, gateway.http() as http:
        answer = await ask(http)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == answer.headers["x-apprentice-version"] == "returns@v1"
        assert answer.headers["x-apprentice-reason"] == "holdout"
        record = (await told(http, answer))["record"]
        assert (record["general_prompt"], record["findings"][0]["version"]) == (False, "returns@v2")
        assert (record["led_to"], record["version"]) == ("returns@v2", "returns@v1")
        assert fired(gateway, "holdout", "enforce", "returns@v2") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_holdout_whose_engine_fails_is_answered_by_its_version_with_the_label(
    configure: Configure, make_adapter: MakeAdapter, general: FakeEngine, stream: bool
) -> None:
    async with checked_task(configure, make_adapter, checks={"holdout": ALL}) as gateway, gateway.http() as http:
        general.faults.add(Status(400), model="large", times=1)
        assert (await ask(http, stream=stream)).status_code == 400, "what is the caller's own mistake is told"
        general.faults.add(Reset(), model="large")
        answer = await ask(http, stream=stream)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-apprentice-version"] == "returns@v1"
        assert answer.headers["x-apprentice-reason"] == "holdout"
        record = (await told(http, answer))["record"]
        assert (record["led_to"], record["version"], record["probability"]) == ("returns@v1", "returns@v1", 1)
        assert [one["version"] for one in record["attempts"]][-1] == "returns@v1"
        assert 'reason="holdout"' not in "".join(
            line for line in (await http.get("/metrics")).text.splitlines() if "fallbacks_total" in line
        )


async def test_past_the_cap_of_general_the_next_fallback_applies_and_is_counted(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    task = {
        "checks": {"holdout": ALL},
        "fallbacks": {"holdout": ["general", "previous_version", "needs_human"]},
        "general_share_max": 0.0,
    }
    async with checked_task(configure, make_adapter, **task) as gateway, gateway.http() as http:
        refused = await ask(http)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "needs_human")
        assert (await told(http, refused))["record"]["fallback_capped"] is True
        await gateway.place(make_adapter(2))
        answer = await ask(http)
        assert answer.headers["x-apprentice-version"] == "returns@v1"
        known = await told(http, answer)
        assert known["record"]["fallback_capped"] is True
        assert any("had sent as much to its fallback as it may" in line for line in known["explanation"])
        assert gateway.services.meters.fallback_capped.cell("returns", "holdout").value == 2


@pytest.mark.invariant("No caller sees scores, thresholds or ids of training prompts.")
async def test_observed_check_changes_nothing_and_callers_and_admins_each_see_their_part(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    checks = {"holdout": {"mode": "observe", "share": 1.0}, "out_of_scope": {"mode": "enforce"}}
    async with checked_task(configure, make_adapter, checks=checks) as gateway:
        key = await gateway.key(models=["returns"])
        async with gateway.http(key) as http, gateway.http() as admin:
            answer = await ask(http)
            assert (answer.headers["x-apprentice-reason"], answer.headers["x-apprentice-pool"]) == ("adapter", "small")
            known, in_full = await told(http, answer), await told(admin, answer)
            assert known["record"]["probability"] == 1
            assert fired(gateway, "holdout", "observe") == 1
            first, second = known["explanation"][:2]
            assert first == "out_of_scope: nothing is known of it yet."
            assert second == "holdout: it fell into the random share (only observed: it changed nothing)."
            of_caller = {one["check"]: one for one in known["record"]["findings"]}
            assert of_caller["holdout"]["threshold"] is None
            assert of_caller["out_of_scope"]["note"] == ""
            of_admin = {one["check"]: one for one in in_full["record"]["findings"]}
            assert of_admin["holdout"]["threshold"] == 1
            assert of_admin["out_of_scope"]["note"] == "no scope model"
            assert in_full["explanation"][0].endswith("[no scope model].")
            assert in_full["explanation"][1].endswith("[threshold 1].")
            plain, full = (await ask(http, "/v1/route")).json(), (await ask(admin, "/v1/route")).json()
            assert [set(one) for one in plain["findings"]] == [{"check", "mode", "fired", "version", "words"}] * 2
            assert full["findings"][1]["threshold"] == 1
            assert plain["explanation"] == full["explanation"] == "it is the task's version"


async def test_route_takes_a_prompt_too_and_tells_fallbacks_and_makes_nothing(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    fallbacks = {"out_of_scope": ["previous_version", "needs_human"]}
    async with checked_task(configure, make_adapter, fallbacks=fallbacks) as gateway, gateway.http() as http:
        seen, records = len(small.requests), len(gateway.services.flow.buffer)
        answer = await http.post("/v1/route", json={"model": "returns", "prompt": PROMPT})
        assert answer.status_code == 200, answer.text
        route = answer.json()
        assert list(route) == list(ROUTE_ANSWER)
        assert (route["object"], route["task"], route["model"]) == ("route", "returns", "returns@v1")
        assert (route["findings"], route["probability"]) == ([], 1)
        assert (route["fallbacks"]["out_of_scope"], route["fallbacks"]["timeout"]) == (
            ["previous_version", "needs_human"],
            ["general"],
        )
        assert not {"adapter", "canary", "pinned"} & set(route["fallbacks"])
        pinned = (await ask(http, "/v1/route", model="general")).json()
        assert (pinned["task"], pinned["pool"], pinned["reason"], pinned["fallbacks"]) == (
            None,
            "general",
            "pinned",
            {},
        )
        assert (len(small.requests), len(gateway.services.flow.buffer)) == (seen, records)
        assert all(not replica.in_flight for replica in gateway.services.fleet.replicas.values())
        assert gateway.services.meters.route_asked.cell("adapter").value == 1


ROUTE_REFUSALS = [
    ({"model": "returns"}, 400, "missing_field"),
    ({"model": "nobody", "prompt": "x"}, 404, "model_not_found"),
    ({"model": "returns@v9", "prompt": "x"}, 404, "model_not_found"),
    ({"model": "auto", "prompt": "x"}, 200, None),
    ({"model": "returns", "prompt": "x", "bored": 1}, 400, "unknown_parameter"),
    ({"model": "returns", "prompt": "x", "max_tokens": 5000}, 400, "invalid_value"),
    ({"model": "returns", "prompt": "x", "priority": 1}, 400, "parameter_not_allowed"),
    ([], 400, "invalid_value"),
    (b"{", 400, "invalid_json"),
    (b"\xff", 400, "invalid_json"),
]


async def test_route_refuses_as_the_walk_does(gateway: RunningGateway, subtests: pytest.Subtests) -> None:
    for sent, status, code in ROUTE_REFUSALS:
        with subtests.test(sent=sent, status=status, code=code):
            extra = (
                {"content": sent, "headers": {"content-type": "application/json"}} if isinstance(sent, bytes) else {}
            )
            async with gateway.http() as http:
                for path in ("/v1/route", "/v1/completions"):
                    answer = await http.post(path, **(extra or {"json": sent}))
                    assert (answer.status_code, answer.json().get("error", {}).get("code")) == (status, code), path
                other = await http.post("/v1/route", content=b"{}", headers={"content-type": "text/plain"})
                assert (other.status_code, other.json()["error"]["code"]) == (415, "unsupported_media_type")
            async with gateway.http("") as http:
                assert (await http.post("/v1/route", json={})).status_code == 401


async def test_route_counts_as_a_request_against_the_limits_of_its_key_and_takes_no_tokens(
    gateway: RunningGateway, redis: Redis
) -> None:
    limits = {"requests_per_minute": 3, "tokens_per_minute": 40, "usd_per_day": 1}

    async def walk() -> None:
        async with gateway.http(await gateway.key(limits=limits, models=["*"])) as http:
            for left in (2, 1, 0):
                answer = await ask(http, "/v1/route", max_tokens=4000)
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
                assert answer.headers["x-ratelimit-remaining-tokens"] == "40"
            refused = await ask(http, "/v1/route")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            usage = (await http.get("/v1/usage")).json()["usage"]
            assert [usage[name]["spent"] for name in limits] == [3, 0, 0]

    await in_one_minute(redis, walk)
