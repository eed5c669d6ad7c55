"""The configuration is read again while requests flow: whole or not at all, and what can't be changed is named."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.admin.reload import CHANGEABLE
from gateway.callers import new_key
from tests.fakes.engine import FakeEngine
from tests.style.tables import table
from tests.walks.conftest import Configure
from tests.walks.gateway import RunningGateway, run_gateway
from tools.reference.settings import keys

ASK: dict[str, Any] = {"model": "general", "messages": [{"role": "user", "content": "How many days has a week?"}]}
RELOAD = "/admin/v1/reload"


class Reloadable:
    """A gateway that was started from a file, and the file."""

    def __init__(self, gateway: RunningGateway, http: httpx.AsyncClient, config: Path, content: dict[str, Any]) -> None:
        self.gateway = gateway
        self.services = gateway.services
        self.http = http
        self._config = config
        self.content = content

    async def reload(self, change: Callable[[dict[str, Any]], object], dry_run: bool = False) -> httpx.Response:
        """Change the file, and have it read again."""
        change(self.content)
        self._config.write_text(plain(self.content))
        return await self.http.post(RELOAD, params={"dry_run": "true"} if dry_run else None)

    async def ask(self, **more: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json=ASK | more)


def plain(content: dict[str, Any]) -> str:
    return yaml.safe_dump(yaml.safe_load(yaml.dump(content, Dumper=Dumper)))


class Dumper(yaml.SafeDumper):
    """Paths as text, and no references between parts."""

    def ignore_aliases(self, data: object) -> bool:
        return True


Dumper.add_multi_representer(Path, lambda dumper, path: dumper.represent_str(str(path)))


@asynccontextmanager
async def reloadable(configuration: dict[str, Any], folder: Path) -> AsyncIterator[Reloadable]:
    key = new_key()[0]
    content = {**configuration, "admin_key": key, "listen": {"port": 0}}
    config = folder / "apprentice.yaml"
    config.write_text(plain(content))
    async with run_gateway(configuration, key, config) as gateway, gateway.http() as http:
        yield Reloadable(gateway, http, config, content)


async def test_a_keys_share_of_the_room_for_bodies_is_that_of_the_new_file(
    configure: Configure, tmp_path: Path
) -> None:
    async with reloadable(configure(), tmp_path) as at:
        long = {"messages": [{"role": "user", "content": "x" * 100_000}]}
        assert (await at.ask(**long)).status_code == 200
        reloaded = await at.reload(lambda content: content.update(limits={"caller_share_max": 0.0001}))
        assert reloaded.status_code == 200, reloaded.text
        assert (await at.ask()).status_code == 200
        refused = await at.ask(**long)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overload"), refused.text
        assert "bytes of bodies" in refused.json()["error"]["message"]


async def test_readiness_of_a_task_that_is_removed_while_its_data_come_says_so(
    configure: Configure, tmp_path: Path
) -> None:
    async with reloadable(configure(), tmp_path) as at:

        async def send_rows() -> AsyncIterator[bytes]:
            yield b'{"text": "a", "expected": "b"}\n'
            assert (await at.reload(lambda content: content["tasks"].pop("returns"))).status_code == 200

        kind = {"content-type": "application/x-ndjson"}
        answer = await at.http.post("/admin/v1/readiness?task=returns", content=send_rows(), headers=kind)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), answer.text


async def test_tasks_limits_and_prices_are_those_of_the_new_file_at_once(configure: Configure, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["tasks"]["clauses"] = {"max_tokens_max": 100}
        content["limits"] = {"body_bytes_max": 2048, "in_flight_max": 7}
        content["pools"]["general"]["price"] = {
            "prompt_usd_per_million_tokens": 10,
            "completion_usd_per_million_tokens": 40,
        }
        content["feedback_metrics"] = {"useful": {"kind": "boolean"}}
        content["log_level"] = "WARNING"

    async with reloadable(configure(), tmp_path) as world:
        assert (await world.ask(model="clauses")).status_code == 404
        loaded_at = world.services.configuration.loaded_at
        told = (await world.reload(change)).json()
        assert told["outcome"] == "applied"
        assert {change["path"] for change in told["changes"]} == {
            "tasks.clauses",
            "limits.body_bytes_max",
            "limits.in_flight_max",
            "pools.general.price.completion_usd_per_million_tokens",
            "feedback_metrics.correct",
            "feedback_metrics.useful",
            "log_level",
        }
        answer = await world.ask(model="clauses")
        assert answer.status_code == 200
        assert (await world.ask(model="clauses", max_tokens=101)).json()["error"]["param"] == "max_tokens"
        assert (await world.ask(user="u" * 3000)).status_code == 413
        long = await world.http.post("/v1/feedback", json={"comment": "c" * 3000})
        assert (long.status_code, long.json()["error"]["code"]) == (413, "body_too_large")
        judged = {"request_id": answer.headers["x-request-id"], "metric": "useful", "value": True}
        assert (await world.http.post("/v1/feedback", json=judged)).status_code == 201
        price = world.services.prices.by_pool["general"]
        assert price is not None
        assert price.completion_usd_per_million_tokens == 40
        assert world.services.configuration.loaded_at > loaded_at
        metrics = (await world.http.get("/metrics")).text
        assert 'apprentice_configuration_reloads_total{outcome="applied"} 1' in metrics
        assert f"apprentice_configuration_loaded_at_seconds {world.services.configuration.loaded_at!r}" in metrics
        entry = (await world.http.get("/admin/v1/audit")).json()["entries"][-1]
        assert (entry["action"], entry["before"]["limits.in_flight_max"]) == ("configuration.reload", 4096)
        assert entry["after"]["limits.in_flight_max"] == 7
        same = (await world.reload(lambda _: None)).json()
        assert same == {"file": same["file"], "outcome": "same", "changes": [], "restart_required": []}
        assert same["file"].endswith(".yaml")


async def test_a_dry_run_tells_the_difference_and_changes_nothing(configure: Configure, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["limits"] = {"in_flight_max": 7, "connections_max": 9}

    async with reloadable(configure(), tmp_path) as world:
        told = (await world.reload(change, dry_run=True)).json()
        assert told["outcome"] == "dry_run"
        assert {(one["path"], one["before"], one["after"]) for one in told["changes"]} == {
            ("limits.in_flight_max", 4096, 7),
            ("limits.connections_max", 10_000, 9),
        }
        assert told["restart_required"] == ["limits.connections_max"]
        assert world.services.settings.limits.in_flight_max == 4096
        assert (await world.http.get("/admin/v1/audit")).json()["entries"] == []
        assert "configuration_reloads_total{" not in (await world.http.get("/metrics")).text


@pytest.mark.invariant("A configuration is taken whole or not at all.")
async def test_settings_in_force_that_come_back_are_not_taken_in_again(configure: Configure, tmp_path: Path) -> None:
    async with reloadable(configure(), tmp_path) as world:
        loaded_at, configuration = world.services.configuration.loaded_at, world.services.configuration
        answer = world.services.control.siblings.answers["settings"]
        await answer(pickle.dumps(configuration.whole))
        assert configuration.loaded_at == loaded_at
        await answer(pickle.dumps(configuration.whole.model_copy(update={"snapshot_interval_seconds": 5.5})))
        assert configuration.whole.snapshot_interval_seconds == 5.5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.update(data_folder="elsewhere"), "data_folder"),
        (lambda c: c.update(redis_url="redis://elsewhere"), "redis_url"),
        (lambda c: c["listen"].update(port=9), "listen.port"),
        (lambda c: c["pools"]["small"].update(base_model="another"), "pools.small.base_model"),
        (lambda c: c["pools"].update(third=c["pools"]["general"] | {"replicas": [{"name": "x", "url": "http://a:1"}]}),
         "pools.third"),
        (lambda c: c["pools"]["small"]["replicas"].append(c["pools"]["general"]["replicas"].pop())
         or c["pools"]["general"]["replicas"].append({"name": "general-1", "url": "http://a:1"}),
         "pools.small.replicas.general-0"),
        (lambda c: c["pools"]["small"].pop("replicas")
         and c["pools"]["small"].update(discover={"dns": "localhost", "port": 1, "server_name": "engine"}),
         "pools.small.discover.server_name"),
    ],
)  # fmt: skip
async def test_what_needs_a_restart_is_named_and_then_nothing_is_changed(
    configure: Configure, tmp_path: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    async with reloadable(configure(), tmp_path) as world:

        def both(content: dict[str, Any]) -> None:
            content["limits"] = {"in_flight_max": 7}
            change(content)

        answer = await world.reload(both)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "restart_required")
        assert named in answer.json()["error"]["message"]
        assert "limits" not in answer.json()["error"]["message"]
        assert world.services.settings.limits.in_flight_max == 4096
        assert (await world.ask()).status_code == 200
        assert 'configuration_reloads_total{outcome="refused"} 1' in (await world.http.get("/metrics")).text


@pytest.mark.invariant("A configuration is taken whole or not at all.")
async def test_a_file_that_can_not_be_used_leaves_the_old_configuration_and_names_the_key(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["limits"] = {"in_flight_max": 7, "in_flite_max": 8}

    async with reloadable(configure(), tmp_path) as world:
        answer = await world.reload(change)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "configuration_invalid")
        assert "limits.in_flite_max: unknown key" in answer.json()["error"]["message"]
        assert world.services.settings.limits.in_flight_max == 4096
        (tmp_path / "apprentice.yaml").write_text("pools: [")
        assert (await world.http.post(RELOAD)).status_code == 422
        (tmp_path / "apprentice.yaml").unlink()
        assert (await world.http.post(RELOAD)).status_code == 422
        assert (await world.ask()).status_code == 200
        assert 'configuration_reloads_total{outcome="refused"} 3' in (await world.http.get("/metrics")).text
    assert "the configuration was not taken, the old one stays" in caplog.text


async def test_what_can_not_be_gone_by_is_not_in_the_audit(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> None:
        raise ValueError("no caps can be made of these")

    async with reloadable(configure(), tmp_path) as world:
        monkeypatch.setattr("gateway.admin.reload.caps_of", fails)
        with contextlib.suppress(httpx.HTTPError):
            assert (await world.reload(lambda content: content.update(limits={"in_flight_max": 7}))).status_code == 500
        assert world.services.settings.limits.in_flight_max == 4096
        assert (await world.http.get("/admin/v1/audit")).json()["entries"] == []


async def test_hidden_values_are_compared_and_never_shown(configure: Configure, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["pools"]["general"]["api_key"] = "sk-engine-secret"
        content["pools"]["small"]["replicas"][0]["recycle_url"] = "http://127.0.0.1:9/?token=secret"
        content["monitor"] = {"webhook_url": "http://127.0.0.1:9/?token=secret"}
        content["training"] = {"ray_url": "http://ray:se/secret@127.0.0.1:9"}
        content["pools"]["general"]["replicas"].append(
            {"name": "general-1", "url": "http://127.0.0.1:9", "api_key": "sk-engine-secret"}
        )

    async with reloadable(configure(), tmp_path) as world:
        for dry_run in (True, False):
            answer = await world.reload(change, dry_run)
            change = lambda _: None  # noqa: E731
            assert "(hidden)" in answer.text
            assert "secret" not in answer.text
        assert "secret" not in (await world.http.get("/admin/v1/audit")).text
        assert world.services.fleet.replicas["general-0"].config.api_key == "sk-engine-secret"


async def test_added_replica_answers_and_a_removed_one_finishes_what_it_holds(
    configure: Configure, tmp_path: Path, general: FakeEngine
) -> None:
    general.token_delay_seconds = 0.02
    general.n_tokens = 1000
    async with FakeEngine("large") as other, reloadable(configure(), tmp_path) as world:

        def swap(content: dict[str, Any]) -> None:
            content["pools"]["general"]["replicas"] = [{"name": "general-1", "url": other.url}]

        async with world.http.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True}) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            assert (await world.reload(swap)).json()["outcome"] == "applied"
            assert set(world.services.fleet.replicas) == {"small-0", "general-1"}
            assert (await world.ask()).status_code == 200
            assert world.services.fleet.replicas["general-0"].in_flight == 1
            general.token_delay_seconds = 0  # the rest comes at once
            rest = [line async for line in lines]
        assert rest[-2] == "data: [DONE]"
        assert (general.requests_total, other.requests_total) == (1, 1)
        async with asyncio.timeout(30):
            while world.services.fleet.replicas["general-0"].in_flight:
                await asyncio.sleep(0.005)
        assert {one["name"] for one in (await world.http.get("/admin/v1/replicas")).json()["replicas"]} == {
            "small-0",
            "general-1",
        }

        def back(content: dict[str, Any]) -> None:
            content["pools"]["general"]["replicas"] = [{"name": "general-0", "url": general.url, "in_flight_max": 3}]

        assert (await world.reload(back)).json()["outcome"] == "applied"
        assert (await world.ask()).status_code == 200
        assert (general.requests_total, other.requests_total) == (2, 1)
        assert world.services.fleet.view().pools["general"].replicas[0].in_flight_max == 3


async def test_an_adapters_replicas_may_change_under_it(
    configure: Configure, tmp_path: Path, make_adapter: Any, small: FakeEngine
) -> None:
    async with (
        FakeEngine("tiny-base", n_tokens=8) as other,
        reloadable(configure(), tmp_path) as world,
    ):
        version = await world.gateway.place(make_adapter(1))

        def add(content: dict[str, Any]) -> None:
            content["pools"]["small"]["replicas"].append({"name": "small-1", "url": other.url})

        assert (await world.reload(add)).json()["outcome"] == "applied"
        async with asyncio.timeout(60):
            while version not in world.services.fleet.replicas["small-1"].loaded:
                await asyncio.sleep(0.01)

        def remove(content: dict[str, Any]) -> None:
            del content["pools"]["small"]["replicas"][0]

        assert (await world.reload(remove)).json()["outcome"] == "applied"
        answer = await world.ask(model="returns")
        assert (answer.headers["x-apprentice-version"], other.requests_total > 0) == (version, True)
        assert version in small.adapters.registered  # other gateways may still send to it


async def test_requests_flow_on_while_it_is_read_again_and_again(configure: Configure, tmp_path: Path) -> None:
    async with reloadable(configure(), tmp_path) as world:
        statuses: list[int] = []
        over = asyncio.Event()

        async def keep_asking() -> None:
            while not over.is_set():
                statuses.append((await world.ask(model="returns")).status_code)

        asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
        for number in range(10):
            told = await world.reload(lambda c, n=number: c.update(limits={"queue_max": n + 1}))  # type: ignore[misc]
            assert told.json()["outcome"] == "applied"
            assert (await world.http.put("/admin/v1/overrides/rule", json={"action": "general"})).status_code == 200
        over.set()
        await asyncio.gather(*asking)
        assert set(statuses) == {200}
        assert world.services.snapshot.current.policy.tasks.keys() == {"returns"}


async def test_only_an_admin_may_and_a_gateway_without_a_file_has_nothing_to_read(gateway: RunningGateway) -> None:
    async with gateway.http(await gateway.key(role="operator")) as http:
        assert (await http.post(RELOAD)).status_code == 403
    async with gateway.http() as http:
        assert (await http.post(RELOAD)).json()["error"]["code"] == "state_conflict"


def test_every_key_that_can_be_changed_is_a_setting_and_is_in_the_document() -> None:
    known = {key.replace("[]", ".NAME") for key in keys()}
    for key in CHANGEABLE:
        wanted = key.replace("pools.*", "pools.POOL").removesuffix(".*")
        assert any(one == wanted or one.startswith(f"{wanted}.") for one in known), key
    rows = table("docs/guides/reload.md", "Applies to", "Keys")
    shown = [key for _, cell in rows for key in re.findall(r"`([^`]+)`", cell)]
    assert sorted(shown) == sorted(CHANGEABLE)
