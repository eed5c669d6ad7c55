"""`apprentice reviews` over a real gateway: shown, judged, skipped and listed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.features.quality.state import Quality
from gateway.features.reviews.state import Reviews
from monitoring.quality.verdicts.quality import TaskQuality, VersionQuality
from tests.fakes.engine import FakeEngine
from tests.gateway.cli.conftest import Command, command_for, ok
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

ASK = {
    "model": "returns",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A vase?\nSealed\x1b[2J."}],
}


@pytest.fixture
async def gateway(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, redis: Redis
) -> AsyncIterator[RunningGateway]:
    """A gateway all of whose requests are drawn for review; another one has the monitor's job."""
    await redis.set("apprentice:duty:monitor", "another gateway")
    tasks = {"returns": {"monitor": {"reviews": {"per_week": 10}}}}
    small.answers["returns@v1"] = "No.\nIt is cracked."
    async with run_gateway(configure(tasks=tasks)) as running:
        await running.place(make_adapter(1))
        await running.features[Quality].store.put("returns", TaskQuality(review_share=1.0), 0)
        await running.services.snapshot.refresh()
        yield running


@pytest.fixture
def apprentice(gateway: RunningGateway) -> Command:
    return command_for(gateway)


async def drawn(gateway: RunningGateway) -> str:
    """The id of a request that waits for review."""
    async with gateway.http() as http:
        request_id: str = (await http.post("/v1/chat/completions", json=ASK)).headers["x-request-id"]
    async with asyncio.timeout(60):
        while await gateway.features[Reviews].store.task_of(request_id) is None:
            await asyncio.sleep(0.005)
    return request_id


async def feedback(gateway: RunningGateway, request_id: str) -> list[dict[str, Any]]:
    async with gateway.http() as http:
        found: list[dict[str, Any]] = (await http.get(f"/v1/requests/{request_id}")).json()["feedback"]
    return found


async def test_next_review_is_shown_readable_and_nothing_in_it_moves_the_terminal(
    gateway: RunningGateway, apprentice: Command
) -> None:
    request_id = await drawn(gateway)
    for words in ((), ("returns",)):
        said = await ok(apprentice, "reviews", "next", *words)
        lines = said.out.splitlines()
        assert lines[0].startswith(f"{request_id}  returns, 20")
        assert lines[1:] == [
            *("system:", "  Be brief.", "user:", "  A vase?", "  Sealed [2J.", "ANSWER:", "  No.", "  It is cracked.")
        ]
        assert "correct is yes or no:" in said.err
        assert f"apprentice reviews answer {request_id} VALUE" in said.err
    assert (await ok(apprentice, "reviews", "next", "--json")).json["review"]["request_id"] == request_id


async def test_a_review_is_answered_with_what_would_have_been_right(
    gateway: RunningGateway, apprentice: Command
) -> None:
    request_id = await drawn(gateway)
    words = ("--comment", "rule 3", "--right", "Yes.", "--rater", "anna", "--tag", "kind=toaster")
    for tag in ("toaster", "=toaster", "kind="):
        wrong = await apprentice("reviews", "answer", request_id, "no", "--tag", tag)
        assert wrong.err == f"apprentice: --tag is NAME=VALUE, such as decision=refuse; not {tag!r}.\n"
    said = await ok(apprentice, "reviews", "answer", request_id, "no", *words)
    assert said.out == f"{request_id}: correct is false.\n"
    (told,) = await feedback(gateway, request_id)
    assert (told["value"], told["comment"], told["demonstration"], told["rater"]) == (False, "rule 3", "Yes.", "anna")
    assert (told["reviewed"], told["tags"]) == (True, {"kind": "toaster"})
    assert (await apprentice("reviews", "answer", "nosuch", "no")).err.endswith("(request_not_found)\n")
    again = await apprentice("reviews", "next")
    assert (again.exit_code, again.out) == (1, "")
    assert again.err.endswith("(no_review)\n")


async def test_a_reviewers_key_is_enough_for_reviews(gateway: RunningGateway, apprentice: Command) -> None:
    request_id = await drawn(gateway)
    place = {"APPRENTICE_KEY": await gateway.key(role="reviewer", models=["returns"])}
    shown = await apprentice("reviews", "next", "returns", **place)
    assert shown.out.startswith(f"{request_id}  returns, 20")
    refused = await apprentice("reviews", "answer", request_id, "no", "--rater", "anna", **place)
    assert (refused.exit_code, "one rater" in refused.err) == (1, True)
    said = await apprentice("reviews", "answer", request_id, "no", "--comment", "rule 3", **place)
    assert said.out == f"{request_id}: correct is false.\n", said.err
    listed = await apprentice("reviews", "list", **place)
    assert listed.out.splitlines()[1].startswith("returns")


async def test_a_second_answer_says_what_counts_where(gateway: RunningGateway, apprentice: Command) -> None:
    request_id = await drawn(gateway)
    await ok(apprentice, "reviews", "answer", request_id, "no", "--rater", "anna")
    said = await ok(apprentice, "reviews", "answer", request_id, "yes", "--rater", "ben")
    counted = f"{request_id}: correct is true; the monitor has counted the first answer, false by anna at "
    assert said.out.startswith(counted)
    assert said.out.endswith("; its label: 1 of 2 says wrong: unresolved.\n")
    assert [one["value"] for one in await feedback(gateway, request_id)] == [False, True]


@pytest.mark.parametrize(("suspect", "raised"), [(0, False), (20, True)])
async def test_a_budget_that_nothing_raises_is_not_called_raised(
    gateway: RunningGateway, apprentice: Command, suspect: int, raised: bool
) -> None:
    services = gateway.services
    reviews = services.settings.tasks["returns"].monitor.reviews.model_copy(update={"per_week_suspect": suspect})
    monitor = services.settings.tasks["returns"].monitor.model_copy(update={"reviews": reviews})
    task = services.settings.tasks["returns"].model_copy(update={"monitor": monitor})
    services.settings.tasks["returns"] = task
    _, generation = await gateway.features[Quality].store.of("returns")
    suspected = TaskQuality(versions={"returns@v1": VersionQuality(verdict="suspect")})
    await gateway.features[Quality].store.put("returns", suspected, generation)
    await services.snapshot.refresh()
    said = await ok(apprentice, "reviews", "list")
    assert ("(raised)" in said.out) == raised
    assert (await ok(apprentice, "reviews", "list", "--json")).json["reviews"][0]["raised"] == raised


async def test_a_review_is_skipped_with_a_reason_and_the_list_says_so(
    gateway: RunningGateway, apprentice: Command
) -> None:
    request_id = await drawn(gateway)
    await ok(apprentice, "reviews", "next")
    assert (await ok(apprentice, "reviews", "skip", request_id, "--reason", "in Danish")).out.endswith("given back.\n")
    said = await ok(apprentice, "reviews", "list")
    assert said.out.splitlines()[1].split()[:3] == ["returns", "1", "0"]
    assert said.out.splitlines()[1].endswith("9 of 10  100 %")
    assert "was skipped by" in said.err
    assert "in Danish" in said.err
    (line,) = (await ok(apprentice, "reviews", "list", "--task", "returns", "--json")).json["reviews"]
    assert (line["waiting"], line["skipped"], line["drawn"]) == (1, 1, 1)


async def test_what_can_not_be_said_is_refused_in_one_line(gateway: RunningGateway, apprentice: Command) -> None:
    request_id = await drawn(gateway)
    wrong = await apprentice("reviews", "answer", request_id, "perhaps")
    assert (wrong.exit_code, wrong.err) == (2, "apprentice: The value of correct is yes or no, not 'perhaps'.\n")
    unknown = await apprentice("reviews", "answer", "nothing", "yes")
    assert (unknown.exit_code, "(request_not_found)" in unknown.err) == (1, True)
    assert (await apprentice("reviews", "next", "nothing")).err.endswith("(not_found)\n")
    assert await feedback(gateway, request_id) == []


async def test_texts_are_deleted_of_one_request_or_of_all(gateway: RunningGateway, apprentice: Command) -> None:
    ids = [await drawn(gateway) for _ in range(3)]
    said = await ok(apprentice, "reviews", "delete", "returns", "--request", ids[0], "--yes")
    assert said.out == "1 that waited and 0 that were judged wrong are deleted.\n"
    empty = await apprentice("reviews", "delete", "returns", "--request", " ")
    assert (empty.exit_code, empty.err.startswith("apprentice: --request is empty")) == (2, True)
    assert (await apprentice("reviews", "delete", "returns", "--request", "a&b", "--yes")).err.endswith("(not_found)\n")
    unasked = await apprentice("reviews", "delete", "returns")
    assert (unasked.exit_code, "Give --yes: there is no terminal to ask on." in unasked.err) == (2, True)
    assert (await ok(apprentice, "reviews", "delete", "returns", "--yes", "--json")).json["waiting"] == 2
    assert (await apprentice("reviews", "next")).err.endswith("(no_review)\n")


async def test_agreement_disputes_and_gold_questions_on_the_command_line(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    request_id = await drawn(gateway)
    assert "is a gold question" in (await ok(apprentice, "reviews", "gold-add", "returns", request_id, "no")).out
    assert request_id in (await ok(apprentice, "reviews", "gold", "returns")).out
    assert "not a gold question any more" in (await ok(apprentice, "reviews", "gold-remove", "returns", request_id)).out
    assert "answered by several" in (await ok(apprentice, "reviews", "agreement", "returns")).out
    assert "0 to resolve" in (await ok(apprentice, "reviews", "disputed", "returns")).err
    none = await apprentice("reviews", "resolve", "returns", request_id, "no", "--comment", "It is cracked.")
    assert none.exit_code == 1
    file = tmp_path / "raters.csv"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_text("item,class,A,B\n1,vase,x,x\n2,vase,x,\n3,cup,x,y\n4,cup,y,y\n", encoding=encoding)
        said = (await ok(apprentice, "reviews", "agreement", "--data", str(file))).out
        assert "class vase" in said
    assert "Take majority" in said
    file.write_text("item,A,B\n1,x\n", encoding="utf-8")
    assert "Line 2: it has 2 cells" in (await apprentice("reviews", "agreement", "--data", str(file))).err
    file.write_bytes(b"\xff")
    assert (
        "is not text in UTF-8: save it as such" in (await apprentice("reviews", "agreement", "--data", str(file))).err
    )
    assert (await apprentice("reviews", "agreement")).exit_code == 2
