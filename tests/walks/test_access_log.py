"""A refusal at any door, and a reading of the whole state, leave a line in the log."""

from __future__ import annotations

import logging

import pytest

from gateway.callers import new_key
from tests.walks.gateway import RunningGateway


async def test_refusals_at_all_doors_are_told_with_the_public_part_alone(
    gateway: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway.access_log")
    key, unknown = await gateway.key(role="caller", models=["returns"]), new_key()[0]
    body = {"model": "general", "messages": []}
    async with gateway.http(unknown) as http:
        assert (await http.get("/v1/models")).status_code == 401
    async with gateway.http(key) as http:
        assert (await http.post("/v1/chat/completions", json={**body, "messages": [{"role": "user", "content": "Hi"}]})
        ).status_code == 403  # fmt: skip
        assert (await http.get("/admin/v1/state")).status_code == 403
    async with gateway.http("sk-app-abcdefghijkl-wrong") as http:
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 401
    async with gateway.http() as http:
        assert (await http.get("/admin/v1/state")).status_code == 200
    found = [record for record in caplog.records if record.name == "gateway.access_log"]
    told = [(one.getMessage(), vars(one)["path"], vars(one)["key"]) for one in found]
    assert told == [
        ("refused: invalid_api_key", "/v1/models", unknown[7:19]),
        ("refused: model_not_allowed", "/v1/chat/completions", key[7:19]),
        ("refused: role_required", "/admin/v1/state", key[7:19]),
        ("the whole state is read", "/admin/v1/state", gateway.admin_key[7:19]),
    ], "the second unknown key of the same peer is left out"
    assert all(vars(one)["peer"] == "127.0.0.1" for one in found)
