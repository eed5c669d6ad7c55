"""Answers that an engine makes badly: never taken for whole ones, and replaced as long as they are not the caller's."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fakes.engine import FakeEngine
from tests.fakes.faults import (
    Dies,
    Edited,
    ErrorEvent,
    Fault,
    HugeEvent,
    Moment,
    NoDone,
    Pings,
    RawEvent,
    Stalls,
    Status,
    Tokens,
)
from tests.fakes.wire import AnswerOver
from tests.walks.fault_world import ASK, World, ask, calls, world

__all__ = ["world"]

Json = dict[str, Any]
GENERAL = "large#"
ERROR = b'data: {"error":{"message":"no","code":500}}\n\n'
UNREADABLE = b'data: {"choices":[],"usage":{"prompt_tokens":NaN}}\n\n'
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "string", "pattern": "a"}}}
both_commits = pytest.mark.parametrize("commit", ["first_token", "complete"])


def choices(change: Callable[[Json], None]) -> Callable[[Json], None]:
    """Changes each choice of an event or an answer."""

    def edit(told: Json) -> None:
        for choice in told["choices"]:
            change(choice)

    return edit


def first_alone(told: Json) -> None:
    del told["choices"][1:]


def lists(choice: Json) -> None:
    text = choice["delta"].get("content")
    choice["delta"]["content"] = [{"type": "text", "text": text}]


def unsure(choice: Json) -> None:
    if choice["delta"].get("content"):
        choice["logprobs"] = {"content": [{"token": "a", "logprob": float("nan")}]}


def no_reason(choice: Json) -> None:
    choice["finish_reason"] = choice["finish_reason"] or ""


def ends_twice(told: Json) -> None:
    """The first alternative ends, and once more where the second should."""
    for choice in told["choices"]:
        if choice["finish_reason"]:
            choice["index"] = 0


def aborted(reason: str) -> Callable[[Json], None]:
    """Ends each answer as vLLM does that is stopped or paused meanwhile."""
    return choices(lambda choice: choice.update(finish_reason=choice["finish_reason"] and reason))


@dataclass(frozen=True)
class Gzipped(Fault):
    """A proxy before the engine compresses its answers, whatever is asked for."""

    async def on_request(self, moment: Moment) -> None:
        await moment.exchange.whole(200, gzip.compress(b"{}"), [("content-encoding", "gzip")], "application/json")
        raise AnswerOver("done")


@dataclass(frozen=True)
class WaitsFor(Fault):
    """Goes on after all tokens once the test says so."""

    event: asyncio.Event

    async def before_token(self, moment: Moment) -> None:
        if moment.made == 60:
            await self.event.wait()


@pytest.mark.invariant("A stream that was cut never looks whole.")
@both_commits
@pytest.mark.parametrize("how", ["end", "done", "close"])
async def test_empty_finish_reason_and_a_cut_are_no_whole_answer(
    world: World, small: FakeEngine, commit: str, how: Any
) -> None:
    async with world(commit=commit) as gateway:
        small.faults.add(Tokens(60), Dies(40, how), Edited(choices(no_reason)), model="returns@*")
        told = await ask(gateway)
    if commit == "complete":
        assert (told.whole, told.done, told.text.startswith(GENERAL), told.words) == (True, True, True, 60)
    else:
        assert ((told.error or {})["code"], told.done, told.words) == ("stream_broken", False, 40)


@pytest.mark.invariant("An answer that its engine aborted never looks whole.")
@both_commits
@pytest.mark.parametrize("reason", ["abort", "error", "insufficient_system_resource"])
async def test_stream_that_its_engine_aborted_is_no_whole_answer(
    world: World, small: FakeEngine, commit: str, reason: str
) -> None:
    async with world(commit=commit) as gateway:
        small.faults.add(Tokens(20), Edited(aborted(reason)), model="returns@*")
        told = await ask(gateway)
    if commit == "complete":
        assert (told.whole, told.done, told.text.startswith(GENERAL), told.words) == (True, True, True, 60)
    else:
        assert ((told.error or {})["code"], told.done, told.finish_reason) == ("stream_broken", False, None)


async def test_stream_that_its_engine_aborted_is_gone_on_with(world: World, small: FakeEngine) -> None:
    async with world(small_pool={"continues": True}) as gateway:
        small.faults.add(Tokens(20), Edited(aborted("abort")), model="returns@*", times=1)
        told = await ask(gateway, max_tokens=60)
    assert (told.whole, told.finish_reason, told.models) == (True, "stop", {"returns@v1"})
    assert (told.apprentice or {})["continued"] == 1


@pytest.mark.parametrize("more", [{}, {"response_format": FORM}], ids=["plain", "pattern"])
@pytest.mark.parametrize("stream", [True, False])
async def test_request_that_its_engine_aborted_at_once_is_answered_elsewhere(
    world: World, small: FakeEngine, stream: bool, more: dict[str, Any]
) -> None:
    """So vLLM ends a request that waits for its first token as it is paused."""
    async with world(parameters_allowed=["pattern"]) as gateway:
        small.faults.add(Tokens(0), Edited(aborted("abort")), model="returns@*")
        told = await ask(gateway, stream=stream, **more)
        assert (told.whole, told.headers["x-apprentice-pool"]) == (True, "general")
        assert told.headers["x-apprentice-reason"] == "engine_error"


@pytest.mark.parametrize(
    "edit",
    [
        first_alone,
        aborted("abort"),
        choices(lambda choice: choice.clear()),
        choices(lambda choice: choice.update(message=None)),
        choices(lambda choice: choice.update(message="Approve.")),
        choices(lambda choice: choice.update(message=[{"content": "Approve."}])),
        choices(lambda choice: choice["message"].update(content=[{"type": "text", "text": "Approve."}])),
        lambda told: told.update(choices=[]),
        lambda told: told.update(choices=None),
    ],
    ids=["one_back", "aborted", "empty_choice", "null", "text", "list", "content_list", "no_choice", "null_choices"],
)
async def test_whole_answer_without_what_was_asked_for_is_a_failed_attempt(
    world: World, small: FakeEngine, edit: Callable[[Json], None]
) -> None:
    async with world(n_max=2) as gateway:
        small.faults.add(Edited(edit), model="returns@*")
        told = await ask(gateway, stream=False, n=2)
    assert (told.whole, told.text.startswith(GENERAL)) == (True, True)
    assert told.headers["x-apprentice-reason"] == "engine_error"


async def test_whole_answer_with_a_bom_is_read(world: World, small: FakeEngine) -> None:
    async with world() as gateway:
        dumped = Edited(dumped=lambda told: b"\xef\xbb\xbf" + json.dumps(told).encode())
        small.faults.add(dumped, model="returns@*")
        told = await ask(gateway, stream=False)
    assert (told.whole, told.models) == (True, {"returns@v1"})


@pytest.mark.parametrize("stream", [False, True])
async def test_gzip_answer_is_refused_by_name(
    world: World, small: FakeEngine, general: FakeEngine, stream: bool
) -> None:
    async with world() as gateway:
        small.faults.add(Gzipped(), model="returns@*")
        assert (await ask(gateway, stream=stream)).models == {"large"}
        general.faults.add(Gzipped())
        told = await ask(gateway, stream=stream)
    assert (told.status, "'gzip'" in (told.error or {})["message"]) == (502, True)


async def test_ends_are_counted_by_alternative(world: World, small: FakeEngine) -> None:
    async with world(n_max=2, commit="complete") as gateway:
        small.faults.add(Edited(ends_twice), model="returns@*")
        told = await ask(gateway, n=2)
    assert (told.whole, told.models) == (True, {"large"})


@both_commits
@pytest.mark.parametrize("change", [lists, unsure], ids=["content_list", "nan"])
async def test_stream_in_which_nothing_can_be_read_fails_over(
    world: World, small: FakeEngine, commit: str, change: Callable[[Json], None]
) -> None:
    async with world(commit=commit) as gateway:
        small.faults.add(Edited(choices(change)), model="returns@*")
        told = await ask(gateway)
    assert (told.whole, told.words, told.text.startswith(GENERAL)) == (True, 60, True)


async def test_unreadable_event_before_commit_is_a_failed_attempt(world: World, small: FakeEngine) -> None:
    async with world(commit="complete") as gateway:
        rule = small.faults.add(Tokens(60), RawEvent(40), model="returns@*")
        told = await ask(gateway)
    assert (told.whole, told.words, told.text.startswith(GENERAL), rule.shown) == (True, 60, True, 3)


@pytest.mark.parametrize("tells_usage", [True, False], ids=["usage", "no-usage"])
async def test_unreadable_event_after_commit_is_told(
    world: World, small: FakeEngine, general: FakeEngine, tells_usage: bool
) -> None:
    small.tells_usage = tells_usage
    async with world() as gateway:
        small.faults.add(Tokens(60), RawEvent(40), model="returns@*")
        told = await ask(gateway)
        async with gateway.http() as http:
            found = (await http.get(f"/v1/requests/{told.headers['x-request-id']}")).json()
    assert (told.whole, told.done, told.words, calls(general)) == (True, True, 60, [])
    assert (told.models, len(told.ids)) == ({"returns@v1"}, 1)
    assert (told.apprentice or {})["skipped_events"] == 1
    assert found["record"]["skipped_events"] == 1


@pytest.mark.parametrize("asked", [{}, {"stream_options": {"include_usage": True}}], ids=["no-usage", "usage"])
@pytest.mark.parametrize("late", [False, True], ids=["ends", "hangs"])
async def test_every_stream_with_an_unreadable_event_ends_with_a_comment(
    world: World, small: FakeEngine, asked: Json, late: bool
) -> None:
    async with world() as gateway:
        hang = [NoDone("open")] if late else []
        small.tells_usage = not late
        small.faults.add(Tokens(60), RawEvent(40), *hang, model="returns@*")
        async with gateway.http() as http:
            body = {"model": "returns", "messages": ASK, "stream": True, **asked}
            answer = await http.post("/v1/chat/completions", json=body)
    assert answer.text.endswith("}\n\n: skipped_events=1\n\ndata: [DONE]\n\n")


@both_commits
async def test_surrogate_pair_over_two_events_reaches_the_caller_as_one(
    world: World, small: FakeEngine, commit: str
) -> None:
    def split(choice: Json) -> None:
        text = choice["delta"].get("content")
        choice["delta"]["content"] = text and "\ude00" + text + "\ud83d"

    def first(choice: Json) -> None:
        choice["delta"]["content"] = (choice["delta"].get("content") or "").removeprefix("\ude00")

    pieces = iter([first])
    async with world(commit=commit) as gateway:
        small.answers["*"] = "one two three"
        plain = await ask(gateway)

        def edit(choice: Json) -> None:
            if choice["delta"].get("content"):
                split(choice)
                for change in pieces:
                    change(choice)
                if choice["finish_reason"]:
                    choice["delta"]["content"] = choice["delta"]["content"].removesuffix("\ud83d")

        small.faults.add(Edited(choices(edit)), model="returns@*")
        told = await ask(gateway)
    assert plain.text == "one two three"
    assert (told.whole, told.text, told.models) == (True, "one\U0001f600 two\U0001f600 three", {"returns@v1"})
    assert "skipped_events" not in (told.apprentice or {})


@both_commits
async def test_nothing_is_relayed_after_done(world: World, small: FakeEngine, commit: str) -> None:
    event = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"after it"}}]}\n\n'
    async with world(commit=commit) as gateway:
        last = RawEvent(60, b"data: [DONE]\n\n" + event)
        small.faults.add(Tokens(60), last, model="returns@*")
        told = await ask(gateway)
    assert (told.words, told.done, "after it" in told.text) == (60, True, False)


@both_commits
@pytest.mark.parametrize(
    "fault",
    [Stalls(60, 30), Pings(60, 30), Dies(60), ErrorEvent(60), RawEvent(60, ERROR), RawEvent(60, UNREADABLE)],
    ids=["silence", "pings", "cut", "error", "error_and_usage", "unreadable"],
)
async def test_all_tokens_and_a_finish_are_a_whole_answer_whatever_follows(
    world: World, small: FakeEngine, general: FakeEngine, commit: str, fault: Fault
) -> None:
    async with world(commit=commit) as gateway:
        small.faults.add(Tokens(60), fault, model="returns@*")
        told = await ask(gateway)
        await small.until(lambda: small.in_flight == 0)
    assert (told.whole, told.done, told.words, told.models) == (True, True, 60, {"returns@v1"})
    assert calls(general) == []
    assert "skipped_events" not in (told.apprentice or {})


@both_commits
async def test_end_of_a_whole_stream_is_not_waited_for_as_long_as_a_token(
    world: World, small: FakeEngine, commit: str
) -> None:
    small.tells_usage = False
    limits = {"inter_token_timeout_seconds": 600, "first_token_timeout_seconds": 600}
    async with world(commit=commit, limits=limits) as gateway, asyncio.timeout(60):
        small.faults.add(Tokens(60), NoDone("open"), model="returns@*")
        told = await ask(gateway)
        await small.until(lambda: small.in_flight == 0)
    assert (told.whole, told.done, told.words, told.models) == (True, True, 60, {"returns@v1"})


async def test_whole_stream_whose_end_does_not_come_is_not_late(world: World, small: FakeEngine) -> None:
    limits = {"inter_token_timeout_seconds": 10}
    async with world(commit="complete", hold_seconds_max=1.0, limits=limits) as gateway:
        small.faults.add(Tokens(60), Stalls(60, 30), model="returns@*")
        told = await ask(gateway)
    assert (told.whole, told.done, told.words, told.models) == (True, True, 60, {"returns@v1"})


@both_commits
async def test_engines_own_code_of_an_error_inside_a_stream_is_told(
    world: World, small: FakeEngine, general: FakeEngine, commit: str
) -> None:
    error = RawEvent(40, b'data: {"error":{"message":"no","code":"content_filter"}}\n\n')
    async with world(commit=commit) as gateway:
        small.faults.add(Tokens(60), error, model="returns@*")
        general.faults.add(Tokens(60), error)
        told = await ask(gateway)
    assert (told.error or {})["engine_code"] == "content_filter"


@pytest.mark.parametrize(
    ("path", "asked", "param"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "Item 1"}], "stop": [*"abcde"]}, "stop"),
        ("completions", {"prompt": "Item 1", "stop": [*"abcde"]}, "stop"),
        (
            "messages",
            {"messages": [{"role": "user", "content": "Item 1"}], "max_tokens": 9, "stop_sequences": [*"abcde"]},
            "stop_sequences",
        ),
    ],
)
async def test_a_field_that_vllm_refuses_is_named_as_the_caller_sent_it(
    world: World, general: FakeEngine, path: str, asked: dict[str, Any], param: str
) -> None:
    """A setting of vLLM says how many stop sequences it takes, so the gateway refuses none itself."""
    async with world() as gateway, gateway.http() as http:
        answer = await http.post(f"/v1/{path}", json={"model": "returns", **asked})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "engine_refused", param)
    why = "List should have at most 4 items after validation, not 5."
    assert error["message"] == f"The engine refuses {param!r}: {why}"
    assert calls(general) == [], "nobody else is asked for what was the caller's fault"


REFUSAL = b'{"message":"no such token","type":"BadRequestError","param":"logit_bias","code":400}'


@pytest.mark.invariant("A request that its caller got wrong counts against no engine, streamed or not.")
@pytest.mark.parametrize("body", [b'{"error":%b}' % REFUSAL, b'{"object":"error",' + REFUSAL[1:]], ids=["own", "kind"])
@pytest.mark.parametrize("stream", [True, False])
async def test_refusal_inside_a_200_is_told_as_one_and_blames_no_engine(
    world: World, small: FakeEngine, general: FakeEngine, stream: bool, body: bytes
) -> None:
    """vLLM checks sampling and forms of a streamed request once its 200 is out."""
    async with world() as gateway:
        sent = b"data: %b\n\n" % body if stream else body
        rule = small.faults.add(RawEvent(0, sent), model="returns@*")
        refused = [await ask(gateway, stream=stream) for _ in range(4)]
        small.faults.clear()
        told = await ask(gateway)
    for each in refused:
        error = each.error or {}
        assert (each.status, error["code"], error["param"]) == (400, "engine_refused", "logit_bias")
        assert error["message"] == "no such token"
    assert (rule.shown, calls(general)) == (4, [])
    assert (told.whole, told.models) == (True, {"returns@v1"})


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"error": {"message": "no", "code": "content_filter"}}, "content_filter", "an error inside a 200"),
        ({"choices": [{"message": {"content": "Hi"}}]}, None, "sent its answer as a whole"),
    ],
    ids=["error", "answer"],
)
async def test_json_in_the_place_of_a_stream_is_told_as_what_it_is(
    world: World, small: FakeEngine, general: FakeEngine, body: Json, code: str | None, words: str
) -> None:
    async with world() as gateway:
        for engine in (small, general):
            engine.faults.add(Status(200, body))
        told = await ask(gateway)
    assert (told.error or {}).get("engine_code") == code
    assert words in (told.error or {})["message"]


@pytest.mark.invariant("Silence between tokens ends at its limit.")
@pytest.mark.parametrize(("every", "after"), [(0.02, 1), (0.26, 10), (1.0, 1), (1.2, 10), (1.9, 1), (1.9, 10)])
async def test_tokens_that_stop_are_waited_for_as_long_as_the_limit_says_pings_or_not(
    world: World, small: FakeEngine, every: float, after: int
) -> None:
    async with world(limits={"inter_token_timeout_seconds": 2.0}) as gateway:
        small.faults.add(Tokens(60), Pings(after, 30, every), model="returns@*")
        told = await ask(gateway)
    assert (told.error or {})["code"] == "stream_broken"
    assert 2.0 <= told.seconds < 3.8


async def test_long_event_is_read_up_to_the_answers_bound(world: World, small: FakeEngine, general: FakeEngine) -> None:
    async with world() as gateway:
        small.faults.add(Tokens(60), HugeEvent(5 << 20), model="returns@*")
        told = await ask(gateway)
    assert (told.whole, len(told.text) > 5 << 20, calls(general)) == (True, True, [])


@pytest.mark.parametrize("text_bytes", [70_000, 2 << 20])
async def test_event_over_its_bound_sends_the_request_to_the_fallback_before_commit(
    world: World, small: FakeEngine, text_bytes: int
) -> None:
    async with world(commit="complete", limits={"event_bytes_max": 1 << 16}) as gateway:
        small.faults.add(Tokens(60), HugeEvent(text_bytes), model="returns@*")
        told = await ask(gateway)
        assert not gateway.services.fleet.replicas["small-0"].view().circuits
    assert (told.whole, told.words, told.text.startswith(GENERAL)) == (True, 60, True)
    assert len(calls(small)) == 1


async def test_event_over_its_bound_after_all_of_the_answer_is_ignored(world: World, small: FakeEngine) -> None:
    go, lines = asyncio.Event(), []
    async with world(limits={"event_bytes_max": 1 << 16}) as gateway, gateway.http() as http:
        small.faults.add(Tokens(60), WaitsFor(go), HugeEvent(2 << 20, 60), model="returns@*")
        body = {"model": "returns", "messages": ASK, "stream": True, "stream_options": {"include_usage": True}}
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
                if '"finish_reason": "' in line or '"finish_reason":"' in line:
                    go.set()
    assert go.is_set()
    assert lines[-2:] == ["data: [DONE]", ""]


async def test_event_over_its_bound_after_commit_ends_with_the_clear_error(world: World, small: FakeEngine) -> None:
    async with world(limits={"event_bytes_max": 1 << 16}) as gateway:
        small.faults.add(Tokens(60), HugeEvent(2 << 20), model="returns@*")
        told = await ask(gateway)
    assert ((told.error or {})["code"], told.done, told.words) == ("stream_broken", False, 5)
