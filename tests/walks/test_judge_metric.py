"""Evaluations by the metric `judge`: a model says whether answers are right, and the report how far to trust it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from gateway.state.quality_store import QualityStore
from monitoring.quality.verdicts.quality import Judgement
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Status
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import V1, metric
from tests.walks.test_evaluate import asked_number, begin, ended
from tests.walks.test_shadow_judges import Asked, judging, the_answer

ROWS = 12
SAME_ROWS = 3
"""Rows whose answer says the same as the expected one: nobody has to be asked."""


def judge_by_word(question: str) -> str:
    """The judge's word on an answer: neither yes nor no where it is unsure."""
    answer = the_answer(question)
    return "perhaps" if "unsure" in answer else "yes" if "right" in answer else "no"


def make_answer(body: Any) -> str:
    number = asked_number(body)
    if number < SAME_ROWS:
        return f"Say {number}"
    return "unsure" if number == ROWS - 1 else "right, in other words" if number % 2 else "nonsense"


def rows() -> bytes:
    """Rows whose expected answer is `Say` and their number."""
    lines = ({"text": f"Item {number}", "expected": f"Say {number}"} for number in range(ROWS))
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.fixture
async def ready(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> AsyncIterator[tuple[RunningGateway, httpx.AsyncClient, Asked]]:
    """A gateway whose general engine judges, and the questions that it gets."""
    small.answers[V1] = make_answer
    general.answers["*"], asked = judging(judge_by_word, "nonsense")
    config = configure()
    config["tasks"]["returns"]["monitor"] = {"judge": {"kind": "model"}}
    async with run_gateway(config) as running, running.http() as http:
        await running.place(make_adapter(1))
        yield running, http, asked


async def test_judge_is_asked_of_what_differs_and_its_trust_is_told(
    ready: tuple[RunningGateway, httpx.AsyncClient, Asked],
) -> None:
    _, http, asked = ready
    told = await ended(http, (await begin(http, rows(), metric="judge", arms="adapter"))["id"])
    adapter = told["report"]["arms"]["adapter"]
    odd = sum(number % 2 for number in range(SAME_ROWS, ROWS - 1))
    assert (adapter["accuracy"]["right"], adapter["failed"]) == (SAME_ROWS + odd, 1)
    assert len(asked) == ROWS - SAME_ROWS
    question = asked[0]["messages"][-1]["content"]
    assert "----- REFERENCE " in question
    assert "Say " in question
    assert told["report"]["judge"] == {"pool": "general", "agreement": None, "agreement_low": None}
    assert "how far it agrees with people is not known" in told["report"]["cannot_see"][0]
    assert told["gate"] == {
        "taken": False,
        "because": "A model judged these answers: they are not a baseline of people's labels.",
    }
    assert await metric(http, "apprentice_cost_usd_total", 'pool="general"', 'purpose="evaluation"') > 0


async def test_rows_at_which_the_judges_engine_fails_are_asked_again_by_the_same_command(
    ready: tuple[RunningGateway, httpx.AsyncClient, Asked], general: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, http, _ = ready
    monkeypatch.setattr("gateway.features.evaluations.row_asking.FAILING_SECONDS_MAX", 0.0)
    general.faults.add(Status(500), times=2)
    told = await ended(http, (await begin(http, rows(), metric="judge", arms="adapter"))["id"])
    assert told["report"]["arms"]["adapter"]["failed"] == 3
    assert (await begin(http, rows(), 200, metric="judge", arms="adapter"))["status"] == "running"
    told = await ended(http, told["id"])
    assert told["report"]["arms"]["adapter"]["failed"] == 1, "the judge says neither yes nor no of one"


async def test_agreement_with_people_stands_beside_the_figures(
    ready: tuple[RunningGateway, httpx.AsyncClient, Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, http, _ = ready
    judgement = Judgement(task="returns", version=V1, at=1.0, judge_agreement=0.9, judge_agreement_low=0.7)

    async def list_judgements(_: QualityStore) -> dict[str, Judgement]:
        return {V1: judgement}

    monkeypatch.setattr(QualityStore, "judgements", list_judgements)
    told = await ended(http, (await begin(http, rows(), metric="judge"))["id"])
    assert told["report"]["judge"] == {"pool": "general", "agreement": 0.9, "agreement_low": 0.7}
    assert "agrees with them in 90% (95% confidence: at least 70%)" in told["report"]["cannot_see"][0]
    assert "general was judged by the model that answered." in told["report"]["cannot_see"]


async def test_a_task_that_reaches_no_judge_is_told_so(configure: Configure, make_adapter: MakeAdapter) -> None:
    config = configure()
    config["tasks"]["returns"] |= {"pools_allowed": ["small"], "fallback_pool": None, "monitor": {}}
    async with run_gateway(config) as running, running.http() as http:
        await running.place(make_adapter(1))
        answer = await begin(http, rows(), 400, metric="judge", arms="adapter")
    assert answer["error"]["param"] == "metric"
    assert "monitor.judge.pool" in answer["error"]["message"]


async def test_another_judge_makes_another_evaluation_and_none_is_judged_by_two(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine, redis: Redis
) -> None:
    small.answers[V1] = make_answer
    general.answers["*"], _ = judging(judge_by_word, "nonsense")
    config = configure()
    async with run_gateway(config) as running, running.http() as http:
        await running.place(make_adapter(1))
        first = await ended(http, (await begin(http, rows(), metric="judge", arms="adapter"))["id"])
        await redis.set("apprentice:duty:evaluations", "another gateway")
        late = await begin(http, rows(), metric="judge", arms="adapter", repeats=2)
    config["tasks"]["returns"] = {"monitor": {"judge": {"kind": "model", "prompt": "Say no to all."}}}
    async with run_gateway(config, running.admin_key) as running, running.http() as http:
        await redis.delete("apprentice:duty:evaluations")
        told = await ended(http, late["id"])
        assert (told["status"], "The judge was changed meanwhile" in told["note"]) == ("failed", True)
        second = await begin(http, rows(), 201, metric="judge", arms="adapter")
        assert second["id"] != first["id"]
