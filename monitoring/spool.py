"""The spool: records on disk while Redis is away. Its segments only grow, are replayed in order, and are then removed.

Each gateway writes its own files, `NAME.NUMBER.spool`, and holds a lock on `NAME.lock` as long as it lives. A gateway
that gets another's lock takes over its segments. A frame is the length of a record's JSON and its CRC-32, each in 4
bytes, little-endian, then the JSON. A half-written frame of a killed gateway is cut off. A segment that can't be read
is renamed to `NAME.NUMBER.spool.damaged`, and the others are processed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

log = logging.getLogger(__name__)
FRAME = struct.Struct("<II")
FRAME_BYTES_MAX = 1 << 24
SEGMENT_BYTES = 4 << 20
SEGMENTS_LEAST = 8
"""The least number of segments that fit into the bound, since a whole segment is dropped at a time."""
READ_BYTES = 1 << 18
DAMAGED = ".damaged"
T = TypeVar("T")
PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})
"""Faults of this process or machine, not of the file that is read."""


class _When(msgspec.Struct):
    at: float = 0.0


@dataclass(slots=True)
class Segment:
    """One file: the `size` in bytes of its whole frames, its number of `records`, and how far it is replayed."""

    path: Path
    owner: str
    size: int = 0
    records: int = 0
    offset: int = 0
    replayed: int = 0


class Spool:
    """Owner of a gateway's segments, and of those that it took over. Not thread-safe: one thread calls it at a time.

    `records`, `size_bytes` and `oldest_at` (Unix seconds, None if nothing waits) may be read from any thread.
    """

    def __init__(self, folder: Path, name: str, bytes_max: int) -> None:
        self.records = 0
        self.size_bytes = 0
        self.oldest_at: float | None = None
        self.is_dirty = False
        self.lost = 0
        """The number of records that were damaged on the disk, since the start."""
        self._lost_told = 0
        self._folder = folder
        self._name = name
        self._bytes_max = bytes_max
        self._segment_bytes = min(SEGMENT_BYTES, bytes_max // SEGMENTS_LEAST)
        self._segments: list[Segment] = []
        self._locks: dict[str, int] = {}
        self._writing: int | None = None
        self._number = 0
        self._read: tuple[Segment, int, int, int] | None = None

    def open(self) -> None:
        """Make the folder, and lock this gateway's name. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._gate():
            if not self._lock(self._name):
                raise OSError(f"The spool {self._folder} has a gateway {self._name} already.")

    def append(self, payloads: Sequence[bytes], first_at: float) -> int:
        """Write records behind all others; returns the number of oldest records dropped for them.

        They outlive this process from now on, and the machine after `sync`. Raises OSError; then none is written.
        """
        segment = self._segment()
        data = b"".join(FRAME.pack(len(payload), zlib.crc32(payload)) + payload for payload in payloads)
        assert self._writing is not None, "_segment has opened it"
        self.is_dirty = True
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._writing, rest) :]
        except OSError:
            os.ftruncate(self._writing, segment.size)
            raise
        segment.size += len(data)
        segment.records += len(payloads)
        self.size_bytes += len(data)
        self.records += len(payloads)
        self.oldest_at = first_at if self.oldest_at is None else self.oldest_at
        return self._drop_oldest()

    def sync(self) -> None:
        """Flush the written records to the disk. Raises OSError."""
        if self._writing is not None and self.is_dirty:
            os.fsync(self._writing)
        self.is_dirty = False

    def first(self, count: int) -> list[bytes]:
        """The oldest records, at most `count`, which stay here until `forget`; maybe fewer, and none if none is left.

        Damaged records are left out; an unreadable segment is set aside. Raises OSError if no file can be opened now.
        """
        while self._segments:
            segment = self._segments[0]
            try:
                payloads, end, damaged = _frames(segment, count)
            except OSError as error:
                if error.errno in PASSING:
                    raise
                self._set_aside(segment, str(error))
                continue
            if end == segment.offset:
                if end < segment.size:
                    self._set_aside(segment, f"a damaged length at byte {end}")
                else:
                    self._remove(segment)
                continue
            self._read = (segment, end, len(payloads), damaged)
            if payloads:
                self.oldest_at = _at(payloads[0])
            return payloads
        return []

    def forget(self) -> None:
        """Drop the records that `first` returned last: they are stored elsewhere. A segment that is read to its end is
        removed."""
        if self._read is None:
            return
        segment, end, whole, damaged = self._read
        self._read = None
        if segment not in self._segments:
            return
        remaining = segment.records - segment.replayed
        count = remaining if end >= segment.size else min(remaining, whole + damaged)
        segment.offset = end
        segment.replayed += count
        self.records -= count
        if (lost := count - whole) > 0:
            log.error("%d records of %s are damaged", lost, segment.path)
            self.lost += lost
        if segment.offset >= segment.size:
            self._remove(segment)

    def count_newly_lost(self) -> int:
        """Return how many records were lost since the last call."""
        before, self._lost_told = self._lost_told, self.lost
        return self._lost_told - before

    def take_over(self) -> int:
        """Take over the segments of gateways that have ended; returns the number of their records.

        A fault in one gateway's segments does not prevent taking over the rest. Raises OSError if the folder can't be
        read.
        """
        with self._gate():
            return self._take_over()

    def _take_over(self) -> int:
        by_owner: dict[str, list[Path]] = {}
        for path in self._folder.iterdir():
            owner, _, number = path.name.removesuffix(".spool").removesuffix(".lock").rpartition(".")
            if path.suffix == ".spool" and number.isdigit():
                by_owner.setdefault(owner, []).append(path)
            elif path.suffix == ".lock":
                by_owner.setdefault(path.name.removesuffix(".lock"), [])
        segments: list[Segment] = []
        for owner, paths in sorted(by_owner.items()):
            if owner in self._locks:
                continue
            try:
                segments += self._taken(owner, sorted(paths))
            except OSError as error:
                log.error("the spool of %s can't be taken over now: %s", owner, error)
                if owner in self._locks:
                    with contextlib.suppress(OSError):
                        self._unlock(owner)
        records = sum(segment.records for segment in segments)
        if segments:
            log.warning("%d records of gateways that have ended wait in the spool", records)
            self._segments[:0] = segments
            self._read = None
            self.records += records
            self.size_bytes += sum(segment.size for segment in segments)
            with contextlib.suppress(OSError):
                self.first(1)
            self._read = None
        return records

    def forget_damaged(self, before: float) -> None:
        """Delete damaged segments, of any gateway, that were last written before a time (Unix seconds)."""
        for path in self._folder.glob(f"*{DAMAGED}"):
            try:
                if path.stat().st_mtime < before:
                    path.unlink(missing_ok=True)
            except OSError as error:
                log.error("%s can't be deleted: %s", path, error)

    def close(self) -> None:
        """Release the rest to another gateway. Raises OSError if the disk fails."""
        try:
            self.sync()
        finally:
            self._end_writing()
            for owner in list(self._locks):
                self._unlock(owner)

    def _taken(self, owner: str, paths: Sequence[Path]) -> list[Segment]:
        """The segments of a gateway, if it has ended. May lock its name and then raise OSError."""
        if not self._lock(owner):
            return []
        segments = []
        for path in paths:
            try:
                segments.append(_measured(path, owner))
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno in PASSING:
                    raise
                log.error("%s can't be read, and how many records are in it is not known: %s", path, error)
                self.lost += 1
                _rename(path)
        if not segments and not any(os.path.lexists(path) for path in paths):
            self._unlock(owner)
        return segments

    def _segment(self) -> Segment:
        """The segment to write to."""
        last = self._segments[-1] if self._segments else None
        if self._writing is not None and last is not None and last.size < self._segment_bytes:
            return last
        self.sync()
        self._end_writing()
        self._number += 1
        segment = Segment(self._folder / f"{self._name}.{self._number:08}.spool", self._name)
        self._writing = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._segments.append(segment)
        return segment

    def _end_writing(self) -> None:
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None

    def _drop_oldest(self) -> int:
        dropped = 0
        while self.size_bytes > self._bytes_max and len(self._segments) > 1:
            segment = self._segments[0]
            dropped += segment.records - segment.replayed
            self._remove(segment)
        return dropped

    def _remove(self, segment: Segment) -> None:
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:
            log.error("%s can't be removed, its records may be sent again: %s", segment.path, error)
        self._leave(segment)

    def _set_aside(self, segment: Segment, why: str) -> None:
        """Go on without a segment. Its remaining records are lost, unless somebody can still read the file."""
        lost = segment.records - segment.replayed
        log.error("%d records of %s can't be read: %s", lost, segment.path, why)
        self.lost += lost
        _rename(segment.path)
        self._leave(segment)

    def _leave(self, segment: Segment) -> None:
        """Drop a segment. If its file could not be moved, its owner stays locked, so nobody takes it over again."""
        if self._writing is not None and segment is self._segments[-1]:
            self._end_writing()
            self.is_dirty = False
        self._segments.remove(segment)
        self.size_bytes -= segment.size
        self.records -= segment.records - segment.replayed
        if not self._segments:
            self.oldest_at = None
        if segment.owner == self._name or any(other.owner == segment.owner for other in self._segments):
            return
        if not os.path.lexists(segment.path):
            self._unlock(segment.owner)

    @contextlib.contextmanager
    def _gate(self) -> Iterator[None]:
        """Lock the folder, so that no other process looks at names meanwhile. A look holds a name's lock for a moment,
        in which that gateway might start. Waits for another look to end. Raises OSError."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, owner: str) -> bool:
        """Lock this name. True if its gateway has ended, or is this one."""
        path = self._folder / f"{owner}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino != os.fstat(descriptor).st_ino:
                raise FileNotFoundError(path)
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            return False
        except OSError:
            os.close(descriptor)
            raise
        self._locks[owner] = descriptor
        return True

    def _unlock(self, owner: str) -> None:
        try:
            if not any(self._folder.glob(f"{owner}.*.spool")):
                (self._folder / f"{owner}.lock").unlink(missing_ok=True)
        finally:
            os.close(self._locks.pop(owner))


def _frames(segment: Segment, count: int) -> tuple[list[bytes], int, int]:
    """At most `count` next frames of a segment: records, the offset behind them, and the number of damaged ones."""
    with segment.path.open("rb") as file:
        file.seek(segment.offset)
        data = file.read(min(READ_BYTES, segment.size - segment.offset))
        if len(data) >= FRAME.size:
            length = FRAME.unpack_from(data)[0]
            data += file.read(max(0, FRAME.size + length - len(data)))
    payloads: list[bytes] = []
    at = damaged = 0
    while len(payloads) + damaged < count and len(data) - at >= FRAME.size:
        length, check = FRAME.unpack_from(data, at)
        end = at + FRAME.size + length
        if not 0 < length <= FRAME_BYTES_MAX or end > len(data):
            break
        payload = data[at + FRAME.size : end]
        at = end
        if zlib.crc32(payload) == check:
            payloads.append(payload)
        else:
            damaged += 1
    return payloads, segment.offset + at, damaged


def _rename(path: Path) -> None:
    try:
        path.rename(path.with_name(path.name + DAMAGED))
    except FileNotFoundError:
        return
    except OSError as error:
        log.error("%s can't be set aside: %s", path, error)


def _measured(path: Path, owner: str) -> Segment:
    """A segment up to its last whole frame: its gateway was killed while it wrote the rest."""
    data = path.read_bytes()
    at = records = 0
    while len(data) - at >= FRAME.size:
        length = FRAME.unpack_from(data, at)[0]
        if not 0 < length <= FRAME_BYTES_MAX or at + FRAME.size + length > len(data):
            break
        at += FRAME.size + length
        records += 1
    if at < len(data):
        log.warning("the last %d bytes of %s are not a whole record", len(data) - at, path)
    return Segment(path, owner, size=at, records=records)


def decode_payloads(payloads: Sequence[bytes], kind: type[T]) -> tuple[list[T], int]:
    """The records, and the number of those that can't be read, for instance from another version."""
    records: list[T] = []
    for payload in payloads:
        try:
            records.append(msgspec.json.decode(payload, type=kind))
        except msgspec.DecodeError:
            log.exception("a record of the spool can't be read")
    return records, len(payloads) - len(records)


def _at(payload: bytes) -> float:
    try:
        return msgspec.json.decode(payload, type=_When).at
    except msgspec.DecodeError:
        return 0.0
