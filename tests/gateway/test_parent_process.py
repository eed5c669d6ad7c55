from __future__ import annotations

import asyncio
import logging
import pickle
from pathlib import Path

import pytest

from gateway.configuration.settings import Settings
from gateway.parent_process import Parent, ServingProcess
from gateway.sibling_processes import Channel, ProcessMessage
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
