from __future__ import annotations

import asyncio
import logging
import pickle
import signal
import socket
import subprocess
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest

from gateway import parent_process
from gateway.configuration.settings import Settings
from gateway.parent_process import Parent, ServingProcess
from gateway.sibling_processes import Channel, ProcessMessage, Questions
from monitoring.metrics import Meters
from tests.gateway.test_sibling_processes import POOLS


def test_the_parent_logs_by_the_level_that_was_read_again() -> None:
    root = logging.getLogger()
    before = root.level
    parent = Parent(Settings(pools=POOLS, general_pool="general"), Path("apprentice.yaml"), 2, ())
    read_again = Settings(pools=POOLS, general_pool="general", log_level="ERROR")
    message = ProcessMessage("settings", 0, pickle.dumps(read_again))
    try:
        parent._loop.run_until_complete(parent._relay(parent._children[0], message))
        assert root.level == logging.ERROR
    finally:
        root.setLevel(before)
        parent._loop.close()


class Heard(Channel):
    """A channel whose process says nothing; the messages that it was sent."""

    def __init__(self) -> None:
        self.messages: list[ProcessMessage] = []

    def send(self, message: ProcessMessage) -> None:
        self.messages.append(message)


class Answering(Heard):
    """A channel whose process answers each question at once."""

    def __init__(self, child: ServingProcess) -> None:
        super().__init__()
        self._child = child

    def send(self, message: ProcessMessage) -> None:
        super().send(message)
        if message.number and message.topic != "answer":
            self._child.questions.answered(ProcessMessage("answer", message.number))


class Late(Answering):
    """A channel whose process answers each question after the asker has given it up."""

    def send(self, message: ProcessMessage) -> None:
        asyncio.get_running_loop().call_later(0.12, super().send, message)


def test_settings_that_come_back_to_their_reader_are_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    parent = Parent(Settings(pools=POOLS, general_pool="general"), Path("apprentice.yaml"), 2, ())
    asker, other = parent._children
    heard = Heard()
    asker.ready, asker.channel, other.ready, other.channel = True, heard, True, Answering(other)
    message = ProcessMessage("settings", 1, pickle.dumps(Settings(pools=POOLS, general_pool="general")))
    parent._loop.run_until_complete(parent._relay(asker, message))
    parent._loop.close()
    assert [(each.topic, each.number) for each in heard.messages] == [("settings", 0), ("answer", 1)]
    assert caplog.messages == []


def test_of_two_reloads_that_are_answered_the_same_is_the_last_one_at_each_process() -> None:
    parent = Parent(Settings(pools=POOLS, general_pool="general"), Path("apprentice.yaml"), 2, ())
    channels = [Answering(child) for child in parent._children]
    relays = []
    for child, channel, seconds in zip(parent._children, channels, (5.0, 6.0), strict=True):
        child.ready, child.channel = True, channel
        read = Settings(pools=POOLS, general_pool="general", snapshot_interval_seconds=seconds)
        relays.append(parent._relay(child, ProcessMessage("settings", 1, pickle.dumps(read))))

    async def read_at_both() -> None:
        await asyncio.gather(*relays)

    parent._loop.run_until_complete(read_at_both())
    parent._loop.close()
    last = [[pickle.loads(m.payload) for m in channel.messages if m.topic == "settings"][-1] for channel in channels]
    assert [settings.snapshot_interval_seconds for settings in last] == [6.0, 6.0]


def test_of_two_reloads_at_once_the_same_is_the_last_one_at_each_process() -> None:
    parent = Parent(Settings(pools=POOLS, general_pool="general"), Path("apprentice.yaml"), 2, ())
    channels = [Heard(), Heard()]
    for child, channel in zip(parent._children, channels, strict=True):
        child.ready, child.channel = True, channel

    async def read_at_both() -> None:
        for child, seconds in zip(parent._children, (5.0, 6.0), strict=True):
            read = Settings(pools=POOLS, general_pool="general", snapshot_interval_seconds=seconds)
            await parent._relay(child, ProcessMessage("settings", 0, pickle.dumps(read)))

    parent._loop.run_until_complete(read_at_both())
    parent._loop.close()
    last = [pickle.loads(channel.messages[-1].payload) for channel in channels]
    assert [settings.snapshot_interval_seconds for settings in last] == [6.0, 6.0]


@pytest.mark.invariant("A process that hangs is ended and replaced.")
@pytest.mark.parametrize("answers", [None, Answering, Late])
def test_a_process_that_answers_nothing_any_more_is_ended(
    answers: type[Answering] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = answers is None
    monkeypatch.setattr(parent_process, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(parent_process, "CHILD_SECONDS_MAX", 0.1)
    parent = Parent(Settings(pools=POOLS, general_pool="general"), Path("apprentice.yaml"), 2, ())
    child = parent._children[0]
    with subprocess.Popen(["sleep", "60"]) as process:
        child.pid, child.channel = process.pid, Heard() if answers is None else answers(child)

        async def watched() -> None:
            async with asyncio.timeout(60 if hangs else 1):
                await parent._watch(child)

        with nullcontext() if hangs else pytest.raises(TimeoutError):
            parent._loop.run_until_complete(watched())
        parent._loop.close()
        if not hangs:
            assert process.poll() is None
            process.kill()
        assert process.wait() == -signal.SIGKILL


class Starting(Heard):
    """A channel whose process says that it is ready where `answers`, and nothing more."""

    def __init__(self, answers: bool) -> None:
        super().__init__()
        self._answers = answers

    async def receive(self) -> ProcessMessage | None:
        if self._answers and not self.messages:
            self.send(ready := ProcessMessage("ready"))
            return ready
        return await asyncio.Event().wait()

    def close(self) -> None:
        """Nothing is left to close."""


@pytest.mark.parametrize("becomes_ready", [False, True])
def test_a_process_that_does_not_become_ready_is_ended(becomes_ready: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent_process, "START_SECONDS_MAX", 600.0 if becomes_ready else 0.0)
    parent = Parent(Settings(pools=POOLS, general_pool="general"), Path("apprentice.yaml"), 2, ())
    child = parent._children[0]

    async def over(_: object) -> Channel:
        return Starting(becomes_ready)

    monkeypatch.setattr(Channel, "over", over)
    with subprocess.Popen(["sleep", "60"]) as process:
        child.pid, child.end = process.pid, socket.socket()
        with child.end:

            async def started() -> None:
                next_one = asyncio.ensure_future(parent._next())
                while (starting := child.watching) is None:
                    await asyncio.sleep(0)
                await asyncio.wait([starting])
                next_one.cancel()
                assert starting.cancelled() is becomes_ready

            parent._loop.run_until_complete(started())
            if becomes_ready:
                assert process.poll() is None
                process.kill()
            assert process.wait() == -signal.SIGKILL
    for task in asyncio.all_tasks(parent._loop):
        task.cancel()
    parent._loop.run_until_complete(asyncio.sleep(0))
    parent._loop.close()


def test_a_scrape_waits_for_no_process_that_hangs_and_has_what_it_last_told() -> None:
    parent = Parent(Settings(pools=POOLS, general_pool="general"), Path("apprentice.yaml"), 2, ())
    hanging, other = parent._children
    meters = Meters(2000)
    meters.process_restarts.add(1)
    channels = [Heard(), Heard()]
    for child, channel in zip(parent._children, channels, strict=True):
        child.pid, child.ready, child.channel, child.measured = 1, True, channel, meters.measured()
    hanging.silent = 1

    async def merged() -> bytes:
        asking = asyncio.ensure_future(parent._merged(""))
        while not channels[1].messages:
            await asyncio.sleep(0)
        other.questions.answered(ProcessMessage("answer", 1, meters.measured()))
        return (await asking)[0]

    text = parent._loop.run_until_complete(merged()).decode()
    parent._loop.close()
    assert channels[0].messages == []
    assert "apprentice_process_restarts_total 2.0" in text


def test_totals_are_unknown_where_a_process_does_not_tell_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent_process, "CHILD_SECONDS_MAX", 0.0)
    parent = Parent(Settings(pools=POOLS, general_pool="general"), Path("apprentice.yaml"), 3, ())
    asker = Heard()
    for child, channel in zip(parent._children, (asker, Heard(), Heard()), strict=True):
        child.ready, child.channel = True, channel
    for _ in range(2):
        parent._loop.run_until_complete(parent._relay(parent._children[0], ProcessMessage("totals", 1)))
        for child in parent._children[1:]:
            child.ready = False  # they start again: the parent knows what they told
    parent._loop.close()
    hung, started = [msgspec.msgpack.decode(message.payload, type=list[bytes]) for message in asker.messages]
    assert (hung, len(started)) == ([], 1)


class Lingering(Heard):
    """A channel whose process said that it is ready; its end is held open by another one."""

    async def receive(self) -> ProcessMessage | None:
        if self.messages:
            await asyncio.Event().wait()
        self.send(ready := ProcessMessage("ready"))
        return ready

    def close(self) -> None:
        """Nothing is left to close."""


def test_a_process_that_has_ended_is_watched_and_heard_no_more() -> None:
    parent = Parent(Settings(pools=POOLS, general_pool="general"), Path("apprentice.yaml"), 2, ())
    child, channel = parent._children[0], Lingering()

    async def buried() -> None:
        child.listening = asyncio.ensure_future(parent._listen(child, channel))
        while not parent._tasks:
            await asyncio.sleep(0)
        await parent._bury(child, 1)

    parent._loop.run_until_complete(buried())
    left = asyncio.all_tasks(parent._loop)
    for task in left:
        task.cancel()
    parent._loop.run_until_complete(asyncio.sleep(0))
    parent._loop.close()
    assert not left


def test_third_signal_while_a_process_is_buried_reaches_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent_process, "LAST_WORDS_SECONDS_MAX", 0.01)
    parent = Parent(Settings(pools=POOLS, general_pool="general"), Path("apprentice.yaml"), 2, ())
    child, other = parent._children
    other.channel = heard = Heard()
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    child.pid = ended.pid

    async def stop_while_it_is_buried() -> None:
        child.listening = asyncio.get_running_loop().create_future()  # type: ignore[assignment]
        burial = asyncio.ensure_future(parent._bury(child, 0))
        await asyncio.sleep(0)
        for _ in range(parent_process.KILLING_SIGNALS):
            parent._stop()
        await burial

    parent._loop.run_until_complete(stop_while_it_is_buried())
    parent._loop.close()
    assert [message.topic for message in heard.messages] == ["stop"] * parent_process.KILLING_SIGNALS


def test_a_slow_reload_is_waited_for_longer_than_other_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent_process, "CHILD_SECONDS_MAX", 0.0)
    parent = Parent(Settings(pools=POOLS, general_pool="general"), Path("apprentice.yaml"), 2, ())
    channels = [Heard(), Heard()]
    for child, channel in zip(parent._children, channels, strict=True):
        child.ready, child.channel = True, channel

    async def reloaded() -> None:
        reloading = asyncio.ensure_future(parent._reload_by_one())
        assert await parent._ask(parent._children[1], "ready") is None, "others are not waited for"
        parent._children[0].questions.answered(ProcessMessage("answer", 1))
        await reloading

    parent._loop.run_until_complete(reloaded())
    parent._loop.close()
    assert [[message.topic for message in channel.messages] for channel in channels] == [["reload"], ["ready"]]


def test_a_reload_is_asked_of_the_next_process_where_one_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent_process, "RELOAD_SECONDS_MAX", 0.1)
    parent = Parent(Settings(pools=POOLS, general_pool="general"), Path("apprentice.yaml"), 3, ())
    _, other, third = parent._children
    channels = [Heard(), Answering(other), Answering(third)]
    for child, channel in zip(parent._children, channels, strict=True):
        child.ready, child.channel = True, channel
    parent._loop.run_until_complete(parent._reload_by_one())
    parent._loop.close()
    assert [[message.topic for message in channel.messages] for channel in channels] == [["reload"], ["reload"], []]


def test_what_a_process_told_before_its_end_is_not_taken_for_its_successors() -> None:
    parent = Parent(Settings(pools=POOLS, general_pool="general"), Path("apprentice.yaml"), 2, ())
    first, second = parent._children
    meters = Meters(2000)
    meters.process_restarts.add(1)
    channels = [Heard(), Heard()]
    for child, channel in zip(parent._children, channels, strict=True):
        child.pid, child.ready, child.channel, child.measured = 1, True, channel, meters.measured()

    async def merged() -> bytes:
        asking = asyncio.ensure_future(parent._merged(""))
        while not channels[1].messages:
            await asyncio.sleep(0)
        first.questions.answered(ProcessMessage("answer", 1, meters.measured()))
        parent._ended.add(first.measured, with_gauges=False)
        first.measured, first.questions = b"", Questions()  # buried, and its successor is ready
        second.questions.answered(ProcessMessage("answer", 1, meters.measured()))
        return (await asking)[0]

    text = parent._loop.run_until_complete(merged()).decode()
    parent._loop.close()
    assert "apprentice_process_restarts_total 2.0" in text
