"""Characters that an engine cuts into two halves, over events, alternatives and a tool's arguments."""

from __future__ import annotations

import json

import pytest

from tests.gateway.formats.test_server_sent_events import chunk, event, half, taken


def contents(events: list[bytes], index: int = 0) -> str:
    choices = [choice for told in events for choice in json.loads(told.removeprefix(b"data: "))["choices"]]
    assert all(told.decode() for told in events)
    return "".join(choice["delta"].get("content") or "" for choice in choices if choice["index"] == index)


def test_surrogate_pair_over_two_events_is_joined() -> None:
    progress, for_caller = taken(half(0, "a\ud83d"), half(0, "\ude00b"), chunk(finish_reason="stop"))
    assert contents(for_caller) == "a\U0001f600b"
    assert (progress.skipped, progress.chunks, progress.ended) == (0, 2, {0})


def test_surrogate_pairs_of_alternatives_are_joined_each_for_itself() -> None:
    progress, for_caller = taken(
        half(0, "\ud83d"), half(1, "\ud83c"), half(1, "\udf0d"), half(0, "\ude00\ud83d"), half(0, "\ude01")
    )
    assert (contents(for_caller), contents(for_caller, 1)) == ("\U0001f600\U0001f601", "\U0001f30d")
    assert progress.skipped == 0


def test_halves_in_arguments_of_a_tool_are_joined() -> None:
    def part(arguments: str) -> bytes:
        call = {"index": 0, "function": {"arguments": arguments}}
        return event(id="1", choices=[{"index": 0, "delta": {"tool_calls": [call]}}])

    told = [json.loads(one.removeprefix(b"data: ")) for one in taken(part('{"a":"\ud83d'), part('\ude00"}'))[1]]
    parts = [one["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] for one in told]
    assert "".join(parts) == '{"a":"\U0001f600"}'


@pytest.mark.parametrize(
    "events",
    [
        (half(0, "\ude00"),),
        (half(0, "a\ud83db"),),
        (half(0, "\ud83d"), half(0, "b")),
        (half(0, "\ud83d"), chunk(finish_reason="stop")),
        (half(0, "\ud83d", finish_reason="stop"),),
    ],
    ids=["second_alone", "inside", "first_alone", "at_the_end", "in_the_end"],
)
def test_half_without_its_other_is_counted_as_lost(events: tuple[bytes, ...]) -> None:
    progress, for_caller = taken(*events)
    assert (progress.skipped, len(for_caller)) == (1, len(events))
    contents(for_caller)


def test_plain_events_after_a_half_are_read_one_by_one() -> None:
    progress, _ = taken(half(0, "\ud83d"))
    assert progress.take_plain(chunk("b")) == 0
