"""Bodies of admins' calls take each value as the type that it is, and no other that can be turned into it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.walks.conftest import Configure
from tests.walks.gateway import run_gateway

OF_KEYS: list[tuple[str, Any]] = [
    (name, value)
    for name in ("requests_per_minute", "tokens_per_minute")
    for value in (True, "5", 5.0, 5.5, [5], float(2**31))
] + [(name, value) for name in ("usd_per_day", "usd_per_month") for value in (True, "5", "1e3", [5.0])]


async def test_limits_of_keys_are_numbers_of_their_kind_and_nothing_else(configure: Configure) -> None:
    async with run_gateway(configure()) as running, running.http() as http:
        made = (await http.post("/admin/v1/callers", json={"name": "shop"})).json()["public"]
        for name, value in OF_KEYS:
            answers = [
                await http.post("/admin/v1/callers", json={"name": "x", "limits": {name: value}}),
                await http.patch(f"/admin/v1/callers/{made}", json={"limits": {name: value}}),
            ]
            for answer in answers:
                told = answer.json()["error"]
                assert (answer.status_code, told["code"]) == (400, "invalid_value"), (name, value)
                assert told["param"] == f"limits.{name}", (name, value)
        limits = {"requests_per_minute": 5, "tokens_per_minute": 5, "usd_per_day": 5, "usd_per_month": 5.5}
        kept = await http.patch(f"/admin/v1/callers/{made}", json={"limits": limits})
        assert (kept.status_code, kept.json()["limits"]) == (200, limits)
        assert len((await http.get("/admin/v1/callers")).json()["callers"]) == 2


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "/admin/v1/callers", {"name": 7}, "name"),
        ("POST", "/admin/v1/callers", {"name": "x", "expires_at": "4000000000"}, "expires_at"),
        ("POST", "/admin/v1/callers/{public}/rotate", {"overlap_seconds": "60"}, "overlap_seconds"),
        ("POST", "/admin/v1/callers/{public}/rotate", {"overlap_seconds": True}, "overlap_seconds"),
        ("PUT", "/admin/v1/aliases/returns", {"weights": {"returns@v1": True}}, "weights.returns@v1"),
        ("PUT", "/admin/v1/aliases/returns", {"version": "returns@v1", "expected_generation": 1.0}, None),
        ("POST", "/admin/v1/aliases/returns/shadow", {"version": "returns@v1", "share": "0.1"}, "share"),
        ("POST", "/admin/v1/aliases/returns/rollback", {"canary_only": 1}, "canary_only"),
        ("POST", "/admin/v1/aliases/returns/rollback", {"canary_only": "true"}, "canary_only"),
    ],
)
async def test_other_bodies_are_as_strict(
    configure: Configure, method: str, path: str, body: dict[str, Any], param: str | None
) -> None:
    async with run_gateway(configure()) as running, running.http() as http:
        public = (await http.post("/admin/v1/callers", json={"name": "shop"})).json()["public"]
        answer = await http.request(method, path.format(public=public), json=body)
    told = answer.json()["error"]
    assert (answer.status_code, told["code"], told["param"]) == (400, "invalid_value", param or "expected_generation")
