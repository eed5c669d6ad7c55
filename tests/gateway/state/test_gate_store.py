"""The gate's evidence in Redis: what ranks versions that have led, and what does not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.features.evaluations.suites import SuiteStore
from gateway.state.gate_store import COMPARISONS_KEY, LATEST_KEY, GateStore
from monitoring.evaluation.arms import EvaluationArm
from monitoring.evaluation.best import DataAccuracy
from monitoring.evaluation.gate import Comparison
from monitoring.evaluation.redis_keys import SUITES_KEY
from monitoring.evaluation.suites import Suite

V1 = "returns@v1"
SHORT: dict[str, Any] = {"data_digest": "d", "metric": "words", "accuracy": {"adapter": {"share": 0.9}}, "leaked": 0}


@pytest.mark.parametrize(
    ("last", "ranks"),
    [
        ({}, True),
        ({"judge": {"agreement_low": 0.9}, "failed": {"adapter": 0, "general": 5}}, True),
        ({"judge": {"agreement_low": None}}, False),
        ({"failed": {"adapter": 1}}, False),
        ({"leaked": 1}, False),
    ],
)
async def test_an_accuracy_that_decides_nothing_ranks_no_leader(
    redis: Redis, last: dict[str, Any], ranks: bool
) -> None:
    await redis.hset(LATEST_KEY, V1, msgspec.json.encode(SHORT | last))
    known = (await GateStore(redis).evidence([V1])).accuracies
    assert known == ({V1: DataAccuracy("d words", 0.9)} if ranks else {})


async def test_shares_of_different_metrics_are_not_of_the_same(redis: Redis) -> None:
    await redis.hset(LATEST_KEY, V1, msgspec.json.encode(SHORT))
    await redis.hset(LATEST_KEY, "returns@v2", msgspec.json.encode(SHORT | {"metric": "exact"}))
    known = (await GateStore(redis).evidence([V1, "returns@v2"])).accuracies
    assert known[V1].measured_on != known["returns@v2"].measured_on


async def test_a_suite_that_is_older_now_ranks_no_leader(redis: Redis) -> None:
    arms = [EvaluationArm(name, "sha256:1", "manifest:1") for name in (V1, "returns@v2")]
    compared = Comparison(
        evaluation="e", ended_at=1.0, data_digest="first", suite="newest", version=arms[0], reference=arms[1],
        pair={}, figures={}, reference_figures={},
    )  # fmt: skip
    await redis.hset(COMPARISONS_KEY, V1, msgspec.json.encode({"returns@v2 suite first": compared}))
    for at, digest in enumerate(("first", "second")):
        suite = Suite(task="returns", digest=digest, kind="newest", rows=9, groups=9, created_at=float(at))
        await redis.hset(SUITES_KEY, digest, msgspec.json.encode(suite))
    await redis.hset(SUITES_KEY, "sorting/damaged", b'{"task": 5}')
    (known,) = (await GateStore(redis).evidence([V1])).comparisons[V1].values()
    assert known.suite == "older"
    assert [suite.digest for suite in await SuiteStore(redis).all()] == ["second", "first"]


async def test_what_can_not_be_read_of_a_version_counts_as_nothing(redis: Redis) -> None:
    for key in ("apprentice:forced", LATEST_KEY):
        for damaged in (b"{", b"[]", b'{"reason": 7}'):
            await redis.hset(key, "returns@v1", damaged)
            store = GateStore(redis)
            assert (await store.forced("returns@v1"), await store.find_evaluation("returns@v1")) == (None, "")
            assert (await store.evidence(["returns@v1"])).accuracies == {}
