"""Memory that the processes of one gateway share: rows of numbers, such as each replica's load and its breakers.

The process that starts the others makes it, they inherit it. Each writes its own column, or a row under the lock; the
kernel gives back the lock of a process that dies.
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
"""Pages are taken when they are written: rows that nobody has begun cost nothing."""
NUMBERS_MIN = 12
NUMBER_BYTES = 8
NAME_BYTES_MAX = 512
CHANGES = ("changes",)
BREAKER = "breaker"
PROBER = 0
"""The place in a breaker's row of the process whose request is under way to see, plus 1."""


class SharedMemory:
    """Rows by their names, in the order in which they were begun. `process` is the column of who uses it."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.process = 0
        self._width = max(NUMBERS_MIN, processes)
        names_at = (1 + ROWS_MAX * self._width) * NUMBER_BYTES
        self._file = os.memfd_create("apprentice")
        os.ftruncate(self._file, names_at + ROWS_MAX * NAME_BYTES_MAX)
        memory = memoryview(mmap.mmap(self._file, 0))
        self._numbers = memory[:names_at].cast("d")
        self._names = memory[names_at:]
        self._rows: dict[tuple[str, ...], Row] = {}
        self._changes = self.row(*CHANGES)

    def row(self, *names: str) -> Row:
        """The row of this name, begun if there is none. Where there is no room it is not shared."""
        row = self._rows.get(names)
        if row is not None:
            return row
        name = json.dumps(names).encode()
        with self.locked():
            self._read_names()
            if names not in self._rows and len(name) <= NAME_BYTES_MAX and len(self._rows) < ROWS_MAX:
                at = len(self._rows) * NAME_BYTES_MAX
                self._names[at : at + len(name)] = name
                self._numbers[0] += 1
                self._read_names()
        if names not in self._rows:
            log.error("no shared memory is left for %s: each process counts alone", names)
            return [0.0] * self._width
        return self._rows[names]

    def rows(self, kind: str) -> Iterator[tuple[tuple[str, ...], Row]]:
        """All rows whose first name this is, with their other names."""
        self._read_names()
        yield from ((names[1:], row) for names, row in list(self._rows.items()) if names[0] == kind)

    @property
    def changes(self) -> float:
        """A number that grows with each `touch` of any process."""
        return sum(self._changes)

    def touch(self) -> None:
        """Tell the other processes that a row has changed."""
        self._changes[self.process] += 1

    def forget(self, process: int) -> None:
        """A process has ended: nothing of it is under way any more."""
        self._read_names()
        for names, row in self._rows.items():
            if names[0] != BREAKER and names != CHANGES:
                row[process] = 0
            elif names[0] == BREAKER and row[PROBER] == process + 1:
                row[PROBER] = 0
        self._changes[process] += 1

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process in such a block. Nothing in it waits."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _read_names(self) -> None:
        for number in range(len(self._rows), int(self._numbers[0])):
            name = bytes(self._names[number * NAME_BYTES_MAX : (number + 1) * NAME_BYTES_MAX])
            begins = 1 + number * self._width
            row = cast(Row, self._numbers[begins : begins + self._width])
            self._rows[tuple(json.loads(name.rstrip(b"\0")))] = row
