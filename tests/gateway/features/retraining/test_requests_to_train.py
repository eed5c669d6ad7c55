"""The rows of a request to train."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gateway.features.retraining import requests_to_train
from gateway.features.retraining.requests_to_train import read_rows
from monitoring.quality.verdicts.retraining import Example
from monitoring.texts import KeptText

MESSAGES = [{"role": "user", "content": "The vase is broken"}]


async def test_others_have_the_event_loop_between_two_kept_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"r{number}" for number in range(5)]

    async def kept(_: object, requests: list[str]) -> dict[str, msgspec.Raw]:
        texts = [KeptText(request=name, at=1.0, task="returns", messages=MESSAGES, answer="no") for name in requests]
        return {text.request: msgspec.Raw(msgspec.json.encode(text)) for text in texts}

    async def no_review(_: str) -> None:
        return None

    monkeypatch.setattr(requests_to_train, "read_kept_texts", kept)
    reviews = SimpleNamespace(store=SimpleNamespace(kept_on=no_review))
    retraining: Any = SimpleNamespace(reviews=reviews, services=SimpleNamespace(settings=None))
    turns = []

    async def others() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    examples = [Example(request_id=name, metric="correct", value=False, at=1.0) for name in names]
    rows = [row async for row in read_rows(retraining, examples)]
    task.cancel()
    assert [row["messages"] for row in rows] == [MESSAGES] * 5
    assert len(turns) >= 5
