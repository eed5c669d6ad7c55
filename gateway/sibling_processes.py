"""The other processes of a gateway, seen from one of them: messages through their parent, and shared memory.

A single process has neither. Then no process is asked, and there is no wait.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal

import msgspec
from pydantic import BaseModel

from gateway.configuration.settings import Settings
from gateway.errors import SettingsError
from serving.shared_memory import SharedMemory

log = logging.getLogger(__name__)
LENGTH_BYTES = 4
ANSWER_SECONDS_MAX = 10.0
"""Longest wait for the answers of all other processes."""
CAUGHT_UP_SECONDS_MAX = 1.0
LOOK_SECONDS = 0.002
Topic = Literal["answer", "ready", "closed", "stop", "reload", "settings", "metrics", "totals", "looked", "bodies"]
Answering = Callable[[bytes], Awaitable[bytes]]
PARTED_LIMITS = (
    *("connections_max", "connections_reserved", "bodies_bytes_max"),
    *("queue_max", "in_flight_max", "uploads_max"),
)
PARTED_RECORDS = ("pending_max", "recent_bytes_max")
MAY_BE_NONE = frozenset({"connections_reserved", "queue_max", "recent_bytes_max"})


class ProcessMessage(msgspec.Struct, array_like=True):
    """A message between a process and its parent. `number` is the number of a question, or 0 if no answer is wanted."""

    topic: Topic
    number: int = 0
    payload: bytes = b""


class Channel:
    """One end of the connection between a process and its parent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        """A channel over one end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: ProcessMessage) -> None:
        """Send a message. If the other process has ended, the message is lost."""
        if self._writer.is_closing():
            return
        data = msgspec.msgpack.encode(message)
        self._writer.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)

    async def receive(self) -> ProcessMessage | None:
        """The next message; None after the other process has ended."""
        try:
            length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
            return msgspec.msgpack.decode(await self._reader.readexactly(length), type=ProcessMessage)
        except (asyncio.IncompleteReadError, OSError):
            return None

    def close(self) -> None:
        """End the channel."""
        self._writer.close()

    def leave(self) -> None:
        """Only close this process's copy of the channel. For a fork of the process that uses it."""
        os.close(self._writer.get_extra_info("socket").fileno())


class Questions:
    """The questions that were sent and are not answered yet."""

    def __init__(self) -> None:
        self.answers = 0
        """Answers that have come, late ones too."""
        self._open: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0

    async def ask(
        self,
        send: Callable[[ProcessMessage], None],
        topic: Topic,
        payload: bytes,
        seconds_max: float = ANSWER_SECONDS_MAX,
    ) -> bytes:
        """Send a question and wait for its answer. Raises TimeoutError."""
        self._number += 1
        number = self._number
        self._open[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds_max):
                send(ProcessMessage(topic, number, payload))
                return await self._open[number]
        finally:
            del self._open[number]

    def answered(self, message: ProcessMessage) -> None:
        """Take an answer, which may be too late."""
        self.answers += 1
        waiting = self._open.get(message.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(message.payload)

    def end(self) -> None:
        """End all questions: no answers come now. Waiting calls raise ConnectionResetError."""
        for waiting in self._open.values():
            if not waiting.done():
                waiting.set_exception(ConnectionResetError("the process has ended"))


class Siblings:
    """The other processes of this gateway. Owner of this process's end of the channel to the parent."""

    def __init__(self, memory: SharedMemory | None = None, end: socket.socket | None = None) -> None:
        self.memory = memory
        self.count = 1 if memory is None else memory.processes
        self.number = 0 if memory is None else memory.process
        self.answers: dict[Topic, Answering] = {}
        """The function for a message of each topic."""
        self._end = end
        self._channel: Channel | None = None
        self._questions = Questions()
        self._tasks: set[asyncio.Task[None]] = set()
        self._generations = None if memory is None else memory.row("generations")

    async def open(self, parent_ended: Callable[[], None]) -> None:
        """Begin to listen to the parent. `parent_ended` is called when the parent ends."""
        if self._end is not None:
            self._channel = await Channel.over(self._end)
            self._begin(self._listen(self._channel, parent_ended))

    def tell(self, topic: Topic, payload: bytes = b"") -> None:
        """Send a message to the parent, which passes it to the processes that need it."""
        if self._channel is not None:
            self._channel.send(ProcessMessage(topic, 0, payload))

    async def ask(self, topic: Topic, payload: bytes = b"") -> list[bytes]:
        """The answers of the other processes. There are fewer if one ends or does not answer in time."""
        if self._channel is None:
            return []
        try:
            return msgspec.msgpack.decode(
                await self._questions.ask(self._channel.send, topic, payload), type=list[bytes]
            )
        except TimeoutError:
            log.warning("the other processes did not answer in %g s (%s)", ANSWER_SECONDS_MAX, topic)
            return []

    def note_generation(self, generation: int) -> None:
        """Note that this process applies the snapshot of this generation."""
        if self._generations is not None:
            self._generations[self.number] = generation + 1

    async def catch_up(self) -> None:
        """Wait until all processes apply this process's snapshot, at most one second."""
        if self._generations is None:
            return
        wanted = self._generations[self.number]
        until = time.monotonic() + CAUGHT_UP_SECONDS_MAX
        while any(0 < at < wanted for at in self._generations) and time.monotonic() < until:  # noqa: ASYNC110 - others write
            await asyncio.sleep(LOOK_SECONDS)

    def part_of(self, settings: Settings) -> Settings:
        """The settings with this process's part of the gateway's bounds. All parts together make each bound, but a
        default bound is at least 1 in each process.

        Raises SettingsError if a bound is set to less than the number of processes.
        """
        if self.count == 1:
            return settings
        parts = {"limits": PARTED_LIMITS, "records": PARTED_RECORDS}
        return settings.model_copy(update={section: self._part(settings, section, parts[section]) for section in parts})

    def _part(self, settings: Settings, name: str, parted: Iterable[str]) -> BaseModel:
        section: BaseModel = getattr(settings, name)
        parts = {}
        for key in parted:
            whole, least = getattr(section, key), 0 if key in MAY_BE_NONE else 1
            if whole < least * self.count and whole != type(section).model_fields[key].default:
                raise SettingsError(
                    f"{name}.{key} is {whole}, too little for {self.count} processes: raise it, or run fewer."
                )
            parts[key] = max(least, whole // self.count + (self.number < whole % self.count))
        return section.model_copy(update=parts)

    async def _listen(self, channel: Channel, parent_ended: Callable[[], None]) -> None:
        while (message := await channel.receive()) is not None:
            if message.topic == "answer":
                self._questions.answered(message)
            else:
                self._begin(self._answer(channel, message))
        log.error("the parent of this process has ended: it stops, too")
        parent_ended()

    async def _answer(self, channel: Channel, message: ProcessMessage) -> None:
        answer = b""
        try:
            if message.topic in self.answers:
                answer = await self.answers[message.topic](message.payload)
        except Exception:
            log.exception("the message %s of another process failed", message.topic)
        finally:
            if message.number:
                channel.send(ProcessMessage("answer", message.number, answer))

    def _begin(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
