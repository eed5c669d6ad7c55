"""`apprentice explain`: a request's way, in words and as JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.gateway.cli.conftest import Command
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway


@pytest.fixture
async def gateway(configure: Configure, make_adapter: MakeAdapter) -> AsyncIterator[RunningGateway]:
    """One whose task observes a check and enforces another."""
    checks = {"holdout": {"mode": "enforce", "share": 1}, "out_of_scope": {"mode": "observe"}}
    async with run_gateway(configure(tasks={"returns": {"checks": checks}})) as running:
        await running.place(make_adapter(1))
        yield running


async def test_a_request_is_explained_check_by_check(gateway: RunningGateway, apprentice: Command) -> None:
    async with gateway.openai() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="returns", messages=[{"role": "user", "content": "A toaster."}]
        )
    request_id = raw.headers["x-request-id"]
    said = await apprentice("explain", request_id)
    assert said.exit_code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].split() == ["id", request_id]
    assert "reason   holdout" in lines
    table = lines.index(next(line for line in lines if line.startswith("CHECK")))
    assert lines[table].split() == ["CHECK", "VERSION", "MODE", "VERDICT", "SCORE", "THRESHOLD", "NEAREST", "NOTE"]
    assert " ".join(lines[table + 1].split()) == "out_of_scope returns@v1 observe let pass - - - no scope model"
    assert lines[table + 2].split() == ["holdout", "returns@v1", "enforce", "fired", "-", "1", "-", "-"]
    assert lines[-1] == "It ended as ok with status 200."
    told = (await apprentice("explain", request_id, "--json")).json
    assert (told["record"]["id"], told["record"]["reason"]) == (request_id, "holdout")
    assert told["explanation"][-1] == lines[-1]


async def test_a_request_that_is_not_known_is_one_line_and_a_fallback_code(
    gateway: RunningGateway, apprentice: Command
) -> None:
    said = await apprentice("explain", "nobody")
    assert (said.exit_code, said.out) == (1, "")
    assert "There is no request 'nobody' that this key may see" in said.err
    elsewhere = await apprentice("explain", "../../admin/v1/state")
    assert (elsewhere.exit_code, elsewhere.out) == (2, "")
    assert (await apprentice("explain", " ")).exit_code == 2
