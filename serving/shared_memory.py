"""Memory that the processes of one gateway share: rows of numbers, such as each replica's load and its breakers.

The parent process makes it, and its children inherit it. Each process writes its own column, or a row under the lock.
If a process dies, the kernel releases its lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import mmap
import os
from collections.abc import Iterator, MutableSequence
from typing import cast

log = logging.getLogger(__name__)
Row = MutableSequence[float]
ROWS_MAX = 16_384
"""Unused rows cost nothing: pages are allocated when they are first written."""
NUMBERS_MIN = 12
NUMBER_BYTES = 8
NAME_BYTES_MAX = 512
CHANGES = ("changes",)
BREAKER = "breaker"
REUSED = frozenset({"load", "looks", BREAKER})
"""First names of rows that belong to a replica, which may leave for good."""
HEADER_NUMBERS = 2
PROBER = 0
"""Place in a breaker's row of the process whose test request is under way, plus 1."""


class SharedMemory:
    """Rows by their names. `process` is the column of this process.

    A row of REUSED that no process uses any more becomes the next new row.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.process = 0
        self._width = max(NUMBERS_MIN, processes)
        names_at = (HEADER_NUMBERS + ROWS_MAX * self._width) * NUMBER_BYTES
        users_at = names_at + ROWS_MAX * NAME_BYTES_MAX
        self._file = os.memfd_create("apprentice")
        os.ftruncate(self._file, users_at + ROWS_MAX * processes)
        memory = memoryview(mmap.mmap(self._file, 0))
        self._numbers = memory[:names_at].cast("d")
        """First the number of rows and the number of changes of names, then the rows."""
        self._names = memory[names_at:users_at]
        self._users = memory[users_at:]
        """For each row one byte for each process: 1 if it uses the row."""
        self._own: dict[tuple[str, ...], Row] = {}
        """The rows that this process uses. When it is forked, its parent has no row of REUSED."""
        self._places: dict[tuple[str, ...], int] = {}
        """The places of all rows, as they were last read."""
        self._read_at = -1.0
        self._changes = self.row(*CHANGES)

    def row(self, *names: str) -> Row:
        """The row of this name; it is made if it does not exist. If there is no room, it is not shared."""
        row = self._own.get(names)
        if row is not None:
            return row
        with self.locked():
            self._read_names()
            at = self._places.get(names)
            if at is None:
                at = self._begin(json.dumps(names).encode())
            if at is not None:
                self._users[at * self.processes + self.process] = 1
        if at is None:
            log.error("no shared memory is left for %s: each process counts alone", names)
            return [0.0] * self._width
        row = self._own[names] = self._row_at(at)
        return row

    def release(self, *owner: str) -> None:
        """Stop using the rows of REUSED whose names, after the first, begin with `owner`."""
        with self.locked():
            self._read_names()
            for names in [names for names in self._own if names[0] in REUSED and names[1 : len(owner) + 1] == owner]:
                del self._own[names]
                self._users[self._places[names] * self.processes + self.process] = 0

    def rows(self, kind: str) -> Iterator[tuple[tuple[str, ...], Row]]:
        """All rows with this first name, each with its other names."""
        if self._numbers[1] != self._read_at:
            with self.locked():
                self._read_names()
        yield from ((names[1:], self._row_at(at)) for names, at in list(self._places.items()) if names[0] == kind)

    @property
    def changes(self) -> float:
        """A number that grows with each `touch` of any process."""
        return sum(self._changes)

    def touch(self) -> None:
        """Inform the other processes that a row has changed."""
        self._changes[self.process] += 1

    def forget(self, process: int) -> None:
        """Clear the numbers of a process that has ended: it has no more requests under way."""
        with self.locked():
            self._read_names()
        for names, at in self._places.items():
            row = self._row_at(at)
            self._users[at * self.processes + process] = 0
            if names[0] != BREAKER and names != CHANGES:
                row[process] = 0
            elif names[0] == BREAKER and row[PROBER] == process + 1:
                row[PROBER] = 0
        self._changes[process] += 1

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process in such a block. The block never waits for anything."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _begin(self, name: bytes) -> int | None:
        """The place of a new row: an unused one of REUSED, or the next one; None if there is no room."""
        free = (at for names, at in self._places.items() if names[0] in REUSED and not self._is_used(at))
        at = next(free, int(self._numbers[0]))
        if at == ROWS_MAX or len(name) > NAME_BYTES_MAX:
            return None
        self._names[at * NAME_BYTES_MAX : (at + 1) * NAME_BYTES_MAX] = name.ljust(NAME_BYTES_MAX, b"\0")
        row = self._row_at(at)
        for place in range(self._width):
            row[place] = 0.0
        self._numbers[0] = max(self._numbers[0], at + 1)
        self._numbers[1] += 1
        self._read_names()
        return at

    def _is_used(self, at: int) -> bool:
        return any(self._users[at * self.processes : (at + 1) * self.processes])

    def _row_at(self, at: int) -> Row:
        begins = HEADER_NUMBERS + at * self._width
        return cast(Row, self._numbers[begins : begins + self._width])

    def _read_names(self) -> None:
        """Read the names if one has changed. Needs the lock, since a name may be overwritten."""
        if self._numbers[1] == self._read_at:
            return
        names = (
            bytes(self._names[at * NAME_BYTES_MAX : (at + 1) * NAME_BYTES_MAX]) for at in range(int(self._numbers[0]))
        )
        self._places = {tuple(json.loads(name.rstrip(b"\0"))): at for at, name in enumerate(names)}
        self._read_at = self._numbers[1]
