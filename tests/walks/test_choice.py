"""Where a request goes, as its caller sees it."""

from __future__ import annotations

import openai
import pytest

from tests.fakes.engine import FakeEngine
from tests.walks.conftest import GENERAL_PROMPT, MakeAdapter
from tests.walks.gateway import RunningGateway

ASK = {"messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}]}


async def test_a_task_goes_to_its_adapter_and_the_answer_says_so(gateway: RunningGateway, small: FakeEngine) -> None:
    async with gateway.openai() as client:
        answer = await client.chat.completions.with_raw_response.create(model="returns", **ASK)
    assert answer.parse().model == "returns@v1"
    told = answer.headers
    assert (told["x-apprentice-task"], told["x-apprentice-version"]) == ("returns", "returns@v1")
    assert (told["x-apprentice-pool"], told["x-apprentice-reason"]) == ("small", "adapter")
    assert told["x-apprentice-attempts"] == "1"
    assert float(told["x-apprentice-cost-usd"]) > 0
    assert float(told["x-apprentice-overhead-ms"]) > 0
    assert told["x-request-id"] in answer.parse().id
    seen = small.requests[-1].body
    assert (seen["model"], seen["temperature"], seen["max_tokens"]) == ("returns@v1", 0, 30)


async def test_the_callers_own_sampling_wins_over_the_versions(gateway: RunningGateway, small: FakeEngine) -> None:
    async with gateway.openai() as client:
        await client.chat.completions.create(model="returns", temperature=0.7, max_completion_tokens=5, **ASK)
    seen = small.requests[-1].body
    assert (seen["temperature"], seen["max_completion_tokens"]) == (0.7, 5)
    assert "max_tokens" not in seen


async def test_general_answers_by_name_without_any_general_prompt(gateway: RunningGateway, general: FakeEngine) -> None:
    async with gateway.openai() as client:
        answer = await client.chat.completions.with_raw_response.create(model="general", **ASK)
    assert answer.headers["x-apprentice-reason"] == "pinned"
    assert answer.parse().model == "large"
    assert GENERAL_PROMPT not in str(general.requests[-1].body)


async def test_a_pinned_version_answers_though_the_alias_is_elsewhere(
    gateway: RunningGateway, make_adapter: MakeAdapter
) -> None:
    assert await gateway.place(make_adapter(2)) == "returns@v2"
    async with gateway.openai() as client:
        moved = await client.chat.completions.create(model="returns", **ASK)
        pinned = await client.chat.completions.with_raw_response.create(model="returns@v1", **ASK)
    assert moved.model == "returns@v2"
    assert pinned.parse().model == "returns@v1"
    assert pinned.headers["x-apprentice-reason"] == "pinned"


async def test_a_session_stays_with_its_version_through_a_canary(
    gateway: RunningGateway, make_adapter: MakeAdapter
) -> None:
    await gateway.place(make_adapter(2), alias=False)
    async with gateway.http() as http:
        weights = {"weights": {"returns@v1": 0.5, "returns@v2": 0.5}}
        assert (await http.put("/admin/v1/aliases/returns", json=weights)).status_code == 200
    seen: dict[str, set[str]] = {}
    async with gateway.openai() as client:
        for number in range(80):
            session = f"session-{number % 40}"
            answer = await client.chat.completions.create(
                model="returns", extra_headers={"x-apprentice-session": session}, **ASK
            )
            seen.setdefault(session, set()).add(answer.model)
    assert all(len(models) == 1 for models in seen.values())
    assert set.union(*seen.values()) == {"returns@v1", "returns@v2"}


NO_MODELS = ["nothing", "returns@v9", "nothing@v1", "../etc", "small", "returns@"]


async def test_an_unknown_model_is_not_found_and_no_engine_hears_of_it(
    gateway: RunningGateway, small: FakeEngine, subtests: pytest.Subtests
) -> None:
    for model in NO_MODELS:
        with subtests.test(model=model):
            before = small.requests_total
            async with gateway.openai() as client:
                with pytest.raises(openai.NotFoundError) as told:
                    await client.chat.completions.create(model=model, **ASK)
            assert told.value.code == "model_not_found"
            assert small.requests_total == before


async def test_a_key_for_one_task_can_use_that_alone(gateway: RunningGateway) -> None:
    async with gateway.openai(await gateway.key(models=["returns"])) as client:
        await client.chat.completions.create(model="returns", **ASK)
        with pytest.raises(openai.PermissionDeniedError) as told:
            await client.chat.completions.create(model="general", **ASK)
        listed = [model.id async for model in client.models.list()]
    assert told.value.code == "model_not_allowed"
    assert listed == ["returns", "returns@v1"]


async def test_an_override_sends_to_general_with_the_general_prompt_or_refuses(
    gateway: RunningGateway, general: FakeEngine
) -> None:
    async with gateway.http() as http, gateway.openai() as client:
        rule = {"action": "general", "task": "returns", "contains": "TOASTER"}
        assert (await http.put("/admin/v1/overrides/a", json=rule)).status_code == 200
        answer = await client.chat.completions.with_raw_response.create(model="returns", **ASK)
        assert (answer.headers["x-apprentice-pool"], answer.headers["x-apprentice-reason"]) == ("general", "override")
        assert general.requests[-1].body["messages"][0] == {"role": "system", "content": GENERAL_PROMPT}
        rule = {"action": "refuse", "contains": "toaster", "message": "Toasters are recalled: call the shop."}
        assert (await http.put("/admin/v1/overrides/a", json=rule)).status_code == 200
        with pytest.raises(openai.BadRequestError, match="recalled") as told:
            await client.chat.completions.create(model="returns", **ASK)
        assert told.value.code == "refused_by_override"
        assert (await http.delete("/admin/v1/overrides/a")).status_code == 200
        answer = await client.chat.completions.with_raw_response.create(model="returns", **ASK)
        assert answer.headers["x-apprentice-reason"] == "adapter"
        audit = (await http.get("/admin/v1/audit?limit=100")).json()["entries"]
    assert [entry["action"] for entry in audit][-3:] == ["override.set", "override.set", "override.delete"]


async def test_completions_are_walked_as_chat_is(gateway: RunningGateway) -> None:
    async with gateway.openai() as client:
        answer = await client.completions.create(model="returns", prompt="A toaster")
        stream = await client.completions.create(model="returns", prompt="A toaster", stream=True)
        said = "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])
    assert answer.model == "returns@v1"
    assert said == answer.choices[0].text
