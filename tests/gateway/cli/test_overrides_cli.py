"""`apprentice overrides` over a real gateway: tried, set, listed, expired and deleted."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from tests.gateway.cli.conftest import Command, ok
from tests.walks.conftest import MakeAdapter
from tests.walks.gateway import RunningGateway

ASK = {"model": "returns", "messages": [{"role": "user", "content": "A vase, sealed, after 3 days."}]}


async def ask(gateway: RunningGateway) -> str:
    async with gateway.http() as http:
        answer = await http.post("/v1/chat/completions", json=ASK)
    return answer.headers.get("x-apprentice-reason") or str(answer.json()["error"]["message"])


def rows(out: str) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in out.splitlines()[1:]]


async def test_a_rule_is_tried_set_listed_and_deleted(gateway: RunningGateway, apprentice: Command) -> None:
    assert await ask(gateway) == "adapter"
    async with asyncio.timeout(60):
        while not await gateway.services.redis.xlen("apprentice:records"):
            await asyncio.sleep(0.01)
    rule = ("vases", "--action", "general", "--task", "returns", "--contains", "VASE")
    for words in (("try", *rule), ("set", *rule, "--dry-run")):
        said = await ok(apprentice, "overrides", *words)
        assert said.out.startswith("Of the last 1 requests it would have matched 1 and changed 1.\n")
        assert rows(said.out)[1:] == [["returns@v1", "general", "1"]]
    assert (await ok(apprentice, "overrides", "list")).out.splitlines()[1:] == []

    said = await ok(apprentice, "overrides", "set", *rule)
    assert said.out == "vases: task returns, has 'VASE': to general; until deleted.\n"
    assert await ask(gateway) == "override"
    words = ("--action", "refuse", "--message", "Call us.", "--metadata", "shop=berlin", "--expires-in", "2h")
    await ok(apprentice, "overrides", "set", "berlin", *words, "--mode", "observe")
    first, second = rows((await ok(apprentice, "overrides", "list")).out)
    assert first[:4] == ["berlin", "observe", "all tasks, shop='berlin'", "refuse with 'Call us.'"]
    assert second == ["vases", "enforce", "task returns, has 'VASE'", "to general", "-"]
    told = (await ok(apprentice, "overrides", "list", "--json")).json["overrides"]
    assert told[0]["expires_at"] == pytest.approx(time.time() + 7200, abs=60)

    again = await ok(apprentice, "overrides", "try", "vases", "--json")
    assert again.json["matched"] >= 1
    assert (await ok(apprentice, "overrides", "delete", "vases")).out == "vases is deleted.\n"
    assert await ask(gateway) == "adapter"


async def test_a_version_names_its_task_and_a_rule_that_is_over_is_shown_as_expired(
    gateway: RunningGateway, apprentice: Command
) -> None:
    words = ("--action", "version", "--version", "returns@v1", "--pattern", r"\bvase\b", "--expires-in", "3s")
    said = await ok(apprentice, "overrides", "set", "a", *words)
    assert said.out.startswith(r"a: task returns, matches '\bvase\b': to returns@v1; until 2")
    await ok(apprentice, "overrides", "set", "b", "--action", "system", "--system", "x" * 80)
    said = await ok(apprentice, "overrides", "set", "c", "--action", "refuse", "--all", "--starts-in", "2h")
    assert re.fullmatch(r"c: all tasks: refuse; from 2\S+ \S+Z until deleted\.\n", said.out)
    async with asyncio.timeout(60):
        while not (shown := rows((await ok(apprentice, "overrides", "list")).out))[0][-1].endswith("Z (expired)"):
            await asyncio.sleep(0.05)
    assert shown[1][3] == f"add '{'x' * 39}…'"
    assert re.fullmatch(r"from 2\S+ \S+Z to -", shown[2][4])


async def test_a_rule_that_goes_by_what_is_not_there_is_set_with_a_warning(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter
) -> None:
    said = await ok(apprentice, "overrides", "set", "a", "--action", "general", "--caller", "nosuchcaller")
    assert "Warning: There is no key 'nosuchcaller': until there is one, the rule matches nothing." in said.err
    await gateway.place(make_adapter(2))
    for name in ("b", "c"):
        words = ("--action", "version", "--version", "returns@v1", *(("--expires-in", "3s") if name == "c" else ()))
        assert (await ok(apprentice, "overrides", "set", name, *words)).err == ""
    async with asyncio.timeout(60):
        while not (await ok(apprentice, "overrides", "list")).out.rstrip().endswith("(expired)"):
            await asyncio.sleep(0.05)
    said = await ok(apprentice, "adapters", "retire", "returns@v1", "--yes")
    assert "Warning: The rules that send to it are left to the task's fallback: b.\n" in said.err
    assert rows((await ok(apprentice, "overrides", "list")).out)[1][3] == "to returns@v1 (retired)"
    assert (await apprentice("overrides", "try", "b")).exit_code == 0


async def test_a_refusal_of_all_that_comes_wants_to_be_meant(apprentice: Command) -> None:
    refuse = ("overrides", "set", "a", "--action", "refuse", "--message", "Closed.")
    said = await apprentice(*refuse)
    assert (said.exit_code, said.out) == (2, "")
    assert "would refuse every request of every task" in said.err
    for words in (("--mode", "observe"), ("--task", "returns"), ("--all",)):
        await ok(apprentice, *refuse, *words)


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (("set", "a"), 2, "needs an --action"),
        (("try", "nothing"), 2, "No rule 'nothing' is set"),
        (("set", "a", "--action", "general", "--metadata", "berlin"), 2, "is NAME=VALUE"),
        (("set", "a", "--action", "general", "--expires-in", "soon"), 2, "is not a span of time"),
        (("set", "a", "--action", "general", "--expires-in", "0d"), 2, "'0d' is not a span of time above 0"),
        (("set", "a/b", "--action", "general"), 2, "A rule's name has letters, digits, - and _"),
        (("delete", ""), 2, "NAME is empty"),
        (("delete", " "), 2, "NAME is empty"),
        (
            ("set", "a", "--action", "general", "--pattern", "(vase"),
            1,
            "apprentice: pattern: it is not a regular expression",
        ),
        (("set", "a", "--action", "sing"), 2, "sing"),
        (("delete", "nothing"), 1, "There is no rule 'nothing'"),
    ],
)
async def test_what_can_not_be_done_is_one_line(
    apprentice: Command, words: tuple[str, ...], exit_code: int, said: str
) -> None:
    ended = await apprentice("overrides", *words)
    assert (ended.exit_code, ended.out) == (exit_code, "")
    assert said in ended.err
