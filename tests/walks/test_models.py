"""The list of models, one model of it, and addresses that clients of other servers ask for."""

from __future__ import annotations

import time

import httpx
import openai
import pytest
from anthropic import AsyncAnthropic

from tests.fakes.engine import FakeEngine
from tests.waiting import until
from tests.walks.conftest import BASE_MODEL, Configure
from tests.walks.gateway import RunningGateway, run_gateway


async def test_a_model_is_listed_with_its_time_its_base_and_its_length(
    gateway: RunningGateway, general: FakeEngine
) -> None:
    async with gateway.openai() as client:
        listed = {model.id: model for model in (await client.models.list()).data}
    assert listed.keys() == {"returns", "returns@v1", "general"}
    for model in listed.values():
        assert (model.object, model.owned_by) == ("model", "apprentice")
        assert time.time() - 600 < model.created <= time.time()
    names = ("kind", "root", "max_model_len")
    told = {model_id: [(model.model_extra or {})[name] for name in names] for model_id, model in listed.items()}
    assert told["returns"] == ["task", BASE_MODEL, 2048]
    assert told["returns@v1"] == ["version", BASE_MODEL, 2048]
    assert told["general"] == ["pool", general.model, 2048]


async def test_a_model_has_the_fields_that_anthropics_client_reads(gateway: RunningGateway) -> None:
    async with AsyncAnthropic(base_url=gateway.url, api_key=gateway.admin_key) as client:
        page = await client.models.list(limit=1)
        read = await client.models.retrieve("returns")
        assert [model.id async for model in page] == ["returns", "returns@v1", "general"]
    assert (page.first_id, page.last_id, page.has_more) == ("returns", "general", False)
    for model in page.data:
        assert (model.type, model.display_name, model.lifecycle) == ("model", model.id, "active")
        assert time.time() - 600 < model.created_at.timestamp() <= time.time()
    assert read == page.data[0]


async def test_one_model_is_read_by_its_name_and_others_are_not_there(gateway: RunningGateway) -> None:
    async with gateway.openai(await gateway.key(models=["returns"])) as client:
        for name in ("returns", "returns@v1"):
            assert (await client.models.retrieve(name)).id == name
        for name in ("general", "nothing", "returns@v2"):
            with pytest.raises(openai.NotFoundError) as raised:
                await client.models.retrieve(name)
            assert raised.value.code == "model_not_found"


async def test_a_version_whose_task_the_configuration_lost_is_not_listed(
    gateway: RunningGateway, configure: Configure
) -> None:
    async with run_gateway(configure(tasks={"clauses": {}}), gateway.admin_key) as later, later.openai() as client:
        await until(lambda: "returns@v1" in later.services.fleet.replicas["small-0"].loaded, "the replica is read")
        assert {model.id for model in (await client.models.list()).data} == {"clauses", "general"}


async def test_a_task_without_a_version_has_the_length_of_its_fallback_as_configured(configure: Configure) -> None:
    configuration = configure()
    configuration["pools"]["general"]["context_tokens_max"] = 500
    async with run_gateway(configuration) as gateway, gateway.http() as http:
        card = (await http.get("/v1/models/returns")).json()
    assert (card["root"], card["max_model_len"]) == ("large", 500)


async def test_an_engine_that_does_not_tell_its_length_leaves_it_unknown(configure: Configure) -> None:
    async with FakeEngine("x", bare=True) as bare:
        replica = {"name": "general-0", "url": bare.url + bare.base_path}
        pool = {"engine": "openai", "base_model": "x", "callable": True, "replicas": [replica]}
        async with run_gateway(configure(pools={"general": pool})) as gateway, gateway.http() as http:
            assert (await http.get("/v1/models/general")).json()["max_model_len"] is None


async def test_health_is_an_alias_of_health_ready(configure: Configure) -> None:
    async with run_gateway(configure()) as gateway, gateway.http("") as http:
        answers = [await http.get(path) for path in ("/health", "/health/ready")]
        head = await http.head("/health")
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert (head.status_code, head.content) == (200, b"")


ADDRESSES_NOT_OFFERED = [
    ("GET", "/v1/responses/resp_1", "stores no responses"),
    ("POST", "/v1/responses/input_tokens", "/v1/messages/count_tokens"),
    ("POST", "/openai/deployments/returns/chat/completions", "Azure's addresses"),
    ("POST", "/v1/messages/batches", "POST /v1/messages and"),
    ("GET", "/v1/files", "ends in `/admin/v1`"),
    ("POST", "/v1/fine_tuning/jobs", "ends in `/admin/v1`"),
    ("POST", "/v1/conversations", "stores no conversations"),
    ("POST", "/chat/completions", "Did you mean /v1/chat/completions?"),
    ("POST", "/completions", "Did you mean /v1/completions?"),
    ("GET", "/models", "Did you mean /v1/models?"),
    ("POST", "/v1/v1/chat/completions", "is there twice"),
    ("POST", "/v1/chat/completions/", "the slash at its end"),
    ("POST", "/v1//chat/completions", "Two slashes follow each other"),
    ("POST", "/v1/nothing", "There is nothing at this address."),
]


async def test_the_root_says_where_the_api_and_the_pages_are_without_a_key(gateway: RunningGateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        answer = await http.get("/")
    assert answer.status_code == 404
    assert (
        "The API begins at /v1; pages for people, where they are on, at /console." in answer.json()["error"]["message"]
    )


async def test_an_address_that_is_not_offered_says_what_to_use(
    gateway: RunningGateway, subtests: pytest.Subtests
) -> None:
    for method, path, words in ADDRESSES_NOT_OFFERED:
        with subtests.test(method=method, path=path, words=words):
            async with gateway.http() as http:
                answer = await http.request(method, path, json={} if method == "POST" else None)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["type"]) == (404, "not_found", "not_found_error")
            assert words in error["message"]
