"""Every operation under /admin that changes something, each with the largest body that it takes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import yaml

from gateway.callers import Caller, new_key
from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.store import DRAFTS_KEY
from gateway.features.retraining.state import RetrainingRequests
from gateway.features.reviews.state import Reviews
from gateway.features.reviews.store import Review
from gateway.features.training.state import Trainings
from monitoring.feedback import Feedback
from serving.object_store import ObjectStore
from tests.walks.gateway import RunningGateway
from tests.walks.scope_world import form
from tests.walks.test_reload import plain

SMILE = "\N{SLIGHTLY SMILING FACE}"
"""One character, 12 bytes of JSON in the audit."""
V1, V2, V3 = "returns@v1", "returns@v2", "returns@v3"
DRAFTS = ("apprentice:admins:audit", "apprentice:responses:audit", DRAFTS_KEY)
MOVED_BY_JOBS = (
    *("apprentice:job", "apprentice:gateway", "apprentice:presence", "apprentice:placements", "apprentice:monitor"),
    *("apprentice:record", "apprentice:feedback", "apprentice:limits", "apprentice:generation", "apprentice:audit"),
    *("apprentice:evaluation", "apprentice:prompts", "apprentice:fitted", "apprentice:responses", "apprentice:admins"),
    *("apprentice:health", "apprentice:reviews", "apprentice:rollout", "apprentice:state", "apprentice:installation"),
    *("apprentice:dataset", "apprentice:training", "apprentice:archive", "apprentice:erasures"),
    *("apprentice:duty", "apprentice:canary", "apprentice:agreement", "apprentice:changes"),
)
"""Keys that change without an admin. Refused operations are held to all others."""
Expected = Literal["audited", "refused", "unchanged"]


@dataclass
class World:
    """A gateway, its configuration file, and what the operations before have made."""

    gateway: RunningGateway
    http: httpx.AsyncClient
    config: Path
    content: dict[str, Any]
    make_adapter: Callable[..., Path]
    state: dict[str, Any] = field(default_factory=dict)

    async def one(self, key: str) -> str:
        """The name of the newest object of a kind."""
        services = self.gateway.services
        if key == "caller":
            known = {raw["name"]: public for public, raw in (await services.objects.callers.all()).items()}
            return known["k" + SMILE * 99] if "k" + SMILE * 99 in known else known["renamed"]
        if key == "training":
            return (await self.gateway.features[Trainings].store.all())[0].id
        if key == "evaluation":
            return (await self.gateway.features[Evaluations].store.all())[0].id
        return (await self.gateway.features[RetrainingRequests].store.all())[0].id

    async def drafts(self) -> int:
        """The number of entries that are drafted and not yet in the chain."""
        redis: Any = self.gateway.services.redis
        return sum([await redis.hlen(key) for key in DRAFTS])

    async def dump(self) -> dict[str, str]:
        """All state that no job moves, by its key."""
        redis: Any = self.gateway.services.redis
        keys = [key.decode() async for key in redis.scan_iter("apprentice:*")]
        kept = sorted(key for key in keys if not key.startswith(MOVED_BY_JOBS))
        return {key: hashlib.sha256(await redis.dump(key) or b"").hexdigest() for key in kept}


Send = Callable[[World], Awaitable[httpx.Response]]


@dataclass(frozen=True)
class Case:
    """One call: the operation in /openapi.json, how it is sent, and what becomes of it."""

    method: str
    path: str
    send: Send
    expected: Expected = "audited"

    @property
    def operation(self) -> tuple[str, str]:
        return self.method, self.path


def call(
    method: str,
    path: str,
    body: Any = None,
    expected: Expected = "audited",
    query: Mapping[str, Any] | None = None,
    **names: str,
) -> Case:
    """A case whose body is JSON. A name in angle brackets is that of the newest object of this kind."""

    async def send(world: World) -> httpx.Response:
        found = {name: await world.one(text[1:-1]) if text.startswith("<") else text for name, text in names.items()}
        told = body(world) if callable(body) else body
        return await world.http.request(method, "/admin/v1" + path.format(**found), json=told, params=query)

    return Case(method.lower(), "/admin/v1" + path, send, expected)


def rule() -> dict[str, Any]:
    return {
        "action": "system",
        "task": "returns",
        "contains": SMILE * 500,
        "pattern": "a" * 500,
        "caller": "c" * 63,
        "metadata": {f"{number:02}" + SMILE * 254: SMILE * 256 for number in range(16)},
        "system": SMILE * 10_000,
        "mode": "observe",
        "expires_at": time.time() + 10_000,
    }


def models(letter: str) -> list[str]:
    return [f"{letter}{number:04}" + SMILE * 251 for number in range(1000)]


def change_of_rules() -> dict[str, Any]:
    return {
        "effective_at": time.time() + 1000,
        "note": SMILE * 1000,
        "override": "refuse",
        "message": SMILE * 1000,
        "expires_at": time.time() + 9000,
    }


PLAN = {
    "alpha": 0.05,
    "margin": 0.02,
    "latency_ratio_max": 100,
    "requests_min": 10_000_000,
    "seconds_min": 0,
    "seconds_max": 7_776_000,
    "feedback_metric": "correct",
    "on_timeout": "hold",
    "shadow_harm_margin": 0.02,
    "shadow_required": True,
}
REASON = SMILE * 1000


async def _store(world: World) -> httpx.Response:
    folder = world.make_adapter(9)
    names = ("adapter_config.json", "adapter_model.safetensors", "manifest.yaml")
    files = {name: (name, (folder / name).read_bytes()) for name in names}
    return await world.http.post("/admin/v1/state/adapters", data={"pool": "small"}, files=files)


async def _add(world: World) -> httpx.Response:
    folder = world.make_adapter(3)
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["general_prompt"]["system"] = "s" * 60_000
    manifest["provenance"] = {f"k{number}": "p" * 1000 for number in range(60)}
    path.write_text(yaml.safe_dump(manifest))
    return await world.http.post("/admin/v1/adapters", json={"task": "returns", "path": str(folder)})


async def _prompts(world: World) -> httpx.Response:
    return await world.http.put(f"/admin/v1/adapters/{V2}/prompts", files=dict(form("returns")))


async def _evaluate(world: World) -> httpx.Response:
    names = [f"f{number:02}" + "x" * 40 for number in range(20)]
    row = {"id": "i" * 200, "text": SMILE * 5000, "expected": dict.fromkeys(names, SMILE * 100)}
    query = {"version": V1, "metric": "fields:" + ",".join(names), "arms": "adapter"}
    headers = {"content-type": "application/x-ndjson"}
    content = json.dumps(row).encode() + b"\n"
    return await world.http.post("/admin/v1/evaluations", params=query, content=content, headers=headers)


async def _delete_evaluation(world: World) -> httpx.Response:
    """Of one that still runs: ends it. Of one that has ended: deletes it."""
    if not await world.gateway.features[Evaluations].store.all():
        assert (await _evaluate(world)).is_success  # it had ended before the call that was to end it
    path = f"/admin/v1/evaluations/{await world.one('evaluation')}"
    answer = await world.http.delete(path)
    return await world.http.delete(path) if answer.status_code == 409 else answer  # it ended meanwhile


async def _add_suite(world: World) -> httpx.Response:
    names = [f"{number:02}" + "f" * 26 for number in range(32)]
    row = {"text": "Item 1", "expected": dict.fromkeys([*names, "c" * 200], "yes")}
    query = {"task": "returns", "metric": "fields:" + ",".join(names), "class_field": "c" * 200}
    headers = {"content-type": "application/x-ndjson"}
    content = json.dumps(row).encode() + b"\n"
    return await world.http.post("/admin/v1/suites", params=query, content=content, headers=headers)


async def _build_dataset(world: World) -> httpx.Response:
    columns = {f"c{number:02}": SMILE * 200 for number in range(20)}
    sent = await _send_file(world)
    files = [{"digest": sent.json()["digest"], "name": SMILE * 200, "columns": columns}] * 100
    return await world.http.post("/admin/v1/datasets", json={"task": "returns", "files": files, "since": 1})


async def _train(world: World) -> httpx.Response:
    sent = await world.http.post("/admin/v1/datasets/files", content=b'{"text": "A lamp.", "expected": "no"}')
    digest = sent.json()["digest"]
    return await world.http.post("/admin/v1/trainings", json={"task": "returns", "data": digest})


async def _send_file(world: World) -> httpx.Response:
    return await world.http.post("/admin/v1/datasets/files", content=b'{"text": "A vase.", "expected": "no"}')


async def _send_form(world: World) -> httpx.Response:
    rows = {"file": (SMILE * 200, b'{"text": "A cup.", "expected": "no"}')}
    return await world.http.post("/admin/v1/files", data={"purpose": "fine-tune"}, files=rows)


async def _begin_job(world: World) -> httpx.Response:
    file = (await _send_form(world)).json()["id"]
    metadata = {f"{number:02}" + SMILE * 31: SMILE * 512 for number in range(16)}
    body = {"model": "returns", "training_file": file, "suffix": SMILE * 64, "metadata": metadata}
    return await world.http.post("/admin/v1/fine_tuning/jobs", json=body)


async def _approve(world: World) -> httpx.Response:
    _, public, digest = new_key()
    key = Caller(public, "n" * 100, "admin", digest, frozenset(models("p")), owner=SMILE * 100, pending=SMILE * 100)
    await world.gateway.services.objects.callers.put(public, key.to_json(), 0)
    return await world.http.post(f"/admin/v1/callers/{public}/approve")


async def _keep_review(world: World, request_id: str) -> None:
    kept = Review(
        request_id=request_id, task="returns", version=V1, pool="small", reason=None, at=time.time(), probability=0.1,
        caller="c" * 12, endpoint="chat", answer=SMILE * 1000,
    )  # fmt: skip
    await world.gateway.features[Reviews].store.keep(kept, 10, 1000.0)


async def _delete_reviews(world: World) -> httpx.Response:
    await _keep_review(world, "r" * 200)
    return await world.http.delete("/admin/v1/reviews/returns", params={"request_id": "r" * 200})


async def _add_gold(world: World) -> httpx.Response:
    await _keep_review(world, "g" * 200)
    body = {"request_id": "g" * 200, "value": True, "comment": SMILE * 4000}
    return await world.http.post("/admin/v1/reviews/returns/gold", json=body)


async def _resolve(world: World) -> httpx.Response:
    services, request_id = world.gateway.services, "d" * 200
    await services.redis.zadd("apprentice:reviews:returns:shared", {request_id: time.time()})
    for rater, value in (("one", True), ("other", False)):
        answer = Feedback(
            feedback_id=rater, metric="correct", value=value, at=time.time(), caller=rater, reviewed=True, reviewers=2
        )
        await services.feedback.give(request_id, answer, "*", young=True)
    path = f"/admin/v1/reviews/returns/disputed/{request_id}/resolve"
    return await world.http.post(path, json={"value": True, "comment": SMILE * 4000})


async def _cancel_pull(world: World) -> httpx.Response:
    pull = {"id": "p" * 20, "task": "returns", "by": "abcdefghijkl", "created_at": 1.0, "address": "hf://a/b@main"}
    pull |= {"pool": None, "digest": "", "manifest": None, "owner": None}
    redis = world.gateway.services.redis
    await redis.set("apprentice:duty:pulls", "another gateway", ex=60)
    await ObjectStore(redis, "pulls").put(pull["id"], pull)
    return await world.http.delete(f"/admin/v1/pulls/{pull['id']}")


async def _apply(world: World) -> httpx.Response:
    state = (await world.http.get("/admin/v1/state")).json()
    state["overrides"] = {f"rule{number}": {"generation": 0, "value": rule()} for number in range(3)}
    key = {"name": "n" * 100, "role": "admin", "secret_digest": "0" * 64, "models": models("s"), "expires_at": None}
    state["callers"]["abcdefghijkl"] = {"generation": 0, "value": key}
    return await world.http.post("/admin/v1/state/apply", json={"state": state, "force": True})


async def _reload(world: World) -> httpx.Response:
    metrics = {f"m{number:04}" + "x" * 50: {"kind": "category", "categories": ["c" * 60] * 8} for number in range(600)}
    world.content["feedback_metrics"] = {"correct": {"kind": "boolean"}, **metrics}
    world.config.write_text(plain(world.content))
    return await world.http.post("/admin/v1/reload")


CASES: tuple[Case, ...] = (
    call("PUT", "/overrides/{name}", lambda _: rule(), name="r" * 63),
    call("POST", "/readiness", None, "unchanged", {"task": "returns"}),
    call("POST", "/diagnoses", None, "refused", {"request": "r" * 200}),
    call("POST", "/overrides/{name}/dry-run", lambda _: rule(), "unchanged", name="r" * 63),
    call("DELETE", "/overrides/{name}", name="r" * 63),
    call(
        "POST", "/callers", {"name": "k" + SMILE * 99, "role": "admin", "models": models("m"), "expires_at": 2.5e11,
        "limits": {"requests_per_minute": 10**9, "tokens_per_minute": 10**12, "usd_per_day": 1e6}},
    ),
    call("PATCH", "/callers/{public}", {"name": "renamed", "models": models("n"), "limits": None}, public="<caller>"),
    call("POST", "/callers/{public}/rotate", {"overlap_seconds": 30 * 86_400}, public="<caller>"),
    call("DELETE", "/callers/{public}", public="<caller>"),
    Case("post", "/admin/v1/callers/{public}/approve", _approve),
    Case("post", "/admin/v1/adapters", _add),
    call("POST", "/pulls", {"address": "hf://shop/returns@main", "task": "returns"}, "refused"),
    Case("delete", "/admin/v1/pulls/{pull}", _cancel_pull),
    call("POST", "/adapters/{name}/stage", name=V2),
    call("POST", "/adapters/{name}/unload", name=V2),
    call("POST", "/adapters/{name}/stage", name=V2),
    Case("put", "/admin/v1/adapters/{name}/prompts", _prompts),
    call("PUT", "/aliases/{task}", {"weights": {f"v{n}": 1 / 16 for n in range(16)}}, "refused", task="returns"),
    call("PUT", "/aliases/{task}", {"weights": {V1: 0.25, V2: 0.75}}, task="returns"),
    call("POST", "/aliases/{task}/promote", {"version": V1}, task="returns"),
    call("POST", "/aliases/{task}/shadow", {"version": V2, "share": 1}, task="returns"),
    call("POST", "/aliases/{task}/canary", {"version": V2, "share": 0.5, "plan": PLAN}, task="returns"),
    call("POST", "/aliases/{task}/rollback", {"canary_only": True}, task="returns"),
    call("DELETE", "/aliases/{task}", task="returns"),
    call("PUT", "/aliases/{task}", {"version": V1}, task="returns"),
    Case("post", "/admin/v1/datasets/files", _send_file, "unchanged"),
    Case("post", "/admin/v1/datasets", _build_dataset),
    call("DELETE", "/datasets/{digest}", None, "refused", digest="a" * 64),
    Case("post", "/admin/v1/trainings", _train),
    call("DELETE", "/trainings/{training}", training="<training>"),
    call("DELETE", "/trainings/{training}", training="<training>"),
    Case("post", "/admin/v1/files", _send_form, "unchanged"),
    Case("post", "/admin/v1/fine_tuning/jobs", _begin_job),
    call("POST", "/fine_tuning/jobs/{job}/cancel", job="<training>"),
    call("DELETE", "/files/{file}", None, "refused", file="a" * 64),
    Case("post", "/admin/v1/evaluations", _evaluate),
    Case("post", "/admin/v1/suites", _add_suite),
    call("DELETE", "/suites/{task}/{suite}", task="returns", suite="newest"),
    Case("delete", "/admin/v1/evaluations/{evaluation}", _delete_evaluation),
    Case("delete", "/admin/v1/evaluations/{evaluation}", _delete_evaluation),
    call(
        "POST", "/tasks/{task}/quality/{version}/pin", {"verdict": "degraded", "reason": REASON, "until": 2.5e11},
        task="returns", version=V1,
    ),
    call("DELETE", "/tasks/{task}/quality/{version}/pin", task="returns", version=V1),
    call("POST", "/tasks/{task}/quality/actions/{action}/undo", None, "refused", task="returns", action="a" * 300),
    call("POST", "/tasks/{task}/changed", lambda _: change_of_rules(), task="returns"),
    call("DELETE", "/tasks/{task}/changed", task="returns"),
    call(
        "POST", "/tasks/{task}/quality/{version}/baseline",
        {"signal": "reviewed", "of_class": SMILE * 64, "wrong": 1.0, "of": 10**12, "reason": REASON},
        task="returns", version=V1,
    ),
    call("POST", "/retraining", {"task": "returns", "version": V1, "reason": REASON, "since": 1}),
    call("POST", "/retraining/{retraining}/close", retraining="<retraining>"),
    call("DELETE", "/sessions/{public}", public="a" * 12),
    call("POST", "/replicas/{name}/cordon", {"reason": SMILE * 500}, name="small-0"),
    call("POST", "/replicas/{name}/uncordon", name="small-0"),
    call("POST", "/replicas/{name}/recycle", None, "refused", name="small-0"),
    Case("delete", "/admin/v1/reviews/{task}", _delete_reviews),
    Case("post", "/admin/v1/reviews/{task}/gold", _add_gold),
    call("DELETE", "/reviews/{task}/gold/{request_id}", task="returns", request_id="g" * 200),
    Case("post", "/admin/v1/reviews/{task}/disputed/{request_id}/resolve", _resolve),
    call("POST", "/ratings", {"text": "item,A,B\n1,x,y\n"}, "unchanged"),
    call("POST", "/erasures", {"subject": SMILE * 256}),
    call("POST", "/state/diff", {"format": 1, "overrides": {}}, "unchanged"),
    Case("post", "/admin/v1/state/adapters", _store),
    Case("post", "/admin/v1/state/apply", _apply),
    call("POST", "/adapters/{name}/retire", name=V2),
    Case("post", "/admin/v1/reload", _reload),
)  # fmt: skip
"""In this order: each finds what the ones before have made."""
