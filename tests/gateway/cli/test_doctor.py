"""`apprentice doctor`, of real engines, Valkeys and folders."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from redis.asyncio import Redis

from gateway.state.fitted_store import FittedStore
from monitoring.feedback import FEEDBACK_SEALED_KEY, REDIS_SEALED_KEY, SealingLook, WordSeals
from monitoring.quality.phrases import NOBODY_WOKEN
from monitoring.texts import Seals
from router.confidence_model import Calibration, ConfidenceModel
from serving.adapters.versions_and_aliases import AliasEntry
from serving.gpu import has_nvidia_gpu
from serving.object_store import ObjectStore
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Status
from tests.fakes.kubernetes import FakeKubernetes, endpoint, endpoint_slice
from tests.fakes.ports import free_port
from tests.fakes.valkey import APPENDS, valkey
from tests.gateway.cli.conftest import Said, run
from tests.walks.conftest import Configure
from tests.walks.gateway import run_gateway

Doctor = Callable[..., Awaitable[Said]]


@pytest.fixture
def doctor(configure: Configure, tmp_path: Path) -> Doctor:
    """`apprentice doctor` for a configuration; keyword arguments replace whole sections of it."""

    async def doctored(*words: str, **sections: Any) -> Said:
        path = tmp_path / "apprentice.yaml"
        path.write_text(yaml.safe_dump(json.loads(json.dumps(configure(**sections), default=str))))
        return await asyncio.to_thread(run, "doctor", "--config", str(path), *words)

    return doctored


def by_check(said: Said) -> Mapping[str, tuple[str, str, str]]:
    return {one["check"]: (one["kind"], one["found"], one["advice"]) for one in said.json["findings"]}


async def test_where_all_is_well_it_says_so_and_ends_with_0(doctor: Doctor, configure: Configure) -> None:
    always = ("--appendonly", "yes", "--appendfsync", "always")
    async with valkey(*always) as at, run_gateway(configure(redis_url=at.url)) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        said = await doctor("--json", redis_url=at.url, listen={"port": port}, limits={"in_flight_max": 10})
    found = by_check(said)
    assert not [check for check, (kind, *_) in found.items() if kind == "problem"], found
    assert said.exit_code == 0
    assert set(found) == {
        *("configuration", "redis", "durability", "replicas of redis", "eviction", "memory", "clock"),
        *("data folder", "store folder", "engine small-0", "adapters on small-0", "engine general-0"),
        *("file descriptors", "webhook", "gateway"),
    }
    assert found["durability"][:2] == ("ok", "append-only file, fsync always")
    assert found["gateway"][1].endswith("is ready, its state durable")


async def test_it_is_told_whether_verdicts_wake_anybody(doctor: Doctor) -> None:
    assert by_check(await doctor("--json"))["webhook"] == ("warning", NOBODY_WOKEN, "Set it, or use monitoring/alerts.")
    told = by_check(await doctor("--json", monitor={"webhook_url": "http://127.0.0.1:9/"}))
    assert told["webhook"][0] == "ok"


async def test_it_is_told_when_a_former_key_of_texts_can_be_dropped(doctor: Doctor, redis: Redis) -> None:
    one = {"k1": base64.b64encode(bytes(32)).decode()}
    two = one | {"k2": base64.b64encode(b"2" * 32).decode()}
    url = f"unix://{redis.connection_pool.connection_kwargs['path']}"
    assert "keys of texts" not in by_check(await doctor("--json", redis_url=url, texts={"keys": one, "key": "k1"}))
    mark = WordSeals(Seals({"k1": bytes(32), "k2": b"2" * 32}, "k2")).mark

    async def found(name: str, days: float, held: int = 0, of: str = mark, **sections: Any) -> tuple[str, str, str]:
        await redis.set(name, msgspec.json.encode(SealingLook(of, 86_400 * (1 + days), 86_400, held)))
        said = await doctor("--json", redis_url=url, texts={"keys": two, "key": "k2"}, **sections)
        return by_check(said)["keys of texts"]

    assert "until this is ok" in (await found(REDIS_SEALED_KEY, 1))[2]
    assert "1970-01-03 00:00:00Z" in (await found(FEEDBACK_SEALED_KEY, 0.5))[2], "a day after the first clean look"
    assert "3 texts are damaged" in (await found(FEEDBACK_SEALED_KEY, 1, held=3))[1]
    assert (await found(FEEDBACK_SEALED_KEY, 1, of="other"))[0] == "warning"
    assert (await found(FEEDBACK_SEALED_KEY, 1))[0] == "ok"
    kind, without, _ = await found(FEEDBACK_SEALED_KEY, 1, records={"archive": False})
    assert (kind, "not looked through without an archive" in without) == ("warning", True)


async def test_people_get_a_table_with_what_to_do(doctor: Doctor) -> None:
    said = await doctor()
    assert said.exit_code == 1
    lines = said.out.splitlines()
    assert lines[0].split() == ["CHECK", "FOUND", "WHAT", "TO", "DO"]
    (durability,) = (line for line in lines if " durability " in line)
    assert durability.startswith("PROBLEM")
    assert "Set appendonly yes and appendfsync always." in durability
    assert lines[-1].startswith("1 problems, ")


async def test_a_configuration_that_can_not_be_used_is_the_only_finding(doctor: Doctor) -> None:
    said = await doctor("--json", colour="blue")
    ((check, (kind, found, _)),) = by_check(said).items()
    assert (check, kind, said.exit_code) == ("configuration", "problem", 1)
    assert "colour: unknown key" in found


async def test_a_redis_that_waits_is_well_and_missing_replicas_are_not(doctor: Doctor) -> None:
    async with valkey(*APPENDS) as at:
        found = by_check(await doctor("--json", redis_url=at.url, redis={"replicas_acked_min": 1}))
    kind, said, _ = found["durability"]
    assert (kind, said) == ("ok", "append-only file, fsync everysec; acknowledgements take over a second")
    assert found["replicas of redis"][0] == "problem"


async def test_a_redis_that_may_drop_state_or_is_short_of_memory_is_a_problem(doctor: Doctor) -> None:
    async with valkey(*APPENDS, "--maxmemory", "1mb", "--maxmemory-policy", "volatile-ttl") as at:
        found = by_check(await doctor("--json", redis_url=at.url))
    assert found["eviction"][:2] == ("problem", "maxmemory-policy volatile-ttl")
    assert found["memory"][0] == "problem"


async def test_a_replica_of_redis_is_no_place_for_state(doctor: Doctor) -> None:
    async with valkey(*APPENDS, "--replicaof", "127.0.0.1 1") as at:
        kind, said, advice = by_check(await doctor("--json", redis_url=at.url))["redis"]
    assert kind == "problem"
    assert said.endswith("a replica")
    assert "primary" in advice


async def test_a_redis_that_is_away_is_a_problem_and_the_rest_is_checked(doctor: Doctor) -> None:
    found = by_check(await doctor("--json", redis_url="redis://127.0.0.1:1"))
    assert found["redis"][0] == "problem"
    assert found["engine small-0"][0] == "ok"


async def test_an_embedded_valkey_is_not_started_for_it(doctor: Doctor, tmp_path: Path) -> None:
    found = by_check(await doctor("--json", redis_url=None))
    assert found["redis"][0] == "ok"
    assert not (tmp_path / "data").exists()


async def test_engines_that_are_down_or_serve_something_else_are_named(
    doctor: Doctor, configure: Configure, general: FakeEngine
) -> None:
    pools = configure()["pools"]
    pools["small"]["replicas"].append({"name": "small-1", "url": "http://127.0.0.1:1"})
    pools["small"]["replicas"].append({"name": "small-2", "url": general.url})
    found = by_check(await doctor("--json", pools=pools))
    assert found["engine small-0"][0] == "ok"
    assert found["engine small-1"][0] == "problem"
    assert found["engine small-1"][1].startswith("http://127.0.0.1:1: ConnectError: ")
    assert found["engine small-2"][:2] == ("problem", "it serves large")


async def test_discovered_engines_are_found_and_looked_at_or_it_is_said_why_not(
    doctor: Doctor, configure: Configure, small: FakeEngine, tmp_path: Path
) -> None:
    pools = configure()["pools"]
    del pools["small"]["replicas"]
    port = int(small.url.rpartition(":")[2])
    async with FakeKubernetes() as cluster:
        account = str(cluster.account(tmp_path / "account"))
        service = {"name": "engine-small", "api_url": cluster.url, "account_folder": account}
        pools["small"]["discover"] = {"service": service}
        unknown = by_check(await doctor("--json", pools=pools))
        cluster.put(endpoint_slice("a", [endpoint("127.0.0.1", "engine-small-0")], ports={"http": port}))
        found = by_check(await doctor("--json", pools=pools))
        cluster.put(endpoint_slice("a", [endpoint("127.0.0.1", "engine-small-0", ready=False)], ports={"http": port}))
        unready = by_check(await doctor("--json", pools=pools))
        cluster.forbidden = True
        forbidden = by_check(await doctor("--json", pools=pools))
    pools["small"]["discover"] = {"dns": "engines.invalid", "port": port}
    unresolved = by_check(await doctor("--json", pools=pools))
    assert found["discovery small"][:2] == ("ok", "the Service engine-small: 1 replicas")
    assert found["engine small-engine-small-0"][0] == "ok"
    assert found["adapters on small-engine-small-0"][0] == "ok"
    assert unready["discovery small"][:2] == ("warning", "the Service engine-small: none of its endpoints is ready")
    for findings, told in ((unknown, "no such Service"), (forbidden, "needs a Role"), (unresolved, "engines.invalid")):
        kind, said, advice = findings["discovery small"]
        assert kind == "problem"
        assert told in said
        assert "pools.small.discover" in advice
        assert findings["engine general-0"][0] == "ok"


async def test_engine_on_a_cpu_that_plays_general_and_takes_adapters_is_warned_of(
    doctor: Doctor, configure: Configure, small: FakeEngine
) -> None:
    pools = configure()["pools"]
    shared = pools["general"] | {"replicas": [{"name": "general-0", "url": f"{small.url}/"}]}
    apart = by_check(await doctor("--json"))
    together = by_check(await doctor("--json", pools=pools | {"general": shared}))
    assert "shared engines" not in apart
    if not has_nvidia_gpu():
        kind, found, advice = together["shared engines"]
        assert (kind, found) == ("warning", f"general and small share {small.url}, on a CPU")
        assert "make up ENGINES=2" in advice


async def test_somebody_elses_engine_is_well_if_it_answers_and_takes_the_key(
    doctor: Doctor, configure: Configure
) -> None:
    pools = configure()["pools"]
    options = {"bare": True, "base_path": "/openai/v1", "models_status": 404, "api_key": "sk-theirs"}
    async with FakeEngine("someones-model", **options) as bare:
        replica = {"name": "theirs-0", "url": f"{bare.url}/openai/v1/"}
        pool = {"base_model": "any", "engine": "openai", "replicas": [replica], "api_key": "sk-theirs"}
        found = by_check(await doctor("--json", pools=pools | {"theirs": pool}))
        refused = [by_check(await doctor("--json", pools=pools | {"theirs": pool | {"api_key": "sk-wrong"}}))]
        bare.faults.add(Status(401))  # of requests alone: its list of models needs no key
        refused += [by_check(await doctor("--json", pools=pools | {"theirs": pool}))]
    assert found["engine theirs-0"][0] == "ok"
    for findings in refused:
        kind, told, advice = findings["engine theirs-0"]
        assert (kind, told) == ("problem", f"{bare.url}/openai/v1 refuses the key")
        assert advice == "Set pools.theirs.api_key, or the replica's own, to the engine's."


async def test_an_engine_that_loads_nothing_at_runtime_is_a_problem(doctor: Doctor, small: FakeEngine) -> None:
    small.faults.add(Status(404), path="/v1/load_lora_adapter", times=1)
    kind, _, advice = by_check(await doctor("--json"))["adapters on small-0"]
    assert kind == "problem"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in advice


async def test_folders_that_can_not_be_are_a_problem(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    found = by_check(await doctor("--json", store_folder=str(tmp_path / "file" / "store")))
    assert found["store folder"][0] == "problem"
    assert found["data folder"][0] in ("ok", "warning")
    found = by_check(await doctor("--json", data_folder=str(tmp_path / ("long" * 100)), redis_url=None))
    assert found["data folder"][0] == "problem"


async def test_something_else_on_the_gateways_port_is_a_problem(doctor: Doctor, small: FakeEngine) -> None:
    found = by_check(await doctor("--json", listen={"port": int(small.url.rpartition(":")[2])}))
    assert found["gateway"][0] == "problem"


HELD = Calibration(100, 0.1, (0, 100), (0.9, 0.0), (50, 100))


async def test_models_that_do_not_go_with_the_tasks_selector_are_named(doctor: Doctor, redis: Redis) -> None:
    entry = msgspec.to_builtins(AliasEntry(weights={"returns@v1": 1.0}))
    await ObjectStore(redis, "aliases").put("returns", entry)
    store = FittedStore(redis)
    await store.put("returns@v1", "scope", b"any", "test", {"selector": "dialogue"})
    await store.put("returns@v1", "confidence", MODEL.to_json(), "test", {"scope": None})
    checks = {"out_of_scope": {"mode": "observe"}, "low_confidence": {"mode": "enforce"}}
    told = by_check(await doctor("--json", tasks={"returns": {"commit": "complete", "checks": checks}}))
    kind, said, advice = told["scope of returns"]
    assert (kind, "fitted with another selector (dialogue" in said) == ("warning", True)
    assert "adapters fit returns@v1" in advice
    kind, said, advice = told["confidence of returns"]
    assert (kind, "the scope model has changed" in said) == ("warning", True)
    assert "evaluate returns@v1 --data FILE --calibrate" in advice


async def test_checks_that_have_no_model_for_what_leads_or_is_on_trial_are_named(doctor: Doctor, redis: Redis) -> None:
    alias = AliasEntry(weights={"returns@v1": 0.9, "returns@v2": 0.1})
    await ObjectStore(redis, "aliases").put("returns", msgspec.to_builtins(alias))
    await FittedStore(redis).put("returns@v1", "gain", b"any", "test", {})
    checks = {name: {"mode": "observe"} for name in ("out_of_scope", "predicted_gain", "low_confidence")}
    told = by_check(await doctor("--json", tasks={"returns": {"commit": "complete", "checks": checks}}))
    said = "returns@v1 has no scope model: out_of_scope never fires for it, and auto does not find its task"
    assert told["scope of returns"] == ("warning", said, "Run apprentice adapters fit returns@v1 --prompts FILE.")
    said = "returns@v2 has no scope model: out_of_scope never fires for it"
    assert told["scope of returns@v2"] == ("warning", said, "Run apprentice adapters fit returns@v2 --prompts FILE.")
    assert told["gain of returns@v2"][1] == "returns@v2 has no gain model: predicted_gain never fires for it"
    assert "gain of returns" not in told
    assert told["confidence of returns@v2"][:2] == ("warning", "returns@v2 is not calibrated")


MODEL = ConfidenceModel((1.0, 0.0, 0.0, 0.0, 0.0, 0.0), 0.0, 0.5, HELD)
NOTHING_CERTAIN = replace(MODEL, calibration=replace(HELD, wrong=(50, 100)))


@pytest.mark.parametrize(
    ("model", "commit", "kind", "found"),
    [
        (None, "complete", "warning", "returns@v1 is not calibrated"),
        (MODEL, "complete", "ok", "returns@v1 keeps what scores 0.900 or more"),
        (MODEL, "tokens:5", "warning", "returns@v1 is calibrated for whole answers, and tokens:5 is held back"),
        (replace(MODEL, tokens=9), "tokens:5", "warning", "returns@v1 is calibrated for the first 9 tokens"),
        (replace(MODEL, tokens=5), "tokens:5", "ok", "returns@v1 keeps"),
        (NOTHING_CERTAIN, "complete", "warning", "returns@v1 has no threshold for a wrong share of 0.05"),
    ],
)
async def test_a_confidence_that_can_not_judge_is_found_before_it_is_relied_on(
    doctor: Doctor, redis: Redis, model: ConfidenceModel | None, commit: str, kind: str, found: str
) -> None:
    entry = msgspec.to_builtins(AliasEntry(weights={"returns@v1": 1.0}))
    await ObjectStore(redis, "aliases").put("returns", entry)
    if model is not None:
        await FittedStore(redis).put("returns@v1", "confidence", model.to_json(), "test", {})
    checks = {"low_confidence": {"mode": "enforce"}}
    said = await doctor("--json", tasks={"returns": {"commit": commit, "checks": checks}})
    told = by_check(said)["confidence of returns"]
    assert told[0] == kind
    assert told[1].startswith(found)
    assert bool(told[2]) == (kind != "ok")


async def test_without_a_gateway_the_configuration_of_make_up_is_named(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "var" / "up").mkdir(parents=True)
    for expected in (False, True):
        kind, _, advice = by_check(await doctor("--json", listen={"port": free_port()}))["gateway"]
        assert kind == "warning"
        assert ("--config var/up/apprentice.yaml" in advice) is expected
        (tmp_path / "var" / "up" / "apprentice.yaml").touch()


@pytest.mark.parametrize(
    ("sections", "check", "found", "advice"),
    [
        ({"training": {"runner": "kubernetes"}}, "training", "a training would be refused", "and training.reached_at"),
        ({"training": {"python": "/none"}}, "training.python", "/none is not a file", "fix the setting"),
        ({"pulls": {"allowed": ["none://a"]}}, "pulls.allowed", "none:// can't be read here", "refused"),
        ({"pulls": {"hf_token_file": "/none"}}, "pulls.hf_token_file", "/none is not a file", "fix the setting"),
        ({"import_folders": ["/none"]}, "import_folders", "/none can't be read", "leave it out"),
        ({"signing": {"required": True}}, "signing.required", "each adapter is refused", "Set signing.trusted"),
    ],
)
async def test_setting_that_promises_what_is_refused_later_is_named(
    doctor: Doctor, sections: Any, check: str, found: str, advice: str
) -> None:
    _, observation, what_to_do = by_check(await doctor("--json", **sections))[check]
    assert found in observation
    assert advice in what_to_do


@pytest.mark.parametrize(
    ("task", "check", "found"),
    [
        ({"monitor": {"retraining": "auto"}}, "training", "retraining: auto of returns would be refused"),
        ({"monitor": {"retraining": "auto"}}, "tasks.returns.monitor.retraining", "no text is kept to train on"),
        ({"monitor": {"retraining": "auto", "responses": []}}, "tasks.returns.monitor.retraining", "nothing asks for"),
        ({"monitor": {"reviews": {"several_share": 0.5}}}, "tasks.returns.monitor.reviews", "several_share of no"),
        ({}, "tasks.returns.monitor", "no feedback is a label"),
        ({}, "tasks.returns", "no pool takes adapters"),
    ],
)
async def test_task_that_promises_what_never_happens_is_named(
    doctor: Doctor, task: Any, check: str, found: str
) -> None:
    pools = {"general": {"base_model": "base", "replicas": [{"name": "a", "url": "http://127.0.0.1:1"}]}}
    metrics = {"rating": {"kind": "boolean"}}
    said = await doctor("--json", pools=pools, tasks={"returns": task}, feedback_metrics=metrics)
    assert any(each["check"] == check and found in each["found"] for each in said.json["findings"]), said.json


async def test_variable_whose_prefix_is_misspelt_is_named(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APRENTICE_LISTEN__PORT", "1")
    finding = by_check(await doctor("--json"))["environment"]
    assert finding == (
        "warning",
        "nobody reads APRENTICE_LISTEN__PORT",
        "Call it APPRENTICE_LISTEN__PORT, or unset it.",
    )
