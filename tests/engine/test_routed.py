"""The judgement on real engines: scope fitted from training prompts, confidence calibrated on real answers."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.conftest import ADAPTER, RealEngines
from tests.engine.words import CALL_SECONDS_MAX, STAGE_SECONDS_MAX
from tests.walks.gateway import RunningGateway, run_gateway

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]
TASK = "decisions"
"""Not that of the example: another gateway has its versions on these engines."""
PROMPTS = 1_500
CALIBRATION_ROWS = 100
SECONDS_MAX = 1200.0
CHECKS = {
    "out_of_scope": {"mode": "enforce", "deferred_share": 0.05},
    "low_confidence": {"mode": "enforce", "wrong_share_max": 0.2},
    "contract": {"mode": "enforce", "fallback_breaks": "flag"},
    "refusal": {"mode": "enforce"},
}
OUTSIDE = (
    "What is the capital of Portugal, and how many people live there?",
    "write me a python function that reverses a linked list",
    "is it going to rain in Hamburg tomorrow afternoon",
    "translate 'where is the train station' into japanese",
    "how do i change the oil of a lawn mower",
    "tell me a joke about cats and quantum physics",
    "who won the world cup in 1998",
    "set an alarm for half past six every weekday",
)


async def read_until(http: httpx.AsyncClient, path: str, done: Any) -> dict[str, Any]:
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            told: dict[str, Any] = (await http.get(path)).json()
            if done(told):
                return told
            await asyncio.sleep(0.5)


async def ask(http: httpx.AsyncClient, text: str) -> httpx.Response:
    body = {"model": TASK, "messages": [{"role": "user", "content": text}], "max_tokens": 48}
    return await http.post("/v1/chat/completions", json=body, timeout=SECONDS_MAX)


async def fitted_and_calibrated(gateway: RunningGateway, http: httpx.AsyncClient, folder: Path) -> dict[str, Any]:
    """Register the example adapter with a part of its training prompts, and calibrate it. The evaluation's report."""
    rows = (ADAPTER / "data" / "train.jsonl").read_text().splitlines()[:: 12_000 // PROMPTS]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(rows) + "\n")
    shutil.copytree(ADAPTER / "adapter", folder / "adapter")
    manifest = (ADAPTER / "manifest.yaml").read_text().replace("task: returns", f"task: {TASK}")
    (folder / "adapter" / "manifest.yaml").write_text(manifest)
    body = {"task": TASK, "path": str(folder / "adapter"), "prompts": str(prompts)}
    answer = await http.post("/admin/v1/adapters", json=body)
    assert answer.status_code == 201, answer.text
    version = answer.json()["version"]
    stage = f"/admin/v1/adapters/{version}/stage?wait_seconds={STAGE_SECONDS_MAX}"
    assert (await http.post(stage, timeout=CALL_SECONDS_MAX)).status_code == 200
    assert (await http.put(f"/admin/v1/aliases/{TASK}", json={"version": version})).status_code == 200
    await read_until(http, f"/admin/v1/adapters/{version}", lambda told: '"ready"' in json.dumps(told["fitted"]))
    held_out = [json.loads(row) for row in (ADAPTER / "data" / "heldout_templates.jsonl").read_text().splitlines()]
    data = "".join(
        json.dumps({"text": row["text"], "expected": row["label"]}) + "\n"
        for row in held_out[:: len(held_out) // CALIBRATION_ROWS]
    )
    query = f"version={version}&arms=adapter&calibrate=true&metric=fields:decision,rule"
    headers = {"content-type": "application/x-ndjson"}
    begun = await http.post(f"/admin/v1/evaluations?{query}", content=data.encode(), headers=headers)
    assert begun.status_code == 201, begun.text
    told = await read_until(
        http, f"/admin/v1/evaluations/{begun.json()['id']}", lambda told: told["status"] not in ("running", "waiting")
    )
    assert told["status"] == "done", told
    report: dict[str, Any] = told["report"]
    return report


async def test_out_of_scope_never_reaches_the_adapter_and_in_scope_is_explained(
    engines: RealEngines, tmp_path: Path, sample: list[dict[str, Any]]
) -> None:
    configuration = engines.configuration(tmp_path / "d")
    configuration["tasks"] = {TASK: {"commit": "complete", "checks": CHECKS, "max_tokens_max": 64}}
    async with run_gateway(configuration) as gateway, gateway.http() as http:
        report = await fitted_and_calibrated(gateway, http, tmp_path)
        assert report["arms"]["adapter"]["accuracy"]["share"] > 0.6
        outside = await asyncio.gather(*(ask(http, text) for text in OUTSIDE))
        assert {answer.status_code for answer in outside} == {200}
        assert {answer.headers["x-apprentice-reason"] for answer in outside} == {"out_of_scope"}
        inside = await asyncio.gather(*(ask(http, row["text"]) for row in sample))
        reasons = [answer.headers["x-apprentice-reason"] for answer in inside]
        assert "adapter" in reasons
        kept = inside[reasons.index("adapter")]
        assert kept.json()["choices"][0]["logprobs"] is None
        told = await read_until(http, f"/v1/requests/{kept.headers['x-request-id']}", lambda told: "record" in told)
        findings = {one["check"]: one for one in told["record"]["findings"]}
        assert len(findings["out_of_scope"]["neighbours"]) == 3
        assert findings["low_confidence"]["score"] >= findings["low_confidence"]["threshold"]
        assert findings["contract"]["fired"] is False
