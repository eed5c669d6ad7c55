"""A gateway whose task `returns` has a contract and judges answers before they are sent, and what is asked of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.state.fitted_store import FittedStore
from router.confidence_model import Calibration, ConfidenceModel
from tests.fakes.answers import Said
from tests.fakes.engine import FakeEngine
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import find_record

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}]}
SCHEMA = {
    "type": "object",
    "properties": {"decision": {"enum": ["accept", "refuse"]}, "why": {"type": "string"}},
    "required": ["decision"],
}
CONTRACT = {"json_schema": SCHEMA}
KEPT = '{"decision": "accept", "why": "sealed and within the days"}'
BROKEN = "You may return it, since it is sealed."
SURE, UNSURE = -0.01, -6.0
MODEL = ConfidenceModel(
    (1.0, 0.0, 0.0, 0.0, 0.0, 0.0), 0.0, 0.5, Calibration(100, 0.1, (0, 100), (0.9, 0.0), (50, 100))
)
"""Sure where the least sure token is; at a target of 0.05 answers under 0.9 are not kept."""
V1, V2 = "returns@v1", "returns@v2"
CONTRACT_ENFORCED: dict[str, Any] = {"contract": {"mode": "enforce"}}
CONFIDENCE_ENFORCED: dict[str, Any] = {"low_confidence": {"mode": "enforce", "wrong_share_max": 0.05}}
REFUSAL_ENFORCED: dict[str, Any] = {"refusal": {"mode": "enforce"}}
both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@dataclass
class Told:
    """A caller's view of an answer: status, headers, its text and model, the error's code, and the bytes."""

    status: int
    headers: httpx.Headers
    raw: str
    text: str = ""
    model: str | None = None
    code: str | None = None
    choices: list[dict[str, Any]] = field(default_factory=list)

    @property
    def reason(self) -> str | None:
        """Why it went where it went."""
        return self.headers.get("x-apprentice-reason")


def adapter_with(make: MakeAdapter, number: int, contract: Mapping[str, Any] | None) -> Path:
    """An adapter whose manifest has this contract."""
    folder = make(number)
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**manifest, "contract": contract} if contract is not None else manifest))
    return folder


@asynccontextmanager
async def judging(
    configure: Configure,
    make: MakeAdapter,
    checks: Mapping[str, Any],
    *,
    contract: Mapping[str, Any] | None = CONTRACT,
    versions: int = 1,
    limits: Mapping[str, Any] | None = None,
    **task: Any,
) -> AsyncIterator[RunningGateway]:
    """A gateway with these checks for `returns`; the last of the versions leads. Streams are held until complete."""
    settings = {"commit": "complete", "checks": checks, **task}
    more = {"limits": limits} if limits is not None else {}
    async with run_gateway(configure(tasks={"returns": settings}, **more)) as gateway:
        for number in range(1, versions + 1):
            await gateway.place(adapter_with(make, number, contract))
        yield gateway


async def calibrate(gateway: RunningGateway, model: ConfidenceModel = MODEL, version: str = V1) -> None:
    """Give a version its confidence model."""
    await FittedStore(gateway.services.redis).put(version, "confidence", model.to_json(), "test", {})
    async with asyncio.timeout(30):
        while version not in gateway.services.snapshot.current.policy.fitted:
            await gateway.services.snapshot.refresh()
            await asyncio.sleep(0.01)


def with_logprobs(*values: float) -> Any:
    """A twist: an answer's tokens have these logprobs, the last of them for all that follow."""

    def twist(said: Said) -> None:
        said.logprobs = [values[min(number, len(values) - 1)] for number in range(len(said.tokens))]

    return twist


async def ask(
    gateway: RunningGateway, stream: bool = False, model: str = "returns", path: str = "chat/completions", **more: Any
) -> Told:
    """Send a request, and read what comes."""
    body = {"model": model, "stream": stream, **(ASK if path.startswith("chat") else {"prompt": "A toaster."}), **more}
    async with gateway.http() as http:
        answer = await http.post(f"/v1/{path}", json=body)
    told = Told(answer.status_code, answer.headers, answer.text)
    if answer.status_code != 200:
        told.code = answer.json()["error"]["code"]
    elif stream:
        payloads = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        events = [json.loads(payload) for payload in payloads if payload != "[DONE]"]
        assert payloads[-1] == "[DONE]"
        told.choices = [choice for event in events for choice in event["choices"]]
        told.text = "".join(
            choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in told.choices
        )
        told.model = events[0]["model"]
    else:
        whole = answer.json()
        told.choices, told.model = whole["choices"], whole["model"]
        told.text = told.choices[0].get("text") or told.choices[0].get("message", {}).get("content") or ""
    return told


async def record_of(gateway: RunningGateway, told: Told) -> dict[str, Any]:
    """The record of what was asked, once it is there."""
    async with gateway.http() as http:
        return await find_record(http, told.headers["x-request-id"])


async def metrics_of(gateway: RunningGateway) -> str:
    """All metrics, as Prometheus reads them."""
    async with gateway.http("") as http:
        return (await http.get("/metrics")).text


def fired(record: Mapping[str, Any]) -> list[str]:
    """The checks that fired, in their order."""
    return [one["check"] for one in record["findings"] if one["fired"]]


def asked_of(engine: FakeEngine) -> Mapping[str, Any]:
    """The body of the last request that an engine got."""
    return engine.requests[-1].body
