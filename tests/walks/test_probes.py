"""Probes, and addresses typed by people: HEAD, a slash too many, and a fault of our own."""

from __future__ import annotations

import logging

import pytest

from tests.walks.gateway import RunningGateway

HEADS = ["/health/live", "/health/ready", "/v1/models", "/v1/models/returns"]


async def test_a_probe_may_ask_for_the_head_alone(gateway: RunningGateway, subtests: pytest.Subtests) -> None:
    for path in HEADS:
        with subtests.test(path=path):
            async with gateway.http() as http:
                whole, head = await http.get(path), await http.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"] == whole.headers["content-type"]


async def test_ready_says_whether_state_is_durable(gateway: RunningGateway) -> None:
    async with gateway.http("") as http:
        assert (await http.get("/health/ready")).json()["state_durable"] is False  # the tests' Valkey keeps no file
        assert "\napprentice_state_durable 0" in (await http.get("/metrics")).text


async def test_metrics_are_a_503_where_the_other_processes_can_not_be_asked(gateway: RunningGateway) -> None:
    gateway.services.control.siblings.count = 2  # the parent of the two does not answer
    async with gateway.http("") as http:
        answer = await http.get("/metrics")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overload"), "no counter may go down"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/models/"), ("POST", "/v1/feedback/"), ("POST", "/v1/chat/completions/")]
)
async def test_a_slash_too_many_is_a_404_and_redirects_nobody(gateway: RunningGateway, method: str, path: str) -> None:
    async with gateway.http() as http:
        answer = await http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_a_fault_of_ours_is_logged_with_the_id_that_its_answer_carries(
    gateway: RunningGateway, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.services.limits, "usage", None)  # each fault that data could bring about is mended
    with caplog.at_level(logging.ERROR, logger="gateway.endpoints"):
        async with gateway.http() as http:
            answer = await http.get("/v1/usage")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    request_id = answer.headers["x-request-id"]
    assert request_id in [getattr(record, "request_id", "") for record in caplog.records]
