"""Gold questions in Redis: how their answers are scored."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.features.reviews.gold import GoldQuestion, GoldStore, HeldQuestion
from monitoring.metric_values import Metric
from monitoring.texts import KeptText, Resealing, Seals, TextRow
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


async def reseal(gold: GoldStore) -> Resealing:
    resealing = Resealing()
    await gold.reseal(resealing)
    return resealing


async def test_gold_questions_are_sealed_and_come_under_the_present_key(redis: Redis) -> None:
    seals = Seals({}, None)
    gold = GoldStore(redis, lambda: seals)
    questions = [
        GoldQuestion(review=review(n), value=True, by="admin", at=START + n, comment=f"a cracked samovar {n}")
        for n in range(3)
    ]

    async def add(number: int) -> bytes:
        await gold.questions.put(f"r{number}", gold.change(questions[number], f"r{number}").value or {})
        return (await gold.questions.written())[f"r{number}"]

    words = re.compile(b"vase|samovar")
    assert len(words.findall(await add(0))) > 1, "without a key it is as it was"
    seals = Seals({"old": bytes(32)}, "old")
    assert not words.search(await add(1))
    seals = Seals({"lost": b"l" * 32}, "lost")
    assert not words.search(await add(2))
    seals = Seals({"old": bytes(32), "new": b"n" * 32}, "new")
    assert await gold.list_questions("returns") == questions[:2]
    assert await reseal(gold) == Resealing(2, 1)
    assert not any(words.search(raw) for raw in (await gold.questions.written()).values())
    seals = Seals({"new": b"n" * 32}, "new")
    assert await gold.list_questions("returns") == questions[:2]
    generations = await gold.questions.generations()
    assert await reseal(gold) == Resealing(0, 1)
    assert await gold.questions.generations() == generations, "what lies under the present key is left alone"


async def test_a_comment_that_can_not_be_opened_is_left_where_it_is(redis: Redis) -> None:
    seals = Seals({"lost": b"l" * 32}, "lost")
    gold = GoldStore(redis, lambda: seals)
    question = GoldQuestion(review=review(1), value=True, by="admin", at=START, comment="a samovar")
    await gold.questions.put("r1", gold.change(question, "r1").value or {})
    ((name, raw),) = (await gold.questions.written()).items()
    plain = {**msgspec.json.decode(raw), "review": msgspec.to_builtins(review(1))}
    await gold.questions.put(name, plain, 1)
    seals = Seals({"new": bytes(32)}, "new")
    assert await reseal(gold) == Resealing(0, 1)
    seals = Seals({"new": bytes(32), "lost": b"l" * 32}, "new")
    assert await gold.list_questions("returns") == [question]
    assert await reseal(gold) == Resealing(1, 0)
    seals = Seals({"new": bytes(32)}, "new")
    assert await gold.list_questions("returns") == [question]


class NotingSeals(Seals):
    """Seals that note of which tasks they open texts."""

    opened: list[str]

    def open(self, row: TextRow) -> KeptText:
        self.opened.append(row.task)
        return super().open(row)


async def test_questions_of_other_tasks_are_not_opened(redis: Redis) -> None:
    seals = NotingSeals({"new": bytes(32)}, "new")
    seals.opened = []
    gold = GoldStore(redis, lambda: seals)
    for number, task in enumerate(("returns", "refunds", "returns2")):
        question = GoldQuestion(review=review(number, task), value=True, by="admin", at=START)
        await gold.questions.put(f"r{number}", gold.change(question, f"r{number}").value or {})
    assert [each.review.task for each in await gold.list_questions("returns")] == ["returns"]
    assert seals.opened == ["returns"]


async def test_a_comment_that_an_earlier_release_left_plain_is_sealed(redis: Redis) -> None:
    seals = Seals({"new": bytes(32)}, "new")
    gold = GoldStore(redis, lambda: seals)
    question = GoldQuestion(review=review(1), value=True, by="admin", at=START, comment="a samovar")
    stored = {name: value for name, value in (gold.change(question, "r1").value or {}).items() if name != "sealed"}
    await gold.questions.put("r1", stored | {"key": None, "comment": "a samovar"})
    assert await gold.list_questions("returns") == [question]
    assert await reseal(gold) == Resealing(1, 0)
    assert b"samovar" not in (await gold.questions.written())["r1"]
    assert await gold.list_questions("returns") == [question]
