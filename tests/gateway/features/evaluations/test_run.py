"""The end of an evaluation: what can't be read beside its rows fails no report."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.features.evaluations.run import _compare_with_production
from monitoring.bucket_storage import Bucket
from monitoring.datasets.build_job import KeptSource
from monitoring.labels.request_label import LabelRules
from monitoring.texts import TextSource
from tests.fakes.sources import give_credentials


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
