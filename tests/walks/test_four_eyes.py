"""Four eyes are those of two persons: a second key of the same person releases and approves nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import V1, step

pytestmark = pytest.mark.invariant("No owner approves their own release or admin key.")

CALLERS = "/admin/v1/callers"


@pytest.fixture
async def strict(configure: Configure) -> AsyncIterator[RunningGateway]:
    """A gateway on which who pushes does not release. Its own admin key is of the owner `admin`."""
    async with run_gateway(configure(release={"approver_must_differ": True})) as running:
        yield running


async def made(http: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    answer = await http.post(CALLERS, json={"name": "another", "role": "admin", **more})
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    return told


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


REFUSED = (403, "approver_must_differ")


async def test_an_admin_key_works_once_another_owners_admin_has_approved_it(strict: RunningGateway) -> None:
    anna = await strict.admin_of("anna")
    async with strict.http(anna) as http:
        told = await made(http, name="second")
        assert (told["owner"], told["pending"]) == ("anna", "anna")
        path = f"{CALLERS}/{told['public']}/approve"
        async with strict.http(told["key"]) as second:
            assert code(await second.get(CALLERS)) == (401, "invalid_api_key")
            assert code(await http.post(path)) == REFUSED
            async with strict.http(await strict.admin_of(" ANNA ")) as same, strict.http() as other:
                assert code(await same.post(path)) == REFUSED
                generation = (await other.get(f"{CALLERS}/{told['public']}")).json()["generation"]
                await http.patch(f"{CALLERS}/{told['public']}", json={"name": "else"})
                late = await other.post(path, params={"expected_generation": generation})
                assert code(late) == (409, "stale_generation")
                approved = await other.post(path)
                assert (approved.status_code, approved.json()["pending"]) == (200, None)
                assert code(await other.post(path)) == (409, "state_conflict")
            assert (await second.get(CALLERS)).status_code == 200


async def test_keys_that_are_no_admins_need_no_approval_and_inherit_the_owner(strict: RunningGateway) -> None:
    async with strict.http(await strict.admin_of("anna")) as http:
        told = await made(http, role="operator")
        named = await made(http, role="caller", owner="shop")
    assert (told["owner"], told["pending"], named["owner"]) == ("anna", None, "shop")
    async with strict.http(told["key"]) as operator:
        assert (await operator.get(CALLERS)).status_code == 200


@pytest.mark.parametrize("deleted", [False, True])
async def test_no_key_of_who_pushed_a_version_releases_it(
    strict: RunningGateway, make_adapter: MakeAdapter, deleted: bool
) -> None:
    """Neither an approved second key, nor after the pushing key is deleted."""
    async with strict.http() as admin, strict.http(await strict.admin_of("bert")) as bert:
        second = await made(admin)
        assert (await bert.post(f"{CALLERS}/{second['public']}/approve")).status_code == 200
        async with strict.http(second["key"]) as pusher:
            answer = await pusher.post("/admin/v1/adapters", json={"task": "returns", "path": str(make_adapter(1))})
            assert answer.status_code == 201, answer.text
        await admin.post(f"/admin/v1/adapters/{V1}/stage")
        if deleted:
            assert (await admin.delete(f"{CALLERS}/{second['public']}")).status_code == 200
        error = await step(admin, "promote", 403, version=V1)
        assert error["error"]["code"] == "approver_must_differ"
        rule = {"action": "version", "task": "returns", "version": V1}
        assert code(await admin.put("/admin/v1/overrides/all", json=rule)) == REFUSED
        assert (await step(bert, "promote", version=V1))["weights"] == {V1: 1.0}


async def test_who_pushed_the_leader_may_end_a_canary_by_the_leaders_name(
    strict: RunningGateway, make_adapter: MakeAdapter
) -> None:
    await strict.place(make_adapter(1), alias=False)
    async with strict.http() as admin, strict.http(await strict.admin_of("bert")) as bert:
        await step(bert, "promote", version=V1)
        pushed = await bert.post("/admin/v1/adapters", json={"task": "returns", "path": str(make_adapter(2))})
        await bert.post(f"/admin/v1/adapters/{pushed.json()['version']}/stage")
        await step(admin, "canary", version=pushed.json()["version"], share=0.5)
        assert (await step(admin, "rollback", version=V1))["weights"] == {V1: 1.0}


async def test_a_new_admin_key_of_the_setting_releases_nothing_that_the_one_before_pushed(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    configuration = configure(release={"approver_must_differ": True})
    async with run_gateway(configuration) as running:
        await running.place(make_adapter(1), alias=False)
    async with run_gateway(configuration) as rotated, rotated.http() as http:
        assert (await step(http, "promote", 403, version=V1))["error"]["code"] == "approver_must_differ"
        async with rotated.http(await rotated.admin_of("bert")) as bert:
            assert (await step(bert, "promote", version=V1))["weights"] == {V1: 1.0}


async def test_nobody_changes_whose_their_own_key_is_or_takes_anothers_secret(strict: RunningGateway) -> None:
    anna, bert = await strict.admin_of("anna"), await strict.admin_of("bert")
    path = f"{CALLERS}/{anna[7:19]}"
    async with strict.http(anna) as of_anna, strict.http(bert) as of_bert:
        assert code(await of_anna.patch(path, json={"owner": "somebody"})) == REFUSED
        assert (await of_anna.patch(path, json={"name": "renamed"})).json()["owner"] == "anna"
        assert code(await of_bert.post(f"{path}/rotate")) == REFUSED
        assert (await of_anna.post(f"{path}/rotate")).status_code == 200
        assert (await of_bert.patch(path, json={"owner": "anna maria"})).json()["owner"] == "anna maria"


async def test_a_state_file_makes_no_admin_key_that_works_before_it_is_approved(strict: RunningGateway) -> None:
    anna, bert = await strict.admin_of("anna"), await strict.admin_of("bert")
    async with strict.http(anna) as of_anna, strict.http(bert) as of_bert:
        state = (await of_anna.get("/admin/v1/state")).json()
        key = {"name": "new", "role": "admin", "secret_digest": "0" * 64, "models": ["*"], "owner": "zed"}
        state["callers"]["abcdefghijkl"] = {"generation": 0, "value": key}
        for changes in (1, 0):
            answer = await of_anna.post("/admin/v1/state/apply", json={"state": state, "force": True})
            assert (answer.status_code, len(answer.json()["applied"])) == (200, changes)
        shown = (await of_anna.get(f"{CALLERS}/abcdefghijkl")).json()
        assert (shown["owner"], shown["pending"]) == ("zed", "anna")
        assert code(await of_anna.post(f"{CALLERS}/abcdefghijkl/approve")) == REFUSED
        assert (await of_bert.post(f"{CALLERS}/abcdefghijkl/approve")).status_code == 200
        for field, value in (("owner", "zed"), ("name", "zed")):
            other = (await of_anna.get("/admin/v1/state")).json()
            other["callers"][anna[7:19]]["value"][field] = value
            other["callers"][anna[7:19]]["value"].pop("owner", None) if field == "name" else None
            assert code(await of_anna.post("/admin/v1/state/apply", json={"state": other})) == REFUSED, field
        other = (await of_anna.get("/admin/v1/state")).json()
        other["callers"][bert[7:19]]["value"]["secret_digest"] = "1" * 64
        assert code(await of_anna.post("/admin/v1/state/apply", json={"state": other})) == REFUSED


async def test_a_state_file_makes_no_way_back_to_a_version_of_who_applies_it(
    strict: RunningGateway, make_adapter: MakeAdapter
) -> None:
    await strict.place(make_adapter(1), alias=False)
    async with strict.http(await strict.admin_of("anna")) as anna:
        pushed = await anna.post("/admin/v1/adapters", json={"task": "returns", "path": str(make_adapter(2))})
        own = pushed.json()["version"]
        alias = {"generation": 0, "value": {"weights": {V1: 1.0}, "previous": [own]}}
        state = {"format": 1, "aliases": {"returns": alias}}
        assert code(await anna.post("/admin/v1/state/apply", json={"state": state})) == REFUSED
        alias["value"] = {"weights": {V1: 1.0}}
        assert (await anna.post("/admin/v1/state/apply", json={"state": state})).status_code == 200


async def test_a_key_from_before_there_were_owners_is_of_its_name(configure: Configure) -> None:
    async with run_gateway(configure()) as running:
        async with running.http() as http:
            old = await made(http, name="old", owner="old")
            assert "owner" not in (await running.services.objects.callers.get(old["public"]) or {})
            assert (await http.get(f"{CALLERS}/{old['public']}")).json()["owner"] == "old"
        async with running.http(old["key"]) as http:
            assert (await made(http))["owner"] == "old"
