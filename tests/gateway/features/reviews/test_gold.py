"""Gold questions in Redis: how their answers are scored."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.features.reviews.gold import GoldQuestion, GoldStore, HeldQuestion
from monitoring.metric_values import Metric
from tests.gateway.features.reviews.test_store import START, review


@pytest.mark.parametrize(
    ("metric", "known", "said", "right"),
    [
        (Metric(kind="category"), "refuse", "accept", 0),
        (Metric(kind="category"), "refuse", "refuse", 1),
        (Metric(kind="float"), 3.0, 4.0, 0),
        (Metric(kind="float", minimum=0.0, maximum=1.0), 0.9, 0.7, 1),
        (Metric(kind="boolean"), True, False, 0),
    ],
)
async def test_a_wrong_answer_is_wrong_by_every_kind_of_metric(
    redis: Redis, metric: Metric, known: Any, said: Any, right: int
) -> None:
    gold = GoldStore(redis)
    question = GoldQuestion(review=review(1), value=known, by="admin", at=START)
    await gold.questions.put("r1", gold.change(question, "r1").value or {})
    assert await gold.draw("returns", "ada", None, 1.0, 60.0) is not None
    await gold.answer(HeldQuestion("returns", "r1"), "ada", "ada", metric, said)
    await gold.answer(HeldQuestion("returns", "r1"), "ada", "ada", metric, said)
    (score,) = await gold.list_scores("returns")
    assert (score.answered, score.right) == (1, right)
