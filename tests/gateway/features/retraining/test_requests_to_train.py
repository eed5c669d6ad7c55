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


def keep(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Any:
    """Retraining requests whose texts are all kept, with these fields, and none by a review."""

    async def kept(_: object, requests: list[str]) -> dict[str, msgspec.Raw]:
        own: dict[str, Any] = {"at": 1.0, "task": "returns", "messages": MESSAGES, "answer": "no", **fields}
        return {name: msgspec.Raw(msgspec.json.encode(KeptText(request=name, **own))) for name in requests}

    async def no_review(_: str) -> None:
        return None

    monkeypatch.setattr(requests_to_train, "fetch_kept_texts", kept)
    reviews = SimpleNamespace(store=SimpleNamespace(kept_on=no_review))
    return SimpleNamespace(reviews=reviews, services=SimpleNamespace(settings=None))


@pytest.mark.parametrize(("cut", "rejected"), [([], "no"), (["Two more answers are left out."], None)])
async def test_a_part_of_an_answer_is_not_what_was_rejected(
    monkeypatch: pytest.MonkeyPatch, cut: list[str], rejected: str | None
) -> None:
    retraining = keep(monkeypatch, cut=cut, asked_whole=True)
    example = Example(request_id="r1", metric="correct", value=False, at=1.0, demonstration="yes")
    [row] = [row async for row in await read_rows(retraining, [example])]
    assert (row["messages"], row["expected"], row.get("rejected")) == (MESSAGES, "yes", rejected)


async def test_others_have_the_event_loop_between_two_kept_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"r{number}" for number in range(5)]
    retraining = keep(monkeypatch)
    turns = []

    async def others() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    examples = [Example(request_id=name, metric="correct", value=False, at=1.0) for name in names]
    rows = [row async for row in await read_rows(retraining, examples)]
    task.cancel()
    assert [row["messages"] for row in rows] == [MESSAGES] * 5
    assert len(turns) >= 5
