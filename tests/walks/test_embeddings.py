"""Embeddings through the official SDK: from a pool, priced, and whole or none."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.fakes.answers import embeddings_of
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Fault, Moment, Status
from tests.fakes.wire import AnswerOver
from tests.walks.gateway import RunningGateway
from tests.walks.sdk_world import responses, running
from tests.walks.test_other_apis import record_of

__all__ = ["responses", "running"]


async def test_embeddings_come_from_a_pool_and_are_priced(
    running: RunningGateway, responses: AsyncOpenAI, general: FakeEngine
) -> None:
    raw = await responses.embeddings.with_raw_response.create(
        model="general", input=["Where is my parcel?", "A toaster"], encoding_format="float"
    )
    answer = raw.parse()
    assert [len(each.embedding) for each in answer.data] == [2, 2]
    asked = [call.body["input"] for call in general.calls if call.path == "/v1/embeddings"]  # health checks go on
    assert asked == [["Where is my parcel?", "A toaster"]]
    record = await record_of(running, raw.headers["x-request-id"])
    assert (record["endpoint"], record["pool"]) == ("embeddings", "general")
    assert record["prompt_tokens"] == answer.usage.prompt_tokens > 0
    assert (record["completion_tokens"], record["cost_usd"] is not None) == (0, True)


@pytest.mark.parametrize(("given", "vectors"), [([5, 6, 7], 1), ([[5, 6], [7]], 2), ([1] * 3000, 1)])
async def test_inputs_may_be_token_ids(
    responses: AsyncOpenAI, general: FakeEngine, given: list[Any], vectors: int
) -> None:
    answer = await responses.embeddings.create(model="general", input=given)
    assert len(answer.data) == vectors
    assert [call.body["input"] for call in general.calls if call.path == "/v1/embeddings"] == [given]


@pytest.mark.parametrize(
    "fault",
    [
        Status(404, {"detail": "Not Found"}),
        Status(404, {"error": {"message": "This is a chat model and not supported in the v1/embeddings endpoint."}}),
        Status(403, {"error": {"message": "You are not allowed to generate embeddings from this model"}}),
        Status(501, {"error": {"message": "This server does not support embeddings."}}),
    ],
)
async def test_model_that_makes_no_embeddings_is_refused_and_counts_against_no_replica(
    running: RunningGateway, responses: AsyncOpenAI, general: FakeEngine, fault: Status
) -> None:
    general.faults.add(fault, path="/v1/embeddings")
    for _ in range(5):
        with pytest.raises(openai.BadRequestError) as refused:
            await responses.embeddings.create(model="general", input="x")
    assert (refused.value.code, refused.value.param) == ("engine_refused", "model")
    assert "does not serve /v1/embeddings" in str(refused.value)
    replica = running.services.fleet.replicas["general-0"]
    assert replica.breaker_state(time.monotonic()) == "closed"


async def test_model_that_an_engine_has_lost_counts_against_it_for_embeddings_too(
    running: RunningGateway, responses: AsyncOpenAI, general: FakeEngine
) -> None:
    general.faults.add(Status(404), path="/v1/embeddings")
    for _ in range(3):
        with pytest.raises(openai.InternalServerError):
            await responses.embeddings.create(model="general", input="x")
    assert running.services.fleet.replicas["general-0"].breaker_state(time.monotonic()) == "open"


@dataclass(frozen=True)
class FewerVectors(Fault):
    """Answers with one vector, however many texts there are."""

    async def on_request(self, moment: Moment) -> None:
        await moment.exchange.whole(200, embeddings_of({**moment.body, "input": "one"}))
        raise AnswerOver("done")


@dataclass(frozen=True)
class NoVector(Fault):
    """Answers with nothing in the place of the first vector."""

    async def on_request(self, moment: Moment) -> None:
        answer = embeddings_of(moment.body)
        answer["data"][0]["embedding"] = None
        await moment.exchange.whole(200, answer)
        raise AnswerOver("done")


async def test_null_in_place_of_a_vector_is_no_answer(responses: AsyncOpenAI, general: FakeEngine) -> None:
    rule = general.faults.add(NoVector(), path="/v1/embeddings")
    with pytest.raises(openai.InternalServerError):
        await responses.embeddings.create(model="general", input=["a", "b"])
    assert rule.shown == 3


async def test_fewer_vectors_than_texts_are_no_answer(responses: AsyncOpenAI, general: FakeEngine) -> None:
    rule = general.faults.add(FewerVectors(), path="/v1/embeddings")
    with pytest.raises(openai.InternalServerError) as failed:
        await responses.embeddings.create(model="general", input=["a", "b"])
    assert (failed.value.status_code, failed.value.code) == (502, "engine_error")
    assert rule.shown == 3
    assert len((await responses.embeddings.create(model="general", input=["a"])).data) == 1


@dataclass(frozen=True)
class OddUsage(Fault):
    """Answers with a usage that can't be read."""

    async def on_request(self, moment: Moment) -> None:
        await moment.exchange.whole(200, embeddings_of(moment.body) | {"usage": {"prompt_tokens": "five"}})
        raise AnswerOver("done")


async def test_vectors_with_a_usage_that_can_not_be_read_are_an_answer_all_the_same(
    running: RunningGateway, responses: AsyncOpenAI, general: FakeEngine
) -> None:
    rule = general.faults.add(OddUsage(), path="/v1/embeddings")
    raw = await responses.embeddings.with_raw_response.create(model="general", input=["a", "b"])
    assert (len(raw.parse().data), rule.shown) == (2, 1)
    assert (await record_of(running, raw.headers["x-request-id"]))["prompt_tokens"] is None


@dataclass(frozen=True)
class RefusesInside(Fault):
    """Answers 200 with an error that names the caller's mistake."""

    async def on_request(self, moment: Moment) -> None:
        await moment.exchange.whole(200, {"error": {"message": "too long", "code": 400}})
        raise AnswerOver("done")


async def test_a_refusal_inside_a_200_is_the_callers_own_mistake(responses: AsyncOpenAI, general: FakeEngine) -> None:
    rule = general.faults.add(RefusesInside(), path="/v1/embeddings")
    with pytest.raises(openai.BadRequestError, match="too long"):
        await responses.embeddings.create(model="general", input=["a", "b"])
    assert rule.shown == 1


NO_EMBEDDINGS: list[tuple[dict[str, Any], str]] = [
    ({"model": "returns"}, "model"),
    ({"input": []}, "input"),
    ({"input": [[1, -2], [3]]}, "input[0][1]"),
    ({"input": [1 << 31]}, "input[0]"),
    ({"input": ["x"] * 2049}, "input"),
    ({"input": [[1], []]}, "input"),
    ({"input": [1, "a"]}, "input"),
    ({"dimensions": 0}, "dimensions"),
    ({"extra_body": {"stream": True}}, "stream"),
]


async def test_embeddings_that_are_not_made_name_the_field(responses: AsyncOpenAI, subtests: pytest.Subtests) -> None:
    for fields, param in NO_EMBEDDINGS:
        with subtests.test(fields=fields, param=param):
            with pytest.raises(openai.BadRequestError) as refused:
                await responses.embeddings.create(**({"model": "general", "input": "x"} | fields))
            assert refused.value.param == param
