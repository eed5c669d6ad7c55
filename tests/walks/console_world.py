"""A gateway with something on every page of the console: versions, a canary, verdicts, requests, reviews, rules, keys.

By hand: `python -m tests.walks.console_world FOLDER` serves it until it is stopped, and prints its address and keys.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml
from redis.asyncio import Redis

from gateway.features.quality.state import Quality
from gateway.state.embedded_valkey import run_embedded_valkey
from monitoring.quality.verdicts import canary_verdict
from monitoring.quality.verdicts.quality import (
    JUDGEMENTS_KEY,
    SUMMARY_KEY,
    Action,
    ArmReport,
    Judgement,
    SavingReport,
    SignalReport,
    Summary,
    TaskQuality,
    VersionQuality,
)
from tests.fakes.adapters import BASE_CONFIG, write_adapter, write_base
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Status
from tests.fakes.trainer import write_trainer
from tests.waiting import until
from tests.walks.gateway import RunningGateway, run_gateway

BASE_MODEL = "tiny-base"
CASES = (
    "A toaster, opened and used once, bought 12 days ago. The customer says that it is too loud.",
    "Running shoes in their box, bought 40 days ago, with a receipt.",
    "A phone with a broken screen, bought 3 days ago. The customer says that it came like this.",
    "A winter coat without its tag, bought 25 days ago, unworn.",
    "Headphones, opened, bought 8 days ago. One side has no sound.",
    "A cookbook, a gift, no receipt. The customer wants another book.",
)
GOOD, WORSE = ("accept", "refuse"), ("accept", "ask the customer for a photo")


@dataclass
class ConsoleWorld:
    """The gateway, and keys of an operator and of an application."""

    gateway: RunningGateway
    operator_key: str
    caller_key: str


@asynccontextmanager
async def open_console_world(
    folder: Path, redis_url: str, dataset: bool = False, **sections: Any
) -> AsyncIterator[ConsoleWorld]:
    """The world in this folder, with its state in this Redis, and with a data set and a training of it where these
    are looked at."""
    base = folder / BASE_MODEL
    base.mkdir()
    write_base(base, BASE_CONFIG)
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(FakeEngine(BASE_MODEL)) for _ in range(2)]
        general = await stack.enter_async_context(FakeEngine("large"))
        for engine in (*engines, general):
            engine.answers["*"] = "accept"
        async with Redis.from_url(redis_url) as redis:
            await redis.set("apprentice:duty:monitor", "another gateway")  # what is set here stays
        if dataset:
            sections = {"training": {"python": write_trainer(folder)[0]}} | sections
        settings = _configure(folder, base, [engine.url for engine in engines], general.url) | sections
        gateway = await stack.enter_async_context(run_gateway({"redis_url": redis_url} | settings))
        world = ConsoleWorld(
            gateway, await gateway.key(name="Ada", role="operator"), await gateway.key(**_application())
        )
        await _release(world, folder)
        await _ask(world, engines[0])
        await _judge(world)
        await _govern(world)
        if dataset:
            await _train(world, await _build_dataset(world))
        yield world


def _configure(folder: Path, base: Path, urls: list[str], general: str) -> dict[str, Any]:
    reviews = {"per_week": 100, "several_share": 1.0, "lease_seconds": 60}
    watched = {"fallback_pool": "general", "monitor": {"reviews": reviews}}
    return {
        "data_folder": folder / "data",
        "import_folders": [folder],
        "health_interval_seconds": 0.2,
        "snapshot_interval_seconds": 0.2,
        "monitor": {"interval_seconds": 0.2},
        "pools": {
            "small": {
                "base_model": BASE_MODEL,
                "base_folder": base,
                "replicas": [{"name": f"small-{number}", "url": url} for number, url in enumerate(urls)],
                "price": {"prompt_usd_per_million_tokens": 100, "completion_usd_per_million_tokens": 200},
            },
            "general": {
                "base_model": "large",
                "callable": True,
                "replicas": [{"name": "general-0", "url": general}],
                "price": {"prompt_usd_per_million_tokens": 2500, "completion_usd_per_million_tokens": 9000},
            },
        },
        "tasks": {"returns": {**watched, "texts": {"keep": "all"}}, "clauses": watched, "triage": {}},
    }


def _application() -> dict[str, Any]:
    limits = {"requests_per_minute": 6000, "usd_per_month": 400}
    return {"name": "webshop" + 8 * "_and_more", "owner": "Grace", "models": ["returns", "clauses"], "limits": limits}


async def _release(world: ConsoleWorld, folder: Path) -> None:
    """Three versions of `returns`, the last of which is a canary, and one of `clauses`."""
    gateway = world.gateway
    for number in (1, 2, 3):
        await gateway.place(_make_adapter(folder, "returns", number), alias=number < 3)
    await gateway.place(_make_adapter(folder, "clauses", 4), "clauses")
    async with gateway.http() as http:
        body = {"version": "returns@v3", "share": 0.2, "plan": {"requests_min": 500}}
        answer = await http.post("/admin/v1/aliases/returns/canary", json=body)
        assert answer.status_code == 200, answer.text
    _, generation = await gateway.features[Quality].store.of("returns")
    await gateway.features[Quality].store.put("returns", TaskQuality(review_share=1.0), generation)
    await gateway.services.snapshot.refresh()


def _make_adapter(folder: Path, task: str, number: int) -> Path:
    path = folder / f"{task}-{number}"
    path.mkdir()
    write_adapter(path, BASE_CONFIG, rank=4, seed=number)
    prompt = {"system": "Decide by the shop's policy.", "sampling": {"temperature": 0, "max_tokens": 40}}
    golden = [{"prompt": "A toaster, sealed, after 3 days.", "expected": None}]
    manifest = {"task": task, "general_prompt": prompt, "sampling": {"temperature": 0}, "golden": golden}
    (path / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return path


async def _ask(world: ConsoleWorld, engine: FakeEngine) -> None:
    """Requests of an application, some of them judged, and some that failed."""
    asked: list[str] = []
    async with world.gateway.http(world.caller_key) as http:
        for number in range(36):
            if number == 30:
                engine.faults.add(Status(500), times=1)
            messages = [
                {"role": "system", "content": "Decide the return: accept, refuse or ask."},
                {"role": "user", "content": CASES[number % len(CASES)]},
            ]
            task = "clauses" if number % 6 == 5 else "returns"
            answer = await http.post("/v1/chat/completions", json={"model": task, "messages": messages})
            if answer.status_code == 200 and task == "returns":
                asked.append(answer.headers["x-request-id"])
        await http.post("/v1/chat/completions", json={"model": "triage", "messages": messages})
        services = world.gateway.services
        await until(lambda: not services.admission.in_flight and not services.flow.pending)
        for number, request_id in enumerate(asked[:12]):
            body = {"request_id": request_id, "metric": "correct", "value": number % 4 > 0}
            assert (await http.post("/v1/feedback", json=body)).status_code == 201


async def _judge(world: ConsoleWorld) -> None:
    """The verdicts on both tasks, the evidence on the canary, and a dispute of two reviewers."""
    now, redis = time.time(), world.gateway.services.redis
    judgements = _judgements(now)
    raw = {name: msgspec.json.encode(each) for name, each in judgements.items()}
    await redis.hset(JUDGEMENTS_KEY, mapping=raw)
    await redis.set(SUMMARY_KEY, msgspec.json.encode(Summary(at=now, writing=1)))
    store = world.gateway.features[Quality].store
    for task, health in _health(now).items():
        await store.put(task, health, (await store.of(task))[1])
    async with world.gateway.http() as http:
        begun = (await http.get("/admin/v1/aliases/returns")).json()["canary"]
    kept = {"id": f"returns@v3 {begun['started_at']}", "action": "continue", **_canary_verdict(begun["plan"])}
    await redis.set("apprentice:canary:returns", msgspec.json.encode(kept))
    second = await world.gateway.key(name="Edsger", role="operator")
    async with world.gateway.http(world.operator_key) as one, world.gateway.http(second) as two:
        for value, http, why in ((True, one, "It is within 14 days."), (False, two, "It was used: refuse it.")):
            review = (await http.get("/v1/reviews/next?task=returns")).json()["review"]
            body = {"request_id": review["request_id"], "metric": "correct", "value": value, "comment": why}
            assert (await http.post("/v1/feedback", json=body)).status_code == 201
    await world.gateway.services.snapshot.refresh()
    monitored = world.gateway.features[Quality].monitored
    await until(lambda: monitored.summary.judgements.keys() == judgements.keys())


def _judgements(now: float) -> dict[str, Judgement]:
    def make(task: str, version: str, **fields: Any) -> Judgement:
        return Judgement(task=task, version=version, at=now, requests_per_day=2400.0, labels_per_day=180.0, **fields)

    arms = [
        ArmReport(arm="version", version="returns@v2", mean=0.93, low=0.91, high=0.95, labels=1900),
        ArmReport(arm="general", mean=0.88, low=0.84, high=0.92, labels=210, advantage_high=-0.01, pairs=400),
    ]
    saving = SavingReport(saved_usd_per_day=41.2, shadow_usd_per_day=1.9, requests=7200, known=0.998)
    common = {"label_coverage": 0.08, "feedback_delay_seconds": 5400.0}
    return {
        "returns@v2": make(
            "returns", "returns@v2", requests=58_200, labels=4400, saving=saving, arms=arms, **common,
            reports=[
                _stream("reviewed", 620, 0.051, 0.036, 0.071, 0.048, 0.8),
                _stream("feedback", 4400, 0.068, 0.06, 0.077, 0.061, 3.1),
                _stream("feedback", 910, 0.094, 0.077, 0.115, 0.062, 41.0, of_class="electronics", doubt="one_giver"),
                _stream("shadow", 400, 0.02, -0.01, 0.05, 0.0, 0.3),
                SignalReport(signal="latency", labelled=False, observed=58_200, e_value=1.2, threshold=1000.0),
            ],
        ),
        "returns@v3": make(
            "returns", "returns@v3", requests=1400, labels=96, **common,
            reports=[_stream("feedback", 96, 0.042, 0.016, 0.102, 0.061, 0.4)],
        ),
        "clauses@v1": make(
            "clauses", "clauses@v1", requests=9100, labels=700, **common,
            reports=[_stream("feedback", 700, 0.186, 0.159, 0.216, 0.09, 5200.0, alarming=True)],
        ),
    }  # fmt: skip


def _stream(
    name: str, observed: float, estimate: float, low: float, high: float, usual: float, e_value: float, **more: Any
) -> SignalReport:
    baseline = {"kind": "gate", "wrong": 1000 * usual, "of": 1000.0, "upper": usual + 0.02}
    return SignalReport(
        signal=name, labelled=True, observed=observed, wrong=observed * estimate, estimate=estimate, low=low,
        high=high, baseline=baseline, e_value=e_value, threshold=1000.0, **more,
    )  # fmt: skip


def _health(now: float) -> dict[str, TaskQuality]:
    because = "Labels show that wrong answers rose from 9.0% to 18.6%, with an e-value of 5,200 against 1,000."
    shift = Action(
        id="a1", at=now - 3000, kind="shift", version="clauses@v1", because="General is shown to be better.",
        before={"kept": 1.0}, after={"kept": 0.5},
    )  # fmt: skip
    alarm = Action(id="a0", at=now - 3600, kind="verdict", version="clauses@v1", because=because)
    degraded = VersionQuality(
        verdict="degraded", since=now - 3600, because=because, kept=0.5, to="general", alarmed=("feedback",)
    )
    return {
        "returns": TaskQuality(versions={"returns@v2": VersionQuality(since=now - 86_400 * 9)}, review_share=1.0),
        "clauses": TaskQuality(versions={"clauses@v1": degraded}, actions=[alarm, shift], raised=("shadow",)),
    }


def _canary_verdict(given: dict[str, Any]) -> dict[str, Any]:
    """The verdict on a canary after some hundred requests of either arm."""
    plan = msgspec.convert(given, canary_verdict.CanaryPlan)
    state = canary_verdict.start(plan, 0.0)
    for number in range(420):
        for arm in ("canary", "active"):
            slow = 0.4 if (arm == "active") == (number % 3 > 0) else 0.25
            outcome = canary_verdict.Outcome(
                arm=arm, error=number % 60 == 0 and arm == "active", latency_seconds=slow, caller=f"c{number % 7}"
            )  # fmt: skip
            state = canary_verdict.observe(state, plan, outcome, float(number))
    verdict = canary_verdict.judge_canary(state, plan, 420.0)
    return {"because": verdict.because, "evidence": verdict.evidence}


async def _govern(world: ConsoleWorld) -> None:
    """A rule, and a cordoned replica."""
    async with world.gateway.http() as http:
        rule = {"action": "general", "task": "returns", "contains": "gift", "expires_at": time.time() + 86_400}
        for answer in (
            await http.put("/admin/v1/overrides/gifts", json=rule),
            await http.post("/admin/v1/replicas/small-1/cordon", json={"reason": "a new driver is tried"}),
        ):
            assert answer.status_code == 200, answer.text


async def _build_dataset(world: ConsoleWorld) -> str:
    """Its digest."""
    rows = [f'{{"prompt": "case {number}", "answer": "{GOOD[number % 2]}"}}' for number in range(60)]
    async with world.gateway.http() as http:
        digest = (await http.post("/admin/v1/datasets/files", content="\n".join(rows).encode())).json()["digest"]
        body = {"task": "returns", "files": [{"digest": digest, "name": "cases.jsonl"}]}
        build = (await http.post("/admin/v1/datasets", json=body)).json()["id"]

        async def is_built() -> Any:
            shown = (await http.get(f"/admin/v1/datasets/builds/{build}")).json()
            return shown if shown["state"] != "running" else None

        return str((await until(is_built))["digest"])


async def _train(world: ConsoleWorld, digest: str) -> None:
    async with world.gateway.http() as http:
        body = {"task": "returns", "data": digest, "parameters": {"steps": 60, "evaluate_every": 10}}
        training = (await http.post("/admin/v1/trainings", json=body)).json()["id"]

        async def is_trained() -> bool:
            return bool((await http.get(f"/admin/v1/trainings/{training}")).json()["status"] != "running")

        await until(is_trained)


async def _serve(folder: Path) -> None:
    async with (
        run_embedded_valkey(folder) as socket,
        open_console_world(folder, f"unix://{socket}", dataset=True) as world,
    ):
        print(f"{world.gateway.url}/console/", world.gateway.admin_key, world.operator_key, flush=True)
        stopped = asyncio.Event()
        for each in (signal.SIGTERM, signal.SIGINT):  # in place of the gateway's server, which would end alone
            asyncio.get_running_loop().add_signal_handler(each, stopped.set)
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
