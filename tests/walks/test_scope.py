"""From training prompts to decisions: a version is given some, its scope is fitted, requests are judged by it."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from redis.asyncio import Redis

from gateway.callers import new_key
from gateway.features.fitting import job as fitting
from gateway.features.fitting.job import BEGUN_MAX, FAILED_MAX
from gateway.features.fitting.prompts import LINE_BYTES_MAX, read_sample
from gateway.features.fitting.state import SAMPLE_KEY, WAITING_KEY, Fitting
from gateway.services import Services
from gateway.state.fitted_store import FittingStatus
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.scope_world import OUT_OF_SCOPE, asked, fit, fitted, form, give, keep, lines, others, prompts
from tests.walks.test_process import served
from tools.example_adapter import AdminApi, place_adapter

ENFORCED = {"checks": {"out_of_scope": {"mode": "enforce"}}}


async def ask(gateway: RunningGateway, *said: str, model: str = "returns", key: str | None = None) -> Any:
    """Ask with a conversation: the user's turns, with an answer after each but the last."""
    messages = [{"role": "user", "content": said[0]}]
    for text in said[1:]:
        messages += [{"role": "assistant", "content": "Which one?"}, {"role": "user", "content": text}]
    async with gateway.http(key) as http:
        return await http.post("/v1/chat/completions", json={"model": model, "messages": messages})


async def explained(gateway: RunningGateway, answer: Any, key: str | None = None) -> dict[str, Any]:
    async with gateway.http(key) as http:
        told = await http.get(f"/v1/requests/{answer.headers['x-request-id']}")
    return dict(told.json())


@pytest.fixture
async def enforcing(configure: Configure, make_adapter: MakeAdapter) -> AsyncIterator[RunningGateway]:
    """A gateway whose task `returns` enforces its scope, which is fitted."""
    async with run_gateway(configure(tasks={"returns": ENFORCED})) as gateway:
        await gateway.place(make_adapter(1))
        await keep(gateway, "returns@v1")
        yield gateway


async def test_what_is_out_of_scope_goes_to_general_with_its_reason_and_explanation(enforcing: RunningGateway) -> None:
    inside, outside = await ask(enforcing, asked("returns")[0]), await ask(enforcing, OUT_OF_SCOPE)
    assert inside.headers["x-apprentice-reason"] == "adapter"
    assert outside.headers["x-apprentice-reason"] == "out_of_scope"
    assert outside.headers["x-apprentice-pool"] == "general"
    (found,) = (await explained(enforcing, outside))["record"]["findings"]
    assert (found["check"], found["mode"], found["fired"]) == ("out_of_scope", "enforce", True)
    assert found["score"] < found["threshold"]
    assert len(found["neighbours"]) == 3
    assert set(found["neighbours"]) <= {str(number) for number in range(1, len(prompts("returns")) + 1)}


async def test_a_short_second_turn_is_in_scope_with_what_it_answers(enforcing: RunningGateway) -> None:
    alone = await ask(enforcing, "yes, the blue one")
    after = await ask(enforcing, asked("returns")[0], "yes, the blue one")
    assert alone.headers["x-apprentice-reason"] == "out_of_scope"
    assert after.headers["x-apprentice-reason"] == "adapter"


async def test_while_it_observes_the_adapter_answers_and_the_finding_is_told(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    tasks = {"returns": {"checks": {"out_of_scope": {"mode": "observe"}}}}
    async with run_gateway(configure(tasks=tasks)) as gateway:
        await gateway.place(make_adapter(1))
        await keep(gateway, "returns@v1")
        answer = await ask(gateway, OUT_OF_SCOPE)
        assert answer.headers["x-apprentice-reason"] == "adapter"
        (found,) = (await explained(gateway, answer))["record"]["findings"]
    assert (found["mode"], found["fired"]) == ("observe", True)


@pytest.mark.invariant("No training prompt is kept once its model is fitted.")
async def test_prompts_given_to_a_version_are_deleted_once_its_scope_is_fitted(
    gateway: RunningGateway, redis: Redis
) -> None:
    await fit(gateway, "returns@v1")
    async with gateway.http() as http:
        await until_over(http, "ready")
        shown = (await http.get("/admin/v1/adapters/returns@v1")).json()["fitted"]["scope"]
        why = (await http.get("/admin/v1/adapters/returns@v1/why")).json()
        metrics = (await http.get("/metrics")).text
        # the same sample again fits nothing anew
        again = (await give(http, "returns@v1", form("returns"))).json()["fitted"]["scope"]
    assert shown["state"] == "ready"
    assert shown["model"]["summary"]["used"] == len(prompts("returns"))
    assert shown["model"]["summary"]["thresholds"] > 0
    assert (shown["model"]["summary"]["selector"], shown["unused"]) == ("user_turns", None)
    assert 0.9 < shown["model"]["summary"]["auroc"] <= 1
    assert [entry["action"] for entry in why["audit"]][-1] == "fitting.ready"
    assert why["audit"][-1]["after"]["digest"] == shown["model"]["digest"]
    assert any("scope model was fitted on 100 training prompts" in sentence for sentence in why["words"])
    assert 'apprentice_fitting_total{outcome="ready"} 1' in metrics
    assert (again["state"], again["model"]["digest"]) == ("ready", shown["model"]["digest"])
    model = gateway.services.snapshot.current.policy.fitted["returns@v1"].scope
    assert model is not None
    held = b"\n".join([*[part async for part in all_of(redis)], model.to_bytes(), repr(model).encode()])
    for text in [*prompts("returns"), *others()]:
        assert text.encode() not in held
    assert not [key async for key in redis.scan_iter("apprentice:prompts:*")]


async def until_over(http: httpx.AsyncClient, outcome: str, count: int = 1) -> None:
    """Wait for what follows a fitting's state: its audit entry, the end of its prompts and, last, its count."""

    async def is_counted() -> bool:
        return f'apprentice_fitting_total{{outcome="{outcome}"}} {count}\n' in (await http.get("/metrics")).text

    await until(is_counted)


async def all_of(redis: Any) -> AsyncIterator[bytes]:
    """Every byte of text that Valkey holds."""
    async for key in redis.scan_iter():
        yield key
        kind = await redis.type(key)
        if kind == b"hash":
            for pair in (await redis.hgetall(key)).items():
                yield b" ".join(pair)
        elif kind == b"stream":
            yield repr(await redis.xrange(key)).encode()
        elif kind == b"string":
            yield await redis.get(key)
        elif kind == b"zset":
            yield repr(await redis.zrange(key, 0, -1)).encode()
        else:
            assert kind in (b"list", b"set"), kind


async def test_an_adapter_is_pushed_with_its_prompts(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Any
) -> None:
    (tmp_path / "sample.jsonl").write_bytes(lines(prompts("returns")))
    async with run_gateway(configure()) as gateway, gateway.http() as http:
        told = {"task": "returns", "path": str(make_adapter(1)), "prompts": str(tmp_path / "sample.jsonl")}
        told = (await http.post("/admin/v1/adapters", json=told)).json()
        assert told["fitted"]["scope"]["state"] in ("waiting", "fitting")
        assert (await fitted(http, "returns@v1"))["state"] == "ready"


BAD = {
    "empty": (b"", "0 different training prompts are too few"),
    "blank": (lines([""] * 50), "50 empty and 0 repeated"),
    "few": (lines(prompts("returns")[:5] * 9), "5 different training prompts are too few .*40 repeated"),
    "no JSON": (lines(prompts("returns")) + b"nonsense\n", "Line 101 of the prompts is not a JSON object"),
    "no text": (
        lines([*prompts("returns"), {"id": "a"}]),
        "Line 101 of the prompts needs one of prompt, text and mess",
    ),
    "no UTF-8": (b'{"prompt": "\xff"}\n', "Line 1 of the prompts is not a JSON object in UTF-8"),
    "long line": (
        lines(prompts("returns")) + lines(["a" * LINE_BYTES_MAX]) + b"nonsense\n",
        "Line 101 of the prompts has over 1,048,576 bytes: shorten it",
    ),
    "long id": (lines([{"id": "a" * 201, "text": "b"}]), "Line 1 of the prompts: .*length <= 200"),
}


async def test_a_bad_sample_is_refused_at_once_and_nothing_is_kept(
    gateway: RunningGateway, redis: Redis, subtests: pytest.Subtests
) -> None:
    for name, (data, sentence) in BAD.items():
        with subtests.test(name=name):
            async with gateway.http() as http:
                told = await give(http, "returns@v1", form("returns", prompts=data))
                assert told.status_code == 422, told.text
                assert told.json()["error"]["code"] == "prompts_rejected"
                assert re.search(sentence, told.json()["error"]["message"])
                assert (await http.get("/admin/v1/adapters/returns@v1")).json()["fitted"] == {}
            assert not [key async for key in redis.scan_iter("apprentice:prompts:*")]


async def test_one_class_foreign_alphabets_and_long_prompts_are_fitted_and_asked(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    rows: list[Any] = [{"text": text, "label": "one"} for text in prompts("returns")]
    rows += [{"text": f"商品{number}を返品したいです。領収書があります。", "label": "one"} for number in range(30)]
    rows += [{"text": f"Хочу вернуть товар номер {number}, чек есть.", "label": "one"} for number in range(30)]
    rows += [{"messages": [{"role": "user", "content": "I want to return it. " * 40_000}], "label": "one"}]
    async with run_gateway(configure(tasks={"returns": ENFORCED})) as gateway:
        await gateway.place(make_adapter(1))
        await fit(gateway, "returns@v1", prompts=lines(rows))
        said = ["I want to return it. " * 50_000, "返品したいです", "Хочу вернуть", "\u0000", "", "🧦" * 300]
        answers = [await ask(gateway, text) for text in said]
        assert [answer.status_code for answer in answers[1:]] == [200] * (len(said) - 1)
        assert answers[0].json()["error"]["code"] == "context_length_exceeded"
        (found,) = (await explained(gateway, answers[0]))["record"]["findings"]
        assert not found["fired"], "it is what it was trained on, though no engine takes so much"
        assert gateway.services.meters.fitted_unused.cell("failed").value == 0


@pytest.mark.invariant("No damaged or failing model refuses a request.")
async def test_a_model_that_fails_at_a_request_is_counted_and_the_request_is_answered(
    enforcing: RunningGateway,
) -> None:
    model = enforcing.services.snapshot.current.policy.fitted["returns@v1"].scope
    assert model is not None
    object.__setattr__(model, "bias", model.bias[:0])
    answer = await ask(enforcing, OUT_OF_SCOPE)
    assert (answer.status_code, answer.headers["x-apprentice-reason"]) == (200, "adapter")
    assert enforcing.services.meters.fitted_unused.cell("failed").value == 1


async def test_auto_finds_the_task_by_what_the_request_says(configure: Configure, make_adapter: MakeAdapter) -> None:
    tasks = {"returns": ENFORCED, "recipes": {}, "travel": {}}
    async with run_gateway(configure(tasks=tasks)) as gateway:
        for number, task in enumerate(tasks, 1):
            folder = make_adapter(number)
            manifest = folder / "manifest.yaml"
            manifest.write_text(yaml.safe_dump(yaml.safe_load(manifest.read_text()) | {"task": task}))
            await gateway.place(folder, task)
        async with gateway.http() as http:
            assert "auto" not in [one["id"] for one in (await http.get("/v1/models")).json()["data"]]
        for task in tasks:
            await keep(gateway, f"{task}@v1")
        said = {
            "returns": asked("returns")[0],
            "recipes": asked("recipes", 12)[5],
            "travel": asked("travel", 12)[2],
        }
        for task, text in said.items():
            answer = await ask(gateway, text, model="auto")
            assert answer.headers["x-apprentice-task"] == task, text
            assert answer.json()["model"] == f"{task}@v1"
        nowhere = await ask(gateway, OUT_OF_SCOPE, model="auto")
        assert nowhere.headers["x-apprentice-reason"] == "out_of_scope"
        assert nowhere.headers["x-apprentice-pool"] == "general"
        key = await gateway.key(models=["auto", "recipes"])
        assert (await ask(gateway, said["recipes"], model="auto", key=key)).headers["x-apprentice-task"] == "recipes"
        refused = await ask(gateway, said["travel"], model="auto", key=key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "no_task_fits")
        other = await gateway.key(models=["recipes"])
        assert (await ask(gateway, said["recipes"], model="auto", key=other)).status_code == 403
        async with gateway.http() as mine, gateway.http(other) as theirs:
            listed = {one["id"]: one["kind"] for one in (await mine.get("/v1/models")).json()["data"]}
            hidden = [one["id"] for one in (await theirs.get("/v1/models")).json()["data"]]
        assert listed["auto"] == "auto"
        assert "auto" not in hidden


@pytest.mark.invariant("No fitting is lost with its gateway.")
async def test_a_gateway_that_is_killed_while_it_fits_leaves_the_work_to_the_next(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis, tmp_path: Path
) -> None:
    configuration, key = configure(), new_key()[0]
    config = tmp_path / "apprentice.yaml"
    config.write_text(json.dumps({**configuration, "listen": {"port": 0}, "log_format": "text"}, default=str))
    make_adapter(1)
    async with served(config, key) as process:
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=process.url, headers=headers, timeout=60) as http:
            await http.post("/admin/v1/adapters", json={"task": "returns", "path": str(tmp_path / "adapter-1")})
            assert (await give(http, "returns@v1", form("returns"))).status_code == 202

        async def is_fitting() -> bool:
            return bool(fittings(process.process.pid))

        await until(is_fitting, "a process fits it")
        (fitting,) = fittings(process.process.pid)
        await process.stop(signal.SIGKILL)

        async def has_ended() -> bool:
            try:
                return "State:\tZ" in (Path("/proc") / str(fitting) / "status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                return True

        await until(has_ended, "what fitted has ended with its gateway")
    assert await redis.zcard("apprentice:prompts:waiting") == 1
    await redis.delete("apprentice:duty:fitting")  # it would run out by itself, after 10 s
    async with run_gateway(configuration) as gateway, gateway.http() as http:
        assert (await fitted(http, "returns@v1"))["state"] == "ready"


def words_of(process: str) -> bytes:
    return (Path("/proc") / process / "cmdline").read_bytes()


def fittings(gateway: int) -> list[int]:
    """The processes that fit something for a gateway's process."""
    found = []
    for task in (Path("/proc") / str(gateway) / "task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread or a process that has ended
            children = (task / "children").read_text().split()
            found += [int(child) for child in children if b"router.fitting.run" in words_of(child)]
    return found


async def test_a_fitting_that_takes_too_long_has_failed_and_says_so(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis
) -> None:
    async with run_gateway(configure(fitting={"fitting_seconds_max": 0.1})) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        await give(http, "returns@v1", form("returns"))
        late = await fitted(http, "returns@v1")
        await until_over(http, "failed")
        why = (await http.get("/admin/v1/adapters/returns@v1/why")).json()
    assert (late["state"], late["model"]) == ("failed", None)
    assert "It took longer than 0.1 s: give fewer prompts, or more time (fitting.fitting_seconds_max)" in late["error"]
    assert [entry["action"] for entry in why["audit"]][-1] == "fitting.failed"
    assert any("was not fitted, and it is judged without: It took longer" in sentence for sentence in why["words"])
    assert not [key async for key in redis.scan_iter("apprentice:prompts:*")]


async def test_a_fitting_in_which_gateways_end_again_and_again_is_given_up(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis
) -> None:
    async with run_gateway(configure()) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        async with redis.pipeline() as pipe:  # as five gateways would have left it
            pipe.hset(
                f"{SAMPLE_KEY}returns@v1",
                mapping={"digest": "a", "packed": b"", "by": "admin", "counts": b"{}", "begun": BEGUN_MAX},
            )
            pipe.zadd(WAITING_KEY, {"returns@v1": 1.0})
            await pipe.execute()
        found = await fitted(http, "returns@v1")
    assert (found["state"], "ended in the middle 5 times" in found["error"]) == ("failed", True)


async def test_fault_in_a_fitting_is_retried_a_few_times_and_delays_no_other_fitting(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "COMMAND", (sys.executable, "-c", "print('nonsense')"))
    async with run_gateway(configure()) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        await gateway.place(make_adapter(2), alias=False)
        for version in ("returns@v1", "returns@v2"):
            await give(http, version, form("returns"))
        found = [await fitted(http, version) for version in ("returns@v1", "returns@v2")]
        await until_over(http, "failed", 2)
    assert [one["state"] for one in found] == ["failed", "failed"]
    assert f"A fault of the gateway's, {FAILED_MAX} times (DecodeError)" in found[0]["error"]
    assert not [key async for key in redis.scan_iter("apprentice:prompts:*")]


async def test_rows_of_one_parent_stay_in_a_group_and_another_selector_samples_anew(
    tmp_path: Path,
) -> None:
    path = tmp_path / "prompts.jsonl"
    rows: list[Any] = [{"text": text, "parent": at // 2} for at, text in enumerate(prompts("returns"))]
    path.write_bytes(lines([*rows, {"text": "one more", "group": "g", "id": "last"}, {"text": "alone"}]))
    sample = await read_sample(path, None, "user_turns")
    kept = {row["text"]: row for row in map(json.loads, gzip.decompress(sample.packed).splitlines())}
    assert [kept[text]["group"] for text in prompts("returns")[:4]] == ["0", "0", "1", "1"]
    assert (kept["one more"], "group" in kept["alone"]) == ({"text": "one more", "id": "last", "group": "g"}, False)
    assert sample.counts["selector"] == "user_turns"
    assert (await read_sample(path, None, "last_user")).digest != sample.digest


async def test_a_retired_versions_models_are_let_go(enforcing: RunningGateway, make_adapter: MakeAdapter) -> None:
    await enforcing.place(make_adapter(2), alias=False)
    await keep(enforcing, "returns@v2")
    async with enforcing.http() as http:
        assert (await http.post("/admin/v1/adapters/returns@v2/retire")).status_code == 200
        refused = await give(http, "returns@v2", form("returns"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "state_conflict")

    async def is_gone() -> bool:
        return await enforcing.services.control.fitted.versions() == {"returns@v1"}

    await until(is_gone, "nothing is kept of it")
    await until(lambda: set(enforcing.services.snapshot.current.policy.fitted) == {"returns@v1"})


async def test_up_gives_its_sample_to_versions_without_a_model_and_keeps_an_admins(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    sample = tmp_path / "sample.jsonl"
    sample.write_bytes(lines(prompts("returns")[:60]))
    folder, version = make_adapter(1), "returns@v1"
    async with run_gateway(configure(tasks={"returns": {}})) as gateway, gateway.http() as http:
        await gateway.place(folder)
        admin, services = AdminApi(http, http.headers["authorization"].removeprefix("Bearer ")), gateway.services
        for state in ("waiting", "fitting"):
            await services.control.fitted.say(version, "scope", FittingStatus(state=state, by="an admin"))
            await place_adapter(admin, "returns", folder, lambda _: None, sample)
            assert (await fitted_by(services, version)) == "an admin"
        await keep(gateway, version)
        entry = await services.control.fitted.of(version)
        await place_adapter(admin, "returns", folder, lambda _: None, sample)
        assert await gateway.features[Fitting].samples.digest_of(version) is None
        assert await services.control.fitted.of(version) == entry
        await services.control.fitted.delete(version)
        await place_adapter(admin, "returns", folder, lambda _: None, sample)
        assert (await fitted_by(services, version)) not in (None, "", "an admin")


async def fitted_by(services: Services, version: str) -> str | None:
    """The key of who asked for the version's scope to be fitted; None where nobody did."""
    state = (await services.control.fitted.states(version)).get("scope")
    return None if state is None else state.by


async def test_auto_says_that_no_task_has_a_model_rather_than_what_the_input_is_unlike(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with run_gateway(configure(tasks={"returns": ENFORCED})) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        only = await gateway.key(models=["auto", "returns"])
        for known in (False, True):
            said = "the input is in the scope of no task" if known else "no task has a scope model"
            if known:
                await keep(gateway, "returns@v1")
            answer = await ask(gateway, OUT_OF_SCOPE, model="auto")
            assert answer.headers["x-apprentice-reason"] == "out_of_scope"
            told = " ".join((await explained(gateway, answer))["explanation"])
            assert f"the base model of the pool general answered it on general-0: {said}" in told
            body = {"model": "auto", "messages": [{"role": "user", "content": OUT_OF_SCOPE}]}
            assert (await http.post("/v1/route", json=body)).json()["explanation"].startswith(said)
            refused = await ask(gateway, OUT_OF_SCOPE, model="auto", key=only)
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "no_task_fits")
            assert ("No task has a scope model" in refused.json()["error"]["message"]) is not known
