"""Parts of walks over an engine's faults: a gateway whose task shows a fault by its name, and a caller's view."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from tests.fakes.adapters import BASE_CONFIG, write_adapter
from tests.fakes.engine import FakeEngine, Seen
from tests.walks.conftest import Configure
from tests.walks.gateway import RunningGateway, run_gateway

ASK = [{"role": "user", "content": "A toaster, sealed, after 3 days."}]
SHORT = {
    "answer_timeout_seconds": 2.0,
    "first_token_timeout_seconds": 1.0,
    "inter_token_timeout_seconds": 1.0,
    "backoff_seconds": 0.05,
}
"""Short, where an engine is silent; long enough for one that answers on a busy machine."""
World = Callable[..., Any]


@dataclass
class Told:
    """A caller's view of one request."""

    status: int
    headers: dict[str, str]
    seconds: float
    text: str = ""
    models: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    roles: int = 0
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    apprentice: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    done: bool = False

    @property
    def whole(self) -> bool:
        """True where it looks like a success."""
        return self.status == 200 and self.error is None and self.finish_reason is not None

    @property
    def words(self) -> int:
        """Tokens of its text, as the fake engine counts them."""
        return len(self.text.split())


async def ask(gateway: RunningGateway, model: str = "returns", stream: bool = True, **more: Any) -> Told:
    """One request, and all that came back."""
    body = {"model": model, "messages": ASK, **more}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    async with gateway.http() as http:
        began = time.monotonic()
        answer = await http.post("/v1/chat/completions", json=body)
        told = Told(answer.status_code, dict(answer.headers), time.monotonic() - began)
    if stream and told.status == 200:
        read_stream(answer.text, told)
    else:
        read_whole(answer.json(), told)
    return told


def read_whole(body: dict[str, Any], told: Told) -> None:
    told.error, told.usage = body.get("error"), body.get("usage")
    for choice in body.get("choices", []):
        told.text, told.finish_reason = choice["message"]["content"], choice["finish_reason"]
        told.models = {body["model"]}


def read_stream(raw: str, told: Told) -> None:
    for event in raw.split("\n\n"):
        if event.startswith(":"):
            continue
        payload = event.removeprefix("data: ")
        if payload in ("", "[DONE]"):
            told.done |= bool(payload)
            continue
        body = json.loads(payload)
        told.error = body.get("error", told.error)
        told.usage = body.get("usage") or told.usage
        told.apprentice = body.get("apprentice", told.apprentice)
        if "choices" in body:
            told.models |= {body["model"]} if "model" in body else set()
            told.ids.add(body["id"])
        for choice in body.get("choices", []):
            told.text += choice["delta"].get("content") or ""
            told.roles += "role" in choice["delta"]
            told.finish_reason = choice["finish_reason"] or told.finish_reason


@pytest.fixture
def world(configure: Configure, small: FakeEngine, general: FakeEngine, tmp_path: Any) -> World:
    """A gateway whose version shows a fault by its name on the engine, as `f03-500-once@v1`; the task is named so."""
    small.n_tokens = general.n_tokens = 60

    @asynccontextmanager
    async def run(
        task: str = "returns",
        *,
        small_pool: dict[str, Any] | None = None,
        general_pool: dict[str, Any] | None = None,
        limits: dict[str, Any] | None = None,
        **policy: Any,
    ) -> AsyncIterator[RunningGateway]:
        config = configure(tasks={task: policy}, limits={**SHORT, **(limits or {})})
        config["pools"]["small"] |= small_pool or {}
        config["pools"]["general"] |= general_pool or {}
        async with run_gateway(config) as gateway:
            folder = tmp_path / task
            folder.mkdir()
            write_adapter(folder, BASE_CONFIG, rank=4, seed=1)
            general_prompt = {"system": "Decide.", "sampling": {"temperature": 0}}
            manifest = {"task": task, "general_prompt": general_prompt, "sampling": {"temperature": 0}, "golden": []}
            (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
            rule = small.faults.add(model="*")  # the probe, too, asks by the version's name: it meets no fault
            await gateway.place(folder, task)
            small.faults.remove(rule)
            small.requests.clear()
            general.requests.clear()
            yield gateway

    return run


def calls(engine: FakeEngine) -> list[Seen]:
    """The engine's own log of completions."""
    return list(engine.requests)


def gaps(seen: list[Seen]) -> list[float]:
    """Seconds between them."""
    return [later.at - earlier.at for earlier, later in itertools.pairwise(seen)]
