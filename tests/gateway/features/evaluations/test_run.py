"""The end of an evaluation: what can't be read beside its rows fails no report."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from gateway.features.evaluations.messages import EvaluationJob
from gateway.features.evaluations.run import _compare_with_production, close
from gateway.features.evaluations.store import EvaluationStore
from monitoring.bucket_storage import Bucket
from monitoring.datasets.build_job import KeptSource
from monitoring.evaluation.dataset import Row
from monitoring.labels.request_label import LabelRules
from monitoring.texts import Seals, TextSource
from tests.fakes.sources import give_credentials
from tests.gateway.features.evaluations.test_store import evaluation, step


def test_a_bucket_that_is_away_fails_no_report(
    valkey_socket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_credentials(monkeypatch)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    bucket = Bucket("s3://models/archive", "http://127.0.0.1:1")
    texts = TextSource(f"unix://{valkey_socket}", str(tmp_path), bucket=bucket)
    production = KeptSource(texts=texts, rules=LabelRules(metrics={}), until=1.0)
    told = _compare_with_production(["Item 1"], "returns", production)
    assert told["words"].startswith("No text of a request can be read")


async def test_rows_under_a_newer_key_than_the_helpers_end_no_evaluation(valkey_socket: str, redis: Redis) -> None:
    newer = Seals({"newer": bytes(32)}, "newer")
    store = EvaluationStore(redis, 1000, lambda: newer)
    await store.add_rows("coming", [Row(0, "r0", 1, "yes", None, "Once", group=0)], set())
    await store.begin(evaluation(), "coming", False, step(store, "evaluation.begin"))
    closed = await close(EvaluationJob(f"unix://{valkey_socket}", "e", 1000, "last_user"))
    assert ("the key 'newer', which texts.keys lacks" in closed.unsealable, closed.error) == (True, "")
